"""Proofs from real chains: made by a stopped home and by a running node, checked where there is neither."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import Result

from bflnode.consensus.keys import account_text
from bflnode.consensus.ledger import validate_block
from bflnode.consensus.light import ANY_AGE_MS, Clock, Trust
from bflnode.consensus.proof_file import BalanceClaim, ProvenBalance, check_proof, decode_proof, encode_proof
from bflnode.consensus.tables import current_validators
from bflnode.consensus.task import MAX_PHASE_MS
from bflnode.consensus.transaction import Bond, Unbond
from bflnode.consensus.types import AccountId, BlockId
from bflnode.node.configuration import load_configuration
from bflnode.node.home import Home
from bflnode.node.journal import Journal
from bflnode.node.node import open_node
from bflnode.node.rpc import server as rpc
from bflnode.node.rpc.inspection import Inspector, Sources
from bflnode.node.rpc.proofs import proof
from bflnode.node.rpc.refusals import InspectionError, ParameterError
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import MissingError
from tests.consensus.harness import Harness
from tests.consensus.setups import Setup
from tests.node.command_line import complaint, read, run
from tests.node.rpc.answering import answering
from tests.node.stored_homes import (
    ABSENT,
    COPIER,
    faulty_home,
    home_of,
    home_with,
    learning_home,
    learning_keys,
)

ANY_AGE = ("--trusting-period", "any")
"""The chains of these tests are of 1970."""

LATER_MS = 4_000_000_000_000
"""A time after all blocks here."""

NOBODY = account_text(AccountId(bytes(range(32))))

QUICK = {"heartbeat_ms": 100}
"""An idle chain goes on ten times a second."""

OFFLINE = """
import sys
from bflnode.node.cli import bflnode
try:
    bflnode.main(sys.argv[1:], prog_name="bflnode")
finally:
    heavy = {"torch", "trio", "libp2p", "plyvel", "httpx", "sklearn"} & set(sys.modules)
    if heavy:
        print(f"loaded {sorted(heavy)}", file=sys.stderr)
"""
"""Runs the command line and complains about what no check should need."""


@dataclass(frozen=True)
class Learned:
    """The home of a network that trained two rounds, and its proofs."""

    home: Path
    proofs: Path

    @property
    def genesis(self) -> Path:
        return self.home / "config" / "genesis.json"

    def file(self, name: str) -> Path:
        return self.proofs / name


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    folder = tmp_path_factory.mktemp("learned")
    learning_home(folder / "home")
    found = Learned(folder / "home", folder)
    transaction = read("block", "3", "--home", found.home)["transactions"][0]["id"]
    home = ("--home", found.home)
    for name, asked in (
        ("balance.proof", ("balance",)),
        ("nobody.proof", ("balance", NOBODY)),
        ("model.proof", ("model", "--round", "1")),
        ("tx.proof", ("tx", transaction)),
        ("late.proof", ("balance", "--from", "9")),
    ):
        read("proof", *asked, *home, "-o", found.file(name))
    read("model", "get", "--client", account_text(learning_keys()[0].account)[:8], "--round", "1", *home,
         "-o", found.file("update.safetensors"))  # fmt: skip
    return found


class ChangingHarness(Harness):
    """A harness whose blocks are signed by who is a validator then."""

    @property
    def validators(self) -> list[int]:  # type: ignore[override]  # any actors may be validators, not the first ones only
        return [self.actor(account) for account in current_validators(self.tree).accounts]


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Harness]:
    """A chain whose first validators have all left."""
    harness = ChangingHarness(Setup(actors=8, stakes=(10, 10, 10, 10)))
    harness.wait(100)
    for newcomer in range(4, 8):
        harness.block(harness.sign(newcomer, Bond(20), nonce=0))
    for leaver in range(4):
        harness.wait(100)
        harness.block(harness.sign(leaver, Unbond(10), nonce=0))
    for _ in range(3):
        harness.wait(100)
    home = home_of(tmp_path_factory.mktemp("changing") / "home", harness)
    return home, harness


# Offline


def offline(folder: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own, in an empty folder, without a home."""
    folder.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder / "none"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", OFFLINE, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_proof_of_a_model_is_checked_without_home_node_or_torch(learned: Learned, tmp_path: Path) -> None:
    trust = ("--genesis", learned.genesis, "--model", learned.file("update.safetensors"), "--json")
    done = offline(tmp_path / "away", "proof", "check", *ANY_AGE, learned.file("model.proof"), *trust)

    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "away").iterdir()) == []
    found = json.loads(done.stdout)
    chosen = read("reward", "explain", "--round", "1", "--home", learned.home)
    assert found["proven"]["net"] == chosen["net"]
    assert found["proven"]["client"] == chosen["client"]
    assert (found["kind"], found["model_file"], found["proven"]["round"]) == ("model", "client's model", 1)


