"""How alike clients' steps are: what groups them when they differ in what their inputs look like.

Prototypes compare what trained models make of a probe that all see; under a prior that stays local they hardly tell
groups of turned images apart. Steps do (Sattler et al. 2020, "Clustered Federated Learning", which takes the cosine of
all of a step): here Pearson's correlation of the representation alone, as PAA takes it of prototypes, so that which
classes a client has counts less. How much the clusters found differ says how much of everybody's model is good for
each. No torch.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from .aggregation import CHUNK_ELEMENTS, STATISTICS
from .architectures import DECISION
from .prototypes import CORRELATION_SCALE, CorrelationMatrix, matrix_of_covariances
from .rules import Rule
from .weights import Tensors

CONSTANT_SPREAD = 1e-3
"""Spread of a client's steps relative to their size below which they are constant; of honest ones it is about 1.

From there on similarities grow from nothing to what they are at twice this variance. With an edge, steps could be made
whose similarities are 0 on one kind of processor and 1 on another: their sums differ in the last bits.
"""


def update_correlations(sent: Sequence[Tensors], received: Sequence[Tensors]) -> CorrelationMatrix:
    """Pearson's correlation of all pairs of steps of the representation, as integers.

    Sums are float64 in BLAS's order, so last bits may differ between machines, as those of prototypes may. A client
    that sent what it had received correlates with nobody, and so does one whose steps are all alike up to
    `CONSTANT_SPREAD`: what is left of them would be noise, another on each machine. Just above, it correlates less.

    Args:
        sent: by each client, all with the same names and shapes.
        received: what each had received.

    Returns:
        (clients, clients) int16 in [-10000, 10000].
    """
    clients = len(sent)
    sums: NDArray[np.float64] = np.zeros(clients)
    products: NDArray[np.float64] = np.zeros((clients, clients))
    elements = 0
    for name, first in sent[0].items():
        if first.dtype != np.float32 or name.startswith(DECISION) or name.endswith(STATISTICS):
            continue
        for start in range(0, first.size, CHUNK_ELEMENTS):
            chunk = slice(start, start + CHUNK_ELEMENTS)
            steps = np.stack(
                [
                    own[name].reshape(-1)[chunk].astype(np.float64) - base[name].reshape(-1)[chunk]
                    for own, base in zip(sent, received, strict=True)
                ]
            )
            sums += steps.sum(axis=1)
            products += steps @ steps.T
            elements += steps.shape[1]
    covariances = products - np.outer(sums, sums) / elements
    variances, constant = np.diagonal(covariances), CONSTANT_SPREAD**2 * np.diagonal(products)
    shares = np.clip((variances - constant) / np.where(constant > 0, constant, 1.0), 0.0, 1.0)
    faded = covariances * np.outer(shares, shares)
    np.fill_diagonal(faded, np.where(shares > 0, variances, 0.0))
    return matrix_of_covariances(faded)


def sharing_by_evidence(rule: Rule, matrix: CorrelationMatrix, labels: Sequence[int]) -> Rule:
    """The rule with the `common_part` as what clusters share, where that is more than the rule's own."""
    return replace(rule, shared=max(rule.shared, common_part(matrix, labels)))


def common_part(matrix: CorrelationMatrix, labels: Sequence[int]) -> float:
    """How much of everybody's step is good for a cluster: 1 where clusters differ no more than their members do.

    The mean of a few members' steps has the noise of few, that of all lacks what the cluster has of its own. The best
    linear mixture gives the latter a part of 1 / F, where F is the ratio of the mean squares between and within
    clusters (Fisher 1925, one-way analysis of variance; Efron and Morris 1973, "Stein's estimation rule and its
    competitors", the grand mean as what is shrunk to), but at most 1. Steps are taken as of one length, so that their
    products are their correlations. Deviation: clusters are found from the same steps, so F is somewhat too large.

    Exact up to one rounding, so the same on every machine.

    Args:
        matrix: (clients, clients) of `update_correlations`.
        labels: the cluster of each client.

    Returns:
        0 to 1; 1 for one cluster, and for as many as clients: there is nothing to compare.
    """
    table, own = matrix.astype(np.int64), np.asarray(labels)
    groups = [own == label for label in sorted(set(labels))]
    clients, clusters = len(own), len(groups)
    if not 1 < clusters < clients:
        return 1.0
    explained = sum(Fraction(int(table[np.ix_(group, group)].sum()), int(group.sum())) for group in groups)
    between = (explained - Fraction(int(table.sum()), clients)) / (clusters - 1)
    within = (clients * CORRELATION_SCALE - explained) / (clients - clusters)
    return 1.0 if within >= between else float(within / between)
