"""The report on real chains with real models: what it says of a right one, and that each check can fail."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bflnode.consensus.genesis import format_genesis
from bflnode.consensus.ledger import genesis_state
from bflnode.consensus.state import StateView
from bflnode.consensus.tables import ACCOUNTS, SETTLED, Account
from bflnode.consensus.task import SettledRound, TaskSpecification
from bflnode.consensus.transaction import Slot
from bflnode.consensus.types import TOKEN, BlobId
from bflnode.node.home import make_home
from bflnode.node.journal import Journal
from bflnode.node.testnets import homes as testnet_homes
from bflnode.node.testnets.report import Check, Report, ReportError, main, make_report, payout_fault, tokens_in
from bflnode.node.verbs.report_text import print_report
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import InUseError
from bflnode.storage.home_lock import HomeLock
from tests.node.learning_chain import CLIENTS, LearningChain

REWARD = 20 * TOKEN


def homes_of(directory: Path, chain: Path) -> testnet_homes.Testnet:
    """A testnet of the chain's clients, all of which have the same blocks and models."""
    with ChainStore.open(chain / "chain") as store:
        genesis = format_genesis(store.genesis)
    names = tuple(f"node{index}" for index in range(CLIENTS))
    for index, name in enumerate(names):
        home = make_home(directory / name, account_seed=bytes([index + 1]) * 32)
        home.genesis_file.write_text(genesis)
        shutil.copytree(chain / "chain", home.chain)
        shutil.copytree(chain / "blobs", home.blobs)
    options = testnet_homes.TestnetOptions(validators=CLIENTS, rounds=3)
    (directory / "testnet.json").write_text(json.dumps({"options": asdict(options), "nodes": names}))
    return testnet_homes.load_testnet(directory)


