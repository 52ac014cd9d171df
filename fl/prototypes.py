"""Prototype-based aggregation, first half: probe, prototypes and their correlations (BFLN 2024, eq. 1 to 3).

Here belong choosing the probe by rule, the sample files in which probes travel, and the integer matrix that goes on
chain. Clustering that matrix is consensus code. torch is imported only when prototypes are computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from .aggregation import rounded
from .architectures import Architecture
from .samples import Inputs, LabelledData, Labels, Shard, as_float, numbered_classes
from .weights import (
    DType,
    InvalidWeights,
    Tensor,
    TensorSpec,
    TensorTable,
    WeightsFault,
    expected_size,
    parse,
    read_table,
    serialize,
)

Prototypes = NDArray[np.float64]
"""(clients, code length)."""

CorrelationMatrix = NDArray[np.int16]
"""(clients, clients), symmetric, Pearson's r times `CORRELATION_SCALE`."""

CORRELATION_SCALE = 10_000
"""The integer that stands for a correlation of 1: four decimals, and it fits int16."""

MIN_CATEGORY_SAMPLES = 16
"""A class with fewer samples isn't drawn while another has them: 16 give nearly the clusters of 64, fewer don't."""

CONSTANT_SPREAD = 1e-5
"""A prototype whose dimensions differ from their mean by no more than this part of the largest is constant."""

PERTURBATION = 2.0**-20
"""Standard deviation, relative, by which weights are moved to see what rounding decides: 16 of float32's roundings.

What a forward pass rounds is a few of them. Similarities of trained models move by no more than a unit."""

PERTURBATIONS = 3
"""How often: in a code of 32 dimensions a similarity that is noise stays where it was once in 500 times each."""

MAX_SAMPLES = 4096
"""Samples in a file from a stranger; a probe set has some hundreds."""

MAX_INPUT = 2.0**64
"""Largest magnitude in a sample from a stranger: of much larger ones any model makes sums that overflow, and whoever
publishes a probe would have no similarity held against it."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Which samples every model is shown.

    Attributes:
        category: their class.
        indices: ascending, all of that class.
    """

    category: int
    indices: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SampleLimits:
    """What a sample file may hold.

    Attributes:
        input_shape: channels, height, width it must have.
        classes: labels are below it.
        max_samples: most samples.
    """

    input_shape: tuple[int, int, int]
    classes: int
    max_samples: int = MAX_SAMPLES


def choose_probe(seed: bytes, labels: Labels, psi: int) -> Probe:
    """Draw a category and psi of its samples, the same on every machine.

    The category is drawn among the classes with at least min(psi, `MIN_CATEGORY_SAMPLES`) samples; if there is
    none, it is the largest class (of equal ones the lowest). All draws are integers from SHA-256 in counter
    mode, with rejection, so that nothing is biased.

    Args:
        seed: the hash that decides.
        labels: (samples,) int64 of the probe set, at least one.
        psi: how many samples; fewer where the category has fewer.

    Raises:
        ValueError: no labels, or psi below 1.
    """
    if psi < 1 or not len(labels):
        raise ValueError(f"a probe of {psi} out of {len(labels)} samples can't be drawn: both must be at least 1")
    words = _words(seed)
    counts = np.bincount(labels)
    eligible = np.flatnonzero(counts >= min(psi, MIN_CATEGORY_SAMPLES))
    category = int(eligible[_below(len(eligible), words)]) if len(eligible) else int(np.argmax(counts))
    members = np.flatnonzero(labels == category)
    size = min(psi, len(members))
    for position in range(size):
        other = position + _below(len(members) - position, words)
        members[[position, other]] = members[[other, position]]
    return Probe(category, np.sort(members[:size]))


def own_probe(shard: Shard, seed: bytes, psi: int) -> LabelledData:
    """The probe an aggregator publishes out of its own training data, drawn by the same rule (the paper's way)."""
    return shard.train.take(choose_probe(seed, shard.train.labels, psi).indices)


def prototypes(architecture: Architecture, models: Sequence[bytes | memoryview], inputs: Inputs) -> Prototypes:
    """The prototype of each model: the mean of its representations of the same inputs (eq. 1).

    One forward pass a model over all inputs in the order given, on the CPU with one thread; the mean is taken
    in float64, sample after sample.

    Args:
        architecture: of all models.
        models: canonical weights, in the order of the matrix.
        inputs: (psi, channels, height, width) of one category.

    Returns:
        (clients, code length) float64; not finite where a model's own weights overflow.

    Raises:
        InvalidWeights: a model isn't canonical weights of the architecture.
        ValueError: the inputs don't fit the architecture, or there are none.
    """
    if not len(inputs) or inputs.shape[1:] != architecture.input_shape:
        raise ValueError(f"inputs of shape {inputs.shape} don't fit {architecture.id}")
    from .inference import repeatable_torch, representations

    result = np.zeros((len(models), architecture.code_length), dtype=np.float64)
    with repeatable_torch(threads=1):
        for client, model in enumerate(models):
            for code in representations(architecture.load(model), inputs):
                result[client] += code
    return result / len(inputs)


