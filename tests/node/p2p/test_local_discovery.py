"""Nodes on one local network: real multicast, on loopback."""

from pathlib import Path

import pytest

from bflnode.node.p2p import discovery as limits
from bflnode.node.p2p.local_discovery import announced_addresses
from bflnode.node.p2p.peer_identity import peer_id_text
from tests.node.networks import eventually
from tests.node.nodes import going, opened, small_network

PEER = peer_id_text(bytes(32))
ADDRESS = f"/ip4/192.0.2.7/tcp/26656/p2p/{PEER}"


async def test_nodes_of_one_chain_find_each_other_and_no_others(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DISCOVERY_DELAY_S", 0.0)
    flags = {"p2p": {"persistent_peers": (), "mdns": True}, "training": {"enabled": False}}
    ours, theirs = small_network(short_path / "ours"), small_network(short_path / "theirs", rounds=2)
    async with (
        opened(ours.homes[:2], **flags) as [first, second],
        opened(theirs.homes[:1], **flags) as [other],
        going([first, second, other]),
    ):
        await eventually(lambda: bool(first.peers.all() and second.peers.all()), patience_s=20)
        assert first.peers.ids() == (second.network.peer_id,)
        assert other.network.peers() == ()


@pytest.mark.parametrize(
    ("properties", "found"),
    [
        ({"chain": "ab", "peer": PEER, "address0": ADDRESS}, (ADDRESS,)),
        ({"chain": "ab", "peer": PEER, "address0": "nonsense", "address1": ADDRESS, "address2": None}, (ADDRESS,)),
        ({"chain": "cd", "peer": PEER, "address0": ADDRESS}, ()),
        ({"chain": "ab", "peer": "another", "address0": ADDRESS}, ()),
        ({"chain": "ab", "peer": PEER, "address9": ADDRESS}, ()),
        ({"chain": None}, ()),
        ({}, ()),
    ],
)
def test_an_announcement_counts_for_its_chain_and_its_own_node_only(
    properties: dict[str, str | None], found: tuple[str, ...]
) -> None:
    assert announced_addresses(properties, "ab") == found
