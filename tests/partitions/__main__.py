"""`python -m tests.partitions`: break the links between seven real nodes, and see them recover.

It runs itself again inside a network namespace of its own; see `namespaces`.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.partitions.namespaces import NotPermitted, is_inside, require_permission, unshare_command
from tests.partitions.scenarios import SCENARIOS, Outcome, run_scenarios, to_json


def main() -> int:
    """Run the scenarios that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.partitions", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; default all")
    parser.add_argument("--seed", type=int, default=1, help="of the proxies' delays (default 1)")
    parser.add_argument("--json", action="store_true", help="outcomes as JSON on standard output")
    arguments = parser.parse_args()
    names = tuple(arguments.scenarios) or SCENARIOS
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    try:
        require_permission()
    except NotPermitted as error:
        print(f"tests.partitions: {error}", file=sys.stderr)
        return 2
    if not is_inside():
        again = unshare_command([sys.executable, "-m", "tests.partitions", *sys.argv[1:]])
        os.execvp(again[0], again)
    with tempfile.TemporaryDirectory(prefix="bflpart-") as folder:
        try:
            outcomes = run_scenarios(Path(folder), names, lambda text: print(text, file=sys.stderr), arguments.seed)
        except AssertionError as violation:
            print(f"tests.partitions: {violation}", file=sys.stderr)
            return 1
    if arguments.json:
        print(to_json(outcomes))
    else:
        Console().print(_table(outcomes))
    return 0


def _table(outcomes: list[Outcome]) -> Table:
    table = Table("scenario", "what was done", "what was measured", "seconds")
    for outcome in outcomes:
        table.add_row(outcome.scenario, outcome.done, outcome.measured, f"{outcome.seconds:.2f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
