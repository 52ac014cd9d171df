"""What must hold in every run, whatever the schedule: each broken rule is one exception.

Besides the guarantees themselves the oracle checks what they rest on, from all votes that were ever signed: a precommit
for a block needs a quorum of prevotes for it, a prevote against an own lock needs a later quorum, a prevote for a block
of an earlier round needs one too. So a broken rule shows in runs in which it does no harm.
"""

from collections import defaultdict
from dataclasses import dataclass

from bflnode.consensus import ledger
from bflnode.consensus.agreement import Step
from bflnode.consensus.block import (
    MAX_BLOCK_BYTES,
    NIL,
    Block,
    Commit,
    Header,
    Proposal,
    ProposalMessage,
    Vote,
    VoteKind,
)
from bflnode.consensus.genesis import Genesis
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.state import StateTree
from bflnode.consensus.tables import (
    SETTLED,
    all_tasks,
    current_round,
    current_validators,
    previous_validators,
    stake_of,
)
from bflnode.consensus.task import LearningRound, SettledRound, TaskStatus
from bflnode.consensus.transaction import Fault
from bflnode.consensus.types import AccountId, BlockId

from .learner import FALSE_OUTPUT
from .simulated_chain import Decided, SimulatedChain
from .violations import (
    AgreementError,
    DoubleSignatureError,
    InvalidDecisionError,
    LivenessError,
    MissingEvidenceError,
    MoneyError,
    SlanderError,
    UnjustifiedVoteError,
)

VERIFY = Vote.verify_signature
"""As it was when this was loaded: mutants may change it."""

MAX_SKIPPED_ROUNDS = 2_000
"""More rounds than any run lasts: who is beyond was led there by somebody who lies."""


@dataclass(frozen=True, slots=True)
class Voting:
    """What an honest node knows as it sends what it signed, perhaps before it died."""

    node: int
    validators: ValidatorSet
    is_sent_again: bool