def test_refused_proof_is_one_line_and_exit_code_4_offline(learned: Learned, tmp_path: Path) -> None:
    data = bytearray(learned.file("balance.proof").read_bytes())
    data[-70] ^= 1
    (tmp_path / "forged.proof").write_bytes(data)
    done = offline(
        tmp_path / "away", "proof", "check", *ANY_AGE, tmp_path / "forged.proof", "--genesis", learned.genesis
    )

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
    assert "forged.proof proves nothing to you: wrong-root" in done.stderr


# The command line


def test_balance_and_transaction_are_proven(learned: Learned) -> None:
    balance = read("proof", "check", *ANY_AGE, learned.file("balance.proof"), "--genesis", learned.genesis)
    account = read("account", "--home", learned.home)
    head = read("chain", "head", "--home", learned.home)
    assert balance["proven"] == {key: account[key] for key in ("account", "exists", "balance", "nonce")}
    assert (balance["height"], balance["block"], balance["time_ms"]) == (head["height"], head["id"], head["time_ms"])

    transaction = read("proof", "check", *ANY_AGE, learned.file("tx.proof"), "--genesis", learned.genesis)
    stored = read("tx", transaction["proven"]["id"], "--home", learned.home)
    assert transaction["height"] == stored["height"] == 3
    assert transaction["proven"] == {key: stored[key] for key in transaction["proven"]}


def test_absence_of_an_account_is_proven(learned: Learned) -> None:
    found = read("proof", "check", *ANY_AGE, learned.file("nobody.proof"), "--genesis", learned.genesis)

    assert found["proven"] == {"account": NOBODY, "exists": False, "balance": 0, "nonce": 0}
    words = run("proof", "check", *ANY_AGE, learned.file("nobody.proof"), "--genesis", learned.genesis).stdout
    assert "there is no such account" in words


def test_chain_id_is_trust_enough(learned: Learned) -> None:
    chain = read("status", "--home", learned.home)["chain_id"]
    for name in ("balance.proof", "nobody.proof", "model.proof", "tx.proof"):
        assert read("proof", "check", *ANY_AGE, learned.file(name), "--trust", chain)["trusted_height"] == 0


def test_proof_from_a_block_is_checked_by_who_trusts_that_block(learned: Learned) -> None:
    block = read("block", "9", "--home", learned.home)["id"]
    chain = read("status", "--home", learned.home)["chain_id"]
    found = read("proof", "check", *ANY_AGE, learned.file("late.proof"), "--trust", f"9:{block}")
    assert (found["trusted_height"], found["trusted_block"], found["unbonding_ms"]) == (9, block, None)

    late = ("proof", "check", *ANY_AGE, learned.file("late.proof"), "--trust")
    assert "wrong-hash" in complaint(run(*late, f"9:{chain}"), 4)
    assert "wrong-height" in complaint(run(*late, f"8:{block}"), 4)
    assert "doesn't start from the genesis" in complaint(run(*late, chain), 4)


