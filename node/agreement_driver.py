"""Drives the agreement machine: messages, timers and the disk on one side, the pure machine on the other.

One task takes inputs one by one and executes the machine's effects in order, so that what must be on disk is on disk
before anything that depends on it is sent. Network handlers only put messages into its inbox; an overfull inbox drops
them, since peers answer a status with what is missing.

    inbox -> machine.step -> effects -> signer WAL -> pushes to peers
                                     -> Decide -> chain.append -> next height
"""

import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias, assert_never

import trio

from bflnode.consensus.agreement import (
    MAX_MISSING_VOTES,
    BlockBuilt,
    BuildBlock,
    Decide,
    Effect,
    Evidence,
    Input,
    Persist,
    ProposalReceived,
    Schedule,
    SendProposal,
    SendVote,
    SignProposal,
    SignVote,
    Status,
    Step,
    TimeoutElapsed,
    VoteReceived,
    WorkAvailable,
)
from bflnode.consensus.block import Block, Commit, Proposal, ProposalMessage, Vote, verify_body
from bflnode.consensus.evidence import make_evidence
from bflnode.consensus.leaders import current_leader
from bflnode.consensus.ledger import verify_commit
from bflnode.consensus.machine import Machine
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.tables import current_validators, previous_validators
from bflnode.consensus.transaction import Evidence as EvidenceBody
from bflnode.consensus.types import AccountId
from bflnode.node.p2p.messages import PROPOSALS, STATUS, VOTES, FinalBlock
from bflnode.node.p2p.network import PeerId
from bflnode.node.p2p.rate_limits import Rate, RateLimits
from bflnode.storage.failpoints import Operation, after, before
from bflnode.storage.signer_wal import SignerWal

from .chain import Chain
from .decided_votes import DecidedVotes
from .mempool import Mempool

_log = logging.getLogger(__name__)

MAX_INBOX = 4096
"""Messages that wait for the machine: all votes of twenty rounds among a hundred validators."""

MAX_PROPOSALS_WAITING = 16
"""Proposals in the inbox at most, of a megabyte each: peers send again what is still missing."""

MAX_EARLY_VOTES = 1024
"""Votes kept for the next height: a node that decides last gets them before it is there."""

MAX_EARLY_PROPOSALS = 4
"""Proposals kept for the next height: those of its first rounds."""

COMPACT_EVERY = 16
"""Heights between compactions of the signer WAL: each costs three syncs of the disk."""

BUSY_STATUS_S = 1.0
"""How often a node that waits for a decision tells some peers what it has, so that they send the rest."""

BUSY_STATUS_PEERS = 2
"""Peers that are asked at once, drawn anew each time: each sends all that is missing. Asking all of twenty gave a slow
network nineteen copies of each late vote, which kept it slow: it decided nothing in nine minutes."""

IDLE_STATUS_S = 5.0
"""How often a node without work tells its peers where it is."""

ANSWER_PAUSE_S = 0.2
"""A peer's status is answered this often at most: an answer may be a megabyte, a status is a few bytes."""

ANSWERED_VOTES, ANSWERED_PROPOSALS = "votes in answers", "proposals in answers"
ANSWERS = {
    ANSWERED_VOTES: Rate(per_s=50, burst=2 * MAX_MISSING_VOTES, unit_bytes=1, drops=True),
    ANSWERED_PROPOSALS: Rate(per_s=1, burst=16, unit_bytes=256 * 1024, drops=True),
}
"""Votes, and quarters of a megabyte of proposals, that a peer gets in answers. Two full answers at once, then less than
it takes from us: to say again and again that one has nothing costs nothing, and sixty peers that did took all time."""

OUTDATED_S = 5.0
"""What a node believes this soon after it adopted a block from a peer may be wrong by now."""

