"""Transactions: format, ids, signatures, and that the largest of each kind fits its limit."""

from dataclasses import replace
from typing import Any

import pytest

from bflnode.consensus.encoding import encode
from bflnode.consensus.hashing import tagged_hash
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.transaction import (
    BODIES,
    KINDS,
    MAX_AGGREGATE_BYTES,
    MAX_BITMAP_BYTES,
    MAX_CLASSES,
    MAX_TRANSACTION_BYTES,
    MAX_TRIANGLE_BYTES,
    ROUND_KINDS,
    Aggregate,
    Attest,
    Available,
    Body,
    Commit,
    Fault,
    Kind,
    ProbeOpening,
    Reveal,
    Slot,
    TaskRegister,
    Transaction,
    Transfer,
    model_commitment,
    probe_commitment,
    sign_transaction,
)
from bflnode.consensus.types import (
    MAX_CLIENTS,
    MAX_INTEGER,
    AccountId,
    BlobId,
    ChainId,
    Hash,
    Signature,
    TransactionId,
)

KEY = SecretKey.from_seed(b"k" * 32)
CHAIN = ChainId(b"c" * 32)
TO = AccountId(b"t" * 32)
SLOT = Slot(Hash(b"t" * 32), 3, 1)
TRANSFER = sign_transaction(KEY, CHAIN, Transfer(TO, 5), nonce=1, fee=2, valid_until_ms=3)
COMMIT = sign_transaction(KEY, CHAIN, Commit(SLOT, Hash(b"m" * 32)))
LARGEST_SLOT = Slot(Hash(b"t" * 32), MAX_INTEGER, 255)
BLOB = BlobId(b"b" * 32)


def is_valid(transaction: Transaction, chain: ChainId = CHAIN) -> bool:
    try:
        transaction.verify_signature(chain)
    except Rejection as rejection:
        return rejection.reason is not Reason.BAD_SIGNATURE
    return True


def test_format_is_payload_and_signature() -> None:
    payload = (1, 1, KEY.account, 1, 2, 3, (TO, 5))
    assert TRANSFER.to_value() == (payload, TRANSFER.signature)
    assert TRANSFER.payload == encode(payload)
    assert TRANSFER.id == tagged_hash("txid", encode(payload))


@pytest.mark.parametrize("transaction", [TRANSFER, COMMIT])
def test_transaction_comes_back_and_its_signature_holds(transaction: Transaction) -> None:
    decoded = Transaction.from_bytes(transaction.encoded, max_bytes=MAX_TRANSACTION_BYTES)
    assert decoded == transaction
    assert decoded.id == transaction.id
    assert is_valid(decoded)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sender", AccountId(b"x" * 32)),
        ("nonce", 2),
        ("fee", 3),
        ("valid_until_ms", 4),
        ("body", Transfer(TO, 6)),
        ("body", Transfer(KEY.account, 5)),
        ("body", Commit(SLOT, Hash(b"m" * 32))),
    ],
)
def test_changing_any_signed_field_changes_the_id_and_breaks_the_signature(field: str, value: Any) -> None:
    changed = replace(TRANSFER, **{field: value})
    assert changed.id != TRANSFER.id
    assert not is_valid(changed)


def test_another_signature_is_the_same_transaction_and_not_valid() -> None:
    changed = replace(TRANSFER, signature=Signature(bytes(64)))
    assert changed.id == TRANSFER.id
    assert not is_valid(changed)


def test_signature_holds_on_one_chain_only() -> None:
    assert is_valid(TRANSFER)
    assert not is_valid(TRANSFER, ChainId(b"d" * 32))


