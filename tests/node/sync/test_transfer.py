"""Chunks from several peers: all of them used, nobody waited for, nothing wrong kept."""

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from bflnode.consensus.blob import CHUNK_BYTES, manifest_of
from bflnode.node.p2p.network import PeerId, TransportError
from bflnode.node.sync.transfer import CHUNKS_IN_FLIGHT, MAX_SOURCES, STEAL_AFTER_S, Outlets, Transfer
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.errors import StorageError

CHUNKS = 64
DATA = b"".join(bytes([number]) * CHUNK_BYTES for number in range(CHUNKS))
MANIFEST = manifest_of([DATA])
Answer = Callable[[int], Awaitable[bytes]]


def chunk(index: int) -> bytes:
    return DATA[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


class Peers:
    """Peers that answer as told, and what was asked of them."""

    def __init__(self, blobs: BlobStore, **answers: Answer) -> None:
        self.blobs = blobs
        self.answers = {PeerId(name): answer for name, answer in answers.items()}
        self.asked: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.punished: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0

    async def request(self, peer: PeerId, index: int) -> bytes:
        self.asked[peer] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            data = await self.answers[peer](index)
        finally:
            self.in_flight -= 1
        self.sent[peer] += 1
        return data

    async def fetch(self, **settings: float) -> bool:
        download = self.blobs.begin_download(MANIFEST.id, MANIFEST)
        outlets = Outlets(self.request, lambda peer, _reason: self.punished.append(peer), **settings)
        with trio.fail_after(1000):
            is_complete = await Transfer(download, self.answers, outlets).run()
        if is_complete:
            download.finish()
            assert self.blobs.get(MANIFEST.id) == DATA
        return is_complete


def after(seconds: float) -> Answer:
    async def answer(index: int) -> bytes:
        await trio.sleep(seconds)
        return chunk(index)

    return answer


async def wrong(index: int) -> bytes:
    await trio.sleep(0.01)
    return bytes(CHUNK_BYTES)[: len(chunk(index))] if index else b"short"


async def broken(_index: int) -> bytes:
    raise TransportError("the stream broke")


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


async def test_peers_share_the_chunks(blobs: BlobStore, autojump_clock: object) -> None:
    peers = Peers(blobs, one=after(0.1), two=after(0.1), three=after(0.1), four=after(0.1))
    started_s = trio.current_time()
    assert await peers.fetch()
    assert dict(peers.asked) == dict.fromkeys(("one", "two", "three", "four"), CHUNKS // 4)
    assert trio.current_time() - started_s == pytest.approx(0.1 * CHUNKS / 4 / CHUNKS_IN_FLIGHT)


async def test_no_more_chunks_travel_than_memory_is_meant_for(blobs: BlobStore, autojump_clock: object) -> None:
    peers = Peers(blobs, **{f"peer{number}": after(0.1) for number in range(20)})
    assert await peers.fetch()
    assert peers.most_in_flight == MAX_SOURCES * CHUNKS_IN_FLIGHT
    assert len(peers.asked) == MAX_SOURCES


async def test_one_peer_is_enough(blobs: BlobStore, autojump_clock: object) -> None:
    assert await Peers(blobs, one=after(0.1)).fetch()


async def test_a_peer_that_breaks_off_is_replaced_and_not_blamed(blobs: BlobStore, autojump_clock: object) -> None:
    peers = Peers(blobs, gone=broken, two=broken, three=broken, four=broken, five=broken, good=after(0.1))
    assert await peers.fetch()
    assert peers.punished == []
    assert peers.sent["good"] == CHUNKS


async def test_a_peer_that_sends_other_bytes_is_punished_and_asked_no_more(
    blobs: BlobStore, autojump_clock: object
) -> None:
    peers = Peers(blobs, liar=wrong, good=after(0.1))
    assert await peers.fetch()
    assert set(peers.punished) == {"liar"}
    assert peers.asked["liar"] <= CHUNKS_IN_FLIGHT


async def test_a_silent_peer_holds_up_the_end_for_a_moment_only(blobs: BlobStore, autojump_clock: object) -> None:
    peers = Peers(blobs, silent=after(500), good=after(0.1))
    started_s = trio.current_time()
    assert await peers.fetch()
    assert trio.current_time() - started_s < 0.1 * CHUNKS / CHUNKS_IN_FLIGHT + 2 * STEAL_AFTER_S
    assert peers.sent["silent"] == 0


async def test_a_peer_that_dribbles_gives_way_to_one_that_has_not_been_asked(
    blobs: BlobStore, autojump_clock: object
) -> None:
    slow = {f"slow{number}": after(5) for number in range(MAX_SOURCES)}
    peers = Peers(blobs, **slow, good=after(0.01))
    assert await peers.fetch(patience_s=2.0)
    assert peers.sent["good"] > CHUNKS / 2
    assert peers.punished == []


async def test_slow_peers_are_kept_where_there_are_no_others(blobs: BlobStore, autojump_clock: object) -> None:
    peers = Peers(blobs, one=after(5), two=after(5))
    assert await peers.fetch(patience_s=2.0)


async def test_what_came_is_kept_when_no_peer_is_left(blobs: BlobStore, autojump_clock: object) -> None:
    async def half(index: int) -> bytes:
        await trio.sleep(0.1)
        return chunk(index) if index < CHUNKS // 2 else await broken(index)

    first = Peers(blobs, half=half)
    assert not await first.fetch()
    second = Peers(BlobStore(blobs.root), good=after(0.1))
    assert await second.fetch()
    assert second.asked["good"] == CHUNKS - CHUNKS // 2


async def test_a_full_disk_ends_it_with_its_own_error(
    blobs: BlobStore, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: object, _index: int, _data: bytes) -> None:
        raise StorageError(blobs.root, "no space", "Free some")

    monkeypatch.setattr("bflnode.storage.blob_store.Download.write_chunk", full)
    with pytest.raises(StorageError, match="no space"):
        await Peers(blobs, one=after(0.1), two=after(0.1)).fetch()
