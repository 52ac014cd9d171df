"""The rule of this project: the label prior stays at home, and each row of the decision layer belongs to who knows it.

A client adds the logarithm of its own class shares to its logits, in training and in its own predictions, so that the
decision layer learns what inputs look like and not how frequent classes are at this client. Classes that it lacks are
masked, so their rows get no gradient; then a row is averaged over those that have one to give.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn

from bflnode.fl.networks import get_tensors
from bflnode.fl.prior import WithPrior, with_prior
from bflnode.fl.rules import PAA, PRIOR_ROWS, Rule
from bflnode.fl.training import fit

from .method import NOTHING, Gathered, Given, Local, Method, MethodError, Update, same_for_all


@dataclass(frozen=True, kw_only=True)
class PriorRows(Method):
    """FedAvg with a step above 1, decision rows by holders of their class, and the label prior kept local.

    `u_j = received + eta (sent_j - received)`; the representation is the mean of all u_j, row c of the decision layer
    the mean of the u_j whose client has samples of class c; a row without holders stays as it was.

    Attributes:
        server_step: eta, 1.5 to 2; 3 collapses.
        rows: average decision rows over the holders of their class; False for all clients (ablation).
        prior: add the label prior (ablation).
        mask: minus infinity for absent classes; False gives them the share of half a sample (ablation).
        clusters: that the ledger looks for, by PAA, to pay clients; nothing is learned from them.
    """

    name = "prior-rows"
    source = "this project; the prior is Menon et al. 2021's logit adjustment, applied at each client"
    server_step: float = 2.0
    rows: bool = True
    prior: bool = True
    mask: bool = True
    clusters: int = 5

    def __post_init__(self) -> None:
        if not self.server_step > 0:
            raise MethodError(f"server_step is {self.server_step}: give more than 0")
        if self.clusters < 1:
            raise MethodError(f"clusters is {self.clusters}: give at least 1")

    def train(self, local: Local) -> Update:
        """Train with the prior in the loss; send the classifier without it."""
        model = self._personal(local)
        losses = fit(model, local.shard.train, local.config)
        return Update(sent=get_tensors(model.classifier), kept=NOTHING, model=model, loss=losses[-1])

    def aggregate(self, gathered: Gathered) -> Given:
        """The combination of the steps of all clients, and of the rows of those who hold the class."""
        rule = Rule(name=PRIOR_ROWS if self.rows else PAA, combination=gathered.combine, server_step=self.server_step)
        return same_for_all(gathered, gathered.outputs(rule, [0] * len(gathered.sent))[0])

    def personal_model(self, local: Local) -> nn.Module:
        """What was received, with the own prior."""
        return self._personal(local)

    def general_model(self, local: Local) -> nn.Module:
        """What was received: no prior, since nobody knows that of everybody's data."""
        return local.classifier()

    def _personal(self, local: Local) -> WithPrior:
        counts = np.array(local.shard.train.histogram(), dtype=np.float64)
        if not self.prior:
            counts = np.ones_like(counts)
        elif not self.mask:
            counts = np.maximum(counts, 0.5)
        return with_prior(local.classifier(), counts.tolist())
