"""A node without network, disk and clock of its own: drives the real machine and the real signer's log.

It keeps the contract in `bflnode.consensus.agreement` and can be killed between any two effects and inside a write.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    ValidValue,
    VoteReceived,
    WorkAvailable,
)
from bflnode.consensus.block import Block, Commit, ProposalMessage, Vote
from bflnode.consensus.genesis import Parameters
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.machine import Machine
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.transaction import Transaction
from bflnode.consensus.types import TransactionId
from bflnode.storage.signer_wal import SignerWal

from .network import Decided, Message, Network, Pending
from .oracle import Oracle
from .scheduler import Action, Scheduler
from .simulated_chain import CLOCK_START_MS, SimulatedChain

STATUS_INTERVAL_MS = 250
BUILD_MS = 5
MAX_BUFFERED = 500
MAX_BLOCKS_IN_ANSWER = 5


class CrashError(Exception):
    """The process dies here."""


class HonestRefusedError(AssertionError):
    """A machine refused what an honest node sent."""


@dataclass
class Surroundings:
    """What all simulated nodes share."""

    scheduler: Scheduler
    network: Network
    oracle: Oracle
    parameters: Parameters
    numbers: tuple[int, ...]
    trace: Callable[[str], None]


class SimulatedNode:
    """One process. Its chain (database) and its log survive a crash; everything else is lost.

    Attributes:
        steps_to_crash: the node dies when it has passed this many failpoints; None while no crash is planned.
        wal_path: of its signer's log.
        tear: whether that crash leaves half a frame, if it comes while a frame is written.
    """

    is_honest = True

    def __init__(
        self, around: Surroundings, number: int, key: SecretKey, chain: SimulatedChain, *, folder: Path, skew_ms: int
    ) -> None:
        self.around = around
        self.number = number
        self.key = key
        self.chain = chain
        self.decisions: list[Decided] = []
        self.is_up = False
        self.incarnation = 0
        self.restarts = 0
        self.steps_to_crash: int | None = None
        self.tear = False
        self.highest_round = 0
        self.machine: Machine
        self.wal_path = folder / f"{number}-signer.wal"
        self._skew_ms = skew_ms
        self._wal: SignerWal
        self._inputs: deque[Input] = deque()
        self._buffer: deque[Vote | ProposalMessage] = deque(maxlen=MAX_BUFFERED)
        self._pending: dict[TransactionId, Transaction] = {}
        self._is_running = False

    # Life

    def boot(self) -> None:
        """Start the process: everything it knows comes from its chain and its log."""
        self.is_up = True
        self.incarnation += 1
        self.steps_to_crash = None
        self._inputs.clear()
        self._buffer.clear()
        self._pending.clear()
        self._is_running = False
        self._wal = self._open_wal()
        self._guarded(self._begin_height)
        self._every(STATUS_INTERVAL_MS, self._send_status)

    def crash(self) -> None:
        """Lose everything in memory."""
        self.is_up = False
        self.restarts += 1
        self.around.oracle.forgets(self.number, self.machine.height)
        self.steps_to_crash = None
        self._wal.close()
        self.around.trace(f"{self.number} crashes at height {self.machine.height}")

    def _open_wal(self) -> SignerWal:
        return SignerWal(self.wal_path, self.key, self.chain.chain_id)

    def _guarded(self, action: Action) -> None:
        if not self.is_up:
            return
        try:
            action()
        except CrashError:
            self.crash()

    def _after(self, delay_ms: int, action: Action) -> None:
        """Do something later, unless the process has died by then."""
        incarnation = self.incarnation

        def fire() -> None:
            if self.incarnation == incarnation:
                self._guarded(action)

        self.around.scheduler.after(delay_ms, fire)

    def _every(self, interval_ms: int, action: Action) -> None:
        def fire() -> None:
            action()
            self._after(interval_ms, fire)

        self._after(interval_ms + self.number, fire)

    def _failpoint(self, is_write: bool = False) -> None:
        """A place where the process may die; after a write, perhaps with the write half done."""
        if self.steps_to_crash is None:
            return
        self.steps_to_crash -= 1
        if self.steps_to_crash <= 0:
            if is_write and self.tear:
                self._tear_last_frame()
            raise CrashError

    def _tear_last_frame(self) -> None:
        """Undo a part of the last write, as if the crash had come before its fsync returned: nothing was sent yet."""
        data = self.wal_path.read_bytes()
        start = self._size_before_write
        keep = start + (len(data) - start) // 2
        self.wal_path.write_bytes(data[:keep])

    # Messages

    def receive(self, message: Message) -> None:
        self._guarded(lambda: self._take(message))

    def _take(self, message: Message) -> None:
        match message:
            case Vote():
                self._take_agreement(message, message.height)
            case ProposalMessage():
                self._take_agreement(message, message.proposal.height)
            case Decided():
                self._take_decided(message)
            case Pending(transactions):
                self.submit(transactions)
            case Status():
                raise AssertionError("a status has a sender")

    def receive_status(self, sender: int, status: Status) -> None:
        self._guarded(lambda: self._answer(sender, status))

    def _answer(self, sender: int, status: Status) -> None:
        if status.height < self.machine.height:
            for decided in self.decisions[status.height - 1 : status.height - 1 + MAX_BLOCKS_IN_ANSWER]:
                self._send(sender, decided)
            return
        missing = self.machine.missing(status)
        for vote in missing.votes:
            self._send(sender, vote)
        for proposal in missing.proposals:
            self._send(sender, proposal)

    def submit(self, transactions: tuple[Transaction, ...]) -> None:
        """Take transactions in, and wake the machine: there is work."""
        for transaction in transactions:
            if not self.chain.contains(transaction.id):
                self._pending[transaction.id] = transaction
        if self._pending:
            self._feed(WorkAvailable())

    def submit_from_client(self, transaction: Transaction) -> None:
        def take() -> None:
            self.submit((transaction,))
            self._broadcast(Pending((transaction,)))

        self._guarded(take)

    def _take_agreement(self, message: Vote | ProposalMessage, height: int) -> None:
        if height == self.machine.height + 1:
            self._buffer.append(message)
        if height == self.machine.height:
            self._feed(self._as_input(message))

    def _as_input(self, message: Vote | ProposalMessage) -> Input:
        if isinstance(message, Vote):
            return VoteReceived(message)
        is_timely = abs(message.block.header.time_ms - self.local_ms) <= self.around.parameters.clock_tolerance_ms
        return ProposalReceived(message, self.chain.is_valid(message.block), is_timely)

    def _take_decided(self, decided: Decided) -> None:
        """A block from a peer: checked by its commit, whatever the own machine thinks."""
        block, commit = decided.block, decided.commit
        if block.height == self.chain.height + 1 and self.chain.is_valid(block):
            self._apply(block, commit)

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
        self._note_delivery(event)
        try:
            effects = self.machine.step(event)
        except Rejection as rejection:
            if self._is_from_honest(event):
                raise HonestRefusedError(f"node {self.number}: {rejection}") from rejection
            return
        self.highest_round = max(self.highest_round, self.machine.round)
        self._execute_all(effects)

    def _note_delivery(self, event: Input) -> None:
        """Tell the oracle what this machine gets to know, of the rounds that it certainly keeps."""
        if isinstance(event, VoteReceived | ProposalReceived) and self.is_honest and not self.machine.has_decided:
            message = event.vote if isinstance(event, VoteReceived) else event.message
            round_ = message.round if isinstance(message, Vote) else message.proposal.round
            if 0 <= self.machine.round - round_ <= 1:
                self.around.oracle.delivers(self.number, self.incarnation, message)

    def _is_from_honest(self, event: Input) -> bool:
        match event:
            case VoteReceived(vote):
                return vote.validator in self.around.oracle.honest
            case ProposalReceived(message):
                return message.proposal.proposer in self.around.oracle.honest
        return True

    def _execute_all(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            self._failpoint()
            self._execute(effect)

    def _execute(self, effect: Effect) -> None:
        match effect:
            case Persist(record):
                self._persist(record)
            case SignVote():
                self._sign_vote(effect)
            case SignProposal():
                self._sign_proposal(effect)
            case SendVote(vote):
                self._send_own(vote)
            case SendProposal(message):
                self._send_own(message)
            case Schedule(timeout, duration_ms):
                self._after(duration_ms, lambda: self._feed(timeout))
            case BuildBlock(height, round_):
                self._after(BUILD_MS, lambda: self._build(height, round_))
            case Decide(block, commit):
                self._apply(block, commit)
            case Evidence(first, _):
                offender = first.validator if isinstance(first, Vote) else first.proposer
                self.around.oracle.accuses(self.number, self.machine.height, offender)

    def _persist(self, record: ValidValue) -> None:
        self._write(lambda: self._wal.persist(record))

    def _write(self, action: Action) -> None:
        self._size_before_write = self.wal_path.stat().st_size if self.wal_path.exists() else 0
        action()
        self._failpoint(is_write=True)

    def _sign_vote(self, intent: SignVote) -> None:
        signed: list[Vote] = []
        self._write(lambda: signed.append(self._wal.sign_vote(intent)))
        self._send_own(signed[0])
        self._failpoint()
        self._inputs.append(VoteReceived(signed[0]))

    def _sign_proposal(self, intent: SignProposal) -> None:
        signed: list[ProposalMessage] = []
        self._write(lambda: signed.append(self._wal.sign_proposal(intent)))
        self._send_own(signed[0])
        self._failpoint()
        self._inputs.append(ProposalReceived(signed[0], is_valid=True))

    def _send_own(self, message: Vote | ProposalMessage) -> None:
        self.around.oracle.signs(message)
        self._broadcast(message)

    def _build(self, height: int, round_: int) -> None:
        if (height, round_) == (self.machine.height, self.machine.round):
            self._feed(BlockBuilt(self._new_block(round_)))

    def _new_block(self, round_: int) -> Block:
        return self.chain.build(round_, self.key.account, self.local_ms, tuple(self._pending.values()))

    def _apply(self, block: Block, commit: Commit) -> None:
        """Make a block final: database, then log, then the next height."""
        if self.is_honest:
            self.around.oracle.decides(self.number, block, commit, self.chain.validators)
        self._failpoint()
        self.chain.apply(block, commit)
        self.decisions.append(Decided(block, commit))
        self._failpoint()
        self._wal.compact(block.height)
        self._failpoint()
        self._pending = {key: item for key, item in self._pending.items() if not self.chain.contains(item.id)}
        self._begin_height()

    def _begin_height(self) -> None:
        """A new machine; inputs still queued were for the old one."""
        self._inputs.clear()
        height = self.chain.height + 1
        self.machine = Machine(
            self.key.account,
            self.around.parameters,
            height=height,
            validators=self.chain.validators,
            leader=self.chain.leader,
        )
        self._execute_all(self.machine.start(self._wal.records(height)))
        if self._pending:
            self._inputs.append(WorkAvailable())
        buffered, self._buffer = self._buffer, deque(maxlen=MAX_BUFFERED)
        self._inputs.extend(self._as_input(message) for message in buffered)
        self._drain()

    # Sending

    @property
    def local_ms(self) -> int:
        """What this node's clock shows."""
        return CLOCK_START_MS + self.around.scheduler.now_ms + self._skew_ms

    def _send(self, receiver: int, message: Message) -> None:
        self.around.network.send(self.number, receiver, message)

    def _broadcast(self, message: Message) -> None:
        for number in self.around.numbers:
            if number != self.number:
                self._send(number, message)

    def _send_status(self) -> None:
        self._broadcast(self.machine.status())
        if self._pending:
            self._broadcast(Pending(tuple(self._pending.values())))
