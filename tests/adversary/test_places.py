"""Attacks on the places of a node by who has some right to one: a validator's key, an account, a connection more."""

from collections import Counter
from pathlib import Path

import pytest
import trio

from bflnode.node.p2p import places as limits
from bflnode.node.p2p.libp2p_connections import Gate
from bflnode.node.p2p.memory import Memory
from bflnode.node.p2p.network import PeerId, TransportError
from bflnode.node.p2p.places import Places, Verdict, Worth
from bflnode.node.p2p.streams import PeerSession, Traffic
from tests.node.networks import eventually
from tests.node.nodes import opened
from tests.node.p2p.test_memory import MIB, Holding
from tests.node.rpc.test_server import two_accounts
from tests.node.strangers import stranger_of

MAX_PEERS, BESIDE = 64, 16


async def no_stream(protocol: str) -> None:
    raise TransportError(protocol)


async def test_strangers_with_connections_to_spare_do_not_keep_out_who_has_none() -> None:
    """Thirty-six strangers with four connections each: a validator whose peer nobody knew yet got none."""
    places = Places(MAX_PEERS, BESIDE, lambda peer: Worth[peer.split()[0]], trio.current_time)
    sessions = {}
    for number in range(36):
        peer = PeerId(f"STRANGER {number}")
        sessions[peer] = PeerSession(peer, (), no_stream, Traffic())  # type: ignore[arg-type]  # opens none
    connections = Counter(dict.fromkeys(sessions, 4))
    connections[PeerId("NEW validator")] = 1
    verdict = places.judge(PeerId("NEW validator"), sessions, connections, 500)
    assert verdict.refusal is None
    assert verdict.displaced in sessions
    connections[PeerId("STRANGER 0")] += 1
    assert places.judge(PeerId("STRANGER 0"), sessions, connections, 500) != Verdict()  # type: ignore[arg-type]


async def test_a_validators_key_gives_a_place_to_one_peer_and_no_more(tmp_path: Path) -> None:
    """With it any number of identities were greeted by a full node, and none of them gave way to anybody."""
    home, harness = two_accounts(tmp_path / "home", actor=1)
    async with (
        opened([home], p2p={"max_peers": 1}) as [node],
        stranger_of(node),
        stranger_of(node, seed=97, key=harness.keys[0]) as validator,
        stranger_of(node, seed=96, key=harness.keys[0], greets=False) as again,
    ):
        peers = node.peers
        await eventually(lambda: any(found.peer == again.network.peer_id for found in peers.refusals()))
        assert peers.get(validator.network.peer_id) is not None
        assert peers.get(again.network.peer_id) is None


def test_an_account_that_comes_from_everywhere_does_not_push_out_configured_hosts() -> None:
    places = Places(MAX_PEERS, BESIDE, lambda peer: Worth.RESERVED if peer == "friend" else Worth.MEMBER, lambda: 0.0)
    places.reserve_host("192.0.2.1", PeerId("friend"))
    for number in range(2 * limits.MAX_RESERVED_PEERS):
        places.reserve_host(f"198.51.100.{number}", PeerId(f"member {number}"))
    assert places.is_reserved_host("192.0.2.1")


def test_one_reserved_host_does_not_take_all_sockets_that_are_kept_free() -> None:
    gate = Gate(lambda _: False, 64, lambda: 0.0, max_sockets=40, is_reserved=lambda host: host.startswith("192."))
    for number in range(40):
        assert gate.enter(f"198.51.100.{number}")
    assert [gate.enter("192.0.2.66") for _ in range(64)].count(True) <= 4
    assert gate.enter("192.0.2.1")


def test_a_validator_that_holds_most_is_cut_before_a_client_that_fetches_a_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However little stake it had, all others went first, whenever they had half a megabyte under way."""
    monkeypatch.setattr("bflnode.node.p2p.memory.MAX_HELD_BYTES", 10 * MIB)
    memory = Memory(int)
    client, hog = Holding(str(int(Worth.MEMBER)), 1 * MIB), Holding(str(int(Worth.RESERVED)), 9 * MIB + 1)
    for holder in (client, hog):
        memory.note(holder)
    assert (client.is_cut, hog.is_cut) == (False, True)
