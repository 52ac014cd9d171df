"""What people and programs of this machine hand in: files, RPC requests, messages of our own processes."""

import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import trio
from PIL import Image

from bflnode.consensus.agreement import SignVote, ValidValue
from bflnode.consensus.block import VoteKind
from bflnode.consensus.genesis import format_genesis, parse_genesis
from bflnode.consensus.keys import SecretKey, account_text, parse_account
from bflnode.consensus.transaction import MAX_AGGREGATE_BYTES, Slot, Transaction
from bflnode.fl.datasets import load_idx, load_npz
from bflnode.fl.image_folder import load_image_folder
from bflnode.fl.samples import DatasetError, LabelledData, Shard, load_shard, numbered_classes, save_shard
from bflnode.node.configuration import load_configuration
from bflnode.node.home import HomeError, make_home, read_account, read_credential, read_genesis, read_secret_key
from bflnode.node.journal import Journal
from bflnode.node.p2p.network import TransportError, parse_address
from bflnode.node.protected_key import ProtectedKey
from bflnode.node.rpc.calls import INSPECTIONS, bind
from bflnode.node.rpc.inspection import Inspector, Sources
from bflnode.node.rpc.methods import UnknownMethodError
from bflnode.node.rpc.refusals import ParameterError
from bflnode.node.rpc.server import answer_request, browser_fault, encoded
from bflnode.node.workers import worker_protocol
from bflnode.node.workers.process_messages import FrameReader, ProcessMessageError
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import StorageError
from bflnode.storage.signer_wal import SignerWal
from tests.fuzz.rule import Target, require_readable
from tests.fuzz.targets_wire import PEER, chain, proposals
from tests.node.stored_homes import store_chain

KEY = SecretKey.from_seed(bytes(range(32)))
SEALED = ProtectedKey(KEY.account, 3, 262_144, bytes(16), bytes(72))


