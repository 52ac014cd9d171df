"""Disks that are full or fail: a node says so in one line and ends, loses nothing, and goes on once there is room."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bflnode.node.home import Home
from bflnode.storage.failpoints import Operation

from .field import DEADLINE_S, Field, make_field, running_field
from .judge import Verdict, judge

FULL, BROKEN = "error:ENOSPC", "error:EIO"

FAULTS = (
    f"{Operation.WAL_WRITE}.before={FULL}@5",
    f"{Operation.WAL_FSYNC}.before={BROKEN}@5",
    f"{Operation.WAL_RENAME}.before={FULL}",
    f"{Operation.CHAIN_BATCH}.before={FULL}@3",
    f"{Operation.BLOB_WRITE}.before={FULL}",
    f"{Operation.BLOB_FSYNC}.before={BROKEN}",
    f"{Operation.BLOB_RENAME}.before={FULL}",
    f"{Operation.FILE_WRITE}.before={FULL}",
    f"{Operation.FILE_FSYNC}.before={BROKEN}",
    f"{Operation.FILE_RENAME}.before={FULL}",
)
"""What fails at a running node, each time in a process of its own."""

SMALL_DISK = "full file system"
"""Not a failpoint: a real file system without room."""

SMALL_DISK_MIB = 64

ALL_FAULTS = (*FAULTS, SMALL_DISK)


@dataclass(frozen=True, slots=True)
class Fault:
    """A node's disk failed, and then didn't any more.

    Attributes:
        fault: the failpoint, or `SMALL_DISK`.
        node: its name.
        said: its last line, without the path.
        signing_s: from its next start to its first vote for a new height, seconds.
    """

    fault: str
    node: str
    said: str
    signing_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole run, ready for JSON."""

    seed: int
    faults: tuple[Fault, ...]
    verdict: Verdict


class NotPermitted(Exception):
    """This machine doesn't let us mount a file system."""


def run(directory: Path, *, faults: Sequence[str], seed: int, say: Callable[[str], None]) -> Outcome:
    """Let nodes' disks fail in these ways, then judge.

    Raises:
        AssertionError: something was lost, contradicted or not in time, or a node didn't end cleanly.
    """
    make_field(directory, seed)
    done = []
    with running_field(directory, seed) as field:
        for number, fault in enumerate(faults):
            node = field.validators[number % len(field.validators)]
            try:
                found = _fill(field, node) if fault == SMALL_DISK else fail(field, node, fault)
            except NotPermitted as error:
                say(f"{fault}: left out, {error}")
                continue
            done.append(found)
            say(f"{fault}: {node} said {found.said!r}, voted again {found.signing_s:.2f} s after its start")
    verdict = judge(field.testnet, field.witness, field.load, field.watch)
    return Outcome(seed, tuple(done), verdict)


def fail(field: Field, node: str, fault: str) -> Fault:
    """Let a node's disk fail, and start the node again once it doesn't."""
    field.stop(node)
    said = last_words(field.testnet.home(node), field.start_armed(node, fault))
    return Fault(fault, node, said, _restart(field, node))


def _fill(field: Field, node: str) -> Fault:
    """Let a node run on a file system that somebody else fills up; then make room."""
    home = field.testnet.home(node)
    field.stop(node)
    with small_disk(home.chain.parent):
        process = field.start_armed(node, f"{Operation.WAL_CREATE}.before=1")  # armed with what it never passes
        field.wait_until_signing((node,))
        ballast = home.chain.parent / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        said = last_words(home, process)
        ballast.unlink()
        signing_s = _restart(field, node)
        field.stop(node)
    _restart(field, node)
    return Fault(SMALL_DISK, node, said, signing_s)


def _restart(field: Field, node: str) -> float:
    started_s = field.start((node,))
    field.wait_for_blocks((node,), started_s)
    field.wait_until_signing((node,))
    return time.monotonic() - started_s


def last_words(home: Home, process: subprocess.Popen[bytes]) -> str:
    """Wait until a node has ended by itself; what it said last, which must be one line that names the disk's fault."""
    try:
        status = process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.wait()
        raise AssertionError("the node goes on although its disk fails") from error
    lines = home.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    last = lines[-1]
    assert status == 1, f"it ended with {status}: {last}"
    assert last.startswith("bflnode: "), last
    since_start = lines[len(lines) - lines[::-1].index(next(line for line in reversed(lines) if " is armed" in line)) :]
    assert not any(line.startswith("Traceback") for line in since_start), "\n".join(since_start)
    return last.removeprefix("bflnode: ").partition(": ")[2]


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Put a folder on a small file system of its own while this lasts; its content comes along, and back.

    Raises:
        NotPermitted: mounting isn't.
    """
    aside = folder.with_name(folder.name + ".disk")
    folder.rename(aside)
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MIB}m", "bflnode-test", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        folder.rmdir()
        aside.rename(folder)
        raise NotPermitted(f"mounting a file system is not permitted here: {mounted.stderr.strip()}")
    _copy(aside, folder)
    try:
        yield
    finally:
        _copy(folder, aside)
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
        aside.rename(folder)


def _copy(source: Path, target: Path) -> None:
    """Make a folder's content that of another."""
    for old in target.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(source, target, dirs_exist_ok=True)


def table(outcome: Outcome) -> str:
    """One row for each fault, in Markdown."""
    rows = ["| fault | node | it said | votes again, s |", "|---|---|---|---|"]
    rows += [f"| `{fault.fault}` | {fault.node} | {fault.said} | {fault.signing_s:.2f} |" for fault in outcome.faults]
    return "\n".join(rows)
