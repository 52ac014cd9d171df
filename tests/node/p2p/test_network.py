"""The network between honest peers: real hosts on loopback, and real processes that are killed."""

import logging
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
from libp2p.peer.id import ID

from bflnode.node.p2p import streams
from bflnode.node.p2p.network import PeerId, RemoteRefusal, TransportError, open_network
from tests.node.networks import (
    ASK,
    PUSH,
    TOPIC,
    Recorder,
    address_and_id,
    at_once,
    config,
    echo_works,
    eventually,
    networks,
    pair,
)

NOBODY = PeerId("12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5")


class TestDialling:
    async def test_both_sides_learn_of_a_connection_once(self) -> None:
        async with pair() as (first, first_seen, second, second_seen):
            assert await first.dial(second.addresses[0]) == second.peer_id
            assert (first.peers(), second.peers()) == ((second.peer_id,), (first.peer_id,))
            assert (first_seen.log, second_seen.log) == (["connected"], ["connected"])

    async def test_the_peer_id_follows_from_the_identity_seed(self) -> None:
        async with networks(1) as [(network, _)]:
            peer_id = network.peer_id
        async with networks(1) as [(network, _)]:
            assert network.peer_id == peer_id

    async def test_a_dead_port_is_named_and_can_be_dialled_again_at_once(self) -> None:
        async with networks(1) as [(dialler, _)]:
            async with open_network(config(2), Recorder()) as late:
                address = late.addresses[0]
            with pytest.raises(TransportError, match=r"can't connect to /ip4/127.0.0.1/tcp/\d+/p2p/.*refused"):
                await dialler.dial(address)
            listen = address.split("/p2p/")[0]
            async with open_network(config(2, listen=(listen,)), Recorder()) as late:
                assert await dialler.dial(address) == late.peer_id

    async def test_a_peer_that_is_somebody_else_is_refused(self) -> None:
        async with networks(3) as [(dialler, _), (listener, _), (other, _)]:
            address = listener.addresses[0].replace(listener.peer_id, other.peer_id)
            with pytest.raises(TransportError, match="peer id does not correspond"):
                await dialler.dial(address)
            assert dialler.peers() == ()

    @pytest.mark.parametrize(
        "address",
        [
            *("", "nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/300.1.1.1/tcp/1/p2p/x", "/ip4/127.0.0.1/tcp/1/p2p/xyz"),
            "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN\r",
        ],
    )
    async def test_a_malformed_address_is_explained(self, address: str) -> None:
        async with networks(1) as [(network, _)]:
            with pytest.raises(TransportError, match="is not a full address like"):
                await network.dial(address)
            with pytest.raises(TransportError, match="is not a full address like"):
                network.remember(address)

    async def test_a_node_does_not_dial_itself(self) -> None:
        async with networks(1) as [(network, _)]:
            with pytest.raises(TransportError, match="this node itself"):
                await network.dial(network.addresses[0])

    async def test_a_silent_listener_runs_into_the_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bflnode.node.p2p.network.DIAL_TIMEOUT_S", 0.3)
        async with networks(1) as [(network, _)]:
            with socket.create_server(("127.0.0.1", 0)) as silent:
                address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{NOBODY}"
                with pytest.raises(TransportError, match=r"didn't answer in 0\.3 s"):
                    await network.dial(address)

    async def test_simultaneous_dials_converge_to_one_usable_session(self) -> None:
        async with networks(2) as [(first, first_seen), (second, second_seen)]:
            await at_once(partial(first.dial, second.addresses[0]), partial(second.dial, first.addresses[0]))
            assert await echo_works(first, second.peer_id)
            assert await echo_works(second, first.peer_id)
            await first_seen.until(lambda: bool(first_seen.connected))
            await second_seen.until(lambda: bool(second_seen.connected))
            assert (first_seen.log, second_seen.log) == (["connected"], ["connected"])

    async def test_when_one_of_two_connections_closes_the_session_goes_on(self) -> None:
        async with pair() as (first, first_seen, second, _):
            await first._swarm.dial(*address_and_id(second))
            connections = first._swarm.live_connections(ID.from_base58(second.peer_id))
            assert len(connections) == 2
            assert first.push(second.peer_id, PUSH, b"before")
            await connections[0].close()
            assert await echo_works(first, second.peer_id)
            assert await echo_works(second, first.peer_id)
            assert first_seen.log == ["connected"]

    async def test_a_port_that_is_taken_is_named(self) -> None:
        async with networks(1) as [(network, _)]:
            listen = network.addresses[0].split("/p2p/")[0]
            with pytest.raises(TransportError, match=f"can't listen on {listen}: Address already in use"):
                async with open_network(config(2, listen=(listen,)), Recorder()):
                    pytest.fail("two nodes listen on one port")

    async def test_an_exception_inside_the_context_comes_out_as_it_is(self) -> None:
        with pytest.raises(KeyError, match="mine"):
            async with networks(1):
                raise KeyError("mine")


