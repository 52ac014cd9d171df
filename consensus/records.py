"""Records: frozen dataclasses whose annotations are their wire format.

A record is encoded as the canonical array of its fields in order. The codec of a class is compiled once from its
annotations, so each format is declared in exactly one place and every bound is checked on the way in:

    int                     refused; use `Annotated[int, Between(low, high)]`
    bool, str               `Annotated[str, AtMost(n)]`, ASCII
    bytes                   `Annotated[bytes, AtMost(n)]`, or a NewType of fixed size (`types.FIXED_SIZES`)
    an IntEnum              one of its values
    X | None                an array of zero or one item
    tuple[X, ...]           `Annotated[tuple[X, ...], AtMost(n)]`
    tuple[X, Y]             an array of exactly those
    another record          its array

What belongs here: the codec. What doesn't: the records themselves, and rules that span fields.
"""

import types
from collections.abc import Callable
from dataclasses import fields
from enum import IntEnum
from functools import cache
from typing import Annotated, Any, Self, TypeAlias, Union, get_args, get_origin, get_type_hints

from .encoding import Value, decode, encode
from .rejection import Reason, Rejection
from .types import FIXED_SIZES, AtMost, Between

Writer: TypeAlias = Callable[[Any], Value]
Reader: TypeAlias = Callable[[Value, str], Any]


class Record:
    """Base of every record: gives the dataclass its canonical bytes.

    Subclasses are `@dataclass(frozen=True, slots=True)` and annotate every field as described in the module.
    """

    __slots__ = ()

    def to_value(self) -> Value:
        """The record as nested tuples of integers, bytes, booleans and strings."""
        kind: Any = type(self)
        return _record(kind)[0](self)

    @classmethod
    def from_value(cls, value: Value, name: str = "") -> Self:
        """Read a record from a decoded value.

        Raises:
            Rejection: MALFORMED, with the path of the first field that is not what the annotations say.
        """
        kind: Any = cls
        record: Self = _record(kind)[1](value, name or cls.__name__)
        return record

    def to_bytes(self) -> bytes:
        """Canonical bytes of the record."""
        return encode(self.to_value())

    @classmethod
    def from_bytes(cls, data: bytes, *, max_bytes: int) -> Self:
        """Read a record from canonical bytes of at most `max_bytes`.

        Raises:
            Rejection: TOO_LARGE or MALFORMED.
        """
        return cls.from_value(decode(data, max_bytes=max_bytes))


@cache
def _codec(kind: Any) -> tuple[Writer, Reader]:
    """Compile the writer and the reader of one annotation."""
    origin = get_origin(kind)
    if origin is Annotated:
        inner, bound = get_args(kind)
        return _bounded(inner, bound)
    if kind in FIXED_SIZES:
        return _plain(), _bytes_reader(FIXED_SIZES[kind], FIXED_SIZES[kind])
    if kind is bool:
        return _plain(), _bool_reader
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in get_args(kind) if argument is not type(None))
        return _optional(inner)
    if origin is tuple:
        return _product(get_args(kind))
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        return int, _enum_reader(kind)
    if isinstance(kind, type) and issubclass(kind, Record):
        return _record_value, kind.from_value
    raise AssertionError(f"no wire format for {kind}")


def _bounded(inner: Any, bound: Between | AtMost) -> tuple[Writer, Reader]:
    if isinstance(bound, Between):
        assert inner is int, f"Between bounds integers, not {inner}"
        return _plain(), _int_reader(bound)
    if inner is bytes:
        return _plain(), _bytes_reader(0, bound.size)
    if inner is str:
        return _plain(), _str_reader(bound.size)
    item, ellipsis = get_args(inner)
    assert (get_origin(inner), ellipsis) == (tuple, Ellipsis), f"AtMost does not bound {inner}"
    return _sequence(item, bound.size)


def _plain() -> Writer:
    return lambda value: value


def _record_value(record: Record) -> Value:
    return record.to_value()


