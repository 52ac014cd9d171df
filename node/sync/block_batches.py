"""Batches of blocks on their way: which are asked of whom, which have come, which is used next. No network here.

    next to use          asked for                     not yet asked for
    --[ came | came ]----[ peer A | peer B | peer A ]--- … ---[ highest that a peer claims ]

Blocks are used in order, but asked for out of order. What comes is kept as bytes, of as many batches as `MAX_BATCHES`:
that and the largest answer bound the memory. The batch that all others wait for is asked of one more peer now and then.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from bflnode.node.p2p.messages import BLOCKS_PER_REQUEST
from bflnode.node.p2p.network import PeerId

MAX_BATCHES = 8
"""Batches asked for or waiting to be used: some seconds of work, at most 12 MiB."""

LATE_S = 2.0
"""When the next batch to use takes longer, a second peer is asked for it, and so on: the second may be as bad."""


@dataclass(slots=True)
class _Asked:
    """A span of heights that peers were asked for."""

    span: range
    peers: list[PeerId]
    since_s: float


@dataclass(slots=True)
class _Come:
    """Blocks that came, in order from `start` on."""

    start: int
    blocks: deque[bytes]
    peer: PeerId


@dataclass(frozen=True, slots=True)
class NextBlock:
    """The block to use next, and who sent it.

    Attributes:
        is_last: whether it was the last of its batch, so that there is room for another.
    """

    height: int
    encoded: bytes
    peer: PeerId
    is_last: bool = field(default=False, compare=False)


class Batches:
    """Bookkeeping of one catching-up, from a height on."""

    def __init__(self, first: int) -> None:
        self._next = first
        self._fresh = first
        self._returned: list[range] = []
        self._asked: list[_Asked] = []
        self._come: dict[int, _Come] = {}

    def claim(self, peer: PeerId, highest: int, now_s: float) -> range | None:
        """A span of heights to ask a peer for, or None if it isn't to be asked now.

        One that somebody is late with may end beyond what the peer has: whoever is late may have claimed too much.

        Args:
            peer: who has a moment.
            highest: the last block that it says it has.
            now_s: a clock.
        """
        span = self._unasked(highest)
        if span is not None:
            self._asked.append(_Asked(span, [peer], now_s))
            return span
        first = min(self._asked, key=lambda asked: asked.span.start, default=None)
        if (
            first is None
            or first.span.start > self._next
            or first.span.start > highest
            or peer in first.peers
            or now_s < first.since_s + len(first.peers) * LATE_S
        ):
            return None
        first.peers.append(peer)
        return first.span

    def _unasked(self, highest: int) -> range | None:
        """The lowest span that nobody is asked for; beyond the limit only the one that is used next."""
        has_room = len(self._asked) + len(self._come) < MAX_BATCHES
        for span in sorted(self._returned, key=lambda span: span.start):
            if span.start <= highest and (has_room or span.start == self._next):
                self._returned.remove(span)
                kept = range(span.start, min(span.stop, highest + 1, span.start + BLOCKS_PER_REQUEST))
                if kept.stop < span.stop:
                    self._returned.append(range(kept.stop, span.stop))
                return kept
        if self._fresh > highest or not (has_room or self._fresh == self._next):
            return None
        span = range(self._fresh, min(self._fresh + BLOCKS_PER_REQUEST, highest + 1))
        self._fresh = span.stop
        return span

    def has_more(self, highest: int) -> bool:
        """Whether there is a block up to a height that hasn't come: sooner or later a peer may be asked for it."""
        return self._fresh <= highest or any(
            span.start <= highest for span in (*self._returned, *(asked.span for asked in self._asked))
        )

    def put(self, span: range, peer: PeerId, blocks: Iterable[bytes]) -> tuple[PeerId, ...]:
        """Blocks have come, as many as the peer had room for; the rest of the span is to be asked for again.

        Returns:
            Peers that were asked for the same before, and are late.
        """
        asked = self._of(span, peer)
        if asked is None:
            return ()  # another peer was quicker
        self._asked.remove(asked)
        taken = deque(list(blocks)[: len(span)])
        self._come[span.start] = _Come(span.start, taken, peer)
        if len(taken) < len(span):
            self._returned.append(range(span.start + len(taken), span.stop))
        return tuple(late for late in asked.peers if late != peer)

    def drop_requests(self, peer: PeerId) -> None:
        """Expect nothing more of a peer: what it was asked for is to be asked for again elsewhere."""
        for asked in [asked for asked in self._asked if peer in asked.peers]:
            asked.peers.remove(peer)
            if not asked.peers:
                self._asked.remove(asked)
                self._returned.append(asked.span)

    def drop(self, peer: PeerId) -> None:
        """Use nothing more of a peer, and ask for it again elsewhere."""
        self.drop_requests(peer)
        for start, come in list(self._come.items()):
            if come.peer == peer:
                del self._come[start]
                self._returned.append(range(come.start, come.start + len(come.blocks)))

    def take(self, height: int) -> NextBlock | None:
        """The block of a height, if it has come; the caller's chain has all before it."""
        self._skip_to(height)
        come = self._come.pop(height, None)
        if come is None:
            return None
        found = NextBlock(height, come.blocks.popleft(), come.peer, is_last=not come.blocks)
        come.start = self._next = height + 1
        if come.blocks:
            self._come[come.start] = come
        return found

    def want(self, height: int) -> None:
        """The block of this height that was taken is no good: it is to be asked for again."""
        self._next = height
        self._returned.append(range(height, height + 1))

    def _skip_to(self, height: int) -> None:
        """The chain may have grown by itself: what is below is of no use any more."""
        self._next = height
        self._fresh = max(self._fresh, height)
        for start, come in list(self._come.items()):
            if start < height:
                del self._come[start]
                rest = list(come.blocks)[height - start :]
                if rest:
                    self._come[height] = _Come(height, deque(rest), come.peer)
        self._returned = [range(max(span.start, height), span.stop) for span in self._returned if span.stop > height]

    def _of(self, span: range, peer: PeerId) -> _Asked | None:
        return next((asked for asked in self._asked if asked.span == span and peer in asked.peers), None)
