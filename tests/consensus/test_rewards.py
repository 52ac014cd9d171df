"""BFLN's division of a reward: the protocol's worked cases, and sums that never leave or add a micro-token."""

from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bflnode.consensus.rewards import ClientPayout, Payout, Ratio, bfln_payout

REWARD = 20_000_000

labelings = st.lists(st.integers(0, 6), min_size=1, max_size=40).map(
    lambda labels: [list(dict.fromkeys(labels)).index(label) for label in labels]
)
rewards = st.integers(0, 10**15)
exponents = st.integers(1, 6)


def nets(payout: Payout) -> list[int]:
    return [client.net for client in payout.clients]


def test_one_cluster_of_twenty_earns_as_the_protocol_says() -> None:
    payout = bfln_payout([0] * 20, REWARD, 2)
    assert nets(payout) == [997_500] * 20
    assert payout.aggregator == 50_000


def test_clusters_of_twelve_five_and_three_earn_as_the_protocol_says() -> None:
    payout = bfln_payout([0] * 12 + [1] * 5 + [2] * 3, REWARD, 2)
    assert nets(payout) == [1_342_697] * 12 + [556_180] * 5 + [331_461] * 3
    assert payout.aggregator == 112_353


def test_three_clients_worked_by_hand() -> None:
    # Sizes 2 and 1, rho 2: S = 5, kappa = 20.2. Gross 100 * 2 / 5 = 40.4 -> 40 and 101 / 5 -> 20; fee 101 / 15 -> 6.
    # Paid 2 * 40 + 20 = 100 of 101, so one micro-token is dust.
    assert bfln_payout([0, 1, 0], 101, 2) == Payout(
        reward=101,
        kappa=Ratio(101, 5),
        clients=(
            ClientPayout(cluster=0, cluster_size=2, gamma=Ratio(404, 5), gross=40, fee=6),
            ClientPayout(cluster=1, cluster_size=1, gamma=Ratio(101, 5), gross=20, fee=6),
            ClientPayout(cluster=0, cluster_size=2, gamma=Ratio(404, 5), gross=40, fee=6),
        ),
        fees=18,
        dust=1,
    )


def test_a_single_client_pays_all_to_the_aggregator() -> None:
    payout = bfln_payout([0], REWARD, 2)
    assert nets(payout) == [0]
    assert payout.aggregator == REWARD


def test_reward_smaller_than_the_divisor_is_all_dust() -> None:
    payout = bfln_payout([0] * 12 + [1] * 5 + [2] * 3, 7, 2)
    assert nets(payout) == [0] * 20
    assert (payout.fees, payout.dust) == (0, 7)


def test_with_rho_one_everybody_earns_the_same() -> None:
    assert nets(bfln_payout([0, 0, 0, 1], 4000, 1)) == [750] * 4


@given(labelings, rewards, exponents)
def test_payouts_sum_to_the_reward_exactly(labels: list[int], reward: int, rho: int) -> None:
    payout = bfln_payout(labels, reward, rho)
    assert sum(nets(payout)) + payout.aggregator == reward


@given(labelings, rewards, exponents)
def test_no_payout_is_negative(labels: list[int], reward: int, rho: int) -> None:
    payout = bfln_payout(labels, reward, rho)
    assert min(*nets(payout), payout.fees, payout.dust) >= 0


@given(labelings, rewards, exponents)
def test_members_of_larger_clusters_never_earn_less(labels: list[int], reward: int, rho: int) -> None:
    clients = sorted(bfln_payout(labels, reward, rho).clients, key=lambda client: client.cluster_size)
    assert [client.net for client in clients] == sorted(client.net for client in clients)
    assert all(
        earlier.net == later.net for earlier, later in pairwise(clients) if earlier.cluster_size == later.cluster_size
    )


@given(labelings, rewards, exponents)
def test_amounts_are_the_papers_quotients_rounded_down(labels: list[int], reward: int, rho: int) -> None:
    sizes = [labels.count(label) for label in sorted(set(labels))]
    kappa = Fraction(reward, sum(size**rho for size in sizes))
    payout = bfln_payout(labels, reward, rho)
    assert Fraction(payout.kappa.numerator, payout.kappa.denominator) == kappa
    for label, client in zip(labels, payout.clients, strict=True):
        gamma = kappa * sizes[label] ** rho
        assert (client.cluster, client.cluster_size) == (label, sizes[label])
        assert Fraction(client.gamma.numerator, client.gamma.denominator) == gamma
        assert client.gross == gamma // sizes[label]
        assert client.fee == kappa // len(labels)


@given(labelings, rewards, exponents)
def test_dust_is_less_than_one_micro_token_a_client(labels: list[int], reward: int, rho: int) -> None:
    assert bfln_payout(labels, reward, rho).dust < len(labels)


@given(labelings, rewards, exponents)
def test_amounts_are_integers(labels: list[int], reward: int, rho: int) -> None:
    payout = bfln_payout(labels, reward, rho)
    assert {type(amount) for amount in (*nets(payout), payout.fees, payout.dust, payout.kappa.numerator)} == {int}
