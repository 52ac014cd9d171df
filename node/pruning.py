"""What goes from this disk: models and journal entries of learning rounds that are over, by age and by quota.

The chain stays whole: headers, blocks, commits and the state are never touched. What a model is worth is read from the
state, so this may run at any time, again and again, and after a crash.

    kept always    what each task starts from (initial model, probe set, validation set), and what is pinned
    kept by need   everything of the learning round that runs and of the last one settled: bases, revealed models of all
                   attempts, outputs, probes. A late joiner begins with such an output, and clients
                   look ahead from such a base
    kept by age    everything of the last `keep_rounds` settled learning rounds of each task
    kept by doubt  what no learning round of the chain has named, while it is younger than the rounds that are kept: it
                   may be on its way into the chain

All else may go: with `keep_rounds` as soon as a learning round is settled, without it when a quota asks for room, what
was needed longest ago first. Which files there are is the stores' business, when this runs is the node's.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import trio

from bflnode.consensus.duties import last_settled
from bflnode.consensus.state import StateReader
from bflnode.consensus.tables import (
    MODELS,
    SETTLED,
    all_tasks,
    current_round,
    model_key,
    settled_key,
)
from bflnode.consensus.task import Aggregation, RoundClient, SettledClient, Task
from bflnode.consensus.types import BlobId
from bflnode.storage.blob_store import BlobStore, StoredBlob
from bflnode.storage.chain_store import ChainStore

from .chain import Chain
from .journal import Journal, RoundEntry

_log = logging.getLogger(__name__)

NEEDED_ROUNDS = 1
"""Settled learning rounds whose models are needed: of the last one, what everybody trains from next, and what clients
look ahead from and remember."""

DOUBT_MS = 24 * 3600 * 1000
"""How much older than a kept learning round an unknown file must be: clocks of disks and of blocks may differ."""

Step = Callable[[], None]
"""Called between two small steps; may raise to end early."""


def no_step() -> None:
    """For callers that nobody waits for."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What has gone, or would go.

    Attributes:
        blobs: models and sample files.
        size_bytes: of all of them.
        entries: entries of the journal.
        kept_from: first learning round of each task, by its id, of which everything is kept.
    """

    blobs: tuple[StoredBlob, ...]
    size_bytes: int
    entries: int
    kept_from: dict[str, int]


class Retention:
    """What a state, a journal and the operator's pins want kept when so many settled learning rounds are."""

    def __init__(
        self,
        reader: StateReader,
        entries: Iterable[RoundEntry],
        pins: Iterable[BlobId],
        rounds: int,
    ) -> None:
        """Read what is needed.

        Args:
            reader: the state; has to stay readable while this is used.
            entries: of the journal.
            pins: ids that stay in any case.
            rounds: settled learning rounds of each task of which everything stays, at least `NEEDED_ROUNDS`.
        """
        assert rounds >= NEEDED_ROUNDS, rounds
        self._reader = reader
        self._tasks = all_tasks(reader)
        self.kept_from = {task.id.hex(): max(1, last_settled(reader, task) - rounds + 1) for task in self._tasks}
        self._latest = _latest_task(reader, self._tasks)
        self._kept = frozenset((*pins, *self._needed(), *self._of_journal(entries)))
        self._doubtful_ms = self._settled_before_kept_ms() - DOUBT_MS

    def removable(self, stored: Iterable[StoredBlob]) -> tuple[StoredBlob, ...]:
        """Those of the blobs that may go, the one that was needed longest ago first."""
        ranked = ((self._rank(blob), blob.written_ms, blob) for blob in stored if blob.id not in self._kept)
        known = [(rank, written_ms, blob) for rank, written_ms, blob in ranked if rank is not None]
        return tuple(blob for *_, blob in sorted(known, key=lambda entry: entry[:2]))

    def _rank(self, blob: StoredBlob) -> tuple[bool, int, int] | None:
        """When a blob was needed last: in which task and learning round; None if it is to be kept."""
        seen = [(task, MODELS.get(self._reader, model_key(task.id, blob.id))) for task in self._tasks]
        uses = [(task, model.number) for task, model in seen if model is not None]
        if any(number >= self.kept_from[task.id.hex()] for task, number in uses):
            return None
        if not uses:
            return (False, 0, 0) if blob.written_ms < self._doubtful_ms else None
        return max((task == self._latest, task.number, number) for task, number in uses)

    def _settled_before_kept_ms(self) -> int:
        """Header time at which the last learning round was settled that isn't kept; 0 where all are."""
        if self._latest is None:
            return 0
        task = self._latest
        settled = SETTLED.get(self._reader, settled_key(task.id, self.kept_from[task.id.hex()] - 1))
        return 0 if settled is None else settled.settled_header_ms

    def _needed(self) -> Iterator[BlobId]:
        """What tasks start from, and what rounds that are kept name; bases and outputs are among models seen too."""
        for task in self._tasks:
            specification = task.specification
            yield from (specification.initial_model, specification.probe_set, specification.validation_set)
            for number in range(self.kept_from[task.id.hex()], task.round + 1):
                settled = SETTLED.get(self._reader, settled_key(task.id, number))
                if settled is not None:
                    yield from _of_clients(settled.clients)
                    yield from _of_aggregation(settled.aggregation)
        current = current_round(self._reader)
        if current is not None:
            yield from _of_clients(current.clients)
            yield from _of_aggregation(current.aggregation)

    def _of_journal(self, entries: Iterable[RoundEntry]) -> Iterator[BlobId]:
        """What this node trained in a learning round that is kept: its model is on no chain before it is revealed."""
        for entry in entries:
            if not self.is_over(entry):
                yield from (BlobId(bytes.fromhex(blob)) for blob in (entry.base, entry.model) if blob)

    def is_over(self, entry: RoundEntry) -> bool:
        """Whether a journal entry is of a learning round that isn't kept; one of another chain's task stays."""
        return entry.number < self.kept_from.get(entry.task, 0)