def correlation_matrix(values: Prototypes) -> CorrelationMatrix:
    """Pearson's correlation of all pairs of prototypes (eq. 2 and 3), as integers.

    Sums run over the code's dimensions one after the other in float64 (no BLAS, no reduction), and the result is
    rounded half to even. The diagonal is 1 by definition. Deviation: where the paper divides by zero (a
    constant prototype, sigma = 0) r is 0. So it is for a prototype that isn't finite, and for one that is constant
    up to what float32 resolves: the rest would be noise, different on each machine.

    Args:
        values: (clients, code length).

    Returns:
        (clients, clients) int16 in [-10000, 10000].
    """
    clients, dimensions = values.shape
    usable: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(values), axis=1)
    values = np.where(usable[:, np.newaxis], values, 0.0)
    sums = np.zeros(clients, dtype=np.float64)
    for dimension in range(dimensions):
        sums += values[:, dimension]
    centred = values - (sums / dimensions)[:, np.newaxis]
    usable &= np.abs(centred).max(axis=1) > CONSTANT_SPREAD * np.abs(values).max(axis=1)
    centred[~usable] = 0.0
    covariances = np.zeros((clients, clients), dtype=np.float64)
    for dimension in range(dimensions):
        column = centred[:, dimension]
        covariances += column[:, np.newaxis] * column[np.newaxis, :]
    return matrix_of_covariances(covariances)


def matrix_of_covariances(covariances: NDArray[np.float64]) -> CorrelationMatrix:
    """Correlations of covariances (clients, clients), rounded half to even; 0 where a variance is 0 or not finite."""
    deviations = np.sqrt(np.diagonal(covariances))
    usable = np.isfinite(deviations) & (deviations > 0.0)
    deviations = np.where(usable, deviations, 1.0)
    defined = usable[:, np.newaxis] & usable[np.newaxis, :]
    correlations = np.where(defined, covariances, 0.0) / (deviations[:, np.newaxis] * deviations[np.newaxis, :])
    scaled = np.clip(np.rint(correlations * CORRELATION_SCALE), -CORRELATION_SCALE, CORRELATION_SCALE)
    matrix: CorrelationMatrix = scaled.astype(np.int16)
    np.fill_diagonal(matrix, CORRELATION_SCALE)
    return matrix


