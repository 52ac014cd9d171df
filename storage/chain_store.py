"""The chain on disk: blocks, commits, indexes and the live state, in one LevelDB.

    m schema | chain | genesis                   what this database is
    m tip                            -> height
    m base                           -> height of the snapshot that the chain starts from; none: genesis
    b HEIGHT                         -> canonical block            h HEIGHT -> its canonical header
    c HEIGHT                         -> canonical commit for that block
    i BLOCK_ID                       -> HEIGHT
    t TRANSACTION_ID                 -> HEIGHT, position in the block
    v SET_HASH                       -> the validators that headers name by this hash
    s KEY                            -> value of the live state
    a ACCOUNT HEIGHT                 -> free balance from that height on, where it changed

Heights are 8 bytes, big-endian, so that keys sort by height. A block is applied by one synced `WriteBatch` that holds
all of it, the tip included: after a crash it is there or it isn't. Whether a block is valid is `ledger`'s question;
models are in `blob_store`, what this node has signed is in the signer's log. A chain that starts from a snapshot has
the header and commit of its base, and blocks above it only. LevelDB's repair is never called: it makes
something that opens out of whatever is left, and a chain with holes is worse than one that has to be fetched again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self, TypeVar

import plyvel

from bflnode.consensus.block import MAX_BLOCK_BYTES, Block, Commit, Header, genesis_commit
from bflnode.consensus.genesis import MAX_GENESIS_BYTES, Genesis
from bflnode.consensus.ledger import genesis_state
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.records import Record
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.state import Changes, StateTree
from bflnode.consensus.tables import ACCOUNTS, PREVIOUS_VALIDATORS, VALIDATORS, Account, Validators
from bflnode.consensus.transaction import Transaction
from bflnode.consensus.types import AccountId, Amount, BlockId, Hash, Milliseconds, TransactionId

from .errors import CorruptStore, MissingError, StorageError
from .failpoints import Operation, after, before
from .frozen_state import STATE, FrozenState
from .leveldb import START_OVER, leveldb_errors

SCHEMA = b"1"
"""Version of the layout above; another one is refused, since its records would be misread."""

HEADER, BLOCK, COMMIT, BY_ID, BY_TRANSACTION, BALANCE = b"h", b"b", b"c", b"i", b"t", b"a"
VALIDATOR_SET = b"v"
META_SCHEMA, META_CHAIN, META_GENESIS, META_TIP, META_BASE = b"m schema", b"m chain", b"m genesis", b"m tip", b"m base"

MAX_COMMIT_BYTES = 64 * 1024
"""A commit of 256 signatures is 18 KiB."""

HISTORY_LIMIT = 1000
"""Most balance changes returned at once: a year of learning rounds every nine hours."""

STATE_BATCH_BYTES = 4 * 1024 * 1024
"""Entries of a snapshot written at once: large enough to be quick, small enough not to hold the state twice."""

BLOOM_BITS = 10
"""Bits a key in LevelDB's filters: a look-up of an unknown transaction then reads the disk once in a hundred times."""

RecordType = TypeVar("RecordType", bound=Record)


@dataclass(frozen=True, slots=True)
class Tip:
    """The last block of a chain; at height 0 the genesis, whose id as a block is the chain's."""

    height: int
    block_id: BlockId
    time_ms: Milliseconds
    state_root: Hash


@dataclass(frozen=True, slots=True)
class StoredTransaction:
    """A transaction in the chain: the block it is in, and its position there."""

    transaction: Transaction
    height: int
    index: int


@dataclass(frozen=True, slots=True)
class BalanceChange:
    """An account's free balance from a height on."""

    height: int
    balance: Amount


