"""Homes of a testnet: one genesis, keys and data of their own, addresses of each other, newcomers, and refusals."""

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bflnode.consensus.keys import admission_payload, verify
from bflnode.consensus.task import Combination, ProbeMode, Rule, Similarity, Weighting
from bflnode.consensus.types import TOKEN
from bflnode.fl import datasets
from bflnode.fl.architectures import UnknownArchitecture
from bflnode.fl.samples import DatasetError, load_shard
from bflnode.node.configuration import load_configuration
from bflnode.node.home import Home, HomeError
from bflnode.node.p2p.peer_identity import peer_id_text
from bflnode.node.testnets import homes as testnet_homes
from bflnode.node.testnets.homes import SPARE_SHARDS, add_node, load_testnet, make_testnet
from bflnode.node.verbs.testnet import DATASETS
from bflnode.storage.blob_store import BlobStore

NODES = 4
OPTIONS = testnet_homes.TestnetOptions(validators=NODES, rounds=3, alpha=0.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> testnet_homes.Testnet:
    """A testnet that tests only look at."""
    return make_testnet(tmp_path_factory.mktemp("homes") / "net", OPTIONS)


def files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*"))


def test_all_homes_have_one_genesis_whose_validators_they_are(made: testnet_homes.Testnet) -> None:
    genesis = made.homes[0].load_genesis()

    assert {home.load_genesis().chain_id for home in made.homes} == {genesis.chain_id}
    accounts = sorted(home.load_account_key().account for home in made.homes)
    assert [validator.account for validator in genesis.validators] == accounts
    assert {validator.stake for validator in genesis.validators} == {5 * TOKEN}


def test_keys_are_different_and_for_their_owner_only(made: testnet_homes.Testnet) -> None:
    keys = [key for home in made.homes for key in (home.account_key_file, home.peer_key_file)]
    keys.append(made.directory / "admission.key")

    assert len({key.read_text() for key in keys}) == 2 * NODES + 1
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_of_each_pair_of_nodes_the_later_one_dials_the_earlier(made: testnet_homes.Testnet) -> None:
    settings = [load_configuration(home) for home in made.homes]
    addresses = tuple(
        f"/ip4/127.0.0.1/tcp/{own.p2p.port}/p2p/{peer_id_text(home.load_peer_seed())}"
        for home, own in zip(made.homes, settings, strict=True)
    )

    assert [own.p2p.persistent_peers for own in settings] == [addresses[:index] for index in range(NODES)]
    ports = [port for own in settings for port in (own.p2p.port, own.rpc.port)]
    assert len(set(ports)) == 2 * NODES


def test_the_data_is_spread_without_loss_over_nodes_and_spares(made: testnet_homes.Testnet) -> None:
    spare = sorted((made.directory / "spare").iterdir())
    shards = [load_shard(path) for path in (*(home.shard for home in made.homes), *spare)]
    whole = datasets.load("digits", None, datasets.LoadOptions(seed=OPTIONS.seed, test_share=0.35))

    assert len(spare) == SPARE_SHARDS
    assert sum(len(shard.train) for shard in shards) == len(whole.train)
    assert all(len(shard.train) >= 10 and len(shard.test) >= 2 for shard in shards)


def test_every_home_holds_the_tasks_files(made: testnet_homes.Testnet) -> None:
    specification = made.homes[0].load_genesis().tasks[0].specification

    for home in made.homes:
        blobs = BlobStore(home.blobs)
        assert blobs.size(specification.initial_model) == specification.model_bytes
        assert blobs.has(specification.probe_set)
        assert blobs.has(specification.validation_set)
        assert home.test_set.exists()


def test_the_task_is_what_was_asked_for(tmp_path: Path) -> None:
    options = replace(
        OPTIONS,
        rounds=7,
        clusters=3,
        epochs=2,
        batch_size=16,
        learning_rate_micro=50_000,
        probe_mode="aggregator",
        weighting="samples",
        rule="prior-rows",
        step_permille=1500,
        momentum_permille=0,
        shared_permille=400,
        similarity="prototypes",
        psi=8,
        min_clients=2,
        architecture="cnn/1x8x8/10",
    )

    (task,) = make_testnet(tmp_path / "net", options).homes[0].load_genesis().tasks

    specification = task.specification
    assert (specification.rounds, specification.clusters, specification.psi) == (7, 3, 8)
    assert (specification.epochs, specification.batch_size, specification.learning_rate_micro) == (2, 16, 50_000)
    assert (specification.probe_mode, specification.weighting) == (ProbeMode.AGGREGATOR, Weighting.SAMPLES)
    assert (specification.rule, specification.step_permille) == (Rule.PRIOR_ROWS, 1500)
    assert (specification.momentum_permille, specification.shared_permille) == (0, 400)
    assert (specification.clients_min, specification.clients_start) == (2, NODES)
    assert specification.architecture == "cnn/1x8x8/10"
    assert task.escrow == 7 * specification.reward


def test_a_combination_and_its_numbers_are_what_was_asked_for(tmp_path: Path) -> None:
    options = replace(OPTIONS, combination="trimmed-mean", hostile_permille=250, clip_permille=1500)

    (task,) = make_testnet(tmp_path / "net", options).homes[0].load_genesis().tasks

    found = task.specification
    assert (found.rule, found.combination) == (Rule.PRIOR_ROWS, Combination.TRIMMED_MEAN)
    assert (found.hostile_permille, found.clip_permille) == (250, 1500)
    assert found.shared_permille == 1000, "a combination that bounds hostile clients works on all of them"


@pytest.mark.parametrize(
    ("rule", "numbers", "similarity"),
    [("prior-rows", (1250, 700, 300), Similarity.UPDATES), ("paa", (1000, 0, 1000), Similarity.PROTOTYPES)],
)
def test_settings_are_those_of_the_rule_unless_asked_otherwise(
    tmp_path: Path, rule: str, numbers: tuple[int, int, int], similarity: Similarity
) -> None:
    (task,) = make_testnet(tmp_path / "net", replace(OPTIONS, rule=rule)).homes[0].load_genesis().tasks

    found = task.specification
    assert (found.step_permille, found.momentum_permille, found.shared_permille) == numbers
    assert found.similarity is similarity


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rule": "paa", "shared_permille": 500}, "leave out --shared, or use --rule prior-rows"),
        ({"similarity": "updates", "probe_mode": "aggregator"}, "leave out --probe-mode, or use --similarity"),
        ({"probe_mode": "aggregator"}, "leave out --probe-mode, or use --similarity"),
    ],
)
def test_what_means_nothing_together_is_refused(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(HomeError, match=complaint):
        make_testnet(tmp_path / "net", replace(OPTIONS, **changes))


def test_weights_that_a_combination_would_ignore_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="median counts clients equally: leave out --weighting samples"):
        make_testnet(tmp_path / "net", replace(OPTIONS, combination="median", weighting="samples"))
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(("validators", "needed"), [(1, 1), (3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (20, 14)])
def test_a_round_needs_more_than_two_thirds_of_the_nodes(validators: int, needed: int) -> None:
    assert testnet_homes.TestnetOptions(validators=validators).clients_min == needed
    assert 3 * needed > 2 * validators


def test_the_same_seed_gives_the_same_data_and_model_but_other_keys(
    made: testnet_homes.Testnet, tmp_path: Path
) -> None:
    again = make_testnet(tmp_path / "net", OPTIONS)

    for one, other in zip(made.homes, again.homes, strict=True):
        assert one.shard.read_bytes() == other.shard.read_bytes()
        assert one.load_account_key().account != other.load_account_key().account
    first, second = (testnet.homes[0].load_genesis().tasks[0].specification for testnet in (made, again))
    assert (first.initial_model, first.probe_set) == (second.initial_model, second.probe_set)


def test_ports_follow_the_base_port(tmp_path: Path) -> None:
    testnet = make_testnet(tmp_path / "net", replace(OPTIONS, base_port=21_000))

    settings = [load_configuration(home) for home in testnet.homes]
    assert [each.p2p.port for each in settings] == [21_000, 21_002, 21_004, 21_006]
    assert [each.rpc.port for each in settings] == [21_001, 21_003, 21_005, 21_007]


def test_a_testnet_is_read_back_as_it_was_made(made: testnet_homes.Testnet) -> None:
    assert load_testnet(made.directory) == made


def test_an_added_node_has_a_valid_credential_data_and_all_addresses(tmp_path: Path) -> None:
    testnet = make_testnet(tmp_path / "net", OPTIONS)
    spare = (testnet.directory / "spare" / "shard0.npz").read_bytes()

    grown, home = add_node(testnet)

    genesis, account = home.load_genesis(), home.load_account_key().account
    credential = home.load_credential()
    assert credential is not None
    verify(genesis.admission_key, "admit", genesis.chain_id, admission_payload(account), credential)
    assert home.shard.read_bytes() == spare
    assert len(load_configuration(home).p2p.persistent_peers) == NODES
    assert grown.nodes == (*testnet.nodes, "node4")
    assert load_testnet(testnet.directory) == grown


def test_nodes_can_be_added_until_the_data_is_used_up(tmp_path: Path) -> None:
    testnet = make_testnet(tmp_path / "net", OPTIONS)
    for _ in range(SPARE_SHARDS):
        testnet, _ = add_node(testnet)

    with pytest.raises(HomeError, match="holds no more data"):
        add_node(testnet)

    assert not (testnet.directory / f"node{NODES + SPARE_SHARDS}").exists()


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("1")

    with pytest.raises(HomeError, match=r"is not empty \(it has precious\)"):
        make_testnet(tmp_path, OPTIONS)

    assert files(tmp_path) == [tmp_path / "precious"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"min_clients": 5}, HomeError, "a round needs 5 clients but there are 4 nodes"),
        ({"base_port": 65_530}, HomeError, "ports 65530 to 65537 don't exist"),
        ({"dataset": "nothing"}, DatasetError, "there is no kind of data 'nothing'"),
        ({"dataset": "npz", "dataset_path": "/nowhere.npz"}, DatasetError, "/nowhere.npz does not exist"),
        ({"validators": 400}, DatasetError, "too few for 403 clients"),
        ({"architecture": "mlp/1x9x9/10"}, DatasetError, "doesn't fit the data: digits has 1x8x8 and 10 classes"),
        ({"architecture": "transformer"}, UnknownArchitecture, "is not an architecture id"),
    ],
)
def test_what_cannot_be_made_is_said_clearly(
    tmp_path: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_testnet(tmp_path / "net", replace(OPTIONS, **change))


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="bytes too long for sockets"):
        make_testnet(tmp_path / ("x" * 100), OPTIONS)


def without_file(directory: Path) -> None:
    (directory / "testnet.json").unlink()


def with_half_a_file(directory: Path) -> None:
    path = directory / "testnet.json"
    path.write_text(path.read_text()[:40])


def with_unknown_option(directory: Path) -> None:
    path = directory / "testnet.json"
    content = json.loads(path.read_text())
    content["options"]["colour"] = "red"
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [(without_file, "is not a testnet"), (with_half_a_file, "is damaged"), (with_unknown_option, "is damaged")],
)
def test_a_folder_that_is_no_testnet_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    (tmp_path / "testnet.json").write_text(json.dumps({"options": {"validators": 4}, "nodes": ["node0"]}))
    damage(tmp_path)

    with pytest.raises(HomeError, match=message):
        load_testnet(tmp_path)


def test_an_unknown_node_is_answered_with_those_there_are(made: testnet_homes.Testnet) -> None:
    assert made.home("node1") == Home(made.directory / "node1")
    with pytest.raises(HomeError, match="has no node 'node9': it has node0, node1, node2, node3"):
        made.home("node9")


def test_the_command_line_offers_every_kind_of_data() -> None:
    assert set(DATASETS) == set(datasets.KINDS)
