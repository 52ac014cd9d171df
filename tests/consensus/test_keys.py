"""Account keys: signatures bind kind, chain and payload; Ed25519's edge cases are pinned; texts have a checksum."""

import pytest

from bflnode.consensus.encoding import encode
from bflnode.consensus.keys import (
    SecretKey,
    account_text,
    admission_payload,
    is_signed,
    parse_account,
    signed_message,
    verify,
)
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.types import AccountId, ChainId, Signature

KEY = SecretKey.from_seed(bytes(range(32)))
OTHER = SecretKey.from_seed(bytes(32))
CHAIN = ChainId(b"c" * 32)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_signed_bytes_begin_with_domain_kind_and_chain() -> None:
    assert signed_message("tx", CHAIN, b"payload") == b"bfl1:tx\0" + b"c" * 32 + b"payload"


def test_signature_is_accepted_for_what_was_signed() -> None:
    verify(KEY.account, "tx", CHAIN, b"payload", KEY.sign("tx", CHAIN, b"payload"))


@pytest.mark.parametrize(
    ("account", "kind", "chain", "payload"),
    [
        (OTHER.account, "tx", CHAIN, b"payload"),
        (KEY.account, "vote", CHAIN, b"payload"),
        (KEY.account, "tx", ChainId(b"d" * 32), b"payload"),
        (KEY.account, "tx", CHAIN, b"payloae"),
    ],
)
def test_signature_serves_for_nothing_else(account: AccountId, kind: str, chain: ChainId, payload: bytes) -> None:
    with pytest.raises(Rejection) as refused:
        verify(account, kind, chain, payload, KEY.sign("tx", CHAIN, b"payload"))
    assert refused.value.reason is Reason.BAD_SIGNATURE


def test_every_bit_of_a_signature_and_of_the_key_matters() -> None:
    signature = KEY.sign("tx", CHAIN, b"payload")
    message = signed_message("tx", CHAIN, b"payload")
    assert not any(is_signed(KEY.account, message, Signature(flipped(signature, bit))) for bit in range(512))
    assert not any(is_signed(AccountId(flipped(KEY.account, bit)), message, signature) for bit in range(256))


@pytest.mark.parametrize(("key_size", "signature_size"), [(0, 64), (31, 64), (33, 64), (32, 0), (32, 63), (32, 65)])
def test_keys_and_signatures_of_other_sizes_are_bad_signatures(key_size: int, signature_size: int) -> None:
    assert not is_signed(AccountId(bytes(key_size)), b"", Signature(bytes(signature_size)))


def test_secret_key_is_not_printed() -> None:
    assert repr(KEY) == "SecretKey()"


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_seed_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"32 bytes, not {size}"):
        SecretKey.from_seed(bytes(size))


def test_account_is_the_public_key_of_rfc_8032() -> None:
    """RFC 8032, section 7.1, test 1."""
    key = SecretKey.from_seed(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.account.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def test_salt_is_found_again_and_depends_on_key_purpose_and_parts() -> None:
    salt = KEY.derive_salt("commit", b"slot")
    assert salt == SecretKey.from_seed(bytes(range(32))).derive_salt("commit", b"slot")
    others = {OTHER.derive_salt("commit", b"slot"), KEY.derive_salt("probe", b"slot"), KEY.derive_salt("commit", b"s")}
    assert len(others | {salt}) == 4


def test_admission_covers_the_new_account() -> None:
    assert admission_payload(KEY.account) == encode((KEY.account,))


def test_account_text_comes_back() -> None:
    text = account_text(KEY.account)
    assert len(text) == 72
    assert parse_account(text) == KEY.account
    assert parse_account(f" {text.upper()}\n") == KEY.account


@pytest.mark.parametrize("position", [0, 30, 63, 64, 71])
def test_one_mistyped_digit_of_an_account_is_noticed(position: int) -> None:
    text = account_text(KEY.account)
    mistyped = text[:position] + ("0" if text[position] != "0" else "1") + text[position + 1 :]
    with pytest.raises(ValueError, match="wrong checksum"):
        parse_account(mistyped)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "has 0 hex digits, not 72"),
        (KEY.account.hex(), "has 64 hex digits, not 72"),
        ("zz" * 36, "is not hexadecimal"),
        ("é" * 5000, "is not hexadecimal"),
    ],
)
def test_what_is_no_account_is_refused_in_words(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as refused:
        parse_account(text)
    assert len(str(refused.value)) < 200
