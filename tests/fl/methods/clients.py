"""What tests of methods are played with: a tiny model, clients, what they sent, and what was gathered."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bflnode.fl.architectures import Architecture, architecture
from bflnode.fl.methods.method import Gathered, Local, Sent
from bflnode.fl.robust import RobustRule
from bflnode.fl.samples import LabelledData, Shard, numbered_classes
from bflnode.fl.training import TrainingConfig
from bflnode.fl.weights import Tensor, Tensors, parse

TINY = architecture("mlp/1x1x2/3")


def initial(chosen: Architecture = TINY) -> dict[str, Tensor]:
    return parse(chosen.initial_weights(0), chosen.table)


def data(labels: Sequence[int], seed: int = 0) -> LabelledData:
    inputs = np.random.default_rng(seed).random((len(labels), 1, 1, 2), dtype=np.float32)
    return LabelledData(inputs, np.array(labels, dtype=np.int64), numbered_classes(3))


def local(labels: Sequence[int] = (0, 0, 1, 1, 1, 1), **changes: object) -> Local:
    own = data(labels)
    made = Local(
        client=0,
        round=1,
        architecture=TINY,
        shard=Shard(own, own),
        config=TrainingConfig(epochs=4, batch_size=3),
        received=initial(),
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # fields by name


def sent(
    client: int, tensors: Tensors, *, received: Tensors | None = None, histogram: Sequence[int] = (1, 1, 1)
) -> Sent:
    before = initial() if received is None else received
    return Sent(client=client, samples=sum(histogram), histogram=tuple(histogram), received=before, tensors=tensors)


def gathered(*all_sent: Sent, labels: Sequence[int] = (), clients: int = 0) -> Gathered:
    return Gathered(
        round=1,
        seed=0,
        architecture=TINY,
        clients=clients or len(all_sent),
        sent=all_sent,
        probe=data([0, 0]),
        cluster=lambda matrix, clusters: labels or (0,) * len(all_sent),
        combine=RobustRule(),
    )


def shifted(tensors: Tensors, by: float) -> dict[str, Tensor]:
    return {name: np.asarray(tensor + np.float32(by), dtype=np.float32) for name, tensor in tensors.items()}


def is_close(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(np.allclose(first[name], second[name], atol=1e-6) for name in first)


def change(update_sent: Tensors, received: Tensors) -> float:
    return float(sum(np.abs(update_sent[name] - received[name]).sum() for name in update_sent if name in received))
