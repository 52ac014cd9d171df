"""What an account owes now: a pure function of the state, so a restarted node finds its work in chain and keys.

A duty disappears once its transaction is in the state, and doing it twice is harmless: the second transaction is a
duplicate. How a duty is done (training, fetching, voting) is up to `node`.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from .genesis import Genesis
from .state import StateReader
from .tables import (
    ACCOUNTS,
    ADMISSION_POOL,
    PARTICIPANTS,
    SETTLED,
    TASKS,
    all_tasks,
    current_round,
    participant_key,
    settled_key,
)
from .task import Aggregation, LearningRound, Phase, ProbeMode, SettledClient, Task, TaskSpecification, TaskStatus
from .transaction import Slot
from .types import AccountId, BlobId, Hash


@dataclass(frozen=True, slots=True)
class OfferedModel:
    """A revealed model.

    Attributes:
        index: position of its client in the round's snapshot, and of its bit in AVAILABLE.
        account: its client, which serves it.
        samples: what its client registered.
        classes: those that its client registered samples of, as `task.class_bitmap` has them.
        base: what it was trained from.
        model: its id.
        size_bytes: its size.
    """

    index: int
    account: AccountId
    samples: int
    classes: bytes
    base: BlobId
    model: BlobId
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Admit:
    """Open the account with the credential that it was given."""


@dataclass(frozen=True, slots=True)
class Register:
    """Register for a task, for the first time or after leaving it."""

    task: Hash
    specification: TaskSpecification


@dataclass(frozen=True, slots=True)
class PostProbe:
    """Commit to samples of one category of the own data, as aggregator in line."""

    slot: Slot
    specification: TaskSpecification
    deadline_ms: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Train:
    """Train from `base`, or from ahead of it where the task's clients have momentum; commit to the result."""

    slot: Slot
    base: BlobId
    specification: TaskSpecification
    deadline_ms: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class RevealModel:
    """Reveal the model that `commitment` is of, and serve it."""

    slot: Slot
    commitment: Hash
    deadline_ms: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class FetchAndVote:
    """Fetch models and vote on which of them are there: when all are, or shortly before the deadline.

    The bitmap has a bit for each of `clients` clients.
    """

    slot: Slot
    specification: TaskSpecification
    clients: int
    models: tuple[OfferedModel, ...]
    deadline_ms: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Fetch the included models, compare them, aggregate them by cluster and publish the outputs.

    `probe` is the account's own PROBE, which has to be opened, or None where the probe is public: then it is drawn by
    `probe_seed`.
    """

    slot: Slot
    specification: TaskSpecification
    models: tuple[OfferedModel, ...]
    probe_seed: Hash
    probe: Hash | None
    deadline_ms: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class AttestTo:
    """Recompute the current aggregation and say whether it is right."""

    slot: Slot
    specification: TaskSpecification
    models: tuple[OfferedModel, ...]
    probe_seed: Hash
    aggregation: Aggregation
    deadline_ms: int = field(compare=False)


Duty: TypeAlias = Admit | Register | PostProbe | Train | RevealModel | FetchAndVote | Aggregate | AttestTo
"""What an account owes. `deadline_ms` is in header time, an estimate that moves with the round's clock: it doesn't
count when duties are compared."""


def duties(
    genesis: Genesis, reader: StateReader, account: AccountId, *, has_credential: bool, is_client: bool = True
) -> tuple[Duty, ...]:
    """What an account owes now.

    Args:
        genesis: of the chain.
        reader: the state after the last block.
        account: whose duties.
        has_credential: whether the account could be admitted.
        is_client: whether it wants to take part in tasks; what it owes as a validator it owes anyway.
    """
    if ACCOUNTS.get(reader, account) is None:
        return (Admit(),) if has_credential and _can_admit(genesis, reader) else ()
    owed: list[Duty] = []
    if is_client:
        owed += [
            Register(task.id, task.specification) for task in all_tasks(reader) if _may_register(reader, task, account)
        ]
    current = current_round(reader)
    if current is not None:
        task = TASKS.get(reader, current.slot.task)
        assert task is not None, "a learning round has a task"
        owed += _round_duties(current, task.specification, account)
    return tuple(owed)


def last_settled(reader: StateReader, task: Task) -> int:
    """Number of a task's last settled learning round, 0 before the first."""
    return task.round if SETTLED.get(reader, settled_key(task.id, task.round)) is not None else task.round - 1


