"""What a flood costs: seconds from a transfer to its block, in a network of four real nodes, with and without a flood.

Run with `python benchmarks/flood.py`. One hostile process attacks all nodes at once, as fast as it can, and comes back
with a new identity whenever it is banned. It runs on the same machine: what it burns itself is part of what is
measured. Training is off; a block is made for each transfer.
"""

import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import trio
import trio.lowlevel
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from rich.console import Console
from rich.table import Table

from bflnode.consensus.agreement import Status, Step
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.transaction import Transaction, Transfer, sign_transaction
from bflnode.consensus.types import BlobId, ChainId
from bflnode.node.configuration import load_configuration
from bflnode.node.home import read_genesis
from bflnode.node.node_clock import now_ms
from bflnode.node.p2p.messages import (
    CHUNKS,
    HELLO,
    PUSHES,
    REQUESTS,
    STATUS,
    TRANSACTIONS,
    VOTES,
    Batch,
    ChunkRequest,
    Hello,
    blocks_topic,
    hello_payload,
    transactions_topic,
)
from bflnode.node.p2p.network import Network, NetworkConfig, PeerId, TransportError, open_network
from bflnode.node.p2p.streams import framed
from bflnode.node.rpc.client import RpcClient
from bflnode.node.testnets import processes
from bflnode.node.testnets.homes import Testnet, TestnetOptions, make_testnet, peer_address

NICENESS = 10
"""An attacker sits on a machine of its own; here it has to share two cores with its victims."""

POLL_S = 0.01
DEADLINE_S = 120.0
WARM_UP = 5
SIGNED = 2_000
"""Worthless transactions signed beforehand: signing costs the attacker as much as checking costs the victim."""

BATCH = 200
STREAMS = 100
IDLE_SOCKETS = 150
GOSSIP_BYTES = 50_000


class Attacker:
    """One hostile identity, connected to all nodes."""

    def __init__(self, chain_id: ChainId, blob: BlobId) -> None:
        self.chain_id = chain_id
        self.blob = blob
        self.key = SecretKey.from_seed(secrets.token_bytes(32))
        self.votes: list[bytes] = []
        self.network: Network

    def hello(self) -> bytes:
        """An honest hello: anybody may say one."""
        payload = hello_payload(self.network.peer_id, self.key.account)
        signature = self.key.sign("hello", self.chain_id, payload)
        return Hello(self.chain_id, "flood", self.key.account, 0, now_ms(), (), signature).to_bytes()

    def on_gossip(self, topic: str, sender: PeerId, data: bytes) -> bool:  # noqa: ARG002 - the network's interface
        return False

    def on_push(self, protocol: str, sender: PeerId, data: bytes) -> None:  # noqa: ARG002 - likewise
        if protocol == VOTES and len(self.votes) < 256:
            self.votes.append(data)

    async def on_request(self, protocol: str, sender: PeerId, data: bytes) -> bytes:  # noqa: ARG002 - likewise
        return self.hello()

    async def on_connected(self, peer: PeerId) -> None: ...

    async def on_disconnected(self, peer: PeerId) -> None: ...

    async def push_all(self, protocol: str, data: bytes) -> None:
        """Push to every node, as much as the queues take."""
        sent = [self.network.push(peer, protocol, data) for peer in self.network.peers()]
        await trio.sleep(0 if any(sent) else 0.005)


Attack = Callable[[Attacker], Awaitable[None]]


async def poor_transactions(attacker: Attacker) -> None:
    """Transfers, correctly signed, of accounts that don't exist."""
    batches = _batches(attacker.chain_id)
    while attacker.network.peers():
        for batch in batches:
            await attacker.push_all(TRANSACTIONS, batch)


def _batches(chain_id: ChainId) -> list[bytes]:
    made: list[Transaction] = []
    for _ in range(SIGNED):
        key = SecretKey.from_seed(secrets.token_bytes(32))
        made.append(sign_transaction(key, chain_id, Transfer(key.account, 1), nonce=0))
    return [Batch(tuple(made[start : start + BATCH])).to_bytes() for start in range(0, SIGNED, BATCH)]