def _latest_task(reader: StateReader, tasks: tuple[Task, ...]) -> Task | None:
    """The task that runs, or else the one that was started last as far as the state tells."""
    current = current_round(reader)
    running = [task for task in tasks if current is not None and task.id == current.slot.task]
    return running[0] if running else max(tasks, key=lambda task: (task.round > 1, task.number), default=None)


def _of_clients(clients: Iterable[RoundClient | SettledClient]) -> Iterator[BlobId]:
    for client in clients:
        yield client.base
        if client.revealed is not None:
            yield client.revealed.model


def _of_aggregation(aggregation: Aggregation | None) -> Iterator[BlobId]:
    if aggregation is not None:
        yield from aggregation.outputs
        if aggregation.opening is not None:
            yield aggregation.opening.samples


class Pruner:
    """Removes from one home what its retention doesn't keep.

    Attributes:
        keep_rounds: settled learning rounds of each task whose models stay; 0 for all of them.
    """

    def __init__(self, store: ChainStore, blobs: BlobStore, journal: Journal, keep_rounds: int) -> None:
        self.keep_rounds = keep_rounds
        self._store = store
        self._blobs = blobs
        self._journal = journal

    async def run(self, chain: Chain) -> None:
        """Prune whenever a learning round is settled, in a thread, until cancelled."""
        done: tuple[object, ...] | None = None
        while True:
            changed = chain.changed
            where = tuple((task.id, task.round, task.status) for task in all_tasks(chain.tree))
            if where != done and self.keep_rounds > 0:
                done = where
                pruned = await trio.to_thread.run_sync(lambda: self.prune(step=trio.from_thread.check_cancelled))
                if pruned.blobs or pruned.entries:
                    _log.info("pruned %d models of old rounds, %d bytes", len(pruned.blobs), pruned.size_bytes)
            await changed.wait()

    def prune(self, *, is_dry_run: bool = False, step: Step = no_step) -> Pruned:
        """Remove what is older than `keep_rounds`.

        Args:
            is_dry_run: only say what would go.
            step: called before each removal.

        Raises:
            StorageError: the disk is at fault.
        """
        if self.keep_rounds == 0 or self._store.tip().height == 0:
            return Pruned((), 0, 0, {})
        entries = self._journal.entries()
        with self._store.freeze() as reader:
            retention = Retention(reader, entries, self._blobs.pins.all(), self.keep_rounds)
            removable = retention.removable(self._blobs.stored())
        over = [entry for entry in entries if retention.is_over(entry)]
        if not is_dry_run:
            for blob in removable:
                step()
                self._blobs.delete(blob.id)
            for entry in over:
                step()
                self._journal.delete(entry)
        size_bytes = sum(blob.size_bytes for blob in removable)
        return Pruned(removable, size_bytes, len(over), retention.kept_from)

    def make_room(self, wanted_bytes: int) -> None:
        """Remove what isn't needed until so many bytes are free, or nothing is left to remove; any thread may call it.

        Raises:
            StorageError: the disk is at fault.
        """
        if self._store.tip().height == 0:
            return
        with self._store.freeze() as reader:
            rounds = max(NEEDED_ROUNDS, self.keep_rounds)
            retention = Retention(reader, self._journal.entries(), self._blobs.pins.all(), rounds)
            removable = retention.removable(self._blobs.stored())
        freed_bytes = 0
        for blob in removable:
            if freed_bytes >= wanted_bytes:
                break
            self._blobs.delete(blob.id)
            freed_bytes += blob.size_bytes
        _log.info("removed models of old rounds to make room: %d of %d bytes", freed_bytes, wanted_bytes)
