import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import plyvel
import pytest

from bflnode.consensus.block import (
    Block,
    Commit,
    CommitSignature,
    Header,
    Validator,
    VoteKind,
    commit_hash,
    sign_vote,
    transactions_root,
)
from bflnode.consensus.genesis import Genesis, GenesisAccount, Mode, default_parameters
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.ledger import genesis_state
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.state import Changes, StateTree, StateView
from bflnode.consensus.tables import ACCOUNTS, PREVIOUS_VALIDATORS, VALIDATORS, Account, Validators
from bflnode.consensus.transaction import Transfer, sign_transaction
from bflnode.consensus.types import AccountId, BlockId, Hash, TransactionId
from bflnode.storage.chain_store import BalanceChange, ChainStore, StoredTransaction, Tip
from bflnode.storage.errors import CorruptStore, InUseError, MissingError, StorageError

ALICE, BOB = sorted((SecretKey(bytes([1]) * 32), SecretKey(bytes([2]) * 32)), key=lambda key: key.account)
NOBODY = AccountId(b"\7" * 32)
GENESIS = Genesis(
    name="storage test",
    time_ms=1_000,
    mode=Mode.CACC,
    parameters=default_parameters(),
    accounts=(GenesisAccount(ALICE.account, 1_000_000), GenesisAccount(BOB.account, 0)),
    validators=(Validator(ALICE.account, 5_000_000),),
    queue=(),
    admission_key=ALICE.account,
    admission_pool=0,
    tasks=(),
    beacon=Hash(bytes(32)),
)
GENESIS_TIP = Tip(0, BlockId(GENESIS.chain_id), 1_000, genesis_state(GENESIS).root)


def transfer_block(store: ChainStore, state: StateTree, amount: int) -> tuple[Block, Commit, Changes]:
    """A block in which Alice sends tokens to Bob; the ledger's other rules don't matter to a store."""
    tip, view = store.tip(), StateView(state)
    alice, bob = ACCOUNTS.get(state, ALICE.account), ACCOUNTS.get(state, BOB.account)
    assert alice is not None
    assert bob is not None
    transaction = sign_transaction(ALICE, GENESIS.chain_id, Transfer(BOB.account, amount), nonce=alice.nonce)
    ACCOUNTS.put(view, ALICE.account, Account(alice.balance - amount, alice.nonce + 1))
    ACCOUNTS.put(view, BOB.account, Account(bob.balance + amount, bob.nonce))
    last_commit = store.commit(tip.height)
    header = Header(
        version=1,
        chain_id=GENESIS.chain_id,
        height=tip.height + 1,
        round=0,
        time_ms=tip.time_ms + 1,
        parent=tip.block_id,
        proposer=ALICE.account,
        transactions_root=transactions_root((transaction,)),
        last_commit_hash=commit_hash(last_commit),
        validators_hash=Hash(bytes(32)),
        next_validators_hash=Hash(bytes(32)),
        state_root=state.root_after(view.changes),
        beacon=Hash(bytes(32)),
    )
    vote = sign_vote(ALICE, GENESIS.chain_id, VoteKind.PRECOMMIT, header.height, 0, header.id)
    commit = Commit(header.height, 0, header.id, (CommitSignature(0, vote.signature),))
    return Block(header, (transaction,), last_commit), commit, view.changes


def extend(store: ChainStore, amounts: list[int]) -> list[tuple[Block, Commit]]:
    """Append one block for each amount."""
    state, appended = store.load_state(), []
    for amount in amounts:
        block, commit, changes = transfer_block(store, state, amount)
        store.append(block, commit, changes)
        state.apply(changes)
        appended.append((block, commit))
    return appended


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChainStore]:
    with ChainStore.create(tmp_path / "chain", GENESIS) as created:
        yield created


def change_value(path: Path, key: bytes, change: Callable[[bytes], bytes | None]) -> None:
    """Change one value of a closed database, past all of LevelDB's checksums."""
    database = plyvel.DB(str(path))
    value = change(database.get(key))
    database.delete(key) if value is None else database.put(key, value)
    database.close()