class Oracle:
    """Watches everything honest nodes sign, decide and are told.

    Attributes:
        are_votes_checked: whether votes must be justified; a script that shows what comes of it otherwise waits.
        blocks: that were proposed, as somebody honest got them.
        timely: which node found the time of which block near its own clock.
    """

    def __init__(self, genesis: Genesis, honest: frozenset[AccountId]) -> None:
        self.genesis = genesis
        self.chain_id = genesis.chain_id
        self.honest = honest
        self.decided: dict[int, Decided] = {}
        self.signed: dict[tuple[AccountId, int, int, Step], tuple[int, BlockId]] = {}
        self.proposed: set[BlockId] = set()
        self.blocks: dict[BlockId, Block] = {}
        self.timely: set[tuple[int, BlockId]] = set()
        self.are_votes_checked = True
        self.expected_evidence: set[tuple[int, int, AccountId]] = set()
        self.seen_evidence: set[tuple[int, int, AccountId]] = set()
        self._delivered: defaultdict[tuple[int, int, AccountId, int, Step], set[BlockId]] = defaultdict(set)
        self._prevotes: defaultdict[tuple[int, int, BlockId], set[AccountId]] = defaultdict(set)
        self._locks: dict[tuple[AccountId, int], tuple[int, BlockId]] = {}

    # Votes

    def observes(self, message: object) -> None:
        """A key signed this, whoever hears of it; forged votes are nobody's."""
        match message:
            case Vote(VoteKind.PREVOTE):
                try:
                    VERIFY(message, self.chain_id)
                except Rejection:
                    return
                self._prevotes[message.height, message.round, message.block_id].add(message.validator)
            case ProposalMessage(certificate=certificate):
                for vote in certificate:
                    self.observes(vote)

    def signs(self, message: Vote | ProposalMessage, voting: Voting) -> None:
        """An honest key's message leaves its node: the only one in its slot, across all restarts, and justified."""
        slot, content = _slot_and_content(message)
        is_new = slot not in self.signed
        if slot[0] in self.honest and self.signed.setdefault(slot, content) != content:
            raise DoubleSignatureError(f"{slot[0].hex()[:8]} at {slot[1:]}: {self.signed[slot]} and {content}")
        self.observes(message)
        if slot[0] not in self.honest or not is_new:
            return
        if slot[2] > MAX_SKIPPED_ROUNDS:
            raise LivenessError(f"node {voting.node} is in round {slot[2]}")
        if isinstance(message, ProposalMessage):
            self._check_proposal(message.proposal, voting)
            if message.proposal.valid_round == -1:
                self.proposed.add(message.block.id)
        elif message.block_id != NIL and self.are_votes_checked:
            self._check_vote(message, voting)

    def _check_proposal(self, proposal: Proposal, voting: Voting) -> None:
        if proposal.valid_round >= 0:
            self._require_polka(proposal.height, proposal.valid_round, proposal.block_id, voting)

    def _check_vote(self, vote: Vote, voting: Voting) -> None:
        key = (vote.validator, vote.height)
        if vote.kind is VoteKind.PRECOMMIT:
            self._require_polka(vote.height, vote.round, vote.block_id, voting)
            self._locks[key] = (vote.round, vote.block_id)
            return
        locked_round, locked_id = self._locks.get(key, (-1, vote.block_id))
        if locked_id != vote.block_id:
            rounds = range(locked_round, vote.round)
            if not any(self._has_polka(vote.height, round_, vote.block_id, voting) for round_ in rounds):
                raise UnjustifiedVoteError(
                    f"node {voting.node} is locked on {short(locked_id)} in round {locked_round} of height "
                    f"{vote.height} and prevotes {short(vote.block_id)} in round {vote.round}"
                )
        if vote.block_id in self.blocks:
            self._check_prevote(vote, self.blocks[vote.block_id].header, voting)

    def _check_prevote(self, vote: Vote, header: Header, voting: Voting) -> None:
        if header.round == vote.round:
            is_own = header.proposer == vote.validator
            if not (is_own or voting.is_sent_again or (voting.node, header.id) in self.timely):
                raise UnjustifiedVoteError(f"node {voting.node} prevotes {short(header.id)}, far from its clock")
        elif not any(
            self._has_polka(vote.height, round_, vote.block_id, voting) for round_ in range(header.round, vote.round)
        ):
            raise UnjustifiedVoteError(f"node {voting.node} prevotes {short(header.id)} of an earlier round, unproven")

    def _has_polka(self, height: int, round_: int, block_id: BlockId, voting: Voting) -> bool:
        weight = sum(map(voting.validators.stake_of, self._prevotes.get((height, round_, block_id), ())))
        return 3 * weight > 2 * voting.validators.total

    def _require_polka(self, height: int, round_: int, block_id: BlockId, voting: Voting) -> None:
        if not self._has_polka(height, round_, block_id, voting):
            raise UnjustifiedVoteError(f"node {voting.node}: no quorum for {short(block_id)} in {height}/{round_}")

    # Decisions

    def decides(self, node: int, chain: SimulatedChain, decided: Decided) -> None:
        """An honest node takes a block for final."""
        block = decided.block
        first = self.decided.setdefault(block.height, decided)
        if first.block.encoded != block.encoded:
            raise AgreementError(
                f"height {block.height}: {short(first.block.id)}, node {node} {short(block.id)}, or another body"
            )
        self._check_commit(block, decided.commit, chain.validators)
        if chain.decisions:
            self._check_commit(chain.decisions[-1].block, block.last_commit, previous_validators(chain.tree))
        if block.header.proposer in self.honest and block.id not in self.proposed:
            raise InvalidDecisionError(f"{short(block.id)} bears the name of an honest leader that never proposed it")

    def _check_commit(self, block: Block, commit: Commit, validators: ValidatorSet) -> None:
        if (commit.height, commit.block_id) != (block.height, block.id):
            raise InvalidDecisionError(f"commit of {commit.height} {short(commit.block_id)}")
        indexes = [entry.index for entry in commit.signatures]
        if indexes != sorted(set(indexes)):
            raise InvalidDecisionError(f"indexes {indexes} don't ascend")
        for entry in commit.signatures:
            account = validators.accounts[entry.index]
            vote = Vote(VoteKind.PRECOMMIT, commit.height, commit.round, commit.block_id, account, entry.signature)
            try:
                VERIFY(vote, self.chain_id)
            except Rejection as rejection:
                raise InvalidDecisionError(f"height {block.height}: {rejection}") from rejection
        weight = sum(validators.validators[index].stake for index in indexes)
        if 3 * weight <= 2 * validators.total:
            raise InvalidDecisionError(f"height {block.height}: {weight} of {validators.total} is no quorum")

    # Evidence

    def delivers(self, node: int, incarnation: int, message: Vote | ProposalMessage) -> None:
        """A machine has counted a message: two different ones in a slot are evidence it must give out."""
        (account, height, round_, step), (_, block_id) = _slot_and_content(message)
        contents = self._delivered[node, incarnation * 1_000_000 + height, account, round_, step]
        contents.add(block_id)
        if len(contents) > 1:
            self.expected_evidence.add((node, height, account))

    def accuses(self, node: int, height: int, account: AccountId) -> None:
        """A node gives out evidence against a key."""
        if account in self.honest:
            raise DoubleSignatureError(f"node {node} has evidence against the honest {account.hex()[:8]}")
        self.seen_evidence.add((node, height, account))

    def forgets(self, node: int, height: int) -> None:
        """A node died: what it knew of a height, and had not yet said, is lost."""
        self.expected_evidence = {
            entry for entry in self.expected_evidence if entry[:2] != (node, height) or entry in self.seen_evidence
        }

    def is_punished(self, chain: SimulatedChain) -> bool:
        """Whether everybody against whom there was evidence has lost half of its stake and its vote for ever."""
        offenders = {account for _, _, account in self.seen_evidence}
        return all(stake_of(chain.tree, account).is_tombstoned for account in offenders)

    def check_punished(self, chain: SimulatedChain) -> None:
        """Raises SlanderError: somebody honest was punished."""
        for account in sorted(self.honest):
            if stake_of(chain.tree, account).is_tombstoned:
                raise SlanderError(f"height {chain.height}: {account.hex()[:8]}")

    # In the end

    def judge(self) -> None:
        """What can be said only of the whole run; on the real ledger, whatever the nodes ran.

        Raises:
            ViolationError: a rule was broken.
        """
        if missing := sorted(self.expected_evidence - self.seen_evidence):
            raise MissingEvidenceError(f"(node, height, offender): {missing}")
        tree, parent = ledger.genesis_state(self.genesis), None
        for height in sorted(self.decided):
            parent = self._check_again(tree, parent, self.decided[height])

    def _check_again(self, tree: StateTree, parent: Header | None, decided: Decided) -> Header:
        """Execute a final block alone, from bytes."""
        block = Block.from_bytes(decided.block.encoded, max_bytes=MAX_BLOCK_BYTES)
        try:
            execution = ledger.validate_block(self.genesis, tree, parent, block)
            ledger.verify_commit(self.chain_id, current_validators(tree), decided.commit)
        except Rejection as rejection:
            raise InvalidDecisionError(f"height {block.height}: {rejection}") from rejection
        tree.apply(execution.changes)
        assert tree.root == block.header.state_root
        return block.header


