"""What a chain costs on disk and in time: growth in a learning round, opening, checking, exporting, importing, repair.

Run with `python benchmarks/storage.py`. The chain is made by the tests' harness: all clients are
validators, models are only named, so what is measured is the chain itself. Times are of one process on this machine,
with the disk's syncs.
"""

import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bflnode.consensus.keys import _judge_and_remember
from bflnode.node.journal import Journal
from bflnode.node.pruning import Retention
from bflnode.node.stored_chain import replay
from bflnode.node.sync.chain_transfer import export_chain, export_range, import_chain, open_archive
from bflnode.node.verify import verify_chain
from bflnode.storage.blob_store import BlobStore, StoredBlob
from bflnode.storage.chain_check import check_links
from bflnode.storage.chain_store import ChainStore
from tests.consensus.harness import Harness
from tests.node.stored_homes import store_chain


def timed(work: Callable[[], Any]) -> float:
    """Seconds that some work takes in a process that has verified no signature yet."""
    _judge_and_remember.cache_clear()
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def state_bytes(harness: Harness) -> Counter[str]:
    """Bytes of the state's keys and values, by table."""
    sizes: Counter[str] = Counter()
    for key, value in harness.tree.entries():
        sizes[key.split(b"/")[0].decode()] += len(key) + len(value)
    return sizes


def growth(clients: int, rounds: int) -> tuple[Harness, dict[str, Any]]:
    """Play learning rounds, and see what one of them adds."""
    harness = Harness(actors=clients, stakes=(10,) * clients, clients_min=clients, clients_max=clients, rounds=rounds)
    harness.register_all()
    harness.play_round()
    state, height = state_bytes(harness), harness.height
    for _ in range(rounds - 1):
        harness.play_round()
    added = {name: (size - state[name]) // (rounds - 1) for name, size in state_bytes(harness).items()}
    blocks = [len(block.encoded) for block in harness.blocks[height:]]
    commits = [len(block.last_commit.to_bytes()) for block in harness.blocks[height:]]
    return harness, {
        "clients": clients,
        "rounds": rounds,
        "blocks_a_round": len(blocks) / (rounds - 1),
        "block_bytes_a_round": sum(blocks) // (rounds - 1),
        "commit_bytes_a_round": sum(commits) // (rounds - 1),
        "state_bytes_a_round": {name: size for name, size in added.items() if size} | {"all": sum(added.values())},
    }


def on_disk(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def times(harness: Harness, folder: Path) -> dict[str, Any]:
    """Seconds of everything that reads or writes a whole chain."""
    chain, archive, copy = folder / "chain", folder / "all.chain", folder / "copy"
    seconds = {"write": timed(lambda: store_chain(harness, chain))}
    seconds["open"] = timed(lambda: ChainStore.open(chain).close())
    with ChainStore.open(chain) as store:
        tip = store.tip().height
        seconds["check when starting"] = timed(store.check)
        seconds["chain check"] = timed(lambda: list(check_links(store)))
        head = export_range(store, None, None)
        seconds["chain export"] = timed(lambda: export_chain(store, head, archive, lambda _height: None))
        seconds["execute for a rollback"] = timed(lambda: replay(store, tip, lambda _height: None))
        seconds["chain verify"] = timed(lambda: verify_chain(store, BlobStore(folder / "blobs"), reexecute=False))
        models = [
            StoredBlob(client.revealed.model, 1, 0) for number in range(1, 50) for client in _clients(harness, number)
        ]
        with store.freeze() as reader:
            entries = Journal(folder / "journal").entries()
            keep = lambda: Retention(reader, harness.account(0), entries, (), 50).removable(models)  # noqa: E731
            seconds["what pruning after a round reads"] = timed(keep)
    with ChainStore.create(copy, harness.genesis) as store, open_archive(archive) as reader:
        seconds["chain import"] = timed(lambda: import_chain(store, reader, lambda _height: None))
    return {
        "height": tip,
        "database_bytes": on_disk(chain),
        "archive_bytes": archive.stat().st_size,
        "state_bytes": sum(state_bytes(harness).values()),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "blocks_a_second": {name: round(tip / value) for name, value in seconds.items() if name.startswith("chain")},
    }


def _clients(harness: Harness, number: int) -> Any:
    """Clients of a learning round that revealed a model; none of a round that wasn't."""
    return (
        [client for client in harness.settled(number).clients if client.revealed] if number < harness.task.round else []
    )


@click.command()
@click.option("--clients", default=20, show_default=True, help="Clients, all of them validators.")
@click.option("--rounds", default=20, show_default=True, help="Learning rounds.")
def main(clients: int, rounds: int) -> None:
    """Measure, and print JSON."""
    folder = Path(tempfile.mkdtemp(prefix="bflnode-storage-"))
    try:
        harness, grown = growth(clients, rounds)
        click.echo(json.dumps(grown | times(harness, folder), indent=2))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
