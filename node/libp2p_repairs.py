"""What this project does to connections and streams of py-libp2p 0.8.1, so that a peer can't harm the node.

Each class replaces one part of the library by subclassing it; nothing is patched globally, so an unrepaired host can
run beside a repaired one (the tests do that to show each bug). What belongs here: work-arounds, each with its reason;
those of gossip are in `libp2p_gossip`. What doesn't: framing, sessions, redialling, scores. Numbers 1-17 are those of
the traps we knew, the others were found later. When the library is upgraded, these two modules are to be reviewed.

    [1]  an exception in an inbound stream handler ends the whole host      -> `GuardedHost._swarm_stream_handler`
    [2]  a garbage protobuf on /meshsub, or any task that fails, likewise   -> the same, and `ServiceManager`
    [4]  a dial always waits 250 ms  [5] a failed dial bars the peer 60 s   -> `RepairedSwarm.dial` (avoids both)
    [6]  `read_exactly` gives up after 100 short reads                      -> `read_exactly` here
    [7]  a write resets the stream when the reader stalls for 5 s           -> `write_fully` here
    [14] limits on connections need the watermarks too                      -> `build_host`
    [15] connections are closed one after the other, 0.2 s each             -> `RepairedSwarm.close_all`
    [17] errors are logged and swallowed                                    -> deadlines on every call
    [18] an inbound slot is given back only when the host stops: after
         `max_connections` accepted connections, ever, no more are accepted -> `RepairedSwarm.upgrade_inbound_raw_conn`
    [19] a write cancelled half-way, or between encrypting and sending,
         desynchronises Noise and kills the connection                      -> `RepairedYamux._write_frame`
    [20] the receive window is not enforced: a peer can fill our memory     -> `_BoundedBuffers`
    [21] a frozen peer is noticed only by a write that fills TCP's buffers  -> `RepairedYamux._measure_rtt_loop`
    [24] one failed protocol negotiation bars a peer from gossip for good   -> `GuardedHost.new_stream`
    [25] SO_REUSEPORT: a second node on the same port starts without error
         and steals half of the connections                                 -> `check_port_is_free`
    [26] negotiation reads a line of any length                             -> `_ShortLineCommunicator`
    [29] with fewer connections than half the maximum, and none required,
         it dials any address a peer has told it, on every disconnect       -> `_NoAutoConnector`
    [30] a window update is sent for each read, however small               -> `RepairedYamux._withhold`
"""

import logging
import socket
import struct
from collections.abc import Callable, Sequence
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
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectCommunicatorError, MultiselectError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_SYN,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL_ID
from libp2p.tools.anyio_service import Service
from libp2p.tools.anyio_service.api import AsyncFn, InternalManagerAPI, ManagerAPI
from libp2p.tools.anyio_service.stats import Stats, TaskStats
from libp2p.transport.exceptions import MuxerUpgradeFailure
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

logger = logging.getLogger(__name__)

LIBRARY_FAILURES = (BaseLibp2pError, trio.BrokenResourceError, trio.ClosedResourceError, MuxedConnUnavailable)
"""What an operation on a stream or connection raises when the other side or the wire fails."""

STREAM_FAILURES = (StreamError, IOException, MultiselectError, MultiselectClientError)
"""What an inbound stream raises in ordinary life: the peer went away or doesn't speak the protocol."""

NEGOTIATION_TIMEOUT_S = 15
"""Security, muxer or protocol negotiation: a few round trips; longer is a peer that holds a slot."""

MAX_HANDSHAKES = 64
"""Inbound connections that may negotiate beside the established ones: idle sockets must not hold every slot."""

FRAME_WRITE_TIMEOUT_S = 10.0
"""A frame of at most 64 KiB that TCP doesn't take in this time goes to a frozen peer: the connection is closed."""

WINDOW_PATIENCE_S = 30.0
"""How long a stream may wait for its reader. The library's 5 s kill transfers to a node that is busy verifying."""

WINDOW_POLL_S = 0.005
"""Yamux has no event for an opened window; the library itself polls every 10 ms."""

READ_SIZE = 256 * 1024
"""Most bytes asked of a stream at once: yamux's initial window."""

YAMUX_HEADER_BYTES = struct.calcsize(YAMUX_HEADER_FORMAT)