LOOK_AGAIN_S = 5.0
"""How often due times are compared with the wall clock again: it may be set, or the machine may have slept."""


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A proposal or vote, and the peer that answers for it: nobody passes on what it has not checked."""

    message: ProposalMessage | Vote
    sender: PeerId


@dataclass(frozen=True, slots=True)
class FinalBlockReceived:
    """A block with its commit, from a peer that is ahead. `done` is set when it has been dealt with."""

    final: FinalBlock
    done: trio.Event


@dataclass(frozen=True, slots=True)
class StatusReceived:
    """Where a peer is in agreement and what it has."""

    status: Status
    sender: PeerId


@dataclass(frozen=True, slots=True)
class WorkWanted:
    """There is work for a height; too late for any other."""

    height: int


Item: TypeAlias = MessageReceived | StatusReceived | FinalBlockReceived | TimeoutElapsed | BlockBuilt | WorkWanted


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where the driver's results go.

    Attributes:
        push: send bytes under a protocol to one peer.
        peers: the greeted peers.
        punish: count a misdeed of a peer, with the reason.
        is_banned: whether a peer has done so too often: what it sent before is not looked at any more.
        decided: called after each block with the block and its commit.
        accuse: called with the proof that a validator signed two different messages for one slot.
        now_ms: wall clock, milliseconds since the epoch.
    """

    push: Callable[[PeerId, str, bytes], bool]
    peers: Callable[[], tuple[PeerId, ...]]
    punish: Callable[[PeerId, str], None]
    is_banned: Callable[[PeerId], bool]
    decided: Callable[[Block, Commit], None]
    accuse: Callable[[EvidenceBody], None]
    now_ms: Callable[[], int]


