"""Catching up: from whoever has the blocks, whatever else is claimed."""

import logging
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from bflnode.consensus.agreement import Status, Step
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.node.home import Home
from bflnode.node.node import Node
from bflnode.node.p2p.messages import (
    BLOCKS,
    HELLO,
    MAX_BLOCKS_RESPONSE_BYTES,
    MAX_FINAL_BLOCK_BYTES,
    STATUS,
    BlocksRequest,
    FinalBlock,
    FinalBlocks,
)
from bflnode.node.p2p.network import MAX_ANSWER_BYTES, PeerId
from bflnode.node.rpc.methods import RpcMethods
from bflnode.node.stored_chain import open_store
from bflnode.node.sync import block_batches, claims
from bflnode.node.sync import synchroniser as limits
from bflnode.node.sync.synchroniser import serve_blocks
from bflnode.storage.chain_store import ChainStore
from tests.consensus.harness import Harness
from tests.node.networks import eventually
from tests.node.nodes import going, opened, until
from tests.node.stored_homes import home_with, store_chain
from tests.node.strangers import Stranger, stranger_of_kind

BLOCKS_MADE = 100
HELPERS = 3

Answer = Callable[[BlocksRequest], "FinalBlocks | None"]


@dataclass(frozen=True)
class Network:
    """A node without blocks, and helpers that have them all."""

    harness: Harness
    newcomer: Home
    helpers: tuple[Home, ...]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Network:
    directory = tmp_path_factory.mktemp("grown")
    harness = Harness()
    for number in range(BLOCKS_MADE):
        harness.block(harness.transfer(number % 4, harness.account(1), 1))
    newcomer, *helpers = (
        home_with(directory / f"home{actor}", harness.genesis, harness.keys[actor]) for actor in range(1 + HELPERS)
    )
    store_chain(harness, helpers[0].chain)
    for home in helpers[1:]:
        shutil.copytree(helpers[0].chain, home.chain)
    return Network(harness, newcomer, tuple(helpers))


@pytest.fixture
def network(grown: Network, tmp_path: Path) -> Network:
    """A copy of its own for each test."""

    def copied(home: Home) -> Home:
        return Home(Path(shutil.copytree(home.root, tmp_path / home.root.name)))

    return Network(grown.harness, copied(grown.newcomer), tuple(copied(home) for home in grown.helpers))


@pytest.fixture(scope="module")
def store(grown: Network, tmp_path_factory: pytest.TempPathFactory) -> ChainStore:
    """The blocks, for liars to change."""
    copy = shutil.copytree(grown.helpers[0].chain, tmp_path_factory.mktemp("read") / "chain")
    return ChainStore.open(Path(copy))


@asynccontextmanager
async def catching_up(network: Network, helpers: int = 1) -> AsyncIterator[tuple[Node, list[Node]]]:
    """The newcomer, opened and connected to some helpers, which only answer."""
    async with opened(network.helpers[:helpers]) as others:
        addresses = tuple(helper.network.addresses[0] for helper in others)
        async with opened([network.newcomer], p2p={"persistent_peers": addresses}) as [node]:
            await eventually(lambda: len(node.peers.all()) == helpers)
            yield node, others


async def until_there(node: Node, height: int = BLOCKS_MADE) -> None:
    async with going([node]):
        await until(node, lambda: node.chain.height == height)


class Teller(Stranger):
    """A stranger that answers requests for blocks as a test wants."""

    answer: Answer
    delay_s = 0.0

    async def on_request(self, protocol: str, sender: PeerId, data: bytes) -> bytes:
        if protocol != BLOCKS:
            return await super().on_request(protocol, sender, data)
        self.asked.append(protocol)
        await trio.sleep(self.delay_s)
        found = self.answer(BlocksRequest.from_bytes(data, max_bytes=64))
        if found is None:
            await trio.sleep_forever()
        assert found is not None
        return found.to_bytes()


@asynccontextmanager
async def telling(node: Node, answer: Answer, *, height: int, delay_s: float = 0.0) -> AsyncIterator[Teller]:
    """A peer that claims a height and answers so; it comes first, because nobody claims more."""
    async with stranger_of_kind(Teller, node, greets=False) as teller:
        teller.answer, teller.delay_s, teller.height = answer, delay_s, height
        await teller.ask(HELLO, teller.hello())
        node.synchroniser.notice(teller.network.peer_id, height)
        yield teller


