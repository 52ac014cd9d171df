"""Processes of a testnet: a launcher in the background, nodes forked from it, and what each of them says.

    up      launcher (once) --fork--> node0 … nodeN, until each answers over RPC
    down    SIGTERM, wait, SIGKILL; when no node is left the launcher ends too

A node is found by the lock of its home, whoever started it; the launcher by its socket in DIR/run. So every command
works from any terminal, and a testnet outlives the command that started it. The folders are the business of
`homes`.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bflnode.node.home import Home, HomeError
from bflnode.node.rpc.client import RpcClient
from bflnode.node.rpc.reader import RunningNode, find_running, open_reader
from bflnode.node.rpc.refusals import RpcError, UnreachableError
from bflnode.node.workers.launcher import LauncherClient, StartProcess, start_launcher
from bflnode.storage.errors import StorageError
from bflnode.storage.home_lock import running_pid

from .homes import LAUNCHER_SOCKET, Testnet

READY_DEADLINE_S = 120.0
"""A forked node answers within 2 s alone; many of them on a loaded machine take far longer."""

STOP_DEADLINE_S = 30.0
"""A node that got SIGTERM closes its connections and its database within some seconds."""

KILL_DEADLINE_S = 10.0
"""SIGKILL takes effect once a blocking disk operation returns."""

POLL_INTERVAL_S = 0.1
"""Often enough that nobody notices, rare enough that it costs nothing."""

STATUS_TIMEOUT_S = 5.0
"""A node that is this late with its status is shown as not answering."""

LOG_TAIL_LINES = 15
"""Enough for the end of a traceback."""

LOG_TAIL_BYTES = 256 * 1024
"""What is read of a log to find its last lines."""

Found = TypeVar("Found")


class TestnetError(Exception):
    """A testnet's processes don't do what they should. The message names the node, the cause and where to look.

    Attributes:
        log: the last lines of the log in question.
    """

    def __init__(self, message: str, log: Sequence[str] = ()) -> None:
        self.log = tuple(log)
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node of a testnet.

    Attributes:
        name: of the node.
        home: its folder.
        pid: of its process, None when it isn't running.
        rpc: where it answers, None when it isn't running or not up yet.
        status: what it answers, or what its home says when it isn't running; None when neither can be had.
        error: why there is no status.
    """

    name: str
    home: Path
    pid: int | None
    rpc: str | None
    status: dict[str, Any] | None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The status with the node's name, home, pid and RPC address."""
        own = {"name": self.name, "home": str(self.home), "pid": self.pid, "rpc": self.rpc, "error": self.error}
        return {**(self.status or {}), "running": self.pid is not None, **own}


def poll(find: Callable[[], Found | None], deadline_s: float) -> Found | None:
    """What `find` returns once it isn't None, or None at the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        found = find()
        if found is not None or time.monotonic() >= end:
            return found
        time.sleep(POLL_INTERVAL_S)


def launcher_client(testnet: Testnet) -> LauncherClient:
    """The testnet's launcher, alive or not."""
    return LauncherClient(testnet.run.resolve() / LAUNCHER_SOCKET)


def run_child(client: LauncherClient, request: StartProcess) -> None:
    """Have the launcher run one of our entries, and wait until it has ended. It tells its result in a file of its own.

    Raises:
        LauncherError: no process can be started.
    """
    descriptor = _open(client.start(request))
    if descriptor is not None:
        with contextlib.closing(os.fdopen(descriptor)) as process:
            select.select([process], [], [])


def ensure_launcher(testnet: Testnet) -> LauncherClient:
    """The testnet's launcher; a new one if there is none.

    Raises:
        LauncherError: it can't be started.
    """
    client = launcher_client(testnet)
    if not client.is_alive():
        client = start_launcher(testnet.run).client
    return client


