"""The driver between machine, disk and peers: blocks on demand, lost messages, restarts at any moment, liars."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from bflnode.consensus.agreement import Status, Step
from bflnode.consensus.block import NIL, Commit, ProposalMessage, VoteKind, sign_proposal, sign_vote
from bflnode.consensus.leaders import current_leader
from bflnode.node import agreement_driver as limits
from bflnode.node.agreement_driver import FinalBlockReceived, MessageReceived, StatusReceived
from bflnode.node.messages import PROPOSALS, STATUS, VOTES, FinalBlock
from bflnode.node.network import PeerId
from tests.node.drivers import Site, genesis_of, key_of, sites
from tests.node.networks import eventually

STRANGER = PeerId("stranger")


@pytest.fixture(autouse=True)
def _frequent_statuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BUSY_STATUS_S", 0.2)
    monkeypatch.setattr(limits, "IDLE_STATUS_S", 0.3)


def leader_of(site: Site, round_: int = 0) -> bytes:
    return current_leader(site.chain.tree, site.chain.height + 1, round_)


def not_leading(made: list[Site]) -> Site:
    """Who leads none of the first three rounds."""
    leaders = {leader_of(made[0], round_) for round_ in range(3)}
    return next(site for site in made if site.key.account not in leaders)


async def test_a_block_is_made_for_a_transaction_and_then_all_sleep_again(tmp_path: Path) -> None:
    async with sites(tmp_path, genesis_of(4), 4) as (_, made):
        leader = next(site for site in made if site.key.account == leader_of(site))
        transaction = leader.transfer()
        leader.submit(transaction)
        for site in made:
            await site.until_included(transaction)
            await eventually(lambda site=site: site.driver.machine.height == 2)
        assert {site.chain.height for site in made} == {1}
        assert not any(site.driver.machine.is_awake for site in made)
        assert not any(site.punished for site in made)


async def test_a_transaction_that_no_leader_has_is_included_once_its_holder_leads(tmp_path: Path) -> None:
    async with sites(tmp_path, genesis_of(4), 4) as (_, made):
        holder = not_leading(made)
        transaction = holder.transfer()
        holder.submit(transaction)
        for site in made:
            await site.until_included(transaction)


async def test_a_node_that_missed_a_decision_is_told_where_the_others_are(tmp_path: Path) -> None:
    async with sites(tmp_path, genesis_of(4), 4) as (wires, made):
        deaf, *others = made
        wires.is_lost = lambda _, receiver, __: receiver == deaf.id
        transaction = others[0].transfer()
        for site in others:
            site.submit(transaction)
        for site in others:
            await site.until_included(transaction)
        assert deaf.chain.height == 0
        wires.is_lost = lambda *_: False
        wires.carried.clear()
        await eventually(lambda: any(sent[1:] == (deaf.id, STATUS) for sent in wires.carried))


async def test_votes_lost_by_everybody_are_asked_for_and_a_block_is_decided(tmp_path: Path) -> None:
    """Who misses the decision would ask for the block, which is the synchroniser's business."""
    generator = random.Random(3)
    async with sites(tmp_path, genesis_of(4), 4) as (wires, made):
        wires.is_lost = lambda *_: generator.random() < 0.25
        transaction = made[0].transfer()
        for site in made:
            site.submit(transaction)
        await eventually(lambda: any(site.decided for site in made))


async def test_a_node_that_lives_through_a_stop_at_any_moment_contradicts_nothing(tmp_path: Path) -> None:
    genesis, generator = genesis_of(4), random.Random(5)
    for _ in range(12):
        async with sites(tmp_path, genesis, 4) as (_, made):
            transaction = made[0].transfer()
            for site in made:
                site.submit(transaction)
            await trio.sleep(generator.uniform(0.0, 0.12))
    async with sites(tmp_path, genesis, 4) as (_, made):
        top = max(site.chain.height for site in made)
        for site in made:
            best = next(other for other in made if other.chain.height == top)
            for height in range(site.chain.height + 1, top + 1):
                store = best.chain.store
                await site.driver.adopt(FinalBlock(store.block(height), store.commit(height)))
        transaction = made[0].transfer()
        for site in made:
            site.submit(transaction)
        for site in made:
            await site.until_included(transaction)
        assert top > 0
        assert len({site.chain.store.header(top).id for site in made}) == 1
        assert not any(site.punished for site in made)


