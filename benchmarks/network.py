"""What a network costs: start-up, seconds a learning round and where they go, latency, bytes, memory.

Run with `python benchmarks/network.py --nodes 8 --dataset digits`. Real processes on this machine, one testnet after
the other. Phases are read from the chain: the header times of the blocks in which they change. COMMIT holds the
training, AVAILABLE the transfer of models, AGGREGATE and ATTEST comparing, clustering and averaging, each with the
agreement on its blocks.
"""

import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bflnode.consensus.ledger import execute, genesis_state
from bflnode.consensus.tables import SETTLED
from bflnode.consensus.task import SettledRound
from bflnode.consensus.transaction import Transfer, sign_transaction
from bflnode.consensus.types import TOKEN
from bflnode.consensus.workspace import BlockContext, EventKind
from bflnode.node.home import Home
from bflnode.node.journal import Journal
from bflnode.node.rpc.client import RpcClient
from bflnode.node.testnets import processes
from bflnode.node.testnets.homes import Testnet, TestnetOptions, make_testnet
from bflnode.storage.chain_store import ChainStore

PHASES = ("COMMIT", "REVEAL", "AVAILABLE", "AGGREGATE", "ATTEST")
BLOCK_LINE = re.compile(r"(?P<time>\S+ \S+) INFO .*: block (?P<height>\d+) ")
"""How a node logs a final block."""

RUN_DEADLINE_S = 3600.0
POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Measured:
    """One testnet, run to the end. Durations are medians over learning rounds but the first, which warms up.

    Attributes:
        startup_s: from starting processes to the header time at which the first learning round opens.
        round_s: from OPEN to SETTLE, header time.
        training_s: the slowest client's training, which a round can't do without.
        protocol_s: the rest.
        agreement_s: from the headers' times until the blocks of the round were final at one node, added up: part of the
            protocol, spread over the phases.
        phases_s: the round by phase.
        blocks: blocks in a round.
        latency_s: from submitting a transfer over RPC until it is in a final block, idle network; median, largest.
        sent_bytes: sent by a node in a round, mean over nodes.
        memory_mib: proportional set size of a node with its trainer, mean over nodes.
    """

    nodes: int
    dataset: str
    architecture: str
    rounds: int
    startup_s: float
    round_s: float
    training_s: float
    protocol_s: float
    agreement_s: float
    phases_s: dict[str, float]
    blocks: float
    latency_s: tuple[float, float]
    sent_bytes: float
    memory_mib: float


def run_testnet(options: TestnetOptions, directory: Path, *, transfers: int) -> Measured:
    """Make, run, measure and stop one testnet."""
    testnet = make_testnet(directory, options)
    client = processes.ensure_launcher(testnet)
    started_ms = time.time() * 1000
    try:
        processes.up(testnet)
        _wait_until_done(testnet)
        memory = [_memory_mib(home) for home in testnet.homes]
        sent = [_status(home)["network"]["bytes_out"] for home in testnet.homes]
        latency = _transfer_latency(testnet, transfers)
    finally:
        processes.down(testnet)
        assert not client.is_alive(), "the launcher ends with its last node"
    rounds, phases, blocks = _read_rounds(testnet.homes[0])
    training = [_slowest_training_s(testnet, settled.slot.number) for settled in rounds]
    round_s = [(settled.settled_header_ms - settled.opened_header_ms) / 1000 for settled in rounds]
    later = slice(1, None) if len(rounds) > 1 else slice(None)
    median_round, median_training = statistics.median(round_s[later]), statistics.median(training[later])
    return Measured(
        nodes=options.validators,
        dataset=options.dataset,
        architecture=testnet.homes[0].load_genesis().tasks[0].specification.architecture,
        rounds=len(rounds),
        startup_s=(rounds[0].opened_header_ms - started_ms) / 1000,
        round_s=median_round,
        training_s=median_training,
        protocol_s=median_round - median_training,
        agreement_s=statistics.median(_agreement_s(testnet.homes[0], rounds)[later]),
        phases_s={name: statistics.median(phase[name] for phase in phases[later]) for name in PHASES},
        blocks=statistics.median(blocks[later]),
        latency_s=latency,
        sent_bytes=statistics.mean(sent) / len(rounds),
        memory_mib=statistics.mean(memory),
    )


def _status(home: Home) -> dict[str, Any]:
    status = processes.status_of(home).status
    assert status is not None, f"{home.root} doesn't answer"
    return status


def _wait_until_done(testnet: Testnet) -> None:
    def is_done() -> bool | None:
        seen = [processes.status_of(home).status for home in testnet.homes]
        is_over = all(status is not None and status["settled_rounds"] >= testnet.options.rounds for status in seen)
        return True if is_over else None

    if processes.poll(is_done, RUN_DEADLINE_S) is None:
        raise click.ClickException(f"{testnet.directory} did not finish in {RUN_DEADLINE_S:.0f} s")


def _memory_mib(home: Home) -> float:
    """Proportional set size of a node's process and its trainer's."""
    pid = processes.status_of(home).pid
    assert pid is not None, f"{home.root} runs"
    trainer = _status(home)["trainer"]["process_id"]
    return sum(_pss_mib(process) for process in (pid, trainer) if process is not None)


