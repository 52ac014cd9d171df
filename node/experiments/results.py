"""Rows of an experiment's tables, the tables of all runs together, and their summary over seeds.

Columns are in `store`. How a summary looks for people is in `report`.
"""

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TypeVar

from bflnode.consensus.task import SettledRound
from bflnode.consensus.types import AccountId
from bflnode.storage.durable import write_durably
from bflnode.storage.errors import from_os_error

from .file import ExperimentError, RunPlan
from .store import TABLES, ExperimentFolder, Row

Parsed = TypeVar("Parsed")

METRICS = ("received", "post", "global")
"""Accuracies: of what a client receives, after training, and on everybody's data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientMeasures:
    """What was measured of a client in a learning round.

    Attributes:
        client: its number.
        is_hostile: whether it attacks; means leave it out.
        samples: of its training data.
        cluster: label, None where there is none.
        received: accuracy on its test data before training.
        post: the same after it.
        general: accuracy of what it has for everybody, on the global test set; None if not measured.
        loss: of the last epoch, nats.
        bytes_up: that it sent.
        bytes_down: that it was sent, none for what it had.
        seconds: of training.
    """

    client: int
    is_hostile: bool
    samples: int
    cluster: int | None
    received: float
    post: float
    general: float | None
    loss: float
    bytes_up: int
    bytes_down: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Values over seeds.

    Attributes:
        mean: of the values.
        deviation: sample standard deviation, None for one value.
        count: number of values.
    """

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True, slots=True)
class RoundResult:
    """A row of `rounds.csv` as numbers; None for what wasn't measured."""

    method: str
    alpha: float
    seed: int
    round: int
    values: dict[str, float | None]


def mean_of(measures: Sequence[ClientMeasures], what: str) -> float | None:
    """The mean over honest clients (over all, if there is no honest one) of what was measured."""
    chosen = [entry for entry in measures if not entry.is_hostile] or measures
    values = [value for entry in chosen if (value := getattr(entry, what)) is not None]
    return fmean(values) if values else None


def client_rows(plan: RunPlan, number: int, measures: Sequence[ClientMeasures]) -> list[Row]:
    """Rows of `clients.csv`."""
    return [
        (
            *_place(plan, number),
            entry.client,
            int(entry.is_hostile),
            entry.samples,
            entry.cluster,
            *(_decimal(value) for value in (entry.received, entry.post, entry.general, entry.loss)),
            entry.bytes_up,
            entry.bytes_down,
            f"{entry.seconds:.4f}",
        )
        for entry in measures
    ]


def round_row(plan: RunPlan, number: int, measures: Sequence[ClientMeasures], seconds: float, head: str) -> Row:
    """A row of `rounds.csv`."""
    return (
        *_place(plan, number),
        len(measures),
        *(_decimal(mean_of(measures, what)) for what in ("received", "post", "general", "loss")),
        sum(entry.bytes_up for entry in measures),
        sum(entry.bytes_down for entry in measures),
        f"{sum(entry.seconds for entry in measures):.4f}",
        f"{seconds:.4f}",
        head,
    )


def payout_rows(plan: RunPlan, settled: SettledRound, number_of: Callable[[AccountId], int]) -> list[Row]:
    """Rows of `payouts.csv`: what the ledger paid for a learning round."""
    labels = [client.cluster for client in settled.clients if client.cluster >= 0]
    aggregator = None if settled.aggregation is None else settled.aggregation.aggregator
    rows: list[Row] = [
        (
            *_place(plan, settled.slot.number),
            number_of(client.account),
            client.exclusion.name.lower(),
            client.cluster if client.cluster >= 0 else None,
            labels.count(client.cluster),
            client.gross,
            client.fee,
            client.gross - client.fee,
            settled.aggregator_income if client.account == aggregator else 0,
            settled.height,
        )
        for client in settled.clients
    ]
    if aggregator is not None and all(client.account != aggregator for client in settled.clients):
        income = settled.aggregator_income
        rows.append(
            (
                *_place(plan, settled.slot.number),
                number_of(aggregator),
                "no_client",
                None,
                0,
                0,
                0,
                0,
                income,
                settled.height,
            )
        )
    return rows


def combine_tables(folder: ExperimentFolder) -> None:
    """Write the tables over all runs that have begun.

    Raises:
        ExperimentError: a table is damaged.
        StorageError: the disk refuses.
    """
    for name, columns in TABLES.items():
        path = folder.path / name
        parts = [folder.run(plan).table(name).partition("\n")[2] for plan in folder.plans]
        try:
            write_durably(path, "".join([",".join(columns) + "\n", *parts]).encode())
        except OSError as error:
            raise from_os_error(path, "writing the results of all runs", error) from error


def read_rounds(folder: ExperimentFolder) -> list[RoundResult]:
    """All rounds of all runs.

    Raises:
        ExperimentError: a table is damaged.
    """
    return list(read_table(folder, "rounds.csv", _round_result))


def _round_result(row: dict[str, str]) -> RoundResult:
    values = {key: float(row[key]) if row[key] else None for key in (*METRICS, "loss")}
    values |= {key: float(row[key]) for key in ("bytes_up", "bytes_down", "training_seconds", "seconds")}
    return RoundResult(row["method"], float(row["alpha"]), int(row["seed"]), int(row["round"]), values)


def read_table(folder: ExperimentFolder, name: str, parse: Callable[[dict[str, str]], Parsed]) -> Iterator[Parsed]:
    """Rows of a table of all runs, one run after the other, of rounds that ended.

    Raises:
        ExperimentError: a table is damaged.
    """
    for plan in folder.plans:
        run = folder.run(plan)
        try:
            for row in csv.DictReader(run.table(name).splitlines()):
                yield parse(row)
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ExperimentError(f"{run.path / name} has a damaged row ({error}): {run.remedy}") from error


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def last_rounds(results: Sequence[RoundResult], rounds: int) -> dict[tuple[str, float], dict[str, Spread]]:
    """The last round of finished runs, over seeds: by method and alpha, each metric that was measured."""
    found: dict[tuple[str, float], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        if result.round == rounds:
            for name, value in result.values.items():
                if value is not None:
                    found[result.method, result.alpha][name].append(value)
    return {key: {name: spread(values) for name, values in metrics.items()} for key, metrics in found.items()}


def _place(plan: RunPlan, number: int) -> tuple[object, ...]:
    return plan.entry.title, f"{plan.alpha:g}", plan.seed, number


def _decimal(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}"
