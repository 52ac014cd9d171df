"""Transactions: what accounts ask the ledger to do.

    transaction = [payload, signature]
    payload     = [version, kind, sender, nonce, fee, valid_until_ms, body]

Formats, ids and signatures live here; whether a transaction is allowed is decided in `ledger` and `learning_round`.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import Annotated, Self, TypeAlias

from .encoding import Value, encode
from .hashing import tagged_hash
from .keys import SecretKey, verify
from .records import Record
from .rejection import Reason, Rejection
from .types import (
    MAX_CLIENTS,
    MAX_INTEGER,
    AccountId,
    Amount,
    AtMost,
    Between,
    BlobId,
    BlockId,
    ChainId,
    Hash,
    Milliseconds,
    Signature,
    TransactionId,
    Unsigned,
)

TRANSACTION_VERSION = 1

MAX_TRANSACTION_BYTES = 64 * 1024
"""Largest transaction but AGGREGATE: everything else is a few hundred bytes; a gossip message must stay below 64 kB."""

MAX_AGGREGATE_BYTES = 128 * 1024
"""Largest AGGREGATE: the matrix of 256 clients is 65,280 bytes, their output ids at most 8,704 more."""

MAX_CLASSES = 1024
"""Classes of a task: bounds the label histogram in a registration."""

MAX_SAMPLES = 2**40
"""Samples that a client may claim: what averaging by samples can weigh without losing a bit (`fl.aggregation`)."""

MAX_BITMAP_BYTES = MAX_CLIENTS // 8

MAX_TRIANGLE_BYTES = MAX_CLIENTS * (MAX_CLIENTS - 1)
"""Strict upper triangle of the largest similarity matrix, two bytes an entry."""


class Kind(IntEnum):
    """Type of a transaction; the number is its wire format."""

    TRANSFER = 1
    ADMIT = 2
    TASK_REGISTER = 3
    TASK_LEAVE = 4
    PROBE = 5
    COMMIT = 6
    REVEAL = 7
    AVAILABLE = 8
    AGGREGATE = 9
    ATTEST = 10
    BOND = 11
    UNBOND = 12
    UNJAIL = 13
    EVIDENCE = 14


class Fault(IntEnum):
    """Why a committee member attests an aggregation as bad (0: it is good)."""

    NONE = 0
    OUTPUT_MISMATCH = 1
    """L2: re-aggregation gives other bytes; an exact fault."""
    MATRIX_MISMATCH = 2
    """L3: a similarity is further from the recomputed one than the tolerance."""
    PROBE_UNAVAILABLE = 3
    """The aggregator's published samples could not be fetched or are not of one category."""


@dataclass(frozen=True, slots=True)
class Transfer(Record):
    """Move tokens to another account."""

    to: AccountId
    amount: Amount


@dataclass(frozen=True, slots=True)
class Admit(Record):
    """Open the sender's account with the initial stake out of the admission pool.

    `credential` is the genesis admission key's signature over the sender's key (see `keys.admission_payload`).
    """

    credential: Signature


@dataclass(frozen=True, slots=True)
class TaskRegister(Record):
    """Take part in a task from its next learning round on (Wang et al.: identity and data summary).

    `histogram` counts the samples of each class, `data_commitment` is a salted hash of the data.
    """

    task: Hash
    samples: Annotated[int, Between(0, MAX_SAMPLES)]
    histogram: Annotated[tuple[Unsigned, ...], AtMost(MAX_CLASSES)]
    data_commitment: Hash


@dataclass(frozen=True, slots=True)
class TaskLeave(Record):
    """Stop taking part in a task after the current learning round."""

    task: Hash


@dataclass(frozen=True, slots=True)
class Bond(Record):
    """Move free tokens into the sender's stake."""

    amount: Annotated[int, Between(1, MAX_INTEGER)]


@dataclass(frozen=True, slots=True)
class Unbond(Record):
    """Take tokens out of the sender's stake; they are free after the unbonding time."""

    amount: Annotated[int, Between(1, MAX_INTEGER)]


@dataclass(frozen=True, slots=True)
class Unjail(Record):
    """End the sender's time in jail once it may."""


class SignedKind(IntEnum):
    """What a validator signs in agreement, at most once for each height and round; votes are numbered as in them."""

    PROPOSAL = 0
    PREVOTE = 1
    PRECOMMIT = 2


