import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bflnode.fl.image_folder as image_folder
from bflnode.fl.datasets import DatasetError, LoadOptions, load
from bflnode.fl.image_folder import load_image_folder

SHARED_ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.tar.gz"


def picture(value: int, *, size: tuple[int, int] = (4, 3), mode: str = "RGB", kind: str = "PNG") -> bytes:
    """An image of one colour; size is width, height."""
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(buffer, kind)
    return buffer.getvalue()


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # the mode varies
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


SPLIT_TREE = {
    "train/cat/1.png": picture(1),
    "train/cat/0.png": picture(0),
    "train/dog/a.PNG": picture(2),
    "test/dog/x.png": picture(3),
    "README.txt": b"hello",
    "train/cat/.hidden.png": b"",
    "train/cat/Thumbs.db": b"",
}


def assert_split_tree(path: Path) -> None:
    shard = load("imagefolder", path)
    assert shard.train.class_names == ("cat", "dog")
    assert shard.train.inputs.shape == (3, 3, 3, 4)
    assert shard.train.inputs.dtype == np.uint8
    assert shard.train.inputs[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert shard.train.inputs[:, 2, 0, 0].tolist() == [255, 255, 255]
    assert shard.train.labels.tolist() == [0, 0, 1]
    assert shard.test.inputs[:, 0, 2, 3].tolist() == [3]
    assert shard.test.labels.tolist() == [1]


def test_folder_with_train_and_test_is_read(tmp_path: Path) -> None:
    assert_split_tree(write_tree(tmp_path / "data", SPLIT_TREE))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_archive_is_read_like_the_folder(tmp_path: Path, mode: str, prefix: str) -> None:
    files = {prefix + name: content for name, content in SPLIT_TREE.items()}
    assert_split_tree(write_tar(tmp_path / "data.tar", files, mode))
    assert [path.name for path in tmp_path.iterdir()] == ["data.tar"]


def test_class_folders_on_top_are_split_by_seed(tmp_path: Path) -> None:
    files = {f"{name}/{number}.png": picture(number) for name in ("a", "b") for number in range(10)}
    shard = load("imagefolder", write_tree(tmp_path, files), LoadOptions(test_share=0.3))
    assert shard.train.histogram() == (7, 7)
    assert shard.test.histogram() == (3, 3)
    other = load("imagefolder", tmp_path, LoadOptions(test_share=0.3, seed=1))
    assert not np.array_equal(other.test.inputs, shard.test.inputs)


def test_client_without_all_classes_numbers_them_as_the_task_does(tmp_path: Path) -> None:
    files = {"dog/0.png": picture(0), "dog/1.png": picture(1)}
    options = LoadOptions(class_names=("cat", "dog", "eel"), test_share=0.5)
    shard = load("imagefolder", write_tree(tmp_path, files), options)
    assert shard.train.labels.tolist() == [1]
    assert shard.classes == 3


def test_images_are_converted_to_the_shape_of_the_task(tmp_path: Path) -> None:
    files = {"a/0.png": picture(100, size=(8, 6)), "a/1.jpg": picture(200, size=(4, 3), mode="L", kind="JPEG")}
    grey = load_image_folder(write_tree(tmp_path, files), input_shape=(1, 2, 5)).train.inputs
    assert grey.shape == (2, 1, 2, 5)
    assert np.abs(grey[1].astype(int) - 200).max() <= 2
    colour = load_image_folder(tmp_path, input_shape=(3, 6, 8)).train.inputs
    assert colour.shape == (2, 3, 6, 8)
    assert colour[0, :, 0, 0].tolist() == [100, 0, 255]


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a/0.png": picture(7, mode="L")})
    assert load_image_folder(tmp_path).train.inputs.tolist() == np.full((1, 1, 3, 4), 7).tolist()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no images in class folders: arrange it as train/<class>/<image>"),
        ({"README.txt": b"x"}, "has no images in class folders"),
        ({"0.png": picture(0)}, r"0\.png doesn't fit the layout <class>/<image>: move or remove it"),
        ({"a/b/0.png": picture(0)}, r"a/b/0\.png doesn't fit the layout <class>/<image>"),
        ({"train/a/0.png": picture(0), "b/0.png": picture(0)}, r"b/0\.png doesn't fit the layout train/<class>"),
        ({"train/a/0.png": picture(0)}, "has only one of train and test"),
        ({"a/0.png": picture(0), "a/1.png": picture(0, size=(3, 4))}, r"a/1\.png is 3x4 pixels, others are 4x3"),
        ({"a/0.png": b"no image"}, r"a/0\.png is no readable image \(none of JPEG, PNG"),
        ({"a/0.png": picture(0)[:40]}, r"a/0\.png is no readable image"),
        ({"a/0.jpg": picture(0, size=(64, 64), kind="JPEG")[:-200]}, r"a/0\.jpg is no readable image"),
        ({"a/0.png": picture(0).replace(b"IDAT", b"IDAX")}, r"a/0\.png is no readable image"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_unusable_images_are_refused_with_the_cause(
    tmp_path: Path, files: dict[str, bytes], message: str, packed: bool
) -> None:
    (tmp_path / "data").mkdir()
    path = write_tar(tmp_path / "data.tgz", files) if packed else write_tree(tmp_path / "data", files)
    with pytest.raises(DatasetError, match=message) as raised:
        load("imagefolder", path)
    assert str(raised.value).startswith(str(path))


def test_folder_that_is_no_class_of_the_task_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, {"cow/0.png": picture(0)})
    with pytest.raises(DatasetError, match="has a folder 'cow', which is none of the classes cat, dog"):
        load_image_folder(tmp_path, class_names=("cat", "dog"))


def test_other_numbers_of_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="images can't have 2 channels"):
        load_image_folder(tmp_path, input_shape=(2, 4, 4))


