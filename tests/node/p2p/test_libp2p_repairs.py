"""Each repair beside the bug it repairs: the same peer behaviour against an unrepaired and a repaired host.

The numbers are those of `libp2p_repairs` and `libp2p_gossip`. A test named `library_…` that begins to fail after an
upgrade of libp2p says that a work-around can go.
"""

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from google.protobuf.message import DecodeError
from libp2p import create_yamux_muxer_option, generate_new_ed25519_identity, new_host
from libp2p.abc import IHost, INetStream
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import IncompleteReadError
from libp2p.io.utils import read_exactly as library_read_exactly
from libp2p.network.config import ConnectionConfig
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import TYPE_WINDOW_UPDATE, YAMUX_HEADER_FORMAT, Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from bflnode.node.p2p.libp2p_connections import LIBRARY_FAILURES, Gate, RepairedYamux, read_exactly, write_fully
from bflnode.node.p2p.libp2p_repairs import GuardedHost, HostSettings, ServiceManager, build_host
from bflnode.node.p2p.network import Network
from tests.node.networks import TOPIC, eventually, pair

ECHO = TProtocol("/echo/1")
MESHSUB = TProtocol("/meshsub/1.1.0")
GARBAGE = b"\x10" + b"\xff" * 16
ANY_PORT = Multiaddr("/ip4/127.0.0.1/tcp/0")


@dataclass
class Hosts:
    """A client connected to a server."""

    client: IHost
    server: IHost

    async def stream(self, protocol: TProtocol = ECHO) -> INetStream:
        return await self.client.new_stream(self.server.get_id(), [protocol])


async def echo(stream: INetStream) -> None:
    while True:
        await stream.write(await stream.read(4096))


def library_host(**limits: Any) -> IHost:
    """The library as it comes, with Noise only."""
    key_pair = generate_new_ed25519_identity()
    noise = NoiseTransport(key_pair, noise_privkey=create_new_key_pair().private_key)
    return new_host(
        key_pair=key_pair,
        sec_opt={TProtocol(NOISE_PROTOCOL_ID): noise},
        muxer_opt=create_yamux_muxer_option(),
        connection_config=ConnectionConfig(**limits) if limits else None,
    )


def repaired_host(max_connections: int = 16, network_key: str | None = None) -> GuardedHost:
    settings = HostSettings(
        identity_seed=generate_new_ed25519_identity().private_key.to_bytes(),
        max_connections=max_connections,
        gate=Gate(lambda address: False, 64, trio.current_time),
        network_key=network_key,
    )
    return build_host(settings, lambda peer, reason: None)


@asynccontextmanager
async def running(host: IHost) -> AsyncIterator[IHost]:
    if not isinstance(host, GuardedHost):
        async with host.run([ANY_PORT]):
            yield host
        return
    async with trio.open_nursery() as nursery:
        manager = ServiceManager(host.swarm)
        nursery.start_soon(manager.run)
        await manager.wait_started()
        await host.swarm.listen(ANY_PORT)
        yield host
        await host.swarm.close_all(host.swarm.get_connections())
        await manager.stop()


def info(host: IHost) -> PeerInfo:
    listener = next(iter(host.get_network().listeners.values()))
    return info_from_p2p_addr(Multiaddr(f"{listener.get_addrs()[0]}/p2p/{host.get_id()}"))


async def connect(client: IHost, server: IHost) -> None:
    target = info(server)
    if isinstance(client, GuardedHost):
        await client.swarm.dial(target.addrs[0], target.peer_id)
    else:
        await client.connect(target)


@asynccontextmanager
async def connected(client: IHost, server: IHost) -> AsyncIterator[Hosts]:
    async with running(server), running(client):
        server.set_stream_handler(ECHO, echo)
        await connect(client, server)
        yield Hosts(client, server)


async def echo_works(hosts: Hosts) -> bool:
    stream = await hosts.stream()
    await stream.write(b"hello")
    answer = await stream.read(5)
    await stream.reset()
    return answer == b"hello"


