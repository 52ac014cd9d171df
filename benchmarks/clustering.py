"""Integer spectral clustering beside scikit-learn's: time, agreement with the planted truth, normalised cut.

Run with `python benchmarks/clustering.py`. Matrices are quantised Pearson correlations of prototypes that scatter
around one centre a cluster; `spread` is the standard deviation of that scatter, where that of the centres is 1.
"""

import time
from dataclasses import astuple, dataclass

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from bflnode.consensus.clustering import SIMILARITY_ONE, cluster

PROTOTYPE_SIZE = 32
SIZES = ((10, 3), (20, 5), (64, 5), (128, 7), (256, 7), (1000, 10))
SPREADS = (0.5, 1.0, 1.5)


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


def trial(clients: int, clusters: int, spread: float, seed: int) -> Trial:
    matrix, truth = planted_matrix(clients, clusters, spread, seed)
    started = time.perf_counter()
    labels = np.array(cluster(matrix, clusters))
    ended = time.perf_counter()
    reference = SpectralClustering(clusters, affinity="precomputed", random_state=seed).fit_predict(
        matrix + SIMILARITY_ONE
    )
    return Trial(
        seconds=ended - started,
        reference_seconds=time.perf_counter() - ended,
        truth=adjusted_rand_score(truth, labels),
        reference_truth=adjusted_rand_score(truth, reference),
        agreement=adjusted_rand_score(labels, reference),
        cut=normalised_cut(matrix, labels),
        reference_cut=normalised_cut(matrix, reference),
        negative=float((matrix < 0).mean()),
    )


@click.command()
@click.option("--seeds", default=20, show_default=True, help="Matrices a row up to 64 clients; fewer above.")
def main(seeds: int) -> None:
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
    for clients, clusters in SIZES:
        for spread in SPREADS:
            count = max(2, seeds * 64 // max(64, clients))
            trials = np.array([astuple(trial(clients, clusters, spread, seed)) for seed in range(count)])
            seconds, reference_seconds = np.median(trials[:, :2], axis=0)
            truth, reference_truth, agreement, cut, reference_cut, negative = trials[:, 2:].mean(axis=0)
            table.add_row(
                str(clients),
                str(clusters),
                f"{spread:.1f}",
                f"{negative:.2f}",
                f"{seconds:.3f} / {reference_seconds:.3f}",
                f"{truth:.3f} / {reference_truth:.3f}",
                f"{agreement:.3f}",
                f"{cut:.3f} / {reference_cut:.3f}",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
