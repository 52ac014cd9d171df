"""Who the connected peers are: the hello handshake, and which account, height and addresses a peer has.

A connection becomes a peer once both sides have said hello: same chain, and an account that signed the libp2p
identity it speaks through. Each hello carries addresses of other peers, so one address is enough to join a network.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from bflnode.consensus.keys import SecretKey, verify
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.types import AccountId, ChainId

from .messages import HELLO, MAX_ADDRESSES, Hello, hello_payload
from .network import Network, PeerId, RemoteRefusal, TransportError

_log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0
"""A node on a busy machine may take seconds to answer; one that takes longer is of no use."""

MAX_LEARNED = 256
"""Addresses taken from hellos: each is redialled for ever, so a liar must not be able to add more and more."""

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
    """The registry of greeted peers."""

    def __init__(
        self, network: Network, key: SecretKey, chain_id: ChainId, version: str, height: Callable[[], int]
    ) -> None:
        self._network = network
        self._key = key
        self._chain_id = chain_id
        self._version = version
        self._height = height
        self._peers: dict[PeerId, Peer] = {}
        self._learned: set[str] = set()

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
        """Remember how far a peer is."""
        known = self._peers.get(peer)
        if known is not None and height > known.height:
            self._peers[peer] = replace(known, height=height)

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
            _log.warning("peer %s refused us: %s", peer, refusal)
        except Rejection as rejection:
            _log.warning("refused peer %s: %s", peer, rejection)
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
        addresses = [address for peer in self._peers.values() for address in peer.addresses[:1]]
        own = self._network.addresses[:4]
        hello = Hello(
            self._chain_id,
            self._version,
            self._key.account,
            self._height(),
            (*own, *addresses)[:MAX_ADDRESSES],
            self._key.sign("hello", self._chain_id, hello_payload(self._network.peer_id, self._key.account)),
        )
        return hello.to_bytes()

    def _welcome(self, peer: PeerId, data: bytes) -> None:
        hello = Hello.from_bytes(data, max_bytes=MAX_HELLO_BYTES)
        if hello.chain_id != self._chain_id:
            raise Rejection(Reason.WRONG_CHAIN, theirs=hello.chain_id, ours=self._chain_id)
        verify(hello.account, "hello", self._chain_id, hello_payload(peer, hello.account), hello.signature)
        if hello.account == self._key.account:
            raise Rejection(Reason.DUPLICATE, fault="another node is running with this account's key", peer=peer)
        own = tuple(address for address in hello.addresses if address.endswith(f"/p2p/{peer}"))
        is_new = peer not in self._peers
        self._peers[peer] = Peer(peer, hello.account, hello.version, hello.height, own)
        self._learn(hello.addresses)
        if is_new:
            _log.info("peer %s joined: account %s, height %d", peer, hello.account.hex()[:12], hello.height)

    def _learn(self, addresses: tuple[str, ...]) -> None:
        """Keep connections to the peers that a hello names."""
        for address in addresses:
            if address in self._learned or len(self._learned) >= MAX_LEARNED:
                continue
            self._learned.add(address)
            try:
                self._network.remember(address)
            except TransportError as error:
                raise Rejection(Reason.MALFORMED, address=address, fault=str(error)) from error
