"""One rule, one test: learning rounds on real blocks. Quotes are from the protocol's section on a round of learning."""

from dataclasses import replace
from typing import Any

import pytest

from bflnode.consensus.clustering import triangle_from_matrix
from bflnode.consensus.hashing import tagged_hash
from bflnode.consensus.rejection import Premature, Reason, Rejection
from bflnode.consensus.tables import current_beacon
from bflnode.consensus.task import Exclusion, Phase, ProbeMode, Weighting
from bflnode.consensus.transaction import Aggregate, Attest, Available, Commit, Fault, ProbeOpening, Reveal, Slot
from bflnode.consensus.types import TOKEN, Hash, TransactionId
from tests.consensus.harness import Harness, at_phase, bits, blob, opened, similarity
from tests.consensus.setups import DEADLINES, MODEL_BYTES, SPECIFICATION, START_MS

# COMMIT


def test_commit_closes_early_when_all_have_committed() -> None:
    """COMMIT closes early: all committed."""
    harness = opened()
    harness.block(*(harness.commit(actor) for actor in range(3)))
    assert harness.phase is Phase.COMMIT
    harness.block(harness.commit(3))
    assert harness.phase is Phase.REVEAL


def test_second_commit_of_a_client_is_a_duplicate() -> None:
    """one per sender, task, round, attempt and kind."""
    harness = opened()
    harness.block(harness.commit(0))
    assert harness.refusal(harness.commit(0, blob("other"))) == (Rejection, Reason.DUPLICATE)


def test_commit_from_somebody_outside_the_snapshot_is_refused() -> None:
    harness = Harness(actors=5)
    harness.block(*(harness.register(actor) for actor in range(4)))
    assert harness.refusal(harness.commit(4)) == (Rejection, Reason.NOT_PARTICIPANT)


def test_commit_for_the_next_attempt_or_round_is_premature() -> None:
    harness = opened()
    for slot in (replace(harness.slot, attempt=1), replace(harness.slot, number=2)):
        assert harness.refusal(harness.commit(0, slot=slot)) == (Premature, Reason.WRONG_ROUND)


def test_commit_for_a_far_round_or_from_a_stranger_is_refused_for_good() -> None:
    harness = Harness(actors=5)
    harness.block(*(harness.register(actor) for actor in range(4)))
    far = replace(harness.slot, number=3)
    assert harness.refusal(harness.commit(0, slot=far)) == (Rejection, Reason.WRONG_ROUND)
    following = replace(harness.slot, number=2)
    assert harness.refusal(harness.commit(4, slot=following)) == (Rejection, Reason.WRONG_ROUND)


def test_commit_of_an_earlier_attempt_is_refused_for_good() -> None:
    """Round transactions have no nonce: a slot never comes back, so none can be replayed."""
    harness = opened()
    old = harness.commit(0)
    harness.wait_until_due()
    assert harness.slot == Slot(harness.task_id, 1, 1)
    assert harness.refusal(old) == (Rejection, Reason.WRONG_ROUND)


def test_round_transaction_for_an_unknown_task_is_refused() -> None:
    harness = opened()
    slot = Slot(Hash(bytes(32)), 1, 0)
    assert harness.refusal(harness.commit(0, slot=slot)) == (Rejection, Reason.UNKNOWN_TASK)


# Grace


def test_phase_closes_after_grace_once_two_thirds_of_the_samples_have_acted() -> None:
    """a phase stays open only for `grace` times the time it took so far."""
    harness = Harness()
    harness.register_all([100, 100, 101, 100])
    harness.wait(7_900)
    harness.block(*(harness.commit(actor) for actor in range(3)))
    assert harness.round.deadline_ms - harness.round.clock_ms == 8_000 * 500 // 1000
    harness.wait(3_999)
    assert harness.phase is Phase.COMMIT
    harness.wait(1)
    assert harness.phase is Phase.REVEAL
    assert harness.round.clients[3].exclusion is Exclusion.NO_COMMIT


