"""Stake, jail, slashing and the validator set, each rule on a real chain; quotes are from the protocol."""

from dataclasses import replace
from typing import Any

import pytest

from bflnode.consensus import staking
from bflnode.consensus.ledger import genesis_state, money, validate_block
from bflnode.consensus.rejection import Premature, Reason, Rejection
from bflnode.consensus.staking import Standing, standing
from bflnode.consensus.tables import (
    ADMISSION_POOL,
    MAX_UNBONDING,
    NEXT_RELEASE,
    OFFENCES,
    STAKES,
    OffenceKind,
    Stake,
    Unbonding,
    current_attendance,
    current_queue,
    current_validators,
    stake_of,
)
from bflnode.consensus.task import Phase, ProbeMode
from bflnode.consensus.transaction import Evidence, Fault
from bflnode.consensus.types import TOKEN
from bflnode.consensus.workspace import EventKind, Workspace
from tests.consensus.harness import Harness
from tests.consensus.setups import DEADLINES, OUTSIDER, PARAMETERS, make_keys, make_setup

UNBONDING_MS, JAIL_MS = PARAMETERS.unbonding_ms, PARAMETERS.jail_ms
POOL = 100 * TOKEN


def pool(harness: Harness) -> int:
    record = ADMISSION_POOL.get(harness.tree)
    assert record is not None
    return record.amount


def kinds(harness: Harness) -> list[EventKind]:
    return [event.kind for event in harness.events]


def chain(**changes: Any) -> Harness:
    """A network without a task."""
    return Harness(specifications=(), **changes)


# BOND


def test_bonded_tokens_leave_the_free_balance_and_vote_from_the_next_height_on() -> None:
    harness = chain(actors=5, stakes=(10, 10, 10, 10))
    assert standing(harness.tree, harness.account(4)) is Standing.NONE
    before = current_validators(harness.tree).hash
    harness.block(harness.bond(4, 30, fee=2))
    assert (harness.balance(4), harness.stake(4)) == (968, Stake(30, (), None, False))
    assert harness.header is not None
    assert harness.header.validators_hash == before
    assert harness.header.next_validators_hash == current_validators(harness.tree).hash != before
    assert current_validators(harness.tree).stake_of(harness.account(4)) == 30
    assert standing(harness.tree, harness.account(4)) is Standing.ACTIVE
    harness.wait(100)
    assert len(harness.last_commit.signatures) == 5


def test_bond_adds_to_a_stake() -> None:
    harness = chain()
    harness.block(harness.bond(0, 5), harness.bond(0, 7, nonce=1))
    assert harness.stake(0).bonded == 22
    assert current_validators(harness.tree).total == 52


def test_more_than_the_free_balance_cannot_be_bonded() -> None:
    harness = chain()
    assert harness.refusal(harness.bond(0, 1_001)) == (Rejection, Reason.INSUFFICIENT_FUNDS)
    assert harness.refusal(harness.bond(0, 1_000, fee=1)) == (Rejection, Reason.INSUFFICIENT_FUNDS)
    assert harness.refusal(harness.sign(OUTSIDER, harness.bond(0, 1).body)) == (Rejection, Reason.UNKNOWN_ACCOUNT)
    harness.block(harness.bond(0, 1_000))
    assert harness.balance(0) == 0


def test_stake_transactions_use_up_nonces_and_expire() -> None:
    harness = chain()
    assert harness.refusal(harness.bond(0, 1, nonce=1)) == (Premature, Reason.WRONG_NONCE)
    assert harness.refusal(harness.unbond(0, 1, valid_until_ms=1)) == (Rejection, Reason.EXPIRED)
    harness.block(harness.bond(0, 1), harness.unbond(0, 1, nonce=1))
    assert harness.nonce(0) == 2


def test_who_has_less_than_the_minimum_does_not_vote() -> None:
    harness = chain(actors=5, stakes=(10, 10, 10, 10), parameters={"minimum_stake": 10})
    harness.block(harness.bond(4, 9))
    assert standing(harness.tree, harness.account(4)) is Standing.WAITING
    assert harness.voting == (0, 1, 2, 3)
    harness.block(harness.bond(4, 1))
    assert harness.voting == (0, 1, 2, 3, 4)


