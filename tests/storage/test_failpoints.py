"""Failpoints: the one that is armed does what it says at its pass, all others do nothing."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bflnode.storage.errors import StorageError
from bflnode.storage.failpoints import VARIABLE, Operation, after, arm, before, names


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm({})


def test_nothing_is_armed_unless_the_environment_says_so() -> None:
    assert arm({}) is None
    for operation in Operation:
        before(operation)
        after(operation)


def test_an_operation_fails_from_the_pass_that_is_named_on() -> None:
    assert arm({VARIABLE: "wal.fsync.before=error:ENOSPC@3"}) == "wal.fsync.before=error:ENOSPC@3"
    for _ in range(2):
        before(Operation.WAL_FSYNC)
        after(Operation.WAL_FSYNC)
        before(Operation.WAL_WRITE)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left on device") as caught:
            before(Operation.WAL_FSYNC)
        assert caught.value.errno == errno.ENOSPC


def test_an_error_without_a_pass_is_that_of_every_pass() -> None:
    arm({VARIABLE: "blob.rename.after=error:EIO"})
    before(Operation.BLOB_RENAME)
    with pytest.raises(OSError, match="Input/output error"):
        after(Operation.BLOB_RENAME)


def test_the_process_dies_by_sigkill_at_its_pass() -> None:
    script = (
        "from bflnode.storage.failpoints import *\n"
        "arm()\n"
        "for number in range(5): print(number, flush=True); before(Operation.VOTE_SEND)"
    )
    environment = {**os.environ, VARIABLE: "vote.send.before=3"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "0\n1\n2\n")


@pytest.mark.parametrize(
    "text",
    ["wal", "wal.fsync", "wal.fsync.before=0", "wal.fsync.before=x", "wal.fsync.during=1", "vote.send.before=error:EIO",
     "wal.fsync.before=error:ENOTHING", "wal.fsync.before=error:ENOSPC@0"],
)  # fmt: skip
def test_what_is_no_failpoint_is_refused_with_the_names_of_all(text: str) -> None:
    with pytest.raises(StorageError) as caught:
        arm({VARIABLE: text})
    assert f"{VARIABLE}: {text!r} is no failpoint" in str(caught.value)
    assert all(name in str(caught.value) for name in names())


def test_every_operation_that_is_named_is_used(request: pytest.FixtureRequest) -> None:
    root = request.config.rootpath
    sources = [path.read_text() for folder in ("storage", "node") for path in (root / folder).rglob("*.py")]
    unused = [
        operation.name
        for operation in Operation
        if not any(f"Operation.{operation.name}" in text for text in sources if "class Operation" not in text)
    ]
    assert unused == []
