"""What `bflnode experiment` takes beside training: the time of a round over the time its clients train, and start-up.

    python benchmarks/experiment_rounds.py

A round is everything from the end of the one before to its own: training, measuring each client twice, aggregation,
the ledger where there is one, tables and checkpoint. One worker, so that training times add up. Start-up is from
starting the command to the end of its first round, less that round.
"""

import argparse
import csv
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bflnode.node.experiments.file import read_experiment
from bflnode.node.experiments.run import Workers, run_experiment
from bflnode.node.experiments.store import make_folder

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def write_file(path: Path, options: argparse.Namespace, methods: list[str], rounds: int) -> Path:
    path.write_text(
        f'name = "rounds"\nrounds = {rounds}\nclients = {options.clients}\nseeds = [{options.seed}]\nalphas = [0.5]\n'
        f'evaluate_every = {rounds}\n[data]\nkind = "fashion-mnist"\nsamples = {options.samples}\n'
        f'test_samples = {options.test_samples}\n[training]\ndevice = "cpu"\n'
        + "".join(f'[[methods]]\nname = "{method}"\n' for method in methods)
    )
    return path


def measure_rounds(options: argparse.Namespace, methods: list[str], folder: Path) -> None:
    file = write_file(folder / "experiment.toml", options, methods, options.rounds + 1)
    experiment, content = read_experiment(file)
    results = make_folder(folder / "results", file, experiment, content)
    ends: list[float] = []
    run_experiment(results, Workers(), lambda _: ends.append(time.monotonic()))
    with (results.path / "rounds.csv").open() as table:
        rows = list(csv.DictReader(table))
    print("| method | s a round | s of training | ratio |\n|---|---|---|---|")
    for method in methods:
        # The first round warms up, and the last one measures on the global test set.
        places = [place for place, row in enumerate(rows) if row["method"] == method][1:-1]
        seconds = [ends[place] - ends[place - 1] for place in places]
        training = [float(rows[place]["training_seconds"]) for place in places]
        ratio = median(whole / part for whole, part in zip(seconds, training, strict=True))
        print(f"| {method} | {median(seconds):.2f} | {median(training):.2f} | {ratio:.3f} |")


def measure_start(options: argparse.Namespace, method: str, folder: Path) -> None:
    found = []
    for attempt in range(options.starts):
        place = folder / f"start-{attempt}"
        place.mkdir()
        file = write_file(place / "experiment.toml", options, [method], 1)
        command = [
            sys.executable,
            "-m",
            "bflnode.node.cli",
            "experiment",
            "run",
            str(file),
            "-o",
            str(place / "results"),
        ]
        started = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        whole = time.monotonic() - started
        with (place / "results" / "rounds.csv").open() as table:
            found.append(whole - float(next(csv.DictReader(table))["seconds"]))
    print(
        f"\nstart and end of a process beside its first round ({method}): {median(found):.2f} s, median of {len(found)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", default="fedavg,paa,fedper,local")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--test-samples", type=int, default=0, help="0: all 10,000")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--starts", type=int, default=3, help="processes started to measure that; 0: none")
    options = parser.parse_args()
    if not FASHION_MNIST.is_dir():
        sys.exit(f"skipped: no Fashion-MNIST in {FASHION_MNIST} (Debian: apt install dataset-fashion-mnist)")
    methods = options.methods.split(",")
    print(
        f"{options.clients} clients, Fashion-MNIST, {options.samples} samples, small CNN, seed {options.seed}; "
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="bflnode-rounds-") as folder:
        measure_rounds(options, methods, Path(folder))
        if options.starts:
            measure_start(options, methods[0], Path(folder))


if __name__ == "__main__":
    main()
