"""A bad line between two nodes: a TCP proxy that delays, jitters, stalls and resets what goes through it.

It works on the connection's bytes, in order, since TCP would repair anything less: what is left of a lossy line above
TCP is delay that varies, pauses, and connections that break.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

import trio

CHUNK_BYTES = 64 * 1024

MAX_PIECES = 256
"""Pieces of data on their way through one line: then it is full, and TCP makes the sender wait."""

TICK_S = 0.1
"""How often it is drawn whether a line stalls or breaks."""


@dataclass(frozen=True, slots=True)
class Line:
    """How bad a line is.

    Attributes:
        delay_s: of every piece of data, one way.
        jitter_s: added, evenly distributed from 0.
        stall_every_s: mean time between pauses, exponentially distributed; 0 for none.
        stall_s: how long a pause is: longer than the 5 s after which py-libp2p gives up a write is a cruel one.
        reset_every_s: mean time until a connection is broken off, exponentially distributed; 0 for never.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    stall_every_s: float = 0.0
    stall_s: float = 0.0
    reset_every_s: float = 0.0


@dataclass(slots=True)
class _Connection:
    stalled_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Route:
    """Listen at `port` of `host` and forward to `target`."""

    host: str
    port: int
    target: tuple[str, int]


class Proxies:
    """Proxies for many routes, in a thread; `line` may be changed while they run.

    Attributes:
        line: what the lines are like now.
        resets: connections broken off so far.
        stalls: pauses made so far.
    """

    def __init__(self, routes: tuple[Route, ...], line: Line, seed: int) -> None:
        self.line = line
        self.resets = 0
        self.stalls = 0
        self._routes = routes
        self._random = random.Random(seed)
        self._is_listening = threading.Event()
        self._cancel: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))

    def __enter__(self) -> "Proxies":
        self._thread.start()
        self._is_listening.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel()
        self._thread.join()

    async def _serve(self) -> None:
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            self._cancel = lambda: token.run_sync_soon(scope.cancel)
            async with trio.open_nursery() as nursery:
                for route in self._routes:
                    listeners = await trio.open_tcp_listeners(route.port, host=route.host)

                    async def forward(stream: trio.SocketStream, route: Route = route) -> None:
                        await self._forward(stream, route)

                    nursery.start_soon(trio.serve_listeners, forward, listeners)
                self._is_listening.set()

    async def _forward(self, near: trio.SocketStream, route: Route) -> None:
        """Carry one connection until either end closes it or the line breaks."""
        try:
            far = await trio.open_tcp_stream(*route.target)
        except OSError:
            return  # nobody listens there now: the dialler sees a closed connection
        connection = _Connection()
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(self._carry, near, far, connection, nursery.cancel_scope)
            nursery.start_soon(self._carry, far, near, connection, nursery.cancel_scope)
            while not self._happens_now(self.line.reset_every_s):
                await trio.sleep(TICK_S)
                if self._happens_now(self.line.stall_every_s):
                    connection.stalled_until = trio.current_time() + self.line.stall_s
                    self.stalls += 1
            self.resets += 1
            nursery.cancel_scope.cancel()

    def _happens_now(self, every_s: float) -> bool:
        """Whether something that happens every so often on average happens within this tick."""
        return every_s > 0 and self._random.random() < TICK_S / every_s

    async def _carry(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        connection: "_Connection",
        scope: trio.CancelScope,
    ) -> None:
        """Carry one direction: read at once, deliver in order when each piece is due."""
        send, receive = trio.open_memory_channel[tuple[float, bytes]](MAX_PIECES)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._deliver, receive, sink)
                async with send:
                    due = 0.0
                    while data := await source.receive_some(CHUNK_BYTES):
                        late = self.line.delay_s + self._random.uniform(0, self.line.jitter_s)
                        due = max(due, connection.stalled_until, trio.current_time() + late)
                        await send.send((due, data))
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one end is gone: so is the line
        scope.cancel()

    async def _deliver(
        self, receive: "trio.MemoryReceiveChannel[tuple[float, bytes]]", sink: trio.SocketStream
    ) -> None:
        async for due, data in receive:
            await trio.sleep_until(due)
            await sink.send_all(data)
