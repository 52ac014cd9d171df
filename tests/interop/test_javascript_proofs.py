"""Proofs that a program in JavaScript checks, written from docs/proofs.md: the page says enough, and the same.

Skipped with the reason where Node.js 20 isn't there.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bflnode.consensus.keys import parse_account
from bflnode.node.cli import bflnode
from tests.node.stored_homes import faulty_home

PROGRAM = Path(__file__).parent / "proof.mjs"
OLDEST_NODE = 20
CHANGED_BYTES = 24
"""Places at which a file is changed: each takes a process of its own."""


def run(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(bflnode, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def node() -> str:
    program = shutil.which("node")
    if program is None:
        pytest.skip("Node.js is not installed")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    if int(version.strip().lstrip("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"Node.js {version.strip()} is older than {OLDEST_NODE}")
    return program


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A home, and a proof of each kind."""
    folder = tmp_path_factory.mktemp("proofs")
    home = faulty_home(folder / "home")[0].root
    transaction = run("block", "4", "--home", home)["transactions"][0]["id"]
    for name, asked in (
        ("balance", ("balance",)),
        ("late", ("balance", "--from", "7")),
        ("model", ("model", "--round", "1")),
        ("tx", ("tx", transaction)),
    ):
        run("proof", *asked, "--home", home, "-o", folder / name)
    return {"home": home, **{path.name: path for path in folder.iterdir() if path.is_file()}}


def check(node: str, file: Path, trust: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([node, PROGRAM, file, trust], capture_output=True, text=True, timeout=60, check=False)


def test_every_kind_of_proof_says_the_same_in_javascript(node: str, proofs: dict[str, Path]) -> None:
    genesis = proofs["home"] / "config" / "genesis.json"
    for kind in ("balance", "model", "tx"):
        ours = run("proof", "check", proofs[kind], "--genesis", genesis, "--trusting-period", "any")
        done = check(node, proofs[kind], f"0:{ours['chain_id']}")
        assert (done.returncode, done.stderr) == (0, "")
        theirs = json.loads(done.stdout)
        assert (theirs["kind"], theirs["height"], theirs["time_ms"]) == (kind, ours["height"], ours["time_ms"])
        for name in {"balance", "model", "output", "net", "id"} & set(theirs):
            assert theirs[name] == ours["proven"][name]
        if kind == "balance":
            assert theirs["account"] == parse_account(ours["proven"]["account"]).hex()


def test_proof_from_a_block_is_checked_in_javascript(node: str, proofs: dict[str, Path]) -> None:
    block = run("block", "7", "--home", proofs["home"])["id"]

    assert check(node, proofs["late"], f"7:{block}").returncode == 0
    assert "not start from what is trusted" in check(node, proofs["late"], f"6:{block}").stderr
    assert "not start from what is trusted" in check(node, proofs["late"], f"0:{block}").stderr


def test_changed_proofs_are_refused_in_javascript(node: str, proofs: dict[str, Path], tmp_path: Path) -> None:
    chain = run("status", "--home", proofs["home"])["chain_id"]
    data = proofs["balance"].read_bytes()
    for position in range(0, len(data), -(-len(data) // CHANGED_BYTES)):
        changed = bytearray(data)
        changed[position] ^= 1
        (tmp_path / "changed").write_bytes(changed)
        assert check(node, tmp_path / "changed", f"0:{chain}").returncode == 4, position
