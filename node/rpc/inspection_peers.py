"""What a running node says about its peers: who is connected, who was refused or is banned, and the traffic with them.

What belongs here: reading the network's parts, and the two things that a person may change there: banning and
unbanning. JSON-RPC is `server`'s business, texts for terminals are `verbs.peers`'.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bflnode.consensus.keys import account_text
from bflnode.consensus.tables import current_validators
from bflnode.node.p2p.bans import FOR_EVER_MS, Ban, BanError, check_target

from .refusals import ParameterError

if TYPE_CHECKING:
    from bflnode.node.node import Node

MAX_BAN_S = 100 * 365 * 86_400
"""A hundred years; longer is for ever."""


def network_information(node: "Node") -> dict[str, Any]:
    """What `net_info` answers."""
    validators = current_validators(node.chain.tree)
    peers = [
        {
            "node_id": str(peer.id),
            "account": account_text(peer.account),
            "height": peer.height,
            "version": peer.version,
            "is_validator": peer.account in validators,
            "addresses": list(peer.addresses),
            "ip": node.network.remote_address(peer.id),
            "outbound": node.network.dialled_address(peer.id) is not None,
            "clock_offset_ms": peer.clock_offset_ms,
        }
        for peer in node.peers.all()
    ]
    return {
        "node_id": str(node.network.peer_id),
        "listening": list(node.network.addresses),
        "advertised": list(node.peers.advertised),
        "n_peers": len(peers),
        "max_peers": node.configuration.p2p.max_peers,
        "peers": peers,
        "known_addresses": len(node.peers.discovery.book),
        "refusals": [
            {"node_id": str(refusal.peer), "at_ms": refusal.at_ms, "by_us": refusal.by_us, "reason": refusal.reason}
            for refusal in node.peers.refusals()
        ],
        "bans": [ban_line(ban) for ban in node.network.banned()],
        "network": node.network.statistics(),
    }


def ban_line(ban: Ban) -> dict[str, Any]:
    """A ban as JSON: a ban for ever has no end."""
    return {**asdict(ban), "until_ms": None if ban.until_ms >= FOR_EVER_MS else ban.until_ms}


async def ban_peer(node: "Node", target: str, seconds: int | None, reason: str) -> dict[str, Any]:
    """Ban a peer or an address.

    Raises:
        ParameterError: it is neither, or the duration makes no sense.
    """
    if seconds is not None and not 0 < seconds <= MAX_BAN_S:
        raise ParameterError(f"a ban lasts 1 to {MAX_BAN_S} seconds, not {seconds}; leave it out for ever")
    duration_ms = None if seconds is None else seconds * 1000
    return ban_line(await node.network.ban(_target(target), duration_ms=duration_ms, reason=reason))


def unban_peer(node: "Node", target: str) -> dict[str, Any]:
    """End a ban.

    Raises:
        ParameterError: neither a peer nor an address.
    """
    return {"target": target, "was_banned": node.network.unban(_target(target))}


def _target(text: str) -> str:
    try:
        return check_target(text)
    except BanError as error:
        raise ParameterError(str(error)) from error
