"""Agreement, line by line of algorithm 1 (arXiv 1807.04938)."""

import pytest

from bflnode.consensus.agreement import (
    BlockBuilt,
    BuildBlock,
    Decide,
    Persist,
    ProposalReceived,
    Schedule,
    SignProposal,
    Step,
    Tally,
    TimeoutElapsed,
    ValidValue,
    WorkAvailable,
)
from bflnode.consensus.block import (
    NIL,
    Commit,
    CommitSignature,
    Validator,
)
from bflnode.consensus.machine import Machine
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.rejection import Rejection
from tests.consensus.machines import (
    HEIGHT,
    KEYS,
    PARAMETERS,
    PRECOMMIT,
    PREVOTE,
    block_of,
    certificate_of,
    go_to_round,
    leader,
    locked_machine,
    machine_of,
    prevotes_of,
    proposal_of,
    propose,
    signed,
    started,
    time_out,
    timeout,
    vote,
    vote_of,
)

# Lines 11-21: StartRound


def test_round_0_sleeps_until_there_is_work() -> None:
    machine = machine_of(1)
    assert machine.start() == ()
    assert not machine.is_awake
    assert machine.step(WorkAvailable()) == (timeout(0, Step.PROPOSE, 300),)
    assert machine.step(WorkAvailable()) == ()


def test_the_leader_builds_a_block_when_there_is_work() -> None:
    """Line 18: proposal <- getValue()."""
    assert started(0).step(WorkAvailable()) == (BuildBlock(HEIGHT, 0), timeout(0, Step.PROPOSE, 300))


def test_any_message_of_the_height_wakes_the_time_out() -> None:
    assert vote(started(1), PREVOTE, 0, NIL, (2,)) == (timeout(0, Step.PROPOSE, 300),)


def test_a_refused_message_wakes_nobody() -> None:
    machine = started(1)
    with pytest.raises(Rejection):
        propose(machine, proposal_of(0, block_of(0), signer=2))
    assert not machine.is_awake


def test_the_leader_proposes_the_block_it_built_and_prevotes_its_own_proposal() -> None:
    """Line 19: broadcast <PROPOSAL, h, round, proposal, validRound>."""
    machine, block = started(0), block_of(0)
    machine.step(WorkAvailable())
    assert machine.step(BlockBuilt(block)) == (SignProposal(HEIGHT, 0, -1, block, ()),)
    assert propose(machine, proposal_of(0, block)) == (signed(PREVOTE, 0, block.id),)


def test_a_second_built_block_is_not_proposed() -> None:
    machine = started(0)
    machine.step(WorkAvailable())
    machine.step(BlockBuilt(block_of(0)))
    assert machine.step(BlockBuilt(block_of(0, time_ms=2))) == ()


def test_a_block_built_too_late_is_not_proposed() -> None:
    machine = started(0)
    machine.step(WorkAvailable())
    time_out(machine, Step.PROPOSE)
    assert machine.step(BlockBuilt(block_of(0))) == ()


def test_a_later_round_does_not_wait_for_work() -> None:
    machine = started(1)
    assert go_to_round(machine, 1)[-2:] == (BuildBlock(HEIGHT, 1), timeout(1, Step.PROPOSE, 400))


def test_a_leader_with_a_valid_value_proposes_it_again_with_its_certificate() -> None:
    """Lines 15-16: if validValue != nil then proposal <- validValue. The block keeps its header."""
    machine, block = locked_machine()
    prevotes = tuple(sorted((vote_of(number, PREVOTE, 0, block.id) for number in (0, 1, 2)), key=lambda v: v.validator))
    effects = go_to_round(machine, 4)
    assert effects[-2:] == (SignProposal(HEIGHT, 4, 0, block, prevotes), timeout(4, Step.PROPOSE, 700))


def test_an_observer_follows_but_neither_proposes_nor_votes_nor_persists() -> None:
    machine, block = started(None), block_of(0)
    effects = propose(machine, proposal_of(0, block))
    effects += vote(machine, PREVOTE, 0, block.id, (1, 2, 3)) + vote(machine, PRECOMMIT, 0, block.id, (1, 2, 3))
    assert [type(effect) for effect in effects] == [Schedule, Decide]


# Lines 22-27: a first proposal


def test_a_valid_proposal_is_prevoted() -> None:
    """Lines 23-24: if valid(v) and lockedRound = -1 then prevote id(v)."""
    block = block_of(0)
    effects = propose(started(1), proposal_of(0, block))
    assert effects == (timeout(0, Step.PROPOSE, 300), signed(PREVOTE, 0, block.id))


