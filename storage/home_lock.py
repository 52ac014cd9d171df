"""One node for each home folder: an advisory lock on `<home>/lock` that names its holder.

The lock is the kernel's (`flock`), so it ends with the process however that dies; the pid in the file is for people
and for commands that ask whether a node runs. It holds between processes of one machine. A child made by a bare fork
would share the lock; ours are spawned, and Python closes the descriptor on exec.
"""

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import InUseError, StorageError, from_os_error

LOCK_FILE = "lock"

ATTEMPTS = 5
"""Times to try for the lock: `running_pid` holds it for microseconds while it asks, which must not stop a start."""

ATTEMPT_INTERVAL_S = 0.02

MAX_PID_BYTES = 32
"""Most bytes read from the lock file: a pid has at most seven digits on Linux."""


class HomeLock:
    """Holds the lock of a home folder until `release`, or the end of the process.

    Attributes:
        path: the lock file.
    """

    def __init__(self, home: Path) -> None:
        """Take the lock of `home`, which is made if it doesn't exist.

        Raises:
            InUseError: another process has it.
            StorageError: the file can't be made, locked or written.
        """
        self.path = home / LOCK_FILE
        try:
            home.mkdir(parents=True, exist_ok=True)
            # Not through a link: what a folder of somebody else's leads to would be emptied.
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise from_os_error(self.path, "opening the lock of this home", error) from error
        try:
            self._lock()
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(self._descriptor)
            raise from_os_error(self.path, "locking this home", error) from error
        except InUseError:
            os.close(self._descriptor)
            raise

    def _lock(self) -> None:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(ATTEMPT_INTERVAL_S)
            if _try_lock(self._descriptor, fcntl.LOCK_EX):
                return
        pid = _read_pid(self._descriptor)
        holder = f"process {pid}" if pid is not None else "another process"
        remedy = f"Stop that node (kill {pid}) or choose another home" if pid else "Stop it or choose another home"
        raise InUseError(self.path.parent, f"this home is in use by {holder}", remedy)

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor < 0:
            return
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def running_pid(home: Path) -> int | None:
    """The process that holds the lock of this home, or None if none does.

    Raises:
        StorageError: the lock file can't be read, or its holder didn't write its pid.
    """
    path = home / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(path, "reading the lock of this home", error) from error
    try:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(ATTEMPT_INTERVAL_S)
            if _try_lock(descriptor, fcntl.LOCK_SH):
                return None
            pid = _read_pid(descriptor)
            if pid is not None:
                return pid
    except OSError as error:
        raise from_os_error(path, "reading the lock of this home", error) from error
    finally:
        os.close(descriptor)
    raise StorageError(path, "locked by a process that left no pid in it", "Find it with `fuser` or `lsof` and stop it")


def _try_lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, MAX_PID_BYTES, 0).strip()
    return int(text) if text.isdigit() else None
