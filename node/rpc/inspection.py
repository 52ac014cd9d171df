"""What a chain says, as JSON-ready values: blocks, transactions, accounts, tasks, queue, rounds, rewards, models.

`Inspector` is pure reading over a chain store, its state, the blobs and the journal. RPC uses it on a running node, the
command line on a stopped home, so both answer alike. Accounts are in their text form, other ids hexadecimal, amounts
integer micro-tokens, times milliseconds since the epoch; keys are stable.

What belongs here: finding things and naming them. Learning rounds and rewards are in `inspection_rounds`, models in
`inspection_models`; what only a running node knows is in `methods`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from bflnode.consensus.block import Block
from bflnode.consensus.duties import last_part
from bflnode.consensus.keys import account_text, parse_account
from bflnode.consensus.record_json import record_to_json
from bflnode.consensus.staking import standing
from bflnode.consensus.state import StateReader
from bflnode.consensus.tables import (
    ACCOUNTS,
    ADMISSION_POOL,
    PARTICIPANTS,
    SETTLED,
    SUPPLY,
    TASKS,
    all_tasks,
    current_beacon,
    current_queue,
    current_round,
    current_validators,
    participant_key,
    settled_key,
    stake_of,
)
from bflnode.consensus.task import LearningRound, Participant, SettledRound, Task, TaskSpecification, TaskStatus
from bflnode.consensus.transaction import Transaction
from bflnode.consensus.types import AccountId, BlockId, Hash, TransactionId
from bflnode.node.aggregation import rule_text
from bflnode.node.journal import Journal
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.chain_store import ChainStore

from . import inspection_models, inspection_rounds
from .inspection_validators import advice, offences_json, validator_json, validators_json
from .refusals import InspectionError

Json: TypeAlias = dict[str, Any]

MAX_LISTED = 100
"""Most blocks in one answer: each is read and decoded."""

HISTORY_LISTED = 20
"""Balance changes of an account in one answer."""

MIN_PREFIX = 4
"""Fewest digits of an abbreviated id: fewer are a typing mistake."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What an inspector reads.

    Attributes:
        store: the chain.
        state: after the store's tip.
        blobs: models and probe sets.
        journal: what this node did.
        account: this node's own.
    """

    store: ChainStore
    state: StateReader
    blobs: BlobStore
    journal: Journal
    account: AccountId


class Inspector:
    """Answers questions about one node's chain."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._store = sources.store
        self._state = sources.state

    @property
    def sources(self) -> Sources:
        """What it reads."""
        return self._sources

    @property
    def account_id(self) -> AccountId:
        """This node's own account."""
        return self._sources.account

    # The chain

    def status(self) -> Json:
        """Where the chain is, and this account in it."""
        tip = self._store.tip()
        current = current_round(self._state)
        running = None if current is None else self._specification_of(current)
        record = ACCOUNTS.get(self._state, self.account_id)
        validators = current_validators(self._state)
        latest = self._sources.journal.entries()[-1:]
        return {
            "chain": self._store.genesis.name,
            "chain_id": self._store.genesis.chain_id.hex(),
            "height": tip.height,
            "head": tip.block_id.hex(),
            "head_time_ms": tip.time_ms,
            "state_root": tip.state_root.hex(),
            "account": account_text(self.account_id),
            "balance": 0 if record is None else record.balance,
            "is_admitted": record is not None,
            "stake": stake_of(self._state, self.account_id).bonded,
            "standing": standing(self._state, self.account_id).value,
            "advice": advice(self._store.genesis, self._state, self.account_id),
            "validators": len(validators),
            "base": self._store.base,
            "task": None if current is None else current.slot.task.hex(),
            "round": None if current is None else current.slot.number,
            "attempt": None if current is None else current.slot.attempt,
            "rounds": None if running is None else running.rounds,
            "rule": None if running is None else rule_text(running),
            "settled_rounds": sum(_rounds_ended(task) for task in all_tasks(self._state)),
            "phase": "idle" if current is None else current.phase.name.lower(),
            "phase_deadline_ms": None if current is None else current.deadline_header_ms,
            "aggregator": None if current is None else account_text(current.aggregator),
            "clients": 0 if current is None else len(current.clients),
            "committed": 0 if current is None else sum(client.committed is not None for client in current.clients),
            "revealed": 0 if current is None else sum(client.revealed is not None for client in current.clients),
            "attested": 0 if current is None else len(current.attestations),
            "verification": inspection_rounds.verification_text(len(validators)),
            "accuracy": asdict(latest[0]) if latest else None,
        }

    def _specification_of(self, current: LearningRound) -> TaskSpecification:
        task = TASKS.get(self._state, current.slot.task)
        assert task is not None, "a learning round has a task"
        return task.specification

    def head(self) -> Json:
        """The last block; height 0 is the genesis. Of a block that the chain starts from only the state is here."""
        tip = self._store.tip()
        if tip.height == self._store.base:
            return {
                "height": tip.height,
                "id": tip.block_id.hex(),
                "time_ms": tip.time_ms,
                "state_root": tip.state_root.hex(),
                "transactions": 0,
            }
        return self._block_line(self._store.block(tip.height))

    def blocks(self, *, count: int = 20, before: int | None = None) -> list[Json]:
        """The last blocks, newest first.

        Args:
            count: how many, at most `MAX_LISTED`.
            before: only blocks below this height.
        """
        stop = min(self._store.tip().height + 1, before if before is not None else self._store.tip().height + 1)
        start = max(1, stop - max(0, min(count, MAX_LISTED)))
        return [self._block_line(block) for block in self._store.blocks(start, stop)][::-1]

    def _block_line(self, block: Block) -> Json:
        header = block.header
        return {
            "height": header.height,
            "id": block.id.hex(),
            "time_ms": header.time_ms,
            "agreement_round": header.round,
            "proposer": account_text(header.proposer),
            "transactions": len(block.transactions),
            "kinds": [transaction.kind.name for transaction in block.transactions],
            "state_root": header.state_root.hex(),
        }

    def block(self, reference: str) -> Json:
        """A block with its transactions and the commit that made it final.

        Args:
            reference: a height, a block id, or "latest".

        Raises:
            InspectionError: there is none.
        """
        block = self._find_block(reference)
        commit = self._store.commit(block.height)
        return {
            **self._block_line(block),
            "header": record_to_json(block.header),
            "transactions": [transaction_line(transaction) for transaction in block.transactions],
            "size_bytes": len(block.encoded),
            "commit": record_to_json(commit),
        }

    def _find_block(self, reference: str) -> Block:
        tip = self._store.tip().height
        if tip == 0:
            raise InspectionError("the chain has no blocks yet: start the node and wait for the first")
        if reference == "latest":
            return self._store.block(tip)
        if reference.isascii() and reference.isdigit() and len(reference) < 20:
            if not 1 <= int(reference) <= tip:
                raise InspectionError(f"there is no block {reference}: the chain has blocks 1 to {tip}")
            if int(reference) <= self._store.base:
                raise InspectionError(f"block {reference} is not here: {self._beginning()}")
            return self._store.block(int(reference))
        block = self._store.block_by_id(BlockId(_digest(reference, 'block: give a height, a block id or "latest"')))
        if block is None:
            if self._store.base:
                raise InspectionError(f"no block here has the id {reference}: {self._beginning()}")
            raise InspectionError(f"no block has the id {reference}: check it with `bflnode chain list`")
        return block

    def _beginning(self) -> str:
        """Why something old isn't here, where a node joined by state."""
        base = self._store.base
        return f"this node's chain starts from a snapshot at height {base}; ask a node that has all blocks (--rpc URL)"

    def transaction(self, reference: str) -> Json:
        """A transaction in a block.

        Raises:
            InspectionError: malformed, or in no block.
        """
        identifier = TransactionId(_digest(reference, "transaction id: 64 hex digits"))
        stored = self._store.transaction(identifier)
        if stored is None:
            if self._store.base:
                raise InspectionError(f"no block here has the transaction {reference}: {self._beginning()}")
            raise InspectionError(f"no block has the transaction {reference}: it may still wait, or have expired")
        header = self._store.header(stored.height)
        return {
            "status": "included",
            "height": stored.height,
            "index": stored.index,
            "block": header.id.hex(),
            "time_ms": header.time_ms,
            **transaction_details(stored.transaction),
        }

    # Accounts, tasks, queue

    def account(self, reference: str = "") -> Json:
        """An account: balance, stake, place in the queue, tasks, latest changes.

        Raises:
            InspectionError: no such account.
        """
        account = self.resolve_account(reference)
        record = ACCOUNTS.get(self._state, account)
        queue = current_queue(self._state)
        participations = (
            (task, PARTICIPANTS.get(self._state, participant_key(task.id, account))) for task in all_tasks(self._state)
        )
        return {
            "account": account_text(account),
            "is_own": account == self.account_id,
            "exists": record is not None,
            "balance": 0 if record is None else record.balance,
            "nonce": 0 if record is None else record.nonce,
            "stake": stake_of(self._state, account).bonded,
            "unbonding": stake_of(self._state, account).total - stake_of(self._state, account).bonded,
            "queue_position": queue.index(account) if account in queue else None,
            "tasks": [_participation(task, entry) for task, entry in participations if entry is not None],
            "history": [asdict(change) for change in self._store.account_history(account, limit=HISTORY_LISTED)],
        }

    def accounts(self) -> list[Json]:
        """All accounts, in order of key."""
        return [
            {
                "account": account_text(AccountId(key)),
                "is_own": key == self.account_id,
                "balance": record.balance,
                "nonce": record.nonce,
                "stake": stake_of(self._state, AccountId(key)).bonded,
            }
            for key, record in ACCOUNTS.scan(self._state)
        ]

    def resolve_account(self, reference: str) -> AccountId:
        """An account by its text, its 64 digits without checksum, or the first digits if they are unique.

        Raises:
            InspectionError: malformed, unknown or ambiguous.
        """
        text = reference.strip().lower()
        if not text:
            return self.account_id
        if len(text) > 64:
            try:
                return parse_account(text)
            except ValueError as error:
                raise InspectionError(str(error)) from error
        known = [AccountId(key) for key, _ in ACCOUNTS.scan(self._state)]
        found = _by_prefix(text, [*known, self.account_id], "account")
        return AccountId(found)

    def tasks(self) -> list[Json]:
        """All tasks."""
        return [_task_line(task) for task in all_tasks(self._state)]

    def task(self, reference: str = "") -> Json:
        """A task with its specification and participants.

        Raises:
            InspectionError: no such task.
        """
        task = self.resolve_task(reference)
        participants = (entry for _, entry in PARTICIPANTS.scan(self._state, task.id))
        return {
            **_task_line(task),
            "specification": record_to_json(task.specification),
            "participants": [record_to_json(entry) for entry in participants],
        }

    def resolve_task(self, reference: str = "") -> Task:
        """A task by its number, name or the first digits of its id; by default the one that runs, else the latest.

        Raises:
            InspectionError: unknown or ambiguous.
        """
        tasks = all_tasks(self._state)
        if not tasks:
            raise InspectionError("this chain has no tasks: they are in its genesis")
        if not reference:
            ranks = {TaskStatus.RUNNING: 0, TaskStatus.DONE: 1, TaskStatus.REGISTRATION: 2, TaskStatus.CANCELLED: 3}
            return min(tasks, key=lambda task: (ranks[task.status], -task.number))
        for task in tasks:
            if reference in (str(task.number), task.specification.name):
                return task
        identifier = _by_prefix(reference.lower(), [task.id for task in tasks], "task", ", its name or its number")
        return next(task for task in tasks if task.id == identifier)

    def queue(self) -> Json:
        """The packing queue, who aggregates now, who follows, and all validators."""
        queue = current_queue(self._state)
        current = current_round(self._state)
        pool, supply = ADMISSION_POOL.get(self._state), SUPPLY.get(self._state)
        return {
            "queue": [account_text(account) for account in queue],
            "aggregator": None if current is None else account_text(current.aggregator),
            "line": [] if current is None else [account_text(member.account) for member in current.line],
            "validators": self.validators(),
            "beacon": current_beacon(self._state).hex(),
            "admission_pool": 0 if pool is None else pool.amount,
            "supply": 0 if supply is None else supply.amount,
        }

    def validators(self) -> list[Json]:
        """Who votes on the next block, in the order that commits use, then who has a stake and doesn't vote."""
        return validators_json(self._store.genesis, self._state, self.account_id)

    def validator(self, reference: str = "") -> Json:
        """An account as a validator, and what can be done about its standing.

        Raises:
            InspectionError: no such account.
        """
        return validator_json(self._store.genesis, self._state, self.resolve_account(reference))

    def evidence(self) -> list[Json]:
        """All punishments, with the proofs of double signatures."""
        return offences_json(self._store, self._state)

    # Learning rounds

    def round(self, number: str = "current", task: str = "") -> Json:
        """A learning round, running or settled, with what this node measured in it.

        Raises:
            InspectionError: there is none with this number.
        """
        found, owner = self.find_round(number, task)
        journal = [entry for entry in self._sources.journal.entries() if _is_of(entry.task, entry.number, found)]
        return {**inspection_rounds.round_json(found, owner), "own": [asdict(entry) for entry in journal]}

    def rounds(self, task: str = "") -> list[Json]:
        """All settled learning rounds of a task, oldest first, a line each."""
        owner = self.resolve_task(task)
        return [inspection_rounds.round_line(settled) for _, settled in SETTLED.scan(self._state, owner.id)]

    def clusters(self, number: str = "latest", task: str = "") -> Json:
        """The clusters of a learning round and the similarities that they come from.

        Raises:
            InspectionError: no such round, or not aggregated.
        """
        found, _ = self.find_round(number, task)
        if found.aggregation is None:
            raise InspectionError(f"learning round {found.slot.number} has no clusters: it was not aggregated (yet)")
        return inspection_rounds.clusters_json(found, found.aggregation)

    def rewards(self, number: str = "latest", task: str = "") -> Json:
        """Who got what in a settled learning round.

        Raises:
            InspectionError: no such round, or not settled yet.
        """
        found, owner = self.find_round(number, task)
        if isinstance(found, LearningRound):
            running = found.slot.number
            raise InspectionError(
                f"learning round {running} is in {found.phase.name}: nobody is paid before it settles"
            )
        return inspection_rounds.rewards_json(found, owner)

    def explain_reward(self, number: str = "latest", client: str = "", task: str = "") -> Json:
        """Why a client got what it got in a learning round, with the transactions that show it.

        Raises:
            InspectionError: no such round or account.
        """
        found, owner = self.find_round(number, task)
        account = self.resolve_account(client)
        participant = PARTICIPANTS.get(self._state, participant_key(owner.id, account))
        return inspection_rounds.explain(self._store, found, owner, account, participant)

    def find_round(self, reference: str, task: str) -> tuple[LearningRound | SettledRound, Task]:
        """A learning round and its task: the round by number, "current" or "latest".

        Raises:
            InspectionError: there is none with this number.
        """
        owner = self.resolve_task(task)
        current = current_round(self._state)
        if current is not None and current.slot.task != owner.id:
            current = None
        last = _rounds_ended(owner)
        if owner.status is TaskStatus.CANCELLED and SETTLED.get(self._state, settled_key(owner.id, owner.round)):
            last = owner.round
        if reference == "current" and current is not None:
            return current, owner
        if reference in ("current", "latest"):
            number = last
        elif reference.isascii() and reference.isdigit() and len(reference) < 10:
            number = int(reference)
        else:
            raise InspectionError(f'{reference!r} is not a learning round: give its number, "current" or "latest"')
        if number == 0 and reference in ("current", "latest"):
            raise InspectionError(f"no learning round of task {owner.specification.name} is settled yet")
        if current is not None and number == current.slot.number:
            return current, owner
        settled = SETTLED.get(self._state, settled_key(owner.id, number))
        if settled is None:
            there = f"settled are 1 to {last}" if last else "none is settled yet"
            raise InspectionError(f"task {owner.specification.name} has no learning round {number}: {there}")
        return settled, owner

    # Models and journal

    def models(self, *, number: str = "", task: str = "") -> list[Json]:
        """The models and sample files of a task, in all rounds or in one, and whether they are here."""
        owner = self.resolve_task(task)
        settled = [record for _, record in SETTLED.scan(self._state, owner.id)]
        current = current_round(self._state)
        running = current if current is not None and current.slot.task == owner.id else None
        rounds: list[LearningRound | SettledRound] = [*settled, *([running] if running else [])]
        if number:
            rounds = [self.find_round(number, task)[0]]
        return inspection_models.models_json(self._sources.blobs, owner, rounds, with_task=not number)

    def model(
        self, *, identifier: str = "", client: str = "", cluster: int | None = None, number: str = "", task: str = ""
    ) -> Json:
        """One model and the file it is in, if it is here.

        By id, by client and round, by cluster and round; without any of these the one this account trains from next.

        Raises:
            InspectionError: no such model.
        """
        owner, remembered = self.resolve_task(task), None
        if identifier:
            known = self.models(task=task)
            ids = [bytes.fromhex(model["id"]) for model in known]
            found = _by_prefix(identifier.lower(), ids, "model").hex()
            origin = next(model["origin"] for model in known if model["id"] == found)
        elif client or cluster is not None:
            record, _ = self.find_round(number or "latest", task)
            account = self.resolve_account(client) if client else None
            chosen = inspection_models.choose(record, account, cluster)
            if chosen is None:
                raise InspectionError(inspection_models.why_not(record, account, cluster))
            found, origin = chosen
        else:
            participant = PARTICIPANTS.get(self._state, participant_key(owner.id, self.account_id))
            base = owner.specification.initial_model if participant is None else participant.base
            found, origin = base.hex(), "model that this node trains from next"
            last = last_part(self._state, owner, self.account_id)
            remembered = None if last is None or last.revealed is None else last.revealed.model
        return inspection_models.model_json(self._sources.blobs, owner, found, origin, remembered)

    def journal(self) -> list[Json]:
        """What this node measured in each learning round, oldest first."""
        return [asdict(entry) for entry in self._sources.journal.entries()]


