"""Dialling again, on trio's mock clock: for ever where a person named the peer, else until it has been gone a while."""

from itertools import pairwise

import trio
from trio.testing import MockClock

from bflnode.node.p2p.redialling import GIVE_UP_S, REDIAL_MAX_S, REDIAL_OTHERS_MAX_S, Redialler
from bflnode.node.p2p.streams import PeerId, TransportError

PEER = PeerId("peer")


class Line:
    """A peer that never answers."""

    def __init__(self) -> None:
        self.dialled: list[tuple[float, str]] = []

    async def dial(self, address: str) -> None:
        self.dialled.append((trio.current_time(), address))
        raise TransportError("nobody answers")


async def dials(for_ever: bool, seconds: float, *addresses: str) -> tuple[Line, bool]:
    line = Line()
    async with trio.open_nursery() as nursery:
        redialler = Redialler(nursery, line.dial, lambda peer: None)
        for address in addresses:
            redialler.remember(PEER, address, for_ever=for_ever)
        await trio.sleep(seconds)
        is_remembered = PEER in redialler
        nursery.cancel_scope.cancel()
    return line, is_remembered


async def test_a_named_peer_is_dialled_for_ever_with_pauses_that_grow_and_vary(autojump_clock: MockClock) -> None:
    line, is_remembered = await dials(True, 2 * GIVE_UP_S, "a")
    times = [time for time, _ in line.dialled]
    pauses = [late - early for early, late in pairwise(times)]
    assert is_remembered
    assert pauses[0] < 0.3
    assert 0.75 * REDIAL_MAX_S <= min(pauses[10:]) < max(pauses[10:]) <= 1.25 * REDIAL_MAX_S
    assert len({round(pause, 3) for pause in pauses[10:]}) > 10


async def test_others_are_given_up_and_can_be_remembered_again(autojump_clock: MockClock) -> None:
    line, is_remembered = await dials(False, 2 * GIVE_UP_S, "a")
    assert not is_remembered
    assert line.dialled[-1][0] - line.dialled[0][0] <= GIVE_UP_S + 2 * REDIAL_OTHERS_MAX_S
    assert len(line.dialled) < 60


async def test_addresses_are_tried_in_turn(autojump_clock: MockClock) -> None:
    line, _ = await dials(True, 30.0, "a", "b")
    assert [address for _, address in line.dialled][:4] == ["a", "b", "a", "b"]


async def test_a_forgotten_peer_is_left_alone(autojump_clock: MockClock) -> None:
    line = Line()
    async with trio.open_nursery() as nursery:
        redialler = Redialler(nursery, line.dial, lambda peer: None)
        redialler.remember(PEER, "a", for_ever=True)
        await trio.sleep(1)
        redialler.forget(PEER)
        redialler.forget(PEER)
        count = len(line.dialled)
        await trio.sleep(100)
        assert (len(line.dialled), redialler.peers()) == (count, ())
        nursery.cancel_scope.cancel()
