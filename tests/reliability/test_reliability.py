"""A small part of what `python -m tests.reliability` does in full length, on one network of real processes."""

import random
from collections.abc import Iterator

import pytest

from bflnode.storage.failpoints import Operation

from . import damages, disks, failpoint_runs, kills
from .field import Field, running_field
from .judge import judge

SEED = 1


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """One network for all tests of this module; at the end everything in it is judged."""
    with running_field(tmp_path_factory.mktemp("reliability") / "net", SEED) as running:
        yield running
    verdict = judge(running.testnet, running.witness, running.load, running.watch, executes_all=False)
    assert verdict.height > 0
    assert verdict.transfers > 0


@pytest.mark.parametrize(
    "failpoint",
    [f"{Operation.WAL_FSYNC}.after", f"{Operation.VOTE_SEND}.before"],
)
def test_a_node_that_dies_at_a_failpoint_comes_back_and_signs_again(field: Field, failpoint: str) -> None:
    death = failpoint_runs.die(field, field.validators[0], failpoint)
    assert death.signing_s > 0


@pytest.mark.parametrize("count", [2, 4])
def test_validators_killed_at_any_moment_come_back_and_sign_again(field: Field, count: int) -> None:
    victims = field.validators[:count]
    cycle = kills.kill_and_restart(field, 1, victims, random.Random(count))
    assert set(cycle.killed) == set(victims)


def test_a_node_with_a_damaged_chain_moves_it_aside_and_fetches_it_again(field: Field) -> None:
    loss = damages.lose(field, field.validators[1], "CURRENT gone", random.Random(SEED))
    assert loss.did == "moved aside"


def test_a_node_on_a_full_disk_says_so_ends_and_goes_on_once_there_is_room(field: Field) -> None:
    fault = disks.fail(field, field.validators[2], f"{Operation.CHAIN_BATCH}.before=error:ENOSPC@2")
    assert fault.said.endswith("The disk is full: free some space and start again")
