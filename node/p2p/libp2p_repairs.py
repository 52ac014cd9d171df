"""What this project does to hosts and services of py-libp2p 0.8.1, so that a peer can't harm the node.

What belongs here: the host, its stream handlers, protocol negotiation, background services, and how they are put
together. Connections and streams are in `libp2p_connections`, which also says what the numbers are; gossip is in
`libp2p_gossip`.

    [1]  an exception in an inbound stream handler ends the whole host      -> `GuardedHost._swarm_stream_handler`
    [2]  a garbage protobuf on /meshsub, or any task that fails, likewise   -> the same, and `ServiceManager`
    [14] limits on connections need the watermarks too                      -> `build_host`
    [24] one failed protocol negotiation bars a peer from gossip for good   -> `GuardedHost.new_stream`
    [26] negotiation reads a line of any length                             -> `_ShortLineCommunicator`
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.abc import IMuxedConn, INetConn, INetStream, INetwork, INotifee
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import ParseError
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.io.exceptions import IOException
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectCommunicatorError, MultiselectError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import Service
from libp2p.tools.anyio_service.api import AsyncFn, InternalManagerAPI, ManagerAPI
from libp2p.tools.anyio_service.stats import Stats, TaskStats
from libp2p.transport.tcp.tcp import TCP
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from .libp2p_connections import LIBRARY_FAILURES, MAX_INBOUND_STREAMS, Gate, RepairedSwarm, Upgrader, reset_stream
from .memory import Memory

logger = logging.getLogger(__name__)

STREAM_FAILURES = (StreamError, IOException, MultiselectError, MultiselectClientError)
"""What an inbound stream raises in ordinary life: the peer went away or doesn't speak the protocol."""

NEGOTIATION_TIMEOUT_S = 15
"""Security, muxer or protocol negotiation: a few round trips; longer is a peer that holds a slot."""

MAX_HANDSHAKES = 64
"""Inbound connections that may negotiate beside the established ones: idle sockets must not hold every slot."""

MAX_PROTOCOL_LINE = 1024
"""Bytes of one line of protocol negotiation; protocol ids are below 64."""

MAX_STREAMS_PER_PROTOCOL = 8
"""Streams of one protocol that a peer may have open on one connection: a node asks on four, and those that it gave up
may still be served. Each may cost the memory of a frame or an answer."""

DAEMON_RESTART_S = 1.0
"""Pause before a failed background loop (the gossip heartbeat) starts again."""


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


class ConnectionWatcher(INotifee):
    """Calls functions when the library opens and closes connections."""

    def __init__(self, opened: Callable[[INetConn], None], closed: Callable[[INetConn], None]) -> None:
        self._opened = opened
        self._closed = closed

    async def connected(self, _network: INetwork, conn: INetConn) -> None:
        """A connection has been opened."""
        self._opened(conn)

    async def disconnected(self, _network: INetwork, conn: INetConn) -> None:
        """A connection has ended."""
        self._closed(conn)

    async def opened_stream(self, *_args: object) -> None:
        """Not needed."""

    async def closed_stream(self, *_args: object) -> None:
        """Not needed."""

    async def listen(self, *_args: object) -> None:
        """Not needed."""

    async def listen_close(self, *_args: object) -> None:
        """Not needed."""


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
        self._serving: dict[tuple[IMuxedConn, TProtocol], set[trio.CancelScope]] = {}
        self._muted: set[IMuxedConn] = set()

    def mute(self, connection: IMuxedConn) -> None:
        """Serve nothing on a connection any more; it is to be closed soon."""
        self._muted = {known for known in self._muted if not known.is_closed} | {connection}

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
        if connection in self._muted:
            await reset_stream(net_stream)
            return
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
        kind = (stream.muxed_conn, protocol)
        serving = self._serving.setdefault(kind, set())
        if len(serving) >= MAX_STREAMS_PER_PROTOCOL:
            await reset_stream(stream)
            return
        scope = trio.CancelScope()
        serving.add(scope)
        try:
            with scope:
                await handler(stream)
        finally:
            serving.remove(scope)
            if not serving:
                del self._serving[kind]

    def connection_closed(self, connection: IMuxedConn) -> None:
        """End what serves a connection that is gone: it may be waiting, for hours where a peer has sent too much."""
        for (served, _), scopes in self._serving.items():
            if served is connection:
                for scope in scopes:
                    scope.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """What a host is made of.

    Attributes:
        identity_seed: 32-byte Ed25519 seed of the node key.
        max_connections: in all, besides those that negotiate.
        gate: which inbound connections are taken.
        network_key: 64 hexadecimal digits that all nodes of a private network share; None for an open one.
        memory: what all connections hold together; None for no bound.
    """

    identity_seed: bytes
    max_connections: int
    gate: Gate
    network_key: str | None = None
    memory: Memory | None = None


def build_host(settings: HostSettings, complain: Complaint) -> GuardedHost:
    """Make a host for TCP + Noise + yamux only; the library's default also offers plaintext."""
    silence_library()
    key_pair = create_new_key_pair(settings.identity_seed)
    peer = ID.from_pubkey(key_pair.public_key)
    peerstore = PeerStore()
    peerstore.add_key_pair(peer, key_pair)
    noise = NoiseTransport(key_pair, noise_privkey=create_new_noise_key_pair().private_key)
    sockets = settings.max_connections + MAX_HANDSHAKES  # the library stops here, without asking who comes
    limits = ConnectionConfig(
        max_connections=sockets,
        min_connections=0,  # both watermarks at 0: the library never dials by itself
        low_watermark=0,
        high_watermark=sockets,
        max_connections_per_peer=4,
        inbound_upgrade_timeout=NEGOTIATION_TIMEOUT_S,
        outbound_upgrade_timeout=NEGOTIATION_TIMEOUT_S,
    )
    upgrader = Upgrader(
        {TProtocol(NOISE_PROTOCOL_ID): noise}, {TProtocol(YAMUX_PROTOCOL_ID): Yamux}, NEGOTIATION_TIMEOUT_S
    )
    upgrader.network_key = settings.network_key
    upgrader.memory = settings.memory
    swarm = RepairedSwarm(
        peer,
        peerstore,
        upgrader,
        transports=[TCP()],
        retry_config=RetryConfig(max_retries=0),
        connection_config=limits,
    )
    swarm.gate = settings.gate
    swarm._inbound_limiter.total_tokens = sockets
    return GuardedHost(swarm, complain)