def test_grace_has_a_floor() -> None:
    """with a floor well above the clock tolerance."""
    harness = opened()
    harness.block(*(harness.commit(actor) for actor in range(3)))
    assert harness.round.deadline_ms - harness.round.clock_ms == DEADLINES.grace_floor_ms


def test_many_small_shards_do_not_outvote_a_valuable_one() -> None:
    """small shards finish first, and must not outvote the valuable ones."""
    harness = Harness()
    harness.register_all([100, 100, 100, 150])
    harness.block(*(harness.commit(actor) for actor in range(3)))
    assert not harness.round.is_in_grace
    harness.wait_until_due()
    assert harness.now_ms == START_MS + 100 + DEADLINES.commit_ms


def test_exactly_two_thirds_of_the_samples_are_not_enough_for_grace() -> None:
    """more than 2/3: 3*w > 2*W."""
    harness = Harness()
    harness.register_all([100, 100, 100, 150])
    harness.block(*(harness.commit(actor) for actor in range(3)))
    assert not harness.round.is_in_grace
    other = Harness()
    other.register_all([100, 100, 101, 150])
    other.block(*(other.commit(actor) for actor in range(3)))
    assert other.round.is_in_grace


def test_grace_never_lengthens_a_phase() -> None:
    harness = opened(deadlines={"grace_permille": 100_000})
    harness.wait(50_000)
    harness.block(*(harness.commit(actor) for actor in range(3)))
    assert harness.round.deadline_ms == harness.round.opened_ms + DEADLINES.commit_ms


def test_one_block_moves_the_clock_by_at_most_max_step() -> None:
    """the first block after a halt doesn't expire everything at once."""
    harness = opened(parameters={"max_step_ms": 1_000})
    harness.wait(10 * DEADLINES.commit_ms)
    assert harness.phase is Phase.COMMIT
    assert harness.round.clock_ms - harness.round.opened_ms == 1_000


# REVEAL


def test_reveal_that_does_not_open_the_commitment_is_refused() -> None:
    """REVEAL, checked against the commit."""
    harness = at_phase(Phase.REVEAL)
    assert harness.refusal(harness.reveal(0, blob("other"))) == (Rejection, Reason.COMMITMENT_MISMATCH)


def test_copied_commitment_can_not_be_opened_by_the_copier() -> None:
    """a copied hash earns nothing."""
    harness = opened()
    original = harness.commit(0)
    assert isinstance(original.body, Commit)
    harness.block(original, harness.sign(1, original.body), harness.commit(2), harness.commit(3))
    body = harness.reveal(0).body
    assert harness.refusal(harness.sign(1, body)) == (Rejection, Reason.COMMITMENT_MISMATCH)


def test_reveal_of_a_model_of_the_wrong_size_is_refused() -> None:
    harness = at_phase(Phase.REVEAL)
    body = harness.reveal(0).body
    assert isinstance(body, Reveal)
    wrong = replace(body, size=MODEL_BYTES + 1)
    assert harness.refusal(harness.sign(0, wrong)) == (Rejection, Reason.WRONG_SIZE)


def test_reveal_before_its_phase_is_premature() -> None:
    harness = opened()
    harness.block(harness.commit(0))
    assert harness.refusal(harness.reveal(0)) == (Premature, Reason.WRONG_PHASE)


def test_reveal_without_commit_is_refused() -> None:
    harness = opened()
    harness.play_to(Phase.REVEAL, (0, 1, 2))
    assert harness.refusal(harness.reveal(3)) == (Rejection, Reason.COMMITMENT_MISMATCH)


def test_reveal_closes_early_when_all_who_committed_have_revealed() -> None:
    harness = opened()
    harness.play_to(Phase.REVEAL, (0, 1, 2))
    harness.block(*(harness.reveal(actor) for actor in (0, 1, 2)))
    assert harness.phase is Phase.AVAILABLE


def test_commit_without_reveal_is_unpaid_and_costs_reputation() -> None:
    """COMMIT but no valid REVEAL: unpaid, negative reputation point."""
    harness = at_phase(Phase.REVEAL)
    harness.play_to(Phase.AVAILABLE, (0, 1, 2))
    settled = harness.play_round()
    assert (settled.clients[3].exclusion, settled.clients[3].gross) == (Exclusion.NO_REVEAL, 0)
    assert [harness.participant(actor).reputation for actor in range(4)] == [1, 1, 1, -1]


