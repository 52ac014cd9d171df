"""The node's view of the network: peers, gossip, pushes and requests. Bytes in, bytes out.

Nothing here knows blocks or transactions, and nothing but this module and those named below knows libp2p. Framing and
sessions are in `streams`, serving in `inbound`, last words in `notices`, dialling again in `redialling`, who has a
place in `places`, the library's faults in `libp2p_repairs`, `libp2p_connections` and `libp2p_gossip`.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.exceptions import StreamFailure
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.utils.address_validation import expand_wildcard_address
from multiaddr import Multiaddr

from bflnode.consensus.rejection import Reason, Rejection
from bflnode.node.node_clock import now_ms

from .addresses import host_and_port, parse_address
from .bans import Ban, Bans
from .failures import root_cause, unwrapped_errors
from .inbound import MAX_GOSSIP_BYTES, VIOLATION_COST, Inbound, MessageHandlers
from .libp2p_connections import Gate, RepairedYamux, check_port_is_free, shielded
from .libp2p_gossip import RepairedGossipSub, RepairedPubsub
from .libp2p_repairs import (
    MAX_HANDSHAKES,
    ConnectionWatcher,
    GuardedHost,
    HostSettings,
    ServiceManager,
    build_host,
)
from .memory import Memory
from .notices import MAX_NOTICES, Notices
from .places import Places, Worth
from .rate_limits import Rate, RateLimits
from .redialling import Redialler
from .scores import Scores
from .streams import (
    MAX_ANSWER_BYTES,
    MAX_PUSH_BYTES,
    MAX_REQUEST_BYTES,
    PeerId,
    PeerSession,
    RemoteRefusal,
    Traffic,
    TransportError,
    UnsupportedProtocolError,
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
    "UnsupportedProtocolError",
    "open_network",
    "parse_address",
]

logger = logging.getLogger(__name__)

DIAL_TIMEOUT_S = 10.0
"""TCP, Noise and yamux take five round trips; a peer that needs longer is as good as absent."""

DISCONNECT_TIMEOUT_S = 1.0
PUBLISH_TIMEOUT_S = 5.0
LAST_WORDS_S = 15.0
"""How long what a peer said when it refused us explains that it isn't connected."""

RESERVED_SOCKETS = 32
"""Inbound sockets that only hosts of reserved peers may have: others may fill the rest with idle ones."""

MAX_CONNECTIONS_PER_PEER = 4
"""Two after a simultaneous dial; a few more while an old one dies."""


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """What a node needs to join a network.

    Attributes:
        identity_seed: 32-byte Ed25519 seed of the node key.
        listen: multiaddrs such as "/ip4/127.0.0.1/tcp/0".
        topics: GossipSub topics to join.
        pushes: protocol ids of one-way framed messages.
        requests: protocol ids of request and answer.
        max_peers: connected peers beyond which others are refused, unless they are reserved (`places`).
        reserved_peers: connections taken beyond that, for whom the node may still want; it decides when it has greeted
            them.
        max_connections_per_address: inbound ones of one IP address.
        network_key: 64 hexadecimal digits that all nodes of a private network share; None for an open one.
        rates: what a peer may send of each protocol, and of `streams.GOSSIP`.
    """

    identity_seed: bytes
    listen: tuple[str, ...]
    topics: tuple[str, ...]
    pushes: tuple[str, ...]
    requests: tuple[str, ...]
    max_peers: int = 64
    reserved_peers: int = 0
    max_connections_per_address: int = 64
    network_key: str | None = None
    rates: Mapping[str, Rate] = field(default_factory=dict)


class NetworkHandlers(MessageHandlers, Protocol):
    """Implemented by the node. An exception in a handler is logged and ends nothing but itself."""

    async def on_connected(self, peer: PeerId) -> None:
        """A connection is usable. May run as long as the connection lives: it is cancelled when the peer is gone."""

    async def on_disconnected(self, peer: PeerId) -> None:
        """The last connection to a peer has ended; follows `on_connected`, and precedes the next one.

        Not promised while the network itself is being left.
        """