def test_at_most_so_many_with_the_largest_stakes_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    """at most MAX_VALIDATORS, by stake then key."""
    monkeypatch.setattr(staking, "MAX_VALIDATORS", 3)
    harness = chain(actors=6, stakes=(10, 10, 10), queue=(1, 2))
    harness.block(harness.bond(4, 11), harness.bond(5, 10))
    assert harness.voting == (0, 1, 4), "of equal stakes the lower key"
    assert current_queue(harness.tree) == (harness.account(1),), "who is no validator any more leaves the queue"
    assert standing(harness.tree, harness.account(2)) is Standing.WAITING
    harness.block(harness.unbond(4, 11))
    assert harness.voting == (0, 1, 2), "the next one takes the place"


# UNBOND


def test_unbonded_tokens_are_free_after_the_unbonding_time() -> None:
    harness = chain()
    harness.block(harness.unbond(0, 4))
    release_ms = harness.now_ms + UNBONDING_MS
    assert harness.stake(0) == Stake(6, (Unbonding(4, release_ms),), None, False)
    assert (harness.balance(0), current_validators(harness.tree).total) == (1_000, 36)
    harness.wait(UNBONDING_MS - 1)
    assert harness.balance(0) == 1_000
    harness.wait(1)
    assert (harness.balance(0), harness.stake(0)) == (1_004, Stake(6, (), None, False))
    assert NEXT_RELEASE.get(harness.tree) is None


def test_several_amounts_are_freed_each_at_its_time() -> None:
    harness = chain()
    harness.block(harness.unbond(0, 1), harness.unbond(1, 2))
    harness.block(harness.unbond(0, 3), after_ms=1_000)
    harness.wait(UNBONDING_MS - 1_000)
    assert (harness.balance(0), harness.balance(1)) == (1_001, 1_002)
    assert [entry.amount for entry in harness.stake(0).unbonding] == [3]
    harness.wait(1_000)
    assert harness.balance(0) == 1_004


def test_unbonding_everything_leaves_the_set_and_in_the_end_no_record() -> None:
    harness = chain(queue=(2, 0))
    harness.block(harness.unbond(0, 10))
    assert harness.voting == (1, 2, 3)
    assert current_queue(harness.tree) == (harness.account(2),)
    assert standing(harness.tree, harness.account(0)) is Standing.WAITING
    harness.wait(UNBONDING_MS)
    assert (harness.balance(0), STAKES.get(harness.tree, harness.account(0))) == (1_010, None)


def test_more_than_the_stake_cannot_be_unbonded() -> None:
    harness = chain(actors=5, stakes=(10, 10, 10, 10))
    assert harness.refusal(harness.unbond(0, 11)) == (Rejection, Reason.INSUFFICIENT_STAKE)
    assert harness.refusal(harness.unbond(4, 1)) == (Rejection, Reason.INSUFFICIENT_STAKE)


def test_so_many_amounts_unbond_at_once() -> None:
    harness = chain(stakes=(100, 10, 10, 10))
    harness.block(*(harness.unbond(0, 1, nonce=nonce) for nonce in range(MAX_UNBONDING)))
    assert harness.refusal(harness.unbond(0, 1)) == (Rejection, Reason.LIMIT)
    harness.wait(UNBONDING_MS)
    harness.block(harness.unbond(0, 1))


def test_the_last_validator_stays() -> None:
    """A change that would leave no validators is refused."""
    harness = chain(stakes=(10, 10), parameters={"minimum_stake": 5})
    harness.block(harness.unbond(0, 6))
    assert harness.refusal(harness.unbond(1, 6)) == (Rejection, Reason.LAST_VALIDATOR)
    harness.block(harness.unbond(1, 5))
    assert harness.voting == (1,)
    both = chain(stakes=(10, 10))
    taken = both.offer(both.unbond(0, 10), both.unbond(1, 10))
    assert [transaction.sender for transaction in taken] == [both.account(0)], "in one block neither"


# EVIDENCE


