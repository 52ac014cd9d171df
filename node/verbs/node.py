"""The verbs of one node's life: start, stop, status, health, peers."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from .options import (
    NOT_READY,
    UNREACHABLE,
    CommandError,
    FiniteRange,
    examples,
    home_option,
    reading,
    reading_options,
    rpc_url,
)
from .output import duration, emit, facts, moment, percent, printable, short, table

if TYPE_CHECKING:
    from bflnode.node.daemon import Started
    from bflnode.node.home import Home
    from bflnode.node.rpc.reader import RunningNode

START_DEADLINE_S = 180.0
"""Loading takes two seconds alone and many times as long where a whole network starts on two cores."""

POLL_S = 0.1

LOG_LINES = 3
"""Lines of the log in the message about a node that did not start."""


@click.command(
    epilog=examples(
        "bflnode start --home node0",
        "bflnode start --peer /ip4/192.0.2.7/tcp/26656/p2p/12D3KooW…",
        "bflnode start --background",
        "bflnode start --state-sync 12000:5f0c… --peer /ip4/192.0.2.7/tcp/26656/p2p/12D3KooW…",
    )
)
@home_option
@click.option("--peer", "peers", multiple=True, metavar="MULTIADDR", help="Also connect to this peer; may be repeated.")
@click.option("--bootstrap", multiple=True, metavar="MULTIADDR", help="Dialled while there are no peers; repeatable.")
@click.option("--mdns", is_flag=True, help="Look for nodes of the same chain on the local network.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port for peers; 0 takes a free one.")
@click.option("--rpc-port", type=click.IntRange(0, 65535), help="Port for RPC; 0 takes a free one.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="How much is logged.")
@click.option(
    "--state-sync", metavar="HEIGHT:HASH", help="Without a chain: start from a peer's snapshot, trusting this block."
)
@click.option(
    "--state-sync-peer",
    "--state-sync-peers",
    "state_sync_peers",
    multiple=True,
    metavar="MULTIADDR",
    help="Ask this peer for snapshots too; may be repeated.",
)
@click.option(
    "--background/--foreground", "--detach/--attach", "background", help="Return once it is up, log to a file."
)
def start(
    home: "Home",
    peers: tuple[str, ...],
    port: int | None,
    rpc_port: int | None,
    log_level: str | None,
    state_sync: str | None,
    state_sync_peers: tuple[str, ...],
    bootstrap: tuple[str, ...],
    mdns: bool,
    background: bool,
) -> None:
    """Run the node: join the network, learn, vote, answer RPC.

    Ctrl-C or SIGTERM ends it cleanly. Settings come from flags, then BFLNODE_* in the environment (BFLNODE_P2P__PORT),
    then config/config.toml in the home.
    """
    from bflnode.node.rpc.reader import find_running

    running = find_running(home.require())
    if running is not None:
        raise CommandError(f"a node already runs on {home.root}: process {running.pid}, RPC {running.rpc}")
    chosen = StartOptions(peers, port, rpc_port, log_level, state_sync, state_sync_peers, bootstrap, mdns)
    if background:
        _start_in_background(home, chosen)
        return
    from bflnode.node.daemon import run_until_stopped
    from bflnode.node.p2p.network import TransportError

    try:
        run_until_stopped(home, _flags(home, chosen), _announce)
    except TransportError as error:
        raise CommandError(str(error)) from error


@dataclass(frozen=True, slots=True)
class StartOptions:
    """What `start` was given beyond the settings."""

    peers: tuple[str, ...]
    port: int | None
    rpc_port: int | None
    log_level: str | None
    state_sync: str | None
    state_sync_peers: tuple[str, ...]
    bootstrap: tuple[str, ...]
    mdns: bool

    def arguments(self) -> list[str]:
        """The same as arguments of another `start`."""
        given = [
            *(("--peer", peer) for peer in self.peers),
            ("--port", self.port),
            ("--rpc-port", self.rpc_port),
            ("--log-level", self.log_level),
            ("--state-sync", self.state_sync),
            *(("--state-sync-peer", peer) for peer in self.state_sync_peers),
            *(("--bootstrap", address) for address in self.bootstrap),
        ]
        options = [part for name, value in given if value is not None for part in (name, str(value))]
        return [*options, "--mdns"] if self.mdns else options


def _flags(home: "Home", chosen: StartOptions) -> dict[str, Any]:
    """Settings from flags: the peers are added to those of the file."""
    from bflnode.node.configuration import load_configuration

    p2p: dict[str, Any] = {}
    if chosen.peers:
        p2p["persistent_peers"] = (*load_configuration(home).p2p.persistent_peers, *chosen.peers)
    if chosen.bootstrap:
        p2p["bootstrap"] = (*load_configuration(home).p2p.bootstrap, *chosen.bootstrap)
    if chosen.mdns:
        p2p["mdns"] = True
    if chosen.port is not None:
        p2p["port"] = chosen.port
    sync: dict[str, Any] = {}
    if chosen.state_sync is not None:
        sync["state_sync"] = chosen.state_sync
    if chosen.state_sync_peers:
        sync["state_sync_peers"] = (*load_configuration(home).sync.state_sync_peers, *chosen.state_sync_peers)
    flags: dict[str, Any] = {name: section for name, section in (("p2p", p2p), ("sync", sync)) if section}
    if chosen.rpc_port is not None:
        flags["rpc"] = {"port": chosen.rpc_port}
    if chosen.log_level is not None:
        flags["log_level"] = chosen.log_level
    return flags


def _announce(started: "Started") -> None:
    click.echo(f"node {printable(started.name)} is up (process {os.getpid()})")
    facts(
        [
            ("  node id", started.node_id),
            ("  account", started.account),
            *(("  listening", address) for address in started.addresses),
            ("  RPC", started.rpc),
            ("  chain", started.chain_id),
            ("  height", started.height),
            ("  peers", f"{started.peers} connected, looking for more"),
        ]
    )
    sys.stdout.flush()


def _start_in_background(home: "Home", chosen: StartOptions) -> None:
    options = chosen.arguments()
    home.run.mkdir(parents=True, exist_ok=True)
    with home.log_file.open("ab") as log:
        log_start = log.tell()
        # -P: started from a checkout's root, the folders there must not be taken for packages.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bflnode.node.cli", "start", "--home", str(home.root.absolute()), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            with home.log_file.open(encoding="utf-8", errors="replace") as file:
                file.seek(log_start)
                lines = file.read().strip().splitlines()
            why = " / ".join(lines[-LOG_LINES:]) or f"exit code {process.returncode}"
            raise CommandError(f"the node did not start: {why} (log: {home.log_file})")
        running = _found(home)
        if running is not None and running.pid == process.pid:
            facts(
                [
                    ("process", running.pid),
                    ("node id", running.node_id),
                    *(("listening", address) for address in running.addresses),
                    ("RPC", running.rpc),
                    ("log", home.log_file),
                ]
            )
            return
        time.sleep(POLL_S)
    message = (
        f"the node did not come up within {START_DEADLINE_S:g} s; process {process.pid} goes on, log: {home.log_file}"
    )
    raise CommandError(message, NOT_READY)


def _found(home: "Home") -> "RunningNode | None":
    """The running node, or None while it starts."""
    from bflnode.node.rpc.reader import find_running
    from bflnode.node.rpc.refusals import UnreachableError

    try:
        return find_running(home, patience_s=0)
    except UnreachableError:
        return None


@click.command(epilog=examples("bflnode stop", "bflnode stop --home node0 --timeout 60"))
@home_option
@click.option("--timeout", default=30.0, show_default=True, type=FiniteRange(min=0), help="Seconds to wait for it.")
def stop(home: "Home", timeout: float) -> None:
    """End the running node cleanly and wait until it has ended."""
    from bflnode.node.rpc.reader import find_running

    running = find_running(home.require())
    if running is None:
        raise CommandError(f"no node runs on {home.root}", UNREACHABLE)
    with contextlib.suppress(ProcessLookupError):  # it may end by itself in this very moment
        _end_process(running.pid, timeout)
    click.echo(f"the node on {home.root} has stopped (process {running.pid})")


def _end_process(pid: int, timeout_s: float) -> None:
    """Send SIGTERM and wait for the end; by a pidfd, since a process id could be used again meanwhile.

    Raises:
        ProcessLookupError: it has ended already.
    """
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        ended, _, _ = select.select([descriptor], [], [], timeout_s)
    except PermissionError as error:
        raise CommandError(f"process {pid} belongs to another user: stop it as that user") from error
    finally:
        os.close(descriptor)
    if not ended:
        raise CommandError(f"process {pid} still runs after {timeout_s:g} s: try again, or `kill -9 {pid}`")


@click.command(epilog=examples("bflnode status", "bflnode status --home node0 --json"))
@reading_options
def status(home: "Home", as_json: bool) -> None:
    """Show the node and its chain at a glance: height, learning round, peers, balance, what is verified by whom."""
    with reading(home) as reader:
        answer = reader.call("status")
    emit(answer, as_json, _render_status)


def _render_status(answer: dict[str, Any]) -> None:
    from bflnode.node.amounts import tokens_text

    state = f"running, process {answer['pid']}, up {duration(answer['uptime_ms'])}" if answer["running"] else "stopped"
    accuracy = answer["accuracy"] or {}
    trainer = answer["trainer"] or {}
    lines: list[tuple[str, object]] = [
        ("node", f"{answer['name']} ({state})"),
        ("home", answer["home"]),
        ("node id", answer["node_id"]),
        ("account", answer["account"]),
        ("balance", tokens_text(answer["balance"]) + ("" if answer["is_admitted"] else ", not admitted yet")),
        ("stake", tokens_text(answer["stake"])),
        ("validator", {"active": "yes", "none": "no"}.get(answer["standing"], f"no, {answer['standing']}")),
        *([("to do", answer["advice"])] if answer["advice"] else []),
        ("chain", f"{answer['chain']} {answer['chain_id']}"),
        (
            "height",
            f"{answer['height']} at {moment(answer['head_time_ms'])}{', catching up' if answer['syncing'] else ''}",
        ),
        ("head", answer["head"]),
        ("state root", answer["state_root"]),
        ("learning round", _round_text(answer)),
        ("verification", answer["verification"]),
    ]
    if answer["running"]:
        lines += [
            ("peers", answer["peers"]),
            ("activity", ", ".join(answer["activity"]) or "nothing to do"),
            ("trainer", f"{trainer['job']} {percent(trainer['fraction'])}" if trainer.get("job") else "idle"),
            ("waiting", f"{answer['mempool']} transactions"),
            ("RPC", answer["rpc"]),
            *(("listening", address) for address in answer["addresses"]),
        ]
    if accuracy:
        measured = ", ".join(
            f"{name} {percent(accuracy.get(f'{name}_accuracy'))}" for name in ("received", "post", "control", "global")
        )
        lines.append(("accuracy", f"round {accuracy['number']}: {measured}"))
    facts(lines)


def _round_text(answer: dict[str, Any]) -> str:
    if answer["round"] is None:
        return f"none runs, {answer['settled_rounds']} settled"
    return (
        f"{answer['round']} of {answer['rounds']} by {answer['rule']}, phase {answer['phase']}: "
        f"{answer['clients']} clients, {answer['committed']} committed, {answer['revealed']} revealed, "
        f"{answer['attested']} attested; aggregator {short(answer['aggregator'])}"
    )


@click.command(epilog=examples("bflnode health && echo ready", "bflnode health --json"))
@reading_options
def health(home: "Home", as_json: bool) -> None:
    """Say whether the node is ready: exit code 0 if it is, 5 if it is not, 3 if it can't be reached."""
    from bflnode.node.rpc.client import RpcClient
    from bflnode.node.rpc.reader import find_running

    url = rpc_url()
    if url is None:
        running = find_running(home.require(), patience_s=0)
        if running is None:
            raise CommandError(f"no node runs on {home.root}: start it with `bflnode start`", UNREACHABLE)
        url = running.rpc
    with RpcClient(url) as client:
        answer = client.call("health")
    emit(answer, as_json, lambda found: click.echo("ready" if found["ready"] else "; ".join(found["reasons"])))
    if not answer["ready"]:
        raise CommandError("the node is not ready", NOT_READY)


@click.command(epilog=examples("bflnode journal", "bflnode journal --json"))
@reading_options
def journal(home: "Home", as_json: bool) -> None:
    """Show what this node measured in each learning round: accuracies before and after training, and time."""
    with reading(home) as reader:
        answer = reader.call("journal")
    emit(answer, as_json, _render_journal)


def _render_journal(entries: list[dict[str, Any]]) -> None:
    table(
        ["round", "attempt", "received", "post", "control", "global", "loss", "training"],
        [
            (
                entry["number"],
                entry["attempt"],
                percent(entry["received_accuracy"]),
                percent(entry["post_accuracy"]),
                percent(entry["control_accuracy"]),
                percent(entry["global_accuracy"]),
                "-" if entry["loss"] is None else f"{entry['loss']:.4f}",
                "-" if entry["training_s"] is None else f"{entry['training_s']:.1f} s",
            )
            for entry in entries
        ],
        empty="this node has trained in no learning round yet",
    )
