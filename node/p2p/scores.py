"""How much a peer has misbehaved lately. No network here; the clock is passed in, and bans are `bans`' business.

libp2p's own scoring is inert until configured and judges by gossip alone; ours counts what the node refused.
"""

from collections.abc import Callable

from .streams import PeerId

BAN_SCORE = 100.0
DECAY_PER_S = 1.0
"""One refused message a second is tolerated (races of honest nodes); ten a second ban after eleven seconds."""

MAX_PEERS = 1024
"""Scores kept, oldest dropped first."""


class Scores:
    """Leaky buckets: each misdeed adds its cost, time takes away."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._scores: dict[PeerId, tuple[float, float]] = {}

    def charge(self, peer: PeerId, cost: float) -> bool:
        """Count a misdeed; True when it is one too many: the peer is to be banned, and its record is clean again."""
        score = self.score(peer) + cost
        self._scores.pop(peer, None)
        if score >= BAN_SCORE:
            return True
        if len(self._scores) >= MAX_PEERS:
            del self._scores[next(iter(self._scores))]
        self._scores[peer] = (score, self._clock())
        return False

    def score(self, peer: PeerId) -> float:
        """What is left of a peer's misdeeds now."""
        score, since = self._scores.get(peer, (0.0, 0.0))
        return max(0.0, score - (self._clock() - since) * DECAY_PER_S)

    def scores(self) -> dict[str, float]:
        """Peers with something on record, for `status`."""
        return {peer: round(self.score(peer), 1) for peer in self._scores if self.score(peer) > 0}
