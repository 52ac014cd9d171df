"""How much a peer has misbehaved, and until when it is banned. No network here; the clock is passed in.

libp2p's own scoring is inert until configured and judges by gossip alone; ours counts what the node refused.
"""

from collections.abc import Callable
from typing import Any

from .streams import PeerId

BAN_SCORE = 100.0
DECAY_PER_S = 1.0
BAN_S = 60.0
"""One refused message a second is tolerated (races of honest nodes); ten a second ban for a minute after eleven."""

MAX_PEERS = 1024
"""Scores and bans kept, oldest dropped first; whoever has more identities can't be kept out by banning identities."""


class Scores:
    """Leaky buckets: each misdeed adds its cost, time takes away."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._scores: dict[PeerId, tuple[float, float]] = {}
        self._banned_until: dict[PeerId, float] = {}

    def charge(self, peer: PeerId, cost: float) -> bool:
        """Count a misdeed; True when it makes the peer banned."""
        score = self.score(peer) + cost
        self._scores.pop(peer, None)
        if self.is_banned(peer):
            return False
        if score < BAN_SCORE:
            _make_room(self._scores)
            self._scores[peer] = (score, self._clock())
            return False
        self._banned_until.pop(peer, None)
        _make_room(self._banned_until)
        self._banned_until[peer] = self._clock() + BAN_S
        return True

    def score(self, peer: PeerId) -> float:
        """What is left of a peer's misdeeds now."""
        score, since = self._scores.get(peer, (0.0, 0.0))
        return max(0.0, score - (self._clock() - since) * DECAY_PER_S)

    def is_banned(self, peer: PeerId) -> bool:
        """Whether the peer must not be connected now."""
        return self._banned_until.get(peer, float("-inf")) > self._clock()

    def scores(self) -> dict[str, float]:
        """Peers with something on record, for `status`."""
        return {peer: round(self.score(peer), 1) for peer in self._scores if self.score(peer) > 0}

    def banned(self) -> list[str]:
        """Peers banned now, for `status`."""
        return [peer for peer in self._banned_until if self.is_banned(peer)]


def _make_room(table: dict[PeerId, Any]) -> None:
    if len(table) >= MAX_PEERS:
        del table[next(iter(table))]
