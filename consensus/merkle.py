"""RFC 6962 Merkle trees: roots, and proofs that a leaf is in a tree.

    leaf node = SHA-256(0x00 || leaf)        inner node = SHA-256(0x01 || left || right)

The left subtree of a tree of n leaves holds the largest power of two below n. The prefixes keep a leaf from being
passed off as an inner node. Block transactions, the state and blobs all use this one tree; what a leaf is, is said
there.
"""

from collections.abc import Sequence
from hashlib import sha256

from .rejection import Reason, Rejection
from .types import Hash

MAX_PROOF_HASHES = 64
"""Longest inclusion proof: a tree of 2**64 leaves, more than any of ours can have."""


def leaf_hash(leaf: bytes) -> Hash:
    """Hash of one leaf's bytes."""
    return Hash(sha256(b"\0" + leaf).digest())


def merkle_root(leaves: Sequence[bytes]) -> Hash:
    """Root over the leaves' bytes (RFC 6962, section 2.1)."""
    return root_of_hashes([leaf_hash(leaf) for leaf in leaves])


def root_of_hashes(leaf_hashes: Sequence[Hash]) -> Hash:
    """Root of the tree whose leaves have these hashes; SHA-256 of nothing for an empty tree."""
    if not leaf_hashes:
        return Hash(sha256().digest())
    level = leaf_hashes
    while len(level) > 1:
        level = _parents(level)
    return level[0]


class GrowingRoot:
    """The root of leaves that come one after the other and aren't kept: a hash for each bit of their number is."""

    def __init__(self) -> None:
        self._full: list[tuple[int, Hash]] = []

    def add(self, leaf: Hash) -> None:
        """Add the hash of the next leaf."""
        size, node = 1, leaf
        while self._full and self._full[-1][0] == size:
            node = _parent(self._full.pop()[1], node)
            size *= 2
        self._full.append((size, node))

    def root(self) -> Hash:
        """What `root_of_hashes` gives for all leaves so far."""
        if not self._full:
            return root_of_hashes(())
        node = self._full[-1][1]
        for _, left in reversed(self._full[:-1]):
            node = _parent(left, node)
        return node


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[Hash, ...]:
    """The siblings on the way from leaf `index` to the root, lowest first (RFC 6962, section 2.1.1)."""
    return proof_of_hashes([leaf_hash(leaf) for leaf in leaves], index)


def proof_of_hashes(leaf_hashes: Sequence[Hash], index: int) -> tuple[Hash, ...]:
    """The inclusion proof of leaf `index` in the tree whose leaves have these hashes."""
    assert 0 <= index < len(leaf_hashes), f"no leaf {index} in a tree of {len(leaf_hashes)}"
    proof = []
    level = leaf_hashes
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            proof.append(level[sibling])
        level = _parents(level)
        index //= 2
    return tuple(proof)


def verify_inclusion(leaf: Hash, index: int, size: int, proof: Sequence[Hash], root: Hash) -> None:
    """Check that the leaf with hash `leaf` is number `index` of the `size` leaves under `root`.

    The walk of RFC 9162, section 2.1.3.2.

    Raises:
        Rejection: MALFORMED if index, size and length of the proof don't fit together, WRONG_ROOT if the proof leads
            to another root.
    """
    if not 0 <= index < size:
        raise Rejection(Reason.MALFORMED, index=index, leaves=size)
    if len(proof) > MAX_PROOF_HASHES:
        raise Rejection(Reason.MALFORMED, proof_hashes=len(proof), limit=MAX_PROOF_HASHES)
    node: bytes = leaf
    position, last = index, size - 1
    for sibling in proof:
        if last == 0:
            raise Rejection(Reason.MALFORMED, fault="proof too long", index=index, leaves=size)
        if position % 2 or position == last:
            node = _parent(sibling, node)
            while position and position % 2 == 0:
                position //= 2
                last //= 2
        else:
            node = _parent(node, sibling)
        position //= 2
        last //= 2
    if last != 0:
        raise Rejection(Reason.MALFORMED, fault="proof too short", index=index, leaves=size)
    if node != root:
        raise Rejection(Reason.WRONG_ROOT, computed=node, expected=root)


def _parents(level: Sequence[Hash]) -> list[Hash]:
    """The next level up; a node without sibling moves up as it is."""
    parents = [_parent(level[index], level[index + 1]) for index in range(0, len(level) - 1, 2)]
    if len(level) % 2:
        parents.append(level[-1])
    return parents


def _parent(left: bytes, right: bytes) -> Hash:
    return Hash(sha256(b"\1" + left + right).digest())
