"""Catches up: fetches final blocks from peers that are ahead, until this node is where they are.

Several peers are asked at once for batches of blocks, which are used in order (`block_batches`). Every block is checked
like any other: by its commit, by executing it, by its state root. A peer that sends something else is punished; one
that doesn't answer, or holds up the others, is left alone for a while; a peer whose chain starts later is asked for
what it has. There is always somebody to take over while anybody is there. Whose word counts is `claims`' business.
"""

import logging
import math
import re

import trio

from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.tables import current_validators
from bflnode.node.agreement_driver import AgreementDriver
from bflnode.node.chain import Chain
from bflnode.node.p2p.messages import (
    BLOCKS,
    MAX_BLOCKS_RESPONSE_BYTES,
    MAX_FINAL_BLOCK_BYTES,
    BlocksRequest,
    FinalBlock,
    FinalBlocks,
)
from bflnode.node.p2p.network import Network, PeerId, RemoteRefusal, TransportError
from bflnode.node.p2p.peers import Peer, Peers
from bflnode.storage.chain_store import ChainStore

from .block_batches import LATE_S, Batches, NextBlock
from .claims import Claims

_log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 15.0
"""One and a half megabytes of blocks, at the slowest rate worth waiting for."""

SLOW_S = 5.0
SLOWEST_BYTES_PER_S = 100_000
"""A peer that takes longer for a batch than that and its size explain is asked only while nobody quicker is there."""

MAX_REQUEST_BYTES = 64

PATIENCE_S = 0.3
"""A node one block behind usually has the votes for it on their way: ask only if it still is after this long."""

MAX_SOURCES = 4
"""Peers asked at once: checking blocks takes longer than fetching them from two."""

REQUESTS_IN_FLIGHT = 2
"""Batches asked for at once from one peer: one travels while the other is read from its disk."""

FIRST_BLOCK = re.compile(rf"{Reason.PRUNED}: .*\bfirst=(\d{{1,16}})$")
"""How a peer says that its chain starts later, and where."""


