"""Small files that must last, and folders whose entries must: written whole or not at all, on disk when it returns.

Models, the chain and the signer's log have their own ways; here are keys, settings and notes.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from .failpoints import Operation, after, before

TEMPORARY_SUFFIX = ".new"


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file, or replace it: after a crash or power failure there is the old one or the new one, whole.

    Args:
        path: the file; its folder exists.
        data: all of its content.
        mode: permissions of the new file.

    Raises:
        OSError: the disk fails.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    temporary.unlink(missing_ok=True)  # a crash may have left one, with other permissions
    before(Operation.FILE_WRITE)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        after(Operation.FILE_WRITE)
        before(Operation.FILE_FSYNC)
        os.fsync(file.fileno())
        after(Operation.FILE_FSYNC)
    before(Operation.FILE_RENAME)
    temporary.replace(path)
    sync_folder(path.parent)
    after(Operation.FILE_RENAME)


def write_for_now(path: Path, data: bytes) -> None:
    """Write a file, or replace it: others see the old one or the new one, whole; `sync_files` makes it last.

    Until then a power failure may leave anything in its place: whoever needs it must know that it was synced.

    Raises:
        OSError: the disk fails.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    before(Operation.FILE_WRITE)
    temporary.write_bytes(data)
    after(Operation.FILE_WRITE)
    before(Operation.FILE_RENAME)
    temporary.replace(path)
    after(Operation.FILE_RENAME)


def sync_files(paths: Iterable[Path]) -> None:
    """Make files and their folders survive a power failure: many at once cost little more than one.

    Raises:
        OSError: the disk fails.
    """
    folders = set()
    for path in paths:
        folders.add(path.parent)
        with path.open("rb") as file:
            before(Operation.FILE_FSYNC)
            os.fsync(file.fileno())
            after(Operation.FILE_FSYNC)
    for folder in sorted(folders):
        sync_folder(folder)


def sync_tree(folder: Path) -> None:
    """Make everything in a folder, at any depth, survive a power failure.

    Raises:
        OSError: the disk fails.
    """
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder survive a power failure.

    Raises:
        OSError: the disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