def test_check_prints_as_of_when_and_refuses_what_is_too_old(learned: Learned) -> None:
    """A lying node can only hand out an old proof: it is true of its time, which is shown and can be bounded."""
    check = ("proof", "check", *ANY_AGE, learned.file("balance.proof"), "--genesis", learned.genesis)
    result = run(*check)

    assert result.exit_code == 0
    assert "as of    block 11, 1970-01-01 00:16:41 UTC" in result.stdout
    assert "days ago" in result.stdout
    assert "you want at most 10.0 min" in complaint(run(*check, "--max-age", "10m"), 4)
    assert run(*check, "--max-age", "999999d").exit_code == 0


def test_trusted_block_that_is_too_old_is_refused_unless_its_reader_says_otherwise(learned: Learned) -> None:
    check = ("proof", "check", learned.file("balance.proof"), "--genesis", learned.genesis)

    assert "say with --trusting-period (a time, or `any`)" in complaint(run(*check), 4)
    assert "expired" in complaint(run(*check, "--trusting-period", "14d"), 4)
    assert run(*check, "--trusting-period", "any").exit_code == 0
    assert "no length of time" in complaint(run(*check, "--trusting-period", "all"), 2)
    assert run(*check, "--trusting-period", "999999d").exit_code == 0


def test_age_beyond_the_unbonding_time_is_pointed_out(learned: Learned) -> None:
    result = run("proof", "check", *ANY_AGE, learned.file("balance.proof"), "--genesis", learned.genesis)

    assert "stake stays bound for 21.0 days only" in result.stdout


def test_model_file_is_told_from_others(learned: Learned, tmp_path: Path) -> None:
    check = ("proof", "check", *ANY_AGE, learned.file("model.proof"), "--genesis", learned.genesis, "--model")
    output = read(*check, learned.file("update.safetensors"))["proven"]["output"]
    read("model", "get", "--id", output, "--home", learned.home, "-o", tmp_path / "global.safetensors")
    other = bytearray((tmp_path / "global.safetensors").read_bytes())
    other[-1] ^= 1
    (tmp_path / "other.safetensors").write_bytes(other)

    assert read(*check, tmp_path / "global.safetensors")["model_file"] == "global model"
    assert "is neither the client's model" in complaint(run(*check, tmp_path / "other.safetensors"), 4)
    assert "cannot read" in complaint(run(*check, tmp_path / "missing"), 1)
    needs = run("proof", "check", *ANY_AGE, learned.file("tx.proof"), "--genesis", learned.genesis, "--model", "x")
    assert "needs a proof of a model" in complaint(needs, 1)


def test_check_needs_to_know_what_is_trusted(learned: Learned) -> None:
    check = ("proof", "check", *ANY_AGE, learned.file("balance.proof"))

    assert "say what you trust" in complaint(run(*check), 2)
    assert "say what you trust" in complaint(run(*check, "--trust", "1:00", "--genesis", learned.genesis), 2)
    assert "neither HEIGHT:ID nor a chain's id" in complaint(run(*check, "--trust", "head"), 2)
    assert "no length of time" in complaint(run(*check, "--trust", "00" * 32, "--max-age", "10"), 2)
    assert "cannot read the genesis" in complaint(run(*check, "--genesis", learned.file("tx.proof")), 1)
    assert "cannot read" in complaint(run("proof", "check", *ANY_AGE, "missing", "--trust", "00" * 32), 1)
    assert "no proof file" in complaint(run("proof", "check", *ANY_AGE, learned.genesis, "--trust", "00" * 32), 4)


def test_file_is_not_overwritten_unasked(learned: Learned) -> None:
    make = ("proof", "balance", "--home", learned.home, "-o", learned.file("balance.proof"))

    assert "is there already" in complaint(run(*make), 1)
    assert run(*make, "--force").exit_code == 0