def test_evidence_takes_half_of_everything_and_the_vote() -> None:
    """Slash half the bond, tombstone, drop from the queue."""
    harness = chain(stakes=(101, 10, 10, 10), queue=(0, 1))
    harness.block(harness.unbond(0, 31))
    harness.block(harness.evidence(2, 0))
    release_ms = harness.stake(0).unbonding[0].release_ms
    assert harness.stake(0) == Stake(35, (Unbonding(15, release_ms),), None, True)
    assert pool(harness) == POOL + 51
    assert harness.voting == (1, 2, 3)
    assert current_queue(harness.tree) == (harness.account(1),)
    assert standing(harness.tree, harness.account(0)) is Standing.TOMBSTONED
    [(key, offence)] = OFFENCES.scan(harness.tree)
    assert key == harness.account(0) + harness.height.to_bytes(8, "big") + bytes([OffenceKind.DOUBLE_SIGN])
    assert (offence.slashed, offence.time_ms) == (51, harness.now_ms)
    assert offence.transaction == harness.blocks[-1].transactions[0].id
    assert kinds(harness)[-2:] == [EventKind.SLASHED, EventKind.TOMBSTONED]


def test_one_account_is_punished_once_for_ever() -> None:
    harness = chain()
    first, second = harness.evidence(1, 0), harness.evidence(2, 0, height=9)
    assert harness.offer(first, second, first) == (first,)
    assert harness.refusal(second) == (Rejection, Reason.TOMBSTONED)
    assert harness.stake(0).bonded == 5


def test_anybody_may_send_evidence_and_nobody_gains() -> None:
    """anyone may send it (no nonce, no fee)."""
    harness = chain()
    harness.block(harness.evidence(OUTSIDER, 0))
    assert harness.stake(0).is_tombstoned
    assert money(harness.tree)["free"] == 4_000


def test_evidence_that_proves_nothing_is_refused() -> None:
    harness = Harness()
    evidence = harness.evidence(1, 0).body
    assert isinstance(evidence, Evidence)
    forged = replace(evidence, offender=harness.account(2))
    assert harness.refusal(harness.sign(1, forged)) == (Rejection, Reason.BAD_SIGNATURE)
    same = replace(evidence, second=evidence.first)
    assert harness.refusal(harness.sign(1, same)) == (Rejection, Reason.WRONG_EVIDENCE)


def test_a_tombstone_is_for_ever_and_what_is_left_can_be_taken_out() -> None:
    harness = chain()
    harness.block(harness.evidence(1, 0))
    assert harness.refusal(harness.bond(0, 1)) == (Rejection, Reason.TOMBSTONED)
    assert harness.refusal(harness.unjail(0)) == (Rejection, Reason.TOMBSTONED)
    harness.block(harness.unbond(0, 5))
    harness.wait(UNBONDING_MS)
    assert (harness.balance(0), harness.stake(0)) == (1_005, Stake(0, (), None, True))
    assert harness.refusal(harness.bond(0, 10)) == (Rejection, Reason.TOMBSTONED)


def test_old_evidence_counts_while_something_can_be_taken() -> None:
    in_time, too_late = chain(), chain()
    for harness in (in_time, too_late):
        harness.block(harness.unbond(0, 10))
    in_time.block(in_time.evidence(1, 0), after_ms=UNBONDING_MS - 1)
    assert in_time.stake(0).total == 5
    too_late.wait(UNBONDING_MS)
    assert too_late.refusal(too_late.evidence(1, 0)) == (Rejection, Reason.INSUFFICIENT_STAKE)


def test_tokens_due_in_the_block_of_the_evidence_are_free_already() -> None:
    """What its header time makes due comes first in a block."""
    harness = chain()
    harness.block(harness.unbond(0, 4))
    harness.block(harness.evidence(1, 0), after_ms=UNBONDING_MS)
    assert (harness.balance(0), harness.stake(0).bonded) == (1_004, 3)


def test_who_never_had_a_stake_cannot_be_punished() -> None:
    harness = chain(actors=5, stakes=(10, 10, 10, 10))
    assert harness.refusal(harness.evidence(1, 4)) == (Rejection, Reason.INSUFFICIENT_STAKE)


