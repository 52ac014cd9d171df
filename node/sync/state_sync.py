"""Joining by state: a node without a chain starts from a peer's snapshot of a block that its operator trusts.

    operator --HEIGHT:HASH--> trusted header --steps--> header of a snapshot --state root--> state
    peers    --offers, steps, chunks from several of them-->

Peers are believed nothing: the header is the trusted one or follows from it by a chain of steps (`consensus.light`),
the state must lead to the header's state root, the commit is checked by the validators that the state names. Only when
all of it is right, the store of the chain appears in the home, at once. Whatever was wrong costs time. Chunks on disk
are kept, so that a restarted node goes on where it stopped.

This happens before the node opens: over connections of its own, with nothing to serve and nothing to say.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import trio

from bflnode.consensus.blob import MAX_BLOB_BYTES
from bflnode.consensus.genesis import Genesis
from bflnode.consensus.light import Clock, LightChain, Trust, verify_light_chain
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.snapshot import MAX_SNAPSHOT_BYTES, Snapshot, read_state, verify_file, verify_snapshot
from bflnode.consensus.state import StateTree
from bflnode.consensus.types import BlobId, BlockId
from bflnode.node.configuration import Configuration
from bflnode.node.home import Home, HomeError
from bflnode.node.node_clock import now_ms
from bflnode.node.p2p.bans import Bans
from bflnode.node.p2p.messages import (
    ABOUT,
    HELLO,
    LIGHT_CHAINS,
    MAX_LIGHT_CHAIN_BYTES,
    MAX_OFFERS_BYTES,
    MAX_VERSION_LENGTH,
    PUSHES,
    RATES,
    REQUESTS,
    SNAPSHOTS,
    LightChainRequest,
    SnapshotOffers,
    SnapshotsRequest,
)
from bflnode.node.p2p.network import Network, NetworkConfig, PeerId, TransportError, open_network
from bflnode.node.p2p.network_key import load_network_key
from bflnode.node.p2p.peers import OwnSide, Peers, make_peers
from bflnode.node.p2p.places import Worth
from bflnode.node.stored_chain import open_store
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import CorruptStore, from_os_error
from bflnode.storage.home_lock import HomeLock
from bflnode.storage.snapshot_store import SnapshotStore

from .exchange import Exchange

_log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 15.0
"""Offers and steps are small, but a peer reads its disk for them."""

RETRY_S = 2.0
"""Pause before peers are asked again, when none of them had anything of use."""

GATHER_S = 1.0
"""Once one peer is there, others get this long before the first offers are compared: a file has several holders."""

MAX_UNFINISHED = 4
"""States of which a part is kept to go on with: offers cost nothing, and each part may have a gigabyte."""

COMPLAIN_S = 30.0
"""How often the log repeats why nothing happens."""


def parse_trust(text: str) -> Trust:
    """Read HEIGHT:HASH, a block that the operator trusts.

    Raises:
        HomeError: it is not that.
    """
    height, colon, block = text.strip().partition(":")
    if not (colon and height.isascii() and height.isdigit() and len(height) < 17 and _is_digest(block)):
        raise HomeError(
            f"{text[:90]!r} is no block to trust: give HEIGHT:HASH, the height and all 64 digits of the block id "
            "(sync.state_sync; a node you trust shows both with `bflnode chain head` or `bflnode snapshot list`)"
        )
    return Trust(int(height), BlockId(bytes.fromhex(block)))


async def sync_state(home: Home, configuration: Configuration) -> None:
    """Give a home that has no chain the one that starts from a peer's snapshot; returns when it is there.

    A home whose chain has blocks already is left as it is. Waits as long as no peer has a snapshot to start from, so
    callers cancel.

    Raises:
        HomeError: the settings can't be used, or the chain that is there contradicts the trusted block.
        StorageError: the disk is at fault, or another process uses the home.
        TransportError: no connections can be made.
    """
    trust = parse_trust(configuration.sync.state_sync)
    genesis = home.require().load_genesis()
    with HomeLock(home.root):
        if has_chain(home, trust):
            return
        store = SnapshotStore(home.snapshots)
        found = await find_state(home, configuration, store, trust)
        await trio.to_thread.run_sync(adopt, home, genesis, found)
        await trio.to_thread.run_sync(_keep, store, found.snapshot)
        _log.info("the chain starts from the snapshot of height %d", found.snapshot.height)


@dataclass(frozen=True, slots=True)
class Verified:
    """A snapshot in which everything is right, with its state."""

    snapshot: Snapshot
    tree: StateTree


def has_chain(home: Home, trust: Trust) -> bool:
    """Whether a home has blocks already: then nothing is to be done.

    Raises:
        HomeError: the trusted block is not among them, though one of its height is.
        StorageError: the disk is at fault.
    """
    if not home.chain.exists():
        return False
    try:
        store = open_store(home)
    except CorruptStore:
        return True  # what becomes of it is decided where the node opens it
    with store:
        tip = store.tip().height
        if tip == 0:
            return False
        if max(1, store.base) <= trust.height <= tip and store.header(trust.height).id != trust.block_id:
            found = store.header(trust.height).id
            raise HomeError(
                f"this home's chain has block {found.hex()} at height {trust.height}, not the trusted "
                f"{trust.block_id.hex()}: check sync.state_sync; if it is right, this chain is not the network's"
            )
    _log.info("this home has a chain up to height %d: it is continued, no state is fetched", tip)
    return True


def adopt(home: Home, genesis: Genesis, found: Verified) -> None:
    """Make the chain store of a verified snapshot; it appears in the home complete, or not at all.

    Raises:
        StorageError: the disk is full or at fault.
    """
    joining, snapshot = home.joining_chain, found.snapshot
    try:
        shutil.rmtree(joining, ignore_errors=True)
        entries = found.tree.entries()
        ChainStore.create_from_snapshot(joining, genesis, snapshot.header, snapshot.commit, entries).close()
        # What is there has no blocks (see `has_chain`): a crash between these two steps loses nothing.
        shutil.rmtree(home.chain, ignore_errors=True)
        joining.replace(home.chain)
        descriptor = os.open(home.chain.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise from_os_error(home.chain, "starting the chain from a snapshot", error) from error


def _keep(store: SnapshotStore, snapshot: Snapshot) -> None:
    """Keep the snapshot that the chain starts from, and no others: it is verified from there."""
    store.put(snapshot)
    store.prune(1)


async def find_state(home: Home, configuration: Configuration, store: SnapshotStore, trust: Trust) -> Verified:
    """Fetch a snapshot from whoever has one, until everything in it is right; its file stays in the store.

    Raises:
        HomeError: the address of a peer is malformed.
        StorageError: the disk is at fault.
        TransportError: no connections can be made.
    """
    p2p = configuration.p2p
    genesis = home.load_genesis()
    search = _Search(store, genesis, trust)
    config = NetworkConfig(
        identity_seed=home.load_peer_seed(),
        listen=("/ip4/127.0.0.1/tcp/0",),
        topics=(),
        pushes=PUSHES,
        requests=REQUESTS,
        max_peers=p2p.max_peers,
        network_key=load_network_key(home, configuration),
        rates=RATES,
    )
    async with open_network(config, search, Bans(now_ms, home.bans_file)) as network, trio.open_nursery() as nursery:
        software = version("bflnode")[:MAX_VERSION_LENGTH]
        own = OwnSide(
            key=home.load_account_key(),
            genesis=genesis,
            version=software,
            height=lambda: 0,
            is_validator=lambda _account: False,
            has_account=lambda _account: False,
            max_peers=p2p.max_peers,
        )
        peers = make_peers(network, own, home, configuration)
        peers.advertised = ()  # these connections end with the search: nobody need dial them again
        search.connect(network, peers)
        for address in (*p2p.persistent_peers, *configuration.sync.state_sync_peers):
            try:
                peers.keep(address)
            except TransportError as error:
                raise HomeError(
                    f"peer address {address!r}: {error} (--peer, --state-sync-peer, "
                    "or the settings p2p.persistent_peers and sync.state_sync_peers)"
                ) from error
        nursery.start_soon(peers.run)
        found = await search.run()
        nursery.cancel_scope.cancel()
    return found


@dataclass(frozen=True, slots=True)
class Candidate:
    """One state of one block, and who offers it; their commits may differ.

    Attributes:
        offers: the snapshot of each peer; header, number of entries and file are the same in all.
    """

    offers: dict[PeerId, Snapshot]

    @property
    def snapshot(self) -> Snapshot:
        """One of them."""
        return next(iter(self.offers.values()))


class _Search:
    """Looks for a snapshot among the peers. Also what the network calls: this node has nothing to give yet."""

    def __init__(self, store: SnapshotStore, genesis: Genesis, trust: Trust) -> None:
        self._store = store
        self._genesis = genesis
        self._trust = trust
        self._network: Network
        self._peers: Peers
        self._is_ready = trio.Event()
        self._joined = trio.Event()
        self._ignored: set[PeerId] = set()
        self._unfinished: dict[BlobId, None] = {}
        self._fault = "no peer has one"
        self._complained_s = float("-inf")

    def connect(self, network: Network, peers: Peers) -> None:
        """Take the network that this was made for."""
        self._network, self._peers = network, peers
        self._is_ready.set()

    async def run(self) -> Verified:
        """Ask peers until one of their snapshots is right."""
        _log.info("no chain yet: looking for a snapshot of height %d or later", self._trust.height)
        await self._joined.wait()
        await trio.sleep(GATHER_S)
        while True:
            offers = await self._gather()
            for candidate in ranked(offers, self._peers.worth_of):
                found = await self._try(candidate)
                if found is not None:
                    return found
            self._complain()
            await trio.sleep(RETRY_S)

    def _complain(self) -> None:
        """Say now and then why nothing happens."""
        if trio.current_time() < self._complained_s + COMPLAIN_S:
            return
        self._complained_s = trio.current_time()
        _log.warning(
            "no snapshot to start from, with %d peers connected: %s. The trusted block is %s at height %d; "
            "the operator of a peer can make a snapshot with `bflnode snapshot create`",
            len(self._peers.ids()),
            self._fault,
            self._trust.block_id.hex(),
            self._trust.height,
        )

    async def _gather(self) -> list[tuple[PeerId, Snapshot]]:
        """What the peers offer, all asked at once."""
        offers: list[tuple[PeerId, Snapshot]] = []

        async def ask(peer: PeerId) -> None:
            with self._blaming(peer, "offers of snapshots"):
                offers.extend((peer, snapshot) for snapshot in await self._request_offers(peer))

        async with trio.open_nursery() as nursery:
            for peer in self._peers.ids():
                if peer not in self._ignored:
                    nursery.start_soon(ask, peer)
        return offers

    async def _request_offers(self, peer: PeerId) -> list[Snapshot]:
        request = SnapshotsRequest(self._trust.height).to_bytes()
        answer = await self._request(peer, SNAPSHOTS, request, MAX_OFFERS_BYTES)
        encoded = SnapshotOffers.from_bytes(answer, max_bytes=MAX_OFFERS_BYTES).snapshots
        snapshots = [Snapshot.from_bytes(data, max_bytes=MAX_SNAPSHOT_BYTES) for data in encoded]
        for snapshot in snapshots:
            if snapshot.header.chain_id != self._genesis.chain_id:
                raise Rejection(Reason.WRONG_CHAIN, chain=snapshot.header.chain_id, expected=self._genesis.chain_id)
        return [snapshot for snapshot in snapshots if snapshot.height >= self._trust.height]

    async def _request(self, peer: PeerId, protocol: str, data: bytes, max_bytes: int) -> bytes:
        return await self._network.request(
            peer, protocol, data, timeout_s=REQUEST_TIMEOUT_S, max_response_bytes=max_bytes
        )

    @contextmanager
    def _blaming(self, peer: PeerId, what: str) -> Iterator[None]:
        """A peer that doesn't answer is left alone; one that sends what is wrong is punished and not asked again."""
        try:
            yield
        except TransportError as error:
            self._fault = f"{what}: {error}"
            _log.info("%s", self._fault)
        except Rejection as rejection:
            self._fault = f"{what} of {peer}: {rejection}"
            _log.warning("%s", self._fault)
            if rejection.reason is Reason.EXPIRED:  # the operator's block is too old to follow validators from it
                return
            self._ignored.add(peer)
            self._network.punish(peer, self._fault)

    async def _try(self, candidate: Candidate) -> Verified | None:
        """Trust the header, fetch the file, check it; None if something of that fails."""
        snapshot = candidate.snapshot
        if not await self._is_trusted(candidate):
            return None
        holders = [peer for peer in candidate.offers if peer not in self._ignored]
        _log.info("fetching the state of height %d from %d peers", snapshot.height, len(holders))
        exchange = Exchange(self._network, self._store.blobs, lambda: holders)
        if not await exchange.attempt(snapshot.state, max_bytes=MAX_BLOB_BYTES):
            self._fault = f"the state of height {snapshot.height} did not come whole; what came is kept"
            await trio.to_thread.run_sync(self._keep_unfinished, snapshot.state)
            return None
        try:
            tree = await trio.to_thread.run_sync(self._read, snapshot)
        except Rejection as rejection:
            await trio.to_thread.run_sync(self._store.blobs.delete, snapshot.state)
            for peer in holders:
                with self._blaming(peer, f"the state of height {snapshot.height}"):
                    raise rejection from None
            return None
        return self._with_good_commit(candidate, tree)

    def _keep_unfinished(self, state: BlobId) -> None:
        """Keep what came of a state, and of the last ones before it."""
        self._unfinished.pop(state, None)
        self._unfinished[state] = None
        while len(self._unfinished) > MAX_UNFINISHED:
            oldest = next(iter(self._unfinished))
            self._store.blobs.delete(oldest)
            del self._unfinished[oldest]

    def _read(self, snapshot: Snapshot) -> StateTree:
        """The state in a file that is here; one that is too large for the memory is refused before it is there."""
        verify_file(snapshot, self._store.pieces(snapshot))
        return read_state(snapshot, self._store.pieces(snapshot))

    async def _is_trusted(self, candidate: Candidate) -> bool:
        """Whether the header is the trusted one, or follows from it by steps that one of its holders gives."""
        header = candidate.snapshot.header
        if header.height == self._trust.height:
            if header.id != self._trust.block_id:
                self._fault = f"peers have block {header.id.hex()} at that height: compare it with HEIGHT:HASH"
                self._ignored.update(candidate.offers)
            return header.id == self._trust.block_id
        for peer in candidate.offers:
            with self._blaming(peer, f"the steps to height {header.height}"):
                request = LightChainRequest(self._trust.height, header.height).to_bytes()
                answer = await self._request(peer, LIGHT_CHAINS, request, MAX_LIGHT_CHAIN_BYTES)
                chain = LightChain.from_bytes(answer, max_bytes=MAX_LIGHT_CHAIN_BYTES)
                clock = Clock(now_ms(), self._genesis.parameters.unbonding_ms)
                verified = await trio.to_thread.run_sync(verify_light_chain, chain, self._trust, clock)
                if verified.header.id != header.id:
                    raise Rejection(Reason.WRONG_HASH, steps_to=verified.header.id, offered=header.id)
                return True
        return False

    def _with_good_commit(self, candidate: Candidate, tree: StateTree) -> Verified | None:
        for peer, snapshot in candidate.offers.items():
            with self._blaming(peer, f"the commit of height {snapshot.height}"):
                verify_snapshot(self._genesis.chain_id, snapshot, tree)
                return Verified(snapshot, tree)
        return None

    # What the network calls

    def on_gossip(self, topic: str, sender: PeerId, data: bytes) -> bool:  # noqa: ARG002 - the interface
        """Nothing is of use before there is a state."""
        return False

    def on_push(self, protocol: str, sender: PeerId, data: bytes) -> None:
        """Nothing is of use before there is a state."""

    async def on_request(self, protocol: str, sender: PeerId, data: bytes) -> bytes:
        """Say hello; there is nothing else to give."""
        await self._is_ready.wait()
        if protocol == HELLO:
            return self._peers.answer(sender, data)
        if protocol == ABOUT:
            return self._peers.answer_about(sender, data)
        raise Rejection(Reason.UNSUPPORTED, fault="this node is fetching a state", protocol=protocol)

    async def on_connected(self, peer: PeerId) -> None:
        """Greet a new connection."""
        await self._is_ready.wait()
        if await self._peers.greet(peer):
            self._joined.set()

    async def on_disconnected(self, peer: PeerId) -> None:
        """A peer is gone."""
        await self._is_ready.wait()
        self._peers.forget(peer)


def ranked(offers: Iterable[tuple[PeerId, Snapshot]], worth_of: Callable[[PeerId], Worth]) -> list[Candidate]:
    """What is offered, best first: by peers that the operator named, lest strangers' offers without end be tried first.

    Then the latest block, and of several states of one block that with most holders.
    """
    candidates: dict[tuple[int, BlockId, BlobId, int], dict[PeerId, Snapshot]] = {}
    for peer, snapshot in sorted(offers, key=lambda offer: -worth_of(offer[0])):
        key = (snapshot.height, snapshot.header.id, snapshot.state, snapshot.entries)
        candidates.setdefault(key, {})[peer] = snapshot

    def rank(entry: tuple[tuple[int, BlockId, BlobId, int], dict[PeerId, Snapshot]]) -> tuple[int, int, int]:
        (height, *_), holders = entry
        return -max(map(worth_of, holders)), -height, -len(holders)

    return [Candidate(holders) for _, holders in sorted(candidates.items(), key=rank)]


def _is_digest(text: str) -> bool:
    return len(text) == 64 and not text.lower().strip("0123456789abcdef")
