"""One data set and who has which part of it: the clients of an experiment, by number.

Here belong reading an experiment's data, holding samples out of it, spreading the rest, and what makes clients differ
in more than their labels: shifts of features, of the test labels, and attacks. The samples are in memory once, a
client's part is made when it is asked for. What clients do with it is in `client_round`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .architectures import Architecture, architecture
from .attacks import Attack, AttackError
from .datasets import KINDS, TEST_SHARE, LoadOptions, load
from .partition import (
    MIN_TEST_SAMPLES,
    MIN_TRAIN_SAMPLES,
    Assignment,
    HeldOut,
    Indices,
    Spread,
    check_alpha,
    dirichlet,
    hold_out,
    iid,
    subset,
)
from .prototypes import MAX_SAMPLES
from .samples import DatasetError, Inputs, LabelledData, Shard, as_float, printable

ENTRY_POINTS = "bflnode.datasets"
"""Entry points of other packages that read data: functions of a path (or None) and `LoadOptions` that give a Shard."""

DIGITS_TEST_SHARE = 0.35
"""Digits has only 1,797 samples, and the probe set, the global test set and every client's own come out of this."""

SHIFTS = ("none", "rotation", "style")
"""How features differ between groups: not; turned by 0, 90, 180, 270 degrees; plain, inverted, faint, dark."""

MAX_GROUPS = 4

TEST_PRIORS = ("same", "uniform")
"""How often classes are in a client's test data: as in its training data, or all alike."""

