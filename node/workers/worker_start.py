"""Starting a trainer process: forked from the testnet's launcher where there is one, else as a program of its own.

A fork shares torch with its siblings and is ready at once; see `launcher`. `trainer` decides when to start and kill.
"""

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import trio

from .launcher import LAUNCHER_VARIABLE, LauncherClient, LauncherError
from .trainer import StartWorker, WorkerProcess

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class SpawnedWorker:
    """A worker that is this process' own child."""

    process: trio.Process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def kill(self) -> None:
        """Send SIGKILL; does nothing when it has ended."""
        self.process.kill()

    def has_ended(self) -> bool:
        """Whether it has ended; doesn't wait."""
        return self.process.poll() is not None

    async def wait(self) -> str:
        """Wait until it has ended; how it ended."""
        status = await self.process.wait()
        if status == -signal.SIGKILL:
            return "killed by signal 9: by somebody, or by the kernel for lack of memory"
        return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


@dataclass(slots=True)
class ForkedWorker:
    """A worker that is a child of the launcher, held by a pidfd: its process id could be used again."""

    pid: int
    _descriptor: int = field(init=False)

    def __post_init__(self) -> None:
        self._descriptor = os.pidfd_open(self.pid)

    def __del__(self) -> None:
        """Close the pidfd."""
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)

    def kill(self) -> None:
        """Send SIGKILL; does nothing when it has ended."""
        if not self.has_ended():
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether it has ended; doesn't wait."""
        readable, _, _ = select.select([self._descriptor], [], [], 0)
        return bool(readable)

    async def wait(self) -> str:
        """Wait until it has ended; how it ended is known to the launcher alone, which reaps it."""
        await trio.lowlevel.wait_readable(self._descriptor)
        return "its end is in the launcher's log"


def worker_starter(threads: int = 1, niceness: int = 0) -> StartWorker:
    """What `trainer.open_trainer` needs: starts workers whose torch uses so many threads, with a priority.

    The launcher is the one named by the environment variable `LAUNCHER_VARIABLE`; if it is gone, workers
    are spawned.
    """

    async def start(socket_path: Path, log_path: Path) -> WorkerProcess:
        worker = await start_anyhow(socket_path, log_path)
        with contextlib.suppress(ProcessLookupError):  # it has ended already, which its trainer will notice
            os.setpriority(os.PRIO_PROCESS, worker.pid, niceness)
        return worker

    async def start_anyhow(socket_path: Path, log_path: Path) -> WorkerProcess:
        arguments = (os.fspath(socket_path), "--threads", str(threads))
        launcher = os.environ.get(LAUNCHER_VARIABLE)
        if launcher:
            client = LauncherClient(Path(launcher))
            try:
                pid = await trio.to_thread.run_sync(client.start_worker, arguments, log_path)
                return ForkedWorker(pid)
            except (LauncherError, ProcessLookupError) as error:
                _log.warning("%s. Starting the trainer process without it.", error)
        return await _spawn(arguments, log_path)

    return start


async def _spawn(arguments: tuple[str, ...], log_path: Path) -> SpawnedWorker:
    with log_path.open("ab") as log:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "bflnode.node.workers.worker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in a terminal is for the node
        )
    return SpawnedWorker(process)
