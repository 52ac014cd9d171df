"""Blocks, votes and proposals: ids and signatures cover every field, and formats have their limits."""

from dataclasses import fields, replace
from typing import Any

import pytest

from bflnode.consensus.block import (
    BLOCK_VERSION,
    MAX_BLOCK_BYTES,
    MAX_BLOCK_TRANSACTIONS,
    MAX_ROUND,
    NIL,
    Block,
    Commit,
    CommitSignature,
    Header,
    Proposal,
    ProposalMessage,
    Vote,
    VoteKind,
    commit_hash,
    genesis_commit,
    sign_proposal,
    sign_vote,
    transactions_root,
    vote_payload,
)
from bflnode.consensus.encoding import MAX_DEPTH, Value, encode
from bflnode.consensus.hashing import tagged_hash
from bflnode.consensus.keys import SecretKey, verify
from bflnode.consensus.merkle import merkle_root
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.transaction import Aggregate, ProbeOpening, Slot, Transfer, sign_transaction
from bflnode.consensus.types import MAX_VALIDATORS, AccountId, BlobId, BlockId, ChainId, Hash, Signature

KEY = SecretKey.from_seed(b"k" * 32)
CHAIN = ChainId(b"c" * 32)
TRANSACTIONS = tuple(
    sign_transaction(KEY, CHAIN, Transfer(AccountId(b"t" * 32), amount), nonce=amount) for amount in range(3)
)
HEADER = Header(
    version=BLOCK_VERSION,
    chain_id=CHAIN,
    height=1,
    round=0,
    time_ms=1000,
    parent=BlockId(CHAIN),
    proposer=KEY.account,
    transactions_root=transactions_root(TRANSACTIONS),
    last_commit_hash=commit_hash(genesis_commit(CHAIN)),
    validators_hash=Hash(b"v" * 32),
    next_validators_hash=Hash(b"n" * 32),
    state_root=Hash(b"s" * 32),
    beacon=Hash(b"b" * 32),
)
BLOCK = Block(HEADER, TRANSACTIONS, genesis_commit(CHAIN))
VOTE = sign_vote(KEY, CHAIN, VoteKind.PRECOMMIT, 5, 2, BLOCK.id)
PROPOSAL = sign_proposal(KEY, CHAIN, height=5, round_=2, valid_round=1, block_id=BLOCK.id)


def is_valid(signed: Vote | Proposal, chain: ChainId = CHAIN) -> bool:
    try:
        signed.verify_signature(chain)
    except Rejection as rejection:
        return rejection.reason is not Reason.BAD_SIGNATURE
    return True


def other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1]) + value[1:]
    return VoteKind.PREVOTE if isinstance(value, VoteKind) else value + 1


def depth(value: Value) -> int:
    return 1 + max(map(depth, value), default=0) if isinstance(value, tuple) else 0


def test_block_id_is_the_tagged_hash_of_the_canonical_header() -> None:
    assert BLOCK.id == HEADER.id == tagged_hash("block", encode(HEADER.to_value()))


@pytest.mark.parametrize("field", [field.name for field in fields(Header)])
def test_changing_any_field_of_a_header_changes_the_block_id(field: str) -> None:
    assert replace(HEADER, **{field: other(getattr(HEADER, field))}).id != HEADER.id


def test_header_of_another_version_is_rejected() -> None:
    data = replace(HEADER, version=2).to_bytes()
    with pytest.raises(Rejection, match=r"Header\.version"):
        Header.from_bytes(data, max_bytes=1000)


def test_block_comes_back() -> None:
    decoded = Block.from_bytes(BLOCK.encoded, max_bytes=MAX_BLOCK_BYTES)
    assert decoded == BLOCK
    assert (decoded.id, decoded.height) == (BLOCK.id, 1)


def test_transactions_root_is_over_the_whole_signed_transactions_in_order() -> None:
    assert transactions_root(TRANSACTIONS) == merkle_root([each.encoded for each in TRANSACTIONS])
    assert transactions_root(TRANSACTIONS[::-1]) != transactions_root(TRANSACTIONS)
    resigned = replace(TRANSACTIONS[0], signature=Signature(bytes(64)))
    assert transactions_root((resigned, *TRANSACTIONS[1:])) != transactions_root(TRANSACTIONS)


