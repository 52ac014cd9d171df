"""Trainer and worker with real processes, real training and real signals."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio

from bflnode.fl.aggregation import mean
from bflnode.fl.architectures import architecture
from bflnode.fl.datasets import load_digits
from bflnode.fl.prototypes import matrix_of_triangle, serialize_samples
from bflnode.fl.samples import Shard, save_shard
from bflnode.fl.training import trainable
from bflnode.fl.weights import parse, serialize
from bflnode.node.workers import trainer as trainer_module
from bflnode.node.workers.trainer import JobError, Trainer, TrainerError, WorkerProcess, open_trainer
from bflnode.node.workers.worker_protocol import (
    MAX_PREDICTIONS,
    AggregateJob,
    AggregateResult,
    EvaluateJob,
    InitialModelJob,
    InitialModelResult,
    LookAhead,
    MatrixJob,
    OwnProbeJob,
    PredictJob,
    ProbeSamples,
    PublicProbe,
    RefusalReason,
    RuleSettings,
    TrainJob,
    UpdateMatrixJob,
)
from bflnode.node.workers.worker_start import SpawnedWorker, worker_starter

ARCHITECTURE = "mlp/1x8x8/10"
CHOSEN = architecture(ARCHITECTURE)
MANY_EPOCHS = 100_000
"""Training that takes hours unless somebody ends it."""


@pytest.fixture(scope="module")
def digits() -> Shard:
    return load_digits()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, digits: Shard) -> Path:
    """A directory with a shard, a probe set and three models."""
    directory = tmp_path_factory.mktemp("learning")
    save_shard(directory / "shard.npz", digits)
    (directory / "probe-set").write_bytes(serialize_samples(digits.test.inputs, digits.test.labels))
    for seed in range(3):
        (directory / f"model-{seed}").write_bytes(CHOSEN.initial_weights(seed))
    return directory


@pytest.fixture
async def trainer(tmp_path: Path, forking: Path) -> AsyncIterator[Trainer]:
    """A trainer whose workers are forked with torch already imported, which saves seconds a test."""
    async with open_trainer(tmp_path / "run", worker_starter()) as opened:
        yield opened


@pytest.fixture
async def spawning_trainer(tmp_path: Path) -> AsyncIterator[Trainer]:
    """A trainer whose workers are programs of their own."""
    async with open_trainer(tmp_path / "run", worker_starter()) as opened:
        yield opened


def train_job(files: Path, output: Path, epochs: int = 2) -> TrainJob:
    return TrainJob(ARCHITECTURE, str(files / "model-0"), str(files / "shard.npz"), str(output), epochs=epochs)


def has_ended(process_id: int) -> bool:
    """Whether a process is gone, or only waits for its parent to take notice."""
    stat = Path(f"/proc/{process_id}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


async def wait_for_end(process_id: int) -> None:
    """Return when a process that isn't our child has ended; at once when it is gone already."""
    try:
        descriptor = os.pidfd_open(process_id)
    except ProcessLookupError:
        return
    try:
        with trio.fail_after(30):
            await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


class TrainingInProgress:
    """A training that never ends by itself, run in the background; `pid` is known once it reported progress."""

    def __init__(self, trainer: Trainer, job: TrainJob) -> None:
        self.trainer, self.job = trainer, job
        self.progressed = trio.Event()
        self.scope = trio.CancelScope()
        self.error: TrainerError | None = None

    async def run(self) -> None:
        with self.scope:
            try:
                await self.trainer.run(self.job, lambda _fraction, _note: self.progressed.set())
            except TrainerError as error:
                self.error = error

    async def process_id(self) -> int:
        with trio.fail_after(60):
            await self.progressed.wait()
        process_id = self.trainer.status().process_id
        assert process_id is not None
        return process_id


async def test_training_improves_the_model_and_reports_both_accuracies(
    spawning_trainer: Trainer, files: Path, tmp_path: Path
) -> None:
    result = await spawning_trainer.run(train_job(files, tmp_path / "trained", epochs=5))
    measured = await spawning_trainer.run(
        EvaluateJob(ARCHITECTURE, str(tmp_path / "trained"), str(files / "shard.npz"))
    )

    assert result.samples == 1438
    assert result.received_accuracy < 0.3
    assert result.post_accuracy > 0.7
    assert measured.accuracy == result.post_accuracy
    assert (tmp_path / "trained").stat().st_size == CHOSEN.size_bytes


