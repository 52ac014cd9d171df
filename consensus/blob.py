"""Content ids of blobs: files such as models and probe sets, which travel in chunks and never inside blocks.

    blob id  = tagged_hash("blob", canonical [size, chunk size, RFC 6962 root over the chunks])
    manifest = [size, [leaf hash of each chunk]]

Whoever knows a blob's id can check a manifest against it, and then every chunk as it arrives, from any peer. Hashes
only: where blobs are kept is `storage`'s, how they are fetched is `node`'s.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Self

from .encoding import MAX_ITEMS, Value, encode
from .hashing import tagged_hash
from .merkle import leaf_hash, root_of_hashes
from .records import Record
from .rejection import Reason, Rejection
from .types import AtMost, Between, BlobId, Hash

CHUNK_BYTES = 256 * 1024
"""Size of a chunk: one message on a stream, small enough to lose and large enough that hashes cost nothing."""

MAX_CHUNKS = MAX_ITEMS
"""Most chunks of a blob: their hashes are one canonical array."""

MAX_BLOB_BYTES = MAX_CHUNKS * CHUNK_BYTES
"""Largest blob, 1 GiB: a float32 model of 268 million parameters, far above what federated clients train."""

MAX_MANIFEST_BYTES = MAX_CHUNKS * 34 + 32
"""Largest canonical manifest: 34 bytes for each chunk, and the size."""


def chunk_count(size: int) -> int:
    """Number of chunks of a blob of `size` bytes."""
    return -(-size // CHUNK_BYTES)


@dataclass(frozen=True, slots=True)
class BlobManifest(Record):
    """The size of a blob and the leaf hash of each of its chunks; all chunks but the last are full."""

    size: Annotated[int, Between(0, MAX_BLOB_BYTES)]
    chunks: Annotated[tuple[Hash, ...], AtMost(MAX_CHUNKS)]

    @classmethod
    def from_value(cls, value: Value, name: str = "BlobManifest") -> Self:
        """Read a manifest whose number of chunks fits its size.

        Raises:
            Rejection: MALFORMED.
        """
        # A slotted dataclass is a second class of the same name: super() without arguments would not find it.
        manifest = super(BlobManifest, cls).from_value(value, name)
        if len(manifest.chunks) != chunk_count(manifest.size):
            raise Rejection(Reason.MALFORMED, field=name, size=manifest.size, chunks=len(manifest.chunks))
        return manifest

    @property
    def id(self) -> BlobId:
        """The blob's content id."""
        return BlobId(tagged_hash("blob", encode((self.size, CHUNK_BYTES, root_of_hashes(self.chunks)))))

    def chunk_size(self, index: int) -> int:
        """Size in bytes of one chunk."""
        return min(CHUNK_BYTES, self.size - index * CHUNK_BYTES)

    def verify_id(self, blob: BlobId) -> None:
        """Check that this is the manifest of `blob`.

        Raises:
            Rejection: WRONG_HASH.
        """
        if self.id != blob:
            raise Rejection(Reason.WRONG_HASH, manifest_of=self.id, expected=blob)

    def verify_chunk(self, index: int, data: bytes) -> None:
        """Check one chunk.

        Raises:
            Rejection: LIMIT for an index that the blob doesn't have, WRONG_SIZE or WRONG_HASH for other bytes.
        """
        if not 0 <= index < len(self.chunks):
            raise Rejection(Reason.LIMIT, chunk=index, chunks=len(self.chunks))
        if len(data) != self.chunk_size(index):
            raise Rejection(Reason.WRONG_SIZE, chunk=index, size=len(data), expected=self.chunk_size(index))
        if leaf_hash(data) != self.chunks[index]:
            raise Rejection(Reason.WRONG_HASH, chunk=index, computed=leaf_hash(data), expected=self.chunks[index])


class BlobHasher:
    """Builds a manifest from bytes as they stream by, without keeping them."""

    def __init__(self) -> None:
        self._size = 0
        self._chunks: list[Hash] = []
        self._current = sha256(b"\0")

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes, any number of them.

        Raises:
            Rejection: TOO_LARGE once the blob is larger than `MAX_BLOB_BYTES`.
        """
        view = memoryview(data).cast("B")
        if self._size + len(view) > MAX_BLOB_BYTES:
            raise Rejection(Reason.TOO_LARGE, size=self._size + len(view), limit=MAX_BLOB_BYTES)
        while view:
            part = view[: CHUNK_BYTES - self._size % CHUNK_BYTES]
            self._current.update(part)
            self._size += len(part)
            view = view[len(part) :]
            if self._size % CHUNK_BYTES == 0:
                self._close_chunk()

    def manifest(self) -> BlobManifest:
        """The manifest of all bytes so far; `update` may go on afterwards."""
        open_chunk = (Hash(self._current.digest()),) if self._size % CHUNK_BYTES else ()
        return BlobManifest(self._size, (*self._chunks, *open_chunk))

    def _close_chunk(self) -> None:
        self._chunks.append(Hash(self._current.digest()))
        self._current = sha256(b"\0")


def manifest_of(pieces: Iterable[bytes]) -> BlobManifest:
    """The manifest of a blob that comes in pieces of any size.

    Raises:
        Rejection: TOO_LARGE.
    """
    hasher = BlobHasher()
    for piece in pieces:
        hasher.update(piece)
    return hasher.manifest()