WINDOW_UPDATE_BYTES = 64 * 1024
"""Window given back at once, a quarter of the smallest one: the library sends an update for each read [30], which
for votes of 150 bytes made a fifth of a busy node's work."""

PING_INTERVAL_S = 10.0
PING_TIMEOUT_S = 15.0
MAX_MISSED_PINGS = 2
"""A frozen peer is dropped after 10 + 2 * 15 s at most: agreement doesn't wait for it. Impatience feeds on itself: with
4 s, twenty nodes on two cores spent their time on greeting again the peers that were too busy to answer a ping."""

WINDOW_SLACK = 128 * 1024
"""Bytes a peer may exceed its window by: updates and data cross on the wire."""

MAX_UNREAD_BYTES = 64 * 1024 * 1024
"""Bytes of one connection that nobody has read; a window grows to 16 MiB, and honest nodes keep two of them busy."""

MAX_INBOUND_STREAMS = 128
"""Open inbound streams of one connection. An honest node needs pushes + 4 per request protocol + gossip, below 64."""

MAX_PROTOCOL_LINE = 1024
"""Bytes of one line of protocol negotiation; protocol ids are below 64."""

DAEMON_RESTART_S = 1.0
"""Pause before a failed background loop (the gossip heartbeat) starts again."""

CLOSE_TIMEOUT_S = 0.6
"""All connections close concurrently; the library sleeps 0.2 s in each for its streams to notice."""


CLEANUP_TIMEOUT_S = 5.0
"""Bound on tearing down a dead connection, which sends nothing any more."""


def shielded(timeout_s: float) -> trio.CancelScope:
    """A scope that outer cancellation can't reach, for at most that long."""
    return trio.CancelScope(deadline=trio.current_time() + timeout_s, shield=True)


def silence_library() -> None:
    """Let warnings of libp2p through to the root logger, but none of those that every lost peer produces."""
    library = logging.getLogger("libp2p")
    library.setLevel(logging.WARNING)
    library.propagate = True
    for name in ("host", "network", "protocol_muxer", "pubsub", "security", "stream_muxer", "transport"):
        logging.getLogger(f"libp2p.{name}").setLevel(logging.CRITICAL)
    logging.getLogger("libp2p.network.auto_connector").setLevel(logging.CRITICAL)


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
        """Whether `run` has begun."""
        return self._started.is_set()

    @property
    def is_running(self) -> bool:
        """Whether tasks can be started."""
        return self._nursery is not None

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    @property
    def is_finished(self) -> bool:
        """Whether `run` has ended."""
        return self._finished.is_set()

    @property
    def did_error(self) -> bool:
        """Never: a failed task is logged."""
        return False

    @property
    def stats(self) -> Stats:
        """Number of running tasks."""
        running = len(self._nursery.child_tasks) if self._nursery else 0
        return Stats(tasks=TaskStats(total_count=running, finished_count=0))

    async def wait_started(self) -> None:
        """Wait until tasks can be started."""
        await self._started.wait()

    async def wait_finished(self) -> None:
        """Wait until all tasks have ended."""
        await self._finished.wait()

    def cancel(self) -> None:
        """Cancel all tasks."""
        self._cancelled = True
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def stop(self) -> None:
        """Cancel all tasks and wait for their end."""
        self.cancel()
        await self._finished.wait()

    def run_task(self, async_fn: AsyncFn, *args: Any, daemon: bool = False, name: str | None = None) -> None:
        """Start a task."""
        if self._nursery is None:
            raise SwarmException(f"{self._service} is not running")
        self._nursery.start_soon(self._guarded, async_fn, args, daemon, name=name or async_fn)

    def run_daemon_task(self, async_fn: AsyncFn, *args: Any, name: str | None = None) -> None:
        """Start a task that is started again when it fails."""
        self.run_task(async_fn, *args, daemon=True, name=name)

    def run_child_service(self, *_args: object, **_options: object) -> ManagerAPI:
        """No service of this stack has children."""
        raise NotImplementedError

    def run_daemon_child_service(self, *_args: object, **_options: object) -> ManagerAPI:
        """No service of this stack has children."""
        raise NotImplementedError

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
        unread = sum(map(len, self._connection.stream_buffers.values()))
        if len(self) + len(data) > window + WINDOW_SLACK or unread > MAX_UNREAD_BYTES:
            self._connection.exceeded_window = True
            self._connection.abandon()
            raise WindowExceeded(f"{len(self)} bytes unread on a stream, {unread} on its connection")
        super().extend(data)


