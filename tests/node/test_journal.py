"""What a node wrote down about its rounds: it survives restarts, and damage costs one entry and no more."""

from pathlib import Path

import pytest

from bflnode.consensus.transaction import Slot
from bflnode.consensus.types import Hash
from bflnode.node.journal import Journal, RoundEntry
from bflnode.storage.durable import TEMPORARY_SUFFIX
from bflnode.storage.errors import StorageError

TASK = Hash(bytes(range(32)))
SLOT = Slot(TASK, 3, 1)


def test_facts_are_added_and_found_again_by_another_process(tmp_path: Path) -> None:
    Journal(tmp_path).update(SLOT, base="aa", model="bb", loss=0.5)
    Journal(tmp_path).update(SLOT, control_accuracy=0.75)
    expected = RoundEntry(TASK.hex(), 3, 1, base="aa", model="bb", loss=0.5, control_accuracy=0.75)
    assert Journal(tmp_path).entry(SLOT) == expected
    assert Journal(tmp_path).entries() == (expected,)


def test_an_attempt_without_facts_has_an_empty_entry_and_no_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.entry(SLOT) == RoundEntry(TASK.hex(), 3, 1)
    assert journal.entries() == ()


def test_entries_come_by_round_and_attempt(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number, attempt in ((10, 0), (2, 1), (2, 0)):
        journal.update(Slot(TASK, number, attempt), loss=1.0)
    assert [(entry.number, entry.attempt) for entry in journal.entries()] == [(2, 0), (2, 1), (10, 0)]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"task": "aa"}',
        b'{"task": "aa", "number": 3, "attempt": 1, "future": 1}',
        b'{"task": "aa", "number": "3", "attempt": 1}',
        b'{"task": "aa", "number": 3, "attempt": 1, "model": "no hex"}',
        b'{"task": "aa", "number": 3, "attempt": 1, "loss": "low"}',
        b'{"task": "aa", "number": 3, "attempt": 1, "loss": NaN}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_entry_counts_as_lost_and_can_be_written_again(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path)
    journal.update(Slot(TASK, 2, 0), loss=1.0)
    journal.update(SLOT, model="bb")
    [path] = tmp_path.glob("*-000003-1.json")
    path.write_bytes(damage)
    assert journal.entry(SLOT) == RoundEntry(TASK.hex(), 3, 1)
    assert [entry.number for entry in journal.entries()] == [2]
    assert f"{path} is not an entry any more" in caplog.text
    assert journal.update(SLOT, model="cc").model == "cc"


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    path = journal._path(TASK.hex(), 3, 1)
    path.with_name(path.name + TEMPORARY_SUFFIX).mkdir()
    with pytest.raises(StorageError, match="writing what this node did in a round failed: Is a directory"):
        journal.update(SLOT, loss=1.0)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "rounds").write_text("")
    with pytest.raises(StorageError, match="making a folder failed"):
        Journal(tmp_path / "rounds")


def test_an_entry_of_another_attempt_in_this_ones_place_counts_as_lost(tmp_path: Path) -> None:
    """A flipped bit in the number must not send what is learnt from now on to another file."""
    journal = Journal(tmp_path)
    journal.update(SLOT, model="bb")
    [path] = tmp_path.glob("*.json")
    path.write_text(path.read_text().replace('"number": 3', '"number": 7'))
    assert journal.entry(SLOT) == RoundEntry(TASK.hex(), 3, 1)
    journal.update(SLOT, model="cc")
    assert Journal(tmp_path).entries() == (RoundEntry(TASK.hex(), 3, 1, model="cc"),)


def test_a_loss_that_is_not_finite_is_no_fact(tmp_path: Path) -> None:
    """It has no form in JSON: whoever asks a node about it would get no answer."""
    Journal(tmp_path).update(SLOT, model="bb", loss=float("inf"))
    assert Journal(tmp_path).entry(SLOT) == RoundEntry(TASK.hex(), 3, 1, model="bb")
