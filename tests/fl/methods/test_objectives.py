"""What clients minimise, against values worked by hand: a method's `fit` is replaced by a look at its objective.

The representation is a constant: weights are 0 and biases CODE, so every code has CODE in all places. The decision
layer has weights 0, so logits are its biases and softmax of log p is p.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log, sqrt

import numpy as np
import pytest
import torch
from torch import nn

from bflnode.fl.architectures import architecture
from bflnode.fl.methods import fedproto, fedprox, fedrod, mixtures
from bflnode.fl.methods.fedproto import COUNTS, PROTOTYPES, SOFT_PREDICTIONS, own_hyper_knowledge
from bflnode.fl.methods.fedrod import TwoHeads
from bflnode.fl.methods.method import Local
from bflnode.fl.methods.mixtures import Mixture
from bflnode.fl.methods.registry import make_method
from bflnode.fl.networks import Classifier
from bflnode.fl.samples import LabelledData, Shard, numbered_classes
from bflnode.fl.training import TrainingConfig, cross_entropy
from bflnode.fl.weights import Tensor

TINY = architecture("mlp/1x1x2/3")
LENGTH = TINY.code_length
PARAMETERS = 2 * LENGTH + LENGTH + 3 * LENGTH + 3
CODE = 0.5
SHARES = (0.5, 0.3, 0.2)
"""What the received decision layer makes of every sample."""

Objective = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Look:
    """A module when it was to be trained, the value of its objective, and the gradients by name."""

    module: nn.Module
    value: float
    gradients: dict[str, list[float] | None]


def constant(shares: Sequence[float] = SHARES, scale: float = 1.0) -> dict[str, Tensor]:
    """A model whose logits are `scale` times the logarithm of `shares`."""
    tensors = {spec.name: np.zeros(spec.shape, dtype=np.float32) for spec in TINY.table.tensors}
    tensors["representation.hidden.bias"] += np.float32(CODE)
    tensors["decision.bias"] += scale * np.log(np.array(shares, dtype=np.float32))
    return tensors


def known(codes: Sequence[float], counts: Sequence[int]) -> dict[str, Tensor]:
    """Prototypes that have the same number in all places."""
    means = np.repeat(np.array(codes, dtype=np.float32)[:, np.newaxis], LENGTH, axis=1)
    return {PROTOTYPES: means, COUNTS: np.array(counts, dtype=np.int64)}


def client(labels: Sequence[int], received: dict[str, Tensor], kept: dict[str, Tensor] | None = None) -> Local:
    inputs = np.random.default_rng(0).random((len(labels), 1, 1, 2), dtype=np.float32)
    own = LabelledData(inputs, np.array(labels, dtype=np.int64), numbered_classes(3))
    return Local(
        client=0,
        round=2,
        architecture=TINY,
        shard=Shard(own, own),
        config=TrainingConfig(),
        received=received,
        kept=kept or {},
    )


def looks(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, local: Local, by: float = 0.0, **settings: float
) -> list[Look]:
    """Each training of a method's round, whose parameters are first moved by `by`."""
    found: list[Look] = []

    def look(
        trained: nn.Module, data: LabelledData, config: TrainingConfig, objective: Objective = cross_entropy
    ) -> tuple[float, ...]:
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.add_(by)
        trained.zero_grad()
        value = objective(trained, torch.from_numpy(np.array(data.inputs)), torch.from_numpy(np.array(data.labels)))
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward unannotated
        gradients = {
            key: None if parameter.grad is None else parameter.grad.reshape(-1).tolist()
            for key, parameter in trained.named_parameters()
        }
        found.append(Look(trained, float(value.detach()), gradients))
        return (float(value.detach()),)

    monkeypatch.setattr(module, "fit", look)
    make_method(name, settings).train(local)
    return found


def entropy(look: Look, local: Local) -> float:
    """The plain cross entropy of a module."""
    data = local.shard.train
    with torch.inference_mode():
        return float(cross_entropy(look.module, torch.from_numpy(data.inputs), torch.from_numpy(data.labels)))


