"""The chain as the running node sees it: the store on disk and the state in memory, moved together.

Everything that asks "what is true now" asks here: agreement, the mempool, duties and RPC. Blocks enter at one place,
`append`, after `validate`; whoever waits for a new block waits for `changed`.
"""

from collections import OrderedDict
from collections.abc import Iterable

import trio

from bflnode.consensus import ledger
from bflnode.consensus.block import Block, Commit, Header
from bflnode.consensus.genesis import Genesis
from bflnode.consensus.state import StateTree
from bflnode.consensus.transaction import Transaction
from bflnode.consensus.types import AccountId
from bflnode.consensus.workspace import BlockContext, Event
from bflnode.storage.chain_store import ChainStore

MAX_VALIDATED = 8
"""Executions kept between validating a block and appending it: one a round of agreement is usual."""


class Chain:
    """Store and state of one chain.

    Attributes:
        genesis: the start of the chain.
        store: blocks on disk.
        tree: the state after the last block.
        tip_header: header of the last block; None before the first.
        tip_commit: the commit that makes the last block final, with all precommits for it that are known.
        changed: set and replaced with every block.
    """

    def __init__(self, store: ChainStore) -> None:
        self.genesis: Genesis = store.genesis
        self.store = store
        self.tree: StateTree = store.load_state()
        self.changed = trio.Event()
        self._validated: OrderedDict[bytes, ledger.Execution] = OrderedDict()
        height = store.tip().height
        self.tip_header: Header | None = store.header(height) if height else None
        self.tip_commit: Commit = store.commit(height)

    @property
    def height(self) -> int:
        """Height of the last block whose state is `tree`; 0 before the first. The disk may be one block ahead."""
        return 0 if self.tip_header is None else self.tip_header.height

    @property
    def tip_time_ms(self) -> int:
        """Header time of the last block, or the genesis's."""
        return self.genesis.time_ms if self.tip_header is None else self.tip_header.time_ms

    def validate(self, block: Block) -> ledger.Execution:
        """Execute a block on top of the chain.

        Raises:
            Rejection: the block is invalid here.
        """
        execution = self._validated.get(block.encoded)
        if execution is None:
            execution = ledger.validate_block(self.genesis, self.tree, self.tip_header, block)
            self._remember(block, execution)
        return execution

    def build(self, proposer: AccountId, *, round_: int, time_ms: int, candidates: Iterable[Transaction]) -> Block:
        """Make the next block out of waiting transactions; its time is after the parent's whatever the clock says."""
        context = BlockContext(self.height + 1, round_, max(time_ms, self.tip_time_ms + 1), proposer)
        block, execution = ledger.build_block(
            self.genesis, self.tree, self.tip_header, context, last_commit=self.tip_commit, candidates=candidates
        )
        self._remember(block, execution)
        return block

    async def append(self, block: Block, commit: Commit) -> tuple[Event, ...]:
        """Make a block the tip, durably, and wake who waits for it.

        Returns:
            What the block did to the learning round.

        Raises:
            Rejection: the block is invalid here.
            StorageError: the disk is at fault; the chain stays as it was.
        """
        execution = self.validate(block)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self.store.append, block, commit, execution.changes)
        self.tree.apply(execution.changes)
        self.tip_header, self.tip_commit = block.header, commit
        self._validated.clear()
        self.changed.set()
        self.changed = trio.Event()
        return execution.events

    def extend_commit(self, commit: Commit) -> None:
        """Take a commit of the last block with more precommits, for the next block to carry."""
        known = self.tip_commit
        assert (commit.height, commit.round, commit.block_id) == (known.height, known.round, known.block_id)
        self.tip_commit = commit

    def check(self, transaction: Transaction, time_ms: int) -> None:
        """Judge a transaction on the current state; raises Rejection (Premature where it may become valid)."""
        ledger.check(self.genesis, self.tree, transaction, time_ms)

    def next_deadline_ms(self) -> int | None:
        """The header time at which the state changes without a transaction."""
        return ledger.next_deadline_ms(self.genesis, self.tree)

    def _remember(self, block: Block, execution: ledger.Execution) -> None:
        """By all of its bytes: its id is its header's, and says nothing of a body that doesn't belong to it."""
        self._validated[block.encoded] = execution
        while len(self._validated) > MAX_VALIDATED:
            self._validated.popitem(last=False)