def transaction_line(transaction: Transaction) -> Json:
    """A transaction in a list."""
    return {
        "id": transaction.id.hex(),
        "kind": transaction.kind.name,
        "sender": account_text(transaction.sender),
        "size_bytes": len(transaction.encoded),
    }


def transaction_details(transaction: Transaction) -> Json:
    """All of a transaction."""
    return {
        **transaction_line(transaction),
        "nonce": transaction.nonce,
        "fee": transaction.fee,
        "valid_until_ms": transaction.valid_until_ms,
        "body": record_to_json(transaction.body),
        "signature": transaction.signature.hex(),
    }


def _rounds_ended(task: Task) -> int:
    """Learning rounds that were settled: a task's `round` is the one that runs or comes next, or its last when done."""
    return task.round if task.status is TaskStatus.DONE else task.round - 1


def _task_line(task: Task) -> Json:
    specification = task.specification
    return {
        "id": task.id.hex(),
        "number": task.number,
        "name": specification.name,
        "status": task.status.name.lower(),
        "architecture": specification.architecture,
        "rule": rule_text(specification),
        "clients": task.clients,
        "round": task.round,
        "rounds": specification.rounds,
        "attempt": task.attempt,
        "reward": specification.reward,
        "escrow": task.escrow,
        "requester": account_text(task.requester),
    }


