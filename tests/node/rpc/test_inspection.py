import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bflnode.consensus.keys import account_text
from bflnode.consensus.rewards import bfln_payout
from bflnode.consensus.transaction import Slot
from bflnode.consensus.types import TOKEN
from bflnode.node.journal import Journal
from bflnode.node.rpc.inspection import Inspector, Sources
from bflnode.node.rpc.refusals import InspectionError
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.chain_store import ChainStore
from tests.consensus.harness import Harness
from tests.node.learning_chain import ARCHITECTURE, CLIENTS
from tests.node.stored_homes import (
    ABSENT,
    COPIER,
    HONEST,
    SILENT,
    UNAVAILABLE,
    faulty_home,
    learning_home,
    learning_keys,
)

FAULTY_ROUND, REWARD = 2, 20 * TOKEN


class Case:
    """An inspector beside the harness whose chain it reads."""

    def __init__(self, inspector: Inspector, harness: Harness) -> None:
        self.inspector = inspector
        self.harness = harness

    def name(self, actor: int) -> str:
        return account_text(self.harness.account(actor))

    def explanation(self, actor: int, number: str = str(FAULTY_ROUND)) -> dict[str, Any]:
        return self.inspector.explain_reward(number, self.name(actor))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    home, harness = faulty_home(tmp_path_factory.mktemp("faulty") / "home")
    with ChainStore.open(home.chain) as store:
        journal = Journal(home.rounds)
        journal.update(Slot(harness.task_id, 1, 0), post_accuracy=0.5)
        sources = Sources(store, store.load_state(), BlobStore(home.blobs), journal, harness.account(0))
        yield Case(Inspector(sources), harness)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inspector]:
    home = learning_home(tmp_path_factory.mktemp("learned"))
    with ChainStore.open(home.chain) as store:
        sources = Sources(
            store, store.load_state(), BlobStore(home.blobs), Journal(home.rounds), learning_keys()[0].account
        )
        yield Inspector(sources)


def test_status_names_chain_account_and_learning_round(faulty: Case) -> None:
    status = faulty.inspector.status()
    harness = faulty.harness
    tip = harness.blocks[-1]
    assert {key: status[key] for key in ("chain_id", "height", "head", "state_root", "account", "phase")} == {
        "chain_id": harness.genesis.chain_id.hex(),
        "height": tip.height,
        "head": tip.id.hex(),
        "state_root": tip.header.state_root.hex(),
        "account": faulty.name(0),
        "phase": "commit",
    }
    assert (status["round"], status["rounds"], status["settled_rounds"], status["committed"]) == (3, 3, 2, 0)
    assert status["balance"] == harness.balance(0)
    assert status["aggregator"] == account_text(harness.round.aggregator)
    assert "all 4 validators" in status["verification"]
    assert status["accuracy"]["post_accuracy"] == 0.5


def test_every_answer_turns_into_json(faulty: Case, learned: Inspector) -> None:
    for inspector in (faulty.inspector, learned):
        answers = [
            inspector.status(),
            inspector.head(),
            inspector.blocks(),
            inspector.block("latest"),
            inspector.account(),
            inspector.accounts(),
            inspector.tasks(),
            inspector.task(),
            inspector.queue(),
            inspector.round(),
            inspector.rounds(),
            inspector.clusters(),
            inspector.rewards(),
            inspector.explain_reward(),
            inspector.models(),
            inspector.model(),
            inspector.journal(),
        ]
        assert json.loads(json.dumps(answers)) == answers


def test_block_is_found_by_height_by_id_and_as_the_latest(faulty: Case) -> None:
    block = faulty.harness.blocks[1]
    by_height = faulty.inspector.block("2")
    assert by_height["id"] == block.id.hex()
    assert by_height["header"]["state_root"] == block.header.state_root.hex()
    assert [entry["id"] for entry in by_height["transactions"]] == [entry.id.hex() for entry in block.transactions]
    assert faulty.inspector.block(block.id.hex()) == by_height
    assert faulty.inspector.block("latest")["height"] == faulty.harness.height


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("0", "blocks 1 to"),
        ("999", "blocks 1 to"),
        ("ab" * 32, "no block has the id"),
        ("xyz", "is not a block"),
        ("", "is not a block"),
    ],
)
def test_unknown_block_is_refused_with_what_there_is(faulty: Case, reference: str, message: str) -> None:
    with pytest.raises(InspectionError, match=message):
        faulty.inspector.block(reference)


def test_block_list_is_newest_first_and_bounded(faulty: Case) -> None:
    height = faulty.harness.height
    assert [entry["height"] for entry in faulty.inspector.blocks(count=3)] == [height, height - 1, height - 2]
    assert [entry["height"] for entry in faulty.inspector.blocks(count=3, before=3)] == [2, 1]
    assert len(faulty.inspector.blocks(count=10**9)) == height


