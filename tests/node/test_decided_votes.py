"""What is known of the last block's precommits: late ones count, contradictions are found, others don't concern it."""

from bflnode.consensus.block import NIL, Commit, CommitSignature, Validator, VoteKind, sign_vote
from bflnode.consensus.block import Vote as BlockVote
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.ledger import verify_commit
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.types import BlockId, ChainId
from bflnode.node.decided_votes import DecidedVotes

CHAIN = ChainId(bytes(32))
KEYS = sorted((SecretKey.from_seed(bytes([number]) * 32) for number in range(1, 5)), key=lambda key: key.account)
VALIDATORS = ValidatorSet(tuple(Validator(key.account, 10) for key in KEYS))
BLOCK, OTHER = BlockId(bytes([1]) * 32), BlockId(bytes([2]) * 32)
HEIGHT, ROUND = 7, 2


def vote(
    voter: int,
    block_id: BlockId = BLOCK,
    *,
    kind: VoteKind = VoteKind.PRECOMMIT,
    height: int = HEIGHT,
    round_: int = ROUND,
) -> BlockVote:
    return sign_vote(KEYS[voter], CHAIN, kind, height, round_, block_id)


def commit_of(*voters: int, block_id: BlockId = BLOCK, round_: int = ROUND) -> Commit:
    signatures = (CommitSignature(voter, vote(voter, block_id, round_=round_).signature) for voter in voters)
    return Commit(HEIGHT, round_, block_id, tuple(signatures))


def test_a_late_precommit_joins_the_commit_in_order() -> None:
    decided = DecidedVotes(VALIDATORS, commit_of(0, 2, 3))
    assert decided.commit == commit_of(0, 2, 3)
    assert decided.add(vote(1)) is None
    assert decided.commit == commit_of(0, 1, 2, 3)
    verify_commit(CHAIN, VALIDATORS, decided.commit)
    assert decided.add(vote(1)) is None
    assert decided.commit == commit_of(0, 1, 2, 3)


def test_votes_known_at_the_decision_join_too() -> None:
    assert DecidedVotes(VALIDATORS, commit_of(0, 2, 3), [vote(1)]).commit == commit_of(0, 1, 2, 3)


def test_a_precommit_for_something_else_contradicts_and_does_not_join() -> None:
    decided = DecidedVotes(VALIDATORS, commit_of(0, 1, 2))
    assert decided.add(vote(2, OTHER)) == vote(2)
    assert decided.add(vote(3, NIL)) is None
    assert decided.commit == commit_of(0, 1, 2)
    assert decided.add(vote(3)) == vote(3, NIL)


def test_the_commit_in_the_next_block_shows_what_was_signed_elsewhere() -> None:
    decided = DecidedVotes(VALIDATORS, commit_of(0, 1, 2), [vote(3, OTHER)])
    contradicted = [decided.add(found) for found in decided.votes_in(commit_of(0, 2, 3))]
    assert contradicted == [None, None, vote(3, OTHER)]


def test_other_heights_rounds_and_kinds_do_not_concern_it() -> None:
    decided = DecidedVotes(VALIDATORS, commit_of(0, 1, 2))
    assert decided.concerns(vote(3))
    assert decided.concerns(vote(3, NIL))
    others = (vote(3, height=8), vote(3, round_=1), vote(3, kind=VoteKind.PREVOTE))
    assert not any(decided.concerns(other) for other in others)
    assert decided.votes_in(commit_of(0, 1, 2, round_=1)) == ()


def test_who_signed_three_things_does_not_take_the_commit_below_its_quorum() -> None:
    """Else whoever has seen the other two would propose a block that nobody accepts."""
    decided = DecidedVotes(VALIDATORS, commit_of(0, 1, 3), [vote(3, OTHER), vote(3, NIL)])
    assert decided.commit == commit_of(0, 1, 3)
    verify_commit(CHAIN, VALIDATORS, decided.commit)
