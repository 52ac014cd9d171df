"""Checking a whole chain from its genesis, as somebody who trusts nobody would: no agreement, no network.

Every block is read, checked and executed again on a state that starts at the genesis: hashes, parents, signatures,
commits, roots and with them all payouts (level 1). A chain that starts from a snapshot is checked from there on. With
`reexecute` every settled learning round is aggregated again from the stored models: the outputs bit for bit (level 2),
the similarity matrix within the task's tolerance (level 3).

What belongs here: the walk, and naming the first fault. The rules are `ledger`'s, the arithmetic `worker_jobs`'.
"""

import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from bflnode.consensus.blob import manifest_of
from bflnode.consensus.block import Block, Commit, Header
from bflnode.consensus.keys import account_text
from bflnode.consensus.ledger import Execution, genesis_state, validate_block, verify_commit
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.state import Changes, StateTree
from bflnode.consensus.tables import ACCOUNTS, SETTLED, TASKS, current_validators
from bflnode.consensus.task import (
    Aggregation,
    ProbeMode,
    SettledClient,
    SettledRound,
    TaskSpecification,
)
from bflnode.consensus.types import AccountId, BlobId, Hash
from bflnode.node.aggregation import AggregationFiles, aggregate_job, needs_bases, needs_probe, without_unsettled
from bflnode.node.workers.worker_protocol import (
    Job,
    MatrixJob,
    MatrixResult,
    ProbeSamples,
    PublicProbe,
    Result,
    UnsettledJob,
    UnsettledResult,
    UpdateMatrixJob,
)
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import CorruptBlobError, CorruptStore, MissingError, from_os_error

COPY_BYTES = 1024 * 1024
"""Piece in which output models are hashed."""

Progress = Callable[[int, int], None]
"""Called with the height that was checked last, and the tip's."""


class Check(StrEnum):
    """What a fault was found by. The text is stable: it appears in reports."""

    STORED = "stored"
    """The store can't give back what it should hold."""
    INDEX = "index"
    """Header, indexes or account history that are stored beside the blocks don't agree with them."""
    BLOCK = "block"
    """A rule about the block itself; the fault's `rule` is the ledger's reason."""
    COMMIT = "commit"
    """The precommits stored for the block don't make it final."""
    STATE = "state"
    """The live state isn't what the blocks lead to."""
    MODEL = "model"
    """A stored model or probe set is not what its id says, or nothing that can be aggregated."""
    OUTPUT = "output"
    """Level 2: aggregating the models again gives other bytes."""
    PROBE = "probe"
    """The samples that an aggregator published are not of one category."""
    MATRIX = "matrix"
    """Level 3: a similarity is further from the recomputed one than the task's tolerance."""


@dataclass(frozen=True, slots=True)
class ChainFault:
    """The first thing that is wrong.

    Attributes:
        height: of the block concerned; for a learning round, of the block that settled it.
        check: what was checked.
        rule: which rule of that check, in a word.
        subject: what it is about: a transaction, a model, a pair of clients.
        expected: what it should be.
        got: what it is.
    """

    height: int
    check: Check
    rule: str
    subject: str
    expected: str
    got: str


@dataclass(frozen=True, slots=True)
class TaskReexecution:
    """How far a task's settled learning rounds could be aggregated again.

    Attributes:
        task: its id, hexadecimal.
        settled: learning rounds that ended with an aggregation.
        reexecuted: of these, how many were completely checked at levels 2 and 3.
        possible_from: the learning round from which on all are complete; None if not even the last is.
        missing: ids, hexadecimal, of the models and probes of the last incomplete learning round that aren't here.
    """

    task: str
    settled: int
    reexecuted: int
    possible_from: int | None
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """What was verified, and the first fault if there is one; all of it turns into JSON as it is.

    Attributes:
        chain_id: hexadecimal.
        tip: height of the last block.
        verified: height up to which everything was right.
        transactions: how many were executed.
        reexecution: one entry a task with settled learning rounds; empty unless asked for.
        fault: the first fault, or None.
        base: height of the snapshot that the chain starts from: nothing up to it was executed; 0 for the genesis.
    """

    chain_id: str
    tip: int
    verified: int
    transactions: int
    reexecution: tuple[TaskReexecution, ...]
    fault: ChainFault | None
    base: int = 0

    @property
    def is_valid(self) -> bool:
        """Whether no fault was found."""
        return self.fault is None


