"""Where between what is shared and what it trained a client predicts. No torch.

Training pulls a model towards a client's own few samples; what it started from knows more of everybody. Between the two
it often predicts better than the trained model (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", eq. 1).
The weights after training are made by `networks.interpolated`. Before training the trained model is that of the round
before (Mansour et al. 2020, "Three Approaches for Personalization with Applications to Federated Learning", model
interpolation). Nothing that is sent changes.
"""

import numpy as np

from .aggregation import rounded
from .weights import Tensor, Tensors

INTERPOLATION = 0.5
"""What clients of the rule `prior-rows` go towards after training."""

MEMORY = 0.5
"""Share of what they trained last in what clients of the rule `prior-rows` predict with before training."""


def share_of_training(interpolation: float, number: int) -> float:
    """`interpolation + (1 - interpolation) / r` in learning round r: 1 in the first, whose start knows nothing yet.

    Args:
        interpolation: what the share goes towards, 0 to 1; with 1 it is 1 in every round: the trained model.
        number: of the learning round, from 1.
    """
    return interpolation + (1 - interpolation) / number


def between(received: Tensors, trained: Tensors, share: float) -> dict[str, Tensor]:
    """`received + share (trained - received)` for floats, in float64, rounded once; integers are those received.

    Args:
        received: what the aggregator gave.
        trained: what the client has trained before.
        share: 0 to 1; 0 is what was received.
    """
    return {
        name: tensor
        if tensor.dtype != np.float32
        else rounded(tensor + share * (trained[name].astype(np.float64) - tensor))
        for name, tensor in received.items()
    }
