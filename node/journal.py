"""What this node did in each learning round: facts that only it knows, one JSON file a round and attempt.

The chain says which model was committed only as a hash, and says nothing of accuracies. A node that restarts between
COMMIT and REVEAL finds its model here; people read the accuracies here.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bflnode.consensus.transaction import Slot


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
    """The entries of one home. Writing is atomic: a killed node leaves the old entry or the new one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def entry(self, slot: Slot) -> RoundEntry:
        """The entry of an attempt; an empty one where there is none."""
        path = self._path(slot.task.hex(), slot.number, slot.attempt)
        if not path.exists():
            return RoundEntry(slot.task.hex(), slot.number, slot.attempt)
        return RoundEntry(**json.loads(path.read_text(encoding="utf-8")))

    def update(self, slot: Slot, **facts: object) -> RoundEntry:
        """Add facts to the entry of an attempt and make them durable."""
        entry = replace(self.entry(slot), **facts)  # type: ignore[arg-type]  # facts are fields of RoundEntry
        path = self._path(entry.task, entry.number, entry.attempt)
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(entry), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        return entry

    def entries(self) -> tuple[RoundEntry, ...]:
        """All entries, by task, round and attempt."""
        entries = (RoundEntry(**json.loads(path.read_text(encoding="utf-8"))) for path in self.directory.glob("*.json"))
        return tuple(sorted(entries, key=lambda entry: (entry.task, entry.number, entry.attempt)))

    def _path(self, task: str, number: int, attempt: int) -> Path:
        return self.directory / f"{task[:16]}-{number:06d}-{attempt}.json"
