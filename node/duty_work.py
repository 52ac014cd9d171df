"""How each duty of a learning round is done: with the trainer process, the blob store and the peers' blobs.

Every method takes a duty and returns the body of its transaction. All of them can be repeated: what was done before is
found in the blob store and the journal.
"""

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from bflnode.consensus.clustering import cluster, matrix_from_triangle
from bflnode.consensus.duties import (
    Aggregate,
    AttestTo,
    FetchAndVote,
    OfferedModel,
    PostProbe,
    Register,
    RevealModel,
    Train,
)
from bflnode.consensus.hashing import tagged_hash
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.task import PERMILLE, Aggregation, ProbeMode, SettledClient, TaskSpecification
from bflnode.consensus.transaction import Aggregate as AggregateBody
from bflnode.consensus.transaction import (
    Attest,
    Available,
    Commit,
    Fault,
    Probe,
    ProbeOpening,
    Reveal,
    Slot,
    TaskRegister,
    bitmap,
    model_commitment,
    probe_commitment,
)
from bflnode.consensus.types import BlobId, ChainId, Hash
from bflnode.fl.architectures import UnknownArchitecture, architecture
from bflnode.fl.interpolation import INTERPOLATION, MEMORY, share_of_training
from bflnode.fl.momentum import share_of_last_round
from bflnode.fl.samples import DatasetError, load_shard
from bflnode.fl.weights import InvalidWeights, parse
from bflnode.node.p2p.peers import Peers
from bflnode.node.sync.exchange import Exchange
from bflnode.node.workers.trainer import JobError, Trainer
from bflnode.node.workers.worker_protocol import (
    LookAhead,
    MatrixJob,
    Memory,
    OwnProbeJob,
    ProbeSamples,
    PublicProbe,
    RefusalReason,
    TrainJob,
    UnsettledJob,
    UpdateMatrixJob,
)
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.errors import MissingError, QuotaError, from_os_error

from .aggregation import AggregationFiles, aggregate_job, has_prior, needs_bases, needs_probe, without_unsettled
from .journal import Journal
from .node_clock import now_ms

_log = logging.getLogger(__name__)

CUT_OFF = 0.6
"""Share of the time left to the deadline of AVAILABLE after which a member votes with what it has."""

PATIENCE_FLOOR_S = 2.0
"""Once two thirds of the models are here, the rest gets as long again, and at least this."""

MOMENTUM_PATIENCE_S = 20.0
"""How long peers are asked for what was received a round before, if this home has lost it; training can do without."""

MAX_SAMPLES_BYTES = 256 * 1024 * 1024
"""Largest probe set or published probe that is fetched."""


class CannotFulfilError(Exception):
    """A duty that this node can't do, and why. It isn't tried again."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the work is done with."""

    chain_id: ChainId
    key: SecretKey
    blobs: BlobStore
    exchange: Exchange
    peers: Peers
    trainer: Trainer
    journal: Journal
    shard: Path
    scratch: Path
    device: str


