"""The ledger's rules about accounts, money and blocks, each on a real chain."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bflnode.consensus.block import (
    MAX_BLOCK_TRANSACTIONS,
    Block,
    Commit,
    CommitSignature,
    commit_hash,
    genesis_commit,
    transactions_root,
)
from bflnode.consensus.genesis import GenesisError
from bflnode.consensus.ledger import (
    assert_supply,
    check,
    execute,
    genesis_state,
    next_deadline_ms,
    validate_block,
    verify_commit,
)
from bflnode.consensus.rejection import Premature, Reason, Rejection
from bflnode.consensus.state import StateTree
from bflnode.consensus.tables import ACCOUNTS, Account, current_queue, current_validators, previous_validators
from bflnode.consensus.task import Phase, TaskStatus
from bflnode.consensus.transaction import Probe, TaskRegister
from bflnode.consensus.types import TOKEN, AccountId, BlockId, ChainId, Hash, Signature
from tests.consensus.harness import Harness
from tests.consensus.setups import DEADLINES, OUTSIDER, START_MS, make_keys, make_setup

ZERO = Hash(bytes(32))


# Genesis


def test_genesis_state_holds_accounts_validators_queue_pool_and_tasks() -> None:
    harness = Harness(queue=(2,), stakes=(10, 20, 30, 40))
    assert [harness.balance(actor) for actor in range(4)] == [1_000] * 4
    assert [entry.stake for entry in current_validators(harness.tree).validators] == [10, 20, 30, 40]
    assert current_queue(harness.tree) == (harness.account(2),)
    assert (harness.task.status, harness.task.escrow, harness.task.round) == (TaskStatus.REGISTRATION, 60 * TOKEN, 1)
    assert_supply(harness.genesis, harness.tree)


def test_validator_without_account_gets_an_empty_one() -> None:
    keys = make_keys(4)
    genesis = make_setup().genesis(keys)
    genesis = replace(genesis, accounts=genesis.accounts[:1])
    tree = genesis_state(genesis)
    assert ACCOUNTS.get(tree, keys[3].account) == Account(0, 0)


def test_contradicting_genesis_is_refused() -> None:
    genesis = make_setup().genesis(make_keys(4))
    with pytest.raises(GenesisError):
        genesis_state(replace(genesis, queue=(OUTSIDER.account,)))


# TRANSFER


def test_transfer_moves_tokens_and_pays_the_fee_to_the_proposer() -> None:
    harness = Harness(actors=5)
    proposer = harness.actor(harness.context().proposer)
    sender = (proposer + 1) % 4
    harness.block(harness.transfer(sender, harness.account(4), 100, fee=7))
    assert (harness.balance(sender), harness.balance(4), harness.balance(proposer)) == (893, 1_100, 1_007)


def test_transfer_to_oneself_changes_nothing_but_the_nonce() -> None:
    harness = Harness()
    harness.block(harness.transfer(0, harness.account(0), 1_000))
    assert (harness.balance(0), harness.nonce(0)) == (1_000, 1)


def test_proposer_may_pay_its_fee_to_itself() -> None:
    harness = Harness()
    proposer = harness.actor(harness.context().proposer)
    harness.block(harness.transfer(proposer, harness.account(proposer), 0, fee=1_000))
    assert harness.balance(proposer) == 1_000


def test_transfer_beyond_the_balance_is_refused() -> None:
    harness = Harness()
    fitting = harness.transfer(0, harness.account(1), 990, fee=10)
    assert harness.refusal(harness.transfer(0, harness.account(1), 991, fee=10)) == (
        Rejection,
        Reason.INSUFFICIENT_FUNDS,
    )
    harness.block(fitting)


def test_transfer_to_an_account_that_does_not_exist_is_refused() -> None:
    """Opening an account is ADMIT's job alone, and can't be spoiled by a gift."""
    harness = Harness()
    assert harness.refusal(harness.transfer(0, OUTSIDER.account, 1)) == (Rejection, Reason.UNKNOWN_ACCOUNT)


def test_transaction_of_an_unknown_account_is_refused() -> None:
    harness = Harness()
    body = harness.transfer(0, harness.account(1), 1).body
    assert harness.refusal(harness.sign(OUTSIDER, body)) == (Rejection, Reason.UNKNOWN_ACCOUNT)


def test_nonces_are_strictly_sequential() -> None:
    """Strictly sequential nonce per sender; a later one may become valid."""
    harness = Harness()
    first, second, third = (harness.transfer(0, harness.account(1), 1, nonce=nonce) for nonce in range(3))
    assert harness.refusal(second) == (Premature, Reason.WRONG_NONCE)
    harness.block(first, second)
    assert harness.refusal(first) == (Rejection, Reason.WRONG_NONCE)
    harness.block(third)


def test_transaction_expires_by_header_time() -> None:
    harness = Harness()
    transaction = harness.transfer(0, harness.account(1), 1, valid_until_ms=START_MS + 100)
    assert harness.offer(transaction, after_ms=101) == ()
    assert harness.refusal(transaction) == (Rejection, Reason.EXPIRED)
    other = Harness()
    assert other.offer(transaction, after_ms=100) == (transaction,)


def test_bad_signature_is_refused() -> None:
    harness = Harness()
    transaction = replace(harness.transfer(0, harness.account(1), 1), signature=Signature(bytes(64)))
    assert harness.refusal(transaction) == (Rejection, Reason.BAD_SIGNATURE)


def test_transaction_signed_for_another_chain_is_refused() -> None:
    """chain id in the signed bytes."""
    harness, other = Harness(), Harness(name="other")
    assert harness.genesis.chain_id != other.genesis.chain_id
    assert harness.refusal(other.transfer(0, harness.account(1), 1)) == (Rejection, Reason.BAD_SIGNATURE)


def test_transaction_beyond_the_size_limit_is_refused() -> None:
    """transaction 64 KiB."""
    harness = Harness()
    body = TaskRegister(harness.task_id, 1, (2**62,) * 8000, ZERO)
    assert harness.refusal(harness.sign(0, body)) == (Rejection, Reason.TOO_LARGE)


# ADMIT


def test_admit_opens_an_account_with_tokens_from_the_pool() -> None:
    """ADMIT gives the initial stake (5 tokens) out of a finite pool."""
    harness = Harness(admission_pool=7 * TOKEN)
    harness.block(harness.admit(OUTSIDER))
    assert ACCOUNTS.get(harness.tree, OUTSIDER.account) == Account(5 * TOKEN, 0)
    other = make_keys(1, "other")[0]
    assert harness.refusal(harness.admit(other)) == (Rejection, Reason.POOL_EMPTY)


def test_account_is_admitted_once() -> None:
    harness = Harness()
    harness.block(harness.admit(OUTSIDER))
    assert harness.refusal(harness.admit(OUTSIDER)) == (Rejection, Reason.ACCOUNT_EXISTS)
    assert harness.refusal(harness.admit(harness.keys[0])) == (Rejection, Reason.ACCOUNT_EXISTS)


def test_admission_needs_the_signature_of_the_admission_key_for_this_account() -> None:
    harness = Harness()
    forged = harness.admit(OUTSIDER, admission=OUTSIDER)
    assert harness.refusal(forged) == (Rejection, Reason.BAD_SIGNATURE)
    stolen = harness.sign(make_keys(1, "thief")[0], harness.admit(OUTSIDER).body)
    assert harness.refusal(stolen) == (Rejection, Reason.BAD_SIGNATURE)


# TASK_REGISTER and TASK_LEAVE


def test_register_and_leave_use_nonces_and_pay_fees() -> None:
    harness = Harness()
    proposer = harness.actor(harness.context().proposer)
    client = (proposer + 1) % 4
    harness.block(
        harness.register(client, fee=3), harness.leave(client, nonce=1, fee=4), harness.register(client, nonce=2)
    )
    assert (harness.balance(client), harness.nonce(client), harness.balance(proposer)) == (993, 3, 1_007)
    assert harness.task.clients == 1


def test_leaving_a_task_one_is_not_in_is_refused() -> None:
    harness = Harness()
    assert harness.refusal(harness.leave(0)) == (Rejection, Reason.NOT_PARTICIPANT)


def test_registration_for_an_unknown_task_is_refused() -> None:
    harness = Harness()
    assert harness.refusal(harness.register(0, task=ZERO)) == (Rejection, Reason.UNKNOWN_TASK)


# Order inside a block


def test_due_transitions_come_before_the_transactions_of_a_block() -> None:
    """Order inside a block: 1. transitions that its header time makes due, 2. its transactions."""
    harness = Harness()
    harness.register_all()
    harness.block(*(harness.commit(actor) for actor in range(2)))
    late = harness.commit(2)
    assert harness.offer(late, after_ms=DEADLINES.commit_ms) == ()
    assert harness.phase is Phase.REVEAL


def test_early_closings_come_after_all_transactions_of_a_block() -> None:
    """3. early closings: what they open can't be used in the same block."""
    harness = Harness()
    harness.register_all()
    commits = [harness.commit(actor) for actor in range(4)]
    reveal = harness.reveal(0)
    assert harness.offer(*commits, reveal) == tuple(commits)


