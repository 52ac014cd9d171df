"""Checks of a stored chain that read every block, and execute none: what damage breaks, and deceit needn't.

What opening and starting check anyway is in `chain_store`, executing a chain again is `node`'s `verify`.
"""

from collections.abc import Iterator

from .chain_store import ChainStore
from .errors import CorruptStore
from .leveldb import START_OVER


def check_links(store: ChainStore) -> Iterator[int]:
    """Check that header, block, commit and index of each height belong together and to the height below.

    Yields:
        Each height once it is right.

    Raises:
        CorruptStore: the first height where they don't.
        StorageError: the disk is at fault.
    """
    parent = store.header(store.base).id if store.base else store.genesis.chain_id
    for height in range(store.base + 1, store.tip().height + 1):
        block = store.block(height)
        indexed = store.block_by_id(block.id)
        faults = (
            ("header", store.header(height) == block.header),
            ("parent", block.header.parent == parent),
            ("commit", store.commit(height).block_id == block.id),
            ("index", indexed is not None and indexed.height == height),
        )
        wrong = [name for name, is_right in faults if not is_right]
        if wrong:
            raise CorruptStore(store.path, f"{wrong[0]} and block of height {height} don't belong together", START_OVER)
        parent = block.id
        yield height
