"""Everything this project does to py-libp2p 0.8.1 so that a hostile or unlucky peer can't harm the node.

Each class below replaces one part of the library by subclassing it; nothing is patched globally, so an unrepaired host
can run beside a repaired one (the tests use that to show each bug). What belongs here: work-arounds, each with its
reason. What doesn't: framing, sessions, redialling, scores (`streams`, `network`). When the library is upgraded, this
is the one module to review; the numbers in brackets are those of docs/adr and the tests.

    [1]  an exception in an inbound stream handler ends the whole host      -> `GuardedHost._swarm_stream_handler`
    [2]  a garbage protobuf on /meshsub, or any task that fails, likewise   -> the same, and `ServiceManager`
    [3]  two tasks write one gossip stream, frames interleave               -> `RepairedPubsub.write_msg` (a lock)
    [4]  a dial always waits 250 ms  [5] a failed dial bars the peer 60 s   -> `RepairedSwarm.dial` (avoids both)
    [6]  `read_exactly` gives up after 100 short reads                      -> `read_exactly` here
    [7]  a write resets the stream when the reader stalls for 5 s           -> `write_fully` here
    [8]  gossip queues of 32 messages drop silently                         -> `_RoomyQueues`, direct delivery
    [10] validation results are cached, slow ones as failures               -> `RepairedPubsub.validate_msg`
    [14] limits on connections need the watermarks too                      -> `build_stack`
    [15] connections are closed one after the other, 0.2 s each             -> `RepairedSwarm.close_all`
    [18] an inbound slot is given back only when the host stops: after
         `max_connections` accepted connections, ever, no more are accepted -> `RepairedSwarm.upgrade_inbound_raw_conn`
    [19] a write cancelled between encrypting and sending, or half-way,
         desynchronises Noise and kills the connection                      -> `RepairedYamux._write_frame`
    [20] the receive window is not enforced: a peer can fill our memory     -> `_BoundedBuffers`
    [21] a frozen peer is never noticed                                     -> `RepairedYamux._measure_rtt_loop`
    [22] sequence numbers start at the second of start-up: a busy node that
         restarts reuses them, and its messages are dropped as seen         -> `RepairedPubsub.__init__`
    [23] every gossip message carries and verifies a signed address record  -> `RepairedPubsub.write_msg`
    [24] one failed protocol negotiation bars a peer from gossip for good   -> `GuardedHost.new_stream`
    [25] SO_REUSEPORT: a second node on the same port starts without error
         and steals half of the connections                                 -> `check_port_is_free`
    [26] negotiation reads a line of any length                             -> `_ShortLineCommunicator`
"""

import logging
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import trio
from libp2p.abc import IMuxedConn, INetConn, INetStream, IRawConnection, ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError, ParseError
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.io.exceptions import IOException
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectCommunicatorError, MultiselectError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from libp2p.stream_muxer.yamux.yamux import FLAG_SYN, TYPE_PING, YAMUX_HEADER_FORMAT, Yamux, YamuxStream
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL_ID
from libp2p.tools.anyio_service import Service
from libp2p.tools.anyio_service.api import AsyncFn, InternalManagerAPI, ManagerAPI, ServiceAPI
from libp2p.tools.anyio_service.stats import Stats, TaskStats
from libp2p.transport.exceptions import MuxerUpgradeFailure
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

logger = logging.getLogger(__name__)

LIBRARY_FAILURES = (BaseLibp2pError, trio.BrokenResourceError, trio.ClosedResourceError, MuxedConnUnavailable)
"""What an operation on a stream or connection raises when the other side or the wire fails."""

STREAM_FAILURES = (StreamError, IOException, MultiselectError, MultiselectClientError)
"""What an inbound stream raises in ordinary life: the peer went away or doesn't speak the protocol."""

NEGOTIATION_TIMEOUT_S = 5
"""Security, muxer or protocol negotiation: a few round trips; longer is a peer that holds a slot."""

FRAME_WRITE_TIMEOUT_S = 10.0
"""A frame of at most 64 KiB that TCP doesn't take in this time goes to a frozen peer: the connection is closed."""

WINDOW_PATIENCE_S = 30.0
"""How long a stream may wait for its reader. The library's 5 s kill transfers to a node that is busy verifying."""

WINDOW_POLL_S = 0.005
"""Yamux has no event for an opened window; the library itself polls every 10 ms."""