def test_invalid_transaction_makes_the_block_invalid() -> None:
    """An invalid transaction makes the block invalid: the proposer runs the same code."""
    harness = Harness()
    good, bad = harness.transfer(0, harness.account(1), 1), harness.transfer(1, harness.account(0), 5_000)
    block, _ = harness.build(harness.context(), [good])
    forged = replace(block, transactions=(good, bad))
    header = replace(block.header, transactions_root=transactions_root(forged.transactions))
    assert invalid(harness, replace(forged, header=header)) is Reason.INSUFFICIENT_FUNDS


def test_rejected_transaction_changes_nothing() -> None:
    harness = Harness()
    harness.register_all()
    empty = execute(harness.genesis, harness.tree, harness.context(), (), harness.last_commit).changes
    bad = [
        harness.transfer(0, harness.account(1), 5_000),
        harness.transfer(0, OUTSIDER.account, 1),
        harness.register(0),
        harness.reveal(0),
        harness.sign(0, Probe(harness.slot, ZERO)),
        harness.admit(OUTSIDER, admission=OUTSIDER),
    ]
    _, execution = harness.build(harness.context(), bad)
    assert execution.changes == empty


def test_select_keeps_what_is_valid_in_order() -> None:
    harness = Harness()
    first, second = (harness.transfer(0, harness.account(1), 1, nonce=nonce) for nonce in range(2))
    other = harness.transfer(2, harness.account(1), 1)
    chosen = harness.build(harness.context(), [second, other, first, first, second])[0].transactions
    assert chosen == (other, first, second)