class TestDisconnecting:
    async def test_both_sides_learn_of_it_and_can_connect_again(self) -> None:
        async with pair() as (first, first_seen, second, second_seen):
            await first.disconnect(second.peer_id)
            assert first.peers() == ()
            await second_seen.until(lambda: second_seen.log == ["connected", "disconnected"], patience_s=2.0)
            await first.dial(second.addresses[0])
            await first_seen.until(lambda: first_seen.log == ["connected", "disconnected", "connected"])
            assert await echo_works(first, second.peer_id)

    async def test_a_handler_that_runs_with_the_connection_is_cancelled_before_the_end_is_told(self) -> None:
        order: list[str] = []

        class Busy(Recorder):
            async def on_connected(self, peer: PeerId) -> None:
                await super().on_connected(peer)
                try:
                    await trio.sleep_forever()
                finally:
                    order.append("cancelled")

            async def on_disconnected(self, peer: PeerId) -> None:
                order.append("told")
                await super().on_disconnected(peer)

        async with networks(1) as [(first, _)], open_network(config(2), (busy := Busy())) as second:
            await first.dial(second.addresses[0])
            await busy.until(lambda: bool(busy.connected))
            await first.disconnect(second.peer_id)
            await busy.until(lambda: bool(busy.disconnected))
        assert order == ["cancelled", "told"]

    async def test_leaving_eight_connected_networks_takes_less_than_a_second_each(self) -> None:
        async with networks(7) as others:
            async with open_network(config(8), Recorder()) as network:
                for other, _ in others:
                    await network.dial(other.addresses[0])
                started = trio.current_time()
            assert trio.current_time() - started < 1.0
            await others[0][1].until(lambda: bool(others[0][1].disconnected), patience_s=2.0)


