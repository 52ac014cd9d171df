"""The chain store of a home: opened for a running node, and for the command line while none runs.

Apart from `node`, so that reading a stopped home loads neither the network nor the trainer.
"""

from bflnode.storage.chain_store import ChainStore

from .home import Home, HomeError


def open_store(home: Home) -> ChainStore:
    """The block store of a home, made when there is none; it must be of the home's genesis.

    Raises:
        HomeError: it is of another chain.
        StorageError: it can't be read.
    """
    genesis = home.load_genesis()
    if not home.chain.exists() or not any(home.chain.iterdir()):
        return ChainStore.create(home.chain, genesis)
    store = ChainStore.open(home.chain)
    if store.genesis.chain_id != genesis.chain_id:
        store.close()
        raise HomeError(
            f"{home.genesis_file} is of chain {genesis.chain_id.hex()[:16]}, but {home.chain} holds "
            f"{store.genesis.chain_id.hex()[:16]}: put back the right genesis, or use a new --home"
        )
    return store
