"""What agreement has beyond algorithm 1 (ADR 9): evidence, bounds on memory, hostile messages, restarts and pulling."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bflnode.consensus.agreement import (
    MAX_STATUS_BYTES,
    ROUNDS_AHEAD,
    ROUNDS_BEHIND,
    Decide,
    Effect,
    Evidence,
    Missing,
    ProposalReceived,
    RoundStatus,
    SendProposal,
    SendVote,
    SignProposal,
    Status,
    Step,
    Tally,
    ValidValue,
    VoteReceived,
)
from bflnode.consensus.block import NIL, ProposalMessage, Vote, sign_vote
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.machine import MAX_PROPOSALS_KEPT, Machine
from bflnode.consensus.rejection import Reason, Rejection
from tests.consensus.machines import (
    CHAIN,
    HEIGHT,
    KEYS,
    PRECOMMIT,
    PREVOTE,
    block_of,
    certificate_of,
    go_to_round,
    locked_machine,
    machine_of,
    prevotes_of,
    proposal_of,
    propose,
    signed,
    started,
    timeout,
    vote,
    vote_of,
)

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
