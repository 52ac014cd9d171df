"""Which models and sample files a task has, where they come from, and which of them are on this disk."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bflnode.consensus.keys import account_text
from bflnode.consensus.task import LearningRound, SettledRound, Task
from bflnode.consensus.types import AccountId, BlobId
from bflnode.fl.interpolation import MEMORY
from bflnode.node.aggregation import has_prior
from bflnode.storage.blob_store import BlobStore

NO_BLOB = bytes(32)
"""Where a task has no such file."""


def models_json(
    blobs: BlobStore, task: Task, rounds: Iterable[LearningRound | SettledRound], *, with_task: bool
) -> list[dict[str, Any]]:
    """Every file of a task: its own (`with_task`), then those of the rounds; each says whether it is here."""
    rows: list[dict[str, Any]] = []
    if with_task:
        specification = task.specification
        for kind, blob in (
            ("initial", specification.initial_model),
            ("probe-set", specification.probe_set),
            ("validation-set", specification.validation_set),
        ):
            if blob != NO_BLOB:
                rows.append(_row(blobs, kind, blob, f"{kind.replace('-', ' ')} of task {specification.name}"))
    for found in rounds:
        rows += _round_rows(blobs, found)
    return rows


def choose(
    found: LearningRound | SettledRound, account: AccountId | None, cluster: int | None
) -> tuple[str, str] | None:
    """Id and origin of a client's or a cluster's model in a round, or None if there is none."""
    number = found.slot.number
    if account is not None:
        client = next((client for client in found.clients if client.account == account), None)
        if client is None or client.revealed is None:
            return None
        return client.revealed.model.hex(), f"model of client {account_text(account)} in round {number}"
    aggregation = found.aggregation
    if aggregation is None or cluster is None or not 0 <= cluster < len(aggregation.outputs):
        return None
    return aggregation.outputs[cluster].hex(), f"model of cluster {cluster} of round {number}"


def why_not(found: LearningRound | SettledRound, account: AccountId | None, cluster: int | None) -> str:
    """Why `choose` found nothing, and what there is."""
    number = found.slot.number
    if account is not None:
        if all(client.account != account for client in found.clients):
            return f"{account_text(account)} was no client of learning round {number}: see `bflnode round {number}`"
        return f"{account_text(account)} revealed no model in learning round {number}"
    if found.aggregation is None:
        return f"learning round {number} has no cluster models: it was not aggregated (yet)"
    return f"learning round {number} has clusters 0 to {len(found.aggregation.outputs) - 1}, not {cluster}"


def model_json(
    blobs: BlobStore, task: Task, identifier: str, origin: str, remembered: BlobId | None = None
) -> dict[str, Any]:
    """One model; `path` is its checked file, or None if it isn't here.

    Args:
        blobs: where its file would be.
        task: that it is of.
        identifier: its id, in hexadecimal.
        origin: who made it, and when.
        remembered: what the node's client trained before it received this one, if it has just received it. `memory`
            says what to predict with for that: clients of `prior-rows` do, others may.
    """
    blob = BlobId(bytes.fromhex(identifier))
    path: Path | None = blobs.path(blob).absolute() if blobs.has(blob) else None
    memory = None
    if remembered is not None and blobs.has(remembered):
        memory = {"path": str(blobs.path(remembered).absolute()), "share": MEMORY}
    return {
        "id": identifier,
        "task": task.id.hex(),
        "task_name": task.specification.name,
        "architecture": task.specification.architecture,
        "origin": origin,
        "has_prior": has_prior(task.specification),
        "memory": memory,
        "is_stored": path is not None,
        "path": None if path is None else str(path),
        "size_bytes": None if path is None else path.stat().st_size,
    }


def _round_rows(blobs: BlobStore, found: LearningRound | SettledRound) -> list[dict[str, Any]]:
    number = found.slot.number
    rows = []
    for client in found.clients:
        if client.revealed is not None:
            origin = f"client {account_text(client.account)} in round {number}"
            row = _row(blobs, "client", client.revealed.model, origin)
            rows.append({**row, "round": number, "client": account_text(client.account)})
    if found.aggregation is None:
        return rows
    for label, output in enumerate(found.aggregation.outputs):
        row = _row(blobs, "cluster", output, f"cluster {label} of round {number}")
        rows.append({**row, "round": number, "cluster": label})
    if found.aggregation.opening is not None:
        samples = found.aggregation.opening.samples
        rows.append({**_row(blobs, "probe", samples, f"aggregator's probe of round {number}"), "round": number})
    return rows


def _row(blobs: BlobStore, kind: str, blob: BlobId, origin: str) -> dict[str, Any]:
    is_stored = blobs.has(blob)
    return {
        "kind": kind,
        "id": blob.hex(),
        "origin": origin,
        "round": None,
        "client": None,
        "cluster": None,
        "is_stored": is_stored,
        "size_bytes": blobs.size(blob) if is_stored else None,
    }