def up(testnet: Testnet, names: Sequence[str] = (), *, deadline_s: float = READY_DEADLINE_S) -> tuple[NodeStatus, ...]:
    """Start nodes, all of them unless named, and wait until each answers. Those that run already are left alone.

    Raises:
        HomeError: there is no node of that name.
        LauncherError: no process can be started.
        TestnetError: a node ended, or doesn't answer in time.
    """
    homes = [testnet.home(name) for name in names] or list(testnet.homes)
    stopped = [home for home in homes if running_pid(home.root) is None]
    started: dict[Path, int] = {}
    if stopped:
        client = ensure_launcher(testnet)
        for home in stopped:
            home.address_file.unlink(missing_ok=True)  # what a killed node left: its port may be another's now
            started[home.root] = client.start_node(home.root, (), home.log_file)
    end = time.monotonic() + deadline_s
    return tuple(_wait_until_ready(home, started.get(home.root), end - time.monotonic()) for home in homes)


def _wait_until_ready(home: Home, pid: int | None, deadline_s: float) -> NodeStatus:
    """Wait for a node's status; `pid` is its process where we started it."""

    def answer() -> NodeStatus | None:
        running = _find_node(home)
        if running is None:
            if pid is not None and not _is_alive(pid):
                raise TestnetError(f"{home.root.name} ended while starting: see {home.log_file}", log_tail(home))
            return None
        found = _ask(home, running)
        return found if found.status is not None else None

    ready = poll(answer, max(0.0, deadline_s))
    if ready is None:
        raise TestnetError(f"{home.root.name} doesn't answer in time: see {home.log_file}", log_tail(home))
    return ready


def _find_node(home: Home) -> RunningNode | None:
    """The node on a home, None while there is none that has said where it answers."""
    try:
        return find_running(home, patience_s=0)
    except UnreachableError:
        return None


def _ask(home: Home, running: RunningNode) -> NodeStatus:
    known = (home.root.name, home.root, running.pid, running.rpc)
    try:
        with RpcClient(running.rpc) as client:
            return NodeStatus(*known, client.call("status", timeout_s=STATUS_TIMEOUT_S))
    except (UnreachableError, RpcError) as error:
        return NodeStatus(*known, None, str(error))


def down(testnet: Testnet, names: Sequence[str] = (), *, deadline_s: float = STOP_DEADLINE_S) -> tuple[str, ...]:
    """Stop nodes, all of them unless named; when none is left the launcher ends too. Idempotent.

    Returns:
        Names of nodes that had to be killed.

    Raises:
        HomeError: there is no node of that name.
        TestnetError: a process can't be ended.
    """
    killed = stop_nodes(testnet, names, deadline_s=deadline_s)
    if all(running_pid(home.root) is None for home in testnet.homes):
        stop_launcher(testnet)
    return killed


def stop_nodes(testnet: Testnet, names: Sequence[str] = (), *, deadline_s: float = STOP_DEADLINE_S) -> tuple[str, ...]:
    """As `down`, but the launcher goes on."""
    homes = [testnet.home(name) for name in names] or list(testnet.homes)
    running = {home.root.name: pid for home in homes if (pid := _node_pid(home)) is not None}
    return end_processes(running, deadline_s)


def _node_pid(home: Home) -> int | None:
    """The process of a home's node, None when there is none. A command that just reads the home is waited for."""
    try:
        running = find_running(home)
    except UnreachableError:
        return running_pid(home.root)  # a node that hangs while it starts
    return None if running is None else running.pid


def stop_launcher(testnet: Testnet) -> None:
    """End the launcher, and with it every process that it forked; does nothing when there is none."""
    client = launcher_client(testnet)
    if client.is_alive():
        client.stop()
        if poll(lambda: None if client.is_alive() else True, KILL_DEADLINE_S) is None:
            raise TestnetError(f"the launcher at {client.socket_path} doesn't end: see {testnet.run / 'launcher.log'}")