def test_fedprox_adds_half_of_mu_times_the_squared_distance_from_what_was_received(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local = client([0, 1], constant())

    (look,) = looks(monkeypatch, fedprox, "fedprox", local, by=0.1, mu=0.3)

    assert look.value - entropy(look, local) == pytest.approx(0.3 / 2 * PARAMETERS * 0.01, rel=1e-4)


def test_ditto_holds_its_own_model_near_what_was_received_and_not_near_what_the_client_made_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local = client([0, 1], constant())

    shared, own = looks(monkeypatch, mixtures, "ditto", local, by=0.1, strength=0.3)

    assert shared.value == pytest.approx(entropy(shared, local))
    assert own.value - entropy(own, local) == pytest.approx(0.3 / 2 * PARAMETERS * 0.01, rel=1e-4)


def test_ditto_goes_on_from_its_own_model_and_predicts_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = constant((0.1, 0.1, 0.8))
    kept = {f"own.{name}": tensor for name, tensor in own.items()}
    local = client([2], constant(), kept)

    shared, personal = looks(monkeypatch, mixtures, "ditto", local, strength=0.0)
    update = make_method("ditto", {}).train(local)

    assert shared.value == pytest.approx(-log(0.2), rel=1e-5)
    assert personal.value == pytest.approx(-log(0.8), rel=1e-5)
    assert update.kept["own.decision.bias"].tolist() == pytest.approx(own["decision.bias"].tolist())
    assert entropy(Look(update.model, 0.0, {}), local) == pytest.approx(-log(0.8), rel=1e-5)


def test_apfl_descends_the_loss_of_the_mixture_and_that_of_the_global_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {f"own.{name}": tensor for name, tensor in constant((0.1, 0.1, 0.8)).items()}
    local = client([2], constant((1 / 3, 1 / 3, 1 / 3)), own)

    (look,) = looks(monkeypatch, mixtures, "apfl", local, alpha=0.25)

    # Logits of the mixture are a quarter of log 0.1, 0.1, 0.8 and three quarters of log 1/3, up to a constant.
    mixed = np.array([0.1, 0.1, 0.8]) ** 0.25
    mixed /= mixed.sum()
    assert isinstance(look.module, Mixture)
    assert look.value == pytest.approx(-log(mixed[2]) + log(3), rel=1e-5)
    # The own weights descend the loss of the mixture (alpha times its gradient), the global ones their own loss.
    assert look.gradients["own.decision.bias"] == pytest.approx((0.25 * (mixed - [0, 0, 1])).tolist(), rel=1e-4)
    assert look.gradients["shared.decision.bias"] == pytest.approx([1 / 3, 1 / 3, -2 / 3], rel=1e-4)


def test_fedproto_adds_the_mean_squared_distance_from_the_prototype_of_a_class_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local = client([0, 0, 1, 2], {**constant(), **known([0.2, 0.4, 9.0], [4, 1, 0])})

    (look,) = looks(monkeypatch, fedproto, "fedproto", local, weight=3.0)

    # Distances 0.3, 0.3 and 0.1 in each place; nobody knows class 2.
    assert look.value - entropy(look, local) == pytest.approx(3.0 * (0.09 + 0.09 + 0.01 + 0.0) / 4, rel=1e-4)


def test_fedhkd_adds_distances_of_soft_predictions_and_of_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    soft = np.array([SHARES, SHARES[::-1], (1.0, 0.0, 0.0)], dtype=np.float32)
    hyper_knowledge = {**known([0.5, 0.2, 9.0], [4, 1, 0]), SOFT_PREDICTIONS: soft}
    local = client([0, 1, 1, 2], {**constant(scale=2.0), **hyper_knowledge})

    (look,) = looks(
        monkeypatch, fedproto, "fedhkd", local, soft_weight=3.0, code_weight=5.0, temperature=2.0, least_share=0.0
    )

    # At temperature 2 the prediction is SHARES: that of class 0, and 0.3 away from that of class 1 in two places.
    # Codes are those of class 0, and 0.3 away from those of class 1 in all places. Nobody knows class 2.
    predictions, codes = (0.0 + 0.3 * sqrt(2)) / 2, (0.0 + 2 * 0.3 * sqrt(LENGTH) + 0.0) / 4
    assert look.value - entropy(look, local) == pytest.approx(3.0 * predictions + 5.0 * codes, rel=1e-4)


def test_what_a_client_of_fedhkd_knows_are_mean_codes_and_predictions_at_the_temperature() -> None:
    local = client([0, 1, 1], constant(scale=2.0))
    classifier = local.classifier()
    assert isinstance(classifier, Classifier)

    knowledge = own_hyper_knowledge(classifier, local.shard.train, temperature=2.0, least_share=0.0)

    assert knowledge[PROTOTYPES][:, 0].tolist() == [CODE, CODE, 0.0]
    assert knowledge[SOFT_PREDICTIONS][1].tolist() == pytest.approx(SHARES)
    assert knowledge[COUNTS].tolist() == [1, 2, 0]


def test_fedrod_balances_the_generic_loss_and_keeps_the_personal_one_from_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    personal = {
        "personal.weight": np.ones((3, LENGTH), dtype=np.float32) * np.array([[1.0], [0.0], [-1.0]], dtype=np.float32),
        "personal.bias": np.array([-CODE * LENGTH, 0.0, CODE * LENGTH + log(4)], dtype=np.float32),
    }
    local = client([0, 1, 1, 1], constant(), personal)

    (look,) = looks(monkeypatch, fedrod, "fedrod", local)

    # Balanced: SHARES times the counts 1, 3, 0 are as 5 to 9 to 0. Summed logits: SHARES times 1, 1, 4 are as 5, 3, 8.
    balanced, summed = np.array([5, 9, 0]) / 14, np.array([5, 3, 8]) / 16
    labels = np.array([0.25, 0.75, 0.0])
    assert isinstance(look.module, TwoHeads)
    assert look.value == pytest.approx(float(-(labels[:2] * np.log(balanced[:2] * summed[:2])).sum()), rel=1e-4)
    assert look.gradients["generic.decision.bias"] == pytest.approx((balanced - labels).tolist(), rel=1e-4)
    assert look.gradients["personal.bias"] == pytest.approx((summed - labels).tolist(), rel=1e-4)
    # The generic layer's weights are 0, so its loss doesn't reach the codes; the personal one's aren't, and may not.
    assert look.gradients["generic.representation.hidden.bias"] == [0.0] * LENGTH


def test_fedrod_predicts_with_the_sum_of_both_heads() -> None:
    personal = {"personal.weight": np.zeros((3, LENGTH), np.float32), "personal.bias": np.log([1, 1, 4], dtype="f4")}
    local = client([2], constant(), personal)

    model = make_method("fedrod", {}).personal_model(local)

    assert entropy(Look(model, 0.0, {}), local) == pytest.approx(-log(8 / 16), rel=1e-5)