class _BoundedBuffers(dict[int, bytearray]):
    def __init__(self, connection: "RepairedYamux") -> None:
        super().__init__()
        self._connection = connection

    def __setitem__(self, stream_id: int, buffer: bytearray) -> None:
        super().__setitem__(stream_id, _BoundedBuffer(self._connection, stream_id))


class RepairedYamux(Yamux):
    """Yamux with atomic writes [19], bounded buffers [20], a check that the peer is alive [21], rarer updates [30]."""

    def __init__(self, secured_conn: ISecureConn, peer_id: ID, is_initiator: bool) -> None:
        super().__init__(secured_conn, peer_id, is_initiator=is_initiator)
        self.stream_buffers = _BoundedBuffers(self)
        self.exceeded_window = False
        self._abandoned = trio.Event()
        self._is_abandoning = False
        self._withheld: dict[int, int] = {}

    async def _write_frame(self, data: bytes) -> None:
        if len(data) == YAMUX_HEADER_BYTES:
            version, kind, flags, stream, value = struct.unpack(YAMUX_HEADER_FORMAT, data)
            if kind == TYPE_WINDOW_UPDATE and not flags:
                increment = self._withhold(stream, value)
                if not increment:
                    return
                data = struct.pack(YAMUX_HEADER_FORMAT, version, kind, flags, stream, increment)
        with shielded(FRAME_WRITE_TIMEOUT_S) as scope:
            await super()._write_frame(data)
        if scope.cancelled_caught:
            self.abandon()
            raise IOException(f"the peer took nothing for {FRAME_WRITE_TIMEOUT_S:g} s")

    def _withhold(self, stream: int, increment: int) -> int:
        """Add up the window that a stream gives back; the sum once it is worth a frame, else 0."""
        if len(self._withheld) > 2 * MAX_INBOUND_STREAMS:
            self._withheld = {known: held for known, held in self._withheld.items() if known in self.streams}
        total = self._withheld.pop(stream, 0) + increment
        if total >= WINDOW_UPDATE_BYTES:
            return total
        self._withheld[stream] = total
        return 0

    def abandon(self) -> None:
        """Close the connection soon, from code that can't wait."""
        self._abandoned.set()

    async def _measure_rtt_loop(self) -> None:
        missed = 0
        while missed < MAX_MISSED_PINGS and not self.event_shutting_down.is_set():
            with trio.move_on_after(0 if missed else PING_INTERVAL_S):
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
            with shielded(CLEANUP_TIMEOUT_S):
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


class _NoAutoConnector(AutoConnector):
    """Dials nobody: whom to dial is decided by the node, not by addresses that peers put into the peerstore [29]."""

    async def maybe_connect(self) -> None:
        return


class RepairedSwarm(Swarm):
    """Connections: dials at once [4, 5], gives inbound slots back [18], closes fast [15]."""

    def _init_connection_management(self) -> None:
        super()._init_connection_management()
        self.auto_connector = _NoAutoConnector(self)

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
        with shielded(timeout_s) as scope:
            async with trio.open_nursery() as nursery:
                for connection in connections:
                    nursery.start_soon(self._close_connection_async, connection)
        if scope.cancelled_caught:
            for connection in connections:
                self.remove_conn(connection)  # type: ignore[arg-type]  # the library annotates too narrowly
                muxed = connection.muxed_conn
                if isinstance(muxed, RepairedYamux):
                    muxed.event_closed.set()
                    with shielded(CLOSE_TIMEOUT_S):
                        await muxed.secured_conn.close()


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
        """Addresses told to others."""
        return list(self._published_addresses)

    def _schedule_identify(self, *_args: object, **_options: object) -> None:
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
    with shielded(CLOSE_TIMEOUT_S):
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
    swarm._inbound_limiter.total_tokens = max_connections + MAX_HANDSHAKES
    return GuardedHost(swarm, complain)
