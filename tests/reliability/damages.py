"""Homes that lost something while their node was stopped: a file of the chain, the whole chain, the signer's log.

The node starts by itself with what is left, fetches the rest from its peers and votes again, but on no height on which
it may have voted before. A damaged signer's log is the exception: that node refuses to start.
"""

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bflnode.node.home import Home
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.failpoints import Operation

from .disks import last_words
from .field import Field, make_field, running_field
from .judge import Verdict, judge


def _flip(path: Path, generator: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(data)


def _cut(path: Path, generator: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: generator.randrange(len(data))])


def _largest(home: Home, pattern: str) -> Path:
    if pattern == "*.ldb":
        ChainStore.open(home.chain).close()  # which turns the newest blocks into a table
    return max(home.chain.glob(pattern), key=lambda path: path.stat().st_size)


DAMAGES: dict[str, Callable[[Home, random.Random], object]] = {
    "a bit of the newest blocks flipped": lambda home, generator: _flip(_largest(home, "*.log"), generator),
    "the newest blocks cut short": lambda home, generator: _cut(_largest(home, "*.log"), generator),
    "a bit of a table flipped": lambda home, generator: _flip(_largest(home, "*.ldb"), generator),
    "a table cut short": lambda home, generator: _cut(_largest(home, "*.ldb"), generator),
    "a table gone": lambda home, _: _largest(home, "*.ldb").unlink(),
    "MANIFEST cut short": lambda home, generator: _cut(_largest(home, "MANIFEST-*"), generator),
    "MANIFEST gone": lambda home, _: _largest(home, "MANIFEST-*").unlink(),
    "CURRENT gone": lambda home, _: (home.chain / "CURRENT").unlink(),
    "the whole chain gone": lambda home, _: shutil.rmtree(home.chain),
    "the signer's log gone": lambda home, _: home.signer_wal.unlink(),
}
"""What happens to a home, by name; a node starts by itself after each."""

DAMAGED_LOG = "a bit of the signer's log flipped"
"""After this one it doesn't: an operator has to decide."""

ALL_DAMAGES = (*DAMAGES, DAMAGED_LOG)


@dataclass(frozen=True, slots=True)
class Loss:
    """A home lost something, and its node came back.

    Attributes:
        what: it lost.
        node: its name.
        height: of the network when the node was started again.
        did: what the node did: "moved aside", "went on", "refused to start".
        signing_s: from its start to its first vote for a new height, seconds.
    """

    what: str
    node: str
    height: int
    did: str
    signing_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole run, ready for JSON."""

    seed: int
    losses: tuple[Loss, ...]
    verdict: Verdict


def run(directory: Path, *, damages: Sequence[str], seed: int, say: Callable[[str], None]) -> Outcome:
    """Let homes lose these things, then judge.

    Raises:
        AssertionError: something was contradicted or not in time.
    """
    make_field(directory, seed)
    losses = []
    with running_field(directory, seed) as field:
        for number, what in enumerate(damages):
            node = field.validators[number % len(field.validators)]
            losses.append(lose(field, node, what, random.Random(f"{seed}/{what}")))
            say(f"{what}: {node} {losses[-1].did}, voted again {losses[-1].signing_s:.2f} s after its start")
    verdict = judge(field.testnet, field.witness, field.load, field.watch)
    return Outcome(seed, tuple(losses), verdict)


def lose(field: Field, node: str, what: str, generator: random.Random) -> Loss:
    """Kill a node, damage its home, and start it again."""
    home = field.testnet.home(node)
    field.kill((node,))
    field.watch.read_signers()
    before = set(home.chain.parent.glob("chain.damaged-*"))
    did = ""
    if what == DAMAGED_LOG:
        did = _refuse_damaged_log(field, home, generator)
    else:
        DAMAGES[what](home, generator)
    started_s, height = field.start((node,)), field.watch.top()
    field.wait_for_blocks((node,), started_s)
    field.wait_until_signing((node,))
    signing_s = time.monotonic() - started_s
    aside = set(home.chain.parent.glob("chain.damaged-*")) - before
    for folder in aside:
        shutil.rmtree(folder)  # as the operator is told to
    return Loss(what, node, height, did or ("moved aside" if aside else "went on"), signing_s)


def _refuse_damaged_log(field: Field, home: Home, generator: random.Random) -> str:
    """A node with a damaged signer's log must not start; then the operator does what it says."""
    _flip(home.signer_wal, generator)
    said = last_words(home, field.start_armed(home.root.name, f"{Operation.WAL_CREATE}.before"))
    assert "refusing to sign" in said, said
    home.signer_wal.unlink()
    return "refused to start"


def table(outcome: Outcome) -> str:
    """One row for each loss, in Markdown."""
    rows = ["| lost | node | height | it | votes again, s |", "|---|---|---|---|---|"]
    rows += [
        f"| {loss.what} | {loss.node} | {loss.height} | {loss.did} | {loss.signing_s:.2f} |" for loss in outcome.losses
    ]
    return "\n".join(rows)
