"""Real networks on loopback for tests: a handler that records what reaches it, and ways to open several networks."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from bflnode.consensus.rejection import Reason, Rejection
from bflnode.node.p2p.network import Network, NetworkConfig, PeerId, open_network

PUSH = "/test/push/1"
ASK = "/test/ask/1"
TOPIC = "test-topic"
PATIENCE_S = 8.0


class Recorder:
    """Handlers that remember everything and answer requests as their text asks."""

    def __init__(self) -> None:
        self.gossip: list[tuple[str, PeerId, bytes]] = []
        self.pushes: list[tuple[str, PeerId, bytes]] = []
        self.requests = 0
        self.log: list[str] = []
        self.connected: list[PeerId] = []
        self.disconnected: list[PeerId] = []
        self._changed = trio.Event()

    def on_gossip(self, topic: str, sender: PeerId, data: bytes) -> bool:
        self._judge(data)
        self.gossip.append((topic, sender, data))
        self._change()
        return True

    def on_push(self, protocol: str, sender: PeerId, data: bytes) -> None:
        self._judge(data)
        self.pushes.append((protocol, sender, data))
        self._change()

    async def on_request(self, protocol: str, sender: PeerId, data: bytes) -> bytes:
        self.requests += 1
        self._judge(data)
        if data == b"sleep":
            await trio.sleep_forever()
        return b"x" * int(data[5:]) if data.startswith(b"size ") else data

    async def on_connected(self, peer: PeerId) -> None:
        self.connected.append(peer)
        self.log.append("connected")
        self._change()

    async def on_disconnected(self, peer: PeerId) -> None:
        self.disconnected.append(peer)
        self.log.append("disconnected")
        self._change()

    async def until(self, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        """Wait for a condition on what was recorded."""
        with trio.fail_after(patience_s):
            while not condition():
                await self._changed.wait()

    def _judge(self, data: bytes) -> None:
        if data.startswith(b"reject"):
            raise Rejection(Reason.WRONG_HEIGHT, seen=7, expected=9)
        if data.startswith(b"crash"):
            raise RuntimeError("a bug of the node")

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def config(number: int, **changes: object) -> NetworkConfig:
    standard = NetworkConfig(
        identity_seed=number.to_bytes(32, "big"),
        listen=("/ip4/127.0.0.1/tcp/0",),
        topics=(TOPIC,),
        pushes=(PUSH,),
        requests=(ASK,),
    )
    return replace(standard, **changes)  # type: ignore[arg-type]  # tests name fields of the dataclass


@asynccontextmanager
async def networks(count: int, **changes: object) -> AsyncIterator[list[tuple[Network, Recorder]]]:
    """Open that many networks, not connected to each other."""
    async with AsyncExitStack() as stack:
        opened = []
        for number in range(1, count + 1):
            recorder = Recorder()
            network = await stack.enter_async_context(open_network(config(number, **changes), recorder))
            opened.append((network, recorder))
        yield opened


@asynccontextmanager
async def pair(**changes: object) -> AsyncIterator[tuple[Network, Recorder, Network, Recorder]]:
    """Open two networks, the first of which has dialled the second."""
    async with networks(2, **changes) as [(first, first_seen), (second, second_seen)]:
        await first.dial(second.addresses[0])
        await first_seen.until(lambda: first_seen.connected == [second.peer_id])
        await second_seen.until(lambda: second_seen.connected == [first.peer_id])
        yield first, first_seen, second, second_seen


async def eventually(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Poll a condition that has no event."""
    with trio.fail_after(patience_s):
        while not condition():  # noqa: ASYNC110 - state of the library that tells nobody when it changes
            await trio.sleep(0.01)


async def echo_works(network: Network, peer: PeerId) -> bool:
    """Whether a request to the peer is answered."""
    answer = await network.request(peer, ASK, b"hello", timeout_s=PATIENCE_S, max_response_bytes=100)
    return answer == b"hello"


async def at_once(*calls: Callable[[], Awaitable[object]]) -> None:
    """Run calls concurrently."""
    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(call)


async def raw_stream(network: Network, peer: PeerId, protocol: str) -> INetStream:
    """A stream of the attacker's own, below our framing."""
    connection = network._swarm.live_connections(ID.from_base58(peer))[-1]
    return await network._host.open_stream(connection, [TProtocol(protocol)])


def address_and_id(network: Network) -> tuple[Multiaddr, ID]:
    """What the library needs to dial a network once more."""
    return Multiaddr(network.addresses[0]), ID.from_base58(network.peer_id)
