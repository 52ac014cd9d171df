"""One blob from several peers at once: who is asked for which chunk, and what happens when somebody is slow or lies.

    chunks still missing --claimed--> a peer is asked --checked--> written
            ^                              |
            +----- refused, late, wrong ---+         the last ones are claimed twice, so that nobody holds up the end

Chunks are checked by the manifest, whose hash is the blob's id. Memory holds the chunks in flight and no others.
Which blobs are wanted, and from whom they might come, is `exchange`'s.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import trio

from bflnode.consensus.rejection import Rejection
from bflnode.node.p2p.network import PeerId, TransportError
from bflnode.storage.blob_store import Download
from bflnode.storage.errors import StorageError

_log = logging.getLogger(__name__)

MAX_SOURCES = 4
"""Peers asked at once: one receiving thread can't keep up with more."""

CHUNKS_PER_SOURCE = 8
"""A second peer is worth a request that it may refuse when there are as many chunks to share."""

CHUNKS_IN_FLIGHT = 4
"""Chunks asked for at once from one peer, a megabyte: what a link of 80 Mbit/s carries in the tenth of a second that an
answer from another continent takes."""

PATIENCE_S = 10.0
"""What a peer may take for its first chunks before its rate counts."""

SLOWEST_CHUNK_S = 0.5
"""A peer that takes longer for a chunk, on average, gives way to one that hasn't been asked yet: 500 kB/s."""

STEAL_AFTER_S = 1.0
"""When nothing else is left, a chunk that takes this long is asked for a second time, from another peer."""


@dataclass(frozen=True, slots=True)
class Outlets:
    """What a transfer needs of the network.

    Attributes:
        request: asks a peer for one chunk; raises TransportError.
        punish: counts a misdeed of a peer, with the reason.
        patience_s: see `PATIENCE_S`.
        slowest_chunk_s: see `SLOWEST_CHUNK_S`.
    """

    request: Callable[[PeerId, int], Awaitable[bytes]]
    punish: Callable[[PeerId, str], None]
    patience_s: float = PATIENCE_S
    slowest_chunk_s: float = SLOWEST_CHUNK_S


@dataclass(slots=True)
class _Claim:
    """A chunk that is on its way: from whom, and since when."""

    peers: list[PeerId]
    since_s: float


@dataclass(slots=True)
class _Source:
    """A peer that is asked.

    Attributes:
        id: whose.
        started_s: when it was asked first.
        chunks: how many it sent.
        is_dropped: whether it isn't asked any more.
    """

    id: PeerId
    started_s: float
    chunks: int = 0
    is_dropped: bool = False


class Transfer:
    """Fetches what is missing of one download."""

    def __init__(self, download: Download, peers: Iterable[PeerId], outlets: Outlets) -> None:
        self._download = download
        self._waiting = list(peers)
        self._outlets = outlets
        self._unclaimed = list(reversed(download.missing()))
        self._claims: dict[int, _Claim] = {}
        self._changed = trio.Event()
        self._failure: StorageError | None = None

    async def run(self) -> bool:
        """Fetch until all is there or no peer is left; what came is kept either way.

        Returns:
            Whether all is there.

        Raises:
            StorageError: the disk is at fault.
        """
        most = min(MAX_SOURCES, 1 + len(self._unclaimed) // CHUNKS_PER_SOURCE)
        async with trio.open_nursery() as slots:
            for _ in range(most):
                slots.start_soon(self._use_slot, slots.cancel_scope)
        if self._failure is not None:
            raise self._failure
        return self._is_complete

    @property
    def _is_complete(self) -> bool:
        return not self._unclaimed and not self._claims

    async def _use_slot(self, whole: trio.CancelScope) -> None:
        """Ask one peer after the other until none is left."""
        while self._waiting:
            source = _Source(self._waiting.pop(0), trio.current_time())
            async with trio.open_nursery() as nursery:
                for _ in range(CHUNKS_IN_FLIGHT):
                    nursery.start_soon(self._ask, source, nursery.cancel_scope)
            if self._is_complete or self._failure is not None:
                whole.cancel()
                return

    async def _ask(self, source: _Source, scope: trio.CancelScope) -> None:
        """Ask a peer for chunk after chunk, until all is there or the peer is dropped."""
        while not source.is_dropped:
            index = self._claim(source)
            if index is None:
                if self._is_complete:
                    scope.cancel()
                    return
                await self._wait()
                continue
            try:
                self._take(index, await self._outlets.request(source.id, index), source)
            except TransportError as error:
                _log.debug("chunk %d not from %s: %s", index, source.id, error)
                source.is_dropped = True
            except Rejection as rejection:
                self._outlets.punish(source.id, f"blob {self._download.blob.hex()[:12]}: {rejection}")
                source.is_dropped = True
            except StorageError as error:
                self._failure = error
                source.is_dropped = True
            finally:
                self._release(index, source)
            if source.is_dropped:
                scope.cancel()

    def _claim(self, source: _Source) -> int | None:
        """The next chunk to ask a peer for: one that nobody was asked for, else one that somebody is late with."""
        now_s = trio.current_time()
        if self._unclaimed:
            index = self._unclaimed.pop()
            self._claims[index] = _Claim([source.id], now_s)
            return index
        late = [
            (claim.since_s, index)
            for index, claim in self._claims.items()
            if len(claim.peers) == 1 and source.id not in claim.peers and claim.since_s + STEAL_AFTER_S <= now_s
        ]
        if not late:
            return None
        _, index = min(late)
        self._claims[index].peers.append(source.id)
        return index

    def _take(self, index: int, data: bytes, source: _Source) -> None:
        """Check and write a chunk; another peer may have been quicker.

        Raises:
            Rejection: it isn't that chunk.
            StorageError: the disk is at fault.
        """
        self._download.write_chunk(index, data)
        self._claims.pop(index, None)
        source.chunks += 1
        self._tell()
        allowed_s = self._outlets.patience_s + source.chunks * self._outlets.slowest_chunk_s
        if self._waiting and trio.current_time() > source.started_s + allowed_s:
            _log.info("%s is too slow, the next peer is asked", source.id)
            source.is_dropped = True

    def _release(self, index: int, source: _Source) -> None:
        """A peer is no longer on a chunk; if it isn't there and nobody else is, it is to be claimed again."""
        claim = self._claims.get(index)
        if claim is None:
            return
        claim.peers.remove(source.id)
        if not claim.peers:
            del self._claims[index]
            self._unclaimed.append(index)
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _wait(self) -> None:
        """Wait until a chunk came or came back, or somebody may be late."""
        with trio.move_on_after(STEAL_AFTER_S):
            await self._changed.wait()
