"""The rule of this project: the label prior stays at home, and each row of the decision layer belongs to who knows it.

A client adds the logarithm of its own class shares to its logits, in training and in its own predictions, so that the
decision layer learns what inputs look like and not how frequent classes are at this client. Classes that it lacks are
masked, so their rows get no gradient; then a row is averaged over those that have one to give.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bflnode.fl.aggregation import moved
from bflnode.fl.networks import Classifier, get_tensors
from bflnode.fl.training import fit
from bflnode.fl.weights import Tensor

from .method import NOTHING, Gathered, Given, Local, Method, MethodError, Update, named, same_for_all
from .personal_layers import DECISION


class WithPrior(nn.Module):
    """A classifier whose logits get a constant added: the logarithm of class shares, minus infinity for none."""

    log_prior: torch.Tensor

    def __init__(self, classifier: Classifier, log_prior: torch.Tensor) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("log_prior", log_prior)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes)."""
        logits: torch.Tensor = self.classifier(inputs) + self.log_prior
        return logits


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
    """

    name = "prior-rows"
    source = "this project; the prior is Menon et al. 2021's logit adjustment, applied at each client"
    server_step: float = 2.0
    rows: bool = True
    prior: bool = True
    mask: bool = True

    def __post_init__(self) -> None:
        if not self.server_step > 0:
            raise MethodError(f"server_step is {self.server_step}: give more than 0")

    def train(self, local: Local) -> Update:
        """Train with the prior in the loss; send the classifier without it."""
        model = self._personal(local)
        losses = fit(model, local.shard.train, local.config)
        return Update(sent=get_tensors(model.classifier), kept=NOTHING, model=model, loss=losses[-1])

    def aggregate(self, gathered: Gathered) -> Given:
        """The mean of the steps of all clients, and of the rows of those who hold the class."""
        everybody = gathered.combined([0] * len(gathered.sent))[0]
        before = gathered.sent[0].received
        if self.rows:
            everybody |= self._rows(gathered)
        return same_for_all(gathered, moved(before, everybody, self.server_step))

    def personal_model(self, local: Local) -> nn.Module:
        """What was received, with the own prior."""
        return self._personal(local)

    def general_model(self, local: Local) -> nn.Module:
        """What was received: no prior, since nobody knows that of everybody's data."""
        return local.classifier()

    def _rows(self, gathered: Gathered) -> dict[str, Tensor]:
        """The decision layer, row by row."""
        layer: dict[str, Tensor] = {
            name: tensor.copy() for name, tensor in named(DECISION, gathered.sent[0].received).items()
        }
        for category in range(gathered.architecture.classes):
            holders = [sent for sent in gathered.sent if sent.histogram[category] > 0]
            if not holders:
                continue
            tensors = [{name: sent.tensors[name][category] for name in layer} for sent in holders]
            received = [{name: sent.received[name][category] for name in layer} for sent in holders]
            for name, row in gathered.combine(tensors, received).items():
                layer[name][category] = row
        return layer

    def _personal(self, local: Local) -> WithPrior:
        classifier = local.classifier()
        counts = np.array(local.shard.train.histogram(), dtype=np.float64)
        if not self.prior:
            counts = np.ones_like(counts)
        elif not self.mask:
            counts = np.maximum(counts, 0.5)
        with np.errstate(divide="ignore"):
            log_prior = np.log(counts / counts.sum()).astype(np.float32)
        return WithPrior(classifier, torch.from_numpy(log_prior).to(classifier.decision.weight.device))
