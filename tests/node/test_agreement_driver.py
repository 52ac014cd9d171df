"""The driver between machine, disk and peers: blocks on demand, lost messages, restarts at any moment, liars."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from bflnode.consensus import block as block_records
from bflnode.consensus.agreement import ROUNDS_AHEAD, Status, Step
from bflnode.consensus.block import (
    NIL,
    Block,
    Commit,
    CommitSignature,
    ProposalMessage,
    Vote,
    VoteKind,
    sign_proposal,
    sign_vote,
)
from bflnode.consensus.evidence import make_evidence
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.leaders import current_leader
from bflnode.consensus.ledger import build_block
from bflnode.consensus.machine import MAX_PROPOSALS_KEPT
from bflnode.consensus.tables import current_attendance
from bflnode.consensus.types import BlockId
from bflnode.consensus.workspace import BlockContext
from bflnode.node import agreement_driver as limits
from bflnode.node.agreement_driver import FinalBlockReceived, MessageReceived, StatusReceived
from bflnode.node.node_clock import now_ms
from bflnode.node.p2p.messages import PROPOSALS, STATUS, VOTES, FinalBlock
from bflnode.node.p2p.network import PeerId
from tests.node.drivers import PARAMETERS, Site, Wires, genesis_of, key_of, sites
from tests.node.networks import eventually

STRANGER = PeerId("stranger")
TOLERANCE_MS = PARAMETERS.clock_tolerance_ms


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
        assert "height 1: no vote, as this key has signed up to height 1 before" in caplog.text
        again = site.transfer(3)
        site.submit(again)
        await site.until_included(again)


async def test_a_key_that_signed_the_last_block_with_another_log_doesnt_vote_on_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    genesis = genesis_of(4)
    async with sites(tmp_path, genesis, 3) as (_, made):
        await _include(made)
        final = FinalBlock(made[0].chain.store.block(1), made[0].chain.store.commit(1))
    (tmp_path / "wal0").unlink()
    async with sites(tmp_path, genesis, 4) as (wires, made):
        await made[3].driver.adopt(final)
        await _include(made)
        assert made[0].wal.mark[0] == 0
        assert "height 2: no vote, as this key has signed height 1 and the log" in caplog.text
        wires.is_lost = lambda sender, receiver, protocol: made[3].id in (sender, receiver)
        await _include(made[:3])
        assert made[0].wal.mark[0] == 3


async def _include(made: list[Site]) -> None:
    """Have one more transaction included everywhere."""
    transaction = made[0].transfer()
    for site in made:
        site.submit(transaction)
    for site in made:
        await site.until_included(transaction)


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
        own_round = next(round_ for round_ in range(1, 100) if leader_of(site, round_) == member.account)
        own_block = site.chain.build(member.account, round_=own_round, time_ms=0, candidates=())
        for message in (
            replace(vote, round=1),
            replace(vote, height=2),
            sign_vote(outsider, chain_id, VoteKind.PREVOTE, 1, 0, NIL),
            ProposalMessage(proposal, block, ()),
            ProposalMessage(replace(proposal, round=own_round, block_id=own_block.id), own_block, ()),
        ):
            site.driver.deliver(MessageReceived(message, STRANGER))
        site.driver.deliver(MessageReceived(vote, PeerId("honest")))
        await settle_inbox(site)
        reasons = [reason.split(": ")[2] for reason in site.punished]
        assert reasons == ["bad-signature", "bad-signature", "unknown-validator", "wrong-proposer", "bad-signature"]
        assert {reason.split(": ")[0] for reason in site.punished} == {STRANGER}


async def test_what_a_banned_peer_sent_before_is_not_looked_at(tmp_path: Path) -> None:
    genesis = genesis_of(4)
    async with sites(tmp_path, genesis, 1) as (_, [site]):
        vote = sign_vote(key_of(1), genesis.chain_id, VoteKind.PREVOTE, 1, 0, NIL)
        site.banned.add(STRANGER)
        site.driver.deliver(MessageReceived(replace(vote, round=1), STRANGER))
        await settle_inbox(site)
        assert site.punished == []
        assert not site.driver.machine.is_awake


async def test_only_proposals_that_are_kept_are_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that signs without end, or whoever repeats it, had a block of a megabyte executed each time."""
    genesis = genesis_of(4)
    async with sites(tmp_path, genesis, 1) as (_, [site]):
        leader = next(key_of(number) for number in range(4) if key_of(number).account == leader_of(site))
        rounds = [round_ for round_ in range(40) if leader_of(site, round_) == leader.account]
        far = next(round_ for round_ in rounds if round_ > ROUNDS_AHEAD)
        own = [proposal_of(site, leader, 0, time_ms) for time_ms in range(1, MAX_PROPOSALS_KEPT + 3)]
        executed: list[Block] = []
        monkeypatch.setattr(site.chain, "validate", executed.append)
        for message in (*own, *own, proposal_of(site, leader, far, 1)):
            site.driver.deliver(MessageReceived(message, STRANGER))
        await settle_inbox(site)
        assert executed == [message.block for message in own[:MAX_PROPOSALS_KEPT]]
        assert len(site.accused) == 1