async def crash(stream: INetStream) -> None:
    await stream.read(1)
    raise RuntimeError("a bug in a stream handler")


class TestOneHandlerEndsTheHost:
    """[1]"""

    async def test_library_host_ends_when_a_stream_handler_raises(self) -> None:
        async def scenario() -> None:
            async with connected(repaired_host(), library_host()) as hosts:
                hosts.server.set_stream_handler(TProtocol("/crash"), crash)
                await (await hosts.stream(TProtocol("/crash"))).write(b"x")
                await trio.sleep(5)

        with pytest.raises(BaseExceptionGroup) as ended:
            await scenario()
        assert ended.group_contains(RuntimeError, match="a bug in a stream handler")

    async def test_repaired_host_goes_on(self) -> None:
        async with connected(repaired_host(), repaired_host()) as hosts:
            hosts.server.set_stream_handler(TProtocol("/crash"), crash)
            stream = await hosts.stream(TProtocol("/crash"))
            await stream.write(b"x")
            with pytest.raises(StreamError):
                await stream.read(1)
            assert await echo_works(hosts)


class TestGarbageEndsTheHost:
    """[2]; that the repaired one goes on is tested in test_network."""

    async def test_library_host_ends_on_one_garbage_message(self) -> None:
        async def scenario() -> None:
            async with (
                connected(repaired_host(), server := library_host()) as hosts,
                background_trio_service(Pubsub(server, _library_gossip())),
            ):
                await (await hosts.stream(MESHSUB)).write(GARBAGE)
                await trio.sleep(5)

        with pytest.raises(BaseExceptionGroup) as ended:
            await scenario()
        assert ended.group_contains(DecodeError)


class TestDialling:
    """[4] and [5]; the repaired ones are in test_network."""

    async def test_library_dial_waits_a_quarter_of_a_second(self) -> None:
        async with running(library_host()) as server, running(library_host()) as client:
            started = trio.current_time()
            await client.connect(info(server))
            assert trio.current_time() - started >= 0.25

    async def test_repaired_dial_does_not(self) -> None:
        async with running(repaired_host()) as server, running(repaired_host()) as client:
            started = trio.current_time()
            await connect(client, server)
            assert trio.current_time() - started < 0.2

    async def test_library_bars_a_peer_after_one_failed_dial(self) -> None:
        async with running(library_host()) as client:
            server = library_host()
            client.get_peerstore().add_addrs(server.get_id(), [Multiaddr("/ip4/127.0.0.1/tcp/1")], 100)
            swarm = client.get_network()
            assert isinstance(swarm, Swarm)
            swarm.retry_config.max_retries = 0
            with pytest.raises(SwarmException):
                await swarm.dial_peer(server.get_id())
            async with running(server):
                with pytest.raises(SwarmException, match="negative cache"):
                    await client.connect(info(server))


