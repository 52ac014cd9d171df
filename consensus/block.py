"""Blocks, votes, proposals and commits: the records of agreement, their ids and their signatures.

    block  = [header, transactions, last_commit]
    commit = [height, round, block_id, [[validator index, signature], …]]

Whether a block is valid on top of a state is decided in `ledger`; who may propose it in `leaders`; when it is decided
in `machine`. "Round" in this module is a round of agreement at one height, not a learning round.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import Annotated

from .encoding import encode
from .hashing import tagged_hash
from .keys import SecretKey, verify
from .merkle import merkle_root
from .records import Record
from .rejection import Reason, Rejection
from .transaction import Transaction
from .types import (
    MAX_VALIDATORS,
    AccountId,
    AtMost,
    Between,
    BlockId,
    ChainId,
    Hash,
    HeaderTime,
    Signature,
    Unsigned,
)

BLOCK_VERSION = 1

MAX_BLOCK_BYTES = 1024 * 1024
"""Largest block: one gossip-free stream message."""

MAX_BLOCK_TRANSACTIONS = 2_000
"""Most transactions in a block: bounds the time to apply one."""

MAX_ROUND = 1_000_000
"""Largest round of agreement at one height: at one second each, eleven days without a block."""

NIL = BlockId(bytes(32))
"""The block id in a vote for no block."""


@dataclass(frozen=True, slots=True)
class Validator(Record):
    """Someone who votes, with the stake that weighs the vote."""

    account: AccountId
    stake: Annotated[int, Between(1, 2**53)]


@dataclass(frozen=True, slots=True)
class CommitSignature(Record):
    """One validator's precommit inside a commit."""

    index: Annotated[int, Between(0, MAX_VALIDATORS - 1)]
    signature: Signature


@dataclass(frozen=True, slots=True)
class Commit(Record):
    """Precommits of more than two thirds of the stake for one block; indexes ascend."""

    height: Unsigned
    round: Annotated[int, Between(0, MAX_ROUND)]
    block_id: BlockId
    signatures: Annotated[tuple[CommitSignature, ...], AtMost(MAX_VALIDATORS)]


@dataclass(frozen=True, slots=True)
class Header(Record):
    """What validators agree on. `state_root` is the state after the block; `beacon` the one in force after it."""

    version: Annotated[int, Between(BLOCK_VERSION, BLOCK_VERSION)]
    chain_id: ChainId
    height: Annotated[int, Between(1, 2**53)]
    round: Annotated[int, Between(0, MAX_ROUND)]
    time_ms: HeaderTime
    parent: BlockId
    proposer: AccountId
    transactions_root: Hash
    last_commit_hash: Hash
    validators_hash: Hash
    next_validators_hash: Hash
    state_root: Hash
    beacon: Hash

    @property
    def id(self) -> BlockId:
        """The block's id: the tagged hash of its header."""
        return BlockId(tagged_hash("block", self.to_bytes()))


@dataclass(frozen=True)
class Block(Record):
    """A header with what it commits to."""

    header: Header
    transactions: Annotated[tuple[Transaction, ...], AtMost(MAX_BLOCK_TRANSACTIONS)]
    last_commit: Commit

    @cached_property
    def id(self) -> BlockId:
        """The id of the header."""
        return self.header.id

    @property
    def height(self) -> int:
        """The height in the header."""
        return self.header.height

    @cached_property
    def encoded(self) -> bytes:
        """Canonical bytes of the whole block."""
        return self.to_bytes()


def transactions_root(transactions: tuple[Transaction, ...]) -> Hash:
    """RFC 6962 root over the canonical bytes of a block's transactions."""
    return merkle_root([transaction.encoded for transaction in transactions])


def commit_hash(commit: Commit) -> Hash:
    """What the next header says of this commit."""
    return tagged_hash("commit-hash", commit.to_bytes())


