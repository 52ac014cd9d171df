"""Methods with a second model at the client: Ditto holds it near the global one, APFL mixes the two."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from bflnode.fl.networks import Classifier, get_tensors
from bflnode.fl.training import cross_entropy, fit

from .method import Local, Method, MethodError, Update, frozen, prefixed, squared_distance, stripped

OWN = "own."
"""Before the tensors of the personal model."""


@dataclass(frozen=True, kw_only=True)
class Ditto(Method):
    """Ditto (Li et al. 2021, algorithm 1): FedAvg, and a personal model that minimises `F_k(v) + lambda/2 |v - w|^2`.

    w is the model received. The personal model is trained as long as the global one: a round costs twice as much.

    Attributes:
        strength: lambda; 0.1 is one of the paper's values.
    """

    name = "ditto"
    source = "Li et al. 2021, Ditto: Fair and Robust Federated Learning Through Personalization, algorithm 1"
    strength: float = 0.1

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise MethodError(f"strength is {self.strength}: give 0 or more")

    def train(self, local: Local) -> Update:
        """Train the global model, then the personal one near what was received."""
        shared, own = local.classifier(), self._own(local)
        anchor = frozen(shared)
        losses = fit(shared, local.shard.train, local.config)

        def objective(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return cross_entropy(module, inputs, labels) + self.strength / 2 * squared_distance(module, anchor)

        fit(own, local.shard.train, local.config, objective)
        return Update(sent=get_tensors(shared), kept=prefixed(OWN, get_tensors(own)), model=own, loss=losses[-1])

    def personal_model(self, local: Local) -> nn.Module:
        """The own model; before the first round the one received."""
        return self._own(local)

    def general_model(self, local: Local) -> nn.Module:
        """The global model."""
        return local.classifier()

    def _own(self, local: Local) -> Classifier:
        return local.classifier(local.received, stripped(OWN, local.kept))


class Mixture(nn.Module):
    """Predicts with the mixed weights `share * own + (1 - share) * shared` (Deng et al. 2020, eq. 3).

    Buffers, BatchNorm's statistics among them, are the own model's.
    """

    def __init__(self, own: Classifier, shared: Classifier, share: float) -> None:
        super().__init__()
        self.own = own
        self.shared = shared
        self.share = share

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes); gradients go into the own model alone."""
        shared = dict(self.shared.named_parameters())
        mixed = {
            name: self.share * parameter + (1 - self.share) * shared[name].detach()
            for name, parameter in self.own.named_parameters()
        }
        logits: torch.Tensor = functional_call(self.own, mixed, (inputs,))
        return logits


@dataclass(frozen=True, kw_only=True)
class Apfl(Method):
    """APFL (Deng et al. 2020, algorithm 1): a client predicts with a mixture of its own and the global weights.

    In each step the global weights w descend their own loss, and the own weights v that of the mixture, with w held.
    Deviation: alpha is fixed, as in the paper's experiments with a given alpha; its adaptive rule (eq. 10) is left out.

    Attributes:
        alpha: share of the own weights; 0.5 is one of the paper's values.
    """

    name = "apfl"
    source = "Deng et al. 2020, Adaptive Personalized Federated Learning, algorithm 1, eq. 3"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise MethodError(f"alpha is {self.alpha}: give 0 to 1")

    def train(self, local: Local) -> Update:
        """Train both models, step by step."""
        mixture = self._mixture(local)

        def objective(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            assert isinstance(module, Mixture)
            own = nn.functional.cross_entropy(module(inputs), labels)
            return own + nn.functional.cross_entropy(module.shared(inputs), labels)

        losses = fit(mixture, local.shard.train, local.config, objective)
        kept = prefixed(OWN, get_tensors(mixture.own))
        return Update(sent=get_tensors(mixture.shared), kept=kept, model=mixture, loss=losses[-1])

    def personal_model(self, local: Local) -> nn.Module:
        """The mixture of what was received and the own weights."""
        return self._mixture(local)

    def general_model(self, local: Local) -> nn.Module:
        """The global model."""
        return local.classifier()

    def _mixture(self, local: Local) -> Mixture:
        own = local.classifier(local.received, stripped(OWN, local.kept))
        return Mixture(own, local.classifier(), self.alpha)