class Trickle:
    """A reader that gives one byte at a time, as a slow wire does."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self, n: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        piece, self._data = self._data[:1], self._data[1:]
        if not piece:
            raise StreamEOF
        return piece


class TestReadingExactly:
    """[6]"""

    async def test_library_gives_up_after_a_hundred_short_reads(self) -> None:
        with pytest.raises(IncompleteReadError):
            await library_read_exactly(Trickle(b"x" * 200), 200)  # type: ignore[arg-type]  # a Reader in all but name

    async def test_repaired_reads_on(self) -> None:
        assert await read_exactly(Trickle(b"x" * 200), 200) == b"x" * 200  # type: ignore[arg-type]  # likewise

    async def test_an_end_in_the_middle_is_told_from_an_end_before(self) -> None:
        with pytest.raises(StreamError, match="ended after 3 of 4 bytes"):
            await read_exactly(Trickle(b"abc"), 4)  # type: ignore[arg-type]  # likewise
        with pytest.raises(StreamEOF):
            await read_exactly(Trickle(b""), 4)  # type: ignore[arg-type]  # likewise


async def test_a_reader_that_stalls_longer_than_five_seconds_is_waited_for() -> None:
    """[7] both ways at once, since it takes the library 5 s to fail. 20 MB exceed the largest window, 16 MiB."""
    goes_on = trio.Event()
    outcomes: dict[str, object] = {}
    received = bytearray()

    async def stall_and_read(stream: INetStream) -> None:
        await goes_on.wait()
        while True:
            received.extend(await stream.read(65536))

    async def send(name: str, write: Callable[[INetStream, bytes], Awaitable[None]], hosts: Hosts) -> None:
        stream = await hosts.stream(TProtocol("/stall"))
        try:
            await write(stream, bytes(20_000_000))
            outcomes[name] = "sent"
        except StreamError as error:
            outcomes[name] = error

    async with connected(repaired_host(), repaired_host()) as hosts, trio.open_nursery() as nursery:
        hosts.server.set_stream_handler(TProtocol("/stall"), stall_and_read)
        nursery.start_soon(send, "library", lambda stream, data: stream.write(data), hosts)
        nursery.start_soon(send, "repaired", write_fully, hosts)
        await eventually(lambda: "library" in outcomes)
        assert isinstance(outcomes["library"], StreamError)
        goes_on.set()
        await eventually(lambda: outcomes.get("repaired") == "sent" and len(received) >= 20_000_000)


async def test_library_loses_most_of_a_burst_of_gossip() -> None:
    """[8]; that the repaired one loses nothing is tested in test_network."""
    async with AsyncExitStack() as stack:
        hosts, subscriptions, nodes = [], [], []
        for _ in range(2):
            host = await stack.enter_async_context(running(library_host()))
            gossip = _library_gossip()
            pubsub = Pubsub(host, gossip)
            await stack.enter_async_context(background_trio_service(gossip))
            await stack.enter_async_context(background_trio_service(pubsub))
            await pubsub.wait_until_ready()
            subscriptions.append(await pubsub.subscribe(TOPIC))
            hosts.append(host)
            nodes.append(pubsub)
        await hosts[0].connect(info(hosts[1]))
        await nodes[0].wait_for_mesh(hosts[1].get_id(), TOPIC)
        for number in range(100):
            await nodes[0].publish(TOPIC, b"%d" % number)
        arrived = []
        with trio.move_on_after(1.0):
            while True:
                arrived.append((await subscriptions[1].get()).data)
    assert 0 < len(arrived) < 100


class TestInboundSlots:
    """[18]"""

    async def test_library_accepts_only_so_many_connections_in_its_whole_life(self) -> None:
        server = library_host(max_connections=3, min_connections=0, low_watermark=0, high_watermark=3)
        async with running(server):
            assert await _connect_in_turn(server, 5) == 3

    async def test_repaired_gives_a_slot_back_when_its_connection_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bflnode.node.p2p.libp2p_repairs.MAX_HANDSHAKES", 0)
        async with running(server := repaired_host(max_connections=3)):
            assert await _connect_in_turn(server, 5) == 5


async def _connect_in_turn(server: IHost, count: int) -> int:
    succeeded = 0
    for _ in range(count):
        async with running(repaired_host()) as client:
            try:
                await connect(client, server)
            except SwarmException:
                continue
            succeeded += 1
        await eventually(lambda: not server.get_network().connections)
    return succeeded


class TestCancelledWrites:
    """[19]: a write is cancelled at each of its checkpoints; then the connection must still work."""

    async def test_library_connection_dies_of_a_cancelled_write(self) -> None:
        assert not await _survives_cancelled_writes(library_host())

    async def test_repaired_connection_does_not(self) -> None:
        assert await _survives_cancelled_writes(repaired_host())


async def _survives_cancelled_writes(client: IHost) -> bool:
    async with connected(client, repaired_host()) as hosts:
        for checkpoints in range(12):
            stream = await hosts.stream()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.write, b"cancelled")
                    for _ in range(checkpoints):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            try:
                with trio.fail_after(2):
                    assert await echo_works(hosts)
                    await stream.reset()
            except (*LIBRARY_FAILURES, trio.TooSlowError):  # the library's connection dies in one of several ways
                return False
        return True


class TestReceiveWindow:
    """[20]: the attacker pretends to have an endless window; the victim's handler reads nothing."""

    async def test_library_buffers_whatever_is_sent(self) -> None:
        assert await _unread_bytes(library_host()) > 4_000_000

    async def test_repaired_closes_the_connection(self) -> None:
        assert await _unread_bytes(repaired_host()) == 0


