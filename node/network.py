"""The node's view of the network: peers, gossip, pushes and requests. Bytes in, bytes out.

Nothing here knows blocks or transactions, and nothing outside `network`, `streams` and `libp2p_repairs` knows libp2p.
Framing and sessions are in `streams`, the library's faults in `libp2p_repairs`.
"""

import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError, ValidationError
from libp2p.host.exceptions import StreamFailure
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.address_validation import expand_wildcard_address
from multiaddr import Multiaddr

from bflnode.consensus.rejection import Reason, Rejection

from .libp2p_repairs import (
    GuardedHost,
    RepairedGossipSub,
    RepairedPubsub,
    ServiceManager,
    build_host,
    check_port_is_free,
    unwrapped_errors,
)
from .streams import (
    MAX_ANSWER_BYTES,
    MAX_PUSH_BYTES,
    MAX_REASON_BYTES,
    MAX_REQUEST_BYTES,
    FrameStream,
    PeerId,
    PeerSession,
    RemoteRefusal,
    Status,
    Traffic,
    TransportError,
)

__all__ = [
    "MAX_ANSWER_BYTES",
    "MAX_GOSSIP_BYTES",
    "MAX_PUSH_BYTES",
    "MAX_REQUEST_BYTES",
    "Network",
    "NetworkConfig",
    "NetworkHandlers",
    "PeerId",
    "RemoteRefusal",
    "TransportError",
    "open_network",
]

logger = logging.getLogger(__name__)

MAX_GOSSIP_BYTES = 60_000
"""A gossip message stays below one yamux frame; models and blocks never go by gossip."""

DIAL_TIMEOUT_S = 5.0
"""TCP, Noise and yamux take five round trips; a peer that needs longer is as good as absent."""

DISCONNECT_TIMEOUT_S = 1.0
PUBLISH_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0
"""A request handler that takes longer is cancelled: its peer has given up by then."""

REDIAL_FIRST_S = 0.2
REDIAL_FACTOR = 2.0
REDIAL_MAX_S = 5.0
"""Back-off of a remembered peer. The cap is small: a dial of a dead port is cheap, a lost validator is not."""

REDIAL_JITTER = 0.25
"""Nodes that lost the same peer must not all dial it at the same moment."""

STABLE_CONNECTION_S = 2.0
"""A connection that lasted this long resets the back-off; a flapping peer keeps it."""

BAN_SCORE = 100.0
SCORE_DECAY_PER_S = 1.0
BAN_S = 60.0
"""One refused message a second is tolerated (races of honest nodes); ten a second ban for a minute after eleven."""

REFUSAL_COST = 1.0
BYTES_COST = 16 * 1024
"""A refused message costs 1, and 1 more for each 16 KiB: large garbage is more work."""

VIOLATION_COST = 25.0
"""Malformed frames and negotiations: an honest node never sends them."""

MAX_BANS = 1024
"""Bans kept; a peer with more identities than this can't be kept out by banning identities."""


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """What a node needs to join a network.

    Attributes:
        identity_seed: 32-byte Ed25519 seed of the node key.
        listen: multiaddrs such as "/ip4/127.0.0.1/tcp/0".
        topics: GossipSub topics to join.
        pushes: protocol ids of one-way framed messages.
        requests: protocol ids of request and answer.
        max_peers: connected peers beyond which inbound ones are refused, unless they are remembered.
    """

    identity_seed: bytes
    listen: tuple[str, ...]
    topics: tuple[str, ...]
    pushes: tuple[str, ...]
    requests: tuple[str, ...]
    max_peers: int = 64


class NetworkHandlers(Protocol):
    """Implemented by the node. An exception in a handler is logged and ends nothing but itself."""

    def on_gossip(self, topic: str, sender: PeerId, data: bytes) -> None:
        """A gossip message not seen before. `sender` forwarded it and need not have made it.

        Synchronous and cheap: put it in a queue. Raising `Rejection` stops it from being forwarded and counts against
        the sender; doubt must be accepted.
        """

    def on_push(self, protocol: str, sender: PeerId, data: bytes) -> None:
        """A pushed message, in the order of sending. Like `on_gossip`."""

    async def on_request(self, protocol: str, sender: PeerId, data: bytes) -> bytes:
        """Answer a request; raising `Rejection` refuses it (not counted against the sender)."""

    async def on_connected(self, peer: PeerId) -> None:
        """A connection is usable. May run as long as the connection lives: it is cancelled when the peer is gone."""

    async def on_disconnected(self, peer: PeerId) -> None:
        """The last connection to a peer has ended; follows `on_connected`, and precedes the next one."""


