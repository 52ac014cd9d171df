"""Records as JSON for people, derived from the same annotations as their canonical bytes.

    integer, boolean, string    the same
    account                     hex digits with a checksum (`keys.account_text`)
    other bytes                 hex digits
    enum                        its name in lower case
    X | None                    null for None
    tuple                       array
    record                      object; every field, no other

Reading refuses whatever `write` would not have produced, and says where, what, and what to do: whoever wrote the text
is a person with an editor. Which values make sense together is checked by whoever owns the record.
"""

import json
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Annotated, Any, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from .encoding import Value
from .keys import account_text, parse_account
from .records import Record
from .rejection import Rejection
from .types import FIXED_SIZES, AccountId

MAX_DIGITS = 20
"""Longest integer that is read: int64 needs 19 digits and a sign."""

Json: TypeAlias = int | str | bool | Sequence["Json"] | dict[str, "Json"] | None
RecordType = TypeVar("RecordType", bound=Record)


class RecordJsonError(ValueError):
    """The text does not describe the record.

    Attributes:
        path: where, such as "genesis.accounts[3].balance".
        fault: what is wrong there.
        remedy: what the person who wrote it can do.
    """

    def __init__(self, path: str, fault: str, remedy: str) -> None:
        self.path = path
        self.fault = fault
        self.remedy = remedy
        super().__init__(f"{path}: {fault}; {remedy}")


@dataclass(frozen=True, slots=True)
class _Object:
    """A JSON object as written: a dict would hide that a key comes twice."""

    members: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class _NotInteger:
    """A JSON number that is no integer of at most `MAX_DIGITS`, as written."""

    text: str


def record_to_json(record: Record) -> dict[str, Json]:
    """The record as what `json.dumps` takes."""
    hints = get_type_hints(type(record), include_extras=True)
    names = [field.name for field in fields(record)]  # type: ignore[arg-type]  # every Record subclass is a dataclass
    return {name: _to_json(hints[name], getattr(record, name)) for name in names}


def format_record(record: Record) -> str:
    """The record as indented JSON text."""
    return json.dumps(record_to_json(record), indent=2) + "\n"


def parse_record(record_type: type[RecordType], text: str, name: str) -> RecordType:
    """Read a record from JSON text.

    Args:
        record_type: class of the record.
        text: the whole document.
        name: what the document is called in errors, the start of every path.

    Raises:
        RecordJsonError: with the path, the fault and the remedy.
    """
    value = _from_json(record_type, _parse(text, name), name)
    try:
        return record_type.from_value(value, name)
    except Rejection as rejection:
        raise _out_of_bounds(rejection, name) from rejection


def _parse(text: str, name: str) -> object:
    try:
        return json.loads(
            text,
            object_pairs_hook=lambda pairs: _Object(tuple(pairs)),
            parse_int=lambda digits: int(digits) if len(digits) <= MAX_DIGITS else _NotInteger(digits),
            parse_float=_NotInteger,
            parse_constant=_NotInteger,
        )
    except json.JSONDecodeError as error:
        place = f"{name}, line {error.lineno}, column {error.colno}"
        raise RecordJsonError(place, f"not JSON: {error.msg}", "check commas, quotes and brackets there") from error
    except RecursionError as error:
        raise RecordJsonError(name, "brackets nested too deep", "check that each one is closed") from error


def _out_of_bounds(rejection: Rejection, name: str) -> RecordJsonError:
    values = dict(rejection.values)
    path = str(values.pop("field", name))
    expected = values.pop("expected", "another value")
    seen = ", ".join(f"{what} {value}" for what, value in values.items())
    return RecordJsonError(path, f"{seen} is out of bounds", f"use {expected}")


def _to_json(kind: Any, value: Any) -> Json:
    kind, origin = _unwrapped(kind)
    if kind is AccountId:
        return account_text(value)
    if kind is bytes or kind in FIXED_SIZES:
        digits: str = value.hex()
        return digits
    if origin is tuple:
        return [_to_json(_item(kind), item) for item in value]
    if origin in (Union, types.UnionType):
        return None if value is None else _to_json(_inner(kind), value)
    if isinstance(value, IntEnum):
        return value.name.lower()
    if isinstance(value, Record):
        return record_to_json(value)
    assert type(value) in (int, bool, str), f"no JSON form for {kind}"
    plain: int | bool | str = value
    return plain


