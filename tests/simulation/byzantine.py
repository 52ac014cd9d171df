"""Simulated nodes that are not honest, or not able: what up to a third of the stake may be."""

from dataclasses import replace
from pathlib import Path
from random import Random

from bflnode.consensus.agreement import ProposalReceived, SignProposal, SignVote, ValidValue, VoteReceived
from bflnode.consensus.block import NIL, ProposalMessage, Vote, VoteKind, sign_proposal, sign_vote
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.types import BlockId

from .simulated_chain import SimulatedChain
from .simulated_node import SimulatedNode, Surroundings


class SilentLeader(SimulatedNode):
    """Votes, but never proposes: each of its turns costs a time-out."""

    def _build(self, height: int, round_: int) -> None:
        self.around.trace(f"{self.number} keeps silent as leader of {height}/{round_}")

    def _sign_proposal(self, intent: SignProposal) -> None:
        self.around.trace(f"{self.number} does not propose again in {intent.height}/{intent.round}")


class Careless(SimulatedNode):
    """Signs without a log: honest until it restarts, when it has forgotten everything (amnesia)."""

    is_honest = False

    def _sign_vote(self, intent: SignVote) -> None:
        vote = self._signed(intent.kind, intent.height, intent.round, intent.block_id)
        self._broadcast(vote)
        self._inputs.append(VoteReceived(vote))

    def _sign_proposal(self, intent: SignProposal) -> None:
        message = self._proposed(intent)
        self._broadcast(message)
        self._inputs.append(ProposalReceived(message, is_valid=True))

    def _persist(self, record: ValidValue) -> None:
        """Nothing is written."""

    def _signed(self, kind: VoteKind, height: int, round_: int, block_id: BlockId) -> Vote:
        return sign_vote(self.key, self.chain.chain_id, kind, height, round_, block_id)

    def _proposed(self, intent: SignProposal) -> ProposalMessage:
        proposal = sign_proposal(
            self.key,
            self.chain.chain_id,
            height=intent.height,
            round_=intent.round,
            valid_round=intent.valid_round,
            block_id=intent.block.id,
        )
        return ProposalMessage(proposal, intent.block, intent.certificate)


class Equivocator(Careless):
    """Tells everybody something else: other votes, other proposals, votes for rounds that nobody has reached."""

    def __init__(
        self, around: Surroundings, number: int, key: SecretKey, chain: SimulatedChain, *, folder: Path, skew_ms: int
    ) -> None:
        super().__init__(around, number, key, chain, folder=folder, skew_ms=skew_ms)
        self._random = Random(f"equivocator {number} {key.account.hex()}")
        self._seen = [NIL]

    def _sign_vote(self, intent: SignVote) -> None:
        self._seen = [*self._seen[-3:], intent.block_id]
        other = self._random.choice([NIL, BlockId(self._random.randbytes(32)), *self._seen])
        votes = [
            self._signed(intent.kind, intent.height, intent.round, content) for content in (intent.block_id, other)
        ]
        self._scatter(votes)
        if self._random.randrange(10) == 0:
            ahead = intent.round + self._random.choice([1, 2, 3, 50, 100_000])
            self._scatter([self._signed(intent.kind, intent.height, ahead, other)])
        self._inputs.append(VoteReceived(votes[0]))

    def _sign_proposal(self, intent: SignProposal) -> None:
        messages = [self._proposed(intent)]
        if intent.valid_round == -1:
            header = intent.block.header
            later = self.chain.build(intent.round, header.proposer, header.time_ms + 1, ())
            messages.append(self._proposed(replace(intent, block=later)))
        self._scatter(messages)
        self._inputs.append(ProposalReceived(messages[0], is_valid=True))

    def _scatter(self, messages: list[Vote] | list[ProposalMessage]) -> None:
        """Each of the others gets one of the messages, all of them, or none."""
        for number in self.around.numbers:
            chosen = self._random.choice([[message] for message in messages] + [list(messages), []])
            for message in chosen:
                if number != self.number:
                    self._send(number, message)
