"""CACC's leaders and line of aggregators; quotes are from the protocol's section on consensus."""

from collections import Counter
from itertools import pairwise

from bflnode.consensus.block import Validator
from bflnode.consensus.leaders import aggregator_line, aggregators, current_leader, in_turn, leader
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.task import LINE_LENGTH, Phase
from bflnode.consensus.transaction import Slot
from bflnode.consensus.types import AccountId, Hash
from tests.consensus.harness import Harness

ACCOUNTS = tuple(AccountId(bytes([number]) * 32) for number in range(1, 6))
VALIDATORS = ValidatorSet(tuple(Validator(account, 10) for account in ACCOUNTS))
A, B, C, D, E = ACCOUNTS
SLOT = Slot(Hash(bytes(32)), 1, 0)
BEACON = Hash(bytes(32))


def lead(queue: tuple[AccountId, ...], height: int, round_: int, acting: AccountId | None = None) -> AccountId:
    return leader(queue, VALIDATORS, acting, height=height, round_=round_)


def test_even_rounds_go_through_the_queue() -> None:
    """even r takes `q[(h + r/2) mod |q|]`."""
    queue = (C, A, E)
    assert [lead(queue, height, 0) for height in (3, 4, 5, 6)] == [C, A, E, C]
    assert [lead(queue, 3, round_) for round_ in (0, 2, 4, 6)] == [C, A, E, C]


def test_odd_rounds_go_through_all_validators() -> None:
    """odd r takes the next of *all* validators in turn."""
    found = [lead((C,), 5, round_) for round_ in range(1, 21, 2)]
    assert set(found) == set(ACCOUNTS)
    assert all(first != second for first, second in pairwise(found))


def test_empty_queue_takes_the_validators_in_turn() -> None:
    """with an empty queue always the latter."""
    rounds = [lead((), 5, round_) for round_ in range(10)]
    assert rounds == [lead((), height, 0) for height in range(5, 15)]
    assert set(Counter(rounds).values()) <= {1, 2, 3}
    assert set(rounds) == set(ACCOUNTS)


def test_turns_are_in_proportion_to_stake() -> None:
    small = (Validator(AccountId(bytes([9, number]) * 16), 1) for number in range(10))
    validators = ValidatorSet((Validator(A, 60), Validator(B, 30), *small))

    turns = Counter(in_turn(validators, turn) for turn in range(1_000))

    assert abs(turns[A] - 600) <= 5
    assert abs(turns[B] - 300) <= 5


def test_many_validators_of_little_stake_delay_nobody() -> None:
    """Among 200 silent ones with a hundredth of the stake, turns come to the others nearly always."""
    dust = {AccountId(bytes([number]) * 32) for number in range(10, 210)}
    large = (Validator(account, 4_000) for account in ACCOUNTS)
    validators = ValidatorSet((*large, *(Validator(account, 1) for account in dust)))

    silent = [leader((), validators, None, height=height, round_=0) in dust for height in range(1_000)]

    assert sum(silent) <= 20
    lines = [aggregator_line((), validators, Hash(bytes([number]) * 32), SLOT) for number in range(100)]
    assert all(any(account not in dust for account in line) for line in lines)


def test_queue_of_dead_members_costs_one_round_a_block() -> None:
    """a queue of dead or hostile members costs one time-out per block, not |q|."""
    dead = (A, B)
    for height in range(1, 21):
        leaders = [lead(dead, height, round_) for round_ in range(6)]
        assert any(account not in dead for account in leaders)


def test_acting_aggregator_leads_at_round_0_only() -> None:
    """while a round is in AGGREGATE the acting aggregator comes first, at round 0."""
    assert lead((C,), 5, 0, acting=E) == E
    assert lead((C,), 5, 2, acting=E) == C
    assert lead((C,), 5, 1, acting=E) == lead((C,), 5, 1)


def test_queue_member_without_bond_is_passed_over() -> None:
    """`q` = the packing queue (bonded validators only)."""
    stranger = AccountId(bytes(32))
    assert lead((stranger, C), 1, 0) == C
    assert lead((stranger,), 5, 0) == lead((), 5, 0)
    assert lead((C,), 5, 0, acting=stranger) == C


def test_current_leader_is_the_acting_aggregator_during_aggregate() -> None:
    harness = Harness(queue=(2, 3, 1))
    harness.register_all()
    harness.play_to(Phase.AGGREGATE)
    assert current_leader(harness.tree, harness.height + 1, 0) == harness.account(2)
    harness.wait_until_due()
    assert current_leader(harness.tree, harness.height + 1, 0) == harness.account(3)


def test_line_is_the_queue_then_validators_drawn_from_the_beacon() -> None:
    """Next aggregator = head of the queue; if it is empty, validators in an order drawn from the beacon."""
    assert aggregator_line((D, B, A, C), VALIDATORS, BEACON, SLOT) == (D, B, A)
    drawn = aggregator_line((), VALIDATORS, BEACON, SLOT)
    assert len(set(drawn)) == LINE_LENGTH
    filled = aggregator_line((drawn[1],), VALIDATORS, BEACON, SLOT)
    assert filled[0] == drawn[1]
    assert len(set(filled)) == LINE_LENGTH


def test_drawn_line_depends_on_the_beacon() -> None:
    lines = {aggregator_line((), VALIDATORS, Hash(bytes([number]) * 32), SLOT) for number in range(20)}
    assert len(lines) > 5
    assert {line[0] for line in lines} == set(ACCOUNTS)


def test_line_is_as_long_as_there_are_validators() -> None:
    alone = ValidatorSet((Validator(A, 1),))
    assert aggregator_line((), alone, BEACON, SLOT) == (A,)


def test_line_of_the_running_round_is_the_recorded_one() -> None:
    harness = Harness(queue=(2, 3, 1))
    harness.register_all()
    slot = harness.slot
    expected = tuple(harness.account(actor) for actor in (2, 3, 1))
    assert aggregators(harness.tree, slot) == expected
    harness.play_to(Phase.AGGREGATE)
    harness.wait_until_due()
    assert aggregators(harness.tree, slot) == expected
    assert aggregators(harness.tree, Slot(slot.task, 2, 0))[:2] == expected[1:]
