"""How transactions travel: to the leaders, by gossip when they wait, large ones to everybody, forged ones nowhere."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from bflnode.consensus.keys import SecretKey
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.tables import ACCOUNTS
from bflnode.consensus.transaction import Aggregate, Slot, Transaction, Transfer, sign_transaction
from bflnode.consensus.types import BlobId, ChainId, Hash, Signature
from bflnode.node.agreement_driver import AgreementDriver
from bflnode.node.node import Node
from bflnode.node.p2p.messages import MAX_BATCH, MAX_GOSSIP_BYTES, PENDING, TRANSACTIONS, Batch, transactions_topic
from bflnode.node.p2p.network import PeerId
from bflnode.node.transaction_relay import REFUSED_RATE, _fitting
from tests.node.networks import eventually
from tests.node.nodes import going, opened, running, small_network, until
from tests.node.strangers import Stranger, stranger_of

CHAIN = ChainId(bytes(32))
PEER = PeerId("peer")
NO_TRAINING = {"enabled": False}


def transfer(node: Node, number: int = 0) -> Transaction:
    account = ACCOUNTS.get(node.chain.tree, node.key.account)
    assert account is not None
    body = Transfer(node.key.account, 1)
    return sign_transaction(node.key, node.chain.genesis.chain_id, body, nonce=account.nonce + number)


def aggregate(size_bytes: int, number: int) -> Transaction:
    slot = Slot(Hash(bytes(32)), number, 0)
    return sign_transaction(SecretKey(bytes(32)), CHAIN, Aggregate(slot, bytes(size_bytes), (BlobId(bytes(32)),), None))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node of four, connected to nobody, that doesn't do anything yet."""
    async with opened(small_network(tmp_path).homes[:1], training=NO_TRAINING) as [node]:
        yield node


@pytest.fixture
async def stranger(node: Node) -> AsyncIterator[Stranger]:
    """A stranger connected to that node."""
    async with stranger_of(node) as stranger:
        yield stranger


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Node]:
    """A node that makes blocks alone."""
    async with running(small_network(tmp_path, validators=1).homes, training=NO_TRAINING) as [node]:
        yield node


@pytest.fixture
async def included(alone: Node) -> Transaction:
    """A transaction of that node that is in a block."""
    transaction = transfer(alone)
    alone.relay.submit(transaction)
    await until(alone, lambda: alone.mempool.was_included(transaction.id))
    return transaction


def test_a_batch_holds_what_fits_and_passes_over_what_does_not() -> None:
    small, large, other = aggregate(100, 1), aggregate(MAX_GOSSIP_BYTES, 2), aggregate(200, 3)
    assert _fitting([large, small, other]) == (small, other)
    many = [aggregate(2_000, number) for number in range(1, 40)]
    chosen = _fitting(many)
    assert chosen == tuple(many[: len(chosen)])
    assert MAX_GOSSIP_BYTES - 2_300 < len(Batch(chosen).to_bytes()) <= MAX_GOSSIP_BYTES
    assert len(_fitting([small] * 500)) <= MAX_BATCH


async def test_a_transaction_that_misses_the_leaders_is_gossiped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = small_network(tmp_path).homes
    async with running(homes, training=NO_TRAINING) as nodes:
        holder = nodes[0]
        await holder.network.wait_for_mesh(transactions_topic(holder.chain.genesis.chain_id), timeout_s=10)
        transaction = transfer(holder)
        monkeypatch.setattr(holder.relay, "_push_to", lambda account, data: None)
        holder.relay.submit(transaction)
        await until(nodes[1], lambda: nodes[1].chain.store.transaction(transaction.id) is not None)


