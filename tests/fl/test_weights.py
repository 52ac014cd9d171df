import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from bflnode.fl.weights import (
    MAX_FILE_SIZE,
    MAX_HEADER_SIZE,
    MAX_TENSORS,
    DType,
    InvalidWeights,
    Tensor,
    TensorSpec,
    TensorTable,
    WeightsFault,
    expected_size,
    parse,
    read_table,
    serialize,
    table_of,
)

SMALL = {
    "b": np.array([1.0, -2.5], dtype=np.float32),
    "a.count": np.array(7, dtype=np.int64),
}
SMALL_TABLE = TensorTable((TensorSpec("a.count", DType.I64, ()), TensorSpec("b", DType.F32, (2,))))
SMALL_HEADER = (
    b'{"a.count":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
)
SMALL_DATA = bytes.fromhex("07000000000000000000803f000020c0")

shapes = numpy_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
floats = shapes.flatmap(
    lambda shape: numpy_strategies.arrays(
        np.float32, shape, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
integers = shapes.flatmap(lambda shape: numpy_strategies.arrays(np.int64, shape))
tensor_maps = st.dictionaries(st.text(max_size=8), st.one_of(floats, integers), max_size=5)


def file_with_header(header: bytes, data: bytes = SMALL_DATA) -> bytes:
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def test_small_model_has_these_bytes() -> None:
    assert serialize(SMALL) == file_with_header(SMALL_HEADER)
    assert table_of(SMALL) == SMALL_TABLE
    assert expected_size(SMALL_TABLE) == len(file_with_header(SMALL_HEADER))


@given(tensor_maps)
def test_what_is_serialised_parses_to_the_same_bits(tensors: dict[str, Tensor]) -> None:
    data = serialize(tensors)
    table = table_of(tensors)

    parsed = parse(data, table)

    assert list(parsed) == sorted(tensors)
    assert len(data) == expected_size(table)
    assert read_table(data) == table
    for name, tensor in tensors.items():
        assert parsed[name].shape == tensor.shape
        assert parsed[name].tobytes() == tensor.tobytes()
    assert serialize(parsed) == data


@given(tensor_maps, st.randoms(use_true_random=False))
def test_order_of_the_mapping_does_not_change_the_bytes(tensors: dict[str, Tensor], random: object) -> None:
    names = list(tensors)
    random.shuffle(names)  # type: ignore[attr-defined]  # hypothesis hands out random.Random as object
    assert serialize({name: tensors[name] for name in names}) == serialize(tensors)


def test_memory_layout_and_byte_order_do_not_change_the_bytes() -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    plain = serialize({"m": matrix})
    assert serialize({"m": np.asfortranarray(matrix)}) == plain
    assert serialize({"m": np.repeat(matrix, 2, axis=1)[:, ::2]}) == plain
    assert serialize({"m": matrix.astype(">f4")}) == plain


def test_safetensors_library_reads_the_same_tensors() -> None:
    tensors = safetensors.numpy.load(serialize(SMALL))
    assert set(tensors) == set(SMALL)
    for name, tensor in SMALL.items():
        np.testing.assert_array_equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype


def test_parsed_tensors_are_read_only_even_over_a_writable_buffer() -> None:
    buffer = bytearray(serialize(SMALL))
    with pytest.raises(ValueError, match="read-only"):
        parse(memoryview(buffer), SMALL_TABLE)["b"][0] = 1.0


def test_other_element_types_are_refused_when_writing() -> None:
    with pytest.raises(ValueError, match="tensor x is float64"):
        serialize({"x": np.zeros(2)})  # type: ignore[dict-item]  # the mistake under test


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_values_are_refused_in_both_directions(value: float) -> None:
    with pytest.raises(InvalidWeights) as raised:
        serialize({"x": np.array([0.0, value], dtype=np.float32)})
    assert raised.value.reason is WeightsFault.NOT_FINITE

    hostile = file_with_header(SMALL_HEADER, SMALL_DATA[:12] + np.float32(value).tobytes())
    with pytest.raises(InvalidWeights, match="tensor b has a NaN or an infinity") as raised:
        parse(hostile, SMALL_TABLE)
    assert raised.value.reason is WeightsFault.NOT_FINITE


@pytest.mark.parametrize("change", [b"", b"\0"], ids=["one byte less", "one byte more"])
def test_any_other_size_is_refused(change: bytes) -> None:
    data = serialize(SMALL)
    data = data + change if change else data[:-1]
    with pytest.raises(InvalidWeights) as raised:
        parse(data, SMALL_TABLE)
    assert raised.value.reason is WeightsFault.WRONG_SIZE
    assert raised.value.detail == f"{len(data)} bytes, the architecture's weights have {expected_size(SMALL_TABLE)}"


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def header_of(**entries: object) -> bytes:
    return json.dumps(entries, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", WeightsFault.MALFORMED_HEADER),
        (b"{", WeightsFault.MALFORMED_HEADER),
        (b"[]", WeightsFault.MALFORMED_HEADER),
        (b"\xff\xfe{}", WeightsFault.MALFORMED_HEADER),
        (b"[" * 100_000, WeightsFault.MALFORMED_HEADER),
        (b'{"a":' + b"1" * 10_000 + b"}", WeightsFault.MALFORMED_HEADER),
        (header_of(a=7), WeightsFault.MALFORMED_HEADER),
        (header_of(a={"dtype": "F32", "shape": [2]}), WeightsFault.MALFORMED_HEADER),
        (header_of(a=entry(extra=1)), WeightsFault.MALFORMED_HEADER),
        (header_of(a=entry(offsets=[0, 4, 8])), WeightsFault.MALFORMED_HEADER),
        (header_of(a=entry(dtype=1)), WeightsFault.MALFORMED_HEADER),
        (header_of(__metadata__={"format": "pt"}, a=entry()), WeightsFault.MALFORMED_HEADER),
        (b'{"a":1,"a":1}', WeightsFault.DUPLICATE_KEY),
        (b'{"a":{"dtype":"F32","dtype":"F32"}}', WeightsFault.DUPLICATE_KEY),
        (header_of(a=entry(dtype="F16")), WeightsFault.WRONG_TENSORS),
        (header_of(a=entry(dtype="numpy")), WeightsFault.WRONG_TENSORS),
        (header_of(a=entry(shape=[-2])), WeightsFault.WRONG_TENSORS),
        (header_of(a=entry(shape=[True, 2])), WeightsFault.WRONG_TENSORS),
        (header_of(a=entry(shape=[2.0])), WeightsFault.WRONG_TENSORS),
        (header_of(a=entry(shape=[MAX_FILE_SIZE + 1])), WeightsFault.WRONG_TENSORS),
        (header_of(a=entry(shape=[1] * 8 + [2])), WeightsFault.WRONG_TENSORS),
        (header_of(**{f"t{number:05}": {} for number in range(MAX_TENSORS + 1)}), WeightsFault.WRONG_TENSORS),
        (header_of(a=entry(offsets=[4, 12])), WeightsFault.WRONG_OFFSETS),
        (header_of(a=entry(), b=entry(offsets=[0, 8])), WeightsFault.WRONG_OFFSETS),
        (header_of(a=entry(), b=entry(offsets=[12, 20])), WeightsFault.WRONG_OFFSETS),
        (header_of(a=entry(offsets=["0", 8])), WeightsFault.WRONG_OFFSETS),
        (header_of(b=entry(), a=entry(offsets=[8, 16])), WeightsFault.NOT_CANONICAL),
        (header_of(a=entry()).replace(b":", b": "), WeightsFault.NOT_CANONICAL),
        (header_of(a=entry()).replace(b'"a"', b'"\\u0061"'), WeightsFault.NOT_CANONICAL),
        (header_of(a=entry(offsets=[False, 8])), WeightsFault.NOT_CANONICAL),
        (b" " + header_of(a=entry()), WeightsFault.NOT_CANONICAL),
        (header_of(a=entry()) + b" " * 16, WeightsFault.NOT_CANONICAL),
    ],
)
def test_hostile_header_is_refused_with_its_reason(header: bytes, reason: WeightsFault) -> None:
    with pytest.raises(InvalidWeights) as raised:
        read_table(file_with_header(header))
    assert raised.value.reason is reason


@pytest.mark.parametrize("stated", [MAX_HEADER_SIZE + 8, 2**64 - 1, 1000])
def test_header_longer_than_the_limit_or_the_file_is_refused(stated: int) -> None:
    with pytest.raises(InvalidWeights) as raised:
        read_table(stated.to_bytes(8, "little") + SMALL_HEADER)
    assert raised.value.reason is WeightsFault.HEADER_TOO_LONG


def test_file_too_short_for_a_header_is_refused() -> None:
    with pytest.raises(InvalidWeights) as raised:
        read_table(b"1234567")
    assert raised.value.reason is WeightsFault.WRONG_SIZE


@pytest.mark.parametrize(
    ("old", "new", "reason", "detail"),
    [
        (b'"b"', b'"c"', WeightsFault.WRONG_TENSORS, "no tensor 'b' of type F32 and shape [2]"),
        (
            b'"shape":[2]',
            b'"shape":[4]',
            WeightsFault.WRONG_OFFSETS,
            "tensor 'b' must occupy bytes 8 to 24 of the data",
        ),
        (b'"I64"', b'"F32"', WeightsFault.WRONG_OFFSETS, "tensor 'a.count' must occupy bytes 0 to 4 of the data"),
        (b'"b"', b'"a"', WeightsFault.NOT_CANONICAL, "the names are not in ascending order"),
        (b"{", b" ", WeightsFault.MALFORMED_HEADER, None),
        (b"[8,16]", b"[8,24]", WeightsFault.WRONG_OFFSETS, "tensor 'b' must occupy bytes 8 to 16 of the data"),
    ],
)
def test_parse_says_how_a_header_differs_from_the_table(
    old: bytes, new: bytes, reason: WeightsFault, detail: str | None
) -> None:
    data = serialize(SMALL).replace(old, new, 1)
    with pytest.raises(InvalidWeights) as raised:
        parse(data, SMALL_TABLE)
    assert raised.value.reason is reason
    assert detail in (None, raised.value.detail)


def test_tensor_that_the_table_lacks_is_named() -> None:
    narrow = {"a": np.zeros((), np.float32), "b": np.zeros((), np.float32)}
    wide = {"a": np.zeros((), np.float32), "c": np.zeros((), np.float32)}
    with pytest.raises(InvalidWeights, match="no tensor 'c'"):
        parse(serialize(narrow), table_of(wide))


@settings(max_examples=60)
@given(st.data())
def test_no_changed_byte_of_a_header_is_accepted(data: st.DataObject) -> None:
    original = serialize(SMALL)
    position = data.draw(st.integers(0, len(original) - len(SMALL_DATA) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != original[position]))
    changed = original[:position] + bytes([value]) + original[position + 1 :]
    with pytest.raises(InvalidWeights):
        parse(changed, SMALL_TABLE)


@given(st.binary(min_size=0, max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for attempt in (data, file_with_header(data, b"")):
        try:
            read_table(attempt)
        except InvalidWeights:
            continue


def test_table_refuses_unsorted_and_repeated_names() -> None:
    spec = TensorSpec("a", DType.F32, ())
    with pytest.raises(ValueError, match="unique names"):
        TensorTable((spec, spec))


def test_modules_a_node_needs_without_training_do_not_import_torch() -> None:
    code = (
        "import sys; "
        "from bflnode.fl import aggregation, architectures, datasets, partition, prototypes, samples, weights; "
        "architectures.architecture('resnet18/3x32x32/10').initial_weights(0); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False, timeout=120).returncode == 0
