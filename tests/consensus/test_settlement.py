"""One rule, one test: what a settled or void attempt pays and leaves behind."""

from bflnode.consensus.hashing import tagged_hash
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.tables import MODELS, current_beacon
from bflnode.consensus.task import Exclusion, Phase, TaskStatus
from bflnode.consensus.transaction import Slot
from bflnode.consensus.types import TOKEN, BlobId
from bflnode.consensus.workspace import EventKind
from tests.consensus.harness import Harness, at_phase, opened
from tests.consensus.setups import DEADLINES

MEMORY = 2


def remembered(harness: Harness) -> dict[BlobId, int]:
    """The models seen, and in which learning round they were seen last."""
    return {BlobId(key[32:]): seen.number for key, seen in MODELS.scan(harness.tree, harness.task_id)}


def used_in(number: int, harness: Harness) -> set[BlobId]:
    """The models that a learning round began with, those that were revealed and what came of them."""
    settled = harness.settled(number)
    assert settled.aggregation is not None
    revealed = {client.revealed.model for client in settled.clients if client.revealed is not None}
    return {client.base for client in settled.clients} | revealed | set(settled.aggregation.outputs)


# SETTLE


def test_payouts_of_twelve_five_three_are_as_the_protocol_works_out() -> None:
    """(12, 5, 3) -> 1,342,697 / 556,180 / 331,461 net and 112,353 to the aggregator."""
    harness = Harness(actors=20, clusters=3, queue=(1,), balance=0)
    harness.labels = [0] * 12 + [1] * 5 + [2] * 3
    harness.register_all()
    settled = harness.play_round()
    assert [client.gross - client.fee for client in settled.clients] == (
        [1_342_697] * 12 + [556_180] * 5 + [331_461] * 3
    )
    assert settled.aggregator_income == 112_353
    assert harness.balance(0) == 1_342_697
    assert harness.balance(1) == 1_342_697 + 112_353, "the aggregator is a client too"
    assert harness.balance(19) == 331_461
    assert (harness.task.escrow, settled.reward) == (40 * TOKEN, 20 * TOKEN)


def test_archive_keeps_balances_from_just_before_the_payout() -> None:
    harness = opened(queue=(1,))
    first = harness.play_round()
    second = harness.play_round()
    for before, after in zip(first.clients, second.clients, strict=True):
        income = before.gross - before.fee + (first.aggregator_income if before.account == harness.account(1) else 0)
        assert after.balance_before == before.balance_before + income
    assert first.aggregator_balance_before == 1_000


def test_queue_pops_the_aggregator_and_appends_centroids_larger_cluster_first() -> None:
    """pop the acting aggregator; append this round's centroids (larger cluster first, then key)."""
    harness = opened(actors=5, stakes=(10,) * 5, queue=(4,))
    harness.labels = [0, 1, 1, 1, 0]
    harness.play_round()
    assert harness.queue == (1, 0)


def test_equally_large_clusters_queue_by_key_and_nobody_queues_twice() -> None:
    """then key; and not yet in the queue."""
    harness = opened(queue=(2, 1))
    harness.labels = [0, 1, 1, 0]
    harness.play_round()
    assert harness.queue == (1, 0), "actor 1 is a centroid and was in the queue already"


def test_centroid_that_is_no_validator_does_not_queue() -> None:
    """centroids that are bonded."""
    harness = opened(stakes=(10, 10, 10), queue=(2,))
    harness.labels = [0, 0, 0, 1]
    harness.play_round()
    assert harness.queue == (0,)


def test_beacon_hashes_the_last_one_and_the_salts_in_key_order() -> None:
    """`tagged_hash("beacon", beacon, salts revealed)`."""
    harness = opened()
    salts = [harness.salt(actor) for actor in range(4)]
    before = current_beacon(harness.tree)
    harness.play_round()
    expected = tagged_hash("beacon", before, *salts)
    assert current_beacon(harness.tree) == expected
    assert harness.header is not None
    assert harness.header.beacon == expected


def test_task_is_done_after_its_last_round_and_refunds_the_rest() -> None:
    """DONE (rest refunded)."""
    harness = opened(rounds=1)
    harness.play_round()
    assert (harness.task.status, harness.task.escrow, harness.phase) == (TaskStatus.DONE, 0, None)


def test_no_commit_is_skipped_without_pay_or_penalty() -> None:
    """no COMMIT: skipped; no penalty, no pay."""
    harness = opened()
    settled = harness.play_round((0, 1, 2))
    assert settled.clients[3].exclusion is Exclusion.NO_COMMIT
    assert (settled.clients[3].cluster, settled.clients[3].gross) == (-1, 0)
    assert (harness.participant(3).reputation, harness.participant(3).misses) == (0, 1)


