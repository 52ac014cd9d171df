"""The verbs about snapshots: states that this node keeps for nodes that join."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

from .options import examples, reading_options, rpc_url
from .output import emit, facts, moment, size_text, table

if TYPE_CHECKING:
    from bflnode.node.home import Home
    from bflnode.node.rpc.client import RpcClient
    from bflnode.storage.chain_store import ChainStore
    from bflnode.storage.snapshot_store import SnapshotStore


class _Snapshots(Protocol):
    """The snapshots of a node that runs, or of a stopped one."""

    def list(self) -> Any:
        """All of them, described."""

    def create(self) -> Any:
        """Make one of the state as it is now."""

    def delete(self, height: int) -> Any:
        """Remove that of a height."""


@click.group(epilog=examples("bflnode snapshot list", "bflnode snapshot create", "bflnode snapshot delete 1200"))
def snapshot() -> None:
    """Look at, make and remove snapshots of the state, from which other nodes may start."""


@snapshot.command("list", epilog=examples("bflnode snapshot list", "bflnode snapshot list --json"))
@reading_options
def snapshot_list(home: "Home", as_json: bool) -> None:
    """List the snapshots that this node has, with the HEIGHT:HASH for `bflnode start --state-sync`."""
    with _opened(home) as snapshots:
        answer = snapshots.list()
    emit(answer, as_json, _render_list)


def _render_list(answer: list[dict[str, Any]]) -> None:
    table(
        ["height", "time", "entries", "size", "HEIGHT:HASH"],
        [
            (
                entry["height"],
                moment(entry["time_ms"]),
                entry["entries"],
                size_text(entry["size_bytes"] or 0),
                f"{entry['height']}:{entry['block']}",
            )
            for entry in answer
        ],
        empty="no snapshots: make one with `bflnode snapshot create`, or set sync.snapshot_interval",
    )


@snapshot.command("create", epilog=examples("bflnode snapshot create", "bflnode snapshot create --json"))
@reading_options
def snapshot_create(home: "Home", as_json: bool) -> None:
    """Make a snapshot of the state as it is now; a running node does it itself and goes on meanwhile.

    Of the older ones the last stay, as sync.snapshots_kept says.
    """
    with _opened(home) as snapshots:
        answer = snapshots.create()
    emit(answer, as_json, _render_created)


def _render_created(answer: dict[str, Any]) -> None:
    facts(
        [
            ("height", answer["height"]),
            ("time", moment(answer["time_ms"])),
            ("entries", answer["entries"]),
            ("size", size_text(answer["size_bytes"] or 0)),
            ("to start a node from it", f"bflnode start --state-sync {answer['height']}:{answer['block']}"),
        ]
    )


@snapshot.command("delete", epilog=examples("bflnode snapshot delete 1200"))
@click.argument("height", type=click.IntRange(1))
@reading_options
def snapshot_delete(height: int, home: "Home", as_json: bool) -> None:
    """Remove the snapshot of a height; other nodes can't start from it any more."""
    with _opened(home) as snapshots:
        answer = snapshots.delete(height)
    emit(answer, as_json, lambda deleted: click.echo(f"the snapshot of height {deleted['height']} is gone"))


@contextmanager
def _opened(home: "Home") -> Iterator[_Snapshots]:
    """The node at `--rpc`, else the one that runs on the home, else the home's files."""
    from bflnode.node.configuration import load_configuration
    from bflnode.node.rpc.client import RpcClient
    from bflnode.node.rpc.reader import find_running
    from bflnode.node.stored_chain import open_store
    from bflnode.storage.home_lock import HomeLock
    from bflnode.storage.snapshot_store import SnapshotStore

    running = None if rpc_url() is not None else find_running(home.require())
    url = rpc_url() or (None if running is None else running.rpc)
    if url is not None:
        with RpcClient(url) as client:
            yield _OfNode(client)
        return
    kept = load_configuration(home).sync.snapshots_kept
    with HomeLock(home.root), open_store(home) as chain:
        yield _OfHome(SnapshotStore(home.snapshots), chain, kept)


class _OfNode:
    """Asks a running node."""

    def __init__(self, client: "RpcClient") -> None:
        self._client = client

    def list(self) -> Any:
        return self._client.call("snapshots")

    def create(self) -> Any:
        return self._client.call("create_snapshot", timeout_s=None)

    def delete(self, height: int) -> Any:
        return self._client.call("delete_snapshot", height=height)


class _OfHome:
    """Works on the files of a stopped home; the caller holds its lock."""

    def __init__(self, store: "SnapshotStore", chain: "ChainStore", kept: int) -> None:
        self._store = store
        self._chain = chain
        self._kept = kept

    def list(self) -> Any:
        from bflnode.node.sync.snapshots import describe

        return [describe(self._store, found) for found in self._store.list()]

    def create(self) -> Any:
        from bflnode.node.sync.snapshots import describe, freeze, prune

        with freeze(self._chain) as frozen:
            made = self._store.create(frozen.header, frozen.commit, frozen.entries())
        prune(self._store, self._chain, self._kept)
        return describe(self._store, made)

    def delete(self, height: int) -> Any:
        from bflnode.node.sync.snapshots import delete_snapshot

        delete_snapshot(self._store, self._chain, height)
        return {"height": height}