def test_transaction_says_where_it_is_and_what_it_does(faulty: Case) -> None:
    sent = faulty.harness.blocks[0].transactions[2]
    found = faulty.inspector.transaction(sent.id.hex())
    assert (found["status"], found["height"], found["index"], found["kind"]) == ("included", 1, 2, "TASK_REGISTER")
    assert found["body"]["samples"] == 100
    with pytest.raises(InspectionError, match="no block has the transaction"):
        faulty.inspector.transaction("00" * 32)


def test_account_is_found_by_unique_first_digits(faulty: Case) -> None:
    for actor, key in enumerate(faulty.harness.keys):
        found = faulty.inspector.account(key.account.hex()[:8])
        assert found["account"] == faulty.name(actor)
        assert found["balance"] == faulty.harness.balance(actor)
        assert found["is_own"] is (actor == 0)


@pytest.mark.parametrize(
    ("reference", "message"),
    [("abc", "at least 4"), ("zzzz", "names no account"), ("00000000", "there is no account"), ("ab" * 36, "checksum")],
)
def test_unknown_account_is_refused(faulty: Case, reference: str, message: str) -> None:
    with pytest.raises(InspectionError, match=message):
        faulty.inspector.account(reference)


def test_ambiguous_digits_are_refused_with_the_candidates() -> None:
    from bflnode.node.rpc.inspection import _by_prefix

    with pytest.raises(InspectionError, match=r"2 ids of a task begin with aaaa .* more digits"):
        _by_prefix("aaaa", [bytes.fromhex("aaaa01"), bytes.fromhex("aaaa02")], "task")


def test_task_is_found_by_number_name_and_id(faulty: Case) -> None:
    found = faulty.inspector.task("0")
    assert found["id"] == faulty.harness.task_id.hex()
    assert (found["name"], found["status"], found["round"]) == ("task", "running", 3)
    assert len(found["participants"]) == 7
    assert faulty.inspector.task("task") == found
    assert faulty.inspector.task(found["id"][:6]) == found
    assert faulty.inspector.task() == found


def test_queue_lists_validators_and_whose_turn_it_is(faulty: Case) -> None:
    queue = faulty.inspector.queue()
    assert queue["aggregator"] == faulty.name(faulty.harness.line[0])
    assert queue["queue"] == [faulty.name(actor) for actor in faulty.harness.queue]
    assert [validator["account"] for validator in queue["validators"]] == [faulty.name(actor) for actor in range(4)]
    assert queue["supply"] == faulty.harness.genesis.supply


def test_settled_round_says_who_was_left_out_and_why(faulty: Case) -> None:
    found = faulty.inspector.round(str(FAULTY_ROUND))
    assert (found["status"], found["included"]) == ("settled", 3)
    assert [client["exclusion"] for client in found["clients"]] == [
        *["none"] * 3,
        "no_commit",
        "copy",
        "unavailable",
        "no_reveal",
    ]
    assert len(found["attestations"]) == 4
    assert sum(cluster["size"] for cluster in found["clusters"]) == 3


def test_running_round_shows_its_phase(faulty: Case) -> None:
    found = faulty.inspector.round("current")
    assert (found["number"], found["status"], found["phase"]) == (3, "running", "commit")
    assert found["aggregator"] == account_text(faulty.harness.round.aggregator)
    assert faulty.inspector.round("3") == found


def test_round_shows_what_this_node_measured(faulty: Case) -> None:
    assert [entry["post_accuracy"] for entry in faulty.inspector.round("1")["own"]] == [0.5]
    assert faulty.inspector.round("2")["own"] == []


@pytest.mark.parametrize("number", ["0", "4", "-1", "last", "", "9" * 30])
def test_unknown_round_is_refused(faulty: Case, number: str) -> None:
    with pytest.raises(InspectionError, match="learning round"):
        faulty.inspector.round(number)


def test_clusters_show_members_centroid_and_similarities(faulty: Case) -> None:
    found = faulty.inspector.clusters("1")
    assert [cluster["size"] for cluster in found["clusters"]] == [4, 3]
    assert sorted(member for cluster in found["clusters"] for member in cluster["members"]) == sorted(found["clients"])
    for cluster in found["clusters"]:
        assert cluster["centroid"] in cluster["members"]
    matrix = found["similarities"]
    assert [row[index] for index, row in enumerate(matrix)] == [10_000] * 7
    assert matrix == [list(column) for column in zip(*matrix, strict=True)]
    assert (matrix[0][1], matrix[0][6]) == (9_000, 0)


def test_clusters_of_a_round_that_is_not_aggregated_are_refused(faulty: Case) -> None:
    with pytest.raises(InspectionError, match="not aggregated"):
        faulty.inspector.clusters("current")


def test_rewards_add_up_to_what_the_round_pays(faulty: Case) -> None:
    for number in ("1", "2"):
        found = faulty.inspector.rewards(number)
        assert found["paid"] == found["reward"] == REWARD
    harness = faulty.harness
    assert [client["balance_after"] for client in found["clients"]] == [harness.balance(actor) for actor in range(7)]


