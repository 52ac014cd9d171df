"""Private networks: with the key everything works, without it nothing begins."""

from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from bflnode.node.cli import bflnode
from bflnode.node.configuration import load_configuration
from bflnode.node.home import Home, HomeError
from bflnode.node.p2p.libp2p_connections import PrivateConnection
from bflnode.node.p2p.libp2p_greetings import Greeting, hear_greeting
from bflnode.node.p2p.network import TransportError, open_network
from bflnode.node.p2p.network_key import load_network_key
from tests.node.networks import PUSH, TOPIC, Recorder, config, echo_works, networks, pair
from tests.node.nodes import opened, small_network

KEY, OTHER_KEY = "ab" * 32, "cd" * 32


async def test_nodes_with_the_same_key_push_ask_and_gossip() -> None:
    async with pair(network_key=KEY) as (first, _, second, second_seen):
        assert await echo_works(first, second.peer_id)
        assert await echo_works(second, first.peer_id)
        assert first.push(second.peer_id, PUSH, bytes(300_000))
        await first.wait_for_mesh(TOPIC, timeout_s=5)
        await first.publish(TOPIC, b"gossip")
        await second_seen.until(lambda: bool(second_seen.pushes and second_seen.gossip))


@pytest.mark.parametrize(("ours", "theirs"), [(None, KEY), (KEY, None), (KEY, OTHER_KEY)])
async def test_a_node_without_the_key_or_with_another_gets_nowhere(
    ours: str | None, theirs: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bflnode.node.p2p.network.DIAL_TIMEOUT_S", 0.5)
    async with (
        open_network(config(1, network_key=ours), Recorder()) as stranger,
        networks(2, network_key=theirs) as [_, (inside, inside_seen)],
    ):
        with pytest.raises(TransportError):
            await stranger.dial(inside.addresses[0])
        assert (stranger.peers(), inside.peers(), inside_seen.log) == ((), (), [])


@pytest.mark.parametrize(
    ("ours", "theirs", "greeting"),
    [
        (None, None, Greeting.OPEN),
        (KEY, None, Greeting.OPEN),
        (None, KEY, Greeting.OTHER),
        (KEY, KEY, Greeting.SAME_KEY),
        (OTHER_KEY, KEY, Greeting.OTHER),
    ],
)
async def test_the_first_bytes_tell_which_network_a_node_is_in(
    ours: str | None, theirs: str | None, greeting: Greeting
) -> None:
    async with networks(1, network_key=theirs) as [(network, _)]:
        port = int(network.addresses[0].split("/")[4])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert await hear_greeting(stream, ours, 5.0) is greeting


class Pieces:
    """A connection that gives one byte at a time."""

    is_initiator = False

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read(self, n: int) -> bytes:
        await trio.lowlevel.checkpoint()
        piece, self.data = self.data[:1], self.data[1:]
        return piece

    async def write(self, data: bytes) -> None:
        self.data += data


async def test_a_nonce_that_comes_in_pieces_is_read_whole() -> None:
    wire = Pieces(b"")
    await PrivateConnection(wire, KEY).write(b"hello")  # type: ignore[arg-type]  # a connection in all but name
    reader = PrivateConnection(wire, KEY)  # type: ignore[arg-type]  # likewise
    assert b"".join([await reader.read(5) for _ in range(5)]) == b"hello"


async def test_a_node_takes_its_key_from_the_home(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:2]
    for home in homes:
        home.network_key_file.write_text(KEY)
        home.network_key_file.chmod(0o600)
    flags = {"p2p": {"persistent_peers": (), "private_key_file": "network.key"}, "training": {"enabled": False}}
    async with opened(homes, **flags) as [first, second]:
        assert await first.network.dial(second.network.addresses[0]) == second.network.peer_id


@pytest.mark.parametrize(
    ("content", "mode", "fault"),
    [("ab" * 31, 0o600, "31 bytes instead of 32"), ("xy" * 32, 0o600, "hexadecimal"), (KEY, 0o644, "read by others")],
)
def test_a_key_file_that_is_none_is_refused_with_what_to_do(
    tmp_path: Path, content: str, mode: int, fault: str
) -> None:
    home = small_network(tmp_path).homes[0]
    configuration = load_configuration(home, {"p2p": {"private_key_file": str(tmp_path / "key")}})
    with pytest.raises(HomeError, match="the private network's key: cannot read"):
        load_network_key(home, configuration)
    (tmp_path / "key").write_text(content)
    (tmp_path / "key").chmod(mode)
    with pytest.raises(HomeError, match=f"{fault}.*openssl rand -hex 32"):
        load_network_key(home, configuration)


def test_init_copies_the_key_and_sets_it(tmp_path: Path) -> None:
    genesis = small_network(tmp_path).directory / "genesis.json"
    (tmp_path / "shared.key").write_text(KEY)
    (tmp_path / "shared.key").chmod(0o600)
    home = Home(tmp_path / "mine")
    arguments = [
        "init",
        "--home",
        str(home.root),
        "--genesis",
        str(genesis),
        "--network-key",
        str(tmp_path / "shared.key"),
    ]
    done = CliRunner().invoke(bflnode, [*arguments, "--mdns", "--bootstrap", "nonsense"], standalone_mode=False)
    assert "is not the address of a peer" in str(done.exception)
    assert not home.root.exists()
    done = CliRunner().invoke(bflnode, [*arguments, "--mdns"], standalone_mode=False)
    assert done.exception is None
    configuration = load_configuration(home)
    assert (configuration.p2p.mdns, configuration.p2p.private_key_file) == (True, "network.key")
    assert load_network_key(home, configuration) == KEY
    assert home.network_key_file.stat().st_mode & 0o777 == 0o600
