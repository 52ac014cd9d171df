"""Experiments from file to results: the same wherever they run, however they are stopped, and as in the network."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from bflnode.consensus.task import SettledRound
from bflnode.consensus.types import BlobId
from bflnode.fl.architectures import architecture
from bflnode.fl.interpolation import INTERPOLATION, MEMORY, share_of_training
from bflnode.fl.methods import registry
from bflnode.fl.methods.method import FedAvg, Local, Update
from bflnode.fl.methods.registry import make_method
from bflnode.fl.population import Population, load_data, make_population
from bflnode.fl.prototypes import serialize_samples
from bflnode.fl.samples import save_shard
from bflnode.node.experiments.file import ExperimentError, parse_experiment
from bflnode.node.experiments.pool import SamePool
from bflnode.node.experiments.round import Run, drawn_seed, model_id
from bflnode.node.experiments.run import Progress, Workers, population_options, run_experiment
from bflnode.node.experiments.store import ExperimentFolder, describe, make_folder, open_folder
from bflnode.node.workers.worker_jobs import run_job
from bflnode.node.workers.worker_protocol import (
    AggregateJob,
    LookAhead,
    MatrixJob,
    MatrixResult,
    Memory,
    PublicProbe,
    RuleSettings,
    TrainJob,
    TrainResult,
    UpdateMatrixJob,
)
from bflnode.storage.home_lock import HomeLock
from tests.e2e.network import eventually

FILE = """
name = "tiny"
rounds = 3
clients = 4
[data]
samples = 200
[training]
epochs = 1
device = "cpu"
"""
PAA = '[[methods]]\nname = "paa"\nclusters = 2\n'
METHODS = f'{PAA}[[methods]]\nname = "fedper"\n'
DIVERGING = '[[methods]]\nname = "fedprox"\nmu = 1e38\n'
FEDAVG = '[[methods]]\nname = "fedavg"\n'

Folder = Callable[..., ExperimentFolder]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    def make(text: str = FILE + METHODS, name: str = "results") -> ExperimentFolder:
        file = tmp_path / "file.toml"
        file.write_text(text)
        return make_folder(tmp_path / name, file, parse_experiment(text.encode(), file), text.encode())

    return make


def run(folder: ExperimentFolder, workers: Workers = Workers()) -> list[str]:  # noqa: B008 - frozen
    run_experiment(folder, workers, lambda _: None)
    return heads(folder)


def heads(folder: ExperimentFolder) -> list[str]:
    return [entry["head"] for entry in describe(folder)["runs"]]


def rows(folder: ExperimentFolder, name: str) -> list[dict[str, str]]:
    """A table without what depends on the machine's mood."""
    with (folder.path / name).open(newline="") as file:
        found = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in found]


def test_processes_give_the_same_results_as_one(folder: Folder) -> None:
    alone, together = folder(name="alone"), folder(name="together")

    assert run(alone) == run(together, Workers(2))
    for table in ("clients.csv", "rounds.csv", "payouts.csv"):
        assert rows(alone, table) == rows(together, table)
    assert len(rows(alone, "clients.csv")) == 2 * 3 * 4
    assert len(rows(alone, "payouts.csv")) >= 3 * 4


def test_a_ray_cluster_gives_the_same_results(folder: Folder) -> None:
    pytest.importorskip("ray", reason="the extra `ray` isn't installed")
    text = (FILE + METHODS).replace("rounds = 3", "rounds = 2")
    here, there = folder(text, "here"), folder(text, "there")

    assert run(here) == run(there, Workers(2, "local"))
    for table in ("clients.csv", "rounds.csv", "payouts.csv"):
        assert rows(here, table) == rows(there, table)


def test_other_seeds_give_other_heads(folder: Folder) -> None:
    found = run(folder(f"seeds = [1, 2]\n{FILE}{FEDAVG}".replace("rounds = 3", "rounds = 1")))

    assert len(set(found)) == 2


