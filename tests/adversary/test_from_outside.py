"""Attacks from outside that must not crash, stall, fill or mislead a node: each test is an attack that fails."""

import json
import logging
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamError

from bflnode.consensus import block as records
from bflnode.consensus.agreement import Status, Step
from bflnode.consensus.block import Commit, CommitSignature, ProposalMessage, VoteKind, sign_proposal, sign_vote
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.types import Signature
from bflnode.node.agreement_driver import MessageReceived
from bflnode.node.configuration import load_configuration
from bflnode.node.node import Node, open_node
from bflnode.node.node_clock import now_ms
from bflnode.node.p2p.bans import FOR_EVER_MS, MAX_BANS, Bans
from bflnode.node.p2p.inbound import VIOLATION_COST
from bflnode.node.p2p.libp2p_repairs import MAX_STREAMS_PER_PROTOCOL
from bflnode.node.p2p.messages import (
    BLOCKS,
    CHUNKS,
    STATUS,
    VOTES,
    Batch,
    ChunkRequest,
    FinalBlock,
    blocks_topic,
    transactions_topic,
)
from bflnode.node.p2p.network import PeerId, TransportError
from bflnode.node.p2p.notices import NOTICE
from bflnode.node.p2p.rate_limits import Rate
from bflnode.node.p2p.scores import BAN_SCORE
from bflnode.node.p2p.streams import framed
from bflnode.node.rpc import server as rpc
from tests.node.drivers import Site, genesis_of, sites
from tests.node.networks import PUSH, echo_works, eventually, networks, pair, raw_stream
from tests.node.nodes import opened, running, small_network, until
from tests.node.rpc.test_server import two_accounts
from tests.node.strangers import stranger_of
from tests.node.test_transaction_relay import transfer

ALONE = {"p2p": {"persistent_peers": ()}, "training": {"enabled": False}}
STRANGER = PeerId("stranger")
MANY_VOTES = 256


def crowd(site: Site, height: int) -> ProposalMessage:
    """A proposal again by a stranger, with as many prevotes as fit of strangers that it invented."""
    chain_id, keys = (
        site.chain.genesis.chain_id,
        [SecretKey.from_seed(bytes([9]) * 31 + bytes([n])) for n in range(256)],
    )
    block = site.chain.build(site.key.account, round_=0, time_ms=0, candidates=())
    proposal = sign_proposal(keys[0], chain_id, height=height, round_=1, valid_round=0, block_id=block.id)
    votes = tuple(sign_vote(key, chain_id, VoteKind.PREVOTE, height, 0, block.id) for key in keys)
    return ProposalMessage(proposal, block, votes)


@pytest.mark.parametrize("ahead", [0, 1])
async def test_strangers_certificates_cost_no_signature_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """One took a tenth of a second of the only thread, and each connection could send eight a second for nothing."""
    checked: list[bytes] = []
    async with sites(tmp_path, genesis_of(4), 1) as (_, [site]):
        message = crowd(site, site.driver.machine.height + ahead)
        monkeypatch.setattr(records, "verify", lambda account, *_: checked.append(account))
        for item in (message, message.certificate[0]):
            assert site.driver.deliver(MessageReceived(item, STRANGER))
        site.driver.poke()
        await eventually(lambda: site.driver._receive.statistics().current_buffer_used == 0)
        await trio.testing.wait_all_tasks_blocked()
        assert checked == []
        assert len(site.punished) == (0 if ahead else 2)
        assert not site.driver._early_proposals


async def test_a_proposal_relayed_with_a_certificate_of_strangers_costs_no_check_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[bytes] = []
    async with sites(tmp_path, genesis_of(4), 1) as (_, [site]):
        message, chain_id = crowd(site, site.driver.machine.height + 1), site.chain.genesis.chain_id
        own = sign_proposal(
            site.key, chain_id, height=message.proposal.height, round_=1, valid_round=0, block_id=message.block.id
        )
        monkeypatch.setattr(records, "verify", lambda account, *_: checked.append(account))
        assert site.driver.deliver(MessageReceived(replace(message, proposal=own), STRANGER))
        vote = sign_vote(site.key, chain_id, VoteKind.PREVOTE, own.height, 0, message.block.id)
        twice = replace(message, proposal=own, certificate=(vote,) * MANY_VOTES)
        assert site.driver.deliver(MessageReceived(twice, STRANGER))
        await eventually(lambda: site.driver._receive.statistics().current_buffer_used == 0)
        await trio.testing.wait_all_tasks_blocked()
        assert checked == []