def test_select_stops_at_the_limits_of_a_block() -> None:
    """Limits: block 1 MiB, 2,000 transactions."""
    harness = Harness(balance=10_000)
    many = [harness.transfer(0, harness.account(1), 1, nonce=nonce) for nonce in range(MAX_BLOCK_TRANSACTIONS + 1)]
    assert len(harness.offer(*many)) == MAX_BLOCK_TRANSACTIONS
    large = Harness(classes=1000)
    large_ones = []
    for actor in range(4):
        for nonce in range(128):
            histogram = (2**30,) * 1000
            body = TaskRegister(large.task_id, sum(histogram), histogram, ZERO)
            kind = body if nonce % 2 == 0 else large.leave(actor).body
            large_ones.append(large.sign(actor, kind, nonce=nonce))
    kept = large.offer(*large_ones)
    assert len(large.blocks[-1].encoded) <= 2**20
    assert 100 < len(kept) < len(large_ones)


# Blocks


def invalid(harness: Harness, block: Block, tree: StateTree | None = None) -> Reason:
    """Why a block is refused on top of a harness's chain."""
    with pytest.raises(Rejection) as caught:
        validate_block(harness.genesis, tree or harness.tree, harness.header, block)
    return caught.value.reason


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("version", 2, Reason.UNSUPPORTED),
        ("chain_id", ChainId(bytes(32)), Reason.WRONG_CHAIN),
        ("height", 1, Reason.WRONG_HEIGHT),
        ("height", 3, Reason.WRONG_HEIGHT),
        ("round", 1, Reason.WRONG_PROPOSER),
        ("time_ms", START_MS + 100, Reason.WRONG_TIME),
        ("parent", BlockId(bytes(32)), Reason.WRONG_PARENT),
        ("proposer", AccountId(bytes(32)), Reason.WRONG_PROPOSER),
        ("transactions_root", ZERO, Reason.WRONG_ROOT),
        ("last_commit_hash", ZERO, Reason.WRONG_ROOT),
        ("validators_hash", ZERO, Reason.WRONG_ROOT),
        ("next_validators_hash", ZERO, Reason.WRONG_ROOT),
        ("state_root", ZERO, Reason.WRONG_ROOT),
        ("beacon", ZERO, Reason.WRONG_ROOT),
    ],
)
def test_block_with_one_wrong_field_in_its_header_is_refused(field: str, value: Any, reason: Reason) -> None:
    harness = Harness()
    harness.wait(100)
    block, _ = harness.build(harness.context(), [harness.transfer(0, harness.account(1), 1)])
    validate_block(harness.genesis, harness.tree, harness.header, block)
    changed: dict[str, Any] = {field: value}
    wrong = replace(block, header=replace(block.header, **changed))
    assert invalid(harness, wrong) is reason


