"""Catches up: fetches final blocks from peers that are ahead, until this node is where they are.

Every block is checked like any other: by its commit, by executing it, by its state root. A peer that sends something
else is punished and the next one is asked.
"""

import logging

import trio

from bflnode.consensus.rejection import Reason, Rejection
from bflnode.storage.chain_store import ChainStore

from .agreement_driver import AgreementDriver
from .chain import Chain
from .messages import (
    BLOCKS,
    BLOCKS_PER_REQUEST,
    MAX_BLOCKS_RESPONSE_BYTES,
    MAX_FINAL_BLOCK_BYTES,
    BlocksRequest,
    FinalBlock,
    FinalBlocks,
)
from .network import Network, PeerId, TransportError
from .peers import Peers

_log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 15.0
"""Four megabytes of blocks, at the slowest rate worth waiting for."""

MAX_REQUEST_BYTES = 64

PATIENCE_S = 0.3
"""A node one block behind usually has the votes for it on their way: ask only if it still is after this long."""


class Synchroniser:
    """Follows the highest height that a peer claims."""

    def __init__(self, chain: Chain, network: Network, peers: Peers, agreement: AgreementDriver) -> None:
        self._chain = chain
        self._network = network
        self._peers = peers
        self._agreement = agreement
        self._noticed = trio.Event()
        self._is_behind = False
        self._failed: set[PeerId] = set()

    @property
    def is_syncing(self) -> bool:
        """Whether this node knows of blocks that it doesn't have."""
        return self._is_behind

    def notice(self, peer: PeerId, height: int) -> None:
        """A peer has final blocks up to a height."""
        self._peers.note_height(peer, height)
        if height > self._chain.height:
            self._noticed.set()

    async def run(self) -> None:
        """Catch up whenever a peer is ahead, until cancelled."""
        while True:
            self._noticed = trio.Event()
            best = self._best()
            if best <= self._chain.height:
                self._is_behind = False
                await self._noticed.wait()
                continue
            if best == self._chain.height + 1:
                with trio.move_on_after(PATIENCE_S):
                    await self._chain.changed.wait()
                    continue
            self._is_behind = True
            await self._ask_peers()

    def _best(self) -> int:
        return max((peer.height for peer in self._peers.all()), default=0)

    async def _ask_peers(self) -> None:
        """Ask the peers that are ahead until one of them brings this node forward.

        The highest comes first, but after all others who failed since a peer was of use: a height is only a claim.
        """
        before = self._chain.height
        ahead = [peer for peer in self._peers.all() if peer.height > before]
        for peer in sorted(ahead, key=lambda peer: (peer.id in self._failed, -peer.height)):
            try:
                await self._fetch_from(peer.id)
            except TransportError as error:
                _log.info("no blocks from %s: %s", peer.id, error)
            except Rejection as rejection:
                self._network.punish(peer.id, f"blocks: {rejection}")
            if self._chain.height > before:
                self._failed.clear()
                return
            self._failed.add(peer.id)
            self._peers.disbelieve(peer.id, before)
        _log.info("no peer had block %d, although one said so", before + 1)
        await trio.sleep(PATIENCE_S)

    async def _fetch_from(self, peer: PeerId) -> None:
        start = self._chain.height + 1
        response = await self._network.request(
            peer,
            BLOCKS,
            BlocksRequest(start, BLOCKS_PER_REQUEST).to_bytes(),
            timeout_s=REQUEST_TIMEOUT_S,
            max_response_bytes=MAX_BLOCKS_RESPONSE_BYTES,
        )
        batch = FinalBlocks.from_bytes(response, max_bytes=MAX_BLOCKS_RESPONSE_BYTES)
        if not batch.blocks and self._chain.height < start:
            raise Rejection(Reason.WRONG_HEIGHT, fault="it has not the blocks that it says it has", start=start)
        for encoded in batch.blocks:
            final = FinalBlock.from_bytes(encoded, max_bytes=MAX_FINAL_BLOCK_BYTES)
            if final.block.height <= self._chain.height:
                continue
            await self._agreement.adopt(final)
            if self._chain.height < final.block.height:
                raise Rejection(Reason.WRONG_COMMIT, fault="a block that can't follow ours", height=final.block.height)


def serve_blocks(store: ChainStore, data: bytes) -> bytes:
    """Answer a BLOCKS request with as many blocks as fit.

    Raises:
        Rejection: malformed.
    """
    request = BlocksRequest.from_bytes(data, max_bytes=MAX_REQUEST_BYTES)
    last = min(store.tip().height, request.start + request.count - 1)
    blocks: list[bytes] = []
    size_bytes = 0
    for height in range(max(1, request.start), last + 1):
        final = FinalBlock(store.block(height), store.commit(height)).to_bytes()
        size_bytes += len(final) + 8
        if blocks and size_bytes > MAX_BLOCKS_RESPONSE_BYTES - 64:
            break
        blocks.append(final)
    return FinalBlocks(tuple(blocks)).to_bytes()
