"""Seven real nodes in network namespaces: cut apart, healed, and one who can't be heard."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.partitions.namespaces import NotPermitted, require_permission

DEADLINE_S = 400

CHECKOUT = Path(__file__).parents[2]


def test_a_network_of_seven_gets_over_a_partition_into_halves_and_a_node_that_nobody_hears() -> None:
    try:
        require_permission()
    except NotPermitted as error:
        pytest.skip(str(error))

    finished = subprocess.run(
        [sys.executable, "-m", "tests.partitions", "halves", "one-way", "--json"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )

    assert finished.returncode == 0, finished.stderr
    assert {outcome["scenario"] for outcome in json.loads(finished.stdout)} == {"halves", "one-way"}
