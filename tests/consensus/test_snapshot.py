"""Snapshots: one file for one state, and nothing in them that has to be believed."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bflnode.consensus.block import Commit
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.snapshot import (
    MAX_KEY_BYTES,
    MAX_SNAPSHOT_BYTES,
    MAX_VALUE_BYTES,
    SIZES,
    SNAPSHOT_VERSION,
    Snapshot,
    read_entries,
    read_state,
    verify_file,
    verify_snapshot,
    write_entries,
)
from bflnode.consensus.state import StateTree
from bflnode.consensus.types import BlobId, ChainId
from tests.consensus.harness import Harness

ENTRIES = st.dictionaries(st.binary(max_size=40), st.binary(max_size=300), max_size=40).map(
    lambda found: tuple(sorted(found.items()))
)


def pieces_of(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def file_of(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(write_entries(entries))


def snapshot_of(harness: Harness) -> tuple[Snapshot, bytes]:
    """The snapshot after a harness's last block, and its file."""
    assert harness.header is not None
    data = file_of(harness.tree.entries())
    state = BlobId(sha256(data).digest())
    return Snapshot(SNAPSHOT_VERSION, harness.header, harness.last_commit, len(harness.tree), state), data


@pytest.fixture(scope="module")
def harness() -> Harness:
    made = Harness()
    made.register_all()
    made.play_round()
    return made


def rejected(call: Callable[[], object]) -> Reason:
    with pytest.raises(Rejection) as caught:
        call()
    return caught.value.reason


@given(entries=ENTRIES, size=st.integers(1, 400))
@settings(max_examples=60)
def test_entries_come_back_whatever_the_pieces(entries: tuple[tuple[bytes, bytes], ...], size: int) -> None:
    assert tuple(read_entries(pieces_of(file_of(entries), size))) == entries


@given(entries=ENTRIES, cut=st.integers(1, 200))
@settings(max_examples=60)
def test_a_file_that_is_cut_never_reads_as_whole(entries: tuple[tuple[bytes, bytes], ...], cut: int) -> None:
    data = file_of(entries)
    short = data[: max(0, len(data) - cut)]
    found: list[tuple[bytes, bytes]] = []
    with contextlib.suppress(Rejection):
        found.extend(read_entries([short]))
    assert tuple(found) == entries[: len(found)]
    assert len(found) < len(entries) or not data


def test_keys_that_do_not_ascend_are_refused() -> None:
    for keys in ((b"b", b"a"), (b"a", b"a")):
        data = file_of([(key, b"value") for key in keys])
        assert rejected(lambda data=data: list(read_entries([data]))) is Reason.MALFORMED


@pytest.mark.parametrize("sizes", [(MAX_KEY_BYTES + 1, 0), (0, MAX_VALUE_BYTES + 1), (2**32 - 1, 2**32 - 1)])
def test_an_entry_that_announces_too_much_is_refused_before_it_comes(sizes: tuple[int, int]) -> None:
    assert rejected(lambda: list(read_entries([SIZES.pack(*sizes)]))) is Reason.LIMIT


def test_a_snapshot_leads_to_the_state_that_was_written(harness: Harness) -> None:
    snapshot, data = snapshot_of(harness)
    verify_file(snapshot, pieces_of(data, 1000))
    tree = read_state(snapshot, pieces_of(data, 1000))
    assert list(tree.entries()) == list(harness.tree.entries())
    verify_snapshot(harness.genesis.chain_id, snapshot, tree)


def test_a_snapshot_survives_its_encoding(harness: Harness) -> None:
    snapshot, _ = snapshot_of(harness)
    assert Snapshot.from_bytes(snapshot.to_bytes(), max_bytes=MAX_SNAPSHOT_BYTES) == snapshot


def test_any_other_state_is_refused_by_the_state_root(harness: Harness) -> None:
    snapshot, _ = snapshot_of(harness)
    entries = list(harness.tree.entries())
    key, value = entries[3]
    changed = [*entries[:3], (key, value[:-1] + bytes([value[-1] ^ 1])), *entries[4:]]
    for read in (read_state, verify_file):
        assert rejected(lambda read=read: read(snapshot, write_entries(changed))) is Reason.WRONG_ROOT


def test_more_or_fewer_entries_than_announced_are_refused(harness: Harness) -> None:
    snapshot, _ = snapshot_of(harness)
    entries = list(harness.tree.entries())
    for read in (read_state, verify_file):
        for others in (entries[:-1], [*entries, (b"zzz", b"")]):
            assert rejected(lambda read=read, other=others: read(snapshot, write_entries(other))) is Reason.WRONG_SIZE


def test_a_snapshot_of_another_chain_is_refused(harness: Harness) -> None:
    snapshot, _ = snapshot_of(harness)
    other = ChainId(bytes(32))
    assert rejected(lambda: verify_snapshot(other, snapshot, harness.tree)) is Reason.WRONG_CHAIN


def test_a_commit_for_another_block_or_without_quorum_is_refused(harness: Harness) -> None:
    snapshot, _ = snapshot_of(harness)
    chain_id, commit = harness.genesis.chain_id, snapshot.commit
    other = replace(snapshot, commit=harness.blocks[-1].last_commit)
    assert rejected(lambda: verify_snapshot(chain_id, other, harness.tree)) is Reason.WRONG_COMMIT
    few = replace(snapshot, commit=Commit(commit.height, commit.round, commit.block_id, commit.signatures[:1]))
    assert rejected(lambda: verify_snapshot(chain_id, few, harness.tree)) is Reason.NO_QUORUM
    forged = replace(snapshot, commit=replace(commit, round=commit.round + 1))
    assert rejected(lambda: verify_snapshot(chain_id, forged, harness.tree)) is Reason.BAD_SIGNATURE


def test_validators_that_the_header_does_not_name_are_refused(harness: Harness) -> None:
    snapshot, _ = snapshot_of(harness)
    other = Harness(actors=3, stakes=(10, 10, 10))
    tree = StateTree(other.tree.entries())
    chain_id = harness.genesis.chain_id
    assert rejected(lambda: verify_snapshot(chain_id, snapshot, tree)) is Reason.WRONG_ROOT
