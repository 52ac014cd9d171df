"""Real networks for the tests: made and stopped by the command line itself."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.network import Network, init


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Network]]:
    """Makes and starts a network of four nodes with the given options of `testnet init`; all of it is stopped after."""
    made: list[Network] = []

    def make(*options: str) -> Network:
        network = init(tmp_path / "net", *options)
        made.append(network)
        network.cli("testnet", "up", str(network.directory))
        return network

    yield make
    for network in made:
        network.cli("testnet", "down", str(network.directory))
        assert network.pids() == {}
