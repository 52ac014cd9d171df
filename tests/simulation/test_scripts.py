"""Directed schedules: what must fork does fork, so the oracle proves something; what must not, does not."""

import pytest

from .disk import CrashError
from .network import Weather
from .schedule import simulate
from .scripts import amnesia, four, played, transact
from .simulated_node import WAL
from .violations import AgreementError, DoubleSignatureError
from .world import Fault


def test_half_of_the_stake_equivocating_forks_the_chain() -> None:
    """The bound is sharp: with f >= n/3 each of two honest nodes is shown its own majority."""
    faults = {2: Fault.TWO_FACED, 3: Fault.TWO_FACED}
    with played(four(faults=faults)) as world:
        world.network.separate(((0, 2, 3), (1, 4, 5)))
        world.boot()
        for number in (0, 1, 2, 3):
            transact(world, number)
        transact(world, 4)
        with pytest.raises(AgreementError):
            world.run(5_000)


def test_schedules_beyond_the_bound_fork_the_chain() -> None:
    """Half of the stake votes for everything: of forty schedules some must fork, or the oracle proves nothing."""

    def forks(seed: int) -> bool:
        try:
            simulate(seed, is_beyond_bound=True)
        except AgreementError:
            return True
        return False

    assert any(forks(seed) for seed in (18, 35, 38, *range(40)))


def test_a_third_of_the_stake_short_of_one_validator_cannot_fork_the_chain() -> None:
    with played(four(faults={3: Fault.TWO_FACED})) as world:
        world.network.separate(((0, 1, 3), (2, 4)))
        world.boot()
        for number in (0, 2):
            transact(world, number)
        world.run(5_000)
        assert [world.nodes[number].chain.height for number in (0, 1, 2)] == [1, 1, 0]


def test_signers_whose_log_was_erased_sign_twice() -> None:
    """Amnesia: what the log is for. Random schedules hardly ever notice that it is gone."""
    with pytest.raises(DoubleSignatureError):
        amnesia("log erased")


def test_signers_without_a_log_fork_the_chain_after_a_crash() -> None:
    with played(four(faults={1: Fault.FORGETFUL, 2: Fault.FORGETFUL})) as world:
        world.oracle.are_votes_checked = False
        world.network.separate(((3,), (0, 1, 2)))
        world.boot()
        transact(world, 0)
        world.run(3_000, lambda: world.nodes[0].chain.height == 1)
        for number in (1, 2):
            world.nodes[number].crash()
            world.nodes[number].lose_chain()
        world.network.heal()
        world.network.separate(((0,), (1, 2, 3)))
        for number in (1, 2):
            world.nodes[number].boot()
        transact(world, 2)
        with pytest.raises(AgreementError):
            world.run(5_000)


def test_two_of_four_validators_alone_decide_nothing_and_go_on_when_the_others_return() -> None:
    """At least a third offline: the chain halts, by choice, and goes on when they return."""
    with played(four()) as world:
        world.network.separate(((0, 1), (2, 3)))
        world.boot()
        transact(world, 1)
        world.run(20_000)
        assert [world.nodes[number].chain.height for number in range(4)] == [0, 0, 0, 0]
        world.heal()
        world.run(5_000)
        assert min(world.nodes[number].chain.height for number in range(4)) >= 1


def test_an_idle_network_makes_no_block_and_signs_nothing_until_its_heartbeat() -> None:
    """Blocks on demand: nobody votes, and no time-out runs, until there is work."""
    with played(four()) as world:
        world.boot()
        world.run(15_000)
        assert world.oracle.decided == {}
        assert world.oracle.signed == {}
        world.run(20_000)
        assert set(world.oracle.decided) == {1}


def test_a_dead_leader_costs_one_round() -> None:
    faults = {0: Fault.SILENT_LEADER, 1: Fault.SILENT_LEADER}
    with played(four(faults=faults)) as world:
        world.boot()
        chain = world.nodes[2].chain
        silent = [
            chain.leader(round_) in {world.setting.keys[number].account for number in faults} for round_ in range(8)
        ]
        transact(world, 2)
        world.run(20_000, lambda: chain.height == 1)
        assert chain.height == 1
        assert world.nodes[2].highest_round == silent.index(False) > 0


def test_a_log_whose_damage_lies_before_its_tail_refuses_to_sign_and_the_others_go_on() -> None:
    with played(four(queue=(0,))) as world:
        world.boot()
        transact(world, 0)
        world.run(1_000)
        node = world.nodes[1]
        node.crash()
        node.disk.rot(WAL, 20)
        node.boot()
        assert node.refusal is not None
        transact(world, 0, nonce=1)
        world.run(3_000)
        assert [world.nodes[number].chain.height for number in range(4)] == [2, 1, 2, 2]


def test_every_beginning_of_the_last_frame_is_cut_off_after_a_power_failure() -> None:
    """Whatever the power failure leaves of a write that was never synced, the node starts and signs on."""
    for steps in range(1, 60):
        with played(four(weather=Weather(0, 0, 10, 10))) as world:
            world.boot()
            node = world.nodes[1]
            node.steps_to_crash, node.is_power_cut = steps, True
            transact(world, 0)
            world.run(500)
            if not node.is_up:
                node.boot()
            assert node.refusal is None
            world.run(3_000, lambda node=node: node.chain.height >= 1)
            assert node.chain.height >= 1


@pytest.mark.parametrize("place", ["written", "renamed"])
def test_what_a_killed_process_left_unsynced_survives_a_later_power_failure(place: str) -> None:
    """A log is synced when it is opened: its last process may have died before it could do that itself."""
    with played(four(queue=(1,))) as world:
        world.boot()
        node = world.nodes[1]
        usual = node.disk.failpoint

        def die(name: str) -> None:
            if name == place and node.chain.height >= 2:
                node.disk.failpoint = usual
                raise CrashError
            usual(name)

        node.disk.failpoint = die
        for nonce in range(4):
            transact(world, 1, nonce=nonce)
            world.run(1_000)
        assert not node.is_up
        node.boot()
        world.network.separate(((1,), (0, 2, 3)))
        transact(world, 1, nonce=9)
        kept = node.disk.path(WAL).read_bytes()
        node.is_power_cut = True
        node.crash()
        assert node.disk.path(WAL).read_bytes() == kept
