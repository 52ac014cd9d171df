"""Hashes with a domain: what is hashed as a block can never be mistaken for what is hashed as a transaction."""

from hashlib import sha256

from .types import Hash

DOMAIN = b"bfl1:"
"""Prefix of everything this protocol, in this version, hashes or signs."""


def tagged_hash(tag: str, *parts: bytes) -> Hash:
    """SHA-256 over the domain, the tag, a zero byte and the concatenated parts.

    Callers pass one canonical encoding, or parts of fixed size: the parts are not delimited.
    """
    digest = sha256(DOMAIN + tag.encode("ascii") + b"\0")
    for part in parts:
        digest.update(part)
    return Hash(digest.digest())
