"""A learning task and its learning rounds as the state records them.

Records only: what moves them is in `learning_round`, who pays what in `rewards`, which duties follow in `duties`.
A task runs `rounds` learning rounds; each is one `LearningRound` record while it runs and one `SettledRound` for ever.
Clients are always sorted by key; "client i" is position i of that order in this round's snapshot.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from .blob import MAX_BLOB_BYTES
from .block import Validator
from .records import Record
from .transaction import (
    MAX_BITMAP_BYTES,
    MAX_CLASSES,
    MAX_TRIANGLE_BYTES,
    Fault,
    ProbeOpening,
    Slot,
)
from .types import (
    MAX_CLIENTS,
    MAX_VALIDATORS,
    AccountId,
    Amount,
    AtMost,
    Between,
    BlobId,
    Hash,
    Milliseconds,
    TransactionId,
    Unsigned,
)

MAX_ATTEMPTS = 4
"""A VOID learning round is retried three times, then the task is cancelled and refunded."""

LINE_LENGTH = 3
"""Aggregators in line for one attempt: the acting one and two replacements."""

MAX_CLUSTERS = 32
"""Clusters of a task: every node clusters 256 clients within a second, which takes three at 60 clusters."""

MISSES_BEFORE_LEAVING = 3
"""Learning rounds in a row without a COMMIT after which a client leaves the task."""

MAX_PHASE_MS = 30 * 86_400_000
"""Longest phase: a month is far beyond any training, and sums with it stay far from the largest integer."""

PERMILLE = 1000
"""A whole, in the unit of shares and factors."""

MAX_HOSTILE_PERMILLE = 499
"""No combination withstands a half."""

MAX_CLIP_PERMILLE = 1_000_000
"""A thousand median steps clip nothing any more."""

MAX_STEP_PERMILLE = 10_000
"""Ten times the way; learning collapses from about three times on."""

MAX_MOMENTUM_PERMILLE = PERMILLE
"""The whole way again. Outputs have this times their step for a momentum: above 1 they swing ever further."""

MAX_CLASS_BITMAP_BYTES = (MAX_CLASSES + 7) // 8
"""A bit for each class."""

PhaseMilliseconds = Annotated[int, Between(1, MAX_PHASE_MS)]
"""Length of a phase: at least 1, so that the clock can't pass through all of them at once."""


class ProbeMode(IntEnum):
    """Where the samples come from that PAA's prototypes are computed on."""

    PUBLIC = 0
    """Drawn from the task's probe set by a seed that is known only after REVEAL."""
    AGGREGATOR = 1
    """The paper's: samples of one category of the aggregator's own data, published after REVEAL."""


class Weighting(IntEnum):
    """Weights of the models in FedAvg within a cluster."""

    UNIFORM = 0
    SAMPLES = 1


class Rule(IntEnum):
    """What becomes of the clients' models. Clusters elect the queue and decide the pay under each of them."""

    PAA = 0
    """BFLN's: a model for each cluster, combined of its members'."""
    PRIOR_ROWS = 1
    """Each row of the decision layer combined of those who hold its class, the rest of everybody's and the cluster's.

    Clients train with the logarithm of their own class shares added to the logits; it never leaves them.
    """


class Similarity(IntEnum):
    """What clients are compared by: where the matrix comes from that decides clusters, queue and pay."""

    PROTOTYPES = 0
    """BFLN's: what models make of a probe."""
    UPDATES = 1
    """How representations differ from what was received; needs no probe."""


class Combination(IntEnum):
    """How one model is made of several; the arithmetic is in `fl.robust`."""

    MEAN = 0
    """FedAvg's mean: the only one that takes weights."""
    MEDIAN = 1
    TRIMMED_MEAN = 2
    KRUM = 3
    MULTI_KRUM = 4
    NORM_CLIPPING = 5


class TaskStatus(IntEnum):
    """Where a task is in its life."""

    REGISTRATION = 0
    RUNNING = 1
    DONE = 2
    CANCELLED = 3


class Phase(IntEnum):
    """Where a learning round is."""

    COMMIT = 1
    REVEAL = 2
    AVAILABLE = 3
    AGGREGATE = 4
    ATTEST = 5


