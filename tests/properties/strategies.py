"""Hypothesis strategies for every record, derived from the annotations that give its wire format."""

import importlib
import pkgutil
import types
from dataclasses import fields
from enum import IntEnum
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

import bflnode.consensus
from bflnode.consensus.blob import CHUNK_BYTES, MAX_BLOB_BYTES, BlobManifest, chunk_count
from bflnode.consensus.encoding import Value
from bflnode.consensus.records import Record
from bflnode.consensus.transaction import BODIES, FREE_KINDS, Kind, Transaction
from bflnode.consensus.types import FIXED_SIZES, AtMost, Between, Hash, Signature

RecordType = TypeVar("RecordType", bound=Record)

MOST_ITEMS = 3
"""Items drawn for an array, bytes for a string: bounds have tests of their own, and examples stay readable."""


def record_types() -> list[type[Record]]:
    """Every record that the consensus package declares, in a fixed order."""
    found: dict[str, type[Record]] = {}
    for module in pkgutil.iter_modules(bflnode.consensus.__path__, "bflnode.consensus."):
        for name, member in vars(importlib.import_module(module.name)).items():
            if isinstance(member, type) and issubclass(member, Record) and member is not Record:
                found[f"{member.__module__}.{name}"] = member
    return [found[name] for name in sorted(found) if found[name].__module__ == name.rpartition(".")[0]]


@cache
def records(record_type: type[RecordType]) -> st.SearchStrategy[RecordType]:
    """Valid records of a type, with the fields' smallest and largest values among them."""
    if record_type is Transaction:
        return transactions()  # type: ignore[return-value]  # RecordType is Transaction here
    if record_type is BlobManifest:
        return manifests()  # type: ignore[return-value]  # RecordType is BlobManifest here
    hints = get_type_hints(record_type, include_extras=True)
    return st.builds(record_type, **{field.name: values(hints[field.name]) for field in fields(record_type)})


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Valid values of an annotation."""
    origin = get_origin(kind)
    if origin is Annotated:
        inner, bound = get_args(kind)
        return _bounded(inner, bound)
    if kind in FIXED_SIZES:
        return st.binary(min_size=FIXED_SIZES[kind], max_size=FIXED_SIZES[kind])
    if kind is bool:
        return st.booleans()
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in get_args(kind) if argument is not types.NoneType)
        return st.none() | values(inner)
    if origin is tuple:
        return st.tuples(*(values(part) for part in get_args(kind)))
    if issubclass(kind, IntEnum):
        return st.sampled_from(kind)
    return records(kind)


def _bounded(inner: Any, bound: Between | AtMost) -> st.SearchStrategy[Any]:
    if isinstance(bound, Between):
        return st.integers(bound.low, bound.high) | st.sampled_from([bound.low, bound.high])
    most = min(bound.size, MOST_ITEMS)
    if inner is bytes:
        return st.binary(max_size=most)
    if inner is str:
        return st.text(st.characters(max_codepoint=127), max_size=most)
    return st.lists(values(get_args(inner)[0]), max_size=most).map(tuple)


@st.composite
def transactions(draw: st.DrawFn) -> Transaction:
    """Well-formed transactions; their signatures are noise."""
    kind = draw(st.sampled_from(Kind))
    body: Any = draw(records(BODIES[kind]))
    has_head = kind not in FREE_KINDS
    number = st.integers(0, 2**63 - 1) if has_head else st.just(0)
    signature = Signature(draw(st.binary(min_size=64, max_size=64)))
    sender = draw(st.binary(min_size=32, max_size=32))
    return Transaction(sender, draw(number), draw(number), draw(number), body, signature)  # type: ignore[arg-type]  # raw bytes stand for an AccountId


@st.composite
def manifests(draw: st.DrawFn) -> BlobManifest:
    """Manifests whose number of hashes fits the size."""
    size = draw(st.integers(0, MOST_ITEMS * CHUNK_BYTES) | st.just(MAX_BLOB_BYTES))
    return BlobManifest(size, tuple(Hash(bytes([index % 256]) * 32) for index in range(chunk_count(size))))


canonical_values: st.SearchStrategy[Value] = st.recursive(
    st.integers(-(2**63), 2**63 - 1)
    | st.binary(max_size=40)
    | st.booleans()
    | st.text(st.characters(max_codepoint=127), max_size=40),
    lambda children: st.lists(children, max_size=4).map(tuple),
    max_leaves=20,
).filter(lambda value: _depth(value) <= 8)
"""Values inside the canonical subset."""


def _depth(value: Value) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, tuple) else 0