@dataclass(frozen=True, slots=True)
class Statement(Record):
    """What differs between two messages signed for one slot; `valid_round` is a proposal's, -1 in votes."""

    block_id: BlockId
    valid_round: Annotated[int, Between(-1, MAX_INTEGER)]
    signature: Signature


@dataclass(frozen=True, slots=True)
class Evidence(Record):
    """Two statements that one key signed for one height, round and kind; `first` is the lower one.

    What makes it a proof is said in `evidence`.
    """

    offender: AccountId
    kind: SignedKind
    height: Unsigned
    round: Unsigned
    first: Statement
    second: Statement


@dataclass(frozen=True, slots=True)
class Slot(Record):
    """Which learning round a round transaction belongs to."""

    task: Hash
    number: Unsigned
    attempt: Annotated[int, Between(0, 255)]


@dataclass(frozen=True, slots=True)
class Probe(Record):
    """An aggregator's promise which samples it will probe models with; see `probe_commitment`."""

    slot: Slot
    commitment: Hash


@dataclass(frozen=True, slots=True)
class Commit(Record):
    """A client's salted commitment to the model it trained; see `commitment`."""

    slot: Slot
    commitment: Hash


@dataclass(frozen=True, slots=True)
class Reveal(Record):
    """Opens a COMMIT: the model's id, its size in bytes and the salt."""

    slot: Slot
    model: BlobId
    size: Unsigned
    salt: Hash


@dataclass(frozen=True, slots=True)
class Available(Record):
    """A committee member's vote on which revealed models it holds: bit i (LSB first) is client i of the snapshot."""

    slot: Slot
    bitmap: Annotated[bytes, AtMost(MAX_BITMAP_BYTES)]


@dataclass(frozen=True, slots=True)
class ProbeOpening(Record):
    """Opens a PROBE: the blob of published samples and the salt."""

    samples: BlobId
    salt: Hash


@dataclass(frozen=True, slots=True)
class Aggregate(Record):
    """The aggregator's result.

    `triangle` is the strict upper triangle of the similarity matrix, row by row, int16 big-endian, in units of 1e-4,
    clients in key order; clusters, centroids, queue and payouts are recomputed from it by everybody. `outputs` has one
    model id for each cluster, in the order of labels.
    """

    slot: Slot
    triangle: Annotated[bytes, AtMost(MAX_TRIANGLE_BYTES)]
    outputs: Annotated[tuple[BlobId, ...], AtMost(MAX_CLIENTS)]
    opening: ProbeOpening | None


@dataclass(frozen=True, slots=True)
class Attest(Record):
    """A committee member's verdict on an AGGREGATE: good if `fault` is NONE.

    `flags` marks, as bit i for included client i, the models whose similarities were out of tolerance.
    """

    slot: Slot
    aggregate: TransactionId
    fault: Fault
    flags: Annotated[bytes, AtMost(MAX_BITMAP_BYTES)]


StakeBody: TypeAlias = Bond | Unbond | Unjail
RoundBody: TypeAlias = Probe | Commit | Reveal | Available | Aggregate | Attest
Body: TypeAlias = Transfer | Admit | TaskRegister | TaskLeave | StakeBody | Evidence | RoundBody

BODIES: dict[Kind, type[Body]] = {
    Kind.TRANSFER: Transfer,
    Kind.ADMIT: Admit,
    Kind.TASK_REGISTER: TaskRegister,
    Kind.TASK_LEAVE: TaskLeave,
    Kind.PROBE: Probe,
    Kind.COMMIT: Commit,
    Kind.REVEAL: Reveal,
    Kind.AVAILABLE: Available,
    Kind.AGGREGATE: Aggregate,
    Kind.ATTEST: Attest,
    Kind.BOND: Bond,
    Kind.UNBOND: Unbond,
    Kind.UNJAIL: Unjail,
    Kind.EVIDENCE: Evidence,
}
KINDS = {body: kind for kind, body in BODIES.items()}
ROUND_KINDS = frozenset({Kind.PROBE, Kind.COMMIT, Kind.REVEAL, Kind.AVAILABLE, Kind.AGGREGATE, Kind.ATTEST})
"""Kinds that belong to a learning round."""

FREE_KINDS = ROUND_KINDS | {Kind.ADMIT, Kind.EVIDENCE}
"""Kinds without nonce, fee and expiry: state bounds and de-duplicates them."""


