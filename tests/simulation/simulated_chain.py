"""The real ledger as what a simulated network agrees on.

Executing a block is a pure function of its parent's state and the block, so all nodes of a network share what came of
it: a `Point` is a state with its place in the chain, the same for everybody who is there. In the end the oracle
executes everything again, alone.
"""

from dataclasses import dataclass, field, replace

from bflnode.consensus import ledger
from bflnode.consensus.block import Block, Commit, Header, Validator, genesis_commit
from bflnode.consensus.genesis import (
    DEFAULTS_BY_RULE,
    Genesis,
    GenesisAccount,
    GenesisTask,
    Mode,
    default_deadlines,
    default_parameters,
    default_task,
)
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.leaders import current_leader
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.state import StateTree
from bflnode.consensus.tables import current_validators
from bflnode.consensus.task import ProbeMode, Rule
from bflnode.consensus.transaction import Transaction
from bflnode.consensus.types import TOKEN, AccountId, BlobId, ChainId, Hash, TransactionId
from bflnode.consensus.workspace import BlockContext

from .violations import InvalidDecisionError

PARAMETERS = replace(
    default_parameters(),
    block_interval_ms=20,
    heartbeat_ms=30_000,
    clock_tolerance_ms=1_000,
    max_step_ms=2_000,
    propose_timeout_ms=300,
    vote_timeout_ms=150,
    timeout_step_ms=100,
)

DEADLINES = replace(
    default_deadlines(),
    registration_ms=1_500,
    commit_ms=1_500,
    reveal_ms=800,
    available_ms=800,
    aggregate_ms=800,
    attest_ms=800,
    grace_floor_ms=300,
)
"""Of learning rounds: a model is trained in a few virtual milliseconds."""

CLOCK_START_MS = 1_000_000
"""Local clocks start here, so that a skewed one is never negative."""

MODEL_BYTES = 1_000
CLASSES = 2


@dataclass(frozen=True, slots=True)
class Cast:
    """Who is in a genesis.

    Attributes:
        validators: with their stakes in tokens.
        queue: the packing queue.
        clients: further accounts, with money but without a stake.
        rounds: learning rounds of the only task; no task at all where it is 0.
        probe_mode: of that task.
        rule: of that task.
    """

    validators: tuple[tuple[AccountId, int], ...]
    queue: tuple[AccountId, ...]
    clients: tuple[AccountId, ...] = ()
    rounds: int = 0
    probe_mode: ProbeMode = ProbeMode.PUBLIC
    rule: Rule = Rule.PAA


def genesis_of(cast: Cast) -> Genesis:
    """A genesis in which everybody has some money."""
    validators = tuple(Validator(account, stake * TOKEN) for account, stake in sorted(cast.validators))
    accounts = sorted({*(validator.account for validator in validators), *cast.clients})
    return Genesis(
        name="simulation",
        time_ms=CLOCK_START_MS - 10_000,
        mode=Mode.CACC,
        parameters=PARAMETERS,
        accounts=tuple(GenesisAccount(account, 100 * TOKEN) for account in accounts),
        validators=validators,
        queue=cast.queue,
        admission_key=SecretKey(bytes(32)).account,
        admission_pool=10 * TOKEN,
        tasks=tuple(_task(cast, accounts[0]) for _ in range(min(1, cast.rounds))),
        beacon=Hash(bytes(32)),
    )


def _task(cast: Cast, requester: AccountId) -> GenesisTask:
    specification = replace(
        default_task(
            name="simulated",
            architecture="linear",
            classes=CLASSES,
            model_bytes=MODEL_BYTES,
            initial_model=BlobId(bytes([1]) * 32),
            probe_set=BlobId(bytes([2]) * 32),
        ),
        rounds=cast.rounds,
        clients_start=len(cast.validators) + len(cast.clients),
        clients_min=2,
        clients_max=20,
        probe_mode=cast.probe_mode,
        rule=cast.rule,
        deadlines=DEADLINES,
        **DEFAULTS_BY_RULE[cast.rule if cast.probe_mode is ProbeMode.PUBLIC else Rule.PAA],
    )
    return GenesisTask(specification, requester, cast.rounds * specification.reward)


@dataclass(slots=True, eq=False)
class Point:
    """A state and its place in the chain, with all that has been computed from it."""

    parent: Header | None
    tree: StateTree
    validators: ValidatorSet
    previous: "Point | None" = None
    executions: dict[bytes, ledger.Execution | None] = field(default_factory=dict)
    successors: dict[bytes, "Point"] = field(default_factory=dict)
    verdicts: dict[bytes, Rejection | None] = field(default_factory=dict)
    leaders: dict[int, AccountId] = field(default_factory=dict)

    @property
    def height(self) -> int:
        return 0 if self.parent is None else self.parent.height


