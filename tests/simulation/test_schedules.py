"""Random schedules on the real machine, ledger and signer's log.

BFLNODE_SEED=42 pytest tests/simulation -k replay     runs one schedule again, with a trace
python -m tests.simulation --seeds 1000               runs many and prints what happened
"""

import os

import pytest

from .schedule import simulate

SEEDS = 90
"""Schedules in an ordinary run: half a minute."""

GROUP = 10
"""Schedules in one test case, so that a failure comes early and the list of tests stays short."""


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_no_schedule_breaks_agreement_validity_liveness_or_evidence(first: int) -> None:
    for seed in range(first, first + GROUP):
        try:
            simulate(seed)
        except AssertionError as error:
            pytest.fail(f"BFLNODE_SEED={seed} replays this: {type(error).__name__}: {error}")


def test_the_same_seed_gives_the_same_run() -> None:
    assert simulate(21) == simulate(21)


@pytest.mark.skipif("BFLNODE_SEED" not in os.environ, reason="BFLNODE_SEED names the schedule to replay")
def test_replay() -> None:
    print(simulate(int(os.environ["BFLNODE_SEED"]), trace=print))