def verify_body(block: Block) -> None:
    """Check that a block's body is the one its header names: the id is the header's, and says nothing of another body.

    Raises:
        Rejection: WRONG_ROOT.
    """
    header = block.header
    pairs = (
        ("transactions", header.transactions_root, transactions_root(block.transactions)),
        ("last commit", header.last_commit_hash, commit_hash(block.last_commit)),
    )
    for what, claimed, computed in pairs:
        if claimed != computed:
            raise Rejection(Reason.WRONG_ROOT, what=what, claimed=claimed, computed=computed)


def genesis_commit(chain_id: ChainId) -> Commit:
    """The commit that block 1 carries: of the genesis, by nobody."""
    return Commit(0, 0, BlockId(chain_id), ())


class VoteKind(IntEnum):
    """The two votes of Tendermint (arXiv 1807.04938)."""

    PREVOTE = 1
    PRECOMMIT = 2


@dataclass(frozen=True, slots=True)
class Vote(Record):
    """A validator's signed vote; `block_id` is NIL for none.

    The signature covers everything but the validator, whose key it names anyway: so the signatures of a commit can be
    checked from the commit alone.
    """

    kind: VoteKind
    height: Annotated[int, Between(1, 2**53)]
    round: Annotated[int, Between(0, MAX_ROUND)]
    block_id: BlockId
    validator: AccountId
    signature: Signature

    def verify_signature(self, chain_id: ChainId) -> None:
        """Check the validator's signature.

        Raises:
            Rejection: BAD_SIGNATURE.
        """
        payload = vote_payload(self.kind, self.height, self.round, self.block_id)
        verify(self.validator, "vote", chain_id, payload, self.signature)


@dataclass(frozen=True, slots=True)
class Proposal(Record):
    """A proposer's signed statement that a block is its proposal for (height, round).

    `valid_round` is -1 for a new block, else the round in which the block had a quorum of prevotes (a re-proposal).
    A re-proposed block keeps its original header, so the proposer of the round need not be the header's.
    """

    height: Annotated[int, Between(1, 2**53)]
    round: Annotated[int, Between(0, MAX_ROUND)]
    valid_round: Annotated[int, Between(-1, MAX_ROUND)]
    block_id: BlockId
    proposer: AccountId
    signature: Signature

    def verify_signature(self, chain_id: ChainId) -> None:
        """Check the proposer's signature.

        Raises:
            Rejection: BAD_SIGNATURE.
        """
        verify(self.proposer, "proposal", chain_id, proposal_payload(self), self.signature)


@dataclass(frozen=True, slots=True)
class ProposalMessage(Record):
    """A proposal as it travels: with its block, and for a re-proposal the prevotes of its valid round.

    Without that certificate one equivocator can keep honest validators apart for ever.
    """

    proposal: Proposal
    block: Block
    certificate: Annotated[tuple[Vote, ...], AtMost(MAX_VALIDATORS)]


def vote_payload(kind: VoteKind, height: int, round_: int, block_id: BlockId) -> bytes:
    """The canonical bytes that a vote's signature covers."""
    return encode((int(kind), height, round_, block_id))


def proposal_payload(proposal: Proposal) -> bytes:
    """The canonical bytes that a proposal's signature covers."""
    return encode((proposal.height, proposal.round, proposal.valid_round, proposal.block_id))


def sign_vote(key: SecretKey, chain_id: ChainId, kind: VoteKind, height: int, round_: int, block_id: BlockId) -> Vote:
    """Make a vote. Callers go through the signer WAL, which refuses a second, different vote."""
    signature = key.sign("vote", chain_id, vote_payload(kind, height, round_, block_id))
    return Vote(kind, height, round_, block_id, key.account, signature)


def sign_proposal(
    key: SecretKey, chain_id: ChainId, *, height: int, round_: int, valid_round: int, block_id: BlockId
) -> Proposal:
    """Make a proposal. Callers go through the signer WAL."""
    unsigned = Proposal(height, round_, valid_round, block_id, key.account, Signature(bytes(64)))
    return replace(unsigned, signature=key.sign("proposal", chain_id, proposal_payload(unsigned)))
