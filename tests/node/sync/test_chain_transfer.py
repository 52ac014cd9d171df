import io
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bflnode.consensus.block import Block, Commit
from bflnode.node.home import Home
from bflnode.node.sync.chain_transfer import (
    Imported,
    ImportFaultError,
    export_chain,
    export_range,
    import_chain,
    open_archive,
)
from bflnode.storage.archive import ArchiveError, ArchiveHead, ArchiveReader, ArchiveWriter
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import StorageError
from tests.consensus.harness import Harness
from tests.node.stored_homes import home_with, store_chain


@pytest.fixture(scope="module")
def harness() -> Harness:
    """A chain with a settled learning round."""
    played = Harness(actors=4)
    played.register_all()
    played.play_round()
    return played


@pytest.fixture(scope="module")
def folder(harness: Harness, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("transfer") / "chain"
    store_chain(harness, path)
    return path


@pytest.fixture(scope="module")
def archive(folder: Path) -> Path:
    """All of it in a file."""
    target = folder.with_name("all.chain")
    exported(folder, target)
    return target


def exported(folder: Path, target: Path, first: int | None = None, last: int | None = None) -> ArchiveHead:
    heard: list[int] = []
    with ChainStore.open(folder) as store:
        head = export_range(store, first, last)
        export_chain(store, head, target, heard.append)
    assert heard == list(range(head.first, head.last + 1))
    return head


def imported(harness: Harness, folder: Path, source: Path) -> Imported:
    """Import into a chain of the same genesis, which is made where there is none."""
    opened = ChainStore.open(folder) if folder.exists() else ChainStore.create(folder, harness.genesis)
    with opened as store, open_archive(source) as reader:
        return import_chain(store, reader, lambda _height: None)


def entries(folder: Path) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """What a chain comes to: tip and state."""
    with ChainStore.open(folder) as store:
        store.check()
        return store.tip().height, store.tip().block_id, list(store.load_state().entries())


def test_an_imported_chain_is_the_one_that_was_exported(
    harness: Harness, folder: Path, archive: Path, tmp_path: Path
) -> None:
    height = len(harness.blocks)
    assert imported(harness, tmp_path / "new", archive) == Imported(before=0, after=height, known=0)
    assert entries(tmp_path / "new") == entries(folder)
    assert imported(harness, tmp_path / "new", archive) == Imported(height, height, known=height)
    exported(tmp_path / "new", tmp_path / "again.chain")
    assert (tmp_path / "again.chain").read_bytes() == archive.read_bytes()


def test_a_chain_is_imported_in_parts_that_overlap(harness: Harness, folder: Path, tmp_path: Path) -> None:
    height = len(harness.blocks)
    exported(folder, tmp_path / "first.chain", last=4)
    exported(folder, tmp_path / "second.chain", first=3)
    assert imported(harness, tmp_path / "new", tmp_path / "first.chain") == Imported(0, 4, 0)
    assert imported(harness, tmp_path / "new", tmp_path / "second.chain") == Imported(4, height, 2)
    assert entries(tmp_path / "new") == entries(folder)


def test_an_archive_that_begins_above_the_tip_says_which_one_is_missing(
    harness: Harness, folder: Path, tmp_path: Path
) -> None:
    exported(folder, tmp_path / "later.chain", first=3)
    with pytest.raises(ArchiveError, match=r"begins with block 3, but the chain here ends with block 0.*from 1 on"):
        imported(harness, tmp_path / "new", tmp_path / "later.chain")


@pytest.mark.parametrize(("first", "last"), [(0, 3), (3, 2), (1, 10_000)])
def test_blocks_that_are_not_there_are_not_exported(folder: Path, first: int, last: int) -> None:
    with ChainStore.open(folder) as store, pytest.raises(StorageError, match=f"blocks {first} to {last} are not all"):
        export_range(store, first, last)


def test_a_chain_without_blocks_is_not_exported(harness: Harness, tmp_path: Path) -> None:
    with ChainStore.create(tmp_path / "new", harness.genesis) as store, pytest.raises(StorageError, match="no block"):
        export_range(store, None, None)


def test_a_chain_from_a_snapshot_exports_what_it_has_and_says_from_where(folder: Path, tmp_path: Path) -> None:
    with ChainStore.open(folder) as store:
        with store.freeze() as frozen:
            begun = ChainStore.create_from_snapshot(
                tmp_path / "later", store.genesis, frozen.header, frozen.commit, frozen.entries()
            )
        with begun, pytest.raises(StorageError, match="no block here yet"):
            export_range(begun, None, None)


def test_an_archive_of_another_chain_is_refused(archive: Path, tmp_path: Path) -> None:
    other = Harness(actors=3)
    with pytest.raises(ArchiveError, match=f"this home of chain {other.chain_id.hex()[:16]}"):
        imported(other, tmp_path / "new", archive)


def forged(harness: Harness, height: int, change: object, path: Path) -> Path:
    """An archive in which one block, or its commit, is another one."""
    commits = [*(block.last_commit for block in harness.blocks[1:]), harness.last_commit]
    with path.open("wb") as file:
        writer = ArchiveWriter(file, path, ArchiveHead(harness.genesis.chain_id, 1, len(commits)))
        for block, commit in zip(harness.blocks, commits, strict=True):
            pair = change(block, commit) if block.height == height else (block, commit)  # type: ignore[operator]  # a function
            writer.add(*pair)
    return path


def without_transactions(block: Block, commit: Commit) -> tuple[Block, Commit]:
    return Block(block.header, (), block.last_commit), commit


def without_quorum(block: Block, commit: Commit) -> tuple[Block, Commit]:
    return block, replace(commit, signatures=commit.signatures[:2])


def with_other_signature(block: Block, commit: Commit) -> tuple[Block, Commit]:
    first, second, *rest = commit.signatures
    return block, replace(commit, signatures=(replace(first, signature=second.signature), second, *rest))


def of_another_block(block: Block, commit: Commit) -> tuple[Block, Commit]:
    return block, block.last_commit


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (without_transactions, "wrong-root"),
        (without_quorum, "no-quorum"),
        (with_other_signature, "bad-signature"),
        (of_another_block, "wrong-commit"),
    ],
)
def test_the_first_block_that_breaks_a_rule_is_named_and_those_before_it_stay(
    harness: Harness, archive: Path, tmp_path: Path, change: object, rule: str
) -> None:
    bad = forged(harness, 4, change, tmp_path / "bad.chain")
    with pytest.raises(ImportFaultError, match=rf"bad.chain: block 4 at byte \d+ is not valid: {rule}.*up to block 3"):
        imported(harness, tmp_path / "new", bad)
    assert entries(tmp_path / "new")[0] == 3
    assert imported(harness, tmp_path / "new", archive).after == len(harness.blocks)


