import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from bflnode.consensus import duties as owed
from bflnode.consensus.duties import Duty, last_part
from bflnode.consensus.registration import newcomers_base
from bflnode.consensus.tables import SETTLED, TASKS, all_tasks
from bflnode.consensus.task import Phase, ProbeMode, TaskStatus
from bflnode.consensus.types import AccountId, BlobId
from bflnode.node import pruning
from bflnode.node.chain import Chain
from bflnode.node.journal import Journal, RoundEntry
from bflnode.node.pruning import DOUBT_MS, Pruned, Pruner, Retention, Step, no_step
from bflnode.node.verify import verify_chain
from bflnode.storage.blob_store import Quota, StoredBlob
from bflnode.storage.errors import QuotaError
from tests.consensus.harness import Harness, blob
from tests.consensus.setups import SPECIFICATION
from tests.node.learning_chain import LearningChain

OLD_MS = 1
"""A file from long before the first block."""


ACCOUNT = AccountId(bytes(32))
"""Of somebody who looks on."""


def blobs_of(duty: Duty) -> Iterator[BlobId]:
    """The files that a duty is done with."""
    match duty:
        case owed.Train():
            yield duty.base
        case owed.FetchAndVote():
            yield from (model.model for model in duty.models)
        case owed.Aggregate() | owed.AttestTo():
            yield from (model.model for model in duty.models)
            yield from (model.base for model in duty.models)
            yield duty.specification.probe_set
    if isinstance(duty, owed.AttestTo):
        yield from duty.aggregation.outputs
        if duty.aggregation.opening is not None:
            yield duty.aggregation.opening.samples


class Disk:
    """What the first actor has on its disk while a harness plays: everything it needs, makes or serves."""

    def __init__(self, harness: Harness, keep_rounds: int) -> None:
        self.harness = harness
        self.keep_rounds = keep_rounds
        self.files: dict[BlobId, StoredBlob] = {}
        self.removed: set[BlobId] = set()
        self.entries: dict[tuple[int, int], RoundEntry] = {}

    def needed(self) -> set[BlobId]:
        """What any actor needs for its duties, or a late joiner to begin with."""
        harness = self.harness
        found = {
            found for actor in range(len(harness.keys)) for duty in harness.duties(actor) for found in blobs_of(duty)
        }
        for task in all_tasks(harness.tree):
            found |= {task.specification.initial_model, task.specification.probe_set}
            found.add(newcomers_base(harness.tree, task))
        return found

    def go_on(self) -> None:
        """After a block: fetch and train what is due, prune, and see that nothing has gone that is needed."""
        harness, needed = self.harness, self.needed()
        assert not needed & self.removed
        for duty in harness.duties(0):
            if isinstance(duty, owed.Train):
                last = last_part(harness.tree, harness.task, harness.account(0))
                revealed = None if last is None else last.revealed
                assert last is None or last.base not in self.removed
                assert revealed is None or revealed.model not in self.removed
                model = harness.model(0, duty.slot)
                slot = duty.slot
                entry = RoundEntry(slot.task.hex(), slot.number, slot.attempt, duty.base.hex(), model.hex())
                self.entries[slot.number, slot.attempt] = entry
                needed.add(model)
            if isinstance(duty, owed.RevealModel):
                assert harness.model(0, duty.slot) not in self.removed
            if isinstance(duty, owed.Aggregate):
                needed |= {blob("output", duty.slot, label) for label in range(2)}
                needed.add(harness.opening(0, duty.slot).samples)
        for found in needed:
            self.files.setdefault(found, StoredBlob(found, 1000, harness.now_ms))
        retention = Retention(harness.tree, self.entries.values(), (), self.keep_rounds)
        for gone in retention.removable(self.files.values()):
            del self.files[gone.id]
            self.removed.add(gone.id)
        for key, entry in list(self.entries.items()):
            if retention.is_over(entry):
                del self.entries[key]


