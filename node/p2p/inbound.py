"""What peers send us: gossip, pushes and requests, handed to the node's handlers behind a guard.

A handler's `Rejection` is the peer's fault and is charged to it; any other exception is a bug of ours, logged, and ends
nothing but itself. Outbound traffic is in `streams`, connections are in `network`.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import trio
from libp2p.abc import INetStream
from libp2p.exceptions import ValidationError
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from bflnode.consensus.rejection import Reason, Rejection

from .rate_limits import RateLimits
from .streams import (
    GOSSIP,
    MAX_ANSWER_BYTES,
    MAX_PUSH_BYTES,
    MAX_REASON_BYTES,
    MAX_REQUEST_BYTES,
    FrameStream,
    PeerId,
    Status,
    Traffic,
    TransportError,
)

logger = logging.getLogger(__name__)

MAX_GOSSIP_BYTES = 60_000
"""A gossip message stays below one yamux frame; models and blocks never go by gossip."""

ANSWER_TIMEOUT_S = 30.0
"""A request handler that takes longer is cancelled: its peer has given up by then."""

REFUSAL_COST = 1.0
BYTES_COST = 16 * 1024
"""A refused message costs 1, and 1 more for each 16 KiB: large garbage is more work."""

VIOLATION_COST = 30.0
"""Malformed frames and negotiations, false signatures: an honest node never sends them. Four in a row ban."""


class MessageHandlers(Protocol):
    """What the node does with messages."""

    def on_gossip(self, topic: str, sender: PeerId, data: bytes) -> bool:
        """A gossip message not seen before. `sender` forwarded it and need not have made it.

        Synchronous and cheap: put it in a queue. Raising `Rejection` counts against the sender.

        Returns:
            Whether it is to be forwarded: only what has been checked, or whoever forwards it answers for it.
        """

    def on_push(self, protocol: str, sender: PeerId, data: bytes) -> None:
        """A pushed message, in the order of sending. Synchronous and cheap; a `Rejection` counts against the sender."""

    async def on_request(self, protocol: str, sender: PeerId, data: bytes) -> bytes:
        """Answer a request; raising `Rejection` refuses it (not counted against the sender)."""


Charge = Callable[[PeerId, str, float, Reason], None]
"""Counts a misdeed: (peer, what it was, cost, reason)."""


class Inbound:
    """Serves the streams that peers open and the gossip they forward."""

    def __init__(self, handlers: MessageHandlers, traffic: Traffic, charge: Charge, limits: RateLimits) -> None:
        self._handlers = handlers
        self._limits = limits
        self._traffic = traffic
        self._charge = charge

    async def serve_pushes(self, stream: INetStream) -> None:
        """Take frames until the peer closes its stream."""
        sender, protocol, frames = self._inbound(stream)
        try:
            while (size := await frames.announced(MAX_PUSH_BYTES)) is not None:
                is_admitted = await self._admit(sender, protocol, size)
                data = await frames.body(size)
                self._traffic.received(protocol, size)
                if is_admitted:
                    self._deliver(self._handlers.on_push, protocol, sender, data)
        except Rejection as rejection:
            self._charge(sender, str(rejection), VIOLATION_COST, rejection.reason)
        except TransportError as error:
            logger.debug("pushes of %s on %s: %s", sender, protocol, error)
        finally:
            await frames.abort()

    async def serve_requests(self, stream: INetStream) -> None:
        """Answer one request after the other until the peer closes its stream."""
        sender, protocol, frames = self._inbound(stream)
        try:
            while (size := await frames.announced(MAX_REQUEST_BYTES)) is not None:
                is_admitted = await self._admit(sender, protocol, size)
                data = await frames.body(size)
                self._traffic.received(protocol, size)
                if not is_admitted:
                    continue
                answer = await self._answer(protocol, sender, data)
                await frames.send(answer)
                self._traffic.sent(protocol, len(answer))
        except Rejection as rejection:
            self._charge(sender, str(rejection), VIOLATION_COST, rejection.reason)
        except TransportError as error:
            logger.debug("requests of %s on %s: %s", sender, protocol, error)
        finally:
            await frames.abort()

    async def _admit(self, sender: PeerId, protocol: str, size_bytes: int) -> bool:
        """Wait until the peer may send this; False where it is to be dropped.

        While it waits nothing is read, neither this frame nor the next: the stream's window is what slows the peer
        down, and what bounds the memory that it takes here.
        """
        delay_s = self._limits.delay_s(sender, protocol, size_bytes)
        if delay_s is None:
            self._traffic.throttled[protocol] += 1
            await trio.sleep(self._limits.pause_s(sender, protocol, size_bytes))
            return False
        if delay_s > 0:
            self._traffic.throttled[protocol] += 1
            await trio.sleep(delay_s)
        return True

    async def admit_gossip(self, sender: ID, size_bytes: int) -> None:
        """Wait until a peer's RPC of gossip may be taken."""
        await self._admit(PeerId(sender.to_base58()), GOSSIP, size_bytes)

    def _inbound(self, stream: INetStream) -> tuple[PeerId, str, FrameStream]:
        return PeerId(stream.muxed_conn.peer_id.to_base58()), str(stream.get_protocol()), FrameStream(stream)

    async def _answer(self, protocol: str, sender: PeerId, data: bytes) -> bytes:
        try:
            with trio.fail_after(ANSWER_TIMEOUT_S):
                body = await self._handlers.on_request(protocol, sender, data)
            if len(body) <= MAX_ANSWER_BYTES:
                return bytes([Status.OK]) + body
            logger.error("answer to %s has %d bytes, more than %d", protocol, len(body), MAX_ANSWER_BYTES)
        except Rejection as rejection:
            self._traffic.refused[rejection.reason.value] += 1
            return bytes([Status.REFUSED]) + str(rejection).encode()[:MAX_REASON_BYTES]
        except trio.TooSlowError:
            return bytes([Status.FAILED]) + b"no answer in time"
        except Exception:  # the daemon's edge: bytes of a peer met a bug of ours
            logger.exception("request handler failed on %s of %s", protocol, sender)
        return bytes([Status.FAILED]) + b"internal error"

    def deliver_gossip(self, forwarder: ID, message: rpc_pb2.Message) -> None:
        """Take a gossip message; raises `ValidationError` where it must not be forwarded."""
        sender = PeerId(forwarder.to_base58())
        if len(message.topicIDs) != 1 or len(message.data) > MAX_GOSSIP_BYTES:
            self._charge(sender, "gossip message breaks the limits", VIOLATION_COST, Reason.TOO_LARGE)
            raise ValidationError("limits")
        topic = message.topicIDs[0]
        self._traffic.received(topic, len(message.data))
        if self._deliver(self._handlers.on_gossip, topic, sender, message.data) is not True:
            raise ValidationError("not to be forwarded")

    def _deliver(
        self, handler: Callable[[str, PeerId, bytes], bool | None], channel: str, sender: PeerId, data: bytes
    ) -> bool | None:
        """What the handler says; None where it failed."""
        try:
            return handler(channel, sender, data)
        except Rejection as rejection:
            is_forged = rejection.reason is Reason.BAD_SIGNATURE
            cost = VIOLATION_COST if is_forged else REFUSAL_COST + len(data) / BYTES_COST
            self._charge(sender, f"{channel}: {rejection}", cost, rejection.reason)
        except Exception:  # the daemon's edge, likewise
            logger.exception("handler failed on %s of %s", channel, sender)
        return None
