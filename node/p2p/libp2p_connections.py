"""What this project does to connections and streams of py-libp2p 0.8.1, so that a peer can't harm the node.

Each class replaces one part of the library by subclassing it; nothing is patched globally, so an unrepaired host can
run beside a repaired one (the tests do that to show each bug). What belongs here: sockets, yamux, the swarm, reading
and writing. The host, negotiation and services are in `libp2p_repairs`, gossip is in `libp2p_gossip`; framing,
sessions, redialling and scores are ours and elsewhere. Numbers 1-17 are those of the traps we knew, the others were
found later. When the library is upgraded, these three modules are to be reviewed.

    [4]  a dial always waits 250 ms  [5] a failed dial bars the peer 60 s   -> `RepairedSwarm.dial` (avoids both)
    [6]  `read_exactly` gives up after 100 short reads                      -> `read_exactly` here
    [7]  a write resets the stream when the reader stalls for 5 s           -> `write_fully` here
    [15] connections are closed one after the other, 0.2 s each             -> `RepairedSwarm.close_all`
    [17] errors are logged and swallowed                                    -> deadlines on every call
    [18] an inbound slot is given back only when the host stops: after
         `max_connections` accepted connections, ever, no more are accepted -> `RepairedSwarm.upgrade_inbound_raw_conn`
    [19] a write cancelled half-way, or between encrypting and sending,
         desynchronises Noise and kills the connection                      -> `RepairedYamux._write_frame`
    [20] the receive window is not enforced: a peer can fill our memory     -> `_BoundedBuffers`
    [21] a frozen peer is noticed only by a write that fills TCP's buffers  -> `RepairedYamux._measure_rtt_loop`
    [25] SO_REUSEPORT: a second node on the same port starts without error
         and steals half of the connections                                 -> `check_port_is_free`
    [29] with fewer connections than half the maximum, and none required,
         it dials any address a peer has told it, on every disconnect       -> `_NoAutoConnector`
    [30] a window update is sent for each read, however small               -> `RepairedYamux._withhold`
    [31] one address may hold every slot and every handshake                -> `Gate`
    [32] a private network's nonce that comes in two pieces is an error     -> `_WholeNonce`
    [34] a message's length in negotiation is the buffer that is asked of
         the system: a stranger's first ten bytes raise MemoryError         -> `_BoundedReads`
    [36] no bound on what all connections hold together                     -> `RepairedYamux.hold`
"""

import logging
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.abc import IMuxedConn, INetConn, INetStream, IRawConnection, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import IOException
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectError
from libp2p.security.pnet.psk_conn import PskConn
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_SYN,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)
from libp2p.transport.exceptions import MuxerUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from .memory import Memory
from .rate_limits import Rate, RateLimits

logger = logging.getLogger(__name__)

LIBRARY_FAILURES = (BaseLibp2pError, trio.BrokenResourceError, trio.ClosedResourceError, MuxedConnUnavailable)
"""What an operation on a stream or connection raises when the other side or the wire fails."""

FRAME_WRITE_TIMEOUT_S = 10.0
"""A frame of at most 64 KiB that TCP doesn't take in this time goes to a frozen peer: the connection is closed."""

MAX_READ_BYTES = 64 * 1024
"""Asked of a socket at a time: a frame of Noise is no larger."""

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

COPIES = 2
"""What is written is held twice: as it was made, and with its length in front."""

MAX_UNREAD_BYTES = 64 * 1024 * 1024
"""Bytes of one connection that nobody has read; a window grows to 16 MiB, and honest nodes keep two of them busy."""

ACCEPTS_PER_S = 5.0
"""Connections of one address taken a second in the long run: each costs a handshake of some milliseconds."""

ACCEPTS_BURST = 64
"""And at once: the machines behind one address may all start at the same moment."""

MAX_HANDSHAKES_PER_ADDRESS = 32
"""Connections of one address that negotiate at the same time."""

MAX_RESERVED_PER_ADDRESS = 4
"""Connections of an address with which it may go beyond the sockets of all: nobody fills those kept free alone."""

_ACCEPT = "accept"

MAX_INBOUND_STREAMS = 128
"""Open inbound streams of one connection. An honest node needs pushes + 4 per request protocol + gossip, below 64."""

CLOSE_TIMEOUT_S = 0.6
"""All connections close concurrently; the library sleeps 0.2 s in each for its streams to notice."""


CLEANUP_TIMEOUT_S = 5.0
"""Bound on tearing down a dead connection, which sends nothing any more."""


