"""Local training of one learning round, and measuring a model: accuracy, loss, predictions.

Here belong the optimiser loop and evaluation. What is trained (architectures), on what (samples) and what happens
to the result (aggregation, prototypes) do not. Importing this imports torch.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite
from time import perf_counter
from typing import Literal, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .architectures import Architecture
from .inference import logits, repeatable_torch
from .networks import Classifier, interpolated
from .optimisers import Adam, GradientDescent, Optimiser
from .prior import WithPrior, with_prior
from .samples import Inputs, LabelledData, Labels, Shard, as_float
from .weights import InvalidWeights, parse, serialize

MAX_SAMPLE_LOSS = 1000.0
"""Nats one sample can lose at most: a well behaved model stays below 100, a hostile one must not overflow sums."""

LARGEST_RECEIVED = 2.0**20
"""Largest number of a received model that training starts from: far above honest ones, and passes over batches stay
finite with it in all architectures. From the largest float32 nobody could train: one hostile model in a mean, or in a
row of its own, would end a task."""

MICRONATS = 10**6
"""A nat in the integer unit losses have on chain."""

ProgressCallback = Callable[[int, int, float], None]
"""Called after each epoch with its number from 1, the number of epochs, and its mean loss in nats."""

Objective = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
"""What a step minimises: a scalar in nats from a module, inputs (batch, channels, height, width), labels (batch,)."""


class TrainingError(ValueError):
    """Training or evaluation that can't be done as asked; the message says why and what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How a client trains in one learning round; the defaults are BFLN's (2024, table 1).

    Attributes:
        optimiser: made anew each round, as in the baselines' code: no momentum crosses an aggregation.
        learning_rate: more than 0.
        batch_size: samples a step; the last step of an epoch takes what is left.
        epochs: passes over the training data.
        seed: of the order of samples, 0 or more.
        device: "auto" takes a GPU if there is one.
        threads: of the CPU kernels; busy processes that share cores do best with one each.
    """

    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 0.001
    batch_size: int = 64
    epochs: int = 5
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        if not (isfinite(self.learning_rate) and self.learning_rate > 0.0):
            raise TrainingError(f"a learning rate of {self.learning_rate} can't train: give more than 0, usually 0.001")
        for name in ("batch_size", "epochs", "threads"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}: give at least 1")
        if not 0 <= self.seed < 2**63:
            raise TrainingError(f"seed is {self.seed}: give 0 to 2**63 - 1")


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What one learning round of a client gave.

    Attributes:
        model: canonical weights after training.
        received_accuracy: of what predicts before training, on the client's test data.
        post_accuracy: after training, before aggregation, on the client's test data.
        losses: mean training loss of each epoch in nats.
        samples: number of training samples.
        seconds: wall time, evaluations included.
    """

    model: bytes
    received_accuracy: float
    post_accuracy: float
    losses: tuple[float, ...]
    samples: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good a model is on some data.

    Attributes:
        accuracy: share of samples whose largest logit is that of their class (of equal ones the lowest class counts).
        loss: mean cross entropy in nats, each sample's bounded by `MAX_SAMPLE_LOSS`.
        samples: number of samples.
        class_accuracies: accuracy of each class, None for one without samples.
    """

    accuracy: float
    loss: float
    samples: int
    class_accuracies: tuple[float | None, ...]

    @property
    def loss_micronats(self) -> int:
        """The loss as the integer that goes on chain, half to even."""
        return round(self.loss * MICRONATS)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says about some inputs.

    Attributes:
        labels: (samples,) int64, the most probable class; of equal ones the lowest.
        probabilities: (samples, classes) float64, rows sum to 1.
    """

    labels: Labels
    probabilities: NDArray[np.float64]


