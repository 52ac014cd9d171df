"""Labelled samples in memory, and the shard file in which a node keeps its own.

Here belong the types every other module of the learning takes data in, their rules, and splitting by class.
Where data comes from is in `datasets`, how it is spread over clients in `partition`.
"""

import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Inputs = NDArray[np.float32] | NDArray[np.uint8]
"""(samples, channels, height, width); uint8 means 0 to 255 for what float32 has as 0 to 1."""

Labels = NDArray[np.int64]
"""(samples,), each 0 or more and below the number of classes."""

MAX_ARRAY_SIZE = 2**34
"""Bytes of one array once unpacked, 16 GiB: ImageNet at 64x64 in uint8. A small file can hold zeros for far more."""

MAX_SHOWN = 200
"""Characters that an error repeats of what a library says about a damaged file: it quotes the damage."""

MAX_CLASS_NAME = 100
"""Characters: names are for people, ImageNet's longest has 121 with all its synonyms."""


class DatasetError(ValueError):
    """Data that can't be read or used; the message names the path, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class LabelledData:
    """Samples with labels.

    Attributes:
        inputs: (samples, channels, height, width) float32, finite, or uint8.
        labels: (samples,) int64, 0 to classes - 1.
        class_names: one name a class.
    """

    inputs: Inputs
    labels: Labels
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.inputs.ndim != 4 or self.inputs.dtype not in (np.float32, np.uint8):
            raise DatasetError(
                f"inputs are {self.inputs.dtype} of shape {self.inputs.shape}: "
                "give uint8 or float32 of shape (samples, channels, height, width)"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.inputs.shape[:1]:
            raise DatasetError(
                f"labels are {self.labels.dtype} of shape {self.labels.shape} for {len(self.inputs)} samples: "
                "give one int64 a sample"
            )
        if not self.class_names or any(not name or len(name) > MAX_CLASS_NAME for name in self.class_names):
            raise DatasetError(f"class names must have 1 to {MAX_CLASS_NAME} characters, got {self.class_names[:5]}")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < self.classes:
            raise DatasetError(
                f"labels go from {self.labels.min()} to {self.labels.max()}: "
                f"with {self.classes} classes they must lie in 0 to {self.classes - 1}"
            )
        if self.inputs.dtype == np.float32 and not np.isfinite(self.inputs).all():
            raise DatasetError("inputs have a NaN or an infinity: clean the data first")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """Number of classes, present or not."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.inputs.shape
        return channels, height, width

    def histogram(self) -> tuple[int, ...]:
        """Number of samples of each class."""
        return tuple(np.bincount(self.labels, minlength=self.classes).tolist())

    def take(self, indices: NDArray[np.int64]) -> "LabelledData":
        """Copies of the samples at the indices, in their order."""
        return LabelledData(self.inputs[indices], self.labels[indices], self.class_names)


@dataclass(frozen=True, slots=True)
class Shard:
    """The data of one owner: a client's part, or a whole data set before it is spread over clients.

    Attributes:
        train: what the owner trains on; at least one sample.
        test: what the owner measures its accuracy on, never trained on; at least one sample.
    """

    train: LabelledData
    test: LabelledData

    def __post_init__(self) -> None:
        if not len(self.train) or not len(self.test):
            raise DatasetError(
                f"{len(self.train)} training and {len(self.test)} test samples: add some, each needs at least one"
            )
        if self.train.input_shape != self.test.input_shape or self.train.class_names != self.test.class_names:
            raise DatasetError(
                f"training data is {self.train.input_shape} with {self.train.classes} classes, "
                f"test data {self.test.input_shape} with {self.test.classes}: they must have the same shape and classes"
            )

    @property
    def classes(self) -> int:
        """Number of classes, present or not."""
        return self.train.classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.train.input_shape


def as_float(inputs: Inputs) -> NDArray[np.float32]:
    """Inputs as models take them: float32, with uint8's 0 to 255 scaled to 0 to 1."""
    if inputs.dtype == np.uint8:
        return inputs.astype(np.float32) / np.float32(255.0)
    return inputs.astype(np.float32, copy=False)


