"""Snapshots on disk: whole or not there, the latest kept, damage never served."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bflnode.consensus.block import Commit, Header
from bflnode.consensus.snapshot import read_state
from bflnode.consensus.state import StateTree
from bflnode.storage.snapshot_store import SnapshotStore
from tests.consensus.harness import Harness


@pytest.fixture(scope="module")
def states() -> tuple[tuple[Header, Commit, tuple[tuple[bytes, bytes], ...]], ...]:
    """The states after some blocks; those of the last three are said to be the same."""
    harness = Harness()
    found = []
    for _ in range(3):
        harness.block(harness.transfer(0, harness.account(1), 5))
        found.append((harness.header, harness.last_commit, tuple(harness.tree.entries())))
    for _ in range(2):
        harness.wait(10)
        found.append((harness.header, harness.last_commit, found[-1][2]))
    return tuple(found)  # type: ignore[arg-type]  # a header is there after the first block


States = tuple[tuple[Header, Commit, tuple[tuple[bytes, bytes], ...]], ...]


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snapshots")


def heights(store: SnapshotStore) -> list[int]:
    return [snapshot.height for snapshot in store.list()]


def test_a_snapshot_is_read_back_after_reopening(store: SnapshotStore, states: States) -> None:
    made = store.create(*states[0])
    [found] = SnapshotStore(store.root).list()
    assert found == made
    assert (found.header, found.commit, found.entries) == (states[0][0], states[0][1], len(states[0][2]))
    tree = read_state(found, [store.blobs.get(found.state)])
    assert list(tree.entries()) == list(StateTree(states[0][2]).entries())


def test_only_the_latest_are_kept(store: SnapshotStore, states: States) -> None:
    for state in states[:3]:
        store.create(*state)
    assert store.prune(2) == (1,)
    assert heights(store) == [2, 3]
    assert len(store.blobs.list()) == 2


def test_the_one_that_a_chain_starts_from_is_kept_besides(store: SnapshotStore, states: States) -> None:
    for state in states[:3]:
        store.create(*state)
    assert store.prune(1, always=1) == (2,)
    assert heights(store) == [1, 3]


def test_a_file_goes_with_the_last_snapshot_that_names_it(store: SnapshotStore, states: States) -> None:
    for state in states[2:]:
        store.create(*state)
    assert len(store.blobs.list()) == 1
    assert store.delete(5)
    assert heights(store) == [3, 4]
    assert all(store.blobs.has(snapshot.state) for snapshot in store.list())
    store.delete(4)
    store.delete(3)
    assert store.blobs.list() == ()
    assert not store.delete(3)


def test_a_record_that_is_damaged_or_lost_its_file_counts_as_not_there(store: SnapshotStore, states: States) -> None:
    first, second = store.create(*states[0]), store.create(*states[1])
    store.create(*states[2])
    (store.root / "1.snapshot").write_bytes(b"\x93junk")
    store.blobs.delete(second.state)
    assert heights(store) == [3]
    store.prune(5)
    assert sorted(path.name for path in store.root.glob("*.snapshot")) == ["3.snapshot"]
    assert not store.blobs.has(first.state)


def test_a_snapshot_that_was_interrupted_leaves_nothing(store: SnapshotStore, states: States) -> None:
    def interrupted() -> Iterator[tuple[bytes, bytes]]:
        yield states[0][2][0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.create(states[0][0], states[0][1], interrupted())
    assert store.list() == ()
    assert store.blobs.list() == ()
    assert list((store.root / "temporary").iterdir()) == []