def test_an_invalid_proposal_gets_a_nil_prevote() -> None:
    """Line 26."""
    effects = propose(started(1), proposal_of(0, block_of(0)), is_valid=False)
    assert prevotes_of(effects) == [signed(PREVOTE, 0, NIL)]


def test_an_untimely_first_proposal_gets_a_nil_prevote() -> None:
    message = proposal_of(0, block_of(0))
    effects = started(1).step(ProposalReceived(message, is_valid=True, is_timely=False))
    assert prevotes_of(effects) == [signed(PREVOTE, 0, NIL)]


def test_a_validator_with_a_wrong_clock_still_locks_and_decides_what_the_others_agree_on() -> None:
    machine, block = started(1), block_of(0)
    machine.step(ProposalReceived(proposal_of(0, block), is_valid=True, is_timely=False))
    effects = vote(machine, PREVOTE, 0, block.id, (0, 2, 3))
    assert effects[-1] == signed(PRECOMMIT, 0, block.id)
    assert isinstance(vote(machine, PRECOMMIT, 0, block.id, (0, 2, 3))[-1], Decide)


def test_a_new_block_is_not_prevoted_while_another_is_locked() -> None:
    """Line 23: lockedRound = -1 or lockedValue = v."""
    machine, _ = locked_machine()
    go_to_round(machine, 1)
    assert prevotes_of(propose(machine, proposal_of(1, block_of(1)))) == [signed(PREVOTE, 1, NIL)]


def test_only_the_first_proposal_of_a_round_is_prevoted() -> None:
    machine = started(1)
    propose(machine, proposal_of(0, block_of(0)))
    assert prevotes_of(propose(machine, proposal_of(0, block_of(0, time_ms=2)))) == []


# Lines 28-33: a re-proposal


def test_a_reproposal_of_the_locked_block_is_prevoted() -> None:
    machine, block = locked_machine()
    go_to_round(machine, 1)
    message = proposal_of(1, block, valid_round=0, certificate=certificate_of(0, block))
    assert prevotes_of(propose(machine, message)) == [signed(PREVOTE, 1, block.id)]


def test_a_reproposal_that_was_valid_after_our_lock_unlocks_us() -> None:
    """Line 29: lockedRound <= vr."""
    machine, _ = locked_machine()
    other = block_of(1)
    go_to_round(machine, 2)
    message = proposal_of(2, other, valid_round=1, certificate=certificate_of(1, other))
    assert prevotes_of(propose(machine, message)) == [signed(PREVOTE, 2, other.id)]


def test_a_reproposal_that_was_valid_before_our_lock_gets_a_nil_prevote() -> None:
    """Line 29: lockedRound <= vr fails, and lockedValue is another."""
    machine, early, late = started(), block_of(0), block_of(1)
    go_to_round(machine, 1)
    propose(machine, proposal_of(1, late))
    vote(machine, PREVOTE, 1, late.id, (0, 1, 2))
    assert machine.current_step is Step.PRECOMMIT
    go_to_round(machine, 2)
    message = proposal_of(2, early, valid_round=0, certificate=certificate_of(0, early))
    assert prevotes_of(propose(machine, message)) == [signed(PREVOTE, 2, NIL)]


def test_a_reproposal_is_not_checked_against_the_clock() -> None:
    machine, block = started(), block_of(0)
    go_to_round(machine, 1)
    message = proposal_of(1, block, valid_round=0, certificate=certificate_of(0, block))
    effects = machine.step(ProposalReceived(message, is_valid=True, is_timely=False))
    assert prevotes_of(effects) == [signed(PREVOTE, 1, block.id)]


def test_the_certificate_of_a_reproposal_is_counted() -> None:
    machine, block = started(), block_of(0)
    go_to_round(machine, 1)
    propose(machine, proposal_of(1, block, valid_round=0, certificate=certificate_of(0, block)))
    (tally,) = machine.status().rounds[0].prevotes
    assert tally == Tally(block.id, bytes([0b1110]))


# Lines 34-35 and 61-64: the prevote timeout


