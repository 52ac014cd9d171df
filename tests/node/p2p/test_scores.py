"""Scores, with a clock that the test moves."""

import pytest

from bflnode.node.p2p import scores
from bflnode.node.p2p.scores import BAN_SCORE, Scores
from bflnode.node.p2p.streams import PeerId

PEER = PeerId("peer")
OTHER = PeerId("other")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_misdeeds_add_up_until_there_is_one_too_many(clock: Clock) -> None:
    record = Scores(clock)
    assert [record.charge(PEER, BAN_SCORE / 4) for _ in range(4)] == [False, False, False, True]
    assert (record.score(PEER), record.score(OTHER)) == (0.0, 0.0)
    assert record.scores() == {}


def test_time_forgives(clock: Clock) -> None:
    record = Scores(clock)
    record.charge(PEER, 10.0)
    clock.now += 4.0
    assert record.scores() == {PEER: 6.0}
    clock.now += 10.0
    assert record.score(PEER) == 0.0


def test_one_misdeed_a_second_is_tolerated_for_ever_and_ten_a_second_are_not(clock: Clock) -> None:
    record = Scores(clock)
    for _ in range(10_000):
        clock.now += 1.0
        assert not record.charge(PEER, 1.0)
    banned_after = 0
    while not record.charge(OTHER, 1.0):
        clock.now += 0.1
        banned_after += 1
    assert 100 <= banned_after <= 115


def test_memory_is_bounded_and_the_oldest_is_forgotten(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "MAX_PEERS", 3)
    record = Scores(clock)
    for number in range(5):
        record.charge(PeerId(f"scored {number}"), 1.0)
    assert list(record.scores()) == ["scored 2", "scored 3", "scored 4"]
