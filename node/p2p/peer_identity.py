"""A node's id in the network, from its key: without loading the network, which takes a second."""

import base58
from nacl.signing import SigningKey

IDENTITY_PREFIX = bytes.fromhex("002408011220")
"""An identity multihash (00) of 36 bytes (24): the protobuf of an Ed25519 public key (08 01) of 32 bytes (12 20)."""


def peer_id_text(seed: bytes) -> str:
    """The libp2p peer id of an Ed25519 key: its public key itself, in base58."""
    public = bytes(SigningKey(seed).verify_key)
    text: str = base58.b58encode(IDENTITY_PREFIX + public).decode("ascii")
    return text