@pytest.mark.parametrize("name", ["../a/0.png", "/a/0.png", "a/../../0.png"])
def test_name_that_leads_out_of_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / "data.tar.gz", {"a/0.png": picture(0), name: picture(1)})
    with pytest.raises(DatasetError, match=r"leads out of the archive"):
        load("imagefolder", path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_archive_member_that_is_no_plain_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a/0.png")
        member.type = kind
        member.linkname = "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DatasetError, match=r"a/0\.png is no plain file"):
        load("imagefolder", path)


def test_image_that_is_twice_in_an_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w") as archive:
        for value in (0, 1):
            content = picture(value)
            member = tarfile.TarInfo("a/0.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DatasetError, match=r"has a/0\.png twice"):
        load("imagefolder", path)


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_IMAGES", 1, "has over 1 images"),
        ("MAX_DATA_SIZE", 71, "or 71 bytes of pixels"),
        ("MAX_IMAGE_FILE_SIZE", 10, "bytes, at most 10: scale it down"),
        ("MAX_IMAGE_PIXELS", 11, r"a/0\.png is 4x3 pixels: scale it down"),
        ("MAX_ARCHIVE_SIZE", 20, "unpacks to more than 20 bytes"),
    ],
)
def test_sizes_and_counts_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, message: str
) -> None:
    path = write_tar(tmp_path / "data.tar.gz", {f"a/{number}.png": picture(number) for number in range(2)})
    load("imagefolder", path)
    monkeypatch.setattr(image_folder, limit, value)
    with pytest.raises(DatasetError, match=message):
        load("imagefolder", path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08broken"])
def test_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="can't be read as a tar archive"):
        load("imagefolder", path)


def test_truncated_archive_is_refused(tmp_path: Path) -> None:
    files = {f"a/{number}.png": np.random.default_rng(number).bytes(5000) for number in range(5)}
    path = write_tar(tmp_path / "data.tar.gz", files)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match="can't be read as a tar archive"):
        load("imagefolder", path)


def test_start_of_the_real_cifar10_archive_is_read(tmp_path: Path) -> None:
    """The whole takes 10 s; a folder of some of its images has the same formats."""
    if not SHARED_ARCHIVE.exists():
        pytest.skip(f"{SHARED_ARCHIVE} is not there")
    with tarfile.open(SHARED_ARCHIVE, "r|gz") as archive:
        for count, member in enumerate(archive):
            if count == 50:
                break
            if member.isreg():
                reader = archive.extractfile(member)
                assert reader is not None
                path = tmp_path / "train" / "airplane" / Path(member.name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(reader.read())
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    shard = load("imagefolder", tmp_path)
    assert shard.input_shape == (3, 32, 32)
    assert len(shard.train) > 40