def test_new_chain_is_at_its_genesis(store: ChainStore) -> None:
    assert store.tip() == GENESIS_TIP
    assert store.genesis == GENESIS
    assert list(store.load_state().entries()) == list(genesis_state(GENESIS).entries())
    assert (store.commit(0).height, store.commit(0).block_id) == (0, GENESIS.chain_id)
    assert store.block_by_id(GENESIS_TIP.block_id) is None
    assert list(store.blocks(0, 10)) == []


def test_everything_appended_is_read_back_after_reopening(store: ChainStore) -> None:
    appended = extend(store, [10, 20, 30])
    state = store.load_state()
    store.close()
    with ChainStore.open(store.path) as reopened:
        last = appended[-1][0]
        assert reopened.genesis == GENESIS
        assert reopened.tip() == Tip(3, last.id, 1_003, last.header.state_root)
        assert list(reopened.load_state().entries()) == list(state.entries())
        assert list(reopened.blocks(1, 4)) == [block for block, _ in appended]
        for height, (block, commit) in enumerate(appended, start=1):
            transaction = block.transactions[0]
            assert reopened.header(height) == block.header
            assert reopened.block(height) == block
            assert reopened.block_by_id(block.id) == block
            assert reopened.commit(height) == commit
            assert reopened.transaction(transaction.id) == StoredTransaction(transaction, height, 0)


def test_blocks_are_cut_to_what_is_there(store: ChainStore) -> None:
    extend(store, [1, 2, 3])
    assert [block.height for block in store.blocks(2, 3)] == [2]
    assert [block.height for block in store.blocks(-5, 100)] == [1, 2, 3]
    assert [block.height for block in store.blocks(3, 3)] == []


@pytest.mark.parametrize("height", [-1, 3, 2**70])
def test_height_that_is_not_in_the_chain_is_reported_as_missing(store: ChainStore, height: int) -> None:
    extend(store, [1, 2])
    for read in (store.header, store.block, store.commit):
        with pytest.raises(MissingError, match=f"no block {height}, the tip is 2"):
            read(height)


def test_unknown_ids_are_none(store: ChainStore) -> None:
    assert store.transaction(TransactionId(bytes(32))) is None
    assert store.block_by_id(BlockId(bytes(32))) is None


def test_history_holds_the_balance_at_every_height_where_it_changed(store: ChainStore) -> None:
    extend(store, [10, 0, 30])
    assert store.account_history(BOB.account) == (
        BalanceChange(0, 0),
        BalanceChange(1, 10),
        BalanceChange(2, 10),
        BalanceChange(3, 40),
    )
    assert store.account_history(BOB.account, limit=2) == (BalanceChange(2, 10), BalanceChange(3, 40))
    assert [store.balance_at(BOB.account, height) for height in (-1, 0, 1, 2, 3, 2**70)] == [0, 0, 10, 10, 40, 40]
    assert (store.account_history(NOBODY), store.balance_at(NOBODY, 3)) == ((), 0)


def test_block_that_does_not_follow_the_tip_is_a_programming_error(store: ChainStore) -> None:
    block, commit, changes = transfer_block(store, store.load_state(), 1)
    store.append(block, commit, changes)
    with pytest.raises(AssertionError, match="after the tip 1"):
        store.append(block, commit, changes)
    other, _, other_changes = transfer_block(store, store.load_state(), 1)
    with pytest.raises(AssertionError, match="another block"):
        store.append(other, commit, other_changes)
    orphan = replace(other, header=replace(other.header, parent=BlockId(bytes(32))))
    with pytest.raises(AssertionError, match="another parent"):
        store.append(orphan, replace(commit, height=2, block_id=orphan.id), other_changes)
    assert store.tip().height == 1


