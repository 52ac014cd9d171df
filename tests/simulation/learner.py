"""A client of learning rounds: does what `duties` says the account owes, with ids in the place of models.

Every validator is one, and so are accounts without a stake. What a client does badly is its habit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from random import Random
from typing import Protocol

from bflnode.consensus import duties as owed
from bflnode.consensus.clustering import cluster, triangle_from_matrix
from bflnode.consensus.duties import Duty, OfferedModel, duties
from bflnode.consensus.genesis import Genesis
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.state import StateTree
from bflnode.consensus.tables import ACCOUNTS
from bflnode.consensus.task import PERMILLE, ProbeMode, Rule
from bflnode.consensus.transaction import (
    Aggregate,
    Attest,
    Available,
    Body,
    Commit,
    Fault,
    Probe,
    ProbeOpening,
    Reveal,
    Slot,
    TaskRegister,
    Transaction,
    bitmap,
    model_commitment,
    probe_commitment,
    sign_transaction,
)
from bflnode.consensus.types import AccountId, BlobId, Hash

from .simulated_chain import MODEL_BYTES

RETRY_MS = 1_000
"""What is still owed then is done again: a transaction may have been lost."""


class Habit(Enum):
    """How a client works."""

    PROMPT = "prompt"
    LATE = "late"
    """Takes longer than its phases last, now and then."""
    DROPPED = "dropped"
    """Registers, and is never heard of again."""
    SECRETIVE = "secretive"
    """Commits and doesn't reveal."""
    COPIER = "copier"
    """Commits to the first validator's model, whose salt it need not know."""
    WITHHOLDER = "withholder"
    """Serves its model to half of the committee."""
    IDLE_AGGREGATOR = "idle aggregator"
    """Does everything but aggregate, and post a PROBE."""
    FALSE_AGGREGATOR = "false aggregator"
    """Publishes outputs that aren't the mean."""
    CONTRARY = "contrary"
    """Attests the opposite, and finds no model."""


FALSE_OUTPUT = b"false"
"""How an output that isn't the mean begins."""


class Host(Protocol):
    """The node that a client lives in."""

    def submit_own(self, transaction: Transaction) -> None: ...

    def later(self, delay_ms: int, action: Callable[[], None]) -> None: ...


@dataclass(frozen=True, slots=True)
class Client:
    """An account that learns.

    Attributes:
        key: its key.
        habits: of all clients: a committee member knows whose models it can fetch.
        genesis: of the chain.
        random: draws how long it takes.
    """

    key: SecretKey
    habits: dict[AccountId, Habit]
    genesis: Genesis
    random: Random

    @property
    def account(self) -> AccountId:
        return self.key.account

    @property
    def habit(self) -> Habit:
        return self.habits.get(self.key.account, Habit.PROMPT)


