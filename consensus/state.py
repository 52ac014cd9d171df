"""State: a flat, ordered map from keys to canonical values, with a Merkle root.

    bucket(key) = first byte of SHA-256(key)                      256 buckets
    bucket root = RFC 6962 root over canonical [key, value], entries in key order
    state root  = RFC 6962 root over the 256 bucket roots

`StateTree` is the state after a block; `StateView` collects changes on top of it; `Table` and `Cell` give both types.
Which keys there are, and what they mean, is said where their tables are declared.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any, Generic, Protocol, TypeVar

from .encoding import encode
from .merkle import leaf_hash, merkle_root, root_of_hashes
from .records import Record
from .rejection import Rejection
from .types import Hash

BUCKETS = 256
"""Buckets of the tree: few enough to rehash the top for every block, enough to make a dirty one small."""

SMALL_RECORD_BYTES = 4096
"""Accounts and the like are below this; only learning rounds are larger."""

SMALL_RECORDS_KEPT = 4096
"""Decoded small records that are remembered: the accounts that one block touches, some megabytes."""

LARGE_RECORDS_KEPT = 8
"""Decoded large records that are remembered: the current learning round, at most about a megabyte each."""

Changes = Mapping[bytes, bytes | None]
"""New values by key; None deletes."""

Found = bytes | Record
"""A value: canonical bytes, or the record that they encode."""

RecordType = TypeVar("RecordType", bound=Record)


class StateReader(Protocol):
    """Anything that holds a state: a tree, a view on top of one, a snapshot in a database."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        ...

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All entries whose key starts with the prefix, in key order, as they were when the scan began."""
        ...


@dataclass(slots=True)
class _Bucket:
    """The entries of one bucket: keys in order, and the hash of each entry's leaf."""

    keys: list[bytes] = field(default_factory=list)
    hashes: list[Hash] = field(default_factory=list)

    def __copy__(self) -> "_Bucket":
        return _Bucket(self.keys.copy(), self.hashes.copy())

    def change(self, key: bytes, value: bytes | None) -> None:
        index = bisect_left(self.keys, key)
        is_present = index < len(self.keys) and self.keys[index] == key
        if value is None:
            if is_present:
                del self.keys[index], self.hashes[index]
        elif is_present:
            self.hashes[index] = entry_hash(key, value)
        else:
            self.keys.insert(index, key)
            self.hashes.insert(index, entry_hash(key, value))