def test_of_equal_models_the_one_whose_commit_came_first_counts() -> None:
    """of equal ids the one whose COMMIT came first counts."""
    harness = opened()
    shared = blob("shared")
    harness.block(*(harness.commit(actor, shared if actor in (1, 2) else None) for actor in (2, 1, 0, 3)))
    harness.block(*(harness.reveal(actor, shared if actor in (1, 2) else None) for actor in (1, 2, 0, 3)))
    assert [client.exclusion for client in harness.round.clients] == [
        Exclusion.NONE,
        Exclusion.COPY,
        Exclusion.NONE,
        Exclusion.NONE,
    ]
    settled = harness.play_round()
    assert (settled.included, settled.clients[1].gross) == ((0, 2, 3), 0)
    assert harness.participant(1).reputation == -1


def play_with(harness: Harness, actor: int, model: Any) -> Exclusion:
    """Play to AVAILABLE with one actor submitting a given model; say what became of it."""
    harness.block(*(harness.commit(other, model if other == actor else None) for other in range(4)))
    harness.block(*(harness.reveal(other, model if other == actor else None) for other in range(4)))
    return harness.round.clients[actor].exclusion


def test_base_model_handed_in_again_is_a_copy() -> None:
    """a base/output model of the last K rounds: a copy, or a lazy client."""
    assert play_with(opened(), 0, SPECIFICATION.initial_model) is Exclusion.COPY


def test_output_of_the_last_rounds_is_a_copy() -> None:
    harness = opened()
    settled = harness.play_round()
    assert settled.aggregation is not None
    assert play_with(harness, 3, settled.aggregation.outputs[0]) is Exclusion.COPY


def test_model_of_another_client_in_an_earlier_round_is_a_copy() -> None:
    harness = opened()
    old = harness.model(1)
    harness.play_round()
    assert play_with(harness, 0, old) is Exclusion.COPY


def test_own_model_of_an_earlier_round_is_a_copy() -> None:
    """Nothing else may reuse an id."""
    harness = opened()
    old = harness.model(0)
    harness.play_round()
    assert play_with(harness, 0, old) is Exclusion.COPY


def test_model_is_forgotten_after_the_last_k_rounds() -> None:
    """of the last K rounds."""
    for rounds, expected in ((3, Exclusion.COPY), (4, Exclusion.NONE)):
        harness = opened(rounds=6, parameters={"copy_memory_rounds": 3})
        for _ in range(rounds):
            harness.play_round()
        assert play_with(harness, 0, blob("model", 0, 1)) is expected


def test_own_model_of_a_void_attempt_may_be_committed_again() -> None:
    """a client may commit again the model it committed in a voided attempt."""
    harness = at_phase(Phase.AVAILABLE)
    harness.wait_until_due()
    harness.wait_until_due()
    assert harness.slot.attempt == 1
    assert play_with(harness, 0, harness.model(0)) is Exclusion.NONE


def test_another_clients_model_of_a_void_attempt_is_a_copy_even_if_committed_first() -> None:
    """Nothing else may reuse an id."""
    harness = at_phase(Phase.AVAILABLE)
    stolen = harness.model(1)
    harness.wait_until_due()
    harness.wait_until_due()
    harness.block(*(harness.commit(actor, stolen if actor == 0 else None) for actor in range(4)))
    harness.block(*(harness.reveal(actor, stolen if actor == 0 else None) for actor in range(4)))
    assert [client.exclusion for client in harness.round.clients[:2]] == [Exclusion.COPY, Exclusion.NONE]


def test_probe_seed_hashes_the_beacon_and_the_salts_in_key_order() -> None:
    """`tagged_hash("probe", beacon, salts revealed this round)`, known only after REVEAL."""
    harness = at_phase(Phase.REVEAL)
    assert harness.round.probe_seed == bytes(32)
    salts = [harness.salt(actor) for actor in range(4)]
    beacon = current_beacon(harness.tree)
    harness.block(*(harness.reveal(actor) for actor in (2, 0, 3, 1)))
    assert harness.round.probe_seed == tagged_hash("probe", beacon, *salts)


