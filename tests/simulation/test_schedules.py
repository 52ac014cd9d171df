"""Random schedules on the real machine, ledger, mempool and signer's log.

python -m tests.simulation --replay 42       runs one schedule again and prints what happens
python -m tests.simulation --seeds 10000     runs many
"""

import os
import subprocess
import sys

import pytest

from .schedule import Style, simulate

SEEDS = 200
"""Schedules in an ordinary run: half a minute of one core."""

GROUP = 10
"""Schedules in one test case, so that a failure comes early and the list of tests stays short."""


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_no_schedule_breaks_a_rule(first: int) -> None:
    for seed in range(first, first + GROUP):
        try:
            simulate(seed)
        except AssertionError as error:
            pytest.fail(f"{type(error).__name__}: {error}\n  python -m tests.simulation --replay {seed}")


def test_the_same_seed_gives_the_same_run_whatever_the_hash_seed() -> None:
    seeds = range(len(Style))
    program = f"from tests.simulation.schedule import simulate\nfor seed in {seeds!r}: print(simulate(seed))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", program],
            env={**environment, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout == "".join(f"{simulate(seed)}\n" for seed in seeds)


def test_different_seeds_give_different_runs() -> None:
    assert len({simulate(seed).digest for seed in range(8)}) == 8