def score_of(node: Node, teller: Teller) -> float:
    """What the node holds against it; a banned peer has no score any more."""
    statistics = node.network.statistics()
    if teller.network.peer_id in statistics["banned"]:
        return 100.0
    found: float = statistics["scores"].get(teller.network.peer_id, 0.0)
    return found


async def test_a_node_without_blocks_fetches_all_of_them(network: Network) -> None:
    async with catching_up(network) as (node, [helper]), going([node]):
        await until(node, lambda: node.chain.height == BLOCKS_MADE)
        assert node.chain.tree.root == helper.chain.tree.root
        await eventually(lambda: not node.synchroniser.is_syncing)


async def test_several_peers_share_the_work(network: Network) -> None:
    async with catching_up(network, 3) as (node, helpers):
        await until_there(node)
        asked = [helper.network.statistics()["messages_in"].get(BLOCKS, 0) for helper in helpers]
        assert sum(count > 0 for count in asked) >= 2
        assert sum(asked) <= -(-BLOCKS_MADE // 32) + 1


async def test_a_claimed_height_without_blocks_is_punished_and_honest_peers_are_asked(network: Network) -> None:
    async with (
        catching_up(network) as (node, _),
        telling(node, lambda _: FinalBlocks(()), height=2**50) as liar,
    ):
        await until_there(node)
        assert score_of(node, liar) > 0


async def test_a_peer_that_claims_and_does_not_answer_costs_one_time_out(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REQUEST_TIMEOUT_S", 0.5)
    async with (
        catching_up(network) as (node, _),
        telling(node, lambda _: None, height=2**50) as silent,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(claim_for_ever, silent)
        await until_there(node)
        assert silent.asked.count(BLOCKS) <= limits.REQUESTS_IN_FLIGHT
        nursery.cancel_scope.cancel()


def refuse(_: BlocksRequest) -> FinalBlocks:
    raise Rejection(Reason.LIMIT, fault="not now")


def keep_silent(_: BlocksRequest) -> None:
    return None


def start_later(_: BlocksRequest) -> FinalBlocks:
    raise Rejection(Reason.PRUNED, start=1, first=900)


@pytest.mark.parametrize("answer", [refuse, keep_silent, start_later])
async def test_a_claim_that_is_not_backed_by_blocks_loses_its_weight(
    network: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: Answer
) -> None:
    """One stranger kept a node unready for as long as it was connected, with three lines of log a second."""
    caplog.set_level(logging.INFO, "bflnode.node.sync.synchroniser")
    monkeypatch.setattr(limits, "REQUEST_TIMEOUT_S", 0.2)
    twin = Home(Path(shutil.copytree(network.newcomer.root, network.newcomer.root.parent / "twin")))
    shutil.copytree(network.helpers[0].root / "config", twin.root / "config", dirs_exist_ok=True)
    async with (
        opened([network.newcomer, twin]) as [node, honest],
        telling(node, answer, height=1000) as liar,
        trio.open_nursery() as nursery,
    ):
        await honest.network.dial(node.network.addresses[0])
        await eventually(lambda: node.peers.get(honest.network.peer_id) is not None)
        nursery.start_soon(node.synchroniser.run)
        nursery.start_soon(claim_for_ever, liar)
        await eventually(lambda: not node.synchroniser._claims.may_be_asked(liar.network.peer_id))
        asked = liar.asked.count(BLOCKS)
        assert asked <= limits.REQUESTS_IN_FLIGHT * claims.MAX_FAILURES
        for _ in range(20):
            assert RpcMethods(node, "").unready_reasons() == []
            assert not node.synchroniser.knows_of_more
            await trio.sleep(0.02)
        assert liar.asked.count(BLOCKS) == asked
        assert score_of(node, liar) > 0
        assert [liar.network.peer_id in text for text in caplog.messages] == [True]
        nursery.cancel_scope.cancel()


async def test_whose_word_lost_its_weight_is_asked_again_later_and_counts_once_it_gives_blocks(
    network: Network, store: ChainStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "PAUSE_S", 0.2)
    lies = 4

    def come_round(request: BlocksRequest) -> FinalBlocks:
        nonlocal lies
        lies -= 1
        return refuse(request) if lies >= 0 else FinalBlocks((final(store, request.start).to_bytes(),))

    async with (
        opened([network.newcomer]) as [node],
        telling(node, come_round, height=20) as peer,
        going([node]),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(claim_for_ever, peer)
        await until(node, lambda: node.chain.height > 0)
        await eventually(lambda: node.synchroniser.is_syncing)
        nursery.cancel_scope.cancel()


async def test_a_node_catches_up_from_an_honest_peer_that_comes_after_the_liars(network: Network) -> None:
    async with (
        opened([network.newcomer]) as [node],
        telling(node, refuse, height=2**50) as liar,
        going([node]),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(claim_for_ever, liar)
        await eventually(lambda: not node.synchroniser._claims.may_be_asked(liar.network.peer_id))
        async with opened(network.helpers[:1]) as [helper]:
            await node.network.dial(helper.network.addresses[0])
            await until(node, lambda: node.chain.height == BLOCKS_MADE)
            await eventually(lambda: not node.synchroniser.is_syncing)
        nursery.cancel_scope.cancel()


async def claim_for_ever(stranger: Stranger) -> None:
    """Say a hundred times a second that there are more blocks."""
    status = Status(2**50, 0, Step.PROPOSE, ()).to_bytes()
    while True:
        stranger.network.push(stranger.node, STATUS, status)
        await trio.sleep(0.01)


async def test_a_peer_that_drips_is_overtaken_and_left_alone(
    network: Network, store: ChainStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_batches, "LATE_S", 0.2)
    monkeypatch.setattr(limits, "LATE_S", 0.2)

    def one(request: BlocksRequest) -> FinalBlocks:
        return FinalBlocks((final(store, request.start).to_bytes(),))

    async with (
        catching_up(network) as (node, _),
        telling(node, one, height=BLOCKS_MADE + 50, delay_s=5.0) as dripping,
    ):
        with trio.fail_after(5.0):
            await until_there(node)
        assert dripping.asked.count(BLOCKS) <= limits.REQUESTS_IN_FLIGHT
        assert score_of(node, dripping) == 0


def final(store: ChainStore, height: int) -> FinalBlock:
    return FinalBlock(store.block(height), store.commit(height))


def wrong_blocks(store: ChainStore, kind: str, start: int) -> bytes:
    good, later = final(store, start), final(store, start + 1)
    match kind:
        case "forged commit":
            return FinalBlock(good.block, later.commit).to_bytes()
        case "no commit":
            return FinalBlock(good.block, replace(good.commit, signatures=())).to_bytes()
        case "forged block":
            return FinalBlock(later.block, good.commit).to_bytes()
        case "changed block":
            header = replace(good.block.header, time_ms=good.block.header.time_ms + 1)
            return FinalBlock(replace(good.block, header=header), good.commit).to_bytes()
        case "another block":
            return later.to_bytes()
        case _:
            return b"\x91\x91"


@pytest.mark.parametrize(
    "kind", ["forged commit", "no commit", "forged block", "changed block", "another block", "junk"]
)
async def test_wrong_blocks_are_refused_their_sender_is_punished_and_another_is_asked(
    network: Network, store: ChainStore, kind: str
) -> None:
    def lie(request: BlocksRequest) -> FinalBlocks:
        return FinalBlocks((wrong_blocks(store, kind, min(request.start, BLOCKS_MADE - 1)),) * request.count)

    async with (
        catching_up(network) as (node, [helper]),
        telling(node, lie, height=BLOCKS_MADE + 50) as liar,
    ):
        await until_there(node)
        assert score_of(node, liar) > 0
        assert node.chain.tree.root == helper.chain.tree.root


async def test_blocks_of_another_fork_are_refused(network: Network) -> None:
    """The same genesis, other blocks, signed by nobody but one of the validators."""
    fork = Harness()
    finals = []
    for number in range(40):
        fork.block(fork.transfer(number % 4, fork.account(2), 7))
        commit = fork.sign_commit(fork.blocks[-1], voters=[0])
        finals.append(FinalBlock(fork.blocks[-1], commit).to_bytes())
    assert fork.genesis == network.harness.genesis

    def tell(request: BlocksRequest) -> FinalBlocks:
        return FinalBlocks(tuple(finals[request.start - 1 : request.start - 1 + request.count]) or (finals[-1],))

    async with (
        catching_up(network) as (node, [helper]),
        telling(node, tell, height=BLOCKS_MADE + 50) as liar,
    ):
        await until_there(node)
        assert score_of(node, liar) > 0
        assert node.chain.tree.root == helper.chain.tree.root


async def test_more_blocks_than_were_asked_for_are_not_kept(network: Network, store: ChainStore) -> None:
    """An endless supply of valid blocks is used as far as it goes, and no batch grows beyond what was asked for."""
    seen = []

    def generous(request: BlocksRequest) -> FinalBlocks:
        seen.append(request)
        last = min(request.start + 31, BLOCKS_MADE)
        return FinalBlocks(tuple(final(store, height).to_bytes() for height in range(request.start, last + 1)))

    async with (
        opened([network.newcomer]) as [node],
        telling(node, generous, height=10) as teller,
    ):
        await until_there(node, 10)
        assert [(request.start, request.count) for request in seen] == [(1, 10)]
        assert score_of(node, teller) == 0


async def test_a_peer_whose_chain_starts_later_is_asked_for_what_it_has(network: Network) -> None:
    [whole, late, _] = network.helpers
    make_later(late, 40, network.harness)
    shutil.rmtree(whole.chain)
    store_chain_up_to(whole, 50, network.harness)
    async with catching_up(network, 2) as (node, [_, later]):
        assert later.chain.store.base == 40
        await until_there(node)
        assert node.network.statistics()["scores"] == {}


async def test_where_all_chains_start_later_the_operator_is_told(network: Network) -> None:
    make_later(network.helpers[0], 40, network.harness)
    async with catching_up(network) as (node, _), going([node]):
        await eventually(lambda: node.synchroniser.problem is not None)
        assert node.chain.height == 0
        reasons = RpcMethods(node, "").unready_reasons()
        assert "no peer has block 1: the peers' chains start at 41" in " ".join(reasons)
        assert "--state-sync" in " ".join(reasons)


def store_chain_up_to(home: Home, height: int, harness: Harness) -> None:
    """The first blocks of a harness's chain."""
    part = Harness()
    part.blocks = harness.blocks[:height]
    part.last_commit = harness.blocks[height].last_commit
    store_chain(part, home.chain)


def make_later(home: Home, base: int, harness: Harness) -> None:
    """Let a home's chain start from the state after a block."""
    shutil.rmtree(home.chain)
    store_chain_up_to(home, base, harness)
    with open_store(home) as start, start.freeze() as frozen:
        store = ChainStore.create_from_snapshot(
            home.joining_chain, harness.genesis, frozen.header, frozen.commit, frozen.entries()
        )
    with store:
        whole = Home(home.root.parent / "home3")
        with open_store(whole) as source:
            import_blocks(store, source)
    shutil.rmtree(home.chain)
    home.joining_chain.rename(home.chain)


def import_blocks(store: ChainStore, source: ChainStore) -> None:
    """Append what another store has more."""
    from bflnode.consensus.ledger import validate_block

    tree, parent = store.load_state(), store.header(store.base)
    for height in range(store.base + 1, source.tip().height + 1):
        block = source.block(height)
        execution = validate_block(store.genesis, tree, parent, block)
        store.append(block, source.commit(height), execution.changes)
        tree.apply(execution.changes)
        parent = block.header


def served(store: ChainStore, start: int, count: int) -> list[FinalBlock]:
    answer = FinalBlocks.from_bytes(serve_blocks(store, BlocksRequest(start, count).to_bytes()), max_bytes=2**23)
    return [FinalBlock.from_bytes(encoded, max_bytes=MAX_FINAL_BLOCK_BYTES) for encoded in answer.blocks]


def test_blocks_are_served_from_the_height_asked_for_up_to_the_tip(store: ChainStore) -> None:
    def heights(start: int, count: int) -> list[int]:
        finals = served(store, start, count)
        assert all(final.commit == store.commit(final.block.height) for final in finals)
        return [final.block.height for final in finals]

    assert heights(2, 3) == [2, 3, 4]
    assert heights(0, 2) == [1]
    assert heights(BLOCKS_MADE, 32) == [BLOCKS_MADE]
    assert heights(BLOCKS_MADE + 1, 32) == []


def test_an_answer_holds_as_many_blocks_as_fit_and_at_least_one(
    store: ChainStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_BLOCKS_RESPONSE_BYTES", 100)
    assert len(served(store, 1, 32)) == 1


def test_no_answer_is_larger_than_the_network_sends() -> None:
    assert max(MAX_BLOCKS_RESPONSE_BYTES, MAX_FINAL_BLOCK_BYTES + 64) < MAX_ANSWER_BYTES


def test_blocks_below_the_base_are_refused_with_where_the_chain_starts(network: Network) -> None:
    make_later(network.helpers[0], 40, network.harness)
    with open_store(network.helpers[0]) as later:
        for start in (1, 40):
            with pytest.raises(Rejection) as caught:
                serve_blocks(later, BlocksRequest(start, 1).to_bytes())
            assert caught.value.reason is Reason.PRUNED
            found = limits.FIRST_BLOCK.search(str(caught.value))
            assert found is not None
            assert found[1] == "41"
        assert len(served(later, 41, 32)) == 32