# AVAILABLE


def test_available_closes_early_with_more_than_two_thirds_of_the_stake() -> None:
    """closes early: > 2/3 voted."""
    harness = at_phase(Phase.AVAILABLE, stakes=(10, 10, 11, 1))
    harness.block(harness.available(0), harness.available(1))
    assert harness.phase is Phase.AVAILABLE
    harness.block(harness.available(2))
    assert harness.phase is Phase.AGGREGATE


def test_model_that_more_than_a_third_of_the_stake_has_is_included() -> None:
    """included set = revealed models that > 1/3 of the committee's stake has."""
    harness = at_phase(Phase.AVAILABLE, stakes=(10, 10, 10))
    harness.block(harness.available(0, [0, 1, 3]), harness.available(1, [0, 1]), harness.available(2, [0, 1, 2, 3]))
    assert harness.round.included == (0, 1, 3), "one of three is exactly a third of the stake: not more"
    assert harness.round.clients[2].exclusion is Exclusion.UNAVAILABLE


def test_unavailable_model_is_unpaid_and_costs_reputation() -> None:
    """revealed and unavailable: unpaid, negative reputation point."""
    harness = at_phase(Phase.AVAILABLE)
    harness.block(*(harness.available(actor, [0, 1, 2]) for actor in range(3)))
    settled = harness.play_round()
    assert (settled.clients[3].exclusion, settled.clients[3].gross) == (Exclusion.UNAVAILABLE, 0)
    assert harness.participant(3).reputation == -1


def test_available_without_quorum_is_extended_once_then_void() -> None:
    """below that at the deadline: extended once, then VOID."""
    harness = at_phase(Phase.AVAILABLE)
    harness.block(harness.available(0), harness.available(1))
    harness.wait_until_due()
    assert (harness.phase, harness.round.is_extended) == (Phase.AVAILABLE, True)
    harness.wait_until_due()
    assert (harness.phase, harness.slot) == (Phase.COMMIT, Slot(harness.task_id, 1, 1))


def test_too_few_available_models_make_the_attempt_void() -> None:
    """too few -> VOID."""
    harness = at_phase(Phase.AVAILABLE)
    harness.block(*(harness.available(actor, [1]) for actor in range(3)))
    assert (harness.phase, harness.slot.attempt) == (Phase.COMMIT, 1)


def test_vote_of_somebody_outside_the_committee_is_refused() -> None:
    harness = at_phase(Phase.AVAILABLE, stakes=(10, 10, 10))
    assert harness.refusal(harness.available(3)) == (Rejection, Reason.NOT_COMMITTEE)


def test_second_vote_on_availability_is_a_duplicate() -> None:
    harness = at_phase(Phase.AVAILABLE)
    harness.block(harness.available(0))
    assert harness.refusal(harness.available(0, [])) == (Rejection, Reason.DUPLICATE)


@pytest.mark.parametrize("bitmap", [b"", b"\x10", b"\x0f\x00"])
def test_bitmap_of_the_wrong_length_or_with_bits_beyond_the_clients_is_refused(bitmap: bytes) -> None:
    harness = at_phase(Phase.AVAILABLE)
    transaction = harness.sign(0, Available(harness.slot, bitmap))
    assert harness.refusal(transaction) == (Rejection, Reason.WRONG_SIZE)


# AGGREGATE


def test_head_of_the_queue_aggregates_then_the_rest_of_the_line() -> None:
    harness = opened(queue=(2, 3))
    assert harness.line[:2] == (2, 3)
    assert len(set(harness.line)) == 3


def test_only_the_acting_aggregator_may_aggregate() -> None:
    """sender may act now."""
    harness = at_phase(Phase.AGGREGATE, queue=(2, 3, 1))
    assert harness.refusal(harness.aggregate(3)) == (Premature, Reason.NOT_AGGREGATOR)
    assert harness.refusal(harness.aggregate(0)) == (Rejection, Reason.NOT_AGGREGATOR)
    harness.block(harness.aggregate(2))
    assert harness.phase is Phase.ATTEST


