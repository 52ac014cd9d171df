"""The record codec: each form of annotation, its bounds on both sides, and the path that a rejection names."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any

import pytest

from bflnode.consensus.encoding import encode
from bflnode.consensus.records import Record
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.types import FIXED_SIZES, AccountId, AtMost, Between, Hash


class Colour(IntEnum):
    RED = 1
    BLUE = 5


@dataclass(frozen=True, slots=True)
class Inner(Record):
    number: Annotated[int, Between(-3, 3)]


@dataclass(frozen=True, slots=True)
class Sample(Record):
    number: Annotated[int, Between(-3, 10)]
    flag: bool
    text: Annotated[str, AtMost(4)]
    data: Annotated[bytes, AtMost(4)]
    digest: Hash
    colour: Colour
    maybe: Annotated[int, Between(0, 9)] | None
    inner: Inner
    items: Annotated[tuple[Inner, ...], AtMost(2)]
    pair: tuple[bool, Hash]


FIELDS = ("number", "flag", "text", "data", "digest", "colour", "maybe", "inner", "items", "pair")
SAMPLE = Sample(
    number=7,
    flag=True,
    text="abcd",
    data=b"\x01\x02",
    digest=Hash(b"h" * 32),
    colour=Colour.BLUE,
    maybe=None,
    inner=Inner(-3),
    items=(Inner(1), Inner(2)),
    pair=(False, Hash(b"p" * 32)),
)
VALUE: Any = (7, True, "abcd", b"\x01\x02", b"h" * 32, 5, (), (-3,), ((1,), (2,)), (False, b"p" * 32))


def with_field(name: str, value: Any) -> Any:
    index = FIELDS.index(name)
    return (*VALUE[:index], value, *VALUE[index + 1 :])


def test_record_is_the_array_of_its_fields_in_order() -> None:
    assert SAMPLE.to_value() == VALUE
    assert SAMPLE.to_bytes() == encode(VALUE)


def test_record_comes_back_with_its_types() -> None:
    decoded = Sample.from_bytes(SAMPLE.to_bytes(), max_bytes=1000)
    assert decoded == SAMPLE
    assert isinstance(decoded.colour, Colour)
    assert isinstance(decoded.items[1], Inner)


@pytest.mark.parametrize(
    ("field", "value", "decoded"),
    [
        ("number", -3, -3),
        ("number", 10, 10),
        ("text", "", ""),
        ("data", b"", b""),
        ("data", b"1234", b"1234"),
        ("maybe", (0,), 0),
        ("maybe", (9,), 9),
        ("items", (), ()),
        ("colour", 1, Colour.RED),
    ],
)
def test_values_on_the_bounds_are_accepted(field: str, value: Any, decoded: Any) -> None:
    assert getattr(Sample.from_value(with_field(field, value)), field) == decoded


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("number", -4, "Sample.number"),
        ("number", 11, "Sample.number"),
        ("number", True, "Sample.number"),
        ("number", b"\x01", "Sample.number"),
        ("number", "1", "Sample.number"),
        ("number", (1,), "Sample.number"),
        ("flag", 1, "Sample.flag"),
        ("flag", 0, "Sample.flag"),
        ("text", "abcde", "Sample.text"),
        ("text", b"abcd", "Sample.text"),
        ("text", "é", "Sample.text"),
        ("data", b"12345", "Sample.data"),
        ("data", "1234", "Sample.data"),
        ("digest", b"h" * 31, "Sample.digest"),
        ("digest", b"h" * 33, "Sample.digest"),
        ("digest", b"", "Sample.digest"),
        ("digest", "h" * 32, "Sample.digest"),
        ("colour", 2, "Sample.colour"),
        ("colour", True, "Sample.colour"),
        ("colour", "RED", "Sample.colour"),
        ("maybe", 1, "Sample.maybe"),
        ("maybe", (1, 2), "Sample.maybe"),
        ("maybe", (10,), "Sample.maybe"),
        ("inner", -3, "Sample.inner"),
        ("inner", (), "Sample.inner"),
        ("inner", (1, 2), "Sample.inner"),
        ("inner", (4,), "Sample.inner.number"),
        ("items", ((1,), (2,), (3,)), "Sample.items"),
        ("items", (1,), "Sample.items[0]"),
        ("items", ((1,), (9,)), "Sample.items[1].number"),
        ("items", b"", "Sample.items"),
        ("pair", (False,), "Sample.pair"),
        ("pair", (0, b"p" * 32), "Sample.pair[0]"),
        ("pair", (False, b"p" * 32, 1), "Sample.pair"),
    ],
)
def test_value_that_is_not_what_the_annotation_says_is_rejected_with_its_path(
    field: str, value: Any, path: str
) -> None:
    with pytest.raises(Rejection) as refused:
        Sample.from_value(with_field(field, value))
    assert (refused.value.reason, refused.value.values["field"]) == (Reason.MALFORMED, path)


@pytest.mark.parametrize("value", [VALUE[:-1], (*VALUE, 0), (), 7, b"", "", True])
def test_record_with_missing_or_extra_fields_is_rejected(value: Any) -> None:
    with pytest.raises(Rejection) as refused:
        Sample.from_value(value)
    assert (refused.value.reason, refused.value.values["field"]) == (Reason.MALFORMED, "Sample")


def test_bytes_above_the_limit_are_rejected_as_too_large() -> None:
    data = SAMPLE.to_bytes()
    with pytest.raises(Rejection) as refused:
        Sample.from_bytes(data, max_bytes=len(data) - 1)
    assert refused.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize("kind", FIXED_SIZES, ids=lambda kind: kind.__name__)
def test_identifiers_have_exactly_their_size(kind: Any) -> None:
    @dataclass(frozen=True)
    class Holder(Record):
        identifier: kind

    # The annotation is a local name, which get_type_hints can't look up.
    Holder.__annotations__["identifier"] = kind
    size = FIXED_SIZES[kind]
    assert Holder.from_value((b"x" * size,)).identifier == b"x" * size
    for other in (size - 1, size + 1):
        with pytest.raises(Rejection, match=f"size={other}, expected={size} to {size}"):
            Holder.from_value((b"x" * other,))


def test_annotation_without_a_bound_is_our_own_fault() -> None:
    @dataclass(frozen=True)
    class Unbounded(Record):
        number: int

    with pytest.raises(AssertionError, match="no wire format"):
        Unbounded(1).to_bytes()


def test_encoding_a_field_of_a_wrong_type_is_our_own_fault() -> None:
    with pytest.raises(AssertionError):
        Inner(1.5).to_bytes()  # type: ignore[arg-type]  # the fault under test


def test_account_ids_are_not_checked_for_being_points_of_the_curve() -> None:
    """Cheap and the same everywhere: a key that is none can sign nothing."""

    @dataclass(frozen=True)
    class Holder(Record):
        account: AccountId

    assert Holder.from_value((b"\xff" * 32,)).account == b"\xff" * 32
