"""Proofs that fit into a file: a balance, a model in a global model, a transaction, for who trusts one block.

    file = ["bflnode proof", version, body]      body = [light chain, kind of claim, claim]

The light chain leads to a header (`light`); the claim is proven under that header's roots: the state after the block,
or the block's transactions. All of it is canonical bytes with bounds, since files come from strangers.

What belongs here: the records, and what they prove. Collecting one is `node`'s, which has the chain.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, TypeAlias, TypeVar

from .block import Header
from .encoding import encode
from .light import Clock, LightChain, Trust, VerifiedHeader, verify_light_chain
from .merkle import MAX_PROOF_HASHES, leaf_hash, verify_inclusion
from .records import Record
from .rejection import Reason, Rejection
from .state_proof import MAX_PROOF_BYTES, StateProof, verify_proof
from .tables import ACCOUNTS, SETTLED, TASKS, Account, settled_key
from .task import Rule, SettledClient, SettledRound, Task, Weighting
from .transaction import MAX_AGGREGATE_BYTES, Fault, Transaction
from .types import AccountId, AtMost, Between, BlobId, Hash, Unsigned

MAGIC = "bflnode proof"
"""How every proof file begins, so that another kind of file is told from a broken proof."""

BEGINNING = b"\x93" + encode(MAGIC)
"""The first bytes of every file: an array of three, the first of which is `MAGIC`."""

VERSION = 1

MAX_PROOF_FILE_BYTES = 8 * 1024 * 1024
"""Largest file: the largest genesis, all steps with 256 validators each, and a record of 256 clients fit."""


class ClaimKind(IntEnum):
    """What a file proves."""

    BALANCE = 1
    MODEL = 2
    TRANSACTION = 3


@dataclass(frozen=True, slots=True)
class ProofFile(Record):
    """The outermost record, the same in all versions; `body` is a `ProofBody` in this one."""

    magic: Annotated[str, AtMost(32)]
    version: Unsigned
    body: Annotated[bytes, AtMost(MAX_PROOF_FILE_BYTES)]


@dataclass(frozen=True, slots=True)
class ProofBody(Record):
    """A claim and the chain to the header that it is proven under; `claim` is the record of its kind."""

    chain: LightChain
    kind: ClaimKind
    claim: Annotated[bytes, AtMost(2 * MAX_PROOF_BYTES)]


@dataclass(frozen=True, slots=True)
class BalanceClaim(Record):
    """An account is in the state, or isn't."""

    account: AccountId
    state: StateProof


@dataclass(frozen=True, slots=True)
class ModelClaim(Record):
    """A client's model is in a global model: the settled learning round and its task are in the state."""

    task: Hash
    number: Unsigned
    client: AccountId
    settled_state: StateProof
    task_state: StateProof


@dataclass(frozen=True, slots=True)
class TransactionClaim(Record):
    """A transaction is in the block.

    `index` and `leaves` guide the walk up the tree, and are not proven: several pairs may fit one path.
    """

    transaction: Annotated[bytes, AtMost(MAX_AGGREGATE_BYTES)]
    index: Annotated[int, Between(0, 2**53)]
    leaves: Annotated[int, Between(0, 2**53)]
    path: Annotated[tuple[Hash, ...], AtMost(MAX_PROOF_HASHES)]


RecordType = TypeVar("RecordType", bound=Record)

Claim: TypeAlias = BalanceClaim | ModelClaim | TransactionClaim

CLAIMS: dict[ClaimKind, type[BalanceClaim] | type[ModelClaim] | type[TransactionClaim]] = {
    ClaimKind.BALANCE: BalanceClaim,
    ClaimKind.MODEL: ModelClaim,
    ClaimKind.TRANSACTION: TransactionClaim,
}


@dataclass(frozen=True, slots=True)
class ProvenBalance:
    """An account after the block; `record` is None if there was none."""

    account: AccountId
    record: Account | None


@dataclass(frozen=True, slots=True)
class ProvenModel:
    """What a settled learning round did with one client's model.

    Attributes:
        task: the task that it was for.
        settled: the learning round; its attempt is the one that was settled.
        client: the client in it, with its cluster and payout.
        model: id of the model that the client revealed.
        output: id of the global model that it is in.
        members: how many models that was made of: the cluster's under PAA, all of them under PRIOR_ROWS.
        weight: of the model in a mean of all of them, as numerator and denominator. How much of a model there is in
            another combination, and in a row of one class, depends on the models; where clusters differ, a
            representation has more of its own members.
        approvals: committee members that attested the aggregation as good.
    """

    task: Task
    settled: SettledRound
    client: SettledClient
    model: BlobId
    output: BlobId
    members: int
    weight: tuple[int, int]
    approvals: int