def test_client_that_was_left_out_has_no_proof(tmp_path: Path) -> None:
    home, harness = faulty_home(tmp_path / "home")
    make = ("proof", "model", "--home", home.root, "-o", tmp_path / "x.proof", "--round", "2", "--client")
    for actor, reason in ((ABSENT, "(no commit)"), (COPIER, "(copy)")):
        said = complaint(run(*make, account_text(harness.account(actor))), 1)
        assert reason in said
        assert "bflnode round 2" in said
    running = run("proof", "model", "--home", home.root, "-o", tmp_path / "x.proof", "--round", "3")
    assert "still runs" in complaint(running, 1)
    assert list(tmp_path.glob("x.*")) == []


def test_start_above_the_head_is_refused(learned: Learned, tmp_path: Path) -> None:
    result = run("proof", "balance", "--home", learned.home, "--from", "12", "-o", tmp_path / "x.proof")

    assert "it can start from blocks 0 to 11" in complaint(result, 1)


def test_chain_without_blocks_proves_nothing(tmp_path: Path) -> None:
    harness = Harness()
    home = home_with(tmp_path / "home", harness.genesis, harness.keys[0])

    assert "no blocks yet" in complaint(run("proof", "balance", "--home", home.root, "-o", tmp_path / "x"), 1)


# Validators that change


def test_proof_leads_through_a_complete_change_of_validators(changing: tuple[Home, Harness], tmp_path: Path) -> None:
    home, harness = changing
    file = tmp_path / "balance.proof"
    read("proof", "balance", "--home", home.root, "-o", file)
    found = read("proof", "check", *ANY_AGE, file, "--genesis", home.genesis_file)

    first, last = {validator.account for validator in harness.genesis.validators}, current_validators(harness.tree)
    assert not first & set(last.accounts)
    assert found["steps"] == 2
    assert found["proven"]["balance"] == harness.balance(0)


def test_step_over_a_complete_change_of_validators_is_not_believed(
    changing: tuple[Home, Harness], tmp_path: Path
) -> None:
    home, _ = changing
    read("proof", "balance", "--home", home.root, "-o", tmp_path / "balance.proof")
    body = decode_proof((tmp_path / "balance.proof").read_bytes())
    claim = BalanceClaim.from_bytes(body.claim, max_bytes=2**20)
    direct = encode_proof(replace(body.chain, steps=body.chain.steps[-1:]), claim)
    (tmp_path / "direct.proof").write_bytes(direct)

    said = complaint(run("proof", "check", *ANY_AGE, tmp_path / "direct.proof", "--genesis", home.genesis_file), 4)
    assert "not-trusted" in said


def test_node_that_began_from_a_snapshot_proves_from_there_on(changing: tuple[Home, Harness], tmp_path: Path) -> None:
    home, harness = changing
    with ChainStore.open(home.chain) as store, store.freeze() as frozen:
        base, arguments = frozen.header, (store.genesis, frozen.header, frozen.commit, frozen.entries())
        later = ChainStore.create_from_snapshot(tmp_path / "later", *arguments)
    with later:
        sources = Sources(later, later.load_state(), BlobStore(home.blobs), Journal(home.rounds), harness.account(0))
        inspector = Inspector(sources)
        with pytest.raises(MissingError, match="Ask a node that keeps the whole chain"):
            proof(inspector, kind="balance")
        answer = proof(inspector, kind="balance", start=base.height)

    body = decode_proof(bytes.fromhex(answer["proof"]))
    found = check_proof(body, Trust(base.height, base.id), Clock(LATER_MS, ANY_AGE_MS))
    assert isinstance(found.proven, ProvenBalance)
    assert found.proven.record is not None
    assert (found.proven.record.balance, found.verified.steps) == (harness.balance(0), 0)


# Consistency, RPC, lying nodes


