"""How much memory peers hold here in all: what they sent and nobody has read, frames half arrived, answers unread.

Each connection has bounds of its own; without one for all, many connections make many times that. Where the sum is too
large a connection is cut: of those that hold much the one that holds most for what its peer is worth. No library here.
"""

from collections.abc import Callable
from typing import Protocol

MAX_HELD_BYTES = 256 * 1024 * 1024
"""Of all connections together: four that receive as fast as they can, or models for sixty peers at the same time."""

MUCH_BYTES = 512 * 1024
"""Who holds less isn't cut: a peer that reads and writes as it should holds a frame or two."""


WORTH_FACTOR = 4
"""How many times as much a peer may hold that is worth a step more: it is cut later, but not whatever it does."""


class Holder(Protocol):
    """A connection, as far as its memory goes."""

    @property
    def held_bytes(self) -> int:
        """What it holds now."""

    @property
    def peer(self) -> str:
        """Whose it is."""

    def cut(self) -> None:
        """Close it soon; until then it takes no more."""


class Memory:
    """The sum over all connections.

    Args:
        worth_of: how much the node wants a peer: who is worth less is cut sooner.

    Attributes:
        cuts: connections cut so far.
    """

    def __init__(self, worth_of: Callable[[str], int]) -> None:
        self.cuts = 0
        self._worth_of = worth_of
        self._held: dict[Holder, int] = {}
        self._total = 0

    def note(self, holder: Holder) -> None:
        """A connection holds more than it did."""
        self._set(holder, holder.held_bytes)
        if self._total <= MAX_HELD_BYTES:
            return
        for known in list(self._held):  # what was read meanwhile has told nobody
            self._set(known, known.held_bytes)
        if self._total <= MAX_HELD_BYTES:
            return
        greedy = [known for known, held in self._held.items() if held >= MUCH_BYTES] or list(self._held)
        worst = max(greedy, key=lambda known: self._held[known] / WORTH_FACTOR ** self._worth_of(known.peer))
        self.cuts += 1
        self.forget(worst)
        worst.cut()

    def forget(self, holder: Holder) -> None:
        """A connection is gone."""
        self._total -= self._held.pop(holder, 0)

    def _set(self, holder: Holder, held: int) -> None:
        self._total += held - self._held.get(holder, 0)
        self._held[holder] = held