def test_client_leaves_after_three_rounds_in_a_row_without_commit() -> None:
    """three times in a row -> leaves the task."""
    harness = opened(rounds=5)
    for _ in range(3):
        assert not harness.participant(3).is_leaving
        harness.play_round((0, 1, 2))
    assert harness.participant(3).is_leaving
    assert [client.account for client in harness.round.clients] == [harness.account(actor) for actor in (0, 1, 2)]


def test_commit_between_starts_the_count_of_misses_again() -> None:
    """three times *in a row*."""
    harness = opened(rounds=5)
    harness.play_round((0, 1, 2))
    harness.play_round((0, 1, 2))
    harness.play_round((0, 1, 2, 3))
    harness.play_round((0, 1, 2))
    assert (harness.participant(3).misses, harness.participant(3).is_leaving) == (1, False)


# VOID


def test_void_starts_the_next_attempt_with_the_same_base_models() -> None:
    """VOID starts attempt + 1 of the same round from OPEN with the same base models."""
    harness = opened()
    harness.play_round()
    before = [client.base for client in harness.round.clients]
    harness.wait_until_due()
    assert harness.slot == Slot(harness.task_id, 2, 1)
    assert [client.base for client in harness.round.clients] == before
    assert harness.balance(0) < 20 * TOKEN, "nobody paid"


def test_fault_in_a_void_attempt_costs_reputation_too() -> None:
    """COMMIT but no valid REVEAL: negative reputation point; a void attempt doesn't wash it off."""
    harness = at_phase(Phase.REVEAL)
    harness.block(harness.reveal(0))
    harness.wait_until_due()
    assert harness.slot.attempt == 1
    assert [harness.participant(actor).reputation for actor in range(4)] == [0, -1, -1, -1]


def test_void_is_retried_three_times_then_the_task_is_cancelled_and_refunded() -> None:
    """nobody paid, retried up to 3 times, then cancelled and refunded."""
    harness = opened()
    for attempt in range(4):
        assert harness.slot.attempt == attempt
        harness.wait_until_due()
    assert (harness.task.status, harness.task.escrow, harness.phase) == (TaskStatus.CANCELLED, 0, None)
    assert harness.balance(0) == 1_000 + 60 * TOKEN
    assert harness.settled(1).aggregation is None
    assert [event.kind for event in harness.events].count(EventKind.ROUND_VOID) == 4


def test_nothing_is_allowed_in_a_cancelled_task() -> None:
    harness = opened()
    for _ in range(4):
        harness.wait_until_due()
    assert harness.refusal(harness.commit(0)) == (Rejection, Reason.WRONG_ROUND)
    harness2 = Harness()
    harness2.wait(DEADLINES.registration_ms)
    harness2.wait(DEADLINES.registration_ms)
    assert harness2.refusal(harness2.register(0)) == (Rejection, Reason.NOT_OPEN)


def test_retry_has_another_line_of_aggregators_if_the_queue_is_empty() -> None:
    """validators in an order drawn from the beacon: a retry doesn't meet the same dead ones."""
    harness = opened(actors=12, stakes=(10,) * 12)
    lines = []
    for _ in range(3):
        lines.append(harness.line)
        harness.wait_until_due()
    assert len(set(lines)) == 3


def test_models_that_tell_no_copy_any_more_leave_the_state() -> None:
    harness = Harness(rounds=8, parameters={"copy_memory_rounds": MEMORY})
    harness.register_all()
    sizes = []
    for number in range(1, 8):
        harness.play_round()
        models = remembered(harness)
        kept = range(1, number + 1)[-MEMORY:]
        assert set(models) == set().union(*(used_in(past, harness) for past in kept))
        assert min(models.values()) > number - MEMORY
        sizes.append(len(models))
    assert len(set(sizes[MEMORY:])) == 1, "the record is as long as the memory"
    assert harness.replayed().root == harness.tree.root


def test_a_model_used_again_since_is_remembered_from_its_last_use() -> None:
    """Round 1's output is the base of round 2, which is in the memory one round longer."""
    harness = Harness(rounds=6, parameters={"copy_memory_rounds": MEMORY})
    harness.register_all()
    for _ in range(1 + MEMORY):
        harness.play_round()
    outputs = harness.settled(1).aggregation
    assert outputs is not None
    assert {remembered(harness).get(output) for output in outputs.outputs} == {2}
    harness.play_round()
    assert not set(outputs.outputs) & set(remembered(harness))
