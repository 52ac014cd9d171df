"""Blobs on disk: models and probe sets, each a file named by its content id.

    ROOT/ab/<hex of the id>     a blob; `ab` are the first two digits
    ROOT/partial/<hex>          a download that isn't finished; its chunks are checked again when it is resumed
    ROOT/temporary/             being written; whatever is left there by a crash is removed on opening
    ROOT/corrupt/<hex>          a blob whose bytes changed on disk, moved aside so that it can be fetched again
    ROOT/pinned/<hex>           an empty file: the blob of that id is never removed to make room

A file appears under its name only when all its bytes are checked and on disk: temporary file, fsync, rename, fsync of
the folder. One process at a time opens a store (the holder of the home's lock), its threads may share it; pins alone
may be changed by others meanwhile. Ids and manifests are `bflnode.consensus.blob`'s, fetching is `node`'s, and so is
which blobs are needed: a store with a quota asks for room and refuses what doesn't fit.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from bflnode.consensus.blob import CHUNK_BYTES, BlobHasher, BlobManifest, manifest_of
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.types import BlobId

from .durable import sync_folder
from .errors import CorruptBlobError, MissingError, QuotaError, StorageError, disk_errors
from .failpoints import Operation, after, before

PARTIAL, TEMPORARY, CORRUPT, PINNED = "partial", "temporary", "corrupt", "pinned"

PARTIAL_KEPT_S = 7 * 24 * 3600
"""A download nobody went on with for a week is dropped: its model is no longer wanted, or comes anew."""

MANIFESTS_KEPT = 256
"""Manifests that are remembered, so that serving a chunk doesn't hash the whole file: 7 KB each for a 45 MB model."""

COPY_BYTES = 1024 * 1024
"""Piece in which files are hashed and copied: large enough that calls cost nothing."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that is here, its size, and when its file was written (milliseconds since the epoch)."""

    id: BlobId
    size_bytes: int
    written_ms: int


@dataclass(frozen=True, slots=True)
class Quota:
    """A limit on blobs and unfinished downloads together.

    Attributes:
        limit_bytes: most that may be here.
        make_room: removes what isn't needed, at least as many bytes as it is told where there are that many. Called by
            any thread.
    """

    limit_bytes: int
    make_room: Callable[[int], None]


class Pins:
    """The ids that the operator never wants removed. Files, so that a command may add one while a node runs.

    Every method raises StorageError where the disk is at fault.
    """

    def __init__(self, root: Path) -> None:
        """The pins of the blob store at `root`."""
        self._folder = root / PINNED

    def all(self) -> frozenset[BlobId]:
        """All pinned ids."""
        with disk_errors(self._folder, "reading the pins"):
            names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
        return frozenset(BlobId(bytes.fromhex(name)) for name in names if _is_blob_name(name, name[:2]))

    def add(self, blob: BlobId) -> bool:
        """Pin an id, whether its blob is here or not; says whether that is new."""
        is_new = blob not in self.all()
        with disk_errors(self._folder, "pinning a blob"):
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / blob.hex()).touch()
            sync_folder(self._folder)
        return is_new

    def remove(self, blob: BlobId) -> bool:
        """Unpin an id; says whether it was pinned."""
        if blob not in self.all():
            return False
        with disk_errors(self._folder, "unpinning a blob"):
            (self._folder / blob.hex()).unlink(missing_ok=True)
        return True


