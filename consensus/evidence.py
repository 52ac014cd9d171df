"""What proves that a validator contradicted itself, and how a proof is made out of two signed messages.

A validator signs at most one proposal, one prevote and one precommit for each height and round of agreement: its log
sees to that (`storage.signer_wal`). Two different ones, signed by one key, prove the fault to anybody, whenever they
were signed and whatever else is known: no state and no clock is needed. What it costs is in `staking`.
"""

from .block import Proposal, Vote, VoteKind
from .rejection import Reason, Rejection
from .transaction import Evidence, SignedKind, Statement
from .types import AccountId, ChainId


def make_evidence(first: Vote | Proposal, second: Vote | Proposal) -> Evidence:
    """The proof that two signed messages of one key and slot are; the same one whichever message is first."""
    assert slot_of(first) == slot_of(second), "two messages of one slot"
    offender, kind, height, round_ = slot_of(first)
    lower, higher = sorted((_statement(first), _statement(second)), key=_rank)
    return Evidence(offender, kind, height, round_, lower, higher)


def verify_evidence(chain_id: ChainId, evidence: Evidence) -> None:
    """Check that an evidence proves what it says.

    Raises:
        Rejection: WRONG_EVIDENCE (the statements agree, aren't in order, or can't be of this kind), BAD_SIGNATURE.
    """
    if _rank(evidence.first) >= _rank(evidence.second):
        raise Rejection(Reason.WRONG_EVIDENCE, offender=evidence.offender, fault="the statements must ascend")
    for statement in (evidence.first, evidence.second):
        if evidence.kind is not SignedKind.PROPOSAL and statement.valid_round != -1:
            raise Rejection(Reason.WRONG_EVIDENCE, offender=evidence.offender, fault="a vote has no valid round")
        _message(evidence, statement).verify_signature(chain_id)


def slot_of(message: Vote | Proposal) -> tuple[AccountId, SignedKind, int, int]:
    """What a correct validator signs only once: its key, the kind of message, height and round."""
    if isinstance(message, Vote):
        return message.validator, SignedKind(message.kind), message.height, message.round
    return message.proposer, SignedKind.PROPOSAL, message.height, message.round


def _statement(message: Vote | Proposal) -> Statement:
    valid_round = -1 if isinstance(message, Vote) else message.valid_round
    return Statement(message.block_id, valid_round, message.signature)


def _rank(statement: Statement) -> tuple[bytes, int]:
    return statement.block_id, statement.valid_round


def _message(evidence: Evidence, statement: Statement) -> Vote | Proposal:
    height, round_, offender = evidence.height, evidence.round, evidence.offender
    if evidence.kind is SignedKind.PROPOSAL:
        valid_round = statement.valid_round
        return Proposal(height, round_, valid_round, statement.block_id, offender, statement.signature)
    kind = VoteKind(evidence.kind)
    return Vote(kind, height, round_, statement.block_id, offender, statement.signature)
