"""The mempool on a state of its own: what is ready, what is early, what must go, and who may take how much room."""

from collections.abc import Iterable

import pytest

from bflnode.consensus.block import VoteKind, sign_vote
from bflnode.consensus.evidence import make_evidence
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.rejection import Premature, Reason, Rejection
from bflnode.consensus.transaction import Aggregate, Slot, Transaction, Transfer, sign_transaction
from bflnode.consensus.types import BlobId, BlockId, ChainId, Hash
from bflnode.node import mempool as limits
from bflnode.node.mempool import Mempool

CHAIN = ChainId(bytes(32))
KEY = SecretKey.from_seed(bytes([1]) * 32)


class World:
    """What the pool asks: the next valid nonce is the state, and a clock."""

    def __init__(self) -> None:
        self.nonce = 0
        self.now_s = 0.0
        self.checks = 0
        self.pool = Mempool(self.check, lambda rejection: isinstance(rejection, Premature), lambda: self.now_s)

    def check(self, transaction: Transaction) -> None:
        self.checks += 1
        if transaction.nonce > self.nonce:
            raise Premature(Reason.WRONG_NONCE, nonce=transaction.nonce)
        if transaction.nonce < self.nonce:
            raise Rejection(Reason.WRONG_NONCE, nonce=transaction.nonce)

    def settle(self, included: Iterable[Transaction]) -> None:
        included = tuple(included)
        self.nonce += len(included)
        self.pool.settle(included)


def transfer(nonce: int, key: SecretKey = KEY) -> Transaction:
    return sign_transaction(key, CHAIN, Transfer(KEY.account, 1), nonce=nonce)


def aggregate(size_bytes: int, number: int) -> Transaction:
    slot = Slot(Hash(bytes(32)), number, 0)
    return sign_transaction(KEY, CHAIN, Aggregate(slot, bytes(size_bytes), (BlobId(bytes(32)),), None))


def test_what_the_last_blocks_had_is_known_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_INCLUDED_KNOWN", 2)
    world = World()
    transactions = [transfer(nonce) for nonce in range(3)]
    world.settle(transactions[:1])
    world.settle(transactions[1:])
    assert [world.pool.was_included(transaction.id) for transaction in transactions] == [False, True, True]


def test_what_is_only_early_waits_and_is_no_work_until_its_turn_comes() -> None:
    world = World()
    first, second = transfer(0), transfer(1)
    assert world.pool.add(second)
    assert not world.pool.has_work()
    assert world.pool.add(first)
    assert world.pool.has_work()
    assert world.pool.candidates() == (second, first)
    world.settle([first])
    assert world.pool.candidates() == (second,)
    assert world.pool.has_work()
    world.settle([second])
    assert not world.pool.has_work()
    assert len(world.pool) == 0


def test_what_can_never_be_valid_is_refused_with_its_reason() -> None:
    world = World()
    world.nonce = 5
    with pytest.raises(Rejection) as caught:
        world.pool.add(transfer(4))
    assert caught.value.reason is Reason.WRONG_NONCE
    assert len(world.pool) == 0
    assert world.pool.add(transfer(5)), "a refused one took no room of its sender's"


def test_the_same_transaction_is_taken_once() -> None:
    world = World()
    assert world.pool.add(transfer(0))
    assert not world.pool.add(transfer(0))
    assert transfer(0).id in world.pool


def test_a_block_drops_what_it_made_invalid() -> None:
    world = World()
    mine, rival = transfer(0), sign_transaction(KEY, CHAIN, Transfer(KEY.account, 2))
    world.pool.add(mine)
    world.pool.add(rival)
    world.settle([mine])
    assert world.pool.candidates() == ()
    assert not world.pool.has_work()