def test_an_interrupted_experiment_goes_on_to_the_same_end(folder: Folder) -> None:
    whole, stopped = folder(name="whole"), folder(name="stopped")
    run(whole)

    def stop(progress: Progress) -> None:
        if progress.round == 2:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_experiment(open_folder(stopped.path), Workers(), stop)
    (stopped.path / "runs" / "fedper-alpha0.5-seed1" / "clients.csv").open("a").write("of a round that didn't end\n")
    assert [entry["round"] for entry in describe(stopped)["runs"]] == [3, 2]

    assert run(open_folder(stopped.path)) == heads(whole)
    for table in ("clients.csv", "rounds.csv", "payouts.csv"):
        assert rows(stopped, table) == rows(whole, table)


def test_a_killed_experiment_loses_at_most_a_round_and_leaves_no_process(folder: Folder, tmp_path: Path) -> None:
    whole = folder(name="whole")
    run(whole)
    command = [sys.executable, "-m", "bflnode.node.cli", "experiment"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = tmp_path / "killed"
    arguments = [*command, "run", str(tmp_path / "file.toml"), "-o", str(killed), "--jobs", "2"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(2)]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert "round 2 of 3" in said[1], said
    assert len(children) == 2
    assert describe(open_folder(killed))["runs"][0]["round"] >= 2
    eventually("its processes have ended", lambda: not any(_is_alive(pid) for pid in children), 20)

    assert run(open_folder(killed)) == heads(whole)


def _is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_damaged_checkpoint_is_refused_in_words(folder: Folder) -> None:
    made = folder((FILE + FEDAVG).replace("rounds = 3", "rounds = 1"))
    run(made)
    (made.path / "runs" / "fedavg-alpha0.5-seed1" / "state.json").write_text('{"round": 1')

    with pytest.raises(ExperimentError, match=r"state.json is damaged .* to begin this run anew"):
        run(open_folder(made.path))


def test_tensors_that_the_disk_changed_are_refused_in_words(folder: Folder) -> None:
    made = folder(FILE + '[[methods]]\nname = "fedper"\n')
    with pytest.raises(KeyboardInterrupt):
        run_experiment(made, Workers(), _interrupt)
    kept = made.path / "runs" / "fedper-alpha0.5-seed1" / "kept" / "2-1.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1])

    for workers in (Workers(), Workers(2)):
        with pytest.raises(ExperimentError, match=r"client 2 can't read what it received or kept for round 2"):
            run(open_folder(made.path), workers)


def _interrupt(_: Progress) -> None:
    raise KeyboardInterrupt


def test_what_a_power_failure_left_of_a_round_that_didnt_end_is_written_anew(folder: Folder) -> None:
    whole, stopped = folder(name="whole"), folder(name="stopped")
    wanted = run(whole)

    def stop(progress: Progress) -> None:
        if progress.round == 2:  # the next one is the last, whose files are left
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(stopped, Workers(), stop)
    files = [
        path.relative_to(whole.path) for part in ("models", "kept") for path in whole.path.glob(f"runs/*/{part}/*")
    ]
    assert len(files) >= 6
    for file in files:
        (stopped.path / file).parent.mkdir(parents=True, exist_ok=True)
        (stopped.path / file).write_bytes(b"")
    assert run(stopped) == wanted
    assert [(stopped.path / file).read_bytes() for file in files] == [
        (whole.path / file).read_bytes() for file in files
    ]


def test_two_processes_dont_run_one_experiment(folder: Folder) -> None:
    made = folder()

    with HomeLock(made.path), pytest.raises(ExperimentError, match=rf"is being run by process {os.getpid()}: wait"):
        run(made)
    assert describe(made)["state"] == "stopped"


# What the network does


@pytest.mark.parametrize(
    ("method", "robust", "rule"),
    [
        ('name = "paa"', "mean", RuleSettings()),
        ('name = "paa"', "median", RuleSettings(combination="median")),
        ('name = "prior-rows"', "mean", RuleSettings(name="prior-rows", step_permille=1250, shared_permille=300)),
        (
            'name = "prior-rows"\nsimilarity = "prototypes"\nshared = 0.5',
            "mean",
            RuleSettings(name="prior-rows", step_permille=1250, shared_permille=500),
        ),
        (
            'name = "prior-rows"\nsimilarity = "prototypes"\nshared = 1.0',
            "mean",
            RuleSettings(name="prior-rows", step_permille=1250),
        ),
    ],
    ids=["paa", "paa of median", "prior-rows", "prior-rows by prototypes", "prior-rows with one model"],
)
def test_a_rule_gives_the_labels_outputs_and_models_that_the_networks_worker_gives(
    folder: Folder, tmp_path: Path, method: str, robust: str, rule: RuleSettings
) -> None:
    made = folder(f'{FILE}[[methods]]\n{method}\nclusters = 2\n[robust]\nname = "{robust}"\n')
    run(made)
    population = make_population(load_data("digits", None), population_options(made.experiment, 0.5, 1))
    worker = _Worker(tmp_path, population, rule)
    measured = rows(made, "clients.csv")

    for number, settled in enumerate(_settled(made, population), start=1):
        assert settled.aggregation is not None
        accuracies = [worker.train(number, client, settled.clients[client].base) for client in range(4)]
        revealed = [client.revealed.model for client in settled.clients if client.revealed is not None]
        assert revealed == worker.sent
        for accuracy, row in zip(accuracies, measured[: len(accuracies)], strict=True):
            assert accuracy == pytest.approx((float(row["received"]), float(row["post"])), abs=1e-5)
        measured = measured[len(accuracies) :]
        is_by_updates = "similarity" not in method and "paa" not in method
        triangle = worker.triangle(None if is_by_updates else settled.probe_seed)
        assert settled.aggregation.triangle == triangle
        labels = settled.aggregation.labels
        assert set(labels) == {0, 1}
        classes = tuple(client.classes for client in settled.clients)
        assert settled.aggregation.outputs == worker.aggregate(labels, classes, triangle if is_by_updates else None)
    assert measured == []


class _Worker:
    """Files of a run's clients, and the jobs that a node's trainer would do with them.

    Attributes:
        sent: the model that each client has trained in the last round.
    """

    def __init__(self, directory: Path, population: Population, rule: RuleSettings) -> None:
        self.sent: list[BlobId] = [BlobId(bytes(32))] * 4
        self._chosen = architecture("mlp/1x8x8/10")
        self._directory, self._population, self._rule = directory, population, rule
        self._before: dict[int, dict[str, Any]] = {}
        self._bases: list[str] = [""] * 4
        self._put(self._chosen.initial_weights(1))
        probe = population.held.probe
        self._probe_set = self._path(self._put(serialize_samples(probe.inputs, probe.labels)))

    def train(self, number: int, client: int, base: BlobId) -> tuple[float, float]:
        """Train from a base, with momentum and memory from the second round on; the accuracies before and after."""
        shard, model = self._directory / f"shard{client}", self._directory / "trained"
        save_shard(shard, self._population.shard((client,)))
        self._bases[client] = self._path(base)
        is_own = self._rule.name == "prior-rows"
        job = TrainJob(
            self._chosen.id,
            self._bases[client],
            str(shard),
            str(model),
            epochs=1,
            batch_size=64,
            learning_rate=0.001,
            seed=drawn_seed("training", 1, number, client),
            device="cpu",
            has_prior=is_own,
            share=share_of_training(INTERPOLATION, number) if is_own else 1.0,
            **self._before.get(client, {}),
        )
        result = run_job(job, lambda *_: None, 1)
        assert isinstance(result, TrainResult)
        self.sent[client] = self._put(model.read_bytes())
        if is_own:
            self._before[client] = {
                "ahead": LookAhead(self._bases[client], 0.7),
                "memory": Memory(self._path(self.sent[client]), MEMORY),
            }
        return result.received_accuracy, result.post_accuracy

    def triangle(self, probe_seed: bytes | None) -> bytes:
        """On a probe, or without a seed by updates."""
        paths = tuple(map(self._path, self.sent))
        by_updates = UpdateMatrixJob(self._chosen.id, paths, tuple(self._bases))
        on_probe = MatrixJob(self._chosen.id, paths, PublicProbe(self._probe_set, probe_seed or b"", 32))
        found = run_job(by_updates if probe_seed is None else on_probe, lambda *_: None, 1)
        assert isinstance(found, MatrixResult)
        return found.triangle

    def aggregate(
        self, labels: tuple[int, ...], classes: tuple[bytes, ...], triangle: bytes | None
    ) -> tuple[BlobId, ...]:
        outputs = [self._directory / f"output{label}" for label in sorted(set(labels))]
        job = AggregateJob(
            self._chosen.id,
            tuple(map(self._path, self.sent)),
            (1,) * 4,
            labels,
            tuple(map(str, outputs)),
            rule=self._rule,
            base_paths=tuple(self._bases),
            classes=classes,
            triangle=triangle,
        )
        run_job(job, lambda *_: None, 1)
        return tuple(self._put(path.read_bytes()) for path in outputs)

    def _put(self, content: bytes) -> BlobId:
        blob = model_id(content)
        Path(self._path(blob)).write_bytes(content)
        return blob

    def _path(self, blob: BlobId) -> str:
        return str(self._directory / blob.hex())


def _settled(folder: ExperimentFolder, population: Population) -> list[SettledRound]:
    """The learning rounds on the ledger that a run has left on disk."""
    plan = folder.plans[0]
    method = make_method(plan.entry.name, plan.entry.settings)
    chain = Run(folder, plan, method, population, SamePool(population)).chain
    assert chain is not None
    found = [chain.settled(number) for number in (1, 2, 3)]
    return [settled for settled in found if settled is not None]


@pytest.mark.parametrize("sample", [0, 3])
def test_what_is_learned_is_the_same_with_and_without_the_ledger(folder: Folder, sample: int) -> None:
    text = FILE.replace("samples = 200", "samples = 300").replace("clients = 4", f"clients = 6\nsample = {sample}")
    text += '[[methods]]\nname = "prior-rows"\nclusters = 2\n'
    text += '[[methods]]\nname = "prior-rows"\nlabel = "one-model"\nclusters = 2\nshared = 1.0\n'
    text += '[[methods]]\nname = "paa"\nclusters = 1\n[robust]\nname = "trimmed-mean"\nhostile = 0.2\n'
    on_it, without = folder(text, "on"), folder(f'{text}[chain]\nuse = "never"\n', "without")
    assert set(run(on_it)).isdisjoint(run(without))

    learned = [
        [
            {key: row[key] for key in ("method", "round", "client", "received", "post", "global", "loss")}
            for row in table
        ]
        for table in (rows(on_it, "clients.csv"), rows(without, "clients.csv"))
    ]
    assert learned[0] == learned[1]
    assert {row["method"] for row in rows(on_it, "payouts.csv")} == {"prior-rows", "one-model", "paa"}
    assert rows(without, "payouts.csv") == []
    kept = [{path.name for path in made.path.glob("runs/prior-rows*/models/*")} for made in (on_it, without)]
    assert kept[0] == kept[1] != set()


# What is measured


def test_only_sampled_clients_take_part_and_others_start_from_what_newcomers_get(folder: Folder) -> None:
    text = FILE.replace("clients = 4", "clients = 8\nsample = 3").replace("samples = 200", "samples = 400")
    made = folder(text + PAA + FEDAVG)
    run(made)

    population = make_population(load_data("digits", None), population_options(made.experiment, 0.5, 1))
    sampled = [set(population.sampled(number, 3)) for number in (1, 2, 3)]
    assert len(set.union(*sampled)) > 3
    for method in ("paa", "fedavg"):
        found = [row for row in rows(made, "clients.csv") if row["method"] == method]
        assert [{int(row["client"]) for row in found if row["round"] == str(n)} for n in (1, 2, 3)] == sampled


def test_training_in_one_place_is_measured_on_every_client_and_sends_nothing(folder: Folder) -> None:
    made = folder(FILE.replace("rounds = 3", "rounds = 2") + '[[methods]]\nname = "centralised"\n')
    run(made)

    found = rows(made, "clients.csv")
    assert [row["client"] for row in found] == ["0", "1", "2", "3"] * 2
    assert {(row["bytes_up"], row["bytes_down"]) for row in found} == {("0", "0")}
    assert [row["received"] for row in found[4:]] == [row["post"] for row in found[:4]]


def test_an_interpolation_is_where_a_client_predicts_after_training_and_changes_nothing_else(folder: Folder) -> None:
    made = folder(
        FILE
        + "".join(f'[[methods]]\nname = "fedavg"\nlabel = "{at}"\ninterpolation = {at}\n' for at in (0.0, 0.5, 1.0))
    )
    run(made)

    found = {at: [row for row in rows(made, "clients.csv") if row["method"] == at] for at in ("0.0", "0.5", "1.0")}
    assert len({tuple(row["post"] for row in own[4:]) for own in found.values()}) == 3
    assert len({tuple(row["post"] for row in own[:4]) for own in found.values()}) == 1, "round 1 starts from nothing"
    assert len({tuple((row["received"], row["loss"]) for row in own) for own in found.values()}) == 1


def test_means_leave_hostile_clients_out_and_the_ledger_excludes_copies(folder: Folder) -> None:
    attack = '[attack]\nname = "lazy"\nshare = 0.25\n'
    made = folder(FILE.replace("rounds = 3", "rounds = 1") + PAA + attack)
    run(made)

    clients = rows(made, "clients.csv")
    honest = [float(row["post"]) for row in clients if row["hostile"] == "0"]
    assert [row["hostile"] for row in clients] == ["0", "0", "0", "1"]
    assert float(rows(made, "rounds.csv")[0]["post"]) == pytest.approx(sum(honest) / 3, abs=1e-5)
    assert [row["exclusion"] for row in rows(made, "payouts.csv")][:4] == ["none", "none", "none", "copy"]
    assert clients[3]["cluster"] == ""


def test_what_a_client_has_already_is_not_sent_again(folder: Folder) -> None:
    made = folder(FILE + '[[methods]]\nname = "local"\n')
    run(made)

    size = str(architecture("mlp/1x8x8/10").size_bytes)
    found = rows(made, "clients.csv")
    assert [row["bytes_down"] for row in found] == [size] * 4 + ["0"] * 8
    assert {row["bytes_up"] for row in found} == {"0"}


class Broken(FedAvg):
    """A user's method with a mistake."""

    name = "broken"

    def train(self, local: Local) -> Update:
        raise KeyError(local.round)


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_method_of_another_package_raises_is_named_as_its(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    entry = EntryPoint("broken", "theirs:Broken", registry.ENTRY_POINTS)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Broken)
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([entry]))
    made = folder(f'{FILE}[[methods]]\nname = "broken"\n')

    with pytest.raises(ExperimentError, match=rf"seed1: method broken of {__name__} failed \(KeyError: 1\): correct"):
        run_experiment(made, Workers(jobs), lambda progress: None)