def test_aggregate_before_its_phase_is_premature() -> None:
    harness = at_phase(Phase.AVAILABLE, queue=(2,))
    body = Aggregate(harness.slot, b"", (), None)
    assert harness.refusal(harness.sign(2, body)) == (Premature, Reason.WRONG_PHASE)


def changed_aggregate(harness: Harness, **changes: Any) -> Any:
    transaction = harness.aggregate()
    assert isinstance(transaction.body, Aggregate)
    return harness.sign(harness.actor(transaction.sender), replace(transaction.body, **changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"triangle": bytes(10)}, Reason.MALFORMED),
        ({"triangle": bytes(14)}, Reason.MALFORMED),
        ({"triangle": (10_001).to_bytes(2, "big") + bytes(10)}, Reason.MALFORMED),
        ({"triangle": (-10_001).to_bytes(2, "big", signed=True) + bytes(10)}, Reason.MALFORMED),
        ({"outputs": (blob("a"),)}, Reason.WRONG_OUTPUTS),
        ({"outputs": (blob("a"), blob("b"), blob("c"))}, Reason.WRONG_OUTPUTS),
        ({"opening": ProbeOpening(blob("x"), Hash(bytes(32)))}, Reason.UNSUPPORTED),
    ],
)
def test_aggregate_that_breaks_a_rule_of_integers_is_refused(changes: dict[str, Any], reason: Reason) -> None:
    """the matrix is the strict upper triangle, int16 in [-10000, 10000]; as many output ids as clusters found."""
    harness = at_phase(Phase.AGGREGATE)
    assert harness.refusal(changed_aggregate(harness, **changes)) == (Rejection, reason)


def test_labels_and_centroids_are_derived_from_the_matrix() -> None:
    """The aggregator states nothing that can be derived."""
    harness = at_phase(Phase.AGGREGATE)
    matrix = similarity([0, 1, 0, 1])
    triangle = triangle_from_matrix(matrix)
    harness.block(changed_aggregate(harness, triangle=triangle))
    aggregation = harness.round.aggregation
    assert aggregation is not None
    assert (aggregation.labels, aggregation.centroids) == ((0, 1, 0, 1), (0, 1))


def test_second_aggregate_is_refused() -> None:
    harness = at_phase(Phase.AGGREGATE)
    first, second = harness.aggregate(), changed_aggregate(harness, outputs=(blob("a"), blob("b")))
    assert harness.offer(first, second) == (first,)


def test_aggregator_that_misses_its_window_leaves_the_queue_and_the_next_gets_a_whole_window() -> None:
    """misses AGGREGATE: leaves the queue; next in line, window restarts."""
    harness = at_phase(Phase.AGGREGATE, queue=(2, 3, 1))
    included = harness.round.included
    late = harness.aggregate(2)
    harness.wait_until_due()
    assert (harness.queue, harness.round.acting, harness.round.included) == ((3, 1), 1, included)
    assert harness.round.deadline_ms - harness.round.clock_ms == DEADLINES.aggregate_ms
    assert harness.refusal(late) == (Rejection, Reason.NOT_AGGREGATOR)
    harness.block(harness.aggregate(3))
    assert harness.phase is Phase.ATTEST


def test_three_aggregators_that_miss_make_the_attempt_void() -> None:
    """after 3 -> VOID."""
    harness = at_phase(Phase.AGGREGATE, queue=(2, 3, 1))
    for _ in range(3):
        assert harness.phase is Phase.AGGREGATE
        harness.wait_until_due()
    assert (harness.phase, harness.slot.attempt, harness.queue) == (Phase.COMMIT, 1, ())


# ATTEST


def test_good_verdicts_of_more_than_two_thirds_settle() -> None:
    """closes early: ok > 2/3."""
    harness = at_phase(Phase.ATTEST)
    harness.block(harness.attest(0), harness.attest(1))
    assert harness.phase is Phase.ATTEST
    harness.block(harness.attest(2))
    assert harness.settled(1).slot == Slot(harness.task_id, 1, 0)


