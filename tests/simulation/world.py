"""Simulated nodes on a simulated network, as a setting says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from random import Random

from bflnode.consensus.keys import SecretKey
from bflnode.consensus.task import ProbeMode, Rule
from bflnode.consensus.transaction import Transaction
from bflnode.consensus.types import TransactionId

from .byzantine import Careless, SilentLeader, Traitor, Vice
from .disk import SimulatedDisk, System
from .learner import Client, Habit
from .network import CALM, Network, Weather
from .oracle import Bookkeeper, Oracle
from .scheduler import Scheduler
from .simulated_chain import Cast, SharedLedger, SimulatedChain, genesis_of
from .simulated_node import Clock, SimulatedNode, Surroundings


class Fault(Enum):
    """What a faulty validator is."""

    TRAITOR = "traitor"
    TWO_FACED = "two-faced"
    SILENT_LEADER = "silent leader"
    WRONG_CLOCK = "wrong clock"
    FORGETFUL = "forgetful"


DISHONEST = frozenset({Fault.TRAITOR, Fault.TWO_FACED, Fault.FORGETFUL})
"""Faults whose signatures may contradict each other."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A network before anything happens.

    Attributes:
        keys: of the validators, node by number.
        stakes: of the validators.
        queue: the packing queue at the start, by number.
        faults: what some of them do, by number.
        vices: of the traitors, by number.
        clocks: how far each one's clock is off.
        weather: of the network.
        clients: keys of accounts without a stake; each has a node that watches.
        habits: how clients work, by number; validators are clients too.
        rounds: learning rounds of the task, 0 for none.
        probe_mode: of that task.
        rule: of that task.
    """

    keys: tuple[SecretKey, ...]
    stakes: tuple[int, ...]
    weather: Weather
    queue: tuple[int, ...] = (0, 1)
    faults: dict[int, Fault] = field(default_factory=dict)
    vices: dict[int, frozenset[Vice]] = field(default_factory=dict)
    clocks: dict[int, Clock] = field(default_factory=dict)
    clients: tuple[SecretKey, ...] = ()
    habits: dict[int, Habit] = field(default_factory=dict)
    rounds: int = 0
    probe_mode: ProbeMode = ProbeMode.PUBLIC
    rule: Rule = Rule.PAA

    @property
    def cast(self) -> Cast:
        accounts = tuple(key.account for key in self.keys)
        return Cast(
            validators=tuple(zip(accounts, self.stakes, strict=True)),
            queue=tuple(accounts[number] for number in self.queue),
            clients=tuple(key.account for key in self.clients),
            rounds=self.rounds,
            probe_mode=self.probe_mode,
            rule=self.rule,
        )


NODE_CLASSES: dict[Fault | None, type[SimulatedNode]] = {
    None: SimulatedNode,
    Fault.TRAITOR: Traitor,
    Fault.TWO_FACED: Careless,
    Fault.FORGETFUL: Careless,
    Fault.SILENT_LEADER: SilentLeader,
    Fault.WRONG_CLOCK: SimulatedNode,
}


def validator_keys(count: int, name: str = "validator") -> tuple[SecretKey, ...]:
    """Keys in ascending order of account, so that number i is the validator with index i."""
    keys = (SecretKey(sha256(f"{name} {number}".encode()).digest()) for number in range(count))
    return tuple(sorted(keys, key=lambda key: key.account))


class World:
    """Simulated nodes on a simulated network.

    Numbers: first the validators, then the clients, then the second faces of two-faced validators. Such a validator is
    two processes with one key that know nothing of each other.

    Attributes:
        nodes: by number.
        honest: numbers of those that keep the rules and must agree.
        able: of those, the ones that can be relied upon to make progress.
        digest: of the whole trace.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        system: System,
        random: Random,
        trace: Callable[[str], None] = lambda text: None,
    ) -> None:
        count, members = len(setting.keys), (*setting.keys, *setting.clients)
        self.setting = setting
        self.scheduler = Scheduler()
        self.network = Network(self.scheduler, random, setting.weather)
        self.network.deliver = self._deliver
        everybody = range(len(members))
        self.honest = tuple(number for number in everybody if setting.faults.get(number) not in DISHONEST)
        self.able = tuple(number for number in self.honest if number not in setting.faults)
        self.second_faces = {
            number: len(members) + offset
            for offset, number in enumerate(n for n, fault in setting.faults.items() if fault is Fault.TWO_FACED)
        }
        numbers = (*everybody, *self.second_faces.values())
        self.ledger = SharedLedger(genesis_of(setting.cast))
        genesis = self.ledger.genesis
        self.oracle = Oracle(genesis, frozenset(members[number].account for number in self.honest))
        self.bookkeeper = Bookkeeper(genesis)
        self._write_trace = trace
        self._digest = sha256()
        self._random = random
        self._checked: set[int] = set()
        self.around = around = Surroundings(
            self.scheduler, self.network, self.oracle, self.ledger, numbers, random, self._trace, self._check_state
        )
        habits = {members[number].account: habit for number, habit in setting.habits.items()}
        identities = {second: first for first, second in self.second_faces.items()}
        self.nodes: dict[int, SimulatedNode] = {}
        for number in numbers:
            first = identities.get(number, number)
            client = Client(members[first], habits, genesis, random)
            disk = SimulatedDisk(system, random)
            clock = setting.clocks.get(first) or Clock()
            node = NODE_CLASSES[setting.faults.get(first)](around, number, client, disk, clock)
            if isinstance(node, Traitor):
                node.vices = setting.vices.get(first, node.vices)
            self.nodes[number] = node
        assert count == len(setting.stakes)

    def boot(self) -> None:
        for node in self.nodes.values():
            node.boot()

    def _deliver(self, sender: int, receiver: int, message: object) -> None:
        self.nodes[receiver].receive(sender, message)

    def _check_state(self, chain: SimulatedChain) -> None:
        """Look at a state that an honest node has reached; once, since nodes share states."""
        if id(chain.point) not in self._checked:
            self._checked.add(id(chain.point))
            self.bookkeeper.check(chain)
            self.oracle.check_punished(chain)

    def _trace(self, text: str) -> None:
        line = f"{self.scheduler.now_ms:>7} {text}"
        self._digest.update(line.encode() + b"\n")
        self._write_trace(line)

    @property
    def digest(self) -> str:
        """A hash of everything that happened, in order, and of how much there was of it."""
        end = f"{self.scheduler.events} events, {self.network.sent} messages, {self.scheduler.now_ms} ms"
        digest = self._digest.copy()
        digest.update(end.encode())
        return digest.hexdigest()

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self._trace(text)

    def run(self, for_ms: int, is_done: Callable[[], bool] = lambda: False) -> None:
        self.scheduler.run(self.scheduler.now_ms + for_ms, is_done)

    def submit(self, number: int, transaction: Transaction) -> None:
        """Hand a client's transaction to a node; one that is down misses it."""
        self.nodes[number].submit(transaction)

    def contain(self, identifiers: tuple[TransactionId, ...], numbers: tuple[int, ...]) -> bool:
        """Whether all these nodes have all these transactions in their chains."""
        return all(self.nodes[number].chain.contains(item) for number in numbers for item in identifiers)

    def separate_faces(self, random: Random) -> None:
        """Each face of a two-faced validator knows its own part of the others, for good."""
        for number, second in self.second_faces.items():
            for other in self.nodes:
                hidden_from = second if random.random() < 0.5 else number
                if other not in (number, second):
                    self.network.cut_link(hidden_from, other)
                    self.network.cut_link(other, hidden_from)
            self.network.separate(((number,), (second,)))

    def heal(self) -> None:
        """The network is whole from now on, and every process runs that can."""
        self.network.heal()
        self.network.weather = CALM
        self.around.are_accusations_held = False
        for node in self.nodes.values():
            node.steps_to_crash = node.steps_to_failure = None
            if not node.is_up and node.refusal is None:
                node.boot()
        self.note("the network is whole")