@cache
def scratch() -> Path:
    """A folder of this process, removed at its end."""
    folder = tempfile.TemporaryDirectory(prefix="bflnode-fuzz-")
    _kept.append(folder)
    return Path(folder.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []
"""Keeps the scratch folder until the process ends."""


def put(name: str, data: bytes, mode: int = 0o600) -> Path:
    """A file with these bytes."""
    path = scratch() / name
    path.write_bytes(data)
    path.chmod(mode)
    return path


def _genesis(data: bytes) -> None:
    genesis = read_genesis(put("genesis.json", data))
    assert parse_genesis(format_genesis(genesis)) == genesis


def _credential(data: bytes) -> None:
    _, credential = read_credential(put("admission.json", data))
    assert len(credential) == 64


def _key_file(data: bytes) -> None:
    assert len(read_secret_key(put("account.key", data)).seed) == 32


def _protected_key(data: bytes) -> None:
    """Reading whose key it is; opening one costs time and memory by design, within bounds that reading checks."""
    assert len(read_account(put("protected.key", data))) == 32


def _account(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    account = parse_account(text)
    assert parse_account(account_text(account)) == account


def _address(data: bytes) -> None:
    _, peer = parse_address(data.decode("utf-8", "surrogateescape"))
    assert peer


def _configuration(data: bytes) -> None:
    home = _home()
    home.configuration_file.write_bytes(data)
    load_configuration(home)


@cache
def _home() -> Any:
    return make_home(scratch() / "home")


def _npz(data: bytes) -> None:
    load_npz(put("data.npz", data))


def _shard(data: bytes) -> None:
    """What is read as a shard is one again when it is written."""
    shard = load_shard(put("shard.npz", data))
    again = scratch() / "again.npz"
    save_shard(again, shard)
    assert load_shard(again).classes == shard.classes


def _idx(data: bytes) -> None:
    """A folder of four files, the first of which is foreign."""
    folder = scratch() / "idx"
    if not folder.exists():
        folder.mkdir()
        for name, content in _idx_files().items():
            (folder / name).write_bytes(content)
    target = "train-images-idx3-ubyte"
    (folder / f"{target}.gz").unlink(missing_ok=True)
    (folder / target).unlink(missing_ok=True)
    (folder / (f"{target}.gz" if data[:2] == b"\x1f\x8b" else target)).write_bytes(data)
    load_idx(folder, numbered_classes(10))


def _idx_files() -> dict[str, bytes]:
    images = bytes((0, 0, 8, 3)) + b"".join(side.to_bytes(4, "big") for side in (2, 3, 3)) + bytes(range(18))
    labels = bytes((0, 0, 8, 1)) + (2).to_bytes(4, "big") + b"\x01\x09"
    parts = {"images-idx3": images, "labels-idx1": labels}
    return {f"{split}-{part}-ubyte": content for split in ("train", "t10k") for part, content in parts.items()}


def _images(data: bytes) -> None:
    load_image_folder(put("images.tar", data), input_shape=(1, 4, 4))


def _image(data: bytes) -> None:
    """A folder of two classes, in which one file is foreign."""
    folder = scratch() / "images"
    if not folder.exists():
        for name in ("a", "b"):
            (folder / name).mkdir(parents=True)
            Image.new("L", (4, 4), 77).save(folder / name / "1.png")
    (folder / "a" / "2.png").write_bytes(data)
    load_image_folder(folder, input_shape=(1, 4, 4))


def _image_files() -> Sequence[bytes]:
    """One of each format that is read."""
    found = []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM"):
        for mode in ("L", "RGB"):
            file = io.BytesIO()
            Image.new(mode, (5, 3), 77).save(file, format=kind)
            found.append(file.getvalue())
    return found


def _image_archives() -> Sequence[bytes]:
    picture = io.BytesIO()
    Image.new("L", (4, 4), 77).save(picture, format="PNG")
    plain, packed = io.BytesIO(), io.BytesIO()
    for target, mode in ((plain, "w"), (packed, "w:gz")):
        with tarfile.open(fileobj=target, mode=mode) as archive:  # type: ignore[call-overload]  # mode is a literal above
            for split in ("train", "test"):
                for name in ("a", "b"):
                    entry = tarfile.TarInfo(f"{split}/{name}/1.png")
                    entry.size = len(picture.getvalue())
                    archive.addfile(entry, io.BytesIO(picture.getvalue()))
    return (plain.getvalue(), packed.getvalue())


def _journal(data: bytes) -> None:
    """A damaged entry counts as lost; it never stops a node."""
    journal = Journal(scratch() / "rounds")
    slot = Slot(chain().task_id, 1, 0)
    path = journal.directory / f"{slot.task.hex()[:16]}-000001-0.json"
    path.write_bytes(data)
    entry = journal.entry(slot)
    journal.update(slot, loss=0.5)
    assert journal.entry(slot).loss == 0.5
    assert entry.number is not None


def _journal_entries() -> Sequence[bytes]:
    return [
        json.dumps(
            {"task": chain().task_id.hex(), "number": 1, "attempt": 0, "model": "ab" * 32, "loss": 0.25}
        ).encode()
    ]


def _wal(data: bytes) -> None:
    """A log either refuses to be used, or goes on after its whole records; it never forgets one silently."""
    path = put("signer.wal", data)
    with SignerWal(path, KEY, chain().chain_id) as log:
        mark = log.mark
        kept = path.read_bytes()
    assert data.startswith(kept), "opening a log changed what it had"
    with SignerWal(path, KEY, chain().chain_id) as log:
        assert log.mark == mark


def _wal_files() -> Sequence[bytes]:
    path = scratch() / "seed.wal"
    path.unlink(missing_ok=True)
    message, certified = proposals()
    with SignerWal(path, KEY, chain().chain_id) as log:
        log.sign_vote(SignVote(VoteKind.PREVOTE, 3, 0, message.proposal.block_id))
        log.persist(ValidValue(message.proposal, message.block, (), certified.certificate))
        log.sign_vote(SignVote(VoteKind.PRECOMMIT, 3, 0, message.proposal.block_id))
        whole = path.read_bytes()
        log.compact(3)
    return (whole, path.read_bytes())


def _worker_messages(data: bytes) -> None:
    for message in FrameReader(worker_protocol.WORKER_MESSAGES).feed(data):
        assert worker_protocol.WORKER_MESSAGES.encode(message)


def _worker_frames() -> Sequence[bytes]:
    codec = worker_protocol.WORKER_MESSAGES
    probe = worker_protocol.PublicProbe("/probe", bytes(32), 8)
    job = worker_protocol.MatrixJob("mlp/1x8x8/10", ("/a", "/b"), probe)
    done = worker_protocol.JobDone(3, worker_protocol.PredictResult((1, 2), ((0.5, 0.5), (0.25, 0.75))))
    return (
        codec.encode(worker_protocol.RunJob(3, job)),
        codec.encode(worker_protocol.Hello(77)) + codec.encode(worker_protocol.Progress(3, 0.5, "epoch 2 of 4")),
        codec.encode(done) + codec.encode(worker_protocol.JobRefused(4, "bad-input", "no such file")),
    )


@cache
def _inspector() -> Inspector:
    """A stopped node's answers over a real chain."""
    folder = scratch() / "inspected"
    store_chain(chain(), folder / "chain")
    store = ChainStore.open(folder / "chain")
    sources = Sources(
        store, store.load_state(), BlobStore(folder / "blobs"), Journal(folder / "rounds"), chain().keys[0].account
    )
    return Inspector(sources)


def _rpc(data: bytes) -> None:
    """Whatever is asked, the answer is JSON that can be sent; an error in it is for people."""

    async def call(method: str, params: dict[str, Any]) -> Any:
        if method == "broadcast_tx":
            values = bind(_taken, params, bound=0)
            return _taken(**values)
        inspection = INSPECTIONS.get(method)
        if inspection is None:
            raise UnknownMethodError(f"there is no method {method[:40]!r}")
        return inspection(_inspector(), **bind(inspection, params))

    answer = trio.run(answer_request, call, data)
    if answer is not None:
        sent = json.loads(encoded(answer))
        if "error" in sent:
            require_readable(sent["error"]["message"])


def _taken(transaction: str) -> str:
    """What `broadcast_tx` does before the transaction reaches the mempool."""
    try:
        raw = bytes.fromhex(transaction)
    except ValueError as error:
        raise ParameterError("not hexadecimal") from error
    return Transaction.from_bytes(raw, max_bytes=MAX_AGGREGATE_BYTES).id.hex()


def _rpc_requests() -> Sequence[bytes]:
    block = chain().blocks[-1]
    transaction = block.transactions[0]
    questions: dict[str, dict[str, Any]] = {
        **{method: {} for method in INSPECTIONS},
        "block": {"reference": "latest"},
        "tx": {"reference": transaction.id.hex()},
        "account": {"reference": account_text(transaction.sender)},
        "model": {"reference": "ab" * 32},
        "broadcast_tx": {"transaction": transaction.encoded.hex()},
    }
    return [
        json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()
        for number, (method, params) in enumerate(questions.items())
    ]


def _host(data: bytes) -> None:
    """Headers as an HTTP server hands them over: Latin-1 text."""
    host, _, origin = data.decode("latin-1").partition("\n")
    fault = browser_fault(host, origin or None)
    if fault is not None:
        require_readable(fault)


def _arrays() -> Sequence[bytes]:
    inputs = np.arange(64, dtype=np.uint8).reshape(4, 1, 4, 4)
    labels = np.array([0, 1, 0, 1])
    names = np.array(["a", "b"])
    found = []
    for save in (np.savez, np.savez_compressed):
        for arrays in (
            {"x": inputs, "y": labels},
            {"x_train": inputs, "y_train": labels, "x_test": inputs, "y_test": labels},
        ):
            file = io.BytesIO()
            save(file, **arrays, class_names=names)
            found.append(file.getvalue())
    return found


def _shards() -> Sequence[bytes]:
    data = LabelledData(np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4), np.array([0, 1]), ("a", "b"))
    path = scratch() / "seed.npz"
    save_shard(path, Shard(data, data))
    return [path.read_bytes()]


def _settings() -> Sequence[bytes]:
    everything = {
        "name": "tested",
        "log_level": "debug",
        "p2p": {"port": 0, "persistent_peers": [f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"], "max_peers": 9},
        "rpc": {"host": "127.0.0.1", "port": 1},
        "training": {"enabled": False, "threads": 2, "device": "cpu"},
    }
    return [tomli_w.dumps(everything).encode(), b""]


def of_file(decode: Callable[[bytes], None], refusal: type[Exception], seeds: Callable[[], Sequence[bytes]]) -> Target:
    """A file with one kind of refusal."""
    return Target(decode=decode, refusals=(refusal,), seeds=seeds, is_measured=False)


def file_targets() -> dict[str, Target]:
    """By name."""
    account = account_text(KEY.account)
    return {
        "genesis": of_file(_genesis, HomeError, lambda: [format_genesis(chain().genesis).encode()]),
        "credential": of_file(
            _credential, HomeError, lambda: [json.dumps({"account": account, "credential": "ab" * 64}).encode()]
        ),
        "key-file": of_file(_key_file, HomeError, lambda: [KEY.seed.hex().encode() + b"\n"]),
        "protected-key": of_file(
            _protected_key, HomeError, lambda: [SEALED.to_text().encode(), KEY.seed.hex().encode() + b"\n"]
        ),
        "configuration": of_file(_configuration, HomeError, _settings),
        "npz": of_file(_npz, DatasetError, _arrays),
        "shard": of_file(_shard, DatasetError, _shards),
        "idx": of_file(
            _idx,
            DatasetError,
            lambda: [_idx_files()["train-images-idx3-ubyte"], gzip.compress(_idx_files()["train-images-idx3-ubyte"])],
        ),
        "images": of_file(_images, DatasetError, _image_archives),
        "image": of_file(_image, DatasetError, _image_files),
        "journal": of_file(_journal, StorageError, _journal_entries),
        "signer-log": of_file(_wal, StorageError, _wal_files),
        "worker": of_file(_worker_messages, ProcessMessageError, _worker_frames),
        "rpc": Target(decode=_rpc, refusals=(), seeds=_rpc_requests, is_measured=False),
        "host": Target(
            decode=_host, refusals=(), seeds=lambda: [b"127.0.0.1:26657", b"localhost\nhttp://localhost", b"[::1]:1"]
        ),
        "account": Target(decode=_account, refusals=(ValueError,), seeds=lambda: [account.encode()]),
        "address": Target(
            decode=_address,
            refusals=(TransportError,),
            seeds=lambda: [f"/ip4/127.0.0.1/tcp/26656/p2p/{PEER}".encode(), f"/dns/node/tcp/1/p2p/{PEER}".encode()],
            limit_bytes=256,
        ),
    }