async def test_a_key_whose_log_is_ahead_of_the_chain_follows_without_signing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    genesis = genesis_of(1)
    async with sites(tmp_path, genesis, 1) as (_, [site]):
        transaction = site.transfer()
        site.submit(transaction)
        await site.until_included(transaction)
        finals = [FinalBlock(site.chain.store.block(1), site.chain.store.commit(1))]
        site.wal.compact(1)
    shutil.rmtree(tmp_path / "chain0")
    async with sites(tmp_path, genesis, 1) as (_, [site]):
        site.submit(site.transfer(2))
        await site.driver.adopt(finals[0])
        assert site.chain.height == 1
        assert "height 1: no vote, because this key has signed up to height 1 before" in caplog.text
        again = site.transfer(3)
        site.submit(again)
        await site.until_included(again)


async def test_a_final_block_is_adopted_once_and_any_other_height_is_answered_without_effect(tmp_path: Path) -> None:
    genesis = genesis_of(4)
    async with sites(tmp_path / "a", genesis, 4) as (_, made):
        for number in range(2):
            transaction = made[0].transfer(number + 1)
            for site in made:
                site.submit(transaction)
            await made[0].until_included(transaction)
        store = made[0].chain.store
        first, second = (FinalBlock(store.block(height), store.commit(height)) for height in (1, 2))
    async with sites(tmp_path / "b", genesis, 1) as (_, [site]):
        with trio.fail_after(10):
            await site.driver.adopt(second)
            assert site.chain.height == 0
            await site.driver.adopt(replace(first, commit=second.commit))
            signatures = first.commit.signatures[:1]
            await site.driver.adopt(replace(first, commit=replace(first.commit, signatures=signatures)))
            forged = replace(first.block.header, state_root=bytes(32))
            await site.driver.adopt(replace(first, block=replace(first.block, header=forged)))
            assert site.chain.height == 0
            await site.driver.adopt(first)
            await site.driver.adopt(first)
            await site.driver.adopt(second)
        assert site.chain.height == 2
        assert site.decided == [1, 2]


async def settle_inbox(site: Site) -> None:
    """Wait until the driver has dealt with everything so far."""
    done = trio.Event()
    nothing = Commit(0, 0, NIL, ())
    block = site.chain.build(site.key.account, round_=0, time_ms=0, candidates=())
    unwanted = replace(block, header=replace(block.header, height=99))
    site.driver.deliver(FinalBlockReceived(FinalBlock(unwanted, nothing), done))
    with trio.fail_after(10):
        await done.wait()


async def test_who_sends_what_no_correct_node_sends_is_punished(tmp_path: Path) -> None:
    genesis = genesis_of(4)
    async with sites(tmp_path, genesis, 1) as (_, [site]):
        chain_id, outsider = genesis.chain_id, key_of(50)
        member = next(key_of(number) for number in range(1, 4) if key_of(number).account != leader_of(site))
        vote = sign_vote(member, chain_id, VoteKind.PREVOTE, 1, 0, NIL)
        block = site.chain.build(member.account, round_=0, time_ms=0, candidates=())
        proposal = sign_proposal(member, chain_id, height=1, round_=0, valid_round=-1, block_id=block.id)
        for message in (
            replace(vote, round=1),
            replace(vote, height=2),
            sign_vote(outsider, chain_id, VoteKind.PREVOTE, 1, 0, NIL),
            ProposalMessage(proposal, block, ()),
            ProposalMessage(replace(proposal, round=7), block, ()),
        ):
            site.driver.deliver(MessageReceived(message, STRANGER))
        site.driver.deliver(MessageReceived(vote, PeerId("honest")))
        await settle_inbox(site)
        reasons = [reason.split(": ")[2] for reason in site.punished]
        assert reasons == ["bad-signature", "bad-signature", "unknown-validator", "wrong-proposer", "bad-signature"]
        assert {reason.split(": ")[0] for reason in site.punished} == {STRANGER}