def train(
    architecture: Architecture,
    base: bytes,
    shard: Shard,
    config: TrainingConfig,
    on_progress: ProgressCallback | None = None,
    *,
    before: bytes | None = None,
    has_prior: bool = False,
    share: float = 1.0,
) -> TrainingResult:
    """Train a model on a client's own data: the same bytes for the same arguments on one machine.

    Args:
        architecture: of the base model.
        base: canonical weights to start from, hostile ones too: they are `trainable` before anything else.
        shard: the client's data.
        config: optimiser, epochs, seed, device.
        on_progress: called after each epoch; what it raises ends the training.
        before: canonical weights that predict before training; None for the base.
        has_prior: train and measure with the client's label prior, which stays out of the model; see `prior`.
        share: of the way from the base to the trained model, at which the client predicts after training; see
            `interpolation`. The model that is returned is the trained one.

    Raises:
        InvalidWeights: the base isn't canonical weights of the architecture.
        TrainingError: the data doesn't fit the architecture, there is no such device, or training diverged.
    """
    started = perf_counter()
    _refuse_unfit_data(architecture, shard.train)
    with repeatable_torch(config.threads):
        device = choose_device(config.device)
        prior = shard.train if has_prior else None
        module = _predicting(architecture, trainable(architecture, base), prior).to(device)
        classifier = module.classifier if isinstance(module, WithPrior) else module
        if before is None:
            received = measure(module, shard.test)
        else:
            received = measure(_predicting(architecture, trainable(architecture, before), prior).to(device), shard.test)
        start = module if share == 1 else copy.deepcopy(module)
        losses = fit(module, shard.train, config, on_progress=on_progress)
        post = measure(interpolated(start, module, share), shard.test)
        try:
            model = architecture.dump(classifier)
        except InvalidWeights as error:
            raise TrainingError(_diverged(f"after epoch {config.epochs}: {error.detail}", config)) from error
    return TrainingResult(
        model=model,
        received_accuracy=received.accuracy,
        post_accuracy=post.accuracy,
        losses=losses,
        samples=len(shard.train),
        seconds=perf_counter() - started,
    )


def trainable(architecture: Architecture, model: bytes) -> bytes:
    """A received model with its floats cut to `LARGEST_RECEIVED`: the same bytes unless somebody sent absurd ones.

    What ResNet makes of a batch of one sample, which is normalised by variances received, can overflow all the same.

    Raises:
        InvalidWeights: the bytes aren't canonical weights of the architecture.
    """
    tensors = parse(model, architecture.table)
    return serialize(
        {
            name: tensor
            if tensor.dtype != np.float32
            else np.clip(tensor, -LARGEST_RECEIVED, LARGEST_RECEIVED).astype(np.float32)
            for name, tensor in tensors.items()
        }
    )


def evaluate(
    architecture: Architecture, model: bytes | memoryview, data: LabelledData, prior: LabelledData | None = None
) -> Evaluation:
    """Accuracy and loss of a model, on the CPU with one thread: the same everywhere up to the last bits.

    Args:
        architecture: of the model.
        model: canonical weights.
        data: what it is measured on.
        prior: data whose label prior predicts with the model; none for everybody's data.

    Raises:
        InvalidWeights: the model isn't canonical weights of the architecture.
        TrainingError: the data doesn't fit the architecture, or there is none.
    """
    _refuse_unfit_data(architecture, data)
    with repeatable_torch(threads=1):
        return measure(_predicting(architecture, model, prior), data)


def predict(
    architecture: Architecture, model: bytes | memoryview, inputs: Inputs, prior: LabelledData | None = None
) -> Prediction:
    """Labels and probabilities of inputs, on the CPU with one thread; `prior` as in `evaluate`.

    Raises:
        InvalidWeights: the model isn't canonical weights of the architecture.
        TrainingError: the inputs don't fit the architecture, or there are none.
    """
    if not len(inputs) or inputs.shape[1:] != architecture.input_shape:
        raise TrainingError(
            f"inputs of shape {inputs.shape} don't fit {architecture.id}: "
            f"give (samples, {', '.join(map(str, architecture.input_shape))}) with at least one sample"
        )
    with repeatable_torch(threads=1):
        values = logits(_predicting(architecture, model, prior), inputs)
    return Prediction(np.argmax(values, axis=1).astype(np.int64), np.exp(_log_probabilities(values)))


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to train on.

    Raises:
        TrainingError: a GPU is wanted and there is none.
    """
    match wanted:
        case "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        case "cpu":
            return torch.device("cpu")
        case "cuda":
            if not torch.cuda.is_available():
                raise TrainingError("device is cuda, but torch finds no usable GPU: use auto or cpu")
            return torch.device("cuda")
        case unknown:
            assert_never(unknown)


def cross_entropy(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy of a module's logits: what FedAvg's clients minimise."""
    return nn.functional.cross_entropy(module(inputs), labels)