class ChainStore:
    """The chain in one folder. One process at a time has it open; its threads may share it.

    Attributes:
        path: the folder.
        genesis: the start of the chain.
        base: height of the snapshot that it starts from, 0 for the genesis: blocks are here from the next one on.
    """

    def __init__(self, path: Path, database: "plyvel.DB", genesis: Genesis) -> None:
        """Take over an open, checked database; callers use `create` or `open`."""
        self.path = path
        self.genesis = genesis
        self._database = database
        self._has_failed = False
        # Held while the tip moves: a state that is read is never one that `tip` doesn't know yet.
        self._moving = Lock()
        self._tip = self._read_tip()
        self.base = int.from_bytes(self._get(META_BASE) or b"")

    @classmethod
    def create(cls, path: Path, genesis: Genesis) -> Self:
        """Make the store of a new chain, at height 0, and open it.

        Raises:
            StorageError: there is something at `path` already, or the disk is at fault.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StorageError(path, "there is something here already", "Open it, or choose another folder")
        with leveldb_errors(path, "creating the chain store"):
            path.mkdir(parents=True, exist_ok=True)
            database = plyvel.DB(str(path), create_if_missing=True, error_if_exists=True, bloom_filter_bits=BLOOM_BITS)
            batch = database.write_batch(sync=True)
            batch.put(META_SCHEMA, SCHEMA)
            batch.put(META_CHAIN, genesis.chain_id)
            batch.put(META_GENESIS, genesis.to_bytes())
            batch.put(META_TIP, _number(0))
            batch.put(BY_ID + genesis.chain_id, _number(0))
            _put_state(batch, dict(genesis_state(genesis).entries()), 0)
            before(Operation.CHAIN_CREATE)
            batch.write()
            after(Operation.CHAIN_CREATE)
        return cls(path, database, genesis)

    @classmethod
    def create_from_snapshot(
        cls, path: Path, genesis: Genesis, header: Header, commit: Commit, entries: Iterable[tuple[bytes, bytes]]
    ) -> Self:
        """Make the store of a chain that starts at a block of which only the state is known, and open it.

        Args:
            path: a folder that isn't there; until this returns, what is in it can't be opened.
            genesis: of the chain.
            header: of the block, verified.
            commit: that makes it final, verified.
            entries: the whole state after it, verified against the header's state root.

        Raises:
            StorageError: there is something at `path` already, or the disk is at fault.
        """
        assert (commit.height, commit.block_id) == (header.height, header.id), "the commit is for another block"
        if path.exists():
            raise StorageError(path, "there is something here already", "Move it aside")
        height = _number(header.height)
        with leveldb_errors(path, "creating the chain store from a snapshot"):
            path.mkdir(parents=True)
            database = plyvel.DB(str(path), create_if_missing=True, error_if_exists=True, bloom_filter_bits=BLOOM_BITS)
            try:
                for part in _parts(entries):
                    with database.write_batch() as batch:
                        _put_state(batch, part, header.height)
                batch = database.write_batch(sync=True)
                batch.put(META_SCHEMA, SCHEMA)
                batch.put(META_CHAIN, genesis.chain_id)
                batch.put(META_GENESIS, genesis.to_bytes())
                batch.put(HEADER + height, header.to_bytes())
                batch.put(COMMIT + height, commit.to_bytes())
                batch.put(BY_ID + genesis.chain_id, _number(0))
                batch.put(BY_ID + header.id, height)
                batch.put(META_BASE, height)
                batch.put(META_TIP, height)
                batch.write()
            except BaseException:
                database.close()
                raise
        return cls(path, database, genesis)

    @classmethod
    def open(cls, path: Path, *, is_state_checked: bool = True) -> Self:
        """Open a store and check it: schema, chain id, tip, and that the live state has the tip's root.

        LevelDB takes a log that was cut short for the end of an unfinished write, so a truncated store may open some
        blocks below where it was: a valid, older chain, which goes on by syncing.

        Args:
            path: the folder.
            is_state_checked: False only to repair a store whose state is broken, by `rewind`.

        Raises:
            MissingError: there is no store.
            InUseError: another process has it open.
            CorruptStore: it contradicts itself or its checksums.
            StorageError: the disk is at fault.
        """
        if not path.is_dir() or not any(path.iterdir()):
            raise MissingError(path, "there is no chain here", "Check the home, or create one with `bflnode init`")
        with leveldb_errors(path, "opening the chain store"):
            if not (path / "CURRENT").is_file():
                raise CorruptStore(path, "the file CURRENT is missing", START_OVER)
            database = plyvel.DB(str(path), create_if_missing=False, paranoid_checks=True, bloom_filter_bits=BLOOM_BITS)
        try:
            store = cls(path, database, _read_genesis(path, database))
            store._check_tip()
            if is_state_checked:
                store._check_state()
        except BaseException:
            database.close()
            raise
        return store

    def close(self) -> None:
        """Close the database; a second call does nothing."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def check(self) -> None:
        """Read everything once, checksums included: a node should know of damage before the chain goes on.

        LevelDB opens its files when it needs them, so a damaged old one stays unnoticed by `open`.

        Raises:
            CorruptStore: a checksum doesn't hold, a file is damaged, or the header, block or commit of a height is
                missing or beyond the tip.
        """
        lowest = max(1, self.base)
        due = {HEADER: lowest, BLOCK: self.base + 1, COMMIT: lowest}
        names = {HEADER: "header", BLOCK: "block", COMMIT: "commit"}
        with (
            leveldb_errors(self.path, "checking the chain store"),
            self._database.iterator(verify_checksums=True, include_value=False) as keys,
        ):
            for key in keys:
                table = key[:1]
                if table in due:
                    if key[1:] != _number(due[table]):
                        found = int.from_bytes(key[1:])
                        raise self._corrupt(f"{names[table]} {due[table]} should follow, but {found} does")
                    due[table] += 1
        for table, height in due.items():
            if height != self._tip.height + 1:
                raise self._corrupt(f"the {names[table]}s end at {height - 1}, the tip is {self._tip.height}")

    def append(self, block: Block, commit: Commit, changes: Changes) -> None:
        """Make a block the tip, durably on return: all of it or, after an error, nothing.

        Args:
            block: a valid successor of the tip.
            commit: the precommits of a quorum for it.
            changes: what the block changed in the state.

        Raises:
            StorageError: the disk is full or at fault. No further block is taken until the store is opened again,
                since LevelDB may have written a part of this one.
        """
        assert block.height == self._tip.height + 1, f"block {block.height} after the tip {self._tip.height}"
        assert block.header.parent == self._tip.block_id, f"block {block.height} has another parent than the tip"
        assert (commit.height, commit.block_id) == (block.height, block.id), "the commit is for another block"
        if self._has_failed:
            raise StorageError(self.path, "an earlier block could not be written", "Restart the node to go on")
        height = _number(block.height)
        batch = self._database.write_batch(sync=True)
        batch.put(HEADER + height, block.header.to_bytes())
        batch.put(BLOCK + height, block.encoded)
        batch.put(COMMIT + height, commit.to_bytes())
        batch.put(BY_ID + block.id, height)
        for index, transaction in enumerate(block.transactions):
            batch.put(BY_TRANSACTION + transaction.id, height + _number(index))
        _put_state(batch, changes, block.height)
        batch.put(META_TIP, height)
        try:
            with leveldb_errors(self.path, f"writing block {block.height}"), self._moving:
                before(Operation.CHAIN_BATCH)
                batch.write()
                after(Operation.CHAIN_BATCH)
                self._tip = _tip_of(block.header)
        except StorageError:
            self._has_failed = True
            raise

    def rewind(self, height: int, state: StateTree) -> None:
        """Take all blocks above a height off, durably on return: all of them or, after an error, none.

        For repair alone: what is final is final, and only a fault of this node's own is a reason to go back.

        Args:
            height: the new tip, at most the present one, and not below the base.
            state: the state after it, as executing the chain gives it; it replaces the stored one.

        Raises:
            StorageError: the disk is full or at fault.
        """
        assert self.base <= height <= self._tip.height, f"from {self._tip.height} to {height}"
        with leveldb_errors(self.path, f"going back to block {height}"), self._moving:
            batch = self._database.write_batch(sync=True)
            with self._database.iterator() as records:
                for key, value in records:
                    if key[:1] == STATE or _height_of(key, value) > height:
                        batch.delete(key)
            for key, value in state.entries():
                batch.put(STATE + key, value)
            batch.put(META_TIP, _number(height))
            batch.write()
            self._tip = self._read_tip()

    def tip(self) -> Tip:
        """The last block."""
        return self._tip

    def header(self, height: int) -> Header:
        """The header at a height from 1 on, or from the base on.

        Raises:
            MissingError: the chain isn't that long, or starts later.
            CorruptStore: what is stored can't be read.
        """
        return self._record(HEADER, height, Header, MAX_BLOCK_BYTES)

    def block(self, height: int) -> Block:
        """The block at a height from 1 on, or above the base.

        Raises:
            MissingError: the chain isn't that long, or starts later.
            CorruptStore: what is stored can't be read.
        """
        return self._record(BLOCK, height, Block, MAX_BLOCK_BYTES)

    def block_by_id(self, block_id: BlockId) -> Block | None:
        """The block with an id, or None: unknown, or the genesis."""
        found = self._get(BY_ID + block_id)
        height = 0 if found is None else int.from_bytes(found)
        return self.block(height) if self.base < height <= self._tip.height else None

    def commit(self, height: int) -> Commit:
        """The commit for the block at a height; for height 0 the empty one that block 1 carries.

        Raises:
            MissingError: the chain isn't that long, or starts later.
            CorruptStore: what is stored can't be read.
        """
        if height == 0:
            return genesis_commit(self.genesis.chain_id)
        return self._record(COMMIT, height, Commit, MAX_COMMIT_BYTES)

    def transaction(self, transaction_id: TransactionId) -> StoredTransaction | None:
        """A transaction and where it is, or None for one that is in no block.

        Another thread may be writing a block: until it is the tip, what is in it is in no block.
        """
        place = self._get(BY_TRANSACTION + transaction_id)
        if place is None:
            return None
        height, index = int.from_bytes(place[:8]), int.from_bytes(place[8:])
        if height > self._tip.height:
            return None
        transactions = self.block(height).transactions
        if index >= len(transactions) or transactions[index].id != transaction_id:
            raise self._corrupt(f"the index has transaction {transaction_id.hex()} at {height}/{index}, where it isn't")
        return StoredTransaction(transactions[index], height, index)

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """The blocks from `start` up to but without `stop`, as far as they are here."""
        for height in range(max(self.base + 1, start), min(stop, self._tip.height + 1)):
            yield self.block(height)

    def load_state(self) -> StateTree:
        """The state after the tip, read into memory: a tree of the caller's own.

        Raises:
            CorruptStore: the database's checksums don't hold.
        """
        with leveldb_errors(self.path, "reading the state"), self._moving:
            snapshot = self._database.snapshot()
        with (
            leveldb_errors(self.path, "reading the state"),
            snapshot,
            snapshot.iterator(prefix=STATE, verify_checksums=True) as entries,
        ):
            return StateTree((key[len(STATE) :], value) for key, value in entries)

    def freeze(self) -> FrozenState:
        """The state after the tip, to be read later and slowly; costs nothing now.

        Raises:
            MissingError: there is no block yet.
            StorageError: the disk is at fault.
        """
        with leveldb_errors(self.path, "reading the state"), self._moving:
            height = self._tip.height
            header, commit = self.header(height), self.commit(height)
            return FrozenState(self.path, self._database.snapshot(), header, commit)

    def validator_set(self, set_hash: Hash) -> ValidatorSet | None:
        """The validators that a header names by this hash, or None if no block from the base on has them.

        Raises:
            CorruptStore: what is stored can't be read.
        """
        from_genesis = ValidatorSet(self.genesis.validators)
        if from_genesis.hash == set_hash:
            return from_genesis
        value = self._get(VALIDATOR_SET + set_hash)
        if value is None:
            return None
        try:
            found = _validator_set(value)
        except Rejection as rejection:
            raise self._corrupt(f"the validators {set_hash.hex()[:16]} can't be read: {rejection}") from rejection
        if found.hash != set_hash:
            raise self._corrupt(f"what is stored as the validators {set_hash.hex()[:16]} has another hash")
        return found

    def account_history(self, account: AccountId, *, limit: int = HISTORY_LIMIT) -> tuple[BalanceChange, ...]:
        """The last changes of an account's free balance, oldest first, at most one a block; none if unknown."""
        return tuple(self._changes_down_from(account, self._tip.height, limit))[::-1]

    def balance_at(self, account: AccountId, height: int) -> Amount:
        """An account's free balance after a height, or after the tip where that is lower; 0 if it didn't exist then.

        Raises:
            MissingError: the chain starts later.
        """
        if height < 0:
            return 0
        if height < self.base:
            raise self._before_base(f"the balance after block {height}")
        height = min(height, self._tip.height)
        return next((change.balance for change in self._changes_down_from(account, height, 1)), 0)

    def _changes_down_from(self, account: AccountId, height: int, limit: int) -> Iterator[BalanceChange]:
        prefix = BALANCE + account
        with (
            leveldb_errors(self.path, "reading an account's history"),
            self._database.iterator(
                start=prefix, stop=prefix + _number(height), include_stop=True, reverse=True, verify_checksums=True
            ) as entries,
        ):
            for _, (key, value) in zip(range(limit), entries, strict=False):
                yield BalanceChange(int.from_bytes(key[len(prefix) :]), int.from_bytes(value))

    def _get(self, key: bytes) -> bytes | None:
        with leveldb_errors(self.path, "reading the chain store"):
            value: bytes | None = self._database.get(key, verify_checksums=True)
        return value

    def _record(self, table: bytes, height: int, kind: type[RecordType], max_bytes: int) -> RecordType:
        lowest = self.base + (table == BLOCK)
        if 1 <= height < lowest:
            raise self._before_base(f"block {height}")
        if not 1 <= height <= self._tip.height:
            remedy = "Ask for a height from 1 up to the tip, or wait until the node has synced"
            raise MissingError(self.path, f"there is no block {height}, the tip is {self._tip.height}", remedy)
        data = self._get(table + _number(height))
        name = kind.__name__.lower()
        if data is None:
            raise self._corrupt(f"the {name} of height {height} is missing below the tip {self._tip.height}")
        try:
            return kind.from_bytes(data, max_bytes=max_bytes)
        except Rejection as rejection:
            raise self._corrupt(f"the {name} of height {height} can't be read: {rejection}") from rejection

    def _read_tip(self) -> Tip:
        height = self._get(META_TIP)
        if height is None:
            raise self._corrupt("the tip is missing")
        if height == _number(0):
            genesis = self.genesis
            return Tip(0, BlockId(genesis.chain_id), genesis.time_ms, genesis_state(genesis).root)
        data = self._get(HEADER + height)
        if data is None:
            raise self._corrupt(f"the header of the tip {int.from_bytes(height)} is missing")
        try:
            return _tip_of(Header.from_bytes(data, max_bytes=MAX_BLOCK_BYTES))
        except Rejection as rejection:
            raise self._corrupt(f"the header of the tip {int.from_bytes(height)} can't be read") from rejection

    def _check_tip(self) -> None:
        tip = self._tip
        if tip.height > 0:
            header = self.header(tip.height)
            block_id = tip.block_id if tip.height == self.base else self.block(tip.height).id
            stored = (header.chain_id, self._get(META_TIP), self._get(BY_ID + tip.block_id), block_id)
            if stored != (self.genesis.chain_id, _number(tip.height), _number(tip.height), tip.block_id):
                raise self._corrupt(f"header, block and index of the tip {tip.height} don't belong together")
            commit = self.commit(tip.height)
            if (commit.height, commit.block_id) != (tip.height, tip.block_id):
                raise self._corrupt(f"the commit of the tip {tip.height} is for another block")

    def _check_state(self) -> None:
        root, tip = self.load_state().root, self._tip
        if root != tip.state_root:
            fault = (
                f"the stored state has the root {root.hex()[:16]}, block {tip.height} says {tip.state_root.hex()[:16]}"
            )
            raise self._corrupt(fault)

    def _before_base(self, what: str) -> MissingError:
        cause = f"{what} is not here: this node's chain starts from a snapshot at height {self.base}"
        return MissingError(self.path, cause, "Ask a node that keeps the whole chain")

    def _corrupt(self, cause: str) -> CorruptStore:
        return CorruptStore(self.path, cause, START_OVER)