def test_evidence_against_the_last_validator_waits_for_another() -> None:
    harness = chain(stakes=(10,))
    accusation = harness.evidence(1, 0)
    assert harness.refusal(accusation) == (Premature, Reason.LAST_VALIDATOR)
    harness.block(harness.bond(1, 10), accusation)
    assert harness.voting == (1,)


def test_of_two_offenders_in_a_block_one_stays_where_nobody_else_is() -> None:
    harness = chain(stakes=(10, 10))
    assert len(harness.offer(harness.evidence(2, 0), harness.evidence(2, 1))) == 1
    assert harness.voting == (1,)


# Jail


def with_absent(absent: int, blocks: int, **changes: Any) -> Harness:
    """A chain with some blocks that miss one actor in their commits; 8 of 10 are too many."""
    harness = chain(parameters={"attendance_window": 10, "missed_to_jail": 8}, **changes)
    harness.absent = frozenset({absent})
    for _ in range(blocks + 1):
        harness.wait(100)
    return harness


def test_who_misses_too_many_commits_is_jailed_and_leaves_the_queue() -> None:
    """Jail who misses >= 95 of the last 100 commits: out of the set from the next height, leaves the queue."""
    harness = with_absent(1, 7, queue=(1, 2, 3))
    assert harness.voting == (0, 1, 2, 3)
    assert [member.count for member in current_attendance(harness.tree).members] == [0, 7, 0, 0]
    harness.wait(100)
    assert harness.voting == (0, 2, 3)
    assert harness.stake(1) == Stake(10, (), harness.now_ms + JAIL_MS, False), "it costs no stake"
    assert current_queue(harness.tree) == (harness.account(2), harness.account(3))
    assert standing(harness.tree, harness.account(1)) is Standing.JAILED
    assert kinds(harness) == [EventKind.JAILED]
    harness.wait(100)
    assert [member.account for member in current_attendance(harness.tree).members] == [
        harness.account(actor) for actor in (0, 2, 3)
    ]


def test_misses_of_more_than_the_window_ago_do_not_count() -> None:
    harness = with_absent(1, 6)
    harness.absent = frozenset()
    for _ in range(4):
        harness.wait(100)
    assert current_attendance(harness.tree).members[1].count == 7
    harness.absent = frozenset({1})
    for _ in range(7):
        harness.wait(100)
    assert harness.voting == (0, 1, 2, 3), "it missed 13 in all"
    assert current_attendance(harness.tree).members[1].count == 6
    assert len(current_attendance(harness.tree).recorders) == 10


def test_unjail_puts_back_after_its_time() -> None:
    """UNJAIL after `jail_ms` header time puts it back."""
    harness = with_absent(1, 8)
    assert harness.refusal(harness.unjail(1)) == (Premature, Reason.JAILED)
    assert harness.refusal(harness.unjail(0)) == (Rejection, Reason.NOT_JAILED)
    harness.wait(JAIL_MS - 1)
    assert harness.refusal(harness.unjail(1)) == (Premature, Reason.JAILED)
    harness.absent = frozenset()
    harness.block(harness.unjail(1), after_ms=1)
    assert harness.voting == (0, 1, 2, 3)
    assert kinds(harness)[-1] is EventKind.UNJAILED
    harness.wait(100)
    assert current_attendance(harness.tree).members[1].count == 0, "it begins anew"


def test_bonding_and_unbonding_do_not_end_jail() -> None:
    harness = with_absent(1, 8)
    harness.block(harness.unbond(1, 10), harness.bond(1, 20, nonce=1))
    assert harness.stake(1).jailed_until_ms is not None
    assert harness.voting == (0, 2, 3)


def test_a_jailed_account_can_be_tombstoned() -> None:
    harness = with_absent(1, 8)
    harness.block(harness.evidence(0, 1))
    assert (harness.stake(1).bonded, harness.stake(1).is_tombstoned) == (5, True)


def test_a_jailing_that_would_leave_no_validator_is_left_out() -> None:
    """Of two that were never there one stays. No real commit is empty, so the rule is called by itself."""
    harness = chain(stakes=(10, 10), parameters={"attendance_window": 2, "missed_to_jail": 1})
    harness.wait(100)
    work = Workspace(harness.genesis, harness.context(), harness.tree)
    staking.begin_block(work, replace(harness.last_commit, signatures=()))
    assert current_validators(work.view).accounts == (harness.account(1),)
    assert stake_of(work.view, harness.account(1)).jailed_until_ms is None