async def forged_transactions(attacker: Attacker) -> None:
    """Transfers with a signature of nothing."""
    batch = bytearray(_batches(attacker.chain_id)[0])
    batch[-1] ^= 1
    while attacker.network.peers():
        await attacker.push_all(TRANSACTIONS, bytes(batch))


async def replayed_votes(attacker: Attacker) -> None:
    """Valid votes that the nodes themselves have sent, over and over."""
    while attacker.network.peers():
        for vote in attacker.votes[-64:] or (b"",):
            if vote:
                await attacker.push_all(VOTES, vote)
        await trio.lowlevel.checkpoint()


async def statuses(attacker: Attacker) -> None:
    """Where the attacker pretends to be."""
    height = 1
    while attacker.network.peers():
        height += 1
        await attacker.push_all(STATUS, Status(height % 50 + 1, 0, Step.PROPOSE, ()).to_bytes())


async def chunk_requests(attacker: Attacker) -> None:
    """Models, over a hundred streams of each connection."""
    request = framed(ChunkRequest(attacker.blob, 0).to_bytes())

    async def ask(peer: PeerId) -> None:
        stream = await _stream(attacker, peer, CHUNKS)
        while True:
            await stream.write(request)
            await stream.read(300_000)

    await _on_streams(attacker, ask)


async def half_open_streams(attacker: Attacker) -> None:
    """Streams that begin a frame and never end it, and are opened again when they are reset."""

    async def begin(peer: PeerId) -> None:
        stream = await _stream(attacker, peer, VOTES)
        await stream.write(b"\0\0\1\0half")
        await trio.sleep(1.0)
        await stream.reset()

    await _on_streams(attacker, begin)


async def huge_frames(attacker: Attacker) -> None:
    """Frames that announce four gigabytes."""

    async def announce(peer: PeerId) -> None:
        stream = await _stream(attacker, peer, VOTES)
        await stream.write(b"\xff\xff\xff\xff" + bytes(60_000))

    await _on_streams(attacker, announce)


async def gossip(attacker: Attacker) -> None:
    """Gossip that is large, new each time, and nonsense."""
    topic = transactions_topic(attacker.chain_id)
    while attacker.network.peers():
        await attacker.network.publish(topic, secrets.token_bytes(GOSSIP_BYTES))
        await trio.lowlevel.checkpoint()


async def connections(attacker: Attacker) -> None:
    """Whole handshakes, as many as are taken."""

    async def connect(peer: PeerId) -> None:
        connection = attacker.network._swarm.live_connections(ID.from_base58(peer))[0]
        address = connection.get_transport_addresses()[0]
        await attacker.network._swarm.dial(address, ID.from_base58(peer))

    await _on_streams(attacker, connect, count=4)


async def idle_sockets(attacker: Attacker) -> None:
    """TCP connections that say nothing, opened again when they are closed."""
    ports = [int(str(address).split("/tcp/")[1].split("/")[0]) for address in attacker.network.dialled]  # type: ignore[attr-defined]  # set by `attack`

    async def hold(port: int) -> None:
        while True:
            try:
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    while await stream.receive_some():
                        pass
            except OSError:
                pass
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        for port in ports:
            for _ in range(IDLE_SOCKETS):
                nursery.start_soon(hold, port)


ATTACKS: dict[str, Attack] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        poor_transactions,
        forged_transactions,
        replayed_votes,
        statuses,
        chunk_requests,
        half_open_streams,
        huge_frames,
        gossip,
        connections,
        idle_sockets,
    )
}


async def _stream(attacker: Attacker, peer: PeerId, protocol: str) -> Any:
    connection = attacker.network._swarm.live_connections(ID.from_base58(peer))[-1]
    return await attacker.network._host.open_stream(connection, [TProtocol(protocol)])


