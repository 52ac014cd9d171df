"""Proofs that a key has a value in a state, or none, for someone who has only the state root of a header.

    value    entry in its bucket, bucket in the state: two inclusion proofs
    absence  the entries on either side of the key, next to each other in the key's bucket

The number of entries in a bucket is the prover's claim, and it needs no proof: at every step up the tree the hash
tells left from right, so "first", "last" and "next to each other" hold in the real tree or the root differs.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Annotated

from .merkle import MAX_PROOF_HASHES, leaf_hash, proof_of_hashes, root_of_hashes, verify_inclusion
from .records import Record
from .rejection import Reason, Rejection
from .state import BUCKETS, StateTree, bucket_of, entry_hash
from .types import AtMost, Between, Hash

MAX_KEY_BYTES = 256
"""Longest key in a proof: ours are a prefix and one or two identifiers."""

MAX_VALUE_BYTES = 1024 * 1024
"""Largest value in a proof: no state record comes near it, and a proof stays one message."""

MAX_PROOF_BYTES = 2 * (MAX_VALUE_BYTES + MAX_KEY_BYTES + MAX_PROOF_HASHES * 34) + 4096
"""Largest canonical proof: two entries with their paths."""

BUCKET_PROOF_HASHES = 8
"""Steps from a bucket to the root over the 256."""


@dataclass(frozen=True, slots=True)
class EntryProof(Record):
    """An entry of a bucket and its path to the bucket's root."""

    key: Annotated[bytes, AtMost(MAX_KEY_BYTES)]
    value: Annotated[bytes, AtMost(MAX_VALUE_BYTES)]
    index: Annotated[int, Between(0, 2**53)]
    path: Annotated[tuple[Hash, ...], AtMost(MAX_PROOF_HASHES)]


@dataclass(frozen=True, slots=True)
class StateProof(Record):
    """The entries that show what a key's value is.

    `entries` is the entry of the key itself; or for an absent key its neighbours in the bucket, one if it would be the
    first or last, none if the bucket is empty. `size` is the number of entries in the bucket.
    """

    size: Annotated[int, Between(0, 2**53)]
    entries: Annotated[tuple[EntryProof, ...], AtMost(2)]
    bucket_path: Annotated[tuple[Hash, ...], AtMost(BUCKET_PROOF_HASHES)]
    bucket_root: Hash


def prove(tree: StateTree, key: bytes) -> StateProof:
    """Prove the value of a key, or that it has none."""
    number = bucket_of(key)
    entries = tree.bucket_entries(number)
    hashes = [entry_hash(*entry) for entry in entries]
    position = bisect_left(entries, (key,))
    if position < len(entries) and entries[position][0] == key:
        shown = [position]
    else:
        shown = [index for index in (position - 1, position) if 0 <= index < len(entries)]
    return StateProof(
        size=len(entries),
        entries=tuple(EntryProof(*entries[index], index, proof_of_hashes(hashes, index)) for index in shown),
        bucket_path=proof_of_hashes([leaf_hash(root) for root in tree.bucket_roots], number),
        bucket_root=tree.bucket_roots[number],
    )


def verify_proof(root: Hash, key: bytes, proof: StateProof) -> bytes | None:
    """The value that a key has in the state with this root; None if the proof shows that it has none.

    Raises:
        Rejection: MALFORMED if the proof doesn't speak of the key, WRONG_ROOT if it is not about this state.
    """
    verify_inclusion(leaf_hash(proof.bucket_root), bucket_of(key), BUCKETS, proof.bucket_path, root)
    for entry in proof.entries:
        verify_inclusion(entry_hash(entry.key, entry.value), entry.index, proof.size, entry.path, proof.bucket_root)
    if len(proof.entries) == 1 and proof.entries[0].key == key:
        return proof.entries[0].value
    if not _shows_absence(key, proof):
        raise Rejection(Reason.MALFORMED, fault="the entries do not enclose the key", key=key)
    return None


def _shows_absence(key: bytes, proof: StateProof) -> bool:
    """Whether the entries leave no place for the key; that they are in the bucket has been checked."""
    if not proof.entries:
        return proof.bucket_root == root_of_hashes(())
    first, last = proof.entries[0], proof.entries[-1]
    if len(proof.entries) == 2:
        return first.key < key < last.key and last.index == first.index + 1
    return (key < first.key and first.index == 0) or (first.key < key and first.index == proof.size - 1)
