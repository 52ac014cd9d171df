"""A node dies at each failpoint, one after the other, is started again, catches up and signs again.

Points that are passed once in a node's life get a life of their own: a validator that has never run, a log with a torn
tail, a home that is being made.
"""

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bflnode.storage.failpoints import Operation
from bflnode.storage.signer_wal import FRAME_HEADER

from .field import Field, make_field, running_field, start_armed
from .judge import Verdict, judge

PASSES = {
    Operation.WAL_WRITE: 5,
    Operation.WAL_FSYNC: 5,
    Operation.CHAIN_BATCH: 3,
    Operation.VOTE_SEND: 7,
    Operation.PUSH_WRITE: 40,
    Operation.CHUNK_WRITE: 2,
}
"""At which pass to die; the first where not said. Later ones find the node in the middle of its work."""

BIRTH = (Operation.WAL_CREATE, Operation.CHAIN_CREATE)
"""Passed only when a node runs for the first time."""

DEATH_DEADLINE_S = 180.0
"""By then a busy node has passed every point; a validator that isn't in the packing queue proposes seldom."""

TORN_FRAME = FRAME_HEADER.pack(150, 0) + b"torn"


@dataclass(frozen=True, slots=True)
class Death:
    """A node died at a failpoint and came back; all times in seconds.

    Attributes:
        failpoint: and the pass.
        node: its name.
        height: of the network when it died.
        network_s: from its death to the next block anywhere.
        restarted_s: from its start to its first block.
        signing_s: from its start to its first vote for a new height.
    """

    failpoint: str
    node: str
    height: int
    network_s: float
    restarted_s: float
    signing_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole run, ready for JSON."""

    seed: int
    deaths: tuple[Death, ...]
    births: tuple[str, ...]
    verdict: Verdict


def run(directory: Path, *, points: Sequence[str], seed: int, say: Callable[[str], None]) -> Outcome:
    """Let nodes die at these failpoints, then judge.

    Args:
        directory: of the network, made anew.
        points: names of failpoints that a running node passes.
        seed: of the network.
        say: takes one line of progress.

    Raises:
        AssertionError: something was lost, contradicted or not in time.
    """
    testnet = make_field(
        directory, seed, has_large_models=any(name.startswith(Operation.CHUNK_WRITE) for name in points)
    )
    births = [name for name in points if name.rpartition(".")[0] in BIRTH]
    for name, home in zip(births, testnet.homes, strict=False):
        _wait_for_death(start_armed(home, name), name)
        say(f"{name}: {home.root.name} died before it had ever run")
    deaths = []
    with running_field(directory, seed) as field:
        for number, name in enumerate(name for name in points if name not in births):
            deaths.append(die(field, _victim(field, number, name), name))
            say(
                f"{deaths[-1].failpoint}: {deaths[-1].node} died at height {deaths[-1].height}, voted again "
                f"{deaths[-1].signing_s:.2f} s after its start"
            )
    verdict = judge(field.testnet, field.witness, field.load, field.watch)
    return Outcome(seed, tuple(deaths), tuple(births), verdict)


def _victim(field: Field, number: int, name: str) -> str:
    """Validators in turn; but one that proposes, where that is what has to happen: not all are in the packing queue."""
    in_turn = field.validators[number % len(field.validators)]
    return field.watch.proposer if name.startswith(Operation.PROPOSAL_SEND) else in_turn


def die(field: Field, node: str, name: str) -> Death:
    """Let a running node die at a failpoint, and start it again."""
    operation = Operation(name.rpartition(".")[0])
    failpoint = f"{name}={PASSES.get(operation, 1)}"
    field.kill((node,))
    if operation is Operation.WAL_TRUNCATE:
        with field.testnet.home(node).signer_wal.open("ab") as log:
            log.write(TORN_FRAME)
    process = field.start_armed(node, failpoint)
    _wait_for_death(process, failpoint)
    died_s, height = time.monotonic(), field.watch.top()
    network_s = field.wait_for_network_block(died_s)
    started_s = field.start((node,))
    (restarted_s,) = field.wait_for_blocks((node,), started_s).values()
    field.wait_until_signing((node,))
    return Death(failpoint, node, height, network_s, restarted_s, time.monotonic() - started_s)


def _wait_for_death(process: subprocess.Popen[bytes], failpoint: str) -> None:
    try:
        status = process.wait(DEATH_DEADLINE_S)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.wait()
        raise AssertionError(f"a node armed with {failpoint} didn't pass it in {DEATH_DEADLINE_S:.0f} s") from error
    assert status == -signal.SIGKILL, f"a node armed with {failpoint} ended with {status} instead of dying there"


def table(outcome: Outcome) -> str:
    """One row for each death, in Markdown."""
    rows = ["| died at | node | height | next block on the network, s | on the restarted node, s | votes again, s |"]
    rows.append("|---|---|---|---|---|---|")
    rows += [
        f"| `{death.failpoint}` | {death.node} | {death.height} | {death.network_s:.2f} | {death.restarted_s:.2f} | "
        f"{death.signing_s:.2f} |"
        for death in outcome.deaths
    ]
    return "\n".join(rows)
