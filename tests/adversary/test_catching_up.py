"""Attacks that would keep a node from catching up by taking all the places of those that it asks: none succeeds."""

from contextlib import AsyncExitStack

import pytest
import trio

from bflnode.node.p2p.messages import BLOCKS, BlocksRequest, FinalBlocks
from bflnode.node.sync import block_batches
from bflnode.node.sync import synchroniser as limits
from bflnode.storage.chain_store import ChainStore
from tests.node.networks import eventually
from tests.node.nodes import going, opened, until
from tests.node.strangers import stranger_of
from tests.node.sync.test_synchroniser import (
    BLOCKS_MADE,
    Network,
    Teller,
    final,
    grown,
    keep_silent,
    network,
    store,
    until_there,
)

__all__ = ["grown", "network", "store"]
MANY = limits.MAX_SOURCES + 1


async def tellers(stack: AsyncExitStack, node: object, answer: object, heights: int) -> list[Teller]:
    """Several new identities that claim a height and answer so."""
    made = []
    for number in range(MANY):
        teller = await stack.enter_async_context(stranger_of(node, seed=150 + number))  # type: ignore[arg-type]
        assert isinstance(teller, Teller)
        teller.answer = answer  # type: ignore[assignment]
        node.synchroniser.notice(teller.network.peer_id, heights)  # type: ignore[attr-defined]
        made.append(teller)
    return made


async def test_silent_strangers_that_claim_most_are_not_asked_before_validators(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New identities, each for fifteen seconds, held every place: a node never asked the validator beside them."""
    monkeypatch.setattr("tests.node.strangers.Stranger", Teller)
    for module in (block_batches, limits):
        monkeypatch.setattr(module, "LATE_S", 0.2)
    async with opened(network.helpers[:1]) as [helper], opened([network.newcomer]) as [node], AsyncExitStack() as stack:
        await tellers(stack, node, keep_silent, 2**50)
        await node.network.dial(helper.network.addresses[0])
        await eventually(lambda: node.peers.get(helper.network.peer_id) is not None)
        with trio.fail_after(limits.REQUEST_TIMEOUT_S / 3):
            await until_there(node)


async def test_strangers_that_give_block_after_block_slowly_give_way(
    network: Network, store: ChainStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four that each gave one block an answer were asked for ever, and the chain grew faster."""

    def one(request: BlocksRequest) -> FinalBlocks:
        return FinalBlocks((final(store, min(request.start, BLOCKS_MADE)).to_bytes(),))

    monkeypatch.setattr("tests.node.strangers.Stranger", Teller)
    monkeypatch.setattr(Teller, "delay_s", 1.0)
    async with opened(network.helpers[:1]) as [helper], opened([network.newcomer]) as [node], AsyncExitStack() as stack:
        made = await tellers(stack, node, one, BLOCKS_MADE)
        async with going([node]):
            await eventually(lambda: sum(BLOCKS in teller.asked for teller in made) >= limits.MAX_SOURCES)
            await node.network.dial(helper.network.addresses[0])
            await until(node, lambda: node.chain.height == BLOCKS_MADE, 6.0)
