"""Who leads agreement and who aggregates: CACC, BFLN's consensus from clustering and its packing queue.

Pure functions of state that choose among validators. They decide nothing about safety, which rests on two thirds of all
stake (`quorum`, `machine`): a bad choice here costs time.
"""

from .hashing import tagged_hash
from .quorum import ValidatorSet
from .state import StateReader
from .tables import current_beacon, current_queue, current_round, current_validators
from .task import LINE_LENGTH, Phase
from .transaction import Slot
from .types import AccountId, Hash

GOLDEN_RATIO = 0x9E37_79B9_7F4A_7C15
"""The golden ratio's fractional part, times 2**64: the most evenly spread of all sequences of multiples."""


def leader(
    queue: tuple[AccountId, ...], validators: ValidatorSet, acting: AccountId | None, *, height: int, round_: int
) -> AccountId:
    """Who may propose in a round of agreement.

    While a learning round is in AGGREGATE its acting aggregator leads at round 0: the packer is the aggregator. Else
    even rounds go through the packing queue, odd ones through all validators, so that a queue of dead members costs one
    time-out per block and not one for each of them; with an empty queue all rounds go through the validators. These
    have turns by their stake: many validators of little stake can't keep the others waiting.

    Args:
        queue: the packing queue; members that are no validators are passed over.
        validators: of this height, at least one.
        acting: the aggregator that must act now, if any.
        height: the height to be decided.
        round_: the round of agreement at that height, from 0.
    """
    if round_ == 0 and acting is not None and acting in validators:
        return acting
    bonded = tuple(account for account in queue if account in validators)
    if not bonded:
        return in_turn(validators, height + round_)
    turn = height + round_ // 2
    return bonded[turn % len(bonded)] if round_ % 2 == 0 else in_turn(validators, turn)


def in_turn(validators: ValidatorSet, turn: int) -> AccountId:
    """Who has a turn among all validators: each in proportion to its stake, spread as evenly as can be.

    Turn t takes the stake at the fraction `t * phi` of the total, phi the golden ratio (Weyl's sequence, as in
    Fibonacci hashing): whoever has less than 38 % of the stake never has two turns in a row.
    """
    fraction = turn * GOLDEN_RATIO % 2**64
    return validators.owner_of(fraction * validators.total >> 64)


def current_leader(reader: StateReader, height: int, round_: int) -> AccountId:
    """Who may propose in a round of agreement on the block that follows a state."""
    learning = current_round(reader)
    acting = learning.aggregator if learning is not None and learning.phase is Phase.AGGREGATE else None
    return leader(current_queue(reader), current_validators(reader), acting, height=height, round_=round_)


def aggregator_line(
    queue: tuple[AccountId, ...], validators: ValidatorSet, beacon: Hash, slot: Slot
) -> tuple[AccountId, ...]:
    """The aggregators of one attempt, the acting one first, then its replacements: at most LINE_LENGTH validators.

    The packing queue comes first; where it is too short, validators follow that are drawn by the beacon, each with a
    chance in proportion to its stake, anew for each attempt, so that a retry doesn't meet the same dead ones.
    """
    line = list(dict.fromkeys(account for account in queue if account in validators))[:LINE_LENGTH]
    others = [validator for validator in validators.validators if validator.account not in line]
    while others and len(line) < LINE_LENGTH:
        left = ValidatorSet(tuple(others))
        digest = tagged_hash("line", beacon, slot.to_bytes(), len(line).to_bytes(1, "big"))
        line.append(left.owner_of(int.from_bytes(digest, "big") % left.total))
        others = [validator for validator in others if validator.account != line[-1]]
    return tuple(line)


def aggregators(reader: StateReader, slot: Slot) -> tuple[AccountId, ...]:
    """The line of aggregators of a learning round: the recorded one while it runs, else what it would be now."""
    current = current_round(reader)
    if current is not None and current.slot == slot:
        return tuple(member.account for member in current.line)
    return aggregator_line(current_queue(reader), current_validators(reader), current_beacon(reader), slot)
