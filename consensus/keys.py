"""Ed25519 account keys: signing, verifying, and how people write an account down.

PyNaCl only, for signing and verifying: implementations of Ed25519 disagree on edge cases, and a network must not.
Key files and their permissions belong to `node`.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from .encoding import encode
from .hashing import DOMAIN, tagged_hash
from .rejection import Reason, Rejection
from .types import AccountId, ChainId, Hash, Signature

CHECKSUM_BYTES = 4
"""Bytes of checksum behind an account in text: a typo passes once in four thousand million times."""

VERDICTS_KEPT = 16_384
"""Verdicts on signatures that are remembered: those of some blocks. A vote is looked at on arrival and in the next
block's commit, a transaction on arrival, when a block is built and when it is validated."""

MAX_REMEMBERED_BYTES = 1024
"""Longest message whose verdict is remembered: votes and nearly all transactions are shorter, 16 MB in all."""


def signed_message(kind: str, chain_id: ChainId, payload: bytes) -> bytes:
    """The bytes that are signed: domain, kind of message and chain come first, so no signature serves twice.

    `kind` is one of tx, proposal, vote, hello, admit.
    """
    return DOMAIN + kind.encode("ascii") + b"\0" + chain_id + payload


def verify(account: AccountId, kind: str, chain_id: ChainId, payload: bytes, signature: Signature) -> None:
    """Check a signature.

    Raises:
        Rejection: BAD_SIGNATURE.
    """
    if not is_signed(account, signed_message(kind, chain_id, payload), signature):
        raise Rejection(Reason.BAD_SIGNATURE, signer=account, kind=kind)


def is_signed(account: AccountId, message: bytes, signature: Signature) -> bool:
    """Whether the signature of these very bytes is good, by libsodium's rules.

    They are stricter than RFC 8032: s must be below the group order, and neither the key nor R may be of small order
    or encoded in a second way. The equation is the one without cofactor.
    """
    judge = _judge_and_remember if len(message) <= MAX_REMEMBERED_BYTES else _judge
    return judge(account, message, signature)


def _judge(account: AccountId, message: bytes, signature: Signature) -> bool:
    try:
        VerifyKey(account).verify(message, signature)
    except (BadSignatureError, ValueError):
        return False
    return True


_judge_and_remember = lru_cache(maxsize=VERDICTS_KEPT)(_judge)


@dataclass(frozen=True, slots=True)
class SecretKey:
    """An account's Ed25519 key pair. Never printed: the seed is left out of the representation.

    Attributes:
        seed: 32 secret bytes.
    """

    seed: bytes = field(repr=False)

    @property
    def account(self) -> AccountId:
        """The public key, which is the account's id."""
        return AccountId(bytes(SigningKey(self.seed).verify_key))

    def sign(self, kind: str, chain_id: ChainId, payload: bytes) -> Signature:
        """Sign canonical bytes of one kind of message for one chain."""
        return Signature(SigningKey(self.seed).sign(signed_message(kind, chain_id, payload)).signature)

    def derive_salt(self, purpose: str, *parts: bytes) -> Hash:
        """A salt that nobody else can guess and that a restarted node finds again without storing it."""
        return tagged_hash(f"salt-{purpose}", self.seed, *parts)

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """Make a key from 32 bytes.

        Raises:
            ValueError: not 32 bytes.
        """
        if len(seed) != 32:
            raise ValueError(f"an Ed25519 seed has 32 bytes, not {len(seed)}")
        return cls(seed)


def admission_payload(account: AccountId) -> bytes:
    """What the admission key signs (kind "admit") to let an account in."""
    return encode((account,))


def account_text(account: AccountId) -> str:
    """An account as people see it: 64 hex digits of the key and 8 of a checksum."""
    return (account + _checksum(account)).hex()


def parse_account(text: str) -> AccountId:
    """Read an account from its text; space between digits doesn't matter.

    Raises:
        ValueError: with what is wrong, in words for a person.
    """
    shown = repr(text if len(text) <= 80 else text[:77] + "...")
    try:
        raw = bytes.fromhex(text)
    except ValueError as error:
        raise ValueError(f"account {shown} is not hexadecimal") from error
    if len(raw) != 32 + CHECKSUM_BYTES:
        raise ValueError(f"account {shown} has {2 * len(raw)} hex digits, not {2 * (32 + CHECKSUM_BYTES)}")
    account = AccountId(raw[:32])
    if raw[32:] != _checksum(account):
        raise ValueError(f"account {shown} has a wrong checksum: one of its characters is mistyped")
    return account


def _checksum(account: AccountId) -> bytes:
    return tagged_hash("account-text", account)[:CHECKSUM_BYTES]