def test_few_proposers_cannot_jail_anybody() -> None:
    """Jail needs the word of proposers that can't all be hostile, who could leave one out: of more than a third."""
    harness = with_absent(1, 20, stakes=(10, 10, 10, 10), queue=(0,))
    assert current_attendance(harness.tree).members[1].count == 10
    assert harness.voting == (0, 1, 2, 3), "all blocks are of one proposer with a quarter of the stake"
    heavier = with_absent(1, 8, stakes=(20, 10, 10, 10), queue=(0,))
    assert heavier.voting == (0, 2, 3), "a third and more holds somebody honest"


def test_only_who_recorded_the_misses_is_a_witness() -> None:
    """The others' blocks say that it was there."""
    harness = chain(parameters={"attendance_window": 10, "missed_to_jail": 5}, queue=(0, 2))
    harness.wait(100)
    for _ in range(20):
        leader = harness.actor(harness.context().proposer)
        voters = [actor for actor in range(4) if actor != 1 or leader != 0]
        harness.last_commit = harness.sign_commit(harness.blocks[-1], voters)
        harness.wait(100)
    assert current_attendance(harness.tree).members[1].count == 5
    assert harness.voting == (0, 1, 2, 3)


# Aggregators


def condemned(*faults: Fault, **changes: Any) -> Harness:
    """An aggregation that the first members of the committee judged in one block."""
    harness = Harness(queue=(2, 3, 1), **changes)
    harness.register_all()
    harness.play_to(Phase.ATTEST)
    harness.block(*(harness.attest(actor, fault) for actor, fault in enumerate(faults)))
    return harness


def test_an_exact_fault_costs_half_the_stake() -> None:
    """Slashed only for an *exact* fault (L2 mismatch): more than 2/3 of the committee's stake."""
    harness = condemned(*[Fault.OUTPUT_MISMATCH] * 3)
    assert harness.stake(2) == Stake(5, (), None, False), "no tombstone: it may go on"
    assert pool(harness) == POOL + 5
    assert (harness.phase, harness.round.aggregator) == (Phase.AGGREGATE, harness.account(3))
    [(_, offence)] = OFFENCES.scan(harness.tree)
    assert (offence.kind, offence.slashed) == (OffenceKind.WRONG_OUTPUT, 5)
    assert harness.voting == (0, 1, 2, 3)


def test_a_condemned_aggregation_waits_for_who_may_call_it_an_exact_fault() -> None:
    harness = condemned(Fault.OUTPUT_MISMATCH, Fault.OUTPUT_MISMATCH)
    assert (harness.phase, harness.round.is_in_grace) == (Phase.ATTEST, True)
    harness.block(harness.attest(3, Fault.OUTPUT_MISMATCH))
    assert harness.phase is Phase.AGGREGATE
    assert harness.stake(2).bonded == 5


def test_the_grace_ends_with_the_next_aggregator_and_nobody_slashed() -> None:
    harness = condemned(Fault.OUTPUT_MISMATCH, Fault.OUTPUT_MISMATCH)
    assert harness.round.deadline_ms - harness.round.clock_ms == DEADLINES.grace_floor_ms
    harness.wait_until_due()
    assert (harness.phase, harness.round.aggregator) == (Phase.AGGREGATE, harness.account(3))
    assert harness.stake(2).bonded == 10


@pytest.mark.parametrize("fault", [Fault.MATRIX_MISMATCH, Fault.PROBE_UNAVAILABLE])
def test_a_dispute_about_tolerance_costs_only_the_job(fault: Fault) -> None:
    """tolerance disputes only cost the job."""
    harness = condemned(fault, fault, fault)
    assert (harness.phase, harness.round.aggregator) == (Phase.AGGREGATE, harness.account(3))
    assert harness.stake(2).bonded == 10
    assert list(OFFENCES.scan(harness.tree)) == []


def test_once_an_exact_fault_is_impossible_the_verdict_is_not_waited_for() -> None:
    harness = condemned(Fault.MATRIX_MISMATCH, Fault.OUTPUT_MISMATCH, Fault.MATRIX_MISMATCH)
    assert harness.phase is Phase.AGGREGATE
    assert harness.stake(2).bonded == 10


