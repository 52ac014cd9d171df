"""Proof files of a real ledger: each proves what it says, and no change of a byte makes it prove something else."""

from dataclasses import replace
from functools import cache
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bflnode.consensus.block import Commit, Header, transactions_root
from bflnode.consensus.encoding import encode
from bflnode.consensus.light import ANY_AGE_MS, Clock, LightChain, Trust, make_light_chain
from bflnode.consensus.merkle import inclusion_proof
from bflnode.consensus.proof_file import (
    MAGIC,
    MAX_PROOF_FILE_BYTES,
    VERSION,
    BalanceClaim,
    CheckedProof,
    Claim,
    ClaimKind,
    ModelClaim,
    ProofFile,
    ProvenBalance,
    ProvenModel,
    ProvenTransaction,
    TransactionClaim,
    check_proof,
    decode_proof,
    encode_proof,
)
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.state_proof import prove
from bflnode.consensus.tables import ACCOUNTS, SETTLED, TASKS, Account, settled_key
from bflnode.consensus.task import Exclusion, Rule, Weighting
from bflnode.consensus.types import AccountId, BlockId, Hash
from tests.consensus.harness import Harness
from tests.consensus.setups import SPECIFICATION

NOBODY = AccountId(sha256(b"nobody").digest())
ABSENT = 3
"""The actor that doesn't train."""


