"""Weights as canonical bytes: a strict subset of the safetensors format, written and read without torch.

Here belong the tensor table and the one byte encoding a set of tensors has. What the tensors mean
(architectures), and how a file is named (the blob id), do not.

Layout, as in safetensors 0.x (readable by its library), with every freedom removed::

    u64 little endian: header size | header: JSON, spaces to a multiple of 8 | data, contiguous

The header has no metadata, no white space but the padding, names in code point order, and offsets in the
order of the names. So a tensor table has exactly one header, and `parse` compares bytes instead of
interpreting what a stranger wrote.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[np.float32] | NDArray[np.int64]
"""What a table can hold; little endian when it comes out of `parse`."""

Tensors: TypeAlias = Mapping[str, Tensor]
"""Tensors by name: a model's, a part of one, or anything else that a method of learning sends."""

HEADER_ALIGNMENT = 8
"""The data starts at a multiple of this, as the safetensors library writes it."""

SIZE_PREFIX = 8
"""Bytes of the u64 that gives the size of the header."""

MAX_HEADER_SIZE = 256 * 1024
"""ResNet-18's header has 14 KiB; this bounds the JSON that is parsed for a stranger."""

MAX_TENSORS = 2048
"""ResNet-18 has 124 tensors; ResNet-152, the largest of its family, has 934."""

MAX_DIMENSIONS = 8
"""A convolution has 4."""

MAX_FILE_SIZE = 2**31
"""2 GiB: larger files can't be held in memory a dozen at a time, and sizes stay below 2**53."""


class DType(Enum):
    """Element types, by their safetensors name."""

    F32 = "F32"
    I64 = "I64"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The little endian numpy type."""
        return _NUMPY_TYPES[self]


_NUMPY_TYPES: Mapping[DType, np.dtype[Any]] = {
    DType.F32: np.dtype("<f4"),
    DType.I64: np.dtype("<i8"),
}


class WeightsFault(Enum):
    """Why bytes are not the weights of a table."""

    WRONG_SIZE = "wrong size"
    HEADER_TOO_LONG = "header too long"
    MALFORMED_HEADER = "malformed header"
    DUPLICATE_KEY = "duplicate key"
    WRONG_TENSORS = "wrong tensors"
    WRONG_OFFSETS = "wrong offsets"
    NOT_CANONICAL = "not canonical"
    NOT_FINITE = "not finite"


class InvalidWeights(ValueError):
    """Bytes that are not the canonical weights of the table they should have.

    Attributes:
        reason: the rule that is broken.
        detail: the offending values, in words.
    """

    def __init__(self, reason: WeightsFault, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of one tensor."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements; a scalar has one."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Size of the tensor's data."""
        return self.elements * self.dtype.numpy.itemsize