class DutyWork:
    """Does the duties of one account."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        try:
            tools.scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(tools.scratch, "making a folder", error) from error

    async def register(self, duty: Register) -> TaskRegister:
        """Summarise the own data: samples, labels, and a commitment to the file.

        Raises:
            CannotFulfilError: there is no data, or it doesn't fit the task.
        """
        specification = duty.specification
        try:
            model = architecture(specification.architecture)
            shard = await trio.to_thread.run_sync(load_shard, self._tools.shard)
            content = await trio.to_thread.run_sync(self._tools.shard.read_bytes)
        except (UnknownArchitecture, DatasetError, OSError) as error:
            raise CannotFulfilError(f"can't take part in task {specification.name!r}: {error}") from error
        if shard.input_shape != model.input_shape or shard.classes > specification.classes:
            raise CannotFulfilError(
                f"can't take part in task {specification.name!r}: {self._tools.shard} has inputs of "
                f"{shard.input_shape} and {shard.classes} classes, the task's model {model.input_shape} and "
                f"{specification.classes}"
            )
        histogram = shard.train.histogram()
        padded = (*histogram, *(0 for _ in range(specification.classes - len(histogram))))
        salt = self._tools.key.derive_salt("data", self._tools.chain_id, duty.task)
        commitment = tagged_hash("data", salt, content)
        return TaskRegister(duty.task, len(shard.train), padded, commitment)

    async def train(self, duty: Train, last: SettledClient | None) -> Commit:
        """Train from the base model, or find what was trained before; commit to it.

        Args:
            duty: what is to be trained.
            last: the part in the settled learning round before, for momentum and memory.
        """
        model = self._find_trained(duty)
        if model is None:
            model = await self._train_anew(duty, last)
        commitment = model_commitment(
            self._tools.chain_id, duty.slot, self._tools.key.account, model, self._salt(duty.slot)
        )
        return Commit(duty.slot, commitment)

    def _salt(self, slot: Slot) -> Hash:
        return self._tools.key.derive_salt("commit", self._tools.chain_id, slot.to_bytes())

    def _find_trained(self, duty: Train) -> BlobId | None:
        """The model of this attempt, or of a void one of the same learning round from the same base."""
        slot, base = duty.slot, duty.base.hex()
        for attempt in range(slot.attempt, -1, -1):
            entry = self._tools.journal.entry(Slot(slot.task, slot.number, attempt))
            if (
                entry.model is not None
                and entry.base == base
                and self._tools.blobs.has(BlobId(bytes.fromhex(entry.model)))
            ):
                if attempt != slot.attempt:
                    self._tools.journal.update(
                        slot,
                        base=base,
                        model=entry.model,
                        received_accuracy=entry.received_accuracy,
                        post_accuracy=entry.post_accuracy,
                        loss=entry.loss,
                        training_s=entry.training_s,
                    )
                return BlobId(bytes.fromhex(entry.model))
        return None

    async def _train_anew(self, duty: Train, last: SettledClient | None) -> BlobId:
        """Train; the model is durable and in the journal before anybody hears of it."""
        tools, slot = self._tools, duty.slot
        await tools.exchange.fetch(duty.base, max_bytes=duty.specification.model_bytes)
        output = tools.scratch / f"trained-{slot.number}-{slot.attempt}.safetensors"
        _log.info("learning round %d: training from %s", slot.number, duty.base.hex()[:12])
        job = training_job(duty.specification, tools, base=await self._path(duty.base), output=output, slot=slot)
        job = replace(job, ahead=await self._ahead(duty, last))
        if has_prior(duty.specification):
            share = share_of_training(INTERPOLATION, slot.number)
            job = replace(job, has_prior=True, memory=await self._memory(last), share=share)
        result = await tools.trainer.run(job)
        model = await self._keep(output)
        tools.journal.update(
            slot,
            base=duty.base.hex(),
            model=model.hex(),
            received_accuracy=result.received_accuracy,
            post_accuracy=result.post_accuracy,
            loss=result.loss,
            training_s=result.seconds,
        )
        _log.info(
            "learning round %d: trained in %.1f s, accuracy %.3f -> %.3f",
            slot.number,
            result.seconds,
            result.received_accuracy,
            result.post_accuracy,
        )
        return model

    async def _ahead(self, duty: Train, last: SettledClient | None) -> LookAhead | None:
        """How far to go on before training; without the file of the round before, from what was received."""
        momentum = duty.specification.momentum_permille / PERMILLE
        if last is None or momentum == 0:
            return None
        try:
            with trio.move_on_after(MOMENTUM_PATIENCE_S):
                await self._tools.exchange.attempt(last.base, max_bytes=duty.specification.model_bytes)
            path = await self._path(last.base)
        except (MissingError, QuotaError, Rejection) as error:
            _log.warning("learning round %d: training goes without momentum: %s", duty.slot.number, error)
            return None
        return LookAhead(str(path), share_of_last_round(momentum, duty.slot.number))

    async def _memory(self, last: SettledClient | None) -> Memory | None:
        """What is predicted with before training, beside what was received; nothing is fetched for a measurement."""
        revealed = None if last is None else last.revealed
        if revealed is None or not self._tools.blobs.has(revealed.model):
            return None
        return Memory(str(await self._path(revealed.model)), MEMORY)

    async def reveal(self, duty: RevealModel) -> Reveal:
        """Open the own commitment.

        Raises:
            CannotFulfilError: the model that was committed to is lost.
        """
        entry = self._tools.journal.entry(duty.slot)
        salt = self._salt(duty.slot)
        if entry.model is None or not self._tools.blobs.has(BlobId(bytes.fromhex(entry.model))):
            raise CannotFulfilError(f"the model of learning round {duty.slot.number} is not in this home any more")
        model = BlobId(bytes.fromhex(entry.model))
        if model_commitment(self._tools.chain_id, duty.slot, self._tools.key.account, model, salt) != duty.commitment:
            raise CannotFulfilError(f"the commitment of learning round {duty.slot.number} is to another model")
        return Reveal(duty.slot, model, self._tools.blobs.size(model), salt)

    async def post_probe(self, duty: PostProbe) -> Probe:
        """Choose samples of the own data to compare models with, and promise them."""
        samples = await self._own_samples(duty.slot, duty.specification)
        commitment = probe_commitment(
            self._tools.chain_id, duty.slot, self._tools.key.account, samples, self._probe_salt(duty.slot)
        )
        return Probe(duty.slot, commitment)

    def _probe_salt(self, slot: Slot) -> Hash:
        return self._tools.key.derive_salt("probe", self._tools.chain_id, slot.to_bytes())

    async def _own_samples(self, slot: Slot, specification: TaskSpecification) -> BlobId:
        """The own probe of a slot: derived from the key, so the same after a restart."""
        output = self._tools.scratch / f"probe-{slot.number}-{slot.attempt}.safetensors"
        seed = self._tools.key.derive_salt("probe-samples", self._tools.chain_id, slot.to_bytes())
        await self._tools.trainer.run(OwnProbeJob(str(self._tools.shard), seed, specification.psi, str(output)))
        return await self._keep(output)

    async def fetch_and_vote(self, duty: FetchAndVote) -> Available:
        """Fetch the revealed models and say which are here and well-formed.

        Waits for all of them, but no longer than a share of the phase; and once two thirds are judged, the rest gets
        as long again.

        Raises:
            CannotFulfilError: this version doesn't know the task's models.
        """
        _known_architecture(duty.specification)
        left_s = _share_of_time_left_s(duty.deadline_ms)
        started_s = trio.current_time()
        judged: set[int] = set()
        good: set[int] = set()
        with trio.move_on_after(left_s) as scope:
            async with trio.open_nursery() as nursery:

                async def fetch(offered: OfferedModel) -> None:
                    if await self._fetch_model(offered, duty.specification):
                        good.add(offered.index)
                    judged.add(offered.index)
                    if 3 * len(judged) >= 2 * len(duty.models):
                        patience_s = max(PATIENCE_FLOOR_S, trio.current_time() - started_s)
                        scope.deadline = min(scope.deadline, trio.current_time() + patience_s)

                for offered in duty.models:
                    nursery.start_soon(fetch, offered)
        return Available(duty.slot, bitmap(good, duty.clients))

    async def _fetch_model(self, offered: OfferedModel, specification: TaskSpecification) -> bool:
        """Have a model in the store; whether it is a model of the task at all."""
        peer = self._tools.peers.of_account(offered.account)
        first = peer.id if peer else None

        def check() -> None:
            parse(self._tools.blobs.get(offered.model), architecture(specification.architecture).table)

        while True:
            try:
                await self._tools.exchange.fetch(offered.model, max_bytes=offered.size_bytes, first=first)
                await trio.to_thread.run_sync(check)
            except MissingError as error:
                _log.warning("fetching the model of %s again: %s", offered.account.hex()[:12], error)
            except QuotaError as error:
                _log.error("the model of %s is not fetched: %s", offered.account.hex()[:12], error)
                return False
            except (InvalidWeights, Rejection) as fault:
                _log.warning("the model of %s is not one of this task: %s", offered.account.hex()[:12], fault)
                return False
            else:
                return True

    async def aggregate(self, duty: Aggregate) -> AggregateBody:
        """Compare the included models, cluster them, and make of them what the task's rule says."""
        opening = None
        if duty.specification.probe_mode is ProbeMode.AGGREGATOR:
            samples = await self._own_samples(duty.slot, duty.specification)
            opening = ProbeOpening(samples, self._probe_salt(duty.slot))
        await self._fetch_all(duty.models, duty.specification)
        job = await self._matrix_job(duty.specification, duty.models, duty.probe_seed, opening)
        triangle = (await self._tools.trainer.run(job)).triangle
        labels = cluster(matrix_from_triangle(triangle, len(duty.models)), duty.specification.clusters)
        outputs = await self._combine(duty.slot, duty.specification, duty.models, triangle, labels)
        return AggregateBody(duty.slot, triangle, outputs, opening)

    async def attest(self, duty: AttestTo) -> Attest:
        """Recompute an aggregation: the outputs must be the same bytes, the similarities within the tolerance."""
        aggregation = duty.aggregation
        await self._fetch_all(duty.models, duty.specification)
        none = bytes((len(duty.models) + 7) // 8)
        outputs = await self._combine(
            duty.slot, duty.specification, duty.models, aggregation.triangle, aggregation.labels
        )
        if outputs != aggregation.outputs:
            return Attest(duty.slot, aggregation.transaction, Fault.OUTPUT_MISMATCH, none)
        try:
            if aggregation.opening is not None:
                await self._fetch_samples(aggregation, duty.deadline_ms)
            flags = await self._misjudged(duty)
        except (trio.TooSlowError, Rejection):
            return Attest(duty.slot, aggregation.transaction, Fault.PROBE_UNAVAILABLE, none)
        except JobError as error:
            if error.reason is not RefusalReason.BAD_INPUT or aggregation.opening is None:
                raise
            _log.warning("the aggregator's probe can't be used: %s", error.explanation)
            return Attest(duty.slot, aggregation.transaction, Fault.PROBE_UNAVAILABLE, none)
        fault = Fault.MATRIX_MISMATCH if flags else Fault.NONE
        return Attest(duty.slot, aggregation.transaction, fault, bitmap(flags, len(duty.models)))

    async def _misjudged(self, duty: AttestTo) -> set[int]:
        """Positions of clients with a similarity that is out of tolerance, and that rounding doesn't decide."""
        specification, theirs = duty.specification, duty.aggregation.triangle
        job = await self._matrix_job(specification, duty.models, duty.probe_seed, duty.aggregation.opening)
        ours = (await self._tools.trainer.run(job)).triangle
        flags = differing(ours, theirs, len(duty.models), specification.tolerance)
        if flags and isinstance(job, MatrixJob):
            unsettled = await self._tools.trainer.run(UnsettledJob(job, ours, specification.tolerance))
            theirs = without_unsettled(theirs, ours, unsettled.entries)
            flags = differing(ours, theirs, len(duty.models), specification.tolerance)
        return flags

    async def _fetch_samples(self, aggregation: Aggregation, deadline_ms: int) -> None:
        assert aggregation.opening is not None, "only an opened probe has samples"
        peer = self._tools.peers.of_account(aggregation.aggregator)
        with trio.fail_after(_share_of_time_left_s(deadline_ms)):
            await self._tools.exchange.fetch(
                aggregation.opening.samples, max_bytes=MAX_SAMPLES_BYTES, first=peer.id if peer else None
            )

    async def _fetch_all(self, models: tuple[OfferedModel, ...], specification: TaskSpecification) -> None:
        _known_architecture(specification)
        async with trio.open_nursery() as nursery:
            for offered in models:
                nursery.start_soon(self._fetch_model, offered, specification)

    async def _matrix_job(
        self,
        specification: TaskSpecification,
        models: tuple[OfferedModel, ...],
        seed: Hash,
        opening: ProbeOpening | None,
    ) -> MatrixJob | UpdateMatrixJob:
        """What computes the similarity matrix of the models: on the task's probe, or of what was learned."""
        paths = tuple([str(await self._path(offered.model)) for offered in models])
        if not needs_probe(specification):
            return UpdateMatrixJob(specification.architecture, paths, await self._bases(specification, models))
        probe: PublicProbe | ProbeSamples
        if opening is None:
            await self._tools.exchange.fetch(specification.probe_set, max_bytes=MAX_SAMPLES_BYTES)
            probe = PublicProbe(str(await self._path(specification.probe_set)), seed, specification.psi)
        else:
            probe = ProbeSamples(str(await self._path(opening.samples)), specification.psi)
        return MatrixJob(specification.architecture, paths, probe)

    async def _combine(
        self,
        slot: Slot,
        specification: TaskSpecification,
        models: tuple[OfferedModel, ...],
        triangle: bytes,
        labels: tuple[int, ...],
    ) -> tuple[BlobId, ...]:
        """The output for each cluster, into the blob store; their ids in the order of labels."""
        tools = self._tools
        outputs = [
            tools.scratch / f"output-{slot.number}-{slot.attempt}-{label}.safetensors"
            for label in range(max(labels) + 1)
        ]
        files = AggregationFiles(
            models=tuple([str(await self._path(offered.model)) for offered in models]),
            bases=await self._bases(specification, models),
            outputs=tuple(map(str, outputs)),
        )
        await tools.trainer.run(aggregate_job(specification, models, triangle, labels, files))
        return tuple([await self._keep(path) for path in outputs])

    async def _bases(self, specification: TaskSpecification, models: tuple[OfferedModel, ...]) -> tuple[str, ...]:
        """Files of what the models were trained from, where the rule needs them: mostly one and the same."""
        if not needs_bases(specification):
            return ()
        paths: dict[BlobId, str] = {}
        for base in dict.fromkeys(offered.base for offered in models):
            await self._tools.exchange.fetch(base, max_bytes=specification.model_bytes)
            paths[base] = str(await self._path(base))
        return tuple(paths[offered.base] for offered in models)

    async def _path(self, blob: BlobId) -> Path:
        """The file of a blob; the first time it is read and checked, which takes a while for large ones."""
        return await trio.to_thread.run_sync(self._tools.blobs.path, blob)

    async def _keep(self, path: Path) -> BlobId:
        """Move a finished file into the blob store."""
        return await trio.to_thread.run_sync(partial(self._tools.blobs.put_file, path, move=True))


def _known_architecture(specification: TaskSpecification) -> None:
    """Refuse the work on a task whose models this version doesn't know."""
    try:
        architecture(specification.architecture)
    except UnknownArchitecture as error:
        raise CannotFulfilError(f"can't judge models of task {specification.name!r}: {error}") from error


def _share_of_time_left_s(deadline_ms: int) -> float:
    """How long to try until a deadline in header time, which the own clock may not agree with."""
    return max(PATIENCE_FLOOR_S, (deadline_ms - now_ms()) / 1000 * CUT_OFF)


def training_job(specification: TaskSpecification, tools: Tools, *, base: Path, output: Path, slot: Slot) -> TrainJob:
    """The job of a learning round's training, without prior and momentum; its seed is the account's for the slot."""
    seed = int.from_bytes(tagged_hash("training-seed", tools.key.account, slot.to_bytes())[:4])
    return TrainJob(
        specification.architecture,
        str(base),
        str(tools.shard),
        str(output),
        epochs=specification.epochs,
        batch_size=specification.batch_size,
        learning_rate=specification.learning_rate_micro / 10**6,
        seed=seed,
        device=tools.device,
    )


def differing(ours: bytes, theirs: bytes, clients: int, tolerance: int) -> set[int]:
    """Positions of clients with a similarity that is further from ours than the tolerance.

    Both clients of a pair are named: which of the two was misjudged can't be told from one number.
    """
    distance = abs(matrix_from_triangle(ours, clients) - matrix_from_triangle(theirs, clients))
    return {index for index in range(clients) if (distance[index] > tolerance).any()}