async def test_training_reports_its_progress(trainer: Trainer, files: Path, tmp_path: Path) -> None:
    seen: list[tuple[float, str]] = []
    await trainer.run(train_job(files, tmp_path / "trained", epochs=400), lambda *progress: seen.append(progress))

    fractions = [fraction for fraction, _ in seen]
    assert fractions
    assert fractions == sorted(fractions)
    assert all(0.0 < fraction <= 1.0 for fraction in fractions)
    assert seen[0][1].startswith("epoch ")


async def test_a_hostile_model_of_the_round_before_is_tamed_first(
    trainer: Trainer, files: Path, tmp_path: Path
) -> None:
    """Training starts from what it can of such a model, and so does the difference to it."""
    largest = {
        name: np.full_like(tensor, 3e38) for name, tensor in parse(CHOSEN.initial_weights(0), CHOSEN.table).items()
    }
    hostile, tamed = tmp_path / "hostile", tmp_path / "tamed"
    hostile.write_bytes(serialize(largest))
    tamed.write_bytes(trainable(CHOSEN, hostile.read_bytes()))
    trained = []
    for before in (hostile, tamed):
        await trainer.run(replace(train_job(files, tmp_path / "trained"), ahead=LookAhead(str(before), 0.7)))
        trained.append((tmp_path / "trained").read_bytes())

    assert trained[0] == trained[1]


async def test_aggregation_writes_the_defined_bytes_for_each_cluster(
    trainer: Trainer, files: Path, tmp_path: Path
) -> None:
    models = [parse((files / f"model-{seed}").read_bytes(), CHOSEN.table) for seed in range(3)]
    outputs = (tmp_path / "a", tmp_path / "b")
    result = await trainer.run(
        AggregateJob(
            ARCHITECTURE,
            input_paths=tuple(str(files / f"model-{seed}") for seed in range(3)),
            weights=(1, 2, 3),
            labels=(0, 1, 0),
            output_paths=tuple(map(str, outputs)),
        )
    )

    assert result == AggregateResult((CHOSEN.size_bytes, CHOSEN.size_bytes))
    assert outputs[0].read_bytes() == serialize(mean([models[0], models[2]], [1, 3]))
    assert outputs[1].read_bytes() == serialize(models[1])


async def test_equal_models_have_similarity_one(trainer: Trainer, files: Path) -> None:
    paths = tuple(str(files / name) for name in ("model-0", "model-1", "model-0"))
    probe = PublicProbe(str(files / "probe-set"), seed=b"beacon", psi=16)
    result = await trainer.run(MatrixJob(ARCHITECTURE, paths, probe))

    matrix = matrix_of_triangle(result.triangle, 3)
    assert matrix[0, 2] == 10_000
    assert matrix[0, 1] == matrix[2, 1] < 10_000