def test_an_exact_fault_leaves_the_last_validator_its_stake() -> None:
    harness = Harness(stakes=(10,), parameters={"minimum_stake": 10})
    harness.register_all()
    harness.play_to(Phase.ATTEST)
    harness.block(harness.attest(0, Fault.OUTPUT_MISMATCH))
    assert harness.voting == (0,)
    assert harness.stake(0).bonded == 10


@pytest.mark.parametrize("phase", [Phase.COMMIT, Phase.REVEAL, Phase.AVAILABLE, Phase.AGGREGATE])
def test_a_tombstoned_aggregator_is_replaced_at_once(phase: Phase) -> None:
    harness = Harness(queue=(2, 3, 1))
    harness.register_all()
    harness.play_to(phase)
    harness.wait(500)
    committee, deadline_ms = harness.round.committee, harness.round.deadline_ms
    harness.block(harness.evidence(0, 2))
    assert harness.line == (3, 1)
    assert harness.round.committee == committee, "the snapshot stays"
    moved_ms = harness.round.deadline_ms - deadline_ms
    assert moved_ms == (600 if phase is Phase.AGGREGATE else 0), "only AGGREGATE begins anew"
    assert harness.play_round().aggregation is not None
    assert harness.settled(1).aggregation.aggregator == harness.account(3)  # type: ignore[union-attr]  # said above


def test_who_is_tombstoned_while_its_aggregation_is_judged_is_paid_if_it_is_good() -> None:
    harness = Harness(queue=(2, 3, 1))
    harness.register_all()
    harness.play_to(Phase.ATTEST)
    harness.block(harness.evidence(0, 2), harness.evidence(0, 3))
    settled = harness.play_round()
    assert settled.aggregation is not None
    assert settled.aggregation.aggregator == harness.account(2)
    assert harness.line[0] == 1, "the next learning round has neither"
    assert {validator.account for validator in harness.round.committee} == {harness.account(0), harness.account(1)}


def test_who_is_tombstoned_while_its_aggregation_is_judged_is_the_one_that_a_bad_one_costs() -> None:
    harness = Harness(queue=(2, 3, 1))
    harness.register_all()
    harness.play_to(Phase.ATTEST)
    harness.block(harness.evidence(0, 2), harness.evidence(0, 3))
    assert harness.line == (2, 1)
    harness.block(*(harness.attest(actor, Fault.OUTPUT_MISMATCH) for actor in range(3)))
    assert [harness.stake(actor).bonded for actor in range(4)] == [10, 10, 2, 5]
    assert harness.round.aggregator == harness.account(1)


def test_who_is_next_in_line_answers_for_no_aggregation_of_one_who_is_tombstoned_in_the_same_block() -> None:
    """The proposer orders its block: the aggregation comes first, then the evidence."""
    harness = Harness(queue=(2, 3, 1))
    harness.register_all()
    harness.play_to(Phase.AGGREGATE)
    harness.block(harness.aggregate(2), harness.evidence(0, 2))
    assert (harness.phase, harness.line, harness.round.acting) == (Phase.ATTEST, (2, 3, 1), 0)
    harness.block(*(harness.attest(actor, Fault.MATRIX_MISMATCH) for actor in (0, 1, 3)))
    assert (harness.line[harness.round.acting], harness.queue) == (3, (3, 1))


def test_a_committee_is_of_the_validators_after_the_transactions_of_its_block() -> None:
    harness = Harness(actors=5, stakes=(10, 10, 10, 10))
    registrations = [harness.register(actor) for actor in range(4)]
    harness.block(harness.bond(4, 10), harness.unbond(0, 10), *registrations[1:])
    assert [member.account for member in harness.round.committee] == [harness.account(actor) for actor in (1, 2, 3, 4)]
    assert set(harness.line) <= {1, 2, 3, 4}


def test_a_tombstoned_replacement_leaves_the_line() -> None:
    harness = Harness(queue=(2, 3, 1))
    harness.register_all()
    harness.block(harness.evidence(0, 3))
    assert (harness.line, harness.round.acting) == ((2, 1), 0)
    harness.block(harness.evidence(0, 0, height=4))
    assert harness.line == (2, 1), "who isn't in line changes nothing"


