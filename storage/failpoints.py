"""Places where a process dies, or its disk fails, on purpose: for tests of what survives, never for anything else.

    BFLNODE_FAILPOINT=wal.fsync.before=3                   SIGKILL at the third pass
    BFLNODE_FAILPOINT=chain.batch.before=error:ENOSPC      every pass fails as on a full disk
    BFLNODE_FAILPOINT=wal.write.before=error:EIO@5         the fifth pass and all later ones fail

Each operation that makes something last, or that tells others of it, is named here and calls `before` and `after`
around itself. Unarmed, that is one comparison. SIGKILL loses nothing that was written, synced or not: what a power cut
would lose is tested on a file system of its own (`tests/reliability/test_power_cut.py`).
"""

import errno
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from pathlib import Path

from .errors import StorageError

VARIABLE = "BFLNODE_FAILPOINT"


class Operation(StrEnum):
    """What a process may die before or after."""

    WAL_CREATE = "wal.create"
    """The signer's log appears in its folder."""
    WAL_WRITE = "wal.write"
    """A signature, or what one relies on, is written to the signer's log."""
    WAL_FSYNC = "wal.fsync"
    WAL_TRUNCATE = "wal.truncate"
    """A torn tail is cut off."""
    WAL_RENAME = "wal.rename"
    """A compacted log, written and synced, takes the old one's place."""
    CHAIN_CREATE = "chain.create"
    """The batch that makes a chain at its genesis."""
    CHAIN_BATCH = "chain.batch"
    """The batch that makes a block the tip."""
    BLOB_WRITE = "blob.write"
    BLOB_FSYNC = "blob.fsync"
    BLOB_RENAME = "blob.rename"
    """A model, made here or fetched, appears under its id."""
    CHUNK_WRITE = "chunk.write"
    """A piece of a model that is being fetched."""
    FILE_WRITE = "file.write"
    """A small file that must last: a key, a genesis, settings, a credential, an entry of the journal."""
    FILE_FSYNC = "file.fsync"
    FILE_RENAME = "file.rename"
    PROPOSAL_SEND = "proposal.send"
    """A proposal, signed and in the log, is handed to the network."""
    VOTE_SEND = "vote.send"
    TRANSACTION_SEND = "transaction.send"
    """A transaction of this node's own account, or of its RPC, is handed to the network."""
    PUSH_WRITE = "push.write"
    """Messages to one peer go out."""


SENDS = frozenset({Operation.PROPOSAL_SEND, Operation.VOTE_SEND, Operation.TRANSACTION_SEND, Operation.PUSH_WRITE})
"""Operations on the network: no disk can fail there."""


class Moment(StrEnum):
    """When, relative to an operation."""

    BEFORE = "before"
    AFTER = "after"


def names() -> tuple[str, ...]:
    """Names of all failpoints, in order of declaration."""
    return tuple(f"{operation}.{moment}" for operation in Operation for moment in Moment)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is armed: from pass `first` on the process dies, or the operation fails with `error`."""

    text: str
    operation: Operation
    moment: Moment
    first: int
    error: int | None
    passes: Iterator[int] = field(default_factory=lambda: count(1))

    def reach(self, operation: Operation, moment: Moment) -> None:
        if (operation, moment) != (self.operation, self.moment) or next(self.passes) < self.first:
            return
        if self.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise OSError(self.error, f"{os.strerror(self.error)} (failpoint)")


_plan: _Plan | None = None


def before(operation: Operation) -> None:
    """Pass the point before an operation.

    Raises:
        OSError: the failpoint that is armed says so.
    """
    if _plan is not None:
        _plan.reach(operation, Moment.BEFORE)


def after(operation: Operation) -> None:
    """Pass the point after an operation.

    Raises:
        OSError: the failpoint that is armed says so.
    """
    if _plan is not None:
        _plan.reach(operation, Moment.AFTER)


def arm(environment: Mapping[str, str] = os.environ) -> str | None:
    """Arm the failpoint that the environment names, and disarm any other.

    Returns:
        What was armed; None where nothing is.

    Raises:
        StorageError: there is no such failpoint.
    """
    global _plan
    text = environment.get(VARIABLE, "")
    _plan = _parse(text) if text else None
    return text or None


def _parse(text: str) -> _Plan:
    name, _, action = text.partition("=")
    action, _, first = action.partition("@") if action.startswith("error:") else ("", "", action)
    error = getattr(errno, action.removeprefix("error:"), None) if action else None
    operation, _, moment = name.rpartition(".")
    try:
        if action and (not isinstance(error, int) or operation in SENDS):
            raise ValueError(action)
        plan = _Plan(text, Operation(operation), Moment(moment), int(first or 1), error)
        if plan.first < 1:
            raise ValueError(first)
    except ValueError as fault:
        remedy = f"Failpoints are for tests: unset it, or name one such as wal.fsync.before=3 of {', '.join(names())}"
        raise StorageError(Path(VARIABLE), f"{text!r} is no failpoint", remedy) from fault
    return plan