@dataclass(frozen=True, slots=True)
class Deadlines(Record):
    """How long each phase may last, in header time, and how long it stays open for stragglers.

    Once clients with more than 2/3 of the registered samples have acted, a phase ends at
    `max(grace_floor_ms, elapsed * grace_permille / 1000)` after that moment, at its deadline at the latest.
    """

    registration_ms: PhaseMilliseconds
    commit_ms: PhaseMilliseconds
    reveal_ms: PhaseMilliseconds
    available_ms: PhaseMilliseconds
    aggregate_ms: PhaseMilliseconds
    attest_ms: PhaseMilliseconds
    grace_permille: Annotated[int, Between(0, 100_000)]
    grace_floor_ms: Annotated[int, Between(0, MAX_PHASE_MS)]


@dataclass(frozen=True, slots=True)
class TaskSpecification(Record):
    """What a requester asks for. Defaults of a new one are BFLN's (table 1); see `genesis`.

    `architecture` names a built-in model with its exact tensor table, `model_bytes` is the size of its file.
    `probe_set` and `validation_set` are zero where there is none. Training settings are advice to honest clients:
    nothing on chain can check them.

    `clients_min` clients must be registered for a learning round to open and included for it to be paid: it is what
    the requester insists on, so a network that is to survive dropouts sets it well below the clients it expects.
    `clients_start` is how many it expects: the first learning round waits for them until registration is extended.
    `clusters` is what clustering looks for; it finds fewer where there are fewer clients or models don't differ.

    `rule` and `combination` say how outputs are made of models. `hostile_permille` is the share of models that trimming
    and Krum count on being hostile, `clip_permille` the longest step under norm clipping, in thousandths of the median
    one. `step_permille` is how far an output goes from what was received towards the combination; 1000 is all the way.
    `momentum_permille` is how far a client goes on from what it received before it trains, as a share of the difference
    to what it received a learning round before: in the first five rounds; in round r after them (5 / r)^2 of that.
    Advice.
    `shared_permille` is the part of everybody's representation in each cluster's output under PRIOR_ROWS; 1000 is one
    model for all. `similarity` says by what clusters are found; with UPDATES they get a larger part where they hardly
    differ. The paper's are PAA, MEAN, 1000, 0, 1000 and PROTOTYPES.
    """

    name: Annotated[str, AtMost(64)]
    architecture: Annotated[str, AtMost(64)]
    classes: Annotated[int, Between(1, MAX_CLASSES)]
    model_bytes: Annotated[int, Between(1, MAX_BLOB_BYTES)]
    initial_model: BlobId
    rounds: Annotated[int, Between(1, 1_000_000)]
    reward: Amount
    clients_start: Annotated[int, Between(1, MAX_CLIENTS)]
    clients_min: Annotated[int, Between(1, MAX_CLIENTS)]
    clients_max: Annotated[int, Between(1, MAX_CLIENTS)]
    clusters: Annotated[int, Between(1, MAX_CLUSTERS)]
    rho: Annotated[int, Between(1, 8)]
    psi: Annotated[int, Between(1, 4096)]
    probe_mode: ProbeMode
    probe_set: BlobId
    validation_set: BlobId
    weighting: Weighting
    rule: Rule
    combination: Combination
    hostile_permille: Annotated[int, Between(0, MAX_HOSTILE_PERMILLE)]
    clip_permille: Annotated[int, Between(1, MAX_CLIP_PERMILLE)]
    step_permille: Annotated[int, Between(1, MAX_STEP_PERMILLE)]
    momentum_permille: Annotated[int, Between(0, MAX_MOMENTUM_PERMILLE)]
    shared_permille: Annotated[int, Between(0, PERMILLE)]
    similarity: Similarity
    tolerance: Annotated[int, Between(1, 10_000)]
    """At least 1: processors whose sums have other last bits may round one number to two neighbours."""
    deadlines: Deadlines
    epochs: Annotated[int, Between(1, 1000)]
    batch_size: Annotated[int, Between(1, 65_536)]
    learning_rate_micro: Annotated[int, Between(1, 10**9)]
    """Learning rate of local training in millionths: 1000 is 0.001."""


