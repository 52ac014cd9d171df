from pathlib import Path

import plyvel
import pytest

from bflnode.consensus.tables import ACCOUNTS, Account
from bflnode.node.home import Home, HomeError
from bflnode.node.stored_chain import ReplayFaultError, open_store, replay, stopped
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import CorruptStore, StorageError
from bflnode.storage.home_lock import HomeLock
from tests.consensus.harness import Harness
from tests.node.stored_homes import home_of


@pytest.fixture
def harness() -> Harness:
    played = Harness(actors=4)
    played.register_all()
    played.play_round()
    return played


@pytest.fixture
def home(harness: Harness, tmp_path: Path) -> Home:
    return home_of(tmp_path / "home", harness)


def nothing(_height: int) -> None:
    pass


def test_executing_again_gives_the_state_of_every_height(harness: Harness, home: Home) -> None:
    heard: list[int] = []
    with open_store(home) as store:
        for block in harness.blocks:
            assert replay(store, block.height, nothing).root == block.header.state_root
        assert replay(store, 0, nothing).root == Harness(setup=harness.setup).tree.root
        replay(store, 3, heard.append)
    assert heard == [1, 2, 3]


def break_state(home: Home) -> None:
    """What a bug, or somebody who writes to the database, may leave: a state that isn't the chain's."""
    database = plyvel.DB(str(home.chain))
    key = next(key for key, _ in database.iterator(prefix=b"s" + ACCOUNTS.prefix))
    database.put(key, Account(123_456, 0).to_bytes())
    database.close()


def test_a_broken_state_is_computed_again_and_the_chain_goes_on(harness: Harness, home: Home) -> None:
    break_state(home)
    with pytest.raises(CorruptStore, match="the stored state has the root"):
        open_store(home)
    with open_store(home, is_state_checked=False) as store:
        store.rewind(len(harness.blocks), replay(store, len(harness.blocks), nothing))
    with open_store(home) as store:
        assert store.load_state().root == harness.tree.root


def test_a_block_that_does_not_give_its_own_state_is_named_with_the_way_back(harness: Harness, home: Home) -> None:
    first, second = harness.blocks[1], harness.blocks[2]
    database = plyvel.DB(str(home.chain))
    database.put(b"b" + first.height.to_bytes(8), second.encoded)
    database.close()
    with open_store(home) as store, pytest.raises(ReplayFaultError, match=r"block 3 is not valid .*--to 2"):
        replay(store, len(harness.blocks), nothing)


def test_a_chain_from_a_snapshot_cannot_be_executed_again(home: Home, tmp_path: Path) -> None:
    with open_store(home) as store, store.freeze() as frozen:
        entries = list(frozen.entries())
        later = ChainStore.create_from_snapshot(
            tmp_path / "later", store.genesis, frozen.header, frozen.commit, entries
        )
    with later, pytest.raises(StorageError, match=r"starts from a snapshot at height \d+: what came before"):
        replay(later, later.tip().height, nothing)


def test_a_home_in_use_is_not_changed(home: Home) -> None:
    with HomeLock(home.root), pytest.raises(HomeError, match=r"in use by process \d+: .*`bflnode stop`"), stopped(home):
        pass
    with stopped(home), pytest.raises(HomeError), stopped(home):
        pass


def test_what_is_no_home_is_named(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="is not the home of a node"), stopped(Home(tmp_path)):
        pass
