"""Batches of blocks: asked for once, used in order, bounded, and taken over from whoever is late or lies."""

from bflnode.node.p2p.messages import BLOCKS_PER_REQUEST
from bflnode.node.p2p.network import PeerId
from bflnode.node.sync.block_batches import LATE_S, MAX_BATCHES, Batches, NextBlock

ONE, TWO = PeerId("one"), PeerId("two")
HIGHEST = 10_000


def blocks_of(span: range) -> list[bytes]:
    return [str(height).encode() for height in span]


def claimed(batches: Batches, peer: PeerId, highest: int = HIGHEST, now_s: float = 0.0) -> range:
    span = batches.claim(peer, highest, now_s)
    assert span is not None
    return span


def test_batches_are_asked_for_in_order_and_used_in_order() -> None:
    batches = Batches(5)
    first, second = claimed(batches, ONE), claimed(batches, TWO)
    assert (first, second) == (range(5, 37), range(37, 69))
    batches.put(second, TWO, blocks_of(second))
    assert batches.take(5) is None
    batches.put(first, ONE, blocks_of(first))
    taken = [batches.take(height) for height in range(5, 69)]
    assert [block.height for block in taken if block is not None and block.is_last] == [36, 68]
    assert taken == [NextBlock(height, str(height).encode(), ONE if height < 37 else TWO) for height in range(5, 69)]


def test_no_more_is_asked_for_than_memory_is_meant_for() -> None:
    batches = Batches(1)
    spans = [claimed(batches, ONE) for _ in range(MAX_BATCHES)]
    assert batches.claim(TWO, HIGHEST, 0.0) is None
    for span in spans[1:]:
        batches.put(span, ONE, blocks_of(span))
    assert batches.claim(TWO, HIGHEST, 0.0) is None
    batches.put(spans[0], ONE, blocks_of(spans[0]))
    for height in spans[0]:
        batches.take(height)
    assert claimed(batches, TWO).start == spans[-1].stop


def test_nobody_is_asked_for_what_it_does_not_claim_to_have() -> None:
    batches = Batches(1)
    assert claimed(batches, ONE, 10) == range(1, 11)
    assert batches.claim(ONE, 10, 0.0) is None
    assert not batches.has_more(0)
    assert batches.has_more(11)


def test_the_rest_of_a_short_answer_is_asked_for_again() -> None:
    batches = Batches(1)
    span = claimed(batches, ONE)
    batches.put(span, ONE, blocks_of(range(1, 4)))
    assert claimed(batches, TWO) == range(4, 33)


def test_more_than_was_asked_for_is_not_kept() -> None:
    batches = Batches(1)
    span = claimed(batches, ONE, 3)
    batches.put(span, ONE, blocks_of(range(1, 100)))
    assert [batches.take(height) is not None for height in range(1, 6)] == [True, True, True, False, False]


def test_only_the_batch_that_all_wait_for_is_asked_of_others_and_only_while_it_is_late() -> None:
    batches = Batches(1)
    first, second = claimed(batches, ONE, 64), claimed(batches, ONE, 64)
    assert batches.claim(TWO, 64, LATE_S / 2) is None
    assert batches.claim(TWO, 0, LATE_S) is None
    assert batches.claim(ONE, 64, LATE_S) is None
    assert claimed(batches, TWO, 64, LATE_S) == first
    assert batches.claim(PeerId("three"), 64, LATE_S) is None
    assert claimed(batches, PeerId("three"), 10, 2 * LATE_S) == first
    assert batches.put(first, TWO, blocks_of(first)) == (ONE, PeerId("three"))
    assert batches.put(first, ONE, [b"late"] * len(first)) == ()
    assert batches.take(1) == NextBlock(1, b"1", TWO)
    assert batches.put(second, ONE, blocks_of(second)) == ()


def test_what_a_liar_sent_and_was_asked_for_is_asked_of_others() -> None:
    batches = Batches(1)
    first, second = claimed(batches, ONE), claimed(batches, ONE)
    batches.put(first, ONE, blocks_of(first))
    assert batches.take(1) is not None
    batches.drop(ONE)
    batches.want(1)
    spans = [claimed(batches, TWO) for _ in range(3)]
    assert sorted(spans, key=lambda span: span.start) == [range(1, 2), range(2, first.stop), second]
    assert batches.take(1) is None


def test_a_chain_that_grows_by_itself_skips_what_it_has() -> None:
    batches = Batches(1)
    first, second = claimed(batches, ONE), claimed(batches, TWO)
    batches.put(first, ONE, blocks_of(first))
    assert batches.take(20) == NextBlock(20, b"20", ONE)
    assert batches.take(60) is None
    batches.put(second, TWO, blocks_of(second))
    assert batches.take(60) == NextBlock(60, b"60", TWO)
    assert claimed(batches, ONE).start == 1 + 2 * BLOCKS_PER_REQUEST