def test_what_no_block_takes_is_forgotten_and_its_room_is_free_again() -> None:
    world = World()
    world.pool.add(transfer(1))
    world.now_s = limits.MAX_WAIT_S
    world.pool.settle(())
    assert len(world.pool) == 1
    world.now_s += 0.1
    world.pool.settle(())
    assert len(world.pool) == 0
    assert world.pool._shares == {}


def test_asking_for_work_executes_nothing() -> None:
    world = World()
    for nonce in range(10):
        world.pool.add(transfer(nonce))
    before = world.checks
    for _ in range(100):
        assert world.pool.has_work()
    assert world.checks == before


def test_one_sender_may_not_fill_the_pool_by_count() -> None:
    world = World()
    for nonce in range(limits.MAX_PER_SENDER):
        world.pool.add(transfer(nonce))
    with pytest.raises(Rejection, match="limit: sender="):
        world.pool.add(transfer(limits.MAX_PER_SENDER))
    other = SecretKey.from_seed(bytes([2]) * 32)
    assert world.pool.add(transfer(0, other))


def test_one_sender_may_not_fill_the_pool_by_size() -> None:
    world = World()
    for number in range(1, 5):
        world.pool.add(aggregate(130_000, number))
    with pytest.raises(Rejection, match="waiting_bytes="):
        world.pool.add(aggregate(130_000, 5))


def test_a_full_pool_takes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_WAITING", 2)
    world = World()
    world.pool.add(transfer(0))
    world.pool.add(transfer(1))
    with pytest.raises(Rejection, match="limit: waiting=2"):
        world.pool.add(transfer(2))


def test_what_waits_too_long_is_gossiped_once_and_not_before_it_is_valid() -> None:
    world = World()
    first, second = transfer(0), transfer(1)
    world.pool.add(first)
    world.pool.add(second)
    world.now_s = 0.9
    assert world.pool.stale(1.0) == ()
    world.now_s = 1.0
    assert world.pool.stale(1.0) == (first,)
    assert world.pool.stale(1.0) == (first,), "it counts as gossiped only once it was"
    world.pool.note_gossiped([first])
    assert world.pool.stale(1.0) == ()
    world.settle([first])
    assert world.pool.stale(1.0) == (second,)


def test_one_evidence_against_an_account_is_enough() -> None:
    """Anybody could sign the same evidence with many keys."""
    world = World()
    votes = (sign_vote(KEY, CHAIN, VoteKind.PREVOTE, 1, 0, BlockId(bytes([number]) * 32)) for number in (1, 2))
    evidence = make_evidence(*votes)
    first, second = (sign_transaction(SecretKey.from_seed(bytes([seed]) * 32), CHAIN, evidence) for seed in (5, 6))
    assert world.pool.add(first)
    with pytest.raises(Rejection) as caught:
        world.pool.add(second)
    assert caught.value.reason is Reason.DUPLICATE
    world.settle([first])
    world.nonce = 0
    assert world.pool.add(second), "its place is free again"


def test_one_aggregate_of_an_attempt_is_judged_right_or_wrong() -> None:
    """Judging one takes a second: who may aggregate could stop a node with many."""
    world = World()
    assert world.pool.add(aggregate(10, number=1))
    for size_bytes in (11, 12):
        with pytest.raises(Rejection) as caught:
            world.pool.add(aggregate(size_bytes, number=1))
        assert caught.value.reason is Reason.DUPLICATE
    assert world.checks == 1
    assert world.pool.add(aggregate(10, number=2)), "another attempt is another matter"

    def check(transaction: Transaction) -> None:
        world.checks += 1
        raise Rejection(Reason.WRONG_OUTPUTS, outputs=1, clusters=2)

    pool = Mempool(check, lambda rejection: False, lambda: 0.0)
    for reason in (Reason.WRONG_OUTPUTS, Reason.DUPLICATE, Reason.DUPLICATE):
        with pytest.raises(Rejection) as caught:
            pool.add(aggregate(10, number=1))
        assert caught.value.reason is reason
    assert world.checks == 3
