"""The precommits of the last decided block: those it was decided with, and those that came later.

A block is final with two thirds of the stake, and the rest of the precommits arrive when nobody waits for them any
more. They count nevertheless: the next proposer puts all it has into the block, since who is missing there is taken for
absent; and who signed something else than others have seen is found out.
"""

from collections.abc import Iterable

from bflnode.consensus.block import Commit, CommitSignature, Vote, VoteKind
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.types import AccountId
from bflnode.consensus.votes import VoteBook, votes_in


class DecidedVotes:
    """What is known of who precommitted the last block, in the round that decided it."""

    def __init__(self, validators: ValidatorSet, commit: Commit, votes: Iterable[Vote] = ()) -> None:
        """Begin with what was known at the decision.

        Args:
            validators: those that voted on the block.
            commit: of the block.
            votes: precommits of the commit's round, also for other blocks; their signatures are verified.
        """
        self.validators = validators
        self._last = commit
        self._book = VoteBook(validators)
        # The commit's first: of who signed several things only two are kept, and a commit must stay one.
        for vote in (*self.votes_in(commit), *votes):
            self._book.add(vote)

    @property
    def commit(self) -> Commit:
        """The commit with every precommit for the block that is known."""
        last = self._last
        entries = []
        for vote in self._book.votes_for(last.round, VoteKind.PRECOMMIT, last.block_id):
            index = self.validators.index_of(vote.validator)
            assert index is not None, "only validators' votes are kept"
            entries.append(CommitSignature(index, vote.signature))
        return Commit(last.height, last.round, last.block_id, tuple(entries))

    def precommit_of(self, account: AccountId) -> Vote | None:
        """The precommit of a validator for the decided block, where it is known."""
        last = self._last
        precommits = self._book.votes_for(last.round, VoteKind.PRECOMMIT, last.block_id)
        return next((vote for vote in precommits if vote.validator == account), None)

    def concerns(self, vote: Vote) -> bool:
        """Whether a vote is a precommit of the round that decided."""
        last = self._last
        return (vote.kind, vote.height, vote.round) == (VoteKind.PRECOMMIT, last.height, last.round)

    def votes_in(self, commit: Commit) -> tuple[Vote, ...]:
        """The precommits that a verified commit of this block holds, if it is of the same round."""
        if (commit.height, commit.round) != (self._last.height, self._last.round):
            return ()
        return votes_in(commit, self.validators)

    def is_new(self, vote: Vote) -> bool:
        """Whether a vote that this concerns says something that isn't known."""
        return self._book.is_new(vote)

    def add(self, vote: Vote) -> Vote | None:
        """Keep a verified precommit of a validator; give back the earlier one that it contradicts."""
        return self._book.add(vote).contradicted
