"""Multiaddrs as people and peers give them: taking them apart, and telling loopback from the rest of the world."""

import ipaddress

from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from .streams import PeerId, TransportError

HOST_PROTOCOLS = ("ip4", "ip6", "dns", "dns4", "dns6")


def parse_address(multiaddr: str) -> tuple[Multiaddr, PeerId]:
    """Split a full multiaddr into the address and the peer's id.

    Raises:
        TransportError: it is malformed or has no peer id.
    """
    try:
        if not multiaddr.isprintable():  # the library takes blanks at the end, and addresses are logged
            raise ValueError("control characters")
        address = Multiaddr(multiaddr)
        peer = PeerId(ID.from_base58(str(address.value_for_protocol("p2p"))).to_base58())
    except (ValueError, LookupError, BaseLibp2pError) as error:
        raise TransportError(f"{multiaddr!r} is not a full address like /ip4/127.0.0.1/tcp/4001/p2p/12D3…") from error
    return address, peer


def host_and_port(multiaddr: str) -> tuple[str, int]:
    """The host (an IP address or a name) and TCP port of a multiaddr.

    Raises:
        TransportError: it has none.
    """
    try:
        address = Multiaddr(multiaddr)
        names = {protocol.name for protocol in address.protocols()}
        host = next(str(address.value_for_protocol(name)) for name in HOST_PROTOCOLS if name in names)
        return host, int(str(address.value_for_protocol("tcp")))
    except (ValueError, LookupError, StopIteration, BaseLibp2pError) as error:
        raise TransportError(f"{multiaddr!r} has no host and TCP port, like /ip4/192.0.2.7/tcp/26656") from error


def is_loopback(host: str) -> bool:
    """Whether a host means this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_wildcard(host: str) -> bool:
    """Whether a host to listen on means all of the machine's addresses."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def host_part(host: str) -> str:
    """The start of a multiaddr for an IP address or a name."""
    try:
        return f"/ip{ipaddress.ip_address(host).version}/{host}"
    except ValueError:
        return f"/dns/{host}"