class BlobStore:
    """The blobs in one folder.

    Attributes:
        root: that folder.
        pins: what the operator keeps.
        quota: what may be here, or None for all that the disk holds.
        shortage: why the last blob could not be stored under the quota; None once there is room again.
    """

    def __init__(self, root: Path) -> None:
        """Open a store, made if it doesn't exist; remove what a crash left behind and week-old partial downloads.

        Raises:
            StorageError: the folder can't be made or read.
        """
        self.root = root
        self.pins = Pins(root)
        self.quota: Quota | None = None
        self.shortage: str | None = None
        # Held while something new appears: two threads must not take the same room.
        self._storing = Lock()
        self._manifests: dict[BlobId, BlobManifest] = {}
        self._lock = Lock()
        with disk_errors(root, "opening the blob store"):
            for name in (PARTIAL, TEMPORARY, CORRUPT):
                (root / name).mkdir(parents=True, exist_ok=True)
            for leftover in (root / TEMPORARY).iterdir():
                leftover.unlink()
            expiry = time.time() - PARTIAL_KEPT_S
            for partial in (root / PARTIAL).iterdir():
                if partial.stat().st_mtime < expiry:
                    partial.unlink()

    def put(self, data: bytes) -> BlobId:
        """Store bytes, durably on return; storing what is there already does nothing.

        Raises:
            Rejection: TOO_LARGE for a blob above `MAX_BLOB_BYTES`.
            QuotaError: there is no room for it.
            StorageError: the disk is full or at fault.
        """
        return self._write([data])

    def put_file(self, path: Path, *, move: bool = False) -> BlobId:
        """Store a file's content, in pieces; with `move` the file is removed once it is stored.

        Raises:
            Rejection: TOO_LARGE for a file above `MAX_BLOB_BYTES`.
            QuotaError: there is no room for it.
            StorageError: the file can't be read, or the store's disk is full or at fault.
        """
        blob = self._write(_pieces(path))
        if move:
            with disk_errors(path, "removing a file that was moved into the blob store"):
                path.unlink()
        return blob

    def has(self, blob: BlobId) -> bool:
        """Whether the blob is here."""
        return self._file(blob).is_file()

    def size(self, blob: BlobId) -> int:
        """Size of a blob in bytes.

        Raises:
            MissingError: it isn't here.
            StorageError: the disk is at fault.
        """
        path = self._file(blob)
        with self._reading(blob):
            return path.stat().st_size

    def get(self, blob: BlobId) -> bytes:
        """All bytes of a blob, checked.

        Raises:
            MissingError: it isn't here; a CorruptBlobError if it was found corrupt and has been moved aside.
            StorageError: the disk is at fault.
        """
        with self._reading(blob):
            data = self._file(blob).read_bytes()
        self._check(blob, [data])
        return data

    def path(self, blob: BlobId) -> Path:
        """The file of a blob, for readers in other processes; checked on its first use since opening.

        Raises:
            MissingError: it isn't here; a CorruptBlobError if it was found corrupt and has been moved aside.
            StorageError: the disk is at fault.
        """
        self.manifest(blob)
        return self._file(blob)

    def manifest(self, blob: BlobId) -> BlobManifest:
        """What a peer needs to check the chunks of a blob; the first call since opening reads and checks the file.

        Raises:
            MissingError: it isn't here; a CorruptBlobError if it was found corrupt and has been moved aside.
            StorageError: the disk is at fault.
        """
        with self._lock:
            manifest = self._manifests.get(blob)
        if manifest is not None and self.has(blob):
            return manifest
        with self._reading(blob):
            file = self._file(blob).open("rb")
        with file:
            return self._check(blob, iter(lambda: file.read(COPY_BYTES), b""))

    def read_chunk(self, blob: BlobId, index: int) -> bytes:
        """One chunk of a blob, checked.

        Raises:
            MissingError: the blob isn't here; a CorruptBlobError if it was found corrupt and has been moved aside.
            Rejection: LIMIT, the blob has no such chunk.
            StorageError: the disk is at fault.
        """
        manifest = self.manifest(blob)
        with self._reading(blob):
            descriptor = os.open(self._file(blob), os.O_RDONLY | os.O_CLOEXEC)
            try:
                chunk = os.pread(descriptor, CHUNK_BYTES, max(0, index) * CHUNK_BYTES)
            finally:
                os.close(descriptor)
        try:
            manifest.verify_chunk(index, chunk)
        except Rejection as rejection:
            if not 0 <= index < len(manifest.chunks):
                raise
            raise self._move_aside(blob) from rejection
        return chunk

    def begin_download(self, blob: BlobId, manifest: BlobManifest) -> "Download":
        """Start or resume fetching a blob; chunks that an earlier attempt left in `partial/` are kept if they are good.

        Raises:
            Rejection: WRONG_HASH, this isn't the manifest of that blob.
            QuotaError: there is no room for it.
            StorageError: the disk is full or at fault.
        """
        manifest.verify_id(blob)
        partial = self.root / PARTIAL / blob.hex()
        with self._storing, disk_errors(partial, "starting a download"):
            self._require_room(blob, manifest.size - (partial.stat().st_size if partial.exists() else 0))
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                present = _good_chunks(descriptor, manifest)
                os.ftruncate(descriptor, manifest.size)
            finally:
                os.close(descriptor)
        return Download(blob, manifest, partial, self._file(blob), present)

    def list(self) -> tuple[BlobId, ...]:
        """Ids of all blobs that are here, ascending."""
        with disk_errors(self.root, "listing the blobs"):
            names = [path.name for path in self._files()]
        return tuple(BlobId(bytes.fromhex(name)) for name in sorted(names))

    def total_size(self) -> int:
        """Bytes of all blobs that are here, without downloads and what was moved aside."""
        with disk_errors(self.root, "measuring the blobs"):
            return sum(status.st_size for _, status in _statuses(self._files()))

    def stored(self) -> tuple[StoredBlob, ...]:
        """All blobs that are here with size and age, in no order."""
        found = []
        with disk_errors(self.root, "listing the blobs"):
            for path, status in _statuses(self._files()):
                blob = BlobId(bytes.fromhex(path.name))
                found.append(StoredBlob(blob, status.st_size, int(status.st_mtime * 1000)))
        return tuple(found)

    def used_size(self) -> int:
        """Bytes that count for the quota: blobs and unfinished downloads, which take their room from the beginning."""
        with disk_errors(self.root, "measuring the blobs"):
            downloads = sum(status.st_size for _, status in _statuses((self.root / PARTIAL).iterdir()))
        return self.total_size() + downloads

    def delete(self, blob: BlobId) -> bool:
        """Remove a blob and any unfinished download of it; says whether the blob was here.

        Raises:
            StorageError: the disk is at fault.
        """
        path = self._file(blob)
        with self._lock:
            self._manifests.pop(blob, None)
        with disk_errors(path, "deleting a blob"):
            (self.root / PARTIAL / blob.hex()).unlink(missing_ok=True)
            was_here = path.is_file()
            path.unlink(missing_ok=True)
        self.shortage = None
        return was_here

    def _require_room(self, blob: BlobId, size_bytes: int) -> None:
        """Have room for so many bytes more; the caller holds `_storing`."""
        if self.quota is None:
            return
        room_bytes = self.quota.limit_bytes - self.used_size()
        if size_bytes > room_bytes:
            self.quota.make_room(size_bytes - room_bytes)
            room_bytes = self.quota.limit_bytes - self.used_size()
        if size_bytes > room_bytes:
            cause = (
                f"the quota of {self.quota.limit_bytes} bytes is used up by models that are still needed: no room for "
                f"{blob.hex()[:12]} of {size_bytes} bytes"
            )
            remedy = "Raise storage.blob_quota, lower storage.keep_rounds, or unpin models with `bflnode model unpin`"
            error = QuotaError(self.root, cause, remedy)
            self.shortage = str(error)
            raise error
        self.shortage = None

    def _file(self, blob: BlobId) -> Path:
        name = blob.hex()
        return self.root / name[:2] / name

    def _files(self) -> Iterator[Path]:
        for folder in self.root.iterdir():
            if len(folder.name) == 2 and folder.is_dir():
                yield from (path for path in folder.iterdir() if _is_blob_name(path.name, folder.name))

    def _write(self, pieces: Iterable[bytes]) -> BlobId:
        hasher = BlobHasher()
        with disk_errors(self.root, "storing a blob"):
            descriptor, name = tempfile.mkstemp(dir=self.root / TEMPORARY)
            temporary = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    before(Operation.BLOB_WRITE)
                    for piece in pieces:
                        hasher.update(piece)
                        file.write(piece)
                    file.flush()
                    after(Operation.BLOB_WRITE)
                    before(Operation.BLOB_FSYNC)
                    os.fsync(file.fileno())
                    after(Operation.BLOB_FSYNC)
                blob = hasher.manifest().id
                if not self.has(blob):
                    with self._storing:
                        self._require_room(blob, hasher.manifest().size)
                        _publish(temporary, self._file(blob))
            finally:
                temporary.unlink(missing_ok=True)
        self._remember(blob, hasher.manifest())
        return blob

    def _check(self, blob: BlobId, pieces: Iterable[bytes]) -> BlobManifest:
        """Hash what was read of a blob; other bytes than its id says are moved aside."""
        try:
            with disk_errors(self._file(blob), "reading a blob"):
                manifest = manifest_of(pieces)
        except Rejection as rejection:  # it has grown beyond any blob
            raise self._move_aside(blob) from rejection
        if manifest.id != blob:
            raise self._move_aside(blob)
        self._remember(blob, manifest)
        return manifest

    def _move_aside(self, blob: BlobId) -> CorruptBlobError:
        path, aside = self._file(blob), self.root / CORRUPT / blob.hex()
        with self._lock:
            self._manifests.pop(blob, None)
        with disk_errors(path, "moving a corrupt blob aside"):
            path.replace(aside)
        return CorruptBlobError(
            path, f"its bytes changed on disk, so it was moved to {aside}", "It counts as missing; fetch it again"
        )

    def _remember(self, blob: BlobId, manifest: BlobManifest) -> None:
        with self._lock:
            if len(self._manifests) >= MANIFESTS_KEPT:
                del self._manifests[next(iter(self._manifests))]
            self._manifests[blob] = manifest

    @contextmanager
    def _reading(self, blob: BlobId) -> Iterator[None]:
        path = self._file(blob)
        try:
            with disk_errors(path, "reading a blob"):
                yield
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                remedy = "It was never fetched or has been pruned; fetch it from a peer that keeps it"
                raise MissingError(path, "this blob is not here", remedy) from error
            raise


