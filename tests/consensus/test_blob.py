"""Content ids of blobs, worked out by hand here, and the checks on what a peer sends of one."""

from hashlib import sha256

import pytest

from bflnode.consensus.blob import (
    CHUNK_BYTES,
    MAX_BLOB_BYTES,
    MAX_CHUNKS,
    MAX_MANIFEST_BYTES,
    BlobHasher,
    BlobManifest,
    chunk_count,
    manifest_of,
)
from bflnode.consensus.encoding import encode
from bflnode.consensus.hashing import tagged_hash
from bflnode.consensus.merkle import merkle_root
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.types import BlobId, Hash

CONTENT = bytes(range(256)) * 1024 * 2 + b"tail"
CHUNKS = [CONTENT[:CHUNK_BYTES], CONTENT[CHUNK_BYTES : 2 * CHUNK_BYTES], b"tail"]


@pytest.mark.parametrize(
    ("size", "chunks"), [(0, 0), (1, 1), (CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 2), (MAX_BLOB_BYTES, MAX_CHUNKS)]
)
def test_chunk_count_rounds_up(size: int, chunks: int) -> None:
    assert chunk_count(size) == chunks


def test_id_binds_size_chunk_size_and_the_root_over_the_chunks() -> None:
    expected = tagged_hash("blob", encode((len(CONTENT), 262_144, merkle_root(CHUNKS))))
    assert manifest_of([CONTENT]).id == expected


def test_id_of_the_empty_blob_is_defined() -> None:
    assert manifest_of([]) == BlobManifest(0, ())
    assert manifest_of([]).id == tagged_hash("blob", encode((0, 262_144, Hash(sha256().digest()))))


@pytest.mark.parametrize("step", [1000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(CONTENT)])
def test_manifest_does_not_depend_on_the_pieces_it_was_streamed_in(step: int) -> None:
    pieces = [CONTENT[start : start + step] for start in range(0, len(CONTENT), step)]
    assert manifest_of(pieces) == manifest_of(CHUNKS)


def test_hasher_can_be_asked_for_the_manifest_on_the_way() -> None:
    hasher = BlobHasher()
    hasher.update(CONTENT[:10])
    assert hasher.manifest() == manifest_of([CONTENT[:10]])
    hasher.update(memoryview(CONTENT)[10:])
    assert hasher.manifest() == manifest_of([CONTENT])


def test_hasher_refuses_more_than_the_largest_blob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bflnode.consensus.blob.MAX_BLOB_BYTES", len(CONTENT))
    hasher = BlobHasher()
    hasher.update(CONTENT)
    with pytest.raises(Rejection) as refused:
        hasher.update(b"!")
    assert refused.value.reason is Reason.TOO_LARGE


def test_manifest_of_the_largest_blob_fits_its_limit_and_comes_back() -> None:
    largest = BlobManifest(MAX_BLOB_BYTES, (Hash(bytes(32)),) * MAX_CHUNKS)
    assert BlobManifest.from_bytes(largest.to_bytes(), max_bytes=MAX_MANIFEST_BYTES) == largest


@pytest.mark.parametrize("chunks", [0, 2, 4])
def test_manifest_with_a_number_of_hashes_that_does_not_fit_its_size_is_rejected(chunks: int) -> None:
    data = encode((len(CONTENT), (bytes(32),) * chunks))
    with pytest.raises(Rejection) as refused:
        BlobManifest.from_bytes(data, max_bytes=MAX_MANIFEST_BYTES)
    assert refused.value.reason is Reason.MALFORMED


def test_manifest_of_another_blob_is_rejected() -> None:
    manifest = manifest_of([CONTENT])
    manifest.verify_id(manifest.id)
    with pytest.raises(Rejection) as refused:
        manifest.verify_id(BlobId(bytes(32)))
    assert refused.value.reason is Reason.WRONG_HASH


def test_every_chunk_of_the_blob_is_accepted() -> None:
    manifest = manifest_of([CONTENT])
    assert [manifest.chunk_size(index) for index in range(3)] == [CHUNK_BYTES, CHUNK_BYTES, 4]
    for index, chunk in enumerate(CHUNKS):
        manifest.verify_chunk(index, chunk)


@pytest.mark.parametrize(
    ("index", "data", "reason"),
    [
        (3, b"", Reason.LIMIT),
        (-1, b"tail", Reason.LIMIT),
        (2, b"tai", Reason.WRONG_SIZE),
        (2, b"tail!", Reason.WRONG_SIZE),
        (0, CHUNKS[1][1:] + b"x", Reason.WRONG_HASH),
        (2, b"tale", Reason.WRONG_HASH),
    ],
)
def test_wrong_chunk_is_rejected(index: int, data: bytes, reason: Reason) -> None:
    with pytest.raises(Rejection) as refused:
        manifest_of([CONTENT]).verify_chunk(index, data)
    assert refused.value.reason is reason