async def test_false_votes_in_a_validators_name_cost_some_checks_and_then_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand at once, and a hundred a second, each cost a check, also those that came before the ban."""
    network, checked = small_network(tmp_path, validators=2), []
    async with opened(network.homes[:1], **ALONE) as [node], stranger_of(node) as stranger:
        monkeypatch.setattr(records, "verify", counting(checked, records.verify))
        vote = sign_vote(node.key, node.chain.genesis.chain_id, VoteKind.PREVOTE, 1, 0, records.NIL)
        for round_ in range(200):
            stranger.push(
                VOTES, replace(vote, round=1 + round_ % 3, signature=Signature(bytes([round_]) * 64)).to_bytes()
            )
        await eventually(lambda: node.network.statistics()["messages_in"].get(VOTES) == 200)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.agreement.run)
            await eventually(lambda: stranger.network.peers() == ())
            await eventually(lambda: node.agreement._receive.statistics().current_buffer_used == 0)
            nursery.cancel_scope.cancel()
        assert len(checked) == BAN_SCORE // VIOLATION_COST + 1
        assert stranger.network.peer_id in node.network.statistics()["banned"]


def counting(calls: list[bytes], function: Callable[..., None]) -> Callable[..., None]:
    def counted(account: bytes, *arguments: Any) -> None:
        calls.append(account)
        function(account, *arguments)

    return counted


async def test_frames_that_wait_for_their_rate_wait_with_their_sender() -> None:
    """A hundred streams parked 1.5 MiB each in the victim: five strangers took half a gigabyte in half a minute."""
    rates = {PUSH: Rate(per_s=0.01, burst=1)}
    async with pair(rates=rates) as (attacker, _, victim, victim_seen):
        streams = [await raw_stream(attacker, victim.peer_id, PUSH) for _ in range(4)]
        for stream in streams:
            await stream.write(framed(bytes(60_000)))
        await eventually(lambda: victim.statistics()["throttled"].get(PUSH, 0) == 3)
        await eventually(lambda: len(victim_seen.pushes) == 1)
        assert victim.statistics()["bytes_in"] < 120_000
        assert await echo_works(attacker, victim.peer_id)


async def test_many_streams_of_one_protocol_are_cut_and_leave_nothing_behind() -> None:
    async with pair(rates={PUSH: Rate(per_s=0.01, burst=1)}) as (attacker, _, victim, victim_seen):
        for _ in range(4 * MAX_STREAMS_PER_PROTOCOL):
            with suppress(SwarmException, StreamError):
                stream = await raw_stream(attacker, victim.peer_id, PUSH)
                await stream.write(framed(b"held"))
        await eventually(lambda: victim.statistics()["throttled"].get(PUSH, 0) == MAX_STREAMS_PER_PROTOCOL - 1)
        assert await echo_works(attacker, victim.peer_id)
        assert victim.statistics()["scores"] == {}
        await attacker.disconnect(victim.peer_id)
        await victim_seen.until(lambda: bool(victim_seen.disconnected))
        await eventually(lambda: not victim._host._serving)


async def test_requests_that_the_disk_never_answers_leave_threads_for_the_signer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty of them, of any peers, and nothing could be signed or appended any more."""
    network, is_over = small_network(tmp_path, validators=1), threading.Event()

    def hang(data: bytes) -> bytes:
        assert is_over.wait(30)
        return data

    async with running(network.homes[:1], **ALONE) as [node]:
        monkeypatch.setattr(node.exchange, "serve_chunk", hang)
        monkeypatch.setattr(node.exchange, "serve_manifest", hang)
        request = framed(ChunkRequest(node.chain.genesis.tasks[0].specification.initial_model, 0).to_bytes())
        try:
            async with stranger_of(node, seed=71) as one, stranger_of(node, seed=72) as two:
                held = []
                for stranger in (one, two):
                    for _ in range(MAX_STREAMS_PER_PROTOCOL):
                        for protocol in (CHUNKS, "/bflnode/manifests/1"):
                            held.append(await raw_stream(stranger.network, stranger.node, protocol))
                            await held[-1].write(request)
                await eventually(lambda: node._serving.statistics().tasks_waiting > 8)
                assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
                sent = transfer(node)
                node.relay.submit(sent)
                await until(node, lambda: node.chain.store.transaction(sent.id) is not None, 10)
        finally:
            is_over.set()


