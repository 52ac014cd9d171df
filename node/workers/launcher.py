"""The fork server of a testnet: imports everything once, then forks nodes and their workers from that.

`python -m bflnode.node.workers.launcher SOCKET` is one process with one thread. Twenty processes that each import torch
cost 54 CPU-seconds and 280 MiB each; forks share the imported pages and start in milliseconds.

```
bflnode testnet --StartNode-->  launcher --fork--> node 1 … n     setsid, own log
node (trainer)  --StartWorker-> launcher --fork--> worker 1 … n
                <--- Started / LauncherRefused
```

A fork copies one thread only, so a lock held by another would stay locked for ever: the launcher refuses to fork
unless it has exactly one. Here are the server and its client. How nodes are laid out and watched is the
testnet's business.
"""

import argparse
import contextlib
import gc
import importlib
import importlib.util
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from bflnode.fl import runtime

from .process_messages import (
    MAX_SOCKET_PATH_BYTES,
    RECEIVE_BYTES,
    FrameReader,
    ProcessMessageError,
    ProcessMessages,
)

LAUNCHER_VARIABLE = "BFLNODE_LAUNCHER"
"""The environment variable that tells nodes where the launcher's socket is."""

NODE_ENTRY = "bflnode.node.daemon:main"
WORKER_ENTRY = "bflnode.node.workers.worker:main"
"""Entries are called with their command-line arguments and return an exit status."""

ENTRY_PREFIX = "bflnode."
"""Nothing else is ever called."""

PRELOADED_MODULES = (
    "trio",
    "libp2p",
    "libp2p.pubsub.gossipsub",
    "libp2p.pubsub.pubsub",
    "libp2p.security.noise.transport",
    "libp2p.stream_muxer.yamux.yamux",
    "starlette.applications",
    "starlette.routing",
    "hypercorn.trio",
    "httpx",
    "plyvel",
    "click",
    "rich.console",
    "rich.table",
    "pydantic",
    "pydantic_settings",
    "nacl.signing",
    "msgpack",
    "bflnode.node.workers.worker_jobs",
)
"""Besides `bflnode.fl.runtime.preload`: what a node imports."""

HANDLED_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)

READY_LINE = b"ready\n"

READY_DEADLINE_S = 180
"""Importing takes 6 s alone, a minute on a cold disk with two busy cores."""

REQUEST_DEADLINE_S = 30
"""A fork takes some 20 ms; the launcher may be waiting for a core."""

NODES_DEADLINE_S = 30
"""A node that got SIGTERM closes its connections, one after another, within some seconds."""

WORKERS_DEADLINE_S = 5
"""A worker has nothing to save."""

_log = logging.getLogger(__name__)


class LauncherError(Exception):
    """The launcher couldn't be started or reached, or it refused."""


@dataclass(frozen=True, slots=True)
class StartProcess:
    """Fork, and call `entry` ("module:function") with the arguments, its output appended to a log."""

    kind: str
    entry: str
    arguments: tuple[str, ...]
    log_path: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End all children and the launcher; answered by `Stopped` just before it ends."""


@dataclass(frozen=True, slots=True)
class Started:
    """The child's process id."""

    process_id: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """All children are gone.

    Attributes:
        killed: process ids of those that needed SIGKILL.
    """

    killed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LauncherRefused:
    """Why nothing was done."""

    explanation: str


LauncherMessage = StartProcess | Stop | Started | Stopped | LauncherRefused

_MESSAGES: ProcessMessages[LauncherMessage] = ProcessMessages(StartProcess, Stop, Started, Stopped, LauncherRefused)


class _ChildExit(BaseException):
    """Unwinds a forked child out of the server, so that nothing of the server's runs in it."""

    def __init__(self, request: StartProcess) -> None:
        self.request = request


