import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bflnode.storage.errors import InUseError, StorageError
from bflnode.storage.home_lock import HomeLock, running_pid

HOLDER = """
import sys
from pathlib import Path
from bflnode.storage.home_lock import HomeLock
lock = HomeLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A second process that holds the lock of `tmp_path`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_which_process_uses_the_home(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(InUseError) as caught:
        HomeLock(tmp_path)
    assert caught.value.path == tmp_path
    assert caught.value.cause == f"this home is in use by process {holder.pid}"


def test_the_pid_of_a_running_node_is_found_without_disturbing_it(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    assert running_pid(tmp_path) == holder.pid
    with pytest.raises(InUseError):
        HomeLock(tmp_path)


def test_a_killed_process_leaves_no_lock_behind(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / "lock").read_text() == f"{holder.pid}\n"
    assert running_pid(tmp_path) is None
    with HomeLock(tmp_path):
        assert running_pid(tmp_path) == os.getpid()


def test_released_lock_can_be_taken_again_and_releasing_twice_is_harmless(tmp_path: Path) -> None:
    lock = HomeLock(tmp_path / "new" / "home")
    lock.release()
    lock.release()
    assert running_pid(tmp_path / "new" / "home") is None
    HomeLock(tmp_path / "new" / "home").release()


def test_home_that_does_not_exist_has_no_running_node(tmp_path: Path) -> None:
    assert running_pid(tmp_path / "nowhere") is None


def test_home_that_is_a_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(StorageError, match="home"):
        HomeLock(tmp_path / "home")


def test_lock_held_without_a_pid_is_an_error_not_a_wrong_answer(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    (tmp_path / "lock").write_bytes(b"")
    with pytest.raises(StorageError, match="no pid"):
        running_pid(tmp_path)