def shielded(timeout_s: float) -> trio.CancelScope:
    """A scope that outer cancellation can't reach, for at most that long."""
    return trio.CancelScope(deadline=trio.current_time() + timeout_s, shield=True)


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
        self._connection.hold(0)


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
        self.memory: Memory | None = None
        self._passing_bytes = 0
        self._was_cut = False
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

    @property
    def peer(self) -> str:
        """Whose connection it is."""
        return self.peer_id.to_base58()

    @property
    def held_bytes(self) -> int:
        """Bytes that nobody has read, and those of frames on their way in and out."""
        return sum(map(len, self.stream_buffers.values())) + self._passing_bytes

    def hold(self, size_bytes: int) -> None:
        """A frame holds so much more memory, or less [36].

        Raises:
            MuxedConnUnavailable: the connection has been cut, or is just now, since peers hold too much.
        """
        self._passing_bytes += size_bytes
        if self.memory is not None and size_bytes >= 0:
            if not self._was_cut:
                self.memory.note(self)
            if self._was_cut:
                self._passing_bytes -= size_bytes
                raise MuxedConnUnavailable("the connection holds too much memory")

    def cut(self) -> None:
        """Close the connection soon: it holds too much memory."""
        self._was_cut = True
        self.abandon()

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
        if self._was_cut:
            return "its peer holds too much memory"
        return "it takes no data" if self._abandoned.is_set() else "it doesn't answer pings"


