"""Agreement, line by line of algorithm 1 (arXiv 1807.04938): four validators of equal stake, of which we are one.

Ours is validator 0. Validator r leads round r of height 1.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bflnode.consensus.agreement import (
    MAX_STATUS_BYTES,
    ROUNDS_AHEAD,
    ROUNDS_BEHIND,
    BlockBuilt,
    BuildBlock,
    Decide,
    Effect,
    Evidence,
    Missing,
    Persist,
    ProposalReceived,
    RoundStatus,
    Schedule,
    SendProposal,
    SendVote,
    SignProposal,
    SignVote,
    Status,
    Step,
    Tally,
    TimeoutElapsed,
    ValidValue,
    VoteReceived,
    WorkAvailable,
)
from bflnode.consensus.block import (
    BLOCK_VERSION,
    NIL,
    Block,
    Commit,
    CommitSignature,
    Header,
    ProposalMessage,
    Validator,
    Vote,
    VoteKind,
    genesis_commit,
    sign_proposal,
    sign_vote,
)
from bflnode.consensus.genesis import Parameters
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.machine import MAX_PROPOSALS_KEPT, Machine
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.types import AccountId, BlockId, ChainId, Hash

CHAIN = ChainId(bytes(32))
KEYS = sorted((SecretKey(bytes([number]) * 32) for number in range(1, 5)), key=lambda key: key.account)
VALIDATORS = ValidatorSet(tuple(Validator(key.account, 10) for key in KEYS))
PARAMETERS = Parameters(
    block_interval_ms=0,
    heartbeat_ms=60_000,
    clock_tolerance_ms=1_000,
    max_step_ms=60_000,
    propose_timeout_ms=300,
    vote_timeout_ms=150,
    timeout_step_ms=100,
    admission_amount=5,
    copy_memory_rounds=5,
    minimum_stake=1,
    unbonding_ms=60_000,
    jail_ms=10_000,
    attendance_window=100,
    missed_to_jail=95,
)
HEIGHT = 1
ZERO = Hash(bytes(32))
PREVOTE, PRECOMMIT = VoteKind.PREVOTE, VoteKind.PRECOMMIT


def leader(round_: int) -> AccountId:
    return KEYS[round_ % 4].account


def machine_of(number: int | None = 0) -> Machine:
    account = None if number is None else KEYS[number].account
    return Machine(account, PARAMETERS, height=HEIGHT, validators=VALIDATORS, leader=leader)


def started(number: int | None = 0) -> Machine:
    machine = machine_of(number)
    assert machine.start() == ()
    return machine


def block_of(round_: int, time_ms: int = 1, height: int = HEIGHT) -> Block:
    header = Header(
        version=BLOCK_VERSION,
        chain_id=CHAIN,
        height=height,
        round=round_,
        time_ms=time_ms,
        parent=BlockId(CHAIN),
        proposer=leader(round_),
        transactions_root=ZERO,
        last_commit_hash=ZERO,
        validators_hash=ZERO,
        next_validators_hash=ZERO,
        state_root=ZERO,
        beacon=ZERO,
    )
    return Block(header, (), genesis_commit(CHAIN))


def vote_of(number: int, kind: VoteKind, round_: int, block_id: BlockId, height: int = HEIGHT) -> Vote:
    return sign_vote(KEYS[number], CHAIN, kind, height, round_, block_id)


def proposal_of(
    round_: int, block: Block, valid_round: int = -1, certificate: tuple[Vote, ...] = (), signer: int | None = None
) -> ProposalMessage:
    key = KEYS[round_ % 4 if signer is None else signer]
    proposal = sign_proposal(key, CHAIN, height=HEIGHT, round_=round_, valid_round=valid_round, block_id=block.id)
    return ProposalMessage(proposal, block, certificate)


def certificate_of(round_: int, block: Block, voters: tuple[int, ...] = (1, 2, 3)) -> tuple[Vote, ...]:
    return tuple(vote_of(number, PREVOTE, round_, block.id) for number in voters)


def propose(machine: Machine, message: ProposalMessage, *, is_valid: bool = True) -> tuple[Effect, ...]:
    return machine.step(ProposalReceived(message, is_valid))


def vote(
    machine: Machine, kind: VoteKind, round_: int, block_id: BlockId, voters: tuple[int, ...]
) -> tuple[Effect, ...]:
    """The effects of several votes together."""
    events = (VoteReceived(vote_of(number, kind, round_, block_id)) for number in voters)
    return tuple(effect for event in events for effect in machine.step(event))


def time_out(machine: Machine, step: Step) -> tuple[Effect, ...]:
    return machine.step(TimeoutElapsed(HEIGHT, machine.round, step))


def go_to_round(machine: Machine, round_: int) -> tuple[Effect, ...]:
    """Let two others be in a later round (line 55); votes from far ahead are kept only when they come again."""
    return vote(machine, PREVOTE, round_, NIL, (2, 3))


def timeout(round_: int, step: Step, duration_ms: int) -> Schedule:
    return Schedule(TimeoutElapsed(HEIGHT, round_, step), duration_ms)


def prevotes_of(effects: tuple[Effect, ...]) -> list[SignVote]:
    return [effect for effect in effects if isinstance(effect, SignVote) and effect.kind is PREVOTE]


def signed(kind: VoteKind, round_: int, block_id: BlockId) -> SignVote:
    return SignVote(kind, HEIGHT, round_, block_id)


def locked_machine() -> tuple[Machine, Block]:
    """Ours has locked, and precommitted, the block of round 0."""
    machine, block = started(), block_of(0)
    propose(machine, proposal_of(0, block))
    vote(machine, PREVOTE, 0, block.id, (0, 1, 2))
    assert machine.current_step is Step.PRECOMMIT
    return machine, block


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


# Equivocation and memory


def test_two_votes_in_a_slot_are_evidence_and_both_count() -> None:
    machine, block = started(1), block_of(0)
    first, second = vote_of(3, PREVOTE, 0, NIL), vote_of(3, PREVOTE, 0, block.id)
    machine.step(VoteReceived(first))
    assert machine.step(VoteReceived(second)) == (Evidence(first, second),)
    assert machine.step(VoteReceived(second)) == ()
    propose(machine, proposal_of(0, block))
    assert signed(PRECOMMIT, 0, block.id) in vote(machine, PREVOTE, 0, block.id, (1, 2))


def test_a_third_vote_in_a_slot_is_neither_kept_nor_reported() -> None:
    machine = started(1)
    for number in range(3):
        effects = machine.step(VoteReceived(vote_of(3, PREVOTE, 0, block_of(0, time_ms=number + 1).id)))
    assert effects == ()
    assert len(machine.status().rounds[0].prevotes) == 2


def test_an_equivocator_counts_once_among_the_votes_for_anything() -> None:
    machine, block = started(1), block_of(0)
    propose(machine, proposal_of(0, block))
    vote(machine, PRECOMMIT, 0, block.id, (3,))
    vote(machine, PRECOMMIT, 0, NIL, (3,))
    assert vote(machine, PRECOMMIT, 0, NIL, (2,)) == ()


def test_two_proposals_of_a_leader_are_evidence_once() -> None:
    machine = started(1)
    messages = [proposal_of(0, block_of(0, time_ms=time_ms)) for time_ms in (1, 2, 3)]
    effects = [propose(machine, message) for message in messages]
    evidence = [effect for group in effects for effect in group if isinstance(effect, Evidence)]
    assert evidence == [Evidence(messages[0].proposal, messages[1].proposal)]


def test_a_third_proposal_is_kept_only_if_it_may_be_decided() -> None:
    machine = started(1)
    blocks = [block_of(0, time_ms=time_ms) for time_ms in (1, 2, 3)]
    for block in blocks:
        propose(machine, proposal_of(0, block))
    assert len(machine.status().rounds[0].proposals) == MAX_PROPOSALS_KEPT
    vote(machine, PRECOMMIT, 0, blocks[2].id, (0, 2, 3))
    assert isinstance(propose(machine, proposal_of(0, blocks[2]))[-1], Decide)


def test_votes_of_rounds_far_ahead_are_not_kept() -> None:
    machine = started(1)
    vote(machine, PREVOTE, ROUNDS_AHEAD, NIL, (3,))
    vote(machine, PREVOTE, ROUNDS_AHEAD + 1, NIL, (3,))
    assert [entry.round for entry in machine.status().rounds] == [ROUNDS_AHEAD]


def test_old_rounds_are_forgotten() -> None:
    machine = started(1)
    vote(machine, PREVOTE, 0, NIL, (2,))
    vote(machine, PREVOTE, 1, NIL, (2,))
    go_to_round(machine, ROUNDS_BEHIND)
    assert machine.status().rounds[0].round == 0
    go_to_round(machine, ROUNDS_BEHIND + 1)
    assert machine.status().rounds[0].round == 1
    vote(machine, PREVOTE, 0, NIL, (3,))
    assert machine.status().rounds[0].round == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["proposal", "again", "prevote", "precommit"]),
            st.integers(0, 12),
            st.integers(0, 3),
            st.integers(1, 4),
        ),
        max_size=40,
    )
)
def test_what_a_machine_does_not_want_would_change_nothing(moves: list[tuple[str, int, int, int]]) -> None:
    machine = started(None)
    for what, round_, number, time_ms in moves:
        block = block_of(round_ if what == "proposal" else 0, time_ms)
        message: ProposalMessage | Vote
        match what:
            case "proposal":
                message = proposal_of(round_, block)
            case "again":
                message = proposal_of(round_ + 1, block, valid_round=0, certificate=certificate_of(0, block))
            case _:
                message = vote_of(number, PREVOTE if what == "prevote" else PRECOMMIT, round_, block.id)
        before, is_wanted = machine.status(), machine.wants(message)
        is_kept = isinstance(message, ProposalMessage) and machine.keeps(message)
        event = VoteReceived(message) if isinstance(message, Vote) else ProposalReceived(message, is_valid=is_kept)
        effects = machine.step(event)
        assert is_wanted or (effects == () and machine.status() == before)
        has_skipped = machine.round != before.round
        assert has_skipped or not machine.wants(message), "once is enough, but after a skip it may be kept"
        if machine.has_decided:
            return


# What no correct validator sends

STRANGER = SecretKey(bytes([9]) * 32)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (proposal_of(0, block_of(0, height=2)), Reason.WRONG_HEIGHT),
        (proposal_of(0, block_of(0), signer=1), Reason.WRONG_PROPOSER),
        (proposal_of(1, block_of(0)), Reason.WRONG_ROUND),
        (proposal_of(1, block_of(0), valid_round=1, certificate=certificate_of(1, block_of(0))), Reason.WRONG_ROUND),
        (proposal_of(2, block_of(1), valid_round=0, certificate=certificate_of(0, block_of(1))), Reason.WRONG_ROUND),
        (proposal_of(0, block_of(0), certificate=certificate_of(0, block_of(0))), Reason.MALFORMED),
        (proposal_of(1, block_of(0), valid_round=0), Reason.NO_QUORUM),
        (
            proposal_of(1, block_of(0), valid_round=0, certificate=certificate_of(0, block_of(0), (1, 2))),
            Reason.NO_QUORUM,
        ),
        (
            proposal_of(1, block_of(0), valid_round=0, certificate=certificate_of(0, block_of(0), (1, 2, 2))),
            Reason.DUPLICATE,
        ),
        (
            proposal_of(1, block_of(0), valid_round=0, certificate=certificate_of(0, block_of(0, time_ms=2))),
            Reason.MALFORMED,
        ),
        (
            proposal_of(
                1,
                block_of(0),
                valid_round=0,
                certificate=(sign_vote(STRANGER, CHAIN, PREVOTE, HEIGHT, 0, block_of(0).id),),
            ),
            Reason.UNKNOWN_VALIDATOR,
        ),
        (replace(proposal_of(0, block_of(0)), block=block_of(0, time_ms=2)), Reason.WRONG_HASH),
    ],
)
def test_a_proposal_that_contradicts_itself_is_rejected_and_changes_nothing(
    message: ProposalMessage, reason: Reason
) -> None:
    machine = started(3)
    with pytest.raises(Rejection) as caught:
        propose(machine, message)
    assert caught.value.reason is reason
    assert machine.status() == Status(HEIGHT, 0, Step.PROPOSE, ())
    assert not machine.is_awake


def test_a_header_whose_proposer_does_not_lead_its_round_is_rejected() -> None:
    header = replace(block_of(0).header, proposer=KEYS[2].account)
    block = replace(block_of(0), header=header)
    with pytest.raises(Rejection, match="wrong-proposer"):
        propose(started(1), proposal_of(0, block))


def test_vote_from_unknown_validator_is_rejected() -> None:
    with pytest.raises(Rejection, match="unknown-validator"):
        started().step(VoteReceived(sign_vote(STRANGER, CHAIN, PREVOTE, HEIGHT, 0, NIL)))


def test_vote_of_another_height_is_rejected() -> None:
    with pytest.raises(Rejection, match="wrong-height: vote=2, machine=1"):
        started().step(VoteReceived(vote_of(1, PREVOTE, 0, NIL, height=2)))


# Restart


def test_a_restarted_machine_sends_its_votes_again_and_goes_on_in_their_step() -> None:
    machine, block = machine_of(1), block_of(0)
    own = vote_of(1, PREVOTE, 0, block.id)
    assert machine.start((own,)) == (SendVote(own),)
    assert (machine.round, machine.current_step) == (0, Step.PREVOTE)
    assert prevotes_of(propose(machine, proposal_of(0, block))) == []


def test_a_restarted_leader_sends_its_proposal_again_and_prevotes_it() -> None:
    machine, message = machine_of(0), proposal_of(0, block_of(0))
    assert machine.start((message,)) == (
        SendProposal(message),
        timeout(0, Step.PROPOSE, 300),
        signed(PREVOTE, 0, message.block.id),
    )


def test_a_restarted_machine_keeps_its_lock_and_proposes_what_is_valid() -> None:
    block = block_of(0)
    prevotes = certificate_of(0, block, (0, 1, 2))
    message = proposal_of(0, block)
    records = (
        vote_of(1, PREVOTE, 0, block.id),
        ValidValue(message.proposal, block, (), prevotes),
        vote_of(1, PRECOMMIT, 0, block.id),
    )
    machine = machine_of(1)
    assert machine.start(records) == (SendVote(records[0]), SendVote(records[2]))
    effects = go_to_round(machine, 1)
    assert SignProposal(HEIGHT, 1, 0, block, prevotes) in effects
    go_to_round(machine, 2)
    assert prevotes_of(propose(machine, proposal_of(2, block_of(2)))) == [signed(PREVOTE, 2, NIL)]


def test_a_machine_that_died_between_valid_value_and_precommit_precommits_after_restart() -> None:
    block = block_of(0)
    record = ValidValue(proposal_of(0, block).proposal, block, (), certificate_of(0, block))
    machine, own = machine_of(1), vote_of(1, PREVOTE, 0, block.id)
    assert machine.start((own, record)) == (SendVote(own), signed(PRECOMMIT, 0, block.id))


def test_records_of_other_heights_and_keys_are_left_alone() -> None:
    records = (vote_of(1, PREVOTE, 0, NIL, height=2), vote_of(2, PREVOTE, 0, NIL))
    assert machine_of(1).start(records) == ()


# Pulling


def deliver(machine: Machine, missing: Missing) -> tuple[Effect, ...]:
    """Votes first, as `Missing` says."""
    effects: tuple[Effect, ...] = ()
    for entry in missing.votes:
        effects += machine.step(VoteReceived(entry))
    for message in missing.proposals:
        effects += machine.step(ProposalReceived(message, is_valid=True))
    return effects


def test_one_answer_to_a_status_brings_a_peer_to_the_decision() -> None:
    machine, block = locked_machine()
    vote(machine, PRECOMMIT, 0, block.id, (1, 2, 3))
    behind = started(3)
    assert isinstance(deliver(behind, machine.missing(behind.status()))[-1], Decide)


def test_a_peer_gets_only_what_it_lacks() -> None:
    machine, block = locked_machine()
    peer = started(3)
    propose(peer, proposal_of(0, block))
    vote(peer, PREVOTE, 0, block.id, (0, 2))
    assert machine.missing(peer.status()) == Missing((vote_of(1, PREVOTE, 0, block.id),), ())
    assert machine.missing(machine.status()) == Missing((), ())


def test_a_peer_that_has_another_vote_of_an_equivocator_gets_the_second() -> None:
    ours, theirs = started(0), started(1)
    first, second = vote_of(3, PREVOTE, 0, NIL), vote_of(3, PREVOTE, 0, block_of(0).id)
    ours.step(VoteReceived(first))
    theirs.step(VoteReceived(second))
    assert deliver(theirs, ours.missing(theirs.status()))[-1] == Evidence(second, first)


def test_a_peer_many_rounds_behind_is_brought_to_the_present() -> None:
    machine, peer = started(0), started(1)
    go_to_round(machine, 40)
    go_to_round(machine, 40)
    deliver(peer, machine.missing(peer.status()))
    assert peer.round == 40


def test_a_peer_at_another_height_gets_nothing_from_this_machine() -> None:
    machine, _ = locked_machine()
    assert machine.missing(Status(2, 0, Step.PROPOSE, ())) == Missing((), ())


def test_a_proposal_that_a_peer_would_not_keep_does_not_block_the_others() -> None:
    """A leader that proposed many blocks must not keep the peer from getting what it needs."""
    machine = started(0)
    propose(machine, proposal_of(0, block_of(0)))
    propose(machine, proposal_of(1, block_of(1)))
    full = RoundStatus(1, (block_of(1, time_ms=7).id, block_of(1, time_ms=8).id), (), ())
    missing = machine.missing(Status(HEIGHT, 0, Step.PROPOSE, (full,)))
    assert missing.proposals == (proposal_of(0, block_of(0)),)


def test_a_bitmap_that_is_too_short_reads_as_zeros() -> None:
    machine = started(0)
    vote(machine, PREVOTE, 0, NIL, (3,))
    empty = RoundStatus(0, (), (Tally(NIL, b""),), ())
    assert machine.missing(Status(HEIGHT, 0, Step.PROPOSE, (empty,))).votes == (vote_of(3, PREVOTE, 0, NIL),)


def test_a_status_survives_the_wire() -> None:
    machine, block = locked_machine()
    vote(machine, PREVOTE, 0, NIL, (3,))
    vote(machine, PRECOMMIT, 0, block.id, (1,))
    status = machine.status()
    assert Status.from_bytes(status.to_bytes(), max_bytes=MAX_STATUS_BYTES) == status


def test_the_same_inputs_give_the_same_effects() -> None:
    def run() -> tuple[tuple[Effect, ...], Status]:
        machine, block = locked_machine()
        effects = go_to_round(machine, 2) + vote(machine, PRECOMMIT, 0, block.id, (1, 2))
        return effects, machine.status()

    assert run() == run()
