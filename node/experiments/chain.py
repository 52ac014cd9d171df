"""A real ledger for an experiment, in virtual time: all accounts' keys are here, and no network.

Everything that a network would put on its chain is put on this one: clients register, commit, reveal; the committee
votes; the aggregator in line publishes similarities and outputs; the committee attests; the ledger clusters, pays and
moves the queue. Who owes what is `consensus.duties`, what a block does is `consensus.ledger`. Agreement is left out:
each block is signed by all validators at once. So are the models: here they are ids.

    play_round:  COMMIT -> REVEAL -> AVAILABLE -> [aggregate, called once] -> AGGREGATE -> ATTEST -> settled
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bflnode.consensus import duties as owed
from bflnode.consensus.block import (
    MAX_BLOCK_BYTES,
    Block,
    Commit,
    CommitSignature,
    Header,
    Validator,
    VoteKind,
    genesis_commit,
    sign_vote,
)
from bflnode.consensus.duties import Duty, OfferedModel, duties
from bflnode.consensus.genesis import (
    DEFAULT_HOSTILE_PERMILLE,
    Genesis,
    GenesisAccount,
    GenesisError,
    GenesisTask,
    Mode,
    default_deadlines,
    default_parameters,
    task_id,
)
from bflnode.consensus.hashing import tagged_hash
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.leaders import current_leader
from bflnode.consensus.ledger import Execution, build_block, genesis_state, validate_block
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.tables import (
    ACCOUNTS,
    PARTICIPANTS,
    SETTLED,
    TASKS,
    current_round,
    current_validators,
    participant_key,
    settled_key,
)
from bflnode.consensus.task import (
    PERMILLE,
    Combination,
    LearningRound,
    Phase,
    ProbeMode,
    Rule,
    SettledRound,
    Similarity,
    TaskSpecification,
    Weighting,
)
from bflnode.consensus.transaction import (
    Aggregate,
    Attest,
    Available,
    Body,
    Fault,
    Reveal,
    TaskLeave,
    TaskRegister,
    Transaction,
    bitmap,
    model_commitment,
    sign_transaction,
)
from bflnode.consensus.transaction import Commit as CommitBody
from bflnode.consensus.types import MAX_CLIENTS, MAX_VALIDATORS, TOKEN, AccountId, BlobId, Hash
from bflnode.consensus.workspace import BlockContext, EventKind

from .file import ExperimentError

START_MS = 1_700_000_000_000
"""Time of every experiment's genesis: results must not depend on when they were made."""

STAKE = 5 * TOKEN
"""Initial stake of a client (Li et al., table 1)."""

NO_BLOB = BlobId(bytes(32))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainOptions:
    """What the ledger of a run is about.

    Attributes:
        name: of the run.
        seed: of keys and of the first beacon.
        clients: number of accounts; the first 256 of them are the validators.
        per_round: clients in a learning round.
        rounds: learning rounds.
        clusters: that clustering looks for.
        psi: samples of a probe.
        reward: micro-tokens a learning round.
        rho: exponent of the cluster size in payouts.
        architecture: id of the models.
        classes: of the data.
        model_bytes: size of a model.
        initial_model: its id.
        probe_set: its id.
        epochs: of local training, as is the rest: advice that a task carries.
        batch_size: of local training.
        learning_rate_micro: of local training.
        rule: what becomes of models, as is the rest: settings of the task.
        combination: how one model is made of several.
        hostile_permille: share of the models that it counts on being hostile.
        clip_permille: longest step under norm clipping.
        step_permille: how far an output goes from what was received.
        momentum_permille: how far clients look ahead before they train.
        shared_permille: part of everybody's model in each cluster's output.
        similarity: what clients are compared by.
    """

    name: str
    seed: int
    clients: int
    per_round: int
    rounds: int
    clusters: int
    psi: int
    reward: int
    rho: int
    architecture: str
    classes: int
    model_bytes: int
    initial_model: BlobId
    probe_set: BlobId
    epochs: int
    batch_size: int
    learning_rate_micro: int
    rule: Rule = Rule.PAA
    combination: Combination = Combination.MEAN
    hostile_permille: int = DEFAULT_HOSTILE_PERMILLE
    clip_permille: int = PERMILLE
    step_permille: int = PERMILLE
    momentum_permille: int = 0
    shared_permille: int = PERMILLE
    similarity: Similarity = Similarity.PROTOTYPES


