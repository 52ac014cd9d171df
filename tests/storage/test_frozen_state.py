import pytest

from bflnode.consensus.tables import ACCOUNTS
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import MissingError
from tests.storage.chains import BOB, extend


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