def unsettled_pairs(
    architecture: Architecture,
    models: Sequence[bytes | memoryview],
    inputs: Inputs,
    *,
    matrix: CorrelationMatrix,
    tolerance: int,
    seed: int,
) -> NDArray[np.bool_]:
    """Pairs of models whose similarity is what rounding makes of it, so that no two processors need agree on it.

    A model can hold huge weights that cancel: its prototype is then what rounding left, and differs between kinds of
    processors by more than any tolerance. What a forward pass rounds is what some slightly different weights give
    without rounding, each layer for itself, so such a similarity also moves when the weights do. Each model is moved
    `PERTURBATIONS` times by about `PERTURBATION` of each float; a pair is unsettled if its similarity moves
    by more than half of the tolerance, and by more than the one unit that rounding to integers can make of nothing.
    And if one of its models holds weights so huge that the order of a sum decides whether it is finite, which no
    slightly different weights show.

    Args:
        architecture: of all models.
        models: canonical weights, in the order of the matrix.
        inputs: as for `prototypes`.
        matrix: the models' `correlation_matrix` on these inputs, as this machine computes it.
        tolerance: most difference, in 1 / `CORRELATION_SCALE`, that is allowed between two computations.
        seed: not negative; one that the models' authors can't know, so that no model is made for it.

    Returns:
        (clients (clients - 1) / 2,), in the order of `upper_triangle`.

    Raises:
        InvalidWeights, ValueError: as `prototypes` does.
    """
    from .inference import may_overflow, repeatable_torch

    generator = np.random.default_rng(seed)
    before = matrix.astype(np.int64)
    with repeatable_torch(threads=1):
        is_huge = np.array([may_overflow(architecture.load(model), inputs) for model in models], dtype=np.bool_)
    unsettled: NDArray[np.bool_] = is_huge[:, np.newaxis] | is_huge[np.newaxis, :]
    for _ in range(PERTURBATIONS):
        values = [prototypes(architecture, [_perturbed(architecture, model, generator)], inputs) for model in models]
        moved = np.abs(correlation_matrix(np.concatenate(values)) - before)
        unsettled |= moved > max(tolerance // 2, 1)
    return unsettled[np.triu_indices(len(models), k=1)]


def _perturbed(architecture: Architecture, model: bytes | memoryview, generator: np.random.Generator) -> bytes:
    """A model whose floats are each moved by about `PERTURBATION` of them."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in parse(model, architecture.table).items():
        if tensor.dtype == np.float32:
            factors = 1.0 + PERTURBATION * generator.standard_normal(tensor.shape)
            tensors[name] = rounded(tensor * factors)
        else:
            tensors[name] = tensor
    return serialize(tensors)


def upper_triangle(matrix: CorrelationMatrix) -> bytes:
    """A matrix as it goes on chain: the strict upper triangle row by row, int16 big-endian."""
    rows, columns = np.triu_indices(len(matrix), k=1)
    return matrix[rows, columns].astype(">i2").tobytes()


def matrix_of_triangle(triangle: bytes, clients: int) -> CorrelationMatrix:
    """The matrix whose `upper_triangle` is given.

    Raises:
        ValueError: the size doesn't fit the number of clients, or a value is beyond ±`CORRELATION_SCALE`.
    """
    pairs = clients * (clients - 1) // 2
    if clients < 1 or len(triangle) != 2 * pairs:
        raise ValueError(f"{len(triangle)} bytes can't be the correlations of {clients} clients: {2 * pairs} expected")
    values = np.frombuffer(triangle, dtype=">i2").astype(np.int16)
    if pairs and (values.min() < -CORRELATION_SCALE or values.max() > CORRELATION_SCALE):
        raise ValueError(f"correlations go from {values.min()} to {values.max()}, beyond ±{CORRELATION_SCALE}")
    matrix = np.zeros((clients, clients), dtype=np.int16)
    matrix[np.triu_indices(clients, k=1)] = values
    matrix += matrix.T
    np.fill_diagonal(matrix, CORRELATION_SCALE)
    return matrix


def serialize_samples(inputs: Inputs, labels: Labels) -> bytes:
    """Samples as a canonical file (same format as weights): a probe set, a validation set or a published probe."""
    return serialize({"inputs": as_float(inputs), "labels": labels})


def parse_samples(data: bytes | memoryview, limits: SampleLimits) -> LabelledData:
    """The samples in a file, which may be hostile; classes are named by their numbers.

    Raises:
        InvalidWeights: not a canonical sample file within the limits; the reason says why.
    """
    largest = _samples_size(limits.max_samples, limits)
    if len(data) > largest:
        raise InvalidWeights(WeightsFault.WRONG_SIZE, f"{len(data)} bytes, {limits.max_samples} samples have {largest}")
    table = read_table(data)
    match table.tensors:
        case (
            TensorSpec("inputs", DType.F32, (int(samples), *input_shape)),
            TensorSpec("labels", DType.I64, (int(labelled),)),
        ) if samples == labelled and tuple(input_shape) == limits.input_shape:
            pass
        case _:
            raise InvalidWeights(
                WeightsFault.WRONG_TENSORS,
                f"expected float32 inputs of {'x'.join(map(str, limits.input_shape))} and as many int64 labels",
            )
    if not 1 <= samples <= limits.max_samples:
        raise InvalidWeights(WeightsFault.WRONG_TENSORS, f"{samples} samples, 1 to {limits.max_samples} are allowed")
    tensors = parse(data, table)
    labels = np.array(tensors["labels"], dtype=np.int64)
    if labels.min() < 0 or labels.max() >= limits.classes:
        raise InvalidWeights(
            WeightsFault.WRONG_TENSORS,
            f"labels go from {labels.min()} to {labels.max()}, they must be below {limits.classes}",
        )
    inputs = np.array(tensors["inputs"], dtype=np.float32)
    largest = np.abs(inputs).max()
    if largest > MAX_INPUT:
        raise InvalidWeights(WeightsFault.WRONG_TENSORS, f"inputs go up to {largest}, at most {MAX_INPUT} are allowed")
    return LabelledData(inputs, labels, numbered_classes(limits.classes))


def _samples_size(samples: int, limits: SampleLimits) -> int:
    """Size of a sample file; a smaller number of samples never has a larger file."""
    return expected_size(
        TensorTable(
            (
                TensorSpec("inputs", DType.F32, (samples, *limits.input_shape)),
                TensorSpec("labels", DType.I64, (samples,)),
            )
        )
    )


def _words(seed: bytes) -> Iterator[int]:
    """Endless 64-bit integers: SHA-256 of the seed and a 64-bit counter, four big-endian words a digest."""
    for counter in range(2**64):
        digest = sha256(seed + counter.to_bytes(8, "big")).digest()
        for start in range(0, len(digest), 8):
            yield int.from_bytes(digest[start : start + 8], "big")


def _below(bound: int, words: Iterator[int]) -> int:
    """A uniform integer in [0, bound): words beyond the largest multiple of the bound are skipped."""
    limit = 2**64 - 2**64 % bound
    return next(word for word in words if word < limit) % bound
