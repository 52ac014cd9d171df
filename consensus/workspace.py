"""What a block is executed on: the parent's state, the block's context, and the changes and events so far.

Moving money between accounts is here, since everything that pays goes through it. Which rules move it is said in
`ledger`, `registration`, `learning_round` and `settlement`.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from .genesis import Genesis
from .state import Changes, StateReader, StateView
from .tables import (
    ACCOUNTS,
    NO_STAKE,
    QUEUE,
    ROUNDS,
    STAKES,
    TASKS,
    Account,
    Queue,
    Stake,
    current_queue,
    current_round,
)
from .task import LearningRound, Task
from .transaction import Slot
from .types import AccountId, Amount, Hash


@dataclass(frozen=True, slots=True)
class BlockContext:
    """What a block's header says that its execution depends on; `round` is that of agreement."""

    height: int
    round: int
    time_ms: int
    proposer: AccountId


class EventKind(StrEnum):
    """What happened to a task or a validator, for logs and statistics: nothing in consensus reads it."""

    ROUND_OPENED = "round-opened"
    PHASE_CHANGED = "phase-changed"
    PHASE_EXTENDED = "phase-extended"
    GRACE_STARTED = "grace-started"
    AGGREGATOR_REPLACED = "aggregator-replaced"
    ROUND_VOID = "round-void"
    ROUND_SETTLED = "round-settled"
    CLIENT_LEFT = "client-left"
    TASK_WAITING = "task-waiting"
    TASK_DONE = "task-done"
    TASK_CANCELLED = "task-cancelled"
    JAILED = "jailed"
    UNJAILED = "unjailed"
    SLASHED = "slashed"
    TOMBSTONED = "tombstoned"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a block did to a learning round, or (without a slot) to a validator; `detail` is for people."""

    kind: EventKind
    slot: Slot | None
    account: AccountId | None
    detail: str


class Workspace:
    """A state with changes on top, on which one block is executed.

    Callers check everything before they change anything, so a rejected transaction leaves nothing behind. The running
    learning round is kept decoded and written once, in `changes`: it is the one large record, and most transactions of
    a block change it.

    Attributes:
        genesis: the chain's parameters.
        context: of the block.
        view: the state with the changes so far, but those of the running learning round.
        events: what happened so far, in order.
        are_stakes_changed: whether a stake changed since `staking` chose the validators.
    """

    def __init__(self, genesis: Genesis, context: BlockContext, reader: StateReader) -> None:
        self.genesis = genesis
        self.context = context
        self.view = StateView(reader)
        self.events: list[Event] = []
        self.are_stakes_changed = False
        self._round = current_round(reader)
        self._is_round_changed = False

    @property
    def round(self) -> LearningRound | None:
        """The learning round that runs."""
        return self._round

    def put_round(self, current: LearningRound) -> None:
        """Record the running learning round's new state."""
        assert self._round is None or self._round.slot.task == current.slot.task, "one task runs at a time"
        self._round = current
        self._is_round_changed = True

    def drop_round(self) -> None:
        """End the running learning round."""
        assert self._round is not None
        ROUNDS.delete(self.view, self._round.slot.task)
        self._round = None
        self._is_round_changed = False

    def changes(self) -> Changes:
        """All changes so far, the running learning round's among them."""
        if self._is_round_changed:
            assert self._round is not None
            ROUNDS.put(self.view, self._round.slot.task, self._round)
            self._is_round_changed = False
        return self.view.changes

    def task(self, task: Hash) -> Task:
        """A task that is known to exist."""
        record = TASKS.get(self.view, task)
        assert record is not None, f"no task {task.hex()}"
        return record

    def put_task(self, task: Task) -> None:
        """Record a task's new state."""
        TASKS.put(self.view, task.id, task)

    def balance(self, account: AccountId) -> Amount:
        """Free balance of an account, 0 if there is none."""
        record = ACCOUNTS.get(self.view, account)
        return 0 if record is None else record.balance

    def credit(self, account: AccountId, amount: Amount) -> None:
        """Add to the free balance of an account, which is opened if there is none."""
        assert amount >= 0, amount
        record = ACCOUNTS.get(self.view, account) or Account(0, 0)
        ACCOUNTS.put(self.view, account, replace(record, balance=record.balance + amount))

    def put_stake(self, account: AccountId, stake: Stake) -> None:
        """Record what an account has at stake."""
        if stake == NO_STAKE:
            STAKES.delete(self.view, account)
        else:
            STAKES.put(self.view, account, stake)
        self.are_stakes_changed = True

    def leave_queue(self, account: AccountId) -> None:
        """Take an account out of the packing queue, if it is there."""
        queue = current_queue(self.view)
        if account in queue:
            QUEUE.put(self.view, Queue(tuple(member for member in queue if member != account)))

    def note(
        self, kind: EventKind, slot: Slot | None = None, detail: str = "", *, account: AccountId | None = None
    ) -> None:
        """Add an event."""
        self.events.append(Event(kind, slot, account, detail))
