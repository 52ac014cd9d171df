"""The power goes: what was written but not synced is lost, what was acknowledged is not.

A process works on an ext4 file system in a file. When it has been killed, that file, copied without another sync, is
what a disk would hold after a power cut: the kernel's unwritten pages are not in it.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bflnode.consensus.agreement import SignVote
from bflnode.consensus.block import VoteKind
from bflnode.consensus.types import BlobId
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.durable import write_durably
from bflnode.storage.signer_wal import SignerWal
from tests.storage.chains import GENESIS, extend
from tests.storage.test_signer_wal import CHAIN, KEY, SOME

DISK_MIB = 48

COMMIT_INTERVAL_S = 300
"""The file system writes nothing by itself within this time."""

BLOB_BYTES = 300_000

HEIGHTS_BETWEEN_COMPACTIONS = 7

CHILD_ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}

CHILD = "import sys; from tests.reliability.test_power_cut import work; work(sys.argv[1], sys.argv[2:] == ['careless'])"


def work(folder: str, is_careless: bool) -> None:
    """What a node does all day: sign, append, store, note; each line says what is on disk now."""
    if is_careless:
        os.fsync = lambda descriptor: None
    root, height = Path(folder), 0
    with SignerWal(root / "signer.wal", KEY, CHAIN) as wal, ChainStore.create(root / "chain", GENESIS) as chain:
        blobs = BlobStore(root / "blobs")
        while True:
            height += 1
            wal.sign_vote(SignVote(VoteKind.PREVOTE, height, 0, SOME))
            print("vote", height, flush=True)
            [(block, _)] = extend(chain, [height])
            print("block", block.id.hex(), flush=True)
            print("blob", blobs.put(height.to_bytes(4) * (BLOB_BYTES // 4)).hex(), flush=True)
            write_durably(root / "note", str(height).encode())
            print("note", height, flush=True)
            if height % HEIGHTS_BETWEEN_COMPACTIONS == 0:
                wal.compact(height)


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-o", f"loop,commit={COMMIT_INTERVAL_S}", str(image), str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting a file system in a file is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An empty file system."""
    tool = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if tool is None:
        pytest.skip("mkfs.ext4 is not installed")
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(DISK_MIB * 1024 * 1024)
    subprocess.run([tool, "-q", str(path)], check=True)
    return path


@contextmanager
def after_power_cut(image: Path, lines: int, *options: str) -> Iterator[tuple[Path, list[list[str]]]]:
    """Let a process work until it has said so many lines, cut the power; what is on disk then, and all it had said."""
    with mounted(image, image.with_name("before")) as folder:
        command = [sys.executable, "-c", CHILD, str(folder), *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=CHILD_ENVIRONMENT) as worker:
            assert worker.stdout is not None
            said = [worker.stdout.readline() for _ in range(lines)]
            worker.send_signal(signal.SIGKILL)
            said += worker.stdout.readlines()
        copy = shutil.copy(image, image.with_name("copy"))
    with mounted(Path(copy), image.with_name("after")) as folder:
        yield folder, [line.split() for line in said if line.endswith("\n")]


@pytest.mark.parametrize("lines", [3, 30, 71])
def test_nothing_acknowledged_is_lost_when_the_power_goes(image: Path, lines: int) -> None:
    with after_power_cut(image, lines) as (folder, said):
        voted = max(int(value) for what, value in said if what == "vote")
        with SignerWal(folder / "signer.wal", KEY, CHAIN) as wal:
            assert wal.mark[0] in (voted, voted + 1)
        with ChainStore.open(folder / "chain") as chain:
            chain.check()
            ids = [value for what, value in said if what == "block"]
            assert [chain.block(at).id.hex() for at in range(1, len(ids) + 1)] == ids
        blobs = BlobStore(folder / "blobs")
        for identifier in (value for what, value in said if what == "blob"):
            assert len(blobs.get(BlobId(bytes.fromhex(identifier)))) == BLOB_BYTES
        noted = max((int(value) for what, value in said if what == "note"), default=0)
        assert noted == 0 or int((folder / "note").read_text()) in (noted, noted + 1)


def test_a_power_cut_takes_what_was_not_synced(image: Path) -> None:
    """Else the test above would prove nothing."""
    with after_power_cut(image, 30, "careless") as (folder, said):
        voted = max(int(value) for what, value in said if what == "vote")
        log = folder / "signer.wal"
        assert not log.exists() or log.stat().st_size < 100 * voted
        lost = [value for what, value in said if what == "blob" and not (folder / "blobs" / value[:2] / value).exists()]
        empty = [path for path in folder.glob("blobs/??/*") if path.stat().st_size < BLOB_BYTES]
        assert lost or empty