@pytest.mark.parametrize("head", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("kind", [Kind.COMMIT, Kind.ADMIT])
def test_round_transactions_and_admissions_have_no_nonce_fee_or_expiry(kind: Kind, head: tuple[int, ...]) -> None:
    body: Any = (SLOT.to_value(), b"m" * 32) if kind is Kind.COMMIT else (bytes(64),)
    value = ((1, int(kind), KEY.account, *head, body), bytes(64))
    with pytest.raises(Rejection, match=f"{kind.name} has no nonce, fee or expiry") as refused:
        Transaction.from_value(value)
    assert refused.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "value",
    [
        7,
        (),
        (b"payload", bytes(64)),
        ((1, 1, b"s" * 32, 0, 0, 0, (TO, 5)), bytes(64), 0),
        ((1, 1, b"s" * 32, 0, 0, 0, (TO, 5)), bytes(63)),
        ((1, 1, b"s" * 32, 0, 0, 0, (TO, 5)), "x" * 64),
        ((1, 1, b"s" * 32, 0, 0, 0, (TO, 5), 0), bytes(64)),
        ((1, 1, b"s" * 32, 0, 0, 0), bytes(64)),
        ((0, 1, b"s" * 32, 0, 0, 0, (TO, 5)), bytes(64)),
        ((2, 1, b"s" * 32, 0, 0, 0, (TO, 5)), bytes(64)),
        ((1, 0, b"s" * 32, 0, 0, 0, (TO, 5)), bytes(64)),
        ((1, 99, b"s" * 32, 0, 0, 0, (TO, 5)), bytes(64)),
        ((1, True, b"s" * 32, 0, 0, 0, (TO, 5)), bytes(64)),
        ((1, 1, b"s" * 31, 0, 0, 0, (TO, 5)), bytes(64)),
        ((1, 1, b"s" * 32, -1, 0, 0, (TO, 5)), bytes(64)),
        ((1, 1, b"s" * 32, 0, -1, 0, (TO, 5)), bytes(64)),
        ((1, 1, b"s" * 32, 0, 0, 0, (TO, -5)), bytes(64)),
        ((1, 6, b"s" * 32, 0, 0, 0, (TO, 5)), bytes(64)),
        ((1, 1, b"s" * 32, 0, 0, 0, 5), bytes(64)),
    ],
)
def test_what_is_no_transaction_is_rejected(value: Any) -> None:
    with pytest.raises(Rejection) as refused:
        Transaction.from_value(value)
    assert refused.value.reason is Reason.MALFORMED


def test_every_kind_has_its_body_and_round_bodies_have_a_slot() -> None:
    assert set(BODIES) == set(Kind)
    assert {BODIES[kind]: kind for kind in Kind} == KINDS
    with_slot = {kind for kind, body in BODIES.items() if "slot" in body.__annotations__}
    assert with_slot == ROUND_KINDS


@pytest.mark.parametrize(
    "body",
    [
        Transfer(TO, MAX_INTEGER),
        TaskRegister(Hash(b"t" * 32), MAX_INTEGER, (MAX_INTEGER,) * MAX_CLASSES, Hash(b"d" * 32)),
        Reveal(LARGEST_SLOT, BLOB, MAX_INTEGER, Hash(b"s" * 32)),
        Available(LARGEST_SLOT, bytes(MAX_BITMAP_BYTES)),
        Attest(LARGEST_SLOT, TransactionId(b"a" * 32), Fault.PROBE_UNAVAILABLE, bytes(MAX_BITMAP_BYTES)),
    ],
    ids=lambda body: type(body).__name__,
)
def test_largest_transaction_of_a_kind_is_below_the_limit(body: Body) -> None:
    largest = Transaction(TO, MAX_INTEGER, MAX_INTEGER, MAX_INTEGER, body, Signature(bytes(64)))
    assert len(largest.encoded) < MAX_TRANSACTION_BYTES // 4


def test_largest_aggregate_is_below_its_own_limit() -> None:
    opening = ProbeOpening(BLOB, Hash(b"s" * 32))
    body = Aggregate(LARGEST_SLOT, bytes(MAX_TRIANGLE_BYTES), (BLOB,) * MAX_CLIENTS, opening)
    largest = sign_transaction(KEY, CHAIN, body)
    assert MAX_TRANSACTION_BYTES < len(largest.encoded) < MAX_AGGREGATE_BYTES
    assert Transaction.from_bytes(largest.encoded, max_bytes=MAX_AGGREGATE_BYTES) == largest


def test_commitments_bind_chain_slot_sender_content_and_salt() -> None:
    salt = Hash(b"s" * 32)
    base: tuple[Any, ...] = (CHAIN, SLOT, KEY.account, BLOB, salt)
    changes: tuple[Any, ...] = (
        ChainId(b"d" * 32),
        replace(SLOT, attempt=2),
        TO,
        BlobId(b"x" * 32),
        Hash(b"x" * 32),
    )
    variants = [base, *((*base[:i], changes[i], *base[i + 1 :]) for i in range(5))]
    variants.append((CHAIN, replace(SLOT, number=4), KEY.account, BLOB, salt))
    hashes = [commitment(*variant) for variant in variants for commitment in (model_commitment, probe_commitment)]
    assert len(set(hashes)) == 2 * len(variants)
