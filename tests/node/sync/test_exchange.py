"""Blobs between nodes: resumed, checked, from whoever has them; nobody honest is blamed, nobody slow is waited for."""

from pathlib import Path

import pytest
import trio

from bflnode.consensus.blob import CHUNK_BYTES, manifest_of
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.types import BlobId
from bflnode.node.home import Home
from bflnode.node.node import Node
from bflnode.node.p2p.messages import CHUNKS, MANIFESTS, ChunkRequest, ManifestRequest
from bflnode.node.p2p.network import PeerId
from bflnode.node.sync import exchange as limits
from tests.node.networks import eventually
from tests.node.nodes import opened, small_network
from tests.node.strangers import Stranger, stranger_of, stranger_of_kind

DATA = bytes(range(256)) * 4096  # four chunks
MANIFEST = manifest_of([DATA])


def homes_of(directory: Path, count: int) -> tuple[Home, ...]:
    return small_network(directory).homes[:count]


async def connected(first: Node, second: Node) -> None:
    await eventually(lambda: first.peers.get(second.network.peer_id) is not None)
    await eventually(lambda: second.peers.get(first.network.peer_id) is not None)


async def fetch(node: Node, blob: BlobId = MANIFEST.id, **options: int) -> bytes:
    with trio.fail_after(20):
        await node.exchange.fetch(blob, max_bytes=options.get("max_bytes", len(DATA)))
    return node.blobs.get(blob)


async def test_a_blob_comes_from_a_peer_that_has_it(tmp_path: Path) -> None:
    async with opened(homes_of(tmp_path, 2)) as [here, there]:
        blob = there.blobs.put(DATA)
        await connected(here, there)
        assert await fetch(here, blob) == DATA


async def test_two_tasks_that_want_the_same_blob_fetch_it_once(tmp_path: Path) -> None:
    async with opened(homes_of(tmp_path, 2)) as [here, there]:
        blob = there.blobs.put(DATA)
        await connected(here, there)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(fetch, here, blob)
        assert here.network.statistics()["messages_out"][CHUNKS] == 4


async def test_a_fetch_that_is_cancelled_leaves_the_others_to_go_on(tmp_path: Path) -> None:
    async with opened(homes_of(tmp_path, 2)) as [here, there]:
        await connected(here, there)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(fetch, here, MANIFEST.id)
                await trio.lowlevel.checkpoint()
                scope.cancel()
                await fetch(here)
            there.blobs.put(DATA)
        assert here.blobs.get(MANIFEST.id) == DATA
        assert here.exchange._running == {}


async def test_a_download_is_resumed_where_it_stopped(tmp_path: Path) -> None:
    async with opened(homes_of(tmp_path, 2)) as [here, there]:
        download = here.blobs.begin_download(MANIFEST.id, MANIFEST)
        for index in (0, 2):
            download.write_chunk(index, DATA[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        there.blobs.put(DATA)
        await connected(here, there)
        assert await fetch(here) == DATA
        assert here.network.statistics()["messages_out"][CHUNKS] == 2


async def test_a_blob_that_became_corrupt_at_its_holder_is_refused_and_comes_from_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(homes_of(tmp_path, 3)) as [here, broken, whole]:
        for node in (broken, whole):
            node.blobs.put(DATA)
            await connected(here, node)
        path = broken.blobs.path(MANIFEST.id)
        path.write_bytes(bytes(len(DATA)))
        assert await fetch(here) == DATA
        async with stranger_of(broken) as stranger:
            with pytest.raises(Exception, match="unknown-blob"):
                await stranger.ask(CHUNKS, ChunkRequest(MANIFEST.id, 0).to_bytes())
            with pytest.raises(Exception, match="unknown-blob"):
                await stranger.ask(MANIFESTS, ManifestRequest(MANIFEST.id).to_bytes())
        assert "its bytes changed on disk" in caplog.text
        assert not here.network.statistics()["refused"]


async def test_a_blob_that_is_larger_than_allowed_is_given_up_and_nobody_is_blamed(tmp_path: Path) -> None:
    async with opened(homes_of(tmp_path, 2)) as [here, there]:
        there.blobs.put(DATA)
        await connected(here, there)
        for _ in range(5):
            with pytest.raises(Rejection) as caught:
                await fetch(here, max_bytes=len(DATA) - 1)
            assert caught.value.reason is Reason.TOO_LARGE
        assert not here.network.statistics()["refused"]
        assert here.network.statistics()["banned"] == []


@pytest.mark.parametrize("kind", ["junk", "other", "chunk"])
async def test_a_peer_that_sends_other_bytes_is_punished_and_the_next_is_asked(tmp_path: Path, kind: str) -> None:
    async with opened(homes_of(tmp_path, 2)) as [here, there], stranger_of(here) as liar:
        answers = {"junk": b"\x93", "other": manifest_of([b"other"]).to_bytes(), "chunk": MANIFEST.to_bytes()}
        liar.answers = {MANIFESTS: answers[kind], CHUNKS: bytes(CHUNK_BYTES)}
        await eventually(lambda: liar.network.peer_id in here.peers.ids())
        await connected(here, there)
        there.blobs.put(DATA)
        with trio.fail_after(20):
            await here.exchange.fetch(MANIFEST.id, max_bytes=len(DATA), first=liar.network.peer_id)
        assert here.network.statistics()["scores"][liar.network.peer_id] > 0
        assert here.blobs.get(MANIFEST.id) == DATA


class SlowStranger(Stranger):
    async def on_request(self, protocol: str, sender: PeerId, data: bytes) -> bytes:
        if protocol == CHUNKS:
            await trio.sleep(0.2)
            index = ChunkRequest.from_bytes(data, max_bytes=256).index
            return DATA[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        return await super().on_request(protocol, sender, data)


async def test_a_peer_that_dribbles_gives_way_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUEST_TIMEOUT_S", 0.3)
    monkeypatch.setattr(limits, "SLOWEST_CHUNK_S", 0.01)
    async with opened(homes_of(tmp_path, 2)) as [here, there], stranger_of_kind(SlowStranger, here) as slow:
        slow.answers = {MANIFESTS: MANIFEST.to_bytes()}
        await connected(here, there)
        there.blobs.put(DATA)
        with trio.fail_after(20):
            await here.exchange.fetch(MANIFEST.id, max_bytes=len(DATA), first=slow.network.peer_id)
        assert here.blobs.get(MANIFEST.id) == DATA
        assert here.network.statistics()["banned"] == []


async def test_a_blob_that_nobody_has_is_waited_for(tmp_path: Path) -> None:
    async with opened(homes_of(tmp_path, 2)) as [here, there]:
        await connected(here, there)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, here)
            await eventually(lambda: there.network.statistics()["messages_in"].get(MANIFESTS, 0) > 0)
            there.blobs.put(DATA)
        assert here.blobs.has(MANIFEST.id)
