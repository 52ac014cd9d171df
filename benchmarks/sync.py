"""What joining costs: blocks a second against verification alone, starting from a snapshot, models from several peers.

    python benchmarks/sync.py blocks --blocks 1000 --peers 3
    python benchmarks/sync.py state
    python benchmarks/sync.py blobs --megabytes 45

Peers are real processes on this machine, over loopback. Chains are made here by the rules of the ledger, with the
builders of the tests: four validators, transfers in every block. "Verification alone" reads, checks, executes and
stores the same blocks without a network. CPU times are those of the one process; they swing less than wall times on a
machine that does other things too.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bflnode.consensus.block import Block, Commit
from bflnode.consensus.keys import _judge_and_remember
from bflnode.consensus.ledger import validate_block, verify_commit
from bflnode.consensus.snapshot import Snapshot, read_state
from bflnode.consensus.state import StateTree
from bflnode.consensus.tables import current_validators
from bflnode.consensus.types import BlobId
from bflnode.node.configuration import load_configuration
from bflnode.node.home import Home
from bflnode.node.node import Node, open_node
from bflnode.node.p2p.messages import MAX_FINAL_BLOCK_BYTES, FinalBlock
from bflnode.node.sync.state_sync import sync_state
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.snapshot_store import SnapshotStore
from tests.consensus.harness import Harness
from tests.consensus.setups import make_keys
from tests.node.stored_homes import home_with

VALIDATORS = 4
DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that something took: by the clock, and of this process's CPU."""

    wall_s: float
    cpu_s: float


@contextmanager
def measured() -> Iterator[Callable[[], Cost]]:
    """Measure a block of code; call what this gives once it is over."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    yield lambda: Cost(time.perf_counter() - wall_s, time.process_time() - cpu_s)


@dataclass(frozen=True, slots=True)
class MadeChain:
    """A chain with its commits."""

    harness: Harness
    blocks: tuple[Block, ...]
    commits: tuple[Commit, ...]


def make_chain(blocks: int, transfers: int, accounts: int) -> MadeChain:
    """A chain of blocks with that many transfers each, on a state with that many accounts."""
    harness = Harness(actors=max(accounts, VALIDATORS), balance=10**9)
    made, commits = [], []
    nonces = [0] * len(harness.keys)
    for number in range(blocks):
        chosen = [(number * transfers + offset) % len(nonces) for offset in range(transfers)]
        transactions = []
        for actor in chosen:
            to = harness.account((actor + 1) % len(nonces))
            transactions.append(harness.transfer(actor, to, 1, nonce=nonces[actor]))
            nonces[actor] += 1
        block, execution = harness.build(harness.context(), transactions)
        assert len(block.transactions) == transfers
        commit = harness.sign_commit(block)
        harness.tree.apply(execution.changes)
        harness.header, harness.last_commit = block.header, commit
        made.append(block)
        commits.append(commit)
    return MadeChain(harness, tuple(made), tuple(commits))


def verify_alone(chain: MadeChain, folder: Path, *, stores: bool) -> Cost:
    """Decode, check and execute all blocks from their bytes, and store each if wanted."""
    encoded = [FinalBlock(block, commit).to_bytes() for block, commit in zip(chain.blocks, chain.commits, strict=True)]
    genesis = chain.harness.genesis
    _judge_and_remember.cache_clear()  # the signatures were made here, but must be verified as for the first time
    with ChainStore.create(folder, genesis) as store:
        tree, parent = store.load_state(), None
        with measured() as cost:
            for data in encoded:
                final = FinalBlock.from_bytes(data, max_bytes=MAX_FINAL_BLOCK_BYTES)
                verify_commit(genesis.chain_id, current_validators(tree), final.commit)
                execution = validate_block(genesis, tree, parent, final.block)
                if stores:
                    store.append(final.block, final.commit, execution.changes)
                tree.apply(execution.changes)
                parent = final.block.header
        assert tree.root == chain.harness.tree.root
        return cost()


@contextmanager
def serving(homes: Sequence[Home], delay_ms: int = 0) -> Iterator[list[str]]:
    """Processes that have these homes open and answer peers, chunks after a delay; gives their addresses."""
    with ExitStack() as stack:
        addresses = []
        for home in homes:
            process = subprocess.Popen(
                [sys.executable, "-P", __file__, "serve", str(home.root), str(delay_ms)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            assert process.stdin is not None
            assert process.stdout is not None
            stack.callback(process.stdin.close)
            addresses.append(process.stdout.readline().strip())
        yield addresses


def homes_with(root: Path, chain: MadeChain, count: int) -> list[Home]:
    """Homes of that many nodes that have the chain; the first of them is stored block by block, the others copied."""
    homes = []
    keys = make_keys(count, "peer")
    for number, key in enumerate(keys):
        home = home_with(root / f"peer{number}", chain.harness.genesis, key)
        if number:
            shutil.copytree(homes[0].chain, home.chain)
        else:
            verify_alone(chain, home.chain, stores=True)
        homes.append(home)
    return homes


async def catch_up(home: Home, addresses: Sequence[str], height: int) -> Cost:
    """Seconds from the first peer's hello until the last block is stored."""
    settings = load_configuration(home, {"p2p": {"port": 0, "persistent_peers": tuple(addresses)}})
    with trio.fail_after(DEADLINE_S):
        async with open_node(home, settings) as node, trio.open_nursery() as nursery:
            await _until_greeted(node, len(addresses))
            with measured() as cost:
                nursery.start_soon(node.run)
                while node.chain.height < height:
                    await node.chain.changed.wait()
            found = cost()
            nursery.cancel_scope.cancel()
    return found