class SharedLedger:
    """Executes each block once for all nodes."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.start = _point(None, ledger.genesis_state(genesis))

    def execution(self, point: Point, block: Block) -> ledger.Execution | None:
        """What a block does on top of a point, or None if it is invalid there."""
        if block.encoded not in point.executions:
            try:
                execution = ledger.validate_block(self.genesis, point.tree, point.parent, block)
            except Rejection:
                execution = None
            point.executions[block.encoded] = execution
        return point.executions[block.encoded]

    def successor(self, point: Point, block: Block) -> Point:
        """Where a valid block leads to. The tree is built anew, so it tells whether changing one gives the same."""
        if block.encoded not in point.successors:
            execution = self.execution(point, block)
            if execution is None:
                raise InvalidDecisionError(f"height {block.height}: an invalid block is final")
            values = dict(point.tree.entries())
            for key, value in execution.changes.items():
                values.pop(key, None)
                if value is not None:
                    values[key] = value
            tree = StateTree(values.items())
            if tree.root != block.header.state_root:
                raise InvalidDecisionError(f"height {block.height} leads to another state than it says")
            point.successors[block.encoded] = _point(block.header, tree, point)
        return point.successors[block.encoded]

    def check(self, point: Point, transaction: Transaction, time_ms: int) -> None:
        """`ledger.check`, remembered: nothing in a simulation expires.

        Raises:
            Rejection: as there.
        """
        assert transaction.valid_until_ms == 0
        if transaction.encoded not in point.verdicts:
            verdict = None
            try:
                ledger.check(self.genesis, point.tree, transaction, time_ms)
            except Rejection as rejection:
                verdict = rejection
            point.verdicts[transaction.encoded] = verdict
        found = point.verdicts[transaction.encoded]
        if found is not None:
            raise found

    def leader(self, point: Point, round_: int) -> AccountId:
        if round_ not in point.leaders:
            point.leaders[round_] = current_leader(point.tree, point.height + 1, round_)
        return point.leaders[round_]


def _point(parent: Header | None, tree: StateTree, previous: Point | None = None) -> Point:
    return Point(parent, tree, current_validators(tree), previous)


@dataclass(frozen=True, slots=True)
class Decided:
    """A final block, for a node that lags behind."""

    block: Block
    commit: Commit


class SimulatedChain:
    """One node's chain. It stands for the database: it survives the crash of its node.

    Attributes:
        decisions: all blocks from the first on.
    """

    def __init__(self, shared: SharedLedger) -> None:
        self._shared = shared
        self.erase()

    def erase(self) -> None:
        """The database is lost."""
        self.point = self._shared.start
        self.decisions: list[Decided] = []
        self.last_commit = genesis_commit(self.chain_id)
        self._included: set[TransactionId] = set()

    @property
    def genesis(self) -> Genesis:
        return self._shared.genesis

    @property
    def chain_id(self) -> ChainId:
        return self.genesis.chain_id

    @property
    def height(self) -> int:
        return self.point.height

    @property
    def tree(self) -> StateTree:
        return self.point.tree

    @property
    def time_ms(self) -> int:
        return self.genesis.time_ms if self.point.parent is None else self.point.parent.time_ms

    @property
    def validators(self) -> ValidatorSet:
        return self.point.validators

    def leader(self, round_: int) -> AccountId:
        return self._shared.leader(self.point, round_)

    def build(self, round_: int, proposer: AccountId, time_ms: int, transactions: tuple[Transaction, ...]) -> Block:
        context = BlockContext(self.height + 1, round_, max(time_ms, self.time_ms + 1), proposer)
        block, _ = ledger.build_block(
            self.genesis,
            self.tree,
            self.point.parent,
            context,
            last_commit=self.last_commit,
            candidates=transactions,
        )
        return block

    def is_valid(self, block: Block) -> bool:
        return self._shared.execution(self.point, block) is not None

    def check(self, transaction: Transaction, time_ms: int) -> None:
        """Judge a transaction on the current state; raises `Rejection`."""
        self._shared.check(self.point, transaction, time_ms)

    def apply(self, block: Block, commit: Commit) -> None:
        self.point = self._shared.successor(self.point, block)
        self.decisions.append(Decided(block, commit))
        self.last_commit = commit
        self._included.update(transaction.id for transaction in block.transactions)

    def extend_commit(self, commit: Commit) -> None:
        """Take a commit of the last block with more precommits, for the next block to carry."""
        self.last_commit = commit

    def contains(self, transaction: TransactionId) -> bool:
        return transaction in self._included
