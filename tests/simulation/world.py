"""One simulated network from a seed: who takes part, what goes wrong and when, and what must hold in the end."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from random import Random

from bflnode.consensus.agreement import Status
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.transaction import Transaction
from bflnode.consensus.types import TransactionId

from .byzantine import Careless, Equivocator, SilentLeader
from .network import CALM, Message, Network, Weather
from .oracle import Oracle
from .scheduler import Scheduler
from .simulated_chain import PARAMETERS, SimulatedChain, genesis_of
from .simulated_node import SimulatedNode, Surroundings

MEMORY = Path("/dev/shm")
"""Logs of simulated nodes live in memory where there is such a folder: an fsync there costs microseconds."""


class Fault(Enum):
    """What a faulty validator does."""

    EQUIVOCATOR = "equivocator"
    TWO_FACED = "two-faced"
    SILENT_LEADER = "silent leader"
    WRONG_CLOCK = "wrong clock"
    FORGETFUL = "forgetful"


DISHONEST = frozenset({Fault.EQUIVOCATOR, Fault.TWO_FACED, Fault.FORGETFUL})
"""Faults whose signatures may contradict each other."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A network before anything happens.

    Attributes:
        keys: of the validators, node by number.
        faults: what some of them do, by number.
        skews_ms: how far each one's clock is off.
        weather: of the network.
    """

    keys: tuple[SecretKey, ...]
    faults: dict[int, Fault]
    skews_ms: tuple[int, ...]
    weather: Weather


NODE_CLASSES: dict[Fault | None, type[SimulatedNode]] = {
    None: SimulatedNode,
    Fault.EQUIVOCATOR: Equivocator,
    Fault.TWO_FACED: Careless,
    Fault.FORGETFUL: Careless,
    Fault.SILENT_LEADER: SilentLeader,
    Fault.WRONG_CLOCK: SimulatedNode,
}


class World:
    """Simulated nodes on a simulated network.

    A two-faced validator is two processes with one key that know nothing of each other; the second has the number of
    the first plus the number of validators.

    Attributes:
        nodes: by number.
        honest: numbers of those that keep the rules and must agree.
        able: of those, the ones that can be relied upon to make progress.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        random: Random,
        folder: Path,
        trace: Callable[[str], None] = lambda text: None,
    ) -> None:
        accounts = tuple(key.account for key in setting.keys)
        count = len(accounts)
        self.setting = setting
        self.scheduler = Scheduler()
        self.network = Network(self.scheduler, random, setting.weather)
        self.network.deliver = self._deliver
        self.honest = tuple(number for number in range(count) if setting.faults.get(number) not in DISHONEST)
        self.able = tuple(number for number in self.honest if number not in setting.faults)
        second_faces = [number for number, fault in setting.faults.items() if fault is Fault.TWO_FACED]
        numbers = (*range(count), *(count + number for number in second_faces))
        self.oracle = Oracle(genesis_of(accounts).chain_id, frozenset(accounts[number] for number in self.honest))
        around = Surroundings(self.scheduler, self.network, self.oracle, PARAMETERS, numbers, self._trace)
        self._write_trace = trace
        self.nodes: dict[int, SimulatedNode] = {}
        for number in numbers:
            validator = number % count
            node_class = NODE_CLASSES[setting.faults.get(validator)]
            self.nodes[number] = node_class(
                around,
                number,
                setting.keys[validator],
                SimulatedChain(accounts),
                folder=folder,
                skew_ms=setting.skews_ms[validator],
            )

    def boot(self) -> None:
        for node in self.nodes.values():
            node.boot()

    def _deliver(self, sender: int, receiver: int, message: Message) -> None:
        if isinstance(message, Status):
            self.nodes[receiver].receive_status(sender, message)
        else:
            self.nodes[receiver].receive(message)

    def _trace(self, text: str) -> None:
        self._write_trace(f"{self.scheduler.now_ms:>7} {text}")

    def run(self, for_ms: int, is_done: Callable[[], bool] = lambda: False) -> None:
        self.scheduler.run(self.scheduler.now_ms + for_ms, is_done)

    def submit(self, number: int, transaction: Transaction) -> None:
        """Hand a client's transaction to a node; one that is down misses it."""
        self.nodes[number].submit_from_client(transaction)

    def contain(self, identifiers: tuple[TransactionId, ...], numbers: tuple[int, ...]) -> bool:
        """Whether all these nodes have all these transactions in their chains."""
        return all(self.nodes[number].chain.contains(item) for number in numbers for item in identifiers)

    def heal(self) -> None:
        """The network is whole from now on, and every process runs."""
        self.network.heal()
        self.network.weather = CALM
        for node in self.nodes.values():
            node.steps_to_crash = None
            if not node.is_up:
                node.boot()


def log_folder() -> "tempfile.TemporaryDirectory[str]":
    """A place for the logs of one run."""
    return tempfile.TemporaryDirectory(prefix="simulation-", dir=MEMORY if MEMORY.is_dir() else None)
