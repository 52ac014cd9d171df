"""Addresses at which peers were met, kept in a file: a node that restarts finds its network without being told again.

Two kinds: proven addresses, at which a peer of this chain answered when this node dialled, and hearsay, which peers
named. Hearsay never pushes out what is proven, and is bounded for each host and each peer that told it: a liar fills
its own share.
"""

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .addresses import host_and_port, parse_address
from .bans import read_json, set_aside, write_json
from .streams import PeerId, TransportError

_log = logging.getLogger(__name__)

MAX_PROVEN = 256
"""Peers whose proven address is kept, least recently met dropped first: more than a node is ever connected to."""

MAX_HEARSAY = 256
"""Peers known by hearsay, oldest dropped first."""

MAX_PER_HOST = 64
"""Of one host: a machine may run a whole testnet, and a liar may name one victim's host under many peer ids."""

MAX_PER_SOURCE = 64
"""Hearsay of one peer: two full messages."""

MAX_ADDRESS_LENGTH = 256

PROVEN_FAILURES = 100
HEARSAY_FAILURES = 2
"""Failed dials in a row after which an address is dropped: a proven one may be of a machine that is off for days."""

MAX_FILE_BYTES = 512 * 1024
"""Twice 256 addresses of 256 bytes with what is known of each."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A peer's address.

    Attributes:
        address: full multiaddr.
        met_ms: when the peer last answered there; 0 for hearsay.
        failures: failed dials in a row.
        source: the peer that named it; empty for a proven one.
    """

    address: str
    met_ms: int = 0
    failures: int = 0
    source: str = ""


class AddressBook:
    """The addresses of one node.

    Args:
        now_ms: the wall clock.
        path: where they are kept; None keeps them in memory only.
    """

    def __init__(self, now_ms: Callable[[], int], path: Path | None = None) -> None:
        self._now_ms = now_ms
        self._path = path
        self._entries: dict[PeerId, Entry] = {}
        self._hosts: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        for peer, entry in _read(path) if path is not None else ():
            self._put(peer, entry)
        self._is_saved = True

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._entries

    @property
    def proven(self) -> int:
        """How many proven addresses there are."""
        return sum(entry.met_ms > 0 for entry in self._entries.values())

    def met(self, peer: PeerId, address: str) -> None:
        """A peer of this chain answered at an address that this node dialled."""
        if peer in self._entries:
            self._drop(peer)
        proven = [known for known, entry in self._entries.items() if entry.met_ms]
        if len(proven) >= MAX_PROVEN:
            self._drop(min(proven, key=lambda known: self._entries[known].met_ms))
        self._put(peer, Entry(address, max(1, self._now_ms())))

    def heard(self, address: str, source: PeerId) -> bool:
        """A peer named the address of another; whether it is taken."""
        try:
            peer = parse_address(address)[1]
            host = host_and_port(address)[0]
        except TransportError:
            return False
        if peer in self._entries or len(address) > MAX_ADDRESS_LENGTH:
            return False
        if self._hosts[host] >= MAX_PER_HOST or self._sources[source] >= MAX_PER_SOURCE:
            return False
        hearsay = [known for known, entry in self._entries.items() if not entry.met_ms]
        if len(hearsay) >= MAX_HEARSAY:
            self._drop(hearsay[0])
        self._put(peer, Entry(address, source=source))
        return True

    def failed(self, peer: PeerId, address: str) -> None:
        """A dial of an address failed."""
        entry = self._entries.get(peer)
        if entry is None or entry.address != address:
            return
        if entry.failures + 1 >= (PROVEN_FAILURES if entry.met_ms else HEARSAY_FAILURES):
            self._drop(peer)
        else:
            self._put(peer, replace(entry, failures=entry.failures + 1))

    def sample(self, count: int) -> tuple[str, ...]:
        """Addresses to dial: those that failed least and were met last come first, drawn among equals."""
        entries = random.sample(list(self._entries.values()), len(self._entries))
        entries.sort(key=lambda entry: (entry.failures, -entry.met_ms))
        return tuple(entry.address for entry in entries[:count])

    def proven_addresses(self, count: int) -> tuple[str, ...]:
        """Proven addresses drawn at random, to tell others."""
        proven = [entry.address for entry in self._entries.values() if entry.met_ms and not entry.failures]
        return tuple(random.sample(proven, min(count, len(proven))))

    def save(self) -> None:
        """Write the file if something changed; blocking. A full disk costs the memory of addresses, not the node."""
        if self._is_saved or self._path is None:
            return
        content = {"peers": [asdict(entry) for entry in tuple(self._entries.values())]}
        self._is_saved = True  # before writing: what is added meanwhile is written the next time
        try:
            write_json(self._path, content)
        except OSError as error:
            self._is_saved = False
            _log.warning("the addresses of peers can't be written to %s: %s", self._path, error)

    def _put(self, peer: PeerId, entry: Entry) -> None:
        if peer in self._entries:
            self._drop(peer)
        self._entries[peer] = entry
        self._hosts[host_and_port(entry.address)[0]] += 1
        self._sources[entry.source] += 1
        self._is_saved = False

    def _drop(self, peer: PeerId) -> None:
        entry = self._entries.pop(peer)
        for counter, key in ((self._hosts, host_and_port(entry.address)[0]), (self._sources, entry.source)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]
        self._is_saved = False


def _read(path: Path) -> Iterator[tuple[PeerId, Entry]]:
    try:
        content = read_json(path, MAX_FILE_BYTES)
        if content is None:
            return
        entries = [Entry(**entry) for entry in content["peers"][: MAX_PROVEN + MAX_HEARSAY]]
        for entry in entries:
            if [type(value) for value in asdict(entry).values()] != [str, int, int, str]:
                raise ValueError(f"{entry} is no address of a peer")
        for entry in entries:
            host_and_port(entry.address)
        yield from [(parse_address(entry.address)[1], entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, TransportError) as error:
        set_aside(path, error)
