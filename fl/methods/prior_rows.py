"""The rule of this project: the label prior stays at home, and each row of the decision layer belongs to who knows it.

A client adds the logarithm of its own class shares to its logits, in training and in its own predictions, so that the
decision layer learns what inputs look like and not how frequent classes are at this client. Classes that it lacks are
masked, so their rows get no gradient; then a row is averaged over those that have one to give. And clients have
momentum: they train from ahead of what they received, in the direction that it last took, and predict between what they
received and what they trained. Clusters get models of their own, the more so the more their steps differ.
"""

from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from bflnode.fl.interpolation import INTERPOLATION, MEMORY, between
from bflnode.fl.momentum import looked_ahead, share_of_last_round
from bflnode.fl.networks import get_tensors
from bflnode.fl.prior import WithPrior, with_prior
from bflnode.fl.prototypes import CorrelationMatrix
from bflnode.fl.rules import PRIOR_ROWS, Rule
from bflnode.fl.training import fit
from bflnode.fl.updates import sharing_by_evidence, update_correlations
from bflnode.fl.weights import Tensors

from .method import (
    NOTHING,
    Gathered,
    Given,
    Local,
    Method,
    MethodError,
    Update,
    by_cluster,
    merged,
    prefixed,
    refuse_unknown_expectation,
    same_for_all,
    stripped,
)
from .paa import similarities

PROTOTYPES, UPDATES = SIMILARITIES = ("prototypes", "updates")
"""What clients are compared by."""

ROUND, SENT = "round", "sent."
"""What a client keeps beside the model that it received: the number of the learning round, and, before their names, the
tensors that it sent."""


def correlations(gathered: Gathered, similarity: str) -> CorrelationMatrix:
    """How alike clients are by PROTOTYPES or by UPDATES."""
    if gathered.matrix is not None:
        return gathered.matrix
    if similarity == PROTOTYPES:
        return similarities(gathered)
    return update_correlations([sent.tensors for sent in gathered.sent], [sent.received for sent in gathered.sent])


@dataclass(frozen=True, kw_only=True)
class PriorRows(Method):
    """FedAvg with decision rows by holders of their class, a label prior kept local, and momentum.

    A client trains from `received + share (received - before)`, where `before` is what it received a learning round
    before, and predicts before that with `received + memory (sent - received)`, where `sent` is what it sent then; who
    took no part in that round does both with what it received. The aggregator returns
    `received + eta (mean of sent - received)`, but row c of the decision layer is the mean over those whose client has
    samples of class c; a row without holders becomes the mean of the others. Clusters whose steps differ get their own
    representation, in part.

    Attributes:
        server_step: eta.
        momentum: of which `share` is made, 0 to 1; see `fl.momentum`.
        memory: see above, 0 to 1; 0 is none.
        rows: average decision rows over the holders of their class; False for all clients (ablation).
        prior: add the label prior (ablation).
        mask: minus infinity for absent classes; False gives them the share of half a sample (ablation).
        expects: one of `EXPECTED`; with "uniform" a client predicts without its prior, and before training with what
            it received.
        clusters: that the chain looks for, to pay clients, and to mix their models where `shared` is below 1.
        similarity: by which it does: "prototypes" (PAA's) or "updates" (`fl.updates`).
        shared: part of everybody's representation in what a cluster receives; 1 is one model for all. With "updates"
            the least part: it grows up to 1 as clusters' steps differ less, see `fl.updates.common_part`.
        interpolation: as for all methods.
    """

    name = "prior-rows"
    source = "this project; the prior is Menon et al. 2021's logit adjustment, applied at each client"
    server_step: float = 1.25
    momentum: float = 0.7
    memory: float = MEMORY
    rows: bool = True
    prior: bool = True
    mask: bool = True
    expects: str = "own"
    clusters: int = 5
    similarity: str = UPDATES
    shared: float = 0.3
    interpolation: float = INTERPOLATION

    def __post_init__(self) -> None:
        if not self.server_step > 0:
            raise MethodError(f"server_step is {self.server_step}: give more than 0")
        for name in ("momentum", "memory", "shared"):
            if not 0 <= getattr(self, name) <= 1:
                raise MethodError(f"{name} is {getattr(self, name)}: give 0 to 1")
        if self.clusters < 1:
            raise MethodError(f"clusters is {self.clusters}: give at least 1")
        refuse_unknown_expectation(self.expects)
        if self.similarity not in SIMILARITIES:
            raise MethodError(f"there is no similarity {self.similarity!r}: use one of {', '.join(SIMILARITIES)}")

    def train(self, local: Local) -> Update:
        """Train with the prior in the loss; send the classifier without it."""
        start, model = (self._with_prior(local, self._ahead(local)) for _ in range(2))
        losses = fit(model, local.shard.train, local.config)
        sent = get_tensors(model.classifier)
        kept = merged(local.received if self.momentum else NOTHING, prefixed(SENT, sent) if self.memory else NOTHING)
        return Update(
            sent=sent,
            kept=merged(kept, {ROUND: np.array(local.round)}) if kept else NOTHING,
            model=self._predicting(model),
            loss=losses[-1],
            start=self._predicting(start),
        )

    def aggregate(self, gathered: Gathered) -> Given:
        """The combination of the steps of all clients, and of the rows of those who hold the class; clusters differ."""
        if not self.rows:
            gathered = _of_holders_of_all(gathered)
        rule = Rule(name=PRIOR_ROWS, combination=gathered.combine, server_step=self.server_step, shared=self.shared)
        if self.shared == 1:
            return same_for_all(gathered, gathered.outputs(rule, [0] * len(gathered.sent))[0])
        matrix = correlations(gathered, self.similarity)
        labels = gathered.clustered(matrix, self.clusters)
        if self.similarity == UPDATES:
            rule = sharing_by_evidence(rule, matrix, labels)
        return by_cluster(labels, gathered.outputs(rule, labels))

    def _predicting(self, model: WithPrior) -> nn.Module:
        return model if self.expects == "own" else model.classifier

    def personal_model(self, local: Local) -> nn.Module:
        """Between what was received and what it sent last, with the own prior; the former if it expects all classes."""
        if self.expects != "own":
            return self.general_model(local)
        if not (self.memory and _has_just_taken_part(local)):
            return self._with_prior(local, local.received)
        return self._with_prior(local, between(local.received, stripped(SENT, local.kept), self.memory))

    def general_model(self, local: Local) -> nn.Module:
        """What was received: no prior, since nobody knows that of everybody's data."""
        return local.classifier()

    def _ahead(self, local: Local) -> Tensors:
        if not (self.momentum and _has_just_taken_part(local)):
            return local.received
        return looked_ahead(local.received, local.kept, share_of_last_round(self.momentum, local.round))

    def _with_prior(self, local: Local, tensors: Tensors) -> WithPrior:
        counts = np.array(local.shard.train.histogram(), dtype=np.float64)
        if not self.prior:
            counts = np.ones_like(counts)
        elif not self.mask:
            counts = np.maximum(counts, 0.5)
        return with_prior(local.classifier(tensors), counts.tolist())


def _of_holders_of_all(gathered: Gathered) -> Gathered:
    """The same as if each client held all classes."""
    ones = (1,) * gathered.architecture.classes
    return replace(gathered, sent=tuple(replace(sent, histogram=ones) for sent in gathered.sent))


def _has_just_taken_part(local: Local) -> bool:
    """Whether what the client has kept is of the learning round before."""
    return ROUND in local.kept and bool(local.kept[ROUND] == local.round - 1)
