"""Simulated nodes that are not honest, or not able: what up to a third of the stake may be."""

from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from random import Random

from bflnode.consensus.agreement import Schedule, SignerRecord, SignProposal, SignVote, Step, ValidValue
from bflnode.consensus.block import (
    NIL,
    Block,
    Commit,
    CommitSignature,
    Header,
    Proposal,
    ProposalMessage,
    Vote,
    VoteKind,
    commit_hash,
    sign_proposal,
    sign_vote,
)
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.transaction import Evidence, SignedKind, Statement, sign_transaction
from bflnode.consensus.types import AccountId, BlockId, ChainId, Hash, Signature

from .disk import SimulatedDisk
from .learner import Client
from .network import Message, Pending
from .simulated_chain import PARAMETERS, Decided
from .simulated_node import Clock, SimulatedNode, Surroundings


class NoLog:
    """Signs whatever it is asked to, and remembers nothing."""

    def __init__(self, key: SecretKey, chain_id: ChainId) -> None:
        self._key = key
        self._chain_id = chain_id
        self.values: list[ValidValue] = []

    def records(self, height: int) -> tuple[SignerRecord, ...]:
        return ()

    def persist(self, record: ValidValue) -> None:
        self.values.append(record)

    def compact(self, decided_height: int) -> None:
        """There is nothing to forget."""

    def sign_vote(self, intent: SignVote) -> Vote:
        return sign_vote(self._key, self._chain_id, intent.kind, intent.height, intent.round, intent.block_id)

    def sign_proposal(self, intent: SignProposal) -> ProposalMessage:
        proposal = sign_proposal(
            self._key,
            self._chain_id,
            height=intent.height,
            round_=intent.round,
            valid_round=intent.valid_round,
            block_id=intent.block.id,
        )
        return ProposalMessage(proposal, intent.block, intent.certificate)


class SilentLeader(SimulatedNode):
    """Votes, but never proposes: each of its turns costs a time-out."""

    def _build(self, height: int, round_: int) -> None:
        self.around.trace(f"{self.number} keeps silent as leader of {height}/{round_}")

    def _sign_proposal(self, intent: SignProposal) -> None:
        self.around.trace(f"{self.number} does not propose again in {intent.height}/{intent.round}")


class Careless(SimulatedNode):
    """Signs without a log: honest until it restarts, when it has forgotten everything (amnesia)."""

    is_honest = False

    def _open_wal(self) -> NoLog:
        return NoLog(self.key, self.chain.chain_id)

    def _may_sign(self, height: int) -> bool:
        return True


class Vice(Enum):
    """What a traitor does."""

    EQUIVOCATE = "equivocate"
    """Votes and proposes different things at once, also for rounds that nobody has reached."""
    WITHHOLD = "withhold"
    """Sends what it signs to some only."""
    SUPPORT = "support"
    """Prevotes and precommits whatever is proposed, whoever proposes it."""
    LIE = "lie"
    """Proposes blocks that break a rule, another one each time, and to halves of the others different ones."""
    UNLOCK = "unlock"
    """Proposes something new although others are locked, or an own block as if it had had its quorum before."""
    USURP = "usurp"
    """Proposes when others lead, in their name."""
    FORGE = "forge"
    """Sends votes and final blocks with signatures that aren't."""