def verify_chain(
    store: ChainStore,
    blobs: BlobStore,
    *,
    reexecute: bool,
    progress: Progress | None = None,
    start: StateTree | None = None,
) -> Verification:
    """Verify a chain from its genesis, or from the snapshot that it starts from, up to the first fault.

    Args:
        store: the chain.
        blobs: models and probe sets; only read with `reexecute`. One that is found corrupt is moved aside.
        reexecute: whether to aggregate every settled learning round again. Imports torch, uses one core.
        progress: told after each block.
        start: the state after the store's base, the caller's no longer (see `snapshots.base_state`); None: genesis.

    Raises:
        StorageError: the disk is at fault (contents that are wrong are a fault of the chain, and reported).
    """
    if store.base and start is None:
        cause = f"the chain starts from a snapshot at height {store.base}, and its state is not at hand"
        raise MissingError(store.path, cause, "Verify the chain of a node that has all blocks")
    walk = _Walk(store, blobs if reexecute else None, start)
    fault = None
    try:
        for height in walk.blocks():
            if progress is not None:
                progress(height, walk.tip)
    except _Found as found:
        fault = found.fault
    except CorruptStore as error:
        height = min(walk.verified + 1, walk.tip)
        fault = ChainFault(height, Check.STORED, "readable", str(error.path), "canonical records", error.cause)
    return Verification(
        chain_id=store.genesis.chain_id.hex(),
        tip=walk.tip,
        verified=walk.verified,
        transactions=walk.transactions,
        reexecution=tuple(record.report(task) for task, record in walk.rounds.items()),
        fault=fault,
        base=store.base,
    )


class _Found(Exception):
    """A fault of the chain."""

    def __init__(self, fault: ChainFault) -> None:
        self.fault = fault
        super().__init__(fault)


@dataclass(slots=True)
class _Rounds:
    """A task's settled learning rounds: which blobs each of them lacked."""

    missing: dict[int, tuple[BlobId, ...]] = field(default_factory=dict)

    def report(self, task: Hash) -> TaskReexecution:
        incomplete = [number for number, blobs in self.missing.items() if blobs]
        complete_tail = [number for number in self.missing if not incomplete or number > incomplete[-1]]
        return TaskReexecution(
            task=task.hex(),
            settled=len(self.missing),
            reexecuted=len(self.missing) - len(incomplete),
            possible_from=complete_tail[0] if complete_tail else None,
            missing=tuple(blob.hex() for blob in self.missing[incomplete[-1]]) if incomplete else (),
        )


