"""Integer spectral clustering beside scikit-learn's: time, agreement with the planted truth, normalised cut.

Run with `python benchmarks/clustering.py`. Planted matrices are quantised Pearson correlations of prototypes that
scatter around one centre a cluster; `spread` is the standard deviation of that scatter, where that of the centres is 1.
Learned matrices (`--learned`) are those of ten rounds of BFLN: 20 clients, digits, alpha 0.3.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from bflnode.consensus.clustering import SIMILARITY_ONE, cluster
from bflnode.fl.architectures import architecture
from bflnode.fl.inference import repeatable_torch
from bflnode.fl.methods.method import Gathered, Local, Sent
from bflnode.fl.methods.paa import Paa
from bflnode.fl.population import PopulationOptions, load_data, make_population
from bflnode.fl.prototypes import choose_probe
from bflnode.fl.robust import RobustRule
from bflnode.fl.training import TrainingConfig
from bflnode.fl.weights import parse

PROTOTYPE_SIZE = 32
SIZES = ((10, 3), (20, 5), (64, 5), (128, 7), (256, 7), (1000, 10))
SPREADS = (0.5, 1.0, 1.5)

ARCHITECTURE = "mlp/1x8x8/10"
CLIENTS = 20
ROUNDS = 10
PROBE_SAMPLES = 32
LEARNED_CLUSTERS = (2, 5, 7)


@dataclass(frozen=True, slots=True)
class Trial:
    """One matrix, clustered by both."""

    seconds: float
    reference_seconds: float
    truth: float
    reference_truth: float
    agreement: float
    cut: float
    reference_cut: float
    negative: float


def planted_matrix(
    clients: int, clusters: int, spread: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Similarities (clients, clients) as they travel in a block, and the planted labels (clients,)."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, clusters, clients)
    labels[:clusters] = range(clusters)
    centres = generator.normal(size=(clusters, PROTOTYPE_SIZE))
    prototypes = centres[labels] + spread * generator.normal(size=(clients, PROTOTYPE_SIZE))
    upper = np.triu(np.rint(np.corrcoef(prototypes) * SIMILARITY_ONE).astype(np.int64), k=1)
    matrix = upper + upper.T
    np.fill_diagonal(matrix, SIMILARITY_ONE)
    return matrix, labels


def normalised_cut(matrix: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> float:
    """Sum over clusters of the affinity that leaves the cluster, divided by its degree (Shi and Malik, 2000)."""
    affinity = matrix + SIMILARITY_ONE
    np.fill_diagonal(affinity, 0)
    cuts = []
    for label in np.unique(labels):
        inside = labels == label
        cuts.append(affinity[inside][:, ~inside].sum() / affinity[inside].sum())
    return float(sum(cuts))


def learned_matrices(clusters: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """The similarities (clients, clients) of each learning round of BFLN."""
    chosen = architecture(ARCHITECTURE)
    population = make_population(
        load_data("digits", None), PopulationOptions(clients=CLIENTS, alpha=0.3, seed=seed, min_train=10)
    )
    shards = [population.shard((client,)) for client in range(CLIENTS)]
    method, found = Paa(clusters=clusters), []

    def noted(matrix: npt.NDArray[np.int64], count: int) -> tuple[int, ...]:
        found.append(matrix.astype(np.int64))
        return tuple(cluster(found[-1], count))

    received = [parse(chosen.initial_weights(seed), chosen.table)] * CLIENTS
    for number in range(1, ROUNDS + 1):
        draw = hashlib.sha256(f"probe {seed} {number}".encode()).digest()
        probe = population.held.probe.take(choose_probe(draw, population.held.probe.labels, PROBE_SAMPLES).indices)
        sent = []
        for client, shard in enumerate(shards):
            config = TrainingConfig(epochs=3, learning_rate=0.005, seed=100 * number + client, device="cpu")
            local = Local(
                client=client,
                round=number,
                architecture=chosen,
                shard=shard,
                config=config,
                received=received[client],
            )
            tensors = method.train(local).sent
            histogram = shard.train.histogram()
            sent.append(
                Sent(
                    client=client,
                    samples=len(shard.train),
                    histogram=histogram,
                    received=received[client],
                    tensors=tensors,
                )
            )
        gathered = Gathered(
            round=number,
            seed=number,
            architecture=chosen,
            clients=len(sent),
            sent=tuple(sent),
            probe=probe,
            cluster=noted,
            combine=RobustRule(),
        )
        received = list(method.aggregate(gathered).received)
        yield found[-1]


def trial(matrix: npt.NDArray[np.int64], clusters: int, seed: int, truth: npt.NDArray[np.int64] | None = None) -> Trial:
    """Cluster a matrix by both; without a truth their agreement with it isn't a number."""
    started = time.perf_counter()
    labels = np.array(cluster(matrix, clusters))
    ended = time.perf_counter()
    reference = SpectralClustering(clusters, affinity="precomputed", random_state=seed).fit_predict(
        matrix + SIMILARITY_ONE
    )
    return Trial(
        seconds=ended - started,
        reference_seconds=time.perf_counter() - ended,
        truth=np.nan if truth is None else adjusted_rand_score(truth, labels),
        reference_truth=np.nan if truth is None else adjusted_rand_score(truth, reference),
        agreement=adjusted_rand_score(labels, reference),
        cut=normalised_cut(matrix, labels),
        reference_cut=normalised_cut(matrix, reference),
        negative=float((matrix < 0).mean()),
    )


@click.command()
@click.option("--seeds", default=20, show_default=True, help="Matrices a row up to 64 clients; fewer above.")
@click.option("--learned", default=0, metavar="SEEDS", help="Learned matrices instead, ten for each seed.")
def main(seeds: int, learned: int) -> None:
    """Print a table: medians of times, means of everything else."""
    table = Table(title="Spectral clustering: ours / scikit-learn")
    for heading in (
        "clients",
        "clusters",
        "spread",
        "negative",
        "seconds",
        "ARI to truth",
        "ARI mutual",
        "normalised cut",
    ):
        table.add_column(heading, justify="right")
    if learned:
        for clusters in LEARNED_CLUSTERS:
            with repeatable_torch(1):
                matrices = [matrix for seed in range(learned) for matrix in learned_matrices(clusters, seed)]
            trials = [trial(matrix, clusters, number) for number, matrix in enumerate(matrices)]
            _add_row(table, (str(CLIENTS), str(clusters), "learned"), trials)
    else:
        for clients, clusters in SIZES:
            for spread in SPREADS:
                count = max(2, seeds * 64 // max(64, clients))
                planted = [(planted_matrix(clients, clusters, spread, seed), seed) for seed in range(count)]
                trials = [trial(matrix, clusters, seed, truth) for (matrix, truth), seed in planted]
                _add_row(table, (str(clients), str(clusters), f"{spread:.1f}"), trials)
    Console(width=120).print(table)


def _add_row(table: Table, heading: tuple[str, ...], trials: list[Trial]) -> None:
    values = np.array([astuple(one) for one in trials])
    seconds, reference_seconds = np.median(values[:, :2], axis=0)
    truth, reference_truth, agreement, cut, reference_cut, negative = values[:, 2:].mean(axis=0)
    table.add_row(
        *heading,
        f"{negative:.2f}",
        f"{seconds:.3f} / {reference_seconds:.3f}",
        "-" if np.isnan(truth) else f"{truth:.3f} / {reference_truth:.3f}",
        f"{agreement:.3f}",
        f"{cut:.3f} / {reference_cut:.3f}",
    )


if __name__ == "__main__":
    main()
