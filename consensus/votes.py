"""The votes of one height: who voted for what, with how much stake, and who voted twice.

Votes come with their signatures checked. Memory is bounded: one validator has at most two different votes in a slot
(height, round, kind), which is enough for evidence, and `machine` says which rounds are kept. A validator that voted
twice counts for both blocks, once in the sum: as in the paper, where a message once received is never unreceived.
"""

from dataclasses import dataclass, field

from .agreement import MAX_BLOCKS_VOTED, Tally
from .block import Commit, Vote, VoteKind
from .quorum import ValidatorSet
from .types import AccountId, BlockId

MAX_VOTES_IN_SLOT = 2
"""Two different votes prove an equivocation; a third would only cost memory."""


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a vote: whether it was new, and the earlier vote that it contradicts."""

    is_new: bool
    contradicted: Vote | None = None


@dataclass(slots=True)
class _Slot:
    """All votes of one round and kind, in the order in which they came."""

    votes: dict[AccountId, tuple[Vote, ...]] = field(default_factory=dict)
    weights: dict[BlockId, int] = field(default_factory=dict)
    voted_weight: int = 0


class VoteBook:
    """Counts the votes of one height by stake."""

    def __init__(self, validators: ValidatorSet) -> None:
        self._validators = validators
        self._slots: dict[tuple[int, VoteKind], _Slot] = {}

    def is_new(self, vote: Vote) -> bool:
        """Whether adding a vote would change anything: it isn't known, and not the third in its slot."""
        earlier = self._slot(vote.round, vote.kind).votes.get(vote.validator, ())
        return len(earlier) < MAX_VOTES_IN_SLOT and all(vote.block_id != other.block_id for other in earlier)

    def add(self, vote: Vote) -> Added:
        """Count a validator's vote, if it is new."""
        if not self.is_new(vote):
            return Added(is_new=False)
        slot = self._slots.setdefault((vote.round, vote.kind), _Slot())
        earlier = slot.votes.get(vote.validator, ())
        stake = self._validators.stake_of(vote.validator)
        slot.votes[vote.validator] = (*earlier, vote)
        slot.weights[vote.block_id] = slot.weights.get(vote.block_id, 0) + stake
        if earlier:
            return Added(is_new=True, contradicted=earlier[0])
        slot.voted_weight += stake
        return Added(is_new=True)

    def has_quorum_for(self, round_: int, kind: VoteKind, block_id: BlockId) -> bool:
        """Whether more than two thirds of the stake voted for this block (or nil) in this round."""
        return self._validators.is_quorum(self._slot(round_, kind).weights.get(block_id, 0))

    def has_third_for(self, round_: int, block_id: BlockId) -> bool:
        """Whether more than a third of the stake prevoted or precommitted this block in this round."""
        weights = (self._slot(round_, kind).weights.get(block_id, 0) for kind in VoteKind)
        return self._validators.exceeds_third(max(weights))

    def has_quorum_of_any(self, round_: int, kind: VoteKind) -> bool:
        """Whether more than two thirds of the stake voted for anything in this round."""
        return self._validators.is_quorum(self._slot(round_, kind).voted_weight)

    def votes_for(self, round_: int, kind: VoteKind, block_id: BlockId) -> tuple[Vote, ...]:
        """The votes for one block (or nil), in the order of validators."""
        return tuple(vote for vote in self.votes_of(round_, kind) if vote.block_id == block_id)

    def votes_of(self, round_: int, kind: VoteKind) -> tuple[Vote, ...]:
        """All votes of a round and kind, in the order of validators."""
        votes = self._slot(round_, kind).votes
        return tuple(vote for account in self._validators.accounts for vote in votes.get(account, ()))

    def tallies(self, round_: int, kind: VoteKind) -> tuple[Tally, ...]:
        """Who voted for what, the heaviest first; at most `MAX_BLOCKS_VOTED` blocks."""
        weights = self._slot(round_, kind).weights
        heaviest = sorted(weights, key=lambda block_id: (-weights[block_id], block_id))[:MAX_BLOCKS_VOTED]
        return tuple(Tally(block_id, self._bitmap(round_, kind, block_id)) for block_id in heaviest)

    def missing(self, round_: int, kind: VoteKind, tallies: tuple[Tally, ...]) -> tuple[Vote, ...]:
        """The votes that somebody with these tallies lacks."""
        voters = {tally.block_id: tally.voters for tally in tallies}
        return tuple(
            vote
            for vote in self.votes_of(round_, kind)
            if not _has_bit(voters.get(vote.block_id, b""), self._index_of(vote.validator))
        )

    def keep_rounds(self, first: int) -> None:
        """Forget all rounds before `first`."""
        self._slots = {key: slot for key, slot in self._slots.items() if key[0] >= first}

    def _slot(self, round_: int, kind: VoteKind) -> _Slot:
        return self._slots.get((round_, kind)) or _Slot()

    def _bitmap(self, round_: int, kind: VoteKind, block_id: BlockId) -> bytes:
        bitmap = bytearray((len(self._validators) + 7) // 8)
        for vote in self.votes_for(round_, kind, block_id):
            index = self._index_of(vote.validator)
            bitmap[index // 8] |= 1 << index % 8
        return bytes(bitmap)

    def _index_of(self, account: AccountId) -> int:
        index = self._validators.index_of(account)
        assert index is not None, "only validators' votes are added"
        return index


def votes_in(commit: Commit, validators: ValidatorSet) -> tuple[Vote, ...]:
    """The precommits that a commit consists of; those of indexes that no validator has are left out."""
    slot = (VoteKind.PRECOMMIT, commit.height, commit.round, commit.block_id)
    known = (entry for entry in commit.signatures if entry.index < len(validators))
    return tuple(Vote(*slot, validators.validators[entry.index].account, entry.signature) for entry in known)


def _has_bit(bitmap: bytes, index: int) -> bool:
    return index // 8 < len(bitmap) and bool(bitmap[index // 8] >> index % 8 & 1)
