"""Tendermint (Buchman, Kwon, Milosevic 2018, arXiv 1807.04938, algorithm 1) as a pure machine for one height.

`Machine.step(input) -> effects`: no clock, key, file or network. Each rule carries the paper's line numbers. Inputs,
effects and what a driver owes the machine are in `agreement`. Whether a block is valid is decided in `ledger`; who
leads in `leaders`; signatures are checked before a message becomes an input.

Where it differs from the paper, and why:

- Quorums are stake: more than two thirds of all of it for 2f+1, more than a third for f+1.
- Round 0 sleeps until there is work or any message of the height (blocks on demand).
- getValue() is an effect and an input, so the leader has a propose timeout too, lest a failed build stops it.
- A proposal with validRound >= 0 carries the prevotes of that round, so line 28 doesn't wait for them. Without that one
  equivocator can keep honest validators apart: each has other prevotes of it.
- valid(v) has two parts. The ledger's verdict counts everywhere; whether the time in the header is near the local
  clock only in line 23, or a validator with a wrong clock could not follow the others' decision.
- Messages of rounds >= r from more than a third of the stake skip to r (line 55 asks for messages of r itself): one of
  them is honest and has reached r, which is what the line is about, and nobody is lost who is many rounds behind.
- Memory is bounded: see the limits in `agreement` and `votes`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from .agreement import (
    MAX_MISSING_VOTES,
    MAX_PROPOSALS_LISTED,
    ROUNDS_AHEAD,
    ROUNDS_BEHIND,
    BlockBuilt,
    BuildBlock,
    Decide,
    Effect,
    Evidence,
    Input,
    Missing,
    Persist,
    ProposalReceived,
    RoundStatus,
    Schedule,
    SendProposal,
    SendVote,
    SignerRecord,
    SignProposal,
    SignVote,
    Status,
    Step,
    TimeoutElapsed,
    ValidValue,
    VoteReceived,
    WorkAvailable,
)
from .block import NIL, Block, Commit, CommitSignature, Proposal, ProposalMessage, Vote, VoteKind
from .genesis import Parameters
from .quorum import ValidatorSet
from .rejection import Reason, Rejection
from .types import AccountId, BlockId
from .votes import VoteBook

Leader: TypeAlias = Callable[[int], AccountId]
"""Who leads a round of this height: a pure function of state, cheap for any round."""

MAX_PROPOSALS_KEPT = 2
"""Different proposals of one round that are kept unasked: two are evidence. Any further one is kept only if more than
a third of the stake voted for it (fewer than six blocks can have that): it may be decided."""

PREVOTE, PRECOMMIT = VoteKind.PREVOTE, VoteKind.PRECOMMIT


@dataclass(frozen=True, slots=True)
class _Held:
    """A proposal that is kept, with the verdicts on it."""

    message: ProposalMessage
    is_valid: bool
    is_timely: bool


class Machine:
    """Agreement on one height, for one validator or, with an account that isn't one, for an observer.

    Call `start` once, then `step` for every input. Deterministic: the same calls give the same effects.

    Attributes:
        height: the height agreed on.
        round: the current round.
        current_step: the current step of the round.
    """

    def __init__(
        self,
        account: AccountId | None,
        parameters: Parameters,
        *,
        height: int,
        validators: ValidatorSet,
        leader: Leader,
    ) -> None:
        self.height = height
        self.round = 0
        self.current_step = Step.PROPOSE
        self._account = account if account is not None and account in validators else None
        self._parameters = parameters
        self._validators = validators
        self._leader = leader
        self._votes = VoteBook(validators)
        self._proposals: dict[int, dict[BlockId, _Held]] = {}
        self._accused_leaders: set[int] = set()
        self._highest_rounds: dict[AccountId, int] = {}
        self._locked_round = -1
        self._locked_id = NIL
        self._valid: ValidValue | None = None
        self._is_awake = False
        self._is_building = False
        self._has_polka = False
        self._has_prevote_timeout = False
        self._has_precommit_timeout = False
        self._effects: list[Effect] = []

    def start(self, records: Iterable[SignerRecord] = ()) -> tuple[Effect, ...]:
        """Begin the height, or go on where the signer's records of this height end.

        Args:
            records: what the signer WAL holds of this height, in the order in which it was written. Own messages
                among them are sent again.
        """
        for record in records:
            self._restore(record)
        if not self._effects:
            self._start_round(0)
            return self._finish()
        self._is_awake = True
        if self.current_step is Step.PROPOSE:
            self._begin_propose()
        return self._finish()

    def step(self, event: Input) -> tuple[Effect, ...]:
        """Take one input and say what must be done, in order; nothing once the height is decided.

        Raises:
            Rejection: a proposal or vote that no correct validator sends; nothing has changed. WRONG_HEIGHT,
                UNKNOWN_VALIDATOR, WRONG_PROPOSER, WRONG_ROUND, WRONG_HASH, NO_QUORUM or MALFORMED.
        """
        if self.current_step is Step.DECIDED:
            return ()
        match event:
            case ProposalReceived():
                self._receive_proposal(event)
            case VoteReceived(vote):
                self._receive_vote(vote)
            case TimeoutElapsed():
                self._time_out(event)
            case BlockBuilt(block):
                self._propose_built(block)
            case WorkAvailable():
                self._wake()
            case _:
                assert_never(event)
        return self._finish()

    def wants(self, message: ProposalMessage | Vote) -> bool:
        """Whether a message of this height could change anything, if its signatures are right: it costs nothing to ask.

        Raises:
            Rejection: as `step` does.
        """
        if isinstance(message, Vote):
            self._check_vote(message)
            return self._is_news(message)
        self._check_proposal(message)
        return (
            self.keeps(message)
            or self._is_ahead(message.proposal.proposer, message.proposal.round)
            or self._contradicted(message.proposal) is not None
            or any(self._is_news(vote) for vote in message.certificate)
        )

    def keeps(self, message: ProposalMessage) -> bool:
        """Whether a proposal would be kept: only then the verdict on its block counts."""
        proposal = message.proposal
        held = self._proposals.get(proposal.round, {})
        if not self._is_kept(proposal.round) or proposal.block_id in held:
            return False
        return len(held) < MAX_PROPOSALS_KEPT or self._votes.has_third_for(proposal.round, proposal.block_id)

    @property
    def leader(self) -> AccountId:
        """Who leads the current round."""
        return self._leader(self.round)

    @property
    def is_awake(self) -> bool:
        """Whether anything happened at this height: a sleeping machine waits for work without a timeout."""
        return self._is_awake

    @property
    def has_decided(self) -> bool:
        """Whether `Decide` has been given out."""
        return self.current_step is Step.DECIDED

    def precommits(self, round_: int) -> tuple[Vote, ...]:
        """All precommits of a round that are known, in the order of validators."""
        return self._votes.votes_of(round_, PRECOMMIT)

    def status(self) -> Status:
        """Where this node is and what it has, for peers to send what it lacks."""
        rounds = range(max(0, self.round - ROUNDS_BEHIND), self.round + ROUNDS_AHEAD + 1)
        statuses = (self._round_status(round_) for round_ in rounds)
        listed = tuple(status for status in statuses if status.proposals or status.prevotes or status.precommits)
        return Status(self.height, self.round, self.current_step, listed)

    def missing(self, status: Status) -> Missing:
        """What this node has and a peer with this status lacks: one proposal and `MAX_MISSING_VOTES` votes at most.

        The latest rounds come first, because from them the peer can skip to the present.
        """
        if status.height != self.height:
            return Missing((), ())
        theirs = {entry.round: entry for entry in status.rounds}
        proposals: list[ProposalMessage] = []
        votes: list[Vote] = []
        first = max(0, self.round - ROUNDS_BEHIND, status.round - ROUNDS_BEHIND)
        for round_ in range(self.round + ROUNDS_AHEAD, first - 1, -1):
            is_kept_there = round_ <= status.round + ROUNDS_AHEAD
            if not is_kept_there and round_ < self.round:
                continue
            entry = theirs.get(round_, RoundStatus(round_, (), (), ()))
            if is_kept_there:
                proposals += self._missing_proposals(entry)
            votes += self._votes.missing(round_, PRECOMMIT, entry.precommits)
            votes += self._votes.missing(round_, PREVOTE, entry.prevotes)
        return Missing(tuple(votes[:MAX_MISSING_VOTES]), tuple(proposals[:1]))

    def _missing_proposals(self, entry: RoundStatus) -> tuple[ProposalMessage, ...]:
        """The proposals of a round that a peer lacks and would keep."""
        return tuple(
            held.message
            for block_id, held in self._proposals.get(entry.round, {}).items()
            if block_id not in entry.proposals
            and (len(entry.proposals) < MAX_PROPOSALS_KEPT or self._votes.has_third_for(entry.round, block_id))
        )

    # Inputs

    def _receive_proposal(self, event: ProposalReceived) -> None:
        message = event.message
        self._check_proposal(message)
        proposal = message.proposal
        self._note_round(proposal.proposer, proposal.round)
        for vote in message.certificate:
            self._add_vote(vote)
        contradicted = self._contradicted(proposal)
        if contradicted is not None:
            self._accused_leaders.add(proposal.round)
            self._effects.append(Evidence(contradicted, proposal))
        if self.keeps(message):
            held = self._proposals.setdefault(proposal.round, {})
            held[proposal.block_id] = _Held(message, event.is_valid, event.is_timely)
        self._wake()

    def _check_proposal(self, message: ProposalMessage) -> None:
        """Check all that can be checked without the ledger; raises `Rejection`."""
        proposal, header = message.proposal, message.block.header
        if proposal.height != self.height or header.height != self.height:
            raise Rejection(Reason.WRONG_HEIGHT, proposal=proposal.height, block=header.height, machine=self.height)
        if proposal.block_id != message.block.id:
            raise Rejection(Reason.WRONG_HASH, proposal=proposal.block_id, block=message.block.id)
        leader = self._leader(proposal.round)
        if proposal.proposer != leader:
            raise Rejection(Reason.WRONG_PROPOSER, round=proposal.round, proposer=proposal.proposer, leader=leader)
        if header.proposer != self._leader(header.round):
            raise Rejection(Reason.WRONG_PROPOSER, header_round=header.round, header_proposer=header.proposer)
        if proposal.valid_round == -1:
            if header.round != proposal.round:
                raise Rejection(Reason.WRONG_ROUND, proposal=proposal.round, header=header.round)
            if message.certificate:
                raise Rejection(Reason.MALFORMED, fault="a first proposal carries no certificate")
        else:
            if not header.round <= proposal.valid_round < proposal.round:
                raise Rejection(
                    Reason.WRONG_ROUND, proposal=proposal.round, valid=proposal.valid_round, header=header.round
                )
            self._check_certificate(message)

    def _check_certificate(self, message: ProposalMessage) -> None:
        """Check that a re-proposal carries a quorum of prevotes for its block in its valid round."""
        proposal = message.proposal
        for vote in message.certificate:
            slot = (vote.kind, vote.height, vote.round, vote.block_id)
            if slot != (PREVOTE, self.height, proposal.valid_round, proposal.block_id):
                raise Rejection(Reason.MALFORMED, fault="a vote in the certificate is no prevote of the valid round")
            self._check_validator(vote.validator)
        voters = {vote.validator for vote in message.certificate}
        if len(voters) != len(message.certificate):
            raise Rejection(Reason.DUPLICATE, fault="a validator is twice in the certificate")
        weight = self._validators.weight_of(voters)
        if not self._validators.is_quorum(weight):
            raise Rejection(Reason.NO_QUORUM, weight=weight, total=self._validators.total)

    def _check_validator(self, account: AccountId) -> None:
        if account not in self._validators:
            raise Rejection(Reason.UNKNOWN_VALIDATOR, validator=account, height=self.height)

    def _contradicted(self, proposal: Proposal) -> Proposal | None:
        """What the same leader proposed differently, unless it was accused for that round already."""
        if proposal.round in self._accused_leaders:
            return None
        for kept in self._proposals.get(proposal.round, {}).values():
            other = kept.message.proposal
            if (other.block_id, other.valid_round) != (proposal.block_id, proposal.valid_round):
                return other
        return None

    def _receive_vote(self, vote: Vote) -> None:
        self._check_vote(vote)
        self._add_vote(vote)
        self._wake()

    def _check_vote(self, vote: Vote) -> None:
        if vote.height != self.height:
            raise Rejection(Reason.WRONG_HEIGHT, vote=vote.height, machine=self.height)
        self._check_validator(vote.validator)

    def _is_news(self, vote: Vote) -> bool:
        is_counted = self._is_kept(vote.round) and self._votes.is_new(vote)
        return is_counted or self._is_ahead(vote.validator, vote.round)

    def _add_vote(self, vote: Vote) -> None:
        self._note_round(vote.validator, vote.round)
        if not self._is_kept(vote.round):
            return
        added = self._votes.add(vote)
        if added.contradicted is not None:
            self._effects.append(Evidence(added.contradicted, vote))

    def _note_round(self, account: AccountId, round_: int) -> None:
        self._highest_rounds[account] = max(round_, self._highest_rounds.get(account, 0))

    def _is_ahead(self, account: AccountId, round_: int) -> bool:
        """Whether a validator is in a later round than was known: enough of them are followed there."""
        return round_ > self._highest_rounds.get(account, 0)

    def _is_kept(self, round_: int) -> bool:
        return self.round - ROUNDS_BEHIND <= round_ <= self.round + ROUNDS_AHEAD

    def _time_out(self, timeout: TimeoutElapsed) -> None:
        """Lines 57-67: act on a timeout of this round and step, ignore any other.

        The precommit timeout (line 65) needs only the round: it fires whatever the step.
        """
        if (timeout.height, timeout.round) != (self.height, self.round):
            return
        if timeout.step is Step.PROPOSE and self.current_step is Step.PROPOSE:
            self._vote(PREVOTE, NIL)  # lines 57-60
        elif timeout.step is Step.PREVOTE and self.current_step is Step.PREVOTE:
            self._vote(PRECOMMIT, NIL)  # lines 61-64
        elif timeout.step is Step.PRECOMMIT:
            self._start_round(self.round + 1)  # lines 65-67

    def _propose_built(self, block: Block) -> None:
        """Lines 18-19 for a new value. Ignored if the round has gone on while the block was built."""
        is_current = (block.header.height, block.header.round) == (self.height, self.round)
        if is_current and self._is_building and self.current_step is Step.PROPOSE:
            self._is_building = False
            self._effects.append(SignProposal(self.height, self.round, -1, block, ()))

    def _wake(self) -> None:
        """Blocks on demand: whatever happens at a height ends the sleep of round 0."""
        if not self._is_awake:
            self._is_awake = True
            self._begin_propose()

    # Rounds

    def _start_round(self, round_: int) -> None:
        """Lines 11-13."""
        self.round = round_
        self.current_step = Step.PROPOSE
        self._is_building = False
        self._has_polka = self._has_prevote_timeout = self._has_precommit_timeout = False
        first = round_ - ROUNDS_BEHIND
        self._votes.keep_rounds(first)
        self._proposals = {kept: held for kept, held in self._proposals.items() if kept >= first}
        self._accused_leaders = {accused for accused in self._accused_leaders if accused >= first}
        self._is_awake = self._is_awake or round_ > 0
        if self._is_awake:
            self._begin_propose()

    def _begin_propose(self) -> None:
        """Lines 14-21: propose if it is our turn (again what is valid, else something new), and limit the wait."""
        has_proposed = bool(self._proposals.get(self.round))
        if self._account is not None and self.leader == self._account and not has_proposed:
            if self._valid is not None:
                valid = self._valid
                self._effects.append(SignProposal(self.height, self.round, valid.round, valid.block, valid.prevotes))
            else:
                self._is_building = True
                self._effects.append(BuildBlock(self.height, self.round))
        self._schedule(Step.PROPOSE)

    def _schedule(self, step: Step) -> None:
        first_ms = self._parameters.propose_timeout_ms if step is Step.PROPOSE else self._parameters.vote_timeout_ms
        duration_ms = first_ms + self.round * self._parameters.timeout_step_ms
        self._effects.append(Schedule(TimeoutElapsed(self.height, self.round, step), duration_ms))

    def _vote(self, kind: VoteKind, block_id: BlockId) -> None:
        """Vote and go on to the step named like the vote; an observer only goes on."""
        self.current_step = Step(kind)
        if self._account is not None:
            self._effects.append(SignVote(kind, self.height, self.round, block_id))

    # Rules: each says whether it did something

    def _finish(self) -> tuple[Effect, ...]:
        """Apply the rules until none applies, and hand out the effects.

        Line 49 comes first, since a decision makes the rest superfluous; 36 before 34, 44 and 47, since a block is
        better than waiting for one.
        """
        rules = (
            self._decide_line_49,
            self._skip_line_55,
            self._prevote_line_22,
            self._prevote_line_28,
            self._lock_line_36,
            self._precommit_nil_line_44,
            self._await_prevotes_line_34,
            self._await_precommits_line_47,
        )
        while self.current_step is not Step.DECIDED and any(rule() for rule in rules):
            pass
        effects, self._effects = tuple(self._effects), []
        return effects

    def _prevote_line_22(self) -> bool:
        """Lines 22-27: prevote a new proposal if it is valid, timely and no other block is locked."""
        if self.current_step is not Step.PROPOSE:
            return False
        for block_id, held in self._proposals.get(self.round, {}).items():
            if held.message.proposal.valid_round == -1:
                is_free = self._locked_round == -1 or self._locked_id == block_id
                self._vote(PREVOTE, block_id if held.is_valid and held.is_timely and is_free else NIL)
                return True
        return False

    def _prevote_line_28(self) -> bool:
        """Lines 28-33: prevote a re-proposal unless locked, in a later round than its valid one, on another block.

        The 2f+1 prevotes of validRound were checked with the certificate, without which no re-proposal is kept.
        """
        if self.current_step is not Step.PROPOSE:
            return False
        for block_id, held in self._proposals.get(self.round, {}).items():
            valid_round = held.message.proposal.valid_round
            if valid_round >= 0:
                is_free = self._locked_round <= valid_round or self._locked_id == block_id
                self._vote(PREVOTE, block_id if held.is_valid and is_free else NIL)
                return True
        return False

    def _await_prevotes_line_34(self) -> bool:
        """Lines 34-35: 2f+1 prevotes for anything, for the first time while waiting for them: limit the wait."""
        is_first = self.current_step is Step.PREVOTE and not self._has_prevote_timeout
        if not is_first or not self._votes.has_quorum_of_any(self.round, PREVOTE):
            return False
        self._has_prevote_timeout = True
        self._schedule(Step.PREVOTE)
        return True

    def _lock_line_36(self) -> bool:
        """Lines 36-43: 2f+1 prevotes for a valid proposal, for the first time: lock it, precommit; it is valid.

        The valid value is persisted before the precommit: a restarted node must be able to propose what it locked.
        """
        if self._has_polka or self.current_step not in (Step.PREVOTE, Step.PRECOMMIT):
            return False
        for block_id, held in self._proposals.get(self.round, {}).items():
            if held.is_valid and self._votes.has_quorum_for(self.round, PREVOTE, block_id):
                break
        else:
            return False
        self._has_polka = True
        prevotes = self._votes.votes_for(self.round, PREVOTE, block_id)
        message = held.message
        is_persisted = self._account is None or (self._valid is not None and self._valid.round == self.round)
        self._valid = ValidValue(message.proposal, message.block, message.certificate, prevotes)
        if not is_persisted:
            self._effects.append(Persist(self._valid))
        if self.current_step is Step.PREVOTE:
            self._locked_round, self._locked_id = self.round, block_id
            self._vote(PRECOMMIT, block_id)
        return True

    def _precommit_nil_line_44(self) -> bool:
        """Lines 44-46: 2f+1 prevotes for nil: precommit nil."""
        if self.current_step is not Step.PREVOTE or not self._votes.has_quorum_for(self.round, PREVOTE, NIL):
            return False
        self._vote(PRECOMMIT, NIL)
        return True

    def _await_precommits_line_47(self) -> bool:
        """Lines 47-48: 2f+1 precommits for anything, for the first time: limit the wait."""
        if self._has_precommit_timeout or not self._votes.has_quorum_of_any(self.round, PRECOMMIT):
            return False
        self._has_precommit_timeout = True
        self._schedule(Step.PRECOMMIT)
        return True

    def _decide_line_49(self) -> bool:
        """Lines 49-54: 2f+1 precommits for a valid proposal of any round: decide. The next height is a new machine."""
        for round_, proposals in self._proposals.items():
            for block_id, held in proposals.items():
                if held.is_valid and self._votes.has_quorum_for(round_, PRECOMMIT, block_id):
                    self.current_step = Step.DECIDED
                    self._effects.append(Decide(held.message.block, self._commit(round_, block_id)))
                    return True
        return False

    def _commit(self, round_: int, block_id: BlockId) -> Commit:
        signatures = []
        for vote in self._votes.votes_for(round_, PRECOMMIT, block_id):
            index = self._validators.index_of(vote.validator)
            assert index is not None, "only validators' votes are counted"
            signatures.append(CommitSignature(index, vote.signature))
        return Commit(self.height, round_, block_id, tuple(signatures))

    def _skip_line_55(self) -> bool:
        """Lines 55-56: validators with more than a third of the stake are in later rounds: join the first of them."""
        weight = 0
        for account, round_ in sorted(self._highest_rounds.items(), key=lambda entry: (-entry[1], entry[0])):
            if round_ <= self.round:
                return False
            weight += self._validators.stake_of(account)
            if self._validators.exceeds_third(weight):
                self._start_round(round_)
                return True
        return False

    # Restart and status

    def _restore(self, record: SignerRecord) -> None:
        """Take in one record of the WAL; an own message is sent again."""
        match record:
            case Vote() if record.height == self.height and record.validator == self._account:
                self._restore_vote(record)
            case ProposalMessage(proposal) if proposal.height == self.height and proposal.proposer == self._account:
                self._restore_slot(proposal.round, Step.PROPOSE)
                self._restore_proposal(record)
                self._effects.append(SendProposal(record))
            case ValidValue(proposal) if proposal.height == self.height:
                self._restore_proposal(record.message)
                for vote in record.prevotes:
                    self._votes.add(vote)
                self._valid = record

    def _restore_vote(self, vote: Vote) -> None:
        """An own vote; one for a block in line 36 is the lock."""
        self._restore_slot(vote.round, Step(vote.kind))
        self._votes.add(vote)
        if vote.kind is PRECOMMIT and vote.block_id != NIL:
            self._locked_round, self._locked_id = vote.round, vote.block_id
        self._effects.append(SendVote(vote))

    def _restore_slot(self, round_: int, step: Step) -> None:
        self.round, self.current_step = max((self.round, self.current_step), (round_, step))

    def _restore_proposal(self, message: ProposalMessage) -> None:
        self._proposals.setdefault(message.proposal.round, {})[message.block.id] = _Held(message, True, True)
        for vote in message.certificate:
            self._votes.add(vote)

    def _round_status(self, round_: int) -> RoundStatus:
        proposals = tuple(self._proposals.get(round_, {}))[:MAX_PROPOSALS_LISTED]
        return RoundStatus(
            round_, proposals, self._votes.tallies(round_, PREVOTE), self._votes.tallies(round_, PRECOMMIT)
        )