@dataclass(frozen=True, slots=True)
class Task(Record):
    """A task in state.

    `number` is its place in the genesis: of tasks that could start, the lowest does. `escrow` holds what is still to be
    paid out. While it waits for participants `clock_ms` is its clock (as in `LearningRound`) and `opened_ms` is on it.
    `clients` counts the participants that take part in the next learning round. `round` and `attempt` name the
    learning round that runs or comes next, from (1, 0).
    """

    id: Hash
    number: Unsigned
    specification: TaskSpecification
    requester: AccountId
    status: TaskStatus
    escrow: Amount
    header_ms: Milliseconds
    clock_ms: Milliseconds
    opened_ms: Milliseconds
    is_extended: bool
    clients: Annotated[int, Between(0, MAX_CLIENTS)]
    round: Annotated[int, Between(1, 1_000_000)]
    attempt: Annotated[int, Between(0, MAX_ATTEMPTS)]

    @property
    def slot(self) -> Slot:
        """The learning round that runs or comes next."""
        return Slot(self.id, self.round, self.attempt)

    @property
    def registration_deadline_ms(self) -> int:
        """When waiting for participants ends, on the task's clock."""
        return self.opened_ms + self.specification.deadlines.registration_ms * (2 if self.is_extended else 1)


@dataclass(frozen=True, slots=True)
class Participant(Record):
    """A client that is or was registered for a task; kept when it leaves, so that its reputation can't be washed off.

    `base` is what it trains from next; `misses` counts learning rounds in a row without a COMMIT. With `is_leaving` it
    takes part in no further learning round until it registers again.
    """

    account: AccountId
    samples: Unsigned
    histogram: Annotated[tuple[Unsigned, ...], AtMost(MAX_CLASSES)]
    data_commitment: Hash
    base: BlobId
    misses: Annotated[int, Between(0, MISSES_BEFORE_LEAVING)]
    is_leaving: bool
    reputation: Annotated[int, Between(-(2**53), 2**53)]


class Exclusion(IntEnum):
    """Why a client of a learning round is not (or not yet) part of the aggregation."""

    NONE = 0
    NO_COMMIT = 1
    NO_REVEAL = 2
    COPY = 3
    """The revealed model is another client's (whose COMMIT came first), or a base or output model of earlier rounds."""
    UNAVAILABLE = 4


@dataclass(frozen=True, slots=True)
class Revealed(Record):
    """A model that opens a client's commitment; the salt feeds the probe seed and the beacon."""

    model: BlobId
    size: Unsigned
    salt: Hash
    transaction: TransactionId


@dataclass(frozen=True, slots=True)
class Committed(Record):
    """A client's commitment; `order` counts COMMITs of the attempt: of equal models the first counts."""

    commitment: Hash
    order: Unsigned
    transaction: TransactionId


