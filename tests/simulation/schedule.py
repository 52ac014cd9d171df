"""A random schedule from a seed: faults for a while, then a whole network with a bounded time to finish its work."""

import re
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from random import Random

from bflnode.consensus.task import MAX_ATTEMPTS, ProbeMode, Rule
from bflnode.consensus.transaction import Body, Bond, Transaction, Transfer, Unbond, sign_transaction
from bflnode.consensus.types import TOKEN, AccountId
from bflnode.storage.signer_wal import SignerWalError

from .adversaries import HiddenDecision, Maze
from .byzantine import Vice
from .disk import simulated_system
from .learner import Habit
from .network import Topic, Weather
from .simulated_chain import DEADLINES, PARAMETERS
from .simulated_node import BUILD_MS, STATUS_INTERVAL_MS, WAL, Clock, SimulatedNode
from .violations import LivenessError
from .world import Fault, Setting, World, validator_keys

HIDING_MS = 1_400
"""Two rounds of agreement."""

OPERATOR_MS = 500
"""How often somebody looks after nodes that refuse to start."""

Trace = Callable[[str], None]
Mutation = Callable[[], AbstractContextManager[object]]


class Style(Enum):
    """What a schedule is mostly about."""

    STORM = "storm"
    """Bad weather, partitions, deaf nodes and crashes."""
    MAZE = "maze"
    """A network that shows each node other votes: round after round without a decision, or one that nobody knows of."""
    LEARNING = "learning"
    """A task with clients of all habits, and some calamities."""
    POWER = "power"
    """Crashes, power failures, full disks, damaged logs and lost chains."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did."""

    seed: int
    style: str
    validators: int
    faults: tuple[str, ...]
    heights: int
    highest_round: int
    restarts: int
    refusals: int
    evidence: int
    settled: int
    cancelled: int
    events: int
    messages: int
    recovery_ms: int
    bound_ms: int
    digest: str


def draw_stakes(random: Random, count: int) -> tuple[int, ...]:
    """Equal ones, nearly equal ones, or very unequal ones: a quorum is stake, not heads."""
    kind = random.randrange(3)
    if kind == 0:
        return (10,) * count
    if kind == 1:
        return tuple(10 + index for index in range(count))
    return tuple(random.choice([1, 2, 3, 8]) for _ in range(count))


def draw_faulty(random: Random, stakes: tuple[int, ...]) -> tuple[int, ...]:
    """Validators with less than a third of the stake; one of seven times none."""
    order = random.sample(range(len(stakes)), len(stakes))
    faulty: list[int] = []
    for number in order[: random.choice([0, 1, 1, 1, 2, 2, 3])]:
        if 3 * (sum(stakes[item] for item in faulty) + stakes[number]) < sum(stakes):
            faulty.append(number)
    return tuple(faulty)


def draw_clock(random: Random, fault: Fault | None) -> Clock:
    """Within a fifth of the tolerance, or absurd."""
    if fault is Fault.WRONG_CLOCK:
        return Clock(random.choice([-90_000, 90_000]), random.choice([-300, 0, 300]))
    return Clock(random.randint(-200, 200), random.randint(-5, 5))


def draw_setting(random: Random, style: Style) -> Setting:
    """3 to 7 validators, less than a third of the stake faulty."""
    sizes = {Style.MAZE: [4, 4, 4, 5], Style.LEARNING: [3, 4, 4, 4, 5]}
    count = random.choice(sizes.get(style, [3, 4, 4, 4, 5, 5, 6, 7]))
    stakes = draw_stakes(random, count)
    kinds = [Fault.TRAITOR] * 3 + [Fault.TWO_FACED, Fault.SILENT_LEADER, Fault.WRONG_CLOCK]
    if style is Style.MAZE:
        kinds = [Fault.TRAITOR]
    faults = {number: random.choice(kinds) for number in draw_faulty(random, stakes)}
    vices = {number: frozenset(vice for vice in Vice if random.random() < 0.5) for number in sorted(faults)}
    queue = tuple(random.sample(range(count), random.randint(0, 2)))
    if style is Style.MAZE and random.random() < 0.7:
        queue = tuple(sorted(faults))
    clients = validator_keys(random.choice([0, 0, 1]), "client") if style is Style.LEARNING else ()
    everybody = range(count + len(clients))
    habits = {}
    if style is Style.LEARNING:
        habits = {number: draw_habit(random, number in faults) for number in everybody if random.random() < 0.4}
    return Setting(
        keys=validator_keys(count),
        stakes=stakes,
        queue=queue,
        faults=faults,
        vices=vices,
        clocks={number: draw_clock(random, faults.get(number)) for number in everybody},
        weather=draw_weather(random, style),
        clients=clients,
        habits=habits,
        rounds=random.choice([1, 1, 2]) if style is Style.LEARNING else 0,
        probe_mode=random.choice(list(ProbeMode)),
        rule=Rule.PRIOR_ROWS if sum(stakes) % 2 else Rule.PAA,
    )


