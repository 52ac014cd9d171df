"""A node without network, disk and clock of its own: drives the real machine, signer's log, mempool and duties.

It keeps the contract in `bflnode.consensus.agreement` as `bflnode.node.agreement_driver` does, and can be killed before
and after any effect and in any call of its disk.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from bflnode.consensus import ledger
from bflnode.consensus.agreement import (
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
    ValidValue,
    VoteReceived,
    WorkAvailable,
)
from bflnode.consensus.block import Block, Commit, Proposal, ProposalMessage, Vote, verify_body
from bflnode.consensus.evidence import make_evidence
from bflnode.consensus.machine import Machine
from bflnode.consensus.rejection import Premature, Reason, Rejection
from bflnode.consensus.tables import previous_validators
from bflnode.consensus.transaction import Transaction, sign_transaction
from bflnode.consensus.types import AccountId
from bflnode.node.decided_votes import DecidedVotes
from bflnode.node.mempool import Mempool
from bflnode.storage.errors import StorageError
from bflnode.storage.signer_wal import SignerWal, SignerWalError

from .disk import CrashError, SimulatedDisk
from .learner import Client, Learner
from .network import Message, Network, Pending
from .oracle import Oracle, Voting
from .scheduler import Action, Scheduler
from .simulated_chain import CLOCK_START_MS, PARAMETERS, Decided, SharedLedger, SimulatedChain
from .violations import HonestRefusedError

STATUS_INTERVAL_MS = 250
STATUS_PEERS = 2
BUILD_MS = 5
MAX_EARLY = 500
MAX_BLOCKS_IN_ANSWER = 5

COMPACT_EVERY = 2
"""Heights between compactions of the log: a run has dozens of heights, not thousands."""

WAL = "signer.wal"


@dataclass
class Surroundings:
    """What all simulated nodes share."""

    scheduler: Scheduler
    network: Network
    oracle: Oracle
    ledger: SharedLedger
    numbers: tuple[int, ...]
    random: Random
    trace: Callable[[str], None]
    decided: Callable[[SimulatedChain], None]
    are_accusations_held: bool = False
    """Whether evidence waits: a traitor that is punished at once can't do much else."""