def class_bitmap(histogram: tuple[int, ...]) -> bytes:
    """Which classes have samples: one bit each, least significant first, and zeros up to the next whole byte."""
    bits = sum(1 << category for category, count in enumerate(histogram) if count)
    return bits.to_bytes((len(histogram) + 7) // 8, "little")


def held_classes(bitmap: bytes) -> tuple[int, ...]:
    """The classes whose bit is set, ascending."""
    bits = int.from_bytes(bitmap, "little")
    return tuple(category for category in range(bits.bit_length()) if bits >> category & 1)


@dataclass(frozen=True, slots=True)
class RoundClient(Record):
    """One client of a learning round; what it registered is as it was at OPEN.

    `classes` is the `class_bitmap` of its label histogram: who registers anew changes nothing in a round that runs.
    """

    account: AccountId
    samples: Unsigned
    classes: Annotated[bytes, AtMost(MAX_CLASS_BITMAP_BYTES)]
    base: BlobId
    committed: Committed | None
    revealed: Revealed | None
    exclusion: Exclusion

    @property
    def is_candidate(self) -> bool:
        """Whether it has done its part so far."""
        return self.exclusion is Exclusion.NONE


@dataclass(frozen=True, slots=True)
class LineMember(Record):
    """An aggregator in line with its PROBE, where the probe mode wants one."""

    account: AccountId
    probe: Hash | None


@dataclass(frozen=True, slots=True)
class Availability(Record):
    """A committee member's AVAILABLE vote."""

    account: AccountId
    bitmap: Annotated[bytes, AtMost(MAX_BITMAP_BYTES)]


@dataclass(frozen=True, slots=True)
class Aggregation(Record):
    """An AGGREGATE with what every node derived from it: labels and centroids index the included clients."""

    transaction: TransactionId
    aggregator: AccountId
    triangle: Annotated[bytes, AtMost(MAX_TRIANGLE_BYTES)]
    outputs: Annotated[tuple[BlobId, ...], AtMost(MAX_CLIENTS)]
    opening: ProbeOpening | None
    labels: Annotated[tuple[Annotated[int, Between(0, MAX_CLIENTS - 1)], ...], AtMost(MAX_CLIENTS)]
    centroids: Annotated[tuple[Annotated[int, Between(0, MAX_CLIENTS - 1)], ...], AtMost(MAX_CLIENTS)]


@dataclass(frozen=True, slots=True)
class Attestation(Record):
    """A committee member's verdict on the current AGGREGATE."""

    account: AccountId
    fault: Fault
    flags: Annotated[bytes, AtMost(MAX_BITMAP_BYTES)]
    transaction: TransactionId


@dataclass(frozen=True, slots=True)
class LearningRound(Record):
    """The learning round that runs now.

    `clock_ms` is the round's own clock: header time, but a single block moves it by at most the network's
    `max_step_ms`, so that the first block after a halt doesn't expire everything at once. `opened_ms` and
    `deadline_ms` are on that clock. `acting` is the position in `line` of the aggregator that may act. `included` are
    the positions of the clients that are aggregated, known from AGGREGATE on. `probe_seed` is known then too.
    """

    slot: Slot
    phase: Phase
    header_ms: Milliseconds
    clock_ms: Milliseconds
    opened_ms: Milliseconds
    deadline_ms: Milliseconds
    is_extended: bool
    is_in_grace: bool
    clients: Annotated[tuple[RoundClient, ...], AtMost(MAX_CLIENTS)]
    committee: Annotated[tuple[Validator, ...], AtMost(MAX_VALIDATORS)]
    line: Annotated[tuple[LineMember, ...], AtMost(LINE_LENGTH)]
    acting: Annotated[int, Between(0, LINE_LENGTH - 1)]
    availability: Annotated[tuple[Availability, ...], AtMost(MAX_VALIDATORS)]
    included: Annotated[tuple[Annotated[int, Between(0, MAX_CLIENTS - 1)], ...], AtMost(MAX_CLIENTS)]
    probe_seed: Hash
    aggregation: Aggregation | None
    attestations: Annotated[tuple[Attestation, ...], AtMost(MAX_VALIDATORS)]
    opened_height: Unsigned
    opened_header_ms: Milliseconds

    @property
    def aggregator(self) -> AccountId:
        """The aggregator that may act."""
        return self.line[self.acting].account

    @property
    def deadline_header_ms(self) -> int:
        """The phase's deadline in header time, if no block moves the clock by more than it may."""
        return self.header_ms + self.deadline_ms - self.clock_ms

    def position_of(self, account: AccountId) -> int | None:
        """Position of a client in the snapshot."""
        return next((index for index, client in enumerate(self.clients) if client.account == account), None)


@dataclass(frozen=True, slots=True)
class SettledClient(Record):
    """What a learning round did with one client.

    `cluster` is its label, or -1 if it was not aggregated; `balance_before` is its balance just before the payout.
    `gross - fee` is what it got; an aggregator that is also a client has its fees beside, in the round.
    """

    account: AccountId
    exclusion: Exclusion
    samples: Unsigned
    classes: Annotated[bytes, AtMost(MAX_CLASS_BITMAP_BYTES)]
    base: BlobId
    committed: Committed | None
    revealed: Revealed | None
    cluster: Annotated[int, Between(-1, MAX_CLIENTS - 1)]
    gross: Amount
    fee: Amount
    balance_before: Amount


@dataclass(frozen=True, slots=True)
class SettledRound(Record):
    """A settled learning round, kept in state for ever: everything a payout can be recomputed and explained from.

    `aggregation` is None for a round whose every attempt was VOID. `aggregator_income` is the fees plus the dust.
    """

    slot: Slot
    height: Unsigned
    opened_height: Unsigned
    opened_header_ms: Milliseconds
    settled_header_ms: Milliseconds
    clients: Annotated[tuple[SettledClient, ...], AtMost(MAX_CLIENTS)]
    included: Annotated[tuple[Annotated[int, Between(0, MAX_CLIENTS - 1)], ...], AtMost(MAX_CLIENTS)]
    probe_seed: Hash
    aggregation: Aggregation | None
    attestations: Annotated[tuple[Attestation, ...], AtMost(MAX_VALIDATORS)]
    reward: Amount
    aggregator_income: Amount
    aggregator_balance_before: Amount