def proposal_of(site: Site, leader: SecretKey, round_: int, later_ms: int) -> ProposalMessage:
    time_ms = site.chain.tip_time_ms + later_ms
    block = site.chain.build(leader.account, round_=round_, time_ms=time_ms, candidates=())
    chain_id = site.chain.genesis.chain_id
    proposal = sign_proposal(leader, chain_id, height=1, round_=round_, valid_round=-1, block_id=block.id)
    return ProposalMessage(proposal, block, ())


async def test_messages_repeated_without_end_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genesis = genesis_of(4)
    async with sites(tmp_path, genesis, 1) as (_, [site]):
        leader = next(key_of(number) for number in range(4) if key_of(number).account == leader_of(site))
        here, proposal = (
            sign_vote(key_of(1), genesis.chain_id, VoteKind.PREVOTE, 1, 0, NIL),
            proposal_of(site, leader, 0, 1),
        )
        early = sign_vote(key_of(1), genesis.chain_id, VoteKind.PREVOTE, 2, 0, NIL)
        checked: list[bytes] = []
        monkeypatch.setattr(block_records, "verify", lambda account, *_: checked.append(account))
        for _ in range(20):
            for message in (here, proposal, early):
                site.driver.deliver(MessageReceived(message, STRANGER))
        await settle_inbox(site)
        assert checked == [key_of(1).account, leader.account, key_of(1).account]
        assert site.punished == []


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


async def test_a_queue_of_dead_members_costs_one_time_out_a_block(tmp_path: Path) -> None:
    """odd r takes the next of *all* validators in turn."""
    genesis = replace(genesis_of(4), queue=(key_of(3).account,))
    async with sites(tmp_path, genesis, 3) as (_, made):
        await next_block(made)
        assert {site.chain.store.header(1).round for site in made} <= {1, 3}
        assert made[0].chain.store.header(1).proposer != key_of(3).account


# Evidence and late precommits


async def decided_by_three(wires: Wires, made: list[Site]) -> Site:
    """A block that one site's votes came too late for; that site."""
    slow = not_leading(made)
    wires.is_lost = lambda sender, _, protocol: sender == slow.id and protocol == VOTES
    transaction = next(site for site in made if site is not slow).transfer()
    for site in made:
        site.submit(transaction)
    for site in made:
        await site.until_included(transaction)
        await eventually(lambda site=site: site.driver.machine.height == 2)
    wires.is_lost = lambda *_: False
    return slow


async def next_block(made: list[Site]) -> None:
    transaction = made[0].transfer(2)
    for site in made:
        site.submit(transaction)
    for site in made:
        await site.until_included(transaction)


def precommit_of(site: Site) -> Vote:
    """What it signed for the first block."""
    votes = (record for record in site.wal.records(1) if isinstance(record, Vote))
    return next(vote for vote in votes if vote.kind is VoteKind.PRECOMMIT and vote.block_id != NIL)


