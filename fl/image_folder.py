"""Images sorted into folders by class, on disk or inside a tar archive, as labelled data.

Layouts: `train/<class>/<image>` with `test/<class>/<image>`, or `<class>/<image>` alone. An archive is read as a
stream in memory: nothing is unpacked to disk, so its names can't escape from anywhere; sizes and counts are bounded.
"""

import io
import lzma
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from .samples import DatasetError, LabelledData, printable

_PARSER_FAILURES = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError),
    *(AttributeError, RuntimeError, MemoryError, struct.error),
)
"""What tarfile and Pillow's decoders raise on damaged files: they check little before they compute."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm"})
"""Files with other suffixes (READMEs, thumbnails' indexes) and hidden files are not data."""

IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM")
"""Decoders that are tried: fewer than Pillow has, each is a parser of foreign bytes."""

MAX_IMAGE_FILE_SIZE = 64 * 2**20
"""Bytes of one image file: photographs have 10 MiB."""

MAX_IMAGE_PIXELS = 64 * 10**6
"""Pixels of one image before it is scaled, against decompression bombs."""

MAX_IMAGES = 2_000_000
"""ImageNet has 1.3 million."""

MAX_DATA_SIZE = 16 * 2**30
"""Bytes of all decoded images together, which are held in memory."""

MAX_ARCHIVE_SIZE = 256 * 2**30
"""Bytes of an archive once unpacked: ends the reading of a bomb."""

GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16"})
"""Pillow's modes without colour."""

_MODES = {1: "L", 3: "RGB"}
"""Pillow's mode for a number of channels."""


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """What a folder holds.

    Attributes:
        train: all images where there is no test folder.
        test: None where the classes lie at the top.
    """

    train: LabelledData
    test: LabelledData | None


@dataclass(frozen=True, slots=True)
class _File:
    """One image file; the path is relative to the folder or archive."""

    path: PurePosixPath
    content: bytes


def load_image_folder(
    path: Path,
    *,
    input_shape: tuple[int, int, int] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> ImageFolder:
    """Read images as uint8.

    Samples are in the order of their paths, so a folder and an archive of it give the same data.

    Args:
        path: a folder, or a .tar, .tar.gz, .tar.bz2 or .tar.xz.
        input_shape: channels (1 or 3), height, width to convert to; without it all images must be of one size,
            and the first one's mode decides on colour.
        class_names: all classes in the order of the task; without it, the folders' names in ascending order.

    Raises:
        DatasetError: names the file, what is wrong and what to do.
    """
    if input_shape is not None and input_shape[0] not in _MODES:
        raise DatasetError(f"images can't have {input_shape[0]} channels: state 1 for grey or 3 for colour")
    files = _files_of_archive(path) if path.is_file() else _files_of_folder(path)
    pixels_of: dict[PurePosixPath, NDArray[np.uint8]] = {}
    shape, total = input_shape, 0
    for file in files:
        pixels = _decode(path, file, shape, may_scale=input_shape is not None)
        shape = (pixels.shape[0], pixels.shape[1], pixels.shape[2])
        total += pixels.nbytes
        if len(pixels_of) == MAX_IMAGES or total > MAX_DATA_SIZE:
            raise DatasetError(f"{path} has over {MAX_IMAGES} images or {MAX_DATA_SIZE} bytes of pixels: use fewer")
        if file.path in pixels_of:
            raise DatasetError(f"{path} has {file.path} twice: pack the archive again")
        pixels_of[file.path] = pixels
    if not pixels_of:
        raise DatasetError(
            f"{path} has no images in class folders: arrange it as train/<class>/<image> and test/<class>/<image>, "
            f"or <class>/<image>; images end in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return _arrange(path, pixels_of, class_names)


def _arrange(
    path: Path, pixels_of: dict[PurePosixPath, NDArray[np.uint8]], class_names: tuple[str, ...] | None
) -> ImageFolder:
    """Sort decoded images into splits and classes."""
    names = sorted(pixels_of)
    has_splits = {"train", "test"} & {name.parts[0] for name in names} != set()
    for name in names:
        if len(name.parts) != (3 if has_splits else 2) or (has_splits and name.parts[0] not in ("train", "test")):
            layout = "train/<class>/<image> and test/<class>/<image>" if has_splits else "<class>/<image>"
            raise DatasetError(f"{path}: {printable(str(name))} doesn't fit the layout {layout}: move or remove it")
    found = sorted({name.parts[-2] for name in names})
    class_names = tuple(found) if class_names is None else class_names
    unknown = [name for name in found if name not in class_names]
    if unknown:
        raise DatasetError(
            f"{path} has a folder {unknown[0]!r}, which is none of the classes {', '.join(class_names[:20])}: "
            "rename or remove it"
        )
    number_of = {name: number for number, name in enumerate(class_names)}

    def labelled(chosen: list[PurePosixPath]) -> LabelledData:
        if not chosen:
            raise DatasetError(f"{path} has only one of train and test: add the other, or put the class folders on top")
        labels = np.array([number_of[name.parts[-2]] for name in chosen], dtype=np.int64)
        return LabelledData(np.stack([pixels_of[name] for name in chosen]), labels, class_names)

    if not has_splits:
        return ImageFolder(labelled(names), None)
    return ImageFolder(
        labelled([name for name in names if name.parts[0] == "train"]),
        labelled([name for name in names if name.parts[0] == "test"]),
    )


def _files_of_folder(folder: Path) -> Iterator[_File]:
    """Image files below a folder, in ascending order; links to folders aren't followed."""
    for path in sorted(folder.rglob("*")):
        name = PurePosixPath(path.relative_to(folder).as_posix())
        if not _is_image(name) or not path.is_file():
            continue
        try:
            _refuse_large_file(folder, name, path.stat().st_size)
            content = path.read_bytes()
        except OSError as error:
            raise DatasetError(f"{path} can't be read ({error.strerror}): check its permissions") from error
        yield _File(name, content)


def _files_of_archive(path: Path) -> Iterator[_File]:
    """Image files in a tar archive, in its order."""
    unpacked = 0
    try:
        with tarfile.open(path, mode="r|*") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                unpacked += member.size
                if unpacked > MAX_ARCHIVE_SIZE:
                    raise DatasetError(f"{path} unpacks to more than {MAX_ARCHIVE_SIZE} bytes: use a smaller archive")
                if name.is_absolute() or ".." in name.parts:
                    raise DatasetError(
                        f"{path}: {printable(str(name))} leads out of the archive: pack it again with relative names"
                    )
                if not _is_image(name):
                    continue
                if not member.isreg():
                    raise DatasetError(
                        f"{path}: {printable(str(name))} is no plain file: pack it again with links resolved (tar -h)"
                    )
                _refuse_large_file(path, name, member.size)
                reader = archive.extractfile(member)
                assert reader is not None, "extractfile gives a reader for every plain file"
                yield _File(name, reader.read())
    except DatasetError:
        raise
    except (tarfile.TarError, zlib.error, lzma.LZMAError, *_PARSER_FAILURES) as error:
        why = printable(str(error))
        raise DatasetError(f"{path} can't be read as a tar archive ({why}): get or pack the file again") from error


def _is_image(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    return not hidden and name.suffix.lower() in IMAGE_SUFFIXES


def _refuse_large_file(path: Path, name: PurePosixPath, size_bytes: int) -> None:
    if size_bytes > MAX_IMAGE_FILE_SIZE:
        raise DatasetError(
            f"{path}: {printable(str(name))} has {size_bytes} bytes, at most {MAX_IMAGE_FILE_SIZE}: scale it down"
        )


def _decode(path: Path, file: _File, shape: tuple[int, int, int] | None, *, may_scale: bool) -> NDArray[np.uint8]:
    """One image as (channels, height, width), scaled to the shape if it may be."""
    from PIL import Image, UnidentifiedImageError

    shown = printable(str(file.path))
    try:
        with Image.open(io.BytesIO(file.content), formats=IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise DatasetError(f"{path}: {shown} is {width}x{height} pixels: scale it down")
            if shape is None:
                shape = (1 if image.mode in GREY_MODES else 3, height, width)
            converted = image.convert(_MODES[shape[0]])
            if (height, width) != shape[1:]:
                if not may_scale:
                    raise DatasetError(
                        f"{path}: {shown} is {width}x{height} pixels, others are {shape[2]}x{shape[1]}: "
                        "state an input shape to scale all of them to"
                    )
                converted = converted.resize((shape[2], shape[1]), Image.Resampling.BILINEAR)
    except DatasetError:
        raise
    except (SyntaxError, Image.DecompressionBombError, *_PARSER_FAILURES) as error:
        is_unknown = isinstance(error, UnidentifiedImageError)
        why = f"none of {', '.join(IMAGE_FORMATS)}" if is_unknown else printable(str(error))
        raise DatasetError(f"{path}: {shown} is no readable image ({why}): replace or remove it") from error
    pixels = np.asarray(converted, dtype=np.uint8)
    return pixels[np.newaxis] if shape[0] == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