@settings(max_examples=8, deadline=None)
@given(
    mode=st.sampled_from(ProbeMode),
    keep_rounds=st.integers(1, 2),
    steps=st.lists(
        st.tuples(st.sets(st.integers(0, 4), min_size=1), st.sampled_from(["act", "act", "act", "wait", "leave"])),
        min_size=20,
        max_size=40,
    ),
)
def test_nothing_is_removed_that_a_later_duty_or_a_late_joiner_needs(
    mode: ProbeMode, keep_rounds: int, steps: list[tuple[set[int], str]]
) -> None:
    play(mode, keep_rounds, [({0, 1, 2, 3, 4}, "act"), *steps])


@pytest.mark.parametrize("mode", ProbeMode)
@pytest.mark.parametrize("keep_rounds", [1, 2])
def test_models_go_as_a_task_goes_on_and_every_duty_finds_its_own(mode: ProbeMode, keep_rounds: int) -> None:
    everybody = {0, 1, 2, 3, 4}
    disk = play(mode, keep_rounds, [(everybody, "act")] * 22)
    assert disk.harness.task.status is TaskStatus.DONE
    trained = {disk.harness.model(0, replace(disk.harness.slot, number=number)) for number in range(1, 5)}
    assert len(trained & disk.removed) == 4 - keep_rounds
    assert trained - disk.removed <= disk.files.keys()


def play(mode: ProbeMode, keep_rounds: int, steps: Iterable[tuple[set[int], str]]) -> Disk:
    """Two tasks of which the first is played, with pruning after each block; times of files are believed at once."""
    second = replace(SPECIFICATION, name="second", probe_mode=mode, rounds=2, initial_model=blob("second"))
    first = replace(SPECIFICATION, probe_mode=mode, rounds=4, clients_start=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "DOUBT_MS", 0)
        harness = Harness(actors=5, specifications=(first, second))
        disk = Disk(harness, keep_rounds)
        for actors, what in steps:
            before = harness.height
            if what == "leave":
                participating = [actor for actor in actors if takes_part(harness, actor)]
                harness.block(*(harness.leave(actor) for actor in participating[:1]))
            elif what == "wait" and harness.phase is not None:
                harness.wait_until_due()
            else:
                act(harness, actors)
            assert harness.height == before + 1
            disk.go_on()
    return disk


def act(harness: Harness, actors: Iterable[int]) -> None:
    """A block in which these actors do what they owe; what a deadline in it makes invalid is left out."""
    answers = []
    for actor in actors:
        owing = harness.duties(actor)
        registrations = [duty for duty in owing if isinstance(duty, owed.Register)]
        answers += [harness.answer(actor, duty) for duty in owing if duty not in registrations[1:]]
    harness.offer(*answers)


def takes_part(harness: Harness, actor: int) -> bool:
    """Whether an actor is registered for the first task and hasn't left it."""
    return not any(
        isinstance(duty, owed.Register) and duty.task == harness.task_id for duty in harness.duties(actor)
    ) and harness.task.status in (TaskStatus.REGISTRATION, TaskStatus.RUNNING)


def played(rounds: int, **changes: object) -> Harness:
    harness = Harness(actors=4, rounds=5, **changes)
    harness.register_all()
    for _ in range(rounds):
        harness.play_round()
    return harness


def removable(harness: Harness, blobs: Iterable[BlobId], rounds: int, written_ms: int = OLD_MS) -> list[BlobId]:
    stored = [StoredBlob(found, 1000, written_ms) for found in blobs]
    return [found.id for found in Retention(harness.tree, (), (), rounds).removable(stored)]


def models_of(harness: Harness, number: int) -> set[BlobId]:
    """Models that clients made in a learning round."""
    return {client.revealed.model for client in harness.settled(number).clients if client.revealed}


def outputs_of(harness: Harness, number: int) -> set[BlobId]:
    aggregation = harness.settled(number).aggregation
    assert aggregation is not None
    return set(aggregation.outputs)


def test_exactly_the_last_rounds_are_kept_with_the_models_they_began_with() -> None:
    harness = played(4)
    everything = [found for number in range(1, 5) for found in sorted(models_of(harness, number))]
    everything += [found for number in range(1, 5) for found in sorted(outputs_of(harness, number))]
    gone = removable(harness, everything, rounds=2)
    assert set(gone) == models_of(harness, 1) | models_of(harness, 2) | outputs_of(harness, 1)
    assert not set(gone) & outputs_of(harness, 2), "the third round began with them"
    assert set(gone[:4]) <= models_of(harness, 1) | outputs_of(harness, 1), "the oldest go first"


