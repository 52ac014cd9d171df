"""Attacks that make others work for nothing, or take from them what they work with: each test is one that fails."""

import tracemalloc
from contextlib import suppress
from math import isfinite

import numpy as np
import pytest

from bflnode.consensus.hashing import tagged_hash
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.rejection import Premature, Reason, Rejection
from bflnode.consensus.snapshot import PIECE_BYTES, SNAPSHOT_VERSION, Snapshot, verify_file, write_entries
from bflnode.consensus.transaction import Aggregate, Slot, Transaction, Transfer, sign_transaction
from bflnode.consensus.types import AccountId, BlobId, ChainId, Signature
from bflnode.fl.architectures import architecture
from bflnode.fl.datasets import load_digits
from bflnode.fl.robust import RULES, RobustRule
from bflnode.fl.rules import PRIOR_ROWS, Contribution, Rule, outputs
from bflnode.fl.samples import Shard
from bflnode.fl.training import TrainingConfig, train
from bflnode.fl.weights import parse, serialize
from bflnode.node import mempool as limits
from bflnode.node.mempool import Mempool
from tests.consensus.harness import Harness

CHAIN = ChainId(bytes(32))
NOBODY = AccountId(bytes([255]) * 32)
DIGITS = architecture("mlp/1x8x8/10")
AGGREGATOR = SecretKey.from_seed(bytes([1]) * 32)


class ClusteringPool:
    """A pool at an acting aggregator's turn in one slot: judging its AGGREGATE there takes a second, wrong or right."""

    def __init__(self) -> None:
        self.seconds = 0
        self.turn = False
        self.pool = Mempool(self.check, lambda rejection: isinstance(rejection, Premature), lambda: 0.0)

    def check(self, transaction: Transaction) -> None:
        assert isinstance(transaction.body, Aggregate)
        if transaction.body.slot.attempt or not self.turn:
            raise Premature(Reason.WRONG_PHASE)
        self.seconds += 1
        raise Rejection(Reason.WRONG_OUTPUTS)

    def send(self, attempt: int, number: int) -> None:
        slot = Slot(tagged_hash("task", b""), 1, attempt)
        body = Aggregate(slot, b"", (BlobId(tagged_hash("output", bytes([number]))),), None)
        with suppress(Rejection):
            self.pool.add(sign_transaction(AGGREGATOR, CHAIN, body))


def test_aggregates_of_a_later_attempt_between_do_not_have_more_of_this_one_judged() -> None:
    """What was remembered of an aggregator was its last slot: an early one of the next made room for another."""
    world = ClusteringPool()
    world.turn = True
    for number in range(40):
        world.send(attempt=0, number=number)
        world.send(attempt=1, number=number)
    assert world.seconds == 1


def test_early_aggregates_of_one_attempt_do_not_pile_up_for_its_turn() -> None:
    world = ClusteringPool()
    for number in range(40):
        world.send(attempt=0, number=number)
        world.send(attempt=1, number=number)
    world.turn = True
    world.pool.settle(())
    for number in range(40, 60):
        world.send(attempt=0, number=number)
    assert world.seconds == 1


@pytest.mark.parametrize("combination", RULES)
@pytest.mark.parametrize("claims", [9, 10], ids=["a row of its own", "all rows"])
def test_one_client_that_sends_the_largest_numbers_does_not_keep_the_others_from_training(
    combination: str, claims: int
) -> None:
    """Nobody could train from what came of it, not even with a median: all COMMITs failed, and the task ended."""
    honest = digits_of_all_classes_but_one()
    base = DIGITS.initial_weights(0)
    received = parse(base, DIGITS.table)
    hostile = {name: np.full_like(tensor, np.finfo(np.float32).max) for name, tensor in received.items()}
    contributions = [
        *(Contribution(sent=received, received=received, holds=[True] * 9 + [False]) for _ in range(4)),
        Contribution(sent=hostile, received=received, holds=[claims == 10] * 9 + [True]),
    ]
    rule = Rule(name=PRIOR_ROWS, combination=RobustRule(name=combination), server_step=1.25)
    output = serialize(dict(outputs(rule, contributions, (0,) * 5))[0])
    trained = train(DIGITS, output, honest, TrainingConfig(epochs=1), has_prior=True)
    assert all(map(isfinite, trained.losses))


def digits_of_all_classes_but_one() -> Shard:
    """Some digits of a client that knows nothing of nines."""
    digits = load_digits()
    known = np.flatnonzero(digits.train.labels != 9)[:100]
    return Shard(digits.train.take(known), digits.test)


def test_accounts_that_fill_the_pool_with_what_is_never_due_keep_nobody_out() -> None:
    """Eighty accounts with gaps in their nonces took all places of all nodes, and no COMMIT found one."""

    checks = 0

    def check(transaction: Transaction) -> None:
        nonlocal checks
        checks += 1
        if transaction.nonce:
            raise Premature(Reason.WRONG_NONCE)

    pool = Mempool(check, lambda rejection: isinstance(rejection, Premature), lambda: 0.0)
    for number in range(limits.MAX_WAITING // limits.MAX_PER_SENDER + 2):
        account = AccountId(number.to_bytes(32, "big"))
        for nonce in range(1, limits.MAX_PER_SENDER + 1):
            with suppress(Rejection):
                pool.add(Transaction(account, nonce, 0, 0, Transfer(account, 1), Signature(bytes(64))))
    assert pool.add(sign_transaction(AGGREGATOR, CHAIN, Transfer(AGGREGATOR.account, 1)))
    assert len(pool) == limits.MAX_EARLY + 1
    checks = 0
    for nonce in range(1, 4 * limits.MAX_PER_SENDER):
        with suppress(Rejection):
            pool.add(Transaction(NOBODY, nonce, 0, 0, Transfer(NOBODY, 1), Signature(bytes(64))))
    assert checks == limits.MAX_PER_SENDER, "what is turned away costs no more than what waits"


def test_a_state_that_would_not_fit_into_memory_is_refused_before_it_is_there() -> None:
    """In memory a state of tiny entries takes twenty times its file: a large one ended who joined, at each start."""
    harness = Harness()
    harness.block()
    assert harness.header is not None
    entries = 20_000
    snapshot = Snapshot(SNAPSHOT_VERSION, harness.header, harness.last_commit, entries, BlobId(bytes(32)))
    lie = write_entries((number.to_bytes(3, "big"), b"") for number in range(entries))
    tracemalloc.start()
    with pytest.raises(Rejection) as caught:
        verify_file(snapshot, lie)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.reason is Reason.WRONG_ROOT
    assert peak < 8 * PIECE_BYTES