def test_bad_verdicts_of_more_than_a_third_replace_the_aggregator() -> None:
    """AGGREGATE voted bad: unpaid, out of the queue, next in line."""
    harness = at_phase(Phase.ATTEST, queue=(2, 3, 1))
    included = harness.round.included
    harness.block(harness.attest(0, Fault.PROBE_UNAVAILABLE))
    assert harness.phase is Phase.ATTEST
    harness.block(harness.attest(1, Fault.MATRIX_MISMATCH))
    current = harness.round
    assert (current.phase, current.acting, current.included) == (Phase.AGGREGATE, 1, included)
    assert (current.aggregation, current.attestations, harness.queue) == (None, (), (3, 1))
    assert current.deadline_ms - current.clock_ms == DEADLINES.aggregate_ms
    settled = harness.play_round()
    assert settled.aggregation is not None
    assert settled.aggregation.aggregator == harness.account(3)


def test_exactly_a_third_of_bad_verdicts_is_not_enough() -> None:
    """bad > 1/3: 3*w > W."""
    harness = at_phase(Phase.ATTEST, stakes=(10, 10, 10))
    harness.block(harness.attest(0, Fault.OUTPUT_MISMATCH), harness.attest(1))
    assert harness.phase is Phase.ATTEST


def test_neither_good_nor_bad_is_extended_once_then_void() -> None:
    """neither ok nor bad: extended once, then VOID."""
    harness = at_phase(Phase.ATTEST)
    harness.block(harness.attest(0), harness.attest(1), harness.attest(2, Fault.OUTPUT_MISMATCH))
    harness.wait_until_due()
    assert (harness.phase, harness.round.is_extended) == (Phase.ATTEST, True)
    harness.wait_until_due()
    assert (harness.phase, harness.slot.attempt) == (Phase.COMMIT, 1)


def test_attest_is_one_per_aggregate_it_judges() -> None:
    """ATTEST one per AGGREGATE it judges."""
    harness = at_phase(Phase.ATTEST, queue=(2, 3, 1))
    harness.block(harness.attest(0, Fault.MATRIX_MISMATCH))
    assert harness.refusal(harness.attest(0)) == (Rejection, Reason.DUPLICATE)
    old = harness.attest(3)
    harness.block(harness.attest(1, Fault.MATRIX_MISMATCH))
    assert harness.refusal(old) == (Premature, Reason.WRONG_PHASE)
    harness.block(harness.aggregate(3))
    assert harness.refusal(old) == (Rejection, Reason.WRONG_AGGREGATE)
    harness.block(harness.attest(0))
    assert [vote.account for vote in harness.round.attestations] == [harness.account(0)]


def test_attest_of_somebody_outside_the_committee_or_with_wrong_flags_is_refused() -> None:
    harness = at_phase(Phase.ATTEST, stakes=(10, 10, 10))
    assert harness.refusal(harness.attest(3)) == (Rejection, Reason.NOT_COMMITTEE)
    aggregate = TransactionId(harness.round.aggregation.transaction) if harness.round.aggregation else None
    assert aggregate is not None
    flags = harness.sign(0, Attest(harness.slot, aggregate, Fault.NONE, bits([7], 8)))
    assert harness.refusal(flags) == (Rejection, Reason.WRONG_SIZE)


# PROBE by the aggregator


def test_commit_does_not_close_without_the_acting_aggregators_probe() -> None:
    """COMMIT does not close without it."""
    harness = opened(probe_mode=ProbeMode.AGGREGATOR, queue=(2, 3, 1))
    harness.block(*(harness.commit(actor) for actor in range(4)))
    harness.block(harness.probe(3))
    assert harness.phase is Phase.COMMIT
    harness.block(harness.probe(2))
    assert harness.phase is Phase.REVEAL


def test_probe_in_a_task_with_a_public_probe_is_refused() -> None:
    harness = opened(queue=(2,))
    assert harness.refusal(harness.probe(2)) == (Rejection, Reason.UNSUPPORTED)