async def test_own_probe_can_be_used_for_the_matrix(trainer: Trainer, files: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    made = await trainer.run(OwnProbeJob(str(files / "shard.npz"), seed=b"secret", psi=8, output_path=str(probe)))
    result = await trainer.run(
        MatrixJob(ARCHITECTURE, (str(files / "model-0"), str(files / "model-1")), ProbeSamples(str(probe), psi=8))
    )

    assert made.size_bytes == probe.stat().st_size
    assert len(result.triangle) == 2


async def test_an_aggregators_probe_of_more_samples_than_the_task_says_is_bad_input(
    trainer: Trainer, files: Path, tmp_path: Path
) -> None:
    probe = tmp_path / "probe"
    await trainer.run(OwnProbeJob(str(files / "shard.npz"), seed=b"secret", psi=8, output_path=str(probe)))
    with pytest.raises(JobError, match="7 samples have") as refused:
        await trainer.run(MatrixJob(ARCHITECTURE, (str(files / "model-0"),), ProbeSamples(str(probe), psi=7)))
    assert refused.value.reason is RefusalReason.BAD_INPUT


async def test_initial_model_is_that_of_its_seed(trainer: Trainer, tmp_path: Path) -> None:
    result = await trainer.run(InitialModelJob(ARCHITECTURE, 7, str(tmp_path / "initial")))

    assert result == InitialModelResult(CHOSEN.size_bytes)
    assert (tmp_path / "initial").read_bytes() == CHOSEN.initial_weights(7)


async def test_prediction_gives_a_label_and_probabilities_for_each_sample(
    trainer: Trainer, files: Path, digits: Shard, tmp_path: Path
) -> None:
    np.savez(tmp_path / "inputs.npz", inputs=digits.test.inputs[:3])
    result = await trainer.run(PredictJob(ARCHITECTURE, str(files / "model-0"), str(tmp_path / "inputs.npz")))

    assert result.labels == tuple(int(np.argmax(row)) for row in result.probabilities)
    assert [len(row) for row in result.probabilities] == [10, 10, 10]
    assert [sum(row) for row in result.probabilities] == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("arrays", "cause"),
    [
        ({"images": np.zeros((1, 1, 8, 8))}, "no array 'inputs'"),
        ({"inputs": np.zeros((1, 8, 8))}, "of shape (1, 8, 8), give numbers of shape (samples, 1, 8, 8)"),
        ({"inputs": np.full((1, 1, 8, 8), "x")}, "inputs are <U1"),
        ({"inputs": np.full((1, 1, 8, 8), np.nan)}, "NaN"),
        ({"inputs": np.zeros((1, 1, 9, 8))}, "don't fit mlp/1x8x8/10"),
        ({"inputs": np.zeros((MAX_PREDICTIONS + 1, 1, 8, 8))}, "at most 4096"),
    ],
)
async def test_unusable_inputs_of_a_prediction_are_refused_with_the_cause(
    trainer: Trainer, files: Path, tmp_path: Path, arrays: dict[str, np.ndarray], cause: str
) -> None:
    np.savez(tmp_path / "inputs.npz", **arrays)
    with pytest.raises(JobError) as refused:
        await trainer.run(PredictJob(ARCHITECTURE, str(files / "model-0"), str(tmp_path / "inputs.npz")))

    assert refused.value.reason is RefusalReason.BAD_INPUT
    assert cause in refused.value.explanation


async def test_bad_inputs_are_refused_by_name_and_the_worker_lives_on(
    trainer: Trainer, files: Path, tmp_path: Path
) -> None:
    hostile = tmp_path / "hostile"
    hostile.write_bytes(b"\xff" * CHOSEN.size_bytes)
    empty = tmp_path / "empty"
    empty.touch()
    good = train_job(files, tmp_path / "trained")
    probe = PublicProbe(str(files / "probe-set"), seed=b"beacon", psi=16)
    single = AggregateJob(ARCHITECTURE, (good.base_path,), (1,), (0,), (good.output_path,))
    bad_jobs = {
        "no architecture 'unknown'": replace(good, architecture_id="unknown/1x8x8/10"),
        str(hostile): MatrixJob(ARCHITECTURE, (good.base_path, str(hostile)), probe),
        str(empty): AggregateJob(ARCHITECTURE, (good.base_path, str(empty)), (1, 1), (0, 0), (good.output_path,)),
        "/nowhere/shard.npz": replace(good, shard_path="/nowhere/shard.npz"),
        "/nowhere/model": replace(good, base_path="/nowhere/model"),
        "tpu": replace(good, device="tpu"),
        "learning rate": replace(good, learning_rate=-1.0),
        "one output a label": replace(single, labels=(5,)),
        "2 weights": replace(single, weights=(1, 1)),
        "weights go from 0": replace(single, weights=(0,)),
        "no rule 'fastest'": replace(single, rule=RuleSettings(name="fastest")),
        "1 models with 0 bases": replace(single, rule=RuleSettings(step_permille=2000)),
        str(hostile.name): replace(good, ahead=LookAhead(str(hostile), 0.7)),
        "2 models with 1 bases": UpdateMatrixJob(ARCHITECTURE, (good.base_path,) * 2, (good.base_path,)),
        "0 bitmaps": replace(single, rule=RuleSettings(name="prior-rows"), base_paths=(good.base_path,)),
    }
    await trainer.run(InitialModelJob(ARCHITECTURE, 0, str(tmp_path / "initial")))
    process_id = trainer.status().process_id

    for cause, job in bad_jobs.items():
        with pytest.raises(JobError) as refused:
            await trainer.run(job)
        assert refused.value.reason is RefusalReason.BAD_INPUT
        assert cause in refused.value.explanation
    assert trainer.status().process_id == process_id
    assert not (tmp_path / "trained").exists()