def with_too_many_traitors(setting: Setting) -> Setting:
    """Four validators of whom two vote for everything."""
    vices = frozenset({Vice.SUPPORT, Vice.EQUIVOCATE})
    traitors = (2, 3)
    return replace(
        setting,
        keys=validator_keys(4),
        stakes=(10,) * 4,
        queue=(),
        clients=(),
        habits={},
        rounds=0,
        faults=dict.fromkeys(traitors, Fault.TRAITOR),
        vices=dict.fromkeys(traitors, vices),
        clocks={},
    )


def draw_habit(random: Random, is_faulty: bool) -> Habit:
    """What costs others their stake only a faulty validator does, since less than a third of the stake may."""
    return random.choice(
        [habit for habit in Habit if is_faulty or habit not in (Habit.FALSE_AGGREGATOR, Habit.CONTRARY)]
    )


def draw_weather(random: Random, style: Style) -> Weather:
    if style in (Style.MAZE, Style.LEARNING):
        return Weather(random.choice([0, 0, 2]), 10, 40, random.choice([60, 400]))
    return Weather(
        loss=random.choice([0, 0, 5, 20]),
        duplication=random.choice([0, 10, 30]),
        longest_delay_ms=random.choice([20, 60, 150]),
        straggler_delay_ms=random.choice([60, 400, 1_500]),
    )


def round_ms(round_: int) -> int:
    """How long a round of agreement lasts at most in calm weather: three time-outs and what lies between."""
    waits_ms = PARAMETERS.propose_timeout_ms + 2 * PARAMETERS.vote_timeout_ms + 3 * round_ * PARAMETERS.timeout_step_ms
    return waits_ms + 3 * 40 + BUILD_MS


def height_ms(validators: int, first_round: int) -> int:
    """Within how much calm a height is decided that begins in a round: two turns of an honest, able leader.

    Odd rounds go through all validators in turn, of whom less than a third is faulty: of any `faulty + 1` odd rounds in
    a row one has an able leader. After its first turn everybody knows the latest valid block; its second one decides.
    """
    faulty = (validators - 1) // 2  # fewer heads than this have a third of the stake, however it is spread
    return sum(round_ms(first_round + offset) for offset in range(4 * (faulty + 1)))


def agreement_ms(validators: int, highest_round: int, behind: int) -> int:
    """Within how much calm everybody has what was submitted before it: catching up, the current height, two more."""
    pulls_ms = (3 + behind) * 2 * STATUS_INTERVAL_MS * validators
    return pulls_ms + height_ms(validators, highest_round + 2) + 2 * height_ms(validators, 0)


def learning_ms(validators: int, rounds: int) -> int:
    """Within how much calm a task ends: each attempt of each learning round uses up every deadline, twice or thrice."""
    block_ms = height_ms(validators, 0)
    attempt_ms = DEADLINES.commit_ms + DEADLINES.reveal_ms + 2 * DEADLINES.available_ms
    attempt_ms += 3 * (DEADLINES.aggregate_ms + 2 * DEADLINES.attest_ms) + 13 * block_ms
    return 2 * (DEADLINES.registration_ms + block_ms) + rounds * MAX_ATTEMPTS * attempt_ms