def last_part(reader: StateReader, task: Task, account: AccountId) -> SettledClient | None:
    """A client's part in the last settled learning round: what it had received, and revealed, if it did.

    None for who was no client then, and where each attempt of the round was void. Not part of a duty, since it reads a
    settled round, and duties are looked for after each block.
    """
    settled = SETTLED.get(reader, settled_key(task.id, last_settled(reader, task)))
    clients = () if settled is None or settled.aggregation is None else settled.clients
    return next((client for client in clients if client.account == account), None)


def _can_admit(genesis: Genesis, reader: StateReader) -> bool:
    pool = ADMISSION_POOL.get(reader)
    assert pool is not None, "every state has an admission pool"
    return pool.amount >= genesis.parameters.admission_amount


def _may_register(reader: StateReader, task: Task, account: AccountId) -> bool:
    if task.status not in (TaskStatus.REGISTRATION, TaskStatus.RUNNING):
        return False
    participant = PARTICIPANTS.get(reader, participant_key(task.id, account))
    takes_part = participant is not None and not participant.is_leaving
    return not takes_part and task.clients < task.specification.clients_max


def _round_duties(current: LearningRound, specification: TaskSpecification, account: AccountId) -> list[Duty]:
    match current.phase:
        case Phase.COMMIT:
            return [*_probe_duty(current, specification, account), *_train_duty(current, specification, account)]
        case Phase.REVEAL:
            return _reveal_duty(current, account)
        case Phase.AVAILABLE:
            return _vote_duty(current, specification, account)
        case Phase.AGGREGATE:
            return _aggregate_duty(current, specification, account)
        case Phase.ATTEST:
            return _attest_duty(current, specification, account)


def _offered(current: LearningRound) -> tuple[OfferedModel, ...]:
    """The models that count so far: revealed ones in AVAILABLE, included ones from AGGREGATE on."""
    return tuple(
        OfferedModel(
            index=index,
            account=client.account,
            samples=client.samples,
            classes=client.classes,
            base=client.base,
            model=client.revealed.model,
            size_bytes=client.revealed.size,
        )
        for index, client in enumerate(current.clients)
        if client.is_candidate and client.revealed is not None
    )


def _probe_duty(current: LearningRound, specification: TaskSpecification, account: AccountId) -> list[Duty]:
    is_owed = specification.probe_mode is ProbeMode.AGGREGATOR and any(
        member.account == account and member.probe is None for member in current.line
    )
    return [PostProbe(current.slot, specification, current.deadline_header_ms)] if is_owed else []


def _train_duty(current: LearningRound, specification: TaskSpecification, account: AccountId) -> list[Duty]:
    position = current.position_of(account)
    if position is None or current.clients[position].committed is not None:
        return []
    return [Train(current.slot, current.clients[position].base, specification, current.deadline_header_ms)]


def _reveal_duty(current: LearningRound, account: AccountId) -> list[Duty]:
    position = current.position_of(account)
    if position is None:
        return []
    client = current.clients[position]
    if client.committed is None or client.revealed is not None:
        return []
    return [RevealModel(current.slot, client.committed.commitment, current.deadline_header_ms)]


def _vote_duty(current: LearningRound, specification: TaskSpecification, account: AccountId) -> list[Duty]:
    has_voted = any(vote.account == account for vote in current.availability)
    if has_voted or not _is_in_committee(current, account):
        return []
    return [
        FetchAndVote(current.slot, specification, len(current.clients), _offered(current), current.deadline_header_ms)
    ]


def _aggregate_duty(current: LearningRound, specification: TaskSpecification, account: AccountId) -> list[Duty]:
    acting = current.line[current.acting]
    if acting.account != account:
        return []
    return [
        Aggregate(
            slot=current.slot,
            specification=specification,
            models=_offered(current),
            probe_seed=current.probe_seed,
            probe=acting.probe,
            deadline_ms=current.deadline_header_ms,
        )
    ]


def _attest_duty(current: LearningRound, specification: TaskSpecification, account: AccountId) -> list[Duty]:
    has_voted = any(vote.account == account for vote in current.attestations)
    if has_voted or not _is_in_committee(current, account):
        return []
    assert current.aggregation is not None, "ATTEST follows an aggregation"
    return [
        AttestTo(
            slot=current.slot,
            specification=specification,
            models=_offered(current),
            probe_seed=current.probe_seed,
            aggregation=current.aggregation,
            deadline_ms=current.deadline_header_ms,
        )
    ]


def _is_in_committee(current: LearningRound, account: AccountId) -> bool:
    return any(member.account == account for member in current.committee)
