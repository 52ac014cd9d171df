"""Everything that somebody needs to find a defect from afar, in one archive, without secrets and without data.

What goes in: versions, settings, what the node answers about itself, its tasks, logs, metrics, sizes of files. What
never does: keys, credentials, models, training data. Each part is collected by itself: what can't be had of a broken or
stuck node is named in `errors.json`, and the rest is there. Every part passes `secrets_removal` before it is written.
"""

import io
import json
import os
import platform
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, TypeVar

from bflnode.node.configuration import load_configuration
from bflnode.node.home import Home
from bflnode.node.journal import Journal
from bflnode.node.rpc.client import TIMEOUT_S, RpcClient
from bflnode.node.rpc.reader import LiveReader, Reader, RunningNode, find_running, open_reader

from .secrets_removal import ENVIRONMENT_PREFIX, Secrets, without_secrets
from .task_dump import task_dump_text

MAX_LOG_BYTES = 2 * 1024 * 1024
"""The end of each log: some hours of a busy node."""

MAX_LOGS = 20

MAX_FILES_LISTED = 20_000
"""Files of the home that are listed: a thousand learning rounds of twenty models."""

RECENT_BLOCKS = 50

QUESTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("status", {}),
    ("head", {}),
    ("blockchain", {"count": RECENT_BLOCKS}),
    ("validators", {}),
    ("queue", {}),
    ("tasks", {}),
    ("task", {}),
    ("round", {"number": "current"}),
    ("rounds", {}),
    ("account", {}),
)
"""What any node is asked, running or stopped."""

LIVE_QUESTIONS: tuple[str, ...] = ("health", "net_info", "consensus_state", "unconfirmed_txs")
"""What only a running one knows."""


Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Dumped:
    """What a dump holds.

    Attributes:
        file: the archive.
        is_running: whether a running node was asked.
        parts: names of what is in it.
        errors: what could not be had, and why.
    """

    file: str
    is_running: bool
    parts: tuple[str, ...]
    errors: dict[str, str]


@dataclass(slots=True)
class _Parts:
    """Collects parts; one that fails is an error of that part only."""

    secrets: Secrets
    content: dict[str, bytes] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def attempt(self, name: str, collect: Callable[[], Found]) -> Found | None:
        """What collecting gives, or None where it failed."""
        try:
            return collect()
        except Exception as error:  # noqa: BLE001 - the edge: a dump is for what nobody expected, and names it
            self.errors[name] = f"{type(error).__name__}: {error}"
            return None

    def add(self, name: str, collect: Callable[[], Any]) -> None:
        """Put a part in: bytes and text as they are, all else as JSON."""
        found = self.attempt(name, collect)
        if name not in self.errors:
            data = found if isinstance(found, bytes) else found.encode() if isinstance(found, str) else _json(found)
            self.content[name] = self.secrets.remove_from(data)


def write_dump(home: Home, target: Path) -> Dumped:
    """Collect what there is and write the archive, readable by its owner alone.

    Raises:
        HomeError: not an initialised home.
        OSError: a secret can't be read, so nothing could be kept out, or the archive can't be written.
    """
    parts = _Parts(Secrets(home.require()))
    parts.add("versions.json", _versions)
    parts.add("machine.json", lambda: _machine(home))
    parts.add("settings.json", lambda: without_secrets(load_configuration(home).model_dump(mode="json")))
    parts.add("genesis.json", home.genesis_file.read_bytes)
    parts.add("files.txt", lambda: _files_text(home.root))
    parts.add("disk.json", lambda: _disk(home))
    parts.add("journal.json", lambda: [asdict(entry) for entry in Journal(home.rounds).entries()])
    for log in _logs(home):
        parts.add("logs/" + "-".join(log.relative_to(home.run).parts), _tail_of(log))
    running = parts.attempt("process", lambda: find_running(home, patience_s=1.0))
    if running is not None:
        _ask_running(running, parts)
    else:
        _ask_stopped(home, parts)
    parts.add("errors.json", lambda: parts.errors)
    _write(target, parts.content)
    return Dumped(str(target), running is not None, tuple(parts.content), parts.errors)


