"""The label prior: what it adds, what it hides, and that it never gets into a model that is sent."""

from math import log

import numpy as np
import pytest
import torch

from bflnode.fl.architectures import architecture
from bflnode.fl.inference import repeatable_torch
from bflnode.fl.methods.method import Local
from bflnode.fl.methods.prior_rows import PriorRows
from bflnode.fl.prior import with_prior
from bflnode.fl.samples import LabelledData, Shard, numbered_classes
from bflnode.fl.training import TrainingConfig, TrainingError, evaluate, predict, train
from bflnode.fl.weights import parse, serialize

TINY = architecture("mlp/1x1x2/3")
INITIAL = TINY.initial_weights(0)


def data(labels: list[int], classes: int = 3) -> LabelledData:
    inputs = np.random.default_rng(0).random((len(labels), 1, 1, 2), dtype=np.float32)
    return LabelledData(inputs, np.array(labels, dtype=np.int64), numbered_classes(classes))


def test_logits_get_the_logarithm_of_class_shares_and_absent_classes_none() -> None:
    classifier = TINY.load(INITIAL)
    inputs = torch.zeros((1, 1, 1, 2))

    with torch.inference_mode():
        added = with_prior(classifier, (3, 0, 1))(inputs) - classifier(inputs)

    assert added[0].tolist() == [pytest.approx(log(0.75)), -float("inf"), pytest.approx(log(0.25))]


def test_training_with_the_prior_sends_what_the_experiments_method_sends() -> None:
    shard, config = Shard(data([0, 0, 1, 1, 1]), data([0, 1])), TrainingConfig(epochs=2, batch_size=2, seed=4)
    with repeatable_torch(1):
        update = PriorRows().train(
            Local(client=0, round=1, architecture=TINY, shard=shard, config=config, received=parse(INITIAL, TINY.table))
        )

    with_it = train(TINY, INITIAL, shard, config, has_prior=True, share=0.5)

    assert with_it.model == serialize(dict(update.sent)) != train(TINY, INITIAL, shard, config).model
    assert with_it.received_accuracy == evaluate(TINY, INITIAL, shard.test, shard.train).accuracy
    row = parse(with_it.model, TINY.table)["decision.weight"][2]
    assert row.tolist() == parse(INITIAL, TINY.table)["decision.weight"][2].tolist(), "an absent class has no gradient"


def test_predictions_with_a_prior_never_name_an_absent_class() -> None:
    inputs = data([0] * 50).inputs
    found = predict(TINY, INITIAL, inputs, data([2, 2]))

    assert set(found.labels.tolist()) == {2}
    assert found.probabilities[:, 2].tolist() == [1.0] * 50
    assert set(predict(TINY, INITIAL, inputs).labels.tolist()) != {2}


def test_a_prior_of_other_data_is_refused() -> None:
    with pytest.raises(TrainingError, match="with 4 classes, the architecture"):
        evaluate(TINY, INITIAL, data([0]), data([0], classes=4))
