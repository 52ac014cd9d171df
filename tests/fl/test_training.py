import numpy as np
import pytest
import torch

from bflnode.fl.aggregation import mean
from bflnode.fl.architectures import architecture
from bflnode.fl.datasets import load_digits
from bflnode.fl.partition import Spread, dirichlet, shards_of
from bflnode.fl.samples import LabelledData, Shard, numbered_classes
from bflnode.fl.training import (
    MAX_SAMPLE_LOSS,
    Evaluation,
    TrainingConfig,
    TrainingError,
    evaluate,
    predict,
    train,
)
from bflnode.fl.weights import InvalidWeights, Tensor, parse, serialize

DIGITS = architecture("mlp/1x8x8/10")
TINY = architecture("mlp/1x1x2/2")


@pytest.fixture(scope="module")
def digits() -> Shard:
    return load_digits()


def tiny_model(**changes: object) -> bytes:
    """A model of two classes whose logits are the two pixels, unless changed."""
    tensors: dict[str, Tensor] = {
        name: np.zeros_like(t) for name, t in parse(TINY.initial_weights(0), TINY.table).items()
    }
    tensors["representation.hidden.weight"][:2] = np.eye(2)
    tensors["decision.weight"][:, :2] = np.eye(2)
    for name, value in changes.items():
        tensors[name.replace("__", ".")][...] = value
    return serialize(tensors)


def tiny_data(rows: list[list[float]], labels: list[int]) -> LabelledData:
    inputs = np.array(rows, dtype=np.float32).reshape(-1, 1, 1, 2)
    return LabelledData(inputs, np.array(labels, dtype=np.int64), numbered_classes(2))


def test_training_on_the_digits_learns_them(digits: Shard) -> None:
    reports: list[tuple[int, int, float]] = []
    result = train(
        DIGITS,
        DIGITS.initial_weights(0),
        digits,
        TrainingConfig(epochs=20),
        lambda epoch, epochs, loss: reports.append((epoch, epochs, loss)),
    )
    assert result.received_accuracy < 0.3
    assert result.post_accuracy > 0.9
    assert result.samples == len(digits.train)
    assert result.seconds > 0.0
    assert reports == [(epoch, 20, loss) for epoch, loss in enumerate(result.losses, start=1)]
    assert result.losses[-1] < result.losses[0] / 5
    assert evaluate(DIGITS, result.model, digits.test).accuracy == result.post_accuracy


def test_an_interpolation_is_measured_after_training_and_is_not_what_comes_back(digits: Shard) -> None:
    base, config = DIGITS.initial_weights(0), TrainingConfig(epochs=3)

    halfway = train(DIGITS, base, digits, config, share=0.5)

    trained = train(DIGITS, base, digits, config)
    middle = mean([parse(model, DIGITS.table) for model in (base, trained.model)], [1, 1])
    assert halfway.model == trained.model
    assert halfway.post_accuracy == evaluate(DIGITS, serialize(middle), digits.test).accuracy != trained.post_accuracy


@pytest.mark.parametrize("architecture_id", ["mlp/1x8x8/10", "cnn/1x8x8/10", "resnet18/1x8x8/10"])
def test_same_seed_gives_the_same_bytes_and_another_seed_others(digits: Shard, architecture_id: str) -> None:
    described = architecture(architecture_id)
    base = described.initial_weights(0)
    shard = Shard(digits.train.take(np.arange(70)), digits.test.take(np.arange(10)))

    def trained(seed: int) -> bytes:
        return train(described, base, shard, TrainingConfig(epochs=1, seed=seed)).model

    first = trained(1)
    torch.rand(3)  # moves the global generator, on which nothing may depend
    assert trained(1) == first
    assert trained(2) != first


