"""Token buckets, with a clock that the test moves."""

import pytest

from bflnode.node.p2p import rate_limits
from bflnode.node.p2p.rate_limits import GENEROUS, Rate, RateLimits, TokenBucket

SLOW = Rate(per_s=2, burst=4)
DROPPING = Rate(per_s=2, burst=4, drops=True)


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_burst_is_free_and_what_follows_waits_its_turn(clock: Clock) -> None:
    limits = RateLimits({"votes": SLOW}, clock)
    assert [limits.delay_s("peer", "votes") for _ in range(7)] == [0, 0, 0, 0, 0.5, 1.0, 1.5]
    clock.now += 1.5
    assert limits.delay_s("peer", "votes") == 0.5
    clock.now += 100
    assert [limits.delay_s("peer", "votes") for _ in range(5)] == [0, 0, 0, 0, 0.5]


def test_excess_of_what_is_soon_outdated_is_dropped_and_costs_nothing(clock: Clock) -> None:
    limits = RateLimits({"status": DROPPING}, clock)
    assert [limits.delay_s("peer", "status") for _ in range(6)] == [0, 0, 0, 0, None, None]
    clock.now += 0.5
    assert [limits.delay_s("peer", "status") for _ in range(2)] == [0, None]


def test_reading_what_is_dropped_has_a_rate_too(clock: Clock) -> None:
    limits = RateLimits({"status": DROPPING}, clock)
    assert [limits.pause_s("peer", "status") for _ in range(42)] == [0.0] * 40 + [0.05, 0.1]


def test_a_large_message_costs_as_much_as_several_small_ones(clock: Clock) -> None:
    limits = RateLimits({"proposals": Rate(per_s=1, burst=10, unit_bytes=100)}, clock)
    assert limits.delay_s("peer", "proposals", 900) == 0.0
    assert limits.delay_s("peer", "proposals", 1) == 0.0
    assert limits.delay_s("peer", "proposals", 300) == 3.0


def test_a_message_larger_than_a_burst_is_not_dropped_for_ever(clock: Clock) -> None:
    bucket = TokenBucket(Rate(per_s=1, burst=2, drops=True), clock())
    assert bucket.take(5.0, clock())
    assert not bucket.take(5.0, clock())


def test_peers_and_protocols_have_buckets_of_their_own_and_reconnecting_fills_none(clock: Clock) -> None:
    limits = RateLimits({"votes": SLOW}, clock)
    for _ in range(4):
        limits.delay_s("peer", "votes")
    assert limits.delay_s("other", "votes") == 0.0
    assert limits.delay_s("peer", "anything else") == 0.0
    assert limits.delay_s("peer", "votes") == 0.5


def test_what_has_no_rate_has_a_generous_one(clock: Clock) -> None:
    limits = RateLimits({}, clock)
    delays = [limits.delay_s("peer", "new") for _ in range(int(GENEROUS.burst) + 2)]
    assert delays[:-2] == [0.0] * int(GENEROUS.burst)
    assert delays[-1] > 0


def test_memory_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MAX_BUCKETS", 3)
    limits = RateLimits({"votes": SLOW}, clock)
    for number in range(10):
        limits.delay_s(number, "votes")
    assert len(limits._buckets) == 3
