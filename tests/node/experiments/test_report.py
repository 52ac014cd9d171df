"""What is said about experiments: summaries over seeds, reports, and the verbs of the command line."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bflnode.node.cli import bflnode
from bflnode.node.experiments.file import ExperimentError, parse_experiment
from bflnode.node.experiments.report import write_report
from bflnode.node.experiments.results import RoundResult, last_rounds, spread
from bflnode.node.experiments.store import TABLES, ExperimentFolder, RunState, make_folder

FILE = """
name = "made"
rounds = 2
clients = 3
seeds = [1, 2]
[[methods]]
name = "paa"
[[methods]]
name = "fedavg"
"""


def made(directory: Path, rounds: int = 2) -> ExperimentFolder:
    """An experiment with chosen numbers: post is 0.1 * round + 0.2 * seed, and a client is paid its number."""
    file = directory / "file.toml"
    file.write_text(FILE)
    folder = make_folder(directory / "made", file, parse_experiment(FILE.encode(), file), FILE.encode())
    folder.save_metadata(packages={"torch": "1"})
    for plan in folder.plans:
        run = folder.run(plan)
        run.prepare(None)
        sizes: dict[str, int] = {}
        for number in range(1, rounds + 1):
            place = (plan.entry.title, "0.5", plan.seed, number)
            measured = (0.5, 0.1 * number + 0.2 * plan.seed, 0.25 if number == 2 else None, 1.0)
            paid = [(*place, client, "none", 0, 3, 0, 0, client * 10**6, 5, 1) for client in range(3)]
            rows: dict[str, Sequence[Sequence[object]]] = {"rounds.csv": [(*place, 3, *measured, 2**20, 0, 1, 2, "ab")]}
            if plan.entry.name == "paa":
                rows["payouts.csv"] = paid
            sizes = run.append(rows)
        if rounds:
            run.save(RunState(round=rounds, head="ab" * 32, newcomers="", sizes=sizes))
    return folder


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(bflnode, ["experiment", *arguments], standalone_mode=False)


def test_the_standard_deviation_is_the_samples_and_one_seed_has_none() -> None:
    assert spread([0.4, 0.6]).deviation == pytest.approx(0.1 * 2**0.5)
    assert spread([0.4]).deviation is None


def test_only_last_rounds_of_finished_runs_are_summarised() -> None:
    results = [
        RoundResult("m", 0.1, seed, number, {"post": 0.1 * number + seed})
        for seed, last in ((1, 2), (2, 2), (3, 1))
        for number in range(1, last + 1)
    ]

    last = last_rounds(results, 2)[("m", 0.1)]["post"]
    assert (last.mean, last.count) == (pytest.approx(1.7), 2)


def test_a_report_has_tables_over_seeds_plots_and_what_the_ledger_paid(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `experiments` isn't installed")
    folder = made(tmp_path)

    answer = write_report([folder], tmp_path / "report", True)

    text = (tmp_path / "report" / "report.md").read_text()
    assert "| fedavg | 0.500 ± 0.141 |" in text
    assert "| paa | 0.250 ± 0.000 |" in text
    assert "| paa-alpha0.5-seed1 | 0.000 | 2.000 | 4.000 | 0.000 |" in text
    assert "| fedavg | 1.000 | 0.000 | 2.00 | 1.00 |" in text
    names = {Path(path).name for path in answer["plots"]}
    assert names == {
        *("received-alpha0.5.png", "post-alpha0.5.png", "global-alpha0.5.png"),
        *("rewards-paa-alpha0.5-seed1.png", "rewards-paa-alpha0.5-seed2.png"),
    }
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in answer["plots"])
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == answer
    assert answer["experiments"][0]["last_round"][1]["post"]["mean"] == pytest.approx(0.5)


def test_without_matplotlib_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = made(tmp_path)

    with pytest.raises(ExperimentError, match=r"pip install 'bflnode\[experiments\]', or report with --no-plots"):
        write_report([folder], tmp_path, True)
    assert write_report([folder], tmp_path, False)["plots"] == []


def test_an_experiment_without_a_round_has_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no learning round has ended yet"):
        write_report([made(tmp_path, rounds=0)], tmp_path, False)


def test_tables_of_a_run_begin_with_their_columns(tmp_path: Path) -> None:
    folder = made(tmp_path)

    for name, columns in TABLES.items():
        assert (folder.run(folder.plans[0]).path / name).read_text().splitlines()[0] == ",".join(columns)


def test_the_list_says_how_far_experiments_are(tmp_path: Path) -> None:
    made(tmp_path, rounds=1)

    (listed,) = json.loads(invoke("list", str(tmp_path), "--json").output)
    assert (listed["name"], listed["state"], listed["finished"]) == ("made", "stopped", 0)
    first = listed["runs"][0]
    assert (first["name"], first["round"], first["rounds"]) == ("paa-alpha0.5-seed1", 1, 2)
    assert "made: 0 of 4 runs done, stopped" in invoke("list", str(tmp_path / "made")).output
    assert "no experiments here" in invoke("list", str(tmp_path / "made" / "runs")).output


def test_a_damaged_experiment_doesnt_hide_the_others(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "experiment.toml").write_text("name = ")

    broken, whole = json.loads(invoke("list", str(tmp_path), "--json").output)
    assert (broken["state"], whole["state"]) == ("damaged", "done")
    assert "experiment.json is missing or damaged" in broken["error"]


def test_an_experiment_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    made(tmp_path)

    assert "made: 4 of 4 runs done, done" in invoke("resume", str(tmp_path / "made")).output
    assert (tmp_path / "made" / "rounds.csv").read_text().count("\n") == 1 + 2 * 4


def test_resuming_what_isnt_there_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="make one with `bflnode experiment run"):
        CliRunner().invoke(
            bflnode, ["experiment", "resume", str(tmp_path)], standalone_mode=False, catch_exceptions=False
        )
