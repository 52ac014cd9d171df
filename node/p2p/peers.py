"""Who the connected peers are: the hello handshake, and which account, height and addresses a peer has.

A connection becomes a peer once both sides have said hello: same version, same chain, and an account that signed the
libp2p identity it speaks through. Whoever can't be a peer is told why, and this node notes why for its operator. Only
who has said hello is dialled again when it is gone; how peers are found is `discovery`'s business.
"""

import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import trio

from bflnode.consensus.genesis import Genesis
from bflnode.consensus.keys import SecretKey, verify
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.types import AccountId
from bflnode.node.configuration import Configuration
from bflnode.node.home import Home, HomeError
from bflnode.node.node_clock import now_ms

from .about import chain_fault, genesis_digests, version_fault
from .address_book import AddressBook
from .discovery import Discovery, DiscoverySettings
from .messages import (
    ABOUT,
    HELLO,
    MAX_ABOUT_BYTES,
    MAX_ADDRESSES,
    OLDEST_PROTOCOL_VERSION,
    PROTOCOL_VERSION,
    About,
    AboutAnswer,
    AboutRequest,
    Hello,
    hello_payload,
)
from .network import Network, PeerId, RemoteRefusal, TransportError, UnsupportedProtocolError, parse_address
from .places import Worth

_log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 15.0
"""A node on a busy machine may take seconds to answer; one that takes longer is of no use."""

EXPLAIN_S = 3.0
"""How long a connection that can't be a peer stays, so that the other side can find out why as well."""

MAX_KEPT = 256
"""Peers that are dialled again when they are gone, besides the configured ones; the one greeted first gives way."""

MAX_OWN_ADDRESSES = 4
"""Own addresses in a hello: one for each of a machine's networks."""

MAX_HELLO_BYTES = 16 * 1024
"""Thirty-two addresses of 256 bytes and the rest."""

RESERVED_FOR_VALIDATORS = 16
"""Connections taken when a node is full, for as long as a hello takes: strangers must not keep validators out."""

MAX_SPEAKERS = 1024
"""Peers known to have spoken for an account of the chain, the first one known gives way."""

MAX_REFUSALS = 64
"""Refusals kept for the operator, oldest dropped first; one for each peer."""