class Traitor(Careless):
    """Has some of the vices, and sends each of the others something else.

    Attributes:
        vices: what it does.
        lies: it chooses from these.
    """

    def __init__(self, around: Surroundings, number: int, client: Client, disk: SimulatedDisk, clock: Clock) -> None:
        super().__init__(around, number, client, disk, clock)
        self.vices = frozenset(Vice)
        self._random = Random(f"traitor {number} {self.account.hex()}")
        self._seen = [NIL]
        self.lies: tuple[str, ...] = tuple(sorted(LIES))
        self._supported: set[tuple[int, int, BlockId]] = set()

    def _send(self, receiver: int, message: Message) -> None:
        self.around.oracle.observes(message)
        super()._send(receiver, message)

    def _scatter(self, messages: Iterable[Vote | ProposalMessage], *, evenly: bool = False) -> None:
        """Each of the others gets one of the messages, all of them, or none; evenly: half of them one, half another."""
        offered = list(messages)
        for number in self.around.numbers:
            choices = [[message] for message in offered]
            if not evenly:
                choices += [offered]
                choices += [[]] if Vice.WITHHOLD in self.vices else []
            if number != self.number:
                for message in self._random.choice(choices):
                    self._send(number, message)

    def _review(self) -> None:
        """It denounces nobody."""

    # Votes

    def _sign_vote(self, intent: SignVote) -> None:
        self._seen = [*self._seen[-3:], intent.block_id]
        votes = [self._wal.sign_vote(intent)]
        if Vice.EQUIVOCATE in self.vices:
            other = self._random.choice([NIL, BlockId(self._random.randbytes(32)), *self._seen])
            votes.append(self._wal.sign_vote(replace(intent, block_id=other)))
            if self._random.random() < 0.1:
                ahead = intent.round + self._random.choice([1, 2, 3, 50, 100_000])
                self._scatter([self._wal.sign_vote(replace(intent, round=ahead, block_id=other))])
        self._scatter(votes)
        self._inputs.append(self._as_input(votes[0]))

    def _take(self, sender: int, message: Message) -> None:
        if Vice.SUPPORT in self.vices and isinstance(message, ProposalMessage):
            self._support(message)
        super()._take(sender, message)

    def _support(self, message: ProposalMessage) -> None:
        proposal = message.proposal
        key = (proposal.height, proposal.round, proposal.block_id)
        if key not in self._supported:
            self._supported.add(key)
            for kind in VoteKind:
                self._broadcast(self._wal.sign_vote(SignVote(kind, *key)))

    # Proposals

    def _sign_proposal(self, intent: SignProposal) -> None:
        if intent.valid_round >= 0 and Vice.UNLOCK in self.vices and self._random.random() < 0.7:
            fresh = self.chain.build(intent.round, self.account, self.local_ms, ())
            intent = SignProposal(intent.height, intent.round, -1, fresh, ())
        honest = self._wal.sign_proposal(intent)
        messages = [honest]
        is_even = False
        if intent.valid_round == -1:
            if Vice.LIE in self.vices:
                name, message = self._lie(intent)
                self.around.trace(f"{self.number} lies in {intent.height}/{intent.round}: {name}")
                is_mixed = self._random.random() < 0.3
                messages, is_even = [honest, message] if is_mixed else [message], self._random.random() < 0.7
            elif Vice.EQUIVOCATE in self.vices:
                later = self.chain.build(intent.round, self.account, intent.block.header.time_ms + 1, ())
                messages.append(self._wal.sign_proposal(replace(intent, block=later)))
        self._scatter(messages, evenly=is_even)
        if Vice.SUPPORT in self.vices:
            for message in messages:
                self._support(message)
        self._inputs.append(self._as_input(honest))

    def _lie(self, intent: SignProposal) -> tuple[str, ProposalMessage]:
        """A new proposal that breaks a rule."""
        name = self._random.choice(self.lies)
        block = intent.block
        message = self._wal.sign_proposal(replace(intent, block=LIES[name](self, block)))
        if name == "another body":
            message = replace(message, block=Block(message.block.header, (), self._bad_commit(block.last_commit)))
        return name, message

    def _bad_commit(self, commit: Commit) -> Commit:
        """A commit with a signature that isn't, or too few of them."""
        if not commit.signatures:
            return replace(commit, signatures=(CommitSignature(0, Signature(bytes(64))),))
        first = replace(commit.signatures[0], signature=Signature(self._random.randbytes(64)))
        return replace(commit, signatures=self._random.choice([(first, *commit.signatures[1:]), commit.signatures[:1]]))

    def with_bad_commit(self, block: Block) -> Block:
        commit = self._bad_commit(block.last_commit)
        return Block(replace(block.header, last_commit_hash=commit_hash(commit)), block.transactions, commit)

    def at(self, time_ms: int, block: Block) -> Block:
        """The same block with another time, and the state that follows from it."""
        header = block.header
        rebuilt = self.chain.build(header.round, header.proposer, time_ms, block.transactions)
        return replace_header(rebuilt, time_ms=time_ms)

    def twice(self, block: Block) -> Block:
        """Pays somebody twice with one transaction, if the ledger lets it."""
        transactions = (*block.transactions[:1], *block.transactions)
        return self.chain.build(block.header.round, self.account, block.header.time_ms, transactions)

    # Whenever a round begins

    def _execute(self, effect: object) -> None:
        if isinstance(effect, Schedule) and effect.timeout.step is Step.PROPOSE:
            self.later(2, lambda: self._intrude(effect.timeout.height, effect.timeout.round))
        super()._execute(effect)

    def _intrude(self, height: int, round_: int) -> None:
        if height != self.machine.height:
            return
        if Vice.UNLOCK in self.vices and self.chain.leader(round_) == self.account and round_:
            self._unlock(height, round_)
        if Vice.USURP in self.vices and self.chain.leader(round_) != self.account:
            block = self.chain.build(round_, self.chain.leader(round_), self.local_ms, ())
            self._offer(self._wal.sign_proposal(SignProposal(height, round_, -1, block, ())))
        if Vice.FORGE in self.vices:
            self._forge(height, round_)
            self._slander(height, round_)

    def _unlock(self, height: int, round_: int) -> None:
        """Propose an old valid value as if there were no later one, or an own block of an earlier round as one."""
        values = [value for value in self._wal.values if value.proposal.height == height and value.round < round_]
        if values and self._random.random() < 0.5:
            value = self._random.choice(values)
            intent = SignProposal(height, round_, value.round, value.block, value.prevotes)
            self._offer(self._wal.sign_proposal(intent))
            return
        own = [earlier for earlier in range(round_) if self.chain.leader(earlier) == self.account]
        if not own:
            return
        first = self._random.choice(own)
        valid_round = self._random.randint(first, round_ - 1)
        block = self.chain.build(first, self.account, self.local_ms, ())
        vote = self._wal.sign_vote(SignVote(VoteKind.PREVOTE, height, valid_round, block.id))
        others = [account for account in self.chain.validators.accounts if account != self.account]
        forged = tuple(replace(vote, validator=account, signature=Signature(bytes(64))) for account in others)
        certificate = self._random.choice([(), (vote,), (vote,) * len(self.chain.validators), (vote, *forged)])
        self._offer(self._wal.sign_proposal(SignProposal(height, round_, valid_round, block, certificate)))

    def _offer(self, message: ProposalMessage) -> None:
        self._broadcast(message)
        self._support(message)

    def _slander(self, height: int, round_: int) -> None:
        """Evidence against somebody who has done nothing."""
        victim = self._random.choice([item for item in self.chain.validators.accounts if item != self.account])
        block_ids = sorted(BlockId(self._random.randbytes(32)) for _ in range(2))
        first, second = (Statement(item, -1, Signature(self._random.randbytes(64))) for item in block_ids)
        body = Evidence(victim, SignedKind.PREVOTE, height, round_, first, second)
        self._broadcast(Pending((sign_transaction(self.key, self.chain.chain_id, body),)))

    def _forge(self, height: int, round_: int) -> None:
        """Votes of others for an own block, and that block as final."""
        block = self.chain.build(round_, self.chain.leader(round_), self.local_ms + 1, ())
        signature = Signature(self._random.randbytes(64))
        proposal = Proposal(height, round_, -1, block.id, block.header.proposer, signature)
        self._broadcast(ProposalMessage(proposal, block, ()))
        entries = []
        for index, account in enumerate(self.chain.validators.accounts):
            signature = Signature(self._random.randbytes(64))
            entries.append(CommitSignature(index, signature))
            for kind in VoteKind:
                self._broadcast(Vote(kind, height, round_, block.id, account, signature))
        own = self._wal.sign_vote(SignVote(VoteKind.PRECOMMIT, height, round_, block.id)).signature
        index = self.chain.validators.index_of(self.account)
        if index is None:
            return
        entries[index] = CommitSignature(index, own)
        chosen = self._random.choice([entries, entries[index : index + 1], [entries[index]] * len(entries)])
        self._broadcast(Decided(block, Commit(height, round_, block.id, tuple(chosen))))
        if self.chain.decisions:
            last = self.chain.decisions[-1]
            self._broadcast(replace(last, block=Block(last.block.header, (), self._bad_commit(last.block.last_commit))))


