"""Whose word counts: tries, pauses, and what becomes of many liars at once."""

from bflnode.consensus.types import AccountId
from bflnode.node.p2p.network import PeerId
from bflnode.node.p2p.peers import Peer
from bflnode.node.sync import claims as limits
from bflnode.node.sync.claims import Claims

LIAR, HONEST = PeerId("liar"), PeerId("honest")


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def peer(name: PeerId, height: int = 7) -> Peer:
    return Peer(name, AccountId(bytes(32)), "1", height, ())


def is_believed(claims: Claims, name: PeerId) -> bool:
    return claims.believed([peer(name)]) == [peer(name)]


def test_a_word_counts_until_three_tries_in_a_row_gave_nothing() -> None:
    claims = Claims(Clock())
    assert [claims.fail(LIAR, 50) for _ in range(2)] == [0, 0]
    assert is_believed(claims, LIAR)
    assert claims.may_be_asked(LIAR)
    assert claims.has_failed(LIAR)
    assert claims.fail(LIAR, 50) == 1
    assert not is_believed(claims, LIAR)
    assert not claims.may_be_asked(LIAR)
    assert is_believed(claims, HONEST)


def test_whose_word_does_not_count_is_asked_again_after_a_pause_that_doubles() -> None:
    clock = Clock()
    claims = Claims(clock)
    for _ in range(limits.MAX_FAILURES - 1):
        claims.fail(LIAR, 50)
    pauses = []
    for doubts in range(1, 9):
        assert claims.fail(LIAR, 50) == doubts
        pauses.append(claims.paused_until_s(LIAR) - clock())
        clock.now_s += pauses[-1]
        assert claims.may_be_asked(LIAR)
        assert not is_believed(claims, LIAR)
    assert pauses == [30, 60, 120, 240, 480, 900, 900, 900]


def test_a_block_makes_a_word_count_again_but_the_next_pause_is_not_the_first() -> None:
    clock = Clock()
    claims = Claims(clock)
    for _ in range(limits.MAX_FAILURES):
        claims.fail(LIAR, 50)
    claims.give(LIAR)
    assert is_believed(claims, LIAR)
    assert [claims.fail(LIAR, 50) for _ in range(limits.MAX_FAILURES)] == [0, 0, 2]
    assert claims.paused_until_s(LIAR) == clock() + 60


def test_a_claim_that_the_chain_has_reached_was_none() -> None:
    claims = Claims(Clock())
    for _ in range(limits.MAX_FAILURES):
        claims.fail(HONEST, 50)
        claims.fail(LIAR, 2**50)
    claims.reach(49)
    assert not is_believed(claims, HONEST)
    claims.reach(50)
    assert is_believed(claims, HONEST)
    assert claims.may_be_asked(HONEST)
    assert not claims.has_failed(HONEST)
    assert not is_believed(claims, LIAR)


def test_many_liars_have_no_more_tries_than_a_few_and_who_gave_blocks_still_counts() -> None:
    clock = Clock()
    claims = Claims(clock)
    claims.give(HONEST)
    for number in range(limits.MAX_UNBACKED):
        assert is_believed(claims, PeerId("newcomer"))
        claims.fail(PeerId(f"liar {number}"), 50)
    assert not is_believed(claims, PeerId("newcomer"))
    assert claims.may_be_asked(PeerId("newcomer"))
    assert is_believed(claims, HONEST)
    claims.give(PeerId("newcomer"))
    assert is_believed(claims, PeerId("newcomer"))
    clock.now_s += limits.MEMORY_S
    assert is_believed(claims, PeerId("another"))


def test_what_is_remembered_is_bounded() -> None:
    claims = Claims(Clock())
    for number in range(limits.MAX_RECORDS + 5):
        claims.fail(PeerId(f"liar {number}"), 50)
    assert len(claims._records) == limits.MAX_RECORDS
    assert not claims.has_failed(PeerId("liar 4"))
    assert claims.has_failed(PeerId("liar 5"))
