"""One rule, one test: how tasks gather participants, and how their learning rounds open."""

from dataclasses import replace

import pytest

from bflnode.consensus.genesis import task_id
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.tables import all_tasks
from bflnode.consensus.task import Phase, TaskStatus
from bflnode.consensus.transaction import Slot
from bflnode.consensus.types import TOKEN
from tests.consensus.harness import Harness, opened
from tests.consensus.setups import DEADLINES, SPECIFICATION

# REGISTRATION


def test_task_runs_as_soon_as_enough_participants_are_registered() -> None:
    """REGISTRATION --enough participants--> RUNNING."""
    harness = Harness()
    harness.block(harness.register(0))
    assert harness.task.status is TaskStatus.REGISTRATION
    harness.block(harness.register(1))
    assert harness.task.status is TaskStatus.RUNNING
    assert harness.phase is Phase.COMMIT


def test_first_round_waits_for_the_clients_that_are_expected() -> None:
    """`clients_start` is how many it expects: the first learning round waits for them."""
    harness = Harness(clients_min=2, clients_start=3)
    harness.block(harness.register(0), harness.register(1))
    assert harness.task.status is TaskStatus.REGISTRATION
    harness.block(harness.register(2))
    assert len(harness.round.clients) == 3


def test_from_the_extension_on_the_fewest_clients_are_enough() -> None:
    """until registration is extended."""
    harness = Harness(clients_min=2, clients_start=4)
    harness.block(harness.register(0), harness.register(1))
    harness.wait(DEADLINES.registration_ms - 101)
    assert harness.task.status is TaskStatus.REGISTRATION
    harness.wait(1)
    assert (harness.task.status, len(harness.round.clients)) == (TaskStatus.RUNNING, 2)


def test_later_rounds_do_not_wait_for_all_that_were_expected() -> None:
    harness = opened(actors=3, clients_min=2, clients_start=3)
    harness.registers = False
    harness.block(harness.leave(1), harness.leave(2))
    harness.play_round()
    assert harness.task.status is TaskStatus.REGISTRATION
    harness.block(harness.register(2))
    assert (harness.task.status, len(harness.round.clients)) == (TaskStatus.RUNNING, 2)


def test_registration_is_extended_once_then_the_task_is_cancelled_and_refunded() -> None:
    """(else one extension, then cancelled and refunded)."""
    harness = Harness()
    harness.block(harness.register(1))
    harness.wait(DEADLINES.registration_ms)
    assert (harness.task.status, harness.task.is_extended) == (TaskStatus.REGISTRATION, True)
    harness.wait(DEADLINES.registration_ms - 101)
    assert harness.task.status is TaskStatus.REGISTRATION
    harness.wait(1)
    assert (harness.task.status, harness.task.escrow) == (TaskStatus.CANCELLED, 0)
    assert harness.balance(0) == 1_000 + 60 * TOKEN


def test_late_participant_can_still_start_an_extended_task() -> None:
    """REGISTRATION --enough participants--> RUNNING, in the extension too."""
    harness = Harness()
    harness.block(harness.register(0))
    harness.wait(DEADLINES.registration_ms)
    harness.block(harness.register(1))
    assert harness.task.status is TaskStatus.RUNNING


def test_one_task_runs_at_a_time_and_the_next_starts_when_it_ends() -> None:
    """One RUNNING task at a time."""
    first, second = replace(SPECIFICATION, rounds=1), replace(SPECIFICATION, name="second", rounds=1)
    harness = Harness(specifications=(first, second))
    second_id = task_id(1, harness.genesis.tasks[1])
    harness.register_all()
    harness.block(*(harness.register(actor, task=second_id) for actor in range(4)))
    assert harness.round.slot.task == harness.task_id
    harness.wait(4 * DEADLINES.registration_ms)
    assert harness.round.slot.task == harness.task_id, "the clock of a task that can't start stands still"
    harness.play_round()
    assert harness.task.status is TaskStatus.DONE
    assert harness.round.slot == Slot(second_id, 1, 0)


def test_the_clock_of_a_waiting_task_goes_on_where_it_stood_when_another_ends() -> None:
    first, second = replace(SPECIFICATION, rounds=1), replace(SPECIFICATION, name="second", clients_start=5)
    harness = Harness(specifications=(first, second))
    harness.register_all()
    _, standing = all_tasks(harness.tree)
    harness.wait(4 * DEADLINES.registration_ms)
    harness.play_round()
    assert (harness.task.status, harness.phase) == (TaskStatus.DONE, None)
    harness.wait(100)
    _, waiting = all_tasks(harness.tree)
    assert (waiting.clock_ms, waiting.is_extended) == (standing.clock_ms + 100, False)


