"""What the committee's attestations of an aggregation amount to, by stake.

More than two thirds that say good settle the learning round, more than a third that say bad hand the job on. More than
two thirds that found other outputs prove an exact fault, which costs stake; a third could be wrong together with the
Byzantine ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .quorum import ValidatorSet
from .task import LearningRound
from .transaction import Fault


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known so far; never good and bad at once.

    Attributes:
        is_good: to be settled and paid.
        is_bad: the aggregator is to be replaced.
        is_exact_fault: and slashed.
        is_final: no further attestation can change any of it.
    """

    is_good: bool
    is_bad: bool
    is_exact_fault: bool
    is_final: bool


def verdict_on(current: LearningRound) -> Verdict:
    """Count the attestations of a learning round."""
    committee = ValidatorSet(current.committee)

    def weight(is_counted: Callable[[Fault], bool]) -> int:
        return committee.weight_of(vote.account for vote in current.attestations if is_counted(vote.fault))

    good = weight(lambda fault: fault is Fault.NONE)
    exact = weight(lambda fault: fault is Fault.OUTPUT_MISMATCH)
    voted = weight(lambda _: True)
    is_good = committee.is_quorum(good)
    is_bad = committee.exceeds_third(voted - good)
    is_exact = committee.is_quorum(exact)
    can_be_exact = committee.is_quorum(committee.total - voted + exact)
    return Verdict(is_good, is_bad, is_exact, is_final=is_good or (is_bad and (is_exact or not can_be_exact)))
