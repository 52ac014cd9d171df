"""What this node did in each learning round: facts that only it knows, one JSON file a round and attempt.

The chain says which model was committed only as a hash, and says nothing of accuracies. A node that restarts between
COMMIT and REVEAL finds its model here; people read the accuracies here. A damaged entry counts as lost.
"""

import json
import logging
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import get_type_hints

from bflnode.consensus.transaction import Slot
from bflnode.storage.durable import write_durably
from bflnode.storage.errors import disk_errors

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RoundEntry:
    """One learning round as this node saw it. Accuracies are fractions of its local test data.

    Attributes:
        task: hex id of the task.
        number: learning round, from 1.
        attempt: from 0.
        base: hex id of the model it trained from.
        model: hex id of the model it trained; None before that.
        received_accuracy: of the base model, before training.
        post_accuracy: after training, before aggregation.
        loss: mean training loss of the last epoch.
        control_accuracy: of a model trained on the own data alone for as many rounds.
        global_accuracy: of the base model on the global test set, where the node has it.
        training_s: seconds of training.
    """

    task: str
    number: int
    attempt: int
    base: str = ""
    model: str | None = None
    received_accuracy: float | None = None
    post_accuracy: float | None = None
    loss: float | None = None
    control_accuracy: float | None = None
    global_accuracy: float | None = None
    training_s: float | None = None


class Journal:
    """The entries of one home. Writing is atomic: a killed node leaves the old entry or the new one.

    Every method raises StorageError where the disk is at fault.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with disk_errors(directory, "making a folder"):
            directory.mkdir(parents=True, exist_ok=True)

    def entry(self, slot: Slot) -> RoundEntry:
        """The entry of an attempt; an empty one where there is none."""
        empty = RoundEntry(slot.task.hex(), slot.number, slot.attempt)
        found = self._read(self._path(empty.task, empty.number, empty.attempt))
        if found is None or (found.task, found.number, found.attempt) != (empty.task, empty.number, empty.attempt):
            return empty
        return found

    def update(self, slot: Slot, **facts: object) -> RoundEntry:
        """Add facts to the entry of an attempt and make them durable. A number that isn't finite is no fact."""
        known = {name: None if _is_not_finite(fact) else fact for name, fact in facts.items()}
        entry = replace(self.entry(slot), **known)  # type: ignore[arg-type]  # facts are fields of RoundEntry
        path = self._path(entry.task, entry.number, entry.attempt)
        with disk_errors(path, "writing what this node did in a round"):
            write_durably(path, json.dumps(asdict(entry), allow_nan=False).encode())
        return entry

    def entries(self) -> tuple[RoundEntry, ...]:
        """All entries, by task, round and attempt."""
        with disk_errors(self.directory, "listing what this node did"):
            paths = sorted(self.directory.glob("*.json"))
        entries = (self._read(path) for path in paths)
        return tuple(
            sorted(
                (entry for entry in entries if entry is not None),
                key=lambda entry: (entry.task, entry.number, entry.attempt),
            )
        )

    def delete(self, entry: RoundEntry) -> None:
        """Remove an entry; one that isn't there is no fault."""
        path = self._path(entry.task, entry.number, entry.attempt)
        with disk_errors(path, "removing what this node did in a round"):
            path.unlink(missing_ok=True)

    def _read(self, path: Path) -> RoundEntry | None:
        """The entry in a file; None where there is no file, or somebody damaged it."""
        with disk_errors(path, "reading what this node did in a round"):
            try:
                data = path.read_bytes()
            except FileNotFoundError:  # pruning may remove it at any time
                return None
        try:
            return _parse(data)
        except ValueError as error:
            _log.warning("%s is not an entry any more (%s): it counts as lost", path, error)
            return None

    def _path(self, task: str, number: int, attempt: int) -> Path:
        return self.directory / f"{task[:16]}-{number:06d}-{attempt}.json"


def _parse(data: bytes) -> RoundEntry:
    """Read an entry; raises ValueError, of which bad JSON and bad UTF-8 are kinds."""
    try:
        content = json.loads(data, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("brackets nested too deep") from error
    types = get_type_hints(RoundEntry)
    if not isinstance(content, dict) or not {"task", "number", "attempt"} <= content.keys() <= types.keys():
        raise ValueError("other fields than those of an entry")
    for field in fields(RoundEntry):
        expected = types[field.name]
        if field.name in content and not isinstance(content[field.name], expected):
            raise ValueError(f"{field.name} is {content[field.name]!r}")
    for name in ("model", "base"):
        bytes.fromhex(content.get(name) or "")
    return RoundEntry(**content)


def _refuse_constant(name: str) -> float:
    """NaN and infinities are no JSON, and could not be handed on as such."""
    raise ValueError(f"{name} is not a number of JSON")


def _is_not_finite(fact: object) -> bool:
    return isinstance(fact, float) and not math.isfinite(fact)