CLOCK_WARNING_MS = 5_000
"""A clock this far from ours is worth a line in the log: deadlines are compared with header time."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A connected node that has said hello.

    Attributes:
        clock_offset_ms: its clock minus ours when it said hello, give or take the time that took.
    """

    id: PeerId
    account: AccountId
    version: str
    height: int
    addresses: tuple[str, ...]
    clock_offset_ms: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a connection didn't become a peer.

    Attributes:
        at_ms: when, since the epoch.
        by_us: whether this node refused, or the other one.
        reason: what was said, and what to do.
    """

    peer: PeerId
    at_ms: int
    by_us: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSide:
    """What this node says of itself.

    Attributes:
        version: of the software.
        height: of the chain, now.
        is_validator: whether an account votes, now.
        has_account: whether the chain has an account, now. Strangers can make keys, but no accounts.
        max_peers: greeted peers beyond which only configured ones, validators, and members for strangers are taken.
    """

    key: SecretKey
    genesis: Genesis
    version: str
    height: Callable[[], int]
    is_validator: Callable[[AccountId], bool]
    has_account: Callable[[AccountId], bool]
    max_peers: int


class Peers:
    """The registry of greeted peers.

    Attributes:
        advertised: addresses of this node for others to dial.
    """

    def __init__(self, network: Network, own: OwnSide, discovery: Callable[["Peers"], Discovery]) -> None:
        self.advertised = network.addresses
        self._network = network
        self._own = own
        self._chain_id = own.genesis.chain_id
        self._genesis = genesis_digests(own.genesis)
        self._peers: dict[PeerId, Peer] = {}
        self._configured: set[PeerId] = set()
        self._speakers: dict[PeerId, AccountId] = {}
        self._kept: dict[PeerId, None] = {}
        self._refusals: deque[Refusal] = deque(maxlen=MAX_REFUSALS)
        self._said: set[tuple[PeerId, bool, str]] = set()
        self.discovery = discovery(self)
        self._configured = {parse_address(address)[1] for address in self.discovery.bootstrap}
        network.places.worth_of = self.worth_of

    async def run(self) -> None:
        """Look for peers until cancelled."""
        await self.discovery.run()

    def keep(self, address: str) -> None:
        """Keep a connection to a configured peer.

        Raises:
            TransportError: the address is malformed.
        """
        self._configured.add(self._network.remember(address))

    def all(self) -> tuple[Peer, ...]:
        """Greeted peers, in the order in which they came."""
        return tuple(self._peers.values())

    def ids(self) -> tuple[PeerId, ...]:
        """Their ids."""
        return tuple(self._peers)

    def most_wanted_first(self) -> tuple[PeerId, ...]:
        """Their ids, strangers last: whoever makes many identities must not be asked before all others."""
        return tuple(sorted(self._peers, key=self.worth_of, reverse=True))

    def get(self, peer: PeerId) -> Peer | None:
        """A greeted peer."""
        return self._peers.get(peer)

    def worth_of(self, peer: PeerId) -> Worth:
        """What a peer is to this node, connected or not; for an account only one speaks at a time."""
        if peer in self._configured:
            return Worth.RESERVED
        account = self._speakers.get(peer)
        if account is not None and self._own.is_validator(account):
            return Worth.RESERVED
        if account is not None and self._own.has_account(account):
            return Worth.MEMBER
        return Worth.STRANGER if peer in self._peers else Worth.NEW

    def of_account(self, account: AccountId) -> Peer | None:
        """The peer that speaks for an account."""
        return next((peer for peer in self._peers.values() if peer.account == account), None)

    def refusals(self) -> tuple[Refusal, ...]:
        """Why connections didn't become peers of late, the newest last."""
        return tuple(self._refusals)

    def note_height(self, peer: PeerId, height: int) -> None:
        """Remember how far a peer says it is."""
        known = self._peers.get(peer)
        if known is not None and height > known.height:
            self._peers[peer] = replace(known, height=height)

    def disbelieve(self, peer: PeerId, height: int) -> None:
        """A peer has no more blocks than up to a height, whatever it said; its next word counts again."""
        known = self._peers.get(peer)
        if known is not None:
            self._peers[peer] = replace(known, height=min(height, known.height))

    def forget(self, peer: PeerId) -> None:
        """A peer is gone."""
        if self._peers.pop(peer, None) is not None:
            _log.info("peer %s left", peer)

    async def greet(self, peer: PeerId) -> bool:
        """Say hello to a new connection and read the answer; disconnect what doesn't belong here.

        Returns:
            Whether the connection is a peer now.
        """
        reason: str | None = None
        try:
            asked_ms = now_ms()
            response = await self._network.request(
                peer, HELLO, self._hello(), timeout_s=HELLO_TIMEOUT_S, max_response_bytes=MAX_HELLO_BYTES
            )
            self._welcome(peer, response, (asked_ms + now_ms()) // 2)
        except RemoteRefusal as refusal:
            self._note_refusal(peer, await self._explained(peer, refusal.reason), by_us=False)
        except Rejection as rejection:
            if rejection.reason is Reason.LIMIT:
                self._let_go(peer)
            reason = await self._explained(peer, str(rejection))
            self._note_refusal(peer, reason, by_us=True)
        except UnsupportedProtocolError:
            reason = await self._why_no_hello(peer)
        except TransportError as error:
            words = self._network.last_words(peer)
            if words is not None:
                self._note_refusal(peer, words, by_us=False)
            else:
                _log.info("no hello from %s: %s", peer, error)
        else:
            return True
        if reason is not None:
            await trio.sleep(EXPLAIN_S)
        await self._network.disconnect(peer, reason)
        return False

    def answer(self, peer: PeerId, data: bytes) -> bytes:
        """Answer a HELLO request.

        Raises:
            Rejection: another chain, or an account that didn't sign this identity. The peer is told why.
        """
        try:
            self._welcome(peer, data, now_ms())
        except Rejection as rejection:
            self._note_refusal(peer, f"{rejection}{_advice(str(rejection))}", by_us=True)
            raise
        return self._hello()

    def answer_about(self, peer: PeerId, data: bytes) -> bytes:
        """Answer an ABOUT request: anybody may ask, and says who it is itself.

        Raises:
            Rejection: malformed.
        """
        request = AboutRequest.from_bytes(data, max_bytes=MAX_ABOUT_BYTES)
        own = self.about()
        fault = version_fault(own, request.about) or chain_fault(own, request.about)
        if fault is not None and peer not in self._peers:
            self._note_refusal(peer, fault, by_us=True)
        is_online = request.account == self._own.key.account or self.of_account(request.account) is not None
        return AboutAnswer(own, is_online).to_bytes()

    def answer_peers(self) -> bytes:
        """Answer a PEERS request: addresses of others."""
        return self.discovery.addresses(peer.addresses[0] for peer in self._peers.values() if peer.addresses)

    def about(self) -> About:
        """What this node says of itself to anybody."""
        return About(
            protocol=PROTOCOL_VERSION,
            oldest_protocol=OLDEST_PROTOCOL_VERSION,
            version=self._own.version,
            chain_id=self._chain_id,
            genesis=self._genesis,
            time_ms=now_ms(),
            height=self._own.height(),
            peers=len(self._peers),
            max_peers=self._own.max_peers,
        )

    async def _why_no_hello(self, peer: PeerId) -> str:
        """Why a connection knows no hello. One that fits by its own words only looks around: that is no fault."""
        try:
            fault = await self._compare(peer)
        except (UnsupportedProtocolError, Rejection) as error:
            _log.debug("%s says nothing about itself: %s", peer, error)
            fault = f"it speaks no {HELLO}: it is an old bflnode, or other software"
        except TransportError as error:
            _log.debug("%s left before it said what it is: %s", peer, error)
            return "it left"
        if fault is not None:
            self._note_refusal(peer, fault, by_us=True)
        return fault or "it only looks around"

    async def _explained(self, peer: PeerId, reason: str) -> str:
        """A reason with what to do; two chains are compared."""
        if reason.startswith(Reason.WRONG_CHAIN):
            try:
                return await self._compare(peer) or reason + _advice(reason)
            except (TransportError, Rejection) as error:
                _log.debug("%s says nothing about itself: %s", peer, error)
        return reason + _advice(reason)

    async def _compare(self, peer: PeerId) -> str | None:
        """Why a connection can't be a peer, by its own words; None where it could.

        Raises:
            TransportError, Rejection: it says nothing, or nonsense.
        """
        request = AboutRequest(self.about(), self._own.key.account).to_bytes()
        answer = await self._network.request(
            peer, ABOUT, request, timeout_s=HELLO_TIMEOUT_S, max_response_bytes=MAX_ABOUT_BYTES
        )
        theirs = AboutAnswer.from_bytes(answer, max_bytes=MAX_ABOUT_BYTES).about
        ours = self.about()
        return version_fault(ours, theirs) or chain_fault(ours, theirs)

    def _hello(self) -> bytes:
        others = [peer.addresses[0] for peer in self._peers.values() if peer.addresses]
        own = self.advertised[:MAX_OWN_ADDRESSES]
        sample = random.sample(others, min(len(others), MAX_ADDRESSES - len(own)))
        key = self._own.key
        hello = Hello(
            self._chain_id,
            self._own.version,
            key.account,
            self._own.height(),
            now_ms(),
            (*own, *sample),
            key.sign("hello", self._chain_id, hello_payload(self._network.peer_id, key.account)),
        )
        return hello.to_bytes()

    def _welcome(self, peer: PeerId, data: bytes, clock_ms: int) -> None:
        """Check a hello and take its sender for a peer, unless its connection has ended meanwhile."""
        hello = Hello.from_bytes(data, max_bytes=MAX_HELLO_BYTES)
        self._check(peer, hello)
        if not self._network.is_connected(peer):
            return
        self._note_speaker(peer, hello.account)
        named = {address: _peer_of(address) for address in hello.addresses}
        own = tuple(address for address, whose in named.items() if whose == peer)
        is_new = peer not in self._peers
        offset_ms = hello.time_ms - clock_ms
        self._peers[peer] = Peer(peer, hello.account, hello.version, hello.height, own, offset_ms)
        dialled = self._network.dialled_address(peer)
        if dialled is not None:
            self.discovery.book.met(peer, dialled)
        if own or dialled is not None:
            self._keep(peer, dialled or own[0])
        self.discovery.heard((address for address, whose in named.items() if whose is not None), peer)
        if is_new:
            _log.info("peer %s joined: account %s, height %d", peer, hello.account.hex()[:12], hello.height)
            if abs(offset_ms) > CLOCK_WARNING_MS:
                _log.warning(
                    "the clock of peer %s differs from ours by %.1f s: see `bflnode doctor`", peer, offset_ms / 1000
                )

    def _check(self, peer: PeerId, hello: Hello) -> None:
        """Whether the sender of a hello may be a peer; raises Rejection where not."""
        if hello.chain_id != self._chain_id:
            raise Rejection(Reason.WRONG_CHAIN, theirs=hello.chain_id, ours=self._chain_id)
        verify(hello.account, "hello", self._chain_id, hello_payload(peer, hello.account), hello.signature)
        if not all(text.isprintable() for text in (hello.version, *hello.addresses)):
            raise Rejection(Reason.MALFORMED, fault="version and addresses are for people: printable ASCII")
        if hello.account == self._own.key.account:
            raise Rejection(Reason.DUPLICATE, fault="another node is running with this account's key", peer=peer)
        if len(self._peers) >= self._own.max_peers and peer not in self._peers and peer not in self._configured:
            self._find_place(hello.account)

    def _find_place(self, account: AccountId) -> None:
        """A place in a full node for who speaks for an account; raises Rejection where there is none."""
        is_spoken_for = self.of_account(account) is not None  # or one key would give a place to any number of peers
        if self._own.is_validator(account) and not is_spoken_for:
            return
        strangers = [peer for peer in self._peers if self.worth_of(peer) is Worth.STRANGER]
        if not strangers or not self._own.has_account(account) or is_spoken_for:
            raise Rejection(Reason.LIMIT, fault="this node is full", peers=len(self._peers))
        self._peers.pop(strangers[-1])
        self._let_go(strangers[-1])
        self._network.displace(strangers[-1])

    def _let_go(self, peer: PeerId) -> None:
        """Don't dial a peer again for which there is no place."""
        if peer in self._kept:
            del self._kept[peer]
            self._network.forget(peer)

    def _note_speaker(self, peer: PeerId, account: AccountId) -> None:
        """Remember who speaks for an account of the chain; another peer only when that one is gone."""
        before = [speaker for speaker, spoken_for in self._speakers.items() if spoken_for == account]
        if any(speaker in self._peers for speaker in before) or not self._own.has_account(account):
            return
        for speaker in before:
            del self._speakers[speaker]
            if speaker not in self._configured:
                self._network.places.release_hosts(speaker)
        if len(self._speakers) >= MAX_SPEAKERS:
            del self._speakers[next(iter(self._speakers))]
        self._speakers[peer] = account
        host = self._network.remote_address(peer)
        if host is not None:
            self._network.places.reserve_host(host, peer)

    def _keep(self, peer: PeerId, address: str) -> None:
        """Dial a greeted peer again when it is gone."""
        remembered = self._network.remembered()
        if peer in remembered:
            return
        self._kept = {known: None for known in self._kept if known in remembered}
        if len(self._kept) >= MAX_KEPT:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            self._network.forget(oldest)
        self._kept[peer] = None
        self._network.remember(address, for_ever=False)

    def _note_refusal(self, peer: PeerId, reason: str, *, by_us: bool) -> None:
        """Tell the operator, once for each peer and reason; what a peer says is only its claim."""
        known = next((refusal for refusal in self._refusals if refusal.peer == peer), None)
        if known is not None:
            self._refusals.remove(known)
        self._refusals.append(Refusal(peer, now_ms(), by_us, reason))
        news = (peer, by_us, reason)
        is_news = news not in self._said
        if is_news and len(self._said) >= 4 * MAX_REFUSALS:
            self._said.clear()
        self._said.add(news)
        level = logging.WARNING if is_news else logging.DEBUG
        _log.log(level, "refused peer %s: %s" if by_us else "peer %s refused us: %s", peer, reason)


def make_peers(network: Network, own: OwnSide, home: Home, configuration: Configuration) -> Peers:
    """The registry of a node, with the address book of its home.

    Raises:
        HomeError: a configured address is malformed.
    """
    book = AddressBook(now_ms, home.address_book_file)
    settings = DiscoverySettings(configuration.p2p.bootstrap)
    try:
        return Peers(network, own, lambda peers: Discovery(network, book, settings, peers.ids))
    except TransportError as error:
        raise HomeError(f"{error} (p2p.bootstrap)") from error


def _peer_of(address: str) -> PeerId | None:
    """Whose address it is; None for one that isn't an address at all, which others may pass on in good faith."""
    try:
        return parse_address(address)[1]
    except TransportError:
        return None


def _advice(reason: str) -> str:
    """What an operator can do about a refused hello."""
    if reason.startswith(Reason.WRONG_CHAIN):
        return (
            "; the two nodes have different genesis files: `bflnode doctor MULTIADDR` says where they differ, and "
            "config/genesis.json has to be the same"
        )
    if reason.startswith(Reason.DUPLICATE):
        return "; stop one of the two nodes: they would sign against each other"
    if reason.startswith(Reason.LIMIT):
        return "; its operator may raise p2p.max_peers, or name this node in p2p.persistent_peers"
    return ""
