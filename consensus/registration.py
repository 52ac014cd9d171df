"""Who takes part in a task, and how a task starts, waits and ends: everything around its learning rounds.

What happens inside a learning round is in `learning_round`, how one ends in `settlement`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from .leaders import aggregator_line
from .rejection import Reason, Rejection
from .state import StateReader
from .tables import (
    MODELS,
    PARTICIPANTS,
    SETTLED,
    TASKS,
    SeenModel,
    all_tasks,
    current_beacon,
    current_queue,
    current_validators,
    model_key,
    participant_key,
    settled_key,
)
from .task import Exclusion, LearningRound, LineMember, Participant, Phase, RoundClient, Task, TaskStatus, class_bitmap
from .transaction import TaskLeave, TaskRegister
from .types import AccountId, BlobId, Hash
from .workspace import EventKind, Workspace

NO_HASH = Hash(bytes(32))
"""Stands for a hash that isn't known yet."""


def register(work: Workspace, sender: AccountId, body: TaskRegister) -> None:
    """Enter or re-enter a client; it takes part from the next learning round on.

    Raises:
        Rejection: UNKNOWN_TASK, NOT_OPEN (done or cancelled), MALFORMED (histogram against samples or classes),
            DUPLICATE (takes part already), LIMIT (`clients_max` take part).
    """
    task = TASKS.get(work.view, body.task)
    if task is None:
        raise Rejection(Reason.UNKNOWN_TASK, task=body.task)
    if task.status not in (TaskStatus.REGISTRATION, TaskStatus.RUNNING):
        raise Rejection(Reason.NOT_OPEN, task=body.task, status=task.status.name)
    classes = task.specification.classes
    if body.samples == 0 or len(body.histogram) != classes or sum(body.histogram) != body.samples:
        raise Rejection(
            Reason.MALFORMED, samples=body.samples, classes=classes, histogram="must count every sample by class"
        )
    key = participant_key(task.id, sender)
    known = PARTICIPANTS.get(work.view, key)
    if known is not None and not known.is_leaving:
        raise Rejection(Reason.DUPLICATE, task=body.task, participant=sender)
    if task.clients >= task.specification.clients_max:
        raise Rejection(Reason.LIMIT, task=body.task, clients=task.clients)
    participant = Participant(
        account=sender,
        samples=body.samples,
        histogram=body.histogram,
        data_commitment=body.data_commitment,
        base=newcomers_base(work.view, task),
        misses=0,
        is_leaving=False,
        reputation=0 if known is None else known.reputation,
    )
    PARTICIPANTS.put(work.view, key, participant)
    work.put_task(replace(task, clients=task.clients + 1))


def leave(work: Workspace, sender: AccountId, body: TaskLeave) -> None:
    """Take a client out from the next learning round on.

    Raises:
        Rejection: UNKNOWN_TASK, NOT_PARTICIPANT.
    """
    task = TASKS.get(work.view, body.task)
    if task is None:
        raise Rejection(Reason.UNKNOWN_TASK, task=body.task)
    key = participant_key(task.id, sender)
    participant = PARTICIPANTS.get(work.view, key)
    if participant is None or participant.is_leaving:
        raise Rejection(Reason.NOT_PARTICIPANT, task=body.task, sender=sender)
    PARTICIPANTS.put(work.view, key, replace(participant, is_leaving=True))
    work.put_task(replace(task, clients=task.clients - 1))


def largest_cluster(labels: Sequence[int]) -> int:
    """The label of the largest cluster; of equal ones the cluster of the client with the lowest key.

    Labels are numbered by first appearance in the order of keys, so that is the lowest label.
    """
    sizes = Counter(labels)
    return min(sizes, key=lambda label: (-sizes[label], label))


def newcomers_base(reader: StateReader, task: Task) -> BlobId:
    """What a late joiner or returning client trains from: the largest cluster's output of the last settled round."""
    last = SETTLED.get(reader, settled_key(task.id, task.round - 1))
    if last is None or last.aggregation is None:
        return task.specification.initial_model
    return last.aggregation.outputs[largest_cluster(last.aggregation.labels)]


