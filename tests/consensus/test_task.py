"""What a learning round keeps of its clients for rules that treat classes apart, and rules with one output for all."""

from hypothesis import given
from hypothesis import strategies as st

from bflnode.consensus.registration import newcomers_base
from bflnode.consensus.tables import MODELS, PARTICIPANTS, participant_key
from bflnode.consensus.task import MAX_CLASS_BITMAP_BYTES, Exclusion, Phase, Rule, class_bitmap, held_classes
from bflnode.consensus.transaction import MAX_CLASSES
from tests.consensus.harness import Harness


def opened(histograms: tuple[tuple[int, int], ...] = ((5, 5),) * 4, rule: Rule = Rule.PRIOR_ROWS) -> Harness:
    harness = Harness(rule=rule, rounds=6, clients_start=len(histograms))
    harness.block(*(harness.register(actor, histogram=held) for actor, held in enumerate(histograms)))
    return harness


def test_a_bit_says_whether_a_class_has_samples() -> None:
    assert class_bitmap((3, 0, 1)) == b"\x05"
    assert class_bitmap((0,) * 8 + (7,)) == b"\x00\x01"
    assert class_bitmap((1,) * MAX_CLASSES) == b"\xff" * MAX_CLASS_BITMAP_BYTES


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_every_class_has_its_bit_and_the_rest_is_zero(histogram: list[int]) -> None:
    bits = int.from_bytes(class_bitmap(tuple(histogram)), "little")

    assert [bits >> place & 1 for place in range(len(histogram))] == [int(count > 0) for count in histogram]
    assert bits >> len(histogram) == 0
    held = tuple(place for place, count in enumerate(histogram) if count)
    assert held_classes(class_bitmap(tuple(histogram))) == held


def test_the_classes_of_clients_are_kept_in_the_round_and_for_ever() -> None:
    harness = opened(((5, 5), (0, 9), (9, 0), (1, 1)))
    expected = [b"\x03", b"\x02", b"\x01", b"\x03"]
    assert [client.classes for client in harness.round.clients] == expected

    settled = harness.play_round()

    assert [client.classes for client in settled.clients] == expected


def test_who_registers_anew_changes_nothing_in_the_round_that_runs() -> None:
    harness = opened()
    harness.block(harness.leave(1))
    harness.block(harness.register(1, histogram=(0, 9)))

    settled = harness.play_round()

    assert [client.classes for client in settled.clients] == [b"\x03"] * 4
    assert [client.samples for client in settled.clients] == [10] * 4
    assert [client.classes for client in harness.round.clients] == [b"\x03", b"\x02", b"\x03", b"\x03"]


def test_one_output_for_all_clusters_is_everybodys_next_base_and_clusters_decide_the_pay() -> None:
    harness = opened()
    harness.labels = (0, 0, 0, 1)

    settled = harness.play_round()

    assert settled.aggregation is not None
    assert len(settled.aggregation.outputs) == 2
    (output,) = set(settled.aggregation.outputs)
    assert {client.base for client in harness.round.clients} == {output}
    assert newcomers_base(harness.tree, harness.task) == output
    gross = [client.gross for client in settled.clients]
    assert gross[0] == gross[1] == gross[2] == 3 * gross[3]


def test_the_common_output_handed_in_is_a_copy_until_it_is_forgotten() -> None:
    harness = opened()
    harness.play_round()
    base = harness.round.clients[0].base
    harness.block(*(harness.commit(actor, model=base if actor == 3 else None) for actor in range(4)))
    harness.block(*(harness.reveal(actor, model=base if actor == 3 else None) for actor in range(4)))
    assert harness.phase is Phase.AVAILABLE
    assert [client.exclusion for client in harness.round.clients] == [Exclusion.NONE] * 3 + [Exclusion.COPY]
    for _ in range(4):
        harness.play_round()
    known = {key[32:] for key, _ in MODELS.scan(harness.tree, harness.task_id)}
    assert base not in known, "three learning rounds later it can tell no copy any more"
    assert harness.round.clients[0].base in known


def test_a_client_without_samples_of_some_class_stays_registered_as_it_said() -> None:
    harness = opened(((0, 9), (5, 5)))

    participant = PARTICIPANTS.get(harness.tree, participant_key(harness.task_id, harness.account(0)))

    assert participant is not None
    assert class_bitmap(participant.histogram) == harness.round.clients[0].classes == b"\x02"