class Network:
    """A node's connections; made by `open_network`."""

    def __init__(self, config: NetworkConfig, handlers: NetworkHandlers, nursery: trio.Nursery, bans: Bans) -> None:
        self._config = config
        self._handlers = handlers
        self._nursery = nursery
        self._bans = bans
        # Twice as many connections as peers: peers that dial each other at once have two. And some to be told why not.
        self._most_connections = 2 * (config.max_peers + config.reserved_peers) + MAX_NOTICES
        self.places = Places(config.max_peers, config.reserved_peers, self._worth_of, trio.current_time)
        self._gate = Gate(
            bans.__contains__,
            config.max_connections_per_address,
            trio.current_time,
            max_sockets=self._most_connections + MAX_HANDSHAKES - RESERVED_SOCKETS,
            is_reserved=self.places.is_reserved_host,
        )
        self._memory = Memory(lambda peer: self.places.worth_of(PeerId(peer)))
        self._host: GuardedHost = build_host(
            HostSettings(
                identity_seed=config.identity_seed,
                max_connections=self._most_connections,
                gate=self._gate,
                network_key=config.network_key,
                memory=self._memory,
            ),
            self._complain,
        )
        self._swarm = self._host.swarm
        self._gossip = RepairedGossipSub()
        self._traffic = Traffic()
        limits = RateLimits(config.rates, trio.current_time)
        self._inbound = Inbound(handlers, self._traffic, self._charge, limits)
        self._pubsub = RepairedPubsub(
            self._host, self._gossip, config.topics, self._inbound.deliver_gossip, self._inbound.admit_gossip
        )
        self._notices = Notices(self._host, self._was_refused)
        self._sessions: dict[PeerId, PeerSession] = {}
        self._last_sessions: dict[PeerId, PeerSession] = {}
        self._redialler = Redialler(nursery, self.dial, self._sessions.get)
        self._dials: dict[PeerId, trio.Event] = {}
        self._dialling: dict[PeerId, str] = {}
        self._scores = Scores(trio.current_time)
        self._is_closing = False
        self.peer_id = PeerId(self._host.get_id().to_base58())
        self.addresses: tuple[str, ...] = ()
        self._swarm.register_notifee(ConnectionWatcher(self._connection_opened, self._connection_closed))
        for protocol in config.pushes:
            self._host.set_stream_handler(TProtocol(protocol), self._inbound.serve_pushes)
        for protocol in config.requests:
            self._host.set_stream_handler(TProtocol(protocol), self._inbound.serve_requests)

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
        ban = self._bans.get(peer)
        if ban is not None:
            raise TransportError(f"{peer} is banned here: {ban.reason}; `bflnode peers unban {peer}` ends it")
        while peer in self._dials and peer not in self._sessions:
            await self._dials[peer].wait()
        if peer in self._sessions:
            return peer
        done = self._dials[peer] = trio.Event()
        self._dialling[peer] = multiaddr
        try:
            with trio.fail_after(DIAL_TIMEOUT_S):
                await self._swarm.dial(address, ID.from_base58(peer))
        except trio.TooSlowError as error:
            raise TransportError(f"{multiaddr} didn't answer in {DIAL_TIMEOUT_S:g} s") from error
        except (BaseLibp2pError, OSError) as error:
            if peer not in self._sessions:  # it may have dialled us meanwhile
                raise TransportError(f"can't connect to {multiaddr}: {root_cause(error)}") from error
        finally:
            done.set()
            self._dials.pop(peer, None)
            self._dialling.pop(peer, None)
        if peer not in self._sessions:
            raise TransportError(
                f"{multiaddr} closed the connection at once: {self.last_words(peer) or 'no reason given'}"
            )
        return peer

    async def disconnect(self, peer: PeerId, reason: str | None = None) -> None:
        """End the session with a peer, tell it why, and close its connections. A remembered one is dialled again.

        The caller may be a handler of that session, which is cancelled with it: closing goes on without it.
        """
        connections = list(self._swarm.get_connections(ID.from_base58(peer)))
        closed = trio.Event()
        self._nursery.start_soon(self._close, connections, reason, closed)
        self._end_session(peer)
        await closed.wait()

    async def _close(self, connections: list[INetConn], reason: str | None, closed: trio.Event) -> None:
        if reason is not None and connections and isinstance(connections[-1], SwarmConn):
            await self._notices.tell(connections[-1], reason)
        await self._swarm.close_all(connections, DISCONNECT_TIMEOUT_S)
        closed.set()

    def last_words(self, peer: PeerId) -> str | None:
        """What a peer said when it refused or ended a connection of late: for people, it may be anything."""
        notice = self._notices.last(peer)
        if notice is None or trio.current_time() - notice.at_s > LAST_WORDS_S:
            return None
        return notice.reason

    def remember(self, multiaddr: str, *, for_ever: bool = True) -> PeerId:
        """Keep a connection to a peer: dial it, and dial it again with back-off whenever it is gone.

        Several addresses of one peer are tried in turn.

        Args:
            multiaddr: full address.
            for_ever: else a peer that stays away for a quarter of an hour is forgotten.

        Raises:
            TransportError: the address is malformed.
        """
        _, peer = parse_address(multiaddr)
        if peer != self.peer_id:
            self._redialler.remember(peer, multiaddr, for_ever=for_ever)
            if for_ever:
                self.places.reserve_host(host_and_port(multiaddr)[0], peer)
        return peer

    def remembered(self) -> tuple[PeerId, ...]:
        """Peers that are dialled again when they are gone."""
        return self._redialler.peers()

    def forget(self, peer: PeerId) -> None:
        """Stop dialling a peer; an open connection stays."""
        self._redialler.forget(peer)

    def remote_address(self, peer: PeerId) -> str | None:
        """The IP address from which or to which a peer is connected."""
        for connection in self._swarm.live_connections(ID.from_base58(peer)):
            muxed = connection.muxed_conn
            remote = muxed.get_remote_address() if isinstance(muxed, RepairedYamux) else None
            if remote is not None:
                return str(remote[0])
        return None

    def dialled_address(self, peer: PeerId) -> str | None:
        """The address at which this node has reached a connected peer; None where the peer came by itself."""
        session = self._sessions.get(peer)
        return session.dialled if session is not None else None

    def banned(self) -> tuple[Ban, ...]:
        """Bans that hold now."""
        return self._bans.all()

    async def ban(self, target: str, *, duration_ms: int | None = None, reason: str = "") -> Ban:
        """Ban a peer or an IP address, and end its connections."""
        ban = self._bans.ban(target, duration_ms=duration_ms, reason=reason)
        for peer in self.peers():
            if target in (peer, self.remote_address(peer)):
                await self.disconnect(peer, f"banned by its operator: {reason}" if reason else "banned by its operator")
        return ban

    def unban(self, target: str) -> bool:
        """End a ban; False where there is none."""
        return self._bans.unban(target)

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
            raise TransportError(f"mesh of {topic!r} has {found} peers after {timeout_s:g} s, not {peers}") from error

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

    def is_banned(self, peer: PeerId) -> bool:
        """Whether a ban of this peer holds now; its connections may still be closing."""
        return peer in self._bans

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
            "throttled": dict(traffic.throttled),
            "turned_away": dict(self._gate.refused),
            "connections": len(self._swarm.get_connections()),
            "mesh": {topic: len(self._gossip.mesh.get(topic, ())) for topic in self._config.topics},
            "scores": self._scores.scores(),
            "banned": [ban.target for ban in self._bans.all()],
        }

    async def _start(self, stack: AsyncExitStack) -> None:
        for service in (self._swarm, self._gossip, self._pubsub):
            manager = ServiceManager(service)
            self._nursery.start_soon(manager.run)
            await manager.wait_started()
            stack.push_async_callback(manager.stop)
        stack.push_async_callback(self._leave)
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

    async def _leave(self) -> None:
        self._is_closing = True
        self._swarm._closing = True
        with shielded(DISCONNECT_TIMEOUT_S):
            for listener in list(self._swarm.listeners.values()):
                await listener.close()
        await self._swarm.close_all(self._swarm.get_connections())

    def _connection_opened(self, connection: INetConn) -> None:
        peer = PeerId(connection.muxed_conn.peer_id.to_base58())
        if self._is_closing:
            return
        refusal = self._refusal(peer)
        if refusal is not None:
            logger.info("connection of %s refused: %s", peer, refusal)
            self._host.mute(connection.muxed_conn)
            self._nursery.start_soon(self._refuse, connection, refusal)
            return
        if peer in self._sessions:
            return
        session = PeerSession(peer, self._config.pushes, self._stream_opener(peer), self._traffic)
        session.dialled = self._dialling.get(peer)
        previous = self._last_sessions.get(peer)
        self._sessions[peer] = self._last_sessions[peer] = session
        self._nursery.start_soon(self._run_session, session, previous)

    def _refusal(self, peer: PeerId) -> str | None:
        ban = self._bans.get(peer)
        if ban is not None:
            return f"banned until {ban.end}: {ban.reason or 'no reason given'}"
        if len(self._swarm.live_connections(ID.from_base58(peer))) > MAX_CONNECTIONS_PER_PEER:
            return f"it has {MAX_CONNECTIONS_PER_PEER} connections already"
        connections = Counter(PeerId(found.muxed_conn.peer_id.to_base58()) for found in self._swarm.get_connections())
        verdict = self.places.judge(peer, self._sessions, connections, self._most_connections)
        if verdict.displaced is not None:
            self.displace(verdict.displaced)
        return verdict.refusal

    def displace(self, peer: PeerId) -> None:
        """End the session with a peer soon: its place is needed."""
        self._nursery.start_soon(
            self.disconnect, peer, "full: its place is needed for a peer that this node wants more"
        )

    def _worth_of(self, peer: PeerId) -> Worth:
        return Worth.RESERVED if self._redialler.is_named(peer) else Worth.STRANGER

    async def _refuse(self, connection: INetConn, reason: str) -> None:
        """Close a connection that is not wanted; a peer that has others knows why."""
        peer = PeerId(connection.muxed_conn.peer_id.to_base58())
        if peer not in self._sessions and isinstance(connection, SwarmConn):
            await self._notices.tell(connection, reason)
        await self._swarm.close_all([connection])

    def _was_refused(self, peer: PeerId, reason: str) -> None:
        logger.info("%s ends the connection: %s", peer, reason)
        self._end_session(peer)
        self._nursery.start_soon(self.disconnect, peer)  # or it keeps a place in which nobody is

    def _connection_closed(self, connection: INetConn) -> None:
        peer_id = connection.muxed_conn.peer_id
        self._host.connection_closed(connection.muxed_conn)
        if isinstance(connection.muxed_conn, RepairedYamux):
            self._memory.forget(connection.muxed_conn)
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
        except Exception:  # the daemon's edge: a bug of ours must not end the node
            logger.exception("a connection handler failed for %s", peer)

    def _stream_opener(self, peer: PeerId) -> Callable[[str], Any]:
        peer_id = ID.from_base58(peer)

        async def open_stream(protocol: str) -> INetStream:
            connections = self._swarm.live_connections(peer_id)
            if not connections:
                raise TransportError(f"{peer} is not connected")
            try:
                return await self._host.open_stream(connections[-1], [TProtocol(protocol)])
            except StreamFailure as error:
                raise UnsupportedProtocolError(str(error)) from error
            except SwarmException as error:
                raise TransportError(str(error)) from error

        return open_stream

    def _complain(self, peer_id: ID, reason: str) -> None:
        self._charge(PeerId(peer_id.to_base58()), reason, VIOLATION_COST)

    def _charge(self, peer: PeerId, why: str, cost: float, reason: Reason = Reason.MALFORMED) -> None:
        if peer == self.peer_id:
            return
        self._traffic.refused[reason.value] += 1
        logger.debug("%s is charged %.1f for %s", peer, cost, why)
        if peer not in self._bans and self._scores.charge(peer, cost) and not self._is_closing:
            ban = self._bans.punish(peer, why)
            logger.warning("%s is banned until %s: %s", peer, ban.end, why)
            self._nursery.start_soon(self.disconnect, peer, f"banned: {why}")


@asynccontextmanager
async def open_network(
    config: NetworkConfig, handlers: NetworkHandlers, bans: Bans | None = None
) -> AsyncIterator[Network]:
    """Join the network for the time of the context; leaving closes everything in less than a second.

    Args:
        config: what to join with.
        handlers: what to do with what comes.
        bans: who is banned; nobody when not given.

    Raises:
        TransportError: an address to listen on is malformed or taken.
    """
    if len(config.identity_seed) != 32:
        raise ValueError(f"identity seed has {len(config.identity_seed)} bytes, not 32")
    with unwrapped_errors():
        async with trio.open_nursery() as nursery:
            network = Network(config, handlers, nursery, Bans(now_ms) if bans is None else bans)
            async with AsyncExitStack() as stack:
                await network._start(stack)
                yield network
            nursery.cancel_scope.cancel()


def _check_size(data: bytes, limit_bytes: int, what: str) -> None:
    if len(data) > limit_bytes:
        raise ValueError(f"{what} of {len(data)} bytes exceeds {limit_bytes}")
