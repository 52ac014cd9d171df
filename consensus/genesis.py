"""Genesis: everything that consensus needs and that no block says.

People read and write it as JSON; its canonical bytes, and nothing else, give the chain id. The numbers that a new
network starts with are here too: BFLN's for learning, ours for agreement.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, TypedDict

from .block import Validator
from .encoding import encode
from .hashing import tagged_hash
from .record_json import RecordJsonError, format_record, parse_record
from .records import Record
from .task import PERMILLE, Combination, Deadlines, ProbeMode, Rule, Similarity, TaskSpecification, Weighting
from .types import (
    MAX_ATTENDANCE_WINDOW,
    MAX_CLIENTS,
    MAX_VALIDATORS,
    TOKEN,
    AccountId,
    Amount,
    AtMost,
    Between,
    BlobId,
    ChainId,
    Hash,
    HeaderTime,
)

MAX_GENESIS_BYTES = 1024 * 1024
"""Largest canonical genesis: thousands of accounts."""

MAX_GENESIS_ACCOUNTS = 4096
"""Most accounts: the longest canonical array."""

MAX_GENESIS_TASKS = 16
"""Most treasury tasks: they run one after the other, and later ones can be published."""

MAX_SUPPLY = 2**53
"""Most micro-tokens of a chain: every amount stays exact where JSON readers have only doubles."""

MAX_GENESIS_TEXT = 8 * 1024 * 1024
"""Most characters of a genesis file: the largest genesis takes about a megabyte, indented."""


DEFAULT_HOSTILE_PERMILLE = 200
"""A fifth: of five clients one may be hostile."""

DEFAULT_RULE = Rule.PRIOR_ROWS
"""What learned best in this project's study (docs/results.md); PAA is the paper's."""


class RuleDefaults(TypedDict):
    """Fields of a task whose defaults differ by rule."""

    step_permille: int
    momentum_permille: int
    shared_permille: int
    similarity: Similarity


DEFAULTS_BY_RULE: Mapping[Rule, RuleDefaults] = MappingProxyType(
    {
        Rule.PAA: RuleDefaults(
            step_permille=PERMILLE,
            momentum_permille=0,
            shared_permille=PERMILLE,
            similarity=Similarity.PROTOTYPES,
        ),
        Rule.PRIOR_ROWS: RuleDefaults(
            step_permille=1250,
            momentum_permille=700,
            shared_permille=300,
            similarity=Similarity.UPDATES,
        ),
    }
)
"""The paper's, and the study's."""


class GenesisError(ValueError):
    """A genesis makes no sense; the message says where, what is wrong and what to do."""


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
    `timeout_step_ms`. All times but the time-outs and the clock tolerance are compared with header time.
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
    minimum_stake: Annotated[int, Between(1, MAX_SUPPLY)]
    """Fewest bonded micro-tokens of a validator."""
    unbonding_ms: Annotated[int, Between(1, 365 * 86_400_000)]
    """How long unbonded tokens stay slashable before they are free."""
    jail_ms: Annotated[int, Between(1, 365 * 86_400_000)]
    """How long a jailed validator waits at least before UNJAIL."""
    attendance_window: Annotated[int, Between(1, MAX_ATTENDANCE_WINDOW)]
    """Blocks over which missed commits are counted."""
    missed_to_jail: Annotated[int, Between(1, MAX_ATTENDANCE_WINDOW)]
    """Commits that a validator must have missed, of the window's, to be jailed."""


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
    time_ms: HeaderTime
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


def parse_genesis(text: str) -> Genesis:
    """Read a genesis from JSON.

    Raises:
        GenesisError: with the path in the document, what is wrong there, and what to do about it.
    """
    if len(text) > MAX_GENESIS_TEXT:
        raise GenesisError(f"genesis: {len(text)} characters, at most {MAX_GENESIS_TEXT}; is this the right file?")
    try:
        genesis = parse_record(Genesis, text, "genesis")
    except RecordJsonError as error:
        raise GenesisError(str(error)) from error
    validate_genesis(genesis)
    return genesis


def format_genesis(genesis: Genesis) -> str:
    """The genesis as JSON for people; `parse_genesis` reads it back."""
    return format_record(genesis)


def validate_genesis(genesis: Genesis) -> None:
    """Check the rules that span fields.

    Raises:
        GenesisError: for the first one that is broken.
    """
    _require_ascending("accounts", [entry.account for entry in genesis.accounts])
    validators = [validator.account for validator in genesis.validators]
    _require_ascending("validators", validators)
    _require(bool(validators), "validators", "is empty", "add at least one: nobody could make a block")
    for index, member in enumerate(genesis.queue):
        path = f"queue[{index}]"
        _require(member in validators, path, "is not a validator", "remove it or add it to the validators")
        _require(member not in genesis.queue[:index], path, "is in the queue twice", "remove it")
    parameters = genesis.parameters
    _require(
        parameters.block_interval_ms < parameters.heartbeat_ms,
        "parameters.heartbeat_ms",
        f"{parameters.heartbeat_ms} is not above block_interval_ms, {parameters.block_interval_ms}",
        "raise it: it is the most time between two blocks, the interval the least",
    )
    _require(
        parameters.missed_to_jail <= parameters.attendance_window,
        "parameters.missed_to_jail",
        f"{parameters.missed_to_jail} is above attendance_window, {parameters.attendance_window}",
        "lower it: nobody can miss more commits than are counted",
    )
    for index, validator in enumerate(genesis.validators):
        _require(
            validator.stake >= parameters.minimum_stake,
            f"validators[{index}].stake",
            f"{validator.stake} is below parameters.minimum_stake, {parameters.minimum_stake}",
            "raise it, or lower the minimum",
        )
    for index, task in enumerate(genesis.tasks):
        _validate_task(f"tasks[{index}]", task)
    _require(
        genesis.supply <= MAX_SUPPLY,
        "accounts",
        f"balances, stakes, pool and escrows add up to {genesis.supply} micro-tokens",
        f"lower them to {MAX_SUPPLY} or less in all",
    )


