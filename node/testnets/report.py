"""What a testnet did, read from the homes of its stopped nodes, and checked: nothing is taken from what a node said.

What belongs here: the checks, and the figures of rounds and balances. How they look is in `report_text`.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bflnode.consensus.keys import account_text
from bflnode.consensus.ledger import genesis_state, money, validate_block
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.rewards import bfln_payout
from bflnode.consensus.state import StateReader, StateTree
from bflnode.consensus.tables import SETTLED, TASKS, all_tasks, stake_of
from bflnode.consensus.task import SettledClient, SettledRound, Task, TaskSpecification, TaskStatus
from bflnode.consensus.transaction import model_commitment
from bflnode.consensus.types import AccountId, Amount
from bflnode.node.home import Home
from bflnode.node.journal import Journal, RoundEntry
from bflnode.node.stored_chain import open_store
from bflnode.node.verify import verify_chain
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import MissingError
from bflnode.storage.home_lock import HomeLock

from .homes import Testnet, load_testnet

SHOWN_DIGITS = 12
"""Hex digits of an id in a sentence."""


@dataclass(frozen=True, slots=True)
class Check:
    """One statement about a testnet, checked by the program.

    Attributes:
        id: stable name.
        title: the statement.
        ok: whether it holds.
        detail: what was found: figures when it holds, the first contradiction when it doesn't.
    """

    id: str
    title: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Payment:
    """What a client got in a learning round, in micro-tokens. `cluster` is None for one that wasn't aggregated."""

    node: str
    account: str
    cluster: int | None
    exclusion: str
    gross: Amount
    fee: Amount
    net: Amount


@dataclass(frozen=True, slots=True)
class RoundLine:
    """One settled learning round. Accuracies, loss and training time are means over the nodes that measured them.

    Attributes:
        number: from 1.
        attempt: from 0; a later one means that earlier ones were void.
        height: of the block that settled it.
        packer: who proposed the block with the aggregation; the aggregator, unless it missed its turn to propose.
        aggregator: who aggregated; None for a round whose every attempt was void.
        clients: how many took part.
        clusters: sizes, in the order of labels.
        received_accuracy: of what clients predicted with before training, on their own test data.
        post_accuracy: after local training, before aggregation.
        control_accuracy: of a model trained on the own data alone for as long.
        global_accuracy: of the model that clients received, on the global test set.
        loss: of the last local epoch.
        training_s: of local training.
        seconds: from its opening to its settlement, in header time.
        reward: what was paid out, in micro-tokens.
        aggregator_income: fees and dust, in micro-tokens.
        payments: one a client.
    """

    number: int
    attempt: int
    height: int
    packer: str
    aggregator: str | None
    clients: int
    clusters: tuple[int, ...]
    received_accuracy: float | None
    post_accuracy: float | None
    control_accuracy: float | None
    global_accuracy: float | None
    loss: float | None
    training_s: float | None
    seconds: float
    reward: Amount
    aggregator_income: Amount
    payments: tuple[Payment, ...]


@dataclass(frozen=True, slots=True)
class BalanceLine:
    """The free balance of a node's account before and after, in micro-tokens.

    Attributes:
        node: its name.
        account: its account.
        stake: what is bonded beside the balance.
        before: in the genesis; 0 for a node that came later.
        after: at the common height.
        earned: net payments and aggregator's income of all rounds.
        rounds_paid: in how many rounds it was paid as a client.
    """

    node: str
    account: str
    stake: Amount
    before: Amount
    after: Amount
    earned: Amount
    rounds_paid: int


@dataclass(frozen=True, slots=True)
class Report:
    """All about a testnet; turns into JSON as it is.

    Attributes:
        directory: of the testnet.
        chain: name, id, height, head, state root, transactions, supply.
        options: what was asked for.
        checks: in the order in which people read them.
        rounds: the settled ones.
        balances: one a node.
    """

    directory: str
    chain: dict[str, Any]
    options: dict[str, Any]
    checks: tuple[Check, ...]
    rounds: tuple[RoundLine, ...]
    balances: tuple[BalanceLine, ...]

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """What `json.dumps` takes; keys are stable."""
        return {"passed": self.passed, **asdict(self)}