@dataclass(frozen=True, slots=True)
class TensorTable:
    """The exact list of tensors of a model, names ascending and unique."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.tensors]
        if names != sorted(set(names)):
            raise ValueError(f"a tensor table needs unique names in ascending order, got {names}")

    @property
    def elements(self) -> int:
        """Number of elements of all tensors."""
        return sum(spec.elements for spec in self.tensors)


def table_of(tensors: Tensors) -> TensorTable:
    """The table that describes the tensors given.

    Raises:
        ValueError: an element type other than float32 and int64.
    """
    return TensorTable(
        tuple(TensorSpec(name, _dtype_of(name, tensors[name]), tensors[name].shape) for name in sorted(tensors))
    )


def expected_size(table: TensorTable) -> int:
    """Exact size in bytes of a file with this table: known before anything is downloaded."""
    return len(_prefix(table)) + sum(spec.size_bytes for spec in table.tensors)


def serialize(tensors: Tensors) -> bytes:
    """The canonical bytes of tensors: equal tensors give equal bytes on every machine.

    Args:
        tensors: float32 or int64, any shape; the order of the mapping doesn't matter.

    Raises:
        ValueError: an element type other than float32 and int64.
        InvalidWeights: a NaN or an infinity, which no reader would accept.
    """
    table = table_of(tensors)
    parts = [_prefix(table)]
    for spec in table.tensors:
        tensor = tensors[spec.name]
        _refuse_not_finite(spec, tensor)
        parts.append(tensor.astype(spec.dtype.numpy, order="C", copy=False).tobytes())
    return b"".join(parts)


def parse(data: bytes | memoryview, table: TensorTable) -> dict[str, Tensor]:
    """The tensors in `data`, which must be the canonical bytes of exactly this table.

    Args:
        data: bytes from anywhere; they may be hostile.
        table: what the architecture demands.

    Returns:
        Read-only views of `data` (not copies, and possibly not aligned), in the order of the table.

    Raises:
        InvalidWeights: with the rule that is broken.
    """
    size = expected_size(table)
    if len(data) != size:
        raise InvalidWeights(WeightsFault.WRONG_SIZE, f"{len(data)} bytes, the architecture's weights have {size}")
    prefix = _prefix(table)
    if data[: len(prefix)] != prefix:
        _explain_header(data, table)
    tensors: dict[str, Tensor] = {}
    offset = len(prefix)
    for spec in table.tensors:
        flat = np.frombuffer(data, dtype=spec.dtype.numpy, count=spec.elements, offset=offset)
        flat.flags.writeable = False
        _refuse_not_finite(spec, flat)
        tensors[spec.name] = flat.reshape(spec.shape)
        offset += spec.size_bytes
    return tensors


def read_table(data: bytes | memoryview) -> TensorTable:
    """The table a file states in its header, for files whose shapes aren't known beforehand.

    The data itself isn't looked at; `parse` with the table returned does that.

    Raises:
        InvalidWeights: the header is not canonical, or too long.
    """
    if len(data) < SIZE_PREFIX or len(data) > MAX_FILE_SIZE:
        raise InvalidWeights(
            WeightsFault.WRONG_SIZE, f"{len(data)} bytes, between {SIZE_PREFIX} and {MAX_FILE_SIZE} are possible"
        )
    header_size = int.from_bytes(data[:SIZE_PREFIX], "little")
    if header_size > min(MAX_HEADER_SIZE, len(data) - SIZE_PREFIX):
        raise InvalidWeights(
            WeightsFault.HEADER_TOO_LONG,
            f"{header_size} bytes stated, at most {MAX_HEADER_SIZE} and the rest of the file are possible",
        )
    header = bytes(data[SIZE_PREFIX : SIZE_PREFIX + header_size])
    entries = _decode_header(header)
    if len(entries) > MAX_TENSORS:
        raise InvalidWeights(WeightsFault.WRONG_TENSORS, f"{len(entries)} tensors, at most {MAX_TENSORS} are allowed")
    specs = [_spec_of_entry(name, entry) for name, entry in entries]
    names = [spec.name for spec in specs]
    if names != sorted(names):
        raise InvalidWeights(WeightsFault.NOT_CANONICAL, "the names are not in ascending order")
    table = TensorTable(tuple(specs))
    _refuse_wrong_offsets(table, entries)
    if _prefix(table) != data[: SIZE_PREFIX + header_size]:
        raise InvalidWeights(WeightsFault.NOT_CANONICAL, "the header differs from its own re-serialisation")
    return table


@lru_cache(maxsize=64)
def _prefix(table: TensorTable) -> bytes:
    """Everything before the data: a table determines it completely."""
    entries: dict[str, object] = {}
    offset = 0
    for spec in table.tensors:
        end = offset + spec.size_bytes
        entries[spec.name] = {"dtype": spec.dtype.value, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    header += b" " * (-len(header) % HEADER_ALIGNMENT)
    return len(header).to_bytes(SIZE_PREFIX, "little") + header


def _dtype_of(name: str, tensor: Tensor) -> DType:
    for dtype in DType:
        if tensor.dtype.newbyteorder("<") == dtype.numpy:
            return dtype
    raise ValueError(f"tensor {name} is {tensor.dtype}, weights are float32 or int64")


def _refuse_not_finite(spec: TensorSpec, tensor: Tensor) -> None:
    if spec.dtype is DType.F32 and not np.isfinite(tensor).all():
        raise InvalidWeights(WeightsFault.NOT_FINITE, f"tensor {spec.name} has a NaN or an infinity")


def _explain_header(data: bytes | memoryview, table: TensorTable) -> None:
    """Refuse a header that isn't the table's, naming the first rule it breaks."""
    stated = read_table(data)
    for spec in table.tensors:
        if spec not in stated.tensors:
            raise InvalidWeights(WeightsFault.WRONG_TENSORS, f"no tensor {_describe(spec)}")
    unknown = next(spec for spec in stated.tensors if spec not in table.tensors)
    raise InvalidWeights(WeightsFault.WRONG_TENSORS, f"unknown tensor {_describe(unknown)}")


def _describe(spec: TensorSpec) -> str:
    return f"{spec.name[:80]!r} of type {spec.dtype.value} and shape {list(spec.shape)}"


def _decode_header(header: bytes) -> list[tuple[str, object]]:
    """The entries of the header's outer object, in their order."""
    try:
        decoded = json.loads(header.decode("ascii"), object_pairs_hook=_unique_pairs)
    except InvalidWeights:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidWeights(WeightsFault.MALFORMED_HEADER, f"the header is not ASCII JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise InvalidWeights(WeightsFault.MALFORMED_HEADER, f"the header is a {type(decoded).__name__}, not an object")
    return list(decoded.items())


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build an object, refusing a key that comes twice: readers disagree on which one counts."""
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise InvalidWeights(WeightsFault.DUPLICATE_KEY, f"{key[:80]!r} comes twice")
        result[key] = value
    return result


def _spec_of_entry(name: str, entry: object) -> TensorSpec:
    match entry:
        case {"dtype": str(dtype_name), "shape": list(shape), "data_offsets": [_, _], **others} if not others:
            pass
        case _:
            raise InvalidWeights(
                WeightsFault.MALFORMED_HEADER, f"entry {name[:80]!r} is not exactly dtype, shape and two data_offsets"
            )
    if dtype_name not in DType.__members__:
        raise InvalidWeights(WeightsFault.WRONG_TENSORS, f"tensor {name[:80]!r} has type {dtype_name[:20]!r}")
    if len(shape) > MAX_DIMENSIONS or not all(type(side) is int and 0 <= side <= MAX_FILE_SIZE for side in shape):
        raise InvalidWeights(
            WeightsFault.WRONG_TENSORS, f"tensor {name[:80]!r} has a shape that is not 0 to {MAX_DIMENSIONS} sizes"
        )
    return TensorSpec(name, DType[dtype_name], tuple(shape))


def _refuse_wrong_offsets(table: TensorTable, entries: list[tuple[str, object]]) -> None:
    """Offsets must be contiguous from 0: no gap that hides data, no overlap that shares it."""
    offset = 0
    for spec, (_, entry) in zip(table.tensors, entries, strict=True):
        end = offset + spec.size_bytes
        if not (isinstance(entry, dict) and entry["data_offsets"] == [offset, end]):
            raise InvalidWeights(
                WeightsFault.WRONG_OFFSETS, f"tensor {spec.name[:80]!r} must occupy bytes {offset} to {end} of the data"
            )
        offset = end
