"""Duties are functions of state: they appear with their phase and disappear with their transaction."""

import pytest

from bflnode.consensus.duties import (
    Admit,
    Aggregate,
    AttestTo,
    Duty,
    FetchAndVote,
    OfferedModel,
    PostProbe,
    Register,
    RevealModel,
    Train,
    duties,
    last_part,
    last_settled,
)
from bflnode.consensus.task import Phase, ProbeMode, TaskStatus, class_bitmap
from bflnode.consensus.transaction import Commit, Probe
from bflnode.consensus.types import TOKEN, BlobId
from tests.consensus.harness import Harness, opened
from tests.consensus.setups import DEADLINES, MODEL_BYTES, OUTSIDER, SPECIFICATION


def parts(harness: Harness) -> list[tuple[BlobId, BlobId | None] | None]:
    """What each of four actors received and revealed in the last settled learning round."""
    found = [last_part(harness.tree, harness.task, harness.account(actor)) for actor in range(4)]
    return [part and (part.base, part.revealed and part.revealed.model) for part in found]


def admission(harness: Harness, *, has_credential: bool) -> tuple[Duty, ...]:
    return duties(harness.genesis, harness.tree, OUTSIDER.account, has_credential=has_credential)


def test_account_that_does_not_exist_owes_its_admission() -> None:
    harness = Harness()
    assert admission(harness, has_credential=True) == (Admit(),)
    harness.block(harness.admit(OUTSIDER))
    assert Admit() not in admission(harness, has_credential=True)


def test_account_without_credential_or_with_an_empty_pool_owes_nothing() -> None:
    assert admission(Harness(), has_credential=False) == ()
    assert admission(Harness(admission_pool=5 * TOKEN - 1), has_credential=True) == ()


def test_client_owes_registration_until_it_is_registered() -> None:
    harness = Harness()
    duty = Register(harness.task_id, harness.task.specification)
    assert harness.duties(1) == (duty,)
    harness.block(harness.register(1))
    assert harness.duties(1) == ()
    harness.block(harness.leave(1))
    assert harness.duties(1) == (duty,)


def test_who_does_not_want_to_learn_owes_no_registration() -> None:
    harness = Harness()
    assert duties(harness.genesis, harness.tree, harness.account(0), has_credential=False, is_client=False) == ()


def test_full_or_ended_task_asks_for_no_registration() -> None:
    harness = Harness(clients_max=2, rounds=1)
    harness.block(harness.register(0), harness.register(1))
    assert harness.duties(2) == ()
    harness.play_round((0, 1, 2))
    assert harness.duties(0) == ()


def test_client_registered_during_a_round_owes_training_from_the_next_open_on() -> None:
    """late joiner: effective at the next OPEN."""
    harness = Harness()
    harness.block(*(harness.register(actor) for actor in (0, 1, 2)))
    harness.block(harness.register(3))
    assert harness.duties(3) == ()
    settled = harness.play_round()
    assert settled.aggregation is not None
    (duty,) = harness.duties(3)
    assert isinstance(duty, Train)
    assert (duty.slot, duty.base) == (harness.slot, settled.aggregation.outputs[0])


def test_client_owes_training_until_its_commit_is_in_state() -> None:
    harness = opened()
    expected = Train(harness.slot, SPECIFICATION.initial_model, harness.task.specification, 0)
    assert harness.duties(0) == (expected,)
    harness.block(harness.commit(0))
    assert harness.duties(0) == ()


def test_a_clients_last_part_is_what_it_received_and_revealed_in_the_last_settled_round() -> None:
    harness = opened(actors=4, rounds=4)
    assert parts(harness) == [None] * 4, "nothing is settled"
    for number in (1, 2):
        slot, received = harness.slot, [client.base for client in harness.round.clients]
        harness.play_round(actors=(1, 2, 3))
        revealed = (None, *(harness.model(actor, slot) for actor in (1, 2, 3)))
        assert parts(harness) == list(zip(received, revealed, strict=True)), "also of who took no part"
        assert harness.slot.number == number + 1


def test_a_void_attempt_is_no_part() -> None:
    harness = opened(actors=4, rounds=4)
    harness.play_round()
    before = parts(harness)
    harness.play_to(Phase.REVEAL)
    harness.wait_until_due()
    assert (harness.slot.number, harness.slot.attempt) == (2, 1)
    assert parts(harness) == before


def test_a_round_whose_every_attempt_was_void_is_no_part() -> None:
    harness = opened(actors=4, rounds=4)
    harness.play_round()
    harness.play_to(Phase.REVEAL)
    harness.block(*(harness.reveal(actor) for actor in range(3)))
    while harness.task.status is TaskStatus.RUNNING:
        harness.wait_until_due()
    assert harness.task.status is TaskStatus.CANCELLED
    assert parts(harness) == [None] * 4