def _from_json(kind: Any, node: object, path: str) -> Value:
    kind, origin = _unwrapped(kind)
    if kind in _SCALARS:
        json_type, wanted = _SCALARS[kind]
        _require(type(node) is json_type, node, path, wanted)
        scalar: Any = node
        return _hexadecimal(scalar, path) if kind is bytes else scalar
    if kind in FIXED_SIZES:
        return _identifier(kind, node, path)
    if origin is tuple:
        return tuple(_from_json(_item(kind), item, f"{path}[{index}]") for index, item in enumerate(_items(node, path)))
    if origin in (Union, types.UnionType):
        return () if node is None else (_from_json(_inner(kind), node, path),)
    if issubclass(kind, IntEnum):
        return _enum_number(kind, node, path)
    assert issubclass(kind, Record), f"no JSON form for {kind}"
    return _fields(kind, node, path)


_SCALARS: dict[Any, tuple[type, str]] = {
    int: (int, "an integer"),
    bool: (bool, "true or false"),
    str: (str, "a string"),
    bytes: (str, "a string of hex digits"),
}
"""JSON type of each plain field, and how it is called in errors."""


def _unwrapped(kind: Any) -> tuple[Any, Any]:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return kind, get_origin(kind)


def _item(kind: Any) -> Any:
    item, ellipsis = get_args(kind)
    assert ellipsis is Ellipsis, f"no JSON form for {kind}"
    return item


def _inner(kind: Any) -> Any:
    (inner,) = (argument for argument in get_args(kind) if argument is not types.NoneType)
    return inner


def _require(is_right: bool, node: object, path: str, wanted: str) -> None:
    if not is_right:
        raise RecordJsonError(path, f"expected {wanted}, found {_described(node)}", f"write {wanted}")


def _items(node: object, path: str) -> list[object]:
    _require(isinstance(node, list), node, path, "an array")
    items: Any = node
    return list(items)


def _fields(kind: type[Record], node: object, path: str) -> Value:
    _require(isinstance(node, _Object), node, path, "an object")
    document: Any = node
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # every Record subclass is a dataclass
    members: dict[str, object] = {}
    for name, member in document.members:
        if name in members:
            raise RecordJsonError(f"{path}.{name}", "is there twice", "keep one of the two")
        if name not in hints:
            remedy = f"remove it or correct its name; the fields are {', '.join(names)}"
            raise RecordJsonError(f"{path}.{_shortened(name)}", "is not a known field", remedy)
        members[name] = member
    for name in names:
        if name not in members:
            raise RecordJsonError(f"{path}.{name}", "is missing", "add this field; there are no defaults")
    return tuple(_from_json(hints[name], members[name], f"{path}.{name}") for name in names)


def _identifier(kind: Any, node: object, path: str) -> bytes:
    _require(type(node) is str, node, path, "a string of hex digits")
    text: Any = node
    if kind is not AccountId:
        raw = _hexadecimal(text, path)
        size = FIXED_SIZES[kind]
        if len(raw) != size:
            fault = f"{len(text)} hex digits instead of {2 * size}"
            raise RecordJsonError(path, fault, "copy the whole value again")
        return raw
    try:
        return parse_account(text)
    except ValueError as error:
        raise RecordJsonError(path, str(error), "copy the whole account again, checksum included") from error


def _hexadecimal(text: str, path: str) -> bytes:
    """Hex digits in lower case and without spaces, the only way `_to_json` writes them."""
    if any(character not in "0123456789abcdef" for character in text) or len(text) % 2:
        raise RecordJsonError(path, f"{_shortened(text)} is not hex digits", "write pairs of 0-9 and a-f")
    return bytes.fromhex(text)


def _enum_number(kind: type[IntEnum], node: object, path: str) -> int:
    names = {member.name.lower(): member for member in kind}
    wanted = " or ".join(json.dumps(name) for name in names)
    _require(type(node) is str and node in names, node, path, wanted)
    name: Any = node
    return int(names[name])


def _described(node: object) -> str:
    """What was found, in words that fit on a line."""
    describers: dict[type, Callable[[Any], str]] = {
        _Object: lambda _: "an object",
        list: lambda _: "an array",
        types.NoneType: lambda _: "null",
        bool: lambda truth: "true" if truth else "false",
        _NotInteger: lambda number: f"the number {_shortened(number.text)}",
        str: lambda text: f"the string {_shortened(json.dumps(text))}",
    }
    return describers.get(type(node), lambda other: f"the number {other}")(node)


def _shortened(text: str) -> str:
    """What was written, in forty characters that don't rewrite a terminal."""
    shown = text if text.isprintable() else json.dumps(text)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
