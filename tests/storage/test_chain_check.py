from dataclasses import replace
from pathlib import Path

import pytest

from bflnode.consensus.block import MAX_BLOCK_BYTES, Block
from bflnode.consensus.types import BlockId
from bflnode.storage.chain_check import check_links
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import CorruptStore
from tests.storage.chains import GENESIS, change_value, extend

HEIGHT_2, HEIGHT_3 = (2).to_bytes(8), (3).to_bytes(8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with ChainStore.create(tmp_path / "chain", GENESIS) as store:
        extend(store, [10, 20, 30, 40])
    return tmp_path / "chain"


def test_every_height_of_a_sound_chain_is_passed(folder: Path) -> None:
    with ChainStore.open(folder) as store:
        assert list(check_links(store)) == [1, 2, 3, 4]


def block_of(folder: Path, height: int) -> Block:
    with ChainStore.open(folder) as store:
        return store.block(height)


@pytest.mark.parametrize(("table", "fault"), [(b"h", "header"), (b"b", "header"), (b"c", "commit")])
def test_a_record_of_another_height_is_found(folder: Path, table: bytes, fault: str) -> None:
    other: list[bytes] = []
    change_value(folder, table + HEIGHT_3, lambda value: other.append(value) or value)
    change_value(folder, table + HEIGHT_2, lambda value: other[0])
    with ChainStore.open(folder) as store, pytest.raises(CorruptStore, match=f"{fault} and block of height"):
        list(check_links(store))


def test_a_block_that_another_parent_has_is_found(folder: Path) -> None:
    block = block_of(folder, 3)
    header = replace(block.header, parent=BlockId(bytes(32)))
    orphan = Block(header, block.transactions, block.last_commit)
    assert Block.from_bytes(orphan.encoded, max_bytes=MAX_BLOCK_BYTES) == orphan
    change_value(folder, b"b" + HEIGHT_3, lambda _: orphan.encoded)
    change_value(folder, b"h" + HEIGHT_3, lambda _: header.to_bytes())
    with ChainStore.open(folder) as store, pytest.raises(CorruptStore, match="parent and block of height 3"):
        list(check_links(store))


def test_a_missing_entry_of_the_index_is_found(folder: Path) -> None:
    change_value(folder, b"i" + block_of(folder, 2).id, lambda _: None)
    with ChainStore.open(folder) as store, pytest.raises(CorruptStore, match="index and block of height 2"):
        list(check_links(store))
