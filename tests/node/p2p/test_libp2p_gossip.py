"""Repairs of gossip: the same requests of a peer with the library's method and with ours."""

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited

from bflnode.node.p2p import libp2p_gossip as limits
from bflnode.node.p2p.network import Network
from tests.node.networks import TOPIC, networks, raw_stream

MESHSUB = "/meshsub/1.1.0"
WANTED, MARKER = b"a message that is wanted", b"the last one"
PATIENCE_S = 10


class TestMessagesAskedForAgain:
    """[35]"""

    async def test_library_sends_a_message_as_often_as_it_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits.RepairedGossipSub, "handle_iwant", GossipSub.handle_iwant)
        assert await _times_sent(asked=(200, 50)) == 250

    async def test_repaired_sends_it_once_for_a_request_and_thrice_in_all(self) -> None:
        assert await _times_sent(asked=(200,)) == 1
        assert await _times_sent(asked=(200, 50, 1, 1, 1)) == limits.MAX_RETRANSMISSIONS


async def _times_sent(asked: tuple[int, ...]) -> int:
    """How often a node sends a message because a peer asks, in each request that many times."""
    received: list[bytes] = []
    ended = trio.Event()

    async def count(stream: INetStream) -> None:
        while not ended.is_set():
            rpc = rpc_pb2.RPC.FromString(await read_varint_prefixed_bytes_limited(stream, 2**20))
            received.extend(message.data for message in rpc.publish)
            if MARKER in received:
                ended.set()

    async with networks(2) as [(node, _), (attacker, _)]:
        attacker._pubsub.continuously_read_stream = count  # type: ignore[method-assign]  # it asks, and does no more
        await attacker.dial(node.addresses[0])
        await node.wait_for_mesh(TOPIC, timeout_s=PATIENCE_S)
        await node.publish(TOPIC, WANTED)
        [wanted] = node._gossip.mcache.msgs
        for times in asked:
            await node._pubsub._take(_id(attacker), _request([wanted] * times))
        await node.publish(TOPIC, MARKER)
        with trio.fail_after(PATIENCE_S):
            await ended.wait()
    return received.count(WANTED) - 1


def _request(message_ids: list[bytes]) -> rpc_pb2.RPC:
    control = rpc_pb2.ControlMessage(iwant=[rpc_pb2.ControlIWant(messageIDs=message_ids)])
    return rpc_pb2.RPC(control=control)


def _id(network: Network) -> ID:
    return ID.from_base58(network.peer_id)


async def test_a_request_that_comes_over_the_wire_is_answered() -> None:
    async with networks(2) as [(node, _), (peer, peer_seen)]:
        await peer.dial(node.addresses[0])
        await node.wait_for_mesh(TOPIC, timeout_s=PATIENCE_S)
        await node.publish(TOPIC, WANTED)
        await peer_seen.until(lambda: len(peer_seen.gossip) == 1)
        [wanted] = node._gossip.mcache.msgs
        stream = await raw_stream(peer, node.peer_id, MESHSUB)
        await stream.write(encode_varint_prefixed(_request([wanted, b"unknown"]).SerializeToString()))
        with trio.fail_after(PATIENCE_S):
            while not node._gossip._messages._sent:  # noqa: ASYNC110 - the library tells nobody
                await trio.sleep(0.01)
        assert node._gossip._messages._sent == {wanted: {_id(peer): 1}}


def test_how_often_a_message_was_sent_is_forgotten_with_the_message() -> None:
    cache = limits._CountingCache(1, 2)
    message = rpc_pb2.Message(from_id=b"sender", seqno=b"1", topicIDs=[TOPIC])
    cache.put(message)
    peer, other = ID(b"peer"), ID(b"other")
    found = [cache.take_for(peer, b"sender1") for _ in range(5)]
    assert found == [message] * limits.MAX_RETRANSMISSIONS + [None, None]
    assert cache.take_for(other, b"sender1") == message
    assert cache.take_for(other, b"unknown") is None
    cache.shift()
    assert set(cache._sent) == {b"sender1"}
    cache.shift()
    assert cache._sent == {}
    assert cache.take_for(other, b"sender1") is None


async def test_what_waits_for_one_peer_is_bounded_in_bytes_and_count() -> None:
    queues = limits._RoomyQueues()
    queues[ID(b"peer")] = queue = RpcQueue()
    large = rpc_pb2.RPC(publish=[rpc_pb2.Message(data=bytes(60_000))])
    taken = [queue.push(large) for _ in range(100)].count(True)
    assert taken == limits.MAX_QUEUED_RPC_BYTES // large.ByteSize()
    assert await queue.pop() == large
    assert queue.push(large, priority=True)
    assert not queue.push(large)
    queues[ID(b"peer")] = queue = RpcQueue()
    assert [queue.push(rpc_pb2.RPC()) for _ in range(1000)].count(True) == limits.MAX_QUEUED_RPCS
