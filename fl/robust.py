"""Robust aggregation: one model out of several, some of which may be hostile.

Each rule works on tensors by name, in float64, one operation after the other in the order given: the same bytes on
every machine with IEEE 754 arithmetic. Distances come from differences (never `a^2 + b^2 - 2ab`, which can be
negative in floats). Preconditions of a paper are checked, not rounded away; a `RobustRule`, which must have a result,
takes the median where Krum's doesn't hold. Integers (BatchNorm's counters) are the median (lower one), which nobody can
push beyond the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, sqrt

import numpy as np
from numpy.typing import NDArray

from .aggregation import by_chunks, mean, moved
from .weights import Tensor, Tensors

RULES = ("mean", "median", "trimmed-mean", "krum", "multi-krum", "norm-clipping")


ROUNDING = 1e-9
"""Far above what a product of a share and a number of models is rounded by: 0.29 of 100 is 29 and not 28."""


class RobustRuleError(ValueError):
    """A robust rule with a wrong setting, or whose precondition doesn't hold; the message says which and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustRule:
    """A rule with its number, and a result for any number of models: the median for fewer than Krum needs.

    Attributes:
        name: of `RULES`.
        hostile: share of the models that may be hostile, 0 to below 1/2: what is trimmed on each side, and Krum's f, as
            `floor(hostile * models)`.
        clip: largest norm of a client's step, in units of the median step; for norm clipping.
    """

    name: str = "mean"
    hostile: float = 0.2
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise RobustRuleError(f"there is no robust rule {self.name!r}: use one of {', '.join(RULES)}")
        if not 0 <= self.hostile < 0.5:
            raise RobustRuleError(f"hostile is {self.hostile}: give 0 or more, below 0.5")
        if not self.clip > 0:
            raise RobustRuleError(f"clip is {self.clip}: give more than 0")

    def __call__(self, models: Sequence[Tensors], received: Sequence[Tensors]) -> dict[str, Tensor]:
        """One model of several.

        Args:
            models: what clients sent, at least one, all with the same names and shapes.
            received: what each of them had received; only norm clipping asks.
        """
        hostile = self.count(len(models))
        match self.name:
            case "krum" | "multi-krum" if len(models) < _krum_needs(hostile):
                return median(models)
            case "median":
                return median(models)
            case "trimmed-mean":
                return trimmed_mean(models, hostile)
            case "krum":
                return krum(models, hostile)
            case "multi-krum":
                return multi_krum(models, hostile)
            case "norm-clipping":
                return clipped_mean(models, received, self.clip)
            case _:
                return mean(models, [1] * len(models))

    def count(self, models: int) -> int:
        """How many of so many models may be hostile (f): the floor, exact for a share in thousandths."""
        return floor(self.hostile * models + ROUNDING)


def median(models: Sequence[Tensors]) -> dict[str, Tensor]:
    """The coordinate-wise median (Yin et al. 2018, definition 1); of an even number the mean of the middle two."""
    return trimmed_mean(models, (len(models) - 1) // 2)


def trimmed_mean(models: Sequence[Tensors], trimmed: int) -> dict[str, Tensor]:
    """The coordinate-wise mean without the `trimmed` smallest and largest (Yin et al. 2018, definition 2)."""

    def combine(values: NDArray[np.float64]) -> NDArray[np.float64]:
        middle = np.sort(values, axis=0)[trimmed : len(values) - trimmed]
        return np.asarray(sum(middle, start=np.zeros_like(middle[0])) / len(middle))

    return _by_coordinate(models, combine)


def krum(models: Sequence[Tensors], hostile: int) -> dict[str, Tensor]:
    """Krum (Blanchard et al. 2017, section 4): the model nearest to its n - f - 2 nearest others; needs n >= 2f + 3.

    Raises:
        RobustRuleError: there are fewer than 2f + 3 models.
    """
    scores = _krum_scores(models, hostile)
    return {name: tensor.copy() for name, tensor in models[int(np.argmin(scores))].items()}


def multi_krum(models: Sequence[Tensors], hostile: int) -> dict[str, Tensor]:
    """Multi-Krum (Blanchard et al. 2017, section 5): the mean of the n - f models with the best scores of Krum.

    Raises:
        RobustRuleError: there are fewer than 2f + 3 models.
    """
    order = np.argsort(_krum_scores(models, hostile), kind="stable")[: len(models) - hostile]
    return mean([models[index] for index in sorted(order.tolist())], [1] * len(order))


def clipped_mean(models: Sequence[Tensors], received: Sequence[Tensors], clip: float) -> dict[str, Tensor]:
    """The mean of steps of bounded norm (Sun et al. 2019, section 3): none is longer than `clip` median steps."""
    steps = [sqrt(_squared_difference(model, base)) for model, base in zip(models, received, strict=True)]
    bound = clip * float(np.median(steps))

    def combine(chunks: Sequence[Tensor]) -> Tensor:
        pairs = zip(chunks[: len(models)], chunks[len(models) :], steps, strict=True)
        clipped = [
            {"": sent} if step <= bound else moved({"": base}, {"": sent}, bound / step) for sent, base, step in pairs
        ]
        return mean(clipped, [1] * len(clipped))[""]

    return by_chunks([*models, *({name: base[name] for name in models[0]} for base in received)], combine)


def _by_coordinate(
    models: Sequence[Tensors], combine: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> dict[str, Tensor]:
    def combine_chunk(chunks: Sequence[Tensor]) -> Tensor:
        stacked = np.stack(chunks)
        if stacked.dtype == np.int64:
            return np.asarray(np.sort(stacked, axis=0)[(len(models) - 1) // 2], dtype=np.int64)
        return combine(stacked.astype(np.float64)).astype(np.float32)

    return by_chunks(models, combine_chunk)


def _krum_needs(hostile: int) -> int:
    """Fewest models for Krum, of which so many may be hostile (Blanchard et al. 2017, section 4)."""
    return 2 * hostile + 3


def _krum_scores(models: Sequence[Tensors], hostile: int) -> NDArray[np.float64]:
    """Sums of squared distances to the n - f - 2 nearest others."""
    count = len(models)
    if count < _krum_needs(hostile):
        raise RobustRuleError(
            f"Krum needs at least 2f + 3 models, {_krum_needs(hostile)} for f = {hostile}, and there are {count}: "
            "lower the share of hostile models or the number of clusters"
        )
    distances = np.zeros((count, count))
    for first in range(count):
        for second in range(first):
            distances[first, second] = distances[second, first] = _squared_difference(models[first], models[second])
    others = np.sort(distances + np.diag(np.full(count, np.inf)), axis=1)
    return np.asarray(others[:, : count - hostile - 2].sum(axis=1))


def _squared_difference(first: Tensors, second: Tensors) -> float:
    """The squared Euclidean distance over all float tensors, in float64.

    Squares are added one after the other, in the order of names and elements: a sum in another order, as numpy's own
    takes on processors with wider registers, has other last bits.
    """
    total = np.float64(0.0)
    for name in first:
        if first[name].dtype != np.float32:
            continue
        squares = np.square(first[name].astype(np.float64) - second[name]).reshape(-1)
        if len(squares):
            squares[0] += total
            total = np.add.accumulate(squares)[-1]
    return float(total)