async def _on_streams(attacker: Attacker, use: Callable[[PeerId], Awaitable[None]], count: int = STREAMS) -> None:
    """Do something on many streams of each connection, again whenever it fails, until all connections are lost."""

    async def again_and_again(peer: PeerId) -> None:
        while attacker.network.is_connected(peer):
            try:
                await use(peer)
            except Exception:  # noqa: BLE001 - an attacker goes on whatever happens
                await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        for peer in attacker.network.peers():
            for _ in range(count):
                nursery.start_soon(again_and_again, peer)


async def attack(kind: str, chain_id: ChainId, blob: BlobId, addresses: tuple[str, ...]) -> None:
    """Attack until killed; with a new identity whenever all connections are lost."""
    identities = 0
    while True:
        attacker = Attacker(chain_id, blob)
        config = NetworkConfig(
            identity_seed=secrets.token_bytes(32),
            listen=(),
            topics=(transactions_topic(chain_id), blocks_topic(chain_id)),
            pushes=PUSHES,
            requests=REQUESTS,
        )
        async with open_network(config, attacker) as network:
            attacker.network = network
            network.dialled = addresses  # type: ignore[attr-defined]  # for `idle_sockets`
            for address in addresses:
                try:
                    peer = await network.dial(address)
                    await network.request(peer, HELLO, attacker.hello(), timeout_s=10, max_response_bytes=20_000)
                except (TransportError, Rejection):
                    continue
            if not network.peers():
                await trio.sleep(0.2)
                continue
            identities += 1
            print(f"identity {identities}: connected to {len(network.peers())} nodes", flush=True)
            await ATTACKS[kind](attacker)


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds from a transfer to its block under one attack.

    Attributes:
        median_s: of all transfers.
        worst_s: the slowest one.
        identities: that the attacker used.
        cpu: of a core, taken by the four nodes together.
        attacker_cpu: of a core, taken by the attacker.
        received: messages that reached the nodes in a second.
        slowed: of them, slowed down or dropped for their rate.
        refused: of them, refused for what they are.
        turned_away: connections that were closed before their handshake, in a second.
    """

    attack: str
    median_s: float
    worst_s: float
    identities: int
    cpu: float
    attacker_cpu: float
    received: float
    slowed: float
    refused: float
    turned_away: float


class Field:
    """The network under attack."""

    def __init__(self, testnet: Testnet) -> None:
        self.testnet = testnet
        self.addresses = tuple(peer_address(home, load_configuration(home).p2p.port) for home in testnet.homes)
        self._key = testnet.homes[0].load_account_key()
        self._other = testnet.homes[1].load_account_key().account
        genesis = testnet.homes[0].load_genesis()
        self.chain_id = genesis.chain_id
        self.blob = genesis.tasks[0].specification.initial_model

    def measure(self, name: str, transfers: int) -> list[float]:
        """Seconds of transfers, one after the other, sent to and seen at the first node."""
        seconds = []
        address = processes.status_of(self.testnet.homes[0]).rpc
        assert address is not None, "the first node answers"
        with RpcClient(address) as rpc:
            for _ in range(transfers):
                nonce = rpc.call("account", timeout_s=DEADLINE_S)["nonce"]
                transaction = sign_transaction(self._key, self.chain_id, Transfer(self._other, 1), nonce=nonce)
                start = time.perf_counter()
                rpc.call("broadcast_tx", timeout_s=DEADLINE_S, transaction=transaction.encoded.hex())
                while rpc.call("account", timeout_s=DEADLINE_S)["nonce"] == nonce:
                    if time.perf_counter() - start > DEADLINE_S:
                        raise click.ClickException(f"no block in {DEADLINE_S:g} s under {name}")
                    time.sleep(POLL_S)
                seconds.append(time.perf_counter() - start)
        return seconds

    def counters(self, attacker: int | None) -> list[float]:
        """What has been counted so far: CPU of the nodes and the attacker, messages received, slowed, refused."""
        found = [processes.status_of(home) for home in self.testnet.homes]
        networks = [node.status["network"] for node in found if node.status is not None]
        names = ("messages_in", "throttled", "refused", "turned_away")
        counted = [float(sum(sum(network[name].values()) for network in networks)) for name in names]
        cpu_s = sum(_cpu_s(node.pid) for node in found if node.pid is not None)
        return [cpu_s, 0.0 if attacker is None else _cpu_s(attacker), *counted]

    def run(self, name: str, transfers: int) -> Measured:
        """Measure under one attack; without one for the name "none"."""
        log = self.testnet.directory / f"attack-{name.replace(' ', '-')}.log"
        with log.open("w") as output:
            attacker = None
            if name != "none":
                command = [sys.executable, "-P", __file__, "attack", name, str(self.testnet.directory), *self.addresses]
                attacker = subprocess.Popen(command, stdout=output, stderr=output)
            try:
                if attacker is not None:
                    _wait_for(log, "identity 1:", attacker)
                    self.measure(name, 2)
                pid = None if attacker is None else attacker.pid
                before, started = self.counters(pid), time.perf_counter()
                seconds = self.measure(name, transfers)
                elapsed_s = time.perf_counter() - started
                rates = [(after - start) / elapsed_s for start, after in zip(before, self.counters(pid), strict=True)]
            finally:
                if attacker is not None:
                    attacker.send_signal(signal.SIGKILL)
                    attacker.wait()
        identities = log.read_text().count("identity ")
        return Measured(name, statistics.median(seconds), max(seconds), identities, *rates)


def _cpu_s(pid: int) -> float:
    """Processor time that a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait_for(log: Path, text: str, attacker: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + DEADLINE_S
    while text not in log.read_text():
        if attacker.poll() is not None or time.monotonic() > end:
            raise click.ClickException(f"the attacker didn't begin: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def show(results: list[Measured]) -> None:
    """Print a table; the first line is the network without an attack."""
    table = Table(title="seconds from a transfer to its block, 4 nodes")
    columns = ("attack", "median", "slowest", "factor", "identities", "CPU nodes", "attacker", "msg/s", "slowed/s")
    for column in (*columns, "refused/s", "turned away/s"):
        table.add_column(column, justify="left" if column == "attack" else "right")
    for result in results:
        table.add_row(
            result.attack,
            f"{result.median_s:.2f}",
            f"{result.worst_s:.2f}",
            f"{result.median_s / results[0].median_s:.1f}",
            str(result.identities or "-"),
            f"{100 * result.cpu:.0f} %",
            f"{100 * result.attacker_cpu:.0f} %",
            *(f"{value:.0f}" for value in (result.received, result.slowed, result.refused, result.turned_away)),
        )
    Console(width=150).print(table)


@click.group(invoke_without_command=True)
@click.option("--transfers", default=30, show_default=True, help="Transfers under each attack.")
@click.option("--only", multiple=True, type=click.Choice(list(ATTACKS)), help="Only these attacks; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def main(context: click.Context, transfers: int, only: tuple[str, ...], as_json: bool) -> None:
    """Measure a network of four nodes under each attack in turn."""
    if context.invoked_subcommand is not None:
        return
    root = Path(tempfile.mkdtemp(prefix="bflnode-flood-"))
    results = []
    os.environ["BFLNODE_TRAINING__ENABLED"] = "false"
    testnet = make_testnet(root / "net", TestnetOptions(validators=4, control=False))
    processes.ensure_launcher(testnet)
    try:
        processes.up(testnet)
        field = Field(testnet)
        field.measure("none", WARM_UP)
        for name in ("none", *(only or ATTACKS)):
            click.echo(f"{name} …", err=True)
            results.append(field.run(name, transfers))
    finally:
        processes.down(testnet)
    shutil.rmtree(root)
    if as_json:
        json.dump([asdict(result) for result in results], sys.stdout, indent=2)
    else:
        show(results)


@main.command("attack", hidden=True)
@click.argument("kind", type=click.Choice(list(ATTACKS)))
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("addresses", nargs=-1)
def attack_command(kind: str, directory: Path, addresses: tuple[str, ...]) -> None:
    """Be the attacker, until killed."""
    genesis = read_genesis(directory / "genesis.json")
    trio.run(attack, kind, genesis.chain_id, genesis.tasks[0].specification.initial_model, addresses)


if __name__ == "__main__":
    main()
