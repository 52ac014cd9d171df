"""Attacks that make others work for nothing, or take from them what they work with: each test is one that fails."""

from contextlib import suppress

from bflnode.consensus.hashing import tagged_hash
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.rejection import Premature, Reason, Rejection
from bflnode.consensus.transaction import Aggregate, Slot, Transaction, sign_transaction
from bflnode.consensus.types import BlobId, ChainId
from bflnode.node.mempool import Mempool

CHAIN = ChainId(bytes(32))
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
