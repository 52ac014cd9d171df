"""FedProx: a client's training is held near the model it received."""

from dataclasses import dataclass

import torch
from torch import nn

from bflnode.fl.networks import get_tensors
from bflnode.fl.training import cross_entropy, fit

from .method import NOTHING, Local, Method, MethodError, Update, frozen, squared_distance


@dataclass(frozen=True, kw_only=True)
class FedProx(Method):
    """FedProx (Li et al. 2020, eq. 2): each client minimises `F_k(w) + mu/2 |w - w_received|^2`.

    Attributes:
        mu: of the proximal term; 0.01 is one of the paper's values.
    """

    name = "fedprox"
    source = "Li et al. 2020, Federated Optimization in Heterogeneous Networks, eq. 2"
    mu: float = 0.01

    def __post_init__(self) -> None:
        if not self.mu >= 0:
            raise MethodError(f"mu is {self.mu}: give 0 or more")

    def train(self, local: Local) -> Update:
        """Minimise the proximal objective."""
        classifier = local.classifier()
        anchor = frozen(classifier)

        def objective(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return cross_entropy(module, inputs, labels) + self.mu / 2 * squared_distance(module, anchor)

        losses = fit(classifier, local.shard.train, local.config, objective)
        return Update(sent=get_tensors(classifier), kept=NOTHING, model=classifier, loss=losses[-1])
