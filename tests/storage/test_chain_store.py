import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bflnode.consensus.block import (
    Commit,
    Validator,
)
from bflnode.consensus.ledger import genesis_state
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.state import StateView
from bflnode.consensus.tables import ACCOUNTS, PREVIOUS_VALIDATORS, VALIDATORS, Validators
from bflnode.consensus.types import AccountId, BlockId, Hash, TransactionId
from bflnode.storage.chain_store import BalanceChange, ChainStore, StoredTransaction, Tip
from bflnode.storage.errors import CorruptStore, InUseError, MissingError, StorageError
from tests.storage.chains import ALICE, BOB, GENESIS, change_value, extend, transfer_block

NOBODY = AccountId(b"\7" * 32)

GENESIS_TIP = Tip(0, BlockId(GENESIS.chain_id), 1_000, genesis_state(GENESIS).root)


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