class StateTree:
    """A whole state in memory with its root, kept up to date by hashing only what changes."""

    def __init__(self, entries: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._values = dict(entries)
        self._keys = sorted(self._values)
        self._buckets = [_Bucket() for _ in range(BUCKETS)]
        for key in self._keys:
            bucket = self._buckets[bucket_of(key)]
            bucket.keys.append(key)
            bucket.hashes.append(entry_hash(key, self._values[key]))
        self._bucket_roots = [root_of_hashes(bucket.hashes) for bucket in self._buckets]
        self._root = merkle_root(self._bucket_roots)

    @property
    def root(self) -> Hash:
        """The state root."""
        return self._root

    @property
    def bucket_roots(self) -> tuple[Hash, ...]:
        """The roots of the 256 buckets."""
        return tuple(self._bucket_roots)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        return self._values.get(key)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All entries whose key starts with the prefix, in key order."""
        for key in _with_prefix(self._keys, prefix):
            yield key, self._values[key]

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries in key order."""
        return self.scan(b"")

    def __len__(self) -> int:
        return len(self._keys)

    def root_after(self, changes: Changes) -> Hash:
        """The root that `apply` would give, without changing anything."""
        roots = self._bucket_roots.copy()
        for number, bucket in self._changed_buckets(changes).items():
            roots[number] = root_of_hashes(bucket.hashes)
        return merkle_root(roots)

    def apply(self, changes: Changes) -> None:
        """Make the changes; deleting a key that isn't there is none."""
        for number, bucket in self._changed_buckets(changes).items():
            self._buckets[number] = bucket
            self._bucket_roots[number] = root_of_hashes(bucket.hashes)
        self._root = merkle_root(self._bucket_roots)
        for key, value in changes.items():
            if value is None:
                if self._values.pop(key, None) is not None:
                    del self._keys[bisect_left(self._keys, key)]
            else:
                if key not in self._values:
                    insort(self._keys, key)
                self._values[key] = value

    def bucket_entries(self, number: int) -> tuple[tuple[bytes, bytes], ...]:
        """The entries of one bucket in key order."""
        return tuple((key, self._values[key]) for key in self._buckets[number].keys)

    def _changed_buckets(self, changes: Changes) -> dict[int, _Bucket]:
        """Changed copies of the buckets that the changes touch."""
        buckets: dict[int, _Bucket] = {}
        for key, value in changes.items():
            number = bucket_of(key)
            if number not in buckets:
                buckets[number] = copy(self._buckets[number])
            buckets[number].change(key, value)
        return buckets


class StateView:
    """Changes on top of a state that stays as it is.

    A transaction is tried in a `nested` view, which is committed if the transaction is valid and dropped otherwise.
    """

    def __init__(self, base: StateReader) -> None:
        self._base = base
        self._changes: dict[bytes, Found | None] = {}
        self._keys: list[bytes] = []

    @property
    def changes(self) -> Changes:
        """Everything that was put (its value) or deleted (None) in this view."""
        return {key: None if found is None else _encoded(found) for key, found in self._changes.items()}

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        found = self.find(key)
        return None if found is None else _encoded(found)

    def find(self, key: bytes) -> Found | None:
        """Like `get`, but a record that was put as a record stays one."""
        if key in self._changes:
            return self._changes[key]
        return _find(self._base, key)

    def put(self, key: bytes, value: Found) -> None:
        """Set the value of a key; a record is encoded only when its bytes are asked for.

        A learning round is put once for each of its transactions in a block, and need be encoded once in all.
        """
        self._change(key, value)

    def delete(self, key: bytes) -> None:
        """Remove a key; no matter whether it is there."""
        self._change(key, None)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All entries whose key starts with the prefix, in key order, as they were when the scan began.

        The loop over a scan may change this view.
        """
        for key, found in self.find_all(prefix):
            yield key, _encoded(found)

    def find_all(self, prefix: bytes) -> Iterator[tuple[bytes, Found]]:
        """Like `scan`, but records that were put as records stay such."""
        own = [(key, self._changes[key]) for key in _with_prefix(self._keys, prefix)]
        position = 0
        for key, found in _find_all(self._base, prefix):
            while position < len(own) and own[position][0] < key:
                yield from _present(own[position])
                position += 1
            if position < len(own) and own[position][0] == key:
                yield from _present(own[position])
                position += 1
            else:
                yield key, found
        for entry in own[position:]:
            yield from _present(entry)

    def nested(self) -> "StateView":
        """A view on top of this one."""
        return StateView(self)

    def commit(self) -> None:
        """Move this nested view's changes into the view below it."""
        assert isinstance(self._base, StateView), "only a nested view has a view to commit into"
        for key, found in self._changes.items():
            self._base._change(key, found)
        self._changes = {}
        self._keys = []

    def _change(self, key: bytes, found: Found | None) -> None:
        if key not in self._changes:
            insort(self._keys, key)
        self._changes[key] = found


@dataclass(frozen=True, slots=True)
class Table(Generic[RecordType]):
    """Records of one type under one prefix; no table's prefix may be the start of another's.

    Attributes:
        prefix: start of all keys, ending in a separator.
        record_type: class of the records.
    """

    prefix: bytes
    record_type: type[RecordType]

    def get(self, reader: StateReader, key: bytes) -> RecordType | None:
        """The record of a key, or None."""
        found = _find(reader, self.prefix + key)
        return None if found is None else _decoded(self.record_type, found)

    def put(self, view: StateView, key: bytes, record: RecordType) -> None:
        """Set the record of a key."""
        view.put(self.prefix + key, record)

    def delete(self, view: StateView, key: bytes) -> None:
        """Remove a key; no matter whether it is there."""
        view.delete(self.prefix + key)

    def scan(self, reader: StateReader, start: bytes = b"") -> Iterator[tuple[bytes, RecordType]]:
        """All keys that begin with `start`, without the table's prefix, and their records, in key order."""
        for key, found in _find_all(reader, self.prefix + start):
            yield key[len(self.prefix) :], _decoded(self.record_type, found)


@dataclass(frozen=True, slots=True)
class Cell(Generic[RecordType]):
    """One record under one key.

    Attributes:
        key: the whole key.
        record_type: class of the record.
    """

    key: bytes
    record_type: type[RecordType]

    def get(self, reader: StateReader) -> RecordType | None:
        """The record, or None."""
        found = _find(reader, self.key)
        return None if found is None else _decoded(self.record_type, found)

    def put(self, view: StateView, record: RecordType) -> None:
        """Set the record."""
        view.put(self.key, record)

    def delete(self, view: StateView) -> None:
        """Remove the record; no matter whether it is there."""
        view.delete(self.key)


def bucket_of(key: bytes) -> int:
    """The bucket that a key belongs to."""
    return sha256(key).digest()[0]


def entry_hash(key: bytes, value: bytes) -> Hash:
    """The leaf hash of one entry."""
    return leaf_hash(encode((key, value)))


def _with_prefix(keys: list[bytes], prefix: bytes) -> list[bytes]:
    """The part of sorted keys that starts with the prefix."""
    first = bisect_left(keys, prefix)
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return [key for key in keys[first:] if key.startswith(prefix)]
    following = stem[:-1] + bytes([stem[-1] + 1])
    return keys[first : bisect_left(keys, following)]


def _present(entry: tuple[bytes, Found | None]) -> Iterator[tuple[bytes, Found]]:
    key, found = entry
    if found is not None:
        yield key, found


def _find(reader: StateReader, key: bytes) -> Found | None:
    return reader.find(key) if isinstance(reader, StateView) else reader.get(key)


def _find_all(reader: StateReader, prefix: bytes) -> Iterator[tuple[bytes, Found]]:
    return reader.find_all(prefix) if isinstance(reader, StateView) else reader.scan(prefix)


def _encoded(found: Found) -> bytes:
    return found.to_bytes() if isinstance(found, Record) else found


def _decoded(record_type: type[RecordType], found: Found) -> RecordType:
    """Decode our own state. Records are immutable, so the same bytes may share one."""
    if isinstance(found, Record):
        assert isinstance(found, record_type), f"{type(found).__name__} where {record_type.__name__} belongs"
        return found
    key: Any = record_type
    record: RecordType = (_decode_small if len(found) <= SMALL_RECORD_BYTES else _decode_large)(key, found)
    return record


def _decode(record_type: Any, data: bytes) -> Any:
    try:
        return record_type.from_bytes(data, max_bytes=len(data))
    except Rejection as rejection:
        raise AssertionError(f"the state holds a broken {record_type.__name__}: {rejection}") from rejection


_decode_small = lru_cache(maxsize=SMALL_RECORDS_KEPT)(_decode)
_decode_large = lru_cache(maxsize=LARGE_RECORDS_KEPT)(_decode)
