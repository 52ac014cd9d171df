"""js-libp2p against running nodes: docs/wire.md is enough for a client, not only what our code agrees on with itself.

Skipped with the reason where Node.js 20, npm or its registry isn't there. The packages are installed once, from the
lock file, into `build/interop`.
"""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from bflnode.consensus.genesis import Genesis
from bflnode.consensus.hashing import tagged_hash
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.tables import ACCOUNTS
from bflnode.consensus.transaction import Admit, Transfer
from bflnode.consensus.types import TOKEN
from bflnode.node.admission import sign_credential
from bflnode.node.node import Node
from bflnode.node.p2p.messages import BLOCKS, CHUNKS, HELLO, PUSHES
from bflnode.storage.blob_store import BlobStore
from tests.node.nodes import running, small_network

HERE = Path(__file__).parent
CLIENT_FILES = ("package.json", "package-lock.json", "canonical.mjs", "client.mjs")
BUILD = HERE.parents[1] / "build" / "interop"

INSTALL_DEADLINE_S = 60
"""A hundred small packages take ten seconds from a near registry."""

CLIENT_DEADLINE_S = 90.0
OLDEST_NODE = 20
SEED = bytes([7]) * 32
BLOB = bytes(range(256)) * 2_500
"""640,000 bytes: two full chunks and a part of one."""


@pytest.fixture(scope="module")
def client() -> list[str]:
    """The command that runs the client."""
    return [node_program(), str(installed() / "client.mjs")]


def node_program() -> str:
    program = shutil.which("node")
    if program is None or shutil.which("npm") is None:
        pytest.skip("Node.js and npm are not installed")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    if int(version.strip().lstrip("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"Node.js {version.strip()} is older than {OLDEST_NODE}")
    return program


def installed() -> Path:
    """A folder with the client and its packages, made again when the lock file changes."""
    folder = BUILD / hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for name in CLIENT_FILES:
        shutil.copyfile(HERE / name, folder / name)
    if not (folder / "complete").exists():
        install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--cache", str(BUILD / "npm-cache")]
        try:
            subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=INSTALL_DEADLINE_S, check=True)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm didn't install the client's packages in {INSTALL_DEADLINE_S} s")
        except subprocess.CalledProcessError as error:
            if is_network_failure(error.stderr):
                pytest.skip(f"npm can't reach its registry: {error.stderr.strip().splitlines()[-1]}")
            raise AssertionError(f"npm ci failed:\n{error.stderr}") from error
        (folder / "complete").touch()
    return folder


def is_network_failure(said: str) -> bool:
    codes = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "E403", "E404", "E503")
    return any(code in said for code in codes)


async def run_client(client: list[str], task: dict[str, Any]) -> dict[str, Any]:
    with trio.fail_after(CLIENT_DEADLINE_S):
        finished = await trio.run_process(
            client, stdin=json.dumps(task).encode(), capture_stdout=True, capture_stderr=True, check=False
        )
    assert finished.returncode == 0, finished.stderr.decode()
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


def task_for(node: Node, genesis: Genesis, admission_key: Path) -> dict[str, Any]:
    return {
        "address": node.network.addresses[0],
        "chain": genesis.chain_id.hex(),
        "seed": SEED.hex(),
        "validators": [validator.account.hex() for validator in genesis.validators],
        "credential": sign_credential(admission_key, genesis, SecretKey.from_seed(SEED).account).hex(),
        "recipient": node.key.account.hex(),
    }


async def test_client_in_another_language_takes_part(client: list[str], tmp_path: Path) -> None:
    """Hello, pushes, gossip both ways, blocks and a blob by chunks; the client checks hashes and signatures itself.

    One of four validators stays away: then whoever proposes a block gossips it.
    """
    testnet = small_network(tmp_path)
    genesis = testnet.homes[0].load_genesis()
    blob = BlobStore(testnet.homes[0].blobs).put(BLOB)
    account = SecretKey.from_seed(SEED).account
    quiet = {"training": {"enabled": False}}
    async with running(testnet.homes[:3], **quiet) as nodes:
        task = task_for(nodes[0], genesis, testnet.directory / "admission.key")
        found = await run_client(client, task | {"blob": blob.hex()})
        store = nodes[0].chain.store
        blocks = [store.block(height) for height in range(1, store.tip().height + 1)]
        opened = ACCOUNTS.get(nodes[0].chain.tree, account)

    ids = [block.id.hex() for block in blocks]
    seen = [block["id"] for block in found["blocks"]]
    sent = {transaction.id.hex(): transaction.body for block in blocks for transaction in block.transactions}
    assert found["account"] == account.hex()
    assert found["hello"]["account"] == nodes[0].key.account.hex()
    assert found["hello"]["addresses"][0] == nodes[0].network.addresses[0]
    assert {HELLO, BLOCKS, CHUNKS, *PUSHES} <= set(found["protocols"])
    assert seen == ids[: len(seen)]
    assert isinstance(sent[found["admit"]], Admit)
    assert sent[found["transfer"]] == Transfer(nodes[0].key.account, TOKEN)
    assert found["paid"] in ids
    assert set(found["gossiped"]) <= set(ids)
    assert len(found["gossiped"]) >= 1
    assert found["pushes"]["/bflnode/status/1"] >= 1
    assert found["blob"] == {"size": len(BLOB), "chunks": 3, "hash": tagged_hash("test", BLOB).hex()}
    assert found["refusal"].startswith("1 unknown-blob")
    assert found["pings"]
    assert opened is not None
    assert (opened.balance, opened.nonce) == (genesis.parameters.admission_amount - TOKEN, 1)
