"""A random schedule from a seed: faults for a while, then a whole network with a bounded time to finish its work."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from bflnode.consensus.keys import SecretKey
from bflnode.consensus.transaction import Transaction, Transfer, sign_transaction
from bflnode.consensus.types import AccountId, ChainId

from .network import HiddenDecision, Topic, Weather
from .oracle import LivenessError
from .world import Fault, Setting, World, log_folder

CHAOS_MS = 6_000
CALAMITY_INTERVAL_MS = 200
FAULTS = (Fault.EQUIVOCATOR, Fault.TWO_FACED, Fault.SILENT_LEADER, Fault.WRONG_CLOCK)

HIDING_MS = 1_400
"""Two rounds of agreement."""

TRANSACTION_INTERVAL_MS = 350
LIVENESS_BOUND_MS = 20_000
"""Virtual time after healing in which every able node must have every last transaction. Rounds reached during the chaos
make time-outs longer, and f faulty leaders cost one each."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did."""

    seed: int
    validators: int
    faults: tuple[str, ...]
    heights: int
    highest_round: int
    restarts: int
    evidence: int
    events: int
    messages: int
    recovery_ms: int


def draw_setting(random: Random, seed: int) -> Setting:
    """4 to 7 validators, up to a third of them faulty in one way each."""
    count = random.randint(4, 7)
    keys = sorted((SecretKey(bytes([seed % 256, number + 1]) * 16) for number in range(count)), key=lambda k: k.account)
    most = (count - 1) // 3
    faulty = random.sample(range(count), random.randint(0, most))
    faults = {number: random.choice(FAULTS) for number in faulty}
    skews = tuple(
        random.choice([-90_000, 90_000]) if faults.get(number) is Fault.WRONG_CLOCK else random.randint(-200, 200)
        for number in range(count)
    )
    weather = Weather(
        loss=random.choice([0, 0, 5, 20]),
        duplication=random.choice([0, 10, 30]),
        longest_delay_ms=random.choice([20, 60, 150]),
        straggler_delay_ms=random.choice([60, 400, 1_500]),
    )
    return Setting(tuple(keys), faults, skews, weather)