def test_proof_is_of_the_state_at_hand_while_the_store_is_a_block_ahead(tmp_path: Path) -> None:
    harness = Harness()
    harness.wait(100)
    harness.wait(100)
    home = home_of(tmp_path / "home", harness)
    with ChainStore.open(home.chain) as store:
        tree = store.load_state()
        harness.block(harness.transfer(0, harness.account(1), 10))
        append_last(store, harness)
        sources = Sources(store, tree, BlobStore(home.blobs), Journal(home.rounds), harness.account(0))
        answer = proof(Inspector(sources), kind="balance")
    trust = Trust(0, BlockId(harness.genesis.chain_id))
    found = check_proof(decode_proof(bytes.fromhex(answer["proof"])), trust, Clock(LATER_MS, ANY_AGE_MS))

    assert answer["height"] == found.verified.header.height == 2
    assert isinstance(found.proven, ProvenBalance)
    assert found.proven.record is not None
    assert found.proven.record.balance == 1_000


def append_last(store: ChainStore, harness: Harness) -> None:
    block = harness.blocks[-1]
    execution = validate_block(harness.genesis, store.load_state(), store.header(block.height - 1), block)
    store.append(block, harness.last_commit, execution.changes)


def test_running_node_proves_over_rpc(tmp_path: Path) -> None:
    harness = Harness(actors=2, stakes=(10,), deadlines={"registration_ms": MAX_PHASE_MS}, parameters=QUICK)
    home = home_with(tmp_path / "home", harness.genesis, harness.keys[0])
    file = tmp_path / "balance.proof"

    async def ask() -> tuple[Result, Result]:
        async with open_node(home, load_configuration(home)) as node, trio.open_nursery() as nursery:
            url: str = await nursery.start(rpc.serve, node)
            nursery.start_soon(node.run)
            with trio.fail_after(30):
                while node.chain.height < 2:
                    await node.chain.changed.wait()
            make = ("proof", "balance", "--rpc", url, "-o", file, "--json")
            made = await trio.to_thread.run_sync(run, *make)
            wrong = await trio.to_thread.run_sync(run, "proof", "tx", "00" * 32, "--rpc", url, "-o", tmp_path / "x")
            nursery.cancel_scope.cancel()
        return made, wrong

    made, wrong = trio.run(ask)
    assert made.exit_code == 0, made.output
    assert "no block has the transaction" in complaint(wrong, 1)
    checked = read("proof", "check", *ANY_AGE, file, "--genesis", home.genesis_file, "--max-age", "10m")
    assert checked["height"] == json.loads(made.stdout)["height"] >= 2
    assert checked["proven"]["account"] == account_text(harness.account(0))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "holds no proof"),
        ({"proof": 7}, "holds no proof"),
        ({"proof": "xyz"}, "holds no proof"),
        ({"proof": "00ff"}, "doesn't hold (malformed"),
        ({"proof": "BALANCE"}, "proves something else than was asked for"),
    ],
)
def test_node_that_gives_something_else_is_found_out(answer: Any, said: str, learned: Learned, tmp_path: Path) -> None:
    if answer == {"proof": "BALANCE"}:
        answer = {"proof": learned.file("balance.proof").read_bytes().hex()}
    with answering(json.dumps({"jsonrpc": "2.0", "id": 1, "result": answer}).encode()) as url:
        result = run("proof", "balance", NOBODY, "--rpc", url, "-o", tmp_path / "x.proof")

    assert said in complaint(result, 4)
    assert not (tmp_path / "x.proof").exists()


def test_question_for_another_kind_of_proof_is_answered_with_the_kinds(tmp_path: Path) -> None:
    harness = Harness()
    harness.wait(100)
    home = home_of(tmp_path / "home", harness)
    with ChainStore.open(home.chain) as store:
        sources = Sources(store, store.load_state(), BlobStore(home.blobs), Journal(home.rounds), harness.account(0))
        inspector = Inspector(sources)
        with pytest.raises(ParameterError, match="kinds are balance, model, tx"):
            proof(inspector, kind="stake")
        with pytest.raises(InspectionError, match="blocks 0 to 1"):
            proof(inspector, kind="balance", start=-1)
