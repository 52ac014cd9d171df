"""Networks that lose messages on purpose: what partial synchrony allows before the network heals.

Chance loses messages evenly. An attack on a lock needs that one node decides what nobody else hears of; these arrange
it, one (`HiddenDecision`) exactly, the other (`Maze`) over and over with variations.
"""

from dataclasses import dataclass
from random import Random

from bflnode.consensus.block import ProposalMessage, Vote, VoteKind
from bflnode.consensus.types import AccountId

from .network import Message, Topic, topic_of
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
    """Draws anew for each round of each height who gets whose votes and proposals, however they travel.

    Each node hears all of one kind of message, none, or those of some validators; of final blocks it hears at a few
    heights only. So quorums form here and there, of all shapes, and nobody can tell the others.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(f"maze {seed}")
        self._heard: dict[tuple[object, ...], bool] = {}
        self._moods: dict[tuple[object, ...], float] = {}

    def loses(self, sender: int, receiver: int, message: Message) -> bool:
        match message:
            case Vote(kind, height, round_, _, validator):
                return not self._hears(receiver, height, round_, kind, validator)
            case ProposalMessage(proposal):
                return not self._hears(receiver, proposal.height, proposal.round, None, proposal.proposer)
            case Decided(block):
                return not self._draw((receiver, block.height), 0.1)
        return False

    def _hears(self, receiver: int, height: int, round_: int, kind: VoteKind | None, author: AccountId) -> bool:
        mood_key = (receiver, height, round_, kind)
        if mood_key not in self._moods:
            moods = (1.0, 1.0, 0.0, 0.7, 0.4) if kind is VoteKind.PRECOMMIT else (1.0, 1.0, 1.0, 0.0, 0.7)
            self._moods[mood_key] = self._random.choice(moods)
        return self._draw((*mood_key, author), self._moods[mood_key])

    def _draw(self, key: tuple[object, ...], chance: float) -> bool:
        if key not in self._heard:
            self._heard[key] = self._random.random() < chance
        return self._heard[key]