@dataclass(slots=True)
class _Server:
    """The launcher's loop: one request after another, children reaped in between.

    Attributes:
        listener: where requests come in.
        wake: where signals' numbers arrive.
        tie: a descriptor that is readable once the process to which the launcher is tied has ended.
        children: what was asked for, by process id.
        is_stopping: whether this is the end.
    """

    listener: socket.socket
    wake: socket.socket
    tie: int | None = None
    children: dict[int, StartProcess] = field(default_factory=dict)
    is_stopping: bool = False

    def serve(self) -> None:
        """Answer requests until told to stop; all children are gone when this returns.

        Raises:
            _ChildExit: in a forked child.
        """
        while not self.is_stopping:
            watched: list[socket.socket | int] = [self.listener, self.wake, *([] if self.tie is None else [self.tie])]
            readable, _, _ = select.select(watched, [], [])
            if self.tie in readable:
                _log.info("the process that this launcher is tied to has ended")
                self.is_stopping = True
                continue
            if self.wake in readable:
                self._handle_signals()
            if self.listener in readable:
                connection, _ = self.listener.accept()
                with connection:
                    self._handle(connection)
        self._end_children()

    def _handle_signals(self) -> None:
        numbers = self.wake.recv(RECEIVE_BYTES)
        self._reap()
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            _log.info("told to end by a signal")
            self.is_stopping = True

    def _handle(self, connection: socket.socket) -> None:
        connection.settimeout(REQUEST_DEADLINE_S)
        try:
            answer = self._answer(_receive(connection))
            connection.sendall(_MESSAGES.encode(answer))
        except (OSError, ProcessMessageError) as error:
            _log.warning("a request failed: %s", error)

    def _answer(self, request: LauncherMessage) -> LauncherMessage:
        match request:
            case StartProcess():
                return self._start(request)
            case Stop():
                self.is_stopping = True
                return Stopped(self._end_children())
            case _:
                return LauncherRefused(f"{type(request).__name__} is no request")

    def _start(self, request: StartProcess) -> LauncherMessage:
        if not request.entry.startswith(ENTRY_PREFIX):
            return LauncherRefused(f"{request.entry} is none of bflnode's entries")
        try:
            Path(request.log_path).parent.mkdir(parents=True, exist_ok=True)
            Path(request.log_path).open("ab").close()
            refuse_threads()
            # A signal that reached the child before it has its own handlers would be lost: hold it back.
            signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
            return LauncherRefused(f"{request.kind} can't be started: {error}")
        if pid == 0:
            raise _ChildExit(request)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
        self.children[pid] = request
        _log.info("%s is process %d, log %s", request.kind, pid, request.log_path)
        return Started(pid)

    def _reap(self) -> None:
        """Collect the children that ended; a signal may stand for several."""
        for pid in list(self.children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                kind = self.children.pop(pid).kind
                _log.info("%s, process %d, ended: status %d", kind, pid, os.waitstatus_to_exitcode(status))

    def _end_children(self) -> tuple[int, ...]:
        """Nodes first, since they end their workers; returns who needed SIGKILL."""
        killed = self._end(("node",), NODES_DEADLINE_S)
        return killed + self._end(None, WORKERS_DEADLINE_S)

    def _end(self, kinds: tuple[str, ...] | None, deadline_s: float) -> tuple[int, ...]:
        self._reap()
        for pid in self._of(kinds):
            os.kill(pid, signal.SIGTERM)  # not reaped yet, so the process id is still this child's
        deadline = time.monotonic() + deadline_s
        while self._of(kinds) and (left := deadline - time.monotonic()) > 0:
            if select.select([self.wake], [], [], left)[0]:
                self.wake.recv(RECEIVE_BYTES)
            self._reap()
        survivors = self._of(kinds)
        for pid in survivors:
            _log.warning("process %d ignores SIGTERM for %g s: killing it", pid, deadline_s)
            os.kill(pid, signal.SIGKILL)
        for pid in survivors:
            os.waitpid(pid, 0)
            del self.children[pid]
        return survivors

    def _of(self, kinds: tuple[str, ...] | None) -> tuple[int, ...]:
        return tuple(pid for pid, request in self.children.items() if kinds is None or request.kind in kinds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Import, listen, say "ready" on standard output, and serve until SIGTERM or `Stop`."""
    parser = argparse.ArgumentParser(
        prog="python -m bflnode.node.workers.launcher", description="The fork server of a testnet."
    )
    parser.add_argument("socket", type=Path, help="path of the Unix-domain socket to listen on")
    parser.add_argument("--tied", action="store_true", help="end when standard input does: when the starter has died")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)

    try:
        listener = listen(options.socket)
    except (LauncherError, OSError) as error:
        _log.error("%s", error)
        return 1
    runtime.preload()
    for name in PRELOADED_MODULES:
        importlib.import_module(name)
    if importlib.util.find_spec("bflnode.node.daemon") is not None:
        importlib.import_module("bflnode.node.daemon")
    refuse_threads()
    gc.collect()
    gc.freeze()  # collections in children then don't touch, and so copy, the pages they share

    wake, wake_sender = socket.socketpair()
    wake.setblocking(False)
    wake_sender.setblocking(False)
    signal.set_wakeup_fd(wake_sender.fileno())
    for number in HANDLED_SIGNALS:
        signal.signal(number, _note_signal)
    os.write(sys.stdout.fileno(), READY_LINE)
    try:
        _Server(listener, wake, sys.stdin.fileno() if options.tied else None).serve()
    except _ChildExit as child:
        for inherited in (listener, wake, wake_sender):
            inherited.close()
        _run_child(child.request)
    options.socket.unlink(missing_ok=True)
    return 0


def _note_signal(_number: int, _frame: object) -> None:
    """Do nothing: the signal's number arrives at the wake-up socket."""


def refuse_threads() -> None:
    """Insist on a single thread: a library that starts one on import would make forks hang now and then.

    Raises:
        RuntimeError: there are several.
    """
    tasks = Path("/proc/self/task")
    count = len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()
    if count != 1 or threading.active_count() != 1:
        raise RuntimeError(f"the launcher has {count} threads, so it can't fork safely: {threading.enumerate()}")


def listen(path: Path) -> socket.socket:
    """A listening socket for this user alone; what a dead launcher left is removed.

    Raises:
        LauncherError: a launcher is alive at this path, or it is too long for a socket.
        OSError: the directory is missing or can't be written.
    """
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise LauncherError(
            f"{path} has {length} bytes, a socket's path at most {MAX_SOCKET_PATH_BYTES}: use a shorter directory"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(os.fspath(path)) == 0:
            raise LauncherError(f"a launcher is already running at {path}: stop its testnet first")
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    finally:
        os.umask(mask)
    listener.listen(64)
    return listener


def _run_child(request: StartProcess) -> NoReturn:
    """Turn the forked process into what was asked for; never returns to the launcher's code."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
    log = os.open(request.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(null)
    with contextlib.suppress(OSError):  # a name for ps, where the system has one
        Path("/proc/self/comm").write_text(f"bflnode-{request.kind}"[:15])
    logging.getLogger().handlers.clear()
    module, _, function = request.entry.partition(":")
    status = 1
    try:
        status = getattr(importlib.import_module(module), function)(list(request.arguments)) or 0
    except SystemExit as leave:
        if isinstance(leave.code, str):
            sys.stderr.write(leave.code + "\n")
        status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:  # noqa: BLE001  # the process' edge: its traceback belongs in its own log
        traceback.print_exc()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _receive(connection: socket.socket) -> LauncherMessage:
    """The one message a peer sends.

    Raises:
        ProcessMessageError: it is malformed or the connection ended early.
    """
    reader = FrameReader(_MESSAGES)
    while data := connection.recv(RECEIVE_BYTES):
        for message in reader.feed(data):
            return message
    raise ProcessMessageError("the connection ended before a whole message came")


@dataclass(frozen=True, slots=True)
class LauncherClient:
    """Asks a launcher; each request is a connection of its own. Blocking: call it from a thread in async code."""

    socket_path: Path

    def start_node(self, home: Path, arguments: Sequence[str], log_path: Path) -> int:
        """Fork a node and call its daemon with (home, *arguments); its process id.

        Raises:
            LauncherError: the launcher is gone or refuses.
        """
        return self.start(StartProcess("node", NODE_ENTRY, (os.fspath(home), *arguments), os.fspath(log_path)))

    def start_worker(self, arguments: Sequence[str], log_path: Path) -> int:
        """Fork a trainer process with the command-line arguments of `worker`; its process id.

        Raises:
            LauncherError: the launcher is gone or refuses.
        """
        return self.start(StartProcess("worker", WORKER_ENTRY, tuple(arguments), os.fspath(log_path)))

    def stop(self) -> tuple[int, ...]:
        """End all nodes and workers, then the launcher; process ids of those that had to be killed.

        Raises:
            LauncherError: the launcher is gone already.
        """
        answer = self._ask(Stop(), NODES_DEADLINE_S + WORKERS_DEADLINE_S + REQUEST_DEADLINE_S)
        if not isinstance(answer, Stopped):
            raise LauncherError(f"the launcher at {self.socket_path} answered {answer}")
        return answer.killed

    def is_alive(self) -> bool:
        """Whether a launcher listens."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            return connection.connect_ex(os.fspath(self.socket_path)) == 0

    def start(self, request: StartProcess) -> int:
        """Fork any of our entries; its process id.

        Raises:
            LauncherError: the launcher is gone or refuses.
        """
        answer = self._ask(request, REQUEST_DEADLINE_S)
        if isinstance(answer, LauncherRefused):
            raise LauncherError(answer.explanation)
        if not isinstance(answer, Started):
            raise LauncherError(f"the launcher at {self.socket_path} answered {answer}")
        return answer.process_id

    def _ask(self, request: LauncherMessage, deadline_s: float) -> LauncherMessage:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(deadline_s)
                connection.connect(os.fspath(self.socket_path))
                connection.sendall(_MESSAGES.encode(request))
                return _receive(connection)
        except (OSError, ProcessMessageError) as error:
            raise LauncherError(f"no launcher answers at {self.socket_path}: {error}") from error


@dataclass(frozen=True, slots=True)
class RunningLauncher:
    """A launcher that this process started."""

    process: subprocess.Popen[bytes]
    client: LauncherClient

    def end(self) -> int:
        """Wait until it has ended, and kill it if it doesn't; its exit status."""
        try:
            return self.process.wait(REQUEST_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@dataclass(frozen=True, slots=True)
class StartingLauncher:
    """A launcher that this process started and that is importing."""

    process: subprocess.Popen[bytes]
    client: LauncherClient
    log_path: Path

    def wait(self) -> RunningLauncher:
        """Wait until it has imported everything; it is killed if this fails or is interrupted.

        Raises:
            LauncherError: it ended or wasn't ready in time; the message has the end of its log.
        """
        stdout = self.process.stdout
        assert stdout is not None, "its standard output is a pipe"
        try:
            readable, _, _ = select.select([stdout], [], [], READY_DEADLINE_S)
            line = os.read(stdout.fileno(), len(READY_LINE)) if readable else b""
            if line != READY_LINE:
                status = self.kill()
                tail = "\n".join(self.log_path.read_text(errors="replace").splitlines()[-12:])
                cause = f"ended with status {status}" if readable else f"wasn't ready within {READY_DEADLINE_S} s"
                raise LauncherError(f"the launcher {cause}. Its log {self.log_path} ends with:\n{tail}")
        except BaseException:
            self.kill()
            raise
        finally:
            stdout.close()
        return RunningLauncher(self.process, self.client)

    def kill(self) -> int:
        """End it before it is ready; its exit status."""
        self.process.kill()
        return self.process.wait()


def begin_launcher(directory: Path, *, is_tied: bool = False) -> StartingLauncher:
    """Start a launcher whose socket and log are in `directory`, and don't wait: importing takes seconds.

    Children find it if the caller hands `LAUNCHER_VARIABLE` on; those it forks itself have it set.

    Args:
        directory: made if it doesn't exist.
        is_tied: whether it ends, with all its children, when this process does, however that dies.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket_path, log_path = directory.resolve() / "launcher.sock", directory.resolve() / "launcher.log"
    environment = {**os.environ, LAUNCHER_VARIABLE: os.fspath(socket_path)}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bflnode.node.workers.launcher",
                os.fspath(socket_path),
                *(["--tied"] if is_tied else []),
            ],
            stdin=subprocess.PIPE if is_tied else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    return StartingLauncher(process, LauncherClient(socket_path), log_path)


def start_launcher(directory: Path) -> RunningLauncher:
    """Start a launcher and wait until it has imported everything.

    Raises:
        LauncherError: it ended or wasn't ready in time; the message has the end of its log.
    """
    return begin_launcher(directory).wait()


if __name__ == "__main__":
    sys.exit(main())
