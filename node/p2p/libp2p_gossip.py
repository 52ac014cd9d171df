"""What this project does to GossipSub of py-libp2p 0.8.1; other repairs: `libp2p_repairs`, `libp2p_connections`.

Gossip stays best effort: whatever must arrive has to be pullable as well.

    [3]  two tasks write one gossip stream, frames interleave               -> `RepairedPubsub.write_msg` (a lock)
    [8]  queues of 32 messages drop silently                                -> `_RoomyQueues`, direct delivery
    [9]  the spam limit drops our own publishes  [12] adaptive mode
         stretches the heartbeat to 30-60 s                                 -> `RepairedGossipSub`
    [10] validation results are cached, slow ones as failures               -> `RepairedPubsub.validate_msg`
    [11] custom message ids never match IHAVE                               -> default ids; callers know content
    [16] a validator's False is remembered as an attack                     -> `ValidationError` only for `Rejection`
    [22] sequence numbers start at the second of start-up: a busy node that
         restarts reuses them, and its messages are dropped as seen         -> `RepairedPubsub.__init__`
    [23] every message carries, and every receiver verifies twice, a signed
         record of the sender's addresses                                   -> `RepairedPubsub.write_msg`
    [27] a gossip stream that breaks on our side alone makes us forget what
         the peer subscribed to; it never says so again                     -> `RepairedPubsub._handle_dead_peer`
    [28] the last 1000 messages are kept to compare repeated numbers        -> `RepairedGossipSub._check_equivocation`
    [33] a task for each message, limits for each topic that a peer makes
         up, no bound on lists: a flood of gossip takes CPU and memory      -> `RepairedPubsub.continuously_read_stream`
    [35] a message is sent as often as it is asked for, in the same request
         too: 10 requests of 24 kB cost 90 MB                               -> `RepairedGossipSub.handle_iwant`,
                                                                               `_BoundedQueue`
"""

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import MessageTooLarge
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.mcache import MessageCache
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import PriorityQueue, RpcQueue
from libp2p.pubsub.utils import safe_bytes_from_hex
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited

from .libp2p_connections import LIBRARY_FAILURES, reset_stream, write_fully
from .libp2p_repairs import GuardedHost

logger = logging.getLogger(__name__)

MAX_GOSSIP_RPC_BYTES = 64_000
"""One RPC stays below one yamux frame (64 KiB), so that it can't interleave and is cheap to buffer."""

MAX_INBOUND_RPC_BYTES = 256 * 1024
"""Other implementations batch several messages in one RPC."""

MAX_RPC_ENTRIES = 512
"""Messages, subscriptions and ids of messages in one RPC: the library's own send at most some dozens."""

MAX_QUEUED_RPCS = 512
"""Gossip RPCs waiting for one peer (the library: 32)."""

MAX_QUEUED_RPC_BYTES = 2 * 1024 * 1024
"""And their bytes: some thirty of the largest messages. A peer that doesn't read has to pull what it misses."""

MAX_RETRANSMISSIONS = 3
"""Times that a message is sent to one peer because it asks for it, as long as the message is kept (five heartbeats);
the number that GossipSub's specification proposes."""


class _BoundedQueue(PriorityQueue):
    """RPCs that wait for one peer, bounded in count and bytes [8, 35]."""

    def __init__(self) -> None:
        super().__init__(MAX_QUEUED_RPCS)
        self.size_bytes = 0

    def push(self, rpc: rpc_pb2.RPC, priority: bool = False) -> bool:
        size_bytes = rpc.ByteSize()
        if self.size_bytes + size_bytes > MAX_QUEUED_RPC_BYTES or not super().push(rpc, priority):
            return False
        self.size_bytes += size_bytes
        return True

    def pop(self) -> rpc_pb2.RPC | None:
        rpc = super().pop()
        if rpc is not None:
            self.size_bytes -= rpc.ByteSize()
        return rpc


class _RoomyQueues(dict[ID, RpcQueue]):
    """Replaces the outbound queue of each peer as the library registers it, and caps its RPCs to one frame [8]."""

    def __setitem__(self, peer: ID, queue: RpcQueue) -> None:
        queue._queue = _BoundedQueue()
        queue.max_message_size = MAX_GOSSIP_RPC_BYTES
        super().__setitem__(peer, queue)


class _CountingCache(MessageCache):
    """The last messages, and how often each peer was sent one because it asked [35]."""

    def __init__(self, window_size: int, history_size: int) -> None:
        super().__init__(window_size, history_size)
        self._sent: dict[bytes, Counter[ID]] = {}

    def take_for(self, peer: ID, message_id: bytes) -> rpc_pb2.Message | None:
        """A message that a peer asks for, unless it has been sent it too often already."""
        message = self.msgs.get(message_id)
        if message is None:
            return None
        sent = self._sent.setdefault(message_id, Counter())
        if sent[peer] >= MAX_RETRANSMISSIONS:
            return None
        sent[peer] += 1
        return message

    def shift(self) -> None:
        super().shift()
        self._sent = {message_id: sent for message_id, sent in self._sent.items() if message_id in self.msgs}