@dataclass(frozen=True, slots=True)
class Offer:
    """What the aggregator works on.

    Attributes:
        clients: whose models are included, ascending.
        probe_seed: decides the probe.
    """

    clients: tuple[int, ...]
    probe_seed: Hash


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the aggregator publishes: the strict upper triangle of similarities, and an output for each cluster."""

    triangle: bytes
    outputs: tuple[BlobId, ...]


@dataclass(frozen=True, slots=True)
class Registration:
    """What a client registers with."""

    samples: int
    histogram: tuple[int, ...]


class VirtualChain:
    """The ledger of one run. Clients are numbered by the order of their keys, as the ledger orders them.

    Attributes:
        clusters: that clustering looks for.
        tree: the state after the last block.
        header: of the last block, None before the first.
    """

    def __init__(self, options: ChainOptions, registration: Callable[[int], Registration]) -> None:
        """Start at the genesis.

        Raises:
            ExperimentError: the ledger doesn't take a task like this.
        """
        seed = options.seed.to_bytes(8, "big")
        keys = (SecretKey(tagged_hash("experiment-key", seed, n.to_bytes(8, "big"))) for n in range(options.clients))
        self._keys = tuple(sorted(keys, key=lambda key: key.account))
        self._accounts = tuple(key.account for key in self._keys)
        self._numbers = {account: number for number, account in enumerate(self._accounts)}
        self._registration = registration
        self._genesis = _genesis(options, self._accounts, seed)
        self._task = task_id(0, self._genesis.tasks[0])
        self._commit = genesis_commit(self._genesis.chain_id)
        self._unsaved: list[bytes] = []
        self._trouble = ""
        self.clusters = options.clusters
        self.header: Header | None = None
        try:
            self.tree = genesis_state(self._genesis)
        except GenesisError as error:
            raise ExperimentError(f"the chain doesn't take this experiment: {error}") from error

    @property
    def head(self) -> Hash:
        """Id of the last block, or the chain's id before the first."""
        return Hash(self._genesis.chain_id if self.header is None else self.header.id)

    @property
    def height(self) -> int:
        """Height of the last block."""
        return 0 if self.header is None else self.header.height

    def open(self, clients: Sequence[int]) -> None:
        """Register the clients of the first learning round, which opens it."""
        self._include(self._register(client) for client in clients)

    def base(self, client: int) -> BlobId:
        """The model that a client trains from in the learning round that runs."""
        participant = PARTICIPANTS.get(self.tree, participant_key(self._task, self._accounts[client]))
        assert participant is not None, "a client of a learning round is registered"
        return participant.base

    def play_round(
        self,
        models: Mapping[int, tuple[BlobId, int]],
        next_clients: Sequence[int],
        aggregate: Callable[[Offer], Outcome],
    ) -> SettledRound:
        """Play a learning round to its settlement.

        Args:
            models: id and size of what each client of this round trained.
            next_clients: clients of the next learning round, or nobody after the last.
            aggregate: does the aggregator's work, which the committee is taken to have repeated with the same result.

        Raises:
            ExperimentError: the round is void, and why.
        """
        number = self._current().slot.number
        self._change_clients(models, next_clients)
        while (settled := self.settled(number)) is None:
            current = current_round(self.tree)
            if current is None or current.slot.attempt:
                raise ExperimentError(f"learning round {number} is void: {self._trouble or 'nobody took part'}")
            before = (self.height, current.phase)
            self._include(self._answers(current, models, aggregate))
            assert before != (self.height, current.phase), "a phase ends once everybody has acted"
        return settled

    def settled(self, number: int) -> SettledRound | None:
        """A learning round that has been settled."""
        return SETTLED.get(self.tree, settled_key(self._task, number))

    def number_of(self, account: AccountId) -> int:
        """The client that has an account."""
        return self._numbers[account]

    def take_blocks(self) -> tuple[bytes, ...]:
        """The blocks since the last call, to be written down."""
        taken, self._unsaved = tuple(self._unsaved), []
        return taken

    def replay(self, blocks: Iterable[bytes], remedy: str) -> None:
        """Execute blocks that were written down, each checked as a node checks a stranger's.

        Args:
            blocks: all of them, in order.
            remedy: what to do where one isn't valid.

        Raises:
            ExperimentError: one isn't valid here.
        """
        for encoded in blocks:
            try:
                block = Block.from_bytes(encoded, max_bytes=MAX_BLOCK_BYTES)
                execution = validate_block(self._genesis, self.tree, self.header, block)
            except Rejection as rejection:
                raise ExperimentError(
                    f"block {self.height + 1} of the run is damaged, or of another version of bflnode ({rejection}): "
                    f"{remedy}"
                ) from rejection
            self._apply(block, execution)

    def _change_clients(self, now: Iterable[int], later: Sequence[int]) -> None:
        """Let those leave who aren't in the next round, then register those who are only there."""
        present, wanted = set(now), set(later)
        if not later or present == wanted:
            return
        leaving = [self._paid(client, TaskLeave(self._task)) for client in sorted(present - wanted)]
        self._include([*leaving, *(self._register(client) for client in sorted(wanted - present))])

    def _register(self, client: int) -> Transaction:
        data = self._registration(client)
        commitment = tagged_hash("experiment-data", self._accounts[client])
        return self._paid(client, TaskRegister(self._task, data.samples, data.histogram, commitment))

    def _paid(self, client: int, body: Body) -> Transaction:
        account = ACCOUNTS.get(self.tree, self._accounts[client])
        assert account is not None, "every client has an account"
        return self._sign(client, body, nonce=account.nonce)

    def _sign(self, client: int, body: Body, nonce: int = 0) -> Transaction:
        return sign_transaction(self._keys[client], self._genesis.chain_id, body, nonce=nonce)

    def _answers(
        self,
        current: LearningRound,
        models: Mapping[int, tuple[BlobId, int]],
        aggregate: Callable[[Offer], Outcome],
    ) -> list[Transaction]:
        """What everybody who may owe something does about it."""
        members = {client.account for client in current.clients}
        if current.phase in (Phase.AVAILABLE, Phase.ATTEST):
            members = {member.account for member in current.committee}
        elif current.phase is Phase.AGGREGATE:
            members = {current.aggregator}
        answers = []
        for account in sorted(members):
            client = self._numbers[account]
            for duty in duties(self._genesis, self.tree, account, has_credential=False, is_client=False):
                body = self._answer(client, duty, models, aggregate)
                if body is not None:
                    answers.append(self._sign(client, body))
        return answers

    def _answer(
        self,
        client: int,
        duty: Duty,
        models: Mapping[int, tuple[BlobId, int]],
        aggregate: Callable[[Offer], Outcome],
    ) -> Body | None:
        account = self._accounts[client]
        match duty:
            case owed.Train(slot):
                salt = self._keys[client].derive_salt("commit", self._genesis.chain_id, slot.to_bytes())
                return CommitBody(
                    slot, model_commitment(self._genesis.chain_id, slot, account, models[client][0], salt)
                )
            case owed.RevealModel(slot):
                salt = self._keys[client].derive_salt("commit", self._genesis.chain_id, slot.to_bytes())
                return Reveal(slot, *models[client], salt)
            case owed.FetchAndVote(slot):
                return Available(slot, bitmap({model.index for model in duty.models}, duty.clients))
            case owed.Aggregate(slot):
                outcome = aggregate(Offer(self._clients_of(duty.models), duty.probe_seed))
                return Aggregate(slot, outcome.triangle, outcome.outputs, None)
            case owed.AttestTo(slot):
                return Attest(slot, duty.aggregation.transaction, Fault.NONE, bitmap(set(), len(duty.models)))
            case _:
                return None

    def _clients_of(self, models: Iterable[OfferedModel]) -> tuple[int, ...]:
        return tuple(self._numbers[model.account] for model in models)

    def _current(self) -> LearningRound:
        current = current_round(self.tree)
        if current is None:
            task = TASKS.get(self.tree, self._task)
            assert task is not None, "the genesis has a task"
            raise ExperimentError(f"no learning round runs: the task is {task.status.name.lower()}")
        return current

    def _include(self, transactions: Iterable[Transaction]) -> None:
        """Put transactions into as many blocks as they need."""
        left = tuple(transactions)
        while left:
            block, execution = self._build(left)
            assert block.transactions, "what is owed is valid"
            self._apply(block, execution)
            self._unsaved.append(block.encoded)
            included = {transaction.id for transaction in block.transactions}
            left = tuple(transaction for transaction in left if transaction.id not in included)

    def _build(self, candidates: Iterable[Transaction]) -> tuple[Block, Execution]:
        height = self.height + 1
        now_ms = START_MS if self.header is None else self.header.time_ms
        time_ms = now_ms + self._genesis.parameters.block_interval_ms
        context = BlockContext(height, 0, time_ms, current_leader(self.tree, height, 0))
        return build_block(
            self._genesis, self.tree, self.header, context, last_commit=self._commit, candidates=candidates
        )

    def _apply(self, block: Block, execution: Execution) -> None:
        self._commit = self._sign_commit(block)
        self.tree.apply(execution.changes)
        self.header = block.header
        for event in execution.events:
            if event.kind in (EventKind.ROUND_VOID, EventKind.TASK_CANCELLED):
                self._trouble = self._trouble or event.detail

    def _sign_commit(self, block: Block) -> Commit:
        """The precommits of all validators, who vote on it by the state before it."""
        header = block.header
        votes = [
            sign_vote(
                self._keys[self._numbers[account]],
                self._genesis.chain_id,
                VoteKind.PRECOMMIT,
                header.height,
                header.round,
                header.id,
            )
            for account in current_validators(self.tree).accounts
        ]
        signatures = tuple(CommitSignature(index, vote.signature) for index, vote in enumerate(votes))
        return Commit(header.height, header.round, header.id, signatures)


