"""State proofs: each shows what it should, and a dishonest prover has no way to show anything else."""

from dataclasses import replace

import pytest

from bflnode.consensus.encoding import encode
from bflnode.consensus.merkle import MAX_PROOF_HASHES, inclusion_proof
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.state import StateTree, bucket_of
from bflnode.consensus.state_proof import (
    MAX_KEY_BYTES,
    MAX_PROOF_BYTES,
    MAX_VALUE_BYTES,
    EntryProof,
    StateProof,
    prove,
    verify_proof,
)
from bflnode.consensus.types import Hash

BUCKET = 7
ALL_KEYS = [key for number in range(6000) if bucket_of(key := b"key %05d" % number) == BUCKET]
KEYS = ALL_KEYS[1:14:2]
"""Keys of one bucket that are in the state; every other one of the bucket is not."""

TREE = StateTree([(key, b"value of " + key) for key in KEYS])
PRESENT = KEYS[3]
FIRST, BETWEEN, LAST = ALL_KEYS[0], ALL_KEYS[6], ALL_KEYS[14]
ELSEWHERE = next(b"x%d" % number for number in range(1000) if bucket_of(b"x%d" % number) != BUCKET)


def entry(index: int) -> EntryProof:
    """An honest proof of one entry of the bucket."""
    leaves = [encode(each) for each in TREE.bucket_entries(BUCKET)]
    return EntryProof(*TREE.bucket_entries(BUCKET)[index], index, inclusion_proof(leaves, index))


def refusal(key: bytes, proof: StateProof, root: Hash = TREE.root) -> Reason:
    with pytest.raises(Rejection) as refused:
        verify_proof(root, key, proof)
    return refused.value.reason


@pytest.mark.parametrize("key", KEYS)
def test_value_of_a_key_is_proved_after_a_trip_through_bytes(key: bytes) -> None:
    proof = StateProof.from_bytes(prove(TREE, key).to_bytes(), max_bytes=MAX_PROOF_BYTES)
    assert verify_proof(TREE.root, key, proof) == b"value of " + key


@pytest.mark.parametrize(("key", "entries"), [(FIRST, 1), (BETWEEN, 2), (LAST, 1), (ELSEWHERE, 0)])
def test_absence_is_proved_by_the_neighbours(key: bytes, entries: int) -> None:
    proof = prove(TREE, key)
    assert len(proof.entries) == entries
    assert verify_proof(TREE.root, key, proof) is None


@pytest.mark.parametrize("count", range(8))
def test_every_key_is_proved_in_buckets_of_any_size(count: int) -> None:
    tree = StateTree([(key, b"v") for key in KEYS[:count]])
    for key in ALL_KEYS[:16]:
        assert verify_proof(tree.root, key, prove(tree, key)) == (b"v" if key in KEYS[:count] else None)


@pytest.mark.parametrize("key", [PRESENT, FIRST, BETWEEN, LAST, ELSEWHERE])
def test_proof_holds_for_its_own_state_only(key: bytes) -> None:
    assert refusal(key, prove(TREE, key), StateTree([(b"a", b"b")]).root) is Reason.WRONG_ROOT


def test_another_value_is_rejected() -> None:
    proof = prove(TREE, PRESENT)
    forged = replace(proof, entries=(replace(proof.entries[0], value=b"more money"),))
    assert refusal(PRESENT, forged) is Reason.WRONG_ROOT


def test_proof_of_another_key_is_rejected() -> None:
    assert refusal(KEYS[4], prove(TREE, PRESENT)) is Reason.MALFORMED


def test_key_cannot_be_shown_absent_by_another_bucket() -> None:
    assert refusal(PRESENT, prove(TREE, ELSEWHERE)) is Reason.WRONG_ROOT


@pytest.mark.parametrize("size", range(12))
@pytest.mark.parametrize(
    "entries",
    [(), (0,), (2,), (4,), (6,), (2, 4), (4, 2), (0, 6), (4, 5), (2, 3), (3, 4)],
    ids=str,
)
def test_present_key_cannot_be_shown_absent_whatever_size_and_places_are_claimed(
    entries: tuple[int, ...], size: int
) -> None:
    """The key is number 3; honest paths, any claim about where their entries are and how many there are."""
    proof = prove(TREE, PRESENT)
    for shift in range(-6, 7):
        claims = tuple(replace(entry(index), index=index + shift) for index in entries)
        forged = [replace(proof, size=size, entries=claims)]
        if len(claims) == 2:
            adjacent = (claims[0], replace(claims[1], index=claims[0].index + 1))
            forged.append(replace(proof, size=size, entries=adjacent))
        for each in forged:
            assert refusal(PRESENT, each) in (Reason.MALFORMED, Reason.WRONG_ROOT)


def test_two_entries_that_are_not_neighbours_show_nothing() -> None:
    proof = prove(TREE, PRESENT)
    assert refusal(PRESENT, replace(proof, entries=(entry(2), entry(4)))) is Reason.MALFORMED


def test_bucket_that_only_claims_to_be_empty_is_rejected() -> None:
    assert refusal(PRESENT, replace(prove(TREE, PRESENT), size=0, entries=())) is Reason.MALFORMED


def test_largest_proof_fits_its_limit() -> None:
    path = (Hash(bytes(32)),) * MAX_PROOF_HASHES
    largest = EntryProof(bytes(MAX_KEY_BYTES), bytes(MAX_VALUE_BYTES), 2**53, path)
    proof = StateProof(2**53, (largest, largest), path[:8], Hash(bytes(32)))
    assert StateProof.from_bytes(proof.to_bytes(), max_bytes=MAX_PROOF_BYTES) == proof
