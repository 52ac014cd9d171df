"""Who the connected peers are: the hello handshake, and which account, height and addresses a peer has.

A connection becomes a peer once both sides have said hello: same chain, and an account that signed the libp2p
identity it speaks through. Each hello carries addresses of other peers, so one address is enough to join a network.
Hearsay is dialled once; only who has said hello is dialled again when it is gone.
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import trio

from bflnode.consensus.keys import SecretKey, verify
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.types import AccountId, ChainId

from .messages import HELLO, MAX_ADDRESSES, Hello, hello_payload
from .network import Network, PeerId, RemoteRefusal, TransportError, parse_address

_log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 15.0
"""A node on a busy machine may take seconds to answer; one that takes longer is of no use."""

DISCOVERY_DELAY_S = 3.0
"""Nodes that start together know each other by configuration: dialling what hellos name would double connections."""

MAX_CANDIDATES = 256
"""Addresses from hellos that wait to be dialled: eight full hellos. A liar's fill them for a minute or two."""

DIALLERS = 4
"""Candidates dialled at once: a dead address takes five seconds."""

MAX_KEPT = 256
"""Peers that are dialled again when they are gone, besides the configured ones; the one greeted first gives way."""

MAX_OWN_ADDRESSES = 4
"""Own addresses in a hello: one for each of a machine's networks."""

MAX_HELLO_BYTES = 16 * 1024
"""Thirty-two addresses of 256 bytes and the rest."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A connected node that has said hello."""

    id: PeerId
    account: AccountId
    version: str
    height: int
    addresses: tuple[str, ...]


class Peers:
    """The registry of greeted peers.

    Attributes:
        advertised: addresses of this node for others to dial.
    """

    def __init__(
        self, network: Network, key: SecretKey, chain_id: ChainId, version: str, height: Callable[[], int]
    ) -> None:
        self.advertised = network.addresses
        self._network = network
        self._key = key
        self._chain_id = chain_id
        self._version = version
        self._height = height
        self._peers: dict[PeerId, Peer] = {}
        self._persistent: set[PeerId] = set()
        self._kept: dict[PeerId, None] = {}
        self._candidates, self._candidates_to_dial = trio.open_memory_channel[str](MAX_CANDIDATES)
        self._waiting: set[str] = set()

    async def run(self) -> None:
        """Dial the peers that hellos name, until cancelled; first the configured ones get time to be connected."""
        await trio.sleep(DISCOVERY_DELAY_S)
        async with trio.open_nursery() as nursery:
            for _ in range(DIALLERS):
                nursery.start_soon(self._dial_candidates)

    def keep(self, address: str) -> None:
        """Keep a connection to a configured peer.

        Raises:
            TransportError: the address is malformed.
        """
        self._persistent.add(self._network.remember(address))

    def all(self) -> tuple[Peer, ...]:
        """Greeted peers, in the order in which they came."""
        return tuple(self._peers.values())

    def ids(self) -> tuple[PeerId, ...]:
        """Their ids."""
        return tuple(self._peers)

    def get(self, peer: PeerId) -> Peer | None:
        """A greeted peer."""
        return self._peers.get(peer)

    def of_account(self, account: AccountId) -> Peer | None:
        """The peer that speaks for an account."""
        return next((peer for peer in self._peers.values() if peer.account == account), None)

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
        try:
            response = await self._network.request(
                peer, HELLO, self._hello(), timeout_s=HELLO_TIMEOUT_S, max_response_bytes=MAX_HELLO_BYTES
            )
            self._welcome(peer, response)
        except RemoteRefusal as refusal:
            _log.warning("peer %s refused us: %s%s", peer, refusal, _advice(refusal.reason))
        except Rejection as rejection:
            _log.warning("refused peer %s: %s%s", peer, rejection, _advice(str(rejection)))
        except TransportError as error:
            _log.info("no hello from %s: %s", peer, error)
        else:
            return True
        await self._network.disconnect(peer)
        return False

    def answer(self, peer: PeerId, data: bytes) -> bytes:
        """Answer a HELLO request.

        Raises:
            Rejection: another chain, or an account that didn't sign this identity. The peer is told why.
        """
        self._welcome(peer, data)
        return self._hello()

    def _hello(self) -> bytes:
        others = [peer.addresses[0] for peer in self._peers.values() if peer.addresses]
        own = self.advertised[:MAX_OWN_ADDRESSES]
        sample = random.sample(others, min(len(others), MAX_ADDRESSES - len(own)))
        hello = Hello(
            self._chain_id,
            self._version,
            self._key.account,
            self._height(),
            (*own, *sample),
            self._key.sign("hello", self._chain_id, hello_payload(self._network.peer_id, self._key.account)),
        )
        return hello.to_bytes()

    def _welcome(self, peer: PeerId, data: bytes) -> None:
        """Check a hello and take its sender for a peer, unless its connection has ended meanwhile."""
        hello = Hello.from_bytes(data, max_bytes=MAX_HELLO_BYTES)
        if hello.chain_id != self._chain_id:
            raise Rejection(Reason.WRONG_CHAIN, theirs=hello.chain_id, ours=self._chain_id)
        verify(hello.account, "hello", self._chain_id, hello_payload(peer, hello.account), hello.signature)
        if not all(text.isprintable() for text in (hello.version, *hello.addresses)):
            raise Rejection(Reason.MALFORMED, fault="version and addresses are for people: printable ASCII")
        if hello.account == self._key.account:
            raise Rejection(Reason.DUPLICATE, fault="another node is running with this account's key", peer=peer)
        if not self._network.is_connected(peer):
            return
        named = {address: _peer_of(address) for address in hello.addresses}
        own = tuple(address for address, whose in named.items() if whose == peer)
        is_new = peer not in self._peers
        self._peers[peer] = Peer(peer, hello.account, hello.version, hello.height, own)
        if own:
            self._keep(peer, own[0])
        for address, whose in named.items():
            if whose is not None:
                self._learn(address, whose)
        if is_new:
            _log.info("peer %s joined: account %s, height %d", peer, hello.account.hex()[:12], hello.height)

    def _keep(self, peer: PeerId, address: str) -> None:
        """Dial a greeted peer again when it is gone."""
        if peer in self._persistent or peer in self._kept:
            return
        if len(self._kept) >= MAX_KEPT:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            self._network.forget(oldest)
        self._kept[peer] = None
        self._network.remember(address)

    def _learn(self, address: str, peer: PeerId) -> None:
        """Dial a peer that a hello names, when there is time; what is too much is left out."""
        if peer == self._network.peer_id or self._network.is_connected(peer) or address in self._waiting:
            return
        try:
            self._candidates.send_nowait(address)
        except trio.WouldBlock:
            _log.debug("%s is not dialled: too many addresses wait", address)
        else:
            self._waiting.add(address)

    async def _dial_candidates(self) -> None:
        while True:
            address = await self._candidates_to_dial.receive()
            try:
                await self._network.dial(address)
            except TransportError as error:
                _log.debug("a peer named by another: %s", error)
            finally:
                self._waiting.discard(address)


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
            "; the two nodes have different genesis files: compare config/genesis.json with the operator of the other"
        )
    if reason.startswith(Reason.DUPLICATE):
        return "; stop one of the two nodes: they would sign against each other"
    return ""