class RepairedGossipSub(GossipSub):
    """GossipSub that tells when its mesh grows, keeps no second copy of messages, and repeats itself within bounds."""

    def __init__(self) -> None:
        # Adaptive mode stretches the heartbeat to 30-60 s [12]; the spam limit drops our own publishes [9]; version
        # 1.1 because 1.2 loses more in a burst [8]; we score peers ourselves.
        super().__init__(
            protocols=[PROTOCOL_ID_V11],
            degree=6,
            degree_low=4,
            degree_high=10,
            heartbeat_interval=1,
            prune_back_off=10,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
        )
        self._messages = _CountingCache(self.mcache.window_size, self.mcache.history_size)
        self.mcache = self._messages
        self.mesh_grew = trio.Event()

    async def handle_iwant(self, iwant_msg: rpc_pb2.ControlIWant, sender_peer_id: ID) -> None:
        """Send what a peer asks for, once for each request, and no more than there is room for [35]."""
        for wire_id in dict.fromkeys(iwant_msg.messageIDs):
            message_id = safe_bytes_from_hex(wire_id)
            message = None if message_id is None else self._messages.take_for(sender_peer_id, message_id)
            if message is not None:
                self.send_rpc(sender_peer_id, rpc_pb2.RPC(publish=[message]))

    def _notify_mesh_peer_added(self, peer_id: ID, topic: str) -> None:
        super()._notify_mesh_peer_added(peer_id, topic)
        self.mesh_grew.set()
        self.mesh_grew = trio.Event()

    def _check_equivocation(self, *_args: object, **_options: object) -> bool:
        return True


class RepairedPubsub(Pubsub):
    """Pubsub that hands each new message to a function instead of a queue of 32 [8].

    Args:
        deliver: called once for each message not seen before, with (forwarder, message); raises `ValidationError` to
            stop the message from being forwarded.
        admit: waits until a peer's RPC of so many bytes may be taken.
    """

    def __init__(
        self,
        host: GuardedHost,
        router: RepairedGossipSub,
        topics: Sequence[str],
        deliver: Callable[[ID, rpc_pb2.Message], None],
        admit: Callable[[ID, int], Awaitable[None]],
    ) -> None:
        super().__init__(
            host,
            router,
            max_subscriptions_per_rpc=4 * len(topics) + 16,
            max_subscriptions_per_peer=len(topics) + 1,
            max_inbound_rpc_size=MAX_INBOUND_RPC_BYTES,
            allowed_topics=frozenset(topics),
        )
        self.peer_queues = _RoomyQueues()
        self.counter = time.time_ns()
        self._deliver = deliver
        self._admit = admit
        self._complain = host.complain
        self._write_locks: dict[INetStream, trio.Lock] = {}

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """Take one RPC after the other, at the pace that the peer is allowed [33]."""
        peer = stream.muxed_conn.peer_id
        try:
            while True:
                data = await read_varint_prefixed_bytes_limited(stream, self.max_inbound_rpc_size)
                await self._admit(peer, len(data))
                rpc = rpc_pb2.RPC()
                rpc.ParseFromString(data)
                await self._take(peer, rpc)
        except MessageTooLarge:
            self._complain(peer, "a gossip RPC that is too large")
            await reset_stream(stream)
        except LIBRARY_FAILURES as failure:
            logger.debug("gossip of %s ended: %r", peer, failure)

    async def _take(self, peer: ID, rpc: rpc_pb2.RPC) -> None:
        rpc.ClearField("senderRecord")
        control: Any = rpc.control  # mypy joins the kinds of its entries into one that has no fields
        lists = (rpc.publish, rpc.subscriptions, control.ihave, control.iwant, control.graft, control.prune)
        ids = (entry.messageIDs for entry in (*control.ihave, *control.iwant))
        if sum(map(len, (*lists, *ids))) > MAX_RPC_ENTRIES:
            self._complain(peer, "a gossip RPC with too many entries")
            return
        for message in rpc.publish:
            if self._is_subscribed_to_msg(message):
                await self.push_msg(peer, message)
        for subscription in rpc.subscriptions:
            self.handle_subscription(peer, subscription)
        topics = {entry.topicID for entry in (*control.ihave, *control.graft, *control.prune)}
        if topics - set(self.allowed_topics or ()):
            self._complain(peer, "gossip control of a topic that doesn't exist")
        elif rpc.HasField("control"):
            await self.router.handle_rpc(rpc, peer)

    async def validate_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Deliver a message that was not seen before; our own are only sent."""
        if msg_forwarder != self.my_id:
            self._deliver(msg_forwarder, msg)

    def notify_subscriptions(self, *_args: object, **_options: object) -> None:
        """Messages were delivered when they were validated."""
        return

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Take a message from a peer or from us; one that breaks the library counts against the peer."""
        try:
            await super().push_msg(msg_forwarder, msg)
        except (BaseLibp2pError, ValueError, TypeError, LookupError) as error:
            self._complain(msg_forwarder, f"malformed gossip: {type(error).__name__}")

    async def write_msg(self, stream: INetStream, rpc_msg: rpc_pb2.RPC) -> bool:
        """Write one RPC, alone on its stream [3], without the address record [23]."""
        rpc_msg.ClearField("senderRecord")
        lock = self._write_locks.setdefault(stream, trio.Lock())
        try:
            async with lock:
                await write_fully(stream, encode_varint_prefixed(rpc_msg.SerializeToString()))
            return True
        except LIBRARY_FAILURES as failure:
            logger.debug("gossip to %s failed: %r", stream.muxed_conn.peer_id, failure)
            await reset_stream(stream)
            self._handle_dead_peer(stream.muxed_conn.peer_id)
            return False
        finally:
            if not lock.locked():
                self._write_locks.pop(stream, None)

    def _handle_dead_peer(self, peer_id: ID) -> None:
        """Forget a peer whose stream broke, but not its subscriptions where it is still connected [27]."""
        topics = [topic for topic, peers in self.peer_topics.items() if peer_id in peers]
        super()._handle_dead_peer(peer_id)
        if self._peer_is_connected(peer_id):
            for topic in topics:
                self.handle_subscription(peer_id, rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic))
