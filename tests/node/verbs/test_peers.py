"""`bflnode peers`: banning by hand, of a stopped and of a running node."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bflnode.node.cli import bflnode
from bflnode.node.home import Home
from bflnode.node.rpc.methods import RpcMethods
from bflnode.node.rpc.refusals import ParameterError
from tests.node.networks import eventually
from tests.node.nodes import opened, small_network
from tests.node.strangers import stranger_of

PEER = "12D3KooWGC6TvWhfajpgX6wvJHhYvKpTGRW4xGdjw3cPhZ7fkgcz"


def run(home: Home, *arguments: str) -> Result:
    return CliRunner().invoke(bflnode, [*arguments, "--home", str(home.root)], standalone_mode=False)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return small_network(tmp_path).homes[0]


def test_a_stopped_node_bans_lists_and_unbans(home: Home) -> None:
    assert json.loads(run(home, "peers", "list", "--banned", "--json").stdout) == []
    assert "nobody is banned" in run(home, "peers", "list", "--banned").stdout
    banned = json.loads(run(home, "peers", "ban", PEER, "--reason", "floods", "--json").stdout)
    assert banned == {"target": PEER, "until_ms": None, "reason": "floods", "count": 1}
    assert run(home, "peers", "ban", "192.0.2.7", "--for", "2h").exception is None
    listed = json.loads(run(home, "peers", "list", "--banned", "--json").stdout)
    assert [(ban["target"], ban["until_ms"] is None) for ban in listed] == [(PEER, True), ("192.0.2.7", False)]
    assert "for ever" in run(home, "peers", "list", "--banned").stdout
    assert json.loads(run(home, "peers", "unban", PEER, "--json").stdout) == {"target": PEER, "was_banned": True}
    assert "is not banned" in str(run(home, "peers", "unban", PEER).exception)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("peers", "ban", "nonsense"), "neither a peer id"),
        (("peers", "unban", "nonsense"), "neither a peer id"),
        (("peers", "ban", PEER, "--for", "soon"), "no length of time"),
        (("peers", "ban", PEER, "--for", "0h"), "no length of time"),
        (("peers", "ban", PEER, "--for", ""), "no length of time"),
        (("peers", "ban"), "Missing argument"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(home: Home, arguments: tuple[str, ...], fault: str) -> None:
    done = run(home, *arguments)
    message: Any = done.exception
    assert fault in message.format_message()


def test_options_before_the_verb_are_not_silently_ignored(home: Home) -> None:
    done = CliRunner().invoke(bflnode, ["peers", "--home", str(home.root), "ban", PEER], standalone_mode=False)
    assert "options go after the verb: bflnode peers ban" in str(done.exception)


async def test_a_running_node_bans_a_connected_peer_and_tells_it(home: Home) -> None:
    flags = {"p2p": {"persistent_peers": ()}, "training": {"enabled": False}}
    async with opened([home], **flags) as [node], stranger_of(node) as stranger:
        methods = RpcMethods(node, "http://127.0.0.1:1")
        peer = stranger.network.peer_id
        answer = await methods.call("ban", {"target": peer, "seconds": 60, "reason": "by hand"})
        assert (answer["target"], answer["reason"]) == (peer, "by hand")
        information = await methods.call("net_info", {})
        assert [ban["target"] for ban in information["bans"]] == [peer]
        await eventually(lambda: "by hand" in (stranger.network.last_words(stranger.node) or ""))
        for params in ({"target": "nonsense"}, {"target": peer, "seconds": 0}):
            with pytest.raises(ParameterError):
                await methods.call("ban", params)
        assert await methods.call("unban", {"target": peer}) == {"target": peer, "was_banned": True}
        assert await methods.call("unban", {"target": peer}) == {"target": peer, "was_banned": False}
