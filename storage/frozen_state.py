"""The state after one block, frozen: read slowly, by any thread, while the chain goes on.

Made by `chain_store`, which also says what lies where; here it is only read.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bflnode.consensus.block import Commit, Header

from .leveldb import leveldb_errors

STATE = b"s"
"""Prefix of the state's keys in the database."""


class FrozenState:
    """The state after one block as it was when it was frozen, whatever is appended since. Any thread may read it.

    Attributes:
        header: of that block.
        commit: that makes it final.
    """

    def __init__(self, path: Path, snapshot: Any, header: Header, commit: Commit) -> None:
        """Take over a LevelDB snapshot; callers use `ChainStore.freeze`."""
        self.header = header
        self.commit = commit
        self._path = path
        self._snapshot = snapshot

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries in key order, checksums included.

        Raises:
            CorruptStore: the database's checksums don't hold.
        """
        return self.scan(b"")

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        with leveldb_errors(self._path, "reading the state"):
            value: bytes | None = self._snapshot.get(STATE + key, verify_checksums=True)
        return value

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All entries whose key starts with the prefix, in key order."""
        with (
            leveldb_errors(self._path, "reading the state"),
            self._snapshot.iterator(prefix=STATE + prefix, verify_checksums=True) as entries,
        ):
            for key, value in entries:
                yield key[len(STATE) :], value

    def close(self) -> None:
        """Let the database forget what was frozen; before the store is closed."""
        self._snapshot.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
