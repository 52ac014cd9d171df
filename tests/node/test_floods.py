"""Floods, quick versions of benchmarks/flood.py: what one hostile peer sends must cost it, and not the others."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_varint_prefixed

from bflnode.consensus.block import Commit
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.transaction import Transaction, Transfer, sign_transaction
from bflnode.node.p2p.libp2p_connections import ACCEPTS_BURST, MAX_HANDSHAKES_PER_ADDRESS, Gate
from bflnode.node.p2p.libp2p_repairs import MAX_STREAMS_PER_PROTOCOL
from bflnode.node.p2p.messages import CHUNKS, STATUS, TRANSACTIONS, Batch, FinalBlock, blocks_topic
from bflnode.node.p2p.network import RemoteRefusal, TransportError, open_network
from bflnode.node.p2p.rate_limits import Rate
from bflnode.node.p2p.streams import GOSSIP
from tests.node.networks import ASK, PUSH, TOPIC, Recorder, config, echo_works, eventually, networks, pair, raw_stream
from tests.node.nodes import going, opened, running, small_network, until
from tests.node.strangers import stranger_of
from tests.node.test_transaction_relay import transfer

NO_TRAINING = {"enabled": False}
ALONE = {"p2p": {"persistent_peers": ()}, "training": NO_TRAINING}
MESHSUB = "/meshsub/1.1.0"


async def test_pushes_beyond_their_rate_wait_and_arrive_whole_and_in_order() -> None:
    rates = {PUSH: Rate(per_s=50, burst=5)}
    async with pair(rates=rates) as (sender, _, victim, victim_seen):
        started = trio.current_time()
        messages = [b"%d" % number for number in range(30)]
        for message in messages:
            assert sender.push(victim.peer_id, PUSH, message)
        await victim_seen.until(lambda: len(victim_seen.pushes) == 30)
        assert trio.current_time() - started >= 25 / 50
        assert [data for _, _, data in victim_seen.pushes] == messages
        assert victim.statistics()["throttled"] == {PUSH: 25}
        assert victim.statistics()["scores"] == {}


async def test_excess_of_a_protocol_that_drops_is_dropped() -> None:
    rates = {PUSH: Rate(per_s=0.01, burst=5, drops=True)}
    async with pair(rates=rates) as (sender, _, victim, victim_seen):
        for number in range(30):
            assert sender.push(victim.peer_id, PUSH, b"%d" % number)
        await eventually(lambda: victim.statistics()["throttled"] == {PUSH: 25})
        assert len(victim_seen.pushes) == 5
        assert await echo_works(sender, victim.peer_id)


async def test_many_streams_do_not_raise_the_rate_of_requests() -> None:
    rates = {ASK: Rate(per_s=20, burst=2)}
    async with pair(rates=rates) as (sender, _, victim, victim_seen):
        streams = [await raw_stream(sender, victim.peer_id, ASK) for _ in range(MAX_STREAMS_PER_PROTOCOL)]
        for stream in streams:
            await stream.write(b"\0\0\0\x05hello" * 12)
        with trio.move_on_after(1.0):
            await trio.sleep_forever()
        assert 2 <= victim_seen.requests <= 30


async def test_gossip_beyond_its_rate_waits_and_other_peers_are_heard() -> None:
    rates = {GOSSIP: Rate(per_s=1, burst=60, unit_bytes=1000)}
    async with networks(3, rates=rates) as [(loud, _), (quiet, _), (victim, victim_seen)]:
        for network in (loud, quiet):
            await network.dial(victim.addresses[0])
            await network.wait_for_mesh(TOPIC, timeout_s=5)
        for number in range(50):
            await loud.publish(TOPIC, b"%d" % number * 2000)
        await quiet.publish(TOPIC, b"quiet")
        await victim_seen.until(lambda: b"quiet" in [data for _, _, data in victim_seen.gossip])
        await eventually(lambda: victim.statistics()["throttled"].get(GOSSIP, 0) > 0)
        assert len(victim_seen.gossip) < 45


@pytest.mark.parametrize(
    "control",
    [
        rpc_pb2.ControlMessage(ihave=[rpc_pb2.ControlIHave(topicID="made up", messageIDs=[b"00"])]),
        rpc_pb2.ControlMessage(iwant=[rpc_pb2.ControlIWant(messageIDs=[b"00"] * 2000)]),
        rpc_pb2.ControlMessage(graft=[rpc_pb2.ControlGraft(topicID="made up")]),
    ],
)
async def test_gossip_control_without_end_or_of_made_up_topics_is_refused(control: rpc_pb2.ControlMessage) -> None:
    async with pair() as (attacker, _, victim, _):
        stream = await raw_stream(attacker, victim.peer_id, MESHSUB)
        await stream.write(encode_varint_prefixed(rpc_pb2.RPC(control=control).SerializeToString()))
        await eventually(lambda: victim.statistics()["scores"].get(attacker.peer_id, 0) > 20)
        assert "made up" not in str(dict(victim._gossip.ihave_message_limits))
        assert await echo_works(attacker, victim.peer_id)


async def test_a_gossip_rpc_without_end_is_refused() -> None:
    async with pair() as (attacker, _, victim, _):
        stream = await raw_stream(attacker, victim.peer_id, MESHSUB)
        await stream.write(b"\xff\xff\xff\x7f" + bytes(1000))
        await eventually(lambda: victim.statistics()["scores"].get(attacker.peer_id, 0) > 20)


def test_an_address_has_a_bounded_number_of_connections_and_handshakes_at_a_bounded_pace() -> None:
    now = [0.0]
    gate = Gate(lambda address: address == "192.0.2.66", 40, lambda: now[0])
    assert [gate.enter("192.0.2.7") for _ in range(MAX_HANDSHAKES_PER_ADDRESS + 1)].count(True) == 32
    for _ in range(20):
        gate.end_handshake("192.0.2.7")
    assert [gate.enter("192.0.2.7") for _ in range(20)].count(True) == 8
    assert gate.enter("192.0.2.8")
    assert not gate.enter("192.0.2.66")
    for _ in range(40):
        gate.leave("192.0.2.7", was_in_handshake=False)
    taken = 0
    for _ in range(200):
        if gate.enter("192.0.2.7"):
            taken += 1
            gate.end_handshake("192.0.2.7")
            gate.leave("192.0.2.7", was_in_handshake=False)
    assert taken == max(ACCEPTS_BURST, 80) - 40
    now[0] += 2.0
    assert gate.enter("192.0.2.7")
    assert set(gate.refused) == {"banned", "too-many-connections", "too-many-handshakes", "too-fast"}


async def test_idle_sockets_of_one_address_are_closed_at_once_beyond_a_bound() -> None:
    async with networks(2) as [(victim, _), (friend, _)]:
        await friend.dial(victim.addresses[0])
        port = int(victim.addresses[0].split("/")[4])
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(MAX_HANDSHAKES_PER_ADDRESS + 10)]
        await eventually(lambda: victim.statistics()["turned_away"] == {"too-many-handshakes": 10})
        assert await echo_works(friend, victim.peer_id)
        for stream in streams:
            await stream.aclose()


async def test_a_full_node_and_one_that_bans_say_so() -> None:
    async with networks(4, max_peers=1) as [(full, full_seen), (first, _), (second, _), (third, _)]:
        await first.dial(full.addresses[0])
        await full_seen.until(lambda: bool(full_seen.connected))
        with suppress(TransportError):
            await second.dial(full.addresses[0])
        await eventually(lambda: second.last_words(full.peer_id) == "full: there are 1 peers already")
        await full.ban(third.peer_id, reason="just so")
        with suppress(TransportError):
            await third.dial(full.addresses[0])
        await eventually(lambda: "just so" in (third.last_words(full.peer_id) or ""))
        await full.ban("127.0.0.1")
        assert full.peers() == ()
        with pytest.raises(TransportError):
            await first.dial(full.addresses[0])


async def test_worthless_transactions_get_their_sender_banned_and_the_chain_goes_on(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes
    async with running(homes, training=NO_TRAINING) as nodes, stranger_of(nodes[0]) as stranger:
        poor: list[Transaction] = []
        for number in range(60):
            key = SecretKey.from_seed(bytes([number]) * 32)
            poor.append(sign_transaction(key, stranger.chain_id, Transfer(key.account, 1), nonce=0))
        batch = Batch(tuple(poor)).to_bytes()
        mine = transfer(nodes[0])
        nodes[0].relay.submit(mine)
        await eventually(lambda: not stranger.network.push(stranger.node, TRANSACTIONS, batch))
        await until(nodes[0], lambda: nodes[0].chain.store.transaction(mine.id) is not None)
        assert stranger.network.peer_id in nodes[0].network.statistics()["banned"]
        assert nodes[0].mempool.candidates() == ()


async def test_a_gossiped_block_is_passed_on_only_with_a_good_commit_and_once(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes
    async with opened(homes, training=NO_TRAINING) as nodes, going(nodes):
        mine = transfer(nodes[0])
        nodes[0].relay.submit(mine)
        await until(nodes[0], lambda: nodes[0].chain.height >= 1)
        store = nodes[0].chain.store
        good = FinalBlock(store.block(1), store.commit(1))
    fresh = small_network(tmp_path / "fresh")
    late = fresh.homes[0]
    late.genesis_file.write_bytes(homes[0].genesis_file.read_bytes())
    async with opened([late], **ALONE) as [node]:
        topic = blocks_topic(node.chain.genesis.chain_id)
        empty = replace(good, commit=Commit(1, good.commit.round, good.block.id, ()))
        with pytest.raises(Rejection):
            node.on_gossip(topic, node.network.peer_id, empty.to_bytes())
        assert node.on_gossip(topic, node.network.peer_id, good.to_bytes())
        assert not node.on_gossip(topic, node.network.peer_id, good.to_bytes())


async def test_a_gossiped_block_is_passed_on_where_votes_were_quicker(tmp_path: Path) -> None:
    """A peer that gets no votes hears of the block all the same; not of a forged commit, and of each block once."""
    async with opened(small_network(tmp_path, validators=1).homes, **ALONE) as [node], going([node]):
        mine = transfer(node)
        node.relay.submit(mine)
        await until(node, lambda: node.chain.height >= 1)
        good = FinalBlock(node.chain.store.block(1), node.chain.store.commit(1))
        topic = blocks_topic(node.chain.genesis.chain_id)
        unsigned = replace(good, commit=replace(good.commit, signatures=()))
        with pytest.raises(Rejection):
            node.on_gossip(topic, node.network.peer_id, unsigned.to_bytes())
        assert node.on_gossip(topic, node.network.peer_id, good.to_bytes())
        assert not node.on_gossip(topic, node.network.peer_id, good.to_bytes())


async def test_statuses_and_requests_for_models_in_masses_leave_the_node_answering(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:1]
    async with opened(homes, **ALONE) as [node], stranger_of(node) as stranger:
        blob = node.chain.genesis.tasks[0].specification.initial_model
        for _ in range(900):
            stranger.push(STATUS, node.agreement.machine.status().to_bytes())
        await eventually(lambda: node.network.statistics()["throttled"].get(STATUS, 0) > 500)
        with pytest.raises(RemoteRefusal):
            await stranger.ask(CHUNKS, blob)
        assert node.peers.get(stranger.network.peer_id) is not None


async def test_validators_are_taken_by_a_full_node_and_strangers_are_told(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:2]
    flags = {"p2p": {"persistent_peers": (), "max_peers": 1}, "training": NO_TRAINING}
    async with (
        opened(homes, **flags) as [node, validator],
        stranger_of(node) as first,
        stranger_of(node, seed=98, greets=False) as second,
    ):
        assert node.peers.get(first.network.peer_id) is not None
        await eventually(lambda: bool(node.peers.refusals()))
        assert "this node is full" in node.peers.refusals()[-1].reason
        assert node.peers.get(second.network.peer_id) is None
        await validator.network.dial(node.network.addresses[0])
        await eventually(lambda: node.peers.of_account(validator.key.account) is not None)


async def test_a_ban_outlives_the_process(tmp_path: Path) -> None:
    homes = small_network(tmp_path).homes[:1]
    async with opened(homes, **ALONE) as [node], stranger_of(node) as stranger:
        await node.network.ban(stranger.network.peer_id, reason="by hand")
        assert node.network.peers() == ()
    async with opened(homes, **ALONE) as [node]:
        assert node.network.statistics()["banned"] == [stranger.network.peer_id]
        async with open_network(config(1, identity_seed=bytes([99]) * 32), Recorder()) as again:
            with suppress(TransportError):
                await again.dial(node.network.addresses[0])
            await eventually(lambda: "by hand" in (again.last_words(node.network.peer_id) or ""))
            assert again.peers() == ()