def test_global_settings_and_generator_are_left_alone(digits: Shard) -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    shard = Shard(digits.train.take(np.arange(70)), digits.test)
    train(DIGITS, DIGITS.initial_weights(0), shard, TrainingConfig(epochs=1, threads=2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.are_deterministic_algorithms_enabled() == deterministic


@pytest.mark.parametrize("samples", [1, 5, 65])
def test_batch_of_one_sample_does_not_break_batchnorm(digits: Shard, samples: int) -> None:
    """65 leaves a last batch of one; at 8x8 pixels the last stage has one pixel, so nothing can be normalised."""
    described = architecture("resnet18/1x8x8/10")
    shard = Shard(digits.train.take(np.arange(samples)), digits.test.take(np.arange(3)))
    batch_size = 1 if samples == 5 else 64
    config = TrainingConfig(epochs=1, batch_size=batch_size)
    result = train(described, described.initial_weights(0), shard, config)
    before, after = parse(described.initial_weights(0), described.table), parse(result.model, described.table)
    assert not np.array_equal(before["decision.weight"], after["decision.weight"])
    assert after["representation.bn1.num_batches_tracked"] == (1 if samples == 65 else 0)


def test_sgd_step_is_the_hand_worked_one() -> None:
    """One sample (1, 0) of class 1: logits (1, 0), so d loss / d bias = (p, -p) with p = e / (e + 1)."""
    data = tiny_data([[1.0, 0.0]], [1])
    config = TrainingConfig(optimiser="sgd", learning_rate=0.5, epochs=1)
    result = train(TINY, tiny_model(), Shard(data, data), config)
    probability = np.e / (np.e + 1)
    bias = parse(result.model, TINY.table)["decision.bias"]
    np.testing.assert_allclose(bias, [-0.5 * probability, 0.5 * probability], rtol=1e-6)
    assert result.losses == pytest.approx((-np.log(1 - probability),))


def test_diverged_training_is_an_error_and_never_a_model() -> None:
    data = tiny_data([[1.0, 0.0], [0.5, 1.0]] * 20, [0, 1] * 20)
    config = TrainingConfig(optimiser="sgd", learning_rate=1e30, epochs=3)
    with pytest.raises(
        TrainingError, match=r"training diverged: in epoch \d of 3 the loss is \w+; lower the learning rate \(1e\+30\)"
    ):
        train(TINY, tiny_model(), Shard(data, data), config)


def test_model_that_overflows_in_the_last_step_is_an_error_too() -> None:
    """The loss is still finite when the only step sends a weight to infinity."""
    data = tiny_data([[1e10, 0.0]], [1])
    base = tiny_model(decision__weight=np.eye(2, 64) * 1e-10)
    config = TrainingConfig(optimiser="sgd", learning_rate=1e35, epochs=1)
    with pytest.raises(TrainingError, match=r"training diverged: after epoch 1: tensor .* has a NaN or an infinity"):
        train(TINY, base, Shard(data, data), config)


def test_exception_in_the_progress_callback_ends_training(digits: Shard) -> None:
    class StopError(Exception):
        pass

    def stop(epoch: int, epochs: int, loss: float) -> None:
        raise StopError

    with pytest.raises(StopError):
        train(DIGITS, DIGITS.initial_weights(0), digits, TrainingConfig(), stop)


def test_evaluation_of_a_hand_worked_case() -> None:
    data = tiny_data([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]], [0, 1, 1])
    losses = [np.log(1 + np.exp(-1)), np.log(1 + np.exp(-2)), np.log(1 + np.exp(3))]
    result = evaluate(TINY, tiny_model(), data)
    assert result == Evaluation(2 / 3, pytest.approx(np.mean(losses)), 3, (1.0, 0.5))
    assert result.loss_micronats == round(float(np.mean(losses)) * 1e6)


def test_class_without_samples_has_no_accuracy() -> None:
    assert evaluate(TINY, tiny_model(), tiny_data([[1.0, 0.0]], [0])).class_accuracies == (1.0, None)


def test_equal_logits_count_for_the_lowest_class() -> None:
    assert evaluate(TINY, tiny_model(), tiny_data([[0.0, 0.0]] * 2, [0, 1])).class_accuracies == (1.0, 0.0)


@pytest.mark.parametrize("scale", [1e20, 3e38])
def test_hostile_model_that_overflows_has_a_bounded_loss(scale: float) -> None:
    hostile = tiny_model(decision__weight=scale, representation__hidden__weight=scale)
    result = evaluate(TINY, hostile, tiny_data([[1.0, 1.0], [0.0, 1.0]], [0, 1]))
    assert 0.0 <= result.loss <= MAX_SAMPLE_LOSS
    assert isinstance(result.loss_micronats, int)
    prediction = predict(TINY, hostile, np.ones((2, 1, 1, 2), np.float32))
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1.0)


def test_confidently_wrong_model_loses_the_most_a_sample_can() -> None:
    model = tiny_model(decision__weight=np.eye(2, 64) * 1e6)
    assert evaluate(TINY, model, tiny_data([[1.0, 0.0]], [1])).loss == MAX_SAMPLE_LOSS


