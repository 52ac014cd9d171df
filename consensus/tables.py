"""The layout of the state: which keys there are and which records they hold.

What belongs here: tables, cells and the small records that only state holds. What doesn't: rules that change them.

    account/<account>               balance and nonce
    stake/<account>                 bonded and unbonding tokens, jail, tombstone
    offence/<account><height><kind> what an account was slashed for, for ever
    cell/validators                 who votes on the next block
    cell/previous-validators        who voted on the last one
    cell/attendance                 who missed which of the last commits
    cell/next-release               when the next unbonded tokens become free
    cell/queue                      CACC's packing queue
    cell/beacon                     the last beacon
    cell/admission-pool             what is left for new accounts
    cell/supply                     all micro-tokens there are
    task/<task>                     tasks
    participant/<task><account>     registered clients
    round/<task>                    the learning round that runs (at most one in all)
    settled/<task><number>          settled learning rounds, for ever
    model/<task><blob>              models seen of late, to tell copies
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Self

from .block import Validator
from .quorum import ValidatorSet
from .records import Record
from .state import Cell, StateReader, Table
from .task import LearningRound, Participant, SettledRound, Task
from .types import (
    MAX_ATTENDANCE_WINDOW,
    MAX_VALIDATORS,
    AccountId,
    Amount,
    AtMost,
    BlobId,
    Hash,
    Milliseconds,
    TransactionId,
    Unsigned,
)

MAX_UNBONDING = 16
"""Amounts of one account that unbond at once: bounds a record; who wants more waits for the oldest."""


@dataclass(frozen=True, slots=True)
class Account(Record):
    """An account's free balance, and the nonce its next transaction must have."""

    balance: Amount
    nonce: Unsigned


@dataclass(frozen=True, slots=True)
class Unbonding(Record):
    """Tokens that left a stake and become free at a header time; until then they can be slashed."""

    amount: Amount
    release_ms: Milliseconds


@dataclass(frozen=True, slots=True)
class Stake(Record):
    """What an account has at stake, and whether it may vote; see `staking`.

    `jailed_until_ms` is None outside jail, else the earliest header time of an UNJAIL. A tombstone is for ever.
    """

    bonded: Amount
    unbonding: Annotated[tuple[Unbonding, ...], AtMost(MAX_UNBONDING)]
    jailed_until_ms: Milliseconds | None
    is_tombstoned: bool

    @property
    def total(self) -> int:
        """Everything that can be slashed."""
        return self.bonded + sum(entry.amount for entry in self.unbonding)


NO_STAKE = Stake(0, (), None, False)


class OffenceKind(IntEnum):
    """What an account was slashed for."""

    DOUBLE_SIGN = 1
    """Two different messages for one slot of agreement."""
    WRONG_OUTPUT = 2
    """An aggregation whose outputs aren't the means of the models: an exact fault."""


@dataclass(frozen=True, slots=True)
class Offence(Record):
    """A punishment: `transaction` is the EVIDENCE, or the AGGREGATE that was found wrong."""

    kind: OffenceKind
    time_ms: Milliseconds
    slashed: Amount
    transaction: TransactionId


