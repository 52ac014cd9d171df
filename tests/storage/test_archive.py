import io
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bflnode.consensus.block import MAX_BLOCK_BYTES
from bflnode.storage.archive import (
    HEAD,
    MAGIC,
    ArchivedBlock,
    ArchiveError,
    ArchiveHead,
    ArchiveReader,
    ArchiveWriter,
    MalformedArchiveError,
    write_blocks,
)
from bflnode.storage.chain_store import ChainStore
from tests.storage.chains import GENESIS, extend

NAME = Path("some.chain")
HEAD_BYTES = len(MAGIC) + HEAD.size


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Blocks 2 to 4 of a chain of five."""
    with ChainStore.create(tmp_path_factory.mktemp("archived") / "chain", GENESIS) as store:
        extend(store, [10, 20, 30, 40, 50])
        return written(store, 2, 4)


def written(store: ChainStore, first: int, last: int) -> bytes:
    file = io.BytesIO()
    head = ArchiveHead(GENESIS.chain_id, first, last)
    assert list(write_blocks(ArchiveWriter(file, NAME, head), store, head)) == list(range(first, last + 1))
    return file.getvalue()


def read(data: bytes) -> list[ArchivedBlock]:
    return list(ArchiveReader(io.BytesIO(data), NAME).blocks())


def test_what_is_written_is_read_back_with_its_places(tmp_path: Path) -> None:
    with ChainStore.create(tmp_path / "chain", GENESIS) as store:
        appended = extend(store, [10, 20, 30])
        data = written(store, 2, 3)
    reader = ArchiveReader(io.BytesIO(data), NAME)
    assert reader.head == ArchiveHead(GENESIS.chain_id, 2, 3)
    assert reader.head.blocks == 2
    found = list(reader.blocks())
    assert [(entry.block, entry.commit) for entry in found] == appended[1:]
    first_bytes = 8 + len(appended[1][0].encoded) + len(appended[1][1].to_bytes())
    assert [entry.position for entry in found] == [HEAD_BYTES, HEAD_BYTES + first_bytes]


class Pipe(io.RawIOBase):
    """Gives a few bytes at a time, as pipes do."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._file = io.BytesIO(data)
        self._piece = piece

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, self._piece))


def test_a_pipe_that_gives_a_few_bytes_at_a_time_is_read_like_a_file(archive: bytes) -> None:
    assert list(ArchiveReader(Pipe(archive, 7), NAME).blocks()) == read(archive)  # type: ignore[arg-type]  # reads


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_archive_that_is_cut_off_anywhere_is_noticed_and_gives_whole_blocks_before(
    archive: bytes, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(archive) - 1))
    whole = read(archive)
    found: list[ArchivedBlock] = []
    with pytest.raises(ArchiveError, match=r"cut off|not a chain archive") as caught:  # noqa: PT012 - reads in steps
        for entry in ArchiveReader(io.BytesIO(archive[:cut]), NAME).blocks():
            found.append(entry)  # noqa: PERF402 - what came before the error counts
    assert not isinstance(caught.value, MalformedArchiveError)
    assert found == whole[: len(found)]
    if cut >= HEAD_BYTES:
        assert f"the file ends at byte {cut}" in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bytes_changed_on_purpose_never_do_more_than_raise(archive: bytes, data: st.DataObject) -> None:
    changed = bytearray(archive)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(bytes(changed))
    except ArchiveError:
        return
    assert [entry.block.height for entry in found] == [2, 3, 4]


def head(first: int, last: int, version: int = 1) -> bytes:
    return MAGIC + HEAD.pack(version, GENESIS.chain_id, first, last)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "not a chain archive"),
        (b"PK\3\4 something else", "not a chain archive"),
        (head(1, 1, version=2), "it has version 2, this bflnode reads version 1"),
        (head(0, 5), "it says that it holds the blocks 0 to 5"),
        (head(5, 4), "it says that it holds the blocks 5 to 4"),
        (head(1, 2**64 - 1), f"it says that it holds the blocks 1 to {2**64 - 1}"),
        (head(1, 1) + struct.pack(">I", MAX_BLOCK_BYTES + 1), "block 1 would have 1048577 bytes, at most 1048576"),
        (head(1, 1) + struct.pack(">I", 2**32 - 1) + bytes(100), "at most 1048576 are allowed"),
        (head(1, 1) + struct.pack(">I", 3) + b"abc", f"at byte {HEAD_BYTES}: block 1 can't be read"),
    ],
)
def test_what_is_no_archive_of_ours_is_named(data: bytes, fault: str) -> None:
    with pytest.raises(ArchiveError, match=fault):
        read(data)


def test_a_block_of_another_height_and_anything_after_the_last_are_refused(archive: bytes) -> None:
    body = archive[HEAD_BYTES:]
    with pytest.raises(MalformedArchiveError, match=f"at byte {HEAD_BYTES}: block 3 should be here, but it is block 2"):
        read(head(3, 5) + body)
    with pytest.raises(MalformedArchiveError, match=f"at byte {len(archive)}: something follows block 4, its last"):
        read(archive + b"\0")