def _read_genesis(path: Path, database: "plyvel.DB") -> Genesis:
    """Check that this is a chain store of our schema, and read its genesis."""
    with leveldb_errors(path, "opening the chain store"):
        schema, chain_id, data = (
            database.get(key, verify_checksums=True) for key in (META_SCHEMA, META_CHAIN, META_GENESIS)
        )
    if schema is None or chain_id is None or data is None:
        raise CorruptStore(path, "its creation was never finished", START_OVER)
    if schema != SCHEMA:
        cause = f"it has schema {schema.decode(errors='replace')}, this version reads {SCHEMA.decode()}"
        raise StorageError(path, cause, "Run the version of bflnode that made it, or move it aside and sync again")
    try:
        genesis = Genesis.from_bytes(data, max_bytes=MAX_GENESIS_BYTES)
    except Rejection as rejection:
        raise CorruptStore(path, f"its genesis can't be read: {rejection}", START_OVER) from rejection
    if genesis.chain_id != chain_id:
        cause = f"it says chain {chain_id.hex()[:16]}, its genesis is of chain {genesis.chain_id.hex()[:16]}"
        raise CorruptStore(path, cause, START_OVER)
    return genesis


def _put_state(batch: "plyvel.WriteBatch", changes: Changes, height: int) -> None:
    """Add changes of the state to a batch, and with them the balances and the validators that changed."""
    for key, value in changes.items():
        if value is None:
            batch.delete(STATE + key)
        else:
            batch.put(STATE + key, value)
        if key.startswith(ACCOUNTS.prefix):
            account = key[len(ACCOUNTS.prefix) :]
            balance = 0 if value is None else Account.from_bytes(value, max_bytes=len(value)).balance
            batch.put(BALANCE + account + _number(height), _number(balance))
        if value is not None and key in (VALIDATORS.key, PREVIOUS_VALIDATORS.key):
            batch.put(VALIDATOR_SET + _validator_set(value).hash, value)


def _parts(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[Changes]:
    """Entries in groups that fit into a batch."""
    part: dict[bytes, bytes | None] = {}
    size_bytes = 0
    for key, value in entries:
        part[key] = value
        size_bytes += len(key) + len(value)
        if size_bytes >= STATE_BATCH_BYTES:
            yield part
            part, size_bytes = {}, 0
    yield part


def _validator_set(value: bytes) -> ValidatorSet:
    """The validators in a value of the state, which the ledger wrote."""
    return ValidatorSet(Validators.from_bytes(value, max_bytes=len(value)).validators)


def _height_of(key: bytes, value: bytes) -> int:
    """The height of the block that a record came with; 0 for what belongs to no block."""
    table = key[:1]
    if table in (HEADER, BLOCK, COMMIT):
        return int.from_bytes(key[1:])
    if table in (BY_ID, BY_TRANSACTION):
        return int.from_bytes(value[:8])
    return int.from_bytes(key[-8:]) if table == BALANCE else 0


def _tip_of(header: Header) -> Tip:
    return Tip(header.height, header.id, header.time_ms, header.state_root)


def _number(value: int) -> bytes:
    return value.to_bytes(8)