def _ask_running(running: RunningNode, parts: _Parts) -> None:
    parts.add("process.txt", lambda: _process_text(running.pid))
    with RpcClient(running.rpc) as client:
        _ask(LiveReader(client), parts)
        for method in LIVE_QUESTIONS:
            parts.add(f"rpc/{method}.json", _asking(LiveReader(client), method, {}))
        parts.add("tasks.txt", lambda: task_dump_text(client.call("debug_tasks")))
    parts.add("metrics.txt", lambda: _metrics(running.rpc))


def _ask_stopped(home: Home, parts: _Parts) -> None:
    with ExitStack() as stack:
        reader = parts.attempt("chain", lambda: stack.enter_context(open_reader(home)))
        if reader is not None:
            _ask(reader, parts)


def _ask(reader: Reader, parts: _Parts) -> None:
    for method, params in QUESTIONS:
        parts.add(f"rpc/{method}.json", _asking(reader, method, params))


def _asking(reader: Reader, method: str, params: dict[str, Any]) -> Callable[[], Any]:
    return lambda: reader.call(method, **params)


def _metrics(rpc: str) -> bytes:
    import httpx

    return httpx.get(f"{rpc}/metrics", timeout=TIMEOUT_S, trust_env=False).content


def _versions() -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(),
        "python": sys.version,
        "packages": {found.name: found.version for found in sorted(distributions(), key=lambda one: one.name.lower())},
    }


def _machine(home: Home) -> dict[str, Any]:
    usage = shutil.disk_usage(home.root)
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "processors": os.cpu_count(),
        "usable_processors": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "disk": {"total_bytes": usage.total, "free_bytes": usage.free},
        "settings_in_environment": sorted(name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)),
    }


def _walk(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All files below a folder; links aren't followed, and what vanishes meanwhile is left out."""
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            path = Path(folder) / name
            try:
                yield path, path.lstat()
            except FileNotFoundError:
                continue


def _files_text(root: Path) -> str:
    lines = [
        f"{status.st_mode:o} {status.st_size:>12} {datetime.fromtimestamp(status.st_mtime, UTC):%Y-%m-%dT%H:%M:%S} "
        f"{path.relative_to(root)}"
        for _, (path, status) in zip(range(MAX_FILES_LISTED), _walk(root), strict=False)
    ]
    return "\n".join([*lines, ""])


def _disk(home: Home) -> dict[str, dict[str, int]]:
    """Files and bytes of each part of the home."""
    folders = {
        "chain": home.chain,
        "blobs": home.blobs,
        "journal": home.rounds,
        "scratch": home.scratch,
        "run": home.run,
    }
    return {
        name: {"files": len(sizes), "bytes": sum(sizes)}
        for name, folder in folders.items()
        for sizes in [[status.st_size for _, status in _walk(folder)]]
    }


def _logs(home: Home) -> list[Path]:
    """The logs of the node and its workers, newest first."""
    found = [(status.st_mtime, path) for path, status in _walk(home.run) if ".log" in path.name and path.is_file()]
    return [path for _, path in sorted(found, reverse=True)[:MAX_LOGS]]


def _tail_of(log: Path) -> Callable[[], bytes]:
    def tail() -> bytes:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_LOG_BYTES))
            return file.read(MAX_LOG_BYTES)

    return tail


def _process_text(pid: int) -> str:
    """What the kernel says of the node's process, which may be too busy to answer itself."""
    proc = Path("/proc") / str(pid)
    parts = [(proc / name).read_text(encoding="utf-8", errors="replace") for name in ("status", "limits")]
    return "\n".join([f"open files: {len(list((proc / 'fd').iterdir()))}", *parts])


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, default=str).encode()


def _write(target: Path, content: dict[str, bytes]) -> None:
    """Write the archive beside its name first: it appears whole."""
    folder = target.name.split(".")[0]
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".bflnode-debug-")
    try:
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, data in content.items():
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size, entry.mode, entry.mtime = len(data), 0o600, int(datetime.now(UTC).timestamp())
                archive.addfile(entry, io.BytesIO(data))
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)