def _genesis(options: ChainOptions, accounts: Sequence[AccountId], seed: bytes) -> Genesis:
    validators = tuple(Validator(account, STAKE) for account in accounts[:MAX_VALIDATORS])
    reward = options.reward
    return Genesis(
        name=options.name[:64],
        time_ms=START_MS,
        mode=Mode.CACC,
        parameters=replace(default_parameters(), admission_amount=STAKE),
        accounts=tuple(GenesisAccount(account, 0) for account in accounts),
        validators=validators,
        queue=(),
        admission_key=SecretKey(tagged_hash("experiment-admission", seed)).account,
        admission_pool=0,
        tasks=(GenesisTask(_specification(options), accounts[0], reward * options.rounds),),
        beacon=tagged_hash("first-beacon", seed),
    )


def _specification(options: ChainOptions) -> TaskSpecification:
    return TaskSpecification(
        name=options.name[:64],
        architecture=options.architecture,
        classes=options.classes,
        model_bytes=options.model_bytes,
        initial_model=options.initial_model,
        rounds=options.rounds,
        reward=options.reward,
        clients_start=options.per_round,
        clients_min=1,
        clients_max=MAX_CLIENTS,
        clusters=options.clusters,
        rho=options.rho,
        psi=options.psi,
        probe_mode=ProbeMode.PUBLIC,
        probe_set=options.probe_set,
        validation_set=NO_BLOB,
        weighting=Weighting.UNIFORM,
        rule=options.rule,
        combination=options.combination,
        hostile_permille=options.hostile_permille,
        clip_permille=options.clip_permille,
        step_permille=options.step_permille,
        momentum_permille=options.momentum_permille,
        shared_permille=options.shared_permille,
        similarity=options.similarity,
        tolerance=10,
        deadlines=default_deadlines(),
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate_micro=options.learning_rate_micro,
    )
