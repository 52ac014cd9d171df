"""IFCA: several global models; each client trains the one that fits its data best."""

from dataclasses import dataclass

import numpy as np
from torch import nn

from bflnode.fl.architectures import Architecture
from bflnode.fl.networks import get_tensors
from bflnode.fl.training import fit, measure
from bflnode.fl.weights import Tensor, Tensors

from .method import NOTHING, Gathered, Given, Local, Method, MethodError, Update, merged, prefixed, stripped


@dataclass(frozen=True, kw_only=True)
class Ifca(Method):
    """The iterative federated clustering algorithm, model averaging (Ghosh et al. 2020, algorithm 1, option II).

    All models go to every client, which trains the one with the least loss on its training data: a round sends as many
    models down as there are clusters. A model that nobody chose stays as it is. Starts are drawn around the initial
    model: the paper starts at random, too.

    Attributes:
        clusters: number of models.
        spread: standard deviation of the noise on each weight at the start, in units of its tensor's own.
    """

    name = "ifca"
    source = "Ghosh et al. 2020, An Efficient Framework for Clustered Federated Learning, algorithm 1"
    clusters: int = 5
    spread: float = 1.0

    def __post_init__(self) -> None:
        if self.clusters < 1:
            raise MethodError(f"clusters is {self.clusters}: give at least 1")

    def start(self, architecture: Architecture, initial: Tensors, seed: int) -> Tensors:  # noqa: ARG002 - the interface
        """All models; the first one is the task's initial model."""
        generator = np.random.default_rng(seed)
        others = (
            prefixed(_prefix(number), {name: self._drawn(tensor, generator) for name, tensor in initial.items()})
            for number in range(1, self.clusters)
        )
        return merged(prefixed(_prefix(0), initial), *others)

    def train(self, local: Local) -> Update:
        """Train the model that fits best, and send it."""
        number = self._choose(local)
        classifier = local.classifier(stripped(_prefix(number), local.received))
        losses = fit(classifier, local.shard.train, local.config)
        sent = prefixed(_prefix(number), get_tensors(classifier))
        return Update(sent=sent, kept=NOTHING, model=classifier, loss=losses[-1])

    def aggregate(self, gathered: Gathered) -> Given:
        """Average each model over the clients that chose it."""
        labels = [int(next(iter(sent.tensors)).removeprefix("model").split(".")[0]) for sent in gathered.sent]
        models = gathered.combined(labels)
        given = merged(gathered.sent[0].received, *models.values())
        return Given(received=(given,) * len(gathered.sent), newcomers=given, labels=tuple(labels))

    def personal_model(self, local: Local) -> nn.Module:
        """The model that fits the own training data best."""
        return local.classifier(stripped(_prefix(self._choose(local)), local.received))

    def _choose(self, local: Local) -> int:
        models = (local.classifier(stripped(_prefix(number), local.received)) for number in range(self.clusters))
        return int(np.argmin([measure(model, local.shard.train).loss for model in models]))

    def _drawn(self, tensor: Tensor, generator: np.random.Generator) -> Tensor:
        if tensor.dtype != np.float32:
            return tensor
        noise = generator.standard_normal(tensor.shape) * float(tensor.std()) * self.spread
        return np.asarray(tensor + noise, dtype=np.float32)


def _prefix(number: int) -> str:
    return f"model{number}."
