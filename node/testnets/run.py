"""A testnet from nothing to a report: homes, launcher, nodes, all learning rounds, checks; everything stopped again.

What belongs here: the order of these steps and their deadlines. Each step is somebody else's: `homes`,
`processes`, `report`; what is shown meanwhile is `progress`'.
"""

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bflnode.node.home import HomeError
from bflnode.node.rpc.client import RpcClient
from bflnode.node.rpc.refusals import RpcError, UnreachableError
from bflnode.node.workers.launcher import LauncherClient, StartProcess, begin_launcher

from . import processes
from .homes import Testnet, TestnetOptions, make_testnet, require_unused
from .processes import NodeStatus, TestnetError

WATCH_INTERVAL_S = 0.5
"""Between two looks at all nodes: each costs every node a few milliseconds."""

STALL_DEADLINE_S = 1_200.0
"""Without a new block for this long nothing will come: a phase lasts ten minutes at most, and is extended once."""

MEASURING_DEADLINE_S = 120.0
"""The last round's control models are trained after the last block; the report goes without them if it takes longer."""

REPORT_ENTRY = "bflnode.node.testnets.report:main"

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

ENDED = ("done", "cancelled")
"""States of a task in which nothing more happens."""


class View(Protocol):
    """What shows a run while it goes on."""

    def step(self, text: str) -> None:
        """A step begins."""

    def update(self, testnet: Testnet, statuses: Sequence[NodeStatus]) -> None:
        """What the nodes say now."""


@dataclass(slots=True)
class Timings:
    """Seconds of each step; the launcher starts while the homes are made."""

    steps: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def lap(self, name: str) -> None:
        """The step that ends now is of this name."""
        now = time.monotonic()
        self.steps[f"{name}_s"] = round(now - self._last, 3)
        self._last = now

    def to_json(self) -> dict[str, float]:
        """Seconds by step, and in all."""
        return {**self.steps, "total_s": round(sum(self.steps.values()), 3)}


def run_testnet(directory: Path, options: TestnetOptions, view: View) -> dict[str, Any]:
    """Run a testnet to the end of its task; its report as JSON, with timings. No process is left, whatever happens.

    Raises:
        HomeError, DatasetError, UnknownArchitecture: it can't be made like this.
        LauncherError: no process can be started.
        TestnetError: a node ended or nothing goes on.
    """
    timings = Timings()
    view.step("making homes, starting the launcher")
    with _launched(directory, options, timings) as (testnet, client):
        view.step("starting nodes")
        processes.up(testnet)
        timings.lap("start")
        view.step("learning")
        _watch(testnet, view)
        timings.lap("learning")
        view.step("measuring the last control models")
        _wait_for_measurements(testnet)
        timings.lap("measuring")
        view.step("stopping nodes")
        processes.stop_nodes(testnet)
        timings.lap("stop")
        view.step("checking everything again from genesis")
        report = _report(testnet, client)
        timings.lap("report")
    return {**report, "timings": timings.to_json()}


@contextmanager
def _launched(directory: Path, options: TestnetOptions, timings: Timings) -> Iterator[tuple[Testnet, LauncherClient]]:
    """Homes and a launcher; at the end no process of theirs is left."""
    require_unused(directory)
    try:
        starting = begin_launcher(directory / "run", is_tied=True)
    except OSError as error:
        raise HomeError(f"cannot make a testnet in {directory}: {error.strerror}: choose another folder") from error
    try:
        testnet = make_testnet(directory, options)
        timings.lap("homes")
        running = starting.wait()
        timings.lap("launcher")
    except BaseException:
        starting.kill()
        raise
    try:
        yield testnet, running.client
    finally:
        with _uninterrupted():
            try:
                processes.down(testnet)
            finally:
                running.end()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not stop us from stopping the nodes: that takes a minute at most."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in INTERRUPTIONS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(testnet: Testnet, view: View) -> None:
    """Show the nodes until the tasks have ended at all of them; one that died is started again at the end.

    Raises:
        TestnetError: nothing goes on.
    """
    height, end = -1, time.monotonic() + STALL_DEADLINE_S
    while True:
        statuses = processes.statuses(testnet)
        view.update(testnet, statuses)
        front = max((found.status["height"] for found in statuses if found.status is not None), default=-1)
        if front > height:
            height, end = front, time.monotonic() + STALL_DEADLINE_S
        running = [found for found in statuses if found.pid is not None]
        if not running or time.monotonic() > end:
            what = f"no block after {height} for {STALL_DEADLINE_S:.0f} s" if running else "all nodes have ended"
            first = testnet.homes[0]
            raise TestnetError(f"{what}: see the logs, as {first.log_file}", processes.log_tail(first))
        if all(_has_ended(found) for found in running):
            stopped = [found.name for found in statuses if found.pid is None]
            if not stopped:
                return
            view.step(f"{', '.join(stopped)} ended before the others: starting again")
            processes.up(testnet, stopped)
        time.sleep(WATCH_INTERVAL_S)


def _has_ended(found: NodeStatus) -> bool:
    """Whether no task of a running node goes on."""
    if found.rpc is None or found.status is None or found.status["phase"] != "idle":
        return False
    try:
        with RpcClient(found.rpc) as client:
            return all(task["status"] in ENDED for task in client.call("tasks"))
    except (UnreachableError, RpcError):
        return False


def _wait_for_measurements(testnet: Testnet) -> None:
    """Wait until every node has measured its last round, if it measures at all."""
    if testnet.options.control:

        def is_measured() -> bool | None:
            latest = [(found.status or {}).get("accuracy") for found in processes.statuses(testnet)]
            return True if all(entry is None or entry["control_accuracy"] is not None for entry in latest) else None

        processes.poll(is_measured, MEASURING_DEADLINE_S)


def _report(testnet: Testnet, client: LauncherClient) -> dict[str, Any]:
    """The report, made by a child of the launcher: importing torch here would take seconds."""
    target, log = testnet.directory / "report.json", testnet.run / "report.log"
    request = StartProcess("report", REPORT_ENTRY, (str(testnet.directory), str(target)), str(log))
    processes.run_child(client, request)
    try:
        report: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        raise TestnetError(f"the report couldn't be made: see {log}", lines[-processes.LOG_TAIL_LINES :]) from error
    return report
