"""RFC 6962 Merkle trees (being completed)."""

from hashlib import sha256

from .types import Hash


def merkle_root(leaves: list[bytes]) -> Hash:
    """Root over the leaves' bytes (RFC 6962, section 2.1)."""
    if not leaves:
        return Hash(sha256().digest())
    level = [sha256(b"\0" + leaf).digest() for leaf in leaves]
    while len(level) > 1:
        paired = [sha256(b"\1" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(level) - len(level) % 2 :]
    return Hash(level[0])
