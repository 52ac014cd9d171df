"""The fork server, started once for all tests of the node: a worker of its own costs three seconds of importing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bflnode.node.workers.launcher import LAUNCHER_VARIABLE, RunningLauncher, start_launcher

STOP_DEADLINE_S = 60


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLauncher]:
    running = start_launcher(tmp_path_factory.mktemp("launcher"))
    yield running
    running.client.stop()
    assert running.process.wait(STOP_DEADLINE_S) == 0


@pytest.fixture
def forking(launcher: RunningLauncher, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes nodes and trainers of this test find the launcher; its socket."""
    monkeypatch.setenv(LAUNCHER_VARIABLE, str(launcher.client.socket_path))
    return launcher.client.socket_path
