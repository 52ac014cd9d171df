"""The simulated network: it loses, delays, duplicates, reorders and cuts, as a seeded generator draws."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Protocol, TypeAlias

from bflnode.consensus.agreement import Status
from bflnode.consensus.block import Block, Commit, ProposalMessage, Vote, VoteKind
from bflnode.consensus.transaction import Transaction

from .scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Decided:
    """A final block, for a node that lags behind."""

    block: Block
    commit: Commit


@dataclass(frozen=True, slots=True)
class Pending:
    """Transactions on their way into a block."""

    transactions: tuple[Transaction, ...]


class Topic(Enum):
    """What a message is about: a node can be deaf to some of it."""

    PROPOSALS = "proposals"
    PREVOTES = "prevotes"
    PRECOMMITS = "precommits"
    PULLS = "pulls"
    TRANSACTIONS = "transactions"


Message: TypeAlias = Vote | ProposalMessage | Status | Decided | Pending
Deliver: TypeAlias = Callable[[int, int, Message], None]


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad a network is: probabilities in percent, delays in virtual milliseconds."""

    loss: int
    duplication: int
    longest_delay_ms: int
    straggler_delay_ms: int


CALM = Weather(loss=0, duplication=5, longest_delay_ms=40, straggler_delay_ms=40)
"""After the network has healed: nothing is lost and everything arrives well within a time-out."""

STRAGGLERS = 5
"""Percent of messages that take up to the straggler's delay, and so come after many later ones."""


def topic_of(message: Message) -> Topic:
    match message:
        case ProposalMessage():
            return Topic.PROPOSALS
        case Vote(kind):
            return Topic.PREVOTES if kind is VoteKind.PREVOTE else Topic.PRECOMMITS
        case Status() | Decided():
            return Topic.PULLS
        case Pending():
            return Topic.TRANSACTIONS


class Adversary(Protocol):
    """Chooses which messages are lost."""

    def loses(self, sender: int, receiver: int, message: Message) -> bool: ...


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
                    return sender == self.witness
                return receiver == self.next_leader and sender in self.unheard
            case ProposalMessage(proposal):
                is_hidden = (proposal.height, proposal.round) == (self.height, self.round)
                return is_hidden and receiver == self.next_leader
        return topic_of(message) is Topic.PULLS


class Network:
    """Carries messages between nodes, named by number."""

    def __init__(self, scheduler: Scheduler, random: Random, weather: Weather) -> None:
        self.weather = weather
        self.cut: set[tuple[int, int]] = set()
        self.deaf: set[tuple[int, Topic]] = set()
        self.adversary: Adversary | None = None
        self.deliver: Deliver
        self.sent = 0
        self._scheduler = scheduler
        self._random = random

    def send(self, sender: int, receiver: int, message: Message) -> None:
        """Carry a message, perhaps, once or twice. A cut link loses it at either end of its way."""
        self.sent += 1
        copies = 2 if self._random.randrange(100) < self.weather.duplication else 1
        for _ in range(copies):
            is_lost = self._random.randrange(100) < self.weather.loss
            delay_ms = self._delay_ms()
            if not is_lost and (sender, receiver) not in self.cut:
                self._scheduler.after(delay_ms, lambda: self._arrive(sender, receiver, message))

    def _delay_ms(self) -> int:
        is_straggler = self._random.randrange(100) < STRAGGLERS
        return self._random.randint(
            1, self.weather.straggler_delay_ms if is_straggler else self.weather.longest_delay_ms
        )

    def _arrive(self, sender: int, receiver: int, message: Message) -> None:
        is_cut = (sender, receiver) in self.cut or (receiver, topic_of(message)) in self.deaf
        if not is_cut and not (self.adversary is not None and self.adversary.loses(sender, receiver, message)):
            self.deliver(sender, receiver, message)

    def separate(self, groups: tuple[tuple[int, ...], ...]) -> None:
        """Cut all links between groups, both ways."""
        for group in groups:
            for other in groups:
                if group is not other:
                    self.cut.update((sender, receiver) for sender in group for receiver in other)

    def cut_link(self, sender: int, receiver: int) -> None:
        """Cut one direction only."""
        self.cut.add((sender, receiver))

    def heal(self) -> None:
        self.cut.clear()
        self.deaf.clear()
        self.adversary = None