async def _until_greeted(node: Node, peers: int) -> None:
    while len(node.peers.all()) < peers:  # noqa: ASYNC110 - a peer that comes sets no event
        await trio.sleep(0.01)


@click.group()
def main() -> None:
    """Measure what joining costs."""


@main.command()
@click.option("--blocks", "count", default=1000, show_default=True)
@click.option("--transfers", default=8, show_default=True, help="In each block.")
@click.option("--accounts", default=100, show_default=True)
@click.option("--peers", default="1,3", show_default=True, help="Numbers of peers.")
def blocks(count: int, transfers: int, accounts: int, peers: str) -> None:
    """Blocks a second of a joiner, and of verification alone."""
    with tempfile.TemporaryDirectory(prefix="bflnode-sync-") as folder:
        root = Path(folder)
        chain = make_chain(count, transfers, accounts)
        click.echo(f"{count} blocks of {transfers} transfers, {accounts} accounts")
        _report("verification alone, in memory", count, verify_alone(chain, root / "memory", stores=False))
        alone = verify_alone(chain, root / "stored", stores=True)
        _report("verification alone, stored", count, alone)
        numbers = [int(number) for number in peers.split(",")]
        homes = homes_with(root, chain, max(numbers))
        for number in numbers:
            joiner = home_with(root / f"joiner{number}", chain.harness.genesis, make_keys(1, f"joiner {number}")[0])
            _judge_and_remember.cache_clear()
            with serving(homes[:number]) as addresses:
                cost = trio.run(catch_up, joiner, addresses, count)
            _report(f"block sync from {number} peers", count, cost, alone)


def _report(what: str, count: int, cost: Cost, alone: Cost | None = None) -> None:
    line = f"{what:32} {count / cost.wall_s:7.0f} blocks/s   CPU {1000 * cost.cpu_s / count:6.2f} ms a block"
    if alone is not None:
        line += f"   {cost.wall_s / alone.wall_s:.2f} times verification by the clock"
        line += f", {cost.cpu_s / alone.cpu_s:.2f} by CPU"
    click.echo(line)


@main.command()
@click.option("--accounts", default=4000, show_default=True, help="In the chain's state; 4,096 at most.")
@click.option("--entries", default=200_000, show_default=True, help="Of a larger state that is only written and read.")
@click.option("--peers", default=2, show_default=True)
def state(accounts: int, entries: int, peers: int) -> None:
    """Joining by a snapshot, and what a large one costs."""
    with tempfile.TemporaryDirectory(prefix="bflnode-sync-") as folder:
        root = Path(folder)
        chain = make_chain(20, 8, accounts)
        homes = homes_with(root, chain, peers)
        trust = ""
        for home in homes:
            with ChainStore.open(home.chain) as store, store.freeze() as frozen:
                made = SnapshotStore(home.snapshots).create(frozen.header, frozen.commit, frozen.entries())
                trust = f"{made.height}:{made.header.id.hex()}"
        joiner = home_with(root / "joiner", chain.harness.genesis, make_keys(1, "joiner")[0])
        with serving(homes) as addresses, measured() as cost:
            sync = {"state_sync": trust, "state_sync_peers": tuple(addresses)}
            trio.run(sync_state, joiner, load_configuration(joiner, {"sync": sync}))
        joined = cost()
        click.echo(f"joined by a state of {made.entries} entries in {joined.wall_s:.2f} s, {joined.cpu_s:.2f} s of CPU")
        _measure_large(root / "large", made, entries)