@dataclass(slots=True)
class Download:
    """A blob on its way. It keeps no file open: dropping one loses nothing, `begin_download` resumes it.

    Attributes:
        blob: what is fetched.
        manifest: its checked manifest.
    """

    blob: BlobId
    manifest: BlobManifest
    _partial: Path
    _target: Path
    _present: set[int] = field(repr=False)

    def missing(self) -> tuple[int, ...]:
        """Indexes of the chunks that are still to be written, ascending."""
        return tuple(index for index in range(len(self.manifest.chunks)) if index not in self._present)

    def write_chunk(self, index: int, data: bytes) -> None:
        """Check one chunk and keep it; any order, and again is harmless.

        Raises:
            Rejection: LIMIT, WRONG_SIZE or WRONG_HASH: it isn't that chunk. Nothing was written.
            StorageError: the disk is full or at fault.
        """
        self.manifest.verify_chunk(index, data)
        with disk_errors(self._partial, "writing a chunk"):
            descriptor = os.open(self._partial, os.O_WRONLY | os.O_CLOEXEC)
            try:
                before(Operation.CHUNK_WRITE)
                _write_all(descriptor, data, index * CHUNK_BYTES)
                after(Operation.CHUNK_WRITE)
            finally:
                os.close(descriptor)
        self._present.add(index)

    def finish(self) -> None:
        """Move the blob, of which nothing may be missing, into the store; durable on return.

        Raises:
            StorageError: the disk is full or at fault.
        """
        assert not self.missing(), f"chunks {self.missing()} of {self.blob.hex()} are missing"
        with disk_errors(self._partial, "finishing a download"):
            descriptor = os.open(self._partial, os.O_RDONLY | os.O_CLOEXEC)
            try:
                before(Operation.BLOB_FSYNC)
                os.fsync(descriptor)
                after(Operation.BLOB_FSYNC)
            finally:
                os.close(descriptor)
            _publish(self._partial, self._target)