def test_header_of_another_block_does_not_fit_its_transactions() -> None:
    harness = Harness()
    block, _ = harness.build(harness.context(), [harness.transfer(0, harness.account(1), 1)])
    assert invalid(harness, replace(block, transactions=())) is Reason.WRONG_ROOT


def test_block_time_must_exceed_the_genesis_time_too() -> None:
    harness = Harness()
    block, _ = harness.build(harness.context(after_ms=0), [])
    assert invalid(harness, block) is Reason.WRONG_TIME


def test_block_beyond_the_size_limit_is_refused() -> None:
    harness = Harness(classes=1000)
    histogram = (2**40,) * 1000
    body = TaskRegister(harness.task_id, sum(histogram), histogram, ZERO)
    huge = tuple(harness.sign(0, body, nonce=nonce) for nonce in range(120))
    block, _ = harness.build(harness.context(), [])
    assert invalid(harness, replace(block, transactions=huge)) is Reason.TOO_LARGE


def test_block_of_a_later_round_is_valid_with_that_rounds_leader() -> None:
    """The proposer is the leader of its own (height, round)."""
    harness = Harness()
    first, second = harness.context(round_=0), harness.context(round_=1)
    assert first.proposer != second.proposer
    harness.block(round_=1)
    assert harness.blocks[0].header.proposer == second.proposer


def with_commit(block: Block, commit: Commit) -> Block:
    return replace(block, last_commit=commit, header=replace(block.header, last_commit_hash=commit_hash(commit)))


def test_first_block_must_carry_the_genesis_commit() -> None:
    harness = Harness()
    block, _ = harness.build(harness.context(), [])
    genesis = genesis_commit(harness.genesis.chain_id)
    assert invalid(harness, with_commit(block, replace(genesis, round=1))) is Reason.WRONG_COMMIT


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda commit: replace(commit, height=2), Reason.WRONG_COMMIT),
        (lambda commit: replace(commit, block_id=BlockId(bytes(32))), Reason.WRONG_COMMIT),
        (lambda commit: replace(commit, round=1), Reason.BAD_SIGNATURE),
        (lambda commit: replace(commit, signatures=commit.signatures[:2]), Reason.NO_QUORUM),
        (lambda commit: replace(commit, signatures=commit.signatures[::-1]), Reason.WRONG_COMMIT),
        (lambda commit: replace(commit, signatures=(commit.signatures[0],) * 4), Reason.WRONG_COMMIT),
    ],
)
def test_block_with_a_bad_commit_of_its_parent_is_refused(change: Callable[[Commit], Commit], reason: Reason) -> None:
    """last_commit verifies with > 2/3 of the stake of the validators of the previous height."""
    harness = Harness()
    harness.wait(100)
    block, _ = harness.build(harness.context(), [])
    assert invalid(harness, with_commit(block, change(harness.last_commit))) is reason