def test_deleted_state_entries_stay_deleted(store: ChainStore) -> None:
    state = store.load_state()
    block = transfer_block(store, state, 1)[0]
    changes = {ACCOUNTS.prefix + BOB.account: None}
    header = replace(block.header, state_root=state.root_after(changes))
    store.append(replace(block, header=header), Commit(1, 0, header.id, ()), changes)
    store.close()
    with ChainStore.open(store.path) as reopened:
        assert reopened.load_state().get(ACCOUNTS.prefix + BOB.account) is None
        assert reopened.account_history(BOB.account) == (BalanceChange(0, 0), BalanceChange(1, 0))


def test_store_is_never_created_over_something(store: ChainStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="something here already"):
        ChainStore.create(store.path, GENESIS)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="something here already"):
        ChainStore.create(tmp_path / "file", GENESIS)


def test_folder_without_a_chain_is_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="bflnode init"):
        ChainStore.open(tmp_path / "nowhere")


def test_store_that_another_process_has_open_is_in_use(tmp_path: Path) -> None:
    ChainStore.create(tmp_path / "chain", GENESIS).close()
    script = (
        "import sys; from pathlib import Path; from bflnode.storage.chain_store import ChainStore\n"
        "store = ChainStore.open(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "chain")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(InUseError, match="in use by a running node"):
            ChainStore.open(tmp_path / "chain")
        holder.kill()
        holder.wait()
    ChainStore.open(tmp_path / "chain").close()


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
from tests.storage.test_chain_store import transfer_block
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


def test_what_another_thread_is_writing_is_in_no_block_until_it_is_the_tip(store: ChainStore) -> None:
    [(first, _), (second, _)] = extend(store, [1, 2])
    store._tip = Tip(1, first.id, first.header.time_ms, first.header.state_root)
    transaction = second.transactions[0].id
    assert store.transaction(transaction) is None
    assert store.block_by_id(second.id) is None
    assert store.block_by_id(first.id) == first


def begun_at(store: ChainStore, folder: Path, height: int) -> ChainStore:
    """A store that starts from the state of another one, which is at that height."""
    assert store.tip().height == height
    with store.freeze() as frozen:
        return ChainStore.create_from_snapshot(folder, GENESIS, frozen.header, frozen.commit, frozen.entries())


def test_a_chain_goes_on_from_a_snapshot_without_the_blocks_before(store: ChainStore, tmp_path: Path) -> None:
    appended = extend(store, [10, 20])
    with begun_at(store, tmp_path / "later", 2) as later:
        assert (later.base, later.tip()) == (2, store.tip())
        assert list(later.load_state().entries()) == list(store.load_state().entries())
        [following] = extend(later, [30])
    with ChainStore.open(tmp_path / "later") as reopened:
        reopened.check()
        assert (reopened.base, reopened.tip().height) == (2, 3)
        assert (reopened.header(2), reopened.commit(2)) == (appended[1][0].header, appended[1][1])
        assert list(reopened.blocks(1, 9)) == [following[0]]
        assert reopened.account_history(BOB.account) == (BalanceChange(2, 30), BalanceChange(3, 60))


def test_a_chain_just_begun_from_a_snapshot_opens_again(store: ChainStore, tmp_path: Path) -> None:
    extend(store, [10, 20])
    begun_at(store, tmp_path / "later", 2).close()
    with ChainStore.open(tmp_path / "later") as reopened:
        reopened.check()
        assert reopened.tip() == store.tip()


def test_what_lies_before_a_snapshot_is_missing_and_says_where_the_chain_starts(
    store: ChainStore, tmp_path: Path
) -> None:
    (first, _), (second, _) = extend(store, [10, 20])
    with begun_at(store, tmp_path / "later", 2) as later:
        for ask in (
            lambda: later.block(1),
            lambda: later.block(2),
            lambda: later.header(1),
            lambda: later.commit(1),
            lambda: later.balance_at(BOB.account, 1),
        ):
            with pytest.raises(MissingError, match="is not here: this node's chain starts from a snapshot at height 2"):
                ask()
        assert later.block_by_id(first.id) is None
        assert later.block_by_id(second.id) is None
        assert later.transaction(second.transactions[0].id) is None


def test_a_snapshot_is_never_put_over_something(store: ChainStore) -> None:
    extend(store, [10])
    with pytest.raises(StorageError, match="there is something here already"):
        begun_at(store, store.path, 1)


def test_a_chain_whose_beginning_from_a_snapshot_was_interrupted_cannot_be_opened(
    store: ChainStore, tmp_path: Path
) -> None:
    extend(store, [10])

    def interrupted() -> Iterator[tuple[bytes, bytes]]:
        yield from list(store.load_state().entries())[:1]
        raise InterruptedError

    with store.freeze() as frozen, pytest.raises(StorageError):
        ChainStore.create_from_snapshot(tmp_path / "later", GENESIS, frozen.header, frozen.commit, interrupted())
    with pytest.raises(CorruptStore, match="its creation was never finished"):
        ChainStore.open(tmp_path / "later")


def test_a_frozen_state_stays_what_it_was(store: ChainStore) -> None:
    extend(store, [10])
    before = list(store.load_state().entries())
    with store.freeze() as frozen:
        extend(store, [20])
        assert list(frozen.entries()) == before
        assert frozen.get(ACCOUNTS.prefix + BOB.account) == dict(before)[ACCOUNTS.prefix + BOB.account]
        assert list(frozen.scan(ACCOUNTS.prefix)) == [entry for entry in before if entry[0].startswith(ACCOUNTS.prefix)]
        assert frozen.header.height == 1


def test_the_genesis_is_not_frozen(store: ChainStore) -> None:
    with pytest.raises(MissingError, match="no block 0"):
        store.freeze()


def append_validators(store: ChainStore, *validators: Validator) -> ValidatorSet:
    """Append a block after which these are the validators."""
    state = store.load_state()
    view = StateView(state)
    for key, value in transfer_block(store, state, 1)[2].items():
        assert value is not None
        view.put(key, value)
    previous = VALIDATORS.get(state)
    assert previous is not None
    PREVIOUS_VALIDATORS.put(view, previous)
    VALIDATORS.put(view, Validators(validators))
    block, commit, _ = transfer_block(store, state, 1)
    header = replace(block.header, state_root=state.root_after(view.changes))
    commit = replace(commit, block_id=header.id)
    store.append(replace(block, header=header), commit, view.changes)
    return ValidatorSet(validators)


def test_validators_of_every_height_are_found_by_their_hash(store: ChainStore, tmp_path: Path) -> None:
    sets = [ValidatorSet(GENESIS.validators)]
    sets.append(append_validators(store, Validator(ALICE.account, 7)))
    sets.append(append_validators(store, Validator(BOB.account, 8)))
    sets.append(append_validators(store, Validator(ALICE.account, 9), Validator(BOB.account, 9)))

    assert [store.validator_set(validators.hash) for validators in sets] == sets
    assert store.validator_set(Hash(bytes(32))) is None
    with store.freeze() as frozen:
        arguments = (GENESIS, frozen.header, frozen.commit, frozen.entries())
        with ChainStore.create_from_snapshot(tmp_path / "later", *arguments) as later:
            found = [later.validator_set(validators.hash) for validators in sets]
    assert found == [sets[0], None, sets[2], sets[3]]


def test_validators_under_a_wrong_hash_are_reported(store: ChainStore) -> None:
    expected = append_validators(store, Validator(BOB.account, 8))
    other = Validators((Validator(BOB.account, 9),)).to_bytes()
    for damaged, said in ((other, "has another hash"), (b"broken", "can't be read")):
        store.close()
        change_value(store.path, b"v" + expected.hash, lambda _, damaged=damaged: damaged)
        with ChainStore.open(store.path) as reopened, pytest.raises(CorruptStore, match=said):
            reopened.validator_set(expected.hash)