@pytest.fixture(scope="session")
def finished_chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished task of three learning rounds."""
    home = tmp_path_factory.mktemp("finished")
    chain = LearningChain(home)
    chain.register_all()
    for _ in range(3):
        chain.run_round()
    chain.store.close()
    return home


@pytest.fixture
def finished(finished_chain: Path, tmp_path: Path) -> testnet_homes.Testnet:
    return homes_of(tmp_path / "net", finished_chain)


def settled_rounds(testnet: testnet_homes.Testnet) -> list[SettledRound]:
    with ChainStore.open(testnet.homes[0].chain) as store:
        return [record for _, record in SETTLED.scan(store.load_state())]


def specification(testnet: testnet_homes.Testnet) -> TaskSpecification:
    return testnet.homes[0].load_genesis().tasks[0].specification


def check(report: Report, name: str) -> Check:
    (found,) = (check for check in report.checks if check.id == name)
    return found


def failed(report: Report) -> list[str]:
    return [check.id for check in report.checks if not check.ok]


def node_of(testnet: testnet_homes.Testnet, record: SettledRound, position: int) -> str:
    account = record.clients[position].account
    return next(home.root.name for home in testnet.homes if home.load_account_key().account == account)


def delete_probe_set(testnet: testnet_homes.Testnet, names: tuple[str, ...]) -> None:
    for name in names:
        BlobStore(testnet.home(name).blobs).delete(BlobId(specification(testnet).probe_set))


def test_every_check_holds_on_a_finished_testnet(finished: testnet_homes.Testnet) -> None:
    report = make_report(finished)

    assert [check.id for check in report.checks] == ["rounds", "heads", "supply", "models", "payouts", "chain"]
    assert failed(report) == []
    assert report.passed
    assert check(report, "models").detail == f"{3 * CLIENTS} models"
    assert check(report, "payouts").detail == f"{3 * REWARD} micro-tokens in 3 rounds"
    assert check(report, "chain").detail.endswith("3 of 3 aggregations computed again")
    assert (report.chain["height"], report.chain["supply"]) == (16, CLIENTS * 5 * TOKEN + 3 * REWARD)


def test_rounds_say_who_was_paid_what(finished: testnet_homes.Testnet) -> None:
    report = make_report(finished)

    for line, record in zip(report.rounds, settled_rounds(finished), strict=True):
        assert record.aggregation is not None
        assert line.number == record.slot.number
        assert sum(line.clusters) == CLIENTS
        assert [payment.net for payment in line.payments] == [each.gross - each.fee for each in record.clients]
        assert sum(payment.net for payment in line.payments) + line.aggregator_income == REWARD
        assert line.seconds == 0.5


def test_balances_before_and_after_differ_by_what_was_earned(finished: testnet_homes.Testnet) -> None:
    report = make_report(finished)

    assert [line.node for line in report.balances] == list(finished.nodes)
    assert all(line.after == line.before + line.earned for line in report.balances)
    assert all((line.before, line.stake, line.rounds_paid) == (0, 5 * TOKEN, 3) for line in report.balances)
    assert sum(line.earned for line in report.balances) == 3 * REWARD


def test_accuracies_are_means_over_the_nodes_that_measured_that_attempt(finished: testnet_homes.Testnet) -> None:
    task = settled_rounds(finished)[0].slot.task
    for home, accuracy in zip(finished.homes, (0.25, 0.75), strict=False):
        journal = Journal(home.rounds)
        journal.update(Slot(task, 2, 0), received_accuracy=accuracy, loss=accuracy, training_s=1.5)
        journal.update(Slot(task, 2, 1), received_accuracy=0.0)

    _, second, third = make_report(finished).rounds

    assert (second.received_accuracy, second.loss, second.training_s) == (0.5, 0.5, 1.5)
    assert second.post_accuracy is None
    assert third.received_accuracy is None


def test_a_task_that_is_not_done_fails_the_check_of_rounds(tmp_path: Path) -> None:
    chain = LearningChain(tmp_path / "chain")
    chain.register_all()
    chain.run_round()
    chain.store.close()

    report = make_report(homes_of(tmp_path / "net", tmp_path / "chain"))

    assert failed(report) == ["rounds"]
    assert check(report, "rounds").detail == "node0: task test is running with 1 of 3 rounds aggregated"


def test_a_node_with_another_block_fails_the_check_of_heads(finished: testnet_homes.Testnet, tmp_path: Path) -> None:
    other = LearningChain(tmp_path / "other")
    other.append_block([])
    other.store.close()
    victim = finished.homes[2]
    shutil.rmtree(victim.chain)
    shutil.copytree(tmp_path / "other" / "chain", victim.chain)

    report = make_report(finished)

    assert "heads" in failed(report)
    assert check(report, "heads").detail.startswith("at height 1 node0 has ")


def test_a_client_without_the_model_it_was_paid_for_fails_the_check_of_models(finished: testnet_homes.Testnet) -> None:
    record = settled_rounds(finished)[1]
    revealed = record.clients[3].revealed
    assert revealed is not None
    name = node_of(finished, record, 3)
    BlobStore(finished.home(name).blobs).delete(revealed.model)

    report = make_report(finished)

    assert "models" in failed(report)
    assert check(report, "models").detail.startswith(f"{name}, round 2: ")


def test_a_model_with_a_changed_byte_fails_the_check_of_models(finished: testnet_homes.Testnet) -> None:
    record = settled_rounds(finished)[0]
    revealed = record.clients[0].revealed
    assert revealed is not None
    name = node_of(finished, record, 0)
    path = BlobStore(finished.home(name).blobs).path(revealed.model)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    assert "models" in failed(make_report(finished))


def test_a_wrong_similarity_matrix_fails_the_check_of_the_chain(tmp_path: Path) -> None:
    chain = LearningChain(tmp_path / "chain")
    chain.register_all()
    chain.wrong_matrix = 11  # one above the tolerance
    for _ in range(3):
        chain.run_round()
    chain.store.close()

    report = make_report(homes_of(tmp_path / "net", tmp_path / "chain"))

    assert failed(report) == ["chain"]
    assert "matrix/level-3" in check(report, "chain").detail


def test_a_round_that_cannot_be_aggregated_again_fails_the_check_of_the_chain(finished: testnet_homes.Testnet) -> None:
    delete_probe_set(finished, finished.nodes)

    report = make_report(finished)

    assert failed(report) == ["chain"]
    assert check(report, "chain").detail.endswith("0 of 3 aggregations computed again")


def test_nodes_that_lack_models_do_not_matter_while_one_has_them_all(finished: testnet_homes.Testnet) -> None:
    delete_probe_set(finished, finished.nodes[:-1])

    assert failed(make_report(finished)) == []


def test_a_token_too_many_is_found_in_a_state(finished: testnet_homes.Testnet) -> None:
    genesis = finished.homes[0].load_genesis()
    tree = genesis_state(genesis)
    assert tokens_in(tree) == genesis.supply
    view = StateView(tree)

    ACCOUNTS.put(view, bytes(32), Account(1, 0))

    assert tokens_in(view) == genesis.supply + 1


def test_a_payout_that_is_not_the_formulas_is_named(finished: testnet_homes.Testnet) -> None:
    record, wanted = settled_rounds(finished)[0], specification(finished)
    assert payout_fault(record, wanted) == ""
    client = record.clients[1]

    greedy = replace(client, gross=client.gross + 1)
    changed = replace(record, clients=(record.clients[0], greedy, *record.clients[2:]))

    short = client.account.hex()[:12]
    assert payout_fault(changed, wanted) == (
        f"client {short} got {client.gross + 1} less {client.fee} instead of {client.gross} less {client.fee}"
    )


def test_an_aggregator_that_got_too_much_is_named(finished: testnet_homes.Testnet) -> None:
    record = settled_rounds(finished)[0]

    changed = replace(record, aggregator_income=record.aggregator_income + 1)

    assert payout_fault(changed, specification(finished)) == f"{REWARD + 1} paid instead of {REWARD}"


def test_a_testnet_whose_nodes_run_is_refused(finished: testnet_homes.Testnet) -> None:
    with HomeLock(finished.homes[1].root), pytest.raises(InUseError):
        make_report(finished)


def test_a_testnet_without_blocks_is_refused(finished: testnet_homes.Testnet) -> None:
    shutil.rmtree(finished.homes[3].chain)

    with pytest.raises(ReportError, match="node3 has no blocks"):
        make_report(finished)


def test_the_launchers_entry_writes_the_same_report(finished: testnet_homes.Testnet, tmp_path: Path) -> None:
    assert main([str(finished.directory), str(tmp_path / "report.json")]) == 0

    written = json.loads((tmp_path / "report.json").read_text())
    assert written == json.loads(json.dumps(make_report(finished).to_json()))
    assert set(written) == {"passed", "directory", "chain", "options", "checks", "rounds", "balances"}


def test_the_printed_report_marks_what_fails(
    finished: testnet_homes.Testnet, capsys: pytest.CaptureFixture[str]
) -> None:
    delete_probe_set(finished, finished.nodes)

    print_report(make_report(finished).to_json())

    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines if line[:1] in ("✓", "✗")] == ["✓"] * 5 + ["✗"]
    assert lines[-1] == "1 of 6 checks FAILED."
