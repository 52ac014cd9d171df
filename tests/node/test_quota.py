"""A node whose quota is too small for a learning round: it says so, votes for what it has, and all others go on."""

from pathlib import Path

import pytest
import trio

from bflnode.consensus.tables import all_tasks
from bflnode.consensus.task import LearningRound, TaskStatus
from bflnode.consensus.transaction import Available
from bflnode.node.node import Node
from bflnode.node.rpc.methods import RpcMethods
from bflnode.storage.blob_store import Quota
from tests.node.nodes import (
    going,
    learning_round,
    opened,
    settled_rounds,
    small_network,
    task_status,
    until,
    until_done,
)

pytestmark = pytest.mark.usefixtures("forking")


def not_in_line(nodes: list[Node], current: LearningRound) -> Node:
    """The one of four nodes that can't become the aggregator."""
    line = {member.account for member in current.line}
    return next(node for node in nodes if node.key.account not in line)


def votes(node: Node) -> dict[bytes, int]:
    """For how many models each member voted that it has them."""
    store = node.chain.store
    transactions = (tx for block in store.blocks(1, store.tip().height + 1) for tx in block.transactions)
    return {
        tx.sender: int.from_bytes(tx.body.bitmap).bit_count() for tx in transactions if isinstance(tx.body, Available)
    }


async def test_a_node_at_its_quota_says_so_and_votes_for_what_it_has(tmp_path: Path) -> None:
    async with opened(small_network(tmp_path).homes) as nodes, going(nodes):
        await until(nodes[0], lambda: learning_round(nodes[0]) is not None)
        current = learning_round(nodes[0])
        assert current is not None
        poor = not_in_line(nodes, current)
        model_bytes = all_tasks(poor.chain.tree)[0].specification.model_bytes
        poor.blobs.quota = Quota(poor.blobs.used_size() + model_bytes * 5 // 4, poor.pruner.make_room)
        await until_done(nodes, patience_s=60)
        (settled,) = settled_rounds(nodes[0])
        assert len(settled.included) == 4
        by_account = votes(nodes[0])
        # The three others are enough to close the phase: then its vote isn't needed any more.
        assert by_account.get(poor.key.account, 1) in (1, 2)
        assert {count for account, count in by_account.items() if account != poor.key.account} == {4}
        assert poor.blobs.used_size() <= poor.blobs.quota.limit_bytes
        with trio.fail_after(60):
            health = await RpcMethods(poor, "").health()
    assert health["ready"] is False
    assert "the quota of " in health["reasons"][-1]
    assert "bflnode model unpin" in health["reasons"][-1]
    assert task_status(poor) is TaskStatus.DONE
