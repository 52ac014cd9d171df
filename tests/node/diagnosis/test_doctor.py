"""The doctor, on real nodes and sockets: each cause that it knows is made, and named."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from bflnode.node.cli import bflnode
from bflnode.node.diagnosis import doctor as limits
from bflnode.node.diagnosis.doctor import Check, Verdict, examine, patient_of
from bflnode.node.home import Home, replace_key_file
from bflnode.node.node import Node
from bflnode.node.p2p.messages import HELLO
from bflnode.node.p2p.peer_identity import peer_id_text
from bflnode.node.protected_key import ProtectedKey
from bflnode.node.rpc.inspection_peers import network_information
from tests.node.networks import eventually
from tests.node.nodes import opened, small_network

ALONE = {"p2p": {"persistent_peers": ()}, "training": {"enabled": False}}
SOMEBODY = "12D3KooWGC6TvWhfajpgX6wvJHhYvKpTGRW4xGdjw3cPhZ7fkgcz"


async def verdicts(home: Home, *addresses: str, running: Node | None = None) -> dict[str, Check]:
    """The last check of each name."""
    information = None if running is None else network_information(running)
    return {check.name: check for check in await examine(patient_of(home, information), addresses)}


def bad(found: dict[str, Check]) -> dict[str, str]:
    return {name: check.text for name, check in found.items() if check.verdict is Verdict.FAILED}


async def test_two_nodes_that_fit_are_well_whether_one_is_stopped_or_runs(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:2]
    async with opened(homes[1:], **ALONE) as [other]:
        address = other.network.addresses[0]
        found = await verdicts(homes[0], address)
        assert bad(found) == {}
        assert found["chain"].text == "the same chain, at height 0"
        async with opened(homes[:1], p2p={"persistent_peers": (address,)}) as [node]:
            await eventually(lambda: bool(node.peers.all() and other.peers.all()))
            found = await verdicts(homes[0], address, running=node)
            assert bad(found) == {}
            assert {"own-port", "peers", "network-key", "version", "clock"} <= found.keys()


async def test_ports_names_and_identities_that_are_wrong_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CONNECT_TIMEOUT_S", "GREETING_TIMEOUT_S"):
        monkeypatch.setattr(limits, name, 0.3)
    homes = small_network(tmp_path).homes[:2]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        quiet = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{SOMEBODY}"
        assert bad(await verdicts(homes[0], quiet)) == {
            "handshake": "something listens there but says nothing in 0.3 s"
        }
    assert bad(await verdicts(homes[0], quiet))["tcp"].startswith("connection refused: nothing listens on port")
    nowhere = f"/dns/no-such-host.invalid/tcp/1/p2p/{SOMEBODY}"
    assert bad(await verdicts(homes[0], nowhere))["dns"].startswith("the name no-such-host.invalid isn't known")
    assert "is not a full address" in bad(await verdicts(homes[0], "nonsense"))["address"]
    own = f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id_text(homes[0].load_peer_seed())}"
    assert bad(await verdicts(homes[0], own)) == {"address": "that is this node itself"}
    async with opened(homes[1:], **ALONE) as [other]:
        wrong = other.network.addresses[0].replace(other.network.peer_id, SOMEBODY)
        assert bad(await verdicts(homes[0], wrong)) == {
            "peer-id": "another node than the one of this peer id answers there"
        }


async def test_a_copy_of_a_stopped_home_that_runs_elsewhere_is_told_from_a_slip(tmp_path: Path) -> None:
    home = small_network(tmp_path).homes[0]
    async with opened([home], **ALONE) as [copy]:
        address = copy.network.addresses[0]
        own = bad(await verdicts(home, address))["key"]
        assert own == "a node answers there under this node's own peer id, although this node is stopped"
        assert bad(await verdicts(home, address, running=copy))["address"] == "that is this node itself"


def test_a_key_under_a_passphrase_needs_none_to_be_examined(tmp_path: Path) -> None:
    home = small_network(tmp_path).homes[0]
    account = home.load_account()
    sealed = ProtectedKey.seal(bytes.fromhex(home.account_key_file.read_text().strip()), b"correct horse battery")
    replace_key_file(home.account_key_file, sealed.to_text())

    assert patient_of(home, None).account == account


async def test_another_genesis_is_named_with_the_parts_that_differ(tmp_path: Path) -> None:
    ours, theirs = (small_network(tmp_path / name, rounds=rounds) for name, rounds in (("a", 1), ("b", 2)))
    async with opened(theirs.homes[:1], **ALONE) as [other]:
        found = await verdicts(ours.homes[0], other.network.addresses[0])
        assert list(bad(found)) == ["chain"]
        assert "the genesis files differ in" in found["chain"].text
        assert "tasks" in found["chain"].text
        assert "mode" not in found["chain"].text.split("differ in")[1]
        assert "take config/genesis.json from whoever runs the network" in found["chain"].advice


async def test_a_network_key_that_one_side_lacks_or_that_differs_is_named(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:2]

    def give_key(home: Home, digits: str) -> dict[str, object]:
        home.network_key_file.unlink(missing_ok=True)
        home.network_key_file.write_text(digits * 64)
        home.network_key_file.chmod(0o600)
        return {"p2p": {"persistent_peers": (), "private_key_file": "network.key"}, "training": {"enabled": False}}

    private = give_key(homes[1], "a")
    async with opened(homes[1:], **private) as [other]:
        address = other.network.addresses[0]
        assert bad(await verdicts(homes[0], address)) == {
            "network-key": "it is in a private network, and this node has no key; or it is no bflnode"
        }
        give_key(homes[0], "b")
        with homes[0].configuration_file.open("a") as file:
            file.write("\n")
        patient = patient_of(homes[0], None)
        for key, text in (
            ("b" * 64, {"network-key": "its network key is another one than this node's, or it is no bflnode"}),
            ("a" * 64, {}),
        ):
            checks = await examine(replace(patient, network_key=key), [address])
            assert {check.name: check.text for check in checks if check.verdict is Verdict.FAILED} == text
    async with opened(homes[1:], **ALONE) as [other]:
        checks = await examine(replace(patient, network_key="b" * 64), [other.network.addresses[0]])
        assert [check.text for check in checks if check.verdict is Verdict.FAILED] == [
            "it is in an open network, this node has a network key"
        ]


async def test_bans_of_either_side_are_named(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:2]
    async with opened(homes, **ALONE) as [node, other]:
        await node.network.ban(other.network.peer_id, reason="it floods")
        found = await verdicts(homes[0], other.network.addresses[0], running=node)
        assert bad(found)["banned-here"] == "this node has banned it: it floods"
        assert found["banned-here"].advice == f"`bflnode peers unban {other.network.peer_id}`"
    async with opened(homes[1:], **ALONE) as [other]:
        await other.network.ban(peer_id_text(homes[0].load_peer_seed()), reason="no reason")
        assert bad(await verdicts(homes[0], other.network.addresses[0])) == {
            "banned-there": "it refuses this node: banned until its operator ends it: no reason"
        }


async def test_a_clock_that_differs_and_a_key_that_is_online_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = small_network(tmp_path).homes[:2]
    async with opened(homes, **ALONE) as [node, other]:
        await node.network.dial(other.network.addresses[0])
        await eventually(lambda: other.peers.of_account(node.key.account) is not None)
        real = limits.now_ms
        monkeypatch.setattr(limits, "now_ms", lambda: real() - 3_600_000)
        # The node runs, but the doctor is told that it doesn't, as on another machine with a copy of its key.
        patient = replace(patient_of(homes[0], None), peer_seed=bytes(32))
        found = {check.name: check for check in await examine(patient, [other.network.addresses[0]])}
        assert bad(found)["key"] == "this account is online there, although this node is stopped"
        assert found["clock"].verdict is Verdict.FAILED
        assert found["clock"].text.startswith("its clock is 3600.")
        assert "s ahead of this machine's, more than the chain tolerates" in found["clock"].text


async def test_a_refused_hello_shows_with_its_reason_and_few_files_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (small_network(tmp_path / name, rounds=rounds) for name, rounds in (("a", 1), ("b", 2)))
    async with opened(theirs.homes[:1], **ALONE) as [other], opened(ours.homes[:1], **ALONE) as [node]:
        await node.network.dial(other.network.addresses[0])
        await eventually(lambda: any("differ in" in refusal.reason for refusal in node.peers.refusals()))
        monkeypatch.setattr("resource.getrlimit", lambda _: (64, 64))
        found = await verdicts(ours.homes[0], running=node)
        assert "the genesis files differ" in found["refused"].text
        assert "only 64 files may be open" in bad(found)["open-files"]
        assert found["peers"].verdict is Verdict.WARNING


def test_the_verb_prints_json_and_ends_with_1_where_something_is_wrong(tmp_path: Path) -> None:
    home = small_network(tmp_path).homes[0]
    dead = f"/ip4/127.0.0.1/tcp/1/p2p/{SOMEBODY}"
    done = CliRunner().invoke(bflnode, ["doctor", "--home", str(home.root), "--json", dead])
    answer = json.loads(done.stdout)
    assert (done.exit_code, answer["ok"]) == (1, False)
    assert [check["check"] for check in answer["checks"] if check["verdict"] == "failed"] == ["tcp"]
    assert all(set(check) == {"check", "subject", "verdict", "text", "advice"} for check in answer["checks"])
    done = CliRunner().invoke(bflnode, ["doctor", "--home", str(home.root)])
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "all is well")


async def test_a_node_of_a_future_version_is_refused_with_the_reason_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The future node is this code with another number: it knows no `HELLO` of ours, and we know none of its."""
    homes = small_network(tmp_path).homes[:2]
    async with opened(homes[:1], **ALONE) as [node]:
        future = HELLO.replace("/2", "/3")
        for module in ("node", "p2p.peers"):
            monkeypatch.setattr(f"bflnode.node.{module}.HELLO", future)
        monkeypatch.setattr("bflnode.node.node.REQUESTS", (future, "/bflnode/about/1"))
        async with opened(homes[1:], **ALONE) as [other]:
            real = other.peers.about
            about = replace(real(), protocol=3, oldest_protocol=3)
            monkeypatch.setattr(other.peers, "about", lambda: about)
            for module in ("node", "p2p.peers"):
                monkeypatch.setattr(f"bflnode.node.{module}.HELLO", future)
            await node.network.dial(other.network.addresses[0])
            await eventually(lambda: bool(node.peers.refusals() and other.peers.refusals()))
            with trio.fail_after(5):
                await eventually(lambda: not node.network.peers())
            assert "it needs at least protocol 3" in node.peers.refusals()[-1].reason
            assert "update this node" in node.peers.refusals()[-1].reason
            assert "update the other node" in other.peers.refusals()[-1].reason
