"""A simulated disk, in memory: what a signer's log writes, and what a crash or a power failure leaves of it.

`bflnode.storage.signer_wal` runs unchanged on it: `simulated_system` puts a `System` in the place of its `os` and
`fcntl`. Every call of the system is a place where a process may die, before it, in the middle of a write and after it.

What a power failure leaves: everything synced; of later appends any beginning, or zeros in their place; of later
changes to the folder the first ones.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from unittest.mock import patch

from bflnode.consensus import keys
from bflnode.storage import durable, signer_wal


class CrashError(Exception):
    """The process dies here."""


@dataclass
class _File:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    lock: int | None = None


@dataclass
class _Open:
    disk: "SimulatedDisk"
    file: _File | None
    """None for the folder."""
    position: int = 0


class SimulatedDisk:
    """The folder of one node's log.

    Attributes:
        failpoint: called at every place where the process may die, or the disk fail, with its name.
    """

    def __init__(self, system: "System", random: Random) -> None:
        self.system = system
        self.failpoint: Callable[[str], None] = lambda name: None
        self._random = random
        self._files: dict[str, _File] = {}
        self._synced_files: dict[str, _File] = {}
        self._changes: list[dict[str, _File | None]] = []

    def path(self, name: str) -> "SimulatedPath":
        return SimulatedPath(self, name)

    # What a process sees

    def find(self, name: str) -> _File | None:
        return self._files.get(name)

    def link(self, changes: dict[str, _File | None]) -> None:
        """Change entries of the folder, all at once."""
        self._changes.append(changes)
        _update(self._files, changes)

    def sync_folder(self) -> None:
        for changes in self._changes:
            _update(self._synced_files, changes)
        self._changes.clear()

    # What happens to it

    def kill(self) -> None:
        """The process dies; the operating system lives on, and so does what was written."""
        self.system.close_all(self)

    def cut_power(self) -> None:
        """The machine loses its memory."""
        self.system.close_all(self)
        kept = self._random.randint(0, len(self._changes))
        for changes in self._changes[:kept]:
            _update(self._synced_files, changes)
        self._changes.clear()
        self._files = dict(self._synced_files)
        for file in self._files.values():
            file.data = bytearray(self._survivor(file))
            file.synced = bytes(file.data)

    def _survivor(self, file: _File) -> bytes:
        data, synced = bytes(file.data), file.synced
        if not data.startswith(synced):
            return self._random.choice((data, synced))
        added = data[len(synced) :]
        return synced + self._random.choice((added[: self._random.randint(0, len(added))], bytes(len(added))))

    def rot(self, name: str, position: int) -> None:
        """A bit of a file is another one from now on."""
        file = self._files[name]
        file.data[position] ^= 1 << self._random.randrange(8)
        file.synced = bytes(file.data)

    def erase(self, name: str) -> None:
        """A file is gone for good."""
        self.link({name: None})
        self.sync_folder()


def _update(files: dict[str, _File], changes: dict[str, _File | None]) -> None:
    for name, file in changes.items():
        if file is None:
            files.pop(name, None)
        else:
            files[name] = file


@dataclass(frozen=True)
class SimulatedPath:
    """What the log uses of a `pathlib.Path`."""

    disk: SimulatedDisk
    name: str

    @property
    def parent(self) -> "SimulatedPath":
        return SimulatedPath(self.disk, "")

    def with_name(self, name: str) -> "SimulatedPath":
        return SimulatedPath(self.disk, name)

    def exists(self) -> bool:
        return self.disk.find(self.name) is not None

    def read_bytes(self) -> bytes:
        file = self.disk.find(self.name)
        if file is None:
            raise FileNotFoundError(self.name)
        return bytes(file.data)

    def replace(self, target: "SimulatedPath") -> None:
        self.disk.failpoint("rename")
        self.disk.link({self.name: None, target.name: self.disk.find(self.name)})
        self.disk.failpoint("renamed")

    def __str__(self) -> str:
        return self.name


class System:
    """What the log uses of `os` and `fcntl`; any other name of theirs but a constant is refused."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self._opened = 1000

    def __getattr__(self, name: str) -> int:
        for module in (os, fcntl):
            if name.isupper() and hasattr(module, name):
                return int(getattr(module, name))
        raise AttributeError(f"the simulated system has no {name}")

    def open(self, path: SimulatedPath, flags: int, mode: int = 0o777) -> int:
        disk, file = path.disk, None
        if path.name:
            disk.failpoint("open")
            file = disk.find(path.name)
            if file is None:
                assert flags & os.O_CREAT, path.name
                file = _File()
                disk.link({path.name: file})
                disk.failpoint("created")
            elif flags & os.O_TRUNC:
                file.data.clear()
        self._opened += 1
        self._open[self._opened] = _Open(disk, file)
        return self._opened

    def write(self, descriptor: int, view: memoryview) -> int:
        entry = self._open[descriptor]
        data, half = bytes(view), len(view) // 2
        for name, part in (("write", data[:half]), ("half written", data[half:])):
            entry.disk.failpoint(name)
            self._put(entry, part)
        entry.disk.failpoint("written")
        return len(data)

    def _put(self, entry: _Open, data: bytes) -> None:
        assert entry.file is not None
        entry.file.data[entry.position : entry.position + len(data)] = data
        entry.position += len(data)

    def fsync(self, descriptor: int) -> None:
        entry = self._open[descriptor]
        entry.disk.failpoint("fsync")
        if entry.file is None:
            entry.disk.sync_folder()
        else:
            entry.file.synced = bytes(entry.file.data)
        entry.disk.failpoint("synced")

    def ftruncate(self, descriptor: int, size: int) -> None:
        entry = self._open[descriptor]
        assert entry.file is not None
        entry.disk.failpoint("truncate")
        del entry.file.data[size:]
        entry.disk.failpoint("truncated")

    def lseek(self, descriptor: int, position: int, whence: int) -> int:
        assert whence == os.SEEK_SET
        self._open[descriptor].position = position
        return position

    def close(self, descriptor: int) -> None:
        entry = self._open.pop(descriptor)
        if entry.file is not None and entry.file.lock == descriptor:
            entry.file.lock = None

    def close_all(self, disk: SimulatedDisk) -> None:
        """What the operating system does when a process ends."""
        for descriptor in [number for number, entry in self._open.items() if entry.disk is disk]:
            self.close(descriptor)

    def flock(self, descriptor: int, operation: int) -> None:
        file = self._open[descriptor].file
        assert file is not None
        if file.lock is not None:
            raise BlockingIOError
        file.lock = descriptor


