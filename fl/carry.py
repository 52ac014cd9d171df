"""What a client carries from one learning round into the next: a share of its own last step, which never leaves it.

A client starts from what it received plus `carry` times the difference between the model that it sent last and what it
had received for that. So its own features stay with it, whatever the mean makes of them, and nothing more is sent. For
the mean of all clients it works as a server's momentum: what all steps have in common goes on.

It lies between training alone and one model for all, as mixtures of both do (Mansour et al. 2020, "Three Approaches for
Personalization with Applications to Federated Learning", model interpolation; Hanzely and Richtarik 2020, "Federated
Learning of a Mixture of Global and Local Models"); those take the difference to the mean, without the common part.
No torch.
"""

import numpy as np

from .aggregation import STATISTICS, rounded
from .weights import Tensor, Tensors


def carried(received: Tensors, base: Tensors, sent: Tensors, carry: float) -> dict[str, Tensor]:
    """`received + carry (sent - base)` for floats, in float64, rounded once.

    Integers and BatchNorm's statistics are those received: a variance moved by another's difference can be negative.

    Args:
        received: what the aggregator gave for this round.
        base: what the client had received for the last round in which it took part.
        sent: what it sent then.
        carry: 0 or more; 0 is what was received.
    """
    return {
        name: tensor
        if tensor.dtype != np.float32 or name.endswith(STATISTICS)
        else rounded(tensor + carry * (sent[name].astype(np.float64) - base[name]))
        for name, tensor in received.items()
    }
