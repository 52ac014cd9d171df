"""What a trainer process does for each kind of job: read files, call `bflnode.fl`, write files.

torch is imported by the first job that needs it; aggregation and initial weights don't. What is wrong with a job's
input is a ValueError or OSError whose message names the file. The process around it is `worker`.
"""

import mmap
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, assert_never, cast

from bflnode.consensus.task import PERMILLE, held_classes
from bflnode.fl import runtime
from bflnode.fl.architectures import Architecture, architecture
from bflnode.fl.interpolation import between
from bflnode.fl.momentum import looked_ahead
from bflnode.fl.robust import RobustRule
from bflnode.fl.rules import PRIOR_ROWS, Contribution, Rule, outputs
from bflnode.fl.samples import Inputs, LabelledData, load_shard, read_npz
from bflnode.fl.weights import InvalidWeights, Tensor, parse, serialize

from .worker_protocol import (
    MAX_PREDICTIONS,
    AggregateJob,
    AggregateResult,
    EvaluateJob,
    EvaluateResult,
    InitialModelJob,
    InitialModelResult,
    Job,
    LookAhead,
    MatrixJob,
    MatrixResult,
    Memory,
    OwnProbeJob,
    OwnProbeResult,
    PredictJob,
    PredictResult,
    ProbeSamples,
    PublicProbe,
    Result,
    RuleSettings,
    TrainJob,
    TrainResult,
    UnsettledJob,
    UnsettledResult,
    UpdateMatrixJob,
    WarmUpJob,
    WarmUpResult,
)

DEVICES = ("auto", "cpu", "cuda")

PARTIAL_SUFFIX = ".partial"
"""A fixed name, so that what a killed worker leaves is overwritten by the next attempt instead of piling up."""

PREDICTION_INPUTS = "inputs"
"""The key of the samples in the .npz of a PredictJob."""

_ZIP_MAGIC = b"PK\x03\x04"

Report = Callable[[float, str], None]
"""Called with a fraction in [0, 1] and a few words; what it raises ends the job."""


def run_job(job: Job, report: Report, threads: int) -> Result:
    """Do a job.

    Args:
        job: what to do.
        report: is told about progress.
        threads: that training may use; everything that others re-compute uses one.

    Raises:
        ValueError: a parameter or the content of a file.
        OSError: a file that can't be read or written.
    """
    match job:
        case TrainJob():
            return _train(job, report, threads)
        case AggregateJob():
            return _aggregate(job, report)
        case MatrixJob():
            return _matrix(job)
        case UpdateMatrixJob():
            return _update_matrix(job)
        case UnsettledJob():
            return _unsettled(job)
        case OwnProbeJob():
            return _own_probe(job)
        case EvaluateJob():
            return _evaluate(job)
        case PredictJob():
            return _predict(job)
        case InitialModelJob():
            model = architecture(job.architecture_id).initial_weights(job.seed)
            return InitialModelResult(_write(Path(job.output_path), model))
        case WarmUpJob():
            runtime.preload()
            runtime.set_threads(threads)
            return WarmUpResult()
        case unknown:
            assert_never(unknown)


def _train(job: TrainJob, report: Report, threads: int) -> TrainResult:
    from bflnode.fl.training import TrainingConfig, train

    if job.device not in DEVICES:
        raise ValueError(f"{job.device!r} is no device: use one of {', '.join(DEVICES)}")
    config = TrainingConfig(
        learning_rate=job.learning_rate,
        batch_size=job.batch_size,
        epochs=job.epochs,
        seed=job.seed,
        device=cast(Literal["auto", "cpu", "cuda"], job.device),
        threads=threads,
    )

    def report_epoch(epoch: int, epochs: int, loss: float) -> None:
        report(epoch / epochs, f"epoch {epoch} of {epochs}, loss {loss:.4f}")

    chosen, shard = architecture(job.architecture_id), load_shard(Path(job.shard_path))
    with _model(job.base_path, job.ahead, chosen) as start, _model(job.base_path, job.memory, chosen) as before:
        trained = train(
            *(chosen, bytes(start), shard, config, report_epoch),
            before=None if job.ahead is None and job.memory is None else bytes(before),
            has_prior=job.has_prior,
            share=job.share,
        )
    _write(Path(job.output_path), trained.model)
    return TrainResult(
        received_accuracy=trained.received_accuracy,
        post_accuracy=trained.post_accuracy,
        loss=trained.losses[-1],
        samples=trained.samples,
        seconds=trained.seconds,
    )


def rule_of(settings: RuleSettings) -> Rule:
    """The rule that does what the settings say.

    Raises:
        ValueError: there is none.
    """
    return Rule(
        name=settings.name,
        combination=RobustRule(
            name=settings.combination,
            hostile=settings.hostile_permille / PERMILLE,
            clip=settings.clip_permille / PERMILLE,
        ),
        server_step=settings.step_permille / PERMILLE,
        shared=settings.shared_permille / PERMILLE,
    )


