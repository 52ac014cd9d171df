"""Merkle trees against the vectors of transparency-dev/merkle for RFC 6962.

Inclusion alone: the protocol proves that something is in a tree, never that one tree grew into another (a block's id
binds its parent). So the vectors for consistency, and those for subtrees of draft-davidben-tls-merkle-tree-certs, are
passed over here by name.
"""

import json
from base64 import b64decode
from dataclasses import dataclass
from typing import Annotated

from bflnode.consensus.merkle import verify_inclusion
from bflnode.consensus.records import Record
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.types import AtMost, Hash
from tests.conformance.vectors import vector_path

NOT_USED = ("consistency", "subtreeconsistency", "subtreeinclusion")
"""Kinds of proofs that nothing in this protocol has."""


def test_every_published_kind_of_proof_is_tested_or_named_as_not_used() -> None:
    kinds = {path.name for path in vector_path("merkle_rfc6962").iterdir() if path.is_dir()}
    assert kinds == {"inclusion", *NOT_USED}


@dataclass(frozen=True, slots=True)
class Claim(Record):
    """An inclusion proof as a peer would send it: the codec refuses hashes that are not 32 bytes."""

    leaf: Hash
    root: Hash
    proof: Annotated[tuple[Hash, ...], AtMost(64)]


def test_published_inclusion_vectors_get_the_published_verdicts() -> None:
    wrong = []
    names = sorted(vector_path("merkle_rfc6962").glob("inclusion/**/*.json"))
    for name in names:
        vector = json.loads(name.read_text())
        proof = tuple(b64decode(sibling) for sibling in vector["proof"] or [])
        try:
            claim = Claim.from_value((b64decode(vector["leafHash"]), b64decode(vector["root"]), proof))
            verify_inclusion(claim.leaf, vector["leafIdx"], vector["treeSize"], claim.proof, claim.root)
            is_refused = False
        except Rejection:
            is_refused = True
        if is_refused != vector["wantErr"]:
            wrong.append(name.name)
    assert (len(names), wrong) == (98, [])
