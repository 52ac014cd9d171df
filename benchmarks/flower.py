"""FedAvg with `bflnode experiment` and with Flower's simulation engine, side by side on the same work.

    python -m venv /tmp/flower && /tmp/flower/bin/pip install 'flwr[simulation]' torch torchvision
    python benchmarks/flower.py --flower /tmp/flower/bin/python

Both train the same clients (Fashion-MNIST, Dirichlet), from the same initial model, on the same batches, with the same
code for a client's training; both measure each client before and after it; both have the same number of workers with
a thread each. So what differs is the engine: starting up, moving models, and for ours writing a checkpoint a round.
A third side is Flower with a client in plain PyTorch, as its users write it: the same work but for the order of
samples. Runs alternate. Flower wants its own environment; it needs torch and torchvision of the same versions as here.
Times are from starting the process to its line for each round; memory is the largest proportional set size of all of
its processes together, looked at each second.
"""

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from bflnode.fl.architectures import architecture
from bflnode.node.experiments.round import drawn_seed

ROOT = Path(__file__).resolve().parent.parent
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
ARCHITECTURE = "cnn/1x28x28/10"
TRAINING = {"epochs": 5, "batch_size": 64, "learning_rate": 0.001, "optimiser": "adam", "device": "cpu"}
POPULATION = ("clients", "alpha", "seed", "samples", "test_samples")
"""Options that are fields of `PopulationOptions`."""

VERSIONS = (
    "import flwr, ray, torch; print('flwr', flwr.__version__, 'ray', ray.__version__, 'torch', torch.__version__)"
)

MEMORY_INTERVAL = 1.0
"""Seconds between looks at memory: reading it takes milliseconds of a core."""

COUNTING = {
    "OMP_NUM_THREADS": "1",
    "PYTHONSAFEPATH": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass
class Measured:
    """One run of one side.

    Attributes:
        ends: seconds from the start of the process to the end of each round.
        memory: MiB, the largest sum over all processes.
        processor: seconds of all cores, of all processes, as last seen.
        received: mean accuracy of each round before training.
        post: the same after it.
    """

    ends: list[float] = field(default_factory=list)
    memory: float = 0.0
    processor: float = 0.0
    received: list[float] = field(default_factory=list)
    post: list[float] = field(default_factory=list)

    @property
    def rounds(self) -> list[float]:
        """Seconds of each round but the first."""
        return [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]


def run_ours(options: argparse.Namespace, jobs: int, folder: Path) -> Measured:
    file = folder / "experiment.toml"
    file.write_text(
        f'name = "flower"\nrounds = {options.rounds}\nclients = {options.clients}\nseeds = [{options.seed}]\n'
        f'alphas = [{options.alpha}]\narchitecture = "{ARCHITECTURE}"\nevaluate_every = {options.rounds}\n'
        f'[data]\nkind = "fashion-mnist"\nsamples = {options.samples}\ntest_samples = {options.test_samples}\n'
        "[training]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in TRAINING.items()) + "[[methods]]\n"
        'name = "fedavg"\n'
    )
    results = folder / "ours"
    command = [sys.executable, "-m", "bflnode.node.cli", "experiment", "run", str(file), "-o", str(results)]
    measured = _timed([*command, "--jobs", str(jobs)], dict(os.environ) | COUNTING)
    with (results / "rounds.csv").open() as table:
        rows = list(csv.DictReader(table))
    measured.received = [float(row["received"]) for row in rows]
    measured.post = [float(row["post"]) for row in rows]
    return measured


def run_flower(options: argparse.Namespace, jobs: int, folder: Path, *, is_plain: bool = False) -> Measured:
    numbers = range(1, options.rounds + 1)
    initial, results, file = folder / "initial", folder / "results.json", folder / "specification.json"
    initial.write_bytes(architecture(ARCHITECTURE).initial_weights(options.seed))
    specification = {
        "architecture": ARCHITECTURE,
        "population": {
            name: getattr(options, name) for name in ("clients", "alpha", "seed", "samples", "test_samples")
        },
        "training": TRAINING,
        "rounds": options.rounds,
        "seeds": [[drawn_seed("training", options.seed, n, c) for c in range(options.clients)] for n in numbers],
        "initial": str(initial),
        "results": str(results),
        "jobs": jobs,
        "plain": is_plain,
    }
    file.write_text(json.dumps(specification))
    view = folder / "view" / "bflnode"
    view.mkdir(parents=True)
    (view / "fl").symlink_to(ROOT / "fl")
    paths = os.pathsep.join((str(view.parent), str(ROOT / "benchmarks")))
    environment = dict(os.environ) | COUNTING | {"PYTHONPATH": paths}
    measured = _timed([options.flower, str(ROOT / "benchmarks" / "flower_app.py"), str(file)], environment)
    found = json.loads(results.read_text())
    measured.received = [found[str(number)]["received"] for number in numbers]
    measured.post = [found[str(number)]["post"] for number in numbers]
    return measured


def _timed(command: Sequence[str], environment: dict[str, str]) -> Measured:
    """Run a side and time its lines."""
    measured, lines = Measured(), []
    started = time.monotonic()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, measured, ended))
        watcher.start()
        assert process.stdout is not None, "a pipe was asked for"
        for line in process.stdout:
            lines.append(line)
            if f"round {len(measured.ends) + 1} of" in line:
                measured.ends.append(time.monotonic() - started)
        ended.set()
        watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{''.join(lines[-40:])}")
    return measured