async def test_messages_of_the_next_height_wait_within_bounds_and_only_validators(tmp_path: Path) -> None:
    genesis = genesis_of(4)
    async with sites(tmp_path, genesis, 1) as (_, [site]):
        for key in (key_of(1), key_of(50)):
            for round_ in range(limits.MAX_EARLY_VOTES // 2 + 1):
                vote = sign_vote(key, genesis.chain_id, VoteKind.PREVOTE, 2, round_, NIL)
                site.driver.deliver(MessageReceived(vote, STRANGER))
        far = sign_vote(key_of(1), genesis.chain_id, VoteKind.PREVOTE, 3, 0, NIL)
        site.driver.deliver(MessageReceived(far, STRANGER))
        await settle_inbox(site)
        assert len(site.driver._early_votes) == limits.MAX_EARLY_VOTES // 2 + 1
        assert site.punished == []


async def test_a_flood_of_proposals_leaves_room_for_votes(tmp_path: Path) -> None:
    genesis = genesis_of(4)
    async with sites(tmp_path, genesis, 1, run=False) as (_, [site]):
        block = site.chain.build(site.key.account, round_=0, time_ms=0, candidates=())
        proposal = sign_proposal(site.key, genesis.chain_id, height=1, round_=0, valid_round=-1, block_id=block.id)
        item = MessageReceived(ProposalMessage(proposal, block, ()), STRANGER)
        taken = [site.driver.deliver(item) for _ in range(limits.MAX_PROPOSALS_WAITING + 5)]
        assert taken == [True] * limits.MAX_PROPOSALS_WAITING + [False] * 5
        vote = sign_vote(key_of(1), genesis.chain_id, VoteKind.PREVOTE, 1, 0, NIL)
        assert site.driver.deliver(MessageReceived(vote, STRANGER))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.driver.run)
            await settle_inbox(site)
            assert site.driver.deliver(item), "there is room again"
            nursery.cancel_scope.cancel()


async def test_a_status_is_answered_with_what_is_missing_but_not_as_often_as_it_comes(tmp_path: Path) -> None:
    genesis = genesis_of(4)
    async with sites(tmp_path, genesis, 1) as (wires, [site]):
        asker = PeerId("asker")
        wires.sites[asker] = site  # its messages go round in a circle, which does no harm
        site.driver.deliver(MessageReceived(sign_vote(key_of(1), genesis.chain_id, VoteKind.PREVOTE, 1, 0, NIL), asker))
        for _ in range(50):
            site.driver.deliver(StatusReceived(Status(1, 0, Step.PROPOSE, ()), asker))
        await settle_inbox(site)
        assert wires.carried.count((site.id, asker, VOTES)) < 10
        assert (site.id, asker, VOTES) in wires.carried


async def test_waiting_for_others_costs_no_polling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sites(tmp_path, genesis_of(4), 1) as (_, [site]):
        looks = 0
        has_work = site.mempool.has_work

        def counted() -> bool:
            nonlocal looks
            looks += 1
            return has_work()

        monkeypatch.setattr(site.mempool, "has_work", counted)
        site.submit(site.transfer())
        await eventually(lambda: site.driver.machine.is_awake)
        await trio.sleep(0.5)
        assert site.driver.machine.is_awake
        assert looks < 5


async def test_one_late_node_asks_a_few_peers_and_not_all(tmp_path: Path) -> None:
    async with sites(tmp_path, genesis_of(7), 1) as (wires, [site]):
        wires.sites.update((PeerId(f"peer{number}"), site) for number in range(6))
        site.submit(site.transfer())
        await eventually(lambda: STATUS in {sent[2] for sent in wires.carried})
        asked = [sent[1] for sent in wires.carried if sent[2] == STATUS]
        assert len(asked) == limits.BUSY_STATUS_PEERS == len(set(asked))
        assert PROPOSALS not in {sent[2] for sent in wires.carried} or leader_of(site) == site.key.account
