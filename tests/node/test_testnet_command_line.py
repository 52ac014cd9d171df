"""The verbs `bflnode testnet …` without processes: what they print, and how they refuse. With processes: tests/e2e."""

import json
from pathlib import Path

import pytest

from bflnode.node.cli import bflnode
from bflnode.node.testnets.homes import load_testnet
from bflnode.node.testnets.processes import NodeStatus, statuses
from bflnode.node.verbs.progress import PlainView, nodes_table, summary


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `bflnode` with arguments."""
    with pytest.raises(SystemExit) as caught:
        bflnode.main(list(arguments), prog_name="bflnode")
    assert isinstance(caught.value.code, int)
    said = capsys.readouterr()
    return caught.value.code, said.out, said.err


@pytest.fixture
def net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    code, out, _ = run(capsys, "testnet", "init", "-v", "3", "--rounds", "2", "-o", str(tmp_path / "net"))
    assert code == 0
    assert out.endswith(f"next: bflnode testnet up {tmp_path / 'net'}\n")
    return tmp_path / "net"


def test_init_makes_what_was_asked_for(net: Path) -> None:
    testnet = load_testnet(net)

    assert testnet.nodes == ("node0", "node1", "node2")
    assert (testnet.options.rounds, testnet.options.learning_rate_micro) == (2, 1000)
    assert (net / "admission.key").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((), "prior-rows of mean, step 1.25, momentum 0.7, at least 0.3 shared, compared by updates"),
        (("--rule", "paa"), "paa of mean"),
        (
            ("--server-step", "1", "--momentum", "0", "--similarity", "prototypes"),
            "prior-rows of mean, 0.3 shared",
        ),
        (
            ("--combination", "median", "--momentum", "0"),
            "prior-rows of median, step 1.25, compared by updates",
        ),
        (
            ("--rule", "paa", "--combination", "trimmed-mean", "--hostile", "0.3", "--server-step", "1.5"),
            "paa of trimmed-mean, step 1.5",
        ),
    ],
)
def test_init_says_the_rule_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], text: str
) -> None:
    code, out, _ = run(capsys, "testnet", "init", "-v", "1", "-o", str(tmp_path / "net"), *options)

    assert code == 0
    assert f", mlp/1x8x8/10, {text}, 2 clusters" in out
    task = load_testnet(tmp_path / "net").homes[0].load_genesis().tasks[0].specification
    assert task.hostile_permille == (300 if "--hostile" in options else 200)


def test_init_refuses_a_folder_in_use(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "testnet", "init", "-o", str(net))

    assert code == 1
    assert err.startswith(f"bflnode: {net} is not empty")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--alpha", "-1"), 2, "Invalid value for '--alpha'"),
        (("--alpha", "nan"), 2, "Invalid value for '--alpha': nan is not a finite number"),
        (("--learning-rate", "nan"), 2, "Invalid value for '--learning-rate'"),
        (("--learning-rate", "0"), 2, "Invalid value for '--learning-rate'"),
        (("--dataset", "npz"), 1, "data of kind npz needs a path"),
        (("--dataset", "npz", "--data", "/nowhere"), 2, "Path '/nowhere' does not exist"),
        (("--architecture", "transformer"), 1, "'transformer' is not an architecture id"),
        (("--min-clients", "9"), 1, "a round needs 9 clients but there are 5 nodes"),
        (("--rule", "fastest"), 2, "Invalid value for '--rule'"),
        (("--hostile", "0.5"), 2, "Invalid value for '--hostile'"),
        (("--server-step", "nan"), 2, "Invalid value for '--server-step'"),
        (("--combination", "krum", "--weighting", "samples"), 1, "krum counts clients equally"),
    ],
)
def test_what_cannot_be_made_is_one_line_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], code: int, message: str
) -> None:
    found, out, err = run(capsys, "testnet", "init", "-o", str(tmp_path / "net"), *options)

    assert (found, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", ["up", "down", "status", "logs", "add", "report"])
def test_every_verb_refuses_a_folder_that_is_no_testnet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    code, _, err = run(capsys, "testnet", verb, str(tmp_path))

    assert code == 1
    assert "is not a testnet" in err
    assert "make one with `bflnode testnet init" in err


@pytest.mark.parametrize("verb", ["up", "down", "status", "logs"])
def test_every_verb_names_the_nodes_when_asked_for_another(
    net: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    code, _, err = run(capsys, "testnet", verb, str(net), "node7")

    assert code == 1
    assert "has no node 'node7': it has node0, node1, node2" in err


def test_status_of_stopped_nodes_is_read_from_their_homes(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "testnet", "status", str(net), "--json")

    assert code == 0
    lines = json.loads(out)
    assert [line["name"] for line in lines] == ["node0", "node1", "node2"]
    assert [(line["home"], line["pid"], line["rpc"]) for line in lines] == [
        (str(net / line["name"]), None, None) for line in lines
    ]
    assert {line["height"] for line in lines} == {0}


def test_stopping_what_is_stopped_succeeds(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "testnet", "down", str(net)) == (0, "3 nodes stopped\n", "")


def test_adding_to_a_stopped_network_says_how_to_start_the_newcomer(
    net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "testnet", "add", str(net))

    assert code == 0
    assert out.splitlines()[-1] == f"next: bflnode testnet up {net} node3"
    assert load_testnet(net).nodes[-1] == "node3"


def test_a_report_on_nodes_that_never_ran_is_refused(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "testnet", "report", str(net))

    assert code == 1
    assert "node0 has no blocks" in err


def test_logs_of_several_nodes_are_told_apart(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("node0", "node1"):
        (net / name / "run" / "node.log").write_text(f"first\n{name} speaks\n")

    assert run(capsys, "testnet", "logs", str(net), "-n", "1")[1] == "node0 | node0 speaks\nnode1 | node1 speaks\n"
    assert run(capsys, "testnet", "logs", str(net), "node1", "-n", "1")[1] == "node1 speaks\n"


def test_progress_is_told_of_the_node_that_is_furthest_ahead(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    testnet = load_testnet(net)
    behind, front, down = statuses(testnet)
    assert front.status is not None
    known = {
        "round": 2, "rounds": 2, "attempt": 1, "phase": "reveal", "height": 9, "committed": 3, "revealed": 1,
        "clients": 3, "aggregator": front.status["account"],
    }  # fmt: skip
    nodes = (
        behind,
        NodeStatus(front.name, front.home, 17, "http://127.0.0.1:1", {**front.status, **known}),
        NodeStatus(down.name, down.home, None, None, None, "unreadable"),
    )

    text = summary(testnet, nodes)

    assert text == (
        "round 2 of 2 (attempt 2): reveal, committed 3 and revealed 1 of 3, attested 0, aggregator node1"
        " · node0, node2 down"
    )
    assert nodes_table(nodes).row_count == 3
    view = PlainView()
    view.update(testnet, nodes)
    view.update(testnet, nodes)
    assert capsys.readouterr().err.count(text) == 1
