"""Snapshots of a running node: made every so many heights, offered to nodes that join, kept in number.

A final block freezes the state (which costs nothing), a thread writes it out while the chain goes on. What a snapshot
is, is said in `consensus.snapshot`, files are `storage.snapshot_store`'s, how another node uses them is `state_sync`'s.
"""

import logging
from collections.abc import Iterator
from typing import Any

import trio

from bflnode.consensus.light import make_light_chain
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.snapshot import Snapshot, read_state
from bflnode.consensus.state import StateTree
from bflnode.node.configuration import Synchronisation
from bflnode.node.p2p.messages import (
    MAX_LIGHT_CHAIN_BYTES,
    MAX_OFFERS,
    LightChainRequest,
    SnapshotOffers,
    SnapshotsRequest,
)
from bflnode.node.rpc.refusals import InspectionError
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import MissingError, StorageError
from bflnode.storage.frozen_state import FrozenState
from bflnode.storage.snapshot_store import SnapshotStore

_log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 64

ENTRIES_BETWEEN_CHECKS = 256
"""A node that stops doesn't wait for a snapshot: this many entries take a millisecond."""


class Snapshots:
    """Makes, keeps and offers the snapshots of one node.

    Attributes:
        store: the files.
    """

    def __init__(self, store: SnapshotStore, chain: ChainStore, settings: Synchronisation) -> None:
        self.store = store
        self._chain = chain
        self._settings = settings
        self._due, self._to_make = trio.open_memory_channel[FrozenState](0)
        self._making = trio.CapacityLimiter(1)

    def note(self, height: int) -> None:
        """A block is final and its state is the store's: freeze it if its height is due."""
        interval = self._settings.snapshot_interval
        if not interval or height % interval:
            return
        frozen = self._chain.freeze()
        try:
            self._due.send_nowait(frozen)
        except trio.WouldBlock:
            frozen.close()
            _log.warning("no snapshot of height %d: the one before is still being written", height)

    async def run(self) -> None:
        """Write what is due until cancelled. A full disk, or a state beyond any blob, costs snapshots, not the node."""
        async for frozen in self._to_make:
            try:
                await self._write(frozen)
            except (StorageError, Rejection) as error:
                _log.error("no snapshot of height %d: %s", frozen.header.height, error)

    async def create(self) -> Snapshot:
        """Make a snapshot of the state as it is now.

        Raises:
            InspectionError: there is no block yet.
            Rejection: TOO_LARGE, the state is larger than a blob may be.
            StorageError: the disk is at fault.
        """
        return await self._write(freeze(self._chain))

    async def _write(self, frozen: FrozenState) -> Snapshot:
        def work() -> Snapshot:
            snapshot = self.store.create(frozen.header, frozen.commit, _interruptible(frozen))
            prune(self.store, self._chain, self._settings.snapshots_kept)
            return snapshot

        with frozen:
            started_s = trio.current_time()
            snapshot = await trio.to_thread.run_sync(work, limiter=self._making)
        took_s = trio.current_time() - started_s
        _log.info("snapshot of height %d: %d entries in %.2f s", snapshot.height, snapshot.entries, took_s)
        return snapshot

    def serve(self, data: bytes) -> bytes:
        """Answer a SNAPSHOTS request. Reads the disk, so call it in a thread.

        Raises:
            Rejection: malformed.
            StorageError: the disk is at fault.
        """
        request = SnapshotsRequest.from_bytes(data, max_bytes=MAX_REQUEST_BYTES)
        found = [snapshot.to_bytes() for snapshot in self.store.list() if snapshot.height >= request.lowest]
        return SnapshotOffers(tuple(found[::-1][:MAX_OFFERS])).to_bytes()


def freeze(chain: ChainStore) -> FrozenState:
    """The state as it is now, to be written out.

    Raises:
        InspectionError: there is no block yet.
        StorageError: the disk is at fault.
    """
    if chain.tip().height == 0:
        raise InspectionError("the chain has no blocks yet: start the node and wait for the first")
    return chain.freeze()


def prune(store: SnapshotStore, chain: ChainStore, kept: int) -> None:
    """Remove all but the latest snapshots, and the one that the chain starts from: it is verified from there."""
    for height in store.prune(kept, always=chain.base):
        _log.info("removed the snapshot of height %d", height)


def base_state(chain: ChainStore, store: SnapshotStore) -> StateTree | None:
    """The state that a chain starts from: of the snapshot that was kept for that; None for the genesis.

    Raises:
        MissingError: the snapshot isn't here, or not what it was.
        StorageError: the disk is at fault.
    """
    if not chain.base:
        return None
    header = chain.header(chain.base)
    kept = next((snapshot for snapshot in store.list() if snapshot.header == header), None)
    try:
        if kept is not None:
            return read_state(kept, store.pieces(kept))
    except Rejection as rejection:
        _log.error("the snapshot of height %d is damaged: %s", chain.base, rejection)
    cause = f"the snapshot of height {chain.base}, from which this chain starts, is gone: nothing can be executed again"
    remedy = "The node works without; to verify, copy the snapshot from another node, or verify there"
    raise MissingError(store.root, cause, remedy)


def delete_snapshot(store: SnapshotStore, chain: ChainStore, height: int) -> None:
    """Remove the snapshot of a height.

    Raises:
        InspectionError: there is none, or the chain can't be verified without it.
        StorageError: the disk is at fault.
    """
    if height and height == chain.base:
        raise InspectionError(f"the chain starts from the snapshot of height {height}: without it nothing is verified")
    if not store.delete(height):
        heights = ", ".join(str(snapshot.height) for snapshot in store.list()) or "none"
        raise InspectionError(f"there is no snapshot of height {height}: there are {heights}")


def serve_light_chain(store: ChainStore, data: bytes) -> bytes:
    """Answer a LIGHT_CHAINS request. Reads the disk, so call it in a thread.

    Raises:
        Rejection: malformed, or these steps can't be made here.
        StorageError: the disk is at fault.
    """
    request = LightChainRequest.from_bytes(data, max_bytes=MAX_REQUEST_BYTES)
    tip = store.tip().height
    if not request.start <= request.target <= tip:
        raise Rejection(Reason.WRONG_HEIGHT, start=request.start, target=request.target, tip=tip)
    if request.start < store.base:
        raise Rejection(Reason.PRUNED, start=request.start, first=store.base)
    answer = make_light_chain(store, store.genesis, request.start, request.target).to_bytes()
    if len(answer) > MAX_LIGHT_CHAIN_BYTES:
        raise Rejection(Reason.TOO_LARGE, size_bytes=len(answer), limit=MAX_LIGHT_CHAIN_BYTES)
    return answer


def describe(store: SnapshotStore, snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as JSON-ready values; the size is None for one that has been deleted meanwhile."""
    try:
        size_bytes = store.size(snapshot)
    except MissingError:
        size_bytes = None
    return {
        "height": snapshot.height,
        "block": snapshot.header.id.hex(),
        "time_ms": snapshot.header.time_ms,
        "entries": snapshot.entries,
        "size_bytes": size_bytes,
        "state": snapshot.state.hex(),
    }


def _interruptible(frozen: FrozenState) -> Iterator[tuple[bytes, bytes]]:
    """The entries, as long as the node isn't being stopped."""
    for number, entry in enumerate(frozen.entries()):
        if number % ENTRIES_BETWEEN_CHECKS == 0:
            trio.from_thread.check_cancelled()
        yield entry
