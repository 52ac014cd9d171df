"""A whole network on one real state, without agreement: keys, signed transactions, valid blocks, virtual header time.

`Harness` makes blocks the way a proposer does, checks them the way everybody else does, signs their commits with all
validators' keys and applies them. Nothing is faked but the models: a model is any 32 bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

from bflnode.consensus import duties as owed
from bflnode.consensus.block import (
    Block,
    Commit,
    CommitSignature,
    Header,
    VoteKind,
    genesis_commit,
    sign_vote,
)
from bflnode.consensus.clustering import cluster, triangle_from_matrix
from bflnode.consensus.duties import Duty, duties
from bflnode.consensus.evidence import make_evidence
from bflnode.consensus.genesis import task_id
from bflnode.consensus.keys import SecretKey, admission_payload
from bflnode.consensus.leaders import current_leader
from bflnode.consensus.ledger import (
    Execution,
    assert_supply,
    build_block,
    check,
    execute,
    genesis_state,
    validate_block,
)
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.state import StateTree
from bflnode.consensus.tables import (
    ACCOUNTS,
    PARTICIPANTS,
    SETTLED,
    TASKS,
    Stake,
    current_queue,
    current_round,
    current_validators,
    participant_key,
    settled_key,
    stake_of,
)
from bflnode.consensus.task import (
    LearningRound,
    Participant,
    Phase,
    ProbeMode,
    Rule,
    SettledRound,
    Task,
)
from bflnode.consensus.transaction import (
    Admit,
    Aggregate,
    Attest,
    Available,
    Body,
    Bond,
    Fault,
    Probe,
    ProbeOpening,
    Reveal,
    Slot,
    TaskLeave,
    TaskRegister,
    Transaction,
    Transfer,
    Unbond,
    Unjail,
    model_commitment,
    probe_commitment,
    sign_transaction,
)
from bflnode.consensus.transaction import Commit as CommitBody
from bflnode.consensus.types import AccountId, BlobId, BlockId, Hash
from bflnode.consensus.workspace import BlockContext, Event
from tests.consensus.setups import (
    ADMISSION,
    CLASSES,
    MODEL_BYTES,
    START_MS,
    Setup,
    make_keys,
    make_setup,
)


def blob(*parts: object) -> BlobId:
    """An id for a model that is only named."""
    return BlobId(sha256(repr(parts).encode()).digest())


def similarity(labels: Sequence[int], high: int = 9_000, low: int = 0) -> list[list[int]]:
    """A similarity matrix with planted clusters."""
    return [
        [10_000 if i == j else high if labels[i] == labels[j] else low for j in range(len(labels))]
        for i in range(len(labels))
    ]


def bits(positions: Iterable[int], count: int) -> bytes:
    """A bitmap with these bits set, least significant first."""
    value = sum(1 << position for position in set(positions))
    return value.to_bytes((count + 7) // 8, "little")


class Harness:
    """A chain that actors can use.

    Attributes:
        keys: the actors' keys, ascending by account; an actor is named by its position.
        tree: the state after the last block.
        header: of the last block.
        blocks: all blocks.
        events: all events.
        labels: clusters that aggregators find where the number of clients fits; else two halves.
        registers: whether actors register (again) by themselves.
        absent: validators that don't precommit.
    """

    def __init__(self, setup: Setup | None = None, **changes: Any) -> None:
        self.setup = setup if setup is not None else make_setup(**changes)
        self.keys = make_keys(self.setup.actors)
        self.genesis = self.setup.genesis(self.keys)
        self.tree = genesis_state(self.genesis)
        self.header: Header | None = None
        self.last_commit = genesis_commit(self.genesis.chain_id)
        self.blocks: list[Block] = []
        self.events: list[Event] = []
        self.labels: Sequence[int] | None = None
        self.registers = True
        self.absent: frozenset[int] = frozenset()

    @property
    def chain_id(self) -> Hash:
        """The chain's id."""
        return Hash(self.genesis.chain_id)

    @property
    def now_ms(self) -> int:
        """Header time of the last block."""
        return START_MS if self.header is None else self.header.time_ms

    @property
    def height(self) -> int:
        """Height of the last block."""
        return 0 if self.header is None else self.header.height

    @property
    def round(self) -> LearningRound:
        """The learning round that runs."""
        current = current_round(self.tree)
        assert current is not None, "no learning round runs"
        return current

    @property
    def phase(self) -> Phase | None:
        """The phase of the learning round that runs, if one does."""
        current = current_round(self.tree)
        return None if current is None else current.phase

    @property
    def slot(self) -> Slot:
        """The learning round that runs or comes next."""
        return self.task.slot

    @property
    def task_id(self) -> Hash:
        """The id of the first task."""
        return task_id(0, self.genesis.tasks[0])

    @property
    def task(self) -> Task:
        """The first task."""
        task = TASKS.get(self.tree, self.task_id)
        assert task is not None
        return task

    @property
    def queue(self) -> tuple[int, ...]:
        """The packing queue, as positions of actors."""
        return tuple(self.actor(account) for account in current_queue(self.tree))

    @property
    def line(self) -> tuple[int, ...]:
        """The aggregators in line, as positions of actors."""
        return tuple(self.actor(member.account) for member in self.round.line)

    @property
    def validators(self) -> range:
        """The actors that are validators."""
        return range(len(self.setup.stakes))

    def actor(self, account: AccountId) -> int:
        """Position of an account among the actors."""
        return next(position for position, key in enumerate(self.keys) if key.account == account)

    def account(self, actor: int) -> AccountId:
        """Account of an actor."""
        return self.keys[actor].account

    def balance(self, actor: int) -> int:
        """Free balance of an actor."""
        account = ACCOUNTS.get(self.tree, self.account(actor))
        return 0 if account is None else account.balance

    def nonce(self, actor: int) -> int:
        """Next nonce of an actor."""
        account = ACCOUNTS.get(self.tree, self.account(actor))
        return 0 if account is None else account.nonce

    def participant(self, actor: int) -> Participant:
        """An actor's registration for the first task."""
        participant = PARTICIPANTS.get(self.tree, participant_key(self.task_id, self.account(actor)))
        assert participant is not None
        return participant

    def settled(self, number: int) -> SettledRound:
        """A settled learning round of the first task."""
        record = SETTLED.get(self.tree, settled_key(self.task_id, number))
        assert record is not None, f"learning round {number} isn't settled"
        return record

    def block(self, *transactions: Transaction, after_ms: int = 100, round_: int = 0) -> tuple[Event, ...]:
        """Make a block of exactly these transactions; the first invalid one raises its rejection."""
        context = self.context(after_ms, round_)
        execute(self.genesis, self.tree, context, transactions, self.last_commit)
        return self._append(transactions, context)

    def offer(self, *transactions: Transaction, after_ms: int = 100, round_: int = 0) -> tuple[Transaction, ...]:
        """Make a block of those of the transactions that are valid; return them."""
        self._append(transactions, self.context(after_ms, round_))
        return self.blocks[-1].transactions

    def wait(self, after_ms: int) -> tuple[Event, ...]:
        """Make an empty block after a while."""
        return self.block(after_ms=after_ms)

    def wait_until_due(self) -> tuple[Event, ...]:
        """Make an empty block at the phase's deadline."""
        return self.wait(self.round.header_ms + self.round.deadline_ms - self.round.clock_ms - self.now_ms)

    def rejection(self, transaction: Transaction) -> Rejection:
        """Why a transaction is refused now: by the mempool's check and in a block alike."""
        context = replace(self.context(1, 0), time_ms=self.now_ms)
        found: list[Rejection] = []
        for attempt in (
            lambda: check(self.genesis, self.tree, transaction, self.now_ms),
            lambda: execute(self.genesis, self.tree, context, [transaction], self.last_commit),
        ):
            try:
                attempt()
            except Rejection as rejection:
                found.append(rejection)
        assert len(found) == 2, "the transaction is valid"
        assert (type(found[0]), found[0].reason) == (type(found[1]), found[1].reason)
        return found[0]

    def refusal(self, transaction: Transaction) -> tuple[type[Rejection], Reason]:
        """Of what kind a transaction's rejection is, and its reason."""
        rejection = self.rejection(transaction)
        return type(rejection), rejection.reason

    def context(self, after_ms: int = 100, round_: int = 0) -> BlockContext:
        """The context of the next block."""
        height = self.height + 1
        return BlockContext(height, round_, self.now_ms + after_ms, current_leader(self.tree, height, round_))

    def build(self, context: BlockContext, transactions: Iterable[Transaction]) -> tuple[Block, Execution]:
        """Make a block without applying it."""
        return build_block(
            self.genesis,
            self.tree,
            self.header,
            context,
            last_commit=self.last_commit,
            candidates=transactions,
        )

    def sign_commit(self, block: Block, voters: Iterable[int] | None = None) -> Commit:
        """The commit of a block by some validators, by default all but the absent."""
        validators = current_validators(self.tree)
        voting = (actor for actor, key in enumerate(self.keys) if key.account in validators)
        chosen = [actor for actor in voting if actor not in self.absent] if voters is None else voters
        entries = []
        for voter in chosen:
            index = validators.index_of(self.account(voter))
            assert index is not None
            vote = sign_vote(
                self.keys[voter],
                self.genesis.chain_id,
                VoteKind.PRECOMMIT,
                block.height,
                block.header.round,
                block.id,
            )
            entries.append(CommitSignature(index, vote.signature))
        ordered = tuple(sorted(entries, key=lambda entry: entry.index))
        return Commit(block.height, block.header.round, block.id, ordered)

    def _append(self, transactions: Iterable[Transaction], context: BlockContext) -> tuple[Event, ...]:
        block, built = self.build(context, transactions)
        travelled = Block.from_bytes(block.encoded, max_bytes=2**20)
        execution = validate_block(self.genesis, self.tree, self.header, travelled)
        assert execution == built, "a block does the same at its proposer and at everybody else"
        commit = self.sign_commit(block)
        self.tree.apply(execution.changes)
        assert self.tree.root == block.header.state_root
        assert_supply(self.genesis, self.tree)
        self.header, self.last_commit = block.header, commit
        self.blocks.append(block)
        self.events += execution.events
        return execution.events

    def replayed(self) -> StateTree:
        """The state that all blocks give when they are executed again from the genesis."""
        tree, parent = genesis_state(self.genesis), None
        for block in self.blocks:
            tree.apply(validate_block(self.genesis, tree, parent, block).changes)
            parent = block.header
        return tree

    def sign(self, actor: int | SecretKey, body: Body, **fields: int) -> Transaction:
        """Sign a body as an actor."""
        key = self.keys[actor] if isinstance(actor, int) else actor
        return sign_transaction(key, self.genesis.chain_id, body, **fields)

    def transfer(self, actor: int, to: AccountId, amount: int, **fields: int) -> Transaction:
        """A TRANSFER with the actor's next nonce."""
        return self.sign(actor, Transfer(to, amount), **{"nonce": self.nonce(actor), **fields})

    def bond(self, actor: int, amount: int, **fields: int) -> Transaction:
        """A BOND with the actor's next nonce."""
        return self.sign(actor, Bond(amount), **{"nonce": self.nonce(actor), **fields})

    def unbond(self, actor: int, amount: int, **fields: int) -> Transaction:
        """An UNBOND with the actor's next nonce."""
        return self.sign(actor, Unbond(amount), **{"nonce": self.nonce(actor), **fields})

    def unjail(self, actor: int, **fields: int) -> Transaction:
        """An UNJAIL with the actor's next nonce."""
        return self.sign(actor, Unjail(), **{"nonce": self.nonce(actor), **fields})

    def evidence(self, reporter: int | SecretKey, offender: int, height: int = 1, round_: int = 0) -> Transaction:
        """An EVIDENCE of two precommits of an actor."""
        votes = [
            sign_vote(self.keys[offender], self.genesis.chain_id, VoteKind.PRECOMMIT, height, round_, BlockId(block))
            for block in (bytes(32), bytes([1]) * 32)
        ]
        return self.sign(reporter, make_evidence(*votes))

    def stake(self, actor: int) -> Stake:
        """What an actor has at stake."""
        return stake_of(self.tree, self.account(actor))

    @property
    def voting(self) -> tuple[int, ...]:
        """The actors that vote on the next block."""
        return tuple(self.actor(account) for account in current_validators(self.tree).accounts)

    def admit(self, key: SecretKey, admission: SecretKey = ADMISSION) -> Transaction:
        """An ADMIT of a key."""
        credential = admission.sign("admit", self.genesis.chain_id, admission_payload(key.account))
        return self.sign(key, Admit(credential))

    def register(
        self,
        actor: int,
        *,
        samples: int = 100,
        histogram: tuple[int, ...] = (),
        task: Hash | None = None,
        **fields: int,
    ) -> Transaction:
        """A TASK_REGISTER, for the first task if none is named; of both classes unless a histogram is given."""
        histogram = histogram or (samples - samples // CLASSES, samples // CLASSES)
        body = TaskRegister(task or self.task_id, sum(histogram), histogram, Hash(blob("data", actor)))
        return self.sign(actor, body, **{"nonce": self.nonce(actor), **fields})

    def leave(self, actor: int, **fields: int) -> Transaction:
        """A TASK_LEAVE from the first task."""
        return self.sign(actor, TaskLeave(self.task_id), **{"nonce": self.nonce(actor), **fields})

    def salt(self, actor: int, slot: Slot | None = None) -> Hash:
        """An actor's salt in a learning round."""
        return self.keys[actor].derive_salt("commit", (slot or self.slot).to_bytes())

    def model(self, actor: int, slot: Slot | None = None) -> BlobId:
        """The model that an actor trains in a learning round: the same in each attempt."""
        return blob("model", actor, (slot or self.slot).number)

    def commit(self, actor: int, model: BlobId | None = None, slot: Slot | None = None) -> Transaction:
        """A COMMIT."""
        slot = slot or self.slot
        model = model or self.model(actor, slot)
        salt = self.salt(actor, slot)
        commitment = model_commitment(self.genesis.chain_id, slot, self.account(actor), model, salt)
        return self.sign(actor, CommitBody(slot, commitment))

    def reveal(self, actor: int, model: BlobId | None = None, slot: Slot | None = None) -> Transaction:
        """A REVEAL."""
        slot = slot or self.slot
        return self.sign(actor, Reveal(slot, model or self.model(actor, slot), MODEL_BYTES, self.salt(actor, slot)))

    def probe(self, actor: int, slot: Slot | None = None) -> Transaction:
        """A PROBE."""
        slot = slot or self.slot
        opening = self.opening(actor, slot)
        commitment = probe_commitment(self.genesis.chain_id, slot, self.account(actor), opening.samples, opening.salt)
        return self.sign(actor, Probe(slot, commitment))

    def opening(self, actor: int, slot: Slot | None = None) -> ProbeOpening:
        """What opens an actor's PROBE."""
        slot = slot or self.slot
        return ProbeOpening(blob("samples", actor, slot.number), self.keys[actor].derive_salt("probe", slot.to_bytes()))

    def available(self, actor: int, positions: Iterable[int] | None = None) -> Transaction:
        """An AVAILABLE vote for clients, by default all."""
        count = len(self.round.clients)
        return self.sign(actor, Available(self.slot, bits(range(count) if positions is None else positions, count)))

    def aggregate(self, actor: int | None = None, labels: Sequence[int] | None = None) -> Transaction:
        """An AGGREGATE with planted clusters: by default the acting aggregator's, over two halves."""
        current = self.round
        actor = self.actor(current.aggregator) if actor is None else actor
        planted = labels if labels is not None else self.planted(len(current.included))
        matrix = similarity(planted)
        found = set(cluster(matrix, self.task.specification.clusters))
        is_for_all = self.task.specification.rule is Rule.PRIOR_ROWS
        outputs = tuple(blob("output", self.slot, 0 if is_for_all else label) for label in sorted(found))
        is_public = self.task.specification.probe_mode is ProbeMode.PUBLIC
        opening = None if is_public else self.opening(actor)
        triangle = triangle_from_matrix(matrix)
        return self.sign(actor, Aggregate(self.slot, triangle, outputs, opening))

    def planted(self, included: int) -> Sequence[int]:
        """Labels of the included clients: `labels` where they fit, else two halves."""
        if self.labels is not None and len(self.labels) == included:
            return self.labels
        return [position * 2 // included for position in range(included)]

    def attest(self, actor: int, fault: Fault = Fault.NONE) -> Transaction:
        """An ATTEST about the current aggregation."""
        aggregation = self.round.aggregation
        assert aggregation is not None
        flags = bits((), len(self.round.included))
        return self.sign(actor, Attest(self.slot, aggregation.transaction, fault, flags))

    def duties(self, actor: int) -> tuple[Duty, ...]:
        """What an actor owes now."""
        return duties(self.genesis, self.tree, self.account(actor), has_credential=True, is_client=self.registers)

    def answer(self, actor: int, duty: Duty) -> Transaction:
        """What an honest actor does about a duty."""
        match duty:
            case owed.Admit():
                return self.admit(self.keys[actor])
            case owed.Register():
                return self.register(actor, task=duty.task)
            case owed.PostProbe():
                return self.probe(actor)
            case owed.Train():
                return self.commit(actor)
            case owed.RevealModel():
                return self.reveal(actor)
            case owed.FetchAndVote():
                return self.available(actor, [model.index for model in duty.models])
            case owed.Aggregate():
                return self.aggregate(actor)
            case owed.AttestTo():
                return self.attest(actor)

    def step(self, actors: Iterable[int] | None = None, after_ms: int = 100) -> tuple[Event, ...]:
        """Make a block in which these actors, by default all, answer their duties; one registration at a time."""
        answers: list[Transaction] = []
        for actor in range(len(self.keys)) if actors is None else actors:
            duties = self.duties(actor)
            registrations = [duty for duty in duties if isinstance(duty, owed.Register)]
            answers += [self.answer(actor, duty) for duty in duties if duty not in registrations[1:]]
        return self.block(*answers, after_ms=after_ms)

    def register_all(self, samples: Sequence[int] | None = None) -> None:
        """Register all actors in one block, which opens the first learning round."""
        sizes = [100] * len(self.keys) if samples is None else samples
        self.block(*(self.register(actor, samples=size) for actor, size in enumerate(sizes)))

    def play_to(self, phase: Phase, actors: Iterable[int] | None = None) -> None:
        """Play honestly until a phase begins; without all actors a deadline may have to pass."""
        chosen = None if actors is None else tuple(actors)
        while self.phase is not phase:
            before = (self.round.slot, self.round.phase)
            self.step(chosen)
            if (self.round.slot, self.round.phase) == before:
                self.wait_until_due()

    def play_round(self, actors: Iterable[int] | None = None) -> SettledRound:
        """Play a learning round to its end, whichever attempt settles it."""
        number = self.task.round
        chosen = None if actors is None else tuple(actors)
        while SETTLED.get(self.tree, settled_key(self.task_id, number)) is None:
            before = (self.round.slot, self.round.phase, self.round.acting, self.round.is_extended)
            self.step(chosen)
            current = current_round(self.tree)
            if current is not None and before == (current.slot, current.phase, current.acting, current.is_extended):
                self.wait_until_due()
        return self.settled(number)


def opened(**changes: Any) -> Harness:
    """A network whose first learning round has opened with all actors."""
    harness = Harness(**changes)
    harness.register_all()
    return harness


def at_phase(phase: Phase, **changes: Any) -> Harness:
    """A network in a phase of its first learning round, everybody having played."""
    harness = opened(**changes)
    harness.play_to(phase)
    return harness