def _measure_large(folder: Path, like: Snapshot, count: int) -> None:
    """Write and read a state of that many entries of a hundred bytes."""
    content = [(b"entry/%012d" % number, os.urandom(100)) for number in range(count)]
    header = replace(like.header, state_root=StateTree(content).root)
    store = SnapshotStore(folder)
    with measured() as cost:
        made = store.create(header, replace(like.commit, block_id=header.id), content)
    written = cost()
    with measured() as cost:
        read_state(made, store.pieces(made))
    checked = cost()
    size = store.size(made) / 1e6
    costs = f"written in {written.cpu_s:.2f} s of CPU, read and checked in {checked.cpu_s:.2f}"
    click.echo(f"{count} entries, {size:.0f} MB: {costs}")


@main.command()
@click.option("--megabytes", default=45, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--peers", default="1,4", show_default=True, help="Numbers of peers.")
@click.option("--delay-ms", default=0, show_default=True, help="How far away the peers are: before each chunk.")
def blobs(megabytes: int, repeats: int, peers: str, delay_ms: int) -> None:
    """A model from one peer and from several."""
    data = os.urandom(megabytes * 1_000_000)
    numbers = [int(number) for number in peers.split(",")]
    with tempfile.TemporaryDirectory(prefix="bflnode-sync-") as folder:
        root = Path(folder)
        chain = make_chain(1, 1, VALIDATORS)
        homes = homes_with(root, chain, max(numbers))
        for home in homes:
            blob = BlobStore(home.blobs).put(data)
        for number in numbers:
            rates, cpu_s = [], []
            for repeat in range(repeats):
                name = f"joiner {number} {repeat}"
                joiner = home_with(root / name, chain.harness.genesis, make_keys(1, name)[0])
                with serving(homes[:number], delay_ms) as addresses:
                    cost = trio.run(_fetch, joiner, addresses, blob, len(data))
                rates.append(megabytes / cost.wall_s)
                cpu_s.append(cost.cpu_s)
                shutil.rmtree(joiner.root)
            shown = ", ".join(f"{rate:.0f}" for rate in sorted(rates))
            click.echo(
                f"{megabytes} MB from {number} peers, {delay_ms} ms away: {sorted(rates)[len(rates) // 2]:.0f} MB/s "
                f"(of {shown}), {sorted(cpu_s)[len(cpu_s) // 2]:.1f} s of CPU"
            )


async def _fetch(home: Home, addresses: Sequence[str], blob: BlobId, size_bytes: int) -> Cost:
    settings = load_configuration(home, {"p2p": {"port": 0, "persistent_peers": tuple(addresses)}})
    async with open_node(home, settings) as node:
        await _until_greeted(node, len(addresses))
        with measured() as cost:
            await node.exchange.fetch(blob, max_bytes=size_bytes)
        return cost()


@main.command(hidden=True)
@click.argument("root", type=click.Path(path_type=Path))
@click.argument("delay_ms", type=int)
def serve(root: Path, delay_ms: int) -> None:
    """Answer peers until standard input ends; a process of the above."""
    trio.run(_serve, Home(root), delay_ms)


async def _serve(home: Home, delay_ms: int) -> None:
    async with open_node(home, load_configuration(home, {"p2p": {"port": 0}})) as node:
        answer = node.exchange.serve_chunk

        def answer_late(data: bytes) -> bytes:
            time.sleep(delay_ms / 1000)  # in the thread that reads the disk: others are served meanwhile
            return answer(data)

        if delay_ms:
            setattr(node.exchange, "serve_chunk", answer_late)  # noqa: B010 - a method of the real node
        click.echo(node.network.addresses[0])
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    main()
