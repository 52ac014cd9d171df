"""Processes of a testnet, on a network of one real node: start, status, stop, kill, logs, and what goes wrong."""

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bflnode.node.configuration import load_configuration
from bflnode.node.home import Home, HomeError
from bflnode.node.testnets import homes as testnet_homes
from bflnode.node.testnets import processes
from bflnode.node.workers.launcher import LauncherError, StartProcess
from bflnode.storage.home_lock import HomeLock, running_pid

OPTIONS = testnet_homes.TestnetOptions(validators=1, rounds=2, clusters=1, control=False)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[testnet_homes.Testnet]:
    """A testnet with a launcher; its node is stopped between tests."""
    testnet = testnet_homes.make_testnet(tmp_path_factory.mktemp("one") / "net", OPTIONS)
    processes.ensure_launcher(testnet)
    yield testnet
    processes.down(testnet)
    assert not processes.launcher_client(testnet).is_alive()


@pytest.fixture
def testnet(launched: testnet_homes.Testnet) -> Iterator[testnet_homes.Testnet]:
    yield launched
    processes.stop_nodes(launched)


def the_home(testnet: testnet_homes.Testnet) -> Home:
    (home,) = testnet.homes
    return home


def test_a_node_that_is_up_answers_with_its_home_and_process(testnet: testnet_homes.Testnet) -> None:
    (node,) = processes.up(testnet)

    assert node.pid == running_pid(the_home(testnet).root)
    assert node.status is not None
    line = node.to_json()
    assert (line["name"], line["home"], line["pid"]) == ("node0", str(the_home(testnet).root), node.pid)
    assert (line["rpc"], line["running"], line["error"]) == (node.rpc, True, None)
    assert line["chain_id"] == the_home(testnet).load_genesis().chain_id.hex()
    assert processes.is_up(testnet)


def test_starting_what_runs_changes_nothing(testnet: testnet_homes.Testnet) -> None:
    (first,) = processes.up(testnet)

    (second,) = processes.up(testnet, ("node0",))

    assert second.pid == first.pid


def test_a_stopped_node_is_read_from_its_home(testnet: testnet_homes.Testnet) -> None:
    (running,) = processes.up(testnet)

    assert processes.stop_nodes(testnet) == ()
    assert processes.stop_nodes(testnet) == ()

    (stopped,) = processes.statuses(testnet)
    assert running.status is not None
    assert stopped.status is not None
    assert (stopped.pid, stopped.rpc, stopped.error) == (None, None, None)
    assert stopped.status["height"] >= running.status["height"]
    assert not processes.is_up(testnet)


def test_a_killed_node_leaves_nothing_that_is_taken_for_it(testnet: testnet_homes.Testnet) -> None:
    (node,) = processes.up(testnet)
    home = the_home(testnet)

    assert processes.kill(home) == node.pid
    assert processes.kill(home) is None

    assert home.address_file.exists()
    assert processes.status_of(home).pid is None
    (again,) = processes.up(testnet)
    assert again.pid not in (None, node.pid)


def test_stopping_one_of_several_by_an_unknown_name_is_refused(testnet: testnet_homes.Testnet) -> None:
    with pytest.raises(HomeError, match="has no node 'node7': it has node0"):
        processes.down(testnet, ("node7",))
    with pytest.raises(HomeError, match="has no node 'node7'"):
        processes.up(testnet, ("node7",))


def test_a_node_that_cannot_start_is_named_with_the_end_of_its_log(testnet: testnet_homes.Testnet) -> None:
    home = the_home(testnet)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", load_configuration(home).p2p.port))
        taken.listen()

        with pytest.raises(processes.TestnetError, match=f"node0 ended while starting: see {home.log_file}") as caught:
            processes.up(testnet)

    assert any("bflnode:" in line for line in caught.value.log)
    assert running_pid(home.root) is None


def test_a_node_that_does_not_answer_in_time_is_named(testnet: testnet_homes.Testnet) -> None:
    home = the_home(testnet)
    with HomeLock(home.root), pytest.raises(processes.TestnetError, match="node0 doesn't answer in time"):
        processes.up(testnet, deadline_s=0.2)


def test_a_child_of_the_launcher_is_waited_for(testnet: testnet_homes.Testnet, tmp_path: Path) -> None:
    log = tmp_path / "log"
    request = StartProcess(
        "report", "bflnode.node.testnets.report:main", (str(testnet.directory), str(tmp_path / "out")), str(log)
    )

    processes.run_child(processes.launcher_client(testnet), request)

    assert (tmp_path / "out").exists() or "ReportError" in log.read_text()


def test_stopping_everything_ends_the_launcher_and_starting_needs_a_new_one(tmp_path: Path) -> None:
    testnet = testnet_homes.make_testnet(tmp_path / "net", replace(OPTIONS, seed=2))
    client = processes.ensure_launcher(testnet)
    assert processes.ensure_launcher(testnet) == client

    processes.down(testnet)
    processes.down(testnet)

    assert not client.is_alive()
    with pytest.raises(LauncherError, match="no launcher answers"):
        client.start_node(testnet.homes[0].root, (), testnet.homes[0].log_file)


def test_polling_ends_with_what_is_found_or_at_the_deadline() -> None:
    answers = iter((None, None, "found"))

    assert processes.poll(lambda: next(answers), 60) == "found"
    assert processes.poll(lambda: None, 0) is None


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert processes.log_tail(home) == []
    home.run.mkdir()
    home.log_file.write_text("".join(f"line {number}\n" for number in range(100)))

    assert processes.log_tail(home, 3) == ["line 97", "line 98", "line 99"]
    assert processes.log_tail(home, 0) == []


def test_followed_logs_give_whole_lines_also_after_they_were_replaced(tmp_path: Path) -> None:
    homes = [Home(tmp_path / name) for name in ("one", "two")]
    for home in homes:
        home.run.mkdir(parents=True)
    homes[0].log_file.write_text("old\nlast\n")
    lines = processes.follow_logs(homes, 1)

    assert next(lines) == ("one", "last")
    homes[1].log_file.write_text("first of two\nhalf")
    assert next(lines) == ("two", "first of two")
    with homes[1].log_file.open("a") as log:
        log.write(" and half\n")
    assert next(lines) == ("two", "half and half")
    homes[0].log_file.write_text("new\n")
    assert next(lines) == ("one", "new")


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    read, write = os.pipe()
    pid = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
    )
    assert os.read(read, 6) == b"ready\n"

    assert processes.end_processes({"stubborn": pid}, 0.1) == ("stubborn",)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    os.close(read)
    os.close(write)