@cache
def _record(kind: Any) -> tuple[Writer, Reader]:
    hints = get_type_hints(kind, include_extras=True)
    names = tuple(field.name for field in fields(kind))
    codecs = tuple(_codec(hints[name]) for name in names)

    def write(record: Any) -> Value:
        return tuple(writer(getattr(record, name)) for name, (writer, _) in zip(names, codecs, strict=True))

    def read(value: Value, path: str) -> Any:
        items = _array(value, len(names), len(names), path)
        return kind(
            *(reader(item, f"{path}.{name}") for item, name, (_, reader) in zip(items, names, codecs, strict=True))
        )

    return write, read


def _product(parts: tuple[Any, ...]) -> tuple[Writer, Reader]:
    codecs = tuple(_codec(part) for part in parts)

    def write(items: Any) -> Value:
        return tuple(writer(item) for item, (writer, _) in zip(items, codecs, strict=True))

    def read(value: Value, path: str) -> Any:
        items = _array(value, len(parts), len(parts), path)
        return tuple(
            reader(item, f"{path}[{index}]")
            for index, (item, (_, reader)) in enumerate(zip(items, codecs, strict=True))
        )

    return write, read


def _sequence(part: Any, most: int) -> tuple[Writer, Reader]:
    writer, reader = _codec(part)

    def write(items: Any) -> Value:
        return tuple(writer(item) for item in items)

    def read(value: Value, path: str) -> Any:
        items = _array(value, 0, most, path)
        return tuple(reader(item, f"{path}[{index}]") for index, item in enumerate(items))

    return write, read


def _optional(part: Any) -> tuple[Writer, Reader]:
    writer, reader = _codec(part)

    def write(item: Any) -> Value:
        return () if item is None else (writer(item),)

    def read(value: Value, path: str) -> Any:
        items = _array(value, 0, 1, path)
        return reader(items[0], path) if items else None

    return write, read


def _array(value: Value, least: int, most: int, path: str) -> tuple[Value, ...]:
    if type(value) is not tuple:
        raise Rejection(Reason.MALFORMED, field=path, expected="array", got=type(value).__name__)
    if not least <= len(value) <= most:
        raise Rejection(Reason.MALFORMED, field=path, items=len(value), expected=f"{least} to {most}")
    return value


def _int_reader(bound: Between) -> Reader:
    def read(value: Value, path: str) -> int:
        if type(value) is not int:
            raise Rejection(Reason.MALFORMED, field=path, expected="integer", got=type(value).__name__)
        if not bound.low <= value <= bound.high:
            raise Rejection(Reason.MALFORMED, field=path, value=value, expected=f"{bound.low} to {bound.high}")
        return value

    return read


def _bytes_reader(least: int, most: int) -> Reader:
    def read(value: Value, path: str) -> bytes:
        if type(value) is not bytes:
            raise Rejection(Reason.MALFORMED, field=path, expected="bytes", got=type(value).__name__)
        if not least <= len(value) <= most:
            raise Rejection(Reason.MALFORMED, field=path, size=len(value), expected=f"{least} to {most}")
        return value

    return read


def _str_reader(most: int) -> Reader:
    def read(value: Value, path: str) -> str:
        if type(value) is not str:
            raise Rejection(Reason.MALFORMED, field=path, expected="string", got=type(value).__name__)
        if not value.isascii():
            raise Rejection(Reason.MALFORMED, field=path, value=ascii(value), expected="ASCII characters")
        if len(value) > most:
            raise Rejection(Reason.MALFORMED, field=path, size=len(value), expected=f"0 to {most}")
        return value

    return read


def _bool_reader(value: Value, path: str) -> bool:
    if type(value) is not bool:
        raise Rejection(Reason.MALFORMED, field=path, expected="boolean", got=type(value).__name__)
    return value


def _enum_reader(kind: type[IntEnum]) -> Reader:
    def read(value: Value, path: str) -> IntEnum:
        if type(value) is not int:
            raise Rejection(Reason.MALFORMED, field=path, expected=kind.__name__, got=type(value).__name__)
        if value not in kind.__members__.values():
            raise Rejection(Reason.MALFORMED, field=path, value=value, expected=kind.__name__)
        return kind(value)

    return read