def test_prevotes_of_a_quorum_for_anything_start_the_prevote_timeout_once() -> None:
    """Line 34: 2f+1 <PREVOTE, h, round, *> while step = prevote for the first time."""
    machine, block = started(1), block_of(0)
    propose(machine, proposal_of(0, block))
    assert vote(machine, PREVOTE, 0, block.id, (1, 2)) == ()
    assert vote(machine, PREVOTE, 0, NIL, (3,)) == (timeout(0, Step.PREVOTE, 150),)
    assert vote(machine, PREVOTE, 0, NIL, (0,)) == ()


def test_prevotes_before_the_own_prevote_start_no_timeout() -> None:
    effects = vote(started(1), PREVOTE, 0, NIL, (2,)) + vote(started(1), PREVOTE, 0, block_of(0).id, (3,))
    assert {effect.timeout.step for effect in effects if isinstance(effect, Schedule)} == {Step.PROPOSE}


def test_the_prevote_timeout_precommits_nil() -> None:
    """Lines 62-64."""
    machine = started(1)
    propose(machine, proposal_of(0, block_of(0)))
    assert time_out(machine, Step.PREVOTE) == (signed(PRECOMMIT, 0, NIL),)
    assert time_out(machine, Step.PREVOTE) == ()


# Lines 36-43: a quorum of prevotes for a block


def test_a_quorum_of_prevotes_persists_the_valid_value_before_the_precommit() -> None:
    """Lines 36-43: lockedValue <- v; broadcast <PRECOMMIT>; validValue <- v. What a lock relies on comes first."""
    machine, block = started(1), block_of(0)
    message = proposal_of(0, block)
    propose(machine, message)
    effects = vote(machine, PREVOTE, 0, block.id, (1, 2, 3))
    record = ValidValue(message.proposal, block, (), certificate_of(0, block))
    assert effects == (Persist(record), signed(PRECOMMIT, 0, block.id))


def test_two_thirds_of_the_stake_are_no_quorum() -> None:
    """3*w > 2*W, not >=: with stakes 10, 10, 10 and 30, three small ones hold half."""
    stakes = (10, 10, 10, 30)
    validators = ValidatorSet(tuple(Validator(key.account, stake) for key, stake in zip(KEYS, stakes, strict=True)))
    machine = Machine(KEYS[1].account, PARAMETERS, height=HEIGHT, validators=validators, leader=leader)
    machine.start()
    block = block_of(0)
    propose(machine, proposal_of(0, block))
    assert vote(machine, PREVOTE, 0, block.id, (3, 0)) == ()
    assert signed(PRECOMMIT, 0, block.id) in vote(machine, PREVOTE, 0, block.id, (1,))


def test_a_quorum_of_prevotes_after_the_own_precommit_makes_the_block_valid_without_a_lock() -> None:
    """Lines 42-43 apply from step prevote on; 37-41 only in step prevote."""
    machine, block = started(1), block_of(0)
    propose(machine, proposal_of(0, block))
    time_out(machine, Step.PREVOTE)
    effects = vote(machine, PREVOTE, 0, block.id, (0, 2, 3))
    assert [type(effect) for effect in effects] == [Persist]
    go_to_round(machine, 1)
    assert prevotes_of(propose(machine, proposal_of(1, block_of(1)))) == [signed(PREVOTE, 1, block_of(1).id)]


def test_a_block_that_the_ledger_refuses_is_never_locked_or_decided() -> None:
    """Lines 36 and 50: while valid(v)."""
    machine, block = started(1), block_of(0)
    propose(machine, proposal_of(0, block), is_valid=False)
    effects = vote(machine, PREVOTE, 0, block.id, (0, 2, 3)) + vote(machine, PRECOMMIT, 0, block.id, (0, 2, 3))
    assert {type(effect) for effect in effects} == {Schedule}


# Lines 44-46 and 57-60: nil


def test_a_quorum_of_nil_prevotes_precommits_nil_at_once() -> None:
    """Lines 44-46."""
    machine = started(1)
    propose(machine, proposal_of(0, block_of(0)))
    assert vote(machine, PREVOTE, 0, NIL, (0, 2, 3)) == (signed(PRECOMMIT, 0, NIL),)


def test_the_propose_timeout_prevotes_nil() -> None:
    """Lines 58-60."""
    machine = started(1)
    machine.step(WorkAvailable())
    assert time_out(machine, Step.PROPOSE) == (signed(PREVOTE, 0, NIL),)


def test_a_timeout_of_another_step_round_or_height_changes_nothing() -> None:
    machine = started(1)
    propose(machine, proposal_of(0, block_of(0)))
    assert time_out(machine, Step.PROPOSE) == ()
    assert machine.step(TimeoutElapsed(HEIGHT, 1, Step.PREVOTE)) == ()
    assert machine.step(TimeoutElapsed(HEIGHT + 1, 0, Step.PREVOTE)) == ()


