import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import plyvel
import pytest
from click.testing import Result

from bflnode.consensus.genesis import format_genesis
from bflnode.consensus.keys import SecretKey, account_text
from bflnode.consensus.task import Rule
from bflnode.fl.samples import LabelledData, Shard, numbered_classes, save_shard
from bflnode.fl.weights import parse
from bflnode.node.cli import bflnode
from bflnode.node.home import Home, write_seed
from tests.consensus.harness import Harness
from tests.consensus.setups import ADMISSION
from tests.node.command_line import complaint, read, run
from tests.node.learning_chain import ARCHITECTURE
from tests.node.stored_homes import ABSENT, faulty_home, learning_home

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def verbs(group: click.Group = bflnode, *path: str) -> Iterator[tuple[str, ...]]:
    """The paths of all verbs and groups."""
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from verbs(command, *path, name)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Harness]:
    home, harness = faulty_home(tmp_path_factory.mktemp("faulty") / "home")
    return home.root, harness


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which two learning rounds were settled, with all models and with data of its own."""
    return home_with_data(tmp_path_factory.mktemp("learned") / "home", Rule.PAA)


def home_with_data(root: Path, rule: Rule) -> Path:
    home = learning_home(root, rule=rule)
    shape = ARCHITECTURE.input_shape
    generator = np.random.default_rng(1)
    data = [
        LabelledData(generator.random((8, *shape), dtype=np.float32), np.array([0, 1] * 4), numbered_classes(2))
        for _ in range(2)
    ]
    save_shard(home.shard, Shard(data[0], data[1]))
    return home.root


@pytest.mark.parametrize("path", list(verbs()), ids=" ".join)
def test_every_verb_has_help_with_examples(path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert f"bflnode {' '.join(path)}" in result.output.split("Examples:")[1]


@pytest.mark.parametrize("path", list(verbs()), ids=" ".join)
def test_every_verb_is_in_the_reference(path: tuple[str, ...]) -> None:
    assert f"`bflnode {' '.join(path)}" in PAGE.read_text(encoding="utf-8")


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys, bflnode.node.cli\n"
        "heavy = {'torch', 'libp2p', 'trio', 'numpy', 'pydantic', 'plyvel', 'httpx', 'nacl', 'rich'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'loaded {sorted(heavy)}' if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("journal",),
        ("keys",),
        ("keys", "show"),
        ("account",),
        ("account", "--all"),
        ("task", "list"),
        ("task", "show"),
        ("queue",),
        ("validator", "list"),
        ("validator", "show"),
        ("evidence", "list"),
        ("chain", "head"),
        ("chain", "list"),
        ("chain", "verify"),
        ("block", "latest"),
        ("round", "current"),
        ("round", "2"),
        ("rounds",),
        ("clusters", "2"),
        ("model", "list"),
        ("reward", "show"),
        ("reward", "explain"),
    ],
    ids=" ".join,
)
def test_reading_verb_works_on_a_stopped_home_in_words_and_in_json(
    faulty: tuple[Path, Harness], arguments: tuple[str, ...]
) -> None:
    words = run(*arguments, "--home", faulty[0])
    assert (words.exit_code, words.stderr) == (0, "")
    assert words.stdout.strip()
    read(*arguments, "--home", faulty[0])


def test_status_of_a_stopped_home_has_the_keys_of_a_running_one(faulty: tuple[Path, Harness]) -> None:
    status = read("status", "--home", faulty[0])
    assert (status["running"], status["pid"], status["peers"], status["syncing"]) == (False, None, 0, False)
    assert status["node_id"].startswith("12D3KooW")
    assert status["height"] == faulty[1].height


def test_home_comes_from_the_environment_unless_a_flag_says_otherwise(faulty: tuple[Path, Harness]) -> None:
    assert run("chain", "head", BFLNODE_HOME=str(faulty[0])).exit_code == 0
    result = run("chain", "head", "--home", "/nowhere", BFLNODE_HOME=str(faulty[0]))
    assert "/nowhere is not the home of a node" in complaint(result, 1)


def test_transaction_is_found_by_the_id_in_its_block(faulty: tuple[Path, Harness]) -> None:
    sent = faulty[1].blocks[0].transactions[0]
    assert read("tx", sent.id.hex(), "--home", faulty[0])["height"] == 1
    assert sent.id.hex() in run("block", "1", "--home", faulty[0]).stdout


def test_reward_explanation_says_why_there_is_none(faulty: tuple[Path, Harness]) -> None:
    client = account_text(faulty[1].account(ABSENT))[:8]
    result = run("reward", "explain", "--round", "2", "--client", client, "--home", faulty[0])
    assert result.exit_code == 0
    assert "It got nothing.\nIt sent no COMMIT" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("block", "999"), 1, "there is no block 999"),
        (("tx", "12"), 1, "is not a transaction id"),
        (("round", "77"), 1, "no learning round 77"),
        (("account", "zz"), 1, "names no account"),
        (("peers",), 3, "start it with `bflnode start`"),
        (("health",), 3, "start it with `bflnode start`"),
        (("stop",), 3, "no node runs"),
        (("transfer", "--to", "aaaa", "--amount", "1"), 3, "start it with `bflnode start`"),
        (("transfer", "--to", "aaaa", "--amount", "1.1234567"), 2, "only 6"),
        (("transfer", "--to", "aaaa", "--amount", "-1"), 2, "not an amount"),
        (("transfer", "--amount", "1"), 2, "Missing option '--to'"),
        (("validator", "bond", "1"), 3, "start it with `bflnode start`"),
        (("validator", "unbond", "1"), 3, "start it with `bflnode start`"),
        (("validator", "unjail"), 3, "start it with `bflnode start`"),
        (("validator", "bond", "much"), 2, "not an amount"),
        (("validator", "unbond", "0"), 2, "give an amount above 0"),
        (("validator", "bond"), 2, "Missing argument 'TOKENS'"),
        (("validator", "show", "zz"), 1, "names no account"),
        (("chain", "list", "--count", "0"), 2, "--count"),
        (("chain", "list", "--nonsense"), 2, "See `bflnode chain list --help`"),
        (("nonsense",), 2, "See `bflnode --help`"),
        (("model", "get", "-o", "/nowhere/model"), 1, "not on this disk"),
        (("model", "eval", "--on", "global"), 1, "not on this disk"),
    ],
)
def test_failure_is_one_line_with_its_exit_code(
    faulty: tuple[Path, Harness], arguments: tuple[str, ...], exit_code: int, message: str
) -> None:
    environment = {"BFLNODE_HOME": str(faulty[0])}
    assert message in complaint(run(*arguments, **environment), exit_code)


def test_unexpected_error_is_one_line_too(faulty: tuple[Path, Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bflnode.node.rpc.reader.HomeReader.call", lambda *_arguments, **_params: 1 / 0)
    assert "unexpected ZeroDivisionError" in complaint(run("status", "--home", faulty[0]), 1)


def test_damaged_chain_fails_verification_with_code_4(faulty: tuple[Path, Harness], tmp_path: Path) -> None:
    home = Home(Path(shutil.copytree(faulty[0], tmp_path / "home")))
    database = plyvel.DB(str(home.chain))
    key = b"b" + (3).to_bytes(8)
    database.put(key, database.get(key)[:-1] + b"\x00")
    database.close()
    result = run("chain", "verify", "--home", home.root)
    assert "block 3, " in complaint(result, 4)
    broken = run("chain", "verify", "--home", home.root, "--json")
    assert (broken.exit_code, json.loads(broken.stdout)["fault"]["height"]) == (4, 3)


def test_chain_with_its_models_is_verified_at_all_levels(learned: Path) -> None:
    found = read("chain", "verify", "--reexecute", "--home", learned)
    assert (found["is_valid"], found["reexecution"][0]["reexecuted"]) == (True, 2)


def test_model_is_exported_as_safetensors(learned: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    found = read("model", "get", "--cluster", "0", "--round", "2", "-o", output, "--home", learned)
    assert found["output"] == str(output)
    assert set(parse(output.read_bytes(), ARCHITECTURE.table)) == {spec.name for spec in ARCHITECTURE.table.tensors}
    assert "give --force" in complaint(run("model", "get", "-o", output, "--home", learned), 1)
    assert run("model", "get", "-o", output, "--force", "--home", learned).exit_code == 0


def test_model_is_measured_on_the_own_data(learned: Path) -> None:
    found = read("model", "eval", "--on", "own", "--home", learned)
    assert 0 <= found["accuracy"] <= 1
    assert found["samples"] == 8
    assert found["has_prior"] is False, "the task's clients train without one"
    assert "no global test set" in complaint(run("model", "eval", "--on", "global", "--home", learned), 1)


def test_model_is_measured_with_the_label_prior_of_the_own_data(learned: Path) -> None:
    plain, with_prior = (read("model", "eval", option, "--home", learned) for option in ("--no-prior", "--prior"))
    assert (plain["has_prior"], with_prior["has_prior"]) == (False, True)
    assert plain["loss"] != with_prior["loss"]
    refused = run("model", "eval", "--on", "global", "--prior", "--home", learned)
    assert "no node's label prior fits it: leave out --prior" in complaint(refused, 1)


def test_model_is_measured_with_what_the_node_trained_last(learned: Path) -> None:
    choices: tuple[tuple[str, ...], ...] = ((), ("--memory",), ("--no-memory",))
    default, with_memory, plain = (read("model", "eval", *choice, "--home", learned) for choice in choices)
    assert (default["has_memory"], with_memory["has_memory"], plain["has_memory"]) == (False, True, False)
    assert default["loss"] == plain["loss"] != with_memory["loss"]
    assert "with its memory" in run("model", "eval", "--memory", "--home", learned).output
    older = ("--cluster", "0", "--round", "1", "--home", learned)
    assert "no memory goes with the model of cluster 0" in complaint(run("model", "eval", "--memory", *older), 1)


def test_own_data_is_measured_as_the_tasks_clients_do(tmp_path: Path) -> None:
    home = home_with_data(tmp_path, Rule.PRIOR_ROWS)
    found = read("model", "eval", "--home", home)
    assert (found["has_prior"], found["has_memory"]) == (True, True)
    older = read("model", "eval", "--cluster", "0", "--round", "1", "--home", home)
    assert (older["has_prior"], older["has_memory"]) == (True, False)


def test_model_classifies_a_persons_samples(learned: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples.npz"
    np.savez(samples, inputs=np.zeros((3, *ARCHITECTURE.input_shape), dtype=np.float32))
    found = read("model", "predict", samples, "--home", learned)
    assert len(found["predictions"]) == 3
    for prediction in found["predictions"]:
        assert prediction["probability"] == max(prediction["probabilities"])
    expecting = read("model", "predict", samples, "--prior", "--home", learned)
    assert expecting["predictions"][0]["probabilities"] != found["predictions"][0]["probabilities"]
    moved = read("model", "predict", samples, "--memory", "--home", learned)
    assert moved["predictions"][0]["probabilities"] != found["predictions"][0]["probabilities"]
    np.savez(samples, wrong=np.zeros(3))
    assert "no array 'inputs'" in complaint(run("model", "predict", samples, "--home", learned), 1)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_names_the_program(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_BFLNODE_COMPLETE" in result.stdout


def test_completion_completes_verbs() -> None:
    environment = {**os.environ, "_BFLNODE_COMPLETE": "bash_complete", "COMP_WORDS": "bflnode rew", "COMP_CWORD": "1"}
    program = "import sys; sys.argv[0] = 'bflnode'; from bflnode.node.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "plain,reward"


class Network:
    """Files that a network's operator hands out."""

    def __init__(self, folder: Path) -> None:
        self.harness = Harness(architecture=ARCHITECTURE.id, classes=2)
        self.genesis = folder / "genesis.json"
        self.genesis.write_text(format_genesis(self.harness.genesis), encoding="utf-8")
        self.admission_key = folder / "admission.key"
        write_seed(self.admission_key, ADMISSION.seed)
        self.home = folder / "new"
        self.folder = folder

    def init(self, *arguments: str | Path) -> Result:
        return run("init", "--home", self.home, "--genesis", self.genesis, *arguments)

    def shard(self, shape: tuple[int, int, int] = ARCHITECTURE.input_shape, classes: int = 2) -> Path:
        path = self.folder / "data.npz"
        data = LabelledData(
            np.zeros((4 * classes, *shape), dtype=np.float32),
            np.array(list(range(classes)) * 4),
            numbered_classes(classes),
        )
        save_shard(path, Shard(data, data))
        return path


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return Network(tmp_path)