@dataclass(frozen=True, slots=True)
class _Node:
    """One stopped node, opened."""

    name: str
    account: AccountId
    store: ChainStore
    blobs: BlobStore
    journal: Journal


class ReportError(Exception):
    """There is nothing to report on; the message says why."""


def make_report(testnet: Testnet) -> Report:
    """Check a stopped testnet. Imports torch, to aggregate every round again.

    Raises:
        HomeError: a home can't be used.
        InUseError: a node is still running.
        StorageError: the disk is at fault.
        ReportError: the nodes have no blocks.
    """
    with ExitStack() as stack:
        nodes = tuple(_open(home, stack) for home in testnet.homes)
        height = min(node.store.tip().height for node in nodes)
        if height == 0:
            behind = next(node.name for node in nodes if node.store.tip().height == 0)
            raise ReportError(f"{behind} has no blocks: see its log with `bflnode testnet logs {testnet.directory}`")
        return _Reporter(testnet, nodes, height).report()


def _open(home: Home, stack: ExitStack) -> _Node:
    stack.enter_context(HomeLock(home.require().root))
    account = home.load_account()
    store = stack.enter_context(open_store(home))
    return _Node(home.root.name, account, store, BlobStore(home.blobs), Journal(home.rounds))


class _Reporter:
    """Reads the opened nodes up to a height that all of them have.

    What all nodes agree on is read from the one with most models, the one that was down least: models of rounds that a
    node missed are never fetched later.
    """

    def __init__(self, testnet: Testnet, nodes: Sequence[_Node], height: int) -> None:
        self._testnet = testnet
        self._nodes = nodes
        self._height = height
        self._first = max(nodes, key=lambda node: len(node.blobs.list()))
        self._reference = self._first.store
        self._genesis = self._reference.genesis
        self._names = {node.account: node.name for node in nodes}
        self._state: StateTree = self._reference.load_state()
        # The reference may be some blocks ahead of the others.
        self._settled = tuple(record for _, record in SETTLED.scan(self._state) if record.height <= height)

    def report(self) -> Report:
        header = self._reference.header(self._height)
        transactions, supply = self._check_supply()
        return Report(
            directory=str(self._testnet.directory),
            chain={
                "name": self._genesis.name,
                "id": self._genesis.chain_id.hex(),
                "height": self._height,
                "head": header.id.hex(),
                "state_root": header.state_root.hex(),
                "transactions": transactions,
                "supply": self._genesis.supply,
                "nodes": len(self._nodes),
            },
            options=asdict(self._testnet.options),
            checks=(
                self._check_rounds(),
                self._check_heads(),
                supply,
                self._check_models(),
                self._check_payouts(),
                self._check_chain(),
            ),
            rounds=tuple(self._round(record) for record in self._settled),
            balances=tuple(self._balance(node) for node in self._nodes),
        )

    # Checks

    def _check_rounds(self) -> Check:
        title = "every learning round was aggregated and settled, at every node"
        for node in self._nodes:
            state = node.store.load_state()
            for task in all_tasks(state):
                fault = _unfinished(state, task)
                if fault:
                    return Check("rounds", title, False, f"{node.name}: task {task.specification.name} {fault}")
        void = sum(record.slot.attempt for record in self._settled)
        detail = f"{len(self._settled)} rounds" + (f", {void} void attempts" if void else "")
        return Check("rounds", title, True, detail)

    def _check_heads(self) -> Check:
        title = "all nodes have the same head and state root"
        expected = self._reference.header(self._height)
        for node in self._nodes:
            header = node.store.header(self._height)
            if (header.id, header.state_root) != (expected.id, expected.state_root):
                detail = (
                    f"at height {self._height} {self._first.name} has {_short(expected.id)} with root "
                    f"{_short(expected.state_root)}, {node.name} {_short(header.id)} with {_short(header.state_root)}"
                )
                return Check("heads", title, False, detail)
        found = f"{len(self._nodes)} nodes at height {self._height}: {_short(expected.id)}"
        return Check("heads", title, True, f"{found}, root {_short(expected.state_root)}")

    def _check_supply(self) -> tuple[int, Check]:
        """Execute all blocks and add up all tokens after each; also the number of transactions."""
        title = "the supply of tokens is constant"
        supply, transactions = self._genesis.supply, 0
        try:
            for height, tree, count in self._states():
                transactions += count
                found = tokens_in(tree)
                if found != supply:
                    detail = f"{found} micro-tokens at height {height}, not {supply}"
                    return transactions, Check("supply", title, False, detail)
        except Rejection as rejection:
            return transactions, Check("supply", title, False, f"a block can't be executed: {rejection}")
        return transactions, Check("supply", title, True, f"{supply} micro-tokens at each of {self._height} heights")

    def _states(self) -> Iterator[tuple[int, StateTree, int]]:
        """The state after each block, executed anew from the genesis."""
        tree, parent = genesis_state(self._genesis), None
        for block in self._reference.blocks(1, self._height + 1):
            tree.apply(validate_block(self._genesis, tree, parent, block).changes)
            parent = block.header
            yield block.height, tree, len(block.transactions)

    def _check_models(self) -> Check:
        title = "every paid client's model on its disk is what it committed to"
        count = 0
        for record in self._settled:
            for client in _paid(record):
                fault = self._model_fault(record, client)
                if fault:
                    name = self._name(client.account)
                    return Check("models", title, False, f"{name}, round {record.slot.number}: {fault}")
                count += 1
        return Check("models", title, count > 0, f"{count} models" if count else "nobody was paid")

    def _model_fault(self, record: SettledRound, client: SettledClient) -> str:
        if client.committed is None or client.revealed is None:
            return "paid without a COMMIT or REVEAL"
        revealed = client.revealed
        chain_id = self._genesis.chain_id
        commitment = model_commitment(chain_id, record.slot, client.account, revealed.model, revealed.salt)
        if commitment != client.committed.commitment:
            return f"{_short(revealed.model)} is not what it committed to"
        # A client from outside the testnet keeps its own disk: then the committee's copies speak for it.
        holders = [node for node in self._nodes if node.account == client.account] or self._nodes
        fault = ""
        for node in holders:
            try:
                node.blobs.get(revealed.model)
            except MissingError as error:
                fault = str(error)
            else:
                return ""
        return fault

    def _check_payouts(self) -> Check:
        title = "every round paid exactly its reward, by cluster size"
        for record in self._settled:
            task = TASKS.get(self._state, record.slot.task)
            assert task is not None, "a settled learning round has a task"
            fault = payout_fault(record, task.specification)
            if fault:
                return Check("payouts", title, False, f"round {record.slot.number}: {fault}")
        total = sum(record.reward for record in self._settled)
        return Check("payouts", title, True, f"{total} micro-tokens in {len(self._settled)} rounds")

    def _check_chain(self) -> Check:
        title = "the chain re-executes from genesis to the same roots, clusters, models and payouts"
        found = verify_chain(self._reference, self._first.blobs, reexecute=True)
        if found.fault is not None:
            fault = found.fault
            where = f"block {fault.height}, {fault.check}/{fault.rule}, {fault.subject}"
            return Check("chain", title, False, f"{where}: expected {fault.expected}, got {fault.got}")
        settled = sum(task.settled for task in found.reexecution)
        again = sum(task.reexecuted for task in found.reexecution)
        executed = f"{found.verified} blocks, {found.transactions} transactions"
        detail = f"{executed}, {again} of {settled} aggregations computed again"
        return Check("chain", title, again == settled and settled > 0, detail)

    # Figures

    def _packer(self, record: SettledRound) -> str:
        """Who proposed the block with the aggregation; where every attempt was void, the one that ended the last."""
        found = None if record.aggregation is None else self._reference.transaction(record.aggregation.transaction)
        return self._name(self._reference.header(record.height if found is None else found.height).proposer)

    def _round(self, record: SettledRound) -> RoundLine:
        aggregation = record.aggregation
        labels = aggregation.labels if aggregation is not None else ()
        entries = [entry for node in self._nodes for entry in node.journal.entries() if _is_of(entry, record)]
        return RoundLine(
            number=record.slot.number,
            attempt=record.slot.attempt,
            height=record.height,
            packer=self._packer(record),
            aggregator=None if aggregation is None else self._name(aggregation.aggregator),
            clients=len(record.clients),
            clusters=tuple(labels.count(label) for label in range(max(labels, default=-1) + 1)),
            received_accuracy=_mean([entry.received_accuracy for entry in entries]),
            post_accuracy=_mean([entry.post_accuracy for entry in entries]),
            control_accuracy=_mean([entry.control_accuracy for entry in entries]),
            global_accuracy=_mean([entry.global_accuracy for entry in entries]),
            loss=_mean([entry.loss for entry in entries]),
            training_s=_mean([entry.training_s for entry in entries]),
            seconds=(record.settled_header_ms - record.opened_header_ms) / 1000,
            reward=record.reward,
            aggregator_income=record.aggregator_income,
            payments=tuple(self._payment(client) for client in record.clients),
        )

    def _payment(self, client: SettledClient) -> Payment:
        return Payment(
            node=self._name(client.account),
            account=account_text(client.account),
            cluster=client.cluster if client.cluster >= 0 else None,
            exclusion=client.exclusion.name.lower(),
            gross=client.gross,
            fee=client.fee,
            net=client.gross - client.fee,
        )

    def _balance(self, node: _Node) -> BalanceLine:
        account = node.account
        before = next((entry.balance for entry in self._genesis.accounts if entry.account == account), 0)
        paid = [client for record in self._settled for client in _paid(record) if client.account == account]
        income = sum(
            record.aggregator_income
            for record in self._settled
            if record.aggregation is not None and record.aggregation.aggregator == account
        )
        return BalanceLine(
            node=node.name,
            account=account_text(account),
            stake=stake_of(self._state, account).bonded,
            before=before,
            after=self._reference.balance_at(account, self._height),
            earned=sum(client.gross - client.fee for client in paid) + income,
            rounds_paid=len(paid),
        )

    def _name(self, account: AccountId) -> str:
        return self._names.get(account, account.hex()[:SHOWN_DIGITS])