class _Walk:
    """The state of a verification: how far it is, and the ledger's state there."""

    def __init__(self, store: ChainStore, blobs: BlobStore | None, start: StateTree | None) -> None:
        self.tip = store.tip().height
        self.verified = store.base
        self.transactions = 0
        self.rounds: dict[Hash, _Rounds] = {}
        self._store = store
        self._blobs = blobs
        self._tree: StateTree = genesis_state(store.genesis) if start is None else start
        self._parent: Header | None = store.header(store.base) if store.base else None

    def blocks(self) -> Iterator[int]:
        """Verify block after block, then the live state; yields each height once it is right.

        Raises:
            _Found: the first fault.
        """
        while True:
            for height in range(self.verified + 1, self.tip + 1):
                self._verify(height)
                yield height
            root = self._store.load_state().root
            if root == self._tree.root:
                return
            if not self._has_grown():
                raise _found(self.tip, Check.STATE, "state-root", "live state", self._tree.root.hex(), root.hex())

    def _has_grown(self) -> bool:
        """Whether a running node has appended blocks since the walk began: then they are verified too."""
        before, self.tip = self.tip, self._store.tip().height
        return self.tip > before

    def _verify(self, height: int) -> None:
        block, commit = self._read(height)
        execution = self._validate(block)
        self._check_commit(block, commit)
        self._tree.apply(execution.changes)
        self._check_indexes(block, execution.changes)
        if self._blobs is not None:
            self._reexecute(self._blobs, height, execution.changes)
        self._parent = block.header
        self.transactions += len(block.transactions)
        self.verified = height

    def _read(self, height: int) -> tuple[Block, Commit]:
        block, commit, header = self._store.block(height), self._store.commit(height), self._store.header(height)
        if header != block.header:
            expected, got = block.id.hex(), header.id.hex()
            raise _found(height, Check.INDEX, "header", f"stored header {height}", expected, got)
        return block, commit

    def _validate(self, block: Block) -> Execution:
        height = 1 if self._parent is None else self._parent.height + 1
        try:
            return validate_block(self._store.genesis, self._tree, self._parent, block)
        except Rejection as rejection:
            subject = f"block {height} ({block.id.hex()})"
            raise _rejected(height, Check.BLOCK, subject, rejection) from rejection

    def _check_commit(self, block: Block, commit: Commit) -> None:
        """The state is still the parent's: its validators are those who vote on this block."""
        subject = f"commit of block {block.height}"
        if (commit.height, commit.block_id) != (block.height, block.id):
            expected, got = (
                f"height {block.height}, {block.id.hex()}",
                f"height {commit.height}, {commit.block_id.hex()}",
            )
            raise _found(block.height, Check.COMMIT, "block-id", subject, expected, got)
        try:
            verify_commit(self._store.genesis.chain_id, current_validators(self._tree), commit)
        except Rejection as rejection:
            raise _rejected(block.height, Check.COMMIT, subject, rejection) from rejection

    def _check_indexes(self, block: Block, changes: Changes) -> None:
        """What is stored to find things quickly must agree with the blocks."""
        height = block.height
        by_id = self._store.block_by_id(block.id)
        if by_id is None or by_id.height != height:
            raise _found(height, Check.INDEX, "block-id", block.id.hex(), f"height {height}", "not indexed there")
        for position, transaction in enumerate(block.transactions):
            stored = self._store.transaction(transaction.id)
            place = None if stored is None else (stored.height, stored.index)
            if place != (height, position):
                expected, got = f"block {height}, position {position}", f"indexed at {place}"
                raise _found(height, Check.INDEX, "transaction", transaction.id.hex(), expected, got)
        for key in changes:
            if key.startswith(ACCOUNTS.prefix):
                account = AccountId(key[len(ACCOUNTS.prefix) :])
                record = ACCOUNTS.get(self._tree, account)
                expected_balance = 0 if record is None else record.balance
                balance = self._store.balance_at(account, height)
                if balance != expected_balance:
                    subject = account_text(account)
                    raise _found(height, Check.INDEX, "balance", subject, str(expected_balance), str(balance))

    def _reexecute(self, blobs: BlobStore, height: int, changes: Changes) -> None:
        """Aggregate the learning rounds again that this block settled."""
        for key in changes:
            if not key.startswith(SETTLED.prefix):
                continue
            settled = SETTLED.get(self._tree, key[len(SETTLED.prefix) :])
            assert settled is not None, "a settled learning round is never deleted"
            if settled.aggregation is None:
                continue
            task = TASKS.get(self._tree, settled.slot.task)
            assert task is not None, "tasks are kept for ever"
            audit = _RoundAudit(height, settled, settled.aggregation, task.specification, blobs)
            rounds = self.rounds.setdefault(task.id, _Rounds())
            rounds.missing[settled.slot.number] = audit.run()


