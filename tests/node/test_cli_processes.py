"""The command line as a person has it: processes, a node in the background, signals, exit codes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bflnode.consensus.keys import account_text
from bflnode.consensus.task import MAX_PHASE_MS
from bflnode.node.home import Home
from tests.consensus.harness import Harness
from tests.node.stored_homes import home_with

DEADLINE_S = 120


def bflnode(home: Home, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "bflnode.node.cli", *arguments, "--home", str(home.root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def read(home: Home, *arguments: str) -> Any:
    done = bflnode(home, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but that nobody has waited for does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.fixture
def network(tmp_path: Path) -> tuple[Home, Harness]:
    """The home of a network's only validator."""
    harness = Harness(actors=2, stakes=(10,), deadlines={"registration_ms": MAX_PHASE_MS}, balance=3_000_000)
    return home_with(tmp_path / "home", harness.genesis, harness.keys[0]), harness


@pytest.fixture
def background(network: tuple[Home, Harness]) -> Iterator[tuple[Home, Harness]]:
    """A node that runs in the background; it is stopped in the end if it still runs."""
    home, _ = network
    started = bflnode(home, "start", "--background")
    assert started.returncode == 0, started.stderr
    yield network
    bflnode(home, "stop")


def test_node_in_the_background_is_asked_pays_and_stops(background: tuple[Home, Harness]) -> None:
    home, harness = background
    assert bflnode(home, "health").returncode == 0
    status = read(home, "status")
    assert (status["running"], status["pid"]) == (True, json.loads(home.address_file.read_text())["pid"])
    nowhere = Home(home.root / "nowhere")
    assert read(nowhere, "status", "--rpc", status["rpc"])["pid"] == status["pid"], "--rpc needs no home"
    assert bflnode(nowhere, "health", "--rpc", status["rpc"]).returncode == 0
    assert bflnode(nowhere, "status", "--rpc", "http://127.0.0.1:1").returncode == 3
    assert bflnode(nowhere, "status", "--rpc", "127.0.0.1").returncode == 2

    again = bflnode(home, "start")
    assert (again.returncode, "already runs" in again.stderr) == (1, True)

    sent = read(home, "transfer", "--to", account_text(harness.account(1))[:8], "--amount", "0.25")
    assert sent["status"] == "included"
    assert read(home, "tx", sent["id"])["height"] == sent["height"]
    poor = bflnode(home, "transfer", "--to", account_text(harness.account(1)), "--amount", "1000")
    assert (poor.returncode, poor.stderr.count("\n")) == (1, 1)
    assert "insufficient-funds: 2.750000 tokens" in poor.stderr
    assert read(home, "chain", "verify", "--reexecute")["is_valid"] is True
    peers = bflnode(home, "peers")
    assert (peers.returncode, "no peers" in peers.stdout) == (0, True)

    stopped = bflnode(home, "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert not is_alive(status["pid"])
    assert bflnode(home, "stop").returncode == 3
    assert not home.address_file.exists()
    assert read(home, "account")["balance"] == 2_750_000
    assert read(home, "status")["running"] is False


def test_stake_is_bonded_and_unbonded_through_the_running_node(background: tuple[Home, Harness]) -> None:
    home, _ = background
    assert read(home, "validator", "bond", "1.5")["status"] == "included"
    assert read(home, "validator", "unbond", "0.5")["status"] == "included"
    shown = read(home, "validator", "show")
    assert (shown["standing"], shown["stake"], shown["index"]) == ("active", 1_000_010, 0)
    assert [entry["amount"] for entry in shown["unbonding"]] == [500_000]
    assert read(home, "account")["balance"] == 1_500_000
    for arguments, message in (
        (("bond", "2"), "insufficient-funds: 1.500000 tokens (1500000 micro-tokens) are free"),
        (("unbond", "2"), "insufficient-stake: 1.000010 tokens"),
        (("unbond", "1.00001"), "last-validator"),
        (("unjail",), "not-jailed: the account's standing is active"),
    ):
        refused = bflnode(home, "validator", *arguments)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused.stderr
        assert message in refused.stderr
    assert read(home, "evidence", "list") == []
    assert read(home, "chain", "verify", "--reexecute")["is_valid"] is True


def test_killed_node_is_seen_as_stopped_and_starts_again(background: tuple[Home, Harness]) -> None:
    home, _ = background
    os.kill(read(home, "status")["pid"], signal.SIGKILL)
    assert read(home, "chain", "verify")["is_valid"] is True
    assert home.address_file.exists(), "a killed node leaves its address behind"
    assert bflnode(home, "health").returncode == 3
    assert bflnode(home, "start", "--background").returncode == 0
    assert bflnode(home, "health").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_node_in_the_foreground_with_code_0(
    network: tuple[Home, Harness], number: signal.Signals
) -> None:
    home, harness = network
    command = [sys.executable, "-P", "-m", "bflnode.node.cli", "start", "--home", str(home.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while "peers" not in lines[-1]:
            assert lines[-1], f"it ended: {process.communicate()}"
            lines.append(process.stdout.readline())
        process.send_signal(number)
        _, log = process.communicate(timeout=DEADLINE_S)
    said = "".join(lines)
    assert process.returncode == 0, log
    assert "Traceback" not in log
    for what in (account_text(harness.account(0)), "12D3KooW", "http://127.0.0.1:", "/ip4/127.0.0.1/tcp/"):
        assert what in said


def test_node_that_cannot_start_in_the_background_says_why(network: tuple[Home, Harness]) -> None:
    home, _ = network
    home.configuration_file.write_text("name = 5\n", encoding="utf-8")
    failed = bflnode(home, "start", "--background")
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert "setting name" in failed.stderr


def test_output_that_nobody_reads_is_no_error(network: tuple[Home, Harness]) -> None:
    home, _ = network
    verb = f"{sys.executable} -P -m bflnode.node.cli task show --json --home {home.root}"
    done = subprocess.run(
        ["bash", "-c", f"{verb} | true"], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.stderr == ""
