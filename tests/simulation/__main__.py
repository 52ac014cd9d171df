"""Runs many schedules: `python -m tests.simulation --seeds 1000`. Exits with 1 if one of them broke a rule."""

import argparse
import sys
import time
from collections import Counter
from statistics import median

from .schedule import Report, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Simulate seeded networks.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many schedules (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--trace", action="store_true", help="print what happens in each run")
    options = parser.parse_args()
    started = time.monotonic()
    reports: list[Report] = []
    failures = 0
    for seed in range(options.first, options.first + options.seeds):
        try:
            reports.append(simulate(seed, trace=print if options.trace else lambda text: None))
        except AssertionError as error:
            failures += 1
            print(f"BFLNODE_SEED={seed}: {type(error).__name__}: {error}", flush=True)
    print(f"{options.seeds} schedules in {time.monotonic() - started:.0f} s, {failures} broke a rule")
    if reports:
        print(_summary(reports))
    return 1 if failures else 0


def _summary(reports: list[Report]) -> str:
    faults = Counter(fault for report in reports for fault in report.faults)
    recoveries = [report.recovery_ms for report in reports]
    lines = (
        f"heights {sum(report.heights for report in reports)}, messages {sum(report.messages for report in reports)}, "
        f"restarts {sum(report.restarts for report in reports)}, highest round {max(r.highest_round for r in reports)}",
        f"recovery in virtual ms: median {median(recoveries):.0f}, longest {max(recoveries)}",
        "faulty validators: " + ", ".join(f"{count} {fault}" for fault, count in sorted(faults.items())),
        f"equivocations proven: {sum(report.evidence for report in reports)}",
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
