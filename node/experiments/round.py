"""One run of an experiment: a method on one population, learning round by learning round, with a checkpoint after each.

The aggregation is that of `fl.methods`; for methods of the chain (`file.CHAIN_METHODS`) it is the
aggregator's work on a real ledger (`chain`), and what clients receive next is what that ledger says.
torch is imported when a round is played.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bflnode.consensus.blob import BlobHasher
from bflnode.consensus.clustering import cluster, triangle_from_matrix
from bflnode.consensus.hashing import tagged_hash
from bflnode.consensus.registration import largest_cluster
from bflnode.consensus.task import Combination, Rule, Similarity
from bflnode.consensus.types import TOKEN, BlobId, Hash
from bflnode.fl.architectures import Architecture
from bflnode.fl.population import Population, default_architecture, fitting_architecture
from bflnode.fl.prototypes import choose_probe, serialize_samples
from bflnode.fl.robust import RobustRule
from bflnode.fl.weights import Tensors, parse
from bflnode.node.aggregation import choice_name, choice_value

from .chain import ChainOptions, Offer, Outcome, Registration, VirtualChain
from .file import CENTRALISED, Experiment, ExperimentError, RunPlan, Training, permille
from .pool import Pool
from .results import ClientMeasures, client_rows, mean_of, payout_rows, round_row
from .store import ExperimentFolder, RunFolder, RunState

if TYPE_CHECKING:
    from bflnode.fl.client_round import ClientJob, ClientResult
    from bflnode.fl.methods.method import Gathered, Method, Sent
    from bflnode.fl.training import TrainingConfig


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """A learning round that has ended."""

    number: int
    received: float
    post: float
    seconds: float


class Run:
    """One run: a method on one population.

    Attributes:
        chain: its ledger, None where the method has none.
    """

    def __init__(
        self, folder: ExperimentFolder, plan: RunPlan, method: "Method", population: Population, pool: Pool
    ) -> None:
        self._experiment = folder.experiment
        self._plan = plan
        self._method = method
        self._population = population
        self._pool = pool
        self._folder: RunFolder = folder.run(plan)
        self._architecture = architecture_of(folder.experiment, population)
        self._parsed: dict[str, Tensors] = {}
        saved = self._folder.state()
        self._folder.prepare(saved)
        self.chain = self._make_chain() if folder.experiment.is_on_chain(plan.entry) else None
        self._state = self._first_state() if saved is None else saved
        if self.chain is not None:
            self._resume_chain(self.chain)

    def rounds(self) -> Iterator[RoundRecord]:
        """Play the rounds that are left, and write a checkpoint after each."""
        while self._state.round < self._experiment.rounds:
            yield self._play(self._state.round + 1)

    def _play(self, number: int) -> RoundRecord:
        started = time.perf_counter()
        clients = self._clients(number)
        results: dict[int, ClientResult] = {}
        kept = dict(self._state.kept)
        owners = [clients] if self._is_centralised else [(client,) for client in clients]
        for own, result in zip(owners, self._pool.play(self._jobs(number, owners)), strict=True):
            if self._has_something(result.kept):
                self._folder.put_kept(own[0], number, result.kept)
                kept[own[0]] = number
            results[own[0]] = replace(result, kept=b"")
        sent = self._gather(number, results)
        given, head, settled = self._aggregate(number, sent)
        state, measures = self._next_state(number, results, given), self._measures(owners, results, given)
        seconds = time.perf_counter() - started
        rows: dict[str, Sequence[Sequence[object]]] = {
            "clients.csv": client_rows(self._plan, number, measures),
            "rounds.csv": [round_row(self._plan, number, measures, seconds, head.hex())],
            "payouts.csv": settled,
        }
        sizes = self._folder.append(rows)
        self._state = replace(
            state,
            head=head.hex(),
            kept=kept,
            sizes=sizes,
            seconds=self._state.seconds + seconds,
            device=next(iter(results.values())).device,
        )
        self._folder.save(self._state)
        received, post = (mean_of(measures, what) for what in ("received", "post"))
        return RoundRecord(number, received or 0.0, post or 0.0, seconds)

    @property
    def _is_centralised(self) -> bool:
        return self._plan.entry.name == CENTRALISED

    @property
    def _similarity(self) -> str:
        """What the ledger compares clients by."""
        return getattr(self._method, "similarity", choice_name(Similarity.PROTOTYPES.name))

    def _clients(self, number: int) -> tuple[int, ...]:
        sample = 0 if self._is_centralised else self._experiment.sample
        return self._population.sampled(number, sample)

    def _jobs(self, number: int, owners: Sequence[tuple[int, ...]]) -> "Iterator[ClientJob]":
        from bflnode.fl.client_round import NO_TENSORS, ClientJob

        config = training_config(self._experiment.training)
        is_last = number == self._experiment.rounds
        for own in owners:
            kept = self._state.kept.get(own[0])
            yield ClientJob(
                method=self._method,
                architecture_id=self._architecture.id,
                round=number,
                owners=own,
                measured=own,
                config=replace(config, seed=drawn_seed("training", self._plan.seed, number, own[0])),
                received=self._folder.model(self._received_id(own[0])),
                kept=NO_TENSORS if kept is None else self._folder.kept(own[0], kept),
                measures_global=is_last or number % self._experiment.evaluate_every == 0,
            )

    def _gather(self, number: int, results: "Mapping[int, ClientResult]") -> "dict[int, Sent]":
        """What the aggregator has: of hostile clients what they say they have trained."""
        from bflnode.fl.client_round import read_tensors
        from bflnode.fl.methods.method import Sent

        hostile, attack = self._population.hostile, self._population.options.attack
        tensors = {client: read_tensors(result.sent) for client, result in results.items()}
        honest = [tensors[client] for client in results if client not in hostile]
        received = {client: self._tensors(self._received_id(client)) for client in results}
        if attack is not None and not self._is_centralised:
            attackers = sorted(hostile & tensors.keys())
            for client in attackers:
                seed = drawn_seed("attack", self._plan.seed, number, client)
                own, given = tensors[client], received[client]
                tensors[client] = dict(attack.forged(own, given, honest, seed, hostile=len(attackers)))
        return {
            client: Sent(
                client=client,
                samples=result.samples,
                histogram=result.histogram,
                received=received[client],
                tensors=tensors[client],
            )
            for client, result in results.items()
        }

    def _aggregate(self, number: int, sent: "dict[int, Sent]") -> "tuple[_Given, Hash, list[Sequence[object]]]":
        """What clients receive next, the head after it, and payouts where there is a ledger."""
        if self.chain is not None:
            return self._aggregate_on_chain(self.chain, number, sent)
        seed = tagged_hash("experiment-probe", *self._place(number))
        given = self._method.aggregate(self._gathered(number, tuple(sent.values()), seed))
        received = self._put_all(given.received)
        newcomers = self._put(given.newcomers)
        ids = {client: received[index] for index, client in enumerate(sent)}
        parts = [bytes.fromhex(self._state.head), number.to_bytes(8, "big"), bytes.fromhex(newcomers)]
        head = tagged_hash("experiment-round", *parts, *(bytes.fromhex(model) for model in ids.values()))
        labels = {} if given.labels is None else dict(zip(sent, given.labels, strict=True))
        return _Given(ids, newcomers, labels), head, []

    def _aggregate_on_chain(
        self, chain: VirtualChain, number: int, sent: "dict[int, Sent]"
    ) -> "tuple[_Given, Hash, list[Sequence[object]]]":
        from bflnode.fl.client_round import write_tensors
        from bflnode.fl.methods.prior_rows import correlations

        models = {client: write_tensors(entry.tensors) for client, entry in sent.items()}
        ids = {client: (model_id(model), len(model)) for client, model in models.items()}

        def aggregate(offer: Offer) -> Outcome:
            included = tuple(sent[client] for client in offer.clients)
            gathered = self._gathered(number, included, offer.probe_seed)
            matrix = correlations(gathered, self._similarity)
            given = self._method.aggregate(replace(gathered, matrix=matrix))
            labels = gathered.clustered(matrix, chain.clusters) if given.labels is None else given.labels
            received = self._put_all(given.received)
            outputs = {label: received[index] for index, label in enumerate(labels)}
            return Outcome(
                triangle_from_matrix(matrix.astype("int64")),
                tuple(BlobId(bytes.fromhex(outputs[label])) for label in sorted(outputs)),
            )

        later = self._clients(number + 1) if number < self._experiment.rounds else ()
        settled = chain.play_round(ids, later, aggregate)
        self._folder.put_blocks(number, chain.take_blocks())
        assert settled.aggregation is not None, "a round that isn't void has one"
        labels = {chain.number_of(client.account): client.cluster for client in settled.clients if client.cluster >= 0}
        newcomers = settled.aggregation.outputs[largest_cluster(settled.aggregation.labels)].hex()
        received = {client: chain.base(client).hex() for client in sent}
        return _Given(received, newcomers, labels), chain.head, payout_rows(self._plan, settled, chain.number_of)

    def _gathered(self, number: int, sent: "tuple[Sent, ...]", probe_seed: bytes) -> "Gathered":
        from bflnode.fl.methods.method import Gathered

        probe_set = self._population.held.probe
        probe = choose_probe(probe_seed, probe_set.labels, self._experiment.probe.psi)
        robust = self._experiment.robust
        return Gathered(
            round=number,
            seed=drawn_seed("aggregation", self._plan.seed, number),
            architecture=self._architecture,
            clients=self._experiment.clients,
            sent=sent,
            probe=probe_set.take(probe.indices),
            cluster=cluster_exactly,
            combine=RobustRule(name=robust.name, hostile=robust.hostile, clip=robust.clip),
        )

    def _next_state(self, number: int, results: "Mapping[int, ClientResult]", given: "_Given") -> RunState:
        now = {client: self._received_id(client) for client in results}
        return RunState(
            round=number,
            head=self._state.head,
            newcomers=given.newcomers,
            received=given.received,
            given={**self._state.given, **now},
        )

    def _measures(
        self, owners: Sequence[tuple[int, ...]], results: "Mapping[int, ClientResult]", given: "_Given"
    ) -> list[ClientMeasures]:
        from bflnode.fl.client_round import tensor_bytes

        measures = []
        for own in owners:
            result = results[own[0]]
            received = self._received_id(own[0])
            is_new = self._state.given.get(own[0]) != received and not self._is_centralised
            down = tensor_bytes(self._folder.model(received)) if is_new else 0
            for place, client in enumerate(own):
                measures.append(
                    ClientMeasures(
                        client=client,
                        is_hostile=client in self._population.hostile,
                        samples=len(self._population.assignments[client].train),
                        cluster=given.labels.get(client),
                        received=result.received_accuracies[place],
                        post=result.post_accuracies[place],
                        general=result.global_accuracy,
                        loss=result.loss,
                        bytes_up=0 if self._is_centralised else tensor_bytes(result.sent),
                        bytes_down=down,
                        seconds=result.seconds / len(own),
                    )
                )
        return measures

    def _first_state(self) -> RunState:
        initial = self._architecture.initial_weights(self._plan.seed)
        start = self._method.start(self._architecture, parse(initial, self._architecture.table), self._plan.seed)
        first = self._put(start)
        head = tagged_hash("experiment", *self._place(0), bytes.fromhex(first))
        return RunState(round=0, head=head.hex(), newcomers=first)

    def _make_chain(self) -> VirtualChain:
        experiment, architecture = self._experiment, self._architecture
        initial = architecture.initial_weights(self._plan.seed)
        probe = self._population.held.probe
        clusters = getattr(self._method, "clusters", 1)
        options = ChainOptions(
            name=experiment.name,
            seed=self._plan.seed,
            clients=experiment.clients,
            per_round=experiment.clients_per_round,
            rounds=experiment.rounds,
            clusters=clusters,
            psi=experiment.probe.psi,
            reward=experiment.chain.reward * TOKEN,
            rho=experiment.chain.rho,
            architecture=architecture.id,
            classes=architecture.classes,
            model_bytes=len(initial),
            initial_model=model_id(initial),
            probe_set=model_id(serialize_samples(probe.inputs, probe.labels)),
            epochs=experiment.training.epochs,
            batch_size=experiment.training.batch_size,
            learning_rate_micro=max(1, round(experiment.training.learning_rate * 10**6)),
            rule=Rule[choice_value(self._plan.entry.name)],
            combination=Combination[choice_value(experiment.robust.name)],
            hostile_permille=permille(experiment.robust.hostile),
            clip_permille=permille(experiment.robust.clip),
            step_permille=permille(getattr(self._method, "server_step", 1.0)),
            momentum_permille=permille(getattr(self._method, "momentum", 0.0)),
            shared_permille=permille(getattr(self._method, "shared", 1.0)),
            similarity=Similarity[choice_value(self._similarity)],
        )
        return VirtualChain(options, self._registration)

    def _registration(self, client: int) -> Registration:
        histogram = self._population.histogram(client)
        return Registration(sum(histogram), histogram)

    def _resume_chain(self, chain: VirtualChain) -> None:
        """Open the chain, or execute its blocks again, which checks all of them."""
        if not self._state.round:
            chain.open(self._clients(1))
            return
        chain.replay(self._folder.blocks(self._state.round), self._folder.remedy)
        if chain.head.hex() != self._state.head:
            raise ExperimentError(f"the run's blocks end in another head than its state: {self._folder.remedy}")

    def _received_id(self, client: int) -> str:
        return self._state.received.get(client, self._state.newcomers)

    def _tensors(self, identifier: str) -> Tensors:
        """What has this id, parsed once a round: equal models are one object."""
        from bflnode.fl.client_round import read_tensors

        if identifier not in self._parsed:
            live = {self._state.newcomers, *self._state.received.values()}
            self._parsed = {key: tensors for key, tensors in self._parsed.items() if key in live}
            self._parsed[identifier] = read_tensors(self._folder.model(identifier))
        return self._parsed[identifier]

    def _put_all(self, given: Sequence[Tensors]) -> list[str]:
        ids: dict[int, str] = {}
        for tensors in given:
            if id(tensors) not in ids:
                ids[id(tensors)] = self._put(tensors)
        return [ids[id(tensors)] for tensors in given]

    def _put(self, tensors: Tensors) -> str:
        from bflnode.fl.client_round import write_tensors

        content = write_tensors(tensors)
        identifier = model_id(content).hex()
        self._folder.put_model(identifier, content)
        return identifier

    def _has_something(self, kept: bytes) -> bool:
        from bflnode.fl.client_round import tensor_bytes

        return tensor_bytes(kept) > 0

    def _place(self, number: int) -> tuple[bytes, bytes]:
        return self._plan.seed.to_bytes(8, "big"), number.to_bytes(8, "big")


@dataclass(frozen=True, slots=True)
class _Given:
    """What clients of a round receive next, what everybody else does, and clusters, where there are some."""

    received: dict[int, str]
    newcomers: str
    labels: dict[int, int]


def training_config(training: Training) -> "TrainingConfig":
    """How clients train, but for the seed, which is another one for each client and round."""
    from bflnode.fl.training import TrainingConfig

    return TrainingConfig(
        learning_rate=training.learning_rate,
        batch_size=training.batch_size,
        epochs=training.epochs,
        optimiser=training.optimiser,
        device=training.device,
    )


def architecture_of(experiment: Experiment, population: Population) -> Architecture:
    """The model of an experiment.

    Raises:
        UnknownArchitecture: no such model.
        DatasetError: it doesn't fit the data.
    """
    kind, rest = experiment.data.kind, population.held.rest
    return fitting_architecture(experiment.architecture or default_architecture(kind, rest), kind, rest)


def drawn_seed(what: str, run_seed: int, number: int, client: int = 0) -> int:
    """A seed for something in a learning round: the same for all methods, so that they differ in nothing else."""
    parts = (run_seed, number, client)
    drawn = tagged_hash(f"experiment-{what}", *(part.to_bytes(8, "big") for part in parts))
    return int.from_bytes(drawn[:4], "big")


def model_id(content: bytes) -> BlobId:
    """The id that the network gives to a file."""
    hasher = BlobHasher()
    hasher.update(content)
    return hasher.manifest().id


def cluster_exactly(matrix: Any, clusters: int) -> tuple[int, ...]:
    """The chain's clustering of correlations as `fl.prototypes` has them."""
    return cluster(matrix.astype("int64"), clusters)
