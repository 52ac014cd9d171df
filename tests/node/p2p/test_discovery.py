"""Finding peers: after a restart, from a bootstrap address, from what peers tell, and never for long from lies."""

from pathlib import Path

import pytest
import trio

from bflnode.node.home import HomeError
from bflnode.node.node import Node
from bflnode.node.p2p import discovery as limits
from bflnode.node.p2p.messages import PEERS, PeerAddresses
from bflnode.node.p2p.network import RemoteRefusal
from bflnode.node.p2p.peer_identity import peer_id_text
from tests.node.networks import eventually
from tests.node.nodes import going, opened, small_network
from tests.node.strangers import stranger_of

NO_TRAINING = {"enabled": False}
ALONE = {"persistent_peers": ()}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DISCOVERY_DELAY_S", 0.0)


def knows(node: Node, other: Node) -> bool:
    return node.peers.get(other.network.peer_id) is not None


async def test_a_node_that_restarts_finds_its_network_without_configuration(tmp_path: Path) -> None:
    first_home, second_home = small_network(tmp_path).homes[:2]
    async with opened([first_home], p2p=ALONE, training=NO_TRAINING) as [first]:
        [address] = first.network.addresses
        told = {"persistent_peers": (address,)}
        async with opened([second_home], p2p=told, training=NO_TRAINING) as [second], going([second]):
            await eventually(lambda: knows(second, first))
        assert peer_id_text(first_home.load_peer_seed()) in second_home.address_book_file.read_text()
        assert peer_id_text(second_home.load_peer_seed()) not in second_home.address_book_file.read_text()
        async with opened([second_home], p2p=ALONE, training=NO_TRAINING) as [second], going([second]):
            await eventually(lambda: knows(second, first))
            assert second.network.dialled_address(first.network.peer_id) == address


async def test_a_bootstrap_address_is_dialled_while_there_are_no_peers(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:2]
    async with opened(homes[:1], p2p=ALONE, training=NO_TRAINING) as [first]:
        bootstrap = {"persistent_peers": (), "bootstrap": first.network.addresses}
        async with opened(homes[1:], p2p=bootstrap, training=NO_TRAINING) as [second]:
            assert second.network.remembered() == ()
            async with going([second]):
                await eventually(lambda: knows(second, first))


async def test_a_malformed_bootstrap_address_names_its_setting(tmp_path: Path) -> None:
    home = small_network(tmp_path).homes[0]
    with pytest.raises(HomeError, match=r"'nonsense' is not a full address .* \(p2p.bootstrap\)"):
        async with opened([home], p2p={"bootstrap": ("nonsense",)}):
            pytest.fail("it opened")


async def test_a_peer_tells_whom_it_knows_and_that_one_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "EXCHANGE_S", 0.1)
    homes = small_network(tmp_path).homes[:3]
    async with opened(homes, p2p=ALONE, training=NO_TRAINING) as [middle, left, right]:
        await left.network.dial(middle.network.addresses[0])
        await eventually(lambda: knows(left, middle) and knows(middle, left))
        await right.network.dial(middle.network.addresses[0])
        await eventually(lambda: knows(right, middle) and knows(middle, right))
        async with going([left]):
            await eventually(lambda: knows(left, right))


async def test_addresses_are_told_to_greeted_peers_only_and_as_often_as_allowed(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:1]
    async with (
        opened(homes, p2p=ALONE, training=NO_TRAINING) as [node],
        stranger_of(node, seed=98) as known,
        stranger_of(node, greets=False) as stranger,
    ):
        stranger.chain_id = type(stranger.chain_id)(bytes(32))
        with pytest.raises(RemoteRefusal, match="not-greeted"):
            await stranger.ask(PEERS, b"")
        answer = PeerAddresses.from_bytes(await known.ask(PEERS, b""), max_bytes=1000)
        assert answer.addresses == ()


async def test_nonsense_instead_of_addresses_counts_against_its_sender(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:1]
    async with opened(homes, p2p=ALONE, training=NO_TRAINING) as [node], stranger_of(node) as stranger:
        stranger.answers[PEERS] = b"\xc1 nonsense"
        await node.peers.discovery.ask(stranger.network.peer_id)
        assert node.network.statistics()["scores"][stranger.network.peer_id] > 20
        with trio.fail_after(1):
            await node.peers.discovery.ask(node.network.peer_id)
