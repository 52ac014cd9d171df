"""What flows between two connected nodes: frames, one-way pushes, requests and answers.

A frame is a 4-byte big-endian length and that many bytes. A push stream carries frames one way and stays open; a
request stream carries request, answer, request, answer, and is kept for the next request. An answer begins with a
status byte.

    push:      [length][payload] [length][payload] ...
    request:   [length][payload]        -->
               [length][status][body]   <--

Connections, scores and redialling are in `network`; the library's faults in `libp2p_connections`.
"""

import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NewType

import trio
from libp2p.abc import INetStream
from libp2p.network.stream.exceptions import StreamEOF

from bflnode.consensus.rejection import Reason, Rejection
from bflnode.storage.failpoints import Operation, after, before

from .libp2p_connections import LIBRARY_FAILURES, read_exactly, reset_stream, write_fully

logger = logging.getLogger(__name__)

PeerId = NewType("PeerId", str)
"""Base58 text of a libp2p peer id: the hash of a node's key, not of its account."""

GOSSIP = "gossip"
"""Name of all gossip of a peer together, for limits and counters."""

LENGTH_BYTES = 4

MAX_PUSH_BYTES = 3 * 512 * 1024
"""A block of 1 MiB with its votes fits; nothing larger is pushed."""

MAX_REQUEST_BYTES = 64 * 1024
"""A request names what it wants; a transaction of 64 KiB goes as a push."""

MAX_ANSWER_BYTES = 2 * 1024 * 1024
"""A block and its commit, or a 256 KiB chunk with its path."""

MAX_REASON_BYTES = 512
"""A refusal is one sentence."""

FRAME_TIMEOUT_S = 30.0
"""Once a frame has begun, the rest must come in this time: half-open streams must not be kept for ever."""

MAX_QUEUED_PUSHES = 1024
MAX_QUEUED_PUSH_BYTES = 4 * 1024 * 1024
"""Pushes waiting for one peer and protocol. Beyond, the peer is too slow and has to pull what it misses."""

PUSH_BATCH_BYTES = 64_000
"""Small pushes are joined up to one yamux frame: a vote alone costs as much as twenty together."""

PUSH_RETRY_S = 0.5
"""Pause after a push stream couldn't be opened; the peer may be closing, or not speak the protocol."""

MAX_CONCURRENT_REQUESTS = 4
"""Streams per peer and request protocol, so also chunks in flight from one peer."""


class TransportError(Exception):
    """The network failed us: no connection, no answer in time, a stream that broke. The text names the cause."""


class UnsupportedProtocolError(TransportError):
    """The peer doesn't speak a protocol: another version of the software, or other software."""