class TestRedialling:
    async def test_a_restarted_peer_is_usable_again_soon(self) -> None:
        async with networks(1) as [(network, seen)]:
            async with open_network(config(2), Recorder()) as peer:
                address = peer.addresses[0]
                assert network.remember(address) == peer.peer_id
                await seen.until(lambda: seen.log == ["connected"])
            await seen.until(lambda: seen.log == ["connected", "disconnected"], patience_s=2.0)
            async with open_network(config(2, listen=(address.split("/p2p/")[0],)), Recorder()) as peer:
                await seen.until(lambda: seen.log == ["connected", "disconnected", "connected"], patience_s=3.0)
                assert await echo_works(network, peer.peer_id)

    async def test_a_remembered_peer_is_tried_at_each_of_its_addresses(self) -> None:
        async with networks(2) as [(network, seen), (peer, _)]:
            with socket.create_server(("127.0.0.1", 0)) as closed:
                dead_port = closed.getsockname()[1]
            network.remember(f"/ip4/127.0.0.1/tcp/{dead_port}/p2p/{peer.peer_id}")
            network.remember(peer.addresses[0])
            await seen.until(lambda: seen.connected == [peer.peer_id])

    async def test_a_forgotten_peer_is_not_dialled_again(self) -> None:
        async with networks(2) as [(network, seen), (peer, _)]:
            network.remember(peer.addresses[0])
            await seen.until(lambda: bool(seen.connected))
            network.forget(peer.peer_id)
            await network.disconnect(peer.peer_id)
            with trio.move_on_after(1.0):
                await seen.until(lambda: len(seen.connected) > 1)
            assert network.peers() == ()

    async def test_a_killed_process_is_noticed_and_its_successor_used(self) -> None:
        port = _free_port()
        async with networks(1) as [(network, seen)]:
            child = _start_child(port)
            try:
                address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{await _child_id(child)}"
                peer = network.remember(address)
                await seen.until(lambda: seen.log == ["connected"])
                assert await echo_works(network, peer)
                os.kill(child.pid, signal.SIGKILL)
                await seen.until(lambda: seen.log == ["connected", "disconnected"], patience_s=2.0)
                with pytest.raises(TransportError, match="is not connected"):
                    await network.request(peer, ASK, b"x", timeout_s=5, max_response_bytes=10)
                child.wait()
                child = _start_child(port)
                await _child_id(child)
                started = trio.current_time()
                await seen.until(lambda: seen.log == ["connected", "disconnected", "connected"])
                assert await echo_works(network, peer)
                assert trio.current_time() - started < 7.0, "the back-off is at most 5 s + 25 %"
            finally:
                child.kill()
                child.wait()

    async def test_a_request_in_flight_fails_as_soon_as_its_peer_is_killed(self) -> None:
        port = _free_port()
        async with networks(1) as [(network, seen)]:
            child = _start_child(port)
            try:
                peer = await network.dial(f"/ip4/127.0.0.1/tcp/{port}/p2p/{await _child_id(child)}")
                async with trio.open_nursery() as nursery:

                    async def ask() -> None:
                        with pytest.raises(TransportError):
                            await network.request(peer, ASK, b"sleep", timeout_s=60, max_response_bytes=10)

                    nursery.start_soon(ask)
                    await eventually(lambda: network.statistics()["messages_out"].get(ASK) == 1)
                    child.kill()
                    with trio.fail_after(2.0):
                        await seen.until(lambda: bool(seen.disconnected))
            finally:
                child.kill()
                child.wait()