def test_init_makes_a_home_with_private_keys(network: Network) -> None:
    result = network.init("--shard", network.shard(), "--port", "0", "--rpc-port", "0", "--name", "mine")
    assert result.exit_code == 0, result.output
    assert "must be admitted" in result.stdout
    home = Home(network.home)
    assert [path.stat().st_mode & 0o777 for path in (home.account_key_file, home.peer_key_file)] == [0o600, 0o600]
    status = read("status", "--home", network.home)
    assert (status["name"], status["chain_id"], status["is_admitted"]) == (
        "mine",
        network.harness.genesis.chain_id.hex(),
        False,
    )
    assert home.shard.is_file()


def test_init_with_the_admission_key_admits_the_new_account(network: Network) -> None:
    result = network.init("--admission-key", network.admission_key)
    assert result.exit_code == 0, result.output
    assert "must be admitted" not in result.stdout
    assert read("keys", "--home", network.home)["has_credential"] is True


def test_newcomer_is_admitted_by_the_operator_and_takes_the_credential(network: Network) -> None:
    network.init()
    account = read("keys", "--home", network.home)["account"]
    operator = network.folder / "operator"
    run("init", "--home", operator, "--genesis", network.genesis)
    credential = network.folder / "admission.json"
    admit = ("keys", "admit", "--admission-key", network.admission_key, "--home", operator)
    assert run(*admit, "--out", credential, account).exit_code == 0
    assert run("keys", "accept", credential, "--home", network.home).exit_code == 0
    assert read("keys", "--home", network.home)["has_credential"] is True
    assert "admits account" in complaint(run("keys", "accept", credential, "--home", operator), 1)
    assert "checksum" in complaint(run(*admit, account[:-1] + ("0" if account[-1] != "0" else "1")), 1)


