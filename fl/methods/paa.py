"""PAA and its controls: one model a cluster, where clusters come from prototypes, from labels, or from chance."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bflnode.fl.prototypes import CorrelationMatrix, correlation_matrix, prototypes
from bflnode.fl.weights import serialize

from .method import Gathered, Given, Method, MethodError, by_cluster


def similarities(gathered: Gathered) -> CorrelationMatrix:
    """How alike the models are on the probe (BFLN 2024, eq. 1 to 3)."""
    models = [serialize(sent.tensors) for sent in gathered.sent]
    return correlation_matrix(prototypes(gathered.architecture, models, gathered.probe.inputs))


@dataclass(frozen=True, kw_only=True)
class _Clustered(Method, ABC):
    """FedAvg within clusters.

    Attributes:
        clusters: how many; fewer where there are fewer clients.
    """

    clusters: int = 5

    def __post_init__(self) -> None:
        if self.clusters < 1:
            raise MethodError(f"clusters is {self.clusters}: give at least 1")

    def aggregate(self, gathered: Gathered) -> Given:
        """FedAvg within each cluster; a client receives the model of its own."""
        labels = self._labels(gathered)
        return by_cluster(labels, gathered.combined(labels))

    @abstractmethod
    def _labels(self, gathered: Gathered) -> tuple[int, ...]:
        """The cluster of each client, numbered by first appearance."""


@dataclass(frozen=True, kw_only=True)
class Paa(_Clustered):
    """Prototype-based aggregation (BFLN 2024, section 3.3): what the chain does under the rule of the same name.

    Prototypes of one category (eq. 1), Pearson's correlation (eq. 2, 3), spectral clustering, FedAvg in each cluster.
    """

    name = "paa"
    source = "BFLN 2024, section 3.3, eq. 1 to 3"

    def _labels(self, gathered: Gathered) -> tuple[int, ...]:
        matrix = similarities(gathered) if gathered.matrix is None else gathered.matrix
        return gathered.clustered(matrix, self.clusters)


@dataclass(frozen=True, kw_only=True)
class LabelClusters(_Clustered):
    """A control: the same, clustered by the true label histograms (their correlation) and not by what was learned."""

    name = "label-clusters"
    source = "control of BFLN 2024"

    def _labels(self, gathered: Gathered) -> tuple[int, ...]:
        shares = np.array([sent.histogram for sent in gathered.sent], dtype=np.float64)
        return gathered.clustered(correlation_matrix(shares / shares.sum(axis=1, keepdims=True)), self.clusters)


@dataclass(frozen=True, kw_only=True)
class RandomClusters(_Clustered):
    """A control: all clients are drawn into clusters of nearly equal size once: two are always together, or never.

    Attributes:
        seed: of the draw, 0 or more.
    """

    name = "random-clusters"
    source = "control of BFLN 2024"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise MethodError(f"seed is {self.seed}: give 0 or more")

    def _labels(self, gathered: Gathered) -> tuple[int, ...]:
        ranks = _random_ranks(self.seed, gathered.clients)
        raw = [ranks[sent.client] % self.clusters for sent in gathered.sent]
        first = list(dict.fromkeys(raw))
        return tuple(first.index(label) for label in raw)


@lru_cache(maxsize=1)  # asked in each round, and a second's work for 100,000 clients
def _random_ranks(seed: int, clients: int) -> tuple[int, ...]:
    """The place of each client in a random order."""
    drawn = [int(np.random.default_rng((seed, client)).integers(2**62)) for client in range(clients)]
    return tuple(np.argsort(np.argsort(drawn, kind="stable"), kind="stable").tolist())
