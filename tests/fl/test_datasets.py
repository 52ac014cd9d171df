import gzip
import pickle
import subprocess
import sys
import threading
from hashlib import md5
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

from bflnode.fl.datasets import (
    FASHION_MNIST_CLASSES,
    KINDS,
    DatasetError,
    LoadOptions,
    load,
    load_cifar,
    load_digits,
    load_idx,
    load_svhn,
)

GENERATOR = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in LeCun's IDX format."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def write_idx_folder(folder: Path, *, packed: bool, classes: int = 10) -> dict[str, np.ndarray]:
    arrays = {
        "train-images-idx3-ubyte": GENERATOR.integers(0, 256, (6, 4, 5), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.arange(6, dtype=np.uint8) % classes,
        "t10k-images-idx3-ubyte": GENERATOR.integers(0, 256, (3, 4, 5), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(3, dtype=np.uint8) % classes,
    }
    for name, array in arrays.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays


def test_digits_are_split_by_class_and_scaled() -> None:
    shard = load("digits")
    assert len(shard.train) + len(shard.test) == 1797
    assert shard.input_shape == (1, 8, 8)
    assert shard.train.inputs.dtype == np.float32
    assert (shard.train.inputs.min(), shard.train.inputs.max()) == (0.0, 1.0)
    assert min(shard.test.histogram()) >= 34
    assert load("digits", options=LoadOptions(seed=1)).test.inputs.tobytes() != shard.test.inputs.tobytes()
    assert load_digits().test.inputs.tobytes() == shard.test.inputs.tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_gzipped_or_not(tmp_path: Path, packed: bool) -> None:
    arrays = write_idx_folder(tmp_path, packed=packed)
    shard = load("fashion-mnist", tmp_path)
    np.testing.assert_array_equal(shard.train.inputs, arrays["train-images-idx3-ubyte"][:, np.newaxis])
    np.testing.assert_array_equal(shard.test.inputs, arrays["t10k-images-idx3-ubyte"][:, np.newaxis])
    np.testing.assert_array_equal(shard.train.labels, arrays["train-labels-idx1-ubyte"])
    assert shard.train.class_names == FASHION_MNIST_CLASSES
    assert load("mnist", tmp_path).train.class_names[3] == "3"


def test_missing_idx_file_is_named(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, packed=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DatasetError, match=r"has neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte\.gz"):
        load_idx(tmp_path, FASHION_MNIST_CLASSES)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08\x01",
        b"\0\0\x0d\x01\0\0\0\x01\0",
        b"\0\0\x08\x03\0\0\0\x01\0",
        idx(np.zeros(3, np.uint8))[:-1],
        idx(np.zeros(3, np.uint8)) + b"\0",
        b"\0\0\x08\x01\xff\xff\xff\xff\0",
    ],
)
def test_broken_idx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    write_idx_folder(tmp_path, packed=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(DatasetError, match="train-labels-idx1-ubyte is no IDX file of unsigned bytes in 1 dimensions"):
        load_idx(tmp_path, FASHION_MNIST_CLASSES)


def test_truncated_gzip_is_refused(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte\.gz can't be read"):
        load_idx(tmp_path, FASHION_MNIST_CLASSES)


def test_label_beyond_the_classes_names_the_folder(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, packed=False)
    with pytest.raises(DatasetError, match=f"{tmp_path}: labels go from 0 to 5: with 3 classes"):
        load_idx(tmp_path, ("a", "b", "c"))


def test_fashion_mnist_of_debian_is_read_where_it_is_installed() -> None:
    if not Path("/usr/share/datasets/fashion-mnist").exists():
        pytest.skip("Debian's package dataset-fashion-mnist isn't installed")
    shard = load("fashion-mnist")
    assert (len(shard.train), len(shard.test)) == (60_000, 10_000)
    assert set(shard.train.histogram()) == {6000}


def write_cifar(
    dataset: type[CIFAR10], folder: Path, *, label_key: str, classes: list[str]
) -> tuple[type[CIFAR10], dict[str, np.ndarray]]:
    """Write pickled batches as the published files have them, and derive a class that expects their checksums."""
    base = folder / dataset.base_folder
    base.mkdir(parents=True)
    pixels: dict[str, np.ndarray] = {}
    checksums: dict[str, str] = {}
    for name, _ in [*dataset.train_list, *dataset.test_list]:
        pixels[name] = GENERATOR.integers(0, 256, (4, 3 * 32 * 32), dtype=np.uint8)
        content = pickle.dumps({"data": pixels[name], label_key: [0, 1, 2, 1], "batch_label": name})
        (base / name).write_bytes(content)
        checksums[name] = md5(content).hexdigest()
    meta = pickle.dumps({dataset.meta["key"]: classes})
    (base / dataset.meta["filename"]).write_bytes(meta)
    derived = type(
        dataset.__name__,
        (dataset,),
        {
            "train_list": [[name, checksums[name]] for name, _ in dataset.train_list],
            "test_list": [[name, checksums[name]] for name, _ in dataset.test_list],
            "meta": {**dataset.meta, "md5": md5(meta).hexdigest()},
        },
    )
    return derived, pixels


def test_cifar10_batches_are_read(tmp_path: Path) -> None:
    names = ["airplane", "automobile", "bird"]
    dataset, pixels = write_cifar(CIFAR10, tmp_path, label_key="labels", classes=names)
    shard = load_cifar(dataset, tmp_path)
    expected = np.concatenate([pixels[f"data_batch_{number}"] for number in range(1, 6)])
    np.testing.assert_array_equal(shard.train.inputs, expected.reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(shard.test.inputs, pixels["test_batch"].reshape(-1, 3, 32, 32))
    assert shard.train.labels.tolist() == [0, 1, 2, 1] * 5
    assert shard.train.class_names == tuple(names)
    assert shard.train.inputs.dtype == np.uint8


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    names = [f"fine {number}" for number in range(100)]
    dataset, pixels = write_cifar(CIFAR100, tmp_path, label_key="fine_labels", classes=names)
    shard = load_cifar(dataset, tmp_path)
    np.testing.assert_array_equal(shard.train.inputs, pixels["train"].reshape(-1, 3, 32, 32))
    assert shard.train.labels.tolist() == [0, 1, 2, 1]
    assert shard.classes == 100


def test_svhn_files_are_read(tmp_path: Path) -> None:
    checksums, pixels = {}, {}
    for split in ("train", "test"):
        pixels[split] = GENERATOR.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
        path = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": pixels[split], "y": np.array([[10], [1], [9], [10]], np.uint8)})
        checksums[split] = md5(path.read_bytes()).hexdigest()
    split_list = {split: [*SVHN.split_list[split][:2], checksums[split]] for split in checksums}
    shard = load_svhn(type("SVHN", (SVHN,), {"split_list": split_list}), tmp_path)
    np.testing.assert_array_equal(shard.train.inputs, pixels["train"].transpose(3, 2, 0, 1))
    assert shard.test.labels.tolist() == [0, 1, 9, 0]


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "svhn"])
def test_missing_published_files_are_a_clear_error_and_no_download(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DatasetError, match=f"{tmp_path} doesn't hold the published files of .* allow the download"):
        load(kind, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pickle_without_the_published_checksum_is_never_loaded(tmp_path: Path) -> None:
    write_cifar(CIFAR10, tmp_path, label_key="labels", classes=["a", "b", "c"])
    evidence = tmp_path / "evidence"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (open, (str(evidence), "w"))

    (tmp_path / CIFAR10.base_folder / "data_batch_1").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DatasetError, match="doesn't hold the published files of CIFAR10"):
        load("cifar10", tmp_path)
    assert not evidence.exists()


def test_failed_download_is_a_clear_error(tmp_path: Path) -> None:
    """A server on the loopback has no such file; without one the error is the same."""

    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), NotFound)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/cifar.tar.gz"
        dataset = type("CIFAR10", (CIFAR10,), {"url": url})
        with pytest.raises(DatasetError, match="doesn't hold the published files of CIFAR10"):
            load_cifar(dataset, tmp_path / "new", download=True)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_npz_with_test_data_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    x, y = GENERATOR.random((6, 2, 4, 5)), np.array([0, 1, 2, 0, 1, 2], np.uint8)
    np.savez(path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2], class_names=["a", "b", "c"])
    shard = load("npz", path)
    np.testing.assert_array_equal(shard.train.inputs, x.astype(np.float32))
    assert shard.test.labels.tolist() == [0, 1]
    assert shard.train.class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((10, 5, 6), (1, 5, 6)), ((10, 3, 8, 8), (3, 8, 8)), ((10, 8, 7, 3), (3, 8, 7)), ((10, 1, 8, 3), (1, 8, 3))],
)
def test_npz_inputs_may_come_without_channels_or_with_channels_last(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    path = tmp_path / "mine.npz"
    x = GENERATOR.integers(0, 256, shape, dtype=np.uint8)
    np.savez(path, x=x, y=np.array([[0], [1]] * 5))
    shard = load("npz", path, LoadOptions(test_share=0.4))
    assert shard.input_shape == expected
    assert (len(shard.train), len(shard.test)) == (6, 4)
    assert sorted(np.concatenate([shard.train.inputs, shard.test.inputs]).sum(axis=(1, 2, 3))) == sorted(
        x.reshape(10, -1).sum(axis=1)
    )


def test_client_that_lacks_the_last_classes_still_has_all_classes(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, x=np.zeros((4, 2, 2), np.float32), y=[0, 0, 1, 1])
    assert load("npz", path).classes == 2
    options = LoadOptions(class_names=tuple("abcde"), test_share=0.5)
    assert load("npz", path, options).classes == 5


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "has no x, y: save arrays named"),
        ({"x_train": np.zeros((2, 2, 2)), "y_train": [0, 1]}, "has no x_test, y_test"),
        ({"x": np.zeros((4, 64)), "y": [0, 0, 1, 1]}, r"x has the shape \(4, 64\): save \(samples, channels, height"),
        ({"x": np.zeros((4, 2, 2), np.int64), "y": [0, 0, 1, 1]}, "x is int64: save uint8 from 0 to 255, or floats"),
        ({"x": np.zeros((4, 2, 2)), "y": [0.0, 0.0, 1.0, 1.0]}, "y is float64"),
        ({"x": np.zeros((4, 2, 2)), "y": [[0, 1]] * 4}, r"y is int64 of shape \(4, 2\)"),
        ({"x": np.zeros((4, 2, 2)), "y": 3}, r"labels are int64 of shape \(1,\) for 4 samples"),
        ({"x": np.zeros((4, 2, 2)), "y": [0, 1]}, "labels are int64 of shape"),
        ({"x": np.zeros((4, 2, 2)), "y": [0, -1, 1, 1]}, "labels go from -1 to 1"),
        ({"x": np.full((4, 2, 2), 1e300), "y": [0, 0, 1, 1]}, "inputs have a NaN or an infinity"),
        ({"x": np.zeros((1, 2, 2)), "y": [0]}, "1 training and 0 test samples"),
    ],
)
def test_unusable_npz_is_refused_with_the_cause(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]  # lists are fine
    with pytest.raises(DatasetError, match=message) as raised:
        load("npz", path)
    assert str(path) in str(raised.value)


def test_unknown_kind_and_missing_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=rf"no kind of data 'imagenet': use one of {', '.join(KINDS)}"):
        load("imagenet")
    with pytest.raises(DatasetError, match="data of kind cifar10 needs a path"):
        load("cifar10")
    with pytest.raises(DatasetError, match=f"{tmp_path}/none does not exist: check the path of the imagefolder data"):
        load("imagefolder", tmp_path / "none")


def test_data_with_other_classes_than_the_task_is_refused(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, packed=False)
    with pytest.raises(DatasetError, match=r"fashion-mnist data has the classes T-shirt/top, .*, expected were a, b"):
        load("fashion-mnist", tmp_path, LoadOptions(class_names=("a", "b")))


def test_reading_npz_and_idx_does_not_import_torch(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, packed=False)
    code = (
        "import sys; from pathlib import Path; from bflnode.fl.datasets import load; load('digits'); "
        "load('mnist', Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    assert subprocess.run(command, check=False, timeout=120).returncode == 0
