"""Who is taken, who gives way, and what strangers can't fill: the rules alone, and on real connections."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from bflnode.node.node import Node
from bflnode.node.p2p import places as limits
from bflnode.node.p2p.libp2p_connections import Gate
from bflnode.node.p2p.libp2p_repairs import MAX_HANDSHAKES
from bflnode.node.p2p.messages import HELLO
from bflnode.node.p2p.network import RESERVED_SOCKETS, PeerId, TransportError
from bflnode.node.p2p.notices import MAX_NOTICES
from bflnode.node.p2p.places import Places, Verdict, Worth
from bflnode.node.p2p.streams import PeerSession, Traffic
from tests.node.networks import address_and_id, echo_works, eventually, networks
from tests.node.nodes import opened
from tests.node.rpc.test_server import two_accounts
from tests.node.strangers import Stranger, stranger_of, stranger_of_kind

FULL = "full: there are 2 peers already"
MOST = 10


class Room:
    """Places for two, and one more for a hello; peers are named by what they are and a number."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.places = Places(2, 1, lambda peer: Worth[peer.split()[0]], lambda: self.now_s)
        self.sessions: dict[PeerId, PeerSession] = {}
        self.connections: Counter[PeerId] = Counter()

    async def no_stream(self, protocol: str) -> None:
        raise TransportError(protocol)

    def enter(self, name: str) -> Verdict:
        peer = PeerId(name)
        self.connections[peer] += 1
        verdict = self.places.judge(peer, self.sessions, self.connections, MOST)
        if verdict.displaced is not None:
            del self.sessions[verdict.displaced]
            del self.connections[verdict.displaced]
        if verdict.refusal is not None:
            self.connections[peer] -= 1
        elif peer not in self.sessions:
            self.now_s += 0.001
            self.sessions[peer] = PeerSession(peer, (), self.no_stream, Traffic())  # type: ignore[arg-type]  # opens none
            self.sessions[peer].started_at = self.now_s
        return verdict


async def test_a_full_node_refuses_strangers_and_takes_reserved_peers() -> None:
    room = Room()
    assert [room.enter(name) for name in ("STRANGER 1", "MEMBER 1", "NEW 1")] == [Verdict()] * 3
    assert room.enter("NEW 2") == room.enter("MEMBER 2") == Verdict(FULL)
    assert [room.enter(f"RESERVED {number}") for number in range(4)] == [Verdict()] * 4
    assert room.enter("NEW 2") == Verdict(FULL)


async def test_connections_of_few_strangers_do_not_fill_a_node() -> None:
    room = Room()
    taken = [room.enter(f"STRANGER {number % 2}").refusal for number in range(8)].count(None)
    assert taken == 5
    assert room.enter("RESERVED 1") == Verdict()


async def test_who_has_said_no_hello_for_long_gives_way_the_first_first() -> None:
    room = Room()
    for name in ("STRANGER 1", "NEW 1", "NEW 2"):
        room.enter(name)
    assert room.enter("NEW 3") == Verdict(FULL)
    room.now_s += limits.HELLO_GRACE_S
    assert room.enter("NEW 3") == Verdict(displaced=PeerId("NEW 1"))
    assert room.enter("NEW 4") == Verdict(displaced=PeerId("NEW 2"))
    assert room.enter("NEW 5") == Verdict(FULL)


async def test_a_reserved_peer_takes_the_place_of_who_is_worth_least_and_came_last() -> None:
    room = Room()
    for name in ("MEMBER 1", "STRANGER 1", "STRANGER 2"):
        room.enter(name)
    for number in range(MOST - 3):
        room.enter(f"RESERVED {number}")
    displaced = [room.enter(f"RESERVED {number}").displaced for number in range(20, 24)]
    assert displaced == ["STRANGER 2", "STRANGER 1", "MEMBER 1", None]


def test_hosts_for_which_sockets_are_kept_free_are_bounded() -> None:
    places = Places(1, 1, lambda _: Worth.NEW, lambda: 0.0)
    for number in range(limits.MAX_RESERVED_PEERS + 1):
        places.reserve_host(f"host {number}", PeerId(f"peer {number}"))
        places.reserve_host("host 1", PeerId("peer 1"))
    assert not places.is_reserved_host("host 0")
    assert places.is_reserved_host("host 1")


