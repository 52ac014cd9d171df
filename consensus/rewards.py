"""BFLN's incentive in integers: how the reward of one learning round is divided (BFLN, section 4.3.1, eq. 7-9).

Here belongs the arithmetic alone. Who was included, which escrow pays and whose account is credited does not.

With cluster sizes n_1..n_j of N included clients, the reward R in micro-tokens and S = sum n_i^rho, a member of a
cluster of n_i gets Gamma(n_i) / n_i = R * n_i^(rho-1) / S and pays the aggregator kappa / N = R / (S * N), both rounded
down. What rounding down leaves of R, the dust, goes to the aggregator, so that the payouts sum to R exactly.

A net amount can't be negative: n_i >= 1 and rho >= 1 give R * n_i^(rho-1) >= R, N >= 1 gives R / (S * N) <= R / S, and
rounding down keeps the order; so fee <= R // S <= gross.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .types import Amount


@dataclass(frozen=True, slots=True)
class Ratio:
    """An exact quotient of micro-tokens, as the paper's formula has it: not rounded, not reduced."""

    numerator: int
    denominator: int


@dataclass(frozen=True, slots=True)
class ClientPayout:
    """What one included client earns in a round.

    Attributes:
        cluster: label of the client's cluster.
        cluster_size: n_i, its number of members.
        gamma: the cluster's share Gamma(n_i) = kappa * n_i^rho of the reward (eq. 7), in micro-tokens.
        gross: the client's share before the fee.
        fee: what it pays the aggregator (eq. 9), the same for everybody.
    """

    cluster: int
    cluster_size: int
    gamma: Ratio
    gross: Amount
    fee: Amount

    @property
    def net(self) -> Amount:
        """What the client is credited; never negative."""
        return self.gross - self.fee


@dataclass(frozen=True, slots=True)
class Payout:
    """The division of one round's reward.

    Attributes:
        reward: R, what is divided.
        kappa: R / sum n_i^rho (eq. 8).
        clients: an entry for each included client, in their order.
        fees: sum of the clients' fees, for the aggregator.
        dust: what rounding left, for the aggregator too.
    """

    reward: Amount
    kappa: Ratio
    clients: tuple[ClientPayout, ...]
    fees: Amount
    dust: Amount

    @property
    def aggregator(self) -> Amount:
        """What the aggregator is credited for aggregating: on top of its net as a client, if it is one."""
        return self.fees + self.dust


def bfln_payout(labels: Sequence[int], reward: Amount, rho: int) -> Payout:
    """Divides the reward of a round among the included clients and the aggregator (BFLN, eq. 7-9).

    Args:
        labels: the cluster of each included client, as `clustering.cluster` returns them; at least one client.
        reward: R in micro-tokens, at least 0.
        rho: exponent of the cluster size, at least 1. The paper has rho > 1; with 1 all clients earn the same.

    Returns:
        Amounts that sum to `reward` exactly, clients' nets and the aggregator's fees and dust together.
    """
    assert labels
    assert reward >= 0, reward
    assert rho >= 1, rho
    sizes = [0] * (max(labels) + 1)
    for label in labels:
        sizes[label] += 1
    weight = sum(size**rho for size in sizes)
    fee = reward // (weight * len(labels))
    clients = tuple(
        ClientPayout(
            cluster=label,
            cluster_size=sizes[label],
            gamma=Ratio(reward * sizes[label] ** rho, weight),
            gross=reward * sizes[label] ** (rho - 1) // weight,
            fee=fee,
        )
        for label in labels
    )
    return Payout(
        reward=reward,
        kappa=Ratio(reward, weight),
        clients=clients,
        fees=fee * len(labels),
        dust=reward - sum(client.gross for client in clients),
    )