async def test_a_precommit_after_the_decision_is_in_the_next_block(tmp_path: Path) -> None:
    """Late precommits must count: else slow validators look absent."""
    async with sites(tmp_path, genesis_of(4), 4) as (wires, made):
        slow = await decided_by_three(wires, made)
        others = [site for site in made if site is not slow]
        assert all(len(site.chain.tip_commit.signatures) == 3 for site in others)
        for site in others:
            site.driver.deliver(MessageReceived(precommit_of(slow), slow.id))
            await eventually(lambda site=site: len(site.chain.tip_commit.signatures) == 4)
        await next_block(made)
        assert len(made[0].chain.store.block(2).last_commit.signatures) == 4
        assert [member.count for member in current_attendance(made[0].chain.tree).members] == [0] * 4
        assert not any(site.punished or site.accused for site in made)


async def test_who_is_not_heard_of_is_absent(tmp_path: Path) -> None:
    async with sites(tmp_path, genesis_of(4), 4) as (wires, made):
        slow = await decided_by_three(wires, made)
        wires.is_lost = lambda sender, *_: sender == slow.id
        others = [site for site in made if site is not slow]
        await next_block(others)
        found = {member.account: member.count for member in current_attendance(others[0].chain.tree).members}
        assert found == {site.key.account: int(site is slow) for site in made}


async def test_a_late_precommit_of_a_stranger_is_punished(tmp_path: Path) -> None:
    async with sites(tmp_path, genesis_of(4), 4) as (wires, made):
        await decided_by_three(wires, made)
        tip, chain_id = made[0].chain.tip_commit, made[0].chain.genesis.chain_id
        stranger = sign_vote(key_of(50), chain_id, VoteKind.PRECOMMIT, 1, tip.round, tip.block_id)
        forged = replace(precommit_of(made[1]), block_id=NIL)
        for message in (stranger, forged):
            made[0].driver.deliver(MessageReceived(message, STRANGER))
        await eventually(lambda: len(made[0].punished) == 2)
        reasons = [reason.split(": ")[2] for reason in made[0].punished]
        assert reasons == ["unknown-validator", "bad-signature"]


async def test_two_votes_for_one_slot_are_evidence_during_the_height(tmp_path: Path) -> None:
    genesis = genesis_of(4)
    async with sites(tmp_path, genesis, 1) as (_, [site]):
        liar = key_of(1)
        votes = [
            sign_vote(liar, genesis.chain_id, VoteKind.PREVOTE, 1, 0, BlockId(bytes([number]) * 32))
            for number in range(3)
        ]
        for vote in (*votes, *votes):
            site.driver.deliver(MessageReceived(vote, STRANGER))
        await settle_inbox(site)
        assert site.accused == [make_evidence(votes[0], votes[1])]
        assert site.punished == [], "who passes it on is not to blame"


async def test_a_late_precommit_for_something_else_is_evidence(tmp_path: Path) -> None:
    async with sites(tmp_path, genesis_of(4), 4) as (wires, made):
        slow = await decided_by_three(wires, made)
        honest = next(site for site in made if site is not slow)
        commit = honest.chain.tip_commit
        liar = next(site for site in made if site not in (slow, honest))
        lie = sign_vote(liar.key, liar.chain.genesis.chain_id, VoteKind.PRECOMMIT, 1, commit.round, NIL)
        honest.driver.deliver(MessageReceived(lie, STRANGER))
        await eventually(lambda: bool(honest.accused))
        assert honest.accused == [make_evidence(lie, precommit_of(liar))]
        assert honest.chain.tip_commit == commit


