import base64
import json
import os
import secrets
import tarfile
from pathlib import Path

import plyvel
import pytest
import trio
from click.testing import CliRunner

from bflnode.consensus.keys import account_text
from bflnode.node.cli import bflnode
from bflnode.node.configuration import load_configuration
from bflnode.node.daemon import run_node
from bflnode.node.diagnosis.debug_dump import Dumped, write_dump
from bflnode.node.home import Home, HomeError
from tests.consensus.harness import Harness
from tests.node.stored_homes import home_of

PLANTED = "planted-secret-of-the-settings"


@pytest.fixture(scope="module")
def harness() -> Harness:
    played = Harness(actors=2, stakes=(10,), clients_min=2)
    played.register_all()
    return played


@pytest.fixture
def home(harness: Harness, tmp_path: Path) -> Home:
    """A home with every kind of secret, and a log in which each has been written by mistake."""
    made = home_of(tmp_path / "home", harness)
    own = account_text(harness.keys[0].account)
    made.admission_file.write_text(json.dumps({"account": own, "credential": secrets.token_hex(64)}))
    (made.root / "config" / "network.key").write_text(secrets.token_hex(32))
    (made.root / "config" / "admission.key").write_text(secrets.token_hex(32))
    made.shard.write_bytes(b"DATA" + secrets.token_bytes(64))
    made.log_file.write_bytes(b"\n".join(form for secret in secrets_of(made) for form in forms(secret)))
    (made.run / "control").mkdir()
    (made.run / "control" / "trainer.log").write_text("a worker's words\n")
    return made


def secrets_of(home: Home) -> list[bytes]:
    """What must never leave: keys, credential, data."""
    names = ("account.key", "peer.key", "network.key", "admission.key")
    keys = [bytes.fromhex((home.root / "config" / name).read_text()) for name in names]
    credential = bytes.fromhex(json.loads(home.admission_file.read_text())["credential"])
    return [*keys, credential]


def forms(secret: bytes) -> list[bytes]:
    hexadecimal, encoded = secret.hex().encode(), base64.b64encode(secret)
    return [secret, hexadecimal, hexadecimal.upper(), encoded, encoded.rstrip(b"="), base64.urlsafe_b64encode(secret)]


def contents(archive: Path) -> dict[str, bytes]:
    """What is in an archive, without the folder's name."""
    with tarfile.open(archive) as opened:
        files = {member.name.partition("/")[2]: opened.extractfile(member) for member in opened.getmembers()}
        return {name: file.read() for name, file in files.items() if file is not None}


def leaks(home: Home, archive: Path) -> list[str]:
    """Where something secret is in an archive."""
    data = home.shard.read_bytes() if home.shard.exists() else b"no data"
    wanted = [*(form for secret in secrets_of(home) for form in forms(secret)), data[:36], PLANTED.encode()]
    return [name for name, content in contents(archive).items() for form in wanted if form in content]


def test_a_dump_of_a_stopped_node_has_everything_but_secrets(home: Home, harness: Harness, tmp_path: Path) -> None:
    target = tmp_path / "report.tar.gz"
    assert any(form in home.log_file.read_bytes() for form in forms(secrets_of(home)[0])), "the log has secrets"
    dumped = write_dump(home, target)
    assert (dumped.is_running, dumped.errors) == (False, {})
    assert leaks(home, target) == []
    found = contents(target)
    assert set(found) == set(dumped.parts)
    assert found["logs/node.log"].count(b"[removed]") >= 5
    assert found["logs/control-trainer.log"] == b"a worker's words\n"
    assert json.loads(found["rpc/head.json"])["height"] == harness.height
    assert account_text(harness.keys[0].account).encode() in found["rpc/status.json"], "the account is no secret"
    assert "bflnode" in json.loads(found["versions.json"])["packages"]
    assert json.loads(found["settings.json"])["storage"] == {"keep_rounds": 50, "blob_quota": 0}
    assert b"data/shard.npz" in found["files.txt"]
    assert json.loads(found["disk.json"])["chain"]["bytes"] > 0
    assert target.stat().st_mode & 0o777 == 0o600


async def test_a_dump_of_a_running_node_has_its_tasks_and_metrics_too(home: Home, tmp_path: Path) -> None:
    target = tmp_path / "running.tar.gz"
    home.shard.unlink()
    up = trio.Event()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_node, home, load_configuration(home), lambda _started: up.set())
            await up.wait()
            dumped: Dumped = await trio.to_thread.run_sync(write_dump, home, target)
            nursery.cancel_scope.cancel()
    assert (dumped.is_running, dumped.errors) == (True, {})
    assert leaks(home, target) == []
    found = contents(target)
    assert b"agreement_driver.py:" in found["tasks.txt"]
    assert b"bflnode_height" in found["metrics.txt"]
    assert json.loads(found["rpc/status.json"])["pid"] == os.getpid()
    assert json.loads(found["rpc/consensus_state.json"])["height"] > 0
    assert json.loads(found["rpc/net_info.json"])["n_peers"] == 0
    assert b"open files:" in found["process.txt"]


def test_a_broken_home_still_gives_what_it_has_and_the_errors(home: Home, tmp_path: Path) -> None:
    database = plyvel.DB(str(home.chain))
    database.delete(b"m tip")
    database.close()
    home.configuration_file.write_text(f'[nonsense]\ntoken = "{PLANTED}"\n')
    with home.log_file.open("a") as log:
        log.write(f"\nfailed with {PLANTED}\n")
    target = tmp_path / "broken.tar.gz"
    dumped = write_dump(home, target)
    assert set(dumped.errors) == {"settings.json", "chain"}
    assert "the tip is missing" in dumped.errors["chain"]
    found = contents(target)
    assert json.loads(found["errors.json"]) == dumped.errors
    assert b"failed with [removed]" in found["logs/node.log"]
    assert leaks(home, target) == []


def test_a_folder_that_is_no_home_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="is not the home of a node"):
        write_dump(Home(tmp_path), tmp_path / "x.tar.gz")
    assert list(tmp_path.iterdir()) == []


def test_the_verb_writes_where_it_is_told_and_not_over_a_file(home: Home, tmp_path: Path) -> None:
    target = tmp_path / "report.tar.gz"
    command = ["debug", "dump", "--home", str(home.root), "-o", str(target)]
    first = CliRunner().invoke(bflnode, command)
    assert (first.exit_code, first.stdout.startswith(f"wrote {target}: ")) == (0, True), first.output
    assert "is there already" in CliRunner().invoke(bflnode, command).stderr
    again = CliRunner().invoke(bflnode, [*command, "--force", "--json"])
    assert json.loads(again.stdout)["errors"] == {}
    nowhere = CliRunner().invoke(bflnode, [*command[:-1], str(tmp_path / "no" / "folder.tar.gz")])
    assert (nowhere.exit_code, nowhere.stderr.count("\n")) == (1, 1)