@dataclass(frozen=True, slots=True)
class ProvenTransaction:
    """A transaction of the block."""

    transaction: Transaction


Proven: TypeAlias = ProvenBalance | ProvenModel | ProvenTransaction


@dataclass(frozen=True, slots=True)
class CheckedProof:
    """What a file proves, under which header, because of which trusted block."""

    verified: VerifiedHeader
    proven: Proven


def encode_proof(chain: LightChain, claim: Claim) -> bytes:
    """The bytes of a proof file."""
    kind = next(kind for kind, record_type in CLAIMS.items() if isinstance(claim, record_type))
    return ProofFile(MAGIC, VERSION, ProofBody(chain, kind, claim.to_bytes()).to_bytes()).to_bytes()


def decode_proof(data: bytes) -> ProofBody:
    """Read a proof file without believing it.

    Raises:
        Rejection: TOO_LARGE, MALFORMED, or UNSUPPORTED for a later version.
    """
    if not data.startswith(BEGINNING):
        raise Rejection(Reason.MALFORMED, fault="this is no proof file")
    file = ProofFile.from_bytes(data, max_bytes=MAX_PROOF_FILE_BYTES)
    if file.version != VERSION:
        raise Rejection(Reason.UNSUPPORTED, version=file.version, expected=VERSION)
    return ProofBody.from_bytes(file.body, max_bytes=MAX_PROOF_FILE_BYTES)


def check_proof(body: ProofBody, trust: Trust, clock: Clock) -> CheckedProof:
    """Say what a proof proves to somebody who trusts one block.

    Raises:
        Rejection: the first fault: of the chain to the header as `verify_light_chain` says, MALFORMED or WRONG_ROOT of
            the claim, NOT_PARTICIPANT if the client's model is in no global model of that learning round.
    """
    verified = verify_light_chain(body.chain, trust, clock)
    claim = CLAIMS[body.kind].from_bytes(body.claim, max_bytes=len(body.claim))
    return CheckedProof(verified, _proven(verified.header, claim))


def _proven(header: Header, claim: Claim) -> Proven:
    if isinstance(claim, BalanceClaim):
        value = verify_proof(header.state_root, ACCOUNTS.prefix + claim.account, claim.state)
        return ProvenBalance(claim.account, None if value is None else _read(Account, value))
    if isinstance(claim, ModelClaim):
        return _proven_model(header, claim)
    verify_inclusion(leaf_hash(claim.transaction), claim.index, claim.leaves, claim.path, header.transactions_root)
    return ProvenTransaction(Transaction.from_bytes(claim.transaction, max_bytes=len(claim.transaction)))


def _proven_model(header: Header, claim: ModelClaim) -> ProvenModel:
    settled_entry = SETTLED.prefix + settled_key(claim.task, claim.number)
    settled_value = verify_proof(header.state_root, settled_entry, claim.settled_state)
    task_value = verify_proof(header.state_root, TASKS.prefix + claim.task, claim.task_state)
    if settled_value is None or task_value is None:
        raise Rejection(Reason.WRONG_ROUND, fault="no such learning round is settled", number=claim.number)
    return describe_model(_read(Task, task_value), _read(SettledRound, settled_value), claim.client)


def describe_model(task: Task, settled: SettledRound, account: AccountId) -> ProvenModel:
    """What a settled learning round did with a client's model.

    Raises:
        Rejection: NOT_PARTICIPANT if it is in no global model; MALFORMED for a round that no ledger writes.
    """
    client = next((client for client in settled.clients if client.account == account), None)
    aggregation = settled.aggregation
    if client is None or client.cluster < 0 or aggregation is None:
        left_out = "no client of it" if client is None else client.exclusion.name.lower()
        raise Rejection(Reason.NOT_PARTICIPANT, client=account, number=settled.slot.number, left_out=left_out)
    if client.revealed is None or client.cluster >= len(aggregation.outputs):
        raise Rejection(Reason.MALFORMED, fault="the learning round contradicts itself", number=settled.slot.number)
    is_of_all = task.specification.rule is Rule.PRIOR_ROWS
    members = [
        other for other in settled.clients if other.cluster >= 0 and (is_of_all or other.cluster == client.cluster)
    ]
    is_by_samples = task.specification.weighting is Weighting.SAMPLES
    weight = (client.samples, sum(other.samples for other in members)) if is_by_samples else (1, len(members))
    return ProvenModel(
        task=task,
        settled=settled,
        client=client,
        model=client.revealed.model,
        output=aggregation.outputs[client.cluster],
        members=len(members),
        weight=weight,
        approvals=sum(attestation.fault is Fault.NONE for attestation in settled.attestations),
    )


def _read(kind: type[RecordType], value: bytes) -> RecordType:
    return kind.from_bytes(value, max_bytes=len(value))