def _aggregate(job: AggregateJob, report: Report) -> AggregateResult:
    chosen, rule = architecture(job.architecture_id), rule_of(job.rule)
    _check_aggregate(job, chosen, rule)
    if job.triangle is not None:
        from bflnode.fl.prototypes import matrix_of_triangle
        from bflnode.fl.updates import sharing_by_evidence

        rule = sharing_by_evidence(rule, matrix_of_triangle(job.triangle, len(job.input_paths)), job.labels)
    sizes: list[int] = []
    bases = job.base_paths if rule.needs_received else ()
    with _sent_and_received(job.input_paths, bases, chosen) as (models, received):
        contributions = [
            Contribution(
                sent=models[index],
                received=received[index] if bases else {},
                holds=_holds(job.classes[index], chosen) if job.classes else (),
                weight=job.weights[index],
            )
            for index in range(len(job.input_paths))
        ]
        data, last = b"", None
        for label, output in outputs(rule, contributions, job.labels):
            report(label / len(job.output_paths), f"cluster {label + 1} of {len(job.output_paths)}")
            if output is not last:
                data, last = serialize(output), output
            sizes.append(_write(Path(job.output_paths[label]), data))
    return AggregateResult(tuple(sizes))


def _check_aggregate(job: AggregateJob, chosen: Architecture, rule: Rule) -> None:
    count = len(job.input_paths)
    if not 1 <= count == len(job.weights) == len(job.labels):
        raise ValueError(
            f"{count} models with {len(job.weights)} weights and {len(job.labels)} labels: there must be one each, "
            "for at least one model"
        )
    if set(job.labels) != set(range(len(job.output_paths))):
        raise ValueError(f"labels {job.labels} with {len(job.output_paths)} outputs: there must be one output a label")
    if rule.needs_received and len(job.base_paths) != count:
        raise ValueError(f"{count} models with {len(job.base_paths)} bases: this rule needs one each")
    sizes = {len(bitmap) for bitmap in job.classes}
    if rule.name == PRIOR_ROWS and (len(job.classes) != count or sizes != {(chosen.classes + 7) // 8}):
        raise ValueError(
            f"{count} models with {len(job.classes)} bitmaps of {sorted(sizes)} bytes: this rule needs one each, "
            f"with a bit for each of {chosen.classes} classes"
        )


def _holds(bitmap: bytes, chosen: Architecture) -> list[bool]:
    """For each class of the architecture whether it is held."""
    held = set(held_classes(bitmap))
    return [category in held for category in range(chosen.classes)]


def _matrix(job: MatrixJob) -> MatrixResult:
    from bflnode.fl.prototypes import correlation_matrix, prototypes, upper_triangle

    chosen = architecture(job.architecture_id)
    inputs = _probe_inputs(job.probe, chosen)
    with _models(job.model_paths, chosen) as models:
        values = prototypes(chosen, models, inputs)
    return MatrixResult(upper_triangle(correlation_matrix(values)))


def _unsettled(job: UnsettledJob) -> UnsettledResult:
    from bflnode.fl.prototypes import matrix_of_triangle, unsettled_pairs

    chosen = architecture(job.matrix.architecture_id)
    inputs = _probe_inputs(job.matrix.probe, chosen)
    matrix, seed = matrix_of_triangle(job.triangle, len(job.matrix.model_paths)), secrets.randbits(128)
    with _models(job.matrix.model_paths, chosen) as models:
        pairs = unsettled_pairs(chosen, models, inputs, matrix=matrix, tolerance=job.tolerance, seed=seed)
    return UnsettledResult(pairs.tobytes())


def _probe_inputs(probe: PublicProbe | ProbeSamples, chosen: Architecture) -> Inputs:
    """The samples that models are compared on."""
    from bflnode.fl.prototypes import choose_probe

    match probe:
        case ProbeSamples(samples_path, psi):
            samples = _samples(Path(samples_path), chosen, max_samples=psi)
            if len(set(samples.labels.tolist())) != 1:
                raise ValueError(f"{samples_path}: the samples of a probe must all be of one category")
            return samples.inputs
        case PublicProbe(probe_set_path, seed, psi):
            probe_set = _samples(Path(probe_set_path), chosen)
            return probe_set.take(choose_probe(seed, probe_set.labels, psi).indices).inputs
        case unknown:
            assert_never(unknown)


def _update_matrix(job: UpdateMatrixJob) -> MatrixResult:
    from bflnode.fl.prototypes import upper_triangle
    from bflnode.fl.updates import update_correlations

    if not 1 <= len(job.model_paths) == len(job.base_paths):
        raise ValueError(
            f"{len(job.model_paths)} models with {len(job.base_paths)} bases: there must be one each, "
            "for at least one model"
        )
    with _sent_and_received(job.model_paths, job.base_paths, architecture(job.architecture_id)) as (sent, received):
        return MatrixResult(upper_triangle(update_correlations(sent, received)))


@contextmanager
def _sent_and_received(
    paths: tuple[str, ...], base_paths: tuple[str, ...], chosen: Architecture
) -> Iterator[tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]]:
    """Models, and what each was trained from: one object where it is one file, nothing where no bases are given."""
    files = sorted(set(base_paths))
    with _models((*paths, *files), chosen) as mapped:
        models = [parse(model, chosen.table) for model in mapped]
        received = dict(zip(files, models[len(paths) :], strict=True))
        yield models[: len(paths)], [received[path] for path in base_paths]


def _own_probe(job: OwnProbeJob) -> OwnProbeResult:
    from bflnode.fl.prototypes import own_probe, serialize_samples

    probe = own_probe(load_shard(Path(job.shard_path)), job.seed, job.psi)
    return OwnProbeResult(_write(Path(job.output_path), serialize_samples(probe.inputs, probe.labels)))


def _evaluate(job: EvaluateJob) -> EvaluateResult:
    from bflnode.fl.training import evaluate

    chosen = architecture(job.architecture_id)
    path = Path(job.data_path)
    with path.open("rb") as file:
        is_shard = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    data = load_shard(path).test if is_shard else _samples(path, chosen)
    with _model(job.model_path, job.memory, chosen) as model:
        evaluation = evaluate(chosen, model, data, _prior(job.prior_path))
    return EvaluateResult(evaluation.accuracy, evaluation.loss, evaluation.samples)


def _predict(job: PredictJob) -> PredictResult:
    from bflnode.fl.training import predict

    chosen = architecture(job.architecture_id)
    shape = ", ".join(map(str, chosen.input_shape))
    arrays = read_npz(Path(job.inputs_path), (PREDICTION_INPUTS,))
    if PREDICTION_INPUTS not in arrays:
        raise ValueError(f"{job.inputs_path} has no array {PREDICTION_INPUTS!r}: numpy.savez(path, inputs=samples)")
    inputs: Any = arrays[PREDICTION_INPUTS]  # of whatever type the file has, until it is checked
    if inputs.ndim != 4 or inputs.dtype.kind not in "fiu":
        raise ValueError(
            f"{job.inputs_path}: inputs are {inputs.dtype} of shape {inputs.shape}, "
            f"give numbers of shape (samples, {shape})"
        )
    if len(inputs) > MAX_PREDICTIONS:
        raise ValueError(f"{job.inputs_path}: {len(inputs)} samples, ask for at most {MAX_PREDICTIONS} at a time")
    if (inputs - inputs != 0).any():
        raise ValueError(f"{job.inputs_path}: inputs have a NaN or an infinity, clean the data first")
    with _model(job.model_path, job.memory, chosen) as model:
        prediction = predict(chosen, model, inputs, _prior(job.prior_path))
    probabilities = tuple(tuple(row) for row in prediction.probabilities.tolist())
    return PredictResult(tuple(prediction.labels.tolist()), probabilities)


def _prior(path: str) -> LabelledData | None:
    """The data whose label prior predicts, where there is one."""
    return load_shard(Path(path)).train if path else None


def _samples(path: Path, chosen: Architecture, **bounds: int) -> LabelledData:
    """A sample file, which may be hostile."""
    from bflnode.fl.prototypes import SampleLimits, parse_samples

    with _naming(path):
        return parse_samples(_map(path), SampleLimits(chosen.input_shape, chosen.classes, **bounds))


@contextmanager
def _models(paths: Sequence[str], chosen: Architecture) -> Iterator[list[memoryview]]:
    """Model files mapped into memory, not read: 256 of ResNet-18 are 11 GB.

    When the block finds bytes that aren't a model, the error names the file.
    """
    models = [_map(Path(path)) for path in paths]
    try:
        yield models
    except InvalidWeights:
        for path, model in zip(paths, models, strict=True):
            with _naming(Path(path)):
                parse(model, chosen.table)
        raise


@contextmanager
def _model(path: str, other: LookAhead | Memory | None, chosen: Architecture) -> Iterator[bytes | memoryview]:
    """A model's canonical weights, with what another says of them; where one is absurd, with what could be trained."""
    from bflnode.fl.training import trainable

    with _models([path] if other is None else [path, other.path], chosen) as mapped:
        if other is None:
            yield mapped[0]
        else:
            received, second = (parse(trainable(chosen, bytes(model)), chosen.table) for model in mapped)
            combine = looked_ahead if isinstance(other, LookAhead) else between
            yield serialize(combine(received, second, other.share))


def _map(path: Path) -> memoryview:
    """A file's bytes; the mapping ends with the last reference to it, tensors that look into it included."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file it is that isn't weights or samples."""
    try:
        yield
    except InvalidWeights as error:
        raise ValueError(f"{path}: {error}") from error


def _write(path: Path, data: bytes) -> int:
    """Write a file that appears whole or not at all, even if the machine stops; returns its size."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return len(data)
