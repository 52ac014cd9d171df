"""What proves that a key contradicted itself, and what doesn't."""

from dataclasses import replace
from itertools import product

import pytest

from bflnode.consensus.block import NIL, Proposal, Vote, VoteKind, sign_proposal, sign_vote
from bflnode.consensus.evidence import make_evidence, slot_of, verify_evidence
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.transaction import Evidence, SignedKind, Statement, Transaction, sign_transaction
from bflnode.consensus.types import BlockId, ChainId

CHAIN, OTHER_CHAIN = ChainId(bytes(32)), ChainId(bytes([1]) * 32)
KEY, OTHER_KEY = (SecretKey.from_seed(bytes([number]) * 32) for number in (7, 8))
A, B = BlockId(bytes([10]) * 32), BlockId(bytes([11]) * 32)


def vote(block_id: BlockId, kind: VoteKind = VoteKind.PRECOMMIT, chain: ChainId = CHAIN, key: SecretKey = KEY) -> Vote:
    return sign_vote(key, chain, kind, 5, 2, block_id)


def proposal(block_id: BlockId, valid_round: int = -1) -> Proposal:
    return sign_proposal(KEY, CHAIN, height=5, round_=2, valid_round=valid_round, block_id=block_id)


def refusal(evidence: Evidence) -> Reason:
    with pytest.raises(Rejection) as caught:
        verify_evidence(CHAIN, evidence)
    return caught.value.reason


@pytest.mark.parametrize("kind", VoteKind)
@pytest.mark.parametrize(("first", "second"), [(A, B), (B, A), (NIL, A)])
def test_two_votes_of_one_slot_are_a_proof(kind: VoteKind, first: BlockId, second: BlockId) -> None:
    evidence = make_evidence(vote(first, kind), vote(second, kind))
    verify_evidence(CHAIN, evidence)
    assert (evidence.offender, evidence.kind, evidence.height, evidence.round) == (KEY.account, kind, 5, 2)
    assert (evidence.first.block_id, evidence.second.block_id) == (min(first, second), max(first, second))


@pytest.mark.parametrize(("first", "second"), [((A, -1), (B, -1)), ((A, -1), (A, 1)), ((B, 0), (A, 1))])
def test_two_proposals_of_one_slot_are_a_proof(first: tuple[BlockId, int], second: tuple[BlockId, int]) -> None:
    """Another valid round with the same block is another proposal, too."""
    evidence = make_evidence(proposal(*first), proposal(*second))
    verify_evidence(CHAIN, evidence)
    assert evidence.kind is SignedKind.PROPOSAL
    assert evidence == make_evidence(proposal(*second), proposal(*first)), "one contradiction has one form"


def test_the_same_message_twice_is_no_proof() -> None:
    assert refusal(make_evidence(vote(A), vote(A))) is Reason.WRONG_EVIDENCE
    assert refusal(make_evidence(proposal(A), proposal(A))) is Reason.WRONG_EVIDENCE


def test_statements_in_another_order_are_refused() -> None:
    evidence = make_evidence(vote(A), vote(B))
    assert refusal(replace(evidence, first=evidence.second, second=evidence.first)) is Reason.WRONG_EVIDENCE


def test_votes_with_a_valid_round_are_refused() -> None:
    """Else one vote would be two statements."""
    evidence = make_evidence(vote(A), vote(B))
    assert refusal(replace(evidence, second=replace(evidence.second, valid_round=0))) is Reason.WRONG_EVIDENCE
    same = Statement(A, 0, evidence.first.signature)
    assert refusal(replace(evidence, second=same)) is Reason.WRONG_EVIDENCE


@pytest.mark.parametrize("part", ["first", "second"])
def test_a_forged_signature_is_refused(part: str) -> None:
    evidence = make_evidence(vote(A), vote(B))
    forged = {"first": vote(A, key=OTHER_KEY), "second": vote(B, key=OTHER_KEY)}[part]
    changed = replace(getattr(evidence, part), signature=forged.signature)
    assert refusal(replace(evidence, **{part: changed})) is Reason.BAD_SIGNATURE  # type: ignore[arg-type]  # by name


def test_messages_of_another_chain_slot_kind_or_key_prove_nothing() -> None:
    evidence = make_evidence(vote(A), vote(B))
    elsewhere = make_evidence(vote(A, chain=OTHER_CHAIN), vote(B, chain=OTHER_CHAIN))
    assert refusal(elsewhere) is Reason.BAD_SIGNATURE
    changes = (
        {"height": 6},
        {"round": 3},
        {"kind": SignedKind.PREVOTE},
        {"kind": SignedKind.PROPOSAL},
        {"offender": OTHER_KEY.account},
    )
    assert {refusal(replace(evidence, **change)) for change in changes} == {Reason.BAD_SIGNATURE}  # type: ignore[arg-type]  # by name


def test_slots_differ_by_key_kind_height_and_round() -> None:
    slots = {
        slot_of(sign_vote(key, CHAIN, kind, height, round_, A))
        for key, kind, height, round_ in product((KEY, OTHER_KEY), VoteKind, (5, 6), (2, 3))
    }
    assert len(slots) == 16
    assert slot_of(proposal(A)) == (KEY.account, SignedKind.PROPOSAL, 5, 2)


def test_evidence_travels_in_a_transaction_without_nonce() -> None:
    transaction = sign_transaction(OTHER_KEY, CHAIN, make_evidence(proposal(A), proposal(B)))
    again = Transaction.from_bytes(transaction.encoded, max_bytes=1_000)
    assert again == transaction
    assert not again.has_nonce
    fields = replace(transaction, nonce=1)
    with pytest.raises(Rejection) as caught:
        Transaction.from_bytes(fields.to_bytes(), max_bytes=1_000)
    assert caught.value.reason is Reason.MALFORMED
