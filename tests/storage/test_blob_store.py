import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bflnode.consensus.blob import CHUNK_BYTES, BlobManifest, manifest_of
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.types import BlobId
from bflnode.storage.blob_store import PARTIAL_KEPT_S, BlobStore, Pins, Quota
from bflnode.storage.errors import CorruptBlobError, MissingError, QuotaError, StorageError

MODEL = Random(1).randbytes(2 * CHUNK_BYTES + 1000)
MANIFEST = manifest_of([MODEL])


def chunk(index: int) -> bytes:
    return MODEL[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def file_of(store: BlobStore, blob: BlobId) -> Path:
    return store.root / blob.hex()[:2] / blob.hex()


def flip_byte(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_stored_bytes_come_back_under_their_content_id(store: BlobStore) -> None:
    blob = store.put(MODEL)
    assert blob == MANIFEST.id
    assert store.get(blob) == MODEL
    assert store.path(blob) == file_of(store, blob)
    assert store.path(blob).read_bytes() == MODEL
    assert (store.has(blob), store.size(blob), store.manifest(blob)) == (True, len(MODEL), MANIFEST)


@settings(max_examples=20)
@given(data=st.binary(max_size=300), copies=st.integers(0, 2000))
def test_any_bytes_are_read_back_whole_and_in_chunks(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, copies: int
) -> None:
    content = data * copies
    store = BlobStore(tmp_path_factory.mktemp("blobs"))
    blob = store.put(content)
    chunks = len(store.manifest(blob).chunks)
    assert store.get(blob) == content
    assert b"".join(store.read_chunk(blob, index) for index in range(chunks)) == content


def test_storing_the_same_bytes_twice_keeps_one_file(store: BlobStore) -> None:
    assert store.put(MODEL) == store.put(MODEL)
    assert store.list() == (MANIFEST.id,)
    assert store.total_size() == len(MODEL)
    assert list((store.root / "temporary").iterdir()) == []


def test_file_is_copied_and_kept(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    source.write_bytes(MODEL)
    assert store.put_file(source) == MANIFEST.id
    assert source.read_bytes() == MODEL
    assert store.get(MANIFEST.id) == MODEL


def test_moved_file_is_gone_from_where_it_was(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    source.write_bytes(MODEL)
    assert store.put_file(source, move=True) == MANIFEST.id
    assert not source.exists()
    assert store.get(MANIFEST.id) == MODEL


def test_file_that_cannot_be_read_is_an_error_naming_that_file(store: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        store.put_file(tmp_path / "nowhere")
    assert caught.value.path == tmp_path / "nowhere"


@pytest.mark.parametrize("read", ["get", "path", "size", "manifest"])
def test_blob_that_is_not_here_is_reported_as_missing(store: BlobStore, read: str) -> None:
    assert not store.has(MANIFEST.id)
    with pytest.raises(MissingError, match="not here"):
        getattr(store, read)(MANIFEST.id)
    with pytest.raises(MissingError, match="not here"):
        store.read_chunk(MANIFEST.id, 0)


@pytest.mark.parametrize("read", ["get", "path", "manifest"])
def test_blob_whose_bytes_changed_on_disk_is_moved_aside_and_missing(store: BlobStore, read: str) -> None:
    blob = store.put(MODEL)
    flip_byte(file_of(store, blob), CHUNK_BYTES + 7)
    reopened = BlobStore(store.root)
    with pytest.raises(CorruptBlobError, match="moved to"):
        getattr(reopened, read)(blob)
    assert not reopened.has(blob)
    assert (store.root / "corrupt" / blob.hex()).is_file()
    assert reopened.put(MODEL) == blob
    assert reopened.get(blob) == MODEL


def test_truncated_blob_is_moved_aside_and_missing(store: BlobStore) -> None:
    blob = store.put(MODEL)
    os.truncate(file_of(store, blob), len(MODEL) - 1)
    with pytest.raises(CorruptBlobError, match="moved to"):
        store.get(blob)


def test_corrupt_chunk_is_never_served_even_when_the_manifest_is_remembered(store: BlobStore) -> None:
    blob = store.put(MODEL)
    flip_byte(file_of(store, blob), CHUNK_BYTES)
    assert store.read_chunk(blob, 0) == chunk(0)
    with pytest.raises(CorruptBlobError, match="moved to"):
        store.read_chunk(blob, 1)
    assert not store.has(blob)


@pytest.mark.parametrize("index", [-1, 3])
def test_chunk_that_a_blob_does_not_have_is_rejected_and_the_blob_stays(store: BlobStore, index: int) -> None:
    blob = store.put(MODEL)
    with pytest.raises(Rejection) as caught:
        store.read_chunk(blob, index)
    assert caught.value.reason is Reason.LIMIT
    assert store.get(blob) == MODEL


def test_download_in_any_order_gives_the_blob(store: BlobStore) -> None:
    download = store.begin_download(MANIFEST.id, MANIFEST)
    for index in (2, 0, 1):
        assert not store.has(MANIFEST.id)
        download.write_chunk(index, chunk(index))
    download.finish()
    assert store.get(MANIFEST.id) == MODEL
    assert list((store.root / "partial").iterdir()) == []


def test_download_resumes_after_a_restart(store: BlobStore) -> None:
    store.begin_download(MANIFEST.id, MANIFEST).write_chunk(1, chunk(1))
    resumed = BlobStore(store.root).begin_download(MANIFEST.id, MANIFEST)
    assert resumed.missing() == (0, 2)


def test_chunk_of_a_partial_file_that_changed_on_disk_is_fetched_again(store: BlobStore) -> None:
    download = store.begin_download(MANIFEST.id, MANIFEST)
    for index in range(3):
        download.write_chunk(index, chunk(index))
    flip_byte(store.root / "partial" / MANIFEST.id.hex(), CHUNK_BYTES + 5)
    resumed = store.begin_download(MANIFEST.id, MANIFEST)
    assert resumed.missing() == (1,)
    resumed.write_chunk(1, chunk(1))
    resumed.finish()
    assert store.get(MANIFEST.id) == MODEL


def test_bytes_behind_the_end_of_a_partial_file_never_get_into_the_blob(store: BlobStore) -> None:
    (store.root / "partial" / MANIFEST.id.hex()).write_bytes(MODEL + b"more")
    download = store.begin_download(MANIFEST.id, MANIFEST)
    for index in download.missing():
        download.write_chunk(index, chunk(index))
    download.finish()
    assert store.get(MANIFEST.id) == MODEL
    assert store.size(MANIFEST.id) == len(MODEL)


@pytest.mark.parametrize(
    ("index", "data", "reason"),
    [
        (0, chunk(1), Reason.WRONG_HASH),
        (2, chunk(2)[:-1], Reason.WRONG_SIZE),
        (0, chunk(2), Reason.WRONG_SIZE),
        (3, b"", Reason.LIMIT),
        (-1, chunk(2), Reason.LIMIT),
    ],
)
def test_wrong_chunk_is_rejected_on_arrival_and_not_kept(
    store: BlobStore, index: int, data: bytes, reason: Reason
) -> None:
    download = store.begin_download(MANIFEST.id, MANIFEST)
    with pytest.raises(Rejection) as caught:
        download.write_chunk(index, data)
    assert caught.value.reason is reason
    assert download.missing() == (0, 1, 2)
    assert store.begin_download(MANIFEST.id, MANIFEST).missing() == (0, 1, 2)


def test_manifest_of_another_blob_is_rejected(store: BlobStore) -> None:
    other = BlobManifest(MANIFEST.size + 1, MANIFEST.chunks)
    with pytest.raises(Rejection) as caught:
        store.begin_download(MANIFEST.id, other)
    assert caught.value.reason is Reason.WRONG_HASH


def test_finishing_with_missing_chunks_is_a_programming_error(store: BlobStore) -> None:
    with pytest.raises(AssertionError, match="missing"):
        store.begin_download(MANIFEST.id, MANIFEST).finish()
    assert not store.has(MANIFEST.id)


def test_opening_removes_leftovers_of_a_crash_and_old_downloads_only(store: BlobStore) -> None:
    kept = store.put(b"kept")
    store.begin_download(MANIFEST.id, MANIFEST).write_chunk(0, chunk(0))
    old = store.root / "partial" / ("ab" * 32)
    old.write_bytes(b"old")
    os.utime(old, (0, old.stat().st_mtime - PARTIAL_KEPT_S - 60))
    (store.root / "temporary" / "leftover").write_bytes(b"half a model")
    reopened = BlobStore(store.root)
    assert list((store.root / "temporary").iterdir()) == []
    assert [path.name for path in (store.root / "partial").iterdir()] == [MANIFEST.id.hex()]
    assert reopened.get(kept) == b"kept"


def test_deleting_removes_blob_and_partial_download_and_says_whether_it_was_here(store: BlobStore) -> None:
    blob = store.put(MODEL)
    store.begin_download(blob, MANIFEST)
    assert store.delete(blob)
    assert not store.delete(blob)
    assert (store.has(blob), store.list(), store.total_size()) == (False, (), 0)
    assert list((store.root / "partial").iterdir()) == []


def test_list_is_sorted_and_ignores_files_that_are_no_blobs(store: BlobStore) -> None:
    blobs = sorted(store.put(bytes([number])) for number in range(20))
    (file_of(store, blobs[0]).parent / "notes.txt").write_text("not a blob")
    assert store.list() == tuple(blobs)
    assert store.total_size() == 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(mount_point)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {mounted.stderr.decode().strip()}")
    yield mount_point
    subprocess.run(["umount", str(mount_point)], check=True)


def test_full_disk_is_an_error_that_says_what_to_do_and_leaves_nothing_behind(small_disk: Path) -> None:
    store = BlobStore(small_disk / "blobs")
    kept = store.put(MODEL)
    with pytest.raises(StorageError, match=r"No space left on device.*free some space"):
        store.put(MODEL + MODEL)
    assert list((store.root / "temporary").iterdir()) == []
    large = manifest_of([MODEL, MODEL])
    download = store.begin_download(large.id, large)
    download.write_chunk(0, chunk(0))
    with pytest.raises(StorageError, match="No space left on device"):
        download.write_chunk(1, chunk(1))
    assert download.missing() == (1, 2, 3, 4)
    assert store.get(kept) == MODEL


LIMITED = """
import resource, signal, sys
from pathlib import Path
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store = BlobStore(Path(sys.argv[1]))
try:
    store.put(bytes(200_000))
except StorageError as error:
    print(error)
print(store.list())
"""


def test_file_size_limit_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "File too large" in output
    assert "limit" in output
    assert output.endswith("()\n")


def test_root_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file")
    with pytest.raises(StorageError) as caught:
        BlobStore(tmp_path / "blobs")
    assert caught.value.path == tmp_path / "blobs"


def test_what_is_stored_is_listed_with_size_and_age(store: BlobStore) -> None:
    before_ms = int(time.time() * 1000) - 1000
    blobs = {store.put(b"one"), store.put(b"second")}
    found = store.stored()
    assert {entry.id for entry in found} == blobs
    assert {entry.size_bytes for entry in found} == {3, 6}
    assert all(before_ms < entry.written_ms <= before_ms + 60_000 for entry in found)


def test_pins_last_and_may_be_of_what_is_not_here(store: BlobStore) -> None:
    blob, other = store.put(b"one"), BlobId(bytes(32))
    assert store.pins.all() == frozenset()
    assert [Pins(store.root).add(blob), Pins(store.root).add(other), Pins(store.root).add(blob)] == [True, True, False]
    (store.root / "pinned" / "not an id").touch()
    assert BlobStore(store.root).pins.all() == {blob, other}
    assert [store.pins.remove(other), store.pins.remove(other)] == [True, False]
    assert store.pins.all() == {blob}
    assert store.list() == (blob,)


def with_quota(store: BlobStore, limit_bytes: int, removable: list[BlobId]) -> list[int]:
    """Set a quota whose room is made of these blobs, one a time; what was asked for."""
    asked: list[int] = []

    def make_room(wanted_bytes: int) -> None:
        asked.append(wanted_bytes)
        if removable:
            store.delete(removable.pop())

    store.quota = Quota(limit_bytes, make_room)
    return asked


def test_within_the_quota_nothing_is_asked_for(store: BlobStore) -> None:
    asked = with_quota(store, 10, [])
    store.put(bytes(6))
    store.put(b"1234")
    assert (asked, store.used_size()) == ([], 10)


def test_room_is_asked_for_as_much_as_is_missing(store: BlobStore) -> None:
    old = store.put(bytes(8))
    asked = with_quota(store, 10, [old])
    new = store.put(b"12345")
    assert (asked, store.list(), store.shortage) == ([3], (new,), None)


def test_what_does_not_fit_is_refused_and_leaves_nothing(store: BlobStore, tmp_path: Path) -> None:
    kept = store.put(bytes(8))
    with_quota(store, 10, [])
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    for attempt in (lambda: store.put(b"12345"), lambda: store.put_file(file, move=True)):
        with pytest.raises(QuotaError, match=r"quota of 10 bytes is used up .* of 5 bytes"):
            attempt()
    assert store.list() == (kept,)
    assert file.exists()
    assert list((store.root / "temporary").iterdir()) == []
    assert store.shortage is not None
    store.delete(kept)
    assert store.shortage is None
    assert store.put(b"12345") in store.list()


def test_what_is_here_already_may_be_stored_again_at_the_quota(store: BlobStore) -> None:
    blob = store.put(bytes(8))
    with_quota(store, 8, [])
    assert store.put(bytes(8)) == blob


def test_a_download_takes_its_room_from_the_beginning_and_keeps_it_when_resumed(store: BlobStore) -> None:
    data = bytes(range(250)) * 2000
    manifest = manifest_of([data])
    with_quota(store, len(data) + 10, [])
    store.begin_download(manifest.id, manifest)
    assert store.used_size() == len(data)
    with pytest.raises(QuotaError):
        store.put(bytes(11))
    download = store.begin_download(manifest.id, manifest)
    for index in download.missing():
        download.write_chunk(index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    download.finish()
    assert (store.used_size(), store.get(manifest.id)) == (len(data), data)
    other = manifest_of([bytes(11)])
    with pytest.raises(QuotaError):
        store.begin_download(other.id, other)
    assert list((store.root / "partial").iterdir()) == []
