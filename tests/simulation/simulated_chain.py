"""The real ledger as what a simulated network agrees on: accounts, nonces, fees, state roots and commits in blocks."""

from functools import cache

from bflnode.consensus.block import Block, Commit, Header, Validator, genesis_commit
from bflnode.consensus.genesis import Genesis, GenesisAccount, Mode, Parameters
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.leaders import current_leader
from bflnode.consensus.ledger import assert_supply, build_block, genesis_state, validate_block
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.tables import current_validators
from bflnode.consensus.transaction import Transaction
from bflnode.consensus.types import TOKEN, AccountId, BlockId, ChainId, Hash, TransactionId
from bflnode.consensus.workspace import BlockContext

PARAMETERS = Parameters(
    block_interval_ms=0,
    heartbeat_ms=60_000,
    clock_tolerance_ms=1_000,
    max_step_ms=60_000,
    propose_timeout_ms=300,
    vote_timeout_ms=150,
    timeout_step_ms=100,
    admission_amount=5,
    copy_memory_rounds=5,
)

CLOCK_START_MS = 1_000_000
"""Local clocks start here, so that a skewed one is never negative."""


@cache
def genesis_of(accounts: tuple[AccountId, ...]) -> Genesis:
    """Validators of unequal stake with some money; the first two are in the packing queue, so leaders are not all."""
    ordered = tuple(sorted(accounts))
    return Genesis(
        name="simulation",
        time_ms=CLOCK_START_MS - 10_000,
        mode=Mode.CACC,
        parameters=PARAMETERS,
        accounts=tuple(GenesisAccount(account, 100 * TOKEN) for account in ordered),
        validators=tuple(Validator(account, 10 * TOKEN + index) for index, account in enumerate(ordered)),
        queue=ordered[:2],
        admission_key=SecretKey(bytes(32)).account,
        admission_pool=10 * TOKEN,
        tasks=(),
        beacon=Hash(bytes(32)),
    )


class SimulatedChain:
    """A chain kept by `bflnode.consensus.ledger`. It stands for the database: it survives the crash of its node."""

    def __init__(self, accounts: tuple[AccountId, ...]) -> None:
        self.genesis = genesis_of(accounts)
        self.tree = genesis_state(self.genesis)
        self.parent: Header | None = None
        self.last_commit = genesis_commit(self.genesis.chain_id)
        self._included: set[TransactionId] = set()
        self._verdicts: dict[BlockId, bool] = {}

    @property
    def chain_id(self) -> ChainId:
        return self.genesis.chain_id

    @property
    def height(self) -> int:
        return 0 if self.parent is None else self.parent.height

    @property
    def validators(self) -> ValidatorSet:
        return current_validators(self.tree)

    def leader(self, round_: int) -> AccountId:
        return current_leader(self.tree, self.height + 1, round_)

    def build(self, round_: int, proposer: AccountId, time_ms: int, transactions: tuple[Transaction, ...]) -> Block:
        earliest_ms = 1 + (self.genesis.time_ms if self.parent is None else self.parent.time_ms)
        context = BlockContext(self.height + 1, round_, max(time_ms, earliest_ms), proposer)
        candidates = sorted(transactions, key=lambda transaction: (transaction.sender, transaction.nonce))
        block, _ = build_block(
            self.genesis, self.tree, self.parent, context, last_commit=self.last_commit, candidates=candidates
        )
        return block

    def is_valid(self, block: Block) -> bool:
        """Validation is a pure function of state and block, so a block that arrives again is not executed again."""
        if block.id not in self._verdicts:
            try:
                validate_block(self.genesis, self.tree, self.parent, block)
            except Rejection:
                self._verdicts[block.id] = False
            else:
                self._verdicts[block.id] = True
        return self._verdicts[block.id]

    def apply(self, block: Block, commit: Commit) -> None:
        execution = validate_block(self.genesis, self.tree, self.parent, block)
        self.tree.apply(execution.changes)
        assert self.tree.root == block.header.state_root
        assert_supply(self.genesis, self.tree)
        self.parent = block.header
        self.last_commit = commit
        self._included.update(transaction.id for transaction in block.transactions)
        self._verdicts.clear()

    def contains(self, transaction: TransactionId) -> bool:
        return transaction in self._included
