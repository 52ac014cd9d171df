"""What is done to the links between real nodes, and how long the network needs to get over it.

    link        one node's cable is pulled, and plugged in again
    minority    two of seven are cut off: five go on, and the two catch up afterwards
    halves      four against three: nobody decides anything, until the partition heals
    one-way     packets from one node to all others vanish, those to it arrive
    lines       every pair talks through proxies: delay and jitter, then stalls, then connections that break

Transfers are sent all the time. After each scenario, and at the end, all nodes must have the same block at every
height, and every transfer that a node took must be in a block.
"""

import itertools
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import tomli_w

from bflnode.consensus.keys import SecretKey
from bflnode.consensus.transaction import Transfer, sign_transaction
from bflnode.consensus.types import ChainId
from bflnode.node.configuration import load_configuration
from bflnode.node.home import Home
from bflnode.node.p2p.peer_identity import peer_id_text
from bflnode.node.rpc.client import RpcClient
from bflnode.node.rpc.refusals import RpcError, UnreachableError
from bflnode.node.testnets.homes import TestnetOptions, make_testnet
from tests.e2e.network import DEADLINE_S, command, eventually
from tests.partitions.namespaces import PEERS, SWITCH_HOST, Machine, Switch
from tests.partitions.proxy import Line, Proxies, Route

NODES = 7
PEER_PORT = 26656
RPC_PORT = 26657
BLOCKS_MEASURED = 20
"""Blocks over which the time per block is taken."""

TRANSFER_EVERY_S = 0.2
STILL_S = 1.0
HALTED_S = 5.0
"""How long nodes without a quorum are watched deciding nothing."""

PROXY_PORT = 30_000

Say = Callable[[str], None]


class Violation(AssertionError):
    """Nodes disagree, or something was lost."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one scenario showed.

    Attributes:
        scenario: its name.
        done: what was done to the network.
        measured: what was measured then.
        seconds: the measure.
    """

    scenario: str
    done: str
    measured: str
    seconds: float


class RunningNode:
    """One node's process in its namespace."""

    def __init__(self, machine: Machine, home: Home) -> None:
        self.machine = machine
        self.home = home
        self._rpc = RpcClient(f"http://{machine.management}:{RPC_PORT}")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; `head` answers some seconds later."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.home.root / "node.log").open("ab") as log:
            arguments = self.machine.command(*command("start", "--home", str(self.home.root)))
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)

    def stop(self) -> None:
        """End the process cleanly.

        Raises:
            Violation: it ended otherwise.
        """
        self._rpc.close()
        if self._process is None:
            return
        self._process.terminate()
        if self._process.wait(DEADLINE_S) != 0:
            raise Violation(f"{self.home.root.name} ended with {self._process.returncode}: see its node.log")

    def ask(self, method: str, **params: Any) -> Any:
        """Ask over RPC; None while it doesn't answer."""
        try:
            return self._rpc.call(method, **params)
        except UnreachableError:
            return None

    def height(self) -> int:
        """The height of its chain; -1 while it doesn't answer."""
        head = self.ask("head")
        return -1 if head is None else int(head["height"])

    def peers(self) -> int:
        """How many peers it has."""
        net = self.ask("net_info")
        return 0 if net is None else int(net["n_peers"])


class Load:
    """Sends a small transfer every `TRANSFER_EVERY_S`, each node's account in turn through its own node."""

    def __init__(self, nodes: Sequence[RunningNode], chain_id: ChainId) -> None:
        self._nodes = nodes
        self._chain_id = chain_id
        self._keys: list[SecretKey] = [node.home.load_account_key() for node in nodes]
        self._nonces = [0] * len(nodes)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send_all)
        self.taken: list[str] = []
        """Ids of the transfers that a node took."""

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _send_all(self) -> None:
        for number in itertools.count():
            if self._stop.wait(TRANSFER_EVERY_S):
                return
            self._send(number % len(self._nodes))

    def _send(self, index: int) -> None:
        to = self._keys[(index + 1) % len(self._keys)].account
        transfer = sign_transaction(self._keys[index], self._chain_id, Transfer(to, 1), nonce=self._nonces[index])
        try:
            answer = self._nodes[index].ask("broadcast_tx", transaction=transfer.encoded.hex())
        except RpcError:
            return  # too many of this account wait, in a node that is cut off: the same nonce is tried again
        if answer is not None:
            self.taken.append(answer["id"])
            self._nonces[index] += 1