@dataclass(frozen=True, slots=True)
class _RoundAudit:
    """Levels 2 and 3 of one settled learning round."""

    height: int
    settled: SettledRound
    aggregation: Aggregation
    specification: TaskSpecification
    blobs: BlobStore

    def run(self) -> tuple[BlobId, ...]:
        """Check what can be checked; returns the blobs that it takes and that aren't here.

        Raises:
            _Found: the first fault.
        """
        models = [(client.revealed.model if client.revealed else None) for client in self._clients()]
        needed = [model for model in models if model is not None]
        assert len(needed) == len(models), "an included client has revealed its model"
        paths, missing = self._find(needed)
        bases = [client.base for client in self._clients()] if needs_bases(self.specification) else []
        base_paths, missing_bases = self._find(bases)
        if not missing and not missing_bases:
            self._check_outputs(paths, base_paths)
        # Not needed for the aggregation: one that is gone is no gap, one that has changed is a fault.
        self._find(list(self.aggregation.outputs))
        probe_paths, missing_probes = self._find([self._probe()] if needs_probe(self.specification) else [])
        if not missing and not missing_bases and not missing_probes:
            self._check_matrix(paths, base_paths, probe_paths)
        return (*missing, *dict.fromkeys(missing_bases), *missing_probes)

    def _clients(self) -> list[SettledClient]:
        """The included clients, in the order of the matrix."""
        return [self.settled.clients[position] for position in self.settled.included]

    def _probe(self) -> BlobId:
        """The task's probe set, or the samples that the aggregator published."""
        if self.specification.probe_mode is ProbeMode.PUBLIC:
            return self.specification.probe_set
        assert self.aggregation.opening is not None, "the ledger takes no AGGREGATE without its opening in this mode"
        return self.aggregation.opening.samples

    def _find(self, needed: list[BlobId]) -> tuple[tuple[str, ...], tuple[BlobId, ...]]:
        """Files of the blobs that are here, and the others."""
        paths: list[str] = []
        missing: list[BlobId] = []
        for blob in needed:
            try:
                paths.append(str(self.blobs.path(blob).absolute()))
            except CorruptBlobError as error:
                raise self._found(Check.MODEL, "content-id", blob.hex(), blob.hex(), error.cause) from error
            except MissingError:
                missing.append(blob)
        return tuple(paths), tuple(missing)

    def _check_outputs(self, paths: tuple[str, ...], base_paths: tuple[str, ...]) -> None:
        """Level 2: the output for each cluster, bit for bit."""
        with tempfile.TemporaryDirectory(prefix="bflnode-verify-") as folder:
            outputs = tuple(str(Path(folder) / str(label)) for label in range(len(self.aggregation.outputs)))
            files = AggregationFiles(paths, base_paths, outputs)
            triangle, labels = self.aggregation.triangle, self.aggregation.labels
            job = aggregate_job(self.specification, self._clients(), triangle, labels, files)
            self._run(job, Path(folder))
            for label, (output, claimed) in enumerate(zip(outputs, self.aggregation.outputs, strict=True)):
                computed = _blob_id(Path(output))
                if computed != claimed:
                    subject = f"{self._name()}, output of cluster {label}"
                    raise self._found(Check.OUTPUT, "level-2", subject, computed.hex(), claimed.hex())

    def _matrix_job(self, paths: tuple[str, ...], base_paths: tuple[str, ...], probe_paths: tuple[str, ...]) -> Job:
        chosen = self.specification.architecture
        if not probe_paths:
            return UpdateMatrixJob(chosen, paths, base_paths)
        if self.specification.probe_mode is ProbeMode.PUBLIC:
            return MatrixJob(
                chosen, paths, PublicProbe(probe_paths[0], self.settled.probe_seed, self.specification.psi)
            )
        self._check_published(Path(probe_paths[0]))
        return MatrixJob(chosen, paths, ProbeSamples(probe_paths[0], self.specification.psi))

    def _check_matrix(self, paths: tuple[str, ...], base_paths: tuple[str, ...], probe_paths: tuple[str, ...]) -> None:
        """Level 3: every similarity that rounding doesn't decide within the tolerance."""
        tolerance, theirs = self.specification.tolerance, self.aggregation.triangle
        job = self._matrix_job(paths, base_paths, probe_paths)
        result = self._run(job, Path(paths[0]))
        assert isinstance(result, MatrixResult), result
        computed = _entries(result.triangle)
        is_wrong = any(abs(a - b) > tolerance for a, b in zip(_entries(theirs), computed, strict=True))
        if is_wrong and isinstance(job, MatrixJob):
            unsettled = self._run(UnsettledJob(job, result.triangle, tolerance), Path(paths[0]))
            assert isinstance(unsettled, UnsettledResult), unsettled
            theirs = without_unsettled(theirs, result.triangle, unsettled.entries)
        claimed, clients = _entries(theirs), self._clients()
        pairs = ((i, j) for i in range(len(clients)) for j in range(i + 1, len(clients)))
        for (i, j), is_, should_be in zip(pairs, claimed, computed, strict=True):
            if abs(is_ - should_be) > tolerance:
                names = f"{account_text(clients[i].account)} and {account_text(clients[j].account)}"
                expected = f"{should_be} within {tolerance}, in units of 1e-4"
                raise self._found(Check.MATRIX, "level-3", f"{self._name()}, similarity of {names}", expected, str(is_))

    def _check_published(self, path: Path) -> None:
        """An aggregator's own probe must be samples of one category, and no more than the task says."""
        from bflnode.fl.architectures import architecture
        from bflnode.fl.prototypes import SampleLimits, parse_samples

        chosen = architecture(self.specification.architecture)
        limits = SampleLimits(chosen.input_shape, chosen.classes, self.specification.psi)
        try:
            labels = parse_samples(path.read_bytes(), limits).labels
        except ValueError as error:
            raise self._found(Check.PROBE, "format", path.name, "a file of samples", str(error)) from error
        categories = sorted({int(label) for label in labels})
        if len(categories) != 1:
            raise self._found(Check.PROBE, "one-category", path.name, "one category", f"categories {categories}")

    def _run(self, job: Job, place: Path) -> Result:
        from bflnode.node.workers.worker_jobs import run_job

        try:
            return run_job(job, lambda _fraction, _note: None, threads=1)
        except ValueError as error:
            raise self._found(
                Check.MODEL, "format", self._name(), "models that can be aggregated", str(error)
            ) from error
        except OSError as error:
            raise from_os_error(place, "aggregating again", error) from error

    def _name(self) -> str:
        slot = self.settled.slot
        return f"learning round {slot.number} of task {slot.task.hex()[:16]}"

    def _found(self, check: Check, rule: str, subject: str, expected: str, got: str) -> _Found:
        return _found(self.height, check, rule, subject, expected, got)


def _found(height: int, check: Check, rule: str, subject: str, expected: str, got: str) -> _Found:
    return _Found(ChainFault(height, check, rule, subject, expected, got))


def _rejected(height: int, check: Check, subject: str, rejection: Rejection) -> _Found:
    """A fault out of a rejection: its reason is the rule, its values say what was expected and what was found."""
    values = {name: value.hex() if isinstance(value, bytes) else str(value) for name, value in rejection.values.items()}
    expected = next((values.pop(name) for name in ("expected", "computed", "limit") if name in values), "")
    got = ", ".join(f"{name}={value}" for name, value in values.items())
    return _found(height, check, rejection.reason.value, subject, expected or f"no {rejection.reason.value}", got)


def _entries(triangle: bytes) -> tuple[int, ...]:
    return struct.unpack(f">{len(triangle) // 2}h", triangle)


def _blob_id(path: Path) -> BlobId:
    with path.open("rb") as file:
        return manifest_of(iter(lambda: file.read(COPY_BYTES), b"")).id
