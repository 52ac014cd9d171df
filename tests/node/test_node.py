"""Whole nodes: kinds of tasks, kinds of members, restarts, hostile peers, failing disks."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from bflnode.consensus.block import NIL, Vote, VoteKind, sign_proposal, sign_vote
from bflnode.consensus.block import ProposalMessage as Message
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.transaction import Transfer, sign_transaction
from bflnode.consensus.types import Signature
from bflnode.node.configuration import load_configuration
from bflnode.node.home import HomeError
from bflnode.node.node import Node
from bflnode.node.p2p.messages import (
    BLOCKS,
    CHUNKS,
    HELLO,
    MANIFESTS,
    PENDING,
    PROPOSALS,
    STATUS,
    TRANSACTIONS,
    VOTES,
    Batch,
    BlocksRequest,
    ChunkRequest,
    FinalBlocks,
    ManifestRequest,
    transactions_topic,
)
from bflnode.node.p2p.network import RemoteRefusal, TransportError
from bflnode.node.testnets.homes import add_node
from bflnode.storage.errors import StorageError
from tests.node.networks import eventually
from tests.node.nodes import (
    client_of,
    going,
    is_included,
    learning_round,
    opened,
    running,
    settled_rounds,
    small_network,
    until,
    until_done,
)
from tests.node.strangers import Stranger, stranger_of

pytestmark = pytest.mark.usefixtures("forking")


async def test_a_probe_of_the_aggregators_own_data_and_means_by_samples_work_end_to_end(tmp_path: Path) -> None:
    net = small_network(tmp_path, probe_mode="aggregator", similarity="prototypes", weighting="samples", rounds=2)
    async with running(net.homes) as nodes:
        await until_done(nodes, patience_s=60)
        roots = {node.chain.tree.root for node in nodes}
        rounds = settled_rounds(nodes[0])
    assert len(roots) == 1
    assert [settled.slot.attempt for settled in rounds] == [0, 0]
    for settled in rounds:
        assert settled.aggregation is not None
        assert settled.aggregation.opening is not None
        assert len(settled.included) == 4


async def test_a_validator_without_training_votes_and_a_newcomer_is_admitted_and_learns(tmp_path: Path) -> None:
    net = small_network(tmp_path, rounds=3)
    idle, *others = net.homes
    _, newcomer = add_node(net)
    one = load_configuration(newcomer).p2p.persistent_peers[1]
    async with (
        opened([idle], training={"enabled": False}) as [validator],
        opened(others) as trainees,
        opened([newcomer], p2p={"persistent_peers": (one,)}) as [late],
    ):
        rest = [*trainees, late]
        async with going([validator, *rest]):
            await until_done([validator, *rest], patience_s=60)
        joined, rounds, peers = late.key.account, settled_rounds(late), late.peers.all()
    assert len(peers) == 4, "a hello names the others"
    assert all(validator.key.account not in {client.account for client in settled.clients} for settled in rounds)
    assert is_included(rounds[-1], joined)
    assert client_of(rounds[-1], joined).gross > 0


async def test_a_node_that_restarts_between_commit_and_reveal_opens_its_commitment(tmp_path: Path) -> None:
    net = small_network(tmp_path)
    sleeper, *others = net.homes
    async with opened(others) as nodes:
        async with opened([sleeper]) as [before], going([*nodes, before]):
            account = before.key.account

            def has_committed() -> bool:
                current = learning_round(before)
                position = None if current is None else current.position_of(account)
                return position is not None and current is not None and current.clients[position].committed is not None

            await until(before, has_committed)
            current = learning_round(before)
            assert current is not None
        # Nobody was ready to go on without it: three of four are more than two thirds, and wait for its REVEAL.
        async with opened([sleeper]) as [after], going([*nodes, after]):
            await until_done([after, *nodes], patience_s=60)
            settled = settled_rounds(after)[0]
    assert is_included(settled, account)


async def test_a_node_whose_chain_is_lost_fetches_it_again_and_votes_again(tmp_path: Path) -> None:
    net = small_network(tmp_path, rounds=2)
    lost, *others = net.homes
    async with opened(others) as nodes, going(nodes):
        async with running([lost]) as [before]:
            await until(before, lambda: before.chain.height >= 4)
        assert before._wal.mark[0] >= 4
        shutil.rmtree(lost.chain)
        async with running([lost]) as [after]:
            await until_done([after, *nodes], patience_s=60)
            assert after.chain.tree.root == nodes[0].chain.tree.root
            assert after.agreement.machine._account == after.key.account


async def test_a_disk_that_fails_stops_the_node_with_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = small_network(tmp_path)

    def fail(*_: object) -> None:
        raise StorageError(Path("/disk"), "writing block 1 failed: No space left on device", "Free some space")

    message = "/disk: writing block 1 failed: No space left on device. Free some space"
    with pytest.raises(StorageError, match=re.escape(message)):  # noqa: PT012 - it is raised when the node is left
        async with opened(net.homes) as nodes:
            monkeypatch.setattr(nodes[0].chain.store, "append", fail)
            async with going(nodes):
                await trio.sleep_forever()


async def test_a_peer_address_that_is_none_is_named_before_anything_runs(tmp_path: Path) -> None:
    net = small_network(tmp_path)
    with pytest.raises(HomeError, match=r"peer address 'nonsense'.*p2p\.persistent_peers"):
        async with opened(net.homes[:1], p2p={"persistent_peers": ("nonsense",)}):
            pass


async def test_a_home_in_use_is_refused(tmp_path: Path) -> None:
    net = small_network(tmp_path)
    async with opened(net.homes[:1]):
        with pytest.raises(StorageError, match="node0"):
            async with opened(net.homes[:1]):
                pass


JUNK = (b"", b"\x00", b"\xff" * 1000, b"\x93\x01\x02\x03", b"\x91" * 500)


def forged(node: Node, stranger: Stranger) -> list[tuple[str, bytes]]:
    """Well-formed messages that no correct node sends."""
    chain_id, height = node.chain.genesis.chain_id, node.chain.height + 1
    vote = sign_vote(stranger.key, chain_id, VoteKind.PREVOTE, height, 0, NIL)
    stolen = replace(vote, validator=node.key.account)
    block = node.chain.build(stranger.key.account, round_=0, time_ms=0, candidates=())
    proposal = sign_proposal(stranger.key, chain_id, height=height, round_=0, valid_round=-1, block_id=block.id)
    transfer = sign_transaction(stranger.key, chain_id, Transfer(node.key.account, 1))
    unsigned = replace(transfer, signature=Signature(bytes(64)))
    return [
        (VOTES, vote.to_bytes()),
        (VOTES, stolen.to_bytes()),
        (PROPOSALS, Message(proposal, block, ()).to_bytes()),
        (PROPOSALS, Message(replace(proposal, height=2**50), block, ()).to_bytes()),
        (TRANSACTIONS, Batch((unsigned,)).to_bytes()),
        (TRANSACTIONS, Batch((transfer,)).to_bytes()),
    ]


async def test_no_message_of_a_peer_stops_a_node(tmp_path: Path) -> None:
    net = small_network(tmp_path, rounds=2)
    async with running(net.homes) as nodes:
        target = nodes[0]
        for number, junk in enumerate(JUNK):
            async with stranger_of(target, seed=100 + number) as stranger:
                for protocol in (VOTES, PROPOSALS, TRANSACTIONS, STATUS):
                    stranger.network.push(stranger.node, protocol, junk)
                for protocol in (HELLO, BLOCKS, MANIFESTS, CHUNKS, PENDING):
                    try:
                        await stranger.ask(protocol, junk)
                    except (RemoteRefusal, TransportError):
                        continue
                await stranger.network.publish(transactions_topic(stranger.chain_id), junk)
        for number, (protocol, data) in enumerate(forged(target, stranger)):
            async with stranger_of(target, seed=150 + number) as stranger:
                stranger.network.push(stranger.node, protocol, data)
                async with stranger_of(target, seed=200) as honest:
                    assert await honest.ask(PENDING, b"")
        await until_done(nodes, patience_s=60)
        assert {node.chain.tree.root for node in nodes} == {target.chain.tree.root}


async def test_requests_beyond_what_is_there_are_refused_with_a_reason(tmp_path: Path) -> None:
    net = small_network(tmp_path)
    async with opened(net.homes[:1]) as [node], stranger_of(node) as stranger:
        assert await stranger.ask(BLOCKS, BlocksRequest(2**53, 32).to_bytes()) == FinalBlocks(()).to_bytes()
        with pytest.raises(RemoteRefusal, match="unknown-blob"):
            await stranger.ask(MANIFESTS, ManifestRequest(NIL).to_bytes())  # type: ignore[arg-type]  # any 32 bytes
        blob = node.blobs.list()[0]
        with pytest.raises(RemoteRefusal, match="limit: chunk=4611686018427387904"):
            await stranger.ask(CHUNKS, ChunkRequest(blob, 2**62).to_bytes())


async def test_a_flood_of_bad_votes_gets_its_sender_banned(tmp_path: Path) -> None:
    net = small_network(tmp_path)
    async with running(net.homes[:1]) as [node], stranger_of(node) as stranger:
        key = SecretKey.from_seed(bytes([7]) * 32)
        for round_ in range(8):
            vote = sign_vote(key, stranger.chain_id, VoteKind.PREVOTE, node.chain.height + 1, round_, NIL)
            stranger.push(VOTES, vote.to_bytes())
        await eventually(lambda: stranger.network.peer_id in node.network.statistics()["banned"])
        await eventually(lambda: node.peers.get(stranger.network.peer_id) is None)


async def test_a_peer_that_has_not_said_hello_is_not_listened_to(tmp_path: Path) -> None:
    net = small_network(tmp_path)
    async with opened(net.homes[:1]) as [node], stranger_of(node, greets=False) as stranger:
        stranger.chain_id = replace(node.chain.genesis, name="another").chain_id
        await eventually(lambda: HELLO in stranger.asked)
        vote = Vote(VoteKind.PREVOTE, 1, 0, NIL, stranger.key.account, Signature(bytes(64)))
        stranger.network.push(stranger.node, VOTES, vote.to_bytes())
        await eventually(lambda: not stranger.network.is_connected(stranger.node))
        assert node.peers.all() == ()
        assert not node.network.statistics()["refused"]
