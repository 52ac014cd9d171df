"""What a node says about stake, validators and punishments, as JSON and to a person, each standing once."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bflnode.consensus.keys import account_text
from bflnode.consensus.task import Phase
from bflnode.consensus.transaction import Fault
from bflnode.node.cli import bflnode
from bflnode.node.journal import Journal
from bflnode.node.rpc.inspection import Inspector, Sources
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.chain_store import ChainStore
from tests.consensus.harness import Harness
from tests.consensus.setups import OUTSIDER, PARAMETERS
from tests.node.stored_homes import home_of, home_with, store_chain

ACTIVE, JAILED, TOMBSTONED, POOR, NOBODY, WRONG = 0, 1, 2, 3, 4, 5


class Case:
    """A stored chain whose actors have every standing, and an inspector of it for one of them."""

    def __init__(self, root: Path) -> None:
        parameters = {"attendance_window": 4, "missed_to_jail": 3, "minimum_stake": 5}
        self.harness = harness = Harness(
            actors=6, stakes=(10, 10, 10, 10), queue=(TOMBSTONED, ACTIVE), parameters=parameters
        )
        harness.block(harness.bond(WRONG, 10))
        harness.block(harness.unbond(POOR, 6), harness.unbond(ACTIVE, 1))
        harness.absent = frozenset({JAILED})
        for _ in range(4):
            harness.wait(100)
        harness.block(harness.evidence(OUTSIDER, TOMBSTONED, height=3, round_=1))
        self.home = home_of(root, harness, JAILED)

    def name(self, actor: int) -> str:
        return account_text(self.harness.account(actor))

    def run(self, *arguments: str) -> Result:
        result = CliRunner().invoke(bflnode, [*arguments, "--home", str(self.home.root)])
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return result

    def read(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("stakes") / "home")


def test_validators_are_listed_by_index_and_then_the_others_with_a_stake(case: Case) -> None:
    listed = case.read("validator", "list")
    assert [(entry["account"], entry["index"], entry["standing"], entry["stake"]) for entry in listed] == [
        (case.name(ACTIVE), 0, "active", 9),
        (case.name(WRONG), 1, "active", 10),
        (case.name(JAILED), None, "jailed", 10),
        (case.name(TOMBSTONED), None, "tombstoned", 5),
        (case.name(POOR), None, "waiting", 4),
    ]
    assert [entry["is_own"] for entry in listed] == [False, False, True, False, False]
    assert [entry["votes"] for entry in listed] == [9, 10, 0, 0, 0]
    assert listed[0]["share"] == pytest.approx(9 / 19)
    assert (listed[0]["queue_position"], listed[0]["missed"], listed[0]["window"]) == (0, 0, 4)


def test_a_jailed_validator_is_told_what_to_do_in_status_and_show(case: Case) -> None:
    shown = case.read("validator", "show")
    jailed_ms = next(block.header.time_ms for block in case.harness.blocks if block.height == 7)
    assert (shown["jailed"], shown["jailed_until_ms"]) == (True, jailed_ms + PARAMETERS.jail_ms)
    assert "bflnode validator unjail" in shown["advice"]
    status = case.run("status").stdout
    assert "no, jailed" in status
    assert "jailed for missing 3 of 4 commits" in status
    assert case.read("status")["standing"] == "jailed"
    assert "jailed until" in case.run("validator", "show").stdout


def test_what_unbonds_is_shown_with_its_time(case: Case) -> None:
    shown = case.read("validator", "show", case.name(POOR)[:8])
    [entry] = shown["unbonding"]
    assert (entry["amount"], entry["release_ms"]) == (
        6,
        case.harness.blocks[1].header.time_ms + PARAMETERS.unbonding_ms,
    )
    assert "at least 0.000005 tokens" in shown["advice"]
    assert "free at" in case.run("validator", "show", case.name(POOR)).stdout
    account = case.read("account", case.name(POOR))
    assert (account["stake"], account["unbonding"]) == (4, 6)


def test_an_account_without_stake_has_no_standing_and_no_advice(case: Case) -> None:
    shown = case.read("validator", "show", case.name(NOBODY))
    assert (shown["standing"], shown["stake"], shown["index"], shown["advice"]) == ("none", 0, None, "")


def test_queue_shows_only_who_votes(case: Case) -> None:
    words = case.run("queue").stdout
    assert case.name(ACTIVE) in words
    assert case.name(TOMBSTONED) not in words


def test_evidence_lists_the_punishment_and_the_proof(case: Case) -> None:
    [offence] = case.read("evidence", "list")
    transaction = case.harness.blocks[-1].transactions[0]
    assert {name: offence[name] for name in ("account", "kind", "height", "slashed", "transaction", "reporter")} == {
        "account": case.name(TOMBSTONED),
        "kind": "double-sign",
        "height": case.harness.height,
        "slashed": 5,
        "transaction": transaction.id.hex(),
        "reporter": account_text(OUTSIDER.account),
    }
    proof = offence["evidence"]
    assert (proof["height"], proof["round"], proof["kind"]) == (3, 1, "precommit")
    assert proof["first"]["block_id"] < proof["second"]["block_id"]
    words = case.run("evidence", "list").stdout
    assert "double-sign" in words


def test_a_slashed_aggregator_is_listed_without_a_proof_and_nobody_where_nobody_was(tmp_path: Path) -> None:
    harness = Harness(queue=(2, 3))
    harness.register_all()
    harness.play_to(Phase.ATTEST)
    aggregate = harness.blocks[-1].transactions[0]
    harness.block(*(harness.attest(actor, Fault.OUTPUT_MISMATCH) for actor in range(3)))
    for name, blocks in (("before", harness.blocks[:-1]), ("after", harness.blocks)):
        stored = Harness(harness.setup)
        stored.blocks, stored.last_commit = blocks, harness.last_commit
        if name == "before":
            stored.last_commit = harness.blocks[-1].last_commit
        home = home_with(tmp_path / name, harness.genesis, harness.keys[0])
        store_chain(stored, home.chain)
        with ChainStore.open(home.chain) as store:
            sources = Sources(
                store, store.load_state(), BlobStore(home.blobs), Journal(home.rounds), harness.account(0)
            )
            found = Inspector(sources).evidence()
        if name == "before":
            assert found == []
            words = CliRunner().invoke(bflnode, ["evidence", "list", "--home", str(home.root)])
            assert words.stdout == "nobody was slashed\n"
        else:
            [offence] = found
            assert (offence["kind"], offence["transaction"]) == ("wrong-output", aggregate.id.hex())
            assert (offence["reporter"], offence["evidence"]) == (account_text(harness.account(2)), None)
