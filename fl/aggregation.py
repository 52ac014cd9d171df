"""The mean of models, the same bytes on every machine with IEEE 754 arithmetic.

Whoever aggregates and whoever checks an aggregation (level 2) call this. Which models belong together and what
weights they have is decided on chain.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .weights import Tensor, Tensors

CHUNK_ELEMENTS = 64 * 1024
"""Elements worked on at a time: the float64 sums stay in the processor's cache (4 times faster for ResNet-18)."""

MAX_TOTAL_WEIGHT = 2**53
"""Up to here a sum of weights is exact in float64; 256 clients on chain have 2**40 samples each at most."""

STATISTICS = (".running_mean", ".running_var")
"""How the names of BatchNorm's statistics end."""


def mean(models: Sequence[Tensors], weights: Sequence[int]) -> dict[str, Tensor]:
    """The weighted mean of models (FedAvg, McMahan et al. 2017), bit for bit defined.

    Each float element is `float32(sum_i w_i * float64(x_i) / sum_i w_i)`: one product, one sum at a time, in the
    order of the models; each step and the final division round to nearest even. Integers (BatchNorm's counters) are the
    floor of the exact mean. Permuting the models may change last bits: the caller fixes the order, by key.

    Args:
        models: tensors by name, at least one model, all with the same names and shapes.
        weights: one positive integer a model; all 1 for the papers' unweighted mean.

    Raises:
        ValueError: no models, or weights that don't fit.
    """
    if not 1 <= len(models) == len(weights):
        raise ValueError(f"{len(models)} models with {len(weights)} weights: give one each, for at least one model")
    if min(weights) < 1 or sum(weights) > MAX_TOTAL_WEIGHT:
        raise ValueError(
            f"weights go from {min(weights)} and add up to {sum(weights)}: each must be at least 1, "
            f"all together at most {MAX_TOTAL_WEIGHT}"
        )
    means: dict[str, Tensor] = {}
    for name, first in models[0].items():
        tensors = [model[name].reshape(-1) for model in models]
        combine = _float_mean if first.dtype == np.float32 else _integer_mean
        means[name] = combine(tensors, weights).reshape(first.shape)
    return means


def moved(base: Tensors, target: Tensors, factor: float) -> dict[str, Tensor]:
    """`base + factor (target - base)` for floats, in float64, rounded once; what isn't in the base stays as it is."""
    return {
        name: tensor
        if tensor.dtype != np.float32 or name not in base
        else rounded(base[name] + factor * (tensor.astype(np.float64) - base[name]))
        for name, tensor in target.items()
    }


def stepped(base: Tensors, target: Tensors, factor: float) -> dict[str, Tensor]:
    """A server's step: `moved`, but for BatchNorm's statistics, which are the target's.

    Beyond the target a variance can be negative, and a model with one predicts nothing.
    """
    return moved({name: base[name] for name in base if not name.endswith(STATISTICS)}, target, factor)


def by_chunks(models: Sequence[Tensors], combine: Callable[[Sequence[Tensor]], Tensor]) -> dict[str, Tensor]:
    """Combine models of the same names and shapes element by element, a chunk of a tensor at a time.

    Args:
        models: at least one.
        combine: given flat tensors of the same length, one a model, returns one of that length and type, each element
            of which depends on the elements at its place alone: then the size of chunks changes nothing.
    """
    result: dict[str, Tensor] = {}
    for name, first in models[0].items():
        flat = [model[name].reshape(-1) for model in models]
        combined = np.empty(first.size, dtype=first.dtype)
        for start in range(0, first.size, CHUNK_ELEMENTS):
            chunk = slice(start, start + CHUNK_ELEMENTS)
            combined[chunk] = combine([tensor[chunk] for tensor in flat])
        result[name] = combined.reshape(first.shape)
    return result


def rounded(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Values as float32; what it can't hold becomes the largest number that it can: models must stay finite."""
    limit = float(np.finfo(np.float32).max)
    return np.clip(values, -limit, limit).astype(np.float32)


def _float_mean(tensors: Sequence[Tensor], weights: Sequence[int]) -> NDArray[np.float32]:
    """Mean of flat float tensors; only elementwise operations, whose results no chunk size can change."""
    mean = np.empty(len(tensors[0]), dtype=np.float32)
    total = np.float64(sum(weights))
    for start in range(0, len(mean), CHUNK_ELEMENTS):
        chunk = slice(start, start + CHUNK_ELEMENTS)
        accumulated = np.zeros(len(mean[chunk]), dtype=np.float64)
        for tensor, weight in zip(tensors, weights, strict=True):
            accumulated += tensor[chunk].astype(np.float64) * np.float64(weight)
        mean[chunk] = (accumulated / total).astype(np.float32)
    return mean


def _integer_mean(tensors: Sequence[Tensor], weights: Sequence[int]) -> NDArray[np.int64]:
    """Floor of the mean of flat integer tensors, in Python's integers: hostile counters can't overflow them."""
    total = sum(weights)
    columns = zip(*(tensor.tolist() for tensor in tensors), strict=True)
    return np.array(
        [sum(value * weight for value, weight in zip(column, weights, strict=True)) // total for column in columns],
        dtype=np.int64,
    )
