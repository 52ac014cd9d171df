"""What goes into the agreement machine and what comes out: inputs, effects, signer records, status.

Only records live here: the vocabulary shared by `machine`, the signer WAL (`storage`), the driver (`node`) and the
simulator. What they mean for agreement is in `machine`.

Whoever drives a machine keeps this contract:

    effects of one `step` are executed in order;
    SignProposal, SignVote  = sign -> append to the WAL and fsync -> send to the others -> feed the own message back
    Persist                 = append to the WAL and fsync, before any later effect
    SendProposal, SendVote  = send again what the WAL holds already
    Schedule                = feed the timeout back after its duration, once
    BuildBlock              = ask the ledger, feed BlockBuilt back
    Decide                  = apply the block; then make the machine of the next height
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, TypeAlias

from .block import MAX_ROUND, Block, Commit, Proposal, ProposalMessage, Vote, VoteKind
from .records import Record
from .types import MAX_VALIDATORS, AtMost, Between, BlockId

MAX_HEIGHT = 2**53

ROUNDS_BEHIND = 8
"""Past rounds whose messages are kept: a precommit quorum of an old round still decides. Older ones need no memory: a
node that decided there hands out the commit, and a lock travels with its certificate."""

ROUNDS_AHEAD = 2
"""Later rounds whose messages are kept; of messages further ahead only the round is noted, for skipping, and they are
pulled after the skip."""

MAX_ROUNDS_KEPT = ROUNDS_BEHIND + 1 + ROUNDS_AHEAD

MAX_BLOCKS_VOTED = 8
"""Different votes listed for one round and kind in a status: nil, the proposal, and room for equivocators. What isn't
listed is sent once too often, no more."""

MAX_PROPOSALS_LISTED = 8
"""Proposals listed for one round in a status; see `machine.MAX_PROPOSALS_KEPT`."""

MAX_MISSING_VOTES = 512
"""Most votes in one answer to a status (about 75 kB); the next status asks for the rest."""

MAX_STATUS_BYTES = 128 * 1024
"""Largest status: 11 rounds of 8 proposals and 16 tallies with a bitmap of 256 validators are 10 kB; leaves room."""


class Step(IntEnum):
    """Where a validator is in a round; ordered, because a signer only goes forward."""

    PROPOSE = 0
    PREVOTE = 1
    PRECOMMIT = 2
    DECIDED = 3


@dataclass(frozen=True, slots=True)
class ValidValue(Record):
    """A proposal with the quorum of prevotes that made it valid (the paper's validValue and validRound).

    `certificate` is the proposal's own, as in `ProposalMessage`; `prevotes` are those of the proposal's round, and the
    certificate with which its block is proposed again. Flat, so that it is no deeper than a `ProposalMessage`.
    """

    proposal: Proposal
    block: Block
    certificate: Annotated[tuple[Vote, ...], AtMost(MAX_VALIDATORS)]
    prevotes: Annotated[tuple[Vote, ...], AtMost(MAX_VALIDATORS)]

    @property
    def round(self) -> int:
        """The round in which the block had its quorum of prevotes."""
        return self.proposal.round

    @property
    def message(self) -> ProposalMessage:
        """The proposal as it travels."""
        return ProposalMessage(self.proposal, self.block, self.certificate)


SignerRecord: TypeAlias = Vote | ProposalMessage | ValidValue
"""What a signer's WAL holds: own votes, own proposals, valid values. The lock is the last own precommit for a block."""


@dataclass(frozen=True, slots=True)
class ProposalReceived:
    """A proposal whose signature, and those of its certificate, are right.

    Attributes:
        message: the proposal.
        is_valid: what the ledger says of the block on top of the chain, whatever the clock says.
        is_timely: whether the header's time is within the tolerance of the local clock. Looked at for first proposals
            only, and only for the own prevote: a block that others agree on is decided by any clock.
    """

    message: ProposalMessage
    is_valid: bool
    is_timely: bool = True


@dataclass(frozen=True, slots=True)
class VoteReceived:
    """A vote whose signature is right."""

    vote: Vote


@dataclass(frozen=True, slots=True)
class TimeoutElapsed:
    """A scheduled timeout came; one of an earlier height, round or step changes nothing.

    `step` names the timeout: PROPOSE, PREVOTE or PRECOMMIT.
    """

    height: int
    round: int
    step: Step


@dataclass(frozen=True, slots=True)
class BlockBuilt:
    """The answer to `BuildBlock`; one that comes too late is ignored."""

    block: Block


@dataclass(frozen=True, slots=True)
class WorkAvailable:
    """A transaction waits, a deadline is due or the heartbeat came: a block is wanted. May be repeated."""


Input: TypeAlias = ProposalReceived | VoteReceived | TimeoutElapsed | BlockBuilt | WorkAvailable


@dataclass(frozen=True, slots=True)
class Persist:
    """Append to the WAL and fsync before anything later is done: a precommit relies on it."""

    record: ValidValue


@dataclass(frozen=True, slots=True)
class SignProposal:
    """Propose: sign, persist, send and feed back (with `is_valid` true)."""

    height: int
    round: int
    valid_round: int
    block: Block
    certificate: tuple[Vote, ...]


@dataclass(frozen=True, slots=True)
class SignVote:
    """Vote: sign, persist, send and feed back."""

    kind: VoteKind
    height: int
    round: int
    block_id: BlockId


@dataclass(frozen=True, slots=True)
class SendProposal:
    """After a restart: send an own proposal again."""

    message: ProposalMessage


@dataclass(frozen=True, slots=True)
class SendVote:
    """After a restart: send an own vote again."""

    vote: Vote


@dataclass(frozen=True, slots=True)
class Schedule:
    """Feed `timeout` back after `duration_ms`."""

    timeout: TimeoutElapsed
    duration_ms: int


@dataclass(frozen=True, slots=True)
class BuildBlock:
    """This node leads and has nothing to propose again: build a block whose header names this height and round."""

    height: int
    round: int


@dataclass(frozen=True, slots=True)
class Decide:
    """The block is final. `commit` holds every precommit for it that is known."""

    block: Block
    commit: Commit


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two different signed messages of one validator for the same slot."""

    first: Vote | Proposal
    second: Vote | Proposal


Effect: TypeAlias = (
    Persist | SignProposal | SignVote | SendProposal | SendVote | Schedule | BuildBlock | Decide | Evidence
)


@dataclass(frozen=True, slots=True)
class Tally(Record):
    """Who voted for one block (or nil): bit i (least significant first) is the validator with index i."""

    block_id: BlockId
    voters: Annotated[bytes, AtMost(MAX_VALIDATORS // 8)]


@dataclass(frozen=True, slots=True)
class RoundStatus(Record):
    """What a node has of one round: the blocks proposed and who voted for what."""

    round: Annotated[int, Between(0, MAX_ROUND)]
    proposals: Annotated[tuple[BlockId, ...], AtMost(MAX_PROPOSALS_LISTED)]
    prevotes: Annotated[tuple[Tally, ...], AtMost(MAX_BLOCKS_VOTED)]
    precommits: Annotated[tuple[Tally, ...], AtMost(MAX_BLOCKS_VOTED)]


@dataclass(frozen=True, slots=True)
class Status(Record):
    """Where a node is in agreement and what it has, so that others can send what it lacks."""

    height: Annotated[int, Between(1, MAX_HEIGHT)]
    round: Annotated[int, Between(0, MAX_ROUND)]
    step: Step
    rounds: Annotated[tuple[RoundStatus, ...], AtMost(MAX_ROUNDS_KEPT)]


@dataclass(frozen=True, slots=True)
class Missing:
    """What a peer lacks, most useful first; bounded, so that the peer's next status asks for the rest.

    The votes are sent first: they may make the peer keep a proposal that it would not have kept.
    """

    votes: tuple[Vote, ...]
    proposals: tuple[ProposalMessage, ...]
