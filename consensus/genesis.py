"""Genesis: everything that consensus needs and that no block says.

People read and write it as JSON; its canonical bytes, and nothing else, give the chain id.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Annotated

from .block import Validator
from .hashing import tagged_hash
from .records import Record
from .task import TaskSpecification
from .types import MAX_CLIENTS, MAX_VALIDATORS, AccountId, Amount, AtMost, Between, ChainId, Hash, Milliseconds

MAX_GENESIS_BYTES = 1024 * 1024
"""Largest canonical genesis: thousands of accounts."""

MAX_GENESIS_ACCOUNTS = 4096
MAX_GENESIS_TASKS = 16


class Mode(IntEnum):
    """Who leads and who aggregates."""

    CACC = 1
    """BFLN's packing queue of cluster centroids."""


@dataclass(frozen=True, slots=True)
class Parameters(Record):
    """Numbers that every node must use alike.

    `block_interval_ms` is the least time between blocks, `heartbeat_ms` the most: between them a block is made when a
    transaction waits or a deadline is due. `clock_tolerance_ms` is how far a first proposal's time may be from a
    validator's own clock. `max_step_ms` is how far one block may move the clock of a learning round.
    `propose_timeout_ms` and `vote_timeout_ms` are Tendermint's, for round 0; each further round adds
    `timeout_step_ms`.
    """

    block_interval_ms: Annotated[int, Between(0, 3_600_000)]
    heartbeat_ms: Annotated[int, Between(100, 86_400_000)]
    clock_tolerance_ms: Annotated[int, Between(1, 3_600_000)]
    max_step_ms: Annotated[int, Between(1, 86_400_000)]
    propose_timeout_ms: Annotated[int, Between(1, 3_600_000)]
    vote_timeout_ms: Annotated[int, Between(1, 3_600_000)]
    timeout_step_ms: Annotated[int, Between(1, 3_600_000)]
    admission_amount: Amount
    copy_memory_rounds: Annotated[int, Between(1, 10_000)]
    """Learning rounds over which a base or output model may not be resubmitted."""


@dataclass(frozen=True, slots=True)
class GenesisAccount(Record):
    """An account that exists from the start, with its free balance."""

    account: AccountId
    balance: Amount


@dataclass(frozen=True, slots=True)
class GenesisTask(Record):
    """A treasury task: its escrow is in the supply from the start."""

    specification: TaskSpecification
    requester: AccountId
    escrow: Amount


@dataclass(frozen=True)
class Genesis(Record):
    """The start of a chain. Accounts and validators ascend by key."""

    name: Annotated[str, AtMost(64)]
    time_ms: Milliseconds
    mode: Mode
    parameters: Parameters
    accounts: Annotated[tuple[GenesisAccount, ...], AtMost(MAX_GENESIS_ACCOUNTS)]
    validators: Annotated[tuple[Validator, ...], AtMost(MAX_VALIDATORS)]
    queue: Annotated[tuple[AccountId, ...], AtMost(MAX_CLIENTS)]
    admission_key: AccountId
    admission_pool: Amount
    tasks: Annotated[tuple[GenesisTask, ...], AtMost(MAX_GENESIS_TASKS)]
    beacon: Hash

    @cached_property
    def chain_id(self) -> ChainId:
        """The chain's id: the tagged hash of the canonical genesis."""
        return ChainId(tagged_hash("genesis", self.to_bytes()))

    @cached_property
    def supply(self) -> int:
        """All micro-tokens there ever are: free, bonded, in the pool and in escrow."""
        free = sum(entry.balance for entry in self.accounts)
        bonded = sum(validator.stake for validator in self.validators)
        return free + bonded + self.admission_pool + sum(task.escrow for task in self.tasks)