def test_init_takes_over_a_key_with_its_credential(network: Network) -> None:
    key = network.folder / "account.key"
    write_seed(key, bytes(32))
    credential = network.folder / "admission.json"
    network.init()
    account = account_text(SecretKey.from_seed(bytes(32)).account)
    admit = ("keys", "admit", "--admission-key", network.admission_key, "--home", network.home, "--out", credential)
    assert run(*admit, account).exit_code == 0
    network.home = network.folder / "taken-over"
    result = network.init("--account-key", key, "--admission", credential)
    assert result.exit_code == 0, result.output
    assert read("keys", "--home", network.home)["account"] == account


def wrong_shape(network: Network) -> tuple[str | Path, ...]:
    return ("--shard", network.shard((1, 5, 5)))


def too_many_classes(network: Network) -> tuple[str | Path, ...]:
    return ("--shard", network.shard(classes=3))


@pytest.mark.parametrize(
    ("given", "exit_code", "message"),
    [
        (wrong_shape, 1, "fits no task of this chain: task takes 1x4x4 and 2 classes"),
        (too_many_classes, 1, "name all of them with --classes"),
        (lambda _: ("--shard", "/nowhere.npz"), 1, "/nowhere.npz does not exist"),
        (lambda _: ("--data", "nonsense:/x"), 1, "there is no kind of data"),
        (lambda _: ("--data", "npz:"), 1, "write KIND:PATH"),
        (lambda network: ("--data", "digits", "--shard", network.shard()), 2, "not both"),
        (lambda _: ("--peer", "127.0.0.1:26656"), 1, "is not the address of a peer"),
        (lambda network: ("--admission", network.genesis), 1, "--account-key"),
        (lambda _: ("--admission-key", "/nowhere.key"), 1, "cannot read the key"),
        (lambda _: ("--blobs", "/nowhere"), 1, "fetched from peers"),
        (lambda _: ("--genesis", "/nowhere.json"), 1, "cannot read the genesis"),
    ],
)
def test_init_that_fails_leaves_nothing_behind(
    network: Network, given: Callable[[Network], tuple[str | Path, ...]], exit_code: int, message: str
) -> None:
    assert message in complaint(network.init(*given(network)), exit_code)
    assert not network.home.exists()


def test_init_refuses_a_home_that_exists(network: Network) -> None:
    assert network.init().exit_code == 0
    assert "already holds a node's keys" in complaint(network.init(), 1)


def test_init_converts_a_folder_of_images_to_what_the_task_takes(network: Network) -> None:
    from PIL import Image

    for name, value in (("cat", 0), ("dog", 255)):
        folder = network.folder / "photos" / name
        folder.mkdir(parents=True)
        for index in range(5):
            Image.new("L", (9, 9), value).save(folder / f"{index}.png")
    result = network.init("--data", f"imagefolder:{network.folder / 'photos'}", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["task"], sum(answer["samples"].values())) == ("task", 10)