async def _unread_bytes(server: IHost) -> int:
    async def never_read(stream: INetStream) -> None:
        await trio.sleep_forever()

    async with connected(repaired_host(), server) as hosts:
        server.set_stream_handler(TProtocol("/stall"), never_read)
        stream = await hosts.stream(TProtocol("/stall"))
        muxed = stream.muxed_stream.conn
        frame = struct.pack(YAMUX_HEADER_FORMAT, 0, 0, 0, stream.muxed_stream.stream_id, 60_000) + bytes(60_000)
        with suppress(*LIBRARY_FAILURES):  # the attacker is cut off
            for _ in range(80):
                await muxed._write_frame(frame)
        victim = None
        with trio.move_on_after(1.0):
            while True:
                connections = server.get_network().connections.get(hosts.client.get_id(), [])
                if not connections:
                    return 0
                victim = connections[0].muxed_conn
                assert isinstance(victim, Yamux)
                await trio.sleep(0.02)
        return sum(len(buffer) for buffer in victim.stream_buffers.values()) if victim else 0


class TestWindowUpdates:
    """[30]: what a hundred small messages cost the receiver in frames that give the window back."""

    async def test_library_sends_one_for_each_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert await _updates_of_a_hundred_messages(library_host(), monkeypatch) >= 100

    async def test_repaired_sends_one_only_for_a_quarter_of_a_window(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The library grows the window by itself a few times: those are worth a frame."""
        assert await _updates_of_a_hundred_messages(repaired_host(), monkeypatch) < 10

    async def test_a_stream_carries_many_times_its_window(self) -> None:
        async with connected(repaired_host(), repaired_host()) as hosts:
            stream = await hosts.stream()
            message = bytes(50_000)
            with trio.fail_after(20):
                for _ in range(60):
                    await write_fully(stream, message)
                    assert await read_exactly(stream, len(message)) == message


async def _updates_of_a_hundred_messages(server: IHost, monkeypatch: pytest.MonkeyPatch) -> int:
    updates = 0
    async with connected(repaired_host(), server) as hosts:
        stream = await hosts.stream()
        secured = server.get_network().connections[hosts.client.get_id()][0].muxed_conn.secured_conn
        write = secured.write

        async def count(data: bytes) -> None:
            nonlocal updates
            updates += data[1] == TYPE_WINDOW_UPDATE
            await write(data)

        monkeypatch.setattr(secured, "write", count)
        for _ in range(100):
            await stream.write(b"a vote")
            assert await stream.read(6) == b"a vote"
    return updates


class TestFrozenPeer:
    """[21]: a peer whose process stands still while the kernel keeps its connection open."""

    async def test_repaired_gives_it_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("PING_INTERVAL_S", "PING_TIMEOUT_S"):
            monkeypatch.setattr(f"bflnode.node.p2p.libp2p_connections.{name}", 0.2)
        async with connected(repaired_host(), server := library_host()) as hosts:
            for connection in server.get_network().connections[hosts.client.get_id()]:
                connection.muxed_conn._nursery.cancel_scope.cancel()
            started = trio.current_time()
            await eventually(lambda: not hosts.client.get_network().connections)
            assert trio.current_time() - started < 2.0

    async def test_a_peer_that_answers_pings_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bflnode.node.p2p.libp2p_connections.PING_INTERVAL_S", 0.05)
        async with connected(repaired_host(), library_host()) as hosts:
            connection = hosts.client.get_network().connections[hosts.server.get_id()][0].muxed_conn
            assert isinstance(connection, RepairedYamux)
            await eventually(lambda: connection._ping_id > 5)
            assert await echo_works(hosts)


async def test_library_lets_two_hosts_listen_on_one_port() -> None:
    """[25]; that the repaired one refuses is tested in test_network."""
    async with running(library_host()) as first:
        second = library_host()
        async with second.run(info(first).addrs):
            assert info(second).addrs == info(first).addrs


async def test_an_endless_negotiation_line_is_refused() -> None:
    """[26]"""
    async with connected(repaired_host(), repaired_host()) as hosts:
        connection = hosts.client.get_network().connections[hosts.server.get_id()][0]
        stream = await connection.new_stream()
        await stream.write(b"\x13/multistream/1.0.0\n" + b"\xff\xff\xff\xff\x0f" + b"x" * 2000)

        async def read_all() -> None:
            while True:
                await stream.read(100)

        with trio.fail_after(2), pytest.raises(StreamError):
            await read_all()
        assert await echo_works(hosts)


class TestGossipAfterABrokenStream:
    """[27]"""

    async def test_a_peer_is_heard_again_after_our_gossip_stream_to_it_broke(self) -> None:
        async with pair() as (first, _, second, second_seen):
            await first.wait_for_mesh(TOPIC, timeout_s=5)
            await _break_gossip_stream(first, second)
            await first.publish(TOPIC, b"lost, perhaps")
            await first.wait_for_mesh(TOPIC, timeout_s=5)
            with trio.fail_after(15):
                number = 0
                while not any(data.startswith(b"again") for _, _, data in second_seen.gossip):
                    await first.publish(TOPIC, b"again %d" % number)
                    number += 1
                    await trio.sleep(0.1)


async def _break_gossip_stream(network: Network, peer: Network) -> None:
    await network._pubsub.peers[ID.from_base58(peer.peer_id)].reset()


class TestSequenceNumbers:
    """[22]"""

    async def test_library_starts_at_the_second_and_ours_at_the_nanosecond(self) -> None:
        async with pair() as (first, _, second, _):
            assert second._pubsub.counter - first._pubsub.counter > 1000
        async with running(library_host()) as host:
            numbers = {Pubsub(host, _library_gossip()).counter for _ in range(2)}
            assert max(numbers) - min(numbers) <= 1


class TestServiceManager:
    """[2]: a task of a service that fails is logged, a loop is started again."""

    async def test_a_failing_task_ends_nothing_and_a_loop_goes_on(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("bflnode.node.p2p.libp2p_repairs.DAEMON_RESTART_S", 0.01)
        runs: list[str] = []

        async def fail(name: str) -> None:
            runs.append(name)
            raise RuntimeError(f"{name} failed")

        async with running(host := repaired_host()):
            host.swarm.manager.run_task(fail, "task")
            host.swarm.manager.run_daemon_task(fail, "loop")
            await eventually(lambda: runs.count("loop") >= 3)
        assert runs.count("task") == 1
        assert "task failed" in caplog.text


async def test_a_gossip_message_with_a_forged_sender_is_not_delivered_and_ends_nothing() -> None:
    async with pair() as (attacker, _, victim, victim_seen):
        await attacker.wait_for_mesh(TOPIC, timeout_s=5)
        stream = await attacker._host.open_stream(
            attacker._swarm.live_connections(ID.from_base58(victim.peer_id))[0], [MESHSUB]
        )
        message = rpc_pb2.Message(data=b"x", topicIDs=[TOPIC], from_id=b"\xff", seqno=b"1", key=b"junk", signature=b"y")
        body = rpc_pb2.RPC(publish=[message]).SerializeToString()
        await stream.write(bytes([len(body)]) + body)
        await attacker.publish(TOPIC, b"honest")
        await victim_seen.until(lambda: bool(victim_seen.gossip))
        assert [data for _, _, data in victim_seen.gossip] == [b"honest"]


def _library_gossip() -> GossipSub:
    return GossipSub([PROTOCOL_ID_V11], 6, 4, 10, heartbeat_interval=1)
