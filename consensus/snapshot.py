"""Snapshots: the state after a block as bytes that travel, and how somebody who trusts only the block checks them.

    file      = entry*                                        keys strictly ascending
    entry     = [u32 size of the key][u32 size of the value][key][value]      big-endian
    snapshot  = [version, header, commit, number of entries, blob id of the file]

All nodes make the same file at one height, so it is a blob that can be fetched in chunks from several of them at once;
only their commits may differ. Nothing a snapshot says needs to be believed: the file must lead to the header's state
root, and the commit is checked by the validators that the state itself names. Which header to trust is the business of
whoever asks.

What belongs here: formats and checks. Files are `storage.snapshot_store`'s, when to make them `node`'s.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from .block import Commit, Header
from .ledger import verify_commit
from .merkle import GrowingRoot, merkle_root
from .records import Record
from .rejection import Reason, Rejection
from .state import BUCKETS, StateTree, bucket_of, entry_hash
from .tables import previous_validators
from .types import Between, BlobId, ChainId, Hash

SNAPSHOT_VERSION = 1

MAX_SNAPSHOT_BYTES = 64 * 1024
"""Largest record: a header, and a commit of 256 signatures, which is 18 KiB."""

MAX_ENTRIES = 2**24
"""Most entries of a state: far more than fit into the largest blob in practice."""

MAX_KEY_BYTES = 1024
"""Longest key; ours are below a hundred bytes."""

MAX_VALUE_BYTES = 16 * 1024 * 1024
"""Longest value: a learning round of 256 clients takes less than a megabyte."""

SIZES = struct.Struct(">II")

PIECE_BYTES = 256 * 1024
"""Entries are handed on in pieces of about this size."""


@dataclass(frozen=True, slots=True)
class Snapshot(Record):
    """The state after one block.

    Attributes:
        version: of this format.
        header: of the block.
        commit: that makes the block final.
        entries: how many the state has.
        state: content id of the file with the entries.
    """

    version: Annotated[int, Between(SNAPSHOT_VERSION, SNAPSHOT_VERSION)]
    header: Header
    commit: Commit
    entries: Annotated[int, Between(1, MAX_ENTRIES)]
    state: BlobId

    @property
    def height(self) -> int:
        """Height of the block."""
        return self.header.height


def write_entries(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """The file of a state in pieces; entries come in key order, as a state's do."""
    piece = bytearray()
    for key, value in entries:
        assert len(key) <= MAX_KEY_BYTES, f"a key of {len(key)} bytes"
        assert len(value) <= MAX_VALUE_BYTES, f"a value of {len(value)} bytes"
        piece += SIZES.pack(len(key), len(value))
        piece += key
        piece += value
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def read_entries(pieces: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a file that comes in pieces of any size.

    Raises:
        Rejection: LIMIT or MALFORMED: sizes out of bounds, keys that don't ascend, an end inside an entry.
    """
    buffer = bytearray()
    last: bytes | None = None
    for piece in pieces:
        buffer += piece
        position = 0
        while (end := _end_of_entry(buffer, position)) <= len(buffer):
            key_size = SIZES.unpack_from(buffer, position)[0]
            start = position + SIZES.size
            key, value = bytes(buffer[start : start + key_size]), bytes(buffer[start + key_size : end])
            if last is not None and key <= last:
                raise Rejection(Reason.MALFORMED, fault="keys of a snapshot don't ascend", key=key, after=last)
            yield key, value
            last, position = key, end
        del buffer[:position]
    if buffer:
        raise Rejection(Reason.MALFORMED, fault="a snapshot ends inside an entry", left_bytes=len(buffer))


def _end_of_entry(buffer: bytearray, start: int) -> int:
    """Where the entry that starts here ends; beyond the buffer where its sizes aren't there yet."""
    if len(buffer) - start < SIZES.size:
        return len(buffer) + 1
    key_size, value_size = SIZES.unpack_from(buffer, start)
    if key_size > MAX_KEY_BYTES or value_size > MAX_VALUE_BYTES:
        raise Rejection(Reason.LIMIT, key_bytes=key_size, value_bytes=value_size)
    end: int = start + SIZES.size + key_size + value_size
    return end


def verify_file(snapshot: Snapshot, pieces: Iterable[bytes]) -> None:
    """Check, in little memory, that a file holds the state that the snapshot's header names.

    A state in memory takes many times its file: whoever is sent one by a stranger checks it first.

    Args:
        snapshot: whose header is trusted.
        pieces: the file.

    Raises:
        Rejection: as `read_state`.
    """
    buckets = [GrowingRoot() for _ in range(BUCKETS)]
    entries = 0
    for key, value in _counted(read_entries(pieces), snapshot.entries):
        buckets[bucket_of(key)].add(entry_hash(key, value))
        entries += 1
    _require_same(snapshot, entries, merkle_root([bucket.root() for bucket in buckets]))


def read_state(snapshot: Snapshot, pieces: Iterable[bytes]) -> StateTree:
    """The state in a file, if it is the one that the snapshot's header names.

    Args:
        snapshot: whose header is trusted.
        pieces: the file.

    Raises:
        Rejection: the file is malformed, or WRONG_ROOT: of another state.
    """
    tree = StateTree(_counted(read_entries(pieces), snapshot.entries))
    _require_same(snapshot, len(tree), tree.root)
    return tree


def _require_same(snapshot: Snapshot, entries: int, root: Hash) -> None:
    if entries != snapshot.entries:
        raise Rejection(Reason.WRONG_SIZE, entries=entries, expected=snapshot.entries)
    if root != snapshot.header.state_root:
        raise Rejection(Reason.WRONG_ROOT, computed=root, expected=snapshot.header.state_root)


def _counted(entries: Iterator[tuple[bytes, bytes]], limit: int) -> Iterator[tuple[bytes, bytes]]:
    """Entries, but no more than were announced: memory goes to what was asked for."""
    for number, entry in enumerate(entries):
        if number == limit:
            raise Rejection(Reason.WRONG_SIZE, entries=number + 1, expected=limit)
        yield entry


def verify_snapshot(chain_id: ChainId, snapshot: Snapshot, tree: StateTree) -> None:
    """Check that a snapshot is of this chain and that its commit makes its block final.

    Args:
        chain_id: of the chain.
        snapshot: whose header is trusted.
        tree: its state, from `read_state`.

    Raises:
        Rejection: WRONG_CHAIN, or what `ledger.verify_commit` raises.
    """
    header, commit = snapshot.header, snapshot.commit
    if header.chain_id != chain_id:
        raise Rejection(Reason.WRONG_CHAIN, chain=header.chain_id, expected=chain_id)
    if (commit.height, commit.block_id) != (header.height, header.id):
        raise Rejection(Reason.WRONG_COMMIT, height=commit.height, block=commit.block_id, expected=header.id)
    voters = previous_validators(tree)
    if voters.hash != header.validators_hash:
        raise Rejection(Reason.WRONG_ROOT, what="validators", computed=voters.hash, claimed=header.validators_hash)
    verify_commit(chain_id, voters, commit)
