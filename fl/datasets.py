"""Reading data sets from where users have them.

Here belong the kinds of data a user can name in a configuration, and the reading of arrays in files. Images in folders
and archives are in `image_folder`, the types everything comes in are in `samples`, spreading over clients is in
`partition`. Nothing is ever downloaded unless it is asked for, and no file is unpickled but those that torchvision
checks against the checksum of the published original.
"""

import gzip
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .image_folder import load_image_folder
from .samples import (
    DatasetError,
    Inputs,
    LabelledData,
    Labels,
    Shard,
    load_shard,
    naming,
    numbered_classes,
    read_npz,
    save_shard,
    split_by_class,
)

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10, SVHN

__all__ = [
    "DatasetError",
    "LabelledData",
    "LoadOptions",
    "Shard",
    "load",
    "load_cifar",
    "load_digits",
    "load_idx",
    "load_npz",
    "load_shard",
    "load_svhn",
    "save_shard",
]

TEST_SHARE = 0.2
"""Of data that comes without a test set."""

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

MAX_IDX_SIZE = 2**30
"""Bytes of an IDX file once unpacked; MNIST's largest has 45 MiB."""

IDX_PIECE_SIZE = 2**20
"""Bytes read at once."""

IDX_UNSIGNED_BYTE = 0x08
"""The element type of all MNIST-like files (LeCun's IDX format, third byte)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to read data.

    Attributes:
        seed: of the split, where data comes without a test set.
        test_share: of each class, in that split.
        class_names: all classes in the order of the task. Needed where a client has not all of them: without it,
            classes are numbered by what is there.
        input_shape: channels, height, width that images are converted to; without it they must all have one size.
        download: whether torchvision may download the published files into the folder.
    """

    seed: int = 0
    test_share: float = TEST_SHARE
    class_names: tuple[str, ...] | None = None
    input_shape: tuple[int, int, int] | None = None
    download: bool = False


DEFAULT_OPTIONS = LoadOptions()


def load(kind: str, path: Path | None = None, options: LoadOptions = DEFAULT_OPTIONS) -> Shard:
    """Read training and test data.

    Args:
        kind: one of `KINDS`.
        path: file or folder; `digits` needs none and `fashion-mnist` has a default.
        options: how to read it.

    Raises:
        DatasetError: names the path, what is wrong and what to do.
    """
    loader = _LOADERS.get(kind)
    if loader is None:
        raise DatasetError(f"there is no kind of data {kind!r}: use one of {', '.join(KINDS)}")
    if path is None:
        path = _DEFAULT_PATHS.get(kind)
        if path is None:
            raise DatasetError(f"data of kind {kind} needs a path: say where the file or folder is")
    elif kind != "digits" and not path.exists() and not options.download:
        raise DatasetError(f"{path} does not exist: check the path of the {kind} data")
    shard = loader(path, options)
    if options.class_names is not None and shard.train.class_names != options.class_names:
        raise DatasetError(
            f"{kind} data has the classes {', '.join(shard.train.class_names[:20])}, "
            f"expected were {', '.join(options.class_names[:20])}: use the data set the task is about"
        )
    return shard


def load_digits(seed: int = 0, test_share: float = TEST_SHARE) -> Shard:
    """scikit-learn's 1,797 handwritten digits, 1x8x8 float32 from 0 to 1, with a share of each class as test data."""
    from sklearn.datasets import load_digits as load_sklearn_digits

    pixels, digits = load_sklearn_digits(return_X_y=True)
    inputs = (pixels.reshape(-1, 1, 8, 8) / 16.0).astype(np.float32)
    return _split(LabelledData(inputs, digits.astype(np.int64), numbered_classes(10)), seed, test_share)


