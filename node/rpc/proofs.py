"""Collecting proofs from a chain: of a balance, of a client's model in a global model, of a transaction.

What belongs here: finding what a proof needs on a running node or in a stopped home, all of it from one moment. What a
proof is, and checking one, is `consensus.proof_file`'s; files and words are `verbs.proof`'s.

The state is at hand only as it is after the last block, so balances and models are proven as of then; a transaction is
proven under its own block.
"""

from dataclasses import dataclass

from bflnode.consensus.block import Header
from bflnode.consensus.light import SignedHeader, make_light_chain
from bflnode.consensus.merkle import inclusion_proof
from bflnode.consensus.proof_file import (
    BalanceClaim,
    Claim,
    ModelClaim,
    TransactionClaim,
    describe_model,
    encode_proof,
)
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.state import StateTree
from bflnode.consensus.state_proof import prove
from bflnode.consensus.tables import ACCOUNTS, SETTLED, TASKS, Validators, settled_key
from bflnode.consensus.task import LearningRound
from bflnode.consensus.types import TransactionId
from bflnode.storage.chain_store import ChainStore

from .inspection import Inspector, Json
from .refusals import InspectionError, ParameterError


@dataclass(frozen=True, slots=True)
class Collected:
    """A claim and the header that it is proven under: all of a proof but the way to that header."""

    kind: str
    claim: Claim
    header: Header


def commit(inspector: Inspector, *, height: int) -> Json | None:
    """What makes a block final, as canonical records: header with commit, and its validators; None if unknown."""
    store = inspector.sources.store
    if not max(1, store.base) <= height <= store.tip().height:
        return None
    header = store.header(height)
    validators = store.validator_set(header.validators_hash)
    if validators is None:
        return None
    signed = SignedHeader(header, store.commit(height))
    return {"signed": signed.to_bytes().hex(), "validators": Validators(validators.validators).to_bytes().hex()}


def proof(
    inspector: Inspector, *, kind: str, reference: str = "", number: str = "latest", task: str = "", start: int = 0
) -> Json:
    """Make a proof of a chain that stands still; see `collect` and `finish`."""
    collected = collect(inspector, kind=kind, reference=reference, number=number, task=task)
    return finish(inspector.sources.store, collected, start)


def collect(inspector: Inspector, *, kind: str, reference: str, number: str, task: str) -> Collected:
    """Take what is proven from the state, in one go: a running node calls this where its state doesn't move.

    Args:
        inspector: of the chain.
        kind: "balance", "model" or "tx".
        reference: the account whose balance, the client whose model, or the transaction.
        number: of the learning round, for a model.
        task: of the learning round, for a model.

    Raises:
        ParameterError: no such kind.
        InspectionError: there is nothing to prove.
    """
    match kind:
        case "balance":
            return Collected(kind, _balance(inspector, reference), _head(inspector))
        case "model":
            return Collected(kind, _model(inspector, reference, number, task), _head(inspector))
        case "tx":
            return Collected(kind, *_transaction(inspector, reference))
        case _:
            raise ParameterError(f"there is no proof of kind {kind[:40]!r}: kinds are balance, model, tx")


def finish(store: ChainStore, collected: Collected, start: int) -> Json:
    """Add the way from a block to the header: reads the store alone, and much of it where validators changed often.

    Args:
        store: the chain.
        collected: what is proven.
        start: height of the block that the proof starts from; 0 for the genesis.

    Returns:
        The file's bytes as `proof`, hexadecimal, with the height, block and time that it is about.

    Raises:
        InspectionError: it can't be proven from this start.
    """
    header = collected.header
    if not 0 <= start <= header.height:
        raise InspectionError(
            f"the proof is about block {header.height}: it can start from blocks 0 to {header.height}"
        )
    try:
        chain = make_light_chain(store, store.genesis, start, header.height)
    except Rejection as rejection:
        if rejection.reason is Reason.PRUNED:
            unknown = rejection.values["validators"]
            assert isinstance(unknown, bytes), "the hash of the set that is missing"
            raise InspectionError(
                f"validators {unknown.hex()[:16]} are not known here, since this node began with a later block: "
                "ask another node, or give --from a later height"
            ) from rejection
        raise InspectionError(f"validators changed too often ({rejection}): give --from a later height") from rejection
    return {
        "kind": collected.kind,
        "chain_id": header.chain_id.hex(),
        "start": start,
        "height": header.height,
        "block": header.id.hex(),
        "time_ms": header.time_ms,
        "proof": encode_proof(chain, collected.claim).hex(),
    }


def _tree(inspector: Inspector) -> StateTree:
    state = inspector.sources.state
    assert isinstance(state, StateTree), "an inspector of a whole chain reads its tree"
    return state


def _head(inspector: Inspector) -> Header:
    """The header of the block whose state is at hand: a running node's store may be one block ahead of it."""
    store, root = inspector.sources.store, _tree(inspector).root
    for height in range(store.tip().height, max(0, store.tip().height - 2), -1):
        header = store.header(height)
        if header.state_root == root:
            return header
    raise InspectionError("the chain has no blocks yet: start the node and wait for the first")


def _balance(inspector: Inspector, reference: str) -> BalanceClaim:
    account = inspector.resolve_account(reference)
    return BalanceClaim(account, prove(_tree(inspector), ACCOUNTS.prefix + account))


def _model(inspector: Inspector, reference: str, number: str, task: str) -> ModelClaim:
    found, owner = inspector.find_round(number, task)
    if isinstance(found, LearningRound):
        raise InspectionError(
            f"learning round {found.slot.number} still runs: its models can be proven once it settled"
        )
    client = inspector.resolve_account(reference)
    try:
        describe_model(owner, found, client)
    except Rejection as rejection:
        if rejection.reason is not Reason.NOT_PARTICIPANT:
            raise
        why = str(rejection.values["left_out"]).replace("_", " ")
        raise InspectionError(
            f"no model of {client.hex()[:12]} is in the global models of learning round {found.slot.number} ({why}): "
            f"see `bflnode round {found.slot.number}`"
        ) from rejection
    tree = _tree(inspector)
    settled = SETTLED.prefix + settled_key(owner.id, found.slot.number)
    return ModelClaim(
        task=owner.id,
        number=found.slot.number,
        client=client,
        settled_state=prove(tree, settled),
        task_state=prove(tree, TASKS.prefix + owner.id),
    )


def _transaction(inspector: Inspector, reference: str) -> tuple[TransactionClaim, Header]:
    store = inspector.sources.store
    stored = store.transaction(TransactionId(bytes.fromhex(inspector.transaction(reference)["id"])))
    assert stored is not None, "the inspector has just found it"
    leaves = [transaction.encoded for transaction in store.block(stored.height).transactions]
    path = inclusion_proof(leaves, stored.index)
    claim = TransactionClaim(stored.transaction.encoded, stored.index, len(leaves), path)
    return claim, store.header(stored.height)
