"""Catching up: from whoever has the blocks, whatever else is claimed."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from bflnode.consensus.agreement import Status, Step
from bflnode.node import synchroniser as limits
from bflnode.node.home import Home
from bflnode.node.messages import BLOCKS, MAX_FINAL_BLOCK_BYTES, STATUS, BlocksRequest, FinalBlock, FinalBlocks
from bflnode.node.node import Node
from bflnode.node.stored_chain import open_store
from bflnode.node.synchroniser import serve_blocks
from bflnode.storage.chain_store import ChainStore
from tests.node.networks import eventually
from tests.node.nodes import opened, running, small_network, until, until_done
from tests.node.strangers import stranger_of

NO_TRAINING = {"enabled": False}


@pytest.fixture(scope="module")
def grown(launcher: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, ...]:
    """Homes of a network that has done its learning rounds and is stopped."""
    net = small_network(tmp_path_factory.mktemp("grown"), rounds=2)

    async def grow() -> None:
        async with running(net.homes) as nodes:
            await until_done(nodes, patience_s=120)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BFLNODE_LAUNCHER", str(launcher.client.socket_path))  # type: ignore[attr-defined]
        trio.run(grow)
    return net.homes


@pytest.fixture
def homes(grown: tuple[Home, ...], tmp_path: Path) -> tuple[Home, ...]:
    """Copies of those homes; the first one has lost its chain."""
    copies = tuple(Home(tmp_path / home.root.name) for home in grown)
    for home, copy in zip(grown, copies, strict=True):
        shutil.copytree(home.root, copy.root, ignore=shutil.ignore_patterns("*.sock", "node.json"))
    shutil.rmtree(copies[0].chain)
    return copies


@asynccontextmanager
async def catching_up(home: Home, *helpers: Home) -> AsyncIterator[tuple[Node, list[Node]]]:
    """The node without a chain runs; the helpers only answer."""
    async with opened(helpers, training=NO_TRAINING) as others, running([home], training=NO_TRAINING) as [node]:
        yield node, others


@asynccontextmanager
async def helper_and_node(homes: tuple[Home, ...]) -> AsyncIterator[tuple[Node, Node]]:
    """A node that has the blocks, and one that has not; none of them runs."""
    async with opened(homes[1:2], training=NO_TRAINING) as [helper], opened(homes[:1], training=NO_TRAINING) as [node]:
        yield helper, node


async def test_a_node_without_blocks_fetches_all_of_them(homes: tuple[Home, ...]) -> None:
    async with catching_up(homes[0], homes[1]) as (node, [helper]):
        await until(node, lambda: node.chain.height == helper.chain.height)
        assert node.chain.tree.root == helper.chain.tree.root
        await eventually(lambda: not node.synchroniser.is_syncing)


async def test_a_claimed_height_without_blocks_is_punished_and_honest_peers_are_asked(homes: tuple[Home, ...]) -> None:
    async with (
        helper_and_node(homes) as (helper, node),
        stranger_of(node, greets=False) as liar,
        trio.open_nursery() as nursery,
    ):
        liar.height = 2**50
        await eventually(lambda: any(peer.height == 2**50 for peer in node.peers.all()))
        nursery.start_soon(node.run)
        await until(node, lambda: node.chain.height == helper.chain.height)
        await eventually(lambda: not node.synchroniser.is_syncing)
        assert BLOCKS in liar.asked
        assert node.network.statistics()["scores"][liar.network.peer_id] > 0
        nursery.cancel_scope.cancel()


async def test_a_peer_that_claims_and_does_not_answer_costs_one_time_out(
    homes: tuple[Home, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REQUEST_TIMEOUT_S", 0.5)
    async with (
        helper_and_node(homes) as (helper, node),
        stranger_of(node, greets=False) as silent,
        trio.open_nursery() as nursery,
    ):
        silent.height = 2**50
        answer = silent.on_request

        async def never(protocol: str, sender: object, data: bytes) -> bytes:
            if protocol == BLOCKS:
                silent.asked.append(protocol)
                await trio.sleep_forever()
            return await answer(protocol, sender, data)  # type: ignore[arg-type]

        silent.on_request = never  # type: ignore[method-assign, assignment]
        await eventually(lambda: any(peer.height == 2**50 for peer in node.peers.all()))
        nursery.start_soon(node.run)
        nursery.start_soon(claim_for_ever, silent)
        await until(node, lambda: node.chain.height == helper.chain.height)
        assert silent.asked.count(BLOCKS) <= 2
        nursery.cancel_scope.cancel()


async def claim_for_ever(stranger: object) -> None:
    """Say a hundred times a second that there are more blocks."""
    status = Status(2**50, 0, Step.PROPOSE, ()).to_bytes()
    while True:
        stranger.network.push(stranger.node, STATUS, status)  # type: ignore[attr-defined]
        await trio.sleep(0.01)


@pytest.mark.parametrize("kind", ["forged commit", "forged block", "later block", "junk"])
async def test_wrong_blocks_are_refused_and_their_sender_is_punished(homes: tuple[Home, ...], kind: str) -> None:
    with open_store(homes[1]) as store:
        answer = wrong_blocks(store, kind)
    async with (
        running(homes[:1], training=NO_TRAINING, p2p={"persistent_peers": ()}) as [node],
        stranger_of(node, greets=False) as liar,
    ):
        liar.answers[BLOCKS] = answer
        liar.height = 3
        await liar.ask("/bflnode/hello/1", liar.hello())
        node.synchroniser.notice(liar.network.peer_id, 3)
        await eventually(lambda: liar.network.peer_id in node.network.statistics()["scores"])
        assert node.chain.height == 0


def wrong_blocks(store: ChainStore, kind: str) -> bytes:
    final, later = (FinalBlock(store.block(height), store.commit(height)) for height in (1, 2))
    if kind == "forged commit":
        final = FinalBlock(final.block, later.commit)
    elif kind == "forged block":
        final = FinalBlock(later.block, final.commit)
    elif kind == "later block":
        final = later
    return b"\x91\x91" if kind == "junk" else FinalBlocks((final.to_bytes(),)).to_bytes()


def served(store: ChainStore, start: int, count: int) -> list[FinalBlock]:
    answer = FinalBlocks.from_bytes(serve_blocks(store, BlocksRequest(start, count).to_bytes()), max_bytes=2**23)
    return [FinalBlock.from_bytes(encoded, max_bytes=MAX_FINAL_BLOCK_BYTES) for encoded in answer.blocks]


def test_blocks_are_served_from_the_height_asked_for_up_to_the_tip(homes: tuple[Home, ...]) -> None:
    with open_store(homes[1]) as store:
        tip = store.tip().height

        def heights(start: int, count: int) -> list[int]:
            finals = served(store, start, count)
            assert all(final.commit == store.commit(final.block.height) for final in finals)
            return [final.block.height for final in finals]

        assert heights(2, 3) == [2, 3, 4]
        assert heights(0, 2) == [1]
        assert heights(tip, 32) == [tip]
        assert heights(tip + 1, 32) == []


def test_an_answer_holds_as_many_blocks_as_fit_and_at_least_one(
    homes: tuple[Home, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_BLOCKS_RESPONSE_BYTES", 100)
    with open_store(homes[1]) as store:
        assert len(served(store, 1, 32)) == 1