def tick(work: Workspace) -> None:
    """Move the clocks of tasks that wait for participants, and extend or cancel those whose time is over.

    While a task runs the others can't start, so their clocks stand still.
    """
    if work.round is not None:
        return
    for task in all_tasks(work.view):
        if task.status is not TaskStatus.REGISTRATION:
            continue
        now_ms = work.context.time_ms
        step_ms = min(now_ms - task.header_ms, work.genesis.parameters.max_step_ms)
        moved = replace(task, header_ms=now_ms, clock_ms=task.clock_ms + step_ms)
        if moved.clock_ms < moved.registration_deadline_ms:
            work.put_task(moved)
        elif not moved.is_extended:
            work.put_task(replace(moved, is_extended=True))
            work.note(EventKind.PHASE_EXTENDED, task.slot, "registration")
        else:
            end_task(work, moved, TaskStatus.CANCELLED)


def open_next(work: Workspace) -> bool:
    """Start the first waiting task that has enough participants; say whether there was one.

    Where there is none, clocks go on from now: the time while another task ran isn't theirs.
    """
    assert work.round is None, "one task runs at a time"
    waiting = [task for task in all_tasks(work.view) if task.status is TaskStatus.REGISTRATION]
    for task in waiting:
        if _has_enough(task):
            open_round(work, task)
            return True
    for task in waiting:
        if task.header_ms != work.context.time_ms:
            work.put_task(replace(task, header_ms=work.context.time_ms))
    return False


def _has_enough(task: Task) -> bool:
    """Whether a waiting task has the participants it wants.

    Before its first learning round that is all that it expects; from the extension of its registration on, and later,
    the fewest it insists on.
    """
    specification = task.specification
    is_first = (task.round, task.attempt) == (1, 0)
    wanted = specification.clients_start if is_first and not task.is_extended else specification.clients_min
    return task.clients >= wanted


def open_round(work: Workspace, task: Task) -> None:
    """OPEN: snapshot the participants, the committee and the line of aggregators, and ask for commits.

    With an escrow below the reward the task is done; with too few participants it waits for more.
    """
    if task.escrow < task.specification.reward:
        end_task(work, task, TaskStatus.DONE)
        return
    participants = [entry for _, entry in PARTICIPANTS.scan(work.view, task.id) if not entry.is_leaving]
    assert len(participants) == task.clients, (len(participants), task.clients)
    if task.clients < task.specification.clients_min:
        _wait_for_participants(work, task)
        return
    for participant in participants:
        MODELS.put(work.view, model_key(task.id, participant.base), SeenModel(None, task.round))
    validators = current_validators(work.view)
    line = aggregator_line(current_queue(work.view), validators, current_beacon(work.view), task.slot)
    now_ms = work.context.time_ms
    work.put_task(replace(task, status=TaskStatus.RUNNING))
    work.put_round(
        LearningRound(
            slot=task.slot,
            phase=Phase.COMMIT,
            header_ms=now_ms,
            clock_ms=now_ms,
            opened_ms=now_ms,
            deadline_ms=now_ms + task.specification.deadlines.commit_ms,
            is_extended=False,
            is_in_grace=False,
            clients=tuple(_round_client(participant) for participant in participants),
            committee=validators.validators,
            line=tuple(LineMember(account, None) for account in line),
            acting=0,
            availability=(),
            included=(),
            probe_seed=NO_HASH,
            aggregation=None,
            attestations=(),
            opened_height=work.context.height,
            opened_header_ms=now_ms,
        )
    )
    work.note(EventKind.ROUND_OPENED, task.slot, f"{len(participants)} clients", account=line[0])


def end_task(work: Workspace, task: Task, status: TaskStatus) -> None:
    """End a task and refund what is left of its escrow."""
    assert work.round is None or work.round.slot.task != task.id, "its learning round has ended"
    work.credit(task.requester, task.escrow)
    work.put_task(replace(task, status=status, escrow=0))
    kind = EventKind.TASK_DONE if status is TaskStatus.DONE else EventKind.TASK_CANCELLED
    work.note(kind, task.slot, f"{task.escrow} micro-tokens refunded", account=task.requester)


def _wait_for_participants(work: Workspace, task: Task) -> None:
    now_ms = work.context.time_ms
    waiting = replace(
        task, status=TaskStatus.REGISTRATION, header_ms=now_ms, clock_ms=now_ms, opened_ms=now_ms, is_extended=False
    )
    work.put_task(waiting)
    work.note(EventKind.TASK_WAITING, task.slot, f"{task.clients} of {task.specification.clients_min} participants")


def _round_client(participant: Participant) -> RoundClient:
    return RoundClient(
        account=participant.account,
        samples=participant.samples,
        classes=class_bitmap(participant.histogram),
        base=participant.base,
        committed=None,
        revealed=None,
        exclusion=Exclusion.NONE,
    )
