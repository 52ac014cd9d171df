"""Making the home of a node that joins a network: keys, genesis, admission, the person's own data, settings.

Everything that is given is checked before anything is written. Homes of a whole testnet are `testnets.homes`'.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from bflnode.consensus.genesis import Genesis
from bflnode.consensus.keys import SecretKey, account_text
from bflnode.consensus.ledger import genesis_state
from bflnode.consensus.task import TaskSpecification
from bflnode.consensus.types import BlobId
from bflnode.fl import datasets
from bflnode.fl.architectures import Architecture, UnknownArchitecture, architecture
from bflnode.fl.samples import DatasetError, Shard
from bflnode.node.p2p.network_key import read_network_key
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.durable import sync_tree, write_durably
from bflnode.storage.errors import MissingError

from .admission import check_credential, sign_credential, write_credential
from .home import Home, HomeError, make_home, read_genesis, read_secret_key, write_seed

NO_BLOB = BlobId(bytes(32))
"""Where a task has no such file."""

_PEER = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/[^/\s]+/tcp/\d{1,5}(/[^/\s]+)*/p2p/[1-9A-HJ-NP-Za-km-z]{40,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHome:
    """What a person gives for a new home; None where nothing is given.

    Attributes:
        root: the folder to make.
        genesis: the chain's genesis file.
        name: shown to people.
        account_key: key file to take over instead of a new key.
        admission: credential of the account of `account_key`.
        admission_key: the network's admission key, to sign the new account in at once.
        shard: the node's own data as an .npz with train and test parts.
        data: kind and place of the node's own data in another form, such as ("imagefolder", path).
        class_names: all classes of the task in its order, where the own data has only some of them.
        test_set: global test data, as an .npz like `shard`.
        blobs: a folder of blobs with the initial model and probe set.
        peers: multiaddrs to connect to.
        bootstrap: multiaddrs that are dialled as long as there are no peers.
        mdns: whether to look for nodes on the local network.
        network_key: key file of a private network.
        host: address to listen on for peers.
        port: for peers.
        rpc_port: for RPC.
    """

    root: Path
    genesis: Path
    name: str = "node"
    account_key: Path | None = None
    admission: Path | None = None
    admission_key: Path | None = None
    shard: Path | None = None
    data: tuple[str, Path | None] | None = None
    class_names: tuple[str, ...] | None = None
    test_set: Path | None = None
    blobs: Path | None = None
    peers: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    mdns: bool = False
    network_key: Path | None = None
    host: str | None = None
    port: int | None = None
    rpc_port: int | None = None


@dataclass(frozen=True, slots=True)
class Initialised:
    """A new home, for its person.

    Attributes:
        home: where it is.
        account: in text form.
        chain_id: of the genesis, hexadecimal.
        is_member: whether the account exists in the genesis or has a credential.
        samples: training and test samples of the own data; None without data.
        task: name of the task that the data fits; None without data.
    """

    home: Home
    account: str
    chain_id: str
    is_member: bool
    samples: tuple[int, int] | None
    task: str | None


def initialise(wanted: NewHome) -> Initialised:
    """Make a home.

    Raises:
        HomeError: something given can't be used; nothing has been written then.
        StorageError: the disk is at fault.
    """
    genesis = read_genesis(wanted.genesis)
    _check_genesis(wanted.genesis, genesis)
    if wanted.network_key is not None:
        read_network_key(wanted.network_key)
    for peer in (*wanted.peers, *wanted.bootstrap):
        if not _PEER.fullmatch(peer):
            raise HomeError(
                f"{peer!r} is not the address of a peer: it looks like /ip4/192.0.2.7/tcp/26656/p2p/12D3KooW…"
            )
    key = None if wanted.account_key is None else read_secret_key(wanted.account_key)
    if wanted.admission is not None:
        if key is None:
            raise HomeError(
                f"{wanted.admission} admits an account that exists already: give its key too (--account-key), or make "
                "the home first and run `bflnode keys accept`"
            )
        check_credential(wanted.admission, genesis, key.account)
    if wanted.admission_key is not None:
        sign_credential(wanted.admission_key, genesis, genesis.admission_key)
    shard, task = _own_data(wanted, genesis)
    if wanted.test_set is not None:
        _fitting_task(_load_shard(wanted.test_set), genesis, str(wanted.test_set))
    blobs = () if wanted.blobs is None else tuple(_needed_blobs(genesis, wanted.blobs))

    home = make_home(wanted.root, account_seed=None if key is None else key.seed)
    own = home.load_account_key()
    try:
        _write(wanted, home, own, genesis, shard, blobs)
    except OSError as error:
        raise HomeError(f"cannot fill the home {wanted.root}: {error.strerror}: {error.filename}") from error
    accounts = {entry.account for entry in genesis.accounts} | {entry.account for entry in genesis.validators}
    return Initialised(
        home=home,
        account=account_text(own.account),
        chain_id=genesis.chain_id.hex(),
        is_member=own.account in accounts or home.load_credential() is not None,
        samples=None if shard is None else (len(shard.train), len(shard.test)),
        task=task,
    )


def _write(
    wanted: NewHome, home: Home, key: SecretKey, genesis: Genesis, shard: Shard | None, blobs: tuple[Path, ...]
) -> None:
    """Fill a home. The genesis comes last, when all else is on disk: until then `init` can be run again."""
    if wanted.admission is not None:
        write_credential(home, key.account, check_credential(wanted.admission, genesis, key.account))
    elif wanted.admission_key is not None:
        write_credential(home, key.account, sign_credential(wanted.admission_key, genesis, key.account))
    if shard is not None:
        datasets.save_shard(home.shard, shard)
    if wanted.test_set is not None:
        shutil.copy(wanted.test_set, home.test_set)
    store = BlobStore(home.blobs)
    for path in blobs:
        store.put_file(path)
    listening = {"host": wanted.host, "port": wanted.port}
    p2p: dict[str, Any] = {name: value for name, value in listening.items() if value is not None}
    p2p["persistent_peers"] = list(wanted.peers)
    if wanted.bootstrap:
        p2p["bootstrap"] = list(wanted.bootstrap)
    if wanted.mdns:
        p2p["mdns"] = True
    if wanted.network_key is not None:
        write_seed(home.network_key_file, bytes.fromhex(read_network_key(wanted.network_key)))
        p2p["private_key_file"] = home.network_key_file.name
    settings: dict[str, Any] = {"name": wanted.name, "p2p": p2p, "training": {"enabled": shard is not None}}
    if wanted.rpc_port is not None:
        settings["rpc"] = {"port": wanted.rpc_port}
    write_durably(home.configuration_file, tomli_w.dumps(settings).encode())
    sync_tree(home.root)
    write_durably(home.genesis_file, wanted.genesis.read_bytes())


def _check_genesis(path: Path, genesis: Genesis) -> None:
    try:
        genesis_state(genesis)
    except ValueError as error:
        raise HomeError(f"the genesis {path} is not valid: {error}") from error


def _own_data(wanted: NewHome, genesis: Genesis) -> tuple[Shard | None, str | None]:
    """The person's own data and the task that it fits."""
    if wanted.shard is not None:
        shard, place = _load_shard(wanted.shard), str(wanted.shard)
    elif wanted.data is not None:
        kind, path = wanted.data
        shape = _shape_for(genesis, wanted.class_names)
        options = datasets.LoadOptions(class_names=wanted.class_names, input_shape=shape)
        try:
            shard, place = datasets.load(kind, path, options), f"{kind}:{path or ''}"
        except DatasetError as error:
            raise HomeError(str(error)) from error
    else:
        return None, None
    return shard, _fitting_task(shard, genesis, place)


