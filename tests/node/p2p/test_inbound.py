"""Hostile peers: what no honest node would send, to a real host on loopback, which must go on serving the others."""

from contextlib import suppress

import pytest
import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID

from bflnode.node.p2p import streams
from bflnode.node.p2p.libp2p_connections import MAX_INBOUND_STREAMS
from bflnode.node.p2p.network import TransportError, open_network
from tests.node.networks import (
    ASK,
    PUSH,
    Recorder,
    address_and_id,
    config,
    echo_works,
    eventually,
    networks,
    pair,
    raw_stream,
)

MESHSUB = "/meshsub/1.1.0"


async def test_garbage_on_the_gossip_stream_costs_its_sender_and_nobody_else() -> None:
    async with pair() as (attacker, _, victim, _):
        stream = await raw_stream(attacker, victim.peer_id, MESHSUB)
        await stream.write(b"\x10" + b"\xff" * 16)
        await eventually(lambda: victim.statistics()["scores"].get(attacker.peer_id, 0) > 20)
        assert await echo_works(attacker, victim.peer_id)


async def test_whoever_repeats_it_is_banned() -> None:
    async with pair() as (attacker, _, victim, victim_seen):
        for _ in range(4):
            stream = await raw_stream(attacker, victim.peer_id, MESHSUB)
            await stream.write(b"\x10" + b"\xff" * 16)
        await victim_seen.until(lambda: bool(victim_seen.disconnected))
        await eventually(lambda: attacker.peers() == ())
        with suppress(TransportError):
            await attacker.dial(victim.addresses[0])
        await eventually(lambda: attacker.peers() == ())
        assert victim.peers() == ()


@pytest.mark.parametrize("protocol", [PUSH, ASK])
async def test_an_oversized_frame_is_refused_before_it_is_read(protocol: str) -> None:
    async with pair() as (attacker, _, victim, _):
        stream = await raw_stream(attacker, victim.peer_id, protocol)
        await stream.write((2**32 - 1).to_bytes(4, "big"))
        await eventually(lambda: victim.statistics()["scores"].get(attacker.peer_id, 0) > 20)
        assert victim.statistics()["refused"] == {"too-large": 1}
        assert await echo_works(attacker, victim.peer_id)


async def test_half_open_streams_hold_up_nobody() -> None:
    async with pair() as (attacker, _, victim, victim_seen):
        for begun in (b"", b"\0\0", b"\0\0\1\0half"):
            stream = await raw_stream(attacker, victim.peer_id, PUSH)
            await stream.write(begun) if begun else None
        assert attacker.push(victim.peer_id, PUSH, b"whole")
        await victim_seen.until(lambda: bool(victim_seen.pushes))
        assert victim_seen.pushes == [(PUSH, attacker.peer_id, b"whole")]


async def test_a_frame_that_stalls_ends_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bflnode.node.p2p.streams.FRAME_TIMEOUT_S", 0.2)
    async with pair() as (attacker, _, victim, _):
        stream = await raw_stream(attacker, victim.peer_id, PUSH)
        await stream.write(b"\0\0\1\0half")
        with trio.fail_after(3), pytest.raises(StreamError):
            await stream.read(1)


async def test_an_unknown_protocol_is_refused() -> None:
    async with pair() as (attacker, _, victim, _):
        with pytest.raises(StreamFailure, match="doesn't speak /unknown"):
            await raw_stream(attacker, victim.peer_id, "/unknown")
        assert await echo_works(attacker, victim.peer_id)


async def test_a_push_protocol_the_peer_does_not_speak_is_dropped_and_counted() -> None:
    async with (
        networks(1) as [(plain, _)],
        open_network(config(2, pushes=("/other/1",)), Recorder()) as other,
    ):
        await other.dial(plain.addresses[0])
        assert other.push(plain.peer_id, "/other/1", b"x")
        await eventually(lambda: other.statistics()["dropped"] == {"/other/1": 1})


async def test_too_many_open_streams_are_refused() -> None:
    async with pair() as (attacker, _, victim, _):
        connection = attacker._swarm.live_connections(ID.from_base58(victim.peer_id))[0]
        for _ in range(MAX_INBOUND_STREAMS + 1):
            await connection.new_stream()
        await eventually(lambda: victim.statistics()["scores"].get(attacker.peer_id, 0) > 20)


async def test_too_many_connections_of_one_peer_are_refused() -> None:
    async with pair() as (attacker, _, victim, _):
        for _ in range(8):
            await attacker._swarm.dial(*address_and_id(victim))
        attacker_id = ID.from_base58(attacker.peer_id)
        await eventually(lambda: len(victim._swarm.live_connections(attacker_id)) <= 4)
        assert await echo_works(attacker, victim.peer_id)


async def test_a_peer_that_ignores_the_window_is_cut_off() -> None:
    async with pair() as (attacker, _, victim, victim_seen):
        stream = await raw_stream(attacker, victim.peer_id, ASK)
        await stream.write(streams.framed(b"sleep"))
        muxed = stream.muxed_stream
        with trio.move_on_after(5):
            while attacker.peers():
                muxed.send_window = 2**20
                try:
                    await stream.write(bytes(60_000))
                except StreamError:
                    break
        await victim_seen.until(lambda: bool(victim_seen.disconnected))


async def test_a_full_node_refuses_strangers_but_not_remembered_peers() -> None:
    async with networks(4, max_peers=1) as [(full, full_seen), (first, _), (friend, _), (stranger, _)]:
        await first.dial(full.addresses[0])
        await full_seen.until(lambda: bool(full_seen.connected))
        full.remember(friend.addresses[0])
        await full_seen.until(lambda: len(full_seen.connected) == 2)
        with suppress(TransportError):
            await stranger.dial(full.addresses[0])
        await eventually(lambda: stranger.peers() == ())
        assert set(full.peers()) == {first.peer_id, friend.peer_id}


async def test_garbage_instead_of_a_handshake_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bflnode.node.p2p.libp2p_repairs.NEGOTIATION_TIMEOUT_S", 1)
    async with pair() as (first, _, second, _):
        port = int(second.addresses[0].split("/")[4])
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 1000, b"\x13/multistream/1.0.0\n" + b"\xff" * 500):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(garbage)
                with trio.fail_after(6), suppress(trio.BrokenResourceError):
                    while await stream.receive_some():
                        pass
        assert await echo_works(first, second.peer_id)
