"""Forged light chains beside the real one: who signed both is punished, whoever didn't can't be framed."""

from dataclasses import replace

from bflnode.consensus.block import Commit, CommitSignature, Header, Validator, VoteKind, sign_vote
from bflnode.consensus.evidence import make_evidence, verify_evidence
from bflnode.consensus.forgery import Forgery, Known, find_forgeries
from bflnode.consensus.light import LightChain, SignedHeader
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.tables import Validators
from bflnode.consensus.transaction import sign_transaction
from bflnode.consensus.types import ChainId, Hash, Signature
from tests.consensus.harness import Harness
from tests.consensus.setups import OUTSIDER
from tests.consensus.test_light import KEY_OF, KEYS, SignedChain, digest

CHAIN = SignedChain([(0, 1, 2, 3)] * 5)
CHAIN_ID = ChainId(CHAIN.genesis.chain_id)
HEIGHT = 3


def known(height: int) -> tuple[SignedHeader, ValidatorSet] | None:
    if height > CHAIN.height:
        return None
    return SignedHeader(CHAIN.header(height), CHAIN.commit(height)), CHAIN.sets[height - 1]


def committed(header: Header, signers: tuple[int, ...], round_: int = 0) -> SignedHeader:
    """A header with the precommits of some of the four."""
    entries = []
    for index, validator in enumerate(CHAIN.sets[0].validators):
        if KEYS.index(KEY_OF[validator.account]) in signers:
            vote = sign_vote(KEY_OF[validator.account], CHAIN_ID, VoteKind.PRECOMMIT, header.height, round_, header.id)
            entries.append(CommitSignature(index, vote.signature))
    return SignedHeader(header, Commit(header.height, round_, header.id, tuple(entries)))


def forged_header() -> Header:
    return replace(CHAIN.header(HEIGHT), state_root=digest("riches"))


def chain_of(*steps: SignedHeader, sets: tuple[ValidatorSet, ...] = ()) -> LightChain:
    records = tuple(Validators(found.validators) for found in sets)
    return LightChain(CHAIN.genesis.to_bytes(), None, steps, records)


def forgery_of(forged: SignedHeader, real: Known = known) -> Forgery:
    (found,) = find_forgeries(CHAIN_ID, chain_of(forged), real)
    return found


def test_who_signed_two_blocks_of_one_round_is_found() -> None:
    found = forgery_of(committed(forged_header(), (0, 2)))
    liars = {KEYS[0].account, KEYS[2].account}
    assert {evidence.offender for evidence in found.evidence} == liars
    for evidence in found.evidence:
        verify_evidence(CHAIN_ID, evidence)
        assert (evidence.height, evidence.round) == (HEIGHT, 0)


def test_a_chain_that_is_the_real_one_proves_nothing() -> None:
    assert find_forgeries(CHAIN_ID, CHAIN.chain(), known) == ()


def test_a_block_that_nobody_here_knows_is_passed_over() -> None:
    assert find_forgeries(CHAIN_ID, chain_of(committed(forged_header(), (0,))), lambda _: None) == ()


def test_blocks_of_different_rounds_prove_nothing_against_anybody() -> None:
    """A correct validator may precommit another block later, so two commits alone don't tell who forgot its lock."""
    assert forgery_of(committed(forged_header(), (0, 1, 2, 3), round_=1)).evidence == ()


def test_false_signatures_frame_nobody() -> None:
    forged = committed(forged_header(), (0, 1))
    bad = tuple(replace(entry, signature=Signature(bytes(64))) for entry in forged.commit.signatures)
    assert forgery_of(replace(forged, commit=replace(forged.commit, signatures=bad))).evidence == ()
    beyond = (CommitSignature(200, Signature(bytes(64))),)
    assert forgery_of(replace(forged, commit=replace(forged.commit, signatures=beyond))).evidence == ()


def test_made_up_validators_beside_a_real_one_hide_it_not() -> None:
    """A forger may put any set into a header that nobody checked: whose key it is decides."""
    own = ValidatorSet((Validator(KEYS[1].account, 1), Validator(OUTSIDER.account, 10**6)))
    header = replace(forged_header(), validators_hash=own.hash)
    entries = []
    for index, validator in enumerate(own.validators):
        key = KEYS[1] if validator.account == KEYS[1].account else OUTSIDER
        vote = sign_vote(key, CHAIN_ID, VoteKind.PRECOMMIT, HEIGHT, 0, header.id)
        entries.append(CommitSignature(index, vote.signature))
    forged = SignedHeader(header, Commit(HEIGHT, 0, header.id, tuple(entries)))
    (found,) = find_forgeries(CHAIN_ID, chain_of(forged, sets=(own,)), known)
    assert [evidence.offender for evidence in found.evidence] == [KEYS[1].account]


def test_evidence_from_a_forged_block_costs_half_the_stake() -> None:
    """From the forged certificate to the punishment: what is found is what the ledger takes."""
    harness = Harness(stakes=(100, 100, 100, 100), specifications=())
    harness.block()
    real, chain_id = harness.header, harness.genesis.chain_id
    forged = replace(real, state_root=Hash(bytes(32)))
    commit = harness.last_commit
    validators = ValidatorSet(harness.genesis.validators)
    index = validators.index_of(harness.account(1))
    assert index is not None
    lie = sign_vote(harness.keys[1], chain_id, VoteKind.PRECOMMIT, 1, commit.round, forged.id)
    light = SignedHeader(forged, Commit(1, commit.round, forged.id, (CommitSignature(index, lie.signature),)))
    chain = LightChain(harness.genesis.to_bytes(), None, (light,), ())
    (found,) = find_forgeries(chain_id, chain, lambda _: (SignedHeader(real, commit), validators))
    (evidence,) = found.evidence
    truth = sign_vote(harness.keys[1], chain_id, VoteKind.PRECOMMIT, 1, commit.round, real.id)
    assert evidence == make_evidence(truth, lie)
    harness.block(sign_transaction(OUTSIDER, chain_id, evidence))
    assert harness.stake(1).bonded == 50
