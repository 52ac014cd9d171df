import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bflnode.fl import samples
from bflnode.fl.samples import (
    DatasetError,
    LabelledData,
    Shard,
    as_float,
    load_shard,
    numbered_classes,
    read_npz,
    save_shard,
    split_by_class,
)


def some_data(samples: int = 6, *, dtype: type = np.float32, classes: int = 3) -> LabelledData:
    generator = np.random.default_rng(samples)
    inputs = generator.integers(0, 256, (samples, 1, 2, 3)).astype(dtype)
    return LabelledData(inputs, (np.arange(samples) % classes).astype(np.int64), numbered_classes(classes))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_shard_file_gives_back_the_shard(tmp_path: Path, dtype: type) -> None:
    names = ("Käse", "b c", "z")
    shard = Shard(
        *(
            LabelledData(data.inputs, data.labels, names)
            for data in (some_data(7, dtype=dtype), some_data(3, dtype=dtype))
        )
    )
    path = tmp_path / "shard"
    save_shard(path, shard)
    loaded = load_shard(path)

    assert loaded.classes == 3
    assert loaded.input_shape == (1, 2, 3)
    for ours, theirs in ((shard.train, loaded.train), (shard.test, loaded.test)):
        np.testing.assert_array_equal(ours.inputs, theirs.inputs)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert theirs.inputs.dtype == dtype
        assert theirs.class_names == names


def test_missing_shard_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"{tmp_path}/none does not exist: check the path"):
        load_shard(tmp_path / "none")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04broken", b"\x93NUMPY"])
def test_file_that_is_no_shard_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "shard.npz"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"shard\.npz can't be read as \.npz"):
        load_shard(path)


def test_truncated_shard_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.npz"
    save_shard(path, Shard(some_data(), some_data()))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DatasetError, match="can't be read"):
        load_shard(path)


def test_no_flipped_byte_in_a_shard_raises_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "shard.npz"
    save_shard(path, Shard(some_data(), some_data()))
    original = path.read_bytes()
    refused = 0
    for position in range(len(original)):
        path.write_bytes(original[:position] + bytes([original[position] ^ 0xFF]) + original[position + 1 :])
        try:
            load_shard(path)
        except DatasetError:
            refused += 1
    assert refused > len(original) / 2


def test_shard_without_an_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.npz"
    np.savez(path, x_train=np.zeros(3))
    with pytest.raises(DatasetError, match="is no shard: it has no y_train, x_test, y_test, class_names"):
        load_shard(path)


def test_bare_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(DatasetError, match="one bare array"):
        read_npz(path, ("x",))


class Trap:
    """Unpickling this leaves a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    evidence, path = tmp_path / "evidence", tmp_path / "x.npz"
    np.savez(path, x=np.array([Trap(str(evidence))], dtype=object))
    with pytest.raises(DatasetError, match="no Python objects"):
        read_npz(path, ("x",))
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Trap(str(evidence))))
    with pytest.raises(DatasetError, match="no Python objects"):
        read_npz(tmp_path / "y.npz", ("x",))
    assert not evidence.exists()


def test_trap_of_the_test_above_works(tmp_path: Path) -> None:
    pickle.load(io.BytesIO(pickle.dumps(Trap(str(tmp_path / "evidence"))))).close()
    assert (tmp_path / "evidence").exists()


@pytest.mark.parametrize(
    ("inputs", "labels", "names", "message"),
    [
        (np.zeros((2, 3), np.float32), np.zeros(2, np.int64), ("a",), "inputs are float32 of shape"),
        (np.zeros((2, 1, 1, 1)), np.zeros(2, np.int64), ("a",), "inputs are float64"),
        (np.zeros((2, 1, 1, 1), np.float32), np.zeros(3, np.int64), ("a",), "labels are int64 of shape"),
        (np.zeros((2, 1, 1, 1), np.float32), np.zeros(2, np.int32), ("a",), "labels are int32"),
        (np.zeros((2, 1, 1, 1), np.float32), np.array([0, 2]), ("a", "b"), "labels go from 0 to 2: with 2 classes"),
        (np.zeros((2, 1, 1, 1), np.float32), np.array([-1, 0]), ("a", "b"), "labels go from -1 to 0"),
        (np.full((2, 1, 1, 1), np.nan, np.float32), np.array([0, 0]), ("a",), "NaN"),
        (np.zeros((2, 1, 1, 1), np.float32), np.array([0, 0]), (), "class names"),
        (np.zeros((2, 1, 1, 1), np.float32), np.array([0, 0]), ("",), "class names"),
    ],
)
def test_unusable_data_is_refused(inputs: np.ndarray, labels: np.ndarray, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DatasetError) as raised:
        LabelledData(inputs, labels, names)
    assert message in str(raised.value)


def test_shard_needs_training_and_test_samples_of_one_kind() -> None:
    data = some_data()
    nothing = data.take(np.array([], dtype=np.int64))
    with pytest.raises(DatasetError, match="6 training and 0 test samples"):
        Shard(data, nothing)
    with pytest.raises(DatasetError, match="with 3 classes, test data"):
        Shard(data, some_data(classes=2))


def test_histogram_counts_absent_classes() -> None:
    data = some_data(4, classes=3)
    assert data.take(np.array([0, 1, 3])).histogram() == (2, 1, 0)


def test_bytes_become_floats_from_0_to_1() -> None:
    inputs = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    np.testing.assert_array_equal(as_float(inputs).ravel(), np.array([0.0, 0.2, 1.0], np.float32))
    assert as_float(inputs).dtype == np.float32


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32),
)
def test_split_is_a_partition_that_leaves_each_class_on_both_sides(labels: list[int], share: float, seed: int) -> None:
    array = np.array(labels, dtype=np.int64)
    first, second = split_by_class(array, share, np.random.default_rng(seed))
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert list(first) == sorted(first)
    assert list(second) == sorted(second)
    for category in set(labels):
        if labels.count(category) > 1:
            assert category in array[first]
            assert category in array[second]


def test_split_takes_its_share_of_each_class() -> None:
    labels = np.repeat(np.arange(3), (10, 20, 5))
    _, second = split_by_class(labels, 0.2, np.random.default_rng(0))
    assert np.bincount(labels[second]).tolist() == [2, 4, 1]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_share_that_splits_nothing_is_refused(share: float) -> None:
    with pytest.raises(DatasetError, match="can't be split off"):
        split_by_class(np.zeros(3, np.int64), share, np.random.default_rng(0))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000,)}",
        f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**70},)}}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (True,)}",
        "-" * 9_000 + "1",
        "(" * 9_000,
    ],
)
def test_an_array_with_a_hostile_header_is_refused(tmp_path: Path, header: str) -> None:
    """numpy lets MemoryError, OverflowError, TypeError and TokenError through."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(DatasetError, match=r"x\.npz can't be read as \.npz"):
        read_npz(path, ("x",))


def test_an_array_that_unpacks_to_more_than_the_limit_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MAX_ARRAY_SIZE", 1_000)
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.zeros(2_000, dtype=np.uint8), y=np.zeros(100, dtype=np.uint8))
    with pytest.raises(DatasetError, match="x has 2128 bytes unpacked, at most 1000 are read"):
        read_npz(path, ("x",))
    assert len(read_npz(path, ("y",))["y"]) == 100
