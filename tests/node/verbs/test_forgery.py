"""`bflnode evidence extract`: a forged proof file beside the real chain, and what becomes of those who signed it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import Result

from bflnode.consensus.block import Commit, CommitSignature, VoteKind, sign_vote
from bflnode.consensus.keys import account_text
from bflnode.consensus.light import LightChain, SignedHeader
from bflnode.consensus.proof_file import MAGIC, VERSION, ProofFile, decode_proof
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.transaction import Evidence
from bflnode.consensus.types import Hash
from bflnode.node.configuration import load_configuration
from bflnode.node.home import Home
from bflnode.node.node import open_node
from bflnode.node.rpc import server as rpc
from tests.consensus.harness import Harness
from tests.node.command_line import run
from tests.node.stored_homes import home_of

LIAR = 1


@pytest.fixture
def harness() -> Harness:
    harness = Harness(actors=2, stakes=(10, 10), specifications=())
    harness.block()
    harness.block()
    return harness


@pytest.fixture
def home(harness: Harness, tmp_path: Path) -> Home:
    return home_of(tmp_path / "home", harness)


def forged_file(harness: Harness, home: Home, folder: Path, *, round_: int = 0) -> Path:
    """A proof of a balance under a header that no block has, with a precommit of the liar."""
    assert run("proof", "balance", "--home", home.root, "-o", folder / "real.proof").exit_code == 0
    body = decode_proof((folder / "real.proof").read_bytes())
    header = replace(harness.header, state_root=Hash(bytes(32)))
    key = harness.keys[LIAR]
    index = ValidatorSet(harness.genesis.validators).index_of(key.account)
    assert index is not None
    vote = sign_vote(key, harness.genesis.chain_id, VoteKind.PRECOMMIT, header.height, round_, header.id)
    commit = Commit(header.height, round_, header.id, (CommitSignature(index, vote.signature),))
    chain = LightChain(body.chain.genesis, None, (SignedHeader(header, commit),), ())
    file = folder / "forged.proof"
    file.write_bytes(ProofFile(MAGIC, VERSION, replace(body, chain=chain).to_bytes()).to_bytes())
    return file


def test_who_signed_a_forged_block_is_named_beside_the_real_one(harness: Harness, home: Home, tmp_path: Path) -> None:
    file = forged_file(harness, home, tmp_path)
    result = run("evidence", "extract", file, "--home", home.root, "--json")
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    assert (answer["blocks"], answer["sent"]) == (1, [])
    (forged,) = answer["forged"]
    assert (forged["height"], forged["real"]) == (2, harness.header.id.hex())
    assert forged["offenders"] == [account_text(harness.account(LIAR))]
    assert account_text(harness.account(LIAR)) in run("evidence", "extract", file, "--home", home.root).stdout


def test_blocks_of_two_rounds_are_no_evidence_and_the_reason_is_said(
    harness: Harness, home: Home, tmp_path: Path
) -> None:
    result = run("evidence", "extract", forged_file(harness, home, tmp_path, round_=1), "--home", home.root)
    assert result.exit_code == 0
    assert "no evidence: the two are of different rounds of agreement" in result.stdout


def test_a_real_proof_and_a_broken_one_are_told_apart(harness: Harness, home: Home, tmp_path: Path) -> None:
    forged_file(harness, home, tmp_path)
    real = run("evidence", "extract", tmp_path / "real.proof", "--home", home.root)
    assert (real.exit_code, real.stdout) == (
        0,
        "nothing is forged: 1 blocks compared, and this chain has all of them\n",
    )
    (tmp_path / "broken.proof").write_bytes(b"garbage")
    broken = run("evidence", "extract", tmp_path / "broken.proof", "--home", home.root)
    assert broken.exit_code == 4
    assert "can't be compared: malformed" in broken.stderr
    stopped = run("evidence", "extract", tmp_path / "forged.proof", "--send", "--home", home.root)
    assert stopped.exit_code == 3
    assert "bflnode start" in stopped.stderr


def test_what_was_found_is_sent_and_waits_for_a_block(harness: Harness, home: Home, tmp_path: Path) -> None:
    file = forged_file(harness, home, tmp_path)

    async def send() -> tuple[Result, list[Any]]:
        async with open_node(home, load_configuration(home)) as node, trio.open_nursery() as nursery:
            url: str = await nursery.start(rpc.serve, node)
            extract = ("evidence", "extract", file, "--send", "--rpc", url, "--home", home.root, "--json")
            result = await trio.to_thread.run_sync(run, *extract)
            bodies = [transaction.body for transaction in node.mempool.candidates()]
            nursery.cancel_scope.cancel()
        return result, bodies

    result, bodies = trio.run(send)
    assert result.exit_code == 0, result.output
    (sent,) = json.loads(result.stdout)["sent"]
    assert sent["offender"] == account_text(harness.account(LIAR))
    (evidence,) = bodies
    assert isinstance(evidence, Evidence)
    assert (evidence.offender, evidence.height) == (harness.account(LIAR), 2)
