"""A testnet of real processes as tests use it: its command line, what its nodes say, and waiting with a deadline."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bflnode.node.rpc.client import RpcClient
from bflnode.node.testnets import processes
from bflnode.node.testnets.homes import Testnet, load_testnet
from bflnode.storage.home_lock import running_pid

DEADLINE_S = 180.0
"""For anything a network should do; on a quiet machine all of it takes seconds."""

COMMAND_DEADLINE_S = 240

INTERVAL_S = 0.02

NODES = 4

Found = TypeVar("Found")


def eventually(what: str, find: Callable[[], Found | None], deadline_s: float = DEADLINE_S) -> Found:
    """What `find` returns once that isn't None or False. Tests of real processes wait only here.

    Raises:
        AssertionError: not before the deadline.
    """
    end = time.monotonic() + deadline_s
    while True:
        found = find()
        if found is not None and found is not False:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:.0f} s: {what}")
        time.sleep(INTERVAL_S)


def command(*arguments: str) -> list[str]:
    """The program `bflnode` with arguments."""
    return [sys.executable, "-P", "-m", "bflnode.node.cli", *arguments]


def run_cli(*arguments: str, exit_code: int = 0) -> str:
    """Run `bflnode`; its standard output."""
    finished = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=COMMAND_DEADLINE_S, check=False
    )
    said = f"bflnode {' '.join(arguments)} ended with {finished.returncode}:\n{finished.stdout}\n{finished.stderr}"
    assert finished.returncode == exit_code, said
    return finished.stdout


def init(directory: Path, *options: str) -> "Network":
    """Make a network of four nodes."""
    run_cli("testnet", "init", "-v", str(NODES), "-o", str(directory), "--no-control", *options)
    return Network(directory)


@dataclass(frozen=True, slots=True)
class Network:
    """A testnet's folder."""

    directory: Path

    @property
    def testnet(self) -> Testnet:
        """The testnet as it is now."""
        return load_testnet(self.directory)

    def cli(self, *arguments: str, exit_code: int = 0) -> str:
        """Run `bflnode`; its standard output."""
        return run_cli(*arguments, exit_code=exit_code)

    def pids(self) -> dict[str, int]:
        """Process ids of the nodes that run."""
        found = ((home.root.name, running_pid(home.root)) for home in self.testnet.homes)
        return {name: pid for name, pid in found if pid is not None}

    def up(self, *names: str) -> None:
        """Start nodes."""
        self.cli("testnet", "up", str(self.directory), *names)

    def down(self, *names: str) -> None:
        """Stop nodes."""
        self.cli("testnet", "down", str(self.directory), *names)

    def statuses(self) -> dict[str, dict[str, Any]]:
        """What `testnet status --json` says, by node."""
        return {line["name"]: line for line in json.loads(self.cli("testnet", "status", str(self.directory), "--json"))}

    def status(self, name: str) -> dict[str, Any] | None:
        """What one running node says; None while it doesn't answer."""
        return processes.status_of(self.testnet.home(name)).status

    def client(self, name: str) -> RpcClient:
        """A connection to a running node; the caller closes it."""
        found = processes.status_of(self.testnet.home(name))
        assert found.rpc is not None, f"{name} doesn't run: {found}"
        return RpcClient(found.rpc)

    def kill(self, name: str) -> None:
        """`kill -9`."""
        os.kill(self.pids()[name], signal.SIGKILL)
        eventually(f"{name} is gone", lambda: name not in self.pids())

    def accounts(self) -> dict[str, str]:
        """Node by account."""
        return {line["account"]: name for name, line in self.statuses().items()}

    def wait_until_done(self, *, rounds: int) -> None:
        """Wait until every node has settled all rounds."""

        def is_done() -> bool:
            found = processes.statuses(self.testnet)
            return all(node.status is not None and node.status["settled_rounds"] == rounds for node in found)

        eventually(f"all nodes have settled {rounds} rounds", is_done)

    def report(self, *, exit_code: int = 0) -> dict[str, Any]:
        """The report on the stopped network."""
        report: dict[str, Any] = json.loads(
            self.cli("testnet", "report", str(self.directory), "--json", exit_code=exit_code)
        )
        return report


def checks(report: dict[str, Any]) -> dict[str, bool]:
    """Which check of a report holds."""
    return {check["id"]: check["ok"] for check in report["checks"]}
