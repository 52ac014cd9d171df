"""Watches nodes from outside, by what they leave on disk: when each had which block, and everything they ever signed.

A signature is in its signer's log before anybody can have received it, and stays there for sixteen heights: reading
each log several times a second misses none. So two contradicting signatures are found even if no peer noticed.
"""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from bflnode.consensus.agreement import ValidValue
from bflnode.consensus.block import ProposalMessage, Vote
from bflnode.consensus.types import AccountId
from bflnode.node.home import Home
from bflnode.storage.signer_wal import Mark, read_log

INTERVAL_S = 0.02
"""Between looks at the nodes' logs: the resolution of every time that is measured."""

SIGNER_INTERVAL_S = 0.25

BLOCK_LINE = re.compile(rb"\bblock (\d+) [0-9a-f]{12}\b")
EVIDENCE_LINE = re.compile(rb"signed two different messages")

Slot = tuple[AccountId, int, int, str]
"""Who signed, height, round, and what kind of message."""

Found = TypeVar("Found")


class DoubleSignature(AssertionError):
    """A key signed two different messages for one slot."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A node said that a block is final.

    Attributes:
        at_s: when, on the monotonic clock.
    """

    node: str
    height: int
    at_s: float


class Watch:
    """Follows the homes of a network in a thread of its own until it is closed.

    Attributes:
        signed: content of every signature, by slot.
        sightings: of blocks, in order.
        proposer: the node that signed the newest proposal.
        evidence: lines in which a node says that it saw a contradiction.
    """

    def __init__(self, homes: tuple[Home, ...]) -> None:
        self.signed: dict[Slot, bytes] = {}
        self.proposer = ""
        self.evidence: list[str] = []
        self.sightings: list[Sighting] = []
        self._homes = homes
        self._highest: dict[str, int] = {}
        self._voted: dict[str, int] = {}
        self._positions = {home.root.name: _size(home.log_file) for home in homes}
        self._signer_files: dict[str, tuple[int, int]] = {}
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="watch")
        self._thread.start()

    def height(self, node: str) -> int:
        """The highest block that a node has said to be final since the watch began."""
        return self._highest.get(node, 0)

    def voted(self, node: str) -> int:
        """The highest height that a node has signed a vote for since the watch began."""
        return self._voted.get(node, 0)

    def top(self) -> int:
        """The highest block of all."""
        return max(self._highest.values(), default=0)

    def first(self, matches: Callable[[Sighting], bool]) -> Sighting | None:
        """The first sighting that matches."""
        return next((sighting for sighting in self.sightings if matches(sighting)), None)

    def wait(self, what: str, find: Callable[[], Found | None], deadline_s: float) -> Found:
        """What `find` returns once that isn't None or False; it is asked whenever something was seen.

        Raises:
            DoubleSignature: a key contradicted itself.
            AssertionError: not in time.
        """
        end = time.monotonic() + deadline_s
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                found = find()
                if found is not None and found is not False:
                    return found
                left = end - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"not within {deadline_s:.0f} s: {what}")
                self._changed.wait(min(left, SIGNER_INTERVAL_S))

    def read_signers(self) -> None:
        """Read all signers' logs now.

        Raises:
            DoubleSignature: a key contradicted itself.
        """
        for home in self._homes:
            self._read_signer(home)

    def close(self) -> None:
        """Stop watching, after a last look.

        Raises:
            DoubleSignature: a key contradicted itself.
        """
        self._is_closed = True
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        self._look()
        self.read_signers()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        next_signers = 0.0
        while not self._is_closed:
            try:
                self._look()
                if time.monotonic() >= next_signers:
                    self.read_signers()
                    next_signers = time.monotonic() + SIGNER_INTERVAL_S
            except BaseException as failure:  # noqa: BLE001  # handed to the thread that waits
                with self._changed:
                    self._failure = failure
                    self._changed.notify_all()
                return
            time.sleep(INTERVAL_S)

    def _look(self) -> None:
        """Read what the nodes have logged since the last look."""
        news = []
        for home in self._homes:
            name = home.root.name
            for line in self._new_lines(home.log_file, name):
                match = BLOCK_LINE.search(line)
                if match is not None:
                    news.append(Sighting(name, int(match[1]), time.monotonic()))
                elif EVIDENCE_LINE.search(line):
                    self.evidence.append(f"{name}: {line.decode(errors='replace')}")
        if news:
            with self._changed:
                self.sightings += news
                for sighting in news:
                    self._highest[sighting.node] = max(self.height(sighting.node), sighting.height)
                self._changed.notify_all()

    def _new_lines(self, path: Path, name: str) -> list[bytes]:
        if _size(path) <= self._positions[name]:
            return []
        with path.open("rb") as file:
            file.seek(self._positions[name])
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._positions[name] += len(whole)
        return whole.splitlines()

    def _read_signer(self, home: Home) -> None:
        try:
            status = home.signer_wal.stat()
            version = (status.st_ino, status.st_size)
            if self._signer_files.get(home.root.name) == version:
                return
            data = home.signer_wal.read_bytes()
        except FileNotFoundError:
            return
        self._signer_files[home.root.name] = version
        for record, _ in read_log(data):
            if not isinstance(record, (Mark, ValidValue)):
                self._note(home.root.name, record)

    def _note(self, node: str, record: Vote | ProposalMessage) -> None:
        if isinstance(record, Vote):
            slot: Slot = (record.validator, record.height, record.round, record.kind.name)
            content = record.block_id
            self._voted[node] = max(self.voted(node), record.height)
        else:
            signed, self.proposer = record.proposal, node
            slot = (signed.proposer, signed.height, signed.round, "PROPOSAL")
            content = signed.block_id + signed.valid_round.to_bytes(8, signed=True)
        known = self.signed.setdefault(slot, content)
        if known != content:
            _, height, round_, kind = slot
            raise DoubleSignature(
                f"{node} signed two {kind}s at height {height}, round {round_}: {known.hex()} and {content.hex()}"
            )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