@dataclass(frozen=True, slots=True)
class _Payload(Record):
    """The signed part, with the body still a bare value: its format depends on `kind`."""

    version: Annotated[int, Between(TRANSACTION_VERSION, TRANSACTION_VERSION)]
    kind: Kind
    sender: AccountId
    nonce: Unsigned
    fee: Amount
    valid_until_ms: Milliseconds


@dataclass(frozen=True)
class Transaction(Record):
    """A signed transaction.

    `nonce`, `fee` and `valid_until_ms` are 0 in the kinds of FREE_KINDS. `valid_until_ms` is compared with header time;
    0 means that it never expires.
    """

    sender: AccountId
    nonce: int
    fee: int
    valid_until_ms: int
    body: Body
    signature: Signature

    @property
    def kind(self) -> Kind:
        """The type of the body."""
        return KINDS[type(self.body)]

    @property
    def has_nonce(self) -> bool:
        """Whether it uses up a nonce of its sender."""
        return self.kind not in FREE_KINDS

    @cached_property
    def payload(self) -> bytes:
        """Canonical bytes of the signed part."""
        return encode(self._payload_value())

    @cached_property
    def id(self) -> TransactionId:
        """Tagged hash of the payload, without the signature: signed again, it is still the same transaction."""
        return TransactionId(tagged_hash("txid", self.payload))

    @cached_property
    def encoded(self) -> bytes:
        """Canonical bytes of the whole transaction."""
        return self.to_bytes()

    def _payload_value(self) -> tuple[Value, ...]:
        head = _Payload(TRANSACTION_VERSION, self.kind, self.sender, self.nonce, self.fee, self.valid_until_ms)
        value = head.to_value()
        assert isinstance(value, tuple)
        return (*value, self.body.to_value())

    def to_value(self) -> Value:
        """The transaction as `[payload, signature]`."""
        return (self._payload_value(), self.signature)

    @classmethod
    def from_value(cls, value: Value, name: str = "Transaction") -> Self:
        """Read a transaction; its signature is checked by `verify_signature`.

        Raises:
            Rejection: MALFORMED.
        """
        if type(value) is not tuple or len(value) != 2 or type(value[0]) is not tuple or len(value[0]) != 7:
            raise Rejection(Reason.MALFORMED, field=name, expected="[payload of 7 items, signature]")
        payload, signature = value
        assert isinstance(payload, tuple)
        head = _Payload.from_value(payload[:6], name)
        if type(signature) is not bytes or len(signature) != 64:
            raise Rejection(Reason.MALFORMED, field=f"{name}.signature", expected="64 bytes")
        body = BODIES[head.kind].from_value(payload[6], f"{name}.{head.kind.name}")
        if head.kind in FREE_KINDS and (head.nonce, head.fee, head.valid_until_ms) != (0, 0, 0):
            raise Rejection(Reason.MALFORMED, field=name, fault=f"{head.kind.name} has no nonce, fee or expiry")
        return cls(head.sender, head.nonce, head.fee, head.valid_until_ms, body, Signature(signature))

    def verify_signature(self, chain_id: ChainId) -> None:
        """Check the signature of the sender.

        Raises:
            Rejection: BAD_SIGNATURE.
        """
        verify(self.sender, "tx", chain_id, self.payload, self.signature)


def sign_transaction(
    key: SecretKey, chain_id: ChainId, body: Body, *, nonce: int = 0, fee: int = 0, valid_until_ms: int = 0
) -> Transaction:
    """Make and sign a transaction of `key`'s account."""
    unsigned = Transaction(key.account, nonce, fee, valid_until_ms, body, Signature(bytes(64)))
    return replace(unsigned, signature=key.sign("tx", chain_id, unsigned.payload))


def bitmap(positions: set[int], count: int) -> bytes:
    """Bits of the given positions, least significant first, in as many bytes as `count` positions need."""
    return sum(1 << position for position in positions).to_bytes((count + 7) // 8, "little")


def model_commitment(chain_id: ChainId, slot: Slot, sender: AccountId, model: BlobId, salt: Hash) -> Hash:
    """What a COMMIT carries: binds the model to chain, task, learning round, attempt and sender."""
    return tagged_hash("commit", encode((chain_id, slot.to_value(), sender, model, salt)))


def probe_commitment(chain_id: ChainId, slot: Slot, sender: AccountId, samples: BlobId, salt: Hash) -> Hash:
    """What a PROBE carries: binds the samples to chain, task, learning round, attempt and sender."""
    return tagged_hash("probe-commit", encode((chain_id, slot.to_value(), sender, samples, salt)))