class Synchroniser:
    """Follows the highest height that a peer claims, as long as claims are backed by blocks.

    Attributes:
        problem: why it can't catch up, in words for the operator; None while it can.
    """

    def __init__(self, chain: Chain, network: Network, peers: Peers, agreement: AgreementDriver) -> None:
        self.problem: str | None = None
        self._chain = chain
        self._network = network
        self._peers = peers
        self._agreement = agreement
        self._noticed = trio.Event()
        self._is_behind = False
        self._claims = Claims(trio.current_time)
        self._first_blocks: dict[PeerId, int] = {}
        self._active: dict[PeerId, trio.CancelScope] = {}
        self._slow: set[PeerId] = set()
        self._changed = trio.Event()

    @property
    def is_syncing(self) -> bool:
        """Whether this node knows of blocks that it doesn't have, and has not had for a moment."""
        return self._is_behind and self.knows_of_more

    @property
    def knows_of_more(self) -> bool:
        """Whether a peer whose word counts has said that there are blocks after this node's last."""
        return any(peer.height > self._chain.height for peer in self._claims.believed(self._peers.all()))

    def notice(self, peer: PeerId, height: int) -> None:
        """A peer has final blocks up to a height."""
        self._peers.note_height(peer, height)
        if height > self._chain.height and self._claims.may_be_asked(peer):
            self._noticed.set()

    async def run(self) -> None:
        """Catch up whenever a peer is ahead, until cancelled."""
        while True:
            self._noticed = trio.Event()
            self._claims.reach(self._chain.height)
            ahead = [peer for peer in self._peers.all() if peer.height > self._chain.height]
            best = max((peer.height for peer in ahead if self._claims.may_be_asked(peer.id)), default=0)
            if best == 0:
                self._is_behind, self.problem = False, None
                with trio.move_on_at(min((self._claims.paused_until_s(peer.id) for peer in ahead), default=math.inf)):
                    await self._noticed.wait()
                continue
            if best == self._chain.height + 1:
                with trio.move_on_after(PATIENCE_S):
                    await self._chain.changed.wait()
                    continue
            self._is_behind = True
            before = self._chain.height
            await self._catch_up()
            if self._chain.height == before:
                _log.debug("no peer had block %d, although one said so", before + 1)
                self._say_what_is_missing(before + 1)
                await trio.sleep(PATIENCE_S)

    def _say_what_is_missing(self, height: int) -> None:
        """Where the peers' chains all start later, nothing will come of waiting; others may know of no such chain."""
        starts = {peer: first for peer, first in self._first_blocks.items() if self._peers.get(peer) is not None}
        if not starts or any(first <= height for first in starts.values()):
            return
        if self._is_outweighed():
            for peer in starts:
                del self._first_blocks[peer]
                self._fail(peer)
            return
        problem = (
            f"no peer has block {height}: the peers' chains start at {min(starts.values())}. "
            "Connect to a node that has the whole chain, or start from a snapshot (`bflnode start --state-sync`)"
        )
        if problem != self.problem:
            _log.warning("%s", problem)
        self.problem = problem

    def _is_outweighed(self) -> bool:
        """Whether those that are ahead have less stake, or are fewer, than those that are no further than this node."""
        stakes = {validator.account: validator.stake for validator in current_validators(self._chain.tree).validators}
        believed = self._claims.believed(self._peers.all())
        ahead = [stakes.get(peer.account, 0) for peer in believed if peer.height > self._chain.height]
        others = [stakes.get(peer.account, 0) for peer in believed if peer.height <= self._chain.height]
        return (sum(others), len(others)) >= (sum(ahead), len(ahead))

    async def _catch_up(self) -> None:
        """Fetch and use blocks until no peer has more."""
        batches = Batches(self._chain.height + 1)
        self._slow.clear()
        async with trio.open_nursery() as nursery:
            while True:
                block = batches.take(self._chain.height + 1)
                self._hire(nursery, batches, is_waiting=block is None)
                if block is not None:
                    await self._use(block, batches)
                elif self._active:
                    with trio.move_on_after(LATE_S):
                        await self._changed.wait()
                else:
                    break
            nursery.cancel_scope.cancel()

    def _hire(self, nursery: trio.Nursery, batches: Batches, *, is_waiting: bool) -> None:
        """Have as many peers asked as is worth it; one that failed or is slow only while nothing else can be done."""
        for peer in self._candidates(batches):
            is_needed = is_waiting and not self._active
            is_last_resort = self._claims.has_failed(peer.id) or peer.id in self._slow
            if len(self._active) >= MAX_SOURCES or (is_last_resort and not is_needed):
                return
            scope = self._active[peer.id] = trio.CancelScope()
            nursery.start_soon(self._ask, peer.id, batches, scope)

    def _candidates(self, batches: Batches) -> list[Peer]:
        """Peers that may be asked and aren't, best first.

        Identities and claims cost nothing, so those who fail or are slow come last, and strangers after others. The
        highest claim comes first only where a word counts, else whoever has been here longest.
        """
        wanted = self._chain.height + 1
        believed = {peer.id for peer in self._claims.believed(self._peers.all())}
        found = [
            peer
            for peer in self._peers.all()
            if peer.height >= wanted
            and peer.id not in self._active
            and self._claims.may_be_asked(peer.id)
            and self._first_blocks.get(peer.id, 0) <= wanted
            and batches.has_more(peer.height)
        ]

        def rank(peer: Peer) -> tuple[bool, bool, int, int, int]:
            claims, height = self._claims, peer.height if peer.id in believed else 0
            worth = self._peers.worth_of(peer.id)
            return claims.has_failed(peer.id), peer.id in self._slow, claims.failures(peer.id), -worth, -height

        return sorted(found, key=rank)

    def _gives_way(self, peer: PeerId, batches: Batches) -> bool:
        """Let a slow peer go if another is there that may be quicker; else go on with it."""
        self._slow.add(peer)
        others = {*self._active, *(other.id for other in self._candidates(batches))} - self._slow
        if all(map(self._claims.has_failed, others)):
            return False
        _log.debug("%s is slow, others are asked", peer)
        self._active[peer].cancel()
        return True

    def _fail(self, peer: PeerId) -> None:
        """A peer was of no use: its height was only a claim. Its next word counts again, a few times."""
        known = self._peers.get(peer)
        height = known.height if known is not None else 0
        doubts = self._claims.fail(peer, height)
        if doubts:
            level = logging.INFO if doubts == 1 else logging.DEBUG
            _log.log(level, "%s says that it has block %d and gives none: its word doesn't count", peer, height)
            self._network.punish(peer, f"it claims height {height}, and gives no blocks")
        self._peers.disbelieve(peer, self._chain.height)
        if peer in self._active:
            self._active[peer].cancel()

    async def _ask(self, peer: PeerId, batches: Batches, scope: trio.CancelScope) -> None:
        """Ask one peer for batches until it has no more that are wanted."""
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    for _ in range(REQUESTS_IN_FLIGHT):
                        nursery.start_soon(self._ask_in_turn, peer, batches)
        finally:
            del self._active[peer]
            batches.drop_requests(peer)
            self._tell()

    async def _ask_in_turn(self, peer: PeerId, batches: Batches) -> None:
        while (known := self._peers.get(peer)) is not None and batches.has_more(known.height):
            span = batches.claim(peer, known.height, trio.current_time())
            if span is None:
                with trio.move_on_after(LATE_S):
                    await self._changed.wait()
                continue
            since_s = trio.current_time()
            try:
                blocks = await self._request(peer, span)
                late = batches.put(span, peer, blocks)
            except RemoteRefusal as refusal:
                self._note_refusal(peer, refusal)
                return
            except TransportError as error:
                _log.debug("no blocks from %s: %s", peer, error)
                self._fail(peer)
                return
            except Rejection as rejection:
                self._blame(peer, rejection, batches)
                return
            for other in late:
                _log.debug("%s holds up the others: it is left alone", other)
                self._fail(other)
            self._tell()
            allowed_s = SLOW_S + sum(map(len, blocks)) / SLOWEST_BYTES_PER_S
            is_slow = trio.current_time() > since_s + allowed_s or _is_short(blocks, span, known.height)
            if is_slow and self._gives_way(peer, batches):
                return

    async def _request(self, peer: PeerId, span: range) -> tuple[bytes, ...]:
        response = await self._network.request(
            peer,
            BLOCKS,
            BlocksRequest(span.start, len(span)).to_bytes(),
            timeout_s=REQUEST_TIMEOUT_S,
            max_response_bytes=MAX_BLOCKS_RESPONSE_BYTES,
        )
        blocks = FinalBlocks.from_bytes(response, max_bytes=MAX_BLOCKS_RESPONSE_BYTES).blocks
        if not blocks:
            raise Rejection(Reason.WRONG_HEIGHT, fault="it has not the blocks that it says it has", start=span.start)
        return blocks

    def _note_refusal(self, peer: PeerId, refusal: RemoteRefusal) -> None:
        """A peer may say where its chain starts: until this node is there, others are asked."""
        found = FIRST_BLOCK.search(refusal.reason)
        if found is None:
            _log.debug("no blocks: %s", refusal)
            self._fail(peer)
            return
        known = self._peers.ids()
        self._first_blocks = {other: first for other, first in self._first_blocks.items() if other in known}
        self._first_blocks[peer] = int(found[1])
        if peer in self._active:
            self._active[peer].cancel()

    def _blame(self, peer: PeerId, rejection: Rejection, batches: Batches) -> None:
        self._network.punish(peer, f"blocks: {rejection}")
        batches.drop(peer)
        self._fail(peer)
        self._tell()

    async def _use(self, block: NextBlock, batches: Batches) -> None:
        """Have a block checked and appended; whoever sent one that can't follow is blamed."""
        try:
            final = FinalBlock.from_bytes(block.encoded, max_bytes=MAX_FINAL_BLOCK_BYTES)
            if final.block.height != block.height:
                raise Rejection(Reason.WRONG_HEIGHT, height=final.block.height, expected=block.height)
            await self._agreement.adopt(final)
            if self._chain.height < block.height:
                raise Rejection(Reason.WRONG_COMMIT, fault="a block that can't follow ours", height=block.height)
        except Rejection as rejection:
            self._blame(block.peer, rejection, batches)
            batches.want(block.height)
        else:
            self._claims.give(block.peer)
            if block.is_last:
                self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _is_short(blocks: tuple[bytes, ...], span: range, height: int) -> bool:
    """Whether an answer lacks blocks that its sender says it has, although there was room for another, of any size."""
    is_roomy = sum(map(len, blocks)) < MAX_BLOCKS_RESPONSE_BYTES // 4
    return is_roomy and span.start + len(blocks) < min(span.stop, height + 1)


def serve_blocks(store: ChainStore, data: bytes) -> bytes:
    """Answer a BLOCKS request with as many blocks as fit.

    Raises:
        Rejection: malformed; PRUNED: the chain starts later here.
    """
    request = BlocksRequest.from_bytes(data, max_bytes=MAX_REQUEST_BYTES)
    if 0 < request.start <= store.base:
        raise Rejection(Reason.PRUNED, start=request.start, first=store.base + 1)
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
