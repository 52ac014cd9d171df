"""What a forged light chain proves against those who signed it.

Two blocks of one height are both final only if validators with more than a third of the stake signed both. Where they
did so in one round of agreement, their precommits are two votes for one slot, which is evidence as any other. Where the
rounds differ, each signed once in a slot: they broke their lock ("amnesia"), which two commits can't show, since a
correct validator may change its vote once it has seen a quorum of prevotes for the other block.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .evidence import make_evidence, verify_evidence
from .light import LightChain, SignedHeader, sets_of
from .quorum import ValidatorSet
from .rejection import Rejection
from .transaction import Evidence
from .types import AccountId, ChainId
from .votes import votes_in

Known = Callable[[int], tuple[SignedHeader, ValidatorSet] | None]
"""The real block of a height with its validators; None where it isn't known."""


@dataclass(frozen=True, slots=True)
class Forgery:
    """A block that isn't the real one of its height.

    Attributes:
        forged: the block, as the light chain has it.
        real: as the comparing side has it.
        evidence: against each validator that signed both in one round of agreement.
    """

    forged: SignedHeader
    real: SignedHeader
    evidence: tuple[Evidence, ...]


def find_forgeries(chain_id: ChainId, chain: LightChain, known: Known) -> tuple[Forgery, ...]:
    """Compare a light chain with the real one.

    Args:
        chain_id: of the real one.
        chain: what somebody was given; nothing in it need hold.
        known: the real blocks.

    Raises:
        Rejection: MALFORMED for sets of validators that are none.
    """
    sets = sets_of(chain)
    found = []
    for forged in chain.steps:
        entry = known(forged.header.height)
        if entry is None or entry[0].header.id == forged.header.id:
            continue
        real, validators = entry
        own = sets.get(forged.header.validators_hash, validators)
        found.append(Forgery(forged, real, _double_votes(chain_id, (forged, own), (real, validators))))
    return tuple(found)


def _double_votes(
    chain_id: ChainId, forged: tuple[SignedHeader, ValidatorSet], real: tuple[SignedHeader, ValidatorSet]
) -> tuple[Evidence, ...]:
    """Evidence out of two commits of one height; what is no evidence, as by a false signature, is left out."""
    first, second = forged[0].commit, real[0].commit
    if (first.height, first.round) != (second.height, second.round) or first.block_id == second.block_id:
        return ()
    votes = {vote.validator: vote for vote in votes_in(second, real[1])}
    evidence: dict[AccountId, Evidence] = {}
    for vote in votes_in(first, forged[1]):
        if vote.validator in votes:
            made = make_evidence(vote, votes[vote.validator])
            try:
                verify_evidence(chain_id, made)
            except Rejection:
                continue
            evidence[vote.validator] = made
    return tuple(evidence.values())