class HarnessHeaders:
    """A harness as the source of a light chain; its validators never change."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness

    def header(self, height: int) -> Header:
        return self.harness.blocks[height - 1].header

    def commit(self, height: int) -> Commit:
        blocks = self.harness.blocks
        return blocks[height].last_commit if height < len(blocks) else self.harness.last_commit

    def validator_set(self, set_hash: Hash) -> ValidatorSet:
        return ValidatorSet(self.harness.genesis.validators)


@cache
def settled() -> Harness:
    """A chain with one settled learning round of three clients, weighted by their samples; a fourth sat it out."""
    harness = Harness(actors=4, specifications=(replace(SPECIFICATION, weighting=Weighting.SAMPLES, clients_start=4),))
    harness.block(*(harness.register(actor, samples=100 * (actor + 1)) for actor in range(4)))
    harness.registers = False
    harness.block(*(harness.commit(actor) for actor in range(3)))
    harness.wait_until_due()
    harness.block(*(harness.reveal(actor) for actor in range(3)))
    harness.block(*(harness.available(actor, range(3)) for actor in harness.validators))
    harness.block(harness.aggregate(labels=(0, 0, 1)))
    harness.block(*(harness.attest(actor) for actor in harness.validators))
    assert harness.slot.number == 2
    return harness


def light_chain(harness: Harness, height: int | None = None) -> LightChain:
    return make_light_chain(HarnessHeaders(harness), harness.genesis, 0, height or harness.height)


def balance_claim(harness: Harness, account: AccountId) -> BalanceClaim:
    return BalanceClaim(account, prove(harness.tree, ACCOUNTS.prefix + account))


def model_claim(harness: Harness, actor: int, number: int = 1) -> ModelClaim:
    task = harness.task_id
    return ModelClaim(
        task=task,
        number=number,
        client=harness.account(actor),
        settled_state=prove(harness.tree, SETTLED.prefix + settled_key(task, number)),
        task_state=prove(harness.tree, TASKS.prefix + task),
    )


def transaction_claim(harness: Harness, height: int, index: int) -> TransactionClaim:
    leaves = [transaction.encoded for transaction in harness.blocks[height - 1].transactions]
    return TransactionClaim(leaves[index], index, len(leaves), inclusion_proof(leaves, index))


def check(data: bytes, harness: Harness | None = None) -> CheckedProof:
    harness = harness or settled()
    trust = Trust(0, BlockId(harness.genesis.chain_id))
    return check_proof(decode_proof(data), trust, Clock(harness.now_ms, ANY_AGE_MS))


def refusal(data: bytes, harness: Harness | None = None) -> Rejection:
    with pytest.raises(Rejection) as refused:
        check(data, harness)
    return refused.value


def proof(claim: Claim, height: int | None = None) -> bytes:
    return encode_proof(light_chain(settled(), height), claim)


def registration() -> bytes:
    """The proof of a transaction of block 1."""
    return proof(transaction_claim(settled(), 1, 2), 1)


def test_balance_is_proven() -> None:
    harness = settled()
    found = check(proof(balance_claim(harness, harness.account(1))))

    record = Account(harness.balance(1), harness.nonce(1))
    assert found.proven == ProvenBalance(harness.account(1), record)
    assert found.verified.header == harness.header


def test_absence_of_an_account_is_proven() -> None:
    assert check(proof(balance_claim(settled(), NOBODY))).proven == ProvenBalance(NOBODY, None)


def test_model_in_a_global_model_is_proven_with_its_weight_and_payout() -> None:
    harness = settled()
    found = check(proof(model_claim(harness, 1))).proven

    assert isinstance(found, ProvenModel)
    record = harness.settled(1)
    assert record.aggregation is not None
    assert (found.task.id, found.settled, found.client) == (harness.task_id, record, record.clients[1])
    assert found.model == harness.model(1, record.slot)
    assert found.output == record.aggregation.outputs[record.clients[1].cluster]
    assert (found.members, found.weight, found.approvals) == (2, (200, 300), 4)
    assert found.client.gross - found.client.fee > 0


def test_weight_is_equal_where_the_task_says_so() -> None:
    harness = Harness(actors=4)
    harness.register_all()
    harness.play_round()
    found = check(encode_proof(light_chain(harness), model_claim(harness, 0)), harness).proven

    assert isinstance(found, ProvenModel)
    assert found.weight == (1, found.members)


def test_where_one_model_is_for_all_it_is_made_of_all_clusters() -> None:
    harness = Harness(actors=4, rule=Rule.PRIOR_ROWS)
    harness.register_all()
    settled_round = harness.play_round()
    found = check(encode_proof(light_chain(harness), model_claim(harness, 0)), harness).proven

    assert isinstance(found, ProvenModel)
    assert {client.cluster for client in settled_round.clients} == {0, 1}
    assert (found.members, found.weight) == (4, (1, 4))


def test_client_that_was_left_out_is_in_no_global_model() -> None:
    rejection = refusal(proof(model_claim(settled(), ABSENT)))

    assert (rejection.reason, rejection.values["left_out"]) == (Reason.NOT_PARTICIPANT, "no_commit")
    assert settled().settled(1).clients[ABSENT].exclusion is Exclusion.NO_COMMIT


def test_stranger_is_in_no_global_model() -> None:
    claim = replace(model_claim(settled(), 0), client=NOBODY)

    assert refusal(proof(claim)).reason is Reason.NOT_PARTICIPANT


def test_learning_round_that_is_not_settled_proves_nothing() -> None:
    assert refusal(proof(model_claim(settled(), 0, number=2))).reason is Reason.WRONG_ROUND


def test_transaction_is_proven_under_its_block() -> None:
    found = check(registration())

    assert found.proven == ProvenTransaction(settled().blocks[0].transactions[2])
    assert found.verified.header.height == 1


def test_transaction_of_another_block_is_rejected() -> None:
    assert refusal(proof(transaction_claim(settled(), 1, 2), 2)).reason is Reason.WRONG_ROOT


def test_swapped_account_is_rejected() -> None:
    harness = settled()
    claim = replace(balance_claim(harness, harness.account(1)), account=harness.account(2))

    assert refusal(proof(claim)).reason is Reason.WRONG_ROOT


def test_swapped_client_gets_its_own_numbers() -> None:
    """The record names all clients: another one in the claim is another, true statement."""
    harness = settled()
    found = check(proof(replace(model_claim(harness, 1), client=harness.account(2)))).proven

    assert isinstance(found, ProvenModel)
    assert found.client == harness.settled(1).clients[2]


def test_balance_of_another_state_is_rejected() -> None:
    harness = settled()
    claim = balance_claim(harness, harness.account(1))
    assert transactions_root(harness.blocks[-2].transactions) != transactions_root(harness.blocks[-1].transactions)

    assert refusal(proof(claim, harness.height - 1)).reason is Reason.WRONG_ROOT


def test_proof_from_another_chain_is_rejected() -> None:
    other = Harness(actors=4, balance=2_000)
    other.wait(100)
    data = encode_proof(light_chain(other), balance_claim(other, other.account(1)))

    assert check(data, other).verified.header == other.header
    assert refusal(data).reason is Reason.WRONG_CHAIN


def test_commit_without_a_quorum_is_rejected() -> None:
    harness = settled()
    chain = light_chain(harness)
    step = chain.steps[0]
    weak = replace(step, commit=replace(step.commit, signatures=step.commit.signatures[:2]))
    data = encode_proof(replace(chain, steps=(weak,)), balance_claim(harness, harness.account(1)))

    assert refusal(data).reason is Reason.NO_QUORUM


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.MALFORMED),
        (b"{}", Reason.MALFORMED),
        (encode((MAGIC, VERSION, b"")), Reason.MALFORMED),
        (encode((MAGIC, VERSION)), Reason.MALFORMED),
        (encode((MAGIC, VERSION + 1, b"from the future")), Reason.UNSUPPORTED),
        (encode(("bflnode block", VERSION, b"")), Reason.MALFORMED),
        (b"\x93" + encode(MAGIC) + b"\x91" * 2_000, Reason.MALFORMED),
        (b"\x93" + encode(MAGIC) + bytes(MAX_PROOF_FILE_BYTES), Reason.TOO_LARGE),
    ],
)
def test_other_files_are_refused(data: bytes, reason: Reason) -> None:
    assert refusal(data).reason is reason


def test_files_have_the_format_that_is_documented() -> None:
    """Written out from docs/proofs.md: who reads files by that page must be able to read these."""
    harness = settled()
    header, commit = harness.header, harness.last_commit
    assert header is not None
    header_value = (
        *(1, header.chain_id, header.height, header.round, header.time_ms, header.parent, header.proposer),
        *(header.transactions_root, header.last_commit_hash, header.validators_hash, header.next_validators_hash),
        *(header.state_root, header.beacon),
    )
    signatures = tuple((entry.index, entry.signature) for entry in commit.signatures)
    step = (header_value, (commit.height, commit.round, commit.block_id, signatures))
    validators = (tuple((validator.account, validator.stake) for validator in harness.genesis.validators),)
    state = prove(harness.tree, ACCOUNTS.prefix + NOBODY)
    entries = tuple((entry.key, entry.value, entry.index, entry.path) for entry in state.entries)
    claim = encode((NOBODY, (state.size, entries, state.bucket_path, state.bucket_root)))
    chain = (harness.genesis.to_bytes(), (), (step,), (validators,))
    data = encode(("bflnode proof", 1, encode((chain, 1, claim))))

    assert check(data).proven == ProvenBalance(NOBODY, None)
    anchored = (b"", (header_value,), (), ())
    from_anchor = decode_proof(encode(("bflnode proof", 1, encode((anchored, 1, claim)))))
    found = check_proof(from_anchor, Trust(header.height, header.id), Clock(harness.now_ms, ANY_AGE_MS))
    assert (found.proven, found.verified.steps) == (ProvenBalance(NOBODY, None), 0)
    assert encode(("bflnode proof", 1, encode(((*chain[:3], ()), 1, claim)))) == proof(balance_claim(harness, NOBODY))


def test_kind_that_does_not_fit_the_claim_is_refused() -> None:
    body = decode_proof(registration())
    for kind in set(ClaimKind) - {ClaimKind.TRANSACTION}:
        data = ProofFile(MAGIC, VERSION, replace(body, kind=kind).to_bytes()).to_bytes()
        assert refusal(data).reason is Reason.MALFORMED


@cache
def proofs() -> list[bytes]:
    """One of each kind, and one of an absence."""
    harness = settled()
    claims = [
        balance_claim(harness, harness.account(1)),
        balance_claim(harness, NOBODY),
        model_claim(harness, 1),
    ]
    return [*(proof(claim) for claim in claims), registration()]


def is_true(found: CheckedProof) -> bool:
    """Whether what is proven is so: a changed account may be one that is just as absent."""
    harness, proven = settled(), found.proven
    if found.verified.header != harness.blocks[found.verified.header.height - 1].header:
        return False
    match proven:
        case ProvenBalance():
            return found.verified.header == harness.header and proven.record == ACCOUNTS.get(
                harness.tree, proven.account
            )
        case ProvenModel():
            return proven.settled == harness.settled(1) and proven.task.id == harness.task_id
        case ProvenTransaction():
            return proven.transaction in harness.blocks[found.verified.header.height - 1].transactions


@pytest.mark.parametrize("number", range(4))
def test_changing_any_byte_is_refused_or_what_is_proven_stays_true(number: int) -> None:
    data = proofs()[number]
    accepted = []
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << (position % 8)
        try:
            found = check(bytes(changed))
        except Rejection:
            continue
        assert is_true(found), f"byte {position}"
        accepted.append(position)
    assert len(accepted) < 0.01 * len(data), accepted


@settings(max_examples=150, deadline=None)
@given(number=st.integers(0, 3), data=st.data())
def test_damaged_files_are_refused_or_what_is_proven_stays_true(number: int, data: st.DataObject) -> None:
    whole = proofs()[number]
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start, min(len(whole), start + 40)))
    damaged = whole[:start] + data.draw(st.binary(max_size=40)) + whole[stop:]
    try:
        found = check(damaged)
    except Rejection:
        return
    assert is_true(found)
