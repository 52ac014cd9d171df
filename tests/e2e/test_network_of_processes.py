"""Networks of four real nodes - processes, sockets, LevelDB - that are run, killed, restarted and joined."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bflnode.consensus.types import TOKEN
from bflnode.node.testnets.processes import launcher_client
from tests.e2e.network import DEADLINE_S, Network, checks, command, eventually, run_cli

ALL_HOLD = {"rounds": True, "heads": True, "supply": True, "models": True, "payouts": True, "chain": True}

BUT_NOT_AT_THE_END = {**ALL_HOLD, "rounds": False}
"""Of a network that was stopped before its task was done."""

ENDLESS = "1000"
"""Learning rounds: more than any test waits for."""

INITIAL_STAKE = 5_000_000
BONDED = 4 * TOKEN

Start = Callable[..., Network]


def test_a_run_trains_clusters_aggregates_and_pays_and_every_check_holds(tmp_path: Path) -> None:
    kept = tmp_path / "net"

    report = json.loads(run_cli("testnet", "run", "-v", "4", "--rounds", "3", "--keep", str(kept), "--json"))

    assert report["passed"]
    assert checks(report) == ALL_HOLD
    assert [line["number"] for line in report["rounds"]] == [1, 2, 3]
    for line in report["rounds"]:
        assert sum(line["clusters"]) == len([entry for entry in line["payments"] if entry["net"] > 0])
        assert sum(entry["net"] for entry in line["payments"]) + line["aggregator_income"] == 20_000_000
        assert None not in (line["received_accuracy"], line["post_accuracy"], line["control_accuracy"], line["loss"])
    assert report["rounds"][-1]["post_accuracy"] > report["rounds"][0]["received_accuracy"]
    assert all(line["after"] == line["before"] + line["earned"] for line in report["balances"])
    network = Network(kept)
    assert network.pids() == {}
    assert not launcher_client(network.testnet).is_alive()


def test_an_interrupted_run_leaves_no_process_and_no_folder(short_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(short_path)}
    with subprocess.Popen(
        command("testnet", "run", "-v", "4", "--rounds", "1000"),
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # Tests that run in the background of a shell inherit an ignored SIGINT, which Python leaves as it is.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            assert process.stderr is not None
            next(line for line in process.stderr if "round 1 of 1000" in line)
            (folder,) = short_path.glob("bflnet-*")
            network = Network(folder)
            pids = network.pids()
            launcher = launcher_client(network.testnet)
            assert len(pids) == 4

            process.send_signal(signal.SIGINT)

            assert process.wait(DEADLINE_S) == 130
        finally:
            process.kill()
    assert list(short_path.glob("bfl*")) == []
    assert not launcher.is_alive()
    assert not [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]


def test_nothing_goes_on_when_a_run_is_killed(short_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(short_path)}
    with subprocess.Popen(
        command("testnet", "run", "-v", "4", "--rounds", "1000"), stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stderr is not None
            next(line for line in process.stderr if "round 1 of 1000" in line)
            (folder,) = short_path.glob("bflnet-*")
            network = Network(folder)
            assert len(network.pids()) == 4
        finally:
            process.kill()
    eventually("all nodes have ended", lambda: network.pids() == {})
    eventually("the launcher has ended", lambda: not launcher_client(network.testnet).is_alive())


def test_a_follower_killed_in_the_middle_of_a_round_catches_up_and_earns_again(start: Start) -> None:
    network = start("--rounds", ENDLESS)
    names = network.accounts()
    status = eventually("a round is on its way", lambda: _in_round(network, "node0", 2))
    victim = next(name for account, name in names.items() if account != status["aggregator"] and name != "node0")
    number, pid = status["round"], network.pids()[victim]

    network.kill(victim)

    eventually("the others settle that round without it", lambda: _has_settled(network, "node0", number))
    network.up(victim)
    assert network.pids()[victim] != pid
    missed = number + 1
    eventually("it is paid for a later round", lambda: _is_paid(network, victim, after=missed))
    network.down()
    assert checks(network.report(exit_code=4)) == BUT_NOT_AT_THE_END


def test_a_round_settles_although_its_aggregator_is_killed_before_it_aggregates(start: Start) -> None:
    network = start("--rounds", ENDLESS)
    names, pids = network.accounts(), network.pids()

    number, victim = _kill_aggregator(network, names, pids)

    survivor = next(name for name in pids if name != victim)
    eventually("the round settles without its aggregator", lambda: _has_settled(network, survivor, number))
    network.up(victim)
    eventually("it is paid for a later round", lambda: _is_paid(network, victim, after=number))
    network.down()
    report = network.report(exit_code=4)
    assert checks(report) == BUT_NOT_AT_THE_END
    (settled,) = (line for line in report["rounds"] if line["number"] == number)
    assert settled["aggregator"] not in (None, victim)


def test_a_late_joiner_catches_up_earns_bonds_and_votes(start: Start) -> None:
    network = start("--rounds", ENDLESS)

    network.cli("testnet", "add", str(network.directory))

    eventually("the late joiner earns", lambda: _is_paid(network, "node4", after=0))
    home = str(network.testnet.home("node4").root)
    network.cli("validator", "bond", str(BONDED // TOKEN), "--home", home)
    own = json.loads(network.cli("validator", "show", "--home", home, "--json"))
    assert (own["standing"], own["stake"]) == ("active", BONDED)
    eventually("the late joiner signs a block", lambda: _has_signed(network, "node0", own["index"]))
    joined, others = network.status("node4"), network.status("node0")
    network.down()
    report = network.report(exit_code=4)
    assert joined is not None
    assert others is not None
    assert joined["height"] <= others["height"]
    assert (joined["is_admitted"], joined["stake"], joined["standing"]) == (True, BONDED, "active")
    assert joined["balance"] > INITIAL_STAKE - BONDED
    assert checks(report) == BUT_NOT_AT_THE_END
    (line,) = (line for line in report["balances"] if line["node"] == "node4")
    assert line["before"] == 0
    assert line["stake"] == BONDED
    assert line["after"] == INITIAL_STAKE - BONDED + line["earned"]
    assert line["rounds_paid"] > 0


def test_a_stopped_network_goes_on_where_it_was(start: Start) -> None:
    network = start("--rounds", "5")
    eventually("a round is settled", lambda: _has_settled(network, "node0", 1))
    network.down()
    network.down()
    stopped = network.statuses()
    assert {line["pid"] for line in stopped.values()} == {None}

    network.up()
    network.up()

    network.wait_until_done(rounds=5)
    for name, line in stopped.items():
        with network.client(name) as client:
            block = client.call("block", reference=line["height"])
        assert (block["id"], block["state_root"]) == (line["head"], line["state_root"])
    network.down()
    assert checks(network.report()) == ALL_HOLD


def _in_round(network: Network, name: str, number: int) -> dict[str, Any] | None:
    """The status of a node that is in a round of at least this number, before the models are there."""
    status = network.status(name)
    is_there = status is not None and status["round"] is not None and status["round"] >= number
    return status if is_there and status is not None and status["phase"] == "commit" else None


def _has_settled(network: Network, name: str, number: int) -> bool:
    status = network.status(name)
    return status is not None and status["settled_rounds"] >= number


def _has_signed(network: Network, name: str, index: int) -> bool:
    """Whether the validator with this index signed one of the last blocks, as a running node sees it."""
    with network.client(name) as client:
        blocks = [client.call("block", reference=str(line["height"])) for line in client.call("blockchain", count=10)]
    return any(index in {entry["index"] for entry in block["commit"]["signatures"]} for block in blocks)


def _is_paid(network: Network, name: str, *, after: int) -> bool:
    """Whether a running node was paid in a learning round with a higher number, as it sees the chain itself."""
    status = network.status(name)
    if status is None or status["settled_rounds"] <= after:
        return False
    with network.client(name) as client:
        rewards = client.call("rewards")
    nets = {client["account"]: client["net"] for client in rewards["clients"]}
    return bool(rewards["number"] > after and nets.get(status["account"], 0) > 0)


def _kill_aggregator(network: Network, names: dict[str, str], pids: dict[str, int]) -> tuple[int, str]:
    """Kill the acting aggregator while it should fetch or aggregate; the learning round and its name."""
    with network.client("node0") as client:

        def acting() -> dict[str, Any] | None:
            status: dict[str, Any] = client.call("status")
            return status if status["phase"] == "available" and status["attempt"] == 0 else None

        status = eventually("a round waits for its aggregator", acting)
    victim = names[status["aggregator"]]
    os.kill(pids[victim], signal.SIGKILL)
    return status["round"], victim