def test_the_global_accuracy_is_measured_every_so_many_rounds_and_at_the_end(folder: Folder) -> None:
    made = folder(f"evaluate_every = 2\n{FILE}{FEDAVG}")
    run(made)

    assert [row["global"] != "" for row in rows(made, "rounds.csv")] == [False, True, True]


def test_what_a_method_refuses_costs_no_run_before_it(folder: Folder) -> None:
    made = folder(f'{FILE}{FEDAVG}[[methods]]\nname = "fedrep"\nhead_epochs = 1\n')

    with pytest.raises(ExperimentError, match="fedrep: head_epochs is 1 of 1 epochs: leave at least one for the rest"):
        run(made)
    assert [entry["round"] for entry in describe(made)["runs"]] == [0, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[methods]]\nname = "fedsgd"\n', "fedsgd: there is no method 'fedsgd': use one of apfl,"),
        (
            '[[methods]]\nname = "fedprox"\nmy = 1\n',
            "fedprox: method fedprox has no setting 'my': it has interpolation, mu",
        ),
        (f"{DIVERGING}[training]\nlearning_rate = 1000.0\n", "fedprox-alpha0.5-seed1: training diverged"),
        (f'architecture = "cnn/1x28x28/10"\n{FEDAVG}', "doesn't fit the data: digits has 1x8x8 and 10 classes"),
        (f'{FEDAVG}[data]\nkind = "imaginary"\n', "tiny: there is no kind of data 'imaginary': use one of digits,"),
        (f"clients = 900\n{FEDAVG}", "alpha 0.5, seed 1: 1168 training samples are too few for 900 clients"),
    ],
)
def test_what_cant_run_is_refused_with_its_name(folder: Folder, text: str, words: str) -> None:
    made = folder(f'name = "tiny"\nrounds = 1\n{"" if "clients" in text else "clients = 4"}\n{text}')

    with pytest.raises(ExperimentError) as caught:
        run(made)
    assert words in str(caught.value)