def test_the_last_sockets_are_for_reserved_hosts() -> None:
    gate = Gate(lambda _: False, 64, lambda: 0.0, max_sockets=40, is_reserved=lambda address: address == "192.0.2.1")
    taken = [gate.enter(f"198.51.100.{number}") for number in range(50)].count(True)
    assert taken == 40
    assert gate.enter("192.0.2.1")
    assert gate.refused == {"full": 10}


async def test_idle_sockets_of_many_addresses_do_not_keep_out_a_configured_peer() -> None:
    """They filled what a node takes in all: from then on nobody could connect."""
    most = 2 * 1 + MAX_NOTICES + MAX_HANDSHAKES
    async with networks(2, max_peers=1) as [(node, _), (friend, _)], AsyncExitStack() as stack:
        node.places.reserve_host("127.0.0.1", friend.peer_id)
        port = int(node.addresses[0].split("/")[4])
        for number in range(most + 10):
            stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=f"127.0.0.{2 + number % 4}")
            await stack.enter_async_context(stream)
        await eventually(lambda: node.statistics()["turned_away"].get("full") == RESERVED_SOCKETS + 10)
        await friend.dial(node.addresses[0])
        assert await echo_works(friend, node.peer_id)


async def test_connections_of_strangers_do_not_keep_out_a_configured_peer() -> None:
    async with networks(5, max_peers=2) as [(node, _), (one, _), (two, _), (late, _), (friend, _)]:
        for stranger in (one, two):
            await stranger.dial(node.addresses[0])
            await stranger._swarm.dial(*address_and_id(node))
        with suppress(TransportError):
            await late.dial(node.addresses[0])
        await eventually(lambda: late.last_words(node.peer_id) == FULL)
        node._redialler._for_ever.add(friend.peer_id)
        await friend.dial(node.addresses[0])
        assert await echo_works(friend, node.peer_id)


class Silent(Stranger):
    """A stranger that answers nothing."""

    async def on_request(self, protocol: str, sender: PeerId, data: bytes) -> bytes:
        await trio.sleep_forever()
        return b""


@asynccontextmanager
async def silent_peer(node: Node, seed: int) -> AsyncIterator[Stranger]:
    """A connection that never says hello."""
    async with stranger_of_kind(Silent, node, seed=seed, greets=False) as stranger:
        yield stranger


async def test_connections_without_hello_give_way_to_a_validator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bflnode.node.node.RESERVED_FOR_VALIDATORS", 0)
    monkeypatch.setattr(limits, "HELLO_GRACE_S", 0.0)
    home, harness = two_accounts(tmp_path / "home", actor=1)
    async with (
        opened([home], p2p={"max_peers": 1}) as [node],
        silent_peer(node, 98) as silent,
        stranger_of(node, seed=97, key=harness.keys[0]) as validator,
    ):
        assert node.peers.worth_of(validator.network.peer_id) is Worth.RESERVED
        await eventually(lambda: silent.network.peers() == ())


async def test_who_speaks_for_an_account_takes_the_place_of_a_stranger_once(tmp_path: Path) -> None:
    home, harness = two_accounts(tmp_path / "home")
    member_key = harness.keys[1]
    async with opened([home], p2p={"max_peers": 1}) as [node], stranger_of(node) as stranger:
        assert node.peers.worth_of(stranger.network.peer_id) is Worth.STRANGER
        async with stranger_of(node, seed=97, key=member_key) as member:
            assert node.peers.worth_of(member.network.peer_id) is Worth.MEMBER
            assert [peer.id for peer in node.peers.all()] == [member.network.peer_id]
            await eventually(lambda: stranger.network.peers() == ())
            async with stranger_of(node, seed=96, key=member_key, greets=False) as again:
                await eventually(lambda: HELLO in again.asked)
                await eventually(lambda: any(found.peer == again.network.peer_id for found in node.peers.refusals()))
                assert [peer.id for peer in node.peers.all()] == [member.network.peer_id]
