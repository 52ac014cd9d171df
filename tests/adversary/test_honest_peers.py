"""Attacks that would have honest peers banned, cut, kept out or not asked: each test is an attack that fails."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from bflnode.consensus.keys import SecretKey
from bflnode.consensus.transaction import Transaction, Transfer, sign_transaction
from bflnode.consensus.types import Signature
from bflnode.node.node import Node
from bflnode.node.p2p.inbound import VIOLATION_COST
from bflnode.node.p2p.messages import MAX_BATCH, Batch, transactions_topic
from bflnode.node.p2p.network import PeerId
from bflnode.node.p2p.scores import BAN_SCORE
from tests.node.networks import eventually
from tests.node.nodes import opened, small_network
from tests.node.strangers import stranger_of
from tests.node.test_transaction_relay import transfer

QUIET = {"training": {"enabled": False}}
STRANGERS = [PeerId(f"stranger {number}") for number in range(30)]


def forged(transaction: Transaction, number: int) -> Transaction:
    """The same transaction, by its id, with a signature that nobody made."""
    return replace(transaction, signature=Signature(bytes([number]) * 64))


async def test_copies_with_false_signatures_of_what_waits_do_not_get_a_node_banned_by_its_peers(tmp_path: Path) -> None:
    """The id leaves the signature out: a node knew the copy, passed it on unseen, and four of them were its ban."""
    homes = small_network(tmp_path, validators=2).homes[:2]
    async with opened(homes, **QUIET) as [node, other], stranger_of(node) as stranger:
        topic = transactions_topic(node.chain.genesis.chain_id)
        for network in (node.network, stranger.network):
            await network.wait_for_mesh(topic, timeout_s=10)
        waiting = transfer(node)
        node.relay.accept(waiting)
        for number in range(int(BAN_SCORE // VIOLATION_COST) + 1):
            await stranger.network.publish(topic, Batch((forged(waiting, number),)).to_bytes())
        last = transfer(node, 1)
        await stranger.network.publish(topic, Batch((last,)).to_bytes())
        await eventually(lambda: last.id in other.mempool)
        assert node.network.peer_id not in other.network.statistics()["banned"]
        assert node.network.peer_id in other.network.peers()


async def test_what_there_is_no_room_for_is_not_passed_on_beside_something_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has looked at its signature, and peers have room."""
    monkeypatch.setattr("bflnode.node.mempool.MAX_PER_SENDER", 1)
    async with opened(small_network(tmp_path, validators=1).homes[:1], **QUIET) as [node]:
        waiting = transfer(node)
        assert gossip(node, STRANGERS[0], waiting)
        assert not gossip(node, STRANGERS[0], waiting, forged(transfer(node, 1), 1))


async def test_what_was_refused_is_not_passed_on_beside_something_good(tmp_path: Path) -> None:
    """Each of many strangers stayed within what it may send, and the node, for all of them together, didn't."""
    async with opened(small_network(tmp_path, validators=1).homes[:1], **QUIET) as [node]:
        waiting = transfer(node)
        worthless = tuple(worthless_of(node, number) for number in range(MAX_BATCH - 1))
        assert gossip(node, STRANGERS[0], waiting)
        for stranger in STRANGERS:
            assert not gossip(node, stranger, waiting, *worthless)


def gossip(node: Node, sender: PeerId, *transactions: Transaction) -> bool:
    return node.on_gossip(transactions_topic(node.chain.genesis.chain_id), sender, Batch(transactions).to_bytes())


def worthless_of(node: Node, number: int) -> Transaction:
    """Of an account that isn't on the chain, rightly signed."""
    key = SecretKey.from_seed(number.to_bytes(32, "big"))
    return sign_transaction(key, node.chain.genesis.chain_id, Transfer(node.key.account, 1), nonce=0)