def _participation(task: Task, entry: Participant) -> Json:
    return {
        "task": task.id.hex(),
        "name": task.specification.name,
        "samples": entry.samples,
        "histogram": list(entry.histogram),
        "base": entry.base.hex(),
        "reputation": entry.reputation,
        "misses": entry.misses,
        "is_leaving": entry.is_leaving,
    }


def _is_of(task: str, number: int, found: LearningRound | SettledRound) -> bool:
    return (task, number) == (found.slot.task.hex(), found.slot.number)


def _digest(text: str, wanted: str) -> Hash:
    lowered = text.strip().lower()
    if len(lowered) != 64 or lowered.strip("0123456789abcdef"):
        raise InspectionError(f"{_shown(text)} is not a {wanted}")
    return Hash(bytes.fromhex(lowered))


def _by_prefix(text: str, known: list[Any], what: str, other_names: str = "") -> bytes:
    """The one identifier that starts with these digits; `other_names` says by what else it may be named."""
    if text.strip("0123456789abcdef") or len(text) < MIN_PREFIX:
        remedy = f"give at least {MIN_PREFIX} hex digits of its id{other_names}"
        raise InspectionError(f"{_shown(text)} names no {what}: {remedy}")
    found = _distinct(identifier for identifier in known if identifier.hex().startswith(text))
    if not found:
        raise InspectionError(f"there is no {what} {_shown(text)} on this chain")
    if len(found) > 1:
        some = ", ".join(identifier.hex()[: len(text) + 4] for identifier in found[:4])
        raise InspectionError(f"{len(found)} ids of a {what} begin with {text} ({some}): give more digits")
    return found[0]


def _distinct(identifiers: Iterator[bytes]) -> list[bytes]:
    return list(dict.fromkeys(identifiers))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