async def test_what_the_commit_in_the_next_block_contradicts_is_evidence(tmp_path: Path) -> None:
    """An equivocator that tells everybody something else is found out by what the proposer was told."""
    async with sites(tmp_path, genesis_of(4), 4) as (wires, made):
        slow = await decided_by_three(wires, made)
        leaders = {leader_of(slow, round_) for round_ in range(2)}
        lied_to = next(site for site in made if site is not slow and site.key.account not in leaders)
        lie = sign_vote(slow.key, slow.chain.genesis.chain_id, VoteKind.PRECOMMIT, 1, slow.chain.tip_commit.round, NIL)
        lied_to.driver.deliver(MessageReceived(lie, slow.id))
        for site in made:
            if site not in (slow, lied_to):
                site.driver.deliver(MessageReceived(precommit_of(slow), slow.id))
                await eventually(lambda site=site: len(site.chain.tip_commit.signatures) == 4)
        await next_block(made)
        await eventually(lambda: bool(lied_to.accused))
        assert lied_to.accused == [make_evidence(lie, precommit_of(slow))]


# Header time


async def prevotes(site: Site, height: int, time_ms: int) -> bool:
    """Whether a site prevotes the block when the leader proposes one of this time."""
    leader = next(key_of(number) for number in range(4) if key_of(number).account == leader_of(site))
    genesis = site.chain.genesis
    context = BlockContext(height, 0, time_ms, leader.account)
    block, _ = build_block(
        genesis, site.chain.tree, site.chain.tip_header, context, last_commit=site.chain.tip_commit, candidates=()
    )
    proposal = sign_proposal(leader, genesis.chain_id, height=height, round_=0, valid_round=-1, block_id=block.id)
    site.driver.deliver(MessageReceived(ProposalMessage(proposal, block, ()), STRANGER))
    await settle_inbox(site)
    [vote] = (record for record in site.wal.records(height) if isinstance(record, Vote))
    assert vote.block_id in (block.id, NIL)
    return vote.block_id == block.id


@pytest.mark.parametrize("direction", [-1, 1])
async def test_a_first_proposal_beyond_the_tolerance_gets_a_nil_prevote(tmp_path: Path, direction: int) -> None:
    """a validator prevotes nil for a first proposal whose time is further from its own clock than the tolerance."""
    genesis = replace(genesis_of(4), time_ms=now_ms() - 10 * TOLERANCE_MS)
    for slack_ms in (-5_000, 5_000):
        folder = tmp_path / str(slack_ms)
        folder.mkdir()
        async with sites(folder, genesis, 4, run=False) as (_, made), trio.open_nursery() as nursery:
            site = not_leading(made)
            nursery.start_soon(site.driver.run)
            time_ms = now_ms() + direction * (TOLERANCE_MS + slack_ms)
            assert await prevotes(site, 1, time_ms) is (slack_ms < 0)
            nursery.cancel_scope.cancel()


async def test_hostile_leaders_one_after_the_other_do_not_run_ahead_of_the_clock(tmp_path: Path) -> None:
    """A deadline comes early by the tolerance at most, however many blocks in a row they lead."""
    genesis = genesis_of(4)
    async with sites(tmp_path, genesis, 4, run=False) as (_, made), trio.open_nursery() as nursery:
        site = not_leading(made)
        leader = next(other for other in made if other.key.account == leader_of(site))
        ahead = leader.chain.build(leader.key.account, round_=0, time_ms=now_ms() + TOLERANCE_MS, candidates=())
        keys = sorted((other.key for other in made), key=lambda key: key.account)
        votes = [sign_vote(key, genesis.chain_id, VoteKind.PRECOMMIT, 1, 0, ahead.id) for key in keys]
        signatures = tuple(
            CommitSignature(index, vote.signature)
            for index, vote in enumerate(votes)
            if vote.validator != site.key.account
        )
        nursery.start_soon(site.driver.run)
        await site.driver.adopt(FinalBlock(ahead, Commit(1, 0, ahead.id, signatures)))
        assert site.chain.tip_time_ms == ahead.header.time_ms, "what the others agreed on is followed by any clock"
        assert not await prevotes(site, 2, site.chain.tip_time_ms + 5_000)
        nursery.cancel_scope.cancel()
