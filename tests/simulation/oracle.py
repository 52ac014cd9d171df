"""What must hold in every run, whatever the schedule: each broken rule is one exception."""

from collections import defaultdict

from bflnode.consensus.agreement import Step
from bflnode.consensus.block import NIL, Block, Commit, ProposalMessage, Vote, VoteKind
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.types import AccountId, BlockId, ChainId


class ViolationError(AssertionError):
    """A run broke a rule."""


class AgreementError(ViolationError):
    """Two honest nodes decided different blocks at one height."""


class DoubleSignatureError(ViolationError):
    """An honest key signed two different messages in one slot."""


class LivenessError(ViolationError):
    """The network was whole for long enough, and yet something was not decided."""


class MissingEvidenceError(ViolationError):
    """A node had two contradicting messages before it and said nothing."""


class InvalidDecisionError(ViolationError):
    """A commit that isn't a quorum of right signatures."""


class Oracle:
    """Watches everything honest nodes sign, decide and are told."""

    def __init__(self, chain_id: ChainId, honest: frozenset[AccountId]) -> None:
        self.chain_id = chain_id
        self.honest = honest
        self.decided: dict[int, BlockId] = {}
        self.signed: dict[tuple[AccountId, int, int, Step], tuple[int, BlockId]] = {}
        self.expected_evidence: set[tuple[int, int, AccountId]] = set()
        self.seen_evidence: set[tuple[int, int, AccountId]] = set()
        self._delivered: defaultdict[tuple[int, int, AccountId, int, Step], set[BlockId]] = defaultdict(set)

    def signs(self, message: Vote | ProposalMessage) -> None:
        """An honest key's message leaves its node: the only one in its slot, across all restarts."""
        slot, content = _slot_and_content(message)
        if slot[0] in self.honest and self.signed.setdefault(slot, content) != content:
            raise DoubleSignatureError(f"{slot[0].hex()[:8]} at {slot[1:]}: {self.signed[slot]} and {content}")

    def decides(self, node: int, block: Block, commit: Commit, validators: ValidatorSet) -> None:
        """An honest node takes a block for final."""
        self._check_commit(block, commit, validators)
        first = self.decided.setdefault(block.height, block.id)
        if first != block.id:
            raise AgreementError(f"height {block.height}: {first.hex()[:8]}, node {node} {block.id.hex()[:8]}")

    def _check_commit(self, block: Block, commit: Commit, validators: ValidatorSet) -> None:
        if (commit.height, commit.block_id) != (block.height, block.id):
            raise InvalidDecisionError(f"commit of {commit.height} {commit.block_id.hex()[:8]}")
        indexes = [entry.index for entry in commit.signatures]
        if indexes != sorted(set(indexes)):
            raise InvalidDecisionError(f"indexes {indexes} don't ascend")
        for entry in commit.signatures:
            account = validators.accounts[entry.index]
            vote = Vote(VoteKind.PRECOMMIT, commit.height, commit.round, commit.block_id, account, entry.signature)
            vote.verify_signature(self.chain_id)
        if not validators.is_quorum(validators.weight_of(validators.accounts[index] for index in indexes)):
            raise InvalidDecisionError(f"height {block.height}: {len(indexes)} precommits are no quorum")

    def delivers(self, node: int, incarnation: int, message: Vote | ProposalMessage) -> None:
        """A message reaches a machine that counts it: two different ones in a slot are evidence it must give out."""
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

    def check_evidence(self) -> None:
        """Everybody who could prove an equivocation has done so."""
        if missing := sorted(self.expected_evidence - self.seen_evidence):
            raise MissingEvidenceError(f"{missing}")


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