READ_SIZE = 256 * 1024
"""Most bytes asked of a stream at once: yamux's initial window."""

PING_INTERVAL_S = 5.0
PING_TIMEOUT_S = 5.0
MAX_MISSED_PINGS = 2
"""A frozen peer is dropped after 5 + 2 * 5 s at most; two strikes, because our own loop may have been the late one."""

WINDOW_SLACK = 128 * 1024
"""Bytes a peer may exceed its window by: updates and data cross on the wire."""

MAX_INBOUND_STREAMS = 128
"""Open inbound streams of one connection. An honest node needs pushes + 4 per request protocol + gossip, below 64."""

MAX_PROTOCOL_LINE = 1024
"""Bytes of one line of protocol negotiation; protocol ids are below 64."""

MAX_GOSSIP_RPC_BYTES = 64_000
"""One RPC stays below one yamux frame (64 KiB), so that it can't interleave and is cheap to buffer."""

MAX_INBOUND_RPC_BYTES = 256 * 1024
"""Other implementations batch several messages in one RPC."""

MAX_QUEUED_RPCS = 512
"""Gossip RPCs waiting for one peer (the library: 32); at most 32 MB, and only for a peer that doesn't read."""

DAEMON_RESTART_S = 1.0
"""Pause before a failed background loop (the gossip heartbeat) starts again."""

CLOSE_TIMEOUT_S = 0.6
"""All connections close concurrently; the library sleeps 0.2 s in each for its streams to notice."""


def silence_library() -> None:
    """Let only warnings of libp2p through, and none of those that every disconnect of a peer produces."""
    logging.getLogger("libp2p").setLevel(logging.WARNING)
    for name in ("stream_muxer.yamux", "network.swarm", "transport.tcp", "pubsub", "security", "host"):
        logging.getLogger(f"libp2p.{name}").setLevel(logging.CRITICAL)


class ServiceManager(InternalManagerAPI):
    """Runs a service of the library; a failing task of it is logged instead of ending the host [2].

    The library's own manager also searches all its tasks for the parent at every start, and refuses the 1001st.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._nursery: trio.Nursery | None = None
        self._started = trio.Event()
        self._finished = trio.Event()
        self._cancelled = False
        service._manager = self

    async def run(self) -> None:
        """Run the service until `cancel`."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._started.set()
                self.run_task(self._service.run)
                await trio.sleep_forever()
        finally:
            self._nursery = None
            self._finished.set()

    @property
    def is_started(self) -> bool:
        return self._started.is_set()

    @property
    def is_running(self) -> bool:
        return self._nursery is not None

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled

    @property
    def is_finished(self) -> bool:
        return self._finished.is_set()

    @property
    def did_error(self) -> bool:
        return False

    @property
    def stats(self) -> Stats:
        running = len(self._nursery.child_tasks) if self._nursery else 0
        return Stats(tasks=TaskStats(total_count=running, finished_count=0))

    async def wait_started(self) -> None:
        await self._started.wait()

    async def wait_finished(self) -> None:
        await self._finished.wait()

    def cancel(self) -> None:
        self._cancelled = True
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def stop(self) -> None:
        self.cancel()
        await self._finished.wait()

    def run_task(self, async_fn: AsyncFn, *args: Any, daemon: bool = False, name: str | None = None) -> None:
        if self._nursery is None:
            raise SwarmException(f"{self._service} is not running")
        self._nursery.start_soon(self._guarded, async_fn, args, daemon, name=name or async_fn)

    def run_daemon_task(self, async_fn: AsyncFn, *args: Any, name: str | None = None) -> None:
        self.run_task(async_fn, *args, daemon=True, name=name)

    def run_child_service(self, service: ServiceAPI, daemon: bool = False, name: str | None = None) -> ManagerAPI:
        raise NotImplementedError("no service of this stack has children")

    def run_daemon_child_service(self, service: ServiceAPI, name: str | None = None) -> ManagerAPI:
        raise NotImplementedError("no service of this stack has children")

    async def _guarded(self, async_fn: AsyncFn, args: tuple[Any, ...], daemon: bool) -> None:
        while True:
            try:
                await async_fn(*args)
                return
            except LIBRARY_FAILURES as failure:
                logger.debug("%s: %r ended with %r", self._service, async_fn, failure)
            except Exception:  # the daemon's edge: whatever a peer provoked in the library must not end the node
                logger.warning("%s: a task of libp2p failed", self._service, exc_info=True)
            if not daemon:
                return
            await trio.sleep(DAEMON_RESTART_S)


