"""A real node that joins a real network by state, learns, and says what it doesn't have."""

import json
from collections.abc import Callable

import tomli_w

from bflnode.node.configuration import load_configuration
from tests.e2e.network import Network, eventually

Start = Callable[..., Network]


def test_a_node_that_joins_by_state_learns_earns_and_verifies_from_there_on(start: Start) -> None:
    network = start("--rounds", "1000")
    eventually("a round is settled", lambda: (status := network.status("node0")) and status["settled_rounds"] >= 1)
    network.down()
    source = str(network.testnet.home("node0").root)
    made = json.loads(network.cli("snapshot", "create", "--home", source, "--json"))
    network.cli("testnet", "add", str(network.directory))
    home = network.testnet.home("node4")
    settings = load_configuration(home).model_dump(mode="json")
    settings["sync"]["state_sync"] = f"{made['height']}:{made['block']}"
    home.configuration_file.write_text(tomli_w.dumps(settings), encoding="utf-8")

    network.up()

    def is_paid() -> bool:
        status = network.status("node4")
        return status is not None and status["balance"] > 5_000_000

    eventually("the node that joined earns", is_paid)
    status = network.status("node4")
    assert status is not None
    assert status["base"] == made["height"]
    where = ("--home", str(home.root))
    assert f"starts from a snapshot at height {made['height']}" in network.cli("chain", "verify", *where)
    assert json.loads(network.cli("snapshot", "list", *where, "--json"))[0] == made
