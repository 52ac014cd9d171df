"""The interface of a method of federated learning: what a client does in a round, and what the aggregator does.

    received --train(local)--> Update(sent, kept, model)      on each client
    sent of all --aggregate(gathered)--> received of each      at the aggregator

A method is a frozen dataclass whose fields are its settings and whose base is `Method`. It keeps no state of its own:
what a client needs in its next round is in `kept`, what the aggregator needs is in what it gives. All of it is tensors
by name, so a run can be stopped and resumed after any round, and every byte that is sent can be counted.

The defaults are FedAvg's (McMahan et al. 2017): a client trains what it received and sends all of it, the aggregator
returns the mean. A method overrides what it does otherwise. `registry` finds methods by name, also those of other
packages.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from bflnode.fl.architectures import Architecture
from bflnode.fl.networks import Classifier, get_tensors, set_tensors
from bflnode.fl.prototypes import CorrelationMatrix
from bflnode.fl.robust import RobustRule
from bflnode.fl.rules import Contribution, Rule, outputs
from bflnode.fl.samples import LabelledData, Shard
from bflnode.fl.training import TrainingConfig, choose_device, fit
from bflnode.fl.weights import Tensor, Tensors

NOTHING: Tensors = {}

EXPECTED = ("own", "uniform")
"""How frequent classes are in what a client is to predict: as in its own data, or all alike."""

Cluster = Callable[[CorrelationMatrix, int], Sequence[int]]
"""Labels of clients by first appearance, from their correlations and a number of clusters: the chain's own."""