def fit(
    module: nn.Module,
    data: LabelledData,
    config: TrainingConfig,
    objective: Objective = cross_entropy,
    *,
    parameters: Iterable[nn.Parameter] | None = None,
    on_progress: ProgressCallback | None = None,
) -> tuple[float, ...]:
    """Train a module in place, within `inference.repeatable_torch`.

    Args:
        module: logits of inputs, on the device it is to be trained on.
        data: to train on.
        config: optimiser, batch size, epochs and seed.
        objective: minimised over each batch.
        parameters: those that are trained; all by default.
        on_progress: called after each epoch; what it raises ends the training.

    Returns:
        The mean of the objective in each epoch.

    Raises:
        TrainingError: training diverged.
    """
    trained = list(module.parameters() if parameters is None else parameters)
    device = trained[0].device
    inputs = torch.from_numpy(as_float(data.inputs).copy()).to(device)
    labels = torch.from_numpy(data.labels.copy()).to(device)
    optimiser = _new_optimiser(trained, config)
    generator = torch.Generator().manual_seed(config.seed)
    losses = []
    for epoch in range(1, config.epochs + 1):
        total = torch.zeros((), dtype=torch.float64, device=device)
        order = torch.randperm(len(labels), generator=generator).to(device)
        for batch in torch.split(order, config.batch_size):
            # BatchNorm can't normalise a single sample: such a batch uses the running statistics.
            module.train(len(batch) > 1)
            optimiser.zero_grad()
            loss = objective(module, inputs[batch], labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward unannotated
            optimiser.step()
            total += loss.detach().double() * len(batch)
        mean_loss = float(total) / len(labels)
        if not isfinite(mean_loss):
            raise TrainingError(_diverged(f"in epoch {epoch} of {config.epochs} the loss is {mean_loss}", config))
        losses.append(mean_loss)
        if on_progress is not None:
            on_progress(epoch, config.epochs, mean_loss)
    return tuple(losses)


def _new_optimiser(parameters: list[nn.Parameter], config: TrainingConfig) -> Optimiser:
    match config.optimiser:
        case "adam":
            return Adam(parameters, config.learning_rate)
        case "sgd":
            return GradientDescent(parameters, config.learning_rate)
        case unknown:
            assert_never(unknown)


def measure(module: nn.Module, data: LabelledData) -> Evaluation:
    """Accuracy and loss of a module's logits, within `inference.repeatable_torch`."""
    values = logits(module, data.inputs)
    samples = len(data)
    own = _log_probabilities(values)[np.arange(samples), data.labels]
    losses = np.minimum(-own, MAX_SAMPLE_LOSS)
    hits = np.argmax(values, axis=1) == data.labels
    counts = np.bincount(data.labels, minlength=data.classes)
    hit_counts = np.bincount(data.labels[hits], minlength=data.classes)
    return Evaluation(
        accuracy=int(hits.sum()) / samples,
        loss=float(losses.sum()) / samples,
        samples=samples,
        class_accuracies=tuple(
            int(hit) / int(count) if count else None for hit, count in zip(hit_counts, counts, strict=True)
        ),
    )


def _predicting(
    architecture: Architecture, model: bytes | memoryview, prior: LabelledData | None
) -> Classifier | WithPrior:
    classifier = architecture.load(model)
    if prior is None:
        return classifier
    _refuse_unfit_data(architecture, prior)
    return with_prior(classifier, prior.histogram())


def _log_probabilities(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-softmax of finite logits (samples, classes), in float64."""
    shifted = values - values.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _refuse_unfit_data(architecture: Architecture, data: LabelledData) -> None:
    if not len(data):
        raise TrainingError("there are no samples: give at least one")
    if data.input_shape != architecture.input_shape or data.classes != architecture.classes:
        raise TrainingError(
            f"the data is {'x'.join(map(str, data.input_shape))} with {data.classes} classes, the architecture "
            f"{architecture.id} takes {'x'.join(map(str, architecture.input_shape))} with {architecture.classes}: "
            "use the data set the task is about"
        )


def _diverged(what: str, config: TrainingConfig) -> str:
    return f"training diverged: {what}; lower the learning rate ({config.learning_rate}) or check the data"
