"""Directed schedules: what must fork does fork, so the oracle proves something; what must not, does not."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from bflnode.consensus.block import Vote, VoteKind
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.transaction import Transfer, sign_transaction

from .network import Message, Weather
from .oracle import AgreementError, DoubleSignatureError
from .world import Fault, Setting, World, log_folder

STILL = Weather(loss=0, duplication=0, longest_delay_ms=10, straggler_delay_ms=10)
KEYS = tuple(sorted((SecretKey(bytes([number]) * 32) for number in range(1, 5)), key=lambda key: key.account))


@pytest.fixture
def folder() -> Iterator[Path]:
    with log_folder() as name:
        yield Path(name)


def four_validators(folder: Path, faults: dict[int, Fault]) -> World:
    return World(Setting(KEYS, faults, (0, 0, 0, 0), STILL), random=Random(1), folder=folder)


def transact(world: World, number: int) -> None:
    """A client's transfer, handed to one node only: blocks of nodes that don't hear each other differ."""
    transfer = Transfer(KEYS[0].account, number + 1)
    world.submit(number, sign_transaction(KEYS[number], world.oracle.chain_id, transfer, nonce=0, fee=1))


def test_half_of_the_stake_equivocating_forks_the_chain(folder: Path) -> None:
    """The bound is sharp: with f >= n/3 each of two honest nodes is shown its own majority."""
    world = four_validators(folder, {2: Fault.TWO_FACED, 3: Fault.TWO_FACED})
    world.network.separate(((0, 2, 3), (1, 6, 7)))
    world.boot()
    for number in (0, 1, 2, 3):
        transact(world, number)
    world.submit(6, sign_transaction(KEYS[2], world.oracle.chain_id, Transfer(KEYS[1].account, 9), nonce=0, fee=1))
    with pytest.raises(AgreementError):
        world.run(5_000)


def test_a_third_of_the_stake_short_of_one_validator_cannot_fork_the_chain(folder: Path) -> None:
    world = four_validators(folder, {3: Fault.TWO_FACED})
    world.network.separate(((0, 1, 3), (2, 7)))
    world.boot()
    for number in (0, 2):
        transact(world, number)
    world.run(5_000)
    assert [world.nodes[number].chain.height for number in (0, 1, 2)] == [1, 1, 0]


class PrecommitsReachOnly:
    """An adversary that loses precommits to everybody but one node."""

    def __init__(self, receiver: int) -> None:
        self.receiver = receiver

    def loses(self, sender: int, receiver: int, message: Message) -> bool:
        return isinstance(message, Vote) and message.kind is VoteKind.PRECOMMIT and receiver != self.receiver


def decide_and_forget(world: World, *, erase_logs: bool = False) -> None:
    """Node 0 decides height 1 unheard; 1 and 2, who precommitted, restart; then they meet 3, who knows of nothing.

    0: decides X  | cut off from here on
    1: precommits X, crashes, restarts and leads
    2: precommits X, crashes, restarts
    3: cut off    | joins
    """
    world.network.separate(((3,), (0, 1, 2)))
    world.network.adversary = PrecommitsReachOnly(0)
    world.boot()
    transact(world, 1)
    world.run(5_000, lambda: world.nodes[0].chain.height == 1)
    assert [world.nodes[number].chain.height for number in range(4)] == [1, 0, 0, 0]
    for number in (1, 2):
        world.nodes[number].crash()
        if erase_logs:
            world.nodes[number].wal_path.unlink()
    world.network.heal()
    world.network.separate(((0,), (1, 2, 3)))
    for number in (1, 2):
        world.nodes[number].boot()
    transact(world, 2)
    world.run(5_000)


def test_signers_without_a_log_fork_the_chain_after_a_crash(folder: Path) -> None:
    """Amnesia: random schedules hardly ever notice that the log is skipped."""
    with pytest.raises(AgreementError):
        decide_and_forget(four_validators(folder, {1: Fault.FORGETFUL, 2: Fault.FORGETFUL}))


def test_signers_whose_log_was_erased_sign_twice(folder: Path) -> None:
    with pytest.raises(DoubleSignatureError):
        decide_and_forget(four_validators(folder, {}), erase_logs=True)


def test_signers_with_a_log_stand_by_their_lock_after_a_crash(folder: Path) -> None:
    world = four_validators(folder, {})
    decide_and_forget(world)
    heights = [world.nodes[number].chain.height for number in range(4)]
    assert heights[0] == 1
    assert min(heights[1:]) >= 1
    world.heal()
    world.run(2_000)
    assert len({world.nodes[number].chain.height for number in range(4)}) == 1


def test_two_of_four_validators_alone_decide_nothing_and_go_on_when_the_others_return(folder: Path) -> None:
    """At least a third offline: the chain halts, by choice, and goes on when they return."""
    world = four_validators(folder, {})
    world.network.separate(((0, 1), (2, 3)))
    world.boot()
    transact(world, 1)
    world.run(20_000)
    assert [world.nodes[number].chain.height for number in range(4)] == [0, 0, 0, 0]
    world.heal()
    world.run(5_000)
    assert min(world.nodes[number].chain.height for number in range(4)) >= 1


def test_an_idle_network_makes_no_block_and_signs_nothing(folder: Path) -> None:
    """Blocks on demand: nobody votes, and no time-out runs, until there is work."""
    world = four_validators(folder, {})
    world.boot()
    world.run(60_000)
    assert world.oracle.decided == {}
    assert world.oracle.signed == {}


def test_a_dead_leader_costs_one_round(folder: Path) -> None:
    world = four_validators(folder, {0: Fault.SILENT_LEADER, 1: Fault.SILENT_LEADER})
    world.boot()
    transact(world, 2)
    world.run(20_000, lambda: world.nodes[2].chain.height == 1)
    assert world.nodes[2].chain.height == 1
    assert world.nodes[2].highest_round == 3, "rounds 0 to 2 of height 1 belong to nodes 1, 1 and 0"
