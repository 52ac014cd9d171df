"""Spreading one data set over clients, and holding samples out of it before that.

Pure functions of data and a seed, for experiments, the demo and benchmarks: real clients bring their own data.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .samples import DatasetError, LabelledData, Labels, Shard

Indices = NDArray[np.int64]

MIN_TRAIN_SAMPLES = 10
"""Of the papers' protocol: nobody has fewer training samples."""

MIN_TEST_SAMPLES = 2
"""With none an accuracy is undefined; the papers' protocol doesn't care, so this redraws a little more often."""

MAX_DRAWS = 20_000
"""Redraws before giving up, some seconds: 20 clients of the digits at alpha 0.1 need tens to hundreds."""

MAX_ALPHA = 1e300
"""Shares are all alike long before; beyond it the sum of what is drawn for many clients is no float any more."""

MAX_DRAWN_PARTS = 400_000
"""Clients' parts drawn before giving up, half a minute: a draw takes the longer the more clients there are."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which samples one client gets, as ascending indices into the training and the test data."""

    train: Indices
    test: Indices


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Sets of samples that share nothing with each other and with what clients get.

    Attributes:
        probe: for prototypes (the task's probe set).
        validation: for Shapley values (the task's validation set).
        global_test: for the accuracy over everybody.
        rest: what is left for clients.
    """

    probe: LabelledData
    validation: LabelledData
    global_test: LabelledData
    rest: Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How many clients, and how few samples a client may have.

    Attributes:
        clients: number of clients.
        seed: of the generator, 0 or more.
        min_train: fewest training samples of a client.
        min_test: fewest test samples of a client.
    """

    clients: int
    seed: int
    min_train: int = MIN_TRAIN_SAMPLES
    min_test: int = MIN_TEST_SAMPLES


def dirichlet(shard: Shard, alpha: float, spread: Spread) -> tuple[Assignment, ...]:
    """The papers' skewed spread: for each class, shares over clients drawn from Dirichlet(alpha).

    As in the public code BFLN's baselines build on: in each class, clients that already have their fair
    share of samples (the mean) get none; the whole is redrawn until everybody has enough; the same shares split
    the test data. Deviation: "enough" also counts test samples.

    Args:
        shard: the data to spread.
        alpha: more than 0, at most `MAX_ALPHA`; smaller is more skewed. The papers' "bias" 0.1, 0.3 and 0.5.
        spread: number of clients, seed, fewest samples.

    Returns:
        One assignment a client; together they hold every sample once.

    Raises:
        DatasetError: there are too many clients for the data, or no such alpha.
    """
    check_alpha(alpha)
    _refuse_too_many_clients(shard, spread)
    generator = np.random.default_rng(spread.seed)
    draws = max(1, min(MAX_DRAWS, MAX_DRAWN_PARTS // spread.clients))
    for _ in range(draws):
        assignments = _draw_dirichlet(shard, alpha, spread.clients, generator)
        if assignments is not None and all(
            len(part.train) >= spread.min_train and len(part.test) >= spread.min_test for part in assignments
        ):
            return assignments
    raise DatasetError(
        f"{draws} draws with alpha {alpha} left some of {spread.clients} clients with fewer than {spread.min_train} "
        f"training or {spread.min_test} test samples: use fewer clients, more data, a larger alpha or lower minimums"
    )


def check_alpha(alpha: float) -> None:
    """Refuse a concentration that no Dirichlet distribution has, or none that can be drawn from.

    Raises:
        DatasetError: it is 0 or less, no number, or above `MAX_ALPHA`.
    """
    if not 0.0 < alpha <= MAX_ALPHA:
        raise DatasetError(
            f"an alpha of {alpha} is no Dirichlet distribution that can be drawn from: give more than 0 and at most "
            f"{MAX_ALPHA:g}, for example 0.3"
        )


def iid(shard: Shard, spread: Spread) -> tuple[Assignment, ...]:
    """An even spread: samples are shuffled and dealt, sizes differ by at most one.

    Returns:
        One assignment a client; together they hold every sample once.

    Raises:
        DatasetError: there are too many clients for the data.
    """
    _refuse_too_many_clients(shard, spread)
    generator = np.random.default_rng(spread.seed)
    train = np.array_split(generator.permutation(len(shard.train)), spread.clients)
    test = np.array_split(generator.permutation(len(shard.test)), spread.clients)
    return tuple(Assignment(np.sort(first), np.sort(second)) for first, second in zip(train, test, strict=True))


def shards_of(shard: Shard, assignments: tuple[Assignment, ...]) -> tuple[Shard, ...]:
    """The data of each client."""
    return tuple(Shard(shard.train.take(part.train), shard.test.take(part.test)) for part in assignments)


def hold_out(shard: Shard, *, probe: int, validation: int, global_test: int, seed: int) -> HeldOut:
    """Take sets out of the test data, before anything is spread.

    Each set has the classes in the proportions of the data, as far as whole samples allow.

    Args:
        shard: the whole data set; its training data stays complete.
        probe: samples of the probe set.
        validation: samples of the validation set.
        global_test: samples of the global test set.
        seed: 0 or more.

    Raises:
        DatasetError: a size is below 1, or too little test data would be left.
    """
    sizes = (probe, validation, global_test)
    available = len(shard.test)
    if min(sizes) < 1 or sum(sizes) >= available:
        raise DatasetError(
            f"probe {probe}, validation {validation} and global test {global_test} can't be held out of {available} "
            "test samples: each must be at least 1, and at least one sample must be left for clients"
        )
    order = _interleave_classes(shard.test.labels, np.random.default_rng(seed))
    bounds = np.cumsum(sizes)
    parts = [np.sort(part) for part in np.split(order, bounds)]
    held = [shard.test.take(part) for part in parts]
    return HeldOut(held[0], held[1], held[2], Shard(shard.train, held[3]))


def subset(data: LabelledData, samples: int, seed: int) -> LabelledData:
    """So many samples, with the classes in the proportions of the data as far as whole samples allow.

    Raises:
        DatasetError: there are fewer.
    """
    if not 1 <= samples <= len(data):
        raise DatasetError(f"{samples} of {len(data)} samples can't be taken: give 1 to {len(data)}")
    return data.take(np.sort(_interleave_classes(data.labels, np.random.default_rng(seed))[:samples]))


def _refuse_too_many_clients(shard: Shard, spread: Spread) -> None:
    if spread.clients < 1:
        raise DatasetError(f"{spread.clients} clients: give at least 1")
    for what, samples, least, setting in (
        ("training", len(shard.train), spread.min_train, "min_train"),
        ("test", len(shard.test), spread.min_test, "min_test"),
    ):
        if samples < spread.clients * least:
            fitting = samples // least
            remedy = f"at most {fitting} clients, or more data" if fitting else f"more samples, or a lower {setting}"
            raise DatasetError(
                f"{samples} {what} samples are too few for {spread.clients} clients with at least {least} each: "
                f"use {remedy}"
            )


def _draw_dirichlet(
    shard: Shard, alpha: float, clients: int, generator: np.random.Generator
) -> tuple[Assignment, ...] | None:
    """One draw, or nothing where all shares of a class came out as zero."""
    train: list[list[Indices]] = [[] for _ in range(clients)]
    test: list[list[Indices]] = [[] for _ in range(clients)]
    counts = np.zeros(clients, dtype=np.int64)
    fair_share = len(shard.train) / clients
    for category in range(shard.classes):
        shares = generator.dirichlet(np.full(clients, alpha)) * (counts < fair_share)
        total = shares.sum()
        if not total > 0.0:
            return None
        shares /= total
        parts = _cut(shard.train.labels, category, shares, generator)
        counts += [len(part) for part in parts]
        for client, part in enumerate(parts):
            train[client].append(part)
        for client, part in enumerate(_cut(shard.test.labels, category, shares, generator)):
            test[client].append(part)
    return tuple(
        Assignment(np.sort(np.concatenate(train[client])), np.sort(np.concatenate(test[client])))
        for client in range(clients)
    )


def _cut(labels: Labels, category: int, shares: NDArray[np.float64], generator: np.random.Generator) -> list[Indices]:
    """The samples of one class, shuffled and cut by shares."""
    members = generator.permutation(np.flatnonzero(labels == category))
    cuts = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
    return np.split(members, cuts)


def _interleave_classes(labels: Labels, generator: np.random.Generator) -> Indices:
    """All indices in an order whose every stretch has the classes in nearly their proportions.

    The k-th of a class's m shuffled samples stands at (k + u) / m with one u per class, so classes take even steps.
    """
    positions = np.empty(len(labels), dtype=np.float64)
    for category in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == category))
        positions[members] = (np.arange(len(members)) + generator.random()) / len(members)
    return np.argsort(positions, kind="stable")
