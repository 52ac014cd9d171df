"""Blobs between nodes: models and probe sets, fetched in checked chunks from whoever has them.

A download resumes after a restart, takes chunks from several peers at once (see `transfer`) and goes on with the next
when one fails. What is wrong is noticed with the first wrong chunk, since the manifest's hash is the blob's id. The
store keeps the files; this module moves them.
"""

import logging
from collections.abc import Callable, Iterable

import trio

from bflnode.consensus.blob import CHUNK_BYTES, MAX_MANIFEST_BYTES, BlobManifest, manifest_of
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.types import BlobId
from bflnode.node.p2p.messages import CHUNKS, MANIFESTS, ChunkRequest, ManifestRequest
from bflnode.node.p2p.network import Network, PeerId, TransportError
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.errors import CorruptBlobError, MissingError

from .transfer import PATIENCE_S, SLOWEST_CHUNK_S, Outlets, Transfer

_log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = PATIENCE_S
"""One chunk is 256 KiB: 25 kB/s is the slowest peer worth waiting for."""

RETRY_DELAY_S = 0.25
"""Pause after all peers were asked in vain: a model may be on its way to one of them."""

MAX_PARALLEL_BLOBS = 8
"""Blobs fetched at once: more only compete for the one receiving thread, fewer could all wait for dead peers."""

MAX_REQUEST_BYTES = 256