def _statuses(paths: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    """Files with their status; one that another thread renamed or removed meanwhile is left out."""
    for path in paths:
        with suppress(FileNotFoundError):
            yield path, path.stat()


def _is_blob_name(name: str, folder: str) -> bool:
    return len(name) == 64 and name.startswith(folder) and not name.strip("0123456789abcdef")


def _pieces(path: Path) -> Iterator[bytes]:
    """The content of somebody's file; its errors name that file, not the store."""
    with disk_errors(path, "reading a file for the blob store"), path.open("rb") as file:
        while piece := file.read(COPY_BYTES):
            yield piece


def _good_chunks(descriptor: int, manifest: BlobManifest) -> set[int]:
    """Indexes of the chunks in a partial file that are what the manifest says."""
    size = os.fstat(descriptor).st_size
    present = set()
    for index in range(-(-size // CHUNK_BYTES)):
        try:
            manifest.verify_chunk(index, os.pread(descriptor, CHUNK_BYTES, index * CHUNK_BYTES))
        except Rejection:
            continue
        present.add(index)
    return present


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _publish(temporary: Path, target: Path) -> None:
    """Rename a complete, synced file to its name so that both survive a power failure."""
    if not target.parent.is_dir():
        target.parent.mkdir(exist_ok=True)
        sync_folder(target.parent.parent)
    before(Operation.BLOB_RENAME)
    temporary.replace(target)
    sync_folder(target.parent)
    after(Operation.BLOB_RENAME)