def replace_header(block: Block, **changes: object) -> Block:
    """The same block under another header."""
    return Block(replace(block.header, **changes), block.transactions, block.last_commit)


def _other(value: Hash | BlockId | AccountId) -> Hash:
    return Hash(bytes([value[0] ^ 1]) + value[1:])


def _parent_time_ms(traitor: Traitor) -> int:
    parent: Header | None = traitor.chain.point.parent
    return traitor.chain.genesis.time_ms if parent is None else parent.time_ms


LIES = {
    "far future": lambda traitor, block: traitor.at(block.header.time_ms + 10 * PARAMETERS.clock_tolerance_ms, block),
    "the parent's time": lambda traitor, block: traitor.at(_parent_time_ms(traitor), block),
    "wrong state": lambda _, block: replace_header(block, state_root=_other(block.header.state_root)),
    "wrong parent": lambda _, block: replace_header(block, parent=_other(block.header.parent)),
    "wrong height": lambda _, block: replace_header(block, height=block.header.height + 1),
    "wrong validators": lambda _, block: replace_header(block, validators_hash=_other(block.header.validators_hash)),
    "wrong next validators": lambda _, block: replace_header(
        block, next_validators_hash=_other(block.header.next_validators_hash)
    ),
    "wrong beacon": lambda _, block: replace_header(block, beacon=_other(block.header.beacon)),
    "wrong transactions": lambda _, block: Block(block.header, block.transactions[1:], block.last_commit),
    "a transaction twice": lambda traitor, block: traitor.twice(block),
    "bad last commit": lambda traitor, block: traitor.with_bad_commit(block),
    "another leader's name": lambda traitor, block: replace_header(
        block, proposer=next(item for item in traitor.chain.validators.accounts if item != traitor.account)
    ),
    "another body": lambda _, block: block,
}
"""Blocks that break one rule, from one that breaks none."""