class WindowExceeded(IOException):
    """A peer sent more than the flow control window allows."""


class _BoundedBuffer(bytearray):
    """Receive buffer of one stream that refuses what exceeds the window granted to the peer [20]."""

    def __init__(self, connection: "RepairedYamux", stream_id: int) -> None:
        super().__init__()
        self._connection = connection
        self._stream_id = stream_id

    def extend(self, data: Any) -> None:
        stream = self._connection.streams.get(self._stream_id)
        window = stream.target_recv_window if stream is not None else READ_SIZE
        if len(self) + len(data) > window + WINDOW_SLACK:
            self._connection.exceeded_window = True
            self._connection.abandon()
            raise WindowExceeded(f"{len(self) + len(data)} bytes unread on a stream with a window of {window}")
        super().extend(data)


class _BoundedBuffers(dict[int, bytearray]):
    def __init__(self, connection: "RepairedYamux") -> None:
        super().__init__()
        self._connection = connection

    def __setitem__(self, stream_id: int, buffer: bytearray) -> None:
        super().__setitem__(stream_id, _BoundedBuffer(self._connection, stream_id))


class RepairedYamux(Yamux):
    """Yamux with atomic writes [19], bounded buffers [20] and a check that the peer is alive [21]."""

    def __init__(self, secured_conn: ISecureConn, peer_id: ID, is_initiator: bool) -> None:
        super().__init__(secured_conn, peer_id, is_initiator=is_initiator)
        self.stream_buffers = _BoundedBuffers(self)
        self.exceeded_window = False
        self._abandoned = trio.Event()
        self._is_abandoning = False

    async def _write_frame(self, data: bytes) -> None:
        with trio.move_on_after(FRAME_WRITE_TIMEOUT_S, shield=True) as scope:
            await super()._write_frame(data)
        if scope.cancelled_caught:
            self.abandon()
            raise IOException(f"the peer took nothing for {FRAME_WRITE_TIMEOUT_S:g} s")

    def abandon(self) -> None:
        """Close the connection soon, from code that can't wait."""
        self._abandoned.set()

    async def _measure_rtt_loop(self) -> None:
        missed = 0
        while missed < MAX_MISSED_PINGS and not self.event_shutting_down.is_set():
            with trio.move_on_after(PING_INTERVAL_S):
                await self._abandoned.wait()
                break
            self._ping_id = (self._ping_id + 1) % 2**32
            self._ping_event = trio.Event()
            self._ping_sent_time = trio.current_time()
            try:
                await self._write_frame(struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_PING, FLAG_SYN, 0, self._ping_id))
            except LIBRARY_FAILURES:
                break
            with trio.move_on_after(PING_TIMEOUT_S) as timeout:
                await self._ping_event.wait()
            missed = missed + 1 if timeout.cancelled_caught else 0
        if not self.event_shutting_down.is_set():
            logger.info("connection to %s is given up: %s", self.peer_id, self._reason())
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT_S):
                await self._cleanup_on_error()

    def _reason(self) -> str:
        if self.exceeded_window:
            return "it sent more than its window"
        return "it takes no data" if self._abandoned.is_set() else "it doesn't answer pings"


class _Upgrader(TransportUpgrader):
    """Makes `RepairedYamux` connections: the library names its own class where the muxer is chosen."""

    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        try:
            await self.muxer_multistream.select_transport(conn)
        except (MultiselectError, MultiselectClientError) as error:
            raise MuxerUpgradeFailure("the peer doesn't speak yamux") from error
        return RepairedYamux(conn, peer_id, is_initiator=conn.is_initiator)