def test_what_a_task_starts_from_and_pins_stay_for_ever() -> None:
    harness = played(4)
    start = [SPECIFICATION.initial_model, SPECIFICATION.probe_set]
    assert removable(harness, start, rounds=1) == []
    pinned = min(models_of(harness, 1))
    stored = [StoredBlob(found, 1, OLD_MS) for found in sorted(models_of(harness, 1))]
    gone = Retention(harness.tree, (), (pinned,), 1).removable(stored)
    assert {found.id for found in gone} == models_of(harness, 1) - {pinned}


def test_models_of_a_voided_attempt_stay_while_their_round_runs() -> None:
    harness = played(2)
    harness.play_to(Phase.REVEAL)
    harness.step()
    revealed = {client.revealed.model for client in harness.round.clients if client.revealed}
    while harness.slot.attempt == 0:
        harness.wait_until_due()
    assert len(revealed) == 4
    assert removable(harness, revealed, rounds=1) == []
    harness.play_round()
    harness.play_round()
    assert set(removable(harness, revealed, rounds=1)) == revealed


def test_a_file_that_no_round_names_goes_only_when_it_is_older_than_what_is_kept() -> None:
    harness = played(4)
    stranger = blob("stranger")
    assert removable(harness, [stranger], rounds=2, written_ms=harness.now_ms) == []
    settled_ms = harness.settled(2).settled_header_ms
    assert removable(harness, [stranger], rounds=2, written_ms=settled_ms - DOUBT_MS) == []
    assert removable(harness, [stranger], rounds=2, written_ms=settled_ms - DOUBT_MS - 1) == [stranger]
    assert removable(played(1), [stranger], rounds=2) == []


def test_an_own_model_that_is_not_revealed_yet_stays_by_the_journal() -> None:
    harness = played(3)
    slot = harness.slot
    model = blob("own")
    entry = RoundEntry(slot.task.hex(), slot.number, slot.attempt, base="", model=model.hex())
    stored = [StoredBlob(model, 1, OLD_MS)]
    assert Retention(harness.tree, (entry,), (), 1).removable(stored) == ()
    older = replace(entry, number=1)
    retention = Retention(harness.tree, (older,), (), 1)
    assert [found.id for found in retention.removable(stored)] == [model]
    assert [retention.is_over(found) for found in (entry, older, replace(older, task="ab"))] == [False, True, False]


def test_a_chain_without_tasks_has_nothing_to_remove() -> None:
    harness = Harness(actors=2, specifications=())
    assert removable(harness, [blob("anything")], rounds=1) == []


@pytest.fixture
def learning(tmp_path: Path) -> Iterator[LearningChain]:
    """Three learning rounds with real models, all on disk."""
    chain = LearningChain(tmp_path)
    chain.register_all()
    for _ in range(3):
        chain.run_round()
    yield chain
    chain.store.close()


def pruner_of(chain: LearningChain, keep_rounds: int) -> Pruner:
    return Pruner(chain.store, chain.blobs, Journal(chain.home / "rounds"), keep_rounds)


def reexecuted(chain: LearningChain) -> tuple[int | None, int]:
    """The round from which on a chain can be executed again, and how many rounds can."""
    (task,) = verify_chain(chain.store, chain.blobs, reexecute=True).reexecution
    return task.possible_from, task.reexecuted


@pytest.mark.parametrize("keep_rounds", [1, 2])
def test_rounds_that_are_kept_can_be_executed_again(learning: LearningChain, keep_rounds: int) -> None:
    before = learning.blobs.total_size()
    pruned = pruner_of(learning, keep_rounds).prune()
    assert len(pruned.blobs) > 0
    assert before - learning.blobs.total_size() == pruned.size_bytes
    assert reexecuted(learning) == (4 - keep_rounds, keep_rounds)
    assert list(pruned.kept_from.values()) == [4 - keep_rounds]
    assert pruner_of(learning, keep_rounds).prune().blobs == ()