def tokens_in(reader: StateReader) -> Amount:
    """All micro-tokens in a state: free, bonded, unbonding, in the admission pool and in escrow."""
    return sum(money(reader).values())


def payout_fault(record: SettledRound, specification: TaskSpecification) -> str:
    """What is wrong with the payouts of a learning round by BFLN's formula (eq. 7-9); nothing when all is right."""
    if record.aggregation is None:
        return f"{record.reward} paid though it was void" if record.reward else ""
    expected = bfln_payout(record.aggregation.labels, specification.reward, specification.rho)
    included = [record.clients[position] for position in record.included]
    for client, payout in zip(included, expected.clients, strict=True):
        if (client.gross, client.fee) != (payout.gross, payout.fee):
            got, wanted = f"{client.gross} less {client.fee}", f"{payout.gross} less {payout.fee}"
            return f"client {_short(client.account)} got {got} instead of {wanted}"
    paid = sum(client.gross - client.fee for client in record.clients) + record.aggregator_income
    return "" if paid == specification.reward else f"{paid} paid instead of {specification.reward}"


def _unfinished(state: StateReader, task: Task) -> str:
    """What a task lacks; nothing when all its learning rounds are settled with an aggregation."""
    settled = [record for _, record in SETTLED.scan(state, task.id)]
    done = sum(record.aggregation is not None for record in settled)
    if task.status is TaskStatus.DONE and done == task.specification.rounds:
        return ""
    return f"is {task.status.name.lower()} with {done} of {task.specification.rounds} rounds aggregated"


def _paid(record: SettledRound) -> Iterator[SettledClient]:
    return (client for client in record.clients if client.gross > 0)


def _is_of(entry: RoundEntry, record: SettledRound) -> bool:
    slot = record.slot
    return (entry.task, entry.number, entry.attempt) == (slot.task.hex(), slot.number, slot.attempt)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _short(identifier: bytes) -> str:
    return identifier.hex()[:SHOWN_DIGITS]


def main(arguments: Sequence[str]) -> int:
    """Entry of the launcher: `DIR FILE`; writes the report as JSON. A launcher's child has torch already."""
    directory, target = arguments
    report = make_report(load_testnet(Path(directory)))
    Path(target).write_text(json.dumps(report.to_json()), encoding="utf-8")
    return 0