async def test_last_words_without_end_do_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A hundred lines a second of half a kilobyte each, from a connection that then belonged to nobody."""
    caplog.set_level(logging.INFO)
    network = small_network(tmp_path, validators=1)
    async with running(network.homes[:1], **ALONE) as [node], stranger_of(node) as stranger:
        with suppress(SwarmException, StreamError):
            for _ in range(200):
                stream = await raw_stream(stranger.network, stranger.node, NOTICE)
                await stream.write(framed(b"farewell " * 50))
        assert sum("farewell" in record.getMessage() for record in caplog.records) == 1
        await eventually(lambda: node.network.statistics()["connections"] == 0)


async def test_connections_to_the_rpc_without_end_leave_descriptors_for_the_node(
    served: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request whose body never came held its descriptor for ever: with all of them the node was deaf."""
    monkeypatch.setattr(rpc, "REQUEST_TIMEOUT_S", 0.5)
    half = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9000\r\n\r\n{"
    held = [await trio.open_tcp_stream("127.0.0.1", served) for _ in range(rpc.MAX_CONNECTIONS + 6)]
    turned_away = 0
    for stream in held[: rpc.MAX_CONNECTIONS]:
        await stream.send_all(half)
    for stream in held[rpc.MAX_CONNECTIONS :]:
        turned_away += await stream.receive_some() == b""
    assert turned_away == 6
    with trio.fail_after(10):
        assert b" 408 " in await held[0].receive_some()
        for stream in held:
            await stream.aclose()
        answer = await answered(served)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\norigin: http://evil.example\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(60),
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 400\r\n\r\n{",
    ],
)
async def test_bytes_after_a_refused_websocket_do_not_end_the_node(
    served: int, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The second answer broke the library's rules, and its fault left all nurseries, and the daemon exited."""
    for _ in range(3):
        async with await trio.open_tcp_stream("127.0.0.1", served) as stream:
            await stream.send_all(sent)
            with trio.move_on_after(0.05):
                await stream.receive_some()
            with suppress(trio.BrokenResourceError):
                await stream.send_all(b"zz\r\n")
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"http://127.0.0.1:{served}/livez")).status_code == 200
    assert not [record for record in caplog.records if record.name.startswith("bflnode.node.rpc.server")]


async def answered(served: int) -> httpx.Response:
    """The answer to who asks again until there is a place."""
    async with httpx.AsyncClient(trust_env=False) as http:
        while True:
            try:
                return await http.get(f"http://127.0.0.1:{served}/livez")
            except httpx.TransportError:
                await trio.sleep(0.05)


MALFORMED_REQUESTS = (
    b"\x00\xff\x00\xff\r\n\r\n",
    b"GET / HTTP/1.1\r\nnot a header\r\n\r\n",
    b"GET /livez HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(60),
    b"\x16\x03\x01\x00\xba\x01\x00\x00\xb6\x03\x03" + bytes(180),
    b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000,
)


async def test_connections_that_malformed_input_ends_give_back_their_places_at_once(served: int) -> None:
    """Their clients don't close them: the node does, long before an idle connection's time is over."""
    async with AsyncExitStack() as stack:
        for number in range(rpc.MAX_CONNECTIONS):
            stream = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", served))
            await stream.send_all(MALFORMED_REQUESTS[number % len(MALFORMED_REQUESTS)])
        with trio.fail_after(10):
            answer = await answered(served)
    assert answer.status_code == 200


async def test_a_client_that_reads_no_answer_does_not_keep_the_node_from_stopping(tmp_path: Path) -> None:
    home, _ = two_accounts(tmp_path / "served")
    body = json.dumps({"jsonrpc": "2.0", "id": "x" * 300_000, "method": "nothing"}).encode()
    head = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with trio.fail_after(20):
        async with open_node(home, load_configuration(home)) as node, trio.open_nursery() as nursery:
            url: str = await nursery.start(rpc.serve, node)
            stream = await trio.open_tcp_stream("127.0.0.1", int(url.rsplit(":", 1)[1]))
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
            with trio.move_on_after(2):
                while True:
                    await stream.send_all(head % len(body) + body)
            nursery.cancel_scope.cancel()