def test_block_with_too_many_transactions_is_rejected() -> None:
    value = (HEADER.to_value(), (0,) * (MAX_BLOCK_TRANSACTIONS + 1), BLOCK.last_commit.to_value())
    with pytest.raises(Rejection, match=r"Block\.transactions, items=2001"):
        Block.from_value(value)


@pytest.mark.parametrize("field", [field.name for field in fields(Commit)])
def test_changing_any_field_of_a_commit_changes_its_hash(field: str) -> None:
    commit = Commit(4, 2, BLOCK.id, (CommitSignature(0, VOTE.signature),))
    changed = () if field == "signatures" else other(getattr(commit, field))
    assert commit_hash(replace(commit, **{field: changed})) != commit_hash(commit)


def test_largest_commit_takes_a_fiftieth_of_a_block() -> None:
    signatures = tuple(CommitSignature(index, Signature(bytes(64))) for index in range(MAX_VALIDATORS))
    commit = Commit(2**53, MAX_ROUND, NIL, signatures)
    assert len(commit.to_bytes()) < MAX_BLOCK_BYTES // 50
    assert Commit.from_bytes(commit.to_bytes(), max_bytes=MAX_BLOCK_BYTES) == commit


def test_genesis_commit_is_of_the_genesis_by_nobody() -> None:
    assert genesis_commit(CHAIN) == Commit(0, 0, BlockId(CHAIN), ())


def test_vote_is_valid_and_a_commit_can_check_its_signature_without_it() -> None:
    assert is_valid(VOTE)
    verify(KEY.account, "vote", CHAIN, vote_payload(VoteKind.PRECOMMIT, 5, 2, BLOCK.id), VOTE.signature)


@pytest.mark.parametrize("field", [field.name for field in fields(Vote)])
def test_changing_any_field_of_a_vote_breaks_its_signature(field: str) -> None:
    assert not is_valid(replace(VOTE, **{field: other(getattr(VOTE, field))}))


@pytest.mark.parametrize("field", [field.name for field in fields(Proposal)])
def test_changing_any_field_of_a_proposal_breaks_its_signature(field: str) -> None:
    assert is_valid(PROPOSAL)
    assert not is_valid(replace(PROPOSAL, **{field: other(getattr(PROPOSAL, field))}))


def test_votes_and_proposals_hold_on_one_chain_only() -> None:
    assert not is_valid(VOTE, ChainId(b"d" * 32))
    assert not is_valid(PROPOSAL, ChainId(b"d" * 32))


def test_signature_of_a_vote_is_none_of_a_proposal() -> None:
    """Equal payload bytes would not help: the kind of message is signed too."""
    payload = vote_payload(VoteKind.PRECOMMIT, 5, 2, BLOCK.id)
    with pytest.raises(Rejection) as refused:
        verify(KEY.account, "proposal", CHAIN, payload, VOTE.signature)
    assert refused.value.reason is Reason.BAD_SIGNATURE


def test_nil_is_no_block() -> None:
    assert bytes(32) == NIL
    assert is_valid(sign_vote(KEY, CHAIN, VoteKind.PREVOTE, 1, 0, NIL))


def test_deepest_proposal_message_uses_the_whole_depth_of_the_encoding() -> None:
    """So an envelope must carry it as a byte string."""
    opening = ProbeOpening(BlobId(b"b" * 32), Hash(b"s" * 32))
    body = Aggregate(Slot(Hash(b"t" * 32), 1, 0), b"", (), opening)
    block = replace(BLOCK, transactions=(sign_transaction(KEY, CHAIN, body),))
    message = ProposalMessage(PROPOSAL, block, (VOTE,))
    assert depth(message.to_value()) == MAX_DEPTH
    assert ProposalMessage.from_bytes(message.to_bytes(), max_bytes=2 * MAX_BLOCK_BYTES) == message
