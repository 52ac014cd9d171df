"""The chain store of a home: opened for a running node, and for the command line while none runs; its repair.

Apart from `node`, so that reading a stopped home loads neither the network nor the trainer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bflnode.consensus.block import Header
from bflnode.consensus.ledger import genesis_state, validate_block
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.state import StateTree
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import InUseError, StorageError
from bflnode.storage.home_lock import HomeLock

from .home import Home, HomeError

Progress = Callable[[int], None]
"""Called with each height that is done."""


class ReplayFaultError(Exception):
    """A stored block that this version doesn't execute to what its header says; the message names it."""


def open_store(home: Home, *, is_state_checked: bool = True) -> ChainStore:
    """The block store of a home, made when there is none; it must be of the home's genesis.

    Args:
        home: whose store.
        is_state_checked: False only to repair a broken state.

    Raises:
        HomeError: it is of another chain.
        StorageError: it can't be read.
    """
    genesis = home.load_genesis()
    if not home.chain.exists() or not any(home.chain.iterdir()):
        return ChainStore.create(home.chain, genesis)
    store = ChainStore.open(home.chain, is_state_checked=is_state_checked)
    if store.genesis.chain_id != genesis.chain_id:
        store.close()
        raise HomeError(
            f"{home.genesis_file} is of chain {genesis.chain_id.hex()[:16]}, but {home.chain} holds "
            f"{store.genesis.chain_id.hex()[:16]}: put back the right genesis, or use a new --home"
        )
    return store


@contextmanager
def stopped(home: Home) -> Iterator[None]:
    """Keep a home from being started for as long as a command changes it.

    Raises:
        HomeError: not an initialised home, or its node runs.
        StorageError: the disk is at fault.
    """
    home.require()
    try:
        lock = HomeLock(home.root)
    except InUseError as error:
        raise HomeError(f"{error.cause}: this works on a stopped node only, end it with `bflnode stop`") from error
    with lock:
        yield


def replay(store: ChainStore, height: int, progress: Progress) -> StateTree:
    """The state after a height, by executing all blocks up to there again.

    Raises:
        ReplayFaultError: a block breaks a rule, or its execution doesn't give the state root that it says.
        StorageError: the chain starts from a snapshot, or can't be read.
    """
    if store.base > 0:
        cause = f"this chain starts from a snapshot at height {store.base}: what came before can't be executed again"
        raise StorageError(store.path, cause, "Move this folder aside and start the node: it fetches the chain anew")
    tree = genesis_state(store.genesis)
    parent: Header | None = None
    for block in store.blocks(1, height + 1):
        try:
            execution = validate_block(store.genesis, tree, parent, block)
        except Rejection as rejection:
            raise ReplayFaultError(
                f"block {block.height} is not valid for this version of bflnode: {rejection}. Go back below it with "
                f"--to {block.height - 1}, or run the version that made it"
            ) from rejection
        tree.apply(execution.changes)
        parent = block.header
        progress(block.height)
    return tree