def task_id(index: int, task: GenesisTask) -> Hash:
    """The id of a treasury task; `index` is its place in the genesis and keeps two equal tasks apart."""
    return tagged_hash("genesis-task", encode((index, task.to_value())))


def default_parameters() -> Parameters:
    """Parameters for a network of ordinary machines on the internet."""
    return Parameters(
        block_interval_ms=100,
        heartbeat_ms=60_000,
        clock_tolerance_ms=5_000,
        max_step_ms=30_000,
        propose_timeout_ms=1_500,
        vote_timeout_ms=500,
        timeout_step_ms=500,
        admission_amount=5 * TOKEN,
        copy_memory_rounds=10,
        minimum_stake=TOKEN,
        unbonding_ms=21 * 86_400_000,
        jail_ms=600_000,
        attendance_window=100,
        missed_to_jail=95,
    )


def default_deadlines() -> Deadlines:
    """Deadlines of a learning round for ordinary machines; phases close early when everybody has acted."""
    return Deadlines(
        registration_ms=600_000,
        commit_ms=600_000,
        reveal_ms=60_000,
        available_ms=300_000,
        aggregate_ms=120_000,
        attest_ms=300_000,
        grace_permille=500,
        grace_floor_ms=2_000,
    )


def default_task(
    *, name: str, architecture: str, classes: int, model_bytes: int, initial_model: BlobId, probe_set: BlobId
) -> TaskSpecification:
    """A task with the numbers of BFLN's evaluation; what it does not say is ours: psi, tolerance, fewest clients.

    So is the rule with its settings: BFLN's is PAA, with those that `DEFAULTS_BY_RULE` has for it.

    `dataclasses.replace` changes what should differ.
    """
    return TaskSpecification(
        name=name,
        architecture=architecture,
        classes=classes,
        model_bytes=model_bytes,
        initial_model=initial_model,
        rounds=50,
        reward=20 * TOKEN,
        clients_start=20,
        clients_min=2,
        clients_max=20,
        clusters=2,
        rho=2,
        psi=32,
        probe_mode=ProbeMode.PUBLIC,
        probe_set=probe_set,
        validation_set=BlobId(bytes(32)),
        weighting=Weighting.UNIFORM,
        rule=DEFAULT_RULE,
        combination=Combination.MEAN,
        hostile_permille=DEFAULT_HOSTILE_PERMILLE,
        clip_permille=PERMILLE,
        **DEFAULTS_BY_RULE[DEFAULT_RULE],
        tolerance=10,
        deadlines=default_deadlines(),
        epochs=5,
        batch_size=64,
        learning_rate_micro=1_000,
    )


def _validate_task(path: str, task: GenesisTask) -> None:
    specification = task.specification
    for fewer, more in (("clients_min", "clients_start"), ("clients_start", "clients_max")):
        low, high = getattr(specification, fewer), getattr(specification, more)
        _require(low <= high, f"{path}.specification.{fewer}", f"{low} is above {more}, {high}", "lower it")
    has_probe_set, is_by_updates = (
        specification.probe_set != bytes(32),
        specification.similarity is Similarity.UPDATES,
    )
    cost = specification.rounds * specification.reward
    _require(
        task.escrow >= cost,
        f"{path}.escrow",
        f"{task.escrow} does not pay {specification.rounds} rounds of {specification.reward}",
        f"raise it to {cost}",
    )
    _require(
        specification.probe_mode is not ProbeMode.PUBLIC or has_probe_set or is_by_updates,
        f"{path}.specification.probe_set",
        "is zero although probe_mode is public",
        "name the blob that the probe samples are drawn from",
    )
    _require(
        specification.probe_mode is ProbeMode.PUBLIC or not is_by_updates,
        f"{path}.specification.probe_mode",
        "is aggregator although the similarity is updates, which takes no probe",
        "use public, or the similarity prototypes",
    )
    _require(
        specification.shared_permille == PERMILLE or specification.rule is Rule.PRIOR_ROWS,
        f"{path}.specification.shared_permille",
        f"is {specification.shared_permille} although the rule is {specification.rule.name}, which shares nothing",
        f"use {PERMILLE}, or the rule prior_rows",
    )
    _require(
        specification.weighting is Weighting.UNIFORM or specification.combination is Combination.MEAN,
        f"{path}.specification.weighting",
        f"is samples although the combination is {specification.combination.name}, which counts clients equally",
        "use uniform, or the MEAN",
    )


def _require_ascending(name: str, keys: list[AccountId]) -> None:
    for index in range(1, len(keys)):
        path = f"{name}[{index}].account"
        _require(keys[index] != keys[index - 1], path, "is listed twice", "merge the two entries")
        _require(keys[index] > keys[index - 1], path, "is below the account before it", f"sort {name} by account")


def _require(is_right: bool, path: str, fault: str, remedy: str) -> None:
    if not is_right:
        raise GenesisError(f"genesis.{path}: {fault}; {remedy}")
