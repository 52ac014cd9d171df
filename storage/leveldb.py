"""LevelDB's faults in words for a person, as `errors` does it for the system's.

Only the translation; who opens a database and what is in it is in `chain_store`.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import plyvel

from .errors import CorruptStore, InUseError, StorageError, from_os_error

START_OVER = (
    "Stop the node, move this folder aside (keep it, and the signer's log where it is) and start again: "
    "the chain is fetched from peers anew. Never run a LevelDB repair on it"
)


@contextmanager
def leveldb_errors(path: Path, doing: str) -> Iterator[None]:
    """Translate LevelDB's errors, which tell their kind only by their text, and the system's.

    Args:
        path: the database's folder.
        doing: what we were doing, as in "writing block 7".

    Raises:
        StorageError: of the kind that fits.
    """
    try:
        yield
    except plyvel.CorruptionError as error:
        raise CorruptStore(path, f"{doing} failed: {_text(error)}", START_OVER) from error
    except plyvel.Error as error:
        raise _translated(path, doing, _text(error)) from error
    except OSError as error:
        raise from_os_error(path, doing, error) from error


def _translated(path: Path, doing: str, text: str) -> StorageError:
    if "LOCK: " in text and (os.strerror(errno.EAGAIN) in text or "already held" in text):
        return InUseError(path, "the chain is in use by a running node", "Stop that node, or ask it through its RPC")
    if os.strerror(errno.ENOENT) in text:
        return CorruptStore(path, f"{doing} failed, a file is missing: {text}", START_OVER)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE):
        if os.strerror(number) in text:
            return from_os_error(path, doing, OSError(number, text))
    return CorruptStore(path, f"{doing} failed: {text}", START_OVER)


def _text(error: Exception) -> str:
    message = error.args[0] if error.args else ""
    return message.decode(errors="replace") if isinstance(message, bytes) else str(message)
