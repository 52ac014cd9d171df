"""`bflnode init` that dies half-way can be run again, and never makes a second key."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from bflnode.consensus.genesis import format_genesis
from bflnode.node.home import Home
from bflnode.storage.failpoints import VARIABLE
from tests.e2e.network import command
from tests.storage.chains import GENESIS


@pytest.mark.parametrize("point", ["file.fsync.before=1", "file.rename.after=2", "file.rename.before=4"])
def test_a_home_whose_making_was_killed_is_finished_with_the_same_keys(tmp_path: Path, point: str) -> None:
    genesis, home = tmp_path / "genesis.json", Home(tmp_path / "home")
    genesis.write_text(format_genesis(GENESIS), encoding="utf-8")
    arguments = command("init", "--home", str(home.root), "--genesis", str(genesis))

    killed = subprocess.run(arguments, env={**os.environ, VARIABLE: point}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    keys = [path.read_text() for path in (home.account_key_file, home.peer_key_file) if path.exists()]
    assert all(len(key) == 65 for key in keys)
    assert not home.genesis_file.exists()

    again = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    found = [home.account_key_file.read_text(), home.peer_key_file.read_text()]
    assert found[: len(keys)] == keys
    assert home.load_genesis() == GENESIS
