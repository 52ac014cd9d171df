"""Canonical encoding: a subset of msgpack in which every value has exactly one encoding.

Arrays, integers, byte strings, booleans and ASCII strings; no map, nil, float or extension type. Everything that is
hashed, signed or sent between nodes goes through here. Decoding is safe on hostile bytes: the size is checked first,
then msgpack decodes with every limit set, the types are walked, and the value is encoded again and compared, which
kills every second encoding of a value.
"""

from typing import TypeAlias

import msgpack

from .rejection import Reason, Rejection

Value: TypeAlias = int | bytes | bool | str | tuple["Value", ...]

MAX_DEPTH = 8
"""Deepest nesting of arrays: the opening of an AGGREGATE in a block in a proposal message needs all eight. So whatever
carries blocks or proposals carries them as byte strings."""

MAX_ITEMS = 4096
"""Longest array: genesis accounts. msgpack allocates what a header announces, so 1,024 nested headers (its own bound)
cost at most 32 MiB before they are refused."""


def encode(value: Value) -> bytes:
    """Encode a value; arrays are tuples.

    Raises:
        AssertionError: the value is outside the subset, which is our own fault.
    """
    fault = _fault(value, MAX_DEPTH)
    assert fault is None, fault
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def decode(data: bytes, *, max_bytes: int) -> Value:
    """Decode one value from hostile bytes.

    Args:
        data: the whole encoding; trailing bytes are refused.
        max_bytes: largest size accepted for this kind of message.

    Raises:
        Rejection: TOO_LARGE, or MALFORMED for everything that `encode` would not have produced.
    """
    if len(data) > max_bytes:
        raise Rejection(Reason.TOO_LARGE, size=len(data), limit=max_bytes)
    try:
        value: Value = msgpack.unpackb(
            data,
            use_list=False,
            raw=False,
            strict_map_key=True,
            max_str_len=len(data),
            max_bin_len=len(data),
            max_array_len=MAX_ITEMS,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise Rejection(Reason.MALFORMED, error=type(error).__name__) from error
    fault = _fault(value, MAX_DEPTH)
    if fault is not None:
        raise Rejection(Reason.MALFORMED, fault=fault)
    if msgpack.packb(value, use_bin_type=True) != data:
        raise Rejection(Reason.MALFORMED, fault="not the canonical encoding of its value")
    return value


def _fault(value: object, depth: int) -> str | None:
    """Say why a value is outside the subset, or None. `type() is`: a bool is an int in Python."""
    if type(value) is int:
        return None if -(2**63) <= value < 2**63 else "an integer outside int64"
    if type(value) is tuple:
        if depth == 0:
            return f"arrays nested deeper than {MAX_DEPTH}"
        for item in value:
            fault = _fault(item, depth - 1)
            if fault is not None:
                return fault
        return None
    if type(value) is str:
        return None if value.isascii() else "a string that is not ASCII"
    return None if type(value) in (bytes, bool) else f"a value of type {type(value).__name__}"
