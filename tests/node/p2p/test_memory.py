"""What peers hold in all: who is cut, and that real connections are, by what they send and by what they don't read."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from libp2p.abc import INetStream

from bflnode.node.p2p import libp2p_connections, streams
from bflnode.node.p2p import memory as limits
from bflnode.node.p2p.libp2p_connections import RepairedYamux
from bflnode.node.p2p.memory import Memory
from bflnode.node.p2p.network import Network
from tests.node.networks import ASK, PUSH, Recorder, echo_works, eventually, networks, raw_stream

MIB = 1024 * 1024


class Holding:
    """A connection of a peer that is worth what its name says."""

    def __init__(self, peer: str, held_bytes: int) -> None:
        self.peer = peer
        self.held_bytes = held_bytes
        self.is_cut = False

    def cut(self) -> None:
        self.is_cut = True


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    monkeypatch.setattr(limits, "MAX_HELD_BYTES", 10 * MIB)
    return Memory(int)


def cut_of(memory: Memory, *holders: Holding) -> list[bool]:
    for holder in holders:
        memory.note(holder)
    return [holder.is_cut for holder in holders]


def test_nobody_is_cut_while_there_is_room(memory: Memory) -> None:
    assert cut_of(memory, Holding("1", 5 * MIB), Holding("1", 5 * MIB)) == [False, False]


def test_of_peers_worth_the_same_who_holds_most_is_cut(memory: Memory) -> None:
    assert cut_of(memory, Holding("1", 4 * MIB), Holding("1", 5 * MIB), Holding("1", 2 * MIB)) == [False, True, False]
    assert memory.cuts == 1


def test_who_is_worth_less_is_cut_first_but_not_who_holds_little(memory: Memory) -> None:
    many = (Holding("3", 8 * MIB), Holding("1", 1 * MIB), Holding("0", limits.MUCH_BYTES - 1), Holding("2", 1 * MIB))
    assert cut_of(memory, *many) == [False, True, False, False]


def test_what_was_read_meanwhile_counts_for_nothing(memory: Memory) -> None:
    before = Holding("1", 9 * MIB)
    memory.note(before)
    before.held_bytes = 0
    assert cut_of(memory, Holding("1", 9 * MIB)) == [False]


def test_who_is_gone_holds_nothing(memory: Memory) -> None:
    gone = Holding("1", 9 * MIB)
    memory.note(gone)
    memory.forget(gone)
    memory.forget(gone)
    assert cut_of(memory, Holding("1", 9 * MIB)) == [False]


@asynccontextmanager
async def attacked(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Network, Network, Network]]:
    """A node for whose peers together there are 8 MiB, a friend, and an attacker that gives no window back."""
    monkeypatch.setattr(limits, "MAX_HELD_BYTES", 8 * MIB)
    monkeypatch.setattr(libp2p_connections, "WINDOW_UPDATE_BYTES", 2**40)
    async with networks(3) as [(node, _), (friend, _), (attacker, _)]:
        await friend.dial(node.addresses[0])
        await attacker.dial(node.addresses[0])
        yield node, friend, attacker


def cut(node: Network) -> bool:
    return node._memory.cuts == 1


async def test_who_reads_no_answers_is_cut_and_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    async with attacked(monkeypatch) as (node, friend, attacker):
        with suppress(*libp2p_connections.LIBRARY_FAILURES):
            for _ in range(4):
                stream = await raw_stream(attacker, node.peer_id, ASK)
                await stream.write(streams.framed(b"size 2000000"))
        await eventually(lambda: cut(node) and node.peers() == (friend.peer_id,))
        assert await echo_works(friend, node.peer_id)
        assert held(node) < MIB


async def test_frames_that_do_not_end_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HELD_BYTES", 1 * MIB)
    monkeypatch.setattr(limits, "MUCH_BYTES", 0)
    async with networks(2) as [(node, _), (attacker, _)], trio.open_nursery() as nursery:
        await attacker.dial(node.addresses[0])
        nursery.start_soon(begin_frame, await raw_stream(attacker, node.peer_id, PUSH))
        await eventually(lambda: cut(node) and node.peers() == ())
        nursery.cancel_scope.cancel()


async def begin_frame(stream: INetStream) -> None:
    with suppress(*libp2p_connections.LIBRARY_FAILURES):
        await stream.write(streams.framed(bytes(1_500_000))[:-1])
        await trio.sleep_forever()


async def test_what_nobody_reads_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(self: Recorder, protocol: str, sender: str, data: bytes) -> bytes:
        await trio.sleep_forever()
        return b""

    monkeypatch.setattr(Recorder, "on_request", never)
    monkeypatch.setattr(limits, "MAX_HELD_BYTES", MIB)
    async with networks(2) as [(node, _), (attacker, _)]:
        await attacker.dial(node.addresses[0])
        with suppress(*libp2p_connections.LIBRARY_FAILURES):
            for _ in range(6):
                stream = await raw_stream(attacker, node.peer_id, ASK)
                await stream.write(streams.framed(b"wait") + bytes(200_000))
        await eventually(lambda: cut(node) and node.peers() == ())


async def test_what_was_sent_and_read_holds_nothing() -> None:
    async with networks(2) as [(node, _), (peer, _)]:
        await peer.dial(node.addresses[0])
        for _ in range(3):
            await peer.request(node.peer_id, ASK, b"size 1500000", timeout_s=8, max_response_bytes=2 * MIB)
        await eventually(lambda: held(node) == held(peer) == 0)


def held(network: Network) -> int:
    connections = [connection.muxed_conn for connection in network._swarm.get_connections()]
    return sum(muxed.held_bytes for muxed in connections if isinstance(muxed, RepairedYamux))
