"""The canonical encoding against the msgpack test suite: of each value at most one of its encodings is taken."""

from typing import Any

from bflnode.consensus.encoding import Value, decode, encode
from bflnode.consensus.rejection import Rejection
from tests.conformance.vectors import load_vectors

LIMIT = 1024 * 1024


def is_accepted_as(data: bytes, value: Value | None) -> bool:
    try:
        decoded = decode(data, max_bytes=LIMIT)
    except Rejection:
        return False
    assert (decoded, type(decoded)) == (value, type(value))
    return True


def canonical_value(case: dict[str, Any]) -> Value | None:
    """The value of a vector if it belongs to our subset, else None."""
    kind, value = next((key, value) for key, value in case.items() if key != "msgpack")
    if kind == "binary":
        return bytes.fromhex(value.replace("-", ""))
    if kind == "bignum" or "bignum" in case:
        number = int(case["bignum"])
        return number if number < 2**63 else None
    if kind == "number" and isinstance(value, float):
        return None
    if kind == "array":
        return frozen(value)
    return value if kind in ("bool", "number") or (kind == "string" and value.isascii()) else None


def frozen(value: Any) -> Value | None:
    """Lists as tuples; None where something inside has no place in our subset."""
    if isinstance(value, list):
        items = [frozen(item) for item in value]
        return None if any(item is None for item in items) else tuple(items)  # type: ignore[arg-type]  # no None left
    return value if isinstance(value, int | str) else None


def test_published_msgpack_vectors_have_one_canonical_encoding_or_none() -> None:
    """One encoding of each value inside our subset is accepted; all others, and all other values, are rejected."""
    encodings = accepted = 0
    for name, cases in load_vectors("msgpack-test-suite.json").items():
        for case in cases:
            value = canonical_value(case)
            expected = [] if value is None else [encode(value)]
            candidates = [bytes.fromhex(text.replace("-", "")) for text in case["msgpack"]]
            encodings += len(candidates)
            seen = [candidate for candidate in candidates if is_accepted_as(candidate, value)]
            assert seen == expected, (name, case)
            accepted += len(seen)
    assert (encodings, accepted) == (233, 41)
