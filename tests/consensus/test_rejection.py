"""Rejections: what a person reads in a log."""

from bflnode.consensus.rejection import Reason, Rejection


def test_message_names_reason_and_values_with_hashes_shortened() -> None:
    rejection = Rejection(Reason.WRONG_HEIGHT, height=7, expected=9, block=b"\xab" * 32)
    assert str(rejection) == "wrong-height: height=7, expected=9, block=abababababababab"
    assert (rejection.reason, rejection.values) == (
        Reason.WRONG_HEIGHT,
        {"height": 7, "expected": 9, "block": b"\xab" * 32},
    )


def test_message_without_values_is_the_reason() -> None:
    assert str(Rejection(Reason.EXPIRED)) == "expired"


def test_reasons_have_distinct_texts() -> None:
    assert len({reason.value for reason in Reason}) == len(Reason.__members__)


def test_what_a_stranger_wrote_is_bounded_and_printable_in_a_message() -> None:
    assert str(Rejection(Reason.MALFORMED, value="a\x1b[2J\nb")) == r"malformed: value='a\x1b[2J\nb'"
    assert len(str(Rejection(Reason.MALFORMED, value="x" * 100_000))) < 400
