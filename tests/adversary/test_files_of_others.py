"""What somebody else hands over as a file or a folder, and its receiver opens in good faith."""

import json
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bflnode.node.experiments.file import ExperimentError, read_experiment
from bflnode.node.experiments.store import RunState, describe, make_folder, open_folder
from bflnode.node.home import HomeError, read_credential, read_genesis
from bflnode.storage.errors import StorageError
from bflnode.storage.home_lock import LOCK_FILE, HomeLock

EXPERIMENT = 'name = "given"\nrounds = 2\nclients = 2\n[[methods]]\nname = "fedavg"\n'
STATE = RunState(round=1, head="11" * 32, newcomers="22" * 32)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """The folder of an experiment whose only run is in the middle."""
    file = tmp_path / "given.toml"
    file.write_text(EXPERIMENT, encoding="utf-8")
    experiment, content = read_experiment(file)
    folder = make_folder(tmp_path / "given", file, experiment, content)
    run = folder.run(folder.plans[0])
    run.prepare(None)
    run.save(STATE)
    assert [found["round"] for found in describe(open_folder(folder.path))["runs"]] == [1]
    return folder.path


@pytest.mark.parametrize(
    ("where", "name"), [("given", LOCK_FILE), ("given/runs/*", "models"), ("given/runs/*", "clients.csv")]
)
def test_an_experiment_with_a_link_is_not_opened_and_what_it_leads_to_stays(
    given: Path, tmp_path: Path, where: str, name: str
) -> None:
    """Going on with it removed every file of a folder that a link led to, and cut off the file that another did."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "account.key").write_text("ab" * 32, encoding="utf-8")
    (place,) = (folder / name for folder in given.parent.glob(where))
    if place.is_dir():
        place.rmdir()
        place.symlink_to(own)
    else:
        place.unlink(missing_ok=True)
        place.symlink_to(own / "account.key")
    with pytest.raises(ExperimentError, match="is a link"):
        open_folder(given)
    assert (own / "account.key").read_text(encoding="utf-8") == "ab" * 32


def test_a_lock_that_is_a_link_empties_nothing(tmp_path: Path) -> None:
    key = tmp_path / "account.key"
    key.write_text("ab" * 32, encoding="utf-8")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / LOCK_FILE).symlink_to(key)
    with pytest.raises(StorageError):
        HomeLock(tmp_path / "home")
    assert key.read_text(encoding="utf-8") == "ab" * 32


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("round", value) for value in ("1", -1, 1.5, None)],
        *[("sizes", value) for value in ({"clients.csv": -3}, {"clients.csv": "x"}, [])],
        *[("newcomers", value) for value in ("../../own", [1])],
        *[("received", value) for value in ({"0": "/etc/passwd"}, {"x": "22" * 32})],
        ("kept", {"0": [1]}),
        ("seconds", float("nan")),
        ("head", [1]),
    ],
)
def test_a_checkpoint_that_no_run_wrote_is_named(given: Path, name: str, value: Any) -> None:
    (path,) = given.glob("runs/*/state.json")
    path.write_text(json.dumps(asdict(STATE) | {name: value}), encoding="utf-8")
    with pytest.raises(ExperimentError, match=r"state\.json is damaged"):
        describe(open_folder(given))


@pytest.mark.parametrize("name", ["experiment.json", "runs/*/state.json"])
def test_brackets_without_end_are_no_experiment(given: Path, name: str) -> None:
    (path,) = given.glob(name)
    path.write_text('{"a":' * 100_000, encoding="utf-8")
    with pytest.raises(ExperimentError, match="damaged"):
        describe(open_folder(given))


def test_a_genesis_or_credential_larger_than_memory_is_not_read_as_a_whole(tmp_path: Path) -> None:
    """The command that was given one took all memory, and a node on the same machine could be killed for it."""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(2**30)
    tracemalloc.start()
    try:
        with pytest.raises(HomeError, match="is this the right file"):
            read_genesis(large)
        with pytest.raises(HomeError, match="is not an admission credential"):
            read_credential(large)
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()
