"""Finding peers: bootstrap addresses, the address book, what peers tell, and what is announced on the local network.

Nobody is dialled because a stranger says so more than once or twice, and only as long as this node wants more peers.
Who a dialled node is, and whether it belongs here, is found out by `peers`.
"""

import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from bflnode.consensus.rejection import Rejection

from .address_book import AddressBook
from .messages import MAX_ADDRESSES, PEERS, PeerAddresses
from .network import Network, PeerId, TransportError, parse_address

_log = logging.getLogger(__name__)

DISCOVERY_DELAY_S = 3.0
"""Nodes that start together know each other by configuration: dialling what hellos name would double connections."""

MAX_CANDIDATES = 256
"""Addresses that wait to be dialled: eight full hellos. A liar's fill them for a minute or two."""

DIALLERS = 4
"""Candidates dialled at once: a dead address takes seconds."""

WANTED_PEERS = 8
"""With fewer peers a node looks for more in its address book; GossipSub's mesh has six."""

SEEK_S = 5.0
SEEK_MAX_S = 30.0
"""Back-off between rounds of looking; it starts again when peers are lost."""

BOOK_SAMPLE = 16
"""Addresses of the book dialled in one round of looking."""

EXCHANGE_S = 60.0
"""How often some peer is asked whom it knows."""

EXCHANGE_TIMEOUT_S = 10.0

SAVE_S = 10.0
"""How often a changed address book is written."""

MAX_ANSWER_BYTES = 16 * 1024
"""Thirty-two addresses of 256 bytes and the rest."""


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    """Where to look.

    Attributes:
        bootstrap: full addresses that are dialled as long as there are no peers.
        wanted_peers: with fewer peers than these the address book is used.
    """

    bootstrap: tuple[str, ...] = ()
    wanted_peers: int = WANTED_PEERS


class Discovery:
    """Looks for peers while there are few.

    Args:
        network: what dials.
        book: addresses from earlier, and those heard.
        settings: where to look.
        greeted: peers that have said hello.
    """

    def __init__(
        self,
        network: Network,
        book: AddressBook,
        settings: DiscoverySettings,
        greeted: Callable[[], tuple[PeerId, ...]],
    ) -> None:
        for address in settings.bootstrap:
            parse_address(address)
        self._network = network
        self._book = book
        self._settings = settings
        self._greeted = greeted
        self._candidates, self._candidates_to_dial = trio.open_memory_channel[str](MAX_CANDIDATES)
        self._waiting: set[str] = set()

    @property
    def waiting(self) -> int:
        """Addresses that wait to be dialled."""
        return len(self._waiting)

    @property
    def bootstrap(self) -> tuple[str, ...]:
        """The configured addresses."""
        return self._settings.bootstrap

    @property
    def book(self) -> AddressBook:
        """The address book."""
        return self._book

    async def run(self) -> None:
        """Look for peers until cancelled; first the configured ones get time to be connected."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._save_regularly)
                await trio.sleep(DISCOVERY_DELAY_S)
                for _ in range(DIALLERS):
                    nursery.start_soon(self._dial_candidates)
                nursery.start_soon(self._seek)
                nursery.start_soon(self._exchange)
        finally:
            self._book.save()

    def heard(self, addresses: Iterable[str], source: PeerId) -> None:
        """A greeted peer names others."""
        for address in addresses:
            if not address.endswith(self._network.peer_id) and self._book.heard(address, source):
                self.suggest(address)

    def suggest(self, address: str) -> None:
        """Dial an address when there is time, unless its peer is connected; what is too much is left out."""
        try:
            peer = parse_address(address)[1]
        except TransportError:
            return
        if peer == self._network.peer_id or self._network.is_connected(peer) or address in self._waiting:
            return
        try:
            self._candidates.send_nowait(address)
        except trio.WouldBlock:
            _log.debug("%s is not dialled: too many addresses wait", address)
        else:
            self._waiting.add(address)

    def addresses(self, connected: Iterable[str]) -> bytes:
        """Answer a PEERS request: connected peers and proven addresses only, so that lies don't spread."""
        known = list(dict.fromkeys((*connected, *self._book.proven_addresses(MAX_ADDRESSES))))
        return PeerAddresses(tuple(random.sample(known, min(MAX_ADDRESSES, len(known))))).to_bytes()

    async def _dial_candidates(self) -> None:
        while True:
            address = await self._candidates_to_dial.receive()
            try:
                await self._network.dial(address)
            except TransportError as error:
                _log.debug("%s", error)
                self._book.failed(parse_address(address)[1], address)
            finally:
                self._waiting.discard(address)

    async def _seek(self) -> None:
        """Look for peers while there are few."""
        pause_s, before = SEEK_S, 0
        while True:
            found = len(self._greeted())
            if not found:
                for address in random.sample(self._settings.bootstrap, len(self._settings.bootstrap)):
                    self.suggest(address)
            if found < self._settings.wanted_peers:
                for address in self._book.sample(BOOK_SAMPLE):
                    self.suggest(address)
            pause_s = SEEK_S if found < before else min(SEEK_MAX_S, 2 * pause_s)
            before = found
            await trio.sleep(pause_s * random.uniform(0.75, 1.25))

    async def _exchange(self) -> None:
        """Ask some peer whom it knows."""
        while True:
            await trio.sleep(EXCHANGE_S * random.uniform(0.75, 1.25))
            peers = self._greeted()
            if peers:
                await self.ask(random.choice(peers))

    async def ask(self, peer: PeerId) -> None:
        """Ask a peer whom it knows."""
        try:
            answer = await self._network.request(
                peer, PEERS, b"", timeout_s=EXCHANGE_TIMEOUT_S, max_response_bytes=MAX_ANSWER_BYTES
            )
            self.heard(PeerAddresses.from_bytes(answer, max_bytes=MAX_ANSWER_BYTES).addresses, peer)
        except TransportError as error:
            _log.debug("no addresses from %s: %s", peer, error)
        except Rejection as rejection:
            self._network.punish(peer, f"addresses of peers: {rejection}")

    async def _save_regularly(self) -> None:
        while True:
            await trio.sleep(SAVE_S)
            await trio.to_thread.run_sync(self._book.save)
