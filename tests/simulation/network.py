"""The simulated network: it loses, delays, duplicates, reorders and cuts, as a seeded generator draws.

Messages travel as objects that nobody changes; what the bytes of hostile messages may be is tested with the codec.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Protocol, TypeAlias

from bflnode.consensus.agreement import Status
from bflnode.consensus.block import ProposalMessage, Vote, VoteKind
from bflnode.consensus.transaction import Transaction

from .scheduler import Scheduler
from .simulated_chain import Decided


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

STRAGGLERS = 0.05
"""Share of messages that take up to the straggler's delay, and so come after many later ones."""


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
        random, weather = self._random.random, self.weather
        copies = 2 if random() * 100 < weather.duplication else 1
        for _ in range(copies):
            if random() * 100 >= weather.loss and (sender, receiver) not in self.cut:
                longest = weather.straggler_delay_ms if random() < STRAGGLERS else weather.longest_delay_ms
                delay_ms = 1 + int(random() * longest)
                self._scheduler.after(delay_ms, lambda: self._arrive(sender, receiver, message))

    def _arrive(self, sender: int, receiver: int, message: Message) -> None:
        if (sender, receiver) in self.cut or (self.deaf and (receiver, topic_of(message)) in self.deaf):
            return
        if self.adversary is None or not self.adversary.loses(sender, receiver, message):
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
