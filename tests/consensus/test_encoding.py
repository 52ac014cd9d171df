"""Canonical encoding: what is inside the subset comes back, everything else is rejected, at bounded cost."""

import subprocess
import sys
from typing import Any

import msgpack
import pytest

from bflnode.consensus.encoding import MAX_DEPTH, MAX_ITEMS, Value, decode, encode
from bflnode.consensus.rejection import Reason, Rejection

LIMIT = 1024 * 1024


def refusal(data: bytes, max_bytes: int = LIMIT) -> Reason:
    with pytest.raises(Rejection) as refused:
        decode(data, max_bytes=max_bytes)
    return refused.value.reason


def nested(depth: int) -> Value:
    value: Value = 1
    for _ in range(depth):
        value = (value,)
    return value


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "cc80"),
        (-1, "ff"),
        (-33, "d0df"),
        (2**63 - 1, "cf7fffffffffffffff"),
        (-(2**63), "d38000000000000000"),
        (True, "c3"),
        (b"", "c400"),
        ("a", "a161"),
        ((), "90"),
        ((1, (b"\x02", False)), "920192c40102c2"),
    ],
)
def test_value_has_exactly_these_bytes(value: Value, data: str) -> None:
    assert encode(value).hex() == data
    decoded = decode(bytes.fromhex(data), max_bytes=LIMIT)
    assert (decoded, type(decoded)) == (value, type(value))


@pytest.mark.parametrize("value", [None, 1.0, "é", 2**63, -(2**63) - 1, [1], {}, (1, None), bytearray(b"a")])
def test_encoding_a_value_outside_the_subset_is_our_own_fault(value: Any) -> None:
    with pytest.raises(AssertionError):
        encode(value)


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("nothing", ""),
        ("nil", "c0"),
        ("reserved byte", "c1"),
        ("float32", "ca3f800000"),
        ("float64", "cb3ff0000000000000"),
        ("empty map", "80"),
        ("map", "810102"),
        ("extension", "d40110"),
        ("timestamp", "d6ff5a4af6a5"),
        ("empty extension", "c70001"),
        ("integer above int64", "cf8000000000000000"),
        ("string that is not ASCII", "a2c3a9"),
        ("string that is not UTF-8", "a1ff"),
        ("trailing byte", "0100"),
        ("truncated array", "9201"),
        ("truncated bytes", "c40501"),
        ("integer in two bytes", "cc01"),
        ("array in three bytes", "dc0000"),
        ("nested non-canonical integer", "91cd0001"),
        ("bytes in three bytes", "c50000"),
    ],
)
def test_second_encodings_and_foreign_types_are_rejected(what: str, data: str) -> None:
    assert refusal(bytes.fromhex(data)) is Reason.MALFORMED, what


def test_size_is_checked_before_anything_is_decoded() -> None:
    assert refusal(b"\xc1" * 11, max_bytes=10) is Reason.TOO_LARGE
    assert refusal(b"\xc1" * 10, max_bytes=10) is Reason.MALFORMED


def test_arrays_may_be_nested_eight_deep_and_no_deeper() -> None:
    deepest = nested(MAX_DEPTH)
    assert decode(encode(deepest), max_bytes=LIMIT) == deepest
    assert refusal(b"\x91" * (MAX_DEPTH + 1) + b"\x01") is Reason.MALFORMED
    with pytest.raises(AssertionError):
        encode(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize("depth", [9, 500, 1023, 1024, 1025, 100_000])
def test_nesting_of_any_depth_is_rejected_and_not_a_crash(depth: int) -> None:
    assert refusal(b"\x91" * depth + b"\x01") is Reason.MALFORMED


def test_longest_array_comes_back_and_one_more_item_is_rejected() -> None:
    longest = (7,) * MAX_ITEMS
    assert decode(encode(longest), max_bytes=LIMIT) == longest
    assert refusal(b"\xdc" + (MAX_ITEMS + 1).to_bytes(2, "big") + b"\x07" * (MAX_ITEMS + 1)) is Reason.MALFORMED


def test_announced_sizes_cost_no_memory_beyond_what_the_limits_allow() -> None:
    """A hostile message of a few kilobytes may not make a node allocate hundreds of megabytes."""
    grown_kib = int(subprocess.check_output([sys.executable, "-c", HOSTILE], text=True, timeout=60))
    assert grown_kib < 64 * 1024


HOSTILE = """
import resource
from bflnode.consensus.encoding import MAX_ITEMS, decode
from bflnode.consensus.rejection import Rejection

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in [
    (b"\\xdc" + MAX_ITEMS.to_bytes(2, "big")) * 100_000,
    (b"\\xdd" + MAX_ITEMS.to_bytes(4, "big")) * 1000,
    b"\\xdd\\xff\\xff\\xff\\xff",
    b"\\xc6\\xff\\xff\\xff\\xff",
]:
    try:
        decode(data, max_bytes=1024 * 1024)
    except Rejection:
        continue
    raise SystemExit("accepted")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
"""In a process of its own: the high-water mark of a test run says nothing."""


def test_what_is_accepted_is_what_msgpack_writes() -> None:
    value = (1, b"\x00" * 300, "x" * 40, (True, -200))
    assert encode(value) == msgpack.packb(value, use_bin_type=True)