async def test_defect_in_a_job_is_told_apart_from_bad_input(trainer: Trainer, files: Path, tmp_path: Path) -> None:
    job = OwnProbeJob(str(files / "shard.npz"), seed="text", psi=4, output_path=str(tmp_path / "probe"))  # type: ignore[arg-type]  # the defect
    with pytest.raises(JobError) as refused:
        await trainer.run(job)

    assert refused.value.reason is RefusalReason.DEFECT
    assert "Traceback" in (tmp_path / "run" / "trainer.log").read_text()


async def test_worker_killed_in_training_fails_that_job_and_the_next_gets_another(
    spawning_trainer: Trainer, files: Path, tmp_path: Path
) -> None:
    async with trio.open_nursery() as nursery:
        training = TrainingInProgress(spawning_trainer, train_job(files, tmp_path / "trained", MANY_EPOCHS))
        nursery.start_soon(training.run)
        killed = await training.process_id()
        os.kill(killed, signal.SIGKILL)

    assert training.error is not None
    assert f"process {killed} ended during TrainJob (killed by signal 9" in str(training.error)
    assert "trainer.log" in str(training.error)
    assert "job 0: TrainJob" in str(training.error)
    assert not (tmp_path / "trained").exists()

    result = await spawning_trainer.run(train_job(files, tmp_path / "trained"))
    assert result.samples == 1438
    assert spawning_trainer.status().process_id != killed


async def test_cancelled_job_ends_the_process_and_the_next_gets_another(
    trainer: Trainer, files: Path, tmp_path: Path
) -> None:
    async with trio.open_nursery() as nursery:
        training = TrainingInProgress(trainer, train_job(files, tmp_path / "trained", MANY_EPOCHS))
        nursery.start_soon(training.run)
        process_id = await training.process_id()
        training.scope.cancel()

    assert trainer.status().process_id is None
    assert has_ended(process_id)
    assert not (tmp_path / "trained").exists()
    assert (await trainer.run(train_job(files, tmp_path / "trained"))).samples == 1438


async def test_worker_that_ended_while_idle_is_replaced_unnoticed(trainer: Trainer, tmp_path: Path) -> None:
    job = InitialModelJob(ARCHITECTURE, 0, str(tmp_path / "initial"))
    await trainer.run(job)
    killed = trainer.status().process_id
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    await wait_for_end(killed)

    assert await trainer.run(job) == InitialModelResult(CHOSEN.size_bytes)
    assert trainer.status().process_id != killed


async def test_jobs_run_in_the_order_in_which_they_were_asked_for(
    trainer: Trainer, files: Path, tmp_path: Path
) -> None:
    finished: list[int] = []

    async def make(number: int) -> None:
        await trainer.run(InitialModelJob(ARCHITECTURE, number, str(tmp_path / f"initial-{number}")))
        finished.append(number)

    async with trio.open_nursery() as nursery:
        training = TrainingInProgress(trainer, train_job(files, tmp_path / "trained", MANY_EPOCHS))
        nursery.start_soon(training.run)
        await training.process_id()
        for number in range(4):
            nursery.start_soon(make, number)
            await trio.testing.wait_all_tasks_blocked()
        status = trainer.status()
        training.scope.cancel()

    assert (status.job, status.waiting) == ("TrainJob", 4)
    assert 0.0 < status.fraction < 1.0
    assert finished == [0, 1, 2, 3]


async def test_no_process_is_started_before_the_first_job(trainer: Trainer) -> None:
    status = trainer.status()

    assert (status.job, status.process_id, status.waiting) == (None, None, 0)