def test_block_may_carry_another_quorums_commit() -> None:
    harness = Harness()
    harness.wait(100)
    harness.last_commit = harness.sign_commit(harness.blocks[-1], voters=(1, 2, 3))
    harness.wait(100)
    assert len(harness.blocks[-1].last_commit.signatures) == 3


def test_commit_with_a_validator_that_is_none_is_refused() -> None:
    harness = Harness()
    harness.wait(100)
    commit = harness.last_commit
    stranger = CommitSignature(4, commit.signatures[0].signature)
    validators = previous_validators(harness.tree)
    verify_commit(harness.genesis.chain_id, validators, commit)
    with pytest.raises(Rejection) as caught:
        verify_commit(harness.genesis.chain_id, validators, replace(commit, signatures=(*commit.signatures, stranger)))
    assert caught.value.reason is Reason.UNKNOWN_VALIDATOR


def test_commit_with_a_single_bad_signature_is_refused_whatever_the_rest_weighs() -> None:
    harness = Harness()
    harness.wait(100)
    commit = harness.last_commit
    bad = (*commit.signatures[:3], replace(commit.signatures[3], signature=Signature(bytes(64))))
    with pytest.raises(Rejection) as caught:
        verify_commit(harness.genesis.chain_id, previous_validators(harness.tree), replace(commit, signatures=bad))
    assert caught.value.reason is Reason.BAD_SIGNATURE


# Deadlines


def test_next_deadline_is_that_of_registration_then_that_of_the_phase() -> None:
    harness = Harness()
    assert next_deadline_ms(harness.genesis, harness.tree) == START_MS + DEADLINES.registration_ms
    harness.register_all()
    assert next_deadline_ms(harness.genesis, harness.tree) == harness.now_ms + DEADLINES.commit_ms


def test_empty_block_at_the_next_deadline_makes_the_transition() -> None:
    harness = Harness()
    harness.register_all()
    harness.block(harness.commit(0), harness.commit(1), harness.commit(2))
    due_ms = next_deadline_ms(harness.genesis, harness.tree)
    assert due_ms is not None
    harness.wait(due_ms - harness.now_ms - 1)
    assert harness.phase is Phase.COMMIT
    harness.wait(1)
    assert harness.phase is Phase.REVEAL


def test_deadline_beyond_max_step_asks_for_a_block_in_between() -> None:
    harness = Harness(parameters={"max_step_ms": 1_000})
    harness.register_all()
    for _ in range(DEADLINES.commit_ms // 1_000):
        assert harness.phase is Phase.COMMIT
        due_ms = next_deadline_ms(harness.genesis, harness.tree)
        assert due_ms == harness.now_ms + 1_000
        harness.wait(due_ms - harness.now_ms)
    assert harness.slot.attempt == 1


def test_nothing_is_due_when_all_tasks_have_ended() -> None:
    """an idle network costs nothing."""
    harness = Harness(rounds=1)
    harness.register_all()
    harness.play_round()
    assert next_deadline_ms(harness.genesis, harness.tree) is None


# Money and mempool


def test_broken_supply_is_noticed() -> None:
    harness = Harness()
    key = ACCOUNTS.prefix + harness.account(0)
    harness.tree.apply({key: Account(1_001, 0).to_bytes()})
    with pytest.raises(AssertionError):
        assert_supply(harness.genesis, harness.tree)


def test_check_changes_nothing() -> None:
    harness = Harness()
    before = harness.tree.root
    check(harness.genesis, harness.tree, harness.transfer(0, harness.account(1), 1), harness.now_ms)
    assert harness.tree.root == before