def test_another_block_of_a_known_height_is_refused(harness: Harness, archive: Path, tmp_path: Path) -> None:
    imported(harness, tmp_path / "new", archive)

    def later(block: Block, commit: Commit) -> tuple[Block, Commit]:
        return Block(
            replace(block.header, time_ms=block.header.time_ms + 1), block.transactions, block.last_commit
        ), commit

    before = entries(tmp_path / "new")
    bad = forged(harness, 2, later, tmp_path / "bad.chain")
    with pytest.raises(ImportFaultError, match=r"block 2 at byte .* two chains of one genesis; nothing was imported"):
        imported(harness, tmp_path / "new", bad)
    assert entries(tmp_path / "new") == before


def test_an_archive_that_was_cut_off_gives_its_whole_blocks(harness: Harness, archive: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.chain"
    torn.write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(ArchiveError, match="cut off"):
        imported(harness, tmp_path / "new", torn)
    assert entries(tmp_path / "new")[0] == len(harness.blocks) - 1
    assert imported(harness, tmp_path / "new", archive).known == len(harness.blocks) - 1


def test_an_import_that_is_killed_goes_on_where_it_was(
    harness: Harness, folder: Path, archive: Path, tmp_path: Path
) -> None:
    home: Home = home_with(tmp_path / "home", harness.genesis, harness.keys[0])
    script = "from bflnode.storage.failpoints import arm; arm(); from bflnode.node.cli import main; main()"
    command = [sys.executable, "-P", "-c", script, "chain", "import", str(archive), "--home", str(home.root)]
    for moment in ("before", "after"):
        environment = {**os.environ, "BFLNODE_FAILPOINT": f"chain.batch.{moment}=2"}
        killed = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
        assert killed.returncode == -signal.SIGKILL
    assert entries(home.chain)[0] == 1 + 2
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert entries(home.chain) == entries(folder)


def test_an_export_that_fails_leaves_no_file(folder: Path, tmp_path: Path) -> None:
    def fail(_height: int) -> None:
        raise InterruptedError("in the middle")

    with ChainStore.open(folder) as store, pytest.raises(StorageError, match="in the middle"):
        export_chain(store, export_range(store, None, None), tmp_path / "half.chain", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(folder: Path) -> None:
    with ChainStore.open(folder) as store, pytest.raises(StorageError, match="The disk is full"):
        export_chain_to_full_disk(store)


def export_chain_to_full_disk(store: ChainStore) -> None:
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 - the device that says so
        ArchiveWriter(full, Path("/dev/full"), export_range(store, None, None))  # type: ignore[arg-type]  # raw is enough


def test_reading_an_archive_holds_one_block_at_a_time(archive: Path) -> None:
    data = archive.read_bytes()
    file = io.BytesIO(data)
    reader = ArchiveReader(file, archive)
    first = next(iter(reader.blocks()))
    assert file.tell() < len(data) / 2
    assert first.block.height == 1