async def test_worker_ends_with_its_trainer(files: Path, tmp_path: Path) -> None:
    async with open_trainer(tmp_path / "run", worker_starter()) as trainer:
        await trainer.run(InitialModelJob(ARCHITECTURE, 0, str(tmp_path / "initial")))
        process_id = trainer.status().process_id

    assert process_id is not None
    assert has_ended(process_id)
    assert not (tmp_path / "run" / "trainer.sock").exists()


NODE = """
import sys, trio
from pathlib import Path
from bflnode.node.workers.trainer import open_trainer
from bflnode.node.workers.worker_protocol import TrainJob
from bflnode.node.workers.worker_start import worker_starter

async def main(run_directory, *job):
    async with open_trainer(Path(run_directory), worker_starter()) as trainer:
        tell = lambda *_: print(trainer.status().process_id, "torch" in sys.modules, flush=True)
        await trainer.run(TrainJob(*job, epochs=100_000), tell)

trio.run(main, *sys.argv[1:])
"""


async def test_killed_node_leaves_no_worker_behind_and_never_imported_torch(files: Path, tmp_path: Path) -> None:
    job = (ARCHITECTURE, str(files / "model-0"), str(files / "shard.npz"), str(tmp_path / "trained"))
    command = [sys.executable, "-c", NODE, str(tmp_path / "run"), *job]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        assert select.select([node.stdout], [], [], 60)[0], "no progress within a minute"
        process_id, has_torch = node.stdout.readline().split()
        node.kill()

    await wait_for_end(int(process_id))
    assert has_torch == "False"


async def spawn(command: list[str], log_path: Path) -> WorkerProcess:
    with log_path.open("ab") as log:
        return SpawnedWorker(await trio.lowlevel.open_process(command, stdout=log, stderr=log))


async def test_worker_that_cannot_start_is_reported_with_its_log(tmp_path: Path) -> None:
    async def start(_socket_path: Path, log_path: Path) -> WorkerProcess:
        return await spawn([sys.executable, "-c", "raise SystemExit('this installation is broken')"], log_path)

    async with open_trainer(tmp_path / "run", start) as trainer:
        with pytest.raises(TrainerError, match=r"didn't start \(exit status 1\)[^$]*this installation is broken"):
            await trainer.run(InitialModelJob(ARCHITECTURE, 0, str(tmp_path / "initial")))


async def test_missing_program_is_reported(tmp_path: Path) -> None:
    async def start(_socket_path: Path, log_path: Path) -> WorkerProcess:
        return await spawn(["/nowhere/python"], log_path)

    async with open_trainer(tmp_path / "run", start) as trainer:
        with pytest.raises(TrainerError, match=r"couldn't be started: .*/nowhere/python"):
            await trainer.run(InitialModelJob(ARCHITECTURE, 0, str(tmp_path / "initial")))


async def test_run_directory_with_a_long_name_works(tmp_path: Path) -> None:
    async with open_trainer(tmp_path / ("long" * 30), worker_starter()) as trainer:
        result = await trainer.run(InitialModelJob(ARCHITECTURE, 0, str(tmp_path / "initial")))

    assert result == InitialModelResult(CHOSEN.size_bytes)


async def test_only_this_user_can_reach_the_socket(trainer: Trainer, tmp_path: Path) -> None:
    assert (tmp_path / "run").stat().st_mode & 0o077 == 0


async def test_large_log_is_moved_aside(tmp_path: Path) -> None:
    log = tmp_path / "run" / "trainer.log"
    log.parent.mkdir()
    log.write_bytes(b"x" * (trainer_module.MAX_LOG_BYTES + 1))
    async with open_trainer(tmp_path / "run", worker_starter()) as trainer:
        await trainer.run(InitialModelJob(ARCHITECTURE, 0, str(tmp_path / "initial")))

    assert log.with_suffix(".log.1").stat().st_size == trainer_module.MAX_LOG_BYTES + 1
    assert "InitialModelJob" in log.read_text()


def test_worker_without_a_node_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bflnode.node.workers.worker", str(tmp_path / "nobody.sock")]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert completed.returncode == 1
    assert "no node listens on" in completed.stderr
    assert "Traceback" not in completed.stderr
