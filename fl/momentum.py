"""Where a client of the rule `prior-rows` starts: from what it received, moved on in the direction it last took.

A client goes on from what it received by a share of the difference to what it had received a learning round before. For
the mean of all clients this is Nesterov's momentum (1983), which servers of federated learning have as well: FedAvgM
(Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification"), and,
with clients that start ahead, FedACG (Kim et al. 2024, "Communication-Efficient Federated Learning with Accelerated
Client Gradient"). Here each client looks ahead by itself, from two models that it has anyway: the aggregator keeps no
state, and nothing more travels. Deviation: the share fades, since what hurries the first rounds overfits in later ones.
No torch.
"""

import numpy as np

from .aggregation import STATISTICS, rounded
from .weights import Tensor, Tensors

FULL_ROUNDS = 5
"""Learning rounds in which all of the momentum counts; chosen with it, see ADR 26."""


def share_of_last_round(momentum: float, number: int) -> float:
    """`momentum min(1, (5 / r)^2)` in learning round r.

    Args:
        momentum: 0 or more; 0 is none.
        number: of the learning round, from 1.
    """
    return momentum * min(1.0, FULL_ROUNDS / number) ** 2


def looked_ahead(received: Tensors, before: Tensors, share: float) -> dict[str, Tensor]:
    """`received + share (received - before)` for floats, in float64, rounded once.

    Integers and BatchNorm's statistics are those received: a variance moved on by a difference can be negative.

    Args:
        received: what the aggregator gave for this learning round.
        before: what it gave for the one before.
        share: 0 or more; 0 is what was received.
    """
    return {
        name: tensor
        if tensor.dtype != np.float32 or name.endswith(STATISTICS)
        else rounded(tensor + share * (tensor.astype(np.float64) - before[name]))
        for name, tensor in received.items()
    }
