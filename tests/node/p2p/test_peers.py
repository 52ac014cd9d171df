"""Hellos: who is a peer, what its addresses are worth, and what a liar can't do to honest nodes."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from bflnode.consensus.keys import SecretKey
from bflnode.consensus.types import Signature
from bflnode.node.node import Node
from bflnode.node.p2p import peers as limits
from bflnode.node.p2p.address_book import MAX_PER_SOURCE
from bflnode.node.p2p.messages import HELLO, Hello, hello_payload
from bflnode.node.p2p.network import RemoteRefusal
from bflnode.node.p2p.peer_identity import peer_id_text
from tests.node.networks import eventually
from tests.node.nodes import going, opened, small_network
from tests.node.strangers import Stranger, stranger_of

SOMEBODY = "12D3KooWGC6TvWhfajpgX6wvJHhYvKpTGRW4xGdjw3cPhZ7fkgcz"


def peer_of(node: Node, stranger: Stranger) -> limits.Peer | None:
    return node.peers.get(stranger.network.peer_id)


async def test_both_sides_know_account_version_and_height_after_a_hello(tmp_path: Path) -> None:
    async with opened(small_network(tmp_path).homes[:2]) as [first, second]:
        for here, there in ((first, second), (second, first)):
            await eventually(lambda here=here, there=there: here.peers.get(there.network.peer_id) is not None)
            peer = here.peers.of_account(there.key.account)
            assert peer is not None
            assert (peer.id, peer.version, peer.height) == (there.network.peer_id, there.version, 0)
            assert peer.addresses == there.network.addresses


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chain_id": bytes(32)}, "wrong-chain"),
        ({"signature": Signature(bytes(64))}, "bad-signature"),
        ({"account": SecretKey.from_seed(bytes(32)).account}, "bad-signature"),
        ({"version": "1.0\x1b[2J"}, "malformed"),
        ({"addresses": ("/dns/a\nb/tcp/1",)}, "malformed"),
    ],
)
async def test_a_hello_that_does_not_belong_here_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    homes = small_network(tmp_path).homes[:1]
    async with opened(homes) as [node], stranger_of(node, greets=False) as stranger:
        stranger.chain_id = replace(node.chain.genesis, name="another").chain_id
        await eventually(lambda: HELLO in stranger.asked)
        async with stranger_of(node, seed=98) as other:
            with pytest.raises(RemoteRefusal, match=reason):
                await other.ask(HELLO, other.hello(**change))


async def test_a_hello_signed_for_another_connection_is_refused(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:1]
    async with opened(homes) as [node], stranger_of(node) as honest, stranger_of(node, seed=98) as thief:
        with pytest.raises(RemoteRefusal, match="bad-signature"):
            await thief.ask(HELLO, honest.hello())


async def test_a_node_with_this_nodes_own_account_is_refused(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:1]
    async with opened(homes) as [node], stranger_of(node) as twin:
        key = node.key
        payload = hello_payload(twin.network.peer_id, key.account)
        signature = key.sign("hello", twin.chain_id, payload)
        with pytest.raises(RemoteRefusal, match="another node is running with this account's key"):
            await twin.ask(HELLO, twin.hello(account=key.account, signature=signature))


async def test_addresses_that_are_none_are_passed_over_and_not_passed_on(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:1]
    junk = ("", "nonsense", "/ip4/1.2.3.4", f"nonsense/p2p/{SOMEBODY}", "/" * 256, "/ip4/1.2.3.4/tcp/1/p2p/x")
    async with opened(homes) as [node], stranger_of(node, greets=False) as stranger:
        stranger.addresses = (*junk, f"junk/p2p/{stranger.network.peer_id}")
        await stranger.ask(HELLO, stranger.hello())
        peer = peer_of(node, stranger)
        assert peer is not None
        assert peer.addresses == ()
        async with stranger_of(node, seed=98) as other:
            answer = Hello.from_bytes(await other.ask(HELLO, other.hello()), max_bytes=limits.MAX_HELLO_BYTES)
            assert answer.addresses == node.network.addresses


async def test_a_peer_that_a_hello_names_is_dialled_and_greeted(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:2]
    flags = {"p2p": {"persistent_peers": ()}}
    async with (
        opened(homes, **flags) as [first, second],
        going([first, second]),
        stranger_of(first, greets=False) as gossip,
    ):
        gossip.addresses = second.network.addresses
        await gossip.ask(HELLO, gossip.hello())
        await eventually(lambda: first.peers.of_account(second.key.account) is not None)


async def test_a_flood_of_addresses_is_bounded_and_nobody_unknown_is_dialled_for_ever(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:1]
    async with opened(homes, p2p={"persistent_peers": ()}) as [node], stranger_of(node) as liar:
        for batch in range(12):
            liar.addresses = tuple(
                f"/ip4/127.{batch}.{port}.1/tcp/1/p2p/{peer_id_text(bytes([batch, port]) * 16)}" for port in range(32)
            )
            await liar.ask(HELLO, liar.hello())
        discovery = node.peers.discovery
        assert discovery.waiting == len(discovery.book) == MAX_PER_SOURCE
        assert set(node.network.remembered()) <= {liar.network.peer_id}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.peers.run)
            await eventually(lambda: discovery.waiting < MAX_PER_SOURCE)
            nursery.cancel_scope.cancel()


async def test_peers_that_are_dialled_again_are_bounded_and_configured_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_KEPT", 2)
    homes = small_network(tmp_path).homes[:1]
    configured = f"/ip4/127.0.0.1/tcp/1/p2p/{SOMEBODY}"
    async with opened(homes, p2p={"persistent_peers": (configured,)}) as [node]:
        seen = []
        for seed in (91, 92, 93):
            async with stranger_of(node, seed=seed, greets=False) as stranger:
                stranger.addresses = stranger.network.addresses
                await stranger.ask(HELLO, stranger.hello())
                seen.append(stranger.network.peer_id)
        assert set(node.network.remembered()) == {SOMEBODY, *seen[1:]}


async def test_a_peer_that_left_is_forgotten(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:1]
    async with opened(homes) as [node]:
        async with stranger_of(node) as stranger:
            assert node.peers.of_account(stranger.key.account) is not None
        await eventually(lambda: node.peers.all() == ())


async def test_a_height_is_believed_until_it_proves_wrong(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:1]
    async with opened(homes) as [node], stranger_of(node) as stranger:
        peer = stranger.network.peer_id
        node.peers.note_height(peer, 7)
        node.peers.note_height(peer, 5)
        assert node.peers.all()[0].height == 7
        node.peers.disbelieve(peer, 0)
        assert node.peers.all()[0].height == 0


async def test_a_node_behind_another_address_tells_that_one_to_its_peers(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:1]
    for host, start in (("node.example.org", "/dns/node.example.org"), ("203.0.113.7", "/ip4/203.0.113.7")):
        async with opened(homes, p2p={"external_host": host}) as [node], stranger_of(node) as stranger:
            answer = Hello.from_bytes(await stranger.ask(HELLO, stranger.hello()), max_bytes=limits.MAX_HELLO_BYTES)
            [own] = node.network.addresses
            assert answer.addresses == (start + own.removeprefix("/ip4/127.0.0.1"),)
            assert node.peers.advertised == answer.addresses


async def test_a_node_listens_on_ipv6(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:1]
    async with opened(homes, p2p={"host": "::1"}) as [node]:
        assert node.network.addresses[0].startswith("/ip6/::1/tcp/")