def _watch(root: int, measured: Measured, ended: threading.Event) -> None:
    seconds: dict[int, float] = {}
    while not ended.wait(MEMORY_INTERVAL):
        total = 0.0
        for process in _family(root):
            try:
                rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
                times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1024
            seconds[process] = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        measured.memory = max(measured.memory, total)
    measured.processor = sum(seconds.values())


def _family(root: int) -> list[int]:
    """A process and all of its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
        children.setdefault(parent, []).append(int(path.parent.name))
    family = [root]
    for process in family:
        family.extend(children.get(process, ()))
    return family


SIDES = {"bflnode": run_ours, "Flower": run_flower, "Flower, plain PyTorch": partial(run_flower, is_plain=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--flower", required=True, metavar="PYTHON", help="the Python that has flwr[simulation]")
    parser.add_argument("--jobs", default="1,2", help="numbers of workers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each side")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--test-samples", type=int, default=0, help="0: all 10,000")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if not FASHION_MNIST.is_dir():
        sys.exit(f"skipped: no Fashion-MNIST in {FASHION_MNIST} (Debian: apt install dataset-fashion-mnist)")
    if shutil.which(options.flower) is None:
        sys.exit(f"{options.flower} is no program: give the Python of an environment that has flwr[simulation]")
    print(subprocess.run([options.flower, "-c", VERSIONS], check=True, capture_output=True, text=True).stdout.strip())
    print(
        f"{options.clients} clients, {options.samples} samples, alpha {options.alpha}, seed {options.seed}, "
        f"{ARCHITECTURE}; {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    for jobs in (int(part) for part in options.jobs.split(",")):
        _compare(options, jobs)


def _compare(options: argparse.Namespace, jobs: int) -> None:
    runs: dict[str, list[Measured]] = {side: [] for side in SIDES}
    for _ in range(options.repeats):
        for side, run in SIDES.items():
            with tempfile.TemporaryDirectory(prefix="bflnode-flower-") as folder:
                runs[side].append(run(options, jobs, Path(folder)))
    print(f"\n| workers {jobs} | s a round | s to the end of round 1 | s in all | CPU s | MiB |")
    print("|---|---|---|---|---|---|")
    table = {side: _figures(measured) for side, measured in runs.items()}
    for side, figures in table.items():
        print(f"| {side} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")
    for side in list(SIDES)[1:]:
        ratios = (theirs / own for own, theirs in zip(table["bflnode"], table[side], strict=True))
        print(f"| {side} / bflnode | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    for what in ("received", "post"):
        for side, measured in runs.items():
            print(f"{what} of {side}: " + ", ".join(f"{value:.4f}" for value in getattr(measured[0], what)))
    sys.stdout.flush()


def _figures(runs: Sequence[Measured]) -> tuple[float, ...]:
    return (
        median(seconds for run in runs for seconds in run.rounds),
        median(run.ends[0] for run in runs),
        median(run.ends[-1] for run in runs),
        median(run.processor for run in runs),
        median(run.memory for run in runs),
    )


if __name__ == "__main__":
    main()