def test_without_anybody_left_in_line_the_attempt_is_void() -> None:
    harness = Harness(stakes=(10, 10, 10), queue=(0, 1))
    harness.register_all()
    harness.block(harness.evidence(3, 0), harness.evidence(3, 1))
    assert harness.line == (2,)
    harness.block(harness.bond(3, 10))
    harness.block(harness.evidence(3, 2))
    assert (harness.round.slot.attempt, harness.line) == (1, (3,))
    assert EventKind.ROUND_VOID in kinds(harness)


def test_a_replacement_without_probe_is_passed_over_once_commits_are_closed() -> None:
    harness = Harness(queue=(2, 3, 1), probe_mode=ProbeMode.AGGREGATOR)
    harness.register_all()
    harness.block(harness.probe(2), harness.probe(1), *(harness.commit(actor) for actor in range(4)))
    assert harness.phase is Phase.REVEAL
    harness.block(harness.evidence(0, 2))
    assert harness.line == (1,)


def test_whoever_unbonds_in_a_learning_round_keeps_its_duties_in_it() -> None:
    """the snapshot stays."""
    harness = Harness(queue=(2, 3, 1))
    harness.register_all()
    harness.play_to(Phase.AVAILABLE)
    harness.block(harness.unbond(0, 10), harness.unbond(3, 10))
    assert harness.voting == (1, 2)
    harness.play_to(Phase.ATTEST)
    harness.block(*(harness.attest(actor) for actor in range(4)))
    assert {vote.account for vote in harness.settled(1).attestations} == {harness.account(actor) for actor in range(4)}
    assert {validator.account for validator in harness.round.committee} == {harness.account(1), harness.account(2)}


# The state


def test_genesis_stakes_are_those_of_its_validators() -> None:
    harness = Harness(actors=5, stakes=(10, 20, 30, 40))
    assert [harness.stake(actor).bonded for actor in range(5)] == [10, 20, 30, 40, 0]
    assert money(harness.tree) == {
        "free": 5_000,
        "bonded": 100,
        "unbonding": 0,
        "pool": POOL,
        "escrow": 60 * TOKEN,
    }


def test_a_header_that_names_other_next_validators_is_refused() -> None:
    harness = Harness()
    block, _ = harness.build(harness.context(), [harness.unbond(0, 10)])
    header = replace(block.header, next_validators_hash=block.header.validators_hash)
    with pytest.raises(Rejection) as caught:
        validate_block(harness.genesis, harness.tree, harness.header, replace(block, header=header))
    assert caught.value.reason is Reason.WRONG_ROOT


def test_the_same_history_gives_the_same_state_again() -> None:
    harness = with_absent(1, 8)
    harness.block(harness.bond(0, 7), harness.unbond(3, 2), harness.evidence(0, 2))
    harness.wait(UNBONDING_MS)
    harness.block(harness.unjail(1))
    assert harness.replayed().root == harness.tree.root


def test_validators_below_the_minimum_make_no_genesis() -> None:
    setup = make_setup(parameters={"minimum_stake": 11})
    with pytest.raises(ValueError, match=r"genesis\.validators\[0\]\.stake: 10 is below parameters\.minimum_stake, 11"):
        genesis_state(setup.genesis(make_keys(4)))


def test_more_misses_than_the_window_has_make_no_genesis() -> None:
    setup = make_setup(parameters={"missed_to_jail": 101})
    with pytest.raises(ValueError, match=r"genesis\.parameters\.missed_to_jail: 101 is above attendance_window, 100"):
        genesis_state(setup.genesis(make_keys(4)))


def test_eligible_is_who_has_enough_and_no_blot() -> None:
    stake = Stake(10, (), None, False)
    parameters = replace(PARAMETERS, minimum_stake=10)
    assert staking.is_eligible(stake, parameters)
    blots = (replace(stake, bonded=9), replace(stake, jailed_until_ms=0), replace(stake, is_tombstoned=True))
    assert not any(staking.is_eligible(blot, parameters) for blot in blots)
