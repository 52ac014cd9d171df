"""Snapshots on disk: the state after some heights, for nodes that join.

    ROOT/HEIGHT.snapshot    canonical record: header, commit, id of the state's file
    ROOT/blobs/             the files, by content; unfinished downloads too (see `blob_store`)
    ROOT/temporary/         being written; whatever is left there by a crash is removed on opening

A record appears when its file is there, and goes before it does. Snapshots can be made again, so nothing here is
precious: what can't be read counts as not there, and goes when something is deleted. One process at a time opens a
store (the holder of the home's lock), its threads may share it. Formats are `bflnode.consensus.snapshot`'s.
"""

import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from bflnode.consensus.block import Commit, Header
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.snapshot import (
    MAX_SNAPSHOT_BYTES,
    PIECE_BYTES,
    SNAPSHOT_VERSION,
    Snapshot,
    write_entries,
)

from .blob_store import BlobStore
from .errors import disk_errors

RECORD_SUFFIX, BLOBS, TEMPORARY = ".snapshot", "blobs", "temporary"


class SnapshotStore:
    """The snapshots in one folder.

    Attributes:
        root: that folder.
        blobs: the files of the snapshots; downloads of others go here too.
    """

    def __init__(self, root: Path) -> None:
        """Open a store, made if it doesn't exist.

        Raises:
            StorageError: the folder can't be made or read.
        """
        self.root = root
        with disk_errors(root, "opening the snapshots"):
            (root / TEMPORARY).mkdir(parents=True, exist_ok=True)
            for leftover in (root / TEMPORARY).iterdir():
                leftover.unlink(missing_ok=True)
        self.blobs = BlobStore(root / BLOBS)
        # Held while a file and its record come or go: a file whose record is on its way is not taken for forgotten.
        self._changing = Lock()

    def create(self, header: Header, commit: Commit, entries: Iterable[tuple[bytes, bytes]]) -> Snapshot:
        """Make a snapshot, durable on return.

        Args:
            header: of the block after which the state is.
            commit: that makes it final.
            entries: the whole state in key order; read once, never held at once.

        Raises:
            Rejection: TOO_LARGE, the state is larger than a blob may be.
            StorageError: the disk is full or at fault.
        """
        counted = _Counted(entries)
        with disk_errors(self.root, "writing a snapshot"), self._temporary() as temporary:
            with temporary.open("wb") as file:
                file.writelines(write_entries(counted))
            with self._changing:
                state = self.blobs.put_file(temporary)
                snapshot = Snapshot(SNAPSHOT_VERSION, header, commit, counted.number, state)
                self._put(snapshot)
        return snapshot

    def put(self, snapshot: Snapshot) -> None:
        """Add a snapshot whose file is here already; replaces one of the same height.

        Raises:
            StorageError: the disk is full or at fault.
        """
        with self._changing:
            self._put(snapshot)

    def _put(self, snapshot: Snapshot) -> None:
        assert self.blobs.has(snapshot.state), "the file comes first"
        with disk_errors(self.root, "writing a snapshot"), self._temporary() as temporary:
            with temporary.open("wb") as file:
                file.write(snapshot.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._record(snapshot.height))
            self._sync()

    def list(self) -> tuple[Snapshot, ...]:
        """All snapshots that can be read, ascending by height.

        Raises:
            StorageError: the disk is at fault.
        """
        return tuple(sorted(self._found().values(), key=lambda snapshot: snapshot.height))

    def _found(self) -> dict[Path, Snapshot]:
        """Records that can be read and whose file is here."""
        with disk_errors(self.root, "listing the snapshots"):
            read = {path: _read(path) for path in self.root.glob(f"*{RECORD_SUFFIX}")}
        return {path: found for path, found in read.items() if found is not None and self.blobs.has(found.state)}

    def size(self, snapshot: Snapshot) -> int:
        """Size of a snapshot's file in bytes.

        Raises:
            MissingError: it has been deleted.
        """
        return self.blobs.size(snapshot.state)

    def pieces(self, snapshot: Snapshot) -> Iterator[bytes]:
        """The file of a snapshot, in pieces; checked on its first use since opening.

        Raises:
            MissingError: it has been deleted, or was found corrupt and has been moved aside.
            StorageError: the disk is at fault.
        """
        path = self.blobs.path(snapshot.state)
        with disk_errors(path, "reading a snapshot"), path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def delete(self, height: int) -> bool:
        """Remove a snapshot; says whether it was there.

        Raises:
            StorageError: the disk is at fault.
        """
        was_here = any(snapshot.height == height for snapshot in self.list())
        self._keep([snapshot.height for snapshot in self.list() if snapshot.height != height])
        return was_here

    def prune(self, kept: int, *, always: int = 0) -> tuple[int, ...]:
        """Remove all but the latest snapshots.

        Args:
            kept: how many stay, at least one.
            always: height of one that stays besides them.

        Returns:
            The heights that were removed, ascending.

        Raises:
            StorageError: the disk is at fault.
        """
        heights = [snapshot.height for snapshot in self.list() if snapshot.height != always]
        self._keep({*heights[-kept:], always})
        return tuple(heights[:-kept])

    def _keep(self, heights: Collection[int]) -> None:
        """Remove all other records, then the files that none names: several heights may have one state and file."""
        with self._changing, disk_errors(self.root, "deleting snapshots"):
            found = self._found()
            for path in self.root.glob(f"*{RECORD_SUFFIX}"):
                if path not in found or found[path].height not in heights:
                    path.unlink(missing_ok=True)
            self._sync()
            named = {snapshot.state for snapshot in self._found().values()}
            for blob in self.blobs.list():
                if blob not in named:
                    self.blobs.delete(blob)

    def _record(self, height: int) -> Path:
        return self.root / f"{height}{RECORD_SUFFIX}"

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        descriptor, name = tempfile.mkstemp(dir=self.root / TEMPORARY)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _sync(self) -> None:
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Counted:
    """Entries that are counted as they pass."""

    def __init__(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        self._entries = entries
        self.number = 0

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        for entry in self._entries:
            self.number += 1
            yield entry


def _read(path: Path) -> Snapshot | None:
    """A record; None where it has just been deleted or can't be read."""
    try:
        return Snapshot.from_bytes(path.read_bytes(), max_bytes=MAX_SNAPSHOT_BYTES)
    except (FileNotFoundError, Rejection):
        return None
