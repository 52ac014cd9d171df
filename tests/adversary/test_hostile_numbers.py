"""Attacks by numbers on what every node computes: matrices, rewards, amounts; each test is one that fails."""

from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest

from bflnode.consensus.clustering import Integers, centroids, cluster
from bflnode.consensus.ledger import assert_supply, check
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.tables import ACCOUNTS, current_round, stake_of
from bflnode.consensus.task import ProbeMode
from bflnode.consensus.transaction import Bond, Transaction, Transfer, Unbond, Unjail
from bflnode.consensus.types import MAX_INTEGER, TOKEN
from bflnode.fl.updates import CONSTANT_SPREAD, update_correlations
from tests.consensus.harness import Harness
from tests.consensus.setups import PARAMETERS, SPECIFICATION, Setup

ACTORS = 6


def hostile_matrix(random: Random, clients: int) -> Integers:
    """Without a rank, without a gap between eigenvalues, in many parts: what eigenvectors are hard to find of."""
    generator = np.random.default_rng(random.getrandbits(32))
    signs = generator.choice([-1, 1], clients)
    groups = generator.integers(0, random.randint(2, clients), clients)
    chain = np.full((clients, clients), -10_000)
    chain[np.arange(clients - 1), np.arange(1, clients)] = generator.integers(-10_000, 10_001, clients - 1)
    kinds = (
        np.outer(signs, signs) * 10_000,
        np.where(groups[:, None] == groups[None], 10_000, -10_000),
        chain,
        np.full((clients, clients), random.choice((-10_000, -9_999, 0, 10_000))),
        generator.choice([-10_000, -9_999], (clients, clients), p=[0.97, 0.03]),
    )
    matrix = random.choice(kinds).astype(np.int64)
    for _ in range(random.randint(0, 3)):
        matrix[random.randrange(clients), random.randrange(clients)] = random.randint(-10_000, 10_000)
    matrix = np.triu(matrix, 1)
    matrix += matrix.T
    np.fill_diagonal(matrix, 10_000)
    return matrix


def test_no_matrix_that_an_aggregator_can_send_ends_who_clusters_it() -> None:
    """Whoever aggregates chooses every entry, and all nodes cluster it: a fault there would stop them all at once."""
    random = Random(4)
    with np.errstate(all="raise"):
        for clients in (2, 3, 41, 42, 46, 61) * 3:
            clusters = random.choice((1, 2, 3, 8, 32))
            matrix = hostile_matrix(random, clients)
            labels = cluster(matrix, clusters)
            assert len(labels) == clients
            assert max(labels) < max(clusters, clients if clusters >= clients else 0)
            assert len(centroids(matrix, labels)) == max(labels) + 1


def test_no_update_has_similarities_that_last_bits_decide() -> None:
    """With sums that AVX2 and AVX-512 round differently, one update's similarity was 1 on one and 0 on the other."""
    honest = np.random.default_rng(1).standard_normal(10_000).astype(np.float32)
    zero = np.zeros_like(honest)
    found = []
    for spread in np.linspace(0.9, 1.5, 201) * CONSTANT_SPREAD:
        hostile = (1.0 + spread * honest).astype(np.float32)
        found.append(int(update_correlations([{"w": honest}, {"w": hostile}], [{"w": zero}] * 2)[0, 1]))
    assert (found[0], found[-1]) == (0, 10_000)
    assert max(abs(second - first) for first, second in pairwise(found)) < 150


@pytest.mark.parametrize("seed", range(4))
def test_no_amount_fee_or_nonce_makes_or_loses_a_token_in_several_tasks_at_once(seed: int) -> None:
    """Extreme rewards and exponents, amounts up to the largest integer, stale and early nonces, repeats, absences."""
    random = Random(seed)
    harness = Harness(setup_of(random))
    used: set[bytes] = set()
    past: list[Transaction] = []
    for _ in range(60):
        transactions = [*honest(random, harness), *hostile(random, harness), *random.sample(past, min(3, len(past)))]
        random.shuffle(transactions)
        past += transactions
        nonces = {key: account.nonce for key, account in ACCOUNTS.scan(harness.tree)}
        included = harness.offer(*transactions, after_ms=random.choice((1, 100, 100, 5_000)))
        spent = [transaction for transaction in included if transaction.has_nonce]
        assert used.isdisjoint(transaction.id for transaction in spent)
        used |= {transaction.id for transaction in spent}
        for transaction in spent:
            nonces[transaction.sender] += 1
        assert {key: account.nonce for key, account in ACCOUNTS.scan(harness.tree)} == nonces
        assert_supply(harness.genesis, harness.tree)
    assert harness.replayed().root == harness.tree.root


def setup_of(random: Random) -> Setup:
    """Three tasks with rewards and exponents at their limits, in a network that jails and frees quickly."""
    specifications = tuple(
        replace(
            SPECIFICATION,
            name=f"task {number}",
            rounds=random.choice((1, 2)),
            reward=random.choice((0, 1, 7, 20 * TOKEN, 2**45)),
            clients_min=random.randint(1, 3),
            clients_start=3,
            clusters=random.choice((1, 2, 32)),
            rho=random.choice((1, 8)),
            probe_mode=random.choice(tuple(ProbeMode)),
        )
        for number in range(3)
    )
    quick = replace(PARAMETERS, unbonding_ms=1, jail_ms=1, attendance_window=3, missed_to_jail=1, max_step_ms=5_000)
    stakes = tuple(random.randint(1, 20) for _ in range(random.randint(1, ACTORS)))
    return Setup(actors=ACTORS, stakes=stakes, specifications=specifications, parameters=quick, balance=30)


def honest(random: Random, harness: Harness) -> list[Transaction]:
    return [
        harness.answer(actor, duty)
        for actor in range(ACTORS)
        if random.random() < 0.8
        for duty in harness.duties(actor)
    ]


def hostile(random: Random, harness: Harness) -> list[Transaction]:
    """Some transactions with amounts, fees and nonces that don't go, looked at as a mempool does."""
    made = []
    for _ in range(5):
        actor = random.randrange(ACTORS)
        account = ACCOUNTS.get(harness.tree, harness.account(actor))
        assert account is not None
        amount = random.choice((1, MAX_INTEGER, account.balance, stake_of(harness.tree, harness.account(actor)).bonded))
        body = random.choice(
            (
                Transfer(harness.account(random.randrange(ACTORS)), amount),
                Bond(max(1, amount)),
                Unbond(max(1, amount)),
                Unjail(),
            )
        )
        fee = random.choice((0, 0, 1, account.balance, MAX_INTEGER))
        nonce = max(0, account.nonce + random.choice((0, 0, 0, 1, -1)))
        made.append(harness.sign(actor, body, fee=fee, nonce=nonce))
    if random.random() < 0.1:
        made.append(harness.evidence(random.randrange(ACTORS), random.randrange(ACTORS), random.randint(1, 3)))
    for transaction in made:
        with suppress(Rejection):
            check(harness.genesis, harness.tree, transaction, harness.now_ms)
    assert current_round(harness.tree) is None or harness.round.clock_ms < harness.round.deadline_ms
    return made