class RepairedSwarm(Swarm):
    """Connections: dials without delay or memory of failures [4, 5], gives inbound slots back [18], closes fast [15]."""

    async def upgrade_inbound_raw_conn(self, raw_conn: IRawConnection, maddr: Multiaddr) -> IMuxedConn:
        """Accept a connection, and hold the caller's slot exactly as long as the connection lives."""
        connection = await super().upgrade_inbound_raw_conn(raw_conn, maddr)
        assert isinstance(connection, RepairedYamux)
        await connection.event_closed.wait()
        raise SwarmException("connection closed")

    async def dial(self, address: Multiaddr, peer: ID) -> None:
        """Connect, or raise `SwarmException`. `dial_peer` would wait 250 ms and refuse for 60 s after a failure."""
        await self._dial_addr_single_attempt(address, peer)

    def live_connections(self, peer: ID) -> list[SwarmConn]:
        """Usable connections to a peer, oldest first (after a simultaneous dial there are two)."""
        return [
            connection
            for connection in self.get_connections(peer)
            if isinstance(connection, SwarmConn)
            and not connection.is_closed
            and not connection.muxed_conn.is_closed
            and isinstance(connection.muxed_conn, RepairedYamux)
            and not connection.muxed_conn.event_shutting_down.is_set()
        ]

    async def close_all(self, connections: Sequence[INetConn], timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Close connections concurrently; what doesn't close in time is cut."""
        with trio.move_on_after(timeout_s, shield=True) as scope:
            async with trio.open_nursery() as nursery:
                for connection in connections:
                    nursery.start_soon(self._close_connection_async, connection)
        if scope.cancelled_caught:
            for connection in connections:
                self.remove_conn(connection)  # type: ignore[arg-type]  # the library annotates too narrowly
                muxed = connection.muxed_conn
                if isinstance(muxed, RepairedYamux):
                    muxed.event_shutting_down.set()
                    muxed.event_closed.set()


class _ShortLineCommunicator(MultiselectCommunicator):
    """Protocol negotiation with bounded lines [26]."""

    async def read(self) -> str:
        try:
            line = await read_varint_prefixed_bytes_limited(self.read_writer, MAX_PROTOCOL_LINE)
        except (ParseError, IOException, ValueError) as error:
            raise MultiselectCommunicatorError("the peer's negotiation is malformed") from error
        if line[-1:] != b"\n":
            raise MultiselectCommunicatorError("a line of the peer's negotiation doesn't end")
        return line[:-1].decode("utf-8", "replace")


Complaint = Callable[[ID, str], None]
"""Called with a peer and what it did wrong."""


class GuardedHost(BasicHost):
    """A host whose stream handlers can't end it [1, 2], that counts streams, and doesn't identify its peers.

    Identify is still answered (other implementations need it); asking costs a stream per connection and tells nothing
    that we use.
    """

    _published_addresses: tuple[Multiaddr, ...] = ()

    def __init__(self, swarm: RepairedSwarm, complain: Complaint) -> None:
        super().__init__(swarm, disable_identify_address_discovery=True)
        self.swarm = swarm
        self.complain = complain
        self._inbound_streams: dict[IMuxedConn, int] = {}

    def publish_addresses(self, addresses: Sequence[Multiaddr]) -> None:
        """Fix what identify and gossip tell about our addresses; the library recomputes it for every message."""
        self._published_addresses = tuple(addresses)

    def get_addrs(self) -> list[Multiaddr]:
        return list(self._published_addresses)

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        return

    async def _push_identify_to_all_peers(self) -> None:
        return

    async def open_stream(self, connection: SwarmConn, protocols: Sequence[TProtocol]) -> INetStream:
        """Open a stream on a connection.

        Raises:
            StreamFailure: the peer speaks none of the protocols.
            SwarmException: the stream broke or the peer was too slow.
        """
        peer = connection.muxed_conn.peer_id
        negotiated = False
        try:
            with trio.fail_after(NEGOTIATION_TIMEOUT_S):
                stream = await connection.new_stream()
                try:
                    protocol = await self.multiselect_client.select_one_of(
                        protocols, _ShortLineCommunicator(stream), NEGOTIATION_TIMEOUT_S
                    )
                    negotiated = True
                finally:
                    if not negotiated:
                        await reset_stream(stream)
        except trio.TooSlowError as error:
            raise SwarmException(f"{peer} didn't negotiate {protocols[0]} in {NEGOTIATION_TIMEOUT_S} s") from error
        except MultiselectClientError as error:
            if connection.muxed_conn.is_closed or isinstance(error.__cause__, MultiselectCommunicatorError):
                raise SwarmException(f"the stream to {peer} broke: {error}") from error
            raise StreamFailure(f"{peer} doesn't speak {protocols[0]}") from error
        except LIBRARY_FAILURES as error:
            raise SwarmException(f"the stream to {peer} broke: {error}") from error
        stream.set_protocol(protocol)
        return stream

    async def new_stream(self, peer_id: ID, protocol_ids: Sequence[TProtocol]) -> INetStream:
        """Open a stream for gossip, only to a connected peer; failures that may pass can be retried [24]."""
        connections = self.swarm.live_connections(peer_id)
        if not connections:
            raise SwarmException(f"{peer_id} is not connected")
        return await self.open_stream(connections[-1], protocol_ids)

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        connection = net_stream.muxed_conn
        peer = connection.peer_id
        count = self._inbound_streams.get(connection, 0)
        if count >= MAX_INBOUND_STREAMS:
            self.complain(peer, f"more than {MAX_INBOUND_STREAMS} open streams")
            await reset_stream(net_stream)
            return
        self._inbound_streams[connection] = count + 1
        try:
            await self._negotiate_and_handle(net_stream)
        except STREAM_FAILURES as error:
            logger.debug("stream of %s ended: %r", peer, error)
            await reset_stream(net_stream)
        except Exception as error:  # the daemon's edge: bytes of a peer met a bug of the library or of ours
            self.complain(peer, f"malformed data on {net_stream.get_protocol()}: {type(error).__name__}")
            logger.info("stream handler failed on data of %s", peer, exc_info=True)
            await reset_stream(net_stream)
        finally:
            left = self._inbound_streams[connection] - 1
            if left:
                self._inbound_streams[connection] = left
            else:
                del self._inbound_streams[connection]

    async def _negotiate_and_handle(self, stream: INetStream) -> None:
        protocol, handler = await self.multiselect.negotiate(_ShortLineCommunicator(stream), NEGOTIATION_TIMEOUT_S)
        if protocol is None or handler is None:
            await reset_stream(stream)
            return
        stream.set_protocol(protocol)
        await handler(stream)


class _RoomyQueues(dict[ID, RpcQueue]):
    """Enlarges the outbound queue of each peer as the library registers it, and caps its RPCs to one frame [8]."""

    def __setitem__(self, peer: ID, queue: RpcQueue) -> None:
        queue._queue.max_size = MAX_QUEUED_RPCS
        queue.max_message_size = MAX_GOSSIP_RPC_BYTES
        super().__setitem__(peer, queue)


class RepairedGossipSub(GossipSub):
    """GossipSub that tells when its mesh grows and keeps no second copy of messages to detect equivocation."""

    def __init__(self) -> None:
        # Adaptive mode stretches the heartbeat to 30-60 s [12]; the spam limit drops our own publishes [9]; version
        # 1.1 because 1.2 loses more in a burst [8]; we score peers ourselves.
        super().__init__(
            protocols=[PROTOCOL_ID_V11],
            degree=6,
            degree_low=4,
            degree_high=10,
            heartbeat_interval=1,
            prune_back_off=10,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
        )
        self.mesh_grew = trio.Event()

    def _notify_mesh_peer_added(self, peer_id: ID, topic: str) -> None:
        super()._notify_mesh_peer_added(peer_id, topic)
        self.mesh_grew.set()
        self.mesh_grew = trio.Event()

    def _check_equivocation(self, msg: rpc_pb2.Message) -> bool:
        return True


class RepairedPubsub(Pubsub):
    """Pubsub that hands each new message to a function instead of a queue of 32 [8].

    Args:
        deliver: called once for each message not seen before, with (forwarder, message); raises `ValidationError` to
            stop the message from being forwarded.
    """

    def __init__(
        self,
        host: GuardedHost,
        router: RepairedGossipSub,
        topics: Sequence[str],
        deliver: Callable[[ID, rpc_pb2.Message], None],
    ) -> None:
        super().__init__(
            host,
            router,
            max_subscriptions_per_rpc=4 * len(topics) + 16,
            max_subscriptions_per_peer=len(topics) + 1,
            max_inbound_rpc_size=MAX_INBOUND_RPC_BYTES,
            allowed_topics=frozenset(topics),
        )
        self.peer_queues = _RoomyQueues()
        self.counter = time.time_ns()
        self._deliver = deliver
        self._complain = host.complain
        self._write_locks: dict[INetStream, trio.Lock] = {}

    async def validate_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        if msg_forwarder != self.my_id:
            self._deliver(msg_forwarder, msg)

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        return

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        try:
            await super().push_msg(msg_forwarder, msg)
        except (BaseLibp2pError, ValueError, TypeError, LookupError) as error:
            self._complain(msg_forwarder, f"malformed gossip: {type(error).__name__}")

    async def write_msg(self, stream: INetStream, rpc_msg: rpc_pb2.RPC) -> bool:
        """Write one RPC, alone on its stream [3], without the address record [23]."""
        rpc_msg.ClearField("senderRecord")
        lock = self._write_locks.setdefault(stream, trio.Lock())
        try:
            async with lock:
                await write_fully(stream, encode_varint_prefixed(rpc_msg.SerializeToString()))
            return True
        except LIBRARY_FAILURES as failure:
            logger.debug("gossip to %s failed: %r", stream.muxed_conn.peer_id, failure)
            await reset_stream(stream)
            self._handle_dead_peer(stream.muxed_conn.peer_id)
            return False
        finally:
            if not lock.locked():
                self._write_locks.pop(stream, None)


async def write_fully(stream: INetStream, data: bytes) -> None:
    """Write all bytes, waiting for the reader up to `WINDOW_PATIENCE_S` without progress [7]. One writer at a time."""
    muxed = getattr(stream, "muxed_stream", None)
    assert isinstance(muxed, YamuxStream)
    position = 0
    while position < len(data):
        deadline = trio.current_time() + WINDOW_PATIENCE_S
        while muxed.send_window <= 0 and not muxed.send_closed and not muxed.closed:
            if trio.current_time() > deadline:
                raise StreamError(f"the peer read nothing for {WINDOW_PATIENCE_S:g} s")
            await trio.sleep(WINDOW_POLL_S)
        size = min(max(muxed.send_window, 1), len(data) - position)
        await stream.write(data if size == len(data) else data[position : position + size])
        position += size


async def read_exactly(stream: INetStream, size: int) -> bytes:
    """Read exactly `size` bytes, however small the pieces [6].

    Raises:
        StreamEOF: the stream ended before the first byte.
        StreamError: the stream broke, or ended in the middle.
    """
    buffer = bytearray()
    while len(buffer) < size:
        try:
            piece = await stream.read(min(size - len(buffer), READ_SIZE))
        except StreamEOF as error:
            if not buffer:
                raise
            raise StreamError(f"the stream ended after {len(buffer)} of {size} bytes") from error
        if not piece:
            raise StreamError(f"the stream ended after {len(buffer)} of {size} bytes")
        buffer += piece
    return bytes(buffer)


async def reset_stream(stream: INetStream) -> None:
    """Reset a stream, also while being cancelled; never raises for a broken one."""
    with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
        try:
            await stream.reset()
        except LIBRARY_FAILURES as failure:
            logger.debug("reset of a stream failed: %r", failure)


def check_port_is_free(host: str, port: int) -> None:
    """Raise `OSError` when another process listens there: the library binds with SO_REUSEPORT [25]."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


@contextmanager
def unwrapped_errors() -> Iterator[None]:
    """Raise the one exception inside nested exception groups, so that callers can catch it by its type."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, BaseExceptionGroup):
            raise
        raise error from None


def build_host(identity_seed: bytes, max_connections: int, complain: Complaint) -> GuardedHost:
    """Make a host for TCP + Noise + yamux only; the library's default also offers plaintext."""
    silence_library()
    key_pair = create_new_key_pair(identity_seed)
    peer = ID.from_pubkey(key_pair.public_key)
    peerstore = PeerStore()
    peerstore.add_key_pair(peer, key_pair)
    noise = NoiseTransport(key_pair, noise_privkey=create_new_noise_key_pair().private_key)
    limits = ConnectionConfig(
        max_connections=max_connections,
        min_connections=0,  # both watermarks at 0: the library never dials by itself
        low_watermark=0,
        high_watermark=max_connections,
        max_connections_per_peer=4,
        inbound_upgrade_timeout=NEGOTIATION_TIMEOUT_S,
        outbound_upgrade_timeout=NEGOTIATION_TIMEOUT_S,
    )
    swarm = RepairedSwarm(
        peer,
        peerstore,
        _Upgrader({TProtocol(NOISE_PROTOCOL_ID): noise}, {TProtocol(YAMUX_PROTOCOL_ID): Yamux}, NEGOTIATION_TIMEOUT_S),
        transports=[TCP()],
        retry_config=RetryConfig(max_retries=0),
        connection_config=limits,
    )
    return GuardedHost(swarm, complain)