def test_probe_is_for_aggregators_in_line_once_and_before_commits_close() -> None:
    """PROBE: aggregator, before commits close."""
    harness = opened(probe_mode=ProbeMode.AGGREGATOR, queue=(2, 3, 1))
    assert harness.refusal(harness.probe(0)) == (Rejection, Reason.NOT_AGGREGATOR)
    harness.block(harness.probe(2))
    assert harness.refusal(harness.probe(2)) == (Rejection, Reason.DUPLICATE)
    harness.play_to(Phase.REVEAL)
    assert harness.refusal(harness.probe(3)) == (Rejection, Reason.WRONG_PHASE)


def test_aggregator_that_misses_probe_is_replaced_by_one_that_did_not() -> None:
    """aggregator misses PROBE: leaves the queue; next in line."""
    harness = opened(probe_mode=ProbeMode.AGGREGATOR, queue=(2, 3, 1))
    harness.block(*(harness.commit(actor) for actor in range(4)), harness.probe(3))
    harness.wait_until_due()
    assert (harness.phase, harness.round.acting, harness.queue) == (Phase.REVEAL, 1, (3, 1))


def test_without_any_probe_the_commit_window_restarts_and_then_the_attempt_is_void() -> None:
    """window restarts; after 3 -> VOID."""
    harness = opened(probe_mode=ProbeMode.AGGREGATOR, queue=(2, 3, 1))
    harness.wait_until_due()
    assert (harness.phase, harness.round.acting) == (Phase.COMMIT, 1)
    assert harness.round.deadline_ms - harness.round.clock_ms == DEADLINES.commit_ms
    harness.wait_until_due()
    harness.wait_until_due()
    assert (harness.slot.attempt, harness.queue) == (1, ())


def test_probe_that_is_not_opened_or_opened_otherwise_is_refused() -> None:
    """AGGREGATE opens it; not opened = replaced."""
    harness = at_phase(Phase.AGGREGATE, probe_mode=ProbeMode.AGGREGATOR, queue=(2, 3, 1))
    assert harness.refusal(changed_aggregate(harness, opening=None)) == (Rejection, Reason.COMMITMENT_MISMATCH)
    other = harness.opening(3)
    assert harness.refusal(changed_aggregate(harness, opening=other)) == (Rejection, Reason.COMMITMENT_MISMATCH)
    harness.block(harness.aggregate(2))
    assert harness.phase is Phase.ATTEST


def test_replacement_without_probe_is_passed_over() -> None:
    """a replacement can't choose its probe after seeing the models."""
    harness = opened(probe_mode=ProbeMode.AGGREGATOR, queue=(2, 3, 1))
    harness.block(harness.probe(2), harness.probe(1), *(harness.commit(actor) for actor in range(4)))
    harness.play_to(Phase.AGGREGATE)
    harness.wait_until_due()
    assert (harness.phase, harness.round.acting, harness.queue) == (Phase.AGGREGATE, 2, (1,))
    harness.block(harness.aggregate(1))
    assert harness.phase is Phase.ATTEST


@pytest.mark.parametrize("clusters", [1, 2, 5])
def test_one_client_is_enough_where_the_task_says_so(clusters: int) -> None:
    """Degenerate inputs MUST work: clusters >= clients, one client."""
    harness = Harness(actors=1, stakes=(10,), clients_min=1, clusters=clusters, balance=0)
    harness.register_all()
    settled = harness.play_round()
    assert (settled.included, harness.balance(0)) == ((0,), 20 * TOKEN)


def test_more_clusters_than_clients_works() -> None:
    """Degenerate inputs MUST work: clusters >= clients."""
    harness = opened(clusters=9)
    settled = harness.play_round()
    assert [client.cluster for client in settled.clients] == [0, 1, 2, 3]


def test_whole_task_replays_to_the_same_state() -> None:
    harness = opened(weighting=Weighting.SAMPLES)
    for _ in range(3):
        harness.play_round()
    assert harness.replayed().root == harness.tree.root