class AgreementDriver:
    """Runs agreement for one node, validator or not."""

    def __init__(self, chain: Chain, account: AccountId, wal: SignerWal, mempool: Mempool, outlets: Outlets) -> None:
        self._chain = chain
        self._account = account
        self._wal = wal
        self._mempool = mempool
        self._outlets = outlets
        self._send, self._receive = trio.open_memory_channel[Item](MAX_INBOX)
        self._proposals_waiting = 0
        self._early_proposals: dict[Vote | Proposal, MessageReceived] = {}
        self._early_votes: dict[Vote | Proposal, MessageReceived] = {}
        self._answered_s: dict[PeerId, float] = {}
        self._answers = RateLimits(ANSWERS, trio.current_time)
        self._inputs: deque[Input] = deque()
        self._decided_votes = DecidedVotes(previous_validators(chain.tree), chain.tip_commit)
        self._machine = self._new_machine()
        self._tasks: trio.Nursery | None = None
        self._poked = trio.Event()
        self._decided_at_s = -1e9
        self._adopted_at_s = -1e9

    @property
    def machine(self) -> Machine:
        """The machine of the current height, to look at."""
        return self._machine

    def leader_accounts(self, rounds: int) -> tuple[AccountId, ...]:
        """Who leads the next rounds of the current height: where a waiting transaction should go."""
        height, first = self._machine.height, self._machine.round
        leaders = (current_leader(self._chain.tree, height, first + offset) for offset in range(rounds))
        return tuple(dict.fromkeys(leaders))

    def deliver(self, item: Item) -> bool:
        """Put a message into the inbox; False when it is full, and the message is dropped."""
        is_proposal = _is_proposal(item)
        if is_proposal and self._proposals_waiting >= MAX_PROPOSALS_WAITING:
            return False
        try:
            self._send.send_nowait(item)
        except trio.WouldBlock:
            return False
        self._proposals_waiting += is_proposal
        return True

    def poke(self) -> None:
        """Something changed that may be work: a transaction waits."""
        self._poked.set()

    async def adopt(self, final: FinalBlock) -> None:
        """Have a final block from a peer checked and appended; returns when that is done or refused."""
        done = trio.Event()
        await self._send.send(FinalBlockReceived(final, done))
        await done.wait()
        tip = self._chain.tip_header
        if tip is not None and tip.id == final.block.id:
            self._adopted_at_s = trio.current_time()

    @property
    def is_outdated(self) -> bool:
        """Whether this node has just adopted what others decided long before. Claims alone can't make it so."""
        return trio.current_time() < self._adopted_at_s + OUTDATED_S

    async def run(self) -> None:
        """Agree on blocks until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_for_work)
            nursery.start_soon(self._tell_status)
            while True:
                await self._run_height()

    def _new_machine(self) -> Machine:
        height, tree = self._chain.height + 1, self._chain.tree
        return Machine(
            self._account if self._may_sign(height) else None,
            self._chain.genesis.parameters,
            height=height,
            validators=current_validators(tree),
            leader=lambda round_: current_leader(tree, height, round_),
        )

    def _may_sign(self, height: int) -> bool:
        """Whether the signer's log goes along with this height.

        Where the chain was lost and the log was not, the log has signed later heights and forgotten this one: the node
        follows the others without a vote until it is there again. Where the last block has a signature of this key that
        the log lacks, the log is an old copy, or another process signs with the key: either may have voted on this
        height.
        """
        signed_height = self._wal.mark[0]
        if signed_height > height or (signed_height == height and not self._wal.records(height)):
            _log.warning("height %d: no vote, as this key has signed up to height %d before", height, signed_height)
            return False
        signed = self._decided_votes.precommit_of(self._account)
        if signed is not None and self._wal.mark < (signed.height, signed.round, Step.PRECOMMIT):
            _log.warning(
                "height %d: no vote, as this key has signed height %d and the log %s doesn't know of it: it is new, an "
                "old copy, or another process signs with this key; if so, stop one of the two. If the network can't "
                "go on without this vote, start with BFLNODE_SIGNING__NEW_LOG=vote",
                *(height, signed.height, self._wal.path),
            )
            return False
        return True

    async def _run_height(self) -> None:
        """Agree on one height; timers and builds of the height end with it."""
        self._inputs.clear()
        self._answered_s.clear()
        self._machine = self._new_machine()
        early = deque((*self._early_proposals.values(), *self._early_votes.values()))
        self._early_proposals.clear()
        self._early_votes.clear()
        async with trio.open_nursery() as tasks:
            self._tasks = tasks
            self.poke()
            await self._execute(self._machine.start(self._wal.records(self._machine.height)))
            await self._run_machine()
            while not self._is_over():
                await self._take(early.popleft() if early else await self._next_item())
            tasks.cancel_scope.cancel()

    def _is_over(self) -> bool:
        return self._chain.height >= self._machine.height

    async def _next_item(self) -> Item:
        item = await self._receive.receive()
        self._proposals_waiting -= _is_proposal(item)
        return item

    async def _take(self, item: Item) -> None:
        """Deal with one item of the inbox. A peer that sends what no correct node does is punished."""
        match item:
            case MessageReceived(message, sender):
                if self._outlets.is_banned(sender):
                    return
                try:
                    self._take_message(item)
                    await self._run_machine()
                except Rejection as rejection:
                    self._outlets.punish(sender, f"{type(message).__name__}: {rejection}")
            case StatusReceived():
                self._answer_status(item)
            case FinalBlockReceived():
                await self._take_final(item)
            case WorkWanted(height):
                if height == self._machine.height:
                    self._inputs.append(WorkAvailable())
            case TimeoutElapsed() | BlockBuilt():
                self._inputs.append(item)
            case _:
                assert_never(item)
        await self._run_machine()

    async def _run_machine(self) -> None:
        while self._inputs and not self._is_over():
            await self._execute(self._machine.step(self._inputs.popleft()))

    def _take_message(self, item: MessageReceived) -> None:
        """Check a message, and hand it to the machine now or at the next height; what changes nothing is dropped.

        What costs comes last, signatures and then the block: one proposal may carry hundreds of signatures, anybody can
        sign in names of his own, and repeat what others signed.
        """
        message, height = item.message, self._machine.height
        if isinstance(message, Vote) and self._decided_votes.concerns(message):
            self._take_late(message)
            return
        slot = message if isinstance(message, Vote) else message.proposal
        if slot.height == height:
            if self._machine.wants(message):
                self._verify(message)
                self._inputs.append(self._input_of(message))
        elif slot.height == height + 1 and not self._has_unknown_signer(message):
            self._wait_for_next_height(slot, item)

    def _wait_for_next_height(self, slot: Vote | Proposal, item: MessageReceived) -> None:
        """Keep a message that is early, the latest ones of each kind."""
        is_vote = isinstance(slot, Vote)
        waiting, limit = (
            (self._early_votes, MAX_EARLY_VOTES) if is_vote else (self._early_proposals, MAX_EARLY_PROPOSALS)
        )
        if slot in waiting:
            return
        self._verify(item.message)
        if len(waiting) == limit:
            del waiting[next(iter(waiting))]
        waiting[slot] = item

    def _take_late(self, vote: Vote) -> None:
        """A precommit of the last block, which is final without it: it shows that its validator is there."""
        if vote.validator not in self._decided_votes.validators:
            raise Rejection(Reason.UNKNOWN_VALIDATOR, validator=vote.validator, height=vote.height)
        if not self._decided_votes.is_new(vote):
            return
        self._verify(vote)
        self._compare(vote)
        self._chain.extend_commit(self._decided_votes.commit)

    def _compare(self, vote: Vote) -> None:
        """Keep a precommit of the last block, and tell if its validator has signed another one."""
        contradicted = self._decided_votes.add(vote)
        if contradicted is not None:
            self._outlets.accuse(make_evidence(contradicted, vote))

    def _has_unknown_signer(self, message: ProposalMessage | Vote) -> bool:
        """Whether one of those who signed a message is no validator, or is one for the second time."""
        validators = current_validators(self._chain.tree)
        if isinstance(message, Vote):
            return message.validator not in validators
        signers = [vote.validator for vote in message.certificate]
        is_twice = len(set(signers)) != len(signers)
        return is_twice or any(account not in validators for account in (message.proposal.proposer, *signers))

    def _verify(self, message: ProposalMessage | Vote) -> None:
        """Check what isn't its signer's but its sender's fault: signatures, and a body that isn't the header's.

        A leader signs the header. Were a block with another body taken for its block, and for invalid, anybody who
        overtakes a proposal could have the real one, of the same id, taken for known.
        """
        chain_id = self._chain.genesis.chain_id
        if isinstance(message, Vote):
            message.verify_signature(chain_id)
        else:
            message.proposal.verify_signature(chain_id)
            verify_body(message.block)
            for vote in message.certificate:
                vote.verify_signature(chain_id)

    def _input_of(self, message: ProposalMessage | Vote) -> Input:
        """A message of this height for the machine; a block that it keeps is executed."""
        if isinstance(message, Vote):
            return VoteReceived(message)
        is_valid = self._machine.keeps(message) and self._is_valid(message.block)
        return ProposalReceived(message, is_valid, self._is_timely(message.block))

    def _is_valid(self, block: Block) -> bool:
        try:
            self._chain.validate(block)
        except Rejection as rejection:
            _log.warning("the proposal for height %d is invalid: %s", block.height, rejection)
            return False
        return True

    def _is_timely(self, block: Block) -> bool:
        distance_ms = abs(block.header.time_ms - self._outlets.now_ms())
        return distance_ms <= self._chain.genesis.parameters.clock_tolerance_ms

    def _answer_status(self, item: StatusReceived) -> None:
        """Send a peer what it lacks at this height, or say that it is behind."""
        status, now_s = item.status, trio.current_time()
        if status.height > self._machine.height or now_s < self._answered_s.get(item.sender, 0.0) + ANSWER_PAUSE_S:
            return
        self._answered_s[item.sender] = now_s
        if status.height < self._machine.height:
            self._outlets.push(item.sender, STATUS, self._machine.status().to_bytes())
            return
        missing = self._machine.missing(status)
        if missing.votes and self._answers.delay_s(item.sender, ANSWERED_VOTES, len(missing.votes)) is not None:
            for vote in missing.votes:
                self._outlets.push(item.sender, VOTES, vote.to_bytes())
        for message in missing.proposals:
            if self._answers.delay_s(item.sender, ANSWERED_PROPOSALS, len(message.block.encoded)) is not None:
                self._outlets.push(item.sender, PROPOSALS, message.to_bytes())

    async def _take_final(self, item: FinalBlockReceived) -> None:
        """Append a final block if it is the next one; who brought a bad one finds the chain where it was."""
        try:
            block, commit = item.final.block, item.final.commit
            if block.height == self._machine.height:
                if (commit.height, commit.block_id) != (block.height, block.id):
                    raise Rejection(Reason.WRONG_COMMIT, commit=commit.block_id, block=block.id)
                verify_commit(self._chain.genesis.chain_id, current_validators(self._chain.tree), commit)
                await self._append(block, commit)
        except Rejection as rejection:
            _log.info("refused a final block: %s", rejection)
        finally:
            item.done.set()

    async def _execute(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Persist(record):
                    await trio.to_thread.run_sync(self._wal.persist, record)
                case SignProposal():
                    message = await trio.to_thread.run_sync(self._wal.sign_proposal, effect)
                    self._broadcast(PROPOSALS, message.to_bytes())
                    self._inputs.append(ProposalReceived(message, is_valid=True))
                case SignVote():
                    vote = await trio.to_thread.run_sync(self._wal.sign_vote, effect)
                    self._broadcast(VOTES, vote.to_bytes())
                    self._inputs.append(VoteReceived(vote))
                case SendProposal(message):
                    self._broadcast(PROPOSALS, message.to_bytes())
                case SendVote(vote):
                    self._broadcast(VOTES, vote.to_bytes())
                case Schedule(timeout, duration_ms):
                    self._start_soon(self._sleep_timeout, timeout, duration_ms)
                case BuildBlock(_, round_):
                    self._start_soon(self._build, round_)
                case Decide(block, commit):
                    await self._append(block, commit)
                    return
                case Evidence(first, second):
                    self._outlets.accuse(make_evidence(first, second))
                case _:
                    assert_never(effect)

    def _broadcast(self, protocol: str, data: bytes) -> None:
        operation = Operation.PROPOSAL_SEND if protocol == PROPOSALS else Operation.VOTE_SEND
        before(operation)
        for peer in self._outlets.peers():
            self._outlets.push(peer, protocol, data)
        after(operation)

    def _start_soon(self, function: Callable[..., Awaitable[None]], *arguments: object) -> None:
        assert self._tasks is not None, "effects are executed while a height runs"
        self._tasks.start_soon(function, *arguments)

    async def _sleep_timeout(self, timeout: TimeoutElapsed, duration_ms: int) -> None:
        await trio.sleep(duration_ms / 1000)
        await self._send.send(timeout)

    async def _build(self, round_: int) -> None:
        """Build a block once the interval since the last one has passed."""
        interval_s = self._chain.genesis.parameters.block_interval_ms / 1000
        await trio.sleep_until(self._decided_at_s + interval_s)
        if self._is_over() or self._machine.round != round_:
            return
        block = self._chain.build(
            self._account, round_=round_, time_ms=self._outlets.now_ms(), candidates=self._mempool.candidates()
        )
        await self._send.send(BlockBuilt(block))

    async def _append(self, block: Block, commit: Commit) -> None:
        precommits = self._machine.precommits(commit.round)
        await self._chain.append(block, commit)
        for vote in self._decided_votes.votes_in(block.last_commit):
            self._compare(vote)
        self._decided_votes = DecidedVotes(previous_validators(self._chain.tree), commit, precommits)
        self._chain.extend_commit(self._decided_votes.commit)
        self._decided_at_s = trio.current_time()
        self._mempool.settle(block.transactions)
        self._outlets.decided(block, commit)
        if block.height % COMPACT_EVERY == 0:
            await trio.to_thread.run_sync(self._wal.compact, block.height)

    async def _watch_for_work(self) -> None:
        """Wake the machine when a transaction waits, a deadline is due or the heartbeat comes.

        A machine that is awake needs no waking until the next height, which pokes.
        """
        while True:
            poked = self._poked = trio.Event()
            height, is_awake = self._machine.height, self._machine.is_awake
            wait_s = LOOK_AGAIN_S if is_awake else self._work_in_ms() / 1000
            if wait_s <= 0:
                await self._send.send(WorkWanted(height))
                wait_s = LOOK_AGAIN_S
            with trio.move_on_after(min(wait_s, LOOK_AGAIN_S)):
                await poked.wait()

    def _work_in_ms(self) -> int:
        """Milliseconds until a block is wanted; 0 or less when one is wanted now."""
        if self._mempool.has_work():
            return 0
        due_ms = self._chain.tip_time_ms + self._chain.genesis.parameters.heartbeat_ms
        deadline_ms = self._chain.next_deadline_ms()
        if deadline_ms is not None:
            due_ms = min(due_ms, deadline_ms)
        return due_ms - self._outlets.now_ms()

    async def _tell_status(self) -> None:
        """Tell peers where this node is: some, and often, while a decision is late; else all, but seldom."""
        while True:
            before = (self._machine.height, self._machine.is_awake)
            pause_s = BUSY_STATUS_S if self._machine.is_awake else IDLE_STATUS_S
            await trio.sleep(pause_s * random.uniform(0.8, 1.2))
            if before != (self._machine.height, self._machine.is_awake):
                continue
            peers = self._outlets.peers()
            if self._machine.is_awake:
                peers = tuple(random.sample(peers, min(BUSY_STATUS_PEERS, len(peers))))
            status = self._machine.status().to_bytes()
            for peer in peers:
                self._outlets.push(peer, STATUS, status)


def _is_proposal(item: Item) -> bool:
    return isinstance(item, MessageReceived) and isinstance(item.message, ProposalMessage)