def end_processes(running: dict[str, int], deadline_s: float) -> tuple[str, ...]:
    """SIGTERM to all, then SIGKILL to those that are alive at the deadline; their names."""
    descriptors = {name: descriptor for name, pid in running.items() if (descriptor := _open(pid)) is not None}
    try:
        for descriptor in descriptors.values():
            _signal(descriptor, signal.SIGTERM)
        end = time.monotonic() + deadline_s
        killed = tuple(name for name, descriptor in descriptors.items() if not _wait(descriptor, end))
        for name in killed:
            _signal(descriptors[name], signal.SIGKILL)
        end = time.monotonic() + KILL_DEADLINE_S
        for name in killed:
            if not _wait(descriptors[name], end):
                raise TestnetError(f"{name} (process {running[name]}) can't be killed: is its disk stuck?")
        return killed
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def kill(home: Home) -> int | None:
    """`kill -9` a node and wait until it is gone; its process id, None when it wasn't running."""
    pid = _node_pid(home)
    descriptor = None if pid is None else _open(pid)
    if descriptor is None:
        return None
    try:
        _signal(descriptor, signal.SIGKILL)
        if not _wait(descriptor, time.monotonic() + KILL_DEADLINE_S):
            raise TestnetError(f"{home.root.name} (process {pid}) can't be killed: is its disk stuck?")
    finally:
        os.close(descriptor)
    return pid


def _open(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _signal(descriptor: int, number: signal.Signals) -> None:
    if not _wait(descriptor, time.monotonic()):
        signal.pidfd_send_signal(descriptor, number)


def _wait(descriptor: int, end: float) -> bool:
    """Whether the process has ended by then (seconds on the monotonic clock)."""
    readable, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
    return bool(readable)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_up(testnet: Testnet) -> bool:
    """Whether any node runs."""
    return any(_find_node(home) is not None for home in testnet.homes)


def statuses(testnet: Testnet, names: Sequence[str] = ()) -> tuple[NodeStatus, ...]:
    """What each node says, or its home when it isn't running."""
    return tuple(status_of(home) for home in [testnet.home(name) for name in names] or testnet.homes)


def status_of(home: Home) -> NodeStatus:
    """What one node says; a node that isn't running is read from its home."""
    name = home.root.name
    try:
        running = find_running(home, patience_s=0)
    except UnreachableError:
        return NodeStatus(name, home.root, running_pid(home.root), None, None, "it is starting")
    if running is not None:
        return _ask(home, running)
    try:
        with open_reader(home) as reader:
            return NodeStatus(name, home.root, None, None, reader.call("status"))
    except (HomeError, StorageError, UnreachableError, RpcError) as error:
        return NodeStatus(name, home.root, None, None, None, str(error))


def log_tail(home: Home, lines: int = LOG_TAIL_LINES) -> list[str]:
    """The last lines of a node's log; none if it has no log yet."""
    size = _size(home.log_file)
    text = _read(home.log_file, max(0, size - LOG_TAIL_BYTES)).decode("utf-8", errors="replace")
    return text.splitlines()[-lines:] if lines > 0 else []


def follow_logs(homes: Sequence[Home], lines: int) -> Iterator[tuple[str, str]]:
    """The last lines of the logs, then every new one, as (node, line); ends with the caller's interest."""
    followed = [_FollowedLog(home) for home in homes]
    for log in followed:
        yield from ((log.name, line) for line in log.new_lines()[-lines:] if lines > 0)
    while True:
        for log in followed:
            yield from ((log.name, line) for line in log.new_lines())
        time.sleep(POLL_INTERVAL_S)


class _FollowedLog:
    """How far a log was read; starts near its end."""

    def __init__(self, home: Home) -> None:
        self.name = home.root.name
        self._path = home.log_file
        self._position = max(0, _size(self._path) - LOG_TAIL_BYTES)

    def new_lines(self) -> list[str]:
        """Whole lines since the last time; from the start when the file was replaced by a shorter one."""
        if _size(self._path) < self._position:
            self._position = 0
        data = _read(self._path, self._position)
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read(path: Path, start: int) -> bytes:
    """At most `LOG_TAIL_BYTES` of a file that may not exist."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(LOG_TAIL_BYTES)
