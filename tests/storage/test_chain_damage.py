"""A chain store that was damaged, cut short or killed: nothing that was acknowledged is lost unseen."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import plyvel
import pytest

from bflnode.consensus.tables import ACCOUNTS, Account
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import CorruptStore, StorageError
from tests.storage.chains import ALICE, BOB, GENESIS, change_value, extend

HEIGHT_2 = (2).to_bytes(8)


@pytest.mark.parametrize(
    ("key", "change", "fault"),
    [
        (b"m schema", lambda value: None, "creation was never finished"),
        (b"m chain", lambda value: bytes(32), "its genesis is of chain"),
        (b"m genesis", lambda value: value[:-1], "genesis can't be read"),
        (b"m tip", lambda value: (1).to_bytes(8), "the stored state has the root"),
        (b"m tip", lambda value: (9).to_bytes(8), "header of the tip 9 is missing"),
        (b"h" + HEIGHT_2, lambda value: value[:-1] + bytes([value[-1] ^ 1]), "don't belong together"),
        (b"b" + HEIGHT_2, lambda value: None, "the block of height 2 is missing"),
        (b"c" + HEIGHT_2, lambda value: b"\x90", "commit of height 2 can't be read"),
        (
            b"s" + ACCOUNTS.prefix + BOB.account,
            lambda value: Account(31, 0).to_bytes(),
            "the stored state has the root",
        ),
        (b"s" + ACCOUNTS.prefix + BOB.account, lambda value: None, "the stored state has the root"),
        (b"snew", lambda value: b"\0", "the stored state has the root"),
    ],
)
def test_store_that_contradicts_itself_is_not_opened(
    store: ChainStore, key: bytes, change: Callable[[bytes], bytes | None], fault: str
) -> None:
    extend(store, [10, 20])
    store.close()
    change_value(store.path, key, change)
    with pytest.raises(CorruptStore, match=fault) as caught:
        ChainStore.open(store.path)
    assert "move this folder aside" in caught.value.remedy


def test_other_schema_is_refused_with_both_versions(store: ChainStore) -> None:
    store.close()
    change_value(store.path, b"m schema", lambda value: b"99")
    with pytest.raises(StorageError, match="schema 99, this version reads 1"):
        ChainStore.open(store.path)


def test_changed_block_below_the_tip_is_reported_when_it_is_read(store: ChainStore) -> None:
    extend(store, [10, 20])
    store.close()
    change_value(store.path, b"b" + (1).to_bytes(8), lambda value: value[:50])
    with ChainStore.open(store.path) as reopened, pytest.raises(CorruptStore, match="block of height 1 can't be read"):
        reopened.block(1)


def table_file(path: Path) -> Path:
    """Write all of the database into one table file, and name it."""
    database = plyvel.DB(str(path))
    database.compact_range()
    database.close()
    return max(path.glob("*.ldb"), key=lambda file: file.stat().st_size)


def test_bit_flip_in_a_table_file_is_found(store: ChainStore) -> None:
    extend(store, list(range(100)))
    store.close()
    file = table_file(store.path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptStore, match="move this folder aside"):
        read_everything(store.path)


def test_check_finds_a_bit_flip_in_any_table(store: ChainStore) -> None:
    extend(store, list(range(100)))
    store.check()
    store.close()
    file = table_file(store.path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptStore, match="move this folder aside"), ChainStore.open(store.path) as reopened:
        reopened.check()


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        (b"b" + (1).to_bytes(8), None, "block 1 should follow, but 2 does"),
        (b"h" + (1).to_bytes(8), None, "header 1 should follow, but 2 does"),
        (b"c" + (1).to_bytes(8), None, "commit 1 should follow, but 2 does"),
        (b"b" + (3).to_bytes(8), b"", "the blocks end at 3, the tip is 2"),
        (b"c" + (9).to_bytes(8), b"", "commit 3 should follow, but 9 does"),
    ],
)
def test_check_finds_gaps_and_what_lies_beyond_the_tip(
    store: ChainStore, key: bytes, value: bytes | None, fault: str
) -> None:
    extend(store, [10, 20])
    store.close()
    database = plyvel.DB(str(store.path))
    database.delete(key) if value is None else database.put(key, value)
    database.close()
    with ChainStore.open(store.path) as reopened, pytest.raises(CorruptStore, match=fault):
        reopened.check()


def records(path: Path) -> dict[bytes, bytes]:
    """Everything in a closed database."""
    database = plyvel.DB(str(path))
    found = dict(database.iterator())
    database.close()
    return found


@pytest.mark.parametrize("height", [0, 1, 2, 3])
def test_rewinding_leaves_exactly_what_was_there_at_that_height(store: ChainStore, tmp_path: Path, height: int) -> None:
    extend(store, [10, 20, 30])
    with ChainStore.create(tmp_path / "shorter", GENESIS) as shorter:
        extend(shorter, [10, 20, 30][:height])
        state = shorter.load_state()
    store.rewind(height, state)
    assert store.tip().height == height
    store.close()
    assert records(store.path) == records(tmp_path / "shorter")
    with ChainStore.open(store.path) as reopened:
        reopened.check()
        extend(reopened, [7])


def test_store_with_a_broken_state_is_opened_for_repair_only_and_rewinding_repairs_it(store: ChainStore) -> None:
    extend(store, [10, 20])
    state = store.load_state()
    store.close()
    change_value(store.path, b"s" + ACCOUNTS.prefix + BOB.account, lambda value: Account(31, 0).to_bytes())
    with pytest.raises(CorruptStore, match="the stored state has the root"):
        ChainStore.open(store.path)
    with ChainStore.open(store.path, is_state_checked=False) as damaged:
        damaged.rewind(2, state)
    with ChainStore.open(store.path) as repaired:
        assert list(repaired.load_state().entries()) == list(state.entries())


def read_everything(path: Path) -> None:
    with ChainStore.open(path) as store:
        for block in store.blocks(1, store.tip().height + 1):
            assert store.header(block.height) == block.header
            assert store.commit(block.height).block_id == block.id
            assert all(store.transaction(transaction.id) is not None for transaction in block.transactions)
        store.account_history(ALICE.account)


def test_truncated_table_file_is_found_on_opening(store: ChainStore) -> None:
    extend(store, list(range(20)))
    store.close()
    file = table_file(store.path)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CorruptStore, match="opening the chain store failed"):
        ChainStore.open(store.path)


@pytest.mark.parametrize("pattern", ["CURRENT", "MANIFEST-*", "*.ldb"])
def test_missing_file_of_the_database_is_found_on_opening(store: ChainStore, pattern: str) -> None:
    extend(store, list(range(20)))
    store.close()
    table_file(store.path)
    for file in store.path.glob(pattern):
        file.unlink()
    with pytest.raises(CorruptStore, match=r"missing|non-existent") as caught:
        ChainStore.open(store.path)
    assert "move this folder aside" in caught.value.remedy


def test_bit_flip_in_the_log_is_found_on_opening(store: ChainStore) -> None:
    extend(store, list(range(20)))
    store.close()
    (log,) = store.path.glob("*.log")
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    with pytest.raises(CorruptStore, match="opening the chain store failed"):
        ChainStore.open(store.path)


def test_log_cut_short_opens_as_a_valid_shorter_chain_that_goes_on(store: ChainStore) -> None:
    appended = extend(store, list(range(20)))
    store.close()
    (log,) = store.path.glob("*.log")
    log.write_bytes(log.read_bytes()[:-1])
    with ChainStore.open(store.path) as reopened:
        assert reopened.tip().block_id == appended[18][0].id
        assert extend(reopened, [19])[0] == appended[19]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(mount_point)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {mounted.stderr.decode().strip()}")
    yield mount_point
    subprocess.run(["umount", str(mount_point)], check=True)


def test_full_disk_loses_no_acknowledged_block(small_disk: Path) -> None:
    with ChainStore.create(small_disk / "chain", GENESIS) as store:
        (small_disk / "ballast").write_bytes(bytes(1_500_000))
        with pytest.raises(StorageError, match=r"No space left on device.*free some space"):
            extend(store, [1] * 5_000)
        acknowledged = store.tip()
        (small_disk / "ballast").unlink()
        with pytest.raises(StorageError, match="Restart the node"):
            extend(store, [1])
    with ChainStore.open(small_disk / "chain") as reopened:
        assert reopened.tip() == acknowledged
        extend(reopened, [1, 2])
        assert reopened.tip().height == acknowledged.height + 2


CHILD_ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}


APPENDER = """
import sys
from pathlib import Path
from bflnode.storage.chain_store import ChainStore
from tests.storage.chains import transfer_block
store = ChainStore.open(Path(sys.argv[1]))
state = store.load_state()
while True:
    block, commit, changes = transfer_block(store, state, 1)
    store.append(block, commit, changes)
    state.apply(changes)
    print(block.height, block.id.hex(), flush=True)
"""


def test_kill_in_the_middle_of_appending_loses_nothing_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "chain"
    ChainStore.create(path, GENESIS).close()
    command = [sys.executable, "-c", APPENDER, str(path)]
    height = 0
    for kill_after in (1, 7, 40):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=CHILD_ENVIRONMENT) as appender:
            assert appender.stdout is not None
            acknowledged = [appender.stdout.readline() for _ in range(kill_after)]
            appender.send_signal(signal.SIGKILL)
            acknowledged += appender.stdout.readlines()
        complete = [line.split() for line in acknowledged if line.endswith("\n")]
        with ChainStore.open(path) as store:
            assert int(complete[0][0]) == height + 1
            height = store.tip().height
            assert height >= int(complete[-1][0])
            for at, block_id in complete:
                assert store.block(int(at)).id.hex() == block_id
                assert store.commit(int(at)).block_id.hex() == block_id
            bob = ACCOUNTS.get(store.load_state(), BOB.account)
            assert bob == Account(height, 0)
