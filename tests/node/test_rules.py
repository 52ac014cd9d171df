"""Rules of a task among real nodes: aggregated, re-executed by the committee, paid, and verified by anybody."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from bflnode.consensus.duties import Aggregate
from bflnode.consensus.tables import all_tasks
from bflnode.consensus.task import Combination, Rule, class_bitmap
from bflnode.consensus.transaction import Aggregate as AggregateBody
from bflnode.consensus.transaction import Attest, Fault
from bflnode.fl.interpolation import INTERPOLATION, MEMORY, share_of_training
from bflnode.fl.samples import load_shard
from bflnode.node.duty_work import DutyWork, training_job
from bflnode.node.node import Node
from bflnode.node.verify import Verification, verify_chain
from bflnode.node.workers.worker_protocol import LookAhead, Memory
from tests.node.nodes import (
    client_of,
    going,
    learning_round,
    opened,
    running,
    settled_rounds,
    small_network,
    until,
    until_done,
)

pytestmark = pytest.mark.usefixtures("forking")


class RuleBreaker(DutyWork):
    """Makes outputs by the paper's rule when it aggregates first in line, whatever the task's is."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.participant._work._tools)
        self.node = node
        node.participant._work = self

    async def aggregate(self, duty: Aggregate) -> AggregateBody:
        current = learning_round(self.node)
        assert current is not None
        if not current.acting and duty.slot.number == 1:
            paper = {"rule": Rule.PAA, "combination": Combination.MEAN, "step_permille": 1000}
            specification = replace(duty.specification, **paper)  # type: ignore[arg-type]  # fields by name
            duty = replace(duty, specification=specification)
        return await super().aggregate(duty)


async def test_one_model_for_all_is_made_by_rows_and_an_aggregator_that_breaks_the_rule_is_caught(
    tmp_path: Path,
) -> None:
    net = small_network(tmp_path, rule="prior-rows", step_permille=1500, shared_permille=1000, rounds=2, alpha=0.1)
    async with opened(net.homes) as nodes:
        watcher = nodes[0]
        for node in nodes:
            RuleBreaker(node)
        async with going(nodes):
            await until(watcher, lambda: learning_round(watcher) is not None)
            current = learning_round(watcher)
            assert current is not None
            breaker, successor = (member.account for member in current.line[:2])
            await until_done(nodes, patience_s=60)
        first, second = settled_rounds(watcher)
        verdicts = _verdicts(watcher)
        verification = await _verified(watcher)
        entry = nodes[1].participant._work._tools.journal.entry(second.slot)
    assert first.aggregation is not None
    assert second.aggregation is not None
    assert first.aggregation.aggregator == successor != breaker
    settled_aggregates = {first.aggregation.transaction, second.aggregation.transaction}
    assert {fault for aggregate, fault in verdicts if aggregate not in settled_aggregates} == {Fault.OUTPUT_MISMATCH}
    for settled in (first, second):
        assert settled.aggregation is not None
        assert len(set(settled.aggregation.labels)) == 2
        assert len(set(settled.aggregation.outputs)) == 1, "clusters decide the pay alone"
        assert sum(client.gross > 0 for client in settled.clients) == 4
    assert {client.base for client in second.clients} == set(first.aggregation.outputs)
    for node in nodes:
        histogram = load_shard(node.home.shard).train.histogram()
        assert client_of(second, node.key.account).classes == class_bitmap(histogram)
    assert verification.is_valid
    assert [(task.settled, task.reexecuted) for task in verification.reexecution] == [(2, 2)]
    assert entry.received_accuracy is not None


@pytest.mark.parametrize("combination", ["median", "trimmed-mean", "krum", "multi-krum", "norm-clipping"])
async def test_a_robust_combination_within_clusters_is_re_executed_and_paid(tmp_path: Path, combination: str) -> None:
    net = small_network(tmp_path, rule="paa", combination=combination, step_permille=1200, clusters=2)
    async with running(net.homes) as nodes:
        await until_done(nodes)
        (settled,) = settled_rounds(nodes[0])
        verification = await _verified(nodes[1])
    assert settled.slot.attempt == 0
    assert settled.aggregation is not None
    assert len(set(settled.aggregation.labels)) == len(set(settled.aggregation.outputs)) == 2
    assert sum(client.gross > 0 for client in settled.clients) == 4
    assert [vote.fault for vote in settled.attestations] == [Fault.NONE] * len(settled.attestations)
    assert verification.is_valid
    assert [(task.settled, task.reexecuted) for task in verification.reexecution] == [(1, 1)]


async def test_clients_train_from_ahead_of_what_they_received(tmp_path: Path) -> None:
    net = small_network(tmp_path, rounds=3, similarity="updates", shared_permille=400, momentum_permille=700, alpha=0.1)
    async with running(net.homes) as nodes:
        await until_done(nodes, patience_s=60)
        rounds = settled_rounds(nodes[0])
        for node in nodes:
            await _assert_trained_ahead(node, tmp_path)
        verification = await _verified(nodes[1])
    assert [settled.aggregation is not None and len(set(settled.aggregation.outputs)) for settled in rounds] == [2] * 3
    assert verification.is_valid
    assert [(task.settled, task.reexecuted) for task in verification.reexecution] == [(3, 3)]


async def _assert_trained_ahead(node: Node, scratch: Path) -> None:
    """Train and measure again what a node has revealed: first from the base, then 0.7 of a round ahead."""
    before: dict[str, Any] = {}
    for settled in settled_rounds(node):
        own, tools = client_of(settled, node.key.account), node.participant._work._tools
        assert own.revealed is not None
        specification, again = all_tasks(node.chain.tree)[0].specification, scratch / "again"
        base, sent = (node.blobs.path(blob) for blob in (own.base, own.revealed.model))
        job = training_job(specification, tools, base=base, output=again, slot=settled.slot)
        share = share_of_training(INTERPOLATION, settled.slot.number)
        repeated = await tools.trainer.run(replace(job, has_prior=True, share=share, **before))
        assert again.read_bytes() == sent.read_bytes()
        entry = tools.journal.entry(settled.slot)
        assert (repeated.received_accuracy, repeated.post_accuracy) == (entry.received_accuracy, entry.post_accuracy)
        before = {"ahead": LookAhead(str(base), 0.7), "memory": Memory(str(sent), MEMORY)}


def _verdicts(node: Node) -> list[tuple[bytes, Fault]]:
    return [
        (transaction.body.aggregate, transaction.body.fault)
        for block in node.chain.store.blocks(1, node.chain.height + 1)
        for transaction in block.transactions
        if isinstance(transaction.body, Attest)
    ]


async def _verified(node: Node) -> Verification:
    return await trio.to_thread.run_sync(lambda: verify_chain(node.chain.store, node.blobs, reexecute=True))
