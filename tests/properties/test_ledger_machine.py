"""Random dropouts, silence, lateness, copies, quarrels, changes of stake and invalid transactions on a real chain.

Whatever happens: the supply is constant (checked with every block), every block does the same when it is executed
again, there is a validator, a tombstone is for ever, and a learning round that is only left alone ends.
"""

from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bflnode.consensus.duties import AttestTo, Duty, FetchAndVote, RevealModel, Train
from bflnode.consensus.ledger import assert_supply, next_deadline_ms
from bflnode.consensus.staking import is_eligible
from bflnode.consensus.tables import (
    ACCOUNTS,
    NEXT_RELEASE,
    PARTICIPANTS,
    SETTLED,
    STAKES,
    current_queue,
    current_round,
    current_validators,
)
from bflnode.consensus.task import MAX_ATTEMPTS, Exclusion, Phase, ProbeMode, TaskStatus
from bflnode.consensus.transaction import Aggregate, Fault, Slot, Transaction
from bflnode.consensus.types import TOKEN, AccountId, BlobId
from tests.consensus.harness import Harness, blob
from tests.consensus.setups import OUTSIDER

ACTORS = 5
ENDED = (TaskStatus.DONE, TaskStatus.CANCELLED)

BLOCKS_UNTIL_ENDED = 200
"""Empty blocks at each deadline end any task: an attempt has at most 5 deadlines, each extended once, and 3
aggregators; four attempts and two registrations are far below this."""