class MethodError(ValueError):
    """A method whose settings or preconditions don't hold; the message says which and what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """A client in one learning round.

    Attributes:
        client: its number, from 0.
        round: from 1.
        architecture: of all models.
        shard: its own data.
        config: of its training; the seed is another one for each client and round.
        received: what the aggregator gave it.
        kept: what it kept from its last round; nothing at first.
    """

    client: int
    round: int
    architecture: Architecture
    shard: Shard
    config: TrainingConfig
    received: Tensors
    kept: Tensors = field(default_factory=dict)

    def classifier(self, *parts: Tensors) -> Classifier:
        """A module on the training device with the tensors of `parts`; later parts replace earlier ones.

        Without parts: what was received.
        """
        return load(self.architecture, merged(*(parts or (self.received,)))).to(choose_device(self.config.device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What a client's round gave.

    Attributes:
        sent: goes to the aggregator.
        kept: stays with the client until its next round.
        model: predicts for the client after training, before aggregation: POST is its accuracy, or that of its
            interpolation with `start`.
        loss: mean of the objective in the last epoch, nats.
        start: what it was trained from; None where that is what predicted before training.
    """

    sent: Tensors
    kept: Tensors
    model: nn.Module
    loss: float
    start: nn.Module | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What the aggregator has of one client.

    Attributes:
        client: its number.
        samples: number of training samples that it registered.
        histogram: of their labels, as it registered them.
        received: what it was given for this round.
        tensors: what it sent.
    """

    client: int
    samples: int
    histogram: tuple[int, ...]
    received: Tensors
    tensors: Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What an aggregation works on.

    Attributes:
        round: from 1.
        seed: of whatever the aggregation draws, another one for each round.
        architecture: of all models.
        clients: how many there are, also outside of this round; they are numbered from 0.
        sent: by the clients of this round, in order of client.
        probe: samples of one category, for prototypes; another category each round.
        cluster: the chain's clustering.
        combine: what makes one model out of a cluster's; the mean unless another one is wanted.
        matrix: how alike clients are by what the method compares them by, where a ledger has computed it already.
    """

    round: int
    seed: int
    architecture: Architecture
    clients: int
    sent: tuple[Sent, ...]
    probe: LabelledData
    cluster: Cluster
    combine: RobustRule
    matrix: CorrelationMatrix | None = None

    def outputs(self, rule: Rule, labels: Sequence[int]) -> dict[int, dict[str, Tensor]]:
        """What a rule of the chain makes of what was sent, by label, in order of label."""
        contributions = [
            Contribution(sent=sent.tensors, received=sent.received, holds=[count > 0 for count in sent.histogram])
            for sent in self.sent
        ]
        return dict(outputs(rule, contributions, labels))

    def combined(self, labels: Sequence[int]) -> dict[int, dict[str, Tensor]]:
        """One model of what the members of each cluster sent, by label, in order of label."""
        return self.outputs(Rule(combination=self.combine), labels)

    def clustered(self, matrix: CorrelationMatrix, clusters: int) -> tuple[int, ...]:
        """The cluster of each client as the chain finds them; fewer where there are fewer clients."""
        return tuple(self.cluster(matrix, min(clusters, len(self.sent))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What an aggregation gives back.

    Attributes:
        received: of each client of this round, in their order: what it starts its next round from.
        newcomers: what everybody else starts from: clients that weren't in this round.
        labels: the cluster of each client of this round, None where the method has no clusters.
    """

    received: tuple[Tensors, ...]
    newcomers: Tensors
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Method:
    """Federated averaging, and the base of every method.

    Attributes:
        name: what it is called in configurations and results.
        source: the paper it comes from.
        interpolation: where between what it trained from and what it trained a client predicts after training, 0 to 1;
            see `fl.interpolation`. 1 is what it trained, as in all the papers.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    interpolation: float = 1.0

    def check_training(self, config: TrainingConfig) -> None:
        """Asked once, before anything is run: refuse training that contradicts a setting; by default none does.

        Raises:
            MethodError: it does, and what to change.
        """

    def start(self, architecture: Architecture, initial: Tensors, seed: int) -> Tensors:  # noqa: ARG002 - for methods that draw
        """What every client receives before round 1: the task's initial model."""
        return initial

    def train(self, local: Local) -> Update:
        """A client's round, within `inference.repeatable_torch`.

        Raises:
            TrainingError: the data doesn't fit, or training diverged.
        """
        classifier = local.classifier()
        losses = fit(classifier, local.shard.train, local.config)
        return Update(sent=get_tensors(classifier), kept=NOTHING, model=classifier, loss=losses[-1])

    def aggregate(self, gathered: Gathered) -> Given:
        """What each client receives next, from what they sent.

        Raises:
            MethodError: a precondition of the rule doesn't hold.
        """
        return same_for_all(gathered, gathered.combined([0] * len(gathered.sent))[0])

    def personal_model(self, local: Local) -> nn.Module:
        """What predicts for a client before it trains: RECEIVED is its accuracy."""
        return local.classifier()

    def general_model(self, local: Local) -> nn.Module:
        """What predicts for everybody's data, of what a client has before it trains: GLOBAL is its accuracy.

        Modules of one class with equal parameters and buffers count as equal, and one of them is measured: whatever
        makes two of them predict differently belongs in either.
        """
        return self.personal_model(local)


@dataclass(frozen=True, kw_only=True)
class FedAvg(Method):
    """Federated averaging (McMahan et al. 2017, algorithm 1). Deviation: clients count equally, as in BFLN's code."""

    name = "fedavg"
    source = "McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data"


def refuse_unknown_expectation(expects: str) -> None:
    """Let only `EXPECTED` pass.

    Raises:
        MethodError: it is another one.
    """
    if expects not in EXPECTED:
        raise MethodError(f"a client can't expect {expects!r}: use one of {', '.join(EXPECTED)}")


def same_for_all(gathered: Gathered, tensors: Tensors) -> Given:
    """Give everybody the same."""
    return Given(received=(tensors,) * len(gathered.sent), newcomers=tensors)


def by_cluster(labels: Sequence[int], models: Mapping[int, Tensors]) -> Given:
    """Give every client the model of its cluster, and newcomers that of the largest (of equal ones the first)."""
    sizes = [sum(own == label for own in labels) for label in models]
    largest = list(models)[int(np.argmax(sizes))]
    return Given(received=tuple(models[label] for label in labels), newcomers=models[largest], labels=tuple(labels))


def load(architecture: Architecture, tensors: Tensors) -> Classifier:
    """A module of an architecture with these tensors; what doesn't belong to it is left out."""
    classifier = architecture.build()
    set_tensors(classifier, {spec.name: tensors[spec.name] for spec in architecture.table.tensors})
    return classifier


def merged(*parts: Tensors) -> dict[str, Tensor]:
    """All tensors of all parts; later ones replace earlier ones of the same name."""
    return {name: tensor for part in parts for name, tensor in part.items()}


def named(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def without(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors whose name doesn't start with `prefix`."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


def prefixed(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The same tensors with a prefix before each name, to keep two models apart."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def stripped(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def squared_distance(module: nn.Module, anchor: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The squared Euclidean distance of a module's parameters from those of the same name in `anchor`."""
    distances = [(parameter - anchor[name]).square().sum() for name, parameter in module.named_parameters()]
    return torch.stack(distances).sum()


def frozen(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a module's parameters, by name, that no gradient goes into."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
