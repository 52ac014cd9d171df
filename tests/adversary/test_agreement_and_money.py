"""Attacks on agreement, money and pay that fail: each test is named after what an attacker can't do.

What belongs here: hostile sequences of blocks, votes and transactions against `bflnode.consensus`. Rules one by one are
tested beside their modules, random play in `tests/properties`, schedules of messages in `tests/simulation`.
"""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from bflnode.consensus.block import Block, Header, commit_hash
from bflnode.consensus.ledger import genesis_state, validate_block
from bflnode.consensus.rejection import Premature, Reason, Rejection
from bflnode.consensus.snapshot import read_entries, write_entries
from bflnode.consensus.state import StateTree
from bflnode.consensus.tables import SETTLED, settled_key
from bflnode.consensus.task import Exclusion, Phase, ProbeMode, TaskStatus
from bflnode.consensus.transaction import Fault
from bflnode.consensus.types import MAX_INTEGER, MAX_TIME_MS, Hash
from tests.consensus.harness import Harness
from tests.consensus.setups import OUTSIDER


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


def test_a_reveal_that_was_kept_out_until_its_deadline_counts_nowhere_whoever_hands_it_in() -> None:
    """It names task, round and attempt, and so does the commitment that it opens: it fits no later phase or slot."""
    harness = Harness(actors=4, rounds=2)
    harness.register_all()
    harness.play_to(Phase.REVEAL)
    late, body = harness.reveal(0), harness.reveal(0).body
    assert harness.rejection(harness.sign(1, body)).reason is Reason.COMMITMENT_MISMATCH
    others = (1, 2, 3)
    refused = set()
    number = harness.task.round
    while harness.task.status is TaskStatus.RUNNING and harness.task.round == number:
        if harness.phase is not Phase.REVEAL:
            refusal = harness.rejection(late)
            assert not isinstance(refusal, Premature), "nobody keeps it for later"
            refused.add((harness.phase, refusal.reason))
        harness.step(others if harness.phase is Phase.REVEAL else None)
        if harness.task.round == number and harness.phase is Phase.REVEAL:
            harness.wait_until_due()
    later = (Phase.AVAILABLE, Phase.AGGREGATE, Phase.ATTEST)
    assert refused == {(phase, Reason.WRONG_PHASE) for phase in later}
    assert harness.rejection(late).reason is Reason.WRONG_ROUND
    assert harness.offer(late) == ()
    settled = SETTLED.get(harness.tree, settled_key(harness.task_id, number))
    assert settled is not None
    assert [client.exclusion for client in settled.clients] == [Exclusion.NO_REVEAL] + [Exclusion.NONE] * 3


def test_a_model_whose_reveal_was_kept_out_is_safe_from_nobody_like_any_model_with_a_changed_bit() -> None:
    """A limit, not a defence: the chain knows as seen what it has seen, and a changed copy is another model."""
    harness = Harness(actors=4, rounds=2)
    harness.register_all()
    harness.play_to(Phase.REVEAL)
    censored, public = harness.model(0), harness.model(1)
    harness.block(*(harness.reveal(actor) for actor in (1, 2, 3)))
    harness.wait_until_due()
    harness.play_round()
    harness.block(harness.commit(0), harness.commit(1), harness.commit(2, public), harness.commit(3, censored))
    harness.block(harness.reveal(0), harness.reveal(1), harness.reveal(2, public), harness.reveal(3, censored))
    assert [client.exclusion for client in harness.round.clients] == [
        Exclusion.NONE,
        Exclusion.NONE,
        Exclusion.COPY,
        Exclusion.NONE,
    ]


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


def test_amounts_at_the_edge_of_the_integers_move_nothing() -> None:
    harness = Harness(balance=1_000)
    transactions = (
        harness.transfer(0, harness.account(1), MAX_INTEGER),
        harness.transfer(0, harness.account(1), MAX_INTEGER, fee=MAX_INTEGER),
        harness.transfer(0, harness.account(0), 1_000, fee=1),
        harness.bond(0, MAX_INTEGER, fee=MAX_INTEGER),
        harness.unbond(0, MAX_INTEGER),
        harness.transfer(0, harness.account(1), 1, nonce=MAX_INTEGER),
    )
    for transaction in transactions:
        harness.rejection(transaction)
    assert harness.offer(*transactions) == ()
    assert (harness.balance(0), harness.balance(1), harness.stake(0).bonded) == (1_000, 1_000, 10)


def test_nothing_that_was_in_a_block_pays_a_second_time() -> None:
    """All transactions of two learning rounds again, in order and backwards: not one is valid."""
    harness = Harness(rounds=2)
    harness.block(harness.admit(OUTSIDER), harness.transfer(0, harness.account(1), 7, fee=3))
    harness.block(harness.bond(0, 5), harness.unbond(1, 2), harness.evidence(OUTSIDER, 3))
    harness.register_all()
    harness.play_round()
    harness.play_round()
    past = [transaction for block in harness.blocks for transaction in block.transactions]
    assert len(past) == 39
    assert harness.offer(*past, *reversed(past)) == ()


def test_no_mixture_of_unbonding_and_evidence_in_one_block_leaves_no_validator() -> None:
    harness = Harness(stakes=(10, 10, 10, 10), specifications=())
    harness.absent = frozenset({3})
    harness.block()
    leaving = [harness.unbond(actor, 10) for actor in range(4)]
    accused = [harness.evidence(OUTSIDER, actor) for actor in range(4)]
    for order in ([*leaving, *accused], [*accused, *leaving], [*leaving[:2], *accused[2:], *accused[:2], *leaving[2:]]):
        context = harness.context()
        block, execution = harness.build(context, order)
        assert validate_block(harness.genesis, harness.tree, harness.header, block) == execution
        assert len(execution.validators) == 1


