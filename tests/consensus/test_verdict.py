"""What attestations amount to: thresholds by stake, and when nothing can change any more."""

from dataclasses import replace

import pytest

from bflnode.consensus.task import Attestation, LearningRound, Phase
from bflnode.consensus.transaction import Fault
from bflnode.consensus.verdict import Verdict, verdict_on
from tests.consensus.harness import Harness

GOOD, EXACT, TOLERANCE = Fault.NONE, Fault.OUTPUT_MISMATCH, Fault.MATRIX_MISMATCH
OPEN = Verdict(False, False, False, False)
SETTLED = Verdict(True, False, False, True)
BAD_BUT_OF_WHAT_KIND = Verdict(False, True, False, False)
BAD = Verdict(False, True, False, True)
SLASHED = Verdict(False, True, True, True)


def with_votes(harness: Harness, votes: tuple[Fault, ...]) -> LearningRound:
    """The running learning round as if the first members of the committee had attested."""
    current = harness.round
    assert current.aggregation is not None
    attestations = (
        Attestation(member.account, fault, b"", current.aggregation.transaction)
        for member, fault in zip(current.committee, votes, strict=False)
    )
    return replace(current, attestations=tuple(attestations))


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ((), OPEN),
        ((GOOD, GOOD, GOOD, GOOD), OPEN),
        ((GOOD, GOOD, GOOD, GOOD, GOOD), SETTLED),
        ((GOOD, GOOD, EXACT, TOLERANCE), OPEN),
        ((EXACT, EXACT), OPEN),
        ((EXACT, EXACT, EXACT), BAD_BUT_OF_WHAT_KIND),
        ((EXACT, EXACT, EXACT, EXACT), BAD_BUT_OF_WHAT_KIND),
        ((EXACT, EXACT, EXACT, EXACT, EXACT), SLASHED),
        ((EXACT, EXACT, TOLERANCE), BAD_BUT_OF_WHAT_KIND),
        ((EXACT, EXACT, EXACT, GOOD), BAD_BUT_OF_WHAT_KIND),
        ((EXACT, EXACT, EXACT, GOOD, GOOD), BAD),
        ((TOLERANCE, TOLERANCE, TOLERANCE), BAD),
    ],
)
def test_six_members_with_equal_stakes(votes: tuple[Fault, ...], expected: Verdict) -> None:
    """Five are more than two thirds of six, three more than a third; four and two are exactly that."""
    harness = Harness(actors=6, stakes=(10,) * 6)
    harness.register_all()
    harness.play_to(Phase.ATTEST)
    assert verdict_on(with_votes(harness, votes)) == expected


def test_stake_counts_and_not_heads() -> None:
    harness = Harness(actors=4, stakes=(70, 10, 10, 10))
    harness.register_all()
    harness.play_to(Phase.ATTEST)
    assert verdict_on(with_votes(harness, (EXACT,))) == SLASHED
    assert verdict_on(with_votes(harness, (GOOD,))) == SETTLED
