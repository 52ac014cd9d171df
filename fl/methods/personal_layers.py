"""Methods that keep some layers at the client: FedPer and FedRep the decision layer, FedBN the normalisations."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import nn

from bflnode.fl.architectures import DECISION
from bflnode.fl.networks import Classifier, get_tensors
from bflnode.fl.training import TrainingConfig, fit
from bflnode.fl.weights import Tensors

from .method import Gathered, Given, Local, Method, MethodError, Update, merged, same_for_all


@dataclass(frozen=True, kw_only=True)
class _Personal(Method):
    """FedAvg of what isn't personal: personal tensors, by default the decision layer, stay with the client."""

    def _personal(self, received: Tensors) -> Collection[str]:
        """Names of the personal tensors."""
        return [name for name in received if name.startswith(DECISION)]

    def _fit(self, classifier: Classifier, local: Local) -> float:
        return fit(classifier, local.shard.train, local.config)[-1]

    def train(self, local: Local) -> Update:
        """Train all layers together, then send those that are shared."""
        classifier = local.classifier(local.received, local.kept)
        loss = self._fit(classifier, local)
        tensors = get_tensors(classifier)
        kept = {name: tensors[name] for name in self._personal(local.received)}
        sent = {name: tensor for name, tensor in tensors.items() if name not in kept}
        return Update(sent=sent, kept=kept, model=classifier, loss=loss)

    def aggregate(self, gathered: Gathered) -> Given:
        """The mean of the shared layers; the others stay as they were at the start, for who never trained."""
        shared = gathered.combined([0] * len(gathered.sent))[0]
        return same_for_all(gathered, merged(gathered.sent[0].received, shared))

    def personal_model(self, local: Local) -> nn.Module:
        """The shared layers received, with the own ones."""
        return local.classifier(local.received, local.kept)


@dataclass(frozen=True, kw_only=True)
class FedPer(_Personal):
    """FedPer (Arivazhagan et al. 2019, algorithm 1): the decision layer is personal, both are trained together."""

    name = "fedper"
    source = "Arivazhagan et al. 2019, Federated Learning with Personalization Layers, algorithms 1 and 2"


@dataclass(frozen=True, kw_only=True)
class FedRep(_Personal):
    """FedRep (Collins et al. 2021, algorithm 1): first the personal decision layer, then the representation.

    Attributes:
        head_epochs: of a round's epochs, how many train the decision layer alone; the rest train the representation.
            The paper takes 10 and 1; here both share the epochs that every other method has.
    """

    name = "fedrep"
    source = "Collins et al. 2021, Exploiting Shared Representations for Personalized Federated Learning, algorithm 1"
    head_epochs: int = 3

    def __post_init__(self) -> None:
        if self.head_epochs < 1:
            raise MethodError(f"head_epochs is {self.head_epochs}: give at least 1")

    def check_training(self, config: TrainingConfig) -> None:
        """Refuse training that has no epoch for the representation."""
        if self.head_epochs >= config.epochs:
            raise MethodError(
                f"head_epochs is {self.head_epochs} of {config.epochs} epochs: leave at least one for the rest"
            )

    def _fit(self, classifier: Classifier, local: Local) -> float:
        head = replace(local.config, epochs=self.head_epochs)
        body = replace(local.config, epochs=local.config.epochs - self.head_epochs, seed=local.config.seed + 1)
        fit(classifier, local.shard.train, head, parameters=classifier.decision.parameters())
        return fit(classifier, local.shard.train, body, parameters=classifier.representation.parameters())[-1]


@dataclass(frozen=True, kw_only=True)
class FedBn(_Personal):
    """FedBN (Li et al. 2021, algorithm 1): BatchNorm's parameters and statistics are personal.

    On an architecture without BatchNorm it is FedAvg, and says so.
    """

    name = "fedbn"
    source = "Li et al. 2021, FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, algorithm 1"

    def _personal(self, received: Tensors) -> Collection[str]:
        layers = [name.removesuffix("running_mean") for name in received if name.endswith(".running_mean")]
        return [name for name in received if name.startswith(tuple(layers))]
