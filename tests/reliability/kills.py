"""`kill -9` at random moments, many times over: one node, two at once so that no quorum is left, or all validators.

Every cycle is appended to `cycles.jsonl` in the network's folder; an interrupted run goes on after the last one.
"""

import json
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from .field import Field, running_field
from .judge import Verdict, judge

PATTERNS = ((1, 0.7), (2, 0.2), (4, 0.1))
"""How many validators of four die at once, and how often."""

MAX_UPTIME_S = 2.0
"""The longest time for which the whole network runs before the next kill."""

MAX_DOWNTIME_S = 2.0


@dataclass(frozen=True, slots=True)
class Cycle:
    """One cycle; all times in seconds.

    Attributes:
        number: from 1.
        killed: the nodes that died, at the same moment.
        height: of the network when they did.
        downtime_s: until they were started again.
        network_s: from the kill to the next block anywhere; from the start where no quorum was left meanwhile.
        restarted_s: from the start to the first block on a restarted node, for each of them.
        signing_s: from the start until all of them had signed a vote for a new height.
    """

    number: int
    killed: tuple[str, ...]
    height: int
    downtime_s: float
    network_s: float
    restarted_s: tuple[float, ...]
    signing_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole run, ready for JSON."""

    seed: int
    cycles: tuple[Cycle, ...]
    verdict: Verdict


def run(directory: Path, *, cycles: int, seed: int, say: Callable[[str], None]) -> Outcome:
    """Run the cycles that are still to be done, then judge.

    Raises:
        AssertionError: something was lost, contradicted or not in time.
    """
    file = directory / "cycles.jsonl"
    done = list(_read(file))
    with running_field(directory, seed) as field:
        for number in range(len(done) + 1, cycles + 1):
            generator = random.Random(f"{seed}/{number}")
            cycle = kill_and_restart(field, number, draw(field, generator), generator)
            done.append(cycle)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(asdict(cycle)) + "\n")
            say(
                f"cycle {number} of {cycles}: {', '.join(cycle.killed)} at height {cycle.height}, next block "
                f"{cycle.network_s:.2f} s, on the restarted {max(cycle.restarted_s):.2f} s"
            )
    say("stopped; judging")
    verdict = judge(field.testnet, field.witness, field.load, field.watch)
    return Outcome(seed, tuple(done), verdict)


def draw(field: Field, generator: random.Random) -> tuple[str, ...]:
    """Who dies next."""
    counts, weights = zip(*PATTERNS, strict=True)
    (count,) = generator.choices(counts, weights)
    return tuple(sorted(generator.sample(field.validators, count)))


def kill_and_restart(field: Field, number: int, victims: tuple[str, ...], generator: random.Random) -> Cycle:
    """Kill these validators at a random moment and start them again after a random time."""
    time.sleep(generator.uniform(0, MAX_UPTIME_S))
    height = field.watch.top()
    killed_s = field.kill(victims)
    downtime_s = generator.uniform(0, MAX_DOWNTIME_S)
    time.sleep(max(0.0, downtime_s - (time.monotonic() - killed_s)))
    started_s = field.start(victims)
    has_quorum = 3 * (len(field.validators) - len(victims)) > 2 * len(field.validators)
    network_s = field.wait_for_network_block(killed_s if has_quorum else started_s)
    restarted = field.wait_for_blocks(victims, started_s)
    field.wait_until_signing(victims)
    return Cycle(
        number=number,
        killed=victims,
        height=height,
        downtime_s=started_s - killed_s,
        network_s=network_s,
        restarted_s=tuple(restarted.values()),
        signing_s=time.monotonic() - started_s,
    )


def _read(file: Path) -> Iterable[Cycle]:
    if not file.exists():
        return
    for line in file.read_text(encoding="utf-8").splitlines():
        content = json.loads(line)
        yield Cycle(**{**content, "killed": tuple(content["killed"]), "restarted_s": tuple(content["restarted_s"])})


def table(outcome: Outcome) -> str:
    """The distributions, as the rows of a table in Markdown."""
    rows = [
        "| killed at once | cycles | next block on the network, s | first block on a restarted node, s | votes, s |"
    ]
    rows.append("|---|---|---|---|---|")
    for count, _ in PATTERNS:
        chosen = [cycle for cycle in outcome.cycles if len(cycle.killed) == count]
        if chosen:
            network = distribution(cycle.network_s for cycle in chosen)
            restarted = distribution(seconds for cycle in chosen for seconds in cycle.restarted_s)
            signing = distribution(cycle.signing_s for cycle in chosen)
            rows.append(f"| {count} of 4 | {len(chosen)} | {network} | {restarted} | {signing} |")
    return "\n".join(rows)


def distribution(values: Iterable[float]) -> str:
    """Median, 95th percentile and longest."""
    ordered = sorted(values)
    percentile = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"{median(ordered):.2f} / {percentile:.2f} / {ordered[-1]:.2f}"
