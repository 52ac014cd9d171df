"""Duties done with real models, trainers and peers; what can't be done is said plainly."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio

from bflnode.consensus.clustering import triangle_from_matrix
from bflnode.consensus.duties import (
    Aggregate,
    AttestTo,
    FetchAndVote,
    OfferedModel,
    Register,
    RevealModel,
    Train,
)
from bflnode.consensus.hashing import tagged_hash
from bflnode.consensus.tables import all_tasks
from bflnode.consensus.task import (
    Aggregation,
    Exclusion,
    Revealed,
    Rule,
    SettledClient,
    Similarity,
    TaskSpecification,
    Weighting,
)
from bflnode.consensus.transaction import Fault, ProbeOpening, Slot, bitmap
from bflnode.consensus.types import AccountId, BlobId, Hash, TransactionId
from bflnode.fl.aggregation import mean
from bflnode.fl.architectures import architecture
from bflnode.fl.samples import load_shard
from bflnode.fl.weights import parse, serialize
from bflnode.node import duty_work as limits
from bflnode.node.duty_work import CannotFulfilError, DutyWork, differing, training_job
from bflnode.node.node import Node
from bflnode.node.node_clock import now_ms
from bflnode.node.workers.worker_protocol import LookAhead
from tests.node.nodes import opened, small_network

pytestmark = pytest.mark.usefixtures("forking")
SEED = tagged_hash("test")


class Bench:
    """One node's work, with models that it holds."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.work: DutyWork = node.participant._work
        task = all_tasks(node.chain.tree)[0]
        self.specification: TaskSpecification = replace(
            task.specification, clusters=2, similarity=Similarity.PROTOTYPES
        )
        self.slot = Slot(task.id, 1, 0)
        self.architecture = architecture(self.specification.architecture)
        self.weights = [self.architecture.initial_weights(seed) for seed in range(3)]
        self.models = tuple(
            self.offer(index, node.blobs.put(model), samples=index + 1) for index, model in enumerate(self.weights)
        )

    def offer(self, index: int, model: BlobId, samples: int = 1) -> OfferedModel:
        size = self.specification.model_bytes
        base = self.specification.initial_model
        return OfferedModel(index, AccountId(bytes([index]) * 32), samples, b"\xff\x03", base, model, size)

    def soon_ms(self, seconds: float = 60.0) -> int:
        return now_ms() + int(1000 * seconds)

    def vote_on(self, *models: OfferedModel, seconds: float = 60.0) -> FetchAndVote:
        return FetchAndVote(self.slot, self.specification, len(models), models, self.soon_ms(seconds))

    def aggregate_duty(self, **changes: object) -> Aggregate:
        duty = Aggregate(self.slot, self.specification, self.models, SEED, None, self.soon_ms())
        return replace(duty, **changes)  # type: ignore[arg-type]  # tests name fields of the duty

    def attest_duty(self, aggregation: Aggregation, seconds: float = 60.0) -> AttestTo:
        return AttestTo(self.slot, self.specification, self.models, SEED, aggregation, self.soon_ms(seconds))


@asynccontextmanager
async def bench(directory: Path) -> AsyncIterator[Bench]:
    async with opened(small_network(directory).homes[:1], p2p={"persistent_peers": ()}) as [node]:
        yield Bench(node)


async def honest(at: Bench) -> Aggregation:
    body = await at.work.aggregate(at.aggregate_duty())
    return Aggregation(
        transaction=tagged_hash("any"),  # type: ignore[arg-type]  # any 32 bytes
        aggregator=at.node.key.account,
        triangle=body.triangle,
        outputs=body.outputs,
        opening=None,
        labels=tuple(limits.cluster(limits.matrix_from_triangle(body.triangle, 3), 2)),
        centroids=(),
    )