def test_registration_beyond_the_most_clients_is_refused() -> None:
    harness = Harness(clients_max=2)
    harness.block(harness.register(0), harness.register(1))
    assert harness.refusal(harness.register(2)) == (Rejection, Reason.LIMIT)


@pytest.mark.parametrize("samples", [0])
def test_registration_without_samples_is_refused(samples: int) -> None:
    harness = Harness()
    assert harness.refusal(harness.register(0, samples=samples)) == (Rejection, Reason.MALFORMED)


def test_registering_twice_is_refused() -> None:
    harness = Harness()
    harness.block(harness.register(0))
    assert harness.refusal(harness.register(0)) == (Rejection, Reason.DUPLICATE)


# OPEN


def test_round_opens_with_a_snapshot_sorted_by_key() -> None:
    """OPEN: snapshot participants, sorted by key; note each client's base model."""
    harness = Harness()
    harness.block(*(harness.register(actor) for actor in (3, 1, 0, 2)))
    assert [client.account for client in harness.round.clients] == [key.account for key in harness.keys]
    assert {client.base for client in harness.round.clients} == {SPECIFICATION.initial_model}
    assert [member.account for member in harness.round.committee] == [key.account for key in harness.keys]


def test_late_joiner_is_effective_at_the_next_open_with_the_largest_clusters_output() -> None:
    """late joiner: effective at the next OPEN; base = output of the largest cluster of the last settled round."""
    harness = Harness(actors=5, clients_min=2)
    harness.labels = [0, 1, 1, 1]
    harness.block(*(harness.register(actor) for actor in range(4)))
    harness.block(harness.register(4))
    assert len(harness.round.clients) == 4
    settled = harness.play_round()
    assert settled.aggregation is not None
    assert harness.round.clients[4].base == settled.aggregation.outputs[1]


def test_of_equally_large_clusters_a_late_joiner_gets_the_one_with_the_lowest_key() -> None:
    """(tie: the one with the lowest key)."""
    harness = Harness(actors=5, clients_min=2)
    harness.labels = [0, 1, 1, 0]
    harness.block(*(harness.register(actor) for actor in range(4)))
    harness.block(harness.register(4))
    settled = harness.play_round()
    assert settled.aggregation is not None
    assert harness.round.clients[4].base == settled.aggregation.outputs[0]


def test_client_trains_next_from_its_own_clusters_output() -> None:
    harness = opened()
    harness.labels = [0, 1, 0, 1]
    settled = harness.play_round()
    assert settled.aggregation is not None
    first, second = settled.aggregation.outputs
    assert [client.base for client in harness.round.clients] == [first, second, first, second]


def test_client_that_leaves_plays_the_current_round_and_not_the_next() -> None:
    harness = opened()
    harness.block(harness.leave(3))
    assert len(harness.round.clients) == 4
    settled = harness.play_round((0, 1, 2, 3))
    assert len(settled.included) == 4


def test_task_waits_when_too_few_participants_are_left_and_goes_on_when_one_returns() -> None:
    harness = opened(actors=2)
    harness.registers = False
    harness.block(harness.leave(1))
    harness.play_round()
    assert (harness.task.status, harness.phase) == (TaskStatus.REGISTRATION, None)
    harness.wait(DEADLINES.registration_ms)
    harness.block(harness.register(1))
    assert (harness.task.status, harness.slot) == (TaskStatus.RUNNING, Slot(harness.task_id, 2, 0))
    assert harness.phase is Phase.COMMIT


def test_task_that_waits_in_vain_for_participants_is_cancelled_and_refunded() -> None:
    """All clients gone must not wedge the chain."""
    harness = opened(actors=2)
    harness.registers = False
    harness.block(harness.leave(0), harness.leave(1))
    harness.play_round()
    harness.wait(DEADLINES.registration_ms)
    harness.wait(DEADLINES.registration_ms)
    assert (harness.task.status, harness.task.escrow) == (TaskStatus.CANCELLED, 0)


def test_client_that_comes_back_registers_again_and_keeps_its_reputation() -> None:
    """a node that comes back registers again by itself."""
    harness = opened(rounds=6)
    harness.play_round((0, 1, 2, 3))
    for _ in range(3):
        harness.play_round((0, 1, 2))
    harness.block(harness.register(3))
    assert (harness.participant(3).is_leaving, harness.participant(3).misses) == (False, 0)
    assert harness.participant(3).reputation == 1
    harness.play_round((0, 1, 2))
    assert len(harness.round.clients) == 4