async def test_a_node_asks_a_new_peer_what_waits_there(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes
    async with opened(homes[:1], training=NO_TRAINING) as [holder]:
        transaction = transfer(holder)
        holder.relay.submit(transaction)
        async with opened(homes[1:2], training=NO_TRAINING) as [late]:
            await eventually(lambda: transaction.id in late.mempool)


async def test_a_transaction_too_large_for_gossip_is_pushed_to_all_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bflnode.node.transaction_relay.MAX_GOSSIP_BYTES", 10)
    homes = small_network(tmp_path).homes[:2]
    async with opened(homes, training=NO_TRAINING) as [holder, other], going([holder]):
        await eventually(lambda: holder.peers.get(other.network.peer_id) is not None)
        await eventually(lambda: other.peers.get(holder.network.peer_id) is not None)
        transaction = transfer(holder)
        holder.relay.accept(transaction)
        await eventually(lambda: transaction.id in other.mempool)


async def test_a_transaction_that_a_block_has_overtaken_is_no_fault_but_a_forged_one_is(
    node: Node, stranger: Stranger
) -> None:
    good = transfer(node)
    late = sign_transaction(node.key, stranger.chain_id, good.body, fee=2**52)
    forged = replace(transfer(node, 2), signature=Signature(bytes(64)))
    stranger.push(TRANSACTIONS, Batch((late, good)).to_bytes())
    await eventually(lambda: good.id in node.mempool)
    assert not node.network.statistics()["refused"]
    stranger.push(TRANSACTIONS, Batch((forged,)).to_bytes())
    await eventually(lambda: node.network.statistics()["refused"] == {"bad-signature": 1})
    assert node.mempool.candidates() == (good,)


def overtaken(node: Node, count: int) -> list[Batch]:
    """Transactions that a block has made invalid, all different, in batches."""
    account = ACCOUNTS.get(node.chain.tree, node.key.account)
    assert account is not None
    assert account.nonce > 0
    chain_id = node.chain.genesis.chain_id
    late = [
        sign_transaction(node.key, chain_id, Transfer(node.key.account, number), nonce=0) for number in range(count)
    ]
    return [Batch(tuple(late[start : start + MAX_BATCH])) for start in range(0, count, MAX_BATCH)]


async def test_a_peer_may_send_some_that_a_block_has_overtaken_and_answers_for_more(
    alone: Node, included: Transaction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong nonces cost their sender nothing, and a third of a second of the only thread each second."""
    judged: list[Transaction] = []
    check = alone.chain.check
    monkeypatch.setattr(
        alone.chain, "check", lambda transaction, _: judged.append(transaction) or check(transaction, 0)
    )
    *allowed, excess = overtaken(alone, int(REFUSED_RATE.burst) + MAX_BATCH)
    for batch in allowed:
        assert alone.relay.receive(batch.to_bytes(), PEER) is False
    for _ in range(10):
        with pytest.raises(Rejection) as caught:
            alone.relay.receive(excess.to_bytes(), PEER)
        assert caught.value.reason is Reason.WRONG_NONCE
    assert len(judged) < REFUSED_RATE.burst + 100
    assert alone.relay.receive(excess.to_bytes(), PeerId("another")) is False


async def test_what_a_block_has_is_told_apart_without_looking_at_it(
    alone: Node, included: Transaction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone.chain, "check", None)
    for _ in range(2 * int(REFUSED_RATE.burst)):
        assert alone.relay.receive(Batch((included,)).to_bytes(), PEER) is False


async def test_who_has_just_caught_up_drops_what_it_cannot_judge_and_blames_nobody(
    alone: Node, included: Transaction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AgreementDriver, "is_outdated", True)
    for batch in overtaken(alone, 2 * int(REFUSED_RATE.burst)):
        assert alone.relay.receive(batch.to_bytes(), PEER) is False


async def test_a_full_pool_is_nobodys_fault(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who fills the pool of a node must not make it ban all others."""
    monkeypatch.setattr("bflnode.node.mempool.MAX_PER_SENDER", 1)
    first = transfer(node)
    assert node.relay.receive(Batch((first,)).to_bytes(), PEER)
    monkeypatch.setattr(node.chain, "check", None)
    others = [transfer(node, number) for number in range(1, MAX_BATCH)]
    for _ in range(4):
        assert node.relay.receive(Batch(tuple(others)).to_bytes(), PEER) is False


async def test_an_own_transaction_that_can_never_be_valid_is_refused_with_its_reason(node: Node) -> None:
    poor = sign_transaction(node.key, node.chain.genesis.chain_id, Transfer(node.key.account, 2**52))
    with pytest.raises(Rejection) as caught:
        node.relay.submit(poor)
    assert caught.value.reason is Reason.INSUFFICIENT_FUNDS


async def test_what_waits_is_told_to_a_peer_even_behind_a_large_one(node: Node, stranger: Stranger) -> None:
    first, second = transfer(node), transfer(node, 1)
    node.relay.submit(first)
    node.relay.submit(second)
    batch = Batch.from_bytes(await stranger.ask(PENDING, b"anything"), max_bytes=MAX_GOSSIP_BYTES)
    assert batch.transactions == (first, second)
