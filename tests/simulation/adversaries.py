"""Networks that lose messages on purpose: what partial synchrony allows before the network heals.

Chance loses messages evenly. An attack on a lock needs that one node decides what nobody else hears of; these arrange
it, one (`HiddenDecision`) exactly, the other (`Maze`) over and over with variations.
"""

from dataclasses import dataclass
from random import Random

from bflnode.consensus.block import ProposalMessage, Vote, VoteKind
from bflnode.consensus.types import AccountId

from .network import Message, Topic, topic_of
from .scheduler import Scheduler
from .simulated_chain import Decided


@dataclass(frozen=True, slots=True)
class HiddenDecision:
    """Loses exactly what leads to a fork if locks are ignored; chance alone hardly ever arranges it.

    In one round of one height a witness decides and nobody hears it; the next leader gets no proposal, so it prevotes
    nil, and just so many prevotes that it goes on without having seen the quorum that locks the others.

    Attributes:
        height: of the decision.
        round: of the decision.
        witness: the node that decides.
        next_leader: the node that leads the next round, and knows of no valid value.
        unheard: whose prevotes don't reach the next leader.
    """

    height: int
    round: int
    witness: int
    next_leader: int
    unheard: frozenset[int]

    def loses(self, sender: int, receiver: int, message: Message) -> bool:
        match message:
            case Vote(kind, self.height, self.round):
                if kind is VoteKind.PRECOMMIT:
                    return receiver != self.witness
                return receiver == self.next_leader and sender in self.unheard
            case ProposalMessage(proposal):
                is_hidden = (proposal.height, proposal.round) == (self.height, self.round)
                return is_hidden and receiver == self.next_leader
        return topic_of(message) is Topic.PULLS


class Maze:
    """Draws anew for each round of each height whose votes and proposals a node doesn't get, however they travel.

    A node mostly misses as many validators as it can spare, so that it goes on from round to round, and now and then
    all of them; of final blocks it hears at a few heights only. So quorums form here and there, of all shapes, for one
    or for many, and nobody can tell the others. What is hidden may be pulled later, mostly in the next round.
    """

    def __init__(self, random: Random, accounts: tuple[AccountId, ...], scheduler: Scheduler) -> None:
        self._random = random
        self._accounts = accounts
        self._scheduler = scheduler
        self._shown_at_ms: dict[tuple[int, int, int, VoteKind | None], int] = {}
        self._hidden: dict[tuple[int, int, int, VoteKind | None], frozenset[AccountId]] = {}
        self._caught_up: dict[tuple[int, int], bool] = {}

    def loses(self, sender: int, receiver: int, message: Message) -> bool:
        match message:
            case Vote(kind, height, round_, _, validator):
                return validator in self._hidden_from((receiver, height, round_, kind))
            case ProposalMessage(proposal):
                return proposal.proposer in self._hidden_from((receiver, proposal.height, proposal.round, None))
            case Decided(block):
                key = (receiver, block.height)
                if key not in self._caught_up:
                    self._caught_up[key] = self._random.random() < 0.1
                return not self._caught_up[key]
        return False

    def _hidden_from(self, key: tuple[int, int, int, VoteKind | None]) -> frozenset[AccountId]:
        if key not in self._hidden:
            draw = self._random.random()
            spared = (len(self._accounts) - 1) // 3
            count = 0 if draw < 0.4 else len(self._accounts) if draw > 0.85 else spared
            self._hidden[key] = frozenset(self._random.sample(self._accounts, count))
            self._shown_at_ms[key] = self._scheduler.now_ms + self._random.choice((400, 800, 1_600, 6_400))
        return self._hidden[key] if self._scheduler.now_ms < self._shown_at_ms[key] else frozenset()
