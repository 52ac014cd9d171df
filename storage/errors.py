"""The disk's faults, in words for a person: which path, what happened, what to do next.

Only errors live here. A peer's fault is `bflnode.consensus.rejection.Rejection`, our own an assertion.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StorageError(Exception):
    """The disk, or what lies on it, keeps us from going on.

    Attributes:
        path: the file or folder concerned.
        cause: what happened.
        remedy: what the person who runs the node can do about it.
    """

    def __init__(self, path: Path, cause: str, remedy: str) -> None:
        self.path = path
        self.cause = cause
        self.remedy = remedy
        super().__init__(f"{path}: {cause}. {remedy}")


class InUseError(StorageError):
    """Another process has it open."""


class MissingError(StorageError):
    """It isn't there: a store that was never created, a blob that was never fetched or has been pruned."""


class CorruptBlobError(MissingError):
    """Its bytes changed on disk; it was moved aside, so from now on it is missing."""


class QuotaError(StorageError):
    """The space that the operator allows for models is taken by what is still needed; everything else goes on."""


class CorruptStore(StorageError):
    """What is stored contradicts itself or its checksums: nothing read from it can be trusted."""


_REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space and start again",
    errno.EDQUOT: "The disk quota is used up: free some space and start again",
    errno.EFBIG: "The file size limit of this process or file system is reached: raise it and start again",
    errno.EACCES: "Give the user who runs the node the right to read and write here",
    errno.EPERM: "Give the user who runs the node the right to read and write here",
    errno.EROFS: "The file system is mounted read-only: mount it for writing and start again",
    errno.EIO: "The disk failed to read or write: check it before starting again",
    errno.ENOENT: "Check that the path is right and that its folder exists",
    errno.ENOTDIR: "Check that the path is right: a file is where a folder should be",
    errno.EMFILE: "Too many open files: raise the limit (ulimit -n) and start again",
}


@contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """Translate the system's errors about `path`; see `from_os_error`.

    Raises:
        StorageError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise from_os_error(path, doing, error) from error


def from_os_error(path: Path, doing: str, error: OSError) -> StorageError:
    """Translate an operating system's error into one that says what to do.

    Args:
        path: what was being read or written.
        doing: what we were doing, as in "writing a blob".
        error: the system's error.
    """
    remedy = _REMEDIES.get(error.errno or 0, "Check the disk and the path, then start again")
    return StorageError(path, f"{doing} failed: {error.strerror or error}", remedy)