def _load_shard(path: Path) -> Shard:
    try:
        return datasets.load_shard(path)
    except DatasetError as error:
        raise HomeError(str(error)) from error


def _architectures(genesis: Genesis) -> Iterator[tuple[TaskSpecification, Architecture]]:
    for entry in genesis.tasks:
        try:
            yield entry.specification, architecture(entry.specification.architecture)
        except UnknownArchitecture as error:
            raise HomeError(
                f"task {entry.specification.name}: {error}; a newer version of bflnode may know it"
            ) from error


def _shape_for(genesis: Genesis, class_names: tuple[str, ...] | None) -> tuple[int, int, int] | None:
    """What images are converted to: the input of the first task with as many classes as are named."""
    for _, chosen in _architectures(genesis):
        if class_names is None or chosen.classes == len(class_names):
            return chosen.input_shape
    return None


def _fitting_task(shard: Shard, genesis: Genesis, place: str) -> str:
    """Name of the first task whose architecture takes this data."""
    tasks = []
    for specification, chosen in _architectures(genesis):
        if (chosen.input_shape, chosen.classes) == (shard.input_shape, shard.classes):
            return specification.name
        tasks.append(f"{specification.name} takes {_described(chosen.input_shape, chosen.classes)}")
    hint = "; where your data has only some of the task's classes, name all of them with --classes"
    found = _described(shard.input_shape, shard.classes)
    raise HomeError(f"{place} has {found}, which fits no task of this chain: {', '.join(tasks) or 'it has none'}{hint}")


def _described(shape: tuple[int, int, int], classes: int) -> str:
    return f"{'x'.join(map(str, shape))} and {classes} classes"


def _needed_blobs(genesis: Genesis, folder: Path) -> Iterator[Path]:
    """The files in a folder of blobs that the tasks name."""
    if not folder.is_dir():
        raise HomeError(f"{folder} is not a folder of blobs: leave --blobs out, they are then fetched from peers")
    for entry in genesis.tasks:
        specification = entry.specification
        for blob in (specification.initial_model, specification.probe_set, specification.validation_set):
            path = folder / blob.hex()[:2] / blob.hex()
            if blob != NO_BLOB:
                if not path.is_file():
                    raise MissingError(
                        path, "this blob is not here", "Leave --blobs out, it is then fetched from peers"
                    )
                yield path