class TestPushing:
    async def test_pushes_arrive_whole_and_in_order(self) -> None:
        messages = [bytes([number % 256]) * (number * 37) for number in range(200)]
        messages += [b"big" * (streams.MAX_PUSH_BYTES // 3), b"", b"last"]
        async with pair() as (first, _, second, second_seen):
            for message in messages:
                assert first.push(second.peer_id, PUSH, message)
            await second_seen.until(lambda: len(second_seen.pushes) == len(messages))
            assert second_seen.pushes == [(PUSH, first.peer_id, message) for message in messages]

    async def test_a_full_queue_refuses_and_counts(self) -> None:
        async with pair() as (first, _, second, second_seen):
            accepted = [first.push(second.peer_id, PUSH, b"x") for _ in range(streams.MAX_QUEUED_PUSHES + 5)]
            assert accepted == [True] * streams.MAX_QUEUED_PUSHES + [False] * 5
            assert first.statistics()["dropped"] == {PUSH: 5}
            await second_seen.until(lambda: len(second_seen.pushes) == streams.MAX_QUEUED_PUSHES)

    async def test_the_queue_is_bounded_in_bytes_too(self) -> None:
        async with pair() as (first, _, second, _):
            accepted = [first.push(second.peer_id, PUSH, bytes(1_500_000)) for _ in range(4)]
            assert accepted == [True, True, False, False]

    async def test_a_peer_that_is_not_connected_gets_nothing(self) -> None:
        async with networks(1) as [(network, _)]:
            assert network.push(NOBODY, PUSH, b"x") is False

    async def test_misuse_is_an_error_of_the_caller(self) -> None:
        async with pair() as (first, _, second, _):
            with pytest.raises(ValueError, match="1572865 bytes exceeds 1572864"):
                first.push(second.peer_id, PUSH, bytes(streams.MAX_PUSH_BYTES + 1))
            with pytest.raises(ValueError, match="push protocol '/other' is not one of"):
                first.push(second.peer_id, "/other", b"x")

    async def test_a_crash_in_the_handler_loses_one_message_and_nothing_else(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with pair() as (first, _, second, second_seen):
            for message in (b"crash", b"after"):
                first.push(second.peer_id, PUSH, message)
            await second_seen.until(lambda: bool(second_seen.pushes))
            assert second_seen.pushes == [(PUSH, first.peer_id, b"after")]
            assert second.statistics()["scores"] == {}
        assert "a bug of the node" in caplog.text

    async def test_refused_pushes_are_counted_against_the_sender_until_it_is_banned(self) -> None:
        async with pair() as (first, _, second, second_seen):
            first.push(second.peer_id, PUSH, b"reject")
            first.push(second.peer_id, PUSH, b"fine")
            await second_seen.until(lambda: bool(second_seen.pushes))
            assert second.statistics()["refused"] == {"wrong-height": 1}
            assert second.peers() == (first.peer_id,)
            for _ in range(120):
                first.push(second.peer_id, PUSH, b"reject")
            await second_seen.until(lambda: second_seen.log == ["connected", "disconnected"])
            assert second.statistics()["banned"] == [first.peer_id]
            await eventually(lambda: first.peers() == ())
            with pytest.raises(TransportError, match="banned"):
                await second.dial(first.addresses[0])


class TestRequesting:
    async def test_an_answer_comes_back_on_a_stream_that_is_kept(self) -> None:
        async with pair() as (first, _, second, _):
            for _ in range(10):
                assert await echo_works(first, second.peer_id)
            assert len(first._sessions[second.peer_id]._idle[ASK]) == 1

    async def test_both_sides_can_ask_each_other(self) -> None:
        async with pair() as (first, _, second, _):
            assert await echo_works(second, first.peer_id)
            assert await echo_works(first, second.peer_id)

    async def test_the_largest_answer_arrives_whole(self) -> None:
        size = streams.MAX_ANSWER_BYTES
        async with pair() as (first, _, second, _):
            answer = await first.request(second.peer_id, ASK, b"size %d" % size, timeout_s=20, max_response_bytes=size)
            assert answer == b"x" * size

    async def test_a_refusal_carries_its_reason_and_is_not_held_against_the_asker(self) -> None:
        async with pair() as (first, _, second, _):
            with pytest.raises(RemoteRefusal) as refusal:
                await first.request(second.peer_id, ASK, b"reject", timeout_s=5, max_response_bytes=10)
            assert refusal.value.reason == "wrong-height: seen=7, expected=9"
            assert second.statistics()["scores"] == {}

    def test_a_peers_words_can_not_forge_a_line_of_a_log(self) -> None:
        assert streams.printable("full\n2026 INFO all is well \x1b[2J") == "full?2026 INFO all is well ?[2J"

    async def test_a_crash_in_the_handler_is_a_failed_request_and_nothing_else(self) -> None:
        async with pair() as (first, _, second, _):
            with pytest.raises(TransportError, match="failed to answer: internal error"):
                await first.request(second.peer_id, ASK, b"crash", timeout_s=5, max_response_bytes=10)
            assert await echo_works(first, second.peer_id)

    async def test_an_answer_that_is_too_late_is_given_up(self) -> None:
        async with pair() as (first, _, second, _):
            with pytest.raises(TransportError, match=r"didn't answer /test/ask/1 in 0.2 s"):
                await first.request(second.peer_id, ASK, b"sleep", timeout_s=0.2, max_response_bytes=10)
            assert await echo_works(first, second.peer_id)

    async def test_an_answer_that_is_too_large_counts_against_the_peer(self) -> None:
        async with pair() as (first, _, second, _):
            with pytest.raises(TransportError, match="too-large: size=400, limit=100"):
                await first.request(second.peer_id, ASK, b"size 400", timeout_s=5, max_response_bytes=100)
            assert first.statistics()["scores"][second.peer_id] > 20
            assert await echo_works(first, second.peer_id)

    async def test_many_requests_share_few_streams(self) -> None:
        async with pair() as (first, _, second, _):
            ask = partial(first.request, second.peer_id, ASK, b"size 5000", timeout_s=20, max_response_bytes=5000)
            await at_once(*[ask] * 30)
            assert len(first._sessions[second.peer_id]._idle[ASK]) == streams.MAX_CONCURRENT_REQUESTS

    async def test_a_stream_that_died_while_idle_is_replaced(self) -> None:
        async with pair() as (first, _, second, _):
            assert await echo_works(first, second.peer_id)
            connection = second._swarm.live_connections(ID.from_base58(first.peer_id))[0]
            for stream in connection.get_streams():
                await stream.reset()
            assert await echo_works(first, second.peer_id)

    async def test_misuse_is_an_error_of_the_caller(self) -> None:
        async with pair() as (first, _, second, _):
            with pytest.raises(ValueError, match="65537 bytes exceeds 65536"):
                await first.request(second.peer_id, ASK, bytes(65537), timeout_s=5, max_response_bytes=10)
            with pytest.raises(ValueError, match="request protocol '/other' is not one of"):
                await first.request(second.peer_id, "/other", b"", timeout_s=5, max_response_bytes=10)
            with pytest.raises(TransportError, match="is not connected"):
                await first.request(NOBODY, ASK, b"", timeout_s=5, max_response_bytes=10)


class TestGossip:
    async def test_a_burst_of_a_hundred_messages_arrives_whole_and_in_order(self) -> None:
        async with pair() as (first, first_seen, _, second_seen):
            await first.wait_for_mesh(TOPIC, timeout_s=5)
            for number in range(100):
                await first.publish(TOPIC, b"%d" % number)
            await second_seen.until(lambda: len(second_seen.gossip) == 100)
            assert second_seen.gossip == [(TOPIC, first.peer_id, b"%d" % number) for number in range(100)]
            assert first_seen.gossip == []

    async def test_a_message_is_forwarded_by_those_between(self) -> None:
        async with networks(3) as [(first, _), (middle, _), (last, last_seen)]:
            await middle.dial(first.addresses[0])
            await middle.dial(last.addresses[0])
            await first.wait_for_mesh(TOPIC, timeout_s=5)
            await middle.wait_for_mesh(TOPIC, timeout_s=5, peers=2)
            await first.publish(TOPIC, b"x" * 60_000)
            await last_seen.until(lambda: bool(last_seen.gossip))
            assert last_seen.gossip == [(TOPIC, middle.peer_id, b"x" * 60_000)]

    async def test_a_rejected_message_is_not_forwarded_and_counts_against_the_sender(self) -> None:
        class Lenient(Recorder):
            def _judge(self, data: bytes) -> None:
                return

        async with (
            networks(2) as [(first, _), (middle, _)],
            open_network(config(3), (last_seen := Lenient())) as last,
        ):
            await middle.dial(first.addresses[0])
            await middle.dial(last.addresses[0])
            await first.wait_for_mesh(TOPIC, timeout_s=5)
            await middle.wait_for_mesh(TOPIC, timeout_s=5, peers=2)
            await first.publish(TOPIC, b"reject me")
            await first.publish(TOPIC, b"fine")
            await last_seen.until(lambda: bool(last_seen.gossip))
            assert [data for _, _, data in last_seen.gossip] == [b"fine"]
            assert list(middle.statistics()["scores"]) == [first.peer_id]

    async def test_a_crash_in_the_handler_loses_one_message_and_nothing_else(self) -> None:
        async with pair() as (first, _, _, second_seen):
            await first.wait_for_mesh(TOPIC, timeout_s=5)
            await first.publish(TOPIC, b"crash")
            await first.publish(TOPIC, b"after")
            await second_seen.until(lambda: bool(second_seen.gossip))
            assert [data for _, _, data in second_seen.gossip] == [b"after"]

    async def test_misuse_is_an_error_of_the_caller(self) -> None:
        async with networks(1) as [(network, _)]:
            with pytest.raises(ValueError, match="60001 bytes exceeds 60000"):
                await network.publish(TOPIC, bytes(60_001))
            with pytest.raises(ValueError, match="topic 'other' is not one of"):
                await network.publish("other", b"")

    async def test_waiting_for_a_mesh_has_a_deadline(self) -> None:
        async with networks(1) as [(network, _)]:
            with pytest.raises(TransportError, match=r"has 0 peers after 0\.1 s, not 1"):
                await network.wait_for_mesh(TOPIC, timeout_s=0.1)

    async def test_a_restarted_publisher_is_heard_although_it_sent_much_before(self) -> None:
        async with networks(1) as [(listener, seen)]:
            for life in (b"first", b"second"):
                async with open_network(config(2), Recorder()) as publisher:
                    await publisher.dial(listener.addresses[0])
                    await publisher.wait_for_mesh(TOPIC, timeout_s=12)
                    for number in range(20):
                        await publisher.publish(TOPIC, b"%s %d" % (life, number))
                    await seen.until(lambda life=life: seen.gossip[-1:] and seen.gossip[-1][2] == b"%s 19" % life)
            assert len(seen.gossip) == 40

    async def test_eight_networks_form_a_mesh_that_reaches_everybody(self) -> None:
        async with networks(8) as opened:
            for index, (network, _) in enumerate(opened):
                for other, _ in opened[:index]:
                    await network.dial(other.addresses[0])
            assert {len(network.peers()) for network, _ in opened} == {7}
            await at_once(*[partial(network.wait_for_mesh, TOPIC, timeout_s=5) for network, _ in opened])
            await opened[0][0].publish(TOPIC, b"to all")
            for _, seen in opened[1:]:
                await seen.until(lambda seen=seen: bool(seen.gossip))
            assert [len(seen.gossip) for _, seen in opened] == [0] + [1] * 7


async def test_libp2p_is_quiet_when_peers_come_and_go(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with pair() as (first, _, second, _):
            assert await echo_works(first, second.peer_id)
            with pytest.raises(TransportError):
                await first.dial(f"/ip4/127.0.0.1/tcp/1/p2p/{NOBODY}")
    assert [record.getMessage() for record in caplog.records if record.name.startswith("libp2p")] == []


async def test_statistics_count_messages_and_bytes() -> None:
    async with pair() as (first, _, second, second_seen):
        await first.wait_for_mesh(TOPIC, timeout_s=5)
        await first.publish(TOPIC, b"12345")
        first.push(second.peer_id, PUSH, b"123")
        assert await echo_works(first, second.peer_id)
        await second_seen.until(lambda: bool(second_seen.gossip and second_seen.pushes))
        statistics = second.statistics()
    assert statistics == {
        "peers": 1,
        "connections": 1,
        "throttled": {},
        "turned_away": {},
        "bytes_in": 13,
        "bytes_out": 6,
        "messages_in": {TOPIC: 1, PUSH: 1, ASK: 1},
        "messages_out": {ASK: 1},
        "refused": {},
        "dropped": {},
        "mesh": {TOPIC: 1},
        "scores": {},
        "banned": [],
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


CHILD = """
import sys, trio
from bflnode.node.p2p.network import open_network
from tests.node.networks import Recorder, config

async def main():
    async with open_network(config(99, listen=(f"/ip4/127.0.0.1/tcp/{sys.argv[1]}",)), Recorder()) as network:
        print(network.peer_id, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def _start_child(port: int) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(port)], stdout=subprocess.PIPE, text=True, env=environment
    )


async def _child_id(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    with trio.fail_after(30):
        return (await trio.to_thread.run_sync(child.stdout.readline, abandon_on_cancel=True)).strip()
