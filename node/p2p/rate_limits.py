"""How much of each kind a peer may send: token buckets, filled by time. No network here; the clock is passed in.

Excess isn't an offence: a peer that sends too much is slowed down, since what it sends waits in its own queues, or
loses what would be outdated by then. Misdeeds are `scores`' business. Which protocol has which rate is said where the
protocols are (`messages.RATES`).
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

MAX_BUCKETS = 4096
"""Buckets kept, least recently used dropped first: 256 peers with sixteen protocols. They outlive their connections,
or reconnecting would fill them."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What is allowed of one kind.

    Attributes:
        per_s: units a second in the long run.
        burst: units at once after a pause.
        unit_bytes: a message costs one unit for each so many bytes, at least one.
        drops: whether excess is dropped instead of made to wait; for what is outdated soon and comes again. Reading it
            costs too: beyond `READ_FACTOR` times the rate it waits as well.
    """

    per_s: float
    burst: float
    unit_bytes: int = 65_536
    drops: bool = False

    def cost(self, size_bytes: int) -> float:
        """Units that a message of this size costs."""
        return max(1.0, size_bytes / self.unit_bytes)


READ_FACTOR = 10
"""Times the rate at which what is dropped is read."""

GENEROUS = Rate(per_s=2_000, burst=20_000)
"""For what has no rate of its own: more than a loop of Python sends."""


class TokenBucket:
    """Units left, which may be negative where messages wait."""

    __slots__ = ("_left", "_rate", "_since_s")

    def __init__(self, rate: Rate, now_s: float) -> None:
        self._rate = rate
        self._left = rate.burst
        self._since_s = now_s

    def owe(self, cost: float, now_s: float) -> float:
        """Take units, below zero if need be; how many seconds the taker has to wait for them."""
        self._fill(now_s)
        self._left -= cost
        return max(0.0, -self._left / self._rate.per_s)

    def take(self, cost: float, now_s: float) -> bool:
        """Take units if they are there."""
        self._fill(now_s)
        if self._left < min(cost, self._rate.burst):
            return False
        self._left -= cost
        return True

    def _fill(self, now_s: float) -> None:
        self._left = min(self._rate.burst, self._left + max(0.0, now_s - self._since_s) * self._rate.per_s)
        self._since_s = now_s


class RateLimits:
    """A bucket for each peer (or address) and protocol."""

    def __init__(self, rates: Mapping[str, Rate], clock: Callable[[], float]) -> None:
        self._rates = rates
        self._clock = clock
        self._buckets: dict[tuple[Hashable, str], TokenBucket] = {}

    def delay_s(self, who: Hashable, protocol: str, size_bytes: int = 0) -> float | None:
        """Count a message: how many seconds it has to wait, or None where it has to be dropped."""
        rate = self._rates.get(protocol, GENEROUS)
        bucket = self._bucket(who, protocol, rate)
        if rate.drops:
            return 0.0 if bucket.take(rate.cost(size_bytes), self._clock()) else None
        return bucket.owe(rate.cost(size_bytes), self._clock())

    def pause_s(self, who: Hashable, protocol: str, size_bytes: int = 0) -> float:
        """Count a message that is dropped: how many seconds the next one has to wait."""
        rate = self._rates.get(protocol, GENEROUS)
        reading = Rate(READ_FACTOR * rate.per_s, READ_FACTOR * rate.burst, rate.unit_bytes)
        return self._bucket(who, f"{protocol} dropped", reading).owe(rate.cost(size_bytes), self._clock())

    def _bucket(self, who: Hashable, protocol: str, rate: Rate) -> TokenBucket:
        bucket = self._buckets.pop((who, protocol), None)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                del self._buckets[next(iter(self._buckets))]
            bucket = TokenBucket(rate, self._clock())
        self._buckets[who, protocol] = bucket
        return bucket