@dataclass(slots=True)
class _Score:
    value: float = 0.0
    updated_at: float = field(default_factory=trio.current_time)

    def add(self, cost: float) -> float:
        now = trio.current_time()
        self.value = max(0.0, self.value - (now - self.updated_at) * SCORE_DECAY_PER_S) + cost
        self.updated_at = now
        return self.value


class _Watcher(INotifee):
    """Tells the network when the library opens and closes connections."""

    def __init__(self, opened: Callable[[INetConn], None], closed: Callable[[INetConn], None]) -> None:
        self._opened = opened
        self._closed = closed

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        self._opened(conn)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._closed(conn)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        return

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        return

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        return

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        return


class Network:
    """A node's connections; made by `open_network`."""

    def __init__(self, config: NetworkConfig, handlers: NetworkHandlers, nursery: trio.Nursery) -> None:
        self._config = config
        self._handlers = handlers
        self._nursery = nursery
        # Twice as many connections as peers: peers that dial each other at once have two.
        self._host: GuardedHost = build_host(config.identity_seed, 2 * config.max_peers, self._complain)
        self._swarm = self._host.swarm
        self._gossip = RepairedGossipSub()
        self._pubsub = RepairedPubsub(self._host, self._gossip, config.topics, self._deliver_gossip)
        self._traffic = Traffic()
        self._sessions: dict[PeerId, PeerSession] = {}
        self._last_sessions: dict[PeerId, PeerSession] = {}
        self._remembered: dict[PeerId, dict[str, None]] = {}
        self._redials: dict[PeerId, trio.CancelScope] = {}
        self._dials: dict[PeerId, trio.Event] = {}
        self._scores: dict[PeerId, _Score] = {}
        self._banned_until: dict[PeerId, float] = {}
        self._is_closing = False
        self.peer_id = PeerId(self._host.get_id().to_base58())
        self.addresses: tuple[str, ...] = ()
        self._swarm.register_notifee(_Watcher(self._connection_opened, self._connection_closed))
        for protocol in config.pushes:
            self._host.set_stream_handler(TProtocol(protocol), self._serve_pushes)
        for protocol in config.requests:
            self._host.set_stream_handler(TProtocol(protocol), self._serve_requests)

    def peers(self) -> tuple[PeerId, ...]:
        """Connected peers, longest connected first."""
        return tuple(self._sessions)

    def is_connected(self, peer: PeerId) -> bool:
        """Whether a connection to the peer is usable."""
        return peer in self._sessions

    async def dial(self, multiaddr: str) -> PeerId:
        """Connect to a peer; returns at once where it is connected already.

        Args:
            multiaddr: full address with the peer's id: "/ip4/127.0.0.1/tcp/4001/p2p/12D3…".

        Raises:
            TransportError: with the reason.
        """
        address, peer = parse_address(multiaddr)
        if peer == self.peer_id:
            raise TransportError(f"{multiaddr} is this node itself")
        if self._is_banned(peer):
            raise TransportError(f"{peer} is banned for misbehaviour; it is forgiven after {BAN_S:g} s")
        while peer in self._dials and peer not in self._sessions:
            await self._dials[peer].wait()
        if peer in self._sessions:
            return peer
        done = self._dials[peer] = trio.Event()
        try:
            with trio.fail_after(DIAL_TIMEOUT_S):
                await self._swarm.dial(address, ID.from_base58(peer))
        except trio.TooSlowError as error:
            raise TransportError(f"{multiaddr} didn't answer in {DIAL_TIMEOUT_S:g} s") from error
        except (BaseLibp2pError, OSError) as error:
            if peer not in self._sessions:  # it may have dialled us meanwhile
                raise TransportError(f"can't connect to {multiaddr}: {_root_cause(error)}") from error
        finally:
            done.set()
            self._dials.pop(peer, None)
        if peer not in self._sessions:
            raise TransportError(f"{multiaddr} closed the connection at once: it may be full or have banned this node")
        return peer

    async def disconnect(self, peer: PeerId) -> None:
        """Close all connections to a peer. A remembered peer is dialled again."""
        await self._swarm.close_all(self._swarm.get_connections(ID.from_base58(peer)), DISCONNECT_TIMEOUT_S)
        self._end_session(peer)

    def remember(self, multiaddr: str) -> PeerId:
        """Keep a connection to a peer: dial it, and dial it again for ever with back-off whenever it is gone.

        Several addresses of one peer are tried in turn.

        Raises:
            TransportError: the address is malformed.
        """
        _, peer = parse_address(multiaddr)
        if peer == self.peer_id:
            return peer
        self._remembered.setdefault(peer, {})[multiaddr] = None
        if peer not in self._redials:
            self._redials[peer] = trio.CancelScope()
            self._nursery.start_soon(self._keep_connected, peer, self._redials[peer])
        return peer

    def forget(self, peer: PeerId) -> None:
        """Stop dialling a peer; an open connection stays."""
        self._remembered.pop(peer, None)
        scope = self._redials.pop(peer, None)
        if scope is not None:
            scope.cancel()

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip a message to all peers of a topic. Best effort: what is sent to an empty mesh goes nowhere.

        Raises:
            ValueError: unknown topic, or more than 60 kB.
        """
        if topic not in self._config.topics:
            raise ValueError(f"topic {topic!r} is not one of {self._config.topics}")
        _check_size(data, MAX_GOSSIP_BYTES, "a gossip message")
        with trio.move_on_after(PUBLISH_TIMEOUT_S):
            await self._pubsub.publish(topic, data)
            self._traffic.sent(topic, len(data))

    def mesh_ready(self, topic: str) -> bool:
        """Whether a published message reaches anybody."""
        return bool(self._gossip.mesh.get(topic))

    async def wait_for_mesh(self, topic: str, *, timeout_s: float, peers: int = 1) -> None:
        """Wait until the mesh of a topic has that many peers.

        Raises:
            TransportError: it hasn't in time.
        """
        try:
            with trio.fail_after(timeout_s):
                while len(self._gossip.mesh.get(topic, ())) < peers:
                    await self._gossip.mesh_grew.wait()
        except trio.TooSlowError as error:
            found = len(self._gossip.mesh.get(topic, ()))
            raise TransportError(f"{found} peers in the mesh of {topic!r} after {timeout_s:g} s, not {peers}") from error

    def push(self, peer: PeerId, protocol: str, data: bytes) -> bool:
        """Queue a one-way message; never blocks. False when the peer isn't connected or its queue is full.

        Raises:
            ValueError: unknown protocol, or more than 1.5 MiB.
        """
        if protocol not in self._config.pushes:
            raise ValueError(f"push protocol {protocol!r} is not one of {self._config.pushes}")
        _check_size(data, MAX_PUSH_BYTES, "a push")
        session = self._sessions.get(peer)
        return session is not None and session.push(protocol, data)

    async def request(
        self, peer: PeerId, protocol: str, data: bytes, *, timeout_s: float, max_response_bytes: int
    ) -> bytes:
        """Ask a peer and wait for its answer.

        Raises:
            RemoteRefusal: the peer's handler rejected the request.
            TransportError: not connected, no answer in time, a broken stream, or an answer that breaks the limits
                (which also counts against the peer).
            ValueError: unknown protocol, or more than 64 KiB.
        """
        if protocol not in self._config.requests:
            raise ValueError(f"request protocol {protocol!r} is not one of {self._config.requests}")
        _check_size(data, MAX_REQUEST_BYTES, "a request")
        session = self._sessions.get(peer)
        if session is None:
            raise TransportError(f"{peer} is not connected")
        try:
            with trio.fail_after(timeout_s):
                return await session.request(protocol, data, max_response_bytes)
        except trio.TooSlowError as error:
            raise TransportError(f"{peer} didn't answer {protocol} in {timeout_s:g} s") from error
        except Rejection as rejection:
            self._charge(peer, str(rejection), VIOLATION_COST)
            raise TransportError(f"{peer} answered {protocol} with {rejection}") from rejection

    def punish(self, peer: PeerId, reason: str) -> None:
        """Count a misdeed that costs as much as a protocol violation; at four in a row the peer is banned."""
        self._charge(peer, reason, VIOLATION_COST)

    def statistics(self) -> dict[str, Any]:
        """Counters since opening, for `status` and metrics: plain JSON types."""
        traffic = self._traffic
        return {
            "peers": len(self._sessions),
            "bytes_in": sum(traffic.bytes_in.values()),
            "bytes_out": sum(traffic.bytes_out.values()),
            "messages_in": dict(traffic.messages_in),
            "messages_out": dict(traffic.messages_out),
            "refused": dict(traffic.refused),
            "dropped": dict(traffic.dropped),
            "mesh": {topic: len(self._gossip.mesh.get(topic, ())) for topic in self._config.topics},
            "scores": {peer: round(score.add(0.0), 1) for peer, score in self._scores.items()},
            "banned": [peer for peer in self._banned_until if self._is_banned(peer)],
        }

    async def _start(self, stack: AsyncExitStack) -> None:
        for service in (self._swarm, self._gossip, self._pubsub):
            manager = ServiceManager(service)
            self._nursery.start_soon(manager.run)
            await manager.wait_started()
            stack.push_async_callback(manager.stop)
        stack.push_async_callback(self._close)
        for text in self._config.listen:
            await self._listen(text)
        bound = [address for listener in self._swarm.listeners.values() for address in listener.get_addrs()]
        reachable = [address for wildcard in bound for address in expand_wildcard_address(wildcard)]
        self._host.publish_addresses(reachable)
        self.addresses = tuple(f"{address}/p2p/{self.peer_id}" for address in reachable)
        await self._pubsub.wait_until_ready()
        for topic in self._config.topics:
            await self._pubsub.subscribe(topic)

    async def _listen(self, text: str) -> None:
        try:
            address = Multiaddr(text)
            host = address.value_for_protocol("ip6" if "/ip6/" in text else "ip4")
            port = int(address.value_for_protocol("tcp") or 0)
        except ValueError as error:
            raise TransportError(f"can't listen on {text!r}: not an address like /ip4/127.0.0.1/tcp/4001") from error
        try:
            check_port_is_free(str(host), port)
        except OSError as error:
            raise TransportError(f"can't listen on {text}: {error.strerror}; choose another port or address") from error
        if not await self._swarm.listen(address):
            raise TransportError(f"can't listen on {text}: another program took the port just now")

    async def _close(self) -> None:
        self._is_closing = True
        self._swarm._closing = True
        with trio.move_on_after(DISCONNECT_TIMEOUT_S, shield=True):
            for listener in list(self._swarm.listeners.values()):
                await listener.close()
        await self._swarm.close_all(self._swarm.get_connections())

    def _connection_opened(self, connection: INetConn) -> None:
        peer = PeerId(connection.muxed_conn.peer_id.to_base58())
        if self._is_closing or peer in self._sessions:
            return
        is_full = len(self._sessions) >= self._config.max_peers and peer not in self._remembered
        if is_full or self._is_banned(peer):
            logger.info("connection of %s refused: %s", peer, "too many peers" if is_full else "banned")
            self._nursery.start_soon(self._swarm.close_all, [connection])
            return
        session = PeerSession(peer, self._config.pushes, self._stream_opener(peer), self._traffic)
        previous = self._last_sessions.get(peer)
        self._sessions[peer] = self._last_sessions[peer] = session
        self._nursery.start_soon(self._run_session, session, previous)

    def _connection_closed(self, connection: INetConn) -> None:
        peer_id = connection.muxed_conn.peer_id
        if not self._swarm.live_connections(peer_id):
            self._end_session(PeerId(peer_id.to_base58()))

    def _end_session(self, peer: PeerId) -> None:
        session = self._sessions.pop(peer, None)
        if session is not None:
            session.ended.set()

    async def _run_session(self, session: PeerSession, previous: PeerSession | None) -> None:
        peer = session.peer
        if previous is not None:
            await previous.finished.wait()
        async with trio.open_nursery() as nursery:
            for protocol in self._config.pushes:
                nursery.start_soon(session.write_pushes, protocol)
            nursery.start_soon(self._guarded, self._handlers.on_connected, peer)
            await session.ended.wait()
            nursery.cancel_scope.cancel()
        await self._guarded(self._handlers.on_disconnected, peer)
        session.finished.set()
        if self._last_sessions.get(peer) is session:
            del self._last_sessions[peer]

    async def _guarded(self, handler: Callable[[PeerId], Any], peer: PeerId) -> None:
        try:
            await handler(peer)
        except Rejection as rejection:
            self._charge(peer, str(rejection), VIOLATION_COST)
        except TransportError as error:
            logger.info("%s: %s", peer, error)
        except Exception:
            logger.exception("a connection handler failed for %s", peer)

    async def _keep_connected(self, peer: PeerId, scope: trio.CancelScope) -> None:
        with scope:
            delay_s = REDIAL_FIRST_S
            for address in _in_turn(self._remembered[peer]):
                session = self._sessions.get(peer)
                if session is None:
                    try:
                        await self.dial(address)
                        session = self._sessions.get(peer)
                    except TransportError as error:
                        logger.debug("redial: %s", error)
                if session is not None:
                    await session.finished.wait()
                    if trio.current_time() - session.started_at > STABLE_CONNECTION_S:
                        delay_s = REDIAL_FIRST_S
                await trio.sleep(delay_s * random.uniform(1 - REDIAL_JITTER, 1 + REDIAL_JITTER))
                delay_s = min(REDIAL_MAX_S, delay_s * REDIAL_FACTOR)

    def _stream_opener(self, peer: PeerId) -> Callable[[str], Any]:
        peer_id = ID.from_base58(peer)

        async def open_stream(protocol: str) -> INetStream:
            connections = self._swarm.live_connections(peer_id)
            if not connections:
                raise TransportError(f"{peer} is not connected")
            try:
                return await self._host.open_stream(connections[-1], [TProtocol(protocol)])
            except (SwarmException, StreamFailure) as error:
                raise TransportError(str(error)) from error

        return open_stream

    async def _serve_pushes(self, stream: INetStream) -> None:
        sender, protocol, frames = self._inbound(stream)
        try:
            while (data := await frames.receive(MAX_PUSH_BYTES)) is not None:
                self._traffic.received(protocol, len(data))
                self._deliver(self._handlers.on_push, protocol, sender, data)
        except Rejection as rejection:
            self._charge(sender, str(rejection), VIOLATION_COST)
        except TransportError as error:
            logger.debug("pushes of %s on %s: %s", sender, protocol, error)
        finally:
            await frames.abort()

    async def _serve_requests(self, stream: INetStream) -> None:
        sender, protocol, frames = self._inbound(stream)
        try:
            while (data := await frames.receive(MAX_REQUEST_BYTES)) is not None:
                self._traffic.received(protocol, len(data))
                answer = await self._answer(protocol, sender, data)
                await frames.send(answer)
                self._traffic.sent(protocol, len(answer))
        except Rejection as rejection:
            self._charge(sender, str(rejection), VIOLATION_COST)
        except TransportError as error:
            logger.debug("requests of %s on %s: %s", sender, protocol, error)
        finally:
            await frames.abort()

    def _inbound(self, stream: INetStream) -> tuple[PeerId, str, FrameStream]:
        return PeerId(stream.muxed_conn.peer_id.to_base58()), str(stream.get_protocol()), FrameStream(stream)

    async def _answer(self, protocol: str, sender: PeerId, data: bytes) -> bytes:
        try:
            with trio.fail_after(ANSWER_TIMEOUT_S):
                body = await self._handlers.on_request(protocol, sender, data)
            if len(body) <= MAX_ANSWER_BYTES:
                return bytes([Status.OK]) + body
            logger.error("answer to %s has %d bytes, more than %d", protocol, len(body), MAX_ANSWER_BYTES)
        except Rejection as rejection:
            self._traffic.refused[rejection.reason.value] += 1
            return bytes([Status.REFUSED]) + str(rejection).encode()[:MAX_REASON_BYTES]
        except trio.TooSlowError:
            return bytes([Status.FAILED]) + b"no answer in time"
        except Exception:
            logger.exception("request handler failed on %s of %s", protocol, sender)
        return bytes([Status.FAILED]) + b"internal error"

    def _deliver_gossip(self, forwarder: ID, message: rpc_pb2.Message) -> None:
        sender = PeerId(forwarder.to_base58())
        if len(message.topicIDs) != 1 or len(message.data) > MAX_GOSSIP_BYTES:
            self._charge(sender, "gossip message breaks the limits", VIOLATION_COST)
            raise ValidationError("limits")
        topic = message.topicIDs[0]
        self._traffic.received(topic, len(message.data))
        if not self._deliver(self._handlers.on_gossip, topic, sender, message.data):
            raise ValidationError("refused")

    def _deliver(
        self, handler: Callable[[str, PeerId, bytes], None], channel: str, sender: PeerId, data: bytes
    ) -> bool:
        try:
            handler(channel, sender, data)
        except Rejection as rejection:
            self._charge(sender, f"{channel}: {rejection}", REFUSAL_COST + len(data) / BYTES_COST, rejection.reason)
            return False
        except Exception:
            logger.exception("handler failed on %s of %s", channel, sender)
        return True

    def _complain(self, peer_id: ID, reason: str) -> None:
        self._charge(PeerId(peer_id.to_base58()), reason, VIOLATION_COST)

    def _charge(self, peer: PeerId, why: str, cost: float, reason: Reason = Reason.MALFORMED) -> None:
        if peer == self.peer_id:
            return
        self._traffic.refused[reason.value] += 1
        score = self._scores.setdefault(peer, _Score()).add(cost)
        logger.debug("%s is charged %.1f for %s, now at %.1f", peer, cost, why, score)
        if score < BAN_SCORE or self._is_banned(peer) or self._is_closing:
            return
        logger.warning("%s is banned for %g s: %s", peer, BAN_S, why)
        del self._scores[peer]
        if len(self._banned_until) >= MAX_BANS:
            del self._banned_until[next(iter(self._banned_until))]
        self._banned_until[peer] = trio.current_time() + BAN_S
        self._nursery.start_soon(self.disconnect, peer)

    def _is_banned(self, peer: PeerId) -> bool:
        return self._banned_until.get(peer, 0.0) > trio.current_time()


@asynccontextmanager
async def open_network(config: NetworkConfig, handlers: NetworkHandlers) -> AsyncIterator[Network]:
    """Join the network for the time of the context; leaving closes everything in less than a second.

    Raises:
        TransportError: an address to listen on is malformed or taken.
    """
    if len(config.identity_seed) != 32:
        raise ValueError(f"identity seed has {len(config.identity_seed)} bytes, not 32")
    with unwrapped_errors():
        async with trio.open_nursery() as nursery:
            network = Network(config, handlers, nursery)
            async with AsyncExitStack() as stack:
                await network._start(stack)
                yield network
            nursery.cancel_scope.cancel()


def parse_address(multiaddr: str) -> tuple[Multiaddr, PeerId]:
    """Split a full multiaddr into the address and the peer's id.

    Raises:
        TransportError: it is malformed or has no peer id.
    """
    try:
        address = Multiaddr(multiaddr)
        peer = PeerId(ID.from_base58(str(address.value_for_protocol("p2p"))).to_base58())
    except (ValueError, LookupError, BaseLibp2pError) as error:
        raise TransportError(f"{multiaddr!r} is not a full address like /ip4/127.0.0.1/tcp/4001/p2p/12D3…") from error
    return address, peer


def _check_size(data: bytes, limit_bytes: int, what: str) -> None:
    if len(data) > limit_bytes:
        raise ValueError(f"{what} of {len(data)} bytes exceeds {limit_bytes}")


def _in_turn(addresses: dict[str, None]) -> Iterable[str]:
    while True:
        yield from tuple(addresses)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
