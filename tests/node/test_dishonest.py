"""Dishonest nodes among honest ones: what they do is seen, costs them the round, and doesn't stop the others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bflnode.consensus.clustering import cluster, matrix_from_triangle
from bflnode.consensus.duties import Aggregate, Train
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.tables import stake_of
from bflnode.consensus.task import Exclusion, SettledClient
from bflnode.consensus.transaction import Aggregate as AggregateBody
from bflnode.consensus.transaction import Attest, Commit, Fault, model_commitment
from bflnode.consensus.types import BlobId
from bflnode.node.duty_work import DutyWork
from bflnode.node.node import Node
from bflnode.node.testnets.homes import STAKE
from tests.node.nodes import (
    client_of,
    going,
    is_included,
    learning_round,
    opened,
    settled_rounds,
    small_network,
    until,
    until_done,
)

pytestmark = pytest.mark.usefixtures("forking")


class Cheat(DutyWork):
    """Does its duties with an own idea of honesty."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.participant._work._tools)
        self.node = node
        node.participant._work = self

    def commit_to(self, duty: Train, model: BlobId) -> Commit:
        """Commit to any model, and remember it for REVEAL."""
        tools = self._tools
        tools.journal.update(duty.slot, base=duty.base.hex(), model=model.hex())
        commitment = model_commitment(tools.chain_id, duty.slot, tools.key.account, model, self._salt(duty.slot))
        return Commit(duty.slot, commitment)


class LazyClient(Cheat):
    """Resubmits the model that it received."""

    async def train(self, duty: Train, last: SettledClient | None) -> Commit:
        return self.commit_to(duty, duty.base)


class CopyingClient(Cheat):
    """Submits in the second learning round what another client revealed in the first."""

    async def train(self, duty: Train, last: SettledClient | None) -> Commit:
        if duty.slot.number == 1:
            return await super().train(duty, last)
        first = settled_rounds(self.node)[0]
        others = (client for client in first.clients if client.account != self.node.key.account)
        other = next(client for client in others if client.exclusion is Exclusion.NONE)
        assert other.revealed is not None
        return self.commit_to(duty, other.revealed.model)


class GarbageClient(Cheat):
    """Submits bytes of the right size that are no model."""

    async def train(self, duty: Train, last: SettledClient | None) -> Commit:
        return self.commit_to(duty, self._tools.blobs.put(b"\x01" * duty.specification.model_bytes))


class Withholder(Cheat):
    """Reveals its model and serves nobody."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)

        def refuse(data: bytes) -> bytes:
            raise Rejection(Reason.UNKNOWN_BLOB)

        node.exchange.serve_manifest = node.exchange.serve_chunk = refuse  # type: ignore[method-assign]  # of this one node


class FirstAggregator(Cheat):
    """Cheats as aggregator, if it is the first of the line."""

    async def aggregate(self, duty: Aggregate) -> AggregateBody:
        honest = await super().aggregate(duty)
        current = learning_round(self.node)
        assert current is not None
        return honest if current.acting else self.forge(duty, honest)

    def forge(self, duty: Aggregate, honest: AggregateBody) -> AggregateBody:
        raise NotImplementedError


class WrongMean(FirstAggregator):
    """Publishes its own model as everybody's mean."""

    def forge(self, duty: Aggregate, honest: AggregateBody) -> AggregateBody:
        own = next(offered.model for offered in duty.models if offered.account == self.node.key.account)
        return replace(honest, outputs=tuple(own for _ in honest.outputs))


class WrongMatrix(FirstAggregator):
    """Moves one similarity by twice the tolerance, where that leaves the clusters, and so the outputs, as they are."""

    def forge(self, duty: Aggregate, honest: AggregateBody) -> AggregateBody:
        step = 2 * duty.specification.tolerance
        for position in range(0, len(honest.triangle), 2):
            value = int.from_bytes(honest.triangle[position : position + 2], "big", signed=True)
            forged = (value - step if value > 0 else value + step).to_bytes(2, "big", signed=True)
            triangle = honest.triangle[:position] + forged + honest.triangle[position + 2 :]
            if self.labels(duty, triangle) == self.labels(duty, honest.triangle):
                return replace(honest, triangle=triangle)
        raise AssertionError("every similarity decides about a cluster")

    def labels(self, duty: Aggregate, triangle: bytes) -> tuple[int, ...]:
        return cluster(matrix_from_triangle(triangle, len(duty.models)), duty.specification.clusters)


async def test_clients_that_send_no_model_of_their_own_are_not_aggregated_and_not_paid(tmp_path: Path) -> None:
    cheats = (LazyClient, CopyingClient, GarbageClient, Withholder)
    net = small_network(tmp_path, validators=6, rounds=2, min_clients=2)
    async with opened(net.homes) as nodes:
        for cheat, node in zip(cheats, nodes, strict=False):
            cheat(node)
        async with going(nodes):
            await until_done(nodes, patience_s=60)
        first, second = settled_rounds(nodes[-1])
    exclusions = [client_of(first, node.key.account).exclusion for node in nodes]
    lazy, copying, garbage, withholder, *honest = exclusions
    assert (lazy, copying) == (Exclusion.COPY, Exclusion.NONE)
    assert (garbage, withholder) == (Exclusion.UNAVAILABLE,) * 2
    assert honest == [Exclusion.NONE] * 2
    assert client_of(second, nodes[1].key.account).exclusion is Exclusion.COPY
    for settled in (first, second):
        for client in settled.clients:
            assert (client.gross > 0) == is_included(settled, client.account)
    assert all(not node.network.statistics()["banned"] for node in nodes)


@pytest.mark.parametrize(
    ("cheat", "fault", "asked"),
    [
        (WrongMean, Fault.OUTPUT_MISMATCH, {}),
        (WrongMatrix, Fault.OUTPUT_MISMATCH, {}),
        (WrongMatrix, Fault.MATRIX_MISMATCH, {"similarity": "prototypes"}),
        (WrongMatrix, Fault.MATRIX_MISMATCH, {"shared_permille": 1000}),
    ],
)
async def test_a_wrong_aggregation_is_voted_bad_and_the_next_in_line_is_paid(
    tmp_path: Path, cheat: type[FirstAggregator], fault: Fault, asked: dict[str, Any]
) -> None:
    net = small_network(tmp_path, **asked)
    async with opened(net.homes) as nodes:
        for node in nodes:
            cheat(node)
        watcher = nodes[0]

        async with going(nodes):
            await until(watcher, lambda: learning_round(watcher) is not None)
            current = learning_round(watcher)
            assert current is not None
            cheater, successor = (member.account for member in current.line[:2])
            await until(watcher, lambda: bool(settled_rounds(watcher)))
        settled = settled_rounds(watcher)[0]
        assert settled.aggregation is not None
        verdicts = [
            (transaction.body.aggregate == settled.aggregation.transaction, transaction.body.fault)
            for block in watcher.chain.store.blocks(1, watcher.chain.height + 1)
            for transaction in block.transactions
            if isinstance(transaction.body, Attest)
        ]
        stake = stake_of(watcher.chain.tree, cheater).bonded
    assert settled.aggregation is not None
    assert settled.aggregation.aggregator == successor != cheater
    assert settled.aggregator_income > 0
    assert set(verdicts) == {(False, fault), (True, Fault.NONE)}
    is_slashed = fault is Fault.OUTPUT_MISMATCH and verdicts.count((False, fault)) >= 3
    assert stake == (STAKE // 2 if is_slashed else STAKE), "an exact fault, if three of four had said so in time"