# Lines 47-48 and 65-67: the precommit timeout


def test_precommits_of_a_quorum_for_anything_start_the_precommit_timeout_once() -> None:
    """Line 47."""
    machine, block = started(1), block_of(0)
    propose(machine, proposal_of(0, block))
    vote(machine, PRECOMMIT, 0, block.id, (0, 2))
    assert vote(machine, PRECOMMIT, 0, NIL, (3,)) == (timeout(0, Step.PRECOMMIT, 150),)
    assert vote(machine, PRECOMMIT, 0, NIL, (1,)) == ()


def test_the_precommit_timeout_starts_the_next_round() -> None:
    """Lines 65-67; time-outs grow with the round."""
    machine = started(1)
    machine.step(WorkAvailable())
    effects = time_out(machine, Step.PRECOMMIT)
    assert effects == (BuildBlock(HEIGHT, 1), timeout(1, Step.PROPOSE, 400))
    assert (machine.round, machine.current_step) == (1, Step.PROPOSE)


# Lines 49-54: decision


def test_a_quorum_of_precommits_decides_with_their_signatures() -> None:
    machine, block = locked_machine()
    (decision,) = vote(machine, PRECOMMIT, 0, block.id, (3, 1, 2))
    signatures = tuple(
        CommitSignature(number, vote_of(number, PRECOMMIT, 0, block.id).signature) for number in (1, 2, 3)
    )
    assert decision == Decide(block, Commit(HEIGHT, 0, block.id, signatures))
    assert machine.has_decided


def test_precommits_of_an_earlier_round_decide() -> None:
    """Line 49: 2f+1 <PRECOMMIT, h, r, id(v)> for any r."""
    machine, block = locked_machine()
    go_to_round(machine, 3)
    (decision,) = vote(machine, PRECOMMIT, 0, block.id, (1, 2, 3))
    assert isinstance(decision, Decide)
    assert decision.commit.round == 0


def test_the_proposal_may_come_after_the_precommits() -> None:
    machine, block = started(1), block_of(0)
    vote(machine, PRECOMMIT, 0, block.id, (0, 2, 3))
    effects = propose(machine, proposal_of(0, block))
    assert [type(effect) for effect in effects] == [Decide]


def test_precommits_of_different_rounds_do_not_add_up() -> None:
    machine, block = locked_machine()
    effects = vote(machine, PRECOMMIT, 0, block.id, (1, 2)) + vote(machine, PRECOMMIT, 1, block.id, (3,))
    assert not any(isinstance(effect, Decide) for effect in effects)


def test_a_decided_machine_does_nothing_more() -> None:
    machine, block = locked_machine()
    vote(machine, PRECOMMIT, 0, block.id, (1, 2, 3))
    assert vote(machine, PRECOMMIT, 0, block.id, (0,)) == ()
    assert time_out(machine, Step.PRECOMMIT) == ()
    assert machine.step(WorkAvailable()) == ()


# Lines 55-56: skipping rounds


def test_messages_of_a_later_round_from_more_than_a_third_skip_to_it() -> None:
    """Line 55: f+1 <*, h, round, *, *> with round > round_p."""
    machine = started(0)
    vote(machine, PREVOTE, 7, NIL, (2,))
    assert machine.round == 0
    vote(machine, PRECOMMIT, 7, NIL, (3,))
    assert machine.round == 7


def test_one_validator_cannot_make_us_skip_however_many_messages_it_sends() -> None:
    machine = started(0)
    for round_ in range(1, 50):
        vote(machine, PREVOTE, round_, NIL, (3,))
    assert machine.round == 0


def test_the_skip_goes_to_a_round_that_an_honest_validator_has_reached() -> None:
    """The furthest third may lie about one round; the lower of two reports is honest if one validator in three lies."""
    machine = started(0)
    vote(machine, PREVOTE, 900_000, NIL, (3,))
    vote(machine, PREVOTE, 2, NIL, (2,))
    assert machine.round == 2


def test_a_proposal_counts_as_a_message_of_its_round() -> None:
    machine = started(0)
    propose(machine, proposal_of(1, block_of(1)))
    vote(machine, PREVOTE, 1, block_of(1).id, (2,))
    assert (machine.round, machine.current_step) == (1, Step.PREVOTE)
