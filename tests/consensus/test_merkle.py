"""Merkle trees against RFC 6962's definition and the vectors of transparency-dev/merkle."""

from hashlib import sha256

import pytest

from bflnode.consensus.merkle import (
    MAX_PROOF_HASHES,
    GrowingRoot,
    inclusion_proof,
    leaf_hash,
    merkle_root,
    proof_of_hashes,
    root_of_hashes,
    verify_inclusion,
)
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.types import Hash

LEAVES = [bytes([number]) * number for number in range(70)]


def defined_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word: recursive, split at the largest power of two below n."""
    if len(leaves) <= 1:
        return sha256(b"".join(b"\0" + leaf for leaf in leaves)).digest()
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return sha256(b"\1" + defined_root(leaves[:split]) + defined_root(leaves[split:])).digest()


def is_included(leaf: Hash, index: int, size: int, proof: list[Hash], root: Hash) -> bool:
    try:
        verify_inclusion(leaf, index, size, proof, root)
    except Rejection:
        return False
    return True


@pytest.mark.parametrize("size", [*range(20), 31, 32, 33, 63, 64, 65, 70])
def test_root_is_the_one_of_the_recursive_definition(size: int) -> None:
    assert merkle_root(LEAVES[:size]) == defined_root(LEAVES[:size])


def test_root_of_hashes_is_the_root_of_the_leaves_they_are_of() -> None:
    assert root_of_hashes([leaf_hash(leaf) for leaf in LEAVES]) == merkle_root(LEAVES)


def test_a_leaf_that_looks_like_an_inner_node_gives_another_root() -> None:
    inner = leaf_hash(b"a") + leaf_hash(b"b")
    assert merkle_root([inner]) != merkle_root([b"a", b"b"])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 64, 70])
def test_every_leaf_has_a_proof_that_holds_at_its_own_place_only(size: int) -> None:
    leaves = LEAVES[:size]
    root = merkle_root(leaves)
    for index in range(size):
        proof = inclusion_proof(leaves, index)
        assert [
            position
            for position in range(size)
            if is_included(leaf_hash(leaves[index]), position, size, list(proof), root)
        ] == [index]


def test_proof_of_hashes_is_the_proof_of_the_leaves() -> None:
    hashes = [leaf_hash(leaf) for leaf in LEAVES]
    assert [proof_of_hashes(hashes, i) for i in range(70)] == [inclusion_proof(LEAVES, i) for i in range(70)]


def test_a_changed_proof_leads_to_another_root() -> None:
    proof = list(inclusion_proof(LEAVES, 5))
    proof[2] = Hash(bytes(32))
    with pytest.raises(Rejection) as refused:
        verify_inclusion(leaf_hash(LEAVES[5]), 5, len(LEAVES), proof, merkle_root(LEAVES))
    assert refused.value.reason is Reason.WRONG_ROOT


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0), (0, -1)])
def test_an_index_outside_the_tree_is_rejected(index: int, size: int) -> None:
    with pytest.raises(Rejection) as refused:
        verify_inclusion(leaf_hash(b""), index, size, (), merkle_root([b""]))
    assert refused.value.reason is Reason.MALFORMED


def test_an_endless_proof_is_rejected_before_it_is_hashed() -> None:
    proof = [Hash(bytes(32))] * (MAX_PROOF_HASHES + 1)
    with pytest.raises(Rejection, match="proof_hashes=65"):
        verify_inclusion(leaf_hash(b""), 0, 2**200, proof, merkle_root([b""]))


def test_the_root_of_leaves_that_are_not_kept_is_that_of_all_of_them() -> None:
    growing, leaves = GrowingRoot(), []
    for number in range(40):
        assert growing.root() == root_of_hashes(leaves)
        leaves.append(leaf_hash(bytes([number])))
        growing.add(leaves[-1])