class _BoundedReads:
    """A raw connection that asks the system for no more at a time than it ever needs [34]."""

    def __init__(self, connection: IRawConnection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def read(self, n: int | None = None) -> bytes:
        """Read up to `n` bytes, which may be any number that a stranger named."""
        return await self._connection.read(n if n is None else min(n, MAX_READ_BYTES))


class _WholeNonce:
    """A raw connection whose first read is a whole nonce, however it comes [32]; the rest is the connection's."""

    def __init__(self, connection: IRawConnection) -> None:
        self._connection = connection
        self._has_nonce = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def read(self, n: int | None = None) -> bytes:
        """Read; the first time exactly `n` bytes."""
        if self._has_nonce or n is None:
            return await self._connection.read(n)
        data = b""
        while len(data) < n:
            piece = await self._connection.read(n - len(data))
            if not piece:
                raise IOException("the peer closed the connection at once")
            data += piece
        self._has_nonce = True
        return data


class PrivateConnection(PskConn):
    """A connection of a private network: everything is encrypted with the network's key, before any negotiation."""

    def __init__(self, connection: IRawConnection, network_key: str) -> None:
        whole: Any = _WholeNonce(connection)
        super().__init__(whole, network_key)
        self._actual_addresses = None
        self.is_initiator = connection.is_initiator

    def get_connection_type(self) -> ConnectionType:
        """How the peer is connected."""
        return ConnectionType.DIRECT


class Upgrader(TransportUpgrader):
    """Makes `RepairedYamux` connections, inside a private network's encryption where there is a key for it.

    The library names its own class where the muxer is chosen.
    """

    network_key: str | None = None
    memory: Memory | None = None

    async def upgrade_security(self, raw_conn: IRawConnection, *arguments: Any, **options: Any) -> ISecureConn:
        """Negotiate Noise."""
        bounded: Any = _BoundedReads(raw_conn)
        if self.network_key is not None:
            bounded = PrivateConnection(bounded, self.network_key)
        return await super().upgrade_security(bounded, *arguments, **options)

    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """Negotiate yamux."""
        try:
            await self.muxer_multistream.select_transport(conn)
        except (MultiselectError, MultiselectClientError) as error:
            raise MuxerUpgradeFailure("the peer doesn't speak yamux") from error
        connection = RepairedYamux(conn, peer_id, is_initiator=conn.is_initiator)
        connection.memory = self.memory
        return connection


class _NoAutoConnector(AutoConnector):
    """Dials nobody: whom to dial is decided by the node, not by addresses that peers put into the peerstore [29]."""

    async def maybe_connect(self) -> None:
        return


class Gate:
    """Which inbound connections are taken at all, by address: decided before the handshake, which costs CPU [31].

    Args:
        is_banned: whether an IP address is banned.
        max_connections: of one address, handshakes included. Generous: the machines of an organisation may share one.
        clock: in seconds.
        max_sockets: of all addresses together, but for reserved ones.
        is_reserved: whether an IP address may have more.
    """

    def __init__(
        self,
        is_banned: Callable[[str], bool],
        max_connections: int,
        clock: Callable[[], float],
        *,
        max_sockets: int = sys.maxsize,
        is_reserved: Callable[[str], bool] = lambda _address: False,
    ) -> None:
        self._is_banned = is_banned
        self._max_connections = max_connections
        self._max_sockets = max_sockets
        self._is_reserved = is_reserved
        rate = Rate(ACCEPTS_PER_S, max(ACCEPTS_BURST, 2 * max_connections), drops=True)
        self._rates = RateLimits({_ACCEPT: rate}, clock)
        self._open: Counter[str] = Counter()
        self._handshakes: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count a new connection; False where it must be closed."""
        refusal = self._refusal(address)
        if refusal is not None:
            self.refused[refusal] += 1
            return False
        self._open[address] += 1
        self._handshakes[address] += 1
        return True

    def end_handshake(self, address: str) -> None:
        """The handshake of a counted connection has succeeded."""
        _decrement(self._handshakes, address)

    def leave(self, address: str, *, was_in_handshake: bool) -> None:
        """A counted connection has ended."""
        _decrement(self._open, address)
        if was_in_handshake:
            _decrement(self._handshakes, address)

    def _refusal(self, address: str) -> str | None:
        if self._is_banned(address):
            return "banned"
        if self._open[address] >= self._max_connections:
            return "too-many-connections"
        if self._handshakes[address] >= MAX_HANDSHAKES_PER_ADDRESS:
            return "too-many-handshakes"
        may_go_beyond = self._open[address] < MAX_RESERVED_PER_ADDRESS and self._is_reserved(address)
        if self._open.total() >= self._max_sockets and not may_go_beyond:
            return "full"
        if self._rates.delay_s(address, _ACCEPT) is None:
            return "too-fast"
        return None


def _decrement(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]


@dataclass(slots=True)
class _Inbound:
    """A counted inbound connection."""

    address: str
    is_in_handshake: bool = True


class RepairedSwarm(Swarm):
    """Connections: dials at once [4, 5], gives inbound slots back [18], closes fast [15], bounds addresses [31]."""

    gate: Gate

    def _init_connection_management(self) -> None:
        super()._init_connection_management()
        self.auto_connector = _NoAutoConnector(self)
        self._inbound: dict[int, _Inbound] = {}

    async def _handle_inbound_connection(self, read_write_closer: ReadWriteCloser, maddr: Multiaddr) -> None:
        remote = read_write_closer.get_remote_address()
        address = remote[0] if remote is not None else ""
        if not self.gate.enter(address):
            await read_write_closer.close()
            return
        state = _Inbound(address)
        self._inbound[id(read_write_closer)] = state
        try:
            await super()._handle_inbound_connection(read_write_closer, maddr)
        finally:
            del self._inbound[id(read_write_closer)]
            self.gate.leave(address, was_in_handshake=state.is_in_handshake)

    async def upgrade_inbound_raw_conn(self, raw_conn: IRawConnection, maddr: Multiaddr) -> IMuxedConn:
        """Accept a connection, and hold the caller's slot exactly as long as the connection lives."""
        connection = await super().upgrade_inbound_raw_conn(raw_conn, maddr)
        assert isinstance(connection, RepairedYamux)
        state = self._inbound.get(id(getattr(raw_conn, "stream", None)))
        if state is not None:
            state.is_in_handshake = False
            self.gate.end_handshake(state.address)
        await connection.event_closed.wait()
        raise SwarmException("connection closed")

    async def dial(self, address: Multiaddr, peer: ID) -> None:
        """Connect, or raise `SwarmException`. `dial_peer` would wait 250 ms and refuse for 60 s after a failure."""
        try:
            await self._dial_addr_single_attempt(address, peer)
        except (ValueError, IOException) as error:  # what a stranger's bytes provoke in negotiation and decryption
            raise SwarmException(f"the handshake failed: {error}") from error

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


async def write_fully(stream: INetStream, data: bytes) -> None:
    """Write all bytes, waiting for the reader up to `WINDOW_PATIENCE_S` without progress [7]. One writer at a time."""
    muxed = getattr(stream, "muxed_stream", None)
    assert isinstance(muxed, YamuxStream)
    position = 0
    with _holding(stream) as held:
        held.add(COPIES * len(data))
        while position < len(data):
            deadline = trio.current_time() + WINDOW_PATIENCE_S
            while muxed.send_window <= 0 and not muxed.send_closed and not muxed.closed:
                if trio.current_time() > deadline:
                    raise StreamError(f"the peer read nothing for {WINDOW_PATIENCE_S:g} s")
                await trio.sleep(WINDOW_POLL_S)
            size = min(max(muxed.send_window, 1), len(data) - position)
            await stream.write(data if size == len(data) else data[position : position + size])
            position += size


class _Held:
    """What one frame holds of its connection's memory."""

    def __init__(self, connection: RepairedYamux | None) -> None:
        self._connection = connection
        self._size_bytes = 0

    def add(self, size_bytes: int) -> None:
        """The frame holds more.

        Raises:
            MuxedConnUnavailable: it can't, peers hold too much.
        """
        if self._connection is not None:
            self._connection.hold(size_bytes)
            self._size_bytes += size_bytes

    def release(self) -> None:
        """The frame is gone."""
        if self._connection is not None:
            self._connection.hold(-self._size_bytes)


@contextmanager
def _holding(stream: INetStream) -> Iterator[_Held]:
    connection = getattr(stream, "muxed_conn", None)
    held = _Held(connection if isinstance(connection, RepairedYamux) else None)
    try:
        yield held
    finally:
        held.release()


async def read_exactly(stream: INetStream, size: int) -> bytes:
    """Read exactly `size` bytes, however small the pieces [6].

    Raises:
        StreamEOF: the stream ended before the first byte.
        StreamError: the stream broke, or ended in the middle.
    """
    buffer = bytearray()
    with _holding(stream) as held:
        while len(buffer) < size:
            try:
                piece = await stream.read(min(size - len(buffer), READ_SIZE))
            except StreamEOF as error:
                if not buffer:
                    raise
                raise StreamError(f"the stream ended after {len(buffer)} of {size} bytes") from error
            if not piece:
                raise StreamError(f"the stream ended after {len(buffer)} of {size} bytes")
            held.add(len(piece))
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
