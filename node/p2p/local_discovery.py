"""Finding the nodes of the same chain on the local network, by multicast DNS (RFC 6762, 6763).

py-libp2p has a discovery of its own; it announces no chain, blocks its caller for seconds while it registers, hands
what it hears to a peerstore from another thread, and listens on all interfaces. So zeroconf is used directly, in its
own threads, which say what they hear through `run_sync_soon`. Whoever is on the local network can announce anything:
what is heard is dialled once, like any hearsay.

    node-id._bflnode._tcp.local.    TXT chain=<hex> peer=<node id> address0=<multiaddr> …
"""

import logging
from collections.abc import Callable, Sequence

import trio
import zeroconf

from bflnode.consensus.types import ChainId

from .addresses import host_and_port, is_loopback
from .libp2p_connections import shielded
from .network import Network, TransportError, parse_address
from .rate_limits import Rate, TokenBucket

_log = logging.getLogger(__name__)

SERVICE = "_bflnode._tcp.local."

MAX_ADDRESSES = 4
"""Addresses of one node: one for each of a machine's networks."""

MAX_TEXT_LENGTH = 255
"""Of an entry of a TXT record, with its name (RFC 6763, section 6.1)."""

ANSWER_TIMEOUT_MS = 3_000
"""For what an announcement doesn't say itself to be asked for."""

HEARD = Rate(per_s=2, burst=64)
"""Announcements looked at: a network of sixty nodes at once."""

CLOSE_TIMEOUT_S = 5.0


async def announce_locally(network: Network, chain_id: ChainId, suggest: Callable[[str], None]) -> None:
    """Announce this node, and suggest the addresses of those of its chain, until cancelled.

    A machine without multicast is no reason not to run: it is logged.

    Args:
        network: whose addresses are announced, on the interfaces that they belong to.
        chain_id: only nodes of this chain are suggested.
        suggest: takes a full multiaddr.
    """
    token = trio.lowlevel.current_trio_token()
    bucket = TokenBucket(HEARD, trio.current_time())

    def hear(addresses: tuple[str, ...]) -> None:
        if not bucket.take(1.0, trio.current_time()):
            return
        for address in addresses:
            _log.debug("announced on the local network: %s", address)
            suggest(address)

    def hear_soon(addresses: tuple[str, ...]) -> None:
        try:
            token.run_sync_soon(hear, addresses)
        except trio.RunFinishedError:
            _log.debug("an announcement came after the end")

    own = _Announced(network.peer_id, chain_id.hex(), network.addresses)
    try:
        service = await trio.to_thread.run_sync(_start, own, hear_soon)
    except (OSError, zeroconf.Error) as error:
        _log.warning(
            "nodes on the local network can't be looked for (%s): give peers with p2p.bootstrap, or unset p2p.mdns",
            repr(error),
        )
        return
    try:
        await trio.sleep_forever()
    finally:
        with shielded(CLOSE_TIMEOUT_S):
            await trio.to_thread.run_sync(service.close)


class _Announced:
    """What one node announces."""

    def __init__(self, peer: str, chain: str, addresses: Sequence[str]) -> None:
        self.peer = peer
        self.chain = chain
        self.addresses = tuple(addresses)[:MAX_ADDRESSES]
        hosts = [host_and_port(address)[0] for address in self.addresses]
        # A node that listens on loopback announces itself there and nowhere else.
        self.interfaces = [host for host in hosts if not is_loopback(host)] or hosts[:1]

    def service(self) -> zeroconf.ServiceInfo:
        """The service as zeroconf announces it."""
        properties = {"chain": self.chain, "peer": self.peer}
        for index, address in enumerate(self.addresses):
            name = f"address{index}"
            if len(name) + 1 + len(address) <= MAX_TEXT_LENGTH:
                properties[name] = address
        return zeroconf.ServiceInfo(
            SERVICE,
            f"{self.peer}.{SERVICE}",
            port=host_and_port(self.addresses[0])[1],
            properties=properties,
            server=f"{self.peer}.local.",
            parsed_addresses=self.interfaces,
        )


class _Listener(zeroconf.ServiceListener):
    """Called by zeroconf, in a thread of its own, for each announcement."""

    def __init__(self, own: _Announced, hear: Callable[[tuple[str, ...]], None]) -> None:
        self._own = own
        self._hear = hear

    def add_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        """A node is announced."""
        if name.startswith(self._own.peer):
            return
        found = zc.get_service_info(type_, name, timeout=ANSWER_TIMEOUT_MS)
        if found is not None:
            self._hear(announced_addresses(found.decoded_properties, self._own.chain))

    def update_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        """What a node announces has changed."""
        self.add_service(zc, type_, name)

    def remove_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        """A node says that it leaves: its connection will tell."""


def announced_addresses(properties: dict[str, str | None], chain: str) -> tuple[str, ...]:
    """The addresses in an announcement of a node of this chain; others have none."""
    if properties.get("chain") != chain:
        return ()
    texts = [properties.get(f"address{index}") for index in range(MAX_ADDRESSES)]
    found = []
    for text in texts:
        try:
            if text and parse_address(text)[1] == properties.get("peer"):
                found.append(text)
        except TransportError:
            continue
    return tuple(found)


def _start(own: _Announced, hear: Callable[[tuple[str, ...]], None]) -> zeroconf.Zeroconf:
    """Announce and listen; blocking. Raises OSError, or an error of zeroconf's."""
    service = zeroconf.Zeroconf(interfaces=own.interfaces)
    try:
        service.register_service(own.service(), allow_name_change=True)
        zeroconf.ServiceBrowser(service, SERVICE, listener=_Listener(own, hear))
    except BaseException:
        service.close()
        raise
    return service