_SAMPLING = 1
_TEST_PRIOR = 2
"""Different streams of random numbers from one seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """What differs between clients besides the labels they have.

    Attributes:
        name: of `SHIFTS`.
        groups: client i is in group `i % groups`; group 0 has the data as it is.
        test_prior: of `TEST_PRIORS`.
    """

    name: str = "none"
    groups: int = MAX_GROUPS
    test_prior: str = "same"

    def __post_init__(self) -> None:
        if self.name not in SHIFTS:
            raise DatasetError(f"there is no shift {self.name!r}: use one of {', '.join(SHIFTS)}")
        if not 1 <= self.groups <= MAX_GROUPS:
            raise DatasetError(f"{self.groups} groups of shifted clients: give 1 to {MAX_GROUPS}")
        if self.test_prior not in TEST_PRIORS:
            raise DatasetError(f"there is no test prior {self.test_prior!r}: use one of {', '.join(TEST_PRIORS)}")

    def apply(self, data: LabelledData, group: int) -> LabelledData:
        """The samples as a group of clients has them."""
        if self.name == "none" or group == 0:
            return data
        change = _rotated if self.name == "rotation" else _restyled
        return LabelledData(change(data.inputs, group), data.labels, data.class_names)

    def mixture(self, data: LabelledData) -> LabelledData:
        """The samples as all groups together have them: sample i as group `i % groups` has it."""
        if self.name == "none":
            return data
        parts = [np.arange(group, len(data), self.groups) for group in range(self.groups)]
        shifted = [self.apply(data.take(part), group) for group, part in enumerate(parts)]
        order = np.argsort(np.concatenate(parts), kind="stable")
        return _joined(shifted).take(order)


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationOptions:
    """How a data set is spread.

    Attributes:
        clients: number of clients.
        alpha: Dirichlet concentration; 0 spreads evenly.
        seed: of every draw, 0 or more.
        samples: training samples that are used; 0 for all.
        test_samples: test samples that are used; 0 for all.
        min_train: fewest training samples of a client.
        min_test: fewest test samples of a client.
        shift: of features and test labels.
        attack: what hostile clients do; label flips are part of their data. Somebody must be honest: what is measured
            is measured of honest clients.
    """

    clients: int
    alpha: float
    seed: int
    samples: int = 0
    test_samples: int = 0
    min_train: int = MIN_TRAIN_SAMPLES
    min_test: int = MIN_TEST_SAMPLES
    shift: Shift = Shift()
    attack: Attack | None = None

    def __post_init__(self) -> None:
        if self.alpha:
            check_alpha(self.alpha)
        if self.attack is not None and len(self.attack.hostile(self.clients)) == self.clients:
            raise AttackError(
                f"attack.share is {self.attack.share}, which makes all of {self.clients} clients hostile: "
                "lower it, at least one has to be honest to be measured"
            )


@dataclass(frozen=True)
class Population:
    """The clients of an experiment.

    Attributes:
        options: how they were made.
        held: what was held out, as all groups together have it; `rest` is as it was read.
        assignments: what each client has of `held.rest`.
    """

    options: PopulationOptions
    held: HeldOut
    assignments: tuple[Assignment, ...]

    @cached_property
    def hostile(self) -> frozenset[int]:
        """Numbers of the hostile clients."""
        attack = self.options.attack
        return frozenset() if attack is None else attack.hostile(self.options.clients)

    def shard(self, clients: Sequence[int]) -> Shard:
        """The data of a client, or of several together: of a hostile one with what its attack does to data."""
        parts = [self._shard(client) for client in clients]
        return Shard(_joined([part.train for part in parts]), _joined([part.test for part in parts]))

    def test(self, client: int) -> LabelledData:
        """What a client's accuracy is measured on; never poisoned."""
        data = self.held.rest.test.take(self._test_indices(client))
        return self.options.shift.apply(data, client % self.options.shift.groups)

    def histogram(self, client: int) -> tuple[int, ...]:
        """Labels of a client's training data, as it registers them."""
        return self._shard(client).train.histogram()

    def sampled(self, learning_round: int, sample: int) -> tuple[int, ...]:
        """The clients of a learning round, ascending: `sample` drawn ones, or all for 0."""
        if not sample or sample == self.options.clients:
            return tuple(range(self.options.clients))
        generator = np.random.default_rng((self.options.seed, _SAMPLING, learning_round))
        return tuple(sorted(generator.choice(self.options.clients, sample, replace=False).tolist()))

    def _shard(self, client: int) -> Shard:
        group = client % self.options.shift.groups
        train = self.options.shift.apply(self.held.rest.train.take(self.assignments[client].train), group)
        shard = Shard(train, self.test(client))
        attack = self.options.attack
        return attack.poisoned(shard) if attack is not None and client in self.hostile else shard

    def _test_indices(self, client: int) -> Indices:
        own = self.assignments[client].test
        if self.options.shift.test_prior == "same":
            return own
        generator = np.random.default_rng((self.options.seed, _TEST_PRIOR, client))
        labels = self.held.rest.test.labels
        members = [np.flatnonzero(labels == category) for category in np.unique(labels)]
        each = max(1, len(own) // len(members))
        drawn = [generator.choice(part, min(each, len(part)), replace=False) for part in members]
        return np.sort(np.concatenate(drawn))


def load_data(kind: str, path: Path | None, *, download: bool = False) -> Shard:
    """Read the data of an experiment: a kind of `datasets`, or one that an installed package offers.

    The split into training and test data, where data comes without one, is the same for all seeds.

    Raises:
        DatasetError: names the path, what is wrong and what to do.
    """
    options = LoadOptions(test_share=DIGITS_TEST_SHARE if kind == "digits" else TEST_SHARE, download=download)
    offered = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if kind in KINDS or kind not in offered:
        if kind not in KINDS:
            known = ", ".join((*KINDS, *sorted(offered)))
            raise DatasetError(f"there is no kind of data {printable(kind)!r}: use one of {known}")
        return load(kind, path, options)
    place = f"entry point {kind} ({offered[kind].value})"
    try:
        shard = offered[kind].load()(path, options)
    except (DatasetError, OSError):
        raise
    except Exception as error:  # whatever another package does
        raise DatasetError(
            f"{place} can't load data ({type(error).__name__}: {error}): "
            "correct its package; BFLNODE_DEBUG=1 shows where"
        ) from error
    if not isinstance(shard, Shard):
        raise DatasetError(f"{place} gave no bflnode.fl.samples.Shard: correct it")
    return shard


def default_architecture(kind: str, whole: Shard) -> str:
    """The id of the model for a data set, if nobody chooses: the small MLP for digits, else the small CNN."""
    shape = "x".join(str(side) for side in whole.input_shape)
    return f"{'mlp' if kind == 'digits' else 'cnn'}/{shape}/{whole.classes}"


def fitting_architecture(name: str, kind: str, whole: Shard) -> Architecture:
    """An architecture that takes the data.

    Raises:
        UnknownArchitecture: there is none of that name.
        DatasetError: it takes other data.
    """
    chosen = architecture(name)
    if chosen.input_shape != whole.input_shape or chosen.classes != whole.classes:
        shape = "x".join(str(side) for side in whole.input_shape)
        raise DatasetError(f"architecture {name} doesn't fit the data: {kind} has {shape} and {whole.classes} classes")
    return chosen


def held_out_sizes(whole: Shard) -> dict[str, int]:
    """A third of the test data for the probe set, a quarter for the global test, a tenth for validation, bounded."""
    tests = len(whole.test)
    return {
        "probe": min(tests // 3, 64 * whole.classes, MAX_SAMPLES),
        "validation": min(max(1, tests // 10), 1_000),
        "global_test": min(tests // 4, 2_000),
    }


def make_population(whole: Shard, options: PopulationOptions) -> Population:
    """Spread a data set over clients.

    Raises:
        DatasetError: there is too little data, or the shift doesn't fit it.
    """
    _, height, width = whole.input_shape
    if options.shift.name == "rotation" and height != width:
        raise DatasetError(
            f"images of {height}x{width} can't be rotated by 90 degrees: use square ones or another shift"
        )
    used = Shard(
        _part(whole.train, options.samples, options.seed),
        _part(whole.test, options.test_samples, options.seed),
    )
    held = hold_out(used, **held_out_sizes(used), seed=options.seed)
    spread = Spread(clients=options.clients, seed=options.seed, min_train=options.min_train, min_test=options.min_test)
    parts = dirichlet(held.rest, options.alpha, spread) if options.alpha > 0 else iid(held.rest, spread)
    mixture = options.shift.mixture
    mixed = HeldOut(mixture(held.probe), mixture(held.validation), mixture(held.global_test), held.rest)
    return Population(options, mixed, parts)


def _part(data: LabelledData, samples: int, seed: int) -> LabelledData:
    return subset(data, samples, seed) if samples else data


def _joined(parts: Sequence[LabelledData]) -> LabelledData:
    if len(parts) == 1:
        return parts[0]
    labels = np.concatenate([part.labels for part in parts])
    return LabelledData(_stacked([part.inputs for part in parts]), labels, parts[0].class_names)


def _stacked(parts: Sequence[Inputs]) -> Inputs:
    """All samples; uint8 stays only where all of them are."""
    if all(part.dtype == np.uint8 for part in parts):
        joined: NDArray[np.uint8] = np.concatenate([part.astype(np.uint8, copy=False) for part in parts])
        return joined
    return np.concatenate([as_float(part) for part in parts])


def _rotated(inputs: Inputs, group: int) -> Inputs:
    turned: Inputs = np.rot90(inputs, group, axes=(2, 3)).copy()
    return turned


def _restyled(inputs: Inputs, group: int) -> Inputs:
    """Inverted, faint (a fifth of the contrast, around a half), dark (squared)."""
    plain = as_float(inputs)
    match group:
        case 1:
            return np.float32(1.0) - plain
        case 2:
            return np.float32(0.4) + np.float32(0.2) * plain
        case _:
            return plain * plain