class Scenarios:
    """A running network of nodes in namespaces, and what can be done to it."""

    def __init__(self, switch: Switch, nodes: Sequence[RunningNode], say: Say) -> None:
        self.switch = switch
        self.nodes = nodes
        self._say = say
        self.outcomes: list[Outcome] = []

    def link(self) -> None:
        """Pull one node's cable, and plug it in again."""
        lost, others = self.nodes[-1], self.nodes[:-1]
        self.switch.unplug(lost.machine)
        self._note("link", "one of seven unplugged", "next block of the six", self._next_block(others))
        self._note("link", "one of seven unplugged", "a block, median", self._block_time(others))
        self.switch.plug(lost.machine)
        self._note("link", "plugged in again", "it has caught up", self._caught_up([lost]))

    def minority(self) -> None:
        """Cut two nodes off from five."""
        majority, minority = self.nodes[:5], self.nodes[5:]
        self.switch.split(node.machine for node in minority)
        self._note("minority", "two cut off from five", "next block of the five", self._next_block(majority))
        self._note("minority", "two cut off from five", "a block of the five, median", self._block_time(majority))
        self._require_halted(minority)
        self.switch.heal()
        self._note("minority", "healed", "the two have caught up", self._caught_up(minority))

    def halves(self) -> None:
        """Cut three nodes off from four: neither side has more than two thirds."""
        left, right = self.nodes[:4], self.nodes[4:]
        self.switch.split(node.machine for node in right)
        self._require_halted(self.nodes)
        self.switch.heal()
        self._note("halves", "four and three cut apart, healed", "next block", self._next_block(self.nodes))
        self._note("halves", "healed", "all have caught up", self._caught_up([*left, *right]))

    def one_way(self) -> None:
        """Lose all packets that one node sends to the others."""
        mute, others = self.nodes[0], self.nodes[1:]
        for other in others:
            self.switch.blackhole(mute.machine, other.machine)
        self._note("one-way", "one node's packets vanish", "next block of the six", self._next_block(others))
        self._note("one-way", "one node's packets vanish", "a block of the six, median", self._block_time(others))
        for other in others:
            self.switch.end_blackhole(mute.machine, other.machine)
        self._note("one-way", "they arrive again", "it has caught up", self._caught_up([mute]))

    def calm(self) -> None:
        """Nothing is wrong: what the rest is compared with."""
        self._note("calm", "nothing", "a block, median", self._block_time(self.nodes))

    def lines(self, proxies: Proxies) -> None:
        """Every pair talks through proxies, which get worse."""
        for done, line in (
            ("20 ms each way, up to 20 ms of jitter", Line(delay_s=0.02, jitter_s=0.02)),
            ("100 ms each way, up to 50 ms of jitter", Line(delay_s=0.1, jitter_s=0.05)),
            ("the same, a stall of 2 s every 10 s on each line", Line(0.1, 0.05, stall_every_s=10, stall_s=2)),
            ("100 ms, each connection reset after 10 s on average", Line(0.1, 0.05, reset_every_s=10)),
        ):
            proxies.line = line
            self._note("lines", done, "a block, median", self._block_time(self.nodes))
        proxies.line = Line()
        self._note("lines", "good lines again", "all have caught up", self._caught_up(self.nodes))
        self._say(f"{proxies.stalls} stalls, {proxies.resets} resets")

    def verify(self, taken: Sequence[str]) -> None:
        """Check that all nodes have one chain, and everything they took is in it.

        Raises:
            Violation: they don't, or something is missing.
        """
        for identifier in taken:
            eventually(f"transfer {identifier} is in a block", lambda id_=identifier: self._is_final(id_))
        self._caught_up(self.nodes)
        heights = min(node.height() for node in self.nodes)
        chains = [self._chain(node, heights) for node in self.nodes]
        for node, chain in zip(self.nodes, chains, strict=True):
            if chain != chains[0]:
                height = next(
                    at for at, (ours, theirs) in enumerate(zip(chain, chains[0], strict=True), 1) if ours != theirs
                )
                raise Violation(f"{node.home.root.name} has another block than node0 at height {height}")
        self._say(f"{heights} blocks equal on {len(self.nodes)} nodes, {len(taken)} transfers taken and all in blocks")

    def _is_final(self, identifier: str) -> bool:
        try:
            found = self.nodes[0].ask("tx", reference=identifier)
        except RpcError:
            return False
        return found is not None and found["height"] is not None

    def _chain(self, node: RunningNode, heights: int) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        while len(found) < heights:
            lines = node.ask("blockchain", count=100, before=heights - len(found) + 1)
            found += [(line["id"], line["state_root"]) for line in lines]
        return found[::-1]

    def _next_block(self, nodes: Sequence[RunningNode]) -> float:
        """Seconds until every one of them has a block that none of all nodes has now."""
        start = time.monotonic()
        height = max(node.height() for node in self.nodes)
        eventually("a next block", lambda: all(node.height() > height for node in nodes))
        return time.monotonic() - start

    def _block_time(self, nodes: Sequence[RunningNode]) -> float:
        """Median seconds between the next blocks at one of them, while transfers are sent all the time."""
        times, height = [], nodes[0].height()
        for _ in range(BLOCKS_MEASURED + 1):
            height = eventually("a next block", lambda at=height: (now := nodes[0].height()) > at and now)
            times.append(time.monotonic())
        return median(later - earlier for earlier, later in itertools.pairwise(times))

    def _require_halted(self, nodes: Sequence[RunningNode]) -> None:
        """Check that none of them decides anything new for some seconds, after what was under way has ended.

        Raises:
            Violation: one does.
        """

        def highest() -> int:
            return max(node.height() for node in nodes)

        def stands_still() -> bool:
            before = highest()
            time.sleep(STILL_S)
            return before == highest()

        eventually("votes that were on their way have been counted", stands_still)
        before = highest()
        time.sleep(HALTED_S)
        if (after := highest()) != before:
            raise Violation(f"nodes without a quorum went from height {before} to {after}")

    def _caught_up(self, nodes: Sequence[RunningNode]) -> float:
        """Seconds until all of them have what the highest node has now."""
        start = time.monotonic()
        height = max(node.height() for node in self.nodes)
        eventually("the nodes have caught up", lambda: all(node.height() >= height for node in nodes))
        return time.monotonic() - start

    def _note(self, scenario: str, done: str, measured: str, seconds: float) -> None:
        self.outcomes.append(Outcome(scenario, done, measured, seconds))
        self._say(f"{scenario}: {done}: {measured} {seconds:.2f} s")


