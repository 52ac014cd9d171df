"""The folder of an experiment: whose it is, and what is said where something in it is damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from bflnode.node.experiments.file import ExperimentError, parse_experiment
from bflnode.node.experiments.report import write_report
from bflnode.node.experiments.results import combine_tables
from bflnode.node.experiments.store import (
    TABLES,
    ExperimentFolder,
    RunFolder,
    RunState,
    describe,
    make_folder,
    open_folder,
)
from bflnode.storage.home_lock import HomeLock

FILE = 'name = "made"\nrounds = 2\n[[methods]]\nname = "paa"\n'
OTHER = FILE.replace("paa", "fedavg")
PLACE = ("paa", "0.5", 1, 1)
ROWS = {
    "clients.csv": [(*PLACE, 0, 0, 10, 0, 0.5, 0.5, 0.5, 1.0, 8, 8, 1.0)],
    "rounds.csv": [(*PLACE, 1, 0.5, 0.5, 0.5, 1.0, 8, 8, 1.0, 2.0, "ab")],
    "payouts.csv": [(*PLACE, 0, "none", 0, 1, 5, 0, 5, 0, 1)],
}


def made(directory: Path, text: str = FILE) -> ExperimentFolder:
    file = directory / "file.toml"
    return make_folder(directory / "made", file, parse_experiment(text.encode(), file), text.encode())


def played(directory: Path) -> tuple[ExperimentFolder, RunFolder]:
    """An experiment whose run has ended its first round."""
    folder = made(directory)
    run = folder.run(folder.plans[0])
    run.prepare(None)
    run.put_blocks(1, [b"block"])
    sizes = run.append(ROWS)
    run.save(RunState(round=1, head="ab" * 32, newcomers="cd" * 32, sizes=sizes))
    return folder, run


def test_a_file_that_was_refused_before_a_round_ended_is_corrected_and_run_in_its_folder(tmp_path: Path) -> None:
    made(tmp_path, OTHER)

    folder = made(tmp_path)

    assert [plan.name for plan in folder.plans] == ["paa-alpha0.5-seed1"]
    assert (folder.path / "experiment.toml").read_text() == FILE


def test_a_folder_with_a_round_keeps_its_file(tmp_path: Path) -> None:
    folder, _ = played(tmp_path)

    with pytest.raises(ExperimentError, match="has an experiment with another file: choose another folder with -o"):
        made(tmp_path, OTHER)
    assert (folder.path / "experiment.toml").read_text() == FILE


def test_a_folder_that_is_being_run_keeps_its_file(tmp_path: Path) -> None:
    folder = made(tmp_path)

    with HomeLock(folder.path), pytest.raises(ExperimentError, match="has an experiment with another file"):
        made(tmp_path, OTHER)


def test_a_file_that_was_changed_before_a_round_ended_can_be_run(tmp_path: Path) -> None:
    folder = made(tmp_path)
    changed = FILE.replace("rounds = 2", "rounds = 3")
    (folder.path / "experiment.toml").write_text(changed)

    assert made(tmp_path, changed).experiment.rounds == 3
    assert open_folder(folder.path).experiment.rounds == 3


def test_a_file_that_was_changed_after_a_round_is_refused_until_it_is_put_back(tmp_path: Path) -> None:
    folder, _ = played(tmp_path)
    file, changed = folder.path / "experiment.toml", FILE.replace("rounds = 2", "rounds = 3")
    file.write_text(changed)

    for opened in (lambda: open_folder(folder.path), lambda: made(tmp_path, changed)):
        with pytest.raises(
            ExperimentError, match=r"experiment\.toml has changed since .*: put it back as it was, or run"
        ):
            opened()

    file.write_text(FILE)
    assert describe(open_folder(folder.path))["runs"][0]["round"] == 1


def test_a_folder_of_a_version_that_kept_no_digest_is_opened_as_before(tmp_path: Path) -> None:
    folder, _ = played(tmp_path)
    facts = folder.metadata()
    del facts["experiment_sha256"]
    (folder.path / "experiment.json").write_text(json.dumps(facts))
    (folder.path / "experiment.toml").write_text(FILE.replace("rounds = 2", "rounds = 3"))

    assert open_folder(folder.path).experiment.rounds == 3


def test_other_things_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "letter.txt").write_text("dear reader")

    with pytest.raises(ExperimentError, match="is not empty and has no experiment"):
        made(tmp_path)


def test_a_run_with_more_rounds_than_its_file_asks_for_is_done(tmp_path: Path) -> None:
    folder, _ = played(tmp_path)
    fewer = parse_experiment(FILE.replace("rounds = 2", "rounds = 1").encode(), tmp_path)

    assert describe(folder)["state"] == "stopped"
    assert describe(ExperimentFolder(folder.path, fewer, tmp_path))["state"] == "done"


def _short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _binary(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    ("damage", "words"),
    [(_short, "has lost rows"), (_binary, "is damaged"), (Path.unlink, r"can't be read \(No such file or directory\)")],
)
def test_a_damaged_table_is_refused_with_the_run_to_remove(
    tmp_path: Path, name: str, damage: Callable[[Path], None], words: str
) -> None:
    folder, run = played(tmp_path)
    damage(run.path / name)

    with pytest.raises(ExperimentError, match=f"{run.path / name} {words}.*: remove {run.path} to begin this run anew"):
        combine_tables(folder)


@pytest.mark.parametrize("name", ["rounds.csv", "payouts.csv"])
def test_a_row_without_numbers_is_refused_with_the_run_to_remove(tmp_path: Path, name: str) -> None:
    folder, run = played(tmp_path)
    path = run.path / name
    heading, row = path.read_text().splitlines()
    path.write_text(f"{heading}\n{row.replace('5', 'x')}\n")

    with pytest.raises(ExperimentError, match=f"{path} has a damaged row .*: remove {run.path} to begin this run anew"):
        write_report([folder], tmp_path / "report", with_plots=False)


@pytest.mark.parametrize("content", [b"", b"\xc1", msgpack.packb(1), msgpack.packb([1, 2]), msgpack.packb(["text"])])
def test_what_holds_no_blocks_is_refused_with_the_run_to_remove(tmp_path: Path, content: bytes) -> None:
    _, run = played(tmp_path)
    (run.path / "chain" / "000001.blocks").write_bytes(content)

    with pytest.raises(ExperimentError, match=f"000001.blocks is damaged.*: remove {run.path} to begin this run anew"):
        list(run.blocks(1))


def test_two_experiments_of_one_name_dont_share_a_report(tmp_path: Path) -> None:
    folder, _ = played(tmp_path)

    with pytest.raises(ExperimentError, match="two experiments are called made: report them into folders of their own"):
        write_report([folder, folder], tmp_path / "report", with_plots=False)