def load_idx(folder: Path, class_names: tuple[str, ...]) -> Shard:
    """MNIST and what has its format: four IDX files with their usual names, gzipped or not.

    Raises:
        DatasetError: a file is missing or broken.
    """
    arrays = [
        (
            _read_idx(folder, f"{prefix}-images-idx3-ubyte", dimensions=3),
            _read_idx(folder, f"{prefix}-labels-idx1-ubyte", dimensions=1),
        )
        for prefix in ("train", "t10k")
    ]
    with naming(folder):
        return Shard(
            *(LabelledData(images[:, np.newaxis], labels.astype(np.int64), class_names) for images, labels in arrays)
        )


def load_npz(path: Path, options: LoadOptions = DEFAULT_OPTIONS) -> Shard:
    """Arrays under x_train, y_train, x_test, y_test, or x and y, which are then split; optionally class_names.

    Inputs are (samples, channels, height, width), or with channels last, or (samples, height, width); uint8, or floats.
    Labels are integers from 0.

    Raises:
        DatasetError: the file isn't that.
    """
    arrays = read_npz(path, ("x_train", "y_train", "x_test", "y_test", "x", "y", "class_names"))
    pairs = [("x_train", "y_train"), ("x_test", "y_test")] if "x_train" in arrays else [("x", "y")]
    missing = [key for pair in pairs for key in pair if key not in arrays]
    if missing:
        raise DatasetError(
            f"{path} has no {', '.join(missing)}: save arrays named x_train, y_train, x_test and y_test, or x and y"
        )
    with naming(path):
        labels = [_as_labels(key, arrays[key]) for _, key in pairs]
        class_names = options.class_names or tuple(
            str(name) for name in arrays.get("class_names", np.array([])).ravel()
        )
        if not class_names:
            class_names = numbered_classes(1 + max((int(values.max()) for values in labels if len(values)), default=0))
        parts = [
            LabelledData(_as_inputs(key, arrays[key]), values, class_names)
            for (key, _), values in zip(pairs, labels, strict=True)
        ]
        return Shard(*parts) if len(parts) == 2 else _split(parts[0], options.seed, options.test_share)


def load_cifar(dataset: "type[CIFAR10]", folder: Path, *, download: bool = False) -> Shard:
    """CIFAR-10 or CIFAR-100 (fine labels) in its published Python format, 3x32x32 uint8, by torchvision.

    Args:
        dataset: torchvision's class, which knows the files and their checksums.
        folder: holds cifar-10-batches-py or cifar-100-python.
        download: whether missing files may be downloaded there.

    Raises:
        DatasetError: files are missing, or don't have the published checksums.
    """
    parts = []
    for train in (True, False):
        try:
            data = dataset(root=folder, train=train, download=download)
        except (OSError, RuntimeError) as error:
            raise _no_published_files(dataset.__name__, folder, error) from error
        inputs = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))
        parts.append(LabelledData(inputs, np.array(data.targets, dtype=np.int64), tuple(data.classes)))
    return Shard(*parts)


def load_svhn(dataset: "type[SVHN]", folder: Path, *, download: bool = False) -> Shard:
    """SVHN's cropped digits in their published MATLAB files, 3x32x32 uint8, by torchvision; see `load_cifar`."""
    parts = []
    for split in ("train", "test"):
        try:
            data = dataset(root=folder, split=split, download=download)
        except (OSError, RuntimeError) as error:
            raise _no_published_files(dataset.__name__, folder, error) from error
        parts.append(LabelledData(data.data, data.labels.astype(np.int64), numbered_classes(10)))
    return Shard(*parts)


def _load_cifar10(path: Path, options: LoadOptions) -> Shard:
    from torchvision.datasets import CIFAR10

    return load_cifar(CIFAR10, path, download=options.download)


def _load_cifar100(path: Path, options: LoadOptions) -> Shard:
    from torchvision.datasets import CIFAR100

    return load_cifar(CIFAR100, path, download=options.download)


def _load_svhn(path: Path, options: LoadOptions) -> Shard:
    from torchvision.datasets import SVHN

    return load_svhn(SVHN, path, download=options.download)