class Bookkeeper:
    """Checks the money of a state without a word of the ledger."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis

    def check(self, chain: SimulatedChain) -> None:
        """Raises MoneyError: the supply changed, or a learning round was paid without its quorum, or wrongly."""
        try:
            ledger.assert_supply(self._genesis, chain.tree)
        except AssertionError as error:
            raise MoneyError(f"height {chain.height}: {error}") from error
        previous = chain.point.previous
        current = None if previous is None else current_round(previous.tree)
        for key, settled in SETTLED.scan(chain.tree):
            if current is not None and SETTLED.get(previous.tree, key) is None and settled.aggregation is not None:
                self._check_settled(current, settled)

    def _check_settled(self, current: LearningRound, settled: SettledRound) -> None:
        """A learning round that the last block settled."""
        name = f"learning round {settled.slot.number}"
        stakes = {validator.account: validator.stake for validator in current.committee}
        good = sum(stakes.get(vote.account, 0) for vote in settled.attestations if vote.fault is Fault.NONE)
        if 3 * good <= 2 * sum(stakes.values()):
            raise MoneyError(f"{name} is paid with the word of {good} of {sum(stakes.values())}")
        paid = sum(client.gross - client.fee for client in settled.clients) + settled.aggregator_income
        if paid != settled.reward:
            raise MoneyError(f"{name} pays {paid} of {settled.reward}")
        is_false = any(output.startswith(FALSE_OUTPUT) for output in settled.aggregation.outputs)
        if is_false:
            raise MoneyError(f"{name} is paid for outputs that aren't the mean")

    def has_ended(self, chain: SimulatedChain) -> bool:
        """Whether no task waits or runs any more."""
        return all(task.status in (TaskStatus.DONE, TaskStatus.CANCELLED) for task in all_tasks(chain.tree))

    def endings(self, chain: SimulatedChain) -> tuple[int, int]:
        """How many learning rounds were settled, and how many tasks cancelled."""
        settled = sum(record.aggregation is not None for _, record in SETTLED.scan(chain.tree))
        return settled, sum(task.status is TaskStatus.CANCELLED for task in all_tasks(chain.tree))


def _slot_and_content(
    message: Vote | ProposalMessage,
) -> tuple[tuple[AccountId, int, int, Step], tuple[int, BlockId]]:
    if isinstance(message, Vote):
        return (message.validator, message.height, message.round, Step(message.kind)), (-1, message.block_id)
    proposal = message.proposal
    slot = (proposal.proposer, proposal.height, proposal.round, Step.PROPOSE)
    return slot, (proposal.valid_round, proposal.block_id)


def short(block_id: BlockId) -> str:
    """A block id for a trace."""
    return "nil" if block_id == NIL else block_id.hex()[:8]
