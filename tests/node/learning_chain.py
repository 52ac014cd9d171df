"""A real chain on disk in which real models are made, revealed, aggregated, attested and paid for.

The clients are the validators; every transaction is signed, every block is built and validated by the ledger.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bflnode.consensus.block import Block, Commit, CommitSignature, Validator, VoteKind, sign_vote
from bflnode.consensus.clustering import cluster, matrix_from_triangle
from bflnode.consensus.genesis import Genesis, GenesisTask, Mode, default_parameters, default_task
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.leaders import current_leader
from bflnode.consensus.ledger import build_block, validate_block
from bflnode.consensus.state import Changes
from bflnode.consensus.tables import ACCOUNTS, all_tasks, current_round
from bflnode.consensus.task import (
    Combination,
    LearningRound,
    Phase,
    ProbeMode,
    Rule,
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
    Probe,
    ProbeOpening,
    Reveal,
    Slot,
    TaskRegister,
    Transaction,
    model_commitment,
    probe_commitment,
    sign_transaction,
)
from bflnode.consensus.transaction import Commit as ModelCommit
from bflnode.consensus.types import TOKEN, AccountId, BlobId, Hash
from bflnode.consensus.workspace import BlockContext
from bflnode.fl.architectures import architecture
from bflnode.fl.prototypes import choose_probe, correlation_matrix, prototypes, serialize_samples, upper_triangle
from bflnode.fl.rules import Contribution, outputs
from bflnode.fl.rules import Rule as ArithmeticRule
from bflnode.fl.samples import Inputs, LabelledData, numbered_classes
from bflnode.fl.updates import sharing_by_evidence, update_correlations
from bflnode.fl.weights import parse, serialize
from bflnode.node.aggregation import rule_settings, shares_by_steps
from bflnode.node.workers.worker_jobs import rule_of
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.chain_store import ChainStore

ARCHITECTURE = architecture("mlp/1x4x4/2")
CLIENTS = 4
CLUSTERS = 2
SALT = Hash(bytes(32))


def probe_samples(labels: Sequence[int]) -> LabelledData:
    generator = np.random.default_rng(5)
    inputs = generator.random((len(labels), *ARCHITECTURE.input_shape), dtype=np.float32)
    return LabelledData(inputs, np.array(labels, dtype=np.int64), numbered_classes(ARCHITECTURE.classes))


class LearningChain:
    """A chain under construction.

    Attributes:
        home: folder of `chain/` and `blobs/`.
        wrong_matrix: added to the first similarity of each AGGREGATE, in units of 1e-4.
        ignores_rule: whether AGGREGATE names means of clusters, whatever the task's rule is.
        drowned: whether clients send models whose prototypes are a huge constant but for what rounding leaves.
        wrong_outputs: whether AGGREGATE names other models than the rule makes.
    """

    def __init__(
        self,
        home: Path,
        *,
        probe_mode: ProbeMode = ProbeMode.PUBLIC,
        weighting: Weighting = Weighting.UNIFORM,
        rule: Rule = Rule.PAA,
        combination: Combination = Combination.MEAN,
        step_permille: int = 1000,
        shared_permille: int = 1000,
        similarity: Similarity = Similarity.PROTOTYPES,
        probe_labels: Sequence[int] = (1,) * 8,
        declared_architecture: str = ARCHITECTURE.id,
    ) -> None:
        self.home = home
        self.wrong_matrix = 0
        self.drowned = False
        self.wrong_outputs = False
        self.ignores_rule = False
        self._keys = {key.account: key for key in (SecretKey(bytes([seed]) * 32) for seed in range(1, CLIENTS + 1))}
        self._accounts = sorted(self._keys)
        self.blobs = BlobStore(home / "blobs")
        self._probe = probe_samples(probe_labels)
        self._probe_blob = self.blobs.put(serialize_samples(self._probe.inputs, self._probe.labels))
        self._genesis = self._make_genesis(
            architecture=declared_architecture,
            probe_mode=probe_mode,
            weighting=weighting,
            rule=rule,
            combination=combination,
            step_permille=step_permille,
            momentum_permille=0,
            shared_permille=shared_permille,
            similarity=similarity,
        )
        self.store = ChainStore.create(home / "chain", self._genesis)
        self._tree = self.store.load_state()
        self._models: dict[BlobId, bytes] = {}
        self._trained: dict[tuple[AccountId, Slot], BlobId] = {}

    def _make_genesis(self, **settings: Any) -> Genesis:
        specification = default_task(
            name="test",
            architecture=ARCHITECTURE.id,
            classes=ARCHITECTURE.classes,
            model_bytes=ARCHITECTURE.size_bytes,
            initial_model=self.blobs.put(ARCHITECTURE.initial_weights(0)),
            probe_set=self._probe_blob,
        )
        specification = replace(
            specification,
            rounds=3,
            clients_start=CLIENTS,
            clients_min=CLIENTS,
            clusters=CLUSTERS,
            psi=4,
            **settings,
        )
        return Genesis(
            name="learning chain",
            time_ms=1_000_000,
            mode=Mode.CACC,
            parameters=default_parameters(),
            accounts=(),
            validators=tuple(Validator(account, 5 * TOKEN) for account in self._accounts),
            queue=(),
            admission_key=self._accounts[0],
            admission_pool=0,
            tasks=(GenesisTask(specification, self._accounts[0], 3 * specification.reward),),
            beacon=Hash(bytes(32)),
        )

    def register_all(self) -> None:
        """One block in which all clients register."""
        task = all_tasks(self._tree)[0].id
        bodies = []
        for number, account in enumerate(self._accounts, start=1):
            bodies.append((account, TaskRegister(task, 10 * number, (5 * number, 5 * number), SALT)))
        self.append_block(bodies)

    def run_round(self) -> None:
        """The five blocks of one learning round."""
        number = self._round.slot.number
        for phase in (Phase.COMMIT, Phase.REVEAL, Phase.AVAILABLE, Phase.AGGREGATE, Phase.ATTEST):
            assert self._round.phase is phase, self._round.phase
            self.append_block(self._duties(self._round))
        after = current_round(self._tree)
        assert after is None or after.slot.number == number + 1

    def append_block(self, bodies: Sequence[tuple[AccountId, Body]]) -> Block:
        """Build, validate, commit and append the next block."""
        block = self._build(bodies)
        tip = self.store.tip()
        parent = self.store.header(tip.height) if tip.height else None
        execution = validate_block(self._genesis, self._tree, parent, block)
        self.store.append(block, self.commit_for(block), execution.changes)
        self._tree.apply(execution.changes)
        return block

    def append_forged(self, forge: Callable[[Block], Block], changes: Changes) -> None:
        """Append a block as validators could that agree on breaking a rule; nothing can follow it."""
        block = forge(self._build(()))
        self.store.append(block, self.commit_for(block), changes)

    def _build(self, bodies: Sequence[tuple[AccountId, Body]]) -> Block:
        tip = self.store.tip()
        parent = self.store.header(tip.height) if tip.height else None
        leader = current_leader(self._tree, tip.height + 1, 0)
        context = BlockContext(tip.height + 1, 0, tip.time_ms + 100, leader)
        candidates = [self._sign(account, body) for account, body in bodies]
        last_commit = self.store.commit(tip.height)
        block, _ = build_block(
            self._genesis, self._tree, parent, context, last_commit=last_commit, candidates=candidates
        )
        assert len(block.transactions) == len(bodies)
        return block

    def commit_for(self, block: Block) -> Commit:
        """A commit by all validators."""
        signatures = []
        for index, account in enumerate(self._accounts):
            vote = sign_vote(self._keys[account], self._genesis.chain_id, VoteKind.PRECOMMIT, block.height, 0, block.id)
            signatures.append(CommitSignature(index, vote.signature))
        return Commit(block.height, 0, block.id, tuple(signatures))

    @property
    def _round(self) -> LearningRound:
        learning = current_round(self._tree)
        assert learning is not None
        return learning

    def _sign(self, account: AccountId, body: Body) -> Transaction:
        nonce = 0
        if isinstance(body, TaskRegister):
            record = ACCOUNTS.get(self._tree, account)
            assert record is not None
            nonce = record.nonce
        return sign_transaction(self._keys[account], self._genesis.chain_id, body, nonce=nonce)

    def _duties(self, learning: LearningRound) -> list[tuple[AccountId, Body]]:
        slot, everybody = learning.slot, self._accounts
        chain_id = self._genesis.chain_id
        match learning.phase:
            case Phase.COMMIT:
                duties: list[tuple[AccountId, Body]] = []
                for index, account in enumerate(everybody):
                    model = self._train(slot, index)
                    duties.append((account, ModelCommit(slot, model_commitment(chain_id, slot, account, model, SALT))))
                    self._trained[account, slot] = model
                if self._specification.probe_mode is ProbeMode.AGGREGATOR:
                    aggregator = learning.aggregator
                    promise = probe_commitment(chain_id, slot, aggregator, self._probe_blob, SALT)
                    duties.append((aggregator, Probe(slot, promise)))
                return duties
            case Phase.REVEAL:
                size = ARCHITECTURE.size_bytes
                return [(account, Reveal(slot, self._trained[account, slot], size, SALT)) for account in everybody]
            case Phase.AVAILABLE:
                bitmap = bytes([2**CLIENTS - 1])
                return [(account, Available(slot, bitmap)) for account in everybody]
            case Phase.AGGREGATE:
                return [(learning.aggregator, self._aggregate(learning))]
            case Phase.ATTEST:
                assert learning.aggregation is not None
                transaction = learning.aggregation.transaction
                return [(account, Attest(slot, transaction, Fault.NONE, bytes(1))) for account in everybody]

    @property
    def _specification(self) -> TaskSpecification:
        return self._genesis.tasks[0].specification

    def _train(self, slot: Slot, index: int) -> BlobId:
        model = ARCHITECTURE.initial_weights(100 * slot.number + index)
        if self.drowned:
            tensors = {name: tensor.copy() for name, tensor in parse(model, ARCHITECTURE.table).items()}
            tensors["representation.hidden.bias"][:] = 1e4
            model = serialize(tensors)
        blob = self.blobs.put(model)
        self._models[blob] = model
        return blob

    def _aggregate(self, learning: LearningRound) -> Aggregate:
        included = [learning.clients[position] for position in learning.included]
        models = [self._models[client.revealed.model] for client in included if client.revealed]
        sent = [parse(model, ARCHITECTURE.table) for model in models]
        received = [parse(self.blobs.get(client.base), ARCHITECTURE.table) for client in included]
        is_public = self._specification.probe_mode is ProbeMode.PUBLIC
        if self._specification.similarity is Similarity.UPDATES:
            matrix = update_correlations(sent, received)
        else:
            matrix = correlation_matrix(prototypes(ARCHITECTURE, models, self._probe_inputs(learning)))
        matrix[0, 1] -= self.wrong_matrix
        triangle = upper_triangle(matrix)
        labels = cluster(matrix_from_triangle(triangle, len(models)), CLUSTERS)
        by_samples = self._specification.weighting is Weighting.SAMPLES
        contributions = [
            Contribution(
                sent=sent[index],
                received=received[index],
                holds=[bool(client.classes[0] >> category & 1) for category in range(ARCHITECTURE.classes)],
                weight=client.samples if by_samples else 1,
            )
            for index, client in enumerate(included)
        ]
        published = []
        rule = ArithmeticRule() if self.ignores_rule else rule_of(rule_settings(self._specification))
        if shares_by_steps(self._specification):
            rule = sharing_by_evidence(rule, matrix, labels)
        for label, output in outputs(rule, contributions, labels):
            honest = serialize(output)
            published.append(self.blobs.put(ARCHITECTURE.initial_weights(77 + label) if self.wrong_outputs else honest))
        opening = None if is_public else ProbeOpening(self._probe_blob, SALT)
        return Aggregate(learning.slot, triangle, tuple(published), opening)

    def _probe_inputs(self, learning: LearningRound) -> Inputs:
        if self._specification.probe_mode is not ProbeMode.PUBLIC:
            return self._probe.inputs
        probe = choose_probe(learning.probe_seed, self._probe.labels, self._specification.psi)
        return self._probe.take(probe.indices).inputs