def _load_images(path: Path, options: LoadOptions) -> Shard:
    images = load_image_folder(path, input_shape=options.input_shape, class_names=options.class_names)
    with naming(path):
        if images.test is not None:
            return Shard(images.train, images.test)
        return _split(images.train, options.seed, options.test_share)


_LOADERS: Mapping[str, Callable[[Path, LoadOptions], Shard]] = {
    "digits": lambda _, options: load_digits(options.seed, options.test_share),
    "fashion-mnist": lambda path, _: load_idx(path, FASHION_MNIST_CLASSES),
    "mnist": lambda path, _: load_idx(path, numbered_classes(10)),
    "cifar10": _load_cifar10,
    "cifar100": _load_cifar100,
    "svhn": _load_svhn,
    "imagefolder": _load_images,
    "npz": load_npz,
}

_DEFAULT_PATHS: Mapping[str, Path] = {"digits": Path(), "fashion-mnist": FASHION_MNIST_FOLDER}

KINDS = tuple(_LOADERS)
"""The kinds of data `load` reads."""


def _split(data: LabelledData, seed: int, test_share: float) -> Shard:
    train, test = split_by_class(data.labels, test_share, np.random.default_rng(seed))
    return Shard(data.take(train), data.take(test))


def _read_idx(folder: Path, name: str, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes: magic 00 00 08 <dimensions>, big-endian u32 sizes, data."""
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if plain.exists() else packed
    try:
        if path == plain:
            with plain.open("rb") as file:
                content = _read_bounded(file)
        else:
            with gzip.open(packed) as unpacked:
                content = _read_bounded(unpacked)
    except FileNotFoundError as error:
        raise DatasetError(f"{folder} has neither {name} nor {name}.gz: give the folder that has them") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} can't be read ({error}): get the file again") from error
    header_size = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[start : start + 4], "big") for start in range(4, header_size, 4))
    expected_magic = bytes((0, 0, IDX_UNSIGNED_BYTE, dimensions))
    if content[:4] != expected_magic or len(content) != header_size + int(np.prod(shape, dtype=object)):
        raise DatasetError(
            f"{path} is no IDX file of unsigned bytes in {dimensions} dimensions, or is cut off: get the file again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header_size).reshape(shape)


def _read_bounded(file: IO[bytes] | gzip.GzipFile) -> bytes:
    """The content, or a little more than may be; in pieces, since memory is taken for what is asked for."""
    content = bytearray()
    while len(content) <= MAX_IDX_SIZE and (piece := file.read(IDX_PIECE_SIZE)):
        content += piece
    return bytes(content)


def _as_inputs(key: str, array: NDArray[Any]) -> Inputs:
    if array.ndim == 3:
        array = array[:, np.newaxis]
    if array.ndim != 4:
        raise DatasetError(f"{key} has the shape {array.shape}: save (samples, channels, height, width)")
    if array.shape[3] in (1, 3, 4) and array.shape[1] > 4:
        array = array.transpose(0, 3, 1, 2)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array, dtype=np.uint8)
    if array.dtype.kind != "f":
        raise DatasetError(f"{key} is {array.dtype}: save uint8 from 0 to 255, or floats")
    with np.errstate(over="ignore"):  # what overflows float32 is refused as infinite, with a message
        return np.ascontiguousarray(array, dtype=np.float32)


def _as_labels(key: str, array: NDArray[Any]) -> Labels:
    if array.dtype.kind not in "iu" or array.size != len(np.atleast_1d(array)):
        raise DatasetError(f"{key} is {array.dtype} of shape {array.shape}: save one integer a sample, from 0")
    return array.reshape(-1).astype(np.int64)


def _no_published_files(name: str, folder: Path, error: Exception) -> DatasetError:
    return DatasetError(
        f"{folder} doesn't hold the published files of {name} ({error}): "
        "put them there, or allow the download on a machine with a network"
    )
