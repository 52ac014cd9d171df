"""Attacks on claims, on what agreement wants, on the comparison of light chains: each test is an attack that fails."""

from random import Random

from bflnode.consensus.agreement import Decide, ProposalReceived, VoteReceived
from bflnode.consensus.block import VoteKind
from bflnode.consensus.evidence import verify_evidence
from bflnode.consensus.forgery import find_forgeries
from bflnode.consensus.light import LightChain
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.types import BlockId
from bflnode.node.p2p.network import PeerId
from bflnode.node.sync import claims as limits
from bflnode.node.sync.claims import Claims
from tests.consensus.machines import block_of, proposal_of, started, vote_of
from tests.consensus.test_forgery import CHAIN_ID, chain_of, committed, forged_header, known
from tests.consensus.test_light import KEYS
from tests.node.sync.test_claims import LIAR, Clock, is_believed, peer


def test_who_claims_the_next_block_only_and_never_gives_one_is_not_believed_for_ever() -> None:
    """Each block made its claim true and its record clean: it kept a node unready for as long as it liked."""
    claims = Claims(Clock())
    for height in range(50, 50 + 2 * limits.MAX_FAILURES + 1):
        claims.fail(LIAR, height)
        claims.reach(height)
    assert not is_believed(claims, LIAR)
    claims.give(LIAR)
    assert is_believed(claims, LIAR)


def test_failures_of_many_do_not_silence_who_gives_blocks() -> None:
    claims = Claims(Clock())
    claims.give(PeerId("honest"))
    for number in range(limits.MAX_RECORDS - 1):
        claims.fail(PeerId(f"liar {number}"), 2**50)
    assert claims.believed([peer(PeerId("honest")), peer(LIAR)]) == [peer(PeerId("honest"))]


def test_damaged_light_chains_frame_nobody_and_end_in_words() -> None:
    """Whatever is changed in a chain that two validators forged: evidence is against these two, or there is none."""
    liars = {KEYS[0].account, KEYS[2].account}
    encoded, random = chain_of(committed(forged_header(), (0, 2))).to_bytes(), Random(7)
    seen = 0
    for _ in range(400):
        damaged = bytearray(encoded)
        for _ in range(random.randint(1, 3)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        try:
            found = find_forgeries(CHAIN_ID, LightChain.from_bytes(bytes(damaged), max_bytes=len(encoded)), known)
        except Rejection:
            continue
        for evidence in (entry for forgery in found for entry in forgery.evidence):
            verify_evidence(CHAIN_ID, evidence)
            assert evidence.offender in liars
            seen += 1
    assert seen


def test_an_equivocators_junk_in_all_slots_and_rounds_hides_no_vote_that_is_needed() -> None:
    machine, block = started(None), block_of(0)
    for round_ in range(12):
        for kind in VoteKind:
            for number in range(3):
                junk = vote_of(3, kind, round_, BlockId(bytes([number + 1]) * 32))
                if machine.wants(junk):
                    machine.step(VoteReceived(junk))
    assert machine.round == 0
    message = proposal_of(0, block)
    assert machine.wants(message)
    machine.step(ProposalReceived(message, is_valid=True))
    effects = ()
    for number in range(3):
        needed = vote_of(number, VoteKind.PRECOMMIT, 0, block.id)
        assert machine.wants(needed)
        effects = machine.step(VoteReceived(needed))
    assert any(isinstance(effect, Decide) and effect.block == block for effect in effects)