def test_a_dry_run_removes_nothing_and_says_what_would_go(learning: LearningChain) -> None:
    journal = Journal(learning.home / "rounds")
    (settled,) = [settled for _, settled in SETTLED.scan(learning.store.load_state()) if settled.slot.number == 1]
    journal.update(settled.slot, loss=1.0)
    before = learning.blobs.list()
    dry = pruner_of(learning, 1).prune(is_dry_run=True)
    assert (learning.blobs.list(), len(journal.entries()), dry.entries) == (before, 1, 1)
    assert pruner_of(learning, 1).prune() == dry
    assert journal.entries() == ()


def test_everything_is_kept_by_default_zero_and_on_a_chain_without_blocks(tmp_path: Path) -> None:
    chain = LearningChain(tmp_path)
    before = chain.blobs.list()
    assert pruner_of(chain, 1).prune().blobs == ()
    assert pruner_of(chain, 0).prune().blobs == ()
    pruner_of(chain, 1).make_room(10**9)
    assert chain.blobs.list() == before
    chain.store.close()


def test_a_quota_removes_the_oldest_first_and_no_more_than_it_must(learning: LearningChain) -> None:
    oldest = {model.id for model in pruner_of(learning, 2).prune(is_dry_run=True).blobs}
    learning.blobs.quota = Quota(learning.blobs.used_size(), pruner_of(learning, 0).make_room)
    before = set(learning.blobs.list())
    added = learning.blobs.put(os.urandom(6000))
    gone = before - set(learning.blobs.list())
    assert len(gone) == 2, "models have 5192 bytes"
    assert gone <= oldest
    assert learning.blobs.has(added)
    assert learning.blobs.used_size() <= learning.blobs.quota.limit_bytes


def test_at_the_quota_with_nothing_to_remove_a_model_is_refused_and_the_store_says_why(learning: LearningChain) -> None:
    pruner_of(learning, 1).prune()
    before = learning.blobs.list()
    learning.blobs.quota = Quota(learning.blobs.used_size() + 100, pruner_of(learning, 1).make_room)
    with pytest.raises(QuotaError, match=r"used up by models that are still needed: no room for .* of 6000 bytes"):
        learning.blobs.put(bytes(6000))
    assert learning.blobs.list() == before
    assert learning.blobs.shortage is not None
    assert "storage.blob_quota" in learning.blobs.shortage
    learning.blobs.put(b"small")
    assert learning.blobs.shortage is None


class WatchedPruner(Pruner):
    """Tells when it has pruned."""

    def watch(self) -> None:
        self.has_pruned = trio.Event()

    def prune(self, *, is_dry_run: bool = False, step: Step = no_step) -> Pruned:
        pruned = super().prune(is_dry_run=is_dry_run, step=step)
        trio.from_thread.run_sync(self.has_pruned.set)
        return pruned


async def test_a_running_node_prunes_when_it_starts_and_when_a_round_is_settled(learning: LearningChain) -> None:
    chain = Chain(learning.store)
    pruner = WatchedPruner(learning.store, learning.blobs, Journal(learning.home / "rounds"), 2)
    pruner.watch()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pruner.run, chain)
            await pruner.has_pruned.wait()
            assert reexecuted(learning) == (2, 2)
            pruner.watch()
            pruner.keep_rounds = 1
            chain.changed.set()
            chain.changed = trio.Event()
            assert not pruner.has_pruned.is_set(), "a block that settles nothing is no reason"
            task = all_tasks(chain.tree)[0]
            chain.tree.apply({TASKS.prefix + task.id: replace(task, status=TaskStatus.CANCELLED).to_bytes()})
            chain.changed.set()
            await pruner.has_pruned.wait()
            nursery.cancel_scope.cancel()
    assert reexecuted(learning) == (3, 1)


def test_pruning_ends_early_when_it_is_told_and_goes_on_later(learning: LearningChain) -> None:
    class StopError(Exception):
        pass

    def stop_at_the_third() -> None:
        steps.append(None)
        if len(steps) == 3:
            raise StopError

    steps: list[None] = []
    all_of_it = pruner_of(learning, 1).prune(is_dry_run=True).blobs
    with pytest.raises(StopError):
        pruner_of(learning, 1).prune(step=stop_at_the_third)
    assert pruner_of(learning, 1).prune().blobs == all_of_it[2:]