def numbered_classes(classes: int) -> tuple[str, ...]:
    """Names for classes that have none: their numbers from 0."""
    return tuple(str(number) for number in range(classes))


def split_by_class(labels: Labels, share: float, generator: np.random.Generator) -> tuple[Labels, Labels]:
    """Split sample indices in two, class by class.

    Args:
        labels: (samples,).
        share: part of each class that goes to the second side, more than 0 and less than 1; rounded to the
            nearest count, and at least one of a class that has two or more samples.
        generator: draws which samples.

    Returns:
        Two ascending arrays of indices, disjoint, together all.
    """
    if not 0.0 < share < 1.0:
        raise DatasetError(f"a share of {share} can't be split off: give more than 0 and less than 1")
    second = np.zeros(len(labels), dtype=np.bool_)
    for category in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == category))
        count = round(len(members) * share)
        if len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        second[members[:count]] = True
    return np.flatnonzero(~second), np.flatnonzero(second)


def save_shard(path: Path, shard: Shard) -> None:
    """Write a shard as a compressed .npz at exactly this path, replacing what is there."""
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            x_train=shard.train.inputs,
            y_train=shard.train.labels,
            x_test=shard.test.inputs,
            y_test=shard.test.labels,
            class_names=np.array(shard.train.class_names, dtype=np.str_),
        )


def load_shard(path: Path) -> Shard:
    """Read a shard that `save_shard` wrote.

    Raises:
        DatasetError: the file is missing or isn't a shard.
    """
    arrays = read_npz(path, ("x_train", "y_train", "x_test", "y_test", "class_names"))
    missing = [key for key in ("x_train", "y_train", "x_test", "y_test", "class_names") if key not in arrays]
    if missing:
        raise DatasetError(f"{path} is no shard: it has no {', '.join(missing)}; write it anew or give another file")
    class_names = tuple(str(name) for name in arrays["class_names"].ravel())
    with naming(path):
        return Shard(
            LabelledData(arrays["x_train"], arrays["y_train"], class_names),
            LabelledData(arrays["x_test"], arrays["y_test"], class_names),
        )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the path before the message of a refusal of what was read from it."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def printable(text: str) -> str:
    """What a library or a name says, for a message: bounded, and nothing in it rewrites a terminal."""
    shown = text[:MAX_SHOWN]
    return shown if shown.isprintable() else ascii(shown)


def read_npz(path: Path, keys: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Those of the arrays named `keys` that an .npz has; never unpickles.

    Raises:
        DatasetError: no such file, not an .npz, or an array of Python objects.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DatasetError(f"{path} holds one bare array: save it with numpy.savez under named keys")
            return {key: _array(archive, key) for key in keys if key in archive.files}
    except DatasetError:
        raise
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist: check the path") from error
    except _UNREADABLE as error:
        # What numpy can't name, it takes for a pickle, and says how to load that: nobody should.
        why = "it holds no arrays, or Python objects" if "pickle" in str(error) else printable(str(error))
        raise DatasetError(
            f"{path} can't be read as .npz ({why}): save plain number arrays with numpy.savez, no Python objects"
        ) from error


_UNREADABLE = (
    *(OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error),
    # What numpy lets through of a header that announces too much, or is no literal of Python.
    *(MemoryError, OverflowError, TypeError, KeyError, tokenize.TokenError),
)
"""How an .npz fails to be read; RecursionError and NotImplementedError are RuntimeErrors."""


def _array(archive: "np.lib.npyio.NpzFile", key: str) -> NDArray[Any]:
    """One array; numpy takes both `key` and `key.npy` for its name."""
    sizes = {entry.filename: entry.file_size for entry in archive.zip.infolist()} if archive.zip is not None else {}
    size = max(sizes.get(key, 0), sizes.get(f"{key}.npy", 0))
    if size > MAX_ARRAY_SIZE:
        raise ValueError(f"{key} has {size} bytes unpacked, at most {MAX_ARRAY_SIZE} are read")
    array: NDArray[Any] = archive[key]
    return array