class LedgerMachine(RuleBasedStateMachine):
    """Actors that do what they owe, or don't, or something else."""

    @initialize(
        mode=st.sampled_from(ProbeMode),
        clients_min=st.integers(1, 3),
        clients_start=st.integers(3, ACTORS),
        clusters=st.integers(1, 6),
        validators=st.integers(1, ACTORS),
        max_step_ms=st.sampled_from([5_000, 10_000_000]),
        queue=st.permutations(range(ACTORS)),
        registered=st.sets(st.integers(0, ACTORS - 1), min_size=2),
    )
    def start(
        self,
        mode: ProbeMode,
        clients_min: int,
        clients_start: int,
        clusters: int,
        validators: int,
        max_step_ms: int,
        queue: list[int],
        registered: set[int],
    ) -> None:
        self.harness = Harness(
            actors=ACTORS,
            stakes=tuple(range(7, 7 + validators)),
            queue=tuple(member for member in queue if member < validators)[:3],
            probe_mode=mode,
            clients_min=clients_min,
            clients_start=clients_start,
            clusters=clusters,
            rounds=4,
            parameters={
                "max_step_ms": max_step_ms,
                "minimum_stake": 5,
                "unbonding_ms": 5_000,
                "jail_ms": 2_000,
                "attendance_window": 10,
                "missed_to_jail": 6,
            },
        )
        self.tombstoned: set[AccountId] = set()
        self.waiting: list[Transaction] = []
        self.past: list[Transaction] = []
        self.harness.offer(*(self.harness.register(actor) for actor in sorted(registered)))

    @rule(actors=st.sets(st.integers(0, ACTORS - 1)), after_ms=st.integers(1, 3_000))
    def some_do_what_they_owe(self, actors: set[int], after_ms: int) -> None:
        harness = self.harness
        answers = [harness.answer(actor, duty) for actor in sorted(actors) for duty in harness.duties(actor)]
        self.past += answers
        harness.offer(*answers, after_ms=after_ms)

    @precondition(lambda self: self.harness.phase is not None)
    @rule(blocks=st.integers(1, 5), silent=st.integers(0, 2 * ACTORS))
    def most_play_on(self, blocks: int, silent: int) -> None:
        """Honest play but for one actor, if it is one: takes a round to its later phases, and some past its end."""
        for _ in range(blocks):
            self.some_do_what_they_owe(set(range(ACTORS)) - {silent}, 100)

    @rule(actors=st.sets(st.integers(0, ACTORS - 1)))
    def some_send_too_late(self, actors: set[int]) -> None:
        harness = self.harness
        self.waiting += [harness.answer(actor, duty) for actor in sorted(actors) for duty in harness.duties(actor)]

    @rule()
    def late_transactions_arrive(self) -> None:
        self.harness.offer(*self.waiting)
        self.past += self.waiting
        self.waiting = []

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def old_transactions_come_again(self, data: st.DataObject) -> None:
        again = data.draw(st.lists(st.sampled_from(self.past), max_size=5))
        self.harness.offer(*again)

    @rule(after_ms=st.sampled_from([1, 900, 10_000, 60_000]))
    def nothing_happens(self, after_ms: int) -> None:
        self.harness.wait(after_ms)

    @rule()
    def deadline_passes(self) -> None:
        due_ms = next_deadline_ms(self.harness.genesis, self.harness.tree)
        self.harness.wait(100 if due_ms is None else due_ms - self.harness.now_ms)

    @rule(actor=st.integers(0, ACTORS - 1))
    def client_leaves(self, actor: int) -> None:
        self.harness.offer(self.harness.leave(actor))

    @precondition(lambda self: self.harness.phase is Phase.COMMIT)
    @rule(copiers=st.sets(st.integers(0, ACTORS - 1)), shared=st.integers(0, 3))
    def some_hand_in_copies(self, copiers: set[int], shared: int) -> None:
        harness = self.harness
        models = [
            blob("shared"),
            harness.task.specification.initial_model,
            harness.model(0),
            harness.round.clients[0].base,
        ]
        harness.offer(*(harness.commit(actor, models[shared]) for actor in sorted(copiers)))
        if harness.phase is Phase.REVEAL:
            harness.offer(*(harness.reveal(actor, models[shared]) for actor in sorted(copiers)))

    @precondition(lambda self: self.harness.phase is Phase.AVAILABLE)
    @rule(data=st.data())
    def committee_disagrees_about_models(self, data: st.DataObject) -> None:
        harness = self.harness
        positions = st.sets(st.integers(0, len(harness.round.clients) - 1))
        harness.offer(*(harness.available(actor, data.draw(positions)) for actor in harness.validators))

    @precondition(lambda self: self.harness.phase is Phase.AGGREGATE)
    @rule(data=st.data())
    def aggregator_makes_up_a_matrix(self, data: st.DataObject) -> None:
        harness = self.harness
        size = len(harness.round.included)
        entries = data.draw(st.lists(st.integers(-10_001, 10_000), min_size=size * size, max_size=size * size))
        triangle = b"".join(entry.to_bytes(2, "big", signed=True) for entry in entries[: size * (size - 1) // 2])
        outputs = tuple(blob("made up", label) for label in range(data.draw(st.integers(1, 6))))
        acting = harness.actor(harness.round.aggregator)
        opening = None if harness.task.specification.probe_mode is ProbeMode.PUBLIC else harness.opening(acting)
        harness.offer(harness.sign(acting, Aggregate(harness.slot, triangle, outputs, opening)))

    @precondition(lambda self: self.harness.phase is Phase.ATTEST)
    @rule(verdicts=st.lists(st.sampled_from(Fault), min_size=ACTORS, max_size=ACTORS))
    def committee_quarrels(self, verdicts: list[Fault]) -> None:
        harness = self.harness
        harness.offer(*(harness.attest(actor, verdicts[actor]) for actor in harness.validators))

    @rule(
        transfers=st.lists(
            st.tuples(
                st.integers(0, ACTORS - 1), st.integers(0, ACTORS - 1), st.integers(0, 2_000), st.integers(0, 50)
            ),
            max_size=4,
        )
    )
    def people_pay(self, transfers: list[tuple[int, int, int, int]]) -> None:
        harness = self.harness
        harness.offer(
            harness.admit(OUTSIDER),
            *(harness.transfer(sender, harness.account(to), amount, fee=fee) for sender, to, amount, fee in transfers),
        )

    @rule(
        changes=st.lists(
            st.tuples(st.integers(0, ACTORS - 1), st.sampled_from(["bond", "unbond", "unjail"]), st.integers(1, 12)),
            max_size=5,
        ),
        after_ms=st.sampled_from([100, 2_000, 5_000]),
    )
    def stakes_change(self, changes: list[tuple[int, str, int]], after_ms: int) -> None:
        harness = self.harness
        made = {
            "bond": lambda actor, amount: harness.bond(actor, amount),
            "unbond": lambda actor, amount: harness.unbond(actor, amount, fee=1),
            "unjail": lambda actor, _: harness.unjail(actor),
        }
        harness.offer(*(made[what](actor, amount) for actor, what, amount in changes), after_ms=after_ms)

    @rule(offenders=st.lists(st.integers(0, ACTORS - 1), min_size=1, max_size=2), height=st.integers(1, 3))
    def somebody_signed_twice(self, offenders: list[int], height: int) -> None:
        harness = self.harness
        harness.offer(*(harness.evidence(OUTSIDER, offender, height) for offender in offenders))

    @rule(absent=st.sets(st.integers(0, ACTORS - 1), max_size=2), blocks=st.integers(1, 8))
    def some_do_not_vote(self, absent: set[int], blocks: int) -> None:
        """Fewer than a third of the stake, or there would be no commit."""
        harness = self.harness
        for _ in range(blocks):
            validators = current_validators(harness.tree)
            gone = validators.weight_of(harness.account(actor) for actor in absent)
            harness.absent = frozenset(absent) if validators.is_quorum(validators.total - gone) else frozenset()
            harness.wait(100)
        harness.absent = frozenset()

    @invariant()
    def stakes_agree_with_the_validators(self) -> None:
        harness = self.harness
        validators, parameters = current_validators(harness.tree), harness.genesis.parameters
        stakes = {AccountId(key): stake for key, stake in STAKES.scan(harness.tree)}
        assert len(validators) > 0
        assert {entry.account: entry.stake for entry in validators.validators} == {
            account: stake.bonded for account, stake in stakes.items() if is_eligible(stake, parameters)
        }
        tombstoned = {account for account, stake in stakes.items() if stake.is_tombstoned}
        assert self.tombstoned <= tombstoned
        self.tombstoned = tombstoned
        due = NEXT_RELEASE.get(harness.tree)
        releases = [entry.release_ms for stake in stakes.values() for entry in stake.unbonding]
        assert (None if due is None else due.time_ms) == min(releases, default=None)
        assert all(release_ms > harness.now_ms for release_ms in releases)

    @invariant()
    def records_agree_with_each_other(self) -> None:
        harness = self.harness
        tree, task = harness.tree, harness.task
        assert_supply(harness.genesis, tree)
        assert all(account.balance >= 0 for _, account in ACCOUNTS.scan(tree))
        active = [entry for _, entry in PARTICIPANTS.scan(tree, task.id) if not entry.is_leaving]
        assert len(active) == task.clients
        queue = current_queue(tree)
        assert len(set(queue)) == len(queue)
        assert all(account in current_validators(tree) for account in queue)
        current = current_round(tree)
        assert (task.status is TaskStatus.RUNNING) == (current is not None)
        assert (task.escrow == 0) == (task.status in ENDED)
        if current is not None:
            assert current.slot == task.slot
            assert current.slot.attempt < MAX_ATTEMPTS
            assert current.clock_ms < current.deadline_ms
            assert (current.phase is Phase.ATTEST) == (current.aggregation is not None)

    def teardown(self) -> None:
        if not hasattr(self, "harness"):
            return
        harness = self.harness
        assert harness.replayed().root == harness.tree.root
        attempts = 0
        while harness.task.status not in ENDED:
            due_ms = next_deadline_ms(harness.genesis, harness.tree)
            assert due_ms is not None
            harness.wait(min(due_ms - harness.now_ms, harness.genesis.parameters.max_step_ms))
            attempts += 1
            assert attempts < BLOCKS_UNTIL_ENDED * (1 if harness.genesis.parameters.max_step_ms > 5_000 else 20)


class TestLedgerMachine(LedgerMachine.TestCase):  # type: ignore[misc,name-defined]  # hypothesis makes the class
    settings: Any = settings(
        max_examples=30,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


class Unreliable:
    """Actors that mostly do what they owe: some are silent for a while, some copy, lie or judge at random."""

    def __init__(self, random: Random, harness: Harness) -> None:
        self.random = random
        self.harness = harness
        self.models: dict[tuple[int, Slot], BlobId] = {}
        self.silent: set[int] = set()

    def play(self) -> None:
        """Make one block."""
        random, harness = self.random, self.harness
        if random.random() < 0.1:
            self.silent = {actor for actor in range(ACTORS) if random.random() < 0.3}
        answers = [
            self.answer(actor, duty)
            for actor in range(ACTORS)
            for duty in harness.duties(actor)
            if actor not in self.silent and random.random() < 0.8
        ]
        random.shuffle(answers)
        harness.offer(*answers, after_ms=random.choice((100, 2_000)))
        due_ms = next_deadline_ms(harness.genesis, harness.tree)
        if not answers and due_ms is not None:
            harness.wait(max(1, due_ms - harness.now_ms))

    def answer(self, actor: int, duty: Duty) -> Transaction:
        """Do a duty, not always well."""
        random, harness = self.random, self.harness
        match duty:
            case Train():
                copied = random.choice((duty.base, blob("shared"), harness.model(0, duty.slot)))
                model = copied if random.random() < 0.15 else harness.model(actor, duty.slot)
                self.models[actor, duty.slot] = model
                return harness.commit(actor, model)
            case RevealModel():
                return harness.reveal(actor, self.models[actor, duty.slot])
            case FetchAndVote():
                seen = [model.index for model in duty.models if random.random() < 0.8]
                return harness.available(actor, seen)
            case AttestTo():
                return harness.attest(actor, random.choice(tuple(Fault)) if random.random() < 0.3 else Fault.NONE)
            case _:
                return harness.answer(actor, duty)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    mode=st.sampled_from(ProbeMode),
    clients_min=st.integers(1, 3),
    validators=st.integers(1, ACTORS),
)
def test_random_dropouts_always_end_a_task(seed: int, mode: ProbeMode, clients_min: int, validators: int) -> None:
    """random dropouts always end a round and the sum of money never changes."""
    harness = Harness(
        actors=ACTORS,
        stakes=tuple(range(7, 7 + validators)),
        probe_mode=mode,
        clients_min=clients_min,
        rounds=4,
    )
    actors = Unreliable(Random(seed), harness)
    for _ in range(400):
        if harness.task.status in ENDED:
            break
        actors.play()
    assert harness.task.status in ENDED
    income = sum(harness.balance(actor) for actor in range(ACTORS)) - ACTORS * harness.setup.balance
    assert income == 4 * 20 * TOKEN, "paid or refunded"
    assert harness.replayed().root == harness.tree.root
    for _, settled in SETTLED.scan(harness.tree):
        nets = sum(client.gross - client.fee for client in settled.clients)
        assert nets + settled.aggregator_income == settled.reward
        excluded = [client for client in settled.clients if client.exclusion is not Exclusion.NONE]
        assert all((client.cluster, client.gross) == (-1, 0) for client in excluded)