def test_there_is_a_last_part_after_the_last_round() -> None:
    harness = opened(actors=4, rounds=1)
    base = harness.round.clients[0].base
    harness.play_round()
    assert harness.task.status is TaskStatus.DONE
    assert last_settled(harness.tree, harness.task) == 1
    assert [part and part[0] for part in parts(harness)] == [base] * 4


def test_deadline_is_in_header_time() -> None:
    harness = opened()
    opened_ms = harness.now_ms
    harness.wait(5_000)
    (duty,) = harness.duties(0)
    assert isinstance(duty, Train)
    assert duty.deadline_ms == opened_ms + DEADLINES.commit_ms


def test_duty_stays_the_same_while_only_its_deadline_moves() -> None:
    harness = opened(parameters={"max_step_ms": 10})
    before = harness.duties(0)
    harness.wait(5_000)
    assert harness.duties(0) == before


def test_client_owes_a_reveal_until_it_is_in_state() -> None:
    harness = opened()
    transaction = harness.commit(0)
    assert isinstance(transaction.body, Commit)
    harness.play_to(Phase.REVEAL)
    assert harness.duties(0) == (RevealModel(harness.slot, transaction.body.commitment, 0),)
    harness.block(harness.reveal(0))
    assert harness.duties(0) == ()


def test_client_without_commit_owes_no_reveal() -> None:
    harness = opened()
    harness.play_to(Phase.REVEAL, (0, 1, 2))
    assert harness.duties(3) == ()


def offered(harness: Harness, *actors: int) -> tuple[OfferedModel, ...]:
    return tuple(
        OfferedModel(
            index=actor,
            account=harness.account(actor),
            samples=100,
            classes=class_bitmap((50, 50)),
            base=SPECIFICATION.initial_model,
            model=harness.model(actor),
            size_bytes=MODEL_BYTES,
        )
        for actor in actors
    )


def test_committee_owes_a_vote_on_the_models_that_count() -> None:
    harness = opened(stakes=(10, 10, 10))
    harness.play_to(Phase.AVAILABLE, (0, 1, 3))
    expected = FetchAndVote(harness.slot, harness.task.specification, 4, offered(harness, 0, 1, 3), 0)
    assert harness.duties(2) == (expected,)
    assert harness.duties(3) == (), "not in the committee"
    harness.block(harness.available(2))
    assert harness.duties(2) == ()


def test_acting_aggregator_owes_the_aggregation() -> None:
    harness = opened(queue=(2, 3, 1))
    harness.play_to(Phase.AGGREGATE)
    expected = Aggregate(
        harness.slot, harness.task.specification, offered(harness, 0, 1, 2, 3), harness.round.probe_seed, None, 0
    )
    assert harness.duties(2) == (expected,)
    assert harness.duties(3) == ()
    harness.wait_until_due()
    assert (harness.duties(2), harness.duties(3)) == ((), (expected,))


def test_only_included_models_are_aggregated() -> None:
    harness = opened(queue=(2, 3, 1))
    harness.play_to(Phase.AVAILABLE)
    harness.block(*(harness.available(actor, [0, 3]) for actor in range(3)))
    (duty,) = harness.duties(2)
    assert isinstance(duty, Aggregate)
    assert duty.models == offered(harness, 0, 3)


def test_committee_owes_a_verdict_on_the_current_aggregation() -> None:
    harness = opened()
    harness.play_to(Phase.ATTEST)
    aggregation = harness.round.aggregation
    assert aggregation is not None
    expected = AttestTo(
        harness.slot,
        harness.task.specification,
        offered(harness, 0, 1, 2, 3),
        harness.round.probe_seed,
        aggregation,
        0,
    )
    assert harness.duties(1) == (expected,)
    harness.block(harness.attest(1))
    assert harness.duties(1) == ()


def test_aggregators_in_line_owe_a_probe_where_it_is_their_own_data() -> None:
    """PROBE; the next two in line post theirs too."""
    harness = opened(probe_mode=ProbeMode.AGGREGATOR, queue=(2, 3, 1))
    duty = PostProbe(harness.slot, harness.task.specification, 0)
    assert [duty in harness.duties(actor) for actor in range(4)] == [False, True, True, True]
    transaction = harness.probe(2)
    assert isinstance(transaction.body, Probe)
    harness.block(transaction)
    assert duty not in harness.duties(2)
    harness.play_to(Phase.AGGREGATE)
    (owed,) = harness.duties(2)
    assert isinstance(owed, Aggregate)
    assert owed.probe == transaction.body.commitment


@pytest.mark.parametrize("phase", list(Phase))
def test_doing_a_duty_twice_is_harmless(phase: Phase) -> None:
    """doing it twice is harmless."""
    harness = opened()
    harness.play_to(phase)
    actor = harness.actor(harness.round.aggregator)
    answer = harness.answer(actor, harness.duties(actor)[0])
    assert harness.offer(answer, answer) == (answer,)