class Exchange:
    """Fetches blobs from peers and serves the own ones."""

    def __init__(
        self,
        network: Network,
        blobs: BlobStore,
        peers: Callable[[], Iterable[PeerId]],
        also_served: Iterable[BlobStore] = (),
    ) -> None:
        """Fetch into `blobs`, and serve what is there or in one of `also_served`."""
        self._network = network
        self._blobs = blobs
        self._served = (blobs, *also_served)
        self._peers = peers
        self._slots = trio.CapacityLimiter(MAX_PARALLEL_BLOBS)
        self._running: dict[BlobId, trio.Event] = {}

    async def fetch(self, blob: BlobId, *, max_bytes: int, first: PeerId | None = None) -> None:
        """Have a blob in the store, from any peer; waits as long as nobody has it, so callers cancel.

        Args:
            blob: its id.
            max_bytes: refuse a manifest of something larger.
            first: the peer to ask first, usually the one that made it.

        Raises:
            Rejection: TOO_LARGE. The blob itself is, whoever has it: its id binds its size.
            StorageError: the disk is at fault.
        """
        while not self._blobs.has(blob):
            other = self._running.get(blob)
            if other is not None:
                await other.wait()
                continue
            done = self._running[blob] = trio.Event()
            try:
                async with self._slots:
                    fetched = await self._try_peers(blob, max_bytes, first)
            finally:
                del self._running[blob]
                done.set()
            if not fetched:
                await trio.sleep(RETRY_DELAY_S)

    async def attempt(self, blob: BlobId, *, max_bytes: int) -> bool:
        """Ask each of the peers once, and say whether the blob is in the store then; what came of it is kept.

        Raises:
            Rejection: TOO_LARGE.
            StorageError: the disk is at fault.
        """
        return self._blobs.has(blob) or await self._try_peers(blob, max_bytes, None)

    async def _try_peers(self, blob: BlobId, max_bytes: int, first: PeerId | None) -> bool:
        peers = sorted(self._peers(), key=lambda peer: peer != first)
        while peers:
            peer = peers.pop(0)
            try:
                if max_bytes <= CHUNK_BYTES and await self._fetch_whole(peer, blob):
                    return True
                manifest = await self._request_manifest(peer, blob, max_bytes)
            except TransportError as error:
                _log.debug("blob %s not from %s: %s", blob.hex()[:12], peer, error)
            except Rejection as rejection:
                if rejection.reason is Reason.TOO_LARGE:
                    raise
                self._network.punish(peer, f"blob {blob.hex()[:12]}: {rejection}")
            else:
                # One that has the manifest has the blob: it comes first, and others help as far as they can.
                return await self._fetch_chunks(manifest, blob, [peer, *peers])
        return False

    async def _fetch_whole(self, peer: PeerId, blob: BlobId) -> bool:
        """Fetch a blob that should be one chunk: its id can be checked without a manifest, in half the requests.

        Returns:
            False for a full chunk of something else: the beginning of a larger blob, which its manifest will show.
        """
        chunk = await self._request_chunk(peer, blob, 0)
        if manifest_of([chunk]).id == blob:
            await trio.to_thread.run_sync(self._blobs.put, chunk)
            return True
        if len(chunk) < CHUNK_BYTES:
            raise Rejection(Reason.WRONG_HASH, blob=blob, size_bytes=len(chunk))
        return False

    async def _request_manifest(self, peer: PeerId, blob: BlobId, max_bytes: int) -> BlobManifest:
        response = await self._network.request(
            peer,
            MANIFESTS,
            ManifestRequest(blob).to_bytes(),
            timeout_s=REQUEST_TIMEOUT_S,
            max_response_bytes=MAX_MANIFEST_BYTES,
        )
        manifest = BlobManifest.from_bytes(response, max_bytes=MAX_MANIFEST_BYTES)
        if manifest.id != blob:
            raise Rejection(Reason.MALFORMED, fault="the manifest is of another blob", got=manifest.id, expected=blob)
        if manifest.size > max_bytes:
            raise Rejection(Reason.TOO_LARGE, size=manifest.size, limit=max_bytes)
        return manifest

    async def _fetch_chunks(self, manifest: BlobManifest, blob: BlobId, peers: list[PeerId]) -> bool:
        """Fetch the chunks that aren't here yet; what comes is kept for the next attempt if it isn't all."""
        download = await trio.to_thread.run_sync(self._blobs.begin_download, blob, manifest)
        outlets = Outlets(
            lambda peer, index: self._request_chunk(peer, blob, index),
            self._network.punish,
            patience_s=REQUEST_TIMEOUT_S,
            slowest_chunk_s=SLOWEST_CHUNK_S,
        )
        if not await Transfer(download, peers, outlets).run():
            return False
        await trio.to_thread.run_sync(download.finish)
        return True

    async def _request_chunk(self, peer: PeerId, blob: BlobId, index: int) -> bytes:
        request = ChunkRequest(blob, index).to_bytes()
        return await self._network.request(
            peer, CHUNKS, request, timeout_s=REQUEST_TIMEOUT_S, max_response_bytes=CHUNK_BYTES
        )

    def serve_manifest(self, data: bytes) -> bytes:
        """Answer a MANIFESTS request. May read the whole blob, so call it in a thread.

        Raises:
            Rejection: malformed, or a blob that isn't here.
            StorageError: the disk is at fault.
        """
        request = ManifestRequest.from_bytes(data, max_bytes=MAX_REQUEST_BYTES)
        return self._manifest(request.blob).to_bytes()

    def serve_chunk(self, data: bytes) -> bytes:
        """Answer a CHUNKS request. Reads the disk, so call it in a thread.

        Raises:
            Rejection: malformed, or a blob or chunk that isn't here.
            StorageError: the disk is at fault.
        """
        request = ChunkRequest.from_bytes(data, max_bytes=MAX_REQUEST_BYTES)
        chunks = len(self._manifest(request.blob).chunks)
        if request.index >= chunks:
            raise Rejection(Reason.LIMIT, chunk=request.index, chunks=chunks)
        try:
            return self._store_of(request.blob).read_chunk(request.blob, request.index)
        except MissingError as error:
            raise _not_here(request.blob, error) from error

    def _manifest(self, blob: BlobId) -> BlobManifest:
        try:
            return self._store_of(blob).manifest(blob)
        except MissingError as error:
            raise _not_here(blob, error) from error

    def _store_of(self, blob: BlobId) -> BlobStore:
        """The store that has a blob; the first where none does."""
        return next((store for store in self._served if store.has(blob)), self._blobs)


def _not_here(blob: BlobId, error: MissingError) -> Rejection:
    """What the peer is told of a blob that is missing, was pruned just now or was found corrupt."""
    if isinstance(error, CorruptBlobError):
        _log.error("%s", error)
    return Rejection(Reason.UNKNOWN_BLOB, blob=blob)