class RemoteRefusal(TransportError):
    """The peer understood a request and refused it.

    Attributes:
        reason: the peer's words, at most 512 bytes.
    """

    def __init__(self, peer: PeerId, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{peer} refused: {reason}")


class Status(IntEnum):
    """First byte of an answer."""

    OK = 0
    REFUSED = 1
    FAILED = 2


@dataclass(slots=True)
class Traffic:
    """Counters of a network since it was opened."""

    messages_in: Counter[str] = field(default_factory=Counter)
    messages_out: Counter[str] = field(default_factory=Counter)
    bytes_in: Counter[str] = field(default_factory=Counter)
    bytes_out: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    throttled: Counter[str] = field(default_factory=Counter)

    def received(self, protocol: str, size_bytes: int) -> None:
        """Count an inbound message of a protocol or topic."""
        self.messages_in[protocol] += 1
        self.bytes_in[protocol] += size_bytes

    def sent(self, protocol: str, size_bytes: int) -> None:
        """Count an outbound message of a protocol or topic."""
        self.messages_out[protocol] += 1
        self.bytes_out[protocol] += size_bytes


class FrameStream:
    """A stream that carries frames. One task reads and one writes at a time."""

    __slots__ = ("_stream",)

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream

    async def send(self, *frames: bytes) -> None:
        """Send frames in one write.

        Raises:
            TransportError: the stream broke.
        """
        try:
            await write_fully(self._stream, b"".join(framed(frame) for frame in frames))
        except LIBRARY_FAILURES as failure:
            raise TransportError(f"the stream broke while sending: {_cause(failure)}") from failure

    async def receive(self, limit_bytes: int) -> bytes | None:
        """Receive one frame; None where the sender closed the stream between frames.

        Raises:
            Rejection: TOO_LARGE, the frame announces more than the limit; none of it has been read.
            TransportError: the stream broke or stalled inside a frame.
        """
        size = await self.announced(limit_bytes)
        return None if size is None else await self.body(size)

    async def announced(self, limit_bytes: int) -> int | None:
        """Receive the size of a frame, whose `body` is to be received next; None where the sender closed the stream.

        Raises:
            Rejection: TOO_LARGE.
            TransportError: the stream broke.
        """
        try:
            header = await read_exactly(self._stream, LENGTH_BYTES)
        except StreamEOF:
            return None
        except LIBRARY_FAILURES as failure:
            raise TransportError(f"the stream broke while receiving: {_cause(failure)}") from failure
        size = int.from_bytes(header, "big")
        if size > limit_bytes:
            raise Rejection(Reason.TOO_LARGE, size=size, limit=limit_bytes)
        return size

    async def body(self, size: int) -> bytes:
        """Receive what a frame announced.

        Raises:
            TransportError: the stream broke or stalled.
        """
        try:
            with trio.fail_after(FRAME_TIMEOUT_S):
                return await read_exactly(self._stream, size) if size else b""
        except trio.TooSlowError as error:
            raise TransportError(f"a frame didn't arrive in {FRAME_TIMEOUT_S:g} s") from error
        except LIBRARY_FAILURES as failure:
            raise TransportError(f"the stream broke while receiving: {_cause(failure)}") from failure

    async def abort(self) -> None:
        """Reset the stream, both directions; safe while being cancelled."""
        await reset_stream(self._stream)


def framed(payload: bytes) -> bytes:
    """A payload with its length in front."""
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


def printable(text: str) -> str:
    """A peer's words for a log: what could forge a line or rewrite a terminal becomes a question mark."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _cause(failure: BaseException) -> str:
    return str(failure) or type(failure).__name__


OpenStream = Callable[[str], Awaitable[INetStream]]
"""Opens a stream of a protocol to one peer, or raises `TransportError`."""


class Outbox:
    """Frames that wait for one peer and protocol, bounded in count and bytes."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._size_bytes = 0
        self._filled = trio.Event()

    def put(self, data: bytes) -> bool:
        """Queue a frame; False when full."""
        if len(self._frames) >= MAX_QUEUED_PUSHES or self._size_bytes + len(data) > MAX_QUEUED_PUSH_BYTES:
            return False
        self._frames.append(data)
        self._size_bytes += len(data)
        self._filled.set()
        return True

    async def take(self) -> list[bytes]:
        """Wait for frames and take as many as go well into one write, at least one."""
        while not self._frames:
            self._filled = trio.Event()
            await self._filled.wait()
        batch = [self._pop()]
        size = len(batch[0])
        while self._frames and size + len(self._frames[0]) + LENGTH_BYTES <= PUSH_BATCH_BYTES:
            batch.append(self._pop())
            size += len(batch[-1]) + LENGTH_BYTES
        return batch

    def _pop(self) -> bytes:
        frame = self._frames.popleft()
        self._size_bytes -= len(frame)
        return frame


class PeerSession:
    """One connected peer, from its first connection to the end of its last: outboxes and idle request streams.

    Attributes:
        dialled: the address at which it was dialled; None where it came by itself.
    """

    def __init__(self, peer: PeerId, pushes: tuple[str, ...], open_stream: OpenStream, traffic: Traffic) -> None:
        self.peer = peer
        self.dialled: str | None = None
        self.ended = trio.Event()
        self.finished = trio.Event()
        self.started_at = trio.current_time()
        self._open_stream = open_stream
        self._traffic = traffic
        self._outboxes = {protocol: Outbox() for protocol in pushes}
        self._idle: dict[str, list[FrameStream]] = {}
        self._limits: dict[str, trio.CapacityLimiter] = {}

    def push(self, protocol: str, data: bytes) -> bool:
        """Queue a frame for the peer; False when its queue is full or it is gone."""
        queued = not self.ended.is_set() and self._outboxes[protocol].put(data)
        if not queued:
            self._traffic.dropped[protocol] += 1
        return queued

    async def write_pushes(self, protocol: str) -> None:
        """Write what is queued for one protocol until cancelled; what a broken stream swallowed isn't repeated."""
        outbox = self._outboxes[protocol]
        stream: FrameStream | None = None
        while True:
            batch = await outbox.take()
            for attempt in (1, 2):
                try:
                    if stream is None:
                        stream = FrameStream(await self._open_stream(protocol))
                    before(Operation.PUSH_WRITE)
                    await stream.send(*batch)
                    after(Operation.PUSH_WRITE)
                except TransportError as error:
                    logger.debug("push %s to %s, attempt %d: %s", protocol, self.peer, attempt, error)
                    if stream is None:
                        await trio.sleep(PUSH_RETRY_S)
                    else:
                        await stream.abort()
                        stream = None
                else:
                    for frame in batch:
                        self._traffic.sent(protocol, len(frame))
                    break
            else:
                self._traffic.dropped[protocol] += len(batch)

    async def request(self, protocol: str, data: bytes, max_answer_bytes: int) -> bytes:
        """Send a request and wait for its answer, on an idle stream where there is one.

        Raises:
            TransportError: the stream broke; RemoteRefusal: the peer said no.
            Rejection: the answer is malformed or larger than allowed.
        """
        limiter = self._limits.setdefault(protocol, trio.CapacityLimiter(MAX_CONCURRENT_REQUESTS))
        async with limiter:
            idle = self._idle.setdefault(protocol, [])
            if idle:
                try:
                    return await self._exchange(protocol, idle.pop(), data, max_answer_bytes)
                except RemoteRefusal:
                    raise
                except TransportError as error:
                    # The stream may have died while it was idle. Requests ask for something: asking twice is harmless.
                    logger.debug("idle stream %s to %s: %s", protocol, self.peer, error)
            return await self._exchange(
                protocol, FrameStream(await self._open_stream(protocol)), data, max_answer_bytes
            )

    async def _exchange(self, protocol: str, stream: FrameStream, data: bytes, max_answer_bytes: int) -> bytes:
        answer: bytes | None = None
        try:
            await stream.send(data)
            self._traffic.sent(protocol, len(data))
            answer = await stream.receive(max(max_answer_bytes, MAX_REASON_BYTES) + 1)
        finally:
            if answer is None:
                await stream.abort()
        if answer is None:
            raise TransportError(f"{self.peer} closed the stream without an answer")
        self._idle[protocol].append(stream)
        self._traffic.received(protocol, len(answer))
        if not answer or answer[0] not in list(Status):
            raise Rejection(Reason.MALFORMED, answer=answer[:16], protocol=protocol)
        body = answer[1:]
        if answer[0] == Status.OK:
            if len(body) > max_answer_bytes:
                raise Rejection(Reason.TOO_LARGE, size=len(body), limit=max_answer_bytes)
            return body
        text = printable(body[:MAX_REASON_BYTES].decode("utf-8", "replace"))
        if answer[0] == Status.REFUSED:
            raise RemoteRefusal(self.peer, text)
        raise TransportError(f"{self.peer} failed to answer: {text}")
