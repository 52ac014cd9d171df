"""Files of a chain that are cut, changed or gone: the store says so, or holds the beginning of the very chain."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import CorruptStore
from tests.storage.chains import GENESIS, extend

BLOCKS = 25

FLIPS = 40
"""Changed bits tried in each file."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """A chain in a table and a log; the ids of its blocks."""
    path = tmp_path_factory.mktemp("whole") / "chain"
    with ChainStore.create(path, GENESIS) as store:
        blocks = extend(store, list(range(BLOCKS)))
    with ChainStore.open(path) as store:  # which turns the log into a table
        blocks += extend(store, list(range(BLOCKS)))
    assert {file.suffix for file in path.iterdir()} >= {".ldb", ".log"}
    return path, [block.id for block, _ in blocks]


def outcome(path: Path, ids: list[bytes]) -> str:
    """What comes of opening a store: "refused", or how many blocks of the very chain it has. All else fails."""
    try:
        with ChainStore.open(path) as store:
            store.check()
            height = store.tip().height
            assert [store.block(at).id for at in range(1, height + 1)] == ids[:height]
            assert [store.header(at).id for at in range(1, height + 1)] == ids[:height]
            extend(store, [1])
    except CorruptStore:
        return "refused"
    return str(height)


def damaged(whole: Path, target: Path, name: str, change: Callable[[bytearray], bytearray | None]) -> Path:
    """A copy in which one file is changed."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(whole, target)
    data = change(bytearray((target / name).read_bytes()))
    (target / name).unlink() if data is None else (target / name).write_bytes(data)
    return target


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if file.name not in ("LOCK", "LOG", "LOG.old"))


def test_a_file_that_is_gone_is_noticed(whole: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    path, ids = whole
    found = {name: outcome(damaged(path, tmp_path / "chain", name, lambda _: None), ids) for name in files(path)}
    assert {name: text for name, text in found.items() if not name.endswith(".log")} == {
        name: "refused" for name in files(path) if not name.endswith(".log")
    }
    assert [text for name, text in found.items() if name.endswith(".log")] == [str(BLOCKS)]


def test_a_file_cut_anywhere_is_noticed_or_leaves_the_beginning_of_the_chain(
    whole: tuple[Path, list[bytes]], tmp_path: Path
) -> None:
    path, ids = whole
    for name in files(path):
        size = (path / name).stat().st_size
        for keep in (0, 1, size // 3, size // 2, size - 1):
            found = outcome(damaged(path, tmp_path / "chain", name, lambda data, keep=keep: data[:keep]), ids)
            assert found == "refused" or int(found) >= BLOCKS, f"{name} cut to {keep} of {size}"
            assert found == "refused" or name.endswith((".log",)) or name.startswith("MANIFEST")


def test_a_changed_bit_anywhere_is_noticed_or_changes_nothing(whole: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    path, ids = whole
    generator = random.Random(1)
    outcomes = set()
    for name in files(path):
        size = (path / name).stat().st_size
        for _ in range(FLIPS):
            position, bit = generator.randrange(size), generator.randrange(8)

            def flip(data: bytearray, position: int = position, bit: int = bit) -> bytearray:
                data[position] ^= 1 << bit
                return data

            found = outcome(damaged(path, tmp_path / "chain", name, flip), ids)
            assert found == "refused" or int(found) >= BLOCKS, f"{name}, bit {bit} of byte {position}"
            outcomes.add(found)
    assert "refused" in outcomes
