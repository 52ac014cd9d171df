"""CACC's leaders and line of aggregators; quotes are from the protocol's section on consensus."""

from bflnode.consensus.block import Validator
from bflnode.consensus.leaders import aggregator_line, aggregators, current_leader, leader
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
    assert [lead((C,), 5, round_) for round_ in (1, 3, 5, 7, 9)] == [A, B, C, D, E]


def test_empty_queue_takes_each_validator_in_turn() -> None:
    """with an empty queue always the latter."""
    assert [lead((), 5, round_) for round_ in range(6)] == [A, B, C, D, E, A]
    assert [lead((), height, 0) for height in range(5, 10)] == [A, B, C, D, E]


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
    assert lead((C,), 5, 1, acting=E) == A


def test_queue_member_without_bond_is_passed_over() -> None:
    """`q` = the packing queue (bonded validators only)."""
    stranger = AccountId(bytes(32))
    assert lead((stranger, C), 1, 0) == C
    assert lead((stranger,), 5, 0) == A
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
    assert filled == (drawn[1], drawn[0], drawn[2])


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