def run_scenarios(directory: Path, names: Sequence[str], say: Say, seed: int) -> list[Outcome]:
    """Run scenarios by name, those of cables on one network, "lines" on a second.

    Raises:
        AssertionError: a `Violation`, or the network didn't go on in time.
    """
    outcomes: list[Outcome] = []
    direct = [name for name in names if name != "lines"]
    if direct:
        with _network(directory / "direct", say, with_proxies=False) as (scenarios, load):
            for name in direct:
                getattr(scenarios, name.replace("-", "_"))()
                scenarios.verify(tuple(load.taken))
            outcomes += scenarios.outcomes
    if "lines" in names:
        routes = tuple(_routes())
        with (
            Switch(NODES) as switch,
            Proxies(routes, Line(), seed) as proxies,
            _nodes(directory / "lines", switch, say, with_proxies=True) as (scenarios, load),
        ):
            scenarios.lines(proxies)
            scenarios.verify(tuple(load.taken))
            outcomes += scenarios.outcomes
    return outcomes


@contextmanager
def _network(directory: Path, say: Say, *, with_proxies: bool) -> Iterator[tuple[Scenarios, Load]]:
    with Switch(NODES) as switch, _nodes(directory, switch, say, with_proxies=with_proxies) as network:
        yield network


@contextmanager
def _nodes(directory: Path, switch: Switch, say: Say, *, with_proxies: bool) -> Iterator[tuple[Scenarios, Load]]:
    """Seven nodes that run, know one another and make blocks."""
    testnet = make_testnet(directory, TestnetOptions(validators=NODES, rounds=1, control=False))
    nodes = [RunningNode(machine, home) for machine, home in zip(switch.machines, testnet.homes, strict=True)]
    for index, node in enumerate(nodes):
        _configure(nodes, index, with_proxies=with_proxies)
        if with_proxies:  # what hellos say of direct addresses leads nowhere
            for other in switch.machines:
                if other is not node.machine:
                    switch.blackhole(node.machine, other)
    chain_id = nodes[0].home.load_genesis().chain_id
    try:
        for node in nodes:
            node.start()
        eventually("all nodes are connected", lambda: all(node.peers() == NODES - 1 for node in nodes))
        say(f"{NODES} nodes run in namespaces of their own")
        with Load(nodes, chain_id) as load:
            yield Scenarios(switch, nodes, say), load
    finally:
        for node in nodes:
            node.stop()


def _configure(nodes: Sequence[RunningNode], index: int, *, with_proxies: bool) -> None:
    """A node listens at its own addresses and dials those before it, directly or through their proxies."""
    node = nodes[index]
    settings = load_configuration(node.home).model_dump()
    peers = []
    for earlier, other in enumerate(nodes[:index]):
        host, port = (
            (f"{PEERS}.{SWITCH_HOST}", _proxy_port(index, earlier))
            if with_proxies
            else (other.machine.address, PEER_PORT)
        )
        peers.append(f"/ip4/{host}/tcp/{port}/p2p/{peer_id_text(other.home.load_peer_seed())}")
    settings["p2p"] |= {"host": node.machine.address, "port": PEER_PORT, "persistent_peers": peers}
    settings["rpc"] |= {"host": node.machine.management, "port": RPC_PORT}
    settings["training"] |= {"enabled": False}
    node.home.configuration_file.write_text(tomli_w.dumps(settings), encoding="utf-8")


def _proxy_port(source: int, target: int) -> int:
    return PROXY_PORT + source * NODES + target


def _routes() -> Iterator[Route]:
    """A proxy for each pair: the later node dials the earlier one."""
    for source in range(NODES):
        for target in range(source):
            host = f"{PEERS}.{SWITCH_HOST}"
            yield Route(host, _proxy_port(source, target), (f"{PEERS}.{target + 1}", PEER_PORT))


def to_json(outcomes: Sequence[Outcome]) -> str:
    """Outcomes as JSON."""
    rounded = [asdict(replace(outcome, seconds=round(outcome.seconds, 3))) for outcome in outcomes]
    return json.dumps(rounded, indent=2)


SCENARIOS = ("calm", "link", "minority", "halves", "one-way", "lines")
