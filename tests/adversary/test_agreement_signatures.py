"""A validator that signs one vote twice, with another secret number: both signatures are good, neither vote is new."""

from dataclasses import replace
from hashlib import sha512

import pytest
from nacl import bindings

from bflnode.consensus.block import Vote, vote_payload
from bflnode.consensus.evidence import make_evidence, verify_evidence
from bflnode.consensus.keys import SecretKey, signed_message
from bflnode.consensus.ledger import validate_block, verify_commit
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.tables import current_validators
from bflnode.consensus.types import ChainId, Signature
from bflnode.consensus.votes import VoteBook, votes_in
from tests.consensus.harness import Harness


def signed_again(key: SecretKey, chain_id: ChainId, vote: Vote) -> Vote:
    """The same vote with a signature that libsodium would not make, yet takes: its secret number isn't derived."""
    message = signed_message("vote", chain_id, vote_payload(vote.kind, vote.height, vote.round, vote.block_id))
    digest = bytearray(sha512(key.seed).digest()[:32])
    digest[0] &= 248
    digest[31] = digest[31] & 127 | 64
    secret = bindings.crypto_core_ed25519_scalar_reduce(bytes(digest) + bytes(32))
    number = bindings.crypto_core_ed25519_scalar_reduce(sha512(b"another secret number").digest())
    point = bindings.crypto_scalarmult_ed25519_base_noclamp(number)
    challenge = bindings.crypto_core_ed25519_scalar_reduce(sha512(point + key.account + message).digest())
    product = bindings.crypto_core_ed25519_scalar_mul(challenge, secret)
    again = replace(vote, signature=Signature(point + bindings.crypto_core_ed25519_scalar_add(number, product)))
    again.verify_signature(chain_id)
    assert again != vote
    return again


def test_two_signatures_of_one_vote_count_once_prove_nothing_and_make_one_commit_as_good_as_the_other() -> None:
    harness = Harness()
    harness.register_all()
    header, commit = harness.header, harness.last_commit
    assert header is not None
    validators = current_validators(harness.tree)
    votes = votes_in(commit, validators)
    again = signed_again(harness.keys[0], harness.genesis.chain_id, votes[0])

    book = VoteBook(validators)
    assert [book.add(vote).is_new for vote in (votes[0], again)] == [True, False]
    assert book.add(again).contradicted is None
    with pytest.raises(Rejection) as caught:
        verify_evidence(harness.genesis.chain_id, make_evidence(votes[0], again))
    assert caught.value.reason is Reason.WRONG_EVIDENCE

    entries = (replace(commit.signatures[0], signature=again.signature), *commit.signatures[1:])
    harness.last_commit = replace(commit, signatures=entries)
    block, _ = harness.build(harness.context(), ())
    validate_block(harness.genesis, harness.tree, header, block)
    for doubled in ((entries[0], *commit.signatures), (*commit.signatures, entries[0])):
        with pytest.raises(Rejection) as caught:
            verify_commit(harness.genesis.chain_id, validators, replace(commit, signatures=doubled))
        assert caught.value.reason is Reason.WRONG_COMMIT