class Learner:
    """A client in a running process: all it remembers is what it is at."""

    def __init__(self, client: Client, host: Host, state: Callable[[], StateTree]) -> None:
        self._client = client
        self._host = host
        self._state = state
        self._running: set[Duty] = set()

    def look(self) -> None:
        """Begin what is owed and not begun."""
        current = set(self._owed())
        self._running &= current
        for duty in self._owed():
            if duty not in self._running:
                self._running.add(duty)
                self._host.later(self._delay_ms(), lambda duty=duty: self._fulfil(duty))

    def _owed(self) -> tuple[Duty, ...]:
        return duties(self._client.genesis, self._state(), self._client.account, has_credential=False)

    def _delay_ms(self) -> int:
        random = self._client.random
        if self._client.habit is Habit.LATE and random.random() < 0.5:
            return random.randint(500, 3_000)
        return random.randint(1, 60)

    def _fulfil(self, duty: Duty) -> None:
        if duty not in self._owed():
            return
        body = self._body(duty)
        if body is not None:
            try:
                self._host.submit_own(self._sign(body))
            except Rejection:
                body = None
        self._host.later(RETRY_MS, lambda: self._fulfil(duty))

    def _sign(self, body: Body) -> Transaction:
        chain_id = self._client.genesis.chain_id
        nonce = 0
        if isinstance(body, TaskRegister):
            account = ACCOUNTS.get(self._state(), self._client.account)
            nonce = 0 if account is None else account.nonce
        return sign_transaction(self._client.key, chain_id, body, nonce=nonce)

    def _body(self, duty: Duty) -> Body | None:
        habit = self._client.habit
        if habit is Habit.DROPPED and not isinstance(duty, owed.Register):
            return None
        match duty:
            case owed.Register():
                return TaskRegister(duty.task, 100, (50, 50), Hash(bytes(32)))
            case owed.PostProbe():
                return None if habit is Habit.IDLE_AGGREGATOR else self._probe(duty.slot)
            case owed.Train():
                return self._commit(duty)
            case owed.RevealModel():
                return None if habit is Habit.SECRETIVE else self._reveal(duty.slot, duty.commitment)
            case owed.FetchAndVote():
                held = set() if habit is Habit.CONTRARY else {m.index for m in duty.models if self._can_fetch(m)}
                return Available(duty.slot, bitmap(held, duty.clients))
            case owed.Aggregate():
                return None if habit is Habit.IDLE_AGGREGATOR else self._aggregate(duty)
            case owed.AttestTo():
                is_false = any(output.startswith(FALSE_OUTPUT) for output in duty.aggregation.outputs)
                fault = Fault.OUTPUT_MISMATCH if is_false != (habit is Habit.CONTRARY) else Fault.NONE
                return Attest(duty.slot, duty.aggregation.transaction, fault, bitmap(set(), len(duty.models)))
            case _:
                raise AssertionError(duty)

    def _commit(self, duty: owed.Train) -> Commit:
        return Commit(duty.slot, self._commitment(duty.slot, self._model(duty.slot)))

    def _commitment(self, slot: Slot, model: BlobId) -> Hash:
        return model_commitment(self._client.genesis.chain_id, slot, self._client.account, model, self._salt(slot))

    def _reveal(self, slot: Slot, commitment: Hash) -> Reveal | None:
        if self._commitment(slot, self._model(slot)) != commitment:
            return None
        return Reveal(slot, self._model(slot), MODEL_BYTES, self._salt(slot))

    def _model(self, slot: Slot) -> BlobId:
        is_copied = self._client.habit is Habit.COPIER
        trainer = self._client.genesis.validators[0].account if is_copied else self._client.account
        return BlobId(sha256(b"model" + trainer + slot.number.to_bytes(8, "big")).digest())

    def _salt(self, slot: Slot) -> Hash:
        return self._client.key.derive_salt("commit", slot.to_bytes())

    def _opening(self, slot: Slot) -> ProbeOpening:
        return ProbeOpening(BlobId(bytes([3]) * 32), self._client.key.derive_salt("probe", slot.to_bytes()))

    def _probe(self, slot: Slot) -> Probe:
        opening = self._opening(slot)
        chain_id = self._client.genesis.chain_id
        return Probe(slot, probe_commitment(chain_id, slot, self._client.account, opening.samples, opening.salt))

    def _can_fetch(self, model: OfferedModel) -> bool:
        is_withheld = self._client.habits.get(model.account) is Habit.WITHHOLDER
        return not is_withheld or (self._client.account[0] + model.account[0]) % 2 == 0

    def _aggregate(self, duty: owed.Aggregate) -> Aggregate:
        matrix = [[_similarity(one, other) for other in duty.models] for one in duty.models]
        found = sorted(set(cluster(matrix, duty.specification.clusters)))
        is_false = self._client.habit is Habit.FALSE_AGGREGATOR
        seed = duty.slot.to_bytes() + self._client.account
        specification = duty.specification
        is_for_all = specification.rule is Rule.PRIOR_ROWS and specification.shared_permille == PERMILLE
        outputs = (sha256(seed + bytes([0 if is_for_all else label])).digest() for label in found)
        marked = (FALSE_OUTPUT + output[len(FALSE_OUTPUT) :] if is_false else output for output in outputs)
        is_public = specification.probe_mode is ProbeMode.PUBLIC
        opening = None if is_public else self._opening(duty.slot)
        return Aggregate(duty.slot, triangle_from_matrix(matrix), tuple(BlobId(output) for output in marked), opening)


def _similarity(one: OfferedModel, other: OfferedModel) -> int:
    """Two planted clusters."""
    if one.account == other.account:
        return 10_000
    return 9_000 if (one.account[0] - other.account[0]) % 2 == 0 else -500