def _pss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _transfer_latency(testnet: Testnet, transfers: int) -> tuple[float, float]:
    """Median and largest seconds from submitting a transfer to seeing it final at the same node."""
    home, other = testnet.homes[0], testnet.homes[1]
    key, receiver = home.load_account_key(), other.load_account_key().account
    chain_id = home.load_genesis().chain_id
    seconds = []
    with RpcClient(_rpc(home)) as rpc:
        for _ in range(transfers):
            nonce = rpc.call("account")["nonce"]
            transaction = sign_transaction(key, chain_id, Transfer(receiver, TOKEN // 1000), nonce=nonce)
            start = time.perf_counter()
            rpc.call("broadcast_tx", transaction=transaction.encoded.hex())
            while rpc.call("account")["nonce"] == nonce:
                time.sleep(POLL_S)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), max(seconds)


def _rpc(home: Home) -> str:
    address = processes.status_of(home).rpc
    assert address is not None, f"{home.root} answers"
    return address


def _slowest_training_s(testnet: Testnet, number: int) -> float:
    entries = [entry for home in testnet.homes for entry in Journal(home.rounds).entries() if entry.number == number]
    return max(entry.training_s or 0.0 for entry in entries)


def _read_rounds(home: Home) -> tuple[list[SettledRound], list[dict[str, float]], list[int]]:
    """The settled rounds of a stopped node, the seconds of each phase in them, and their numbers of blocks."""
    with ChainStore.open(home.chain) as store:
        genesis, tree = store.genesis, genesis_state(store.genesis)
        changes: list[tuple[str, int]] = []
        phases: list[dict[str, float]] = []
        for block in store.blocks(1, store.tip().height + 1):
            header = block.header
            context = BlockContext(header.height, header.round, header.time_ms, header.proposer)
            execution = execute(genesis, tree, context, block.transactions, block.last_commit)
            tree.apply(execution.changes)
            for event in execution.events:
                if event.kind is EventKind.ROUND_OPENED:
                    changes = [("COMMIT", header.time_ms)]
                elif event.kind is EventKind.PHASE_CHANGED:
                    changes.append((event.detail, header.time_ms))
                elif event.kind is EventKind.ROUND_SETTLED:
                    phases.append(_durations([*changes, ("", header.time_ms)]))
        settled = [record for _, record in SETTLED.scan(tree)]
    return settled, phases, [record.height - record.opened_height for record in settled]


def _agreement_s(home: Home, rounds: list[SettledRound]) -> list[float]:
    """Seconds of each round between a block's header time and the moment at which the node's log calls it final."""
    final_ms = {}
    for line in home.log_file.read_text(encoding="utf-8").splitlines():
        found = BLOCK_LINE.match(line)
        if found:
            final_ms[int(found["height"])] = datetime.strptime(found["time"], "%Y-%m-%d %H:%M:%S,%f").timestamp() * 1000
    with ChainStore.open(home.chain) as store:
        return [
            sum(
                final_ms[height] - store.header(height).time_ms
                for height in range(settled.opened_height + 1, settled.height + 1)
            )
            / 1000
            for settled in rounds
        ]


def _durations(changes: list[tuple[str, int]]) -> dict[str, float]:
    durations = dict.fromkeys(PHASES, 0.0)
    for (name, start), (_, end) in pairwise(changes):
        durations[name] += (end - start) / 1000
    return durations


def show(results: list[Measured]) -> None:
    """Print a table."""
    table = Table(title="Networks of real processes on this machine (seconds unless said otherwise)")
    for column in (
        "nodes",
        "data",
        "model",
        "start-up",
        "round",
        "training",
        "protocol",
        "agreement",
        *PHASES,
        "blocks",
    ):
        table.add_column(column, justify="right")
    for column in ("latency (max)", "MB sent / node / round", "MiB / node"):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(
            str(result.nodes),
            result.dataset,
            result.architecture,
            *(f"{value:.2f}" for value in (result.startup_s, result.round_s, result.training_s)),
            *(f"{value:.2f}" for value in (result.protocol_s, result.agreement_s)),
            *(f"{result.phases_s[name]:.2f}" for name in PHASES),
            f"{result.blocks:.0f}",
            f"{result.latency_s[0]:.2f} ({result.latency_s[1]:.2f})",
            f"{result.sent_bytes / 1e6:.2f}",
            f"{result.memory_mib:.0f}",
        )
    Console(width=200).print(table)


@click.command()
@click.option("--nodes", default="4,8,20", help="Sizes of the networks, with commas.")
@click.option("--dataset", default="digits", help="Kind of data.")
@click.option("--architecture", default="", help="Model; chosen by the data when not given.")
@click.option("--samples", default=0, help="Training samples in all; 0 uses everything.")
@click.option("--epochs", default=5)
@click.option("--rounds", default=5)
@click.option("--clusters", default=2)
@click.option("--alpha", default=0.5)
@click.option("--seed", default=1)
@click.option("--transfers", default=20, help="Transfers to measure the latency with.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the testnets below this folder.")
def main(nodes: str, transfers: int, as_json: bool, keep: Path | None, **options: Any) -> None:
    """Run testnets one after the other and print what they cost."""
    results = []
    root = keep or Path(tempfile.mkdtemp(prefix="bflnode-bench-"))
    try:
        for count in map(int, nodes.split(",")):
            click.echo(f"{count} nodes …", err=True)
            testnet_options = TestnetOptions(validators=count, control=False, **options)
            results.append(run_testnet(testnet_options, root / f"{count}-nodes", transfers=transfers))
    finally:
        if keep is None:
            shutil.rmtree(root)
    if as_json:
        json.dump([asdict(result) for result in results], sys.stdout, indent=2)
    else:
        show(results)


if __name__ == "__main__":
    main()