class Schedule:
    """Draws what goes wrong, and when, from one seed."""

    def __init__(self, seed: int, folder: Path, trace: Callable[[str], None]) -> None:
        self.seed = seed
        self.random = Random(seed)
        setting = draw_setting(self.random, seed)
        self.world = World(setting, random=self.random, folder=folder, trace=trace)
        self.clients = setting.keys
        self.recipient = setting.keys[0].account
        self.nonces: Counter[AccountId] = Counter()
        self.waiting: list[Transaction] = []
        self.calamities = (
            self._partition,
            self._cut_one_way,
            *4 * (self._deafen,),
            self._crash,
            *2 * (self._heal_links,),
            *2 * (self._hide_decision,),
        )
        self.quiet_until_ms = 0
        self._separate_faces()

    def run(self) -> Report:
        """Chaos, then calm, then what must hold.

        Raises:
            ViolationError: a rule was broken.
        """
        world = self.world
        world.boot()
        for time_ms in range(CALAMITY_INTERVAL_MS, CHAOS_MS, CALAMITY_INTERVAL_MS):
            world.scheduler.after(time_ms, self._strike)
        for time_ms in range(100, CHAOS_MS, TRANSACTION_INTERVAL_MS):
            world.scheduler.after(time_ms, self._transact)
        world.run(CHAOS_MS)
        world.heal()
        self._separate_faces()
        healed_ms = world.scheduler.now_ms
        for number in world.able:
            self._transact(number)
        self._resubmit()
        identifiers = tuple(transaction.id for transaction in self.waiting)
        world.run(LIVENESS_BOUND_MS, lambda: world.contain(identifiers, world.able))
        if not world.contain(identifiers, world.able):
            heights = {number: world.nodes[number].chain.height for number in world.able}
            raise LivenessError(f"after {LIVENESS_BOUND_MS} ms of calm, heights {heights}")
        world.oracle.check_evidence()
        return self._report(world.scheduler.now_ms - healed_ms)

    def _report(self, recovery_ms: int) -> Report:
        world = self.world
        return Report(
            seed=self.seed,
            validators=len(world.setting.keys),
            faults=tuple(sorted(fault.value for fault in world.setting.faults.values())),
            heights=len(world.oracle.decided),
            highest_round=max(world.nodes[number].highest_round for number in world.honest),
            restarts=sum(node.restarts for node in world.nodes.values()),
            evidence=len(world.oracle.seen_evidence),
            events=world.scheduler.events,
            messages=world.network.sent,
            recovery_ms=recovery_ms,
        )

    # Clients

    def _transact(self, number: int | None = None) -> None:
        """One more transfer, handed to a node that runs."""
        chain_id = self.world.oracle.chain_id
        client = self.clients[self.random.randrange(len(self.clients)) if number is None else number]
        transaction = self._transfer(client, chain_id)
        self.waiting.append(transaction)
        running = [other for other in self.world.honest if self.world.nodes[other].is_up]
        if running:
            self.world.submit(self.random.choice(running) if number is None else number, transaction)

    def _transfer(self, client: SecretKey, chain_id: ChainId) -> Transaction:
        nonce = self.nonces[client.account]
        self.nonces[client.account] += 1
        return sign_transaction(client, chain_id, Transfer(self.recipient, 1), nonce=nonce, fee=1)

    def _resubmit(self) -> None:
        """A client sends again what it doesn't find in the chain: nodes lose their mempools when they crash."""
        for number in self.world.able:
            for transaction in self.waiting:
                self.world.submit(number, transaction)

    # Calamities

    def _strike(self) -> None:
        if self.world.scheduler.now_ms >= self.quiet_until_ms:
            self.random.choice(self.calamities)()

    def _hide_decision(self) -> None:
        """See `HiddenDecision`: hundreds of schedules without it didn't notice that locks were ignored."""
        self._heal_links()
        world = self.world
        witness = self.random.choice(world.honest)
        chain, machine = world.nodes[witness].chain, world.nodes[witness].machine
        leader = chain.leader(machine.round + 1)
        next_leader = next(number for number, key in enumerate(self.clients) if key.account == leader)
        others = [number for number in range(len(self.clients)) if number != next_leader]
        unheard = self.random.sample(others, (len(self.clients) - 1) // 3)
        if next_leader != witness:
            world.network.adversary = HiddenDecision(
                machine.height, machine.round, witness, next_leader, frozenset(unheard)
            )
            self.quiet_until_ms = world.scheduler.now_ms + HIDING_MS

    def _separate_faces(self) -> None:
        """Each face of a two-faced validator knows its own part of the others, for good."""
        world = self.world
        count = len(world.setting.keys)
        others = Random(self.seed)
        for number, fault in world.setting.faults.items():
            if fault is Fault.TWO_FACED:
                for other in world.nodes:
                    hidden_from = count + number if others.random() < 0.5 else number
                    if other % count != number:
                        world.network.cut_link(hidden_from, other)
                        world.network.cut_link(other, hidden_from)
                world.network.separate(((number,), (count + number,)))

    def _partition(self) -> None:
        numbers = list(self.world.nodes)
        self.random.shuffle(numbers)
        cut = self.random.randrange(1, len(numbers))
        self.world.network.separate((tuple(numbers[:cut]), tuple(numbers[cut:])))

    def _cut_one_way(self) -> None:
        numbers = list(self.world.nodes)
        for _ in range(self.random.randint(1, len(numbers))):
            sender, receiver = self.random.sample(numbers, 2)
            self.world.network.cut_link(sender, receiver)

    def _deafen(self) -> None:
        """Some nodes miss one kind of message: so one decides or locks what the others don't know of."""
        topics = (Topic.PROPOSALS, Topic.PREVOTES, Topic.PRECOMMITS, Topic.PRECOMMITS)
        numbers = list(self.world.nodes)
        for number in self.random.sample(numbers, self.random.randint(1, len(numbers))):
            self.world.network.deaf.update({(number, self.random.choice(topics)), (number, Topic.PULLS)})

    def _heal_links(self) -> None:
        self.world.network.heal()
        self._separate_faces()

    def _crash(self) -> None:
        """Kill a node a few effects from now, perhaps inside a write, and start it again later."""
        node = self.world.nodes[self.random.choice(list(self.world.nodes))]
        steps, tear, pause_ms = self.random.randint(1, 25), self.random.random() < 0.5, self.random.randint(50, 1_500)
        if not node.is_up:
            return
        node.steps_to_crash, node.tear = steps, tear
        self.world.scheduler.after(pause_ms, lambda: None if node.is_up else node.boot())


def simulate(seed: int, trace: Callable[[str], None] = lambda text: None) -> Report:
    """One run.

    Raises:
        ViolationError: a rule was broken.
    """
    with log_folder() as folder:
        return Schedule(seed, Path(folder), trace).run()