async def test_an_honest_aggregation_is_attested_and_any_wrong_part_is_named(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        right = await honest(at)
        good = await at.work.attest(at.attest_duty(right))
        assert (good.fault, good.flags) == (Fault.NONE, b"\x00")
        others = tuple(at.models[0].model for _ in right.outputs)
        wrong = await at.work.attest(at.attest_duty(replace(right, outputs=others)))
        assert wrong.fault is Fault.OUTPUT_MISMATCH
        value = int.from_bytes(right.triangle[2:4], "big", signed=True)
        within = value - at.specification.tolerance
        for moved, fault, flags in ((within, Fault.NONE, b"\x00"), (within - 1, Fault.MATRIX_MISMATCH, b"\x05")):
            triangle = right.triangle[:2] + moved.to_bytes(2, "big", signed=True) + right.triangle[4:]
            verdict = await at.work.attest(at.attest_duty(replace(right, triangle=triangle)))
            assert (verdict.fault, verdict.flags) == (fault, flags)


async def test_what_clusters_share_follows_from_the_similarities_that_the_aggregator_claims(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        at.specification = replace(at.specification, similarity=Similarity.UPDATES, shared_permille=0)
        right = await honest(at)
        good = await at.work.attest(at.attest_duty(right))
        assert (good.fault, good.flags) == (Fault.NONE, b"\x00")
        halves = right.triangle[:2] + (5_000).to_bytes(2, "big") * 2
        others = await at.work.attest(at.attest_duty(replace(right, triangle=halves)))
        assert others.fault is Fault.OUTPUT_MISMATCH


async def test_similarities_that_rounding_decides_are_not_held_against_an_aggregator(tmp_path: Path) -> None:
    """The third model's prototype is a huge constant, in whose rounding its differences drown."""
    async with bench(tmp_path) as at:
        tensors = {name: tensor.copy() for name, tensor in parse(at.weights[2], at.architecture.table).items()}
        tensors["representation.hidden.bias"][:] = 1e4
        drowned = at.offer(2, at.node.blobs.put(serialize(tensors)))
        at.models = (*at.models[:2], drowned)
        right = await honest(at)
        pairs = ((0, 1, Fault.MATRIX_MISMATCH, b"\x03"), (0, 2, Fault.NONE, b"\x00"), (1, 2, Fault.NONE, b"\x00"))
        for first, second, fault, flags in pairs:
            matrix = limits.matrix_from_triangle(right.triangle, 3)
            matrix[[first, second], [second, first]] -= 11
            verdict = await at.work.attest(at.attest_duty(replace(right, triangle=triangle_from_matrix(matrix))))
            assert (verdict.fault, verdict.flags) == (fault, flags), (first, second)


async def test_a_probe_that_nobody_serves_or_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PATIENCE_FLOOR_S", 0.3)
    async with bench(tmp_path) as at:
        right = await honest(at)
        absent = ProbeOpening(BlobId(bytes(32)), Hash(bytes(32)))
        junk = ProbeOpening(at.node.blobs.put(b"no samples"), Hash(bytes(32)))
        for opening in (absent, junk):
            verdict = await at.work.attest(at.attest_duty(replace(right, opening=opening), seconds=0))
            assert verdict.fault is Fault.PROBE_UNAVAILABLE


async def test_means_are_weighted_by_samples_where_the_task_says_so(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        one_cluster = replace(
            at.specification, clusters=1, weighting=Weighting.SAMPLES, rule=Rule.PAA, step_permille=1000
        )
        body = await at.work.aggregate(at.aggregate_duty(specification=one_cluster))
        expected = serialize(mean([parse(model, at.architecture.table) for model in at.weights], [1, 2, 3]))
        assert [at.node.blobs.get(output) for output in body.outputs] == [expected]


async def test_a_vote_names_the_models_that_are_here_and_of_the_task(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        garbage = at.offer(1, at.node.blobs.put(b"\x01" * at.specification.model_bytes))
        vote = await at.work.fetch_and_vote(at.vote_on(at.models[0], garbage, at.models[2]))
        assert vote.bitmap == b"\x05"


async def test_a_vote_does_not_wait_for_ever_for_a_model_that_nobody_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PATIENCE_FLOOR_S", 0.2)
    async with bench(tmp_path) as at:
        absent = at.offer(2, BlobId(bytes(32)))
        with trio.fail_after(10):
            vote = await at.work.fetch_and_vote(at.vote_on(*at.models[:2], absent, seconds=3_600))
        assert vote.bitmap == b"\x03"


async def test_a_vote_tries_a_while_even_if_the_own_clock_says_it_is_too_late(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        vote = await at.work.fetch_and_vote(at.vote_on(*at.models, seconds=-3_600))
        assert vote.bitmap == b"\x07"


async def test_a_model_that_became_corrupt_on_the_own_disk_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PATIENCE_FLOOR_S", 0.2)
    async with bench(tmp_path) as at:
        at.node.blobs.path(at.models[1].model).write_bytes(b"changed")
        with trio.fail_after(10):
            vote = await at.work.fetch_and_vote(at.vote_on(*at.models))
        assert vote.bitmap == b"\x05"


async def test_a_task_of_unknown_models_is_left_to_others(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        unknown = replace(at.specification, architecture="transformer/9")
        with pytest.raises(CannotFulfilError, match="can't judge models of task"):
            await at.work.fetch_and_vote(replace(at.vote_on(*at.models), specification=unknown))
        with pytest.raises(CannotFulfilError, match="can't judge models of task"):
            await at.work.aggregate(at.aggregate_duty(specification=unknown))
        with pytest.raises(CannotFulfilError, match="can't take part in task"):
            await at.work.register(Register(at.slot.task, unknown))


async def test_a_registration_tells_samples_and_labels_but_not_the_data(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        body = await at.work.register(Register(at.slot.task, at.specification))
        assert body.samples == sum(body.histogram) > 0
        assert len(body.histogram) == at.specification.classes
        again = await at.work.register(Register(at.slot.task, at.specification))
        assert again == body
        other = await at.work.register(Register(Hash(bytes(32)), at.specification))
        assert other.data_commitment != body.data_commitment, "nobody can compare the data of two tasks"


@pytest.mark.parametrize("content", [None, b"", b"no archive"])
async def test_a_shard_that_is_none_is_named(tmp_path: Path, content: bytes | None) -> None:
    async with bench(tmp_path) as at:
        shard = at.work._tools.shard
        shard.unlink()
        if content is not None:
            shard.write_bytes(content)
        with pytest.raises(CannotFulfilError, match=r"shard\.npz"):
            await at.work.register(Register(at.slot.task, at.specification))


async def test_a_model_is_trained_once_for_an_attempt_and_its_retries_from_the_same_base(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        duty = Train(at.slot, at.specification.initial_model, at.specification, at.soon_ms())
        first = await at.work.train(duty, None)
        assert await at.work.train(duty, None) == first
        model = at.node.journal.entry(at.slot).model
        retry = Slot(at.slot.task, 1, 1)
        again = await at.work.train(replace(duty, slot=retry), None)
        assert at.node.journal.entry(retry).model == model
        assert again.commitment != first.commitment, "a commitment is of its attempt"
        reveal = await at.work.reveal(RevealModel(at.slot, first.commitment, at.soon_ms()))
        assert (reveal.model.hex(), reveal.size) == (model, at.specification.model_bytes)


def part(base: BlobId, revealed: BlobId | None) -> SettledClient:
    """A client's part in a settled learning round."""
    return SettledClient(
        account=AccountId(bytes(32)),
        exclusion=Exclusion.NONE,
        samples=1,
        classes=b"\x01",
        base=base,
        committed=None,
        revealed=None if revealed is None else Revealed(revealed, 1, Hash(bytes(32)), TransactionId(bytes(32))),
        cluster=0,
        gross=0,
        fee=0,
        balance_before=0,
    )


async def test_a_client_that_lost_models_of_the_round_before_trains_without_momentum_or_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(tmp_path) as at:
        duty = Train(at.slot, at.specification.initial_model, at.specification, at.soon_ms())

        async def trained(last: SettledClient | None) -> tuple[str | None, float | None, bool]:
            at.node.journal.delete(at.node.journal.entry(at.slot))
            caplog.clear()
            await at.work.train(duty, last)
            warned = any("without momentum" in record.getMessage() for record in caplog.records)
            entry = at.node.journal.entry(at.slot)
            return entry.model, entry.received_accuracy, warned

        lost, biased = BlobId(bytes(32)), dict(parse(at.weights[0], at.architecture.table))
        counts = np.array(load_shard(at.work._tools.shard).train.histogram())
        rarest = int(np.argmin(np.where(counts > 0, counts, counts.max())))
        biased["decision.bias"] = np.where(np.arange(10) == rarest, np.float32(1e6), biased["decision.bias"])
        says_one_class = at.node.blobs.put(serialize(biased))
        model, received, _ = await trained(None)
        assert await trained(part(lost, lost)) == (model, received, True)
        ahead = await trained(part(at.models[0].model, None))
        assert (ahead[0] != model, *ahead[1:]) == (True, received, False)
        remembering = await trained(part(lost, says_one_class))
        assert (remembering[0], remembering[1] != received, remembering[2]) == (model, True, True)


async def test_momentum_fades_with_the_number_of_the_learning_round(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        last = part(at.models[0].model, None)
        for number, share in ((2, 0.7), (10, 0.175)):
            slot = replace(at.slot, number=number)
            duty = Train(slot, at.specification.initial_model, at.specification, at.soon_ms())
            await at.work.train(duty, last)
            again = tmp_path / "again"
            job = training_job(
                at.specification,
                at.work._tools,
                base=at.node.blobs.path(duty.base),
                output=again,
                slot=slot,
            )
            ahead = LookAhead(str(at.node.blobs.path(last.base)), share)
            await at.work._tools.trainer.run(replace(job, has_prior=True, ahead=ahead))
            revealed = at.node.journal.entry(slot).model
            assert revealed is not None
            assert again.read_bytes() == at.node.blobs.path(BlobId(bytes.fromhex(revealed))).read_bytes()


async def test_a_commitment_whose_model_is_lost_cannot_be_revealed_and_says_so(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        with pytest.raises(CannotFulfilError, match="not in this home any more"):
            await at.work.reveal(RevealModel(at.slot, Hash(bytes(32)), at.soon_ms()))
        at.node.journal.update(at.slot, model=at.models[0].model.hex())
        with pytest.raises(CannotFulfilError, match="is to another model"):
            await at.work.reveal(RevealModel(at.slot, Hash(bytes(32)), at.soon_ms()))


def test_a_bitmap_has_the_least_significant_bit_first() -> None:
    assert bitmap({0, 3, 8}, 9) == b"\x09\x01"
    assert bitmap(set(), 8) == b"\x00"


def test_both_clients_of_a_similarity_that_differs_are_named() -> None:
    ours = np.array([[10000, 100, -200], [100, 10000, 300], [-200, 300, 10000]], dtype=np.int64)
    theirs = ours.copy()
    theirs[0, 2] = theirs[2, 0] = -211
    triangles = (triangle_from_matrix(ours), triangle_from_matrix(theirs))
    assert differing(*triangles, 3, 10) == {0, 2}
    assert differing(*triangles, 3, 11) == set()
