"""A chain in one file, to carry it elsewhere: the blocks of a range of heights, each with its commit.

    archive = magic  [u32 version][32 bytes chain id][u64 first height][u64 last height]  frame*
    frame   = [u32 length][canonical block][u32 length][canonical commit]                 big-endian

One frame for each height, ascending. It is written and read in one pass, a frame at a time, so it may be a pipe and as
long as it likes. The head says how many blocks follow: a file that was cut off is noticed even between two frames.
Nothing in an archive is believed: this module reads records, whether they are a chain is for whoever imports them.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from bflnode.consensus.block import MAX_BLOCK_BYTES, Block, Commit
from bflnode.consensus.records import Record
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.types import ChainId

from .chain_store import MAX_COMMIT_BYTES, ChainStore
from .errors import StorageError, from_os_error

MAGIC = b"bflnode chain\n"

VERSION = 1
"""Version of the layout above; another one is refused."""

MAX_HEIGHT = 2**53
"""Largest height that a header may have."""

HEAD = struct.Struct(">I32sQQ")
LENGTH = struct.Struct(">I")

RecordType = TypeVar("RecordType", bound=Record)


class ArchiveError(StorageError):
    """A file that can't be imported: not an archive, of another chain or version, cut off."""


class MalformedArchiveError(ArchiveError):
    """A file that was made or changed to deceive, or got damaged: what is in it isn't what belongs there."""


@dataclass(frozen=True, slots=True)
class ArchiveHead:
    """What an archive says it holds: the blocks from `first` to `last`, both included."""

    chain_id: ChainId
    first: int
    last: int

    @property
    def blocks(self) -> int:
        """How many blocks that are."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class ArchivedBlock:
    """One block of an archive; `position` is the byte where its frame begins."""

    block: Block
    commit: Commit
    position: int


class ArchiveWriter:
    """Writes an archive; the caller gives the blocks that the head promises, in order.

    Raises StorageError where the disk is full or at fault.
    """

    def __init__(self, file: BinaryIO, path: Path, head: ArchiveHead) -> None:
        """Write the head."""
        self._file = file
        self._path = path
        self._write(MAGIC + HEAD.pack(VERSION, head.chain_id, head.first, head.last))

    def add(self, block: Block, commit: Commit) -> None:
        """Write the next block."""
        encoded, signatures = block.encoded, commit.to_bytes()
        self._write(b"".join((LENGTH.pack(len(encoded)), encoded, LENGTH.pack(len(signatures)), signatures)))

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except BrokenPipeError:  # whoever reads our output has gone, which isn't the disk's fault
            raise
        except OSError as error:
            raise from_os_error(self._path, "writing the archive", error) from error


class ArchiveReader:
    """Reads an archive from its beginning to its end.

    Attributes:
        path: its name, for messages.
        head: what it says it holds.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        """Read the head.

        Raises:
            ArchiveError: this is no archive that this version reads.
            StorageError: the disk is at fault.
        """
        self.path = path
        self._file = file
        self._position = 0
        if self._read_up_to(len(MAGIC)) != MAGIC:
            raise ArchiveError(path, "this is not a chain archive", "Give a file that `bflnode chain export` wrote")
        version, chain_id, first, last = HEAD.unpack(self._read(HEAD.size, "its head"))
        if version != VERSION:
            cause = f"it has version {version}, this bflnode reads version {VERSION}"
            raise ArchiveError(path, cause, "Export the chain again with this version, or import it with that one")
        if not 1 <= first <= last <= MAX_HEIGHT:
            raise self._malformed(len(MAGIC), f"it says that it holds the blocks {first} to {last}")
        self.head = ArchiveHead(ChainId(chain_id), first, last)

    def blocks(self) -> Iterator[ArchivedBlock]:
        """The blocks in order.

        Raises:
            ArchiveError: the file ends before the last block.
            MalformedArchiveError: a frame holds something else than the block of its height and a commit.
            StorageError: the disk is at fault.
        """
        for height in range(self.head.first, self.head.last + 1):
            position = self._position
            block = self._record(Block, MAX_BLOCK_BYTES, f"block {height}")
            commit = self._record(Commit, MAX_COMMIT_BYTES, f"the commit of block {height}")
            if block.height != height:
                raise self._malformed(position, f"block {height} should be here, but it is block {block.height}")
            yield ArchivedBlock(block, commit, position)
        if self._read_up_to(1):
            raise self._malformed(self._position - 1, f"something follows block {self.head.last}, its last")

    def _record(self, kind: type[RecordType], max_bytes: int, name: str) -> RecordType:
        position = self._position
        (length,) = LENGTH.unpack(self._read(LENGTH.size, name))
        if length > max_bytes:
            raise self._malformed(position, f"{name} would have {length} bytes, at most {max_bytes} are allowed")
        data = self._read(length, name)
        try:
            return kind.from_bytes(data, max_bytes=max_bytes)
        except Rejection as rejection:
            raise self._malformed(position, f"{name} can't be read: {rejection}") from rejection

    def _read(self, size: int, name: str) -> bytes:
        start = self._position
        data = self._read_up_to(size)
        if len(data) < size:
            cause = f"it was cut off: {name} begins at byte {start}, the file ends at byte {self._position}"
            raise ArchiveError(self.path, cause, "Copy or export it again")
        return data

    def _read_up_to(self, size: int) -> bytes:
        """As many bytes as are there: a pipe may give them in pieces."""
        pieces = bytearray()
        try:
            while len(pieces) < size and (piece := self._file.read(size - len(pieces))):
                pieces += piece
        except OSError as error:
            raise from_os_error(self.path, "reading the archive", error) from error
        self._position += len(pieces)
        return bytes(pieces)

    def _malformed(self, position: int, cause: str) -> MalformedArchiveError:
        return MalformedArchiveError(
            self.path, f"at byte {position}: {cause}", "Get the archive anew, from somebody you trust more"
        )


def write_blocks(writer: ArchiveWriter, store: ChainStore, head: ArchiveHead) -> Iterator[int]:
    """Write what a head promises out of a store; yields each height once it is written.

    Raises:
        CorruptStore: the store can't give it.
        StorageError: a disk is at fault.
    """
    for height in range(head.first, head.last + 1):
        writer.add(store.block(height), store.commit(height))
        yield height
