"""What every test run needs: a guard against loading a module under its folder's short name, and short paths."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SHORT_NAMES = ("node", "consensus", "fl", "storage")


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
