"""The folders of a testnet: one genesis, one home a node, one data set spread over them.

    DIR/genesis.json            the chain
    DIR/admission.key           signs newcomers in, mode 0600
    DIR/testnet.json            what was asked for, and the names of the nodes
    DIR/node0 … node{N-1}       homes (see `home`)
    DIR/spare/shard0.npz …      data for nodes that come later
    DIR/test.npz                the global test set
    DIR/blobs/                  initial model and probe set, to give to newcomers
    DIR/run/                    socket and log of the launcher (see `processes`)

Starting and stopping processes is `processes`'s business.
"""

import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from bflnode.consensus.block import Validator
from bflnode.consensus.genesis import (
    DEFAULT_HOSTILE_PERMILLE,
    DEFAULT_RULE,
    DEFAULTS_BY_RULE,
    Genesis,
    GenesisAccount,
    GenesisTask,
    Mode,
    Parameters,
    RuleDefaults,
    default_deadlines,
    default_parameters,
    format_genesis,
)
from bflnode.consensus.hashing import tagged_hash
from bflnode.consensus.task import (
    PERMILLE,
    Combination,
    Deadlines,
    ProbeMode,
    Rule,
    Similarity,
    TaskSpecification,
    Weighting,
)
from bflnode.consensus.types import TOKEN, BlobId
from bflnode.fl import architectures, datasets, partition, population, prototypes
from bflnode.fl.samples import LabelledData, Shard
from bflnode.node.admission import sign_credential, write_credential
from bflnode.node.aggregation import choice_name, choice_value
from bflnode.node.configuration import load_configuration
from bflnode.node.home import Home, HomeError, make_home, read_secret_key, write_seed
from bflnode.node.p2p.peer_identity import peer_id_text
from bflnode.node.workers.process_messages import MAX_SOCKET_PATH_BYTES
from bflnode.storage.blob_store import BlobStore

STAKE = 5 * TOKEN
"""Initial stake of a client (Li et al., table 1): bonded for validators, free for newcomers."""

POCKET = 1 * TOKEN
"""Free tokens of a validator at the start, to pay for transfers."""

SPARE_SHARDS = 3
"""Shards kept for nodes that come later."""

ADMISSION_POOL = 100 * STAKE
"""Newcomers that a testnet can admit: a hundred."""

MIN_SHARD_TRAIN = 10
"""Fewest training samples of a node, as in the papers' protocol."""

RUN_FOLDER = "run"
"""The launcher may be starting while the homes are made: its folder doesn't make a testnet's folder one in use."""

LAUNCHER_SOCKET = "launcher.sock"

FIRST_PORT, LAST_PORT = 20_000, 32_000
"""Where ports are looked for: below the range that systems take outgoing connections' ports from."""

MAX_PORT = 65_535

PORT_ATTEMPTS = 100
"""Random places to try before saying that no ports are free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestnetOptions:
    """What a testnet shall be. Defaults are the demo's: five nodes, BFLN's settings but for the rule, digits.

    Attributes:
        dataset: a kind of `fl.datasets`.
        dataset_path: where it is, for kinds that need it.
        alpha: Dirichlet concentration of the labels over nodes; 0 spreads them evenly (IID).
        architecture: id of a built-in model; chosen by the data when empty.
        samples: training samples to use at most; 0 uses all.
        min_clients: clients that a learning round needs; 0 for more than two thirds of the validators, as many as
            the chain itself needs, so that a node that is gone doesn't stop the learning.
        seed: of everything that is drawn but keys.
        learning_rate_micro: learning rate in millionths.
        rule: what becomes of models: a `task.Rule` in small letters with dashes, as are the other choices.
        step_permille: how far an output goes from what was received towards the combination, as in a task; None is the
            rule's default, as it is of the next three.
        momentum_permille: how far clients look ahead before they train, as in a task.
        shared_permille: least part of everybody's model in each cluster's, as in a task.
        similarity: what clients are compared by.
        base_port: first of consecutive ports; 0 takes free ones.
    """

    validators: int = 5
    rounds: int = 5
    dataset: str = "digits"
    dataset_path: str = ""
    alpha: float = 0.5
    clusters: int = 2
    architecture: str = ""
    samples: int = 0
    min_clients: int = 0
    epochs: int = 5
    batch_size: int = 64
    learning_rate_micro: int = 1000
    probe_mode: str = "public"
    weighting: str = "uniform"
    rule: str = choice_name(DEFAULT_RULE.name)
    combination: str = "mean"
    hostile_permille: int = DEFAULT_HOSTILE_PERMILLE
    clip_permille: int = PERMILLE
    step_permille: int | None = None
    momentum_permille: int | None = None
    shared_permille: int | None = None
    similarity: str | None = None
    psi: int = 32
    seed: int = 1
    base_port: int = 0
    control: bool = True

    @property
    def clients_min(self) -> int:
        """Clients that a learning round needs: > 2/3 of the validators unless said otherwise."""
        return self.min_clients or 2 * self.validators // 3 + 1


@dataclass(frozen=True, slots=True)
class Testnet:
    """A testnet on disk."""

    directory: Path
    options: TestnetOptions
    nodes: tuple[str, ...]

    def home(self, name: str) -> Home:
        """The home of a node.

        Raises:
            HomeError: there is no node of that name.
        """
        if name not in self.nodes:
            raise HomeError(f"{self.directory} has no node {name!r}: it has {', '.join(self.nodes)}")
        return Home(self.directory / name)

    @property
    def run(self) -> Path:
        """Folder of the launcher's socket and log."""
        return self.directory / RUN_FOLDER

    @property
    def homes(self) -> tuple[Home, ...]:
        """All homes, in order."""
        return tuple(Home(self.directory / name) for name in self.nodes)