class Schedule:
    """Draws what goes wrong, and when, from one seed."""

    def __init__(self, seed: int, world: World, random: Random, style: Style) -> None:
        self.seed = seed
        self.style = style
        self.random = random
        self.world = world
        self.clients = world.setting.keys
        self.recipient = self.clients[0].account
        self.nonces: Counter[AccountId] = Counter()
        self.waiting: list[Transaction] = []
        self.calamities = self._choose_calamities()
        self.quiet_until_ms = 0
        self.bound_ms = 0
        self.lost_height: dict[int, int] = {}
        self.damaged: set[int] = set()

    def _choose_calamities(self) -> tuple[Callable[[], None], ...]:
        crashes = (self._crash, self._cut_power)
        match self.style:
            case Style.STORM:
                return (
                    self._partition,
                    self._cut_one_way,
                    *3 * (self._deafen,),
                    *crashes,
                    self._shift_clock,
                    *2 * (self._heal_links,),
                    *2 * (self._hide_decision,),
                )
            case Style.MAZE:
                return (self._crash, self._hide_decision, *2 * (self._enter_maze,), *3 * (self._nothing,))
            case Style.LEARNING:
                return (*crashes, self._partition, self._cut_one_way, *2 * (self._heal_links,), *3 * (self._nothing,))
            case Style.POWER:
                return (
                    *2 * crashes,
                    *2 * (self._cut_power,),
                    self._damage_log,
                    self._lose_chain,
                    self._fill_disk,
                    self._partition,
                    self._heal_links,
                )

    def run(self) -> int:
        """Chaos, then calm; says how long the calm took to bring order.

        Raises:
            ViolationError: a rule was broken.
        """
        world = self.world
        chaos_ms, strikes = {
            Style.STORM: (4_000, 16),
            Style.MAZE: (9_000, 9),
            Style.LEARNING: (2_500, 6),
            Style.POWER: (3_500, 14),
        }[self.style]
        world.separate_faces(Random(self.seed))
        world.around.are_accusations_held = self.style is Style.MAZE or self.random.random() < 0.5
        if self.style is Style.MAZE:
            self._enter_maze()
        world.boot()
        for number in range(1, strikes):
            world.scheduler.after(number * chaos_ms // strikes, self._strike)
        for time_ms in range(OPERATOR_MS, chaos_ms, OPERATOR_MS):
            world.scheduler.after(time_ms, self._operate)
        for time_ms in range(100, chaos_ms, 700 if self.style is Style.LEARNING else 450):
            world.scheduler.after(time_ms, self._transact)
        world.run(chaos_ms)
        return self._recover()

    def _recover(self) -> int:
        world = self.world
        world.heal()
        world.separate_faces(Random(self.seed))
        healed_ms = world.scheduler.now_ms
        for number in self._running():
            self._transact(number)
        self._resubmit()
        self.bound_ms = self._bound_ms()
        world.run(self.bound_ms, self._is_agreed)
        if not self._is_agreed():
            raise LivenessError(f"after {self.bound_ms} ms of calm, {self._places()}")
        if not self._has_learned():
            self.bound_ms += learning_ms(len(self.clients), world.setting.rounds)
            world.run(healed_ms + self.bound_ms - world.scheduler.now_ms, self._has_learned)
            if not self._has_learned():
                raise LivenessError(f"no end of learning after {self.bound_ms} ms of calm, {self._places()}")
        return world.scheduler.now_ms - healed_ms

    def _running(self) -> tuple[int, ...]:
        """Able nodes whose log isn't damaged."""
        return tuple(number for number in self.world.able if self.world.nodes[number].refusal is None)

    def _bound_ms(self) -> int:
        nodes = [self.world.nodes[number] for number in self._running()]
        heights = [node.chain.height for node in nodes]
        highest_round = max(node.highest_round for node in nodes)
        return agreement_ms(len(self.clients), highest_round, max(heights) - min(heights))

    def _is_agreed(self) -> bool:
        identifiers = tuple(transaction.id for transaction in self.waiting)
        running = self._running()
        return self.world.contain(identifiers, running) and all(
            self.world.oracle.is_punished(self.world.nodes[number].chain) for number in running
        )

    def _has_learned(self) -> bool:
        chains = [self.world.nodes[number].chain for number in self._running()]
        return all(self.world.bookkeeper.has_ended(chain) for chain in chains)

    def _places(self) -> str:
        nodes = {number: self.world.nodes[number] for number in self._running()}
        return ", ".join(f"{number} at {n.machine.height}/{n.machine.round}" for number, n in nodes.items())

    # Clients

    def _transact(self, number: int | None = None) -> None:
        """One more transaction, handed to a node that runs. Clients that learn have other things to send."""
        if self.style is Style.LEARNING:
            return
        chosen = self.random.randrange(len(self.clients)) if number is None else number
        transaction = self._transaction(chosen)
        self.waiting.append(transaction)
        running = [other for other in self.world.honest if self.world.nodes[other].is_up]
        if running:
            self.world.submit(self.random.choice(running) if number is None else number, transaction)

    def _transaction(self, client: int) -> Transaction:
        """A transfer, or a change of a stake that doesn't help the faulty; none where the able are just enough."""
        body: Body = Transfer(self.recipient, 1)
        if self.style is not Style.POWER and self.random.random() < 0.1:
            body = Unbond(1) if client in self.world.setting.faults else Bond(TOKEN)
        key = self.clients[client]
        nonce = self.nonces[key.account]
        self.nonces[key.account] += 1
        return sign_transaction(key, self.world.oracle.chain_id, body, nonce=nonce, fee=1)

    def _resubmit(self) -> None:
        """A client sends again what it doesn't find in the chain: nodes lose their mempools when they crash."""
        for number in self._running():
            for transaction in self.waiting:
                if not self.world.nodes[number].chain.contains(transaction.id):
                    self.world.submit(number, transaction)

    # Calamities

    def _strike(self) -> None:
        if self.world.scheduler.now_ms >= self.quiet_until_ms:
            calamity = self.random.choice(self.calamities)
            self.world.note(f"calamity: {calamity.__name__.strip('_')}")
            calamity()

    def _nothing(self) -> None:
        """Let them work for a while."""

    def _enter_maze(self) -> None:
        accounts = tuple(key.account for key in self.clients)
        self.world.network.adversary = Maze(self.random, accounts, self.world.scheduler)

    def _hide_decision(self) -> None:
        """See `HiddenDecision`: hundreds of schedules without it didn't notice that locks were ignored."""
        self._heal_links()
        world = self.world
        witness = self.random.choice(world.honest)
        node = world.nodes[witness]
        if not node.is_up:
            return
        leader = node.chain.leader(node.machine.round + 1)
        next_leader = next(number for number, key in enumerate(self.clients) if key.account == leader)
        others = [number for number in range(len(self.clients)) if number != next_leader]
        unheard = self.random.sample(others, (len(self.clients) - 1) // 3)
        if next_leader != witness:
            machine = node.machine
            world.network.adversary = HiddenDecision(
                machine.height, machine.round, witness, next_leader, frozenset(unheard)
            )
            self.quiet_until_ms = world.scheduler.now_ms + HIDING_MS

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
        self.world.separate_faces(Random(self.seed))

    def _shift_clock(self) -> None:
        """Somebody sets a clock, within what honest clocks may differ."""
        clock = self.world.nodes[self.random.choice(self.world.able)].clock
        clock.skew_ms = self.random.randint(-200, 200)

    def _crash(self, *, is_power_cut: bool = False) -> SimulatedNode | None:
        """Kill a node some failpoints from now, perhaps inside a write, and start it again later."""
        node = self.world.nodes[self.random.choice(list(self.world.nodes))]
        steps, pause_ms = self.random.randint(1, 40), self.random.randint(50, 1_500)
        if not node.is_up:
            return None
        node.steps_to_crash, node.is_power_cut = steps, is_power_cut
        self.world.scheduler.after(pause_ms, lambda: self._boot(node))
        return node

    def _boot(self, node: SimulatedNode) -> None:
        if not node.is_up and node.refusal is None:
            node.boot()

    def _cut_power(self) -> None:
        self._crash(is_power_cut=True)

    def _fill_disk(self) -> None:
        """A disk fails some calls from now, and works again when the node is started again."""
        node = self.world.nodes[self.random.choice(list(self.world.nodes))]
        if node.is_up:
            node.steps_to_failure = self.random.randint(1, 40)
            self.world.scheduler.after(self.random.randint(300, 1_500), lambda: self._boot(node))

    def _lose_chain(self) -> None:
        """A database is lost while its node is down, if others have all of it; the log stays."""
        node = self._crash()
        if node is not None and self._can_spare(node):
            self.lost_height[node.number] = node.chain.height
            node.steps_to_crash = None
            node.crash()
            node.lose_chain()

    def _damage_log(self) -> None:
        """A bit of a log rots while its node is down, if the others can go on without it."""
        node = self._crash(is_power_cut=True)
        if node is None or not self._can_spare(node):
            return
        node.steps_to_crash = None
        node.crash()
        path = node.disk.path(WAL)
        size = len(path.read_bytes()) if path.exists() else 0
        if size:
            node.disk.rot(WAL, self.random.randrange(size))
            self.damaged.add(node.number)

    def _can_spare(self, node: SimulatedNode) -> bool:
        world = self.world
        lost = {number for number, height in self.lost_height.items() if world.nodes[number].chain.height <= height}
        lost |= {node.number, *self.damaged, *world.setting.faults}
        validators = node.chain.validators
        weight = validators.weight_of(world.nodes[number].account for number in sorted(lost))
        return node.is_honest and node.number < len(self.clients) and 3 * weight < validators.total

    def _operate(self) -> None:
        """Somebody does what the error of a node that refuses to start says, as soon as it says so."""
        decided = max(self.world.oracle.decided, default=0)
        for node in self.world.nodes.values():
            if node.refusal is not None and node.chain.height and decided >= remedy_height(node.refusal):
                node.remove_log()
                self.damaged.discard(node.number)
                self.lost_height[node.number] = node.chain.height  # it doesn't sign for the next height
                node.boot()


def remedy_height(error: SignerWalError) -> int:
    """The height that must be decided before a damaged log may be moved away, from the words of the error."""
    found = re.search(r"once the network has decided height (\d+)", error.remedy)
    assert found is not None, error.remedy
    return int(found[1])


def simulate(
    seed: int, trace: Trace = lambda text: None, mutation: Mutation = nullcontext, *, is_beyond_bound: bool = False
) -> Report:
    """One run.

    Args:
        seed: of everything.
        trace: takes each line of what happens.
        mutation: changes the product while the run lasts; what is checked in the end is checked without it.
        is_beyond_bound: whether half of the stake are traitors, which breaks every promise.

    Raises:
        ViolationError: a rule was broken.
    """
    random = Random(f"schedule {seed}")
    style = list(Style)[seed % len(Style)]
    setting = draw_setting(random, style)
    if is_beyond_bound:
        style, setting = Style.MAZE, with_too_many_traitors(setting)
    with simulated_system() as system:
        with mutation():
            world = World(setting, system=system, random=random, trace=trace)
            schedule = Schedule(seed, world, random, style)
            recovery_ms = schedule.run()
        world.oracle.judge()
    nodes = [world.nodes[number] for number in world.honest]
    longest = max((world.nodes[number].chain for number in world.honest), key=lambda chain: chain.height)
    settled, cancelled = world.bookkeeper.endings(longest)
    return Report(
        seed=seed,
        style=style.value,
        validators=len(setting.keys),
        faults=tuple(sorted(fault.value for fault in setting.faults.values())),
        heights=len(world.oracle.decided),
        highest_round=max(node.highest_round for node in nodes),
        restarts=sum(node.restarts for node in world.nodes.values()),
        refusals=sum(node.refusal is not None for node in nodes),
        evidence=len(world.oracle.seen_evidence),
        settled=settled,
        cancelled=cancelled,
        events=world.scheduler.events,
        messages=world.network.sent,
        recovery_ms=recovery_ms,
        bound_ms=schedule.bound_ms,
        digest=world.digest,
    )
