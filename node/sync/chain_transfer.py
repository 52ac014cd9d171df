"""Export and import: a stopped home's chain into one file, and out of one into a home, where everything is verified.

An import believes nothing: each block goes through the rules and each commit through its signatures like one from a
peer, and is appended durably before the next is read. So it may end anywhere and goes on when it is started again.
The format is `bflnode.storage.archive`'s.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bflnode.consensus.block import Header
from bflnode.consensus.ledger import validate_block, verify_commit
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.state import StateTree
from bflnode.consensus.tables import current_validators
from bflnode.storage.archive import (
    ArchivedBlock,
    ArchiveError,
    ArchiveHead,
    ArchiveReader,
    ArchiveWriter,
    write_blocks,
)
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import StorageError, from_os_error

STANDARD_STREAM = Path("-")
"""The name of a file that means standard output or input."""

BUFFER_BYTES = 1024 * 1024
"""Blocks are small; the disk likes larger pieces."""

Progress = Callable[[int], None]
"""Called with each height that is done."""


class ImportFaultError(Exception):
    """A block of an archive that isn't one of this chain; the message names the place and what is wrong."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: the tip's heights before and after, and how many of the blocks were here already."""

    before: int
    after: int
    known: int


def export_range(store: ChainStore, first: int | None, last: int | None) -> ArchiveHead:
    """The range to export: what is asked for, by default all blocks that are here.

    Raises:
        StorageError: there are no such blocks here.
    """
    tip, lowest = store.tip().height, store.base + 1
    if tip < lowest:
        raise StorageError(store.path, "there is no block here yet", "Start the node and wait until it has some")
    first, last = lowest if first is None else first, tip if last is None else last
    if not lowest <= first <= last <= tip:
        cause = f"the blocks {first} to {last} are not all here"
        raise StorageError(store.path, cause, f"Ask for some of {lowest} to {tip}")
    return ArchiveHead(store.genesis.chain_id, first, last)


def export_chain(store: ChainStore, head: ArchiveHead, target: Path, progress: Progress) -> None:
    """Write an archive; a file appears under its name only when it is whole.

    Raises:
        CorruptStore: the chain can't be read.
        StorageError: the disk is full or at fault.
    """
    with _writing(target) as file:
        writer = ArchiveWriter(file, target, head)
        for height in write_blocks(writer, store, head):
            progress(height)


@contextmanager
def _writing(target: Path) -> Iterator[BinaryIO]:
    if target == STANDARD_STREAM:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb", buffering=BUFFER_BYTES) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        raise from_os_error(target, "writing the archive", error) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def open_archive(source: Path) -> Iterator[ArchiveReader]:
    """An archive, from a file or from standard input.

    Raises:
        ArchiveError: it isn't one.
        StorageError: it can't be read.
    """
    if source == STANDARD_STREAM:
        yield ArchiveReader(sys.stdin.buffer, Path("standard input"))
        return
    try:
        file = source.open("rb", buffering=BUFFER_BYTES)
    except OSError as error:
        raise from_os_error(source, "opening the archive", error) from error
    with file:
        yield ArchiveReader(file, source)


def import_chain(store: ChainStore, archive: ArchiveReader, progress: Progress) -> Imported:
    """Verify an archive's blocks and append those that the chain lacks; what was appended before an error stays.

    Raises:
        ArchiveError: it is of another chain, begins above the tip, or is damaged.
        ImportFaultError: a block breaks a rule, or is another one than the chain has.
        StorageError: the disk is at fault.
    """
    head, before = archive.head, store.tip().height
    if head.chain_id != store.genesis.chain_id:
        cause = f"it is of chain {head.chain_id.hex()[:16]}, this home of chain {store.genesis.chain_id.hex()[:16]}"
        raise ArchiveError(archive.path, cause, "Import it into a home with that chain's genesis")
    if head.first > before + 1:
        cause = f"it begins with block {head.first}, but the chain here ends with block {before}"
        raise ArchiveError(archive.path, cause, f"Import one first that holds the blocks from {before + 1} on")
    tree, known = store.load_state(), 0
    parent = store.header(before) if before else None
    for archived in archive.blocks():
        if archived.block.height <= before:
            _compare(store, archive, archived)
            known += 1
        else:
            parent = _append(store, archive, archived, tree, parent)
        progress(archived.block.height)
    return Imported(before, store.tip().height, known)


def _compare(store: ChainStore, archive: ArchiveReader, archived: ArchivedBlock) -> None:
    """A block that is here already must be the same one: two final blocks of one height are a broken network."""
    height = archived.block.height
    if height < max(1, store.base):
        return
    ours = store.header(height).id
    if ours != archived.block.id:
        raise ImportFaultError(
            f"{_place(archive, archived)} is {archived.block.id.hex()}, but the chain here has {ours.hex()}: "
            "two chains of one genesis; nothing was imported"
        )


def _append(
    store: ChainStore, archive: ArchiveReader, archived: ArchivedBlock, tree: StateTree, parent: Header | None
) -> Header:
    block, commit = archived.block, archived.commit
    try:
        execution = validate_block(store.genesis, tree, parent, block)
        if (commit.height, commit.block_id) != (block.height, block.id):
            raise Rejection(Reason.WRONG_COMMIT, commit=commit.block_id, block=block.id)
        verify_commit(store.genesis.chain_id, current_validators(tree), commit)
    except Rejection as rejection:
        raise ImportFaultError(
            f"{_place(archive, archived)} is not valid: {rejection}; the chain here goes up to block {block.height - 1}"
        ) from rejection
    store.append(block, commit, execution.changes)
    tree.apply(execution.changes)
    return block.header


def _place(archive: ArchiveReader, archived: ArchivedBlock) -> str:
    return f"{archive.path}: block {archived.block.height} at byte {archived.position}"