def load_testnet(directory: Path) -> Testnet:
    """Read what is in a testnet's folder.

    Raises:
        HomeError: it is none.
    """
    path = directory / "testnet.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Testnet(directory.absolute(), TestnetOptions(**content["options"]), tuple(content["nodes"]))
    except OSError as error:
        raise HomeError(
            f"{directory} is not a testnet ({path}: {error.strerror}): "
            f"make one with `bflnode testnet init -o {directory}`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise HomeError(f"{path} is damaged ({error}): make a new testnet in another folder") from error


def make_testnet(directory: Path, options: TestnetOptions) -> Testnet:
    """Make homes, genesis and data.

    Raises:
        HomeError: the folder is in use or can't be written.
        DatasetError: the data can't be read or spread over so many nodes.
        UnknownArchitecture: no such model.
    """
    directory = directory.absolute()
    require_unused(directory)
    if options.clients_min > options.validators:
        raise HomeError(
            f"a round needs {options.clients_min} clients but there are {options.validators} nodes: "
            "lower --min-clients or raise -v"
        )
    if options.weighting != "uniform" and options.combination != "mean":
        raise HomeError(
            f"{options.combination} counts clients equally: leave out --weighting {options.weighting}, "
            "or use --combination mean"
        )
    settings = _by_rule(options)
    if settings["similarity"] is Similarity.UPDATES and options.probe_mode != "public":
        raise HomeError("updates are compared without samples: leave out --probe-mode, or use --similarity prototypes")
    if settings["shared_permille"] != PERMILLE and options.rule != "prior-rows":
        raise HomeError(f"under {options.rule} clusters share nothing: leave out --shared, or use --rule prior-rows")
    data = _load_data(options)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        homes = [make_home(directory / f"node{index}") for index in range(options.validators)]
        blobs = BlobStore(directory / "blobs")
        genesis = _make_genesis(directory, options, data, homes, blobs)
        (directory / "genesis.json").write_text(format_genesis(genesis), encoding="utf-8")
        ports = _ports(options.base_port, 2 * options.validators)
        addresses = [peer_address(home, ports[2 * index]) for index, home in enumerate(homes)]
        for index, home in enumerate(homes):
            earlier = addresses[:index]  # one side of each pair dials: all at once from both would double the work
            _fill_home(directory, home, earlier, (ports[2 * index], ports[2 * index + 1]), options)
            datasets.save_shard(home.shard, data.shards[index])
        for index, shard in enumerate(data.shards[options.validators :]):
            (directory / "spare").mkdir(exist_ok=True)
            datasets.save_shard(directory / "spare" / f"shard{index}.npz", shard)
    except OSError as error:
        raise HomeError(f"cannot make a testnet in {directory}: {error.strerror}: {error.filename}") from error
    testnet = Testnet(directory, options, tuple(home.root.name for home in homes))
    _save(testnet)
    return testnet


def require_unused(directory: Path) -> None:
    """Check that a testnet can be made in a folder: it is missing or holds nothing but a launcher's.

    Raises:
        HomeError: it is in use, or its path is too long for the launcher's socket.
    """
    excess = len(os.fsencode(directory / RUN_FOLDER / LAUNCHER_SOCKET)) - MAX_SOCKET_PATH_BYTES
    if excess > 0:
        raise HomeError(f"the path of {directory} is {excess} bytes too long for sockets: choose a shorter one")
    try:
        used = [entry.name for entry in directory.iterdir() if entry.name != RUN_FOLDER]
    except FileNotFoundError:
        return
    except OSError as error:
        raise HomeError(f"cannot make a testnet in {directory}: {error.strerror}: choose another folder") from error
    if used:
        raise HomeError(f"{directory} is not empty (it has {used[0]}): choose a new folder with -o, or remove it")


def add_node(testnet: Testnet) -> tuple[Testnet, Home]:
    """Make and admit one more home: a new account with a credential, the next spare shard, all peers' addresses.

    Raises:
        HomeError: no spare shard is left, or the folder can't be written.
    """
    directory = testnet.directory
    spare = sorted((directory / "spare").glob("shard*.npz"))
    if not spare:
        raise HomeError(f"{directory}/spare holds no more data: give a node its own with `bflnode init --shard FILE`")
    taken = [int(name.removeprefix("node")) for name in testnet.nodes]
    try:
        home = make_home(directory / f"node{max(taken) + 1}")
        ports = _ports(0, 2)
        addresses = [peer_address(other, load_configuration(other).p2p.port) for other in testnet.homes]
        _fill_home(directory, home, addresses, (ports[0], ports[1]), testnet.options)
        account = home.load_account()
        credential = sign_credential(directory / "admission.key", home.load_genesis(), account)
        write_credential(home, account, credential)
        spare[0].rename(home.shard)
    except OSError as error:
        raise HomeError(f"cannot add a node to {directory}: {error.strerror}: {error.filename}") from error
    grown = replace(testnet, nodes=(*testnet.nodes, home.root.name))
    _save(grown)
    return grown, home


def peer_address(home: Home, port: int, host: str = "127.0.0.1") -> str:
    """The full multiaddr of a node, from its libp2p key."""
    return f"/ip4/{host}/tcp/{port}/p2p/{peer_id_text(home.load_peer_seed())}"


@dataclass(frozen=True, slots=True)
class _Data:
    shards: tuple[Shard, ...]
    held: partition.HeldOut
    architecture: architectures.Architecture


def _load_data(options: TestnetOptions) -> _Data:
    path = Path(options.dataset_path).expanduser() if options.dataset_path else None
    share = population.DIGITS_TEST_SHARE if options.dataset == "digits" else datasets.TEST_SHARE
    whole = datasets.load(options.dataset, path, datasets.LoadOptions(seed=options.seed, test_share=share))
    if options.samples and options.samples < len(whole.train):
        tests = max(1, min(len(whole.test), options.samples))
        whole = Shard(
            partition.subset(whole.train, options.samples, options.seed),
            partition.subset(whole.test, tests, options.seed),
        )
    held = partition.hold_out(whole, **population.held_out_sizes(whole), seed=options.seed)
    clients = options.validators + SPARE_SHARDS
    spread = partition.Spread(clients=clients, seed=options.seed, min_train=MIN_SHARD_TRAIN)
    if options.alpha > 0:
        parts = partition.dirichlet(held.rest, options.alpha, spread)
    else:
        parts = partition.iid(held.rest, spread)
    name = options.architecture or population.default_architecture(options.dataset, whole)
    architecture = population.fitting_architecture(name, options.dataset, whole)
    return _Data(partition.shards_of(held.rest, parts), held, architecture)


def _make_genesis(
    directory: Path, options: TestnetOptions, data: _Data, homes: Sequence[Home], blobs: BlobStore
) -> Genesis:
    write_seed(directory / "admission.key", secrets.token_bytes(32))
    admission = read_secret_key(directory / "admission.key").account
    accounts = sorted(home.load_account() for home in homes)
    initial_model = blobs.put(data.architecture.initial_weights(options.seed))
    probe_set = _put_samples(blobs, data.held.probe)
    validation_set = _put_samples(blobs, data.held.validation)
    _save_test_set(directory / "test.npz", data.held.global_test)
    specification = _specification(options, data.architecture, (initial_model, probe_set, validation_set))
    return Genesis(
        name=f"testnet-{directory.name}"[:64],
        time_ms=int(time.time() * 1000),
        mode=Mode.CACC,
        parameters=_local_parameters(options.validators),
        accounts=tuple(GenesisAccount(account, POCKET) for account in accounts),
        validators=tuple(Validator(account, STAKE) for account in accounts),
        queue=(),
        admission_key=admission,
        admission_pool=ADMISSION_POOL,
        tasks=(GenesisTask(specification, accounts[0], specification.reward * specification.rounds),),
        beacon=tagged_hash("first-beacon", options.seed.to_bytes(8, "big")),
    )


def _local_parameters(validators: int) -> Parameters:
    """Time-outs for nodes that share one machine: what each of them needs grows with their number.

    Bonds and jail end after minutes and not after weeks, so that one can see it happen; but blocks are so quick that a
    hundred of them would jail a node that is stopped for some seconds.
    """
    return replace(
        default_parameters(),
        admission_amount=STAKE,
        unbonding_ms=300_000,
        jail_ms=60_000,
        attendance_window=1_000,
        missed_to_jail=950,
        propose_timeout_ms=1_500 + 100 * validators,
        vote_timeout_ms=500 + 100 * validators,
        timeout_step_ms=500 + 50 * validators,
    )


def _by_rule(asked: TestnetOptions) -> RuleDefaults:
    """What was asked for, and for the rest what is best under the rule.

    Combinations that bound what hostile clients do need many clients, so with them there is one model for all.
    """
    settings = DEFAULTS_BY_RULE[Rule[choice_value(asked.rule)]]
    shared = settings["shared_permille"] if asked.combination == "mean" else PERMILLE
    return RuleDefaults(
        step_permille=settings["step_permille"] if asked.step_permille is None else asked.step_permille,
        momentum_permille=settings["momentum_permille"] if asked.momentum_permille is None else asked.momentum_permille,
        shared_permille=shared if asked.shared_permille is None else asked.shared_permille,
        similarity=settings["similarity"] if asked.similarity is None else Similarity[choice_value(asked.similarity)],
    )


def _specification(
    options: TestnetOptions, architecture: architectures.Architecture, files: tuple[BlobId, BlobId, BlobId]
) -> TaskSpecification:
    initial_model, probe_set, validation_set = files
    return TaskSpecification(
        name=options.dataset[:64],
        architecture=architecture.id,
        classes=architecture.classes,
        model_bytes=architecture.size_bytes,
        initial_model=initial_model,
        rounds=options.rounds,
        reward=20 * TOKEN,
        clients_start=options.validators,
        clients_min=options.clients_min,
        clients_max=max(20, options.validators + SPARE_SHARDS),
        clusters=options.clusters,
        rho=2,
        psi=options.psi,
        probe_mode=ProbeMode[choice_value(options.probe_mode)],
        probe_set=probe_set,
        validation_set=validation_set,
        weighting=Weighting[choice_value(options.weighting)],
        rule=Rule[choice_value(options.rule)],
        combination=Combination[choice_value(options.combination)],
        hostile_permille=options.hostile_permille,
        clip_permille=options.clip_permille,
        **_by_rule(options),
        tolerance=10,
        deadlines=_local_deadlines(),
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate_micro=options.learning_rate_micro,
    )


def _local_deadlines() -> Deadlines:
    """Deadlines for one machine: a node that is gone is noticed in seconds, one that trains has minutes."""
    return replace(
        default_deadlines(),
        registration_ms=120_000,
        commit_ms=600_000,
        reveal_ms=30_000,
        available_ms=60_000,
        aggregate_ms=20_000,
        attest_ms=60_000,
        grace_floor_ms=5_000,
    )


def _put_samples(blobs: BlobStore, data: LabelledData) -> BlobId:
    return blobs.put(prototypes.serialize_samples(data.inputs, data.labels))


def _save_test_set(path: Path, data: LabelledData) -> None:
    """A shard file whose both halves are the same: one format for all data files."""
    datasets.save_shard(path, Shard(data, data))


def _fill_home(
    directory: Path, home: Home, peers: Sequence[str], ports: tuple[int, int], options: TestnetOptions
) -> None:
    """Give a home the genesis, the task's files, the test set and its settings."""
    shutil.copy(directory / "genesis.json", home.genesis_file)
    shutil.copy(directory / "test.npz", home.test_set)
    shutil.copytree(directory / "blobs", home.blobs)
    settings: dict[str, Any] = {
        "name": home.root.name,
        "p2p": {"host": "127.0.0.1", "port": ports[0], "persistent_peers": list(peers)},
        "rpc": {"host": "127.0.0.1", "port": ports[1]},
        "training": {"control": options.control},
        "storage": {"keep_rounds": 0},  # a testnet is there to be looked at, and its report executes every round again
    }
    home.configuration_file.write_text(tomli_w.dumps(settings), encoding="utf-8")


def _ports(base: int, count: int) -> list[int]:
    """Consecutive ports from `base`, or from a random place where all of them are free.

    Raises:
        HomeError: there are no such ports.
    """
    if base:
        if base + count - 1 > MAX_PORT:
            raise HomeError(f"ports {base} to {base + count - 1} don't exist: choose a lower --base-port")
        return list(range(base, base + count))
    for _ in range(PORT_ATTEMPTS):
        first = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT - count)
        if all(_is_free(port) for port in range(first, first + count)):
            return list(range(first, first + count))
    raise HomeError(f"found no {count} free ports between {FIRST_PORT} and {LAST_PORT}: choose with --base-port")


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _save(testnet: Testnet) -> None:
    content = {"options": asdict(testnet.options), "nodes": list(testnet.nodes)}
    path = testnet.directory / "testnet.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
