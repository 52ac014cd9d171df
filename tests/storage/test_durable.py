"""Small files: the old content or the new, whole, and with the permissions that were asked for."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bflnode.storage import failpoints
from bflnode.storage.durable import sync_files, sync_folder, sync_tree, write_durably, write_for_now


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm({})


def test_a_file_is_written_with_its_mode_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_durably(tmp_path / "key", b"secret", mode=0o600)
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("point", ["file.write.before", "file.write.after", "file.fsync.after", "file.rename.before"])
def test_a_write_that_fails_leaves_the_old_content_and_can_be_repeated(tmp_path: Path, point: str) -> None:
    path = tmp_path / "note"
    write_durably(path, b"old")
    failpoints.arm({failpoints.VARIABLE: f"{point}=error:EIO"})
    with pytest.raises(OSError, match="Input/output error"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    failpoints.arm({})
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["note"]


def test_files_written_for_now_are_whole_and_synced_with_each_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / folder / name for folder in ("a", "b") for name in ("one", "two")]
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        write_for_now(path, b"old")
        write_for_now(path, b"new")
    assert [path.read_bytes() for path in paths] == [b"new"] * 4
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(paths)
    assert not synced
    sync_files(paths)
    assert len(synced) == 6


def test_a_sync_that_fails_is_told(tmp_path: Path) -> None:
    write_for_now(tmp_path / "one", b"x")
    failpoints.arm({failpoints.VARIABLE: "file.fsync.before=error:EIO"})
    with pytest.raises(OSError, match="Input/output error"):
        sync_files([tmp_path / "one"])


def test_a_tree_is_synced_to_its_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    sync_tree(tmp_path)
    assert len(synced) == 4
    sync_folder(tmp_path)
    assert len(synced) == 5
