"""Real networks for the tests: made and stopped by the command line itself."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.network import COMMAND_DEADLINE_S, Network, command, init


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Network]]:
    """Makes and starts a network of four nodes with the given options of `testnet init`; all of it is stopped after.

    Also if the tests are killed: nodes outlive the command that started them.
    """
    made: list[tuple[Network, subprocess.Popen[bytes]]] = []

    def make(*options: str) -> Network:
        network = init(tmp_path / "net", *options)
        made.append((network, _stopper(network.directory)))
        network.cli("testnet", "up", str(network.directory))
        return network

    yield make
    for network, stopper in made:
        stopper.communicate(timeout=COMMAND_DEADLINE_S)
        assert stopper.returncode == 0, _stopper_log(network.directory).read_text()
        assert network.pids() == {}


def _stopper(directory: Path) -> subprocess.Popen[bytes]:
    """A process that stops a network once its standard input ends: it is closed, or the process that holds it dies."""
    with _stopper_log(directory).open("wb") as log:
        return subprocess.Popen(
            ["sh", "-c", 'cat && exec "$@"', "sh", *command("testnet", "down", str(directory))],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _stopper_log(directory: Path) -> Path:
    return directory.with_name("stopper.log")
