"""A peer that speaks the wire protocol and nothing else: says hello, then sends whatever a test wants."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from bflnode.consensus.keys import SecretKey
from bflnode.consensus.types import ChainId
from bflnode.node.node import Node
from bflnode.node.node_clock import now_ms
from bflnode.node.p2p.messages import (
    HELLO,
    PUSHES,
    REQUESTS,
    FinalBlocks,
    Hello,
    blocks_topic,
    hello_payload,
    transactions_topic,
)
from bflnode.node.p2p.network import Network, NetworkConfig, PeerId, open_network
from tests.node.networks import PATIENCE_S, eventually


class Stranger:
    """A connection to a node, and what it answers when it is asked."""

    def __init__(self, chain_id: ChainId, key: SecretKey) -> None:
        self.chain_id = chain_id
        self.key = key
        self.height = 0
        self.addresses: tuple[str, ...] = ()
        self.answers: dict[str, bytes] = {}
        self.silent_on: set[str] = set()
        self.asked: list[str] = []
        self.network: Network
        self.node: PeerId

    def hello(self, **changes: object) -> bytes:
        """An honest hello, but for the changes."""
        key = self.key
        signature = key.sign("hello", self.chain_id, hello_payload(self.network.peer_id, key.account))
        fields = {
            "chain_id": self.chain_id,
            "version": "stranger",
            "account": key.account,
            "height": self.height,
            "time_ms": now_ms(),
            "addresses": self.addresses,
            "signature": signature,
        }
        return Hello(**(fields | changes)).to_bytes()  # type: ignore[arg-type]  # tests name fields of the record

    async def ask(self, protocol: str, data: bytes) -> bytes:
        return await self.network.request(
            self.node, protocol, data, timeout_s=PATIENCE_S, max_response_bytes=4 * 1024 * 1024
        )

    def push(self, protocol: str, data: bytes) -> None:
        assert self.network.push(self.node, protocol, data)

    # What the network calls

    def on_gossip(self, topic: str, sender: PeerId, data: bytes) -> bool:
        return False

    def on_push(self, protocol: str, sender: PeerId, data: bytes) -> None: ...

    async def on_request(self, protocol: str, sender: PeerId, data: bytes) -> bytes:
        self.asked.append(protocol)
        if protocol in self.silent_on:
            await trio.sleep_forever()
        if protocol == HELLO:
            return self.hello()
        return self.answers.get(protocol, FinalBlocks(()).to_bytes())

    async def on_connected(self, peer: PeerId) -> None: ...

    async def on_disconnected(self, peer: PeerId) -> None: ...


Kind = TypeVar("Kind", bound=Stranger)


@asynccontextmanager
async def stranger_of(
    node: Node, *, seed: int = 99, greets: bool = True, key: SecretKey | None = None
) -> AsyncIterator[Stranger]:
    """A stranger connected to a node, and greeted unless a test wants to do that itself."""
    async with stranger_of_kind(Stranger, node, seed=seed, greets=greets, key=key) as stranger:
        yield stranger


@asynccontextmanager
async def stranger_of_kind(
    kind: type[Kind], node: Node, *, seed: int = 99, greets: bool = True, key: SecretKey | None = None
) -> AsyncIterator[Kind]:
    """The same with a class of a test's own, which answers otherwise."""
    chain_id = node.chain.genesis.chain_id
    stranger = kind(chain_id, key or SecretKey.from_seed(bytes([seed]) * 32))
    config = NetworkConfig(
        identity_seed=bytes([seed]) * 32,
        listen=("/ip4/127.0.0.1/tcp/0",),
        topics=(transactions_topic(chain_id), blocks_topic(chain_id)),
        pushes=PUSHES,
        requests=REQUESTS,
    )
    async with open_network(config, stranger) as network:
        stranger.network = network
        stranger.node = await network.dial(node.network.addresses[0])
        if greets:
            await eventually(lambda: node.peers.get(network.peer_id) is not None)
        yield stranger