def test_prediction_gives_labels_and_probabilities() -> None:
    inputs = np.array([[0.0, 0.0], [0.0, np.log(3)]], np.float32).reshape(2, 1, 1, 2)
    prediction = predict(TINY, tiny_model(), inputs)
    assert prediction.labels.tolist() == [0, 1]
    np.testing.assert_allclose(prediction.probabilities, [[0.5, 0.5], [0.25, 0.75]], rtol=1e-6)


def test_predictions_agree_with_the_evaluation(digits: Shard) -> None:
    model = DIGITS.initial_weights(0)
    prediction = predict(DIGITS, model, digits.test.inputs)
    assert (prediction.labels == digits.test.labels).mean() == evaluate(DIGITS, model, digits.test).accuracy


def test_bytes_and_floats_of_the_same_images_evaluate_alike() -> None:
    described = architecture("cnn/1x8x8/3")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(20) % 3
    as_bytes = LabelledData(pixels, labels, numbered_classes(3))
    as_floats = LabelledData(pixels.astype(np.float32) / np.float32(255), labels, numbered_classes(3))
    model = described.initial_weights(0)
    assert evaluate(described, model, as_bytes) == evaluate(described, model, as_floats)


def test_data_of_another_task_is_refused(digits: Shard) -> None:
    fashion = architecture("cnn/1x28x28/10")
    with pytest.raises(TrainingError) as raised:
        train(fashion, fashion.initial_weights(0), digits, TrainingConfig())
    assert str(raised.value) == (
        "the data is 1x8x8 with 10 classes, the architecture cnn/1x28x28/10 takes 1x28x28 with 10: "
        "use the data set the task is about"
    )
    with pytest.raises(TrainingError, match=r"don't fit mlp/1x8x8/10: give \(samples, 1, 8, 8\)"):
        predict(DIGITS, DIGITS.initial_weights(0), np.zeros((0, 1, 8, 8), np.float32))
    with pytest.raises(TrainingError, match="there are no samples"):
        evaluate(DIGITS, DIGITS.initial_weights(0), digits.test.take(np.array([], dtype=np.int64)))


def test_base_that_is_no_model_is_refused(digits: Shard) -> None:
    with pytest.raises(InvalidWeights):
        train(DIGITS, b"", digits, TrainingConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "a learning rate of 0.0 can't train"),
        ({"learning_rate": float("nan")}, "a learning rate of nan can't train"),
        ({"batch_size": 0}, "batch_size is 0: give at least 1"),
        ({"epochs": -1}, "epochs is -1: give at least 1"),
        ({"threads": 0}, "threads is 0: give at least 1"),
        ({"seed": -1}, "seed is -1: give 0 to"),
    ],
)
def test_config_that_can_not_train_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(TrainingError) as raised:
        TrainingConfig(**changes)  # type: ignore[arg-type]  # the cases mix fields
    assert message in str(raised.value)


def test_missing_gpu_is_a_clear_error(digits: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="torch finds no usable GPU: use auto or cpu"):
        train(DIGITS, DIGITS.initial_weights(0), digits, TrainingConfig(device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU on this machine")
@pytest.mark.parametrize("architecture_id", ["mlp/1x8x8/10", "cnn/1x8x8/10", "resnet18/1x8x8/10"])
def test_training_on_a_gpu_is_repeatable(digits: Shard, architecture_id: str) -> None:
    described = architecture(architecture_id)
    base, config = described.initial_weights(0), TrainingConfig(epochs=2, device="cuda")
    assert train(described, base, digits, config).model == train(described, base, digits, config).model


def test_mean_of_skewed_clients_beats_chance_on_everybodys_data(digits: Shard) -> None:
    """Three FedAvg rounds over five clients at alpha 0.5, as the node will run them."""
    shards = shards_of(digits, dirichlet(digits, 0.5, Spread(clients=5, seed=1)))
    model = DIGITS.initial_weights(0)
    for number in range(3):
        config = TrainingConfig(seed=number, learning_rate=0.005)
        models = [train(DIGITS, model, shard, config).model for shard in shards]
        model = serialize(mean([parse(trained, DIGITS.table) for trained in models], [1] * len(models)))
    assert evaluate(DIGITS, model, digits.test).accuracy > 0.5