def test_rewards_of_the_running_round_are_refused(faulty: Case) -> None:
    with pytest.raises(InspectionError, match="before it settles"):
        faulty.inspector.rewards("current")


def test_reward_is_explained_with_the_formula_and_the_transactions(faulty: Case) -> None:
    found = faulty.explanation(0, "1")
    payout = bfln_payout([0, 0, 0, 0, 1, 1, 1], REWARD, 2)
    own = payout.clients[0]
    assert (found["gross"], found["fee"], found["net"]) == (own.gross, own.fee, own.net)
    assert (found["cluster"], found["cluster_size"], found["included_clients"]) == (0, 4, 7)
    assert found["kappa"] == f"{REWARD}/25"
    assert found["gamma"] == f"{REWARD * 16}/25"
    assert found["matches_formula"] is True
    assert found["balance_after"] == found["balance_before"] + found["net"] + found["aggregator_income"]
    kinds = [
        faulty.inspector.transaction(found["transactions"][name]["id"])["kind"]
        for name in ("commit", "reveal", "aggregate")
    ]
    assert kinds == ["COMMIT", "REVEAL", "AGGREGATE"]
    assert len(found["transactions"]["attestations"]) == 4
    text = " ".join(found["explanation"])
    assert "20.000000 tokens were divided among 7 clients" in text
    assert "kappa = R / (4^2 + 3^2) = 0.800000 tokens" in text


def test_aggregator_is_told_its_fees(faulty: Case) -> None:
    settled = faulty.harness.settled(1)
    assert settled.aggregation is not None
    found = faulty.explanation(faulty.harness.actor(settled.aggregation.aggregator), "1")
    assert found["aggregator_income"] == settled.aggregator_income > 0
    assert any("As the aggregator it got" in sentence for sentence in found["explanation"])


@pytest.mark.parametrize(
    ("actor", "reason"),
    [
        (ABSENT, "sent no COMMIT"),
        (SILENT, "no valid REVEAL"),
        (COPIER, "not its own"),
        (UNAVAILABLE, "no more than a third"),
    ],
)
def test_client_that_got_nothing_is_told_why(faulty: Case, actor: int, reason: str) -> None:
    found = faulty.explanation(actor)
    assert (found["included"], found["net"], found["cluster"]) == (False, 0, None)
    assert found["explanation"][0] == "It got nothing."
    assert reason in found["explanation"][1]


def test_copier_is_told_whose_model_it_was(faulty: Case) -> None:
    text = " ".join(faulty.explanation(COPIER)["explanation"])
    assert f"Client {faulty.name(HONEST[0])} revealed the same model" in text


def test_unavailable_client_is_told_how_many_had_its_model(faulty: Case) -> None:
    text = " ".join(faulty.explanation(UNAVAILABLE)["explanation"])
    assert "0 of the 4 committee members" in text


def test_running_round_explains_how_far_a_client_is(faulty: Case) -> None:
    found = faulty.explanation(0, "current")
    assert found["net"] is None
    assert "has not committed yet" in " ".join(found["explanation"])


def test_models_name_their_origin_and_whether_they_are_here(learned: Inspector) -> None:
    rows = learned.models()
    kinds = [row["kind"] for row in rows]
    assert kinds[:2] == ["initial", "probe-set"]
    assert (kinds.count("client"), all(row["is_stored"] for row in rows)) == (2 * CLIENTS, True)
    assert {row["round"] for row in learned.models(number="2")} == {2}


def test_models_that_are_not_here_have_no_path(faulty: Case) -> None:
    found = faulty.inspector.model(client=faulty.name(0), number="1")
    assert (found["is_stored"], found["path"]) == (False, None)


def test_model_is_chosen_by_client_by_cluster_and_by_id(learned: Inspector) -> None:
    own = learned.model(client=account_text(learned.account_id), number="1")
    assert own["id"] == learned.round("1")["clients"][0]["model"]
    assert Path(own["path"]).stat().st_size == ARCHITECTURE.size_bytes
    cluster = learned.model(cluster=0, number="2")
    assert cluster["id"] == learned.clusters("2")["clusters"][0]["output"]
    assert learned.model(identifier=cluster["id"][:10])["id"] == cluster["id"]


def test_without_a_choice_the_model_is_what_the_node_trains_from_next(learned: Inspector) -> None:
    label = learned.clusters("2")["labels"][0]
    assert learned.model()["id"] == learned.clusters("2")["clusters"][label]["output"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"cluster": 9, "number": "1"}, "clusters 0 to"),
        ({"cluster": 0, "number": "7"}, "no learning round 7"),
        ({"identifier": "00000000"}, "there is no model"),
    ],
)
def test_unknown_model_is_refused(learned: Inspector, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(InspectionError, match=message):
        learned.model(**choice)