def test_tombstones_of_whole_lines_in_one_block_end_a_task_and_lose_no_token() -> None:
    """Twelve validators of dust make four attempts void at once: that costs them, and the requester gets all back."""
    harness = Harness(actors=15, stakes=(100, 100, 100) + (2,) * 12, queue=tuple(range(3, 15)))
    harness.register_all()
    escrow, before = harness.task.escrow, harness.balance(0)
    harness.block(*(harness.evidence(OUTSIDER, offender) for offender in range(3, 15)))
    assert harness.task.status is TaskStatus.CANCELLED
    assert harness.balance(0) == before + escrow
    assert harness.voting == (0, 1, 2)
    assert harness.replayed().root == harness.tree.root


@pytest.mark.parametrize("seed", [0, 5])
def test_no_order_of_evidence_stake_verdicts_and_jumps_of_time_stops_who_executes_it(seed: int) -> None:
    """A proposer orders its block, names its time, and leaves up to a third of the stake out of a commit."""
    random = Random(seed)
    deadlines = {f"{phase}_ms": random.choice((1, 400, 5_000)) for phase in ("commit", "reveal", "available", "attest")}
    harness = Harness(
        actors=7,
        stakes=tuple(random.randint(3, 20) for _ in range(random.randint(1, 7))),
        clients_min=random.randint(1, 3),
        probe_mode=random.choice(tuple(ProbeMode)),
        deadlines=deadlines,
        parameters={"jail_ms": 1, "unbonding_ms": 500, "attendance_window": 3, "missed_to_jail": 1, "max_step_ms": 900},
    )
    for _ in range(35):
        answers = [harness.answer(actor, duty) for actor in range(7) for duty in harness.duties(actor)]
        if harness.phase is Phase.ATTEST:
            answers += [harness.attest(actor, random.choice(tuple(Fault))) for actor in harness.voting]
        if harness.phase is not None and random.random() < 0.3:
            answers += [harness.evidence(OUTSIDER, offender) for offender in harness.line[: random.randint(1, 3)]]
        actor = random.randrange(7)
        bonded = harness.stake(actor).bonded
        for made in (harness.unjail(actor), harness.leave(actor), harness.unbond(actor, max(1, bonded))):
            answers += [made] if random.random() < 0.3 else []
        answers.append(harness.bond(random.randrange(7), random.choice((1, 3, 10)), fee=random.choice((0, 5))))
        random.shuffle(answers)
        harness.absent = absent_of(random, harness)
        harness.offer(*answers, after_ms=random.choice((1, 100, 400, 6_000, 10**8)), round_=random.choice((0, 1, 7)))
    assert harness.replayed().root == harness.tree.root


def absent_of(random: Random, harness: Harness) -> frozenset[int]:
    """Some validators with less than a third of the stake."""
    voting = harness.voting
    left = total = sum(harness.stake(actor).bonded for actor in voting)
    absent = set()
    for actor in random.sample(voting, len(voting)):
        if 3 * (left - harness.stake(actor).bonded) > 2 * total:
            left -= harness.stake(actor).bonded
            absent.add(actor)
    return frozenset(absent)


def test_a_node_from_a_snapshot_of_any_height_goes_the_same_way() -> None:
    harness = Harness(rounds=2, parameters={"copy_memory_rounds": 1})
    harness.register_all()
    harness.play_round()
    harness.play_round()
    tree, parent = genesis_state(harness.genesis), None
    for block in harness.blocks:
        execution = validate_block(harness.genesis, tree, parent, block)
        tree = StateTree(read_entries(write_entries(tree.entries())))
        tree.apply(execution.changes)
        assert tree.root == block.header.state_root
        parent = block.header
    assert dict(tree.entries()) == dict(harness.tree.entries())


def test_a_block_with_anything_changed_is_refused_and_crashes_nobody() -> None:
    """What a hostile leader may send in place of each field of a header, and of the commit that it carries."""
    harness = Harness()
    harness.register_all()
    harness.step()
    block, _ = harness.build(harness.context(), [harness.unbond(1, 5), harness.evidence(2, 3)])
    header, commit = block.header, block.last_commit
    other = Hash(bytes(32))
    changes: dict[str, Any] = {
        "chain_id": other,
        "height": header.height + 1,
        "round": header.round + 1,
        "time_ms": harness.now_ms,
        "parent": other,
        "proposer": OUTSIDER.account,
        "transactions_root": other,
        "last_commit_hash": other,
        "validators_hash": other,
        "next_validators_hash": other,
        "state_root": other,
        "beacon": other,
    }
    hostile = [replace(block, header=replace(header, **{name: value})) for name, value in changes.items()]
    for signatures in ((), commit.signatures[:2], commit.signatures[::-1], commit.signatures[:1] * 4):
        carried = replace(commit, signatures=signatures)
        hostile.append(Block(replace(header, last_commit_hash=commit_hash(carried)), block.transactions, carried))
    hostile.append(Block(header, block.transactions[::-1], commit))
    for changed in hostile:
        travelled = Block.from_bytes(changed.encoded, max_bytes=len(changed.encoded))
        with pytest.raises(Rejection):
            validate_block(harness.genesis, harness.tree, harness.header, travelled)
    assert validate_block(harness.genesis, harness.tree, harness.header, block)
