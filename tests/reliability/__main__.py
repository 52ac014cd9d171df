"""`python -m tests.reliability`: break real nodes on purpose, and see that nothing is lost.

Runs what the tests run in small, in full length. Exits with 1 if something was lost, contradicted or not in time.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from bflnode.storage.failpoints import names

from . import damages, disks, failpoint_runs, kills


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder of the network; a run that is there goes on")
    parser.add_argument("--json", action="store_true", help="the outcome as JSON on standard output")
    verbs = parser.add_subparsers(dest="verb", required=True)
    kill = verbs.add_parser("kill", help="kill -9 of random validators at random moments")
    kill.add_argument("--cycles", type=int, default=200, help="how many (default 200)")
    points = verbs.add_parser("failpoints", help="a node dies at every failpoint, one after the other")
    points.add_argument("points", nargs="*", metavar="POINT", help="only these; default all")
    disk = verbs.add_parser("disk", help="disks of nodes are full, or fail")
    disk.add_argument("faults", nargs="*", metavar="FAULT", help="only these; default all")
    damage = verbs.add_parser("damage", help="homes of nodes lose files, and single bits")
    damage.add_argument("damages", nargs="*", metavar="DAMAGE", help="only these; default all")
    for verb in verbs.choices.values():
        verb.add_argument("--seed", type=int, default=1, help="of everything that is drawn (default 1)")
    options = parser.parse_args()
    started_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started_s:7.1f} s  {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="bflrel-") as temporary:
        directory = (options.keep or Path(temporary) / "net").absolute()
        try:
            if options.verb == "kill":
                killed = kills.run(directory, cycles=options.cycles, seed=options.seed, say=say)
                outcome, table = asdict(killed), kills.table(killed)
            elif options.verb == "disk":
                failed = disks.run(directory, faults=options.faults or disks.ALL_FAULTS, seed=options.seed, say=say)
                outcome, table = asdict(failed), disks.table(failed)
            elif options.verb == "damage":
                lost = damages.run(
                    directory, damages=options.damages or damages.ALL_DAMAGES, seed=options.seed, say=say
                )
                outcome, table = asdict(lost), damages.table(lost)
            else:
                chosen = options.points or names()
                died = failpoint_runs.run(directory, points=chosen, seed=options.seed, say=say)
                outcome, table = asdict(died), failpoint_runs.table(died)
        except AssertionError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
    print(json.dumps(outcome, indent=2) if options.json else table)
    say(f"all as it must be: {outcome['verdict']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
