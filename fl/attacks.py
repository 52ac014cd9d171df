"""What hostile clients do: to measure how methods and robust rules stand it.

An attack changes a client's data before it trains, or what it sends afterwards. Each is drawn by a seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .aggregation import moved
from .samples import LabelledData, Shard
from .weights import Tensor, Tensors

NAMES = ("label-flip", "sign-flip", "noise", "model-replacement", "copy", "lazy")
"""What attacks there are: labels turned round, the step turned round, noise on every weight, a step so large that the
mean becomes what the attackers learned of turned labels (Bagdasaryan et al. 2020, eq. 3; several attackers share it
out), another's model, the received model untrained."""

POISONING = ("label-flip", "model-replacement")
"""Attacks that train on turned labels."""


class AttackError(ValueError):
    """An attack that doesn't exist or has a wrong setting; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What hostile clients do, and which clients are hostile.

    Attributes:
        name: of `NAMES`.
        share: of the clients that are hostile, the ones with the highest numbers.
        strength: what it is multiplied by: the step of a sign flip or replacement, the noise in units of a tensor's own
            standard deviation.
    """

    name: str
    share: float = 0.2
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise AttackError(f"there is no attack {self.name!r}: use one of {', '.join(NAMES)}")
        if not 0 <= self.share <= 1:
            raise AttackError(f"share is {self.share}: give 0 to 1")
        if not self.strength > 0:
            raise AttackError(f"strength is {self.strength}: give more than 0")

    def hostile(self, clients: int) -> frozenset[int]:
        """The numbers of the hostile clients among so many."""
        return frozenset(range(clients - round(self.share * clients), clients))

    def poisoned(self, shard: Shard) -> Shard:
        """A hostile client's data: with labels flipped to `classes - 1 - label`, if that is part of the attack."""
        return shard if self.name not in POISONING else Shard(_flipped(shard.train), shard.test)

    def forged(
        self, sent: Tensors, received: Tensors, others: Sequence[Tensors], seed: int, *, hostile: int = 1
    ) -> Tensors:
        """What a hostile client sends in place of its model.

        Args:
            sent: what it would send.
            received: what it had received.
            others: what honest clients sent, for who copies.
            seed: of what is drawn.
            hostile: how many clients attack in this learning round, this one among them.
        """
        generator = np.random.default_rng(seed)
        match self.name:
            case "sign-flip":
                return moved(received, sent, -self.strength)
            case "model-replacement":
                return moved(received, sent, self.strength * (len(others) + hostile) / hostile)
            case "noise":
                return {name: self._noisy(tensor, generator) for name, tensor in sent.items()}
            case "copy":
                return others[int(generator.integers(len(others)))] if others else sent
            case "lazy":
                return {name: received.get(name, tensor) for name, tensor in sent.items()}
            case _:
                return sent

    def _noisy(self, tensor: Tensor, generator: np.random.Generator) -> Tensor:
        if tensor.dtype != np.float32:
            return tensor
        noise = self.strength * float(tensor.std()) * generator.standard_normal(tensor.shape)
        return np.asarray(tensor + noise, dtype=np.float32)


def _flipped(data: LabelledData) -> LabelledData:
    return LabelledData(data.inputs, data.classes - 1 - data.labels, data.class_names)