class RememberedKeys:
    """Real signatures, each verified at most once; one that was made in this process is not verified at all."""

    def __init__(self) -> None:
        self._made: set[tuple[bytes, bytes, bytes]] = set()
        self._judge = lru_cache(maxsize=65_536)(keys._judge)
        self.signing_key = lru_cache(maxsize=1024)(self._load)

    def _load(self, seed: bytes) -> "_RememberedKey":
        return _RememberedKey(seed, self._made)

    def judge(self, account: bytes, message: bytes, signature: bytes) -> bool:
        return (account, message, signature) in self._made or self._judge(account, message, signature)


class _RememberedKey:
    def __init__(self, seed: bytes, made: set[tuple[bytes, bytes, bytes]]) -> None:
        self._key = _RealSigningKey(seed)
        self._account = bytes(self._key.verify_key)
        self._made = made
        self.verify_key = self._key.verify_key

    def sign(self, message: bytes) -> object:
        signed = self._key.sign(message)
        self._made.add((self._account, message, signed.signature))
        return signed


_RealSigningKey = keys.SigningKey


@contextmanager
def simulated_system() -> Iterator[System]:
    """Signer's logs lie on simulated disks, and signatures are remembered, while this lasts."""
    system, remembered = System(), RememberedKeys()
    with (
        patch.object(signer_wal, "os", system),
        patch.object(signer_wal, "fcntl", system),
        patch.object(durable, "os", system),
        patch.object(keys, "SigningKey", remembered.signing_key),
        patch.object(keys, "_judge_and_remember", remembered.judge),
    ):
        yield system
