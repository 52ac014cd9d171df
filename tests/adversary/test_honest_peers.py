"""Attacks that would have honest peers banned, cut, kept out or not asked: each test is an attack that fails."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from bflnode.consensus.agreement import Status, Step
from bflnode.consensus.block import NIL, ProposalMessage, VoteKind, sign_proposal, sign_vote
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.transaction import Transaction, Transfer, sign_transaction
from bflnode.consensus.types import Signature
from bflnode.node.agreement_driver import ANSWERED_VOTES, ANSWERS, MessageReceived, StatusReceived
from bflnode.node.node import Node
from bflnode.node.p2p.inbound import VIOLATION_COST
from bflnode.node.p2p.messages import MAX_BATCH, MAX_PUSH_BYTES, PROPOSALS, VOTES, Batch, transactions_topic
from bflnode.node.p2p.network import PeerId
from bflnode.node.p2p.scores import BAN_SCORE
from tests.node.drivers import Site, Wires, genesis_of, key_of, sites
from tests.node.networks import eventually
from tests.node.nodes import opened, small_network
from tests.node.strangers import stranger_of
from tests.node.test_transaction_relay import transfer

QUIET = {"training": {"enabled": False}}
STRANGERS = [PeerId(f"stranger {number}") for number in range(30)]


def forged(transaction: Transaction, number: int) -> Transaction:
    """The same transaction, by its id, with a signature that nobody made."""
    return replace(transaction, signature=Signature(bytes([number]) * 64))


async def test_copies_with_false_signatures_of_what_waits_do_not_get_a_node_banned_by_its_peers(tmp_path: Path) -> None:
    """The id leaves the signature out: a node knew the copy, passed it on unseen, and four of them were its ban."""
    homes = small_network(tmp_path, validators=2).homes[:2]
    async with opened(homes, **QUIET) as [node, other], stranger_of(node) as stranger:
        topic = transactions_topic(node.chain.genesis.chain_id)
        for network in (node.network, stranger.network):
            await network.wait_for_mesh(topic, timeout_s=10)
        waiting = transfer(node)
        node.relay.accept(waiting)
        for number in range(int(BAN_SCORE // VIOLATION_COST) + 1):
            await stranger.network.publish(topic, Batch((forged(waiting, number),)).to_bytes())
        last = transfer(node, 1)
        await stranger.network.publish(topic, Batch((last,)).to_bytes())
        await eventually(lambda: last.id in other.mempool)
        assert node.network.peer_id not in other.network.statistics()["banned"]
        assert node.network.peer_id in other.network.peers()


async def test_what_there_is_no_room_for_is_not_passed_on_beside_something_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has looked at its signature, and peers have room."""
    monkeypatch.setattr("bflnode.node.mempool.MAX_PER_SENDER", 1)
    async with opened(small_network(tmp_path, validators=1).homes[:1], **QUIET) as [node]:
        waiting = transfer(node)
        assert gossip(node, STRANGERS[0], waiting)
        assert not gossip(node, STRANGERS[0], waiting, forged(transfer(node, 1), 1))


async def test_what_was_refused_is_not_passed_on_beside_something_good(tmp_path: Path) -> None:
    """Each of many strangers stayed within what it may send, and the node, for all of them together, didn't."""
    async with opened(small_network(tmp_path, validators=1).homes[:1], **QUIET) as [node]:
        waiting = transfer(node)
        worthless = tuple(worthless_of(node, number) for number in range(MAX_BATCH - 1))
        assert gossip(node, STRANGERS[0], waiting)
        for stranger in STRANGERS:
            assert not gossip(node, stranger, waiting, *worthless)


def gossip(node: Node, sender: PeerId, *transactions: Transaction) -> bool:
    return node.on_gossip(transactions_topic(node.chain.genesis.chain_id), sender, Batch(transactions).to_bytes())


def worthless_of(node: Node, number: int) -> Transaction:
    """Of an account that isn't on the chain, rightly signed."""
    key = SecretKey.from_seed(number.to_bytes(32, "big"))
    return sign_transaction(key, node.chain.genesis.chain_id, Transfer(node.key.account, 1), nonce=0)


def with_another_body(message: ProposalMessage, site: Site) -> ProposalMessage:
    """The leader's header and signature, and a transaction that the leader didn't choose."""
    block = replace(message.block, transactions=(*message.block.transactions, site.transfer(7)))
    return replace(message, block=block)


async def test_a_stranger_that_sends_each_proposal_first_with_another_body_does_not_stop_the_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block was taken for invalid, and the real one, of the same id, for known: nobody voted for any block."""
    carry = Wires.carry

    def overtaking(wires: Wires, sender: PeerId, receiver: PeerId, protocol: str, data: bytes) -> bool:
        if protocol == PROPOSALS:
            message = ProposalMessage.from_bytes(data, max_bytes=MAX_PUSH_BYTES)
            site = wires.sites[receiver]
            site.driver.deliver(MessageReceived(with_another_body(message, site), STRANGERS[0]))
        return carry(wires, sender, receiver, protocol, data)

    monkeypatch.setattr(Wires, "carry", overtaking)
    async with sites(tmp_path, genesis_of(4), 4) as (_, made):
        transaction = made[0].transfer()
        for site in made:
            site.submit(transaction)
        for site in made:
            await site.until_included(transaction)
        assert {site.chain.tip_header.round for site in made if site.chain.tip_header is not None} == {0}
        assert {line.split(":")[0] for site in made for line in site.punished} == {STRANGERS[0]}


async def test_a_proposal_that_is_early_with_another_body_does_not_hide_the_real_one(tmp_path: Path) -> None:
    async with sites(tmp_path, genesis_of(4), 1, run=False) as (_, [site]):
        block = site.chain.build(site.key.account, round_=0, time_ms=0, candidates=())
        early = replace(block, header=replace(block.header, height=2))
        proposal = sign_proposal(
            site.key, site.chain.genesis.chain_id, height=2, round_=0, valid_round=-1, block_id=early.id
        )
        real = ProposalMessage(proposal, early, ())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.driver.run)
            for message in (with_another_body(real, site), real):
                assert site.driver.deliver(MessageReceived(message, STRANGERS[0]))
            await eventually(lambda: site.driver._receive.statistics().current_buffer_used == 0)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert [item.message for item in site.driver._early_proposals.values()] == [real]
        assert len(site.punished) == 1


async def test_who_says_again_and_again_that_it_has_nothing_does_not_take_all_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five times a second all votes and the proposal, to each of sixty strangers: more than a node can send."""
    monkeypatch.setattr("bflnode.node.agreement_driver.ANSWER_PAUSE_S", 0.0)
    sent: Counter[str] = Counter()
    validators = 100
    async with sites(tmp_path, genesis_of(validators), 1) as (_, [site]):
        chain_id = site.chain.genesis.chain_id
        for number in range(1, validators // 2):
            vote = sign_vote(key_of(number), chain_id, VoteKind.PREVOTE, 1, 0, NIL)
            assert site.driver.deliver(MessageReceived(vote, STRANGERS[0]))
        object.__setattr__(site.driver._outlets, "push", lambda _peer, protocol, _data: sent.update([protocol]) or True)
        for _ in range(200):
            assert site.driver.deliver(StatusReceived(Status(1, 0, Step.PROPOSE, ()), STRANGERS[0]))
        await eventually(lambda: site.driver._receive.statistics().current_buffer_used == 0)
        await trio.testing.wait_all_tasks_blocked()
        assert validators // 2 - 1 <= sent[VOTES] <= ANSWERS[ANSWERED_VOTES].burst + validators
