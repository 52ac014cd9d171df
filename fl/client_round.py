"""A client's learning round in an experiment, as one job of a worker: receive, measure, train, measure, send.

Jobs and results are bytes and numbers, so a worker may be this process, another one, or another machine. Importing this
imports torch. Who gives out jobs is `node`'s business.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from time import perf_counter

import numpy as np
from torch import nn

from .architectures import architecture
from .inference import repeatable_torch
from .interpolation import share_of_training
from .methods.method import Local, Method, MethodError, Update
from .networks import interpolated
from .population import Population
from .training import TrainingConfig, TrainingError, choose_device, measure
from .weights import InvalidWeights, Tensor, Tensors, parse, read_table, serialize

NO_TENSORS = serialize({})
"""What nothing looks like when it is sent or kept."""

MODELS_REMEMBERED = 4096
"""Accuracies on the global test set that a worker remembers: two numbers for each model of some rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientJob:
    """One client's learning round.

    Attributes:
        method: what is done.
        architecture_id: of all models.
        round: from 1.
        owners: whose data is trained on: one client, or all for training in one place.
        measured: clients on whose test data the models are measured.
        config: of the training, with the seed of this client and round.
        received: canonical tensors that the aggregator gave.
        kept: canonical tensors that the client kept.
        measures_global: whether the general model is measured on the global test set.
    """

    method: Method
    architecture_id: str
    round: int
    owners: tuple[int, ...]
    measured: tuple[int, ...]
    config: TrainingConfig
    received: bytes
    kept: bytes
    measures_global: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientResult:
    """What a client's learning round gave.

    Attributes:
        sent: canonical tensors for the aggregator.
        kept: canonical tensors that stay with the client.
        samples: number of training samples.
        histogram: of their labels.
        received_accuracies: on the test data of each measured client, before training.
        post_accuracies: the same after training, before aggregation.
        global_accuracy: of the general model before training, on the global test set; None where not asked for.
        loss: of the last epoch, nats.
        seconds: of training alone.
        device: that it ran on.
    """

    sent: bytes
    kept: bytes
    samples: int
    histogram: tuple[int, ...]
    received_accuracies: tuple[float, ...]
    post_accuracies: tuple[float, ...]
    global_accuracy: float | None
    loss: float
    seconds: float
    device: str


class Player:
    """Plays the rounds of clients of one population, one after the other, with one thread."""

    def __init__(self, population: Population) -> None:
        self._population = population
        self._global_accuracies: OrderedDict[bytes, float] = OrderedDict()

    def play(self, job: ClientJob) -> ClientResult:
        """Play one client's round: the same result for the same job on one machine.

        Raises:
            TrainingError: training diverged, the data doesn't fit, or there is no such device.
            MethodError: settings of the method contradict the job's.
        """
        try:
            with repeatable_torch(1):
                return self._play(job)
        except InvalidWeights as error:
            raise TrainingError(
                f"client {job.owners[0]} can't read what it received or kept for round {job.round} ({error}): the disk "
                "changed it; remove the folder of this run to begin it anew"
            ) from error

    def _play(self, job: ClientJob) -> ClientResult:
        shard = self._population.shard(job.owners)
        local = Local(
            client=job.owners[0],
            round=job.round,
            architecture=architecture(job.architecture_id),
            shard=shard,
            config=job.config,
            received=read_tensors(job.received),
            kept=read_tensors(job.kept),
        )
        before = job.method.personal_model(local)
        received = self._measured(before, job)
        general = self._global_accuracy(job.method.general_model(local)) if job.measures_global else None
        started = perf_counter()
        update = job.method.train(local)
        seconds = perf_counter() - started
        start = before if update.start is None else update.start
        sent, kept = self._travelling(job, update)
        return ClientResult(
            sent=sent,
            kept=kept,
            samples=len(shard.train),
            histogram=shard.train.histogram(),
            received_accuracies=received,
            post_accuracies=self._measured(_after(start, update.model, job), job),
            global_accuracy=general,
            loss=update.loss,
            seconds=seconds,
            device=str(choose_device(job.config.device)),
        )

    def _measured(self, module: nn.Module, job: ClientJob) -> tuple[float, ...]:
        return tuple(measure(module, self._population.test(client)).accuracy for client in job.measured)

    def _global_accuracy(self, module: nn.Module) -> float:
        """Accuracy on the global test set; modules of one class with equal tensors are measured once."""
        key = _fingerprint(module)
        if key not in self._global_accuracies:
            self._global_accuracies[key] = measure(module, self._population.held.global_test).accuracy
            if len(self._global_accuracies) > MODELS_REMEMBERED:
                self._global_accuracies.popitem(last=False)
        return self._global_accuracies[key]

    def _travelling(self, job: ClientJob, update: Update) -> tuple[bytes, bytes]:
        try:
            return write_tensors(update.sent), write_tensors(update.kept)
        except InvalidWeights as error:
            raise TrainingError(
                f"client {job.owners[0]} diverged in round {job.round} ({error.detail}): lower the learning rate "
                f"({job.config.learning_rate}), or check the data and the method's settings"
            ) from error


def _after(start: nn.Module, trained: nn.Module, job: ClientJob) -> nn.Module:
    """What predicts after training."""
    try:
        return interpolated(start, trained, share_of_training(job.method.interpolation, job.round))
    except ValueError as error:
        raise MethodError(f"method {job.method.name}: {error}") from error


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors in canonical bytes, as read-only views."""
    return {} if data == NO_TENSORS else parse(data, read_table(data))


def write_tensors(tensors: Tensors) -> bytes:
    """The canonical bytes of tensors.

    Raises:
        InvalidWeights: a NaN or an infinity.
    """
    return serialize(dict(tensors)) if tensors else NO_TENSORS


def tensor_bytes(data: bytes) -> int:
    """How many bytes travel: none where nothing is sent."""
    return 0 if data == NO_TENSORS else len(data)


def _fingerprint(module: nn.Module) -> bytes:
    state: Mapping[str, object] = module.state_dict()
    digest = sha256(f"{type(module).__module__}.{type(module).__qualname__}".encode())
    for name, tensor in state.items():
        values = np.ascontiguousarray(tensor.detach().cpu().numpy())  # type: ignore[attr-defined]  # a state's tensors
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.digest()
