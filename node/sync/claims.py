"""Whose word counts when it says that there are blocks which this node hasn't. No network here; the clock is passed in.

Anybody may claim any height. A claim makes this node ask for the blocks, and say meanwhile that it is catching up; one
that isn't backed by blocks loses its weight. What belongs here: the bookkeeping. Who is asked, and what happens to whom
isn't believed, is `synchroniser`'s business.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bflnode.node.p2p.network import PeerId
from bflnode.node.p2p.peers import Peer

MAX_FAILURES = 3
"""Tries in a row that give no block: then a peer's word counts no more. One may be an accident."""

MAX_UNBACKED = 12
"""Such tries of all peers together in `MEMORY_S`: then the word of one that has never given a block counts only when
it has. Identities are free, so a bound for each isn't one for all."""

MEMORY_S = 600.0
"""How long a try is held against newcomers."""

PAUSE_S = 30.0
"""A peer that failed is left alone this long, unless there is no other; one whose word doesn't count in any case, and
twice as long each time."""

MAX_PAUSE_S = 900.0

MAX_RECORDS = 1024
"""Peers remembered, the one that failed or gave first is forgotten first."""


@dataclass(slots=True)
class _Record:
    """What became of a peer's claims.

    Attributes:
        claimed: the highest that wasn't backed.
        failures: tries since its last block.
        doubts: how often its word has lost its weight.
        gave: whether a block of it was ever used.
        forgiven: how often it has failed and was right all the same, since its last block.
    """

    claimed: int = 0
    failures: int = 0
    doubts: int = 0
    failed_at_s: float = float("-inf")
    paused_until_s: float = float("-inf")
    gave: bool = False
    forgiven: int = 0

    @property
    def is_doubted(self) -> bool:
        return self.failures >= MAX_FAILURES


class Claims:
    """What became of the claims of each peer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._records: dict[PeerId, _Record] = {}

    def has_failed(self, peer: PeerId) -> bool:
        """Whether others are to be asked before it."""
        return self.paused_until_s(peer) > self._clock()

    def failures(self, peer: PeerId) -> int:
        """Tries of a peer in a row that gave no block."""
        record = self._records.get(peer)
        return record.failures if record is not None else 0

    def may_be_asked(self, peer: PeerId) -> bool:
        """Whether it may be asked at all now."""
        record = self._records.get(peer)
        return record is None or not record.is_doubted or not self.has_failed(peer)

    def paused_until_s(self, peer: PeerId) -> float:
        """Until when others are to be asked before it."""
        record = self._records.get(peer)
        return record.paused_until_s if record is not None else float("-inf")

    def believed(self, peers: Iterable[Peer]) -> list[Peer]:
        """Those whose word counts."""
        horizon_s = self._clock() - MEMORY_S
        recent = sum(record.failures for record in self._records.values() if record.failed_at_s > horizon_s)
        unknown = _Record()

        def counts(peer: Peer) -> bool:
            record = self._records.get(peer.id, unknown)
            return not record.is_doubted and (record.gave or recent < MAX_UNBACKED)

        return [peer for peer in peers if counts(peer)]

    def fail(self, peer: PeerId, claimed: int) -> int:
        """A try gave no block: how often the peer's word has lost its weight, if it has none now, else 0."""
        record = self._touch(peer)
        record.claimed = max(record.claimed, claimed)
        record.failures += 1
        record.doubts += record.is_doubted
        record.failed_at_s = self._clock()
        pause_s = PAUSE_S * 2 ** min(max(0, record.doubts - 1), 10)
        record.paused_until_s = record.failed_at_s + min(pause_s, MAX_PAUSE_S)
        return record.doubts if record.is_doubted else 0

    def give(self, peer: PeerId) -> None:
        """A block of a peer was used: its word counts again."""
        record = self._touch(peer)
        record.failures = record.forgiven = 0
        record.gave = True

    def reach(self, height: int) -> None:
        """The chain is that long: who claimed as much was right.

        A few times, until it gives a block: the next block is claimed safely by anybody, and comes without it.
        """
        for peer, record in self._records.items():
            if record.failures and record.claimed <= height and record.forgiven < MAX_FAILURES:
                self._records[peer] = _Record(gave=record.gave, forgiven=record.forgiven + 1)

    def _touch(self, peer: PeerId) -> _Record:
        record = self._records.pop(peer, None)
        if record is None:
            record = _Record()
            if len(self._records) >= MAX_RECORDS:
                del self._records[next(iter(self._records))]
        self._records[peer] = record
        return record
