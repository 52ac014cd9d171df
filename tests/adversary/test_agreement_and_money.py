"""Attacks on agreement, money and pay that fail: each test is named after what an attacker can't do.

What belongs here: hostile sequences of blocks, votes and transactions against `bflnode.consensus`. Rules one by one are
tested beside their modules, random play in `tests/properties`, schedules of messages in `tests/simulation`.
"""

from dataclasses import replace

import pytest

from bflnode.consensus.block import Block, Header
from bflnode.consensus.ledger import validate_block
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.task import Exclusion, Phase
from bflnode.consensus.types import MAX_INTEGER, MAX_TIME_MS
from tests.consensus.harness import Harness


def hostile_header(harness: Harness, **fields: int) -> Header:
    """The header of an otherwise correct next block, with these fields."""
    block, _ = harness.build(harness.context(), ())
    return replace(block.header, **fields)


def test_a_leader_cannot_stop_everybody_with_a_time_whose_deadlines_are_no_integers() -> None:
    harness = Harness()
    harness.register_all()
    block = Block(hostile_header(harness, time_ms=MAX_INTEGER), (harness.unbond(1, 5),), harness.last_commit)
    with pytest.raises(Rejection) as caught:
        Block.from_bytes(block.encoded, max_bytes=len(block.encoded))
    assert caught.value.reason is Reason.MALFORMED


def test_the_latest_time_of_a_header_stops_nobody() -> None:
    """Unbonding, an offence and new deadlines at the end of time are executed like any other."""
    harness = Harness(parameters={"unbonding_ms": 365 * 86_400_000, "max_step_ms": 86_400_000})
    harness.register_all()
    context = replace(harness.context(), time_ms=MAX_TIME_MS)
    block, execution = harness.build(context, [harness.unbond(1, 5), harness.evidence(2, 3)])
    assert len(block.transactions) == 2
    travelled = Block.from_bytes(block.encoded, max_bytes=len(block.encoded))
    assert validate_block(harness.genesis, harness.tree, harness.header, travelled) == execution


def test_revealed_models_of_an_attempt_that_hostile_validators_end_are_not_free_for_the_taking() -> None:
    """All aggregators in line sign something twice once models are revealed: the attempt is void before REVEAL ends."""
    harness = Harness(actors=6, stakes=(100, 100, 100, 1, 1, 1), queue=(3, 4, 5))
    harness.register_all()
    harness.play_to(Phase.REVEAL)
    stolen = harness.model(0)
    harness.block(harness.reveal(0), harness.reveal(1))
    harness.block(*(harness.evidence(5, offender) for offender in (3, 4, 5)))
    assert (harness.slot.attempt, harness.phase) == (1, Phase.COMMIT)
    harness.block(harness.commit(5, stolen))
    harness.block(*(harness.commit(actor) for actor in range(5)))
    harness.block(harness.reveal(5, stolen), *(harness.reveal(actor) for actor in range(5)))
    assert harness.phase is Phase.AVAILABLE
    assert [client.exclusion for client in harness.round.clients] == [Exclusion.NONE] * 5 + [Exclusion.COPY]


def test_a_hostile_queue_cannot_jail_by_one_honest_miss_in_each_window() -> None:
    """Three of ten lead round 0 of all heights and leave one out; once in a window an honest leader lacks its vote."""
    window = {"attendance_window": 20, "missed_to_jail": 19}
    harness = Harness(actors=10, stakes=(10,) * 10, queue=(0, 1, 2), specifications=(), parameters=window)
    harness.absent = frozenset({9})
    for height in range(60):
        harness.block(round_=1 if height % 20 == 5 else 0)
    assert harness.voting == tuple(range(10))


def test_whoever_is_really_gone_is_jailed_by_the_word_of_all() -> None:
    harness = Harness(
        actors=10, stakes=(10,) * 10, specifications=(), parameters={"attendance_window": 20, "missed_to_jail": 19}
    )
    harness.absent = frozenset({9})
    for _ in range(20):
        harness.block()
    assert harness.voting == tuple(range(9))
