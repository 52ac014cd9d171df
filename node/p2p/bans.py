"""Who is banned, until when and why: peers by their id, and addresses where a person says so. Kept in a file.

Bans outlive a restart, so they are dated by the wall clock, which is passed in. Misdeeds that lead to a ban are
counted in `scores`. The file is small and rewritten as a whole; a damaged one is set aside, since what it said can be
said again.
"""

import ipaddress
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bflnode.storage.durable import write_durably

_log = logging.getLogger(__name__)

FIRST_BAN_MS = 60_000
BAN_FACTOR = 4
MAX_BAN_MS = 24 * 3_600_000
"""A peer that misbehaves is banned for a minute, then for four times as long each time, at most for a day: a bug of an
honest node costs it minutes, an attacker has to make new identities."""

FORGET_MS = 24 * 3_600_000
"""After a day without another ban the next one is a first one again."""

MAX_BANS = 1024
"""Bans kept; the one that ends first is dropped first, so that what a person banned stays. Whoever has more identities
can't be kept out by banning identities."""

MAX_FILE_BYTES = 1024 * 1024
"""A thousand bans of less than a kilobyte."""

MAX_REASON_LENGTH = 200

FOR_EVER_MS = 2**53
"""The end of a ban that a person gave without one."""


class BanError(Exception):
    """A ban that makes no sense; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Ban:
    """One ban.

    Attributes:
        target: a peer id, or an IP address.
        until_ms: when it ends, since the epoch.
        reason: for people.
        count: bans of this target in a row.
    """

    target: str
    until_ms: int
    reason: str
    count: int = 1

    @property
    def end(self) -> str:
        """When it ends, for people."""
        if self.until_ms >= FOR_EVER_MS:
            return "its operator ends it"
        return datetime.fromtimestamp(self.until_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class Bans:
    """All bans of one node.

    Args:
        now_ms: the wall clock.
        path: where they are kept; None keeps them in memory only.
    """

    def __init__(self, now_ms: Callable[[], int], path: Path | None = None) -> None:
        self._now_ms = now_ms
        self._path = path
        self._bans: dict[str, Ban] = _read(path) if path is not None else {}

    def get(self, target: str) -> Ban | None:
        """The ban of a peer or address that holds now."""
        ban = self._bans.get(target)
        return ban if ban is not None and ban.until_ms > self._now_ms() else None

    def __contains__(self, target: str) -> bool:
        return self.get(target) is not None

    def all(self) -> tuple[Ban, ...]:
        """Bans that hold now, oldest first."""
        return tuple(ban for ban in self._bans.values() if ban.until_ms > self._now_ms())

    def punish(self, target: str, reason: str) -> Ban:
        """Ban a target that misbehaved, longer each time."""
        last = self._bans.get(target)
        count = 1 if last is None or self._now_ms() > last.until_ms + FORGET_MS else last.count + 1
        duration_ms = min(MAX_BAN_MS, FIRST_BAN_MS * BAN_FACTOR ** min(count - 1, 16))
        return self._put(Ban(target, self._now_ms() + duration_ms, reason[:MAX_REASON_LENGTH], count))

    def ban(self, target: str, *, duration_ms: int | None = None, reason: str = "") -> Ban:
        """Ban what a person names.

        Args:
            target: a peer id or an IP address.
            duration_ms: None for ever.
            reason: for people.
        """
        until_ms = FOR_EVER_MS if duration_ms is None else min(FOR_EVER_MS, self._now_ms() + duration_ms)
        return self._put(Ban(target, until_ms, reason[:MAX_REASON_LENGTH]))

    def unban(self, target: str) -> bool:
        """End a ban, and forget that there was one; False where there was none."""
        known = self._bans.pop(target, None)
        if known is not None:
            self._save()
        return known is not None and known.until_ms > self._now_ms()

    def _put(self, ban: Ban) -> Ban:
        self._bans.pop(ban.target, None)
        if len(self._bans) >= MAX_BANS:
            del self._bans[min(self._bans, key=lambda target: self._bans[target].until_ms)]
        self._bans[ban.target] = ban
        self._save()
        return ban

    def _save(self) -> None:
        """Write the file; a full disk costs the memory of a ban, not the node."""
        if self._path is None:
            return
        oldest_ms = self._now_ms() - FORGET_MS
        kept = [asdict(ban) for ban in self._bans.values() if ban.until_ms > oldest_ms]
        try:
            write_json(self._path, {"bans": kept})
        except OSError as error:
            _log.error("the bans can't be written to %s: %s; they hold until the node stops", self._path, error)


def check_target(text: str) -> str:
    """Read what a person wants to ban: a peer id or an IP address.

    Raises:
        BanError: it is neither.
    """
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        if 40 <= len(text) <= 64 and text.isascii() and text.isalnum():
            return text
    raise BanError(f"{text[:80]!r} is neither a peer id like 12D3KooW… nor an IP address; see `bflnode peers`")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small file as a whole: a killed node leaves the old one or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps(content, indent=1).encode() + b"\n")


def read_json(path: Path, max_bytes: int) -> Any:
    """Read a small file; None where there is none. Raises OSError, and ValueError where it is damaged."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        return None
    if len(data) > max_bytes:
        raise ValueError(f"more than {max_bytes} bytes")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def set_aside(path: Path, fault: Exception) -> None:
    """Keep a damaged file beside the new one that will take its place, for whoever wants to look at it."""
    aside = path.with_suffix(".damaged")
    _log.warning("%s is damaged (%s): it is set aside as %s, and what it said is lost", path, fault, aside)
    try:
        path.replace(aside)
    except OSError as error:
        _log.warning("%s can't be set aside: %s", path, error)


def _read(path: Path) -> dict[str, Ban]:
    try:
        content = read_json(path, MAX_FILE_BYTES)
        if content is None:
            return {}
        bans = [Ban(**entry) for entry in content["bans"][-MAX_BANS:]]
        for ban in bans:
            if [type(value) for value in asdict(ban).values()] != [str, int, str, int]:
                raise ValueError(f"{ban} is no ban")
        return {ban.target: ban for ban in bans}
    except (OSError, ValueError, KeyError, TypeError) as error:
        set_aside(path, error)
        return {}
