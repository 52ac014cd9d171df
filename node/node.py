"""One running node: the parts and how they are connected. Nothing is decided here.

network --pushes--> agreement driver --blocks--> chain --changed--> participant (duties)
   |                     ^                                              |
   +--transactions--> mempool <----------- transactions ---------------+
   +--requests--> chain store, blob store
"""

import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

import trio

from bflnode.consensus.agreement import MAX_STATUS_BYTES, Status, Step
from bflnode.consensus.block import Block, Commit, ProposalMessage, Vote, verify_body
from bflnode.consensus.ledger import verify_commit
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.rejection import Premature, Reason, Rejection
from bflnode.consensus.staking import Standing, standing
from bflnode.consensus.tables import ACCOUNTS, current_validators, previous_validators
from bflnode.consensus.transaction import Evidence
from bflnode.consensus.types import ChainId
from bflnode.node.p2p.addresses import host_part
from bflnode.node.p2p.bans import Bans
from bflnode.node.p2p.local_discovery import announce_locally
from bflnode.node.p2p.messages import (
    ABOUT,
    BLOCKS,
    CHUNKS,
    HELLO,
    LIGHT_CHAINS,
    MANIFESTS,
    MAX_GOSSIP_BYTES,
    MAX_PUSH_BYTES,
    MAX_VERSION_LENGTH,
    PEERS,
    PENDING,
    PROPOSALS,
    PUSHES,
    RATES,
    REQUESTS,
    SNAPSHOTS,
    STATUS,
    TRANSACTIONS,
    VOTES,
    FinalBlock,
    blocks_topic,
    transactions_topic,
)
from bflnode.node.p2p.network import Network, NetworkConfig, PeerId, TransportError, open_network
from bflnode.node.p2p.network_key import load_network_key
from bflnode.node.p2p.peers import RESERVED_FOR_VALIDATORS, OwnSide, Peers, make_peers
from bflnode.node.rpc.inspection_validators import advice
from bflnode.node.sync.exchange import Exchange
from bflnode.node.sync.snapshots import Snapshots, serve_light_chain
from bflnode.node.sync.synchroniser import Synchroniser, serve_blocks
from bflnode.node.workers.trainer import Trainer, open_trainer
from bflnode.node.workers.worker_start import worker_starter
from bflnode.storage.blob_store import BlobStore, Quota
from bflnode.storage.home_lock import HomeLock
from bflnode.storage.signer_wal import SignerWal
from bflnode.storage.snapshot_store import SnapshotStore

from .accusations import Accusations
from .agreement_driver import AgreementDriver, FinalBlockReceived, MessageReceived, Outlets, StatusReceived
from .chain import Chain
from .configuration import Configuration, shard_path
from .controls import Controls
from .duty_work import Tools
from .home import Home, HomeError
from .journal import Journal
from .mempool import Mempool
from .node_clock import now_ms
from .participant import Participant
from .pruning import Pruner
from .recovery import begin_log, open_chain
from .transaction_relay import TransactionRelay

_log = logging.getLogger(__name__)

MAX_VOTE_BYTES = 512
"""A vote is about 150 bytes."""

SERVING_THREADS = 8
"""Threads that read the disk for peers: others are left for the signer's log and the chain, whoever asks for what."""

MAX_FINALS = 8
"""Final blocks that wait to be gossiped: later ones make them superfluous."""

CONTROL_NICENESS = 10
"""The control's training takes the CPU that duties leave over, but isn't starved by them."""

TELL_PAUSE_S = 1.0
"""How often a node that catches up says how far it is: each time costs as much as a block."""

PENDING_TIMEOUT_S = 15.0
"""How long a new peer may take to say which transactions wait at its place."""


