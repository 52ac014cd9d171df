"""Runs many schedules: `python -m tests.simulation --seeds 10000`. Exits with 1 if one of them broke a rule."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from statistics import median

from . import hunt
from .mutants import MUTANTS
from .schedule import Report, simulate
from .scripts import SCRIPTS

BATCH = 50
"""Schedules that a process runs at a time."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A schedule that broke a rule."""

    seed: int
    error: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Simulate seeded networks.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many schedules (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one schedule and print what happens")
    parser.add_argument("--mutants", action="store_true", help="look for what notices each planted defect")
    options = parser.parse_args()
    if options.replay is not None:
        return replay(options.replay)
    if options.mutants:
        return show_mutants(range(options.first, options.first + options.seeds))
    return run_many(range(options.first, options.first + options.seeds), options.processes)


def replay(seed: int) -> int:
    """Print what happens in one schedule: virtual milliseconds, node, event."""
    try:
        report = simulate(seed, trace=print)
    except AssertionError as error:
        print(f"\n{type(error).__name__}: {error}")
        return 1
    print(f"\n{report}")
    return 0


def run_many(seeds: range, processes: int) -> int:
    """Run schedules on several cores, and say how it goes."""
    started = time.monotonic()
    reports: list[Report] = []
    failures: list[Failure] = []
    shown = started
    for done, result in _results(seeds, processes):
        if isinstance(result, Failure):
            failures.append(result)
            print(f"{result.error}\n  python -m tests.simulation --replay {result.seed}", flush=True)
        else:
            reports.append(result)
        if time.monotonic() > shown + 10:
            shown = time.monotonic()
            print(f"{done} of {len(seeds)} in {shown - started:.0f} s, {len(failures)} broke a rule", flush=True)
    elapsed_s = time.monotonic() - started
    rate = len(seeds) / elapsed_s
    print(f"{len(seeds)} schedules in {elapsed_s:.0f} s ({rate:.1f} a second), {len(failures)} broke a rule")
    if reports:
        print(summary(reports))
    return 1 if failures else 0


def _results(seeds: range, processes: int) -> Iterator[tuple[int, Report | Failure]]:
    batches = [seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)]
    done = 0
    with ProcessPoolExecutor(max_workers=processes) as pool:
        for future in as_completed([pool.submit(run_batch, batch) for batch in batches]):
            for result in future.result():
                done += 1
                yield done, result


def run_batch(seeds: range) -> list[Report | Failure]:
    return [_run(seed) for seed in seeds]


def _run(seed: int) -> Report | Failure:
    try:
        return simulate(seed)
    except AssertionError as error:
        return Failure(seed, f"seed {seed}: {type(error).__name__}: {error}")


def summary(reports: list[Report]) -> str:
    """What happened in all of them."""
    faults = Counter(fault for report in reports for fault in report.faults)
    styles = Counter(report.style for report in reports)
    recoveries = [report.recovery_ms for report in reports]
    shares = [100 * report.recovery_ms // report.bound_ms for report in reports]
    lines = (
        "styles: " + ", ".join(f"{count} {style}" for style, count in sorted(styles.items())),
        "faulty validators: " + ", ".join(f"{count} {fault}" for fault, count in sorted(faults.items())),
        f"heights {sum(r.heights for r in reports)}, messages {sum(r.messages for r in reports)}, "
        f"restarts {sum(r.restarts for r in reports)}, highest round {max(r.highest_round for r in reports)}",
        f"logs that refused to sign in the end {sum(r.refusals for r in reports)}, "
        f"equivocations proven {sum(r.evidence for r in reports)}",
        f"learning rounds settled {sum(r.settled for r in reports)}, tasks cancelled "
        f"{sum(r.cancelled for r in reports)}",
        f"recovery in virtual ms: median {median(recoveries):.0f}, longest {max(recoveries)}; "
        f"at most {max(shares)} % of its bound",
    )
    return "\n".join(lines)


def show_mutants(seeds: range) -> int:
    """Print what notices each defect: a script, a seed, and which rule it saw broken."""
    print("| mutant | script | rule broken | first seed | rule broken | runs needed |\n|---|---|---|---|---|---|")
    survivors = 0
    for mutant in MUTANTS:
        script, seed = hunt.by_scripts(mutant, SCRIPTS), hunt.by_seeds(mutant, seeds)
        survivors += script is None and seed is None
        by_script = (script.by, script.check) if script else ("-", "-")
        by_seed = (seed.by, seed.check, str(seed.runs)) if seed else ("-", "-", f"> {len(seeds)}")
        print("| " + " | ".join((mutant.name, *by_script, *by_seed)) + " |", flush=True)
    print(f"{len(MUTANTS)} mutants, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
