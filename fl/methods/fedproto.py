"""FedProto and FedHKD: clients exchange what they know of each class, beside or instead of their models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bflnode.fl.inference import representations
from bflnode.fl.networks import Classifier, get_tensors
from bflnode.fl.samples import LabelledData
from bflnode.fl.training import fit
from bflnode.fl.weights import Tensor, Tensors

from .method import (
    Gathered,
    Given,
    Local,
    Method,
    MethodError,
    Sent,
    Update,
    merged,
    named,
    same_for_all,
    without,
)

KNOWLEDGE = "knowledge."
"""Before the names of what is known of classes: means (classes, length) and counts (classes,)."""

COUNTS = "knowledge.counts"
PROTOTYPES = "knowledge.prototypes"
SOFT_PREDICTIONS = "knowledge.soft_predictions"


@dataclass(frozen=True, kw_only=True)
class FedProto(Method):
    """FedProto (Tan et al. 2022, algorithm 1): class prototypes are averaged, and training is drawn towards them.

    Each client minimises cross entropy plus `weight` times the mean squared distance of a sample's code from the global
    prototype of its class (eq. 7; the squared distance divided by the code's length, as in its public code). Prototypes
    are averaged over the clients that hold the class, by their number of samples of it (eq. 6, without its factor of
    one over the number of these clients, by which the mean of equal prototypes would be another one).

    Deviation: a client predicts by its decision layer, which the public code reports as well, and not by the nearest
    prototype.

    Attributes:
        weight: lambda; 1 is the paper's.
        average_models: also average the models. That isn't FedProto, whose models stay with their clients and may
            differ in shape, but what BFLN's baselines make of it: compare with both.
    """

    name = "fedproto"
    source = "Tan et al. 2022, FedProto: Federated Prototype Learning across Heterogeneous Clients, eq. 6 and 7"
    weight: float = 1.0
    average_models: bool = False

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise MethodError(f"weight is {self.weight}: give 0 or more")

    def train(self, local: Local) -> Update:
        """Train towards the global prototypes, then send the own ones."""
        classifier = self._model(local)
        targets = class_targets(local.received, PROTOTYPES, classifier)

        def objective(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            assert isinstance(module, Classifier)
            codes = module.representation(inputs)
            loss = nn.functional.cross_entropy(module.decision(codes), labels)
            if targets is None:
                return loss
            means, known = targets
            distances = (codes - means[labels]).square().mean(dim=1) * known[labels]
            total: torch.Tensor = loss + self.weight * distances.mean()
            return total

        losses = fit(classifier, local.shard.train, local.config, objective)
        tensors = get_tensors(classifier)
        knowledge = own_prototypes(classifier, local.shard.train)
        if self.average_models:
            return Update(sent=merged(tensors, knowledge), kept={}, model=classifier, loss=losses[-1])
        return Update(sent=knowledge, kept=tensors, model=classifier, loss=losses[-1])

    def aggregate(self, gathered: Gathered) -> Given:
        """Average the prototypes of each class, and the models if that is wanted."""
        knowledge = mean_knowledge(gathered.sent, (PROTOTYPES,), gathered.sent[0].received)
        before = without(KNOWLEDGE, gathered.sent[0].received)
        return same_for_all(gathered, merged(combined_models(gathered) if self.average_models else before, knowledge))

    def personal_model(self, local: Local) -> nn.Module:
        """The own model, or the average."""
        return self._model(local)

    def _model(self, local: Local) -> Classifier:
        return local.classifier(local.received, local.kept)


@dataclass(frozen=True, kw_only=True)
class FedHkd(Method):
    """FedHKD (Chen et al. 2023, algorithm 1): FedAvg, with class means of codes and of soft predictions beside.

    Each client minimises cross entropy, plus `soft_weight` times the mean over known classes of
    `|softmax(decision(H_c) / T) - Q_c|`, plus `code_weight` times the mean over samples of `|code(x) - H_y|`, Euclidean
    norms both (its eq. 8). Deviation: no noise is added to what is sent (differential privacy off).

    Attributes:
        soft_weight: lambda; 0.05 is its public code's.
        code_weight: gamma; 0.05 is its public code's.
        temperature: T; 0.5 is its public code's.
        least_share: of a client's samples that a class must have for the client to report it (nu).
    """

    name = "fedhkd"
    source = "Chen et al. 2023, The Best of Both Worlds: FedHKD, algorithm 1 and eq. 8"
    soft_weight: float = 0.05
    code_weight: float = 0.05
    temperature: float = 0.5
    least_share: float = 0.025

    def __post_init__(self) -> None:
        if min(self.soft_weight, self.code_weight) < 0 or not self.temperature > 0:
            raise MethodError("soft_weight and code_weight must be 0 or more, temperature more than 0")

    def train(self, local: Local) -> Update:
        """Train with the hyper-knowledge received, then send the own beside the model."""
        classifier = local.classifier()
        codes_known = class_targets(local.received, PROTOTYPES, classifier)
        soft_known = class_targets(local.received, SOFT_PREDICTIONS, classifier)

        def objective(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            assert isinstance(module, Classifier)
            codes = module.representation(inputs)
            loss = nn.functional.cross_entropy(module.decision(codes), labels)
            if codes_known is None or soft_known is None:
                return loss
            means, known = codes_known
            predicted = torch.softmax(module.decision(means) / self.temperature, dim=1)
            soft = (norms(predicted - soft_known[0]) * known).sum() / known.sum().clamp(min=1)
            near = (norms(codes - means[labels]) * known[labels]).mean()
            total: torch.Tensor = loss + self.soft_weight * soft + self.code_weight * near
            return total

        losses = fit(classifier, local.shard.train, local.config, objective)
        knowledge = own_hyper_knowledge(classifier, local.shard.train, self.temperature, self.least_share)
        sent = merged(get_tensors(classifier), knowledge)
        return Update(sent=sent, kept={}, model=classifier, loss=losses[-1])

    def aggregate(self, gathered: Gathered) -> Given:
        """Average models, and what is known of each class over who reports it."""
        names = (PROTOTYPES, SOFT_PREDICTIONS)
        knowledge = mean_knowledge(gathered.sent, names, gathered.sent[0].received)
        return same_for_all(gathered, merged(combined_models(gathered), knowledge))


def own_prototypes(classifier: Classifier, data: LabelledData) -> dict[str, Tensor]:
    """The mean code of each class of the data, and how many samples it has (Tan et al. 2022, eq. 3)."""
    means, counts = _class_means(representations(classifier, data.inputs).astype(np.float64), data)
    return {PROTOTYPES: means.astype(np.float32), COUNTS: counts}


def own_hyper_knowledge(
    classifier: Classifier, data: LabelledData, temperature: float, least_share: float
) -> dict[str, Tensor]:
    """Mean codes and mean soft predictions of each class that has enough samples (Chen et al. 2023, eq. 5 and 6)."""
    codes = representations(classifier, data.inputs)
    with torch.inference_mode():
        logits = classifier.decision(torch.from_numpy(codes).to(classifier.decision.weight.device))
        soft = torch.softmax(logits / temperature, dim=1).cpu().numpy()
    means, counts = _class_means(codes.astype(np.float64), data)
    soft_means, _ = _class_means(soft.astype(np.float64), data)
    counts[counts < least_share * len(data)] = 0
    return {
        PROTOTYPES: means.astype(np.float32),
        SOFT_PREDICTIONS: soft_means.astype(np.float32),
        COUNTS: counts,
    }


def mean_knowledge(sent: Sequence[Sent], names: Sequence[str], before: Tensors) -> dict[str, Tensor]:
    """Means over clients by their number of samples of a class; a class that nobody reports keeps what was known."""
    counts = np.stack([client.tensors[COUNTS] for client in sent])
    total = counts.sum(axis=0)
    result: dict[str, Tensor] = {COUNTS: np.asarray(total, dtype=np.int64)}
    for name in names:
        sums = sum(
            client.tensors[name].astype(np.float64) * own[:, np.newaxis]
            for client, own in zip(sent, counts, strict=True)
        )
        means = np.asarray(sums / np.maximum(total, 1)[:, np.newaxis], dtype=np.float32)
        if name in before:
            means[total == 0] = before[name][total == 0]
            result[COUNTS] = np.where(total == 0, before[COUNTS], total).astype(np.int64)
        result[name] = means
    return result


def combined_models(gathered: Gathered) -> dict[str, Tensor]:
    """One model of all that were sent, without what is known of classes."""
    models = [without(KNOWLEDGE, sent.tensors) for sent in gathered.sent]
    return gathered.combine(models, [without(KNOWLEDGE, sent.received) for sent in gathered.sent])


def class_targets(received: Tensors, name: str, classifier: Classifier) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What is known of classes: (classes, length) means, and 1 for each class that is known; None in round 1."""
    knowledge = named(KNOWLEDGE, received)
    if name not in knowledge:
        return None
    device = classifier.decision.weight.device
    means = torch.from_numpy(np.array(knowledge[name])).to(device)
    return means, torch.from_numpy((knowledge[COUNTS] > 0).astype(np.float32)).to(device)


def norms(rows: torch.Tensor) -> torch.Tensor:
    """Euclidean norms of rows, with a gradient of zero where a row is zero."""
    return (rows.square().sum(dim=1) + torch.finfo(rows.dtype).tiny).sqrt()


def _class_means(values: NDArray[np.float64], data: LabelledData) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Means of rows by class, zero for a class without samples, and numbers of samples."""
    sums = np.zeros((data.classes, values.shape[1]))
    np.add.at(sums, data.labels, values)
    counts = np.bincount(data.labels, minlength=data.classes).astype(np.int64)
    return sums / np.maximum(counts, 1)[:, np.newaxis], counts