class Node:
    """The parts of a running node, for whoever needs to look at them; made by `open_node`.

    Also what the network calls: messages go to the part that they concern. Only HELLO is answered to a connection
    that hasn't said hello.
    """

    def __init__(self, home: Home, configuration: Configuration, stack: AsyncExitStack) -> None:
        self.home = home
        self.configuration = configuration
        self.version = version("bflnode")[:MAX_VERSION_LENGTH]
        self.started_ms = now_ms()
        genesis = home.load_genesis()
        self.key = home.load_account_key()
        stack.enter_context(HomeLock(home.root))
        store = stack.enter_context(open_chain(home, self.key.account))
        self.chain = Chain(store)
        self.snapshots = Snapshots(SnapshotStore(home.snapshots), store, configuration.sync)
        self.blobs = BlobStore(home.blobs)
        self.journal = Journal(home.rounds)
        self.pruner = Pruner(store, self.blobs, self.journal, configuration.storage.keep_rounds)
        if configuration.storage.blob_quota > 0:
            self.blobs.quota = Quota(configuration.storage.blob_quota, self.pruner.make_room)
        self._wal = stack.enter_context(SignerWal(home.signer_wal, self.key, genesis.chain_id))
        votes_anyway = configuration.signing.new_log == "vote"
        begin_log(self._wal, self.chain, self.key.account, votes_anyway=votes_anyway)
        self.mempool = Mempool(
            lambda transaction: self.chain.check(transaction, now_ms()),
            lambda rejection: isinstance(rejection, Premature),
            trio.current_time,
        )
        self._told_s = float("-inf")
        self._is_ready = trio.Event()
        self._serving = trio.CapacityLimiter(SERVING_THREADS)
        self._last_gossiped = 0
        self._finals, self._finals_to_publish = trio.open_memory_channel[bytes](MAX_FINALS)
        self.network: Network
        self.peers: Peers
        self.agreement: AgreementDriver
        self.synchroniser: Synchroniser
        self.relay: TransactionRelay
        self.accusations: Accusations
        self._standing: Standing | None = None
        self.exchange: Exchange
        self.trainer: Trainer
        self.participant: Participant

    async def connect(self, stack: AsyncExitStack) -> None:
        """Open the network and build the parts that need it."""
        genesis = self.chain.genesis
        p2p = self.configuration.p2p
        config = NetworkConfig(
            identity_seed=self.home.load_peer_seed(),
            listen=(f"{host_part(p2p.host)}/tcp/{p2p.port}",),
            topics=(transactions_topic(genesis.chain_id), blocks_topic(genesis.chain_id)),
            pushes=PUSHES,
            requests=REQUESTS,
            max_peers=p2p.max_peers,
            reserved_peers=RESERVED_FOR_VALIDATORS,
            max_connections_per_address=p2p.max_connections_per_address,
            network_key=load_network_key(self.home, self.configuration),
            rates=RATES,
        )
        self.network = await stack.enter_async_context(open_network(config, self, Bans(now_ms, self.home.bans_file)))
        self.trainer = await stack.enter_async_context(
            open_trainer(self.home.run, worker_starter(self.configuration.training.threads))
        )
        own = OwnSide(
            key=self.key,
            genesis=genesis,
            version=self.version,
            height=lambda: self.chain.height,
            is_validator=lambda account: account in current_validators(self.chain.tree),
            has_account=lambda account: ACCOUNTS.get(self.chain.tree, account) is not None,
            max_peers=p2p.max_peers,
        )
        self.peers = make_peers(self.network, own, self.home, self.configuration)
        if p2p.external_host:
            port_and_identity = self.network.addresses[0].split("/tcp/")[1]
            self.peers.advertised = (f"{host_part(p2p.external_host)}/tcp/{port_and_identity}",)
        outlets = Outlets(
            push=self.network.push,
            peers=self.peers.ids,
            punish=self.network.punish,
            is_banned=self.network.is_banned,
            decided=self._decided,
            accuse=self._accuse,
            now_ms=now_ms,
        )
        self.agreement = AgreementDriver(self.chain, self.key.account, self._wal, self.mempool, outlets)
        self.synchroniser = Synchroniser(self.chain, self.network, self.peers, self.agreement)
        self.relay = TransactionRelay(genesis.chain_id, self.network, self.peers, self.mempool, self.agreement)
        self.accusations = Accusations(self.home.evidence, self.chain, self.key, self.relay.submit)
        self.exchange = Exchange(self.network, self.blobs, self.peers.most_wanted_first, [self.snapshots.store.blobs])
        self.participant = self._make_participant(await self._open_controls(stack))
        self._is_ready.set()
        for address in p2p.persistent_peers:
            self._keep(address)

    async def _open_controls(self, stack: AsyncExitStack) -> Trainer | None:
        """The trainer of the control model, if one is wanted."""
        training = self.configuration.training
        if not (training.enabled and training.control):
            return None
        starter = worker_starter(training.threads, CONTROL_NICENESS)
        return await stack.enter_async_context(open_trainer(self.home.run / "control", starter))

    def _make_participant(self, control_trainer: Trainer | None) -> Participant:
        training = self.configuration.training
        tools = Tools(
            chain_id=self.chain.genesis.chain_id,
            key=self.key,
            blobs=self.blobs,
            exchange=self.exchange,
            peers=self.peers,
            trainer=self.trainer,
            journal=self.journal,
            shard=shard_path(self.home, self.configuration),
            scratch=self.home.scratch,
            device=training.device,
        )
        test_set = self.home.test_set if self.home.test_set.exists() else None
        return Participant(
            self.chain,
            self.relay,
            tools,
            credential=self.home.load_credential(),
            is_client=training.enabled,
            controls=Controls(tools, control_trainer, test_set) if control_trainer is not None else None,
        )

    async def run(self) -> None:
        """Keep everything going until cancelled."""
        self._review()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.agreement.run)
            nursery.start_soon(self.synchroniser.run)
            nursery.start_soon(self.relay.run)
            nursery.start_soon(self.participant.run)
            nursery.start_soon(self.peers.run)
            nursery.start_soon(self.snapshots.run)
            nursery.start_soon(self._publish_blocks)
            if self.configuration.p2p.mdns:
                nursery.start_soon(
                    announce_locally, self.network, self.chain.genesis.chain_id, self.peers.discovery.suggest
                )
            nursery.start_soon(self.pruner.run, self.chain)

    def _keep(self, address: str) -> None:
        try:
            self.peers.keep(address)
        except TransportError as error:
            raise HomeError(f"peer address {address!r}: {error} (--peer or p2p.persistent_peers)") from error

    def _decided(self, block: Block, commit: Commit) -> None:
        """A block is final here; its proposer gossips it where not every validator is connected to it."""
        _log.info("block %d %s: %d transactions", block.height, block.id.hex()[:12], len(block.transactions))
        self.snapshots.note(block.height)
        accounts = {peer.account for peer in self.peers.all()} | {self.key.account}
        validators = current_validators(self.chain.tree)
        if block.header.proposer == self.key.account and any(
            account not in accounts for account in validators.accounts
        ):
            data = FinalBlock(block, commit).to_bytes()
            if len(data) <= MAX_GOSSIP_BYTES:
                with contextlib.suppress(trio.WouldBlock):  # gossip is best effort: peers also ask
                    self._finals.send_nowait(data)
        if self.key.account not in validators:
            self._tell_peers()
        self._review()

    def _accuse(self, evidence: Evidence) -> None:
        self.accusations.accuse(evidence)

    def _review(self) -> None:
        """At the start and after a block: say if the own standing has changed, and send what evidence still waits."""
        found = standing(self.chain.tree, self.key.account)
        if found is not self._standing:
            was, self._standing = self._standing, found
            text = advice(self.chain.genesis, self.chain.tree, self.key.account)
            if text:
                _log.warning("%s", text)
            elif was is not None:
                _log.info("this node is %s now", "a validator" if found is Standing.ACTIVE else "no validator any more")
        self.accusations.review()

    def _tell_peers(self) -> None:
        """Say that a block is final: a peer may be connected to no validator, and gets no votes.

        While this node is behind, now and then: nobody waits for blocks that others had long before.
        """
        now_s = trio.current_time()
        if self.synchroniser.knows_of_more and now_s < self._told_s + TELL_PAUSE_S:
            return
        self._told_s = now_s
        status = Status(self.chain.height + 1, 0, Step.PROPOSE, ()).to_bytes()
        for peer in self.peers.ids():
            self.network.push(peer, STATUS, status)

    # What the network calls

    def on_gossip(self, topic: str, sender: PeerId, data: bytes) -> bool:
        """Take gossip: waiting transactions, or a final block. Only what this node has checked is passed on."""
        if not self._is_ready.is_set():
            return False
        if topic == transactions_topic(self.chain.genesis.chain_id):
            # One that is behind takes for good what others have seen to be worthless, and would answer for it.
            return self.relay.receive(data, sender) and not self.agreement.is_outdated
        final = FinalBlock.from_bytes(data, max_bytes=MAX_PUSH_BYTES)
        is_next = final.block.height == self.chain.height + 1
        if not (is_next or final.block.id == self.chain.tip_commit.block_id):
            return False  # old, or ahead of what this node can check: peers ask for what they lack
        if final.block.height <= self._last_gossiped:
            return False
        voters = current_validators(self.chain.tree) if is_next else previous_validators(self.chain.tree)
        check_commit(self.chain.genesis.chain_id, voters, final)
        self._last_gossiped = final.block.height
        # Votes may have been quicker: what this node has by now, its peers may still lack.
        return self.agreement.deliver(FinalBlockReceived(final, trio.Event())) if is_next else True

    def on_push(self, protocol: str, sender: PeerId, data: bytes) -> None:
        """Take a pushed message of a greeted peer."""
        if not self._is_ready.is_set() or self.peers.get(sender) is None:
            return
        if protocol == TRANSACTIONS:
            self.relay.receive(data, sender)
        elif protocol == VOTES:
            vote = Vote.from_bytes(data, max_bytes=MAX_VOTE_BYTES)
            self.peers.note_height(sender, vote.height - 1)  # whoever has a vote of a height is there itself
            self.agreement.deliver(MessageReceived(vote, sender))
        elif protocol == PROPOSALS:
            proposal = ProposalMessage.from_bytes(data, max_bytes=MAX_PUSH_BYTES)
            self.agreement.deliver(MessageReceived(proposal, sender))
        elif protocol == STATUS:
            status = Status.from_bytes(data, max_bytes=MAX_STATUS_BYTES)
            self.synchroniser.notice(sender, status.height - 1)
            self.agreement.deliver(StatusReceived(status, sender))

    async def on_request(self, protocol: str, sender: PeerId, data: bytes) -> bytes:
        """Answer a peer."""
        await self._is_ready.wait()
        if protocol == HELLO:
            return self.peers.answer(sender, data)
        if protocol == ABOUT:
            return self.peers.answer_about(sender, data)
        if self.peers.get(sender) is None:
            raise Rejection(Reason.NOT_GREETED, protocol=protocol)
        if protocol == BLOCKS:
            return await trio.to_thread.run_sync(serve_blocks, self.chain.store, data, limiter=self._serving)
        if protocol == SNAPSHOTS:
            return await trio.to_thread.run_sync(self.snapshots.serve, data, limiter=self._serving)
        if protocol == LIGHT_CHAINS:
            return await trio.to_thread.run_sync(serve_light_chain, self.chain.store, data, limiter=self._serving)
        if protocol == PEERS:
            return self.peers.answer_peers()
        if protocol == PENDING:
            return self.relay.pending()
        if protocol == MANIFESTS:
            return await trio.to_thread.run_sync(self.exchange.serve_manifest, data, limiter=self._serving)
        if protocol == CHUNKS:
            return await trio.to_thread.run_sync(self.exchange.serve_chunk, data, limiter=self._serving)
        raise Rejection(Reason.UNSUPPORTED, protocol=protocol)

    async def on_connected(self, peer: PeerId) -> None:
        """Greet a new connection, and learn what waits at its place."""
        await self._is_ready.wait()
        if not await self.peers.greet(peer):
            return
        known = self.peers.get(peer)
        if known is not None:
            self.synchroniser.notice(peer, known.height)
        try:
            pending = await self.network.request(
                peer, PENDING, b"", timeout_s=PENDING_TIMEOUT_S, max_response_bytes=MAX_GOSSIP_BYTES
            )
            self.relay.receive(pending, peer)
        except TransportError as error:
            _log.info("no pending transactions from %s: %s", peer, error)
        except Rejection as rejection:
            self.network.punish(peer, f"pending transactions: {rejection}")
        self.network.push(peer, STATUS, self.agreement.machine.status().to_bytes())

    async def on_disconnected(self, peer: PeerId) -> None:
        """A peer is gone."""
        await self._is_ready.wait()
        self.peers.forget(peer)

    async def _publish_blocks(self) -> None:
        async for data in self._finals_to_publish:
            await self.network.publish(blocks_topic(self.chain.genesis.chain_id), data)


def check_commit(chain_id: ChainId, voters: ValidatorSet, final: FinalBlock) -> None:
    """Check that more than two thirds of the stake of its height have signed a gossiped block.

    Raises:
        Rejection: they haven't, or have signed the header of another body.
    """
    block, commit = final.block, final.commit
    verify_body(block)
    if (commit.height, commit.block_id) != (block.height, block.id):
        raise Rejection(Reason.WRONG_COMMIT, commit=commit.block_id, block=block.id)
    verify_commit(chain_id, voters, commit)


@asynccontextmanager
async def open_node(home: Home, configuration: Configuration) -> AsyncIterator[Node]:
    """A node with its network open; `run` makes it go. Everything is closed with the context.

    Raises:
        HomeError: the home can't be used.
        StorageError: the disk is at fault, or another process uses the home.
        TransportError: it can't listen.
    """
    async with AsyncExitStack() as stack:
        try:
            node = Node(home.require(), configuration, stack)
            await node.connect(stack)
        except OSError as error:
            raise HomeError(
                f"can't use the home {home.root}: {error}: give its owner the right to write there"
            ) from error
        yield node