def test_new_identities_do_not_push_out_what_the_operator_banned() -> None:
    bans = Bans(lambda: 1_700_000_000_000)
    bans.ban("192.0.2.66", reason="attacks us")
    for number in range(2 * MAX_BANS):
        bans.punish(f"identity {number}", "garbage")
    ban = bans.get("192.0.2.66")
    assert ban is not None
    assert ban.until_ms == FOR_EVER_MS
    assert len(bans.all()) == MAX_BANS


async def test_a_node_that_catches_up_cannot_be_made_to_pass_on_what_others_ban_it_for(tmp_path: Path) -> None:
    """Transfers of money that is spent by now look good to it, and cost it the trust of all that know better."""
    network = small_network(tmp_path, validators=1)
    async with opened(network.homes[:1], **ALONE) as [node], stranger_of(node) as stranger:
        final, topic = final_block(node), transactions_topic(node.chain.genesis.chain_id)
        stranger.silent_on.add(BLOCKS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.synchroniser.run)
            stranger.push(STATUS, Status(1000, 0, Step.PROPOSE, ()).to_bytes())
            await eventually(lambda: node.synchroniser.is_syncing)
            assert node.on_gossip(topic, STRANGER, Batch((transfer(node, 2),)).to_bytes()) is True
            nursery.start_soon(node.agreement.run)
            await node.agreement.adopt(final)
            assert node.on_gossip(topic, STRANGER, Batch((transfer(node, 3),)).to_bytes()) is False
            nursery.cancel_scope.cancel()
        assert len(node.mempool) == 2


async def test_a_final_block_with_another_body_does_not_hide_the_real_one(tmp_path: Path) -> None:
    network = small_network(tmp_path, validators=1)
    async with opened(network.homes[:1], **ALONE) as [node]:
        final, topic = final_block(node), blocks_topic(node.chain.genesis.chain_id)
        forged = replace(final, block=replace(final.block, transactions=final.block.transactions * 2))
        with pytest.raises(Rejection):
            node.on_gossip(topic, STRANGER, forged.to_bytes())
        assert node.on_gossip(topic, STRANGER, final.to_bytes()) is True


async def test_two_heights_are_passed_on_once_each_however_often_they_come_in_turns(tmp_path: Path) -> None:
    network = small_network(tmp_path, validators=1)
    async with opened(network.homes[:1], **ALONE) as [node]:
        tip, topic = final_block(node), blocks_topic(node.chain.genesis.chain_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.agreement.run)
            await node.agreement.adopt(tip)
            nursery.cancel_scope.cancel()
        following = final_block(node)
        passed = [node.on_gossip(topic, STRANGER, final.to_bytes()) for final in (tip, following, tip, following)]
        assert passed == [True, True, False, False]


def final_block(node: Node) -> FinalBlock:
    """The next block of the only validator, with a transaction and its precommit."""
    height, chain_id = node.chain.height + 1, node.chain.genesis.chain_id
    block = node.chain.build(node.key.account, round_=0, time_ms=now_ms(), candidates=(transfer(node),))
    vote = sign_vote(node.key, chain_id, VoteKind.PRECOMMIT, height, 0, block.id)
    return FinalBlock(block, Commit(height, 0, block.id, (CommitSignature(0, vote.signature),)))


async def test_a_length_beyond_all_memory_in_a_handshake_is_an_error_of_that_connection() -> None:
    """The library asked the system for as many bytes as the stranger named, in both directions."""
    endless = b"\xff" * 8 + b"\x7f" + bytes(100)

    async def answer(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(endless)
            await stream.receive_some()

    async with trio.open_nursery() as nursery, networks(2) as [(first, _), (second, _)]:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        port = listener.socket.getsockname()[1]
        with pytest.raises(TransportError):
            await first.dial(f"/ip4/127.0.0.1/tcp/{port}/p2p/{second.peer_id}")
        own = int(first.addresses[0].split("/")[4])
        async with await trio.open_tcp_stream("127.0.0.1", own) as stream:
            await stream.send_all(endless)
            await stream.receive_some()
        await second.dial(first.addresses[0])
        assert second.peers() == (first.peer_id,)
        nursery.cancel_scope.cancel()