@dataclass
class Clock:
    """How a node's clock is wrong: by so much, and by so much more with time."""

    skew_ms: int = 0
    drift_permille: int = 0

    def local_ms(self, now_ms: int) -> int:
        return CLOCK_START_MS + now_ms + self.skew_ms + now_ms * self.drift_permille // 1000

    def virtual_ms(self, duration_ms: int) -> int:
        return max(1, duration_ms * 1000 // (1000 + self.drift_permille))


class SimulatedNode:
    """One process. Its chain, accusations and the disk of its log survive a crash; everything else is lost.

    Attributes:
        steps_to_crash: the node dies when it has passed this many failpoints; None while no crash is planned.
        is_power_cut: whether the machine dies with it, and what wasn't synced is lost.
        refusal: why the process doesn't start; a person has to do something.
        accusations: what it has to say against others, by offender.
    """

    is_honest = True

    def __init__(self, around: Surroundings, number: int, client: Client, disk: SimulatedDisk, clock: Clock) -> None:
        self.around = around
        self.number = number
        self.key = client.key
        self.account = client.account
        self.clock = clock
        self.disk = disk
        self.disk.failpoint = self._pass
        self.chain = SimulatedChain(around.ledger)
        self.is_up = False
        self.incarnation = 0
        self.restarts = 0
        self.steps_to_crash: int | None = None
        self.is_power_cut = False
        self.steps_to_failure: int | None = None
        self.refusal: SignerWalError | None = None
        self.highest_round = 0
        self.accusations: dict[AccountId, Transaction] = {}
        self.machine: Machine
        self._client = client
        self._wal: SignerWal
        self._learner: Learner
        self._mempool: Mempool
        self._decided_votes: DecidedVotes
        self._inputs: deque[Input] = deque()
        self._early: deque[Vote | ProposalMessage] = deque(maxlen=MAX_EARLY)
        self._is_running = False
        self._alarm: tuple[int, int] | None = None

    # Life

    def boot(self) -> None:
        """Start the process: everything it knows comes from its chain and its log."""
        assert not self.is_up
        self.refusal = None
        self.incarnation += 1
        self._inputs.clear()
        self._early.clear()
        self._is_running = False
        self._alarm = None
        self._mempool = Mempool(self._check, lambda rejection: isinstance(rejection, Premature), self._seconds)
        self._learner = Learner(self._client, self, lambda: self.chain.tree)
        self.is_up = True
        self.around.trace(f"{self.number} starts at height {self.chain.height + 1}")
        self._guarded(self._start)

    def _start(self) -> None:
        self._wal = self._open_wal()
        self._decided_votes = DecidedVotes(previous_validators(self.chain.tree), self.chain.last_commit)
        self._every(STATUS_INTERVAL_MS, self._send_status)
        self._begin_height()

    def crash(self) -> None:
        """Lose everything in memory, and with the power what wasn't synced."""
        self.is_up = False
        self.restarts += 1
        self.around.oracle.forgets(self.number, self.chain.height + 1)
        self.steps_to_crash = self.steps_to_failure = None
        if self.is_power_cut:
            self.disk.cut_power()
        else:
            self.disk.kill()
        cause = "loses power" if self.is_power_cut else "dies"
        self.around.trace(f"{self.number} {cause} at height {self.chain.height + 1}")

    def _open_wal(self) -> SignerWal:
        """Open the log; a new one on a chain with blocks doesn't sign for the next, as `bflnode.node.recovery` says."""
        wal = SignerWal(self.disk.path(WAL), self.key, self.chain.chain_id)
        if wal.is_new:
            validators = self.chain.validators
            may_have_signed = self.chain.height > 0 and self.account in validators and len(validators) > 1
            wal.abstain(self.chain.height + may_have_signed)
        return wal

    def lose_chain(self) -> None:
        """The database of a node that is down is lost; its log is not."""
        assert not self.is_up
        self.chain.erase()
        self.around.trace(f"{self.number} loses its chain")

    def remove_log(self) -> None:
        """A person moves the log of a node that is down away."""
        assert not self.is_up
        self.disk.erase(WAL)
        self.around.trace(f"{self.number}'s log is moved away")

    def _guarded(self, action: Action) -> None:
        if not self.is_up:
            return
        try:
            action()
        except CrashError:
            self.crash()
        except SignerWalError as error:
            self.refusal = error
            self.crash()
            self.around.trace(f"{self.number} refuses to start: {error}")
        except StorageError as error:
            self.around.trace(f"{self.number} stops: {error}")
            self.crash()

    def _pass(self, name: str) -> None:
        """A place where the process may die, or its disk fail."""
        if self.steps_to_failure is not None:
            self.steps_to_failure -= 1
            if self.steps_to_failure <= 0 and name in ("write", "half written", "fsync", "open", "rename", "truncate"):
                raise OSError(28, "no space left on device")
        if self.steps_to_crash is not None:
            self.steps_to_crash -= 1
            if self.steps_to_crash <= 0:
                self.around.trace(f"{self.number} dies at: {name}")
                raise CrashError

    def later(self, delay_ms: int, action: Action) -> None:
        """Do something later, unless the process has died by then."""
        incarnation = self.incarnation

        def fire() -> None:
            if self.incarnation == incarnation:
                self._guarded(action)

        self.around.scheduler.after(delay_ms, fire)

    def _every(self, interval_ms: int, action: Action) -> None:
        def fire() -> None:
            action()
            self.later(interval_ms, fire)

        self.later(interval_ms + self.number, fire)

    # Messages

    def receive(self, sender: int, message: Message) -> None:
        self._guarded(lambda: self._take(sender, message))

    def _take(self, sender: int, message: Message) -> None:
        try:
            match message:
                case Vote():
                    self._take_agreement(message, message.height)
                case ProposalMessage():
                    self._take_agreement(message, message.proposal.height)
                case Decided():
                    self._take_decided(message)
                case Pending(transactions):
                    self._take_transactions(transactions)
                case Status():
                    self._answer(sender, message)
        except Rejection as rejection:
            self.around.trace(f"{self.number} refuses a {type(message).__name__} from {sender}: {rejection}")

    def _answer(self, sender: int, status: Status) -> None:
        if status.height < self.machine.height:
            for decided in self.chain.decisions[status.height - 1 :][:MAX_BLOCKS_IN_ANSWER]:
                self._send(sender, decided)
        elif status.height == self.machine.height:
            missing = self.machine.missing(status)
            for message in (*missing.votes, *missing.proposals):
                self._send(sender, message)

    def _take_agreement(self, message: Vote | ProposalMessage, height: int) -> None:
        """As `AgreementDriver._take_message`."""
        if isinstance(message, Vote) and self._decided_votes.concerns(message):
            self._take_late(message)
            return
        if height not in (self.machine.height, self.machine.height + 1):
            return
        if height == self.machine.height and not self._is_wanted(message):
            return
        self._check_signatures(message)
        if height == self.machine.height:
            self._feed(self._as_input(message))
        else:
            self._early.append(message)

    def _is_wanted(self, message: Vote | ProposalMessage) -> bool:
        """What the machine refuses goes to it, rightly signed: `_step` sees whether an honest node sent it."""
        try:
            return self.machine.wants(message)
        except Rejection:
            return True

    def _take_late(self, vote: Vote) -> None:
        """As `AgreementDriver._take_late`: a precommit of the last block."""
        if vote.validator not in self._decided_votes.validators:
            raise Rejection(Reason.UNKNOWN_VALIDATOR, validator=vote.validator)
        if not self._decided_votes.is_new(vote):
            return
        self._check_signatures(vote)
        self._compare(vote)
        self.chain.extend_commit(self._decided_votes.commit)

    def _compare(self, vote: Vote) -> None:
        contradicted = self._decided_votes.add(vote)
        if contradicted is not None:
            self._accuse(contradicted, vote)

    def _check_signatures(self, message: Vote | ProposalMessage) -> None:
        if isinstance(message, Vote):
            message.verify_signature(self.chain.chain_id)
            return
        message.proposal.verify_signature(self.chain.chain_id)
        verify_body(message.block)
        for vote in message.certificate:
            vote.verify_signature(self.chain.chain_id)

    def _as_input(self, message: Vote | ProposalMessage) -> Input:
        if isinstance(message, Vote):
            return VoteReceived(message)
        self.around.oracle.blocks.setdefault(message.block.id, message.block)
        is_timely = abs(message.block.header.time_ms - self.local_ms) <= PARAMETERS.clock_tolerance_ms
        if is_timely:
            self.around.oracle.timely.add((self.number, message.block.id))
        is_valid = self.machine.keeps(message) and self.chain.is_valid(message.block)
        return ProposalReceived(message, is_valid, is_timely)

    def _take_decided(self, decided: Decided) -> None:
        """As `AgreementDriver._take_final`: checked by its commit, whatever the own machine thinks."""
        block, commit = decided.block, decided.commit
        if block.height != self.machine.height:
            return
        if (commit.height, commit.block_id) != (block.height, block.id):
            raise Rejection(Reason.WRONG_COMMIT, commit=commit.block_id, block=block.id)
        ledger.verify_commit(self.chain.chain_id, self.chain.validators, commit)
        if not self.chain.is_valid(block):
            raise Rejection(Reason.WRONG_ROOT, block=block.id)
        self._apply(block, commit)

    # Transactions

    def submit(self, transaction: Transaction) -> None:
        """Take in what a client hands over; a process that is down misses it."""

        def take() -> None:
            self._take_transactions((transaction,))
            self._broadcast(Pending((transaction,)))

        self._guarded(take)

    def submit_own(self, transaction: Transaction) -> None:
        """A transaction of this node's own account; raises `Rejection`."""
        self._mempool.add(transaction)
        self._broadcast(Pending((transaction,)))
        self._wake()

    def _take_transactions(self, transactions: tuple[Transaction, ...]) -> None:
        for transaction in transactions:
            if not self.chain.contains(transaction.id):
                try:
                    self._mempool.add(transaction)
                except Rejection:
                    continue
        self._wake()

    def _check(self, transaction: Transaction) -> None:
        self.chain.check(transaction, self.local_ms)

    def _wake(self) -> None:
        """Blocks on demand: tell the machine when there is work, else look again when something is due."""
        if self.machine.is_awake:
            return
        due_ms = self.chain.time_ms + PARAMETERS.heartbeat_ms
        deadline_ms = ledger.next_deadline_ms(self.chain.genesis, self.chain.tree)
        if deadline_ms is not None:
            due_ms = min(due_ms, deadline_ms)
        wait_ms = due_ms - self.local_ms
        if self._mempool.has_work() or wait_ms <= 0:
            self._feed(WorkAvailable())
        elif self._alarm != (self.machine.height, due_ms):
            self._alarm = (self.machine.height, due_ms)
            self.later(self.clock.virtual_ms(wait_ms), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._wake()

    # Effects

    def _feed(self, event: Input) -> None:
        """Inputs queue up: the effects of one are done before the next is taken."""
        self._inputs.append(event)
        self._drain()

    def _drain(self) -> None:
        if self._is_running:
            return
        self._is_running = True
        try:
            while self._inputs:
                self._step(self._inputs.popleft())
        finally:
            self._is_running = False

    def _step(self, event: Input) -> None:
        is_counted = not self.machine.has_decided
        machine = self.machine
        try:
            effects = machine.step(event)
        except Rejection as rejection:
            self.around.trace(f"{self.number} refuses a {type(event).__name__}: {rejection}")
            if self._is_from_honest(event):
                raise HonestRefusedError(f"node {self.number}: {rejection}") from rejection
            return
        if is_counted:
            self._note_delivery(machine, event)
        self.highest_round = max(self.highest_round, machine.round)
        self._execute_all(effects)

    def _note_delivery(self, machine: Machine, event: Input) -> None:
        """Tell the oracle what this machine gets to know, of the rounds that it certainly keeps."""
        if isinstance(event, VoteReceived | ProposalReceived) and self.is_honest:
            message = event.vote if isinstance(event, VoteReceived) else event.message
            round_ = message.round if isinstance(message, Vote) else message.proposal.round
            if 0 <= machine.round - round_ <= 1:
                self.around.oracle.delivers(self.number, self.incarnation, message)

    def _is_from_honest(self, event: Input) -> bool:
        match event:
            case VoteReceived(vote):
                return vote.validator in self.around.oracle.honest
            case ProposalReceived(message):
                is_genuine = message.block.id in self.around.oracle.proposed
                return is_genuine and message.proposal.proposer in self.around.oracle.honest
        return True

    def _execute_all(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            self._pass(f"before {type(effect).__name__}")
            self._execute(effect)
            self._pass(f"after {type(effect).__name__}")

    def _execute(self, effect: Effect) -> None:
        match effect:
            case Persist(record):
                self._persist(record)
            case SignVote():
                self._sign_vote(effect)
            case SignProposal():
                self._sign_proposal(effect)
            case SendVote(message) | SendProposal(message):
                self._send_own(message, is_sent_again=True)
            case Schedule(timeout, duration_ms):
                self.later(self.clock.virtual_ms(duration_ms), lambda: self._time_out(timeout))
            case BuildBlock(height, round_):
                self.later(BUILD_MS, lambda: self._build(height, round_))
            case Decide(block, commit):
                self._apply(block, commit)
            case Evidence(first, second):
                self._accuse(first, second)

    def _time_out(self, timeout: TimeoutElapsed) -> None:
        if timeout.height == self.machine.height:
            self._feed(timeout)

    def _persist(self, record: ValidValue) -> None:
        self._wal.persist(record)

    def _sign_vote(self, intent: SignVote) -> None:
        vote = self._wal.sign_vote(intent)
        self._pass("signed")
        self._send_own(vote)
        self._inputs.append(VoteReceived(vote))

    def _sign_proposal(self, intent: SignProposal) -> None:
        message = self._wal.sign_proposal(intent)
        self._pass("signed")
        self._send_own(message)
        self._inputs.append(ProposalReceived(message, is_valid=True))

    def _send_own(self, message: Vote | ProposalMessage, *, is_sent_again: bool = False) -> None:
        voting = Voting(self.number, self.chain.validators, is_sent_again)
        self.around.oracle.signs(message, voting)
        self.around.trace(f"{self.number} signs {_told(message)}")
        self._broadcast(message)

    def _accuse(self, first: Vote | Proposal, second: Vote | Proposal) -> None:
        """As `bflnode.node.accusations`: kept until the offender has been punished."""
        evidence = make_evidence(first, second)
        offender = evidence.offender
        self.around.trace(f"{self.number} has evidence against {offender.hex()[:8]}")
        if self.is_honest:
            self.around.oracle.accuses(self.number, evidence.height, offender)
        if offender not in (self.account, *self.accusations):
            self.accusations[offender] = sign_transaction(self.key, self.chain.chain_id, evidence)
            self._review()

    def _review(self) -> None:
        """Send what is still worth sending, forget what is settled."""
        for offender, transaction in list(self.accusations.items()):
            try:
                self._check(transaction)
            except Premature:
                continue
            except Rejection:
                self.accusations.pop(offender, None)
                continue
            if not self.around.are_accusations_held:
                self._take_transactions((transaction,))
                self._broadcast(Pending((transaction,)))

    def _build(self, height: int, round_: int) -> None:
        if (height, round_) == (self.machine.height, self.machine.round):
            self._feed(BlockBuilt(self._new_block(round_)))

    def _new_block(self, round_: int) -> Block:
        return self.chain.build(round_, self.account, self.local_ms, self._mempool.candidates())

    def _apply(self, block: Block, commit: Commit) -> None:
        """Make a block final: database, then mempool and log, then the next height."""
        decided = Decided(block, commit)
        if self.is_honest:
            self.around.oracle.decides(self.number, self.chain, decided)
        precommits = self.machine.precommits(commit.round)
        self._pass("before the batch")
        self.chain.apply(block, commit)
        self._pass("after the batch")
        if self.is_honest:
            self.around.trace(f"{self.number} decides {block.height} {block.id.hex()[:8]} in round {commit.round}")
            self.around.decided(self.chain)
        for vote in self._decided_votes.votes_in(block.last_commit):
            self._compare(vote)
        self._decided_votes = DecidedVotes(previous_validators(self.chain.tree), commit, precommits)
        self.chain.extend_commit(self._decided_votes.commit)
        self._mempool.settle(block.transactions)
        if block.height % COMPACT_EVERY == 0:
            self._wal.compact(block.height)
        self._begin_height()

    def _begin_height(self) -> None:
        """A new machine; inputs still queued were for the old one."""
        self._inputs.clear()
        height = self.chain.height + 1
        self.machine = Machine(
            self.account if self._may_sign(height) else None,
            PARAMETERS,
            height=height,
            validators=self.chain.validators,
            leader=self.chain.leader,
        )
        self._execute_all(self.machine.start(self._wal.records(height)))
        early, self._early = self._early, deque(maxlen=MAX_EARLY)
        for message in early:
            self._inputs.append(self._as_input(message))
        self._review()
        self._wake()
        self._learner.look()
        self._drain()

    def _may_sign(self, height: int) -> bool:
        """As `AgreementDriver._may_sign`: not before the chain is where the log is, nor the log where the chain is."""
        signed_height = self._wal.mark[0]
        if signed_height > height or (signed_height == height and not self._wal.records(height)):
            return False
        signed = self._decided_votes.precommit_of(self.account)
        return signed is None or self._wal.mark >= (signed.height, signed.round, Step.PRECOMMIT)

    # Sending

    @property
    def local_ms(self) -> int:
        """What this node's clock shows."""
        return self.clock.local_ms(self.around.scheduler.now_ms)

    def _seconds(self) -> float:
        return self.around.scheduler.now_ms / 1000

    def _send(self, receiver: int, message: Message) -> None:
        self.around.network.send(self.number, receiver, message)

    def _broadcast(self, message: Message) -> None:
        for number in self.around.numbers:
            if number != self.number:
                self._send(number, message)

    def _send_status(self) -> None:
        others = [number for number in self.around.numbers if number != self.number]
        waiting = self._mempool.candidates()
        for number in self.around.random.sample(others, min(STATUS_PEERS, len(others))):
            self._send(number, self.machine.status())
            if waiting:
                self._send(number, Pending(waiting))


def _told(message: Vote | ProposalMessage) -> str:
    if isinstance(message, Vote):
        content = message.block_id.hex()[:8] if any(message.block_id) else "nil"
        return f"{message.kind.name.lower()} {message.height}/{message.round} {content}"
    proposal = message.proposal
    return f"proposal {proposal.height}/{proposal.round} {proposal.block_id.hex()[:8]} valid {proposal.valid_round}"
