"""Running an experiment: its data, its runs one after the other on the same workers, how long it will take.

A run itself is in `round`. torch is imported when this starts.
"""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING

from bflnode.fl.architectures import UnknownArchitecture
from bflnode.fl.attacks import Attack, AttackError
from bflnode.fl.population import PopulationOptions, Shift, load_data, make_population
from bflnode.fl.robust import RobustRuleError
from bflnode.fl.samples import DatasetError, Shard
from bflnode.fl.weights import InvalidWeights
from bflnode.storage.errors import InUseError, StorageError
from bflnode.storage.home_lock import HomeLock, running_pid

from .file import Experiment, ExperimentError, MethodEntry, RunPlan
from .pool import make_pool
from .results import combine_tables
from .round import RoundRecord, Run, training_config
from .store import ExperimentFolder

if TYPE_CHECKING:
    from bflnode.fl.methods.method import Method

PACKAGES = ("bflnode", "torch", "torchvision", "numpy", "ray")
"""Whose versions are noted beside results."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Where clients train: processes of this machine, or actors on a Ray cluster."""

    count: int = 1
    ray_address: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an experiment is.

    Attributes:
        run: its name.
        round: the learning round that has just ended.
        rounds: of this run.
        post: mean accuracy after training.
        received: mean accuracy before it.
        seconds: that the round took.
        seconds_left: an estimate, None before there is one.
    """

    run: str
    round: int
    rounds: int
    post: float
    received: float
    seconds: float
    seconds_left: float | None


def run_experiment(folder: ExperimentFolder, workers: Workers, on_progress: Callable[[Progress], None]) -> None:
    """Run all that isn't done yet; whatever ends this, at most one learning round is lost.

    Raises:
        ExperimentError: data, methods, training or the ledger refuse, and the message names the run; or another process
            is running it.
    """
    with _locked(folder.path):
        try:
            _run_all(folder, workers, on_progress)
        finally:
            combine_tables(folder)


def _run_all(folder: ExperimentFolder, workers: Workers, on_progress: Callable[[Progress], None]) -> None:
    experiment = folder.experiment
    todo = [plan for plan in folder.plans if _round_of(folder, plan) < experiment.rounds]
    if not todo:
        return
    methods = checked_methods(experiment)
    with _refusals(experiment.name):
        whole = read_data(folder)
    folder.save_metadata(machine=platform.machine(), python=platform.python_version(), packages=_versions())
    clock = _Clock(sum(experiment.rounds - _round_of(folder, plan) for plan in todo))
    for (alpha, seed), group in _by_data(todo):
        with _refusals(f"alpha {alpha:g}, seed {seed}"):
            population = make_population(whole, population_options(experiment, alpha, seed))
        with make_pool(population, workers.count, workers.ray_address) as pool:
            for plan in group:
                method = methods[plan.entry.title]
                with _refusals(plan.name, method):
                    run = Run(folder, plan, method, population, pool)
                    for record in run.rounds():
                        on_progress(clock.tick(plan, experiment.rounds, record))


def checked_methods(experiment: Experiment) -> "dict[str, Method]":
    """All methods by title, before anything is run: what one of them refuses must not cost the runs of others.

    Raises:
        ExperimentError: a method, the training or the clients can't be as the experiment asks.
    """
    for alpha, seed in product(experiment.alphas, experiment.seeds):
        with _refusals(experiment.name):
            population_options(experiment, alpha, seed)
    methods = {entry.title: make_configured_method(entry) for entry in experiment.methods}
    for title, method in methods.items():
        with _refusals(title, method):
            method.check_training(training_config(experiment.training))
    return methods


def make_configured_method(entry: MethodEntry) -> "Method":
    """The method that an entry names, with its settings.

    Raises:
        ExperimentError: there is none, or it doesn't take them.
    """
    from bflnode.fl.methods.method import MethodError
    from bflnode.fl.methods.registry import make_method

    try:
        return make_method(entry.name, entry.settings)
    except MethodError as error:
        raise ExperimentError(f"{entry.title}: {error}") from error


def read_data(folder: ExperimentFolder) -> Shard:
    """The data set of an experiment.

    Raises:
        DatasetError: it can't be read.
    """
    data = folder.experiment.data
    path = folder.source / Path(data.path).expanduser() if data.path else None
    return load_data(data.kind, path, download=data.download)


def population_options(experiment: Experiment, alpha: float, seed: int) -> PopulationOptions:
    """How the clients of some runs are made.

    Raises:
        AttackError: nobody would be honest.
        DatasetError: no data can be spread so.
    """
    attack = experiment.attack
    shift = experiment.shift
    return PopulationOptions(
        clients=experiment.clients,
        alpha=alpha,
        seed=seed,
        samples=experiment.data.samples,
        test_samples=experiment.data.test_samples,
        min_train=experiment.data.min_train,
        min_test=experiment.data.min_test,
        shift=Shift(name=shift.name, groups=shift.groups, test_prior=shift.test_prior),
        attack=None if attack is None else Attack(name=attack.name, share=attack.share, strength=attack.strength),
    )


class _Clock:
    """Estimates the time left from the mean of the rounds so far."""

    def __init__(self, rounds: int) -> None:
        self._left = rounds
        self._done = 0
        self._started = time.monotonic()

    def tick(self, plan: RunPlan, rounds: int, record: RoundRecord) -> Progress:
        """A round has ended."""
        self._left -= 1
        self._done += 1
        pace = (time.monotonic() - self._started) / self._done
        return Progress(
            run=plan.name,
            round=record.number,
            rounds=rounds,
            post=record.post,
            received=record.received,
            seconds=record.seconds,
            seconds_left=pace * self._left,
        )


def _locked(path: Path) -> HomeLock:
    try:
        return HomeLock(path)
    except InUseError as error:
        holder = running_pid(path)
        raise ExperimentError(
            f"{path} is being run by {'another process' if holder is None else f'process {holder}'}: "
            "wait for it, stop it, or choose another folder with -o"
        ) from error


@contextmanager
def _refusals(name: str, method: "Method | None" = None) -> Iterator[None]:
    """Name the run in what its data, method or training refuses, and in whatever a method of another package raises."""
    from bflnode.fl.methods.method import MethodError
    from bflnode.fl.methods.registry import BUILT_IN, failure
    from bflnode.fl.training import TrainingError

    refusals = (
        DatasetError,
        UnknownArchitecture,
        AttackError,
        RobustRuleError,
        InvalidWeights,
        MethodError,
        TrainingError,
    )
    try:
        yield
    except refusals as error:
        raise ExperimentError(f"{name}: {error}") from error
    except OSError as error:
        raise ExperimentError(f"{name}: {error.strerror or error}: {error.filename or 'no file named'}") from error
    except Exception as error:  # whatever another package does
        if method is None or type(method) in BUILT_IN or isinstance(error, (ExperimentError, StorageError)):
            raise
        raise ExperimentError(f"{name}: {failure(method.name, type(method), error)}") from error


def _round_of(folder: ExperimentFolder, plan: RunPlan) -> int:
    state = folder.run(plan).state()
    return 0 if state is None else state.round


def _by_data(todo: Sequence[RunPlan]) -> Iterator[tuple[tuple[float, int], tuple[RunPlan, ...]]]:
    """Runs that have the same population, which follow each other."""
    for place, group in groupby(todo, key=lambda plan: (plan.alpha, plan.seed)):
        yield place, tuple(group)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
