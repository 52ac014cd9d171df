"""Reading a node whether it runs or not: over RPC, or from its home under the home's lock.

What belongs here: finding out which of the two it is, and one way to ask both. Light to import: what opens a store or a
connection is loaded when it is needed.
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bflnode.node.home import Home
from bflnode.storage.errors import InUseError
from bflnode.storage.home_lock import HomeLock, running_pid

from .refusals import UnreachableError

if TYPE_CHECKING:
    from .client import RpcClient

PATIENCE_S = 10.0
"""How long a home may be held by somebody without an RPC address: another command that reads it, a node that starts."""

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class RunningNode:
    """A node that runs on a home, as it wrote it down."""

    pid: int
    rpc: str
    addresses: tuple[str, ...]
    node_id: str


class Reader(Protocol):
    """What answers questions about a node."""

    @property
    def is_running(self) -> bool:
        """Whether a running node answers."""

    def call(self, method: str, **params: Any) -> Any:
        """Ask a method of `calls.INSPECTIONS`, or of `methods` where the node runs."""

    def verify(self, *, reexecute: bool) -> dict[str, Any]:
        """Verify the whole chain; may take minutes."""


def find_running(home: Home, *, patience_s: float = PATIENCE_S) -> RunningNode | None:
    """The node that runs on a home, or None if none does.

    Raises:
        UnreachableError: some process holds the home, but has said no RPC address in time.
        StorageError: the lock can't be read.
    """
    deadline = time.monotonic() + patience_s
    while True:
        pid = running_pid(home.root)
        if pid is None:
            return None
        found = _read_address_file(home)
        if found is not None and found.pid == pid:
            return found
        if time.monotonic() > deadline:
            raise UnreachableError(
                f"process {pid} uses {home.root} but doesn't answer: it is another command reading this home, or a "
                "node that still starts; try again"
            )
        time.sleep(POLL_S)


def _read_address_file(home: Home) -> RunningNode | None:
    """What the running node wrote; None while there is nothing, or the leftover of one that was killed."""
    try:
        content = json.loads(home.address_file.read_text(encoding="utf-8"))
        return RunningNode(content["pid"], content["rpc"], tuple(content["addresses"]), content["node_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def open_reader(home: Home) -> Iterator[Reader]:
    """Whatever can answer about this home's node: the node if it runs, else its files.

    Raises:
        HomeError: not an initialised home, or it can't be used.
        UnreachableError: some process holds the home but doesn't answer.
        StorageError: the disk is at fault.
    """
    home.require()
    deadline = time.monotonic() + PATIENCE_S
    with ExitStack() as stack:
        while True:
            running = find_running(home)
            if running is not None:
                from .client import RpcClient

                yield LiveReader(stack.enter_context(RpcClient(running.rpc)))
                return
            try:
                stack.enter_context(HomeLock(home.root))
                break
            except InUseError:
                if time.monotonic() > deadline:
                    raise
        yield HomeReader(home, stack)


class LiveReader:
    """Asks a running node."""

    is_running = True

    def __init__(self, client: "RpcClient") -> None:
        self._client = client

    def call(self, method: str, **params: Any) -> Any:
        """Ask the node; raises `UnreachableError` or `RpcError`."""
        return self._client.call(method, **params)

    def verify(self, *, reexecute: bool) -> dict[str, Any]:
        """Have the node verify its chain, however long it takes."""
        answer: dict[str, Any] = self._client.call("verify", timeout_s=None, reexecute=reexecute)
        return answer


class HomeReader:
    """Reads a stopped home; the caller holds its lock."""

    is_running = False

    def __init__(self, home: Home, stack: ExitStack) -> None:
        from bflnode.node.journal import Journal
        from bflnode.node.stored_chain import open_store
        from bflnode.storage.blob_store import BlobStore

        from .inspection import Inspector, Sources

        self._home = home
        self._store = stack.enter_context(open_store(home))
        self._blobs = BlobStore(home.blobs)
        account = home.load_account()
        sources = Sources(self._store, self._store.load_state(), self._blobs, Journal(home.rounds), account)
        self._inspector: Inspector = Inspector(sources)

    def call(self, method: str, **params: Any) -> Any:
        """Answer from the files; raises `InspectionError`, or `UnreachableError` for what only a running node knows."""
        from .calls import INSPECTIONS, bind

        function = INSPECTIONS.get(method)
        if function is None:
            raise UnreachableError(f"no node runs on {self._home.root}: start it with `bflnode start`")
        answer = function(self._inspector, **bind(function, params))
        return {**answer, **self._identity()} if method == "status" else answer

    def verify(self, *, reexecute: bool) -> dict[str, Any]:
        """Verify the chain here."""
        from bflnode.node.sync.snapshots import base_state
        from bflnode.node.verify import verify_chain
        from bflnode.storage.snapshot_store import SnapshotStore

        start = base_state(self._store, SnapshotStore(self._home.snapshots))
        found = verify_chain(self._store, self._blobs, reexecute=reexecute, start=start)
        return {"is_valid": found.is_valid, **asdict(found)}

    def _identity(self) -> dict[str, Any]:
        """What a running node adds to its status, as it is while it is stopped."""
        from importlib.metadata import version

        from bflnode.node.configuration import load_configuration
        from bflnode.node.p2p.peer_identity import peer_id_text

        return {
            "running": False,
            "name": load_configuration(self._home).name,
            "home": str(self._home.root.absolute()),
            "pid": None,
            "rpc": None,
            "node_id": peer_id_text(self._home.load_peer_seed()),
            "addresses": [],
            "version": version("bflnode"),
            "uptime_ms": 0,
            "peers": 0,
            "syncing": False,
            "activity": [],
            "trainer": None,
            "mempool": 0,
            "network": None,
        }
