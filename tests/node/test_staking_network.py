"""Stake on a running network: an equivocator is slashed, a newcomer bonds and votes, an absent validator is jailed."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from bflnode.consensus.block import NIL, VoteKind, sign_vote
from bflnode.consensus.genesis import Parameters
from bflnode.consensus.keys import account_text
from bflnode.consensus.ledger import assert_supply
from bflnode.consensus.staking import Standing, standing
from bflnode.consensus.tables import ACCOUNTS, current_validators, stake_of
from bflnode.consensus.transaction import Body, Bond, Transfer, Unjail, sign_transaction
from bflnode.consensus.types import AccountId, BlockId
from bflnode.node.node import Node
from bflnode.node.p2p.messages import VOTES
from bflnode.node.rpc.inspection import Inspector, Sources
from bflnode.node.testnets import homes as testnet_homes
from bflnode.node.testnets.homes import STAKE, add_node
from tests.node.nodes import going, opened, small_network, until
from tests.node.strangers import stranger_of

pytestmark = pytest.mark.usefixtures("forking")

IDLE = {"enabled": False}
"""Nodes that agree and don't train."""


def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: int) -> testnet_homes.Testnet:
    original: Callable[[int], Parameters] = testnet_homes._local_parameters
    monkeypatch.setattr(testnet_homes, "_local_parameters", lambda count: replace(original(count), **changes))  # type: ignore[arg-type]  # by name
    return small_network(tmp_path)


async def send(node: Node, body: Body) -> None:
    """Submit a transaction of a node's account, and wait for its block."""
    account = ACCOUNTS.get(node.chain.tree, node.key.account)
    assert account is not None
    transaction = sign_transaction(node.key, node.chain.genesis.chain_id, body, nonce=account.nonce)
    node.relay.submit(transaction)
    await until(node, lambda: node.chain.store.transaction(transaction.id) is not None)


def standing_at(node: Node, account: AccountId) -> Standing:
    return standing(node.chain.tree, account)


def inspector(node: Node) -> Inspector:
    return Inspector(Sources(node.chain.store, node.chain.tree, node.blobs, node.journal, node.key.account))


async def test_an_equivocator_is_caught_by_one_node_and_slashed_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its two votes reach a single node; afterwards its own node says what has happened."""
    net = network(tmp_path, monkeypatch)
    *honest, last = net.homes
    key = last.load_account_key()
    async with opened(honest, training=IDLE) as nodes, going(nodes):
        chain_id = nodes[0].chain.genesis.chain_id
        async with stranger_of(nodes[0], key=key) as liar:
            height = nodes[0].chain.height + 1
            for block_id in (NIL, BlockId(bytes([7]) * 32)):
                vote = sign_vote(key, chain_id, VoteKind.PREVOTE, height, 0, block_id)
                liar.push(VOTES, vote.to_bytes())
            for node in nodes:
                await until(node, lambda node=node: standing_at(node, key.account) is Standing.TOMBSTONED)  # type: ignore[misc]  # a default binds the loop's value
        for node in nodes:
            assert stake_of(node.chain.tree, key.account).bonded == STAKE // 2
            assert len(current_validators(node.chain.tree)) == 3
            assert_supply(node.chain.genesis, node.chain.tree)
        [offence] = inspector(nodes[1]).evidence()
        assert (offence["account"], offence["kind"]) == (account_text(key.account), "double-sign")
        assert offence["reporter"] == account_text(nodes[0].key.account)
        assert offence["evidence"]["height"] == height
        await send(nodes[1], Transfer(nodes[1].key.account, 1))
        assert len(nodes[0].accusations) == 0
        assert list(honest[0].evidence.iterdir()) == []
        async with opened([last], training=IDLE) as [late], going([late]):
            await until(late, lambda: standing_at(late, key.account) is Standing.TOMBSTONED)
            assert "tombstoned: this account signed two different messages" in caplog.text
            assert inspector(late).status()["standing"] == "tombstoned"


async def test_a_newcomer_bonds_and_then_signs_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(tmp_path, monkeypatch)
    _, home = add_node(net)
    async with (
        opened(net.homes, training=IDLE) as nodes,
        opened([home], training=IDLE) as [late],
        going([*nodes, late]),
    ):
        own = late.key.account
        await until(late, lambda: ACCOUNTS.get(late.chain.tree, own) is not None)
        assert standing_at(late, own) is Standing.NONE
        await send(late, Bond(STAKE))
        assert standing_at(late, own) is Standing.ACTIVE
        await until(nodes[0], lambda: current_validators(nodes[0].chain.tree).stake_of(own) == STAKE)
        index = current_validators(late.chain.tree).index_of(own)
        with trio.fail_after(30):
            while index not in {entry.index for entry in nodes[0].chain.tip_commit.signatures}:
                await send(nodes[0], Transfer(own, 1))


async def test_a_stopped_validator_is_jailed_comes_back_and_unjails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    net = network(tmp_path, monkeypatch, attendance_window=6, missed_to_jail=5, jail_ms=1_000, heartbeat_ms=500)
    *staying, sleeper = net.homes
    account = sleeper.load_account_key().account
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(opened(staying, training=IDLE))
        await stack.enter_async_context(going(nodes))
        for node in nodes:
            await until(node, lambda node=node: standing_at(node, account) is Standing.JAILED, 60)  # type: ignore[misc]  # a default binds the loop's value
        assert len(current_validators(nodes[0].chain.tree)) == 3
        assert stake_of(nodes[0].chain.tree, account).bonded == STAKE
        [late] = await stack.enter_async_context(opened([sleeper], training=IDLE))
        await stack.enter_async_context(going([late]))
        await until(late, lambda: standing_at(late, account) is Standing.JAILED)
        assert "jailed for missing 5 of 6 commits" in caplog.text
        assert "unjail" in inspector(late).validator()["advice"]
        until_ms = stake_of(late.chain.tree, account).jailed_until_ms
        assert until_ms is not None
        await until(late, lambda: late.chain.tip_time_ms >= until_ms)
        await send(late, Unjail())
        assert standing_at(late, account) is Standing.ACTIVE
        signed = current_validators(late.chain.tree).index_of(account)
        await until(nodes[0], lambda: signed in {entry.index for entry in nodes[0].chain.tip_commit.signatures}, 60)
        assert standing_at(nodes[0], account) is Standing.ACTIVE
