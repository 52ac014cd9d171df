"""What every test run needs: a guard against loading a module under its folder's short name, and short paths."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SHORT_NAMES = ("node", "consensus", "fl", "storage")


SLOW = ("partitions", "e2e", "reliability", "interop", "simulation", "fuzz")
"""Folders whose files take longest: they come first, so that no process is left alone with one of them at the end."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the slowest files first."""
    ranks = {config.rootpath / "tests" / name: rank for rank, name in enumerate(SLOW)}
    items.sort(key=lambda item: ranks.get(item.path.parent, len(SLOW)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stop when a test imported `consensus` for `bflnode.consensus`: its classes would be second copies."""
    loaded = sorted(name for name in sys.modules if name.split(".", maxsplit=1)[0] in SHORT_NAMES)
    if loaded:
        raise pytest.UsageError(f"loaded under a short name, import bflnode.… instead: {', '.join(loaded)}")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder of its own whose path is short enough for the sockets of a testnet below it, wherever tests run."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)