@dataclass(frozen=True, slots=True)
class Attended(Record):
    """A validator's missed commits as a big-endian bitmap: the lowest bit is the last block's commit."""

    account: AccountId
    missed: Annotated[bytes, AtMost(MAX_ATTENDANCE_WINDOW // 8)]

    @property
    def count(self) -> int:
        """Commits missed within the window."""
        return int.from_bytes(self.missed, "big").bit_count()


@dataclass(frozen=True, slots=True)
class Attendance(Record):
    """Who missed which commits: validators by key, and for each bit of their bitmaps the proposer that recorded it.

    `proposers` has each proposer of the window once, by key; `order` has for each block, the last one first, a place
    among them in two bytes, big-endian. Written with each block, so it is kept short.
    """

    proposers: Annotated[tuple[AccountId, ...], AtMost(MAX_ATTENDANCE_WINDOW)]
    order: Annotated[bytes, AtMost(2 * MAX_ATTENDANCE_WINDOW)]
    members: Annotated[tuple[Attended, ...], AtMost(MAX_VALIDATORS)]

    @classmethod
    def of(cls, recorders: tuple[AccountId, ...], members: tuple[Attended, ...]) -> Self:
        """The record for these proposers, the last block's first."""
        proposers = tuple(sorted(set(recorders)))
        places = {account: place.to_bytes(2, "big") for place, account in enumerate(proposers)}
        return cls(proposers, b"".join(places[account] for account in recorders), members)

    @property
    def recorders(self) -> tuple[AccountId, ...]:
        """The proposers of the window's blocks, the last block's first."""
        places = (int.from_bytes(self.order[start : start + 2], "big") for start in range(0, len(self.order), 2))
        return tuple(self.proposers[place] for place in places)


@dataclass(frozen=True, slots=True)
class Time(Record):
    """A header time."""

    time_ms: Milliseconds


@dataclass(frozen=True, slots=True)
class Validators(Record):
    """Validators in ascending order of key."""

    validators: Annotated[tuple[Validator, ...], AtMost(MAX_VALIDATORS)]


@dataclass(frozen=True, slots=True)
class Queue(Record):
    """The packing queue, head first: bonded validators that were a cluster's centroid."""

    accounts: Annotated[tuple[AccountId, ...], AtMost(MAX_VALIDATORS)]


@dataclass(frozen=True, slots=True)
class Beacon(Record):
    """Randomness that the last settled learning round left."""

    value: Hash


@dataclass(frozen=True, slots=True)
class Tokens(Record):
    """An amount of micro-tokens."""

    amount: Amount


@dataclass(frozen=True, slots=True)
class SeenModel(Record):
    """Where a model was seen last in a task.

    `owner` is the client that revealed it, which may submit it again in a later attempt of the same learning round;
    None for a base or output model, which nobody may submit.
    """

    owner: AccountId | None
    number: Unsigned


ACCOUNTS = Table(b"account/", Account)
STAKES = Table(b"stake/", Stake)
OFFENCES = Table(b"offence/", Offence)
ATTENDANCE = Cell(b"cell/attendance", Attendance)
NEXT_RELEASE = Cell(b"cell/next-release", Time)
VALIDATORS = Cell(b"cell/validators", Validators)
PREVIOUS_VALIDATORS = Cell(b"cell/previous-validators", Validators)
QUEUE = Cell(b"cell/queue", Queue)
BEACON = Cell(b"cell/beacon", Beacon)
ADMISSION_POOL = Cell(b"cell/admission-pool", Tokens)
SUPPLY = Cell(b"cell/supply", Tokens)
TASKS = Table(b"task/", Task)
PARTICIPANTS = Table(b"participant/", Participant)
ROUNDS = Table(b"round/", LearningRound)
SETTLED = Table(b"settled/", SettledRound)
MODELS = Table(b"model/", SeenModel)


def participant_key(task: Hash, account: AccountId) -> bytes:
    """Key of a task's participant in PARTICIPANTS; participants of a task are under the task's id, in order of key."""
    return task + account


def settled_key(task: Hash, number: int) -> bytes:
    """Key of a settled learning round in SETTLED; those of a task are under the task's id, in order of number."""
    return task + number.to_bytes(8, "big")


def model_key(task: Hash, model: BlobId) -> bytes:
    """Key of a model in MODELS."""
    return task + model


def offence_key(account: AccountId, height: int, kind: OffenceKind) -> bytes:
    """Key of an offence in OFFENCES; those of an account are under its key, in order of height."""
    return account + height.to_bytes(8, "big") + bytes([kind])


def stake_of(reader: StateReader, account: AccountId) -> Stake:
    """What an account has at stake."""
    return STAKES.get(reader, account) or NO_STAKE


def current_attendance(reader: StateReader) -> Attendance:
    """Who missed which of the last commits."""
    record = ATTENDANCE.get(reader)
    assert record is not None, "every state has an attendance"
    return record


def current_validators(reader: StateReader) -> ValidatorSet:
    """The validators that vote on the next block."""
    record = VALIDATORS.get(reader)
    assert record is not None, "every state has validators"
    return ValidatorSet(record.validators)


def previous_validators(reader: StateReader) -> ValidatorSet:
    """The validators that voted on the last block: whose commit the next one carries."""
    record = PREVIOUS_VALIDATORS.get(reader)
    assert record is not None, "every state has the last block's validators"
    return ValidatorSet(record.validators)


def current_queue(reader: StateReader) -> tuple[AccountId, ...]:
    """The packing queue, head first."""
    record = QUEUE.get(reader)
    assert record is not None, "every state has a queue"
    return record.accounts


def current_beacon(reader: StateReader) -> Hash:
    """The beacon in force."""
    record = BEACON.get(reader)
    assert record is not None, "every state has a beacon"
    return record.value


def current_round(reader: StateReader) -> LearningRound | None:
    """The learning round that runs; only one task runs at a time."""
    return next((record for _, record in ROUNDS.scan(reader)), None)


def all_tasks(reader: StateReader) -> tuple[Task, ...]:
    """All tasks in the order of their numbers."""
    return tuple(sorted((task for _, task in TASKS.scan(reader)), key=lambda task: task.number))
