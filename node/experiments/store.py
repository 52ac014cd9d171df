"""The folder of an experiment, and the checkpoints of its runs.

    DIR/experiment.toml          the file, as it was run
    DIR/experiment.json          versions, machine, where the file was, its SHA-256
    DIR/clients.csv …            tables over all runs (see `results`), written when a command ends
    DIR/runs/NAME/state.json     after which learning round the run is, and with what
    DIR/runs/NAME/clients.csv    rows of each client and round; rounds.csv, payouts.csv likewise
    DIR/runs/NAME/models/        what clients were given, by id
    DIR/runs/NAME/kept/          what clients kept: CLIENT-ROUND.safetensors
    DIR/runs/NAME/chain/         blocks of the ledger: ROUND.blocks

`state.json` is replaced last in each round, in one step, after everything else has been synced at once: whatever other
files hold beyond it belongs to a round that didn't end, and is cut off or removed. So a kill loses at most one round.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgpack
from pydantic import Field, TypeAdapter, ValidationError

from bflnode.storage.durable import sync_files, write_durably, write_for_now
from bflnode.storage.home_lock import running_pid

from .file import Experiment, ExperimentError, RunPlan, parse_experiment, plans

FORMAT = 1

TABLES: Mapping[str, tuple[str, ...]] = {
    "clients.csv": (
        *("method", "alpha", "seed", "round", "client", "hostile", "samples", "cluster"),
        *("received", "post", "global", "loss", "bytes_up", "bytes_down", "seconds"),
    ),
    "rounds.csv": (
        *("method", "alpha", "seed", "round", "clients", "received", "post", "global", "loss"),
        *("bytes_up", "bytes_down", "training_seconds", "seconds", "head"),
    ),
    "payouts.csv": (
        *("method", "alpha", "seed", "round", "client", "exclusion", "cluster", "cluster_size"),
        *("gross", "fee", "net", "aggregator_income", "height"),
    ),
}
"""Tables and their columns. Accuracies are shares from 0 to 1, amounts micro-tokens; an empty cell is no value."""

Row = Sequence[object]

Identifier = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
"""A hash, hexadecimal; empty where there is none."""

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run is.

    Attributes:
        round: the last learning round that ended; 0 before the first.
        head: hex id of the last block, or of the running hash where there is no ledger.
        newcomers: hex id of what clients receive that weren't in the last round.
        received: hex id of what those of the last round receive, by client.
        given: hex id of what a client has received before, by client: it needn't be sent again.
        kept: the round of each client's file in `kept`.
        sizes: bytes of each table that belong to rounds that ended.
        seconds: that all rounds took.
        device: that clients trained on.
    """

    round: Count
    head: Identifier
    newcomers: Identifier
    received: dict[int, Identifier] = field(default_factory=dict)
    given: dict[int, Identifier] = field(default_factory=dict)
    kept: dict[int, Count] = field(default_factory=dict)
    sizes: dict[str, Count] = field(default_factory=dict)
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    device: str = ""


_STATE = TypeAdapter(RunState)


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._models, self._kept, self._chain = path / "models", path / "kept", path / "chain"
        self._unsynced: list[Path] = []

    def state(self) -> RunState | None:
        """The checkpoint, or None before the first.

        Raises:
            ExperimentError: it is damaged.
        """
        path = self.path / "state.json"
        try:
            return _STATE.validate_json(path.read_bytes(), strict=True)
        except FileNotFoundError:
            return None
        except ValidationError as error:
            first = error.errors()[0]
            what = ": ".join((*map(str, first["loc"][:1]), first["msg"]))
            raise ExperimentError(f"{path} is damaged ({what}): {self.remedy}") from error
        except OSError as error:
            raise ExperimentError(f"{path} can't be read ({error.strerror}): check who may read it") from error

    def prepare(self, state: RunState | None) -> None:
        """Make folders, and cut off what belongs to a round that didn't end."""
        for folder in (self.path, self._models, self._kept, self._chain):
            folder.mkdir(parents=True, exist_ok=True)
        for name, columns in TABLES.items():
            path = self.path / name
            size = 0 if state is None else state.sizes.get(name, 0)
            if size and path.exists() and path.stat().st_size >= size:
                os.truncate(path, size)
            elif size:
                raise ExperimentError(f"{path} has lost rows: {self.remedy}")
            else:
                path.write_text(_csv([columns]), encoding="utf-8")
        self._remove_others(state)

    def table(self, name: str) -> str:
        """A table up to the last round that ended, with its columns; empty before the first.

        Raises:
            ExperimentError: it is damaged.
        """
        state = self.state()
        size = 0 if state is None else state.sizes.get(name, 0)
        if not size:
            return ""
        path = self.path / name
        try:
            with path.open("rb") as file:
                content = file.read(size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ExperimentError(f"{path} is damaged ({error.reason}): {self.remedy}") from error
        except OSError as error:
            raise ExperimentError(f"{path} can't be read ({error.strerror}): {self.remedy}") from error
        if len(content.encode()) < size:
            raise ExperimentError(f"{path} has lost rows: {self.remedy}")
        return content

    def append(self, rows: Mapping[str, Iterable[Row]]) -> dict[str, int]:
        """Add rows to tables; returns the size that each table has then."""
        sizes = {}
        for name in TABLES:
            with (self.path / name).open("a", encoding="utf-8", newline="") as file:
                file.write(_csv(rows.get(name, ())))
                file.flush()
                sizes[name] = file.tell()
            self._unsynced.append(self.path / name)
        return sizes

    def put_model(self, identifier: str, content: bytes) -> None:
        """Keep what clients are given; an equal one is there already."""
        path = self._model(identifier)
        if not path.exists():
            self._write(path, content)

    def model(self, identifier: str) -> bytes:
        """What clients are given, by its id."""
        return self._read(self._model(identifier))

    def put_kept(self, client: int, learning_round: int, content: bytes) -> None:
        """Keep what a client keeps."""
        self._write(self._kept_file(client, learning_round), content)

    def kept(self, client: int, learning_round: int) -> bytes:
        """What a client kept in a round."""
        return self._read(self._kept_file(client, learning_round))

    def put_blocks(self, learning_round: int, blocks: Sequence[bytes]) -> None:
        """Keep the blocks of a learning round."""
        self._write(self._chain / f"{learning_round:06}.blocks", msgpack.packb(list(blocks)))

    def blocks(self, learning_rounds: int) -> Iterable[bytes]:
        """All blocks up to the end of a learning round."""
        for number in range(1, learning_rounds + 1):
            path = self._chain / f"{number:06}.blocks"
            try:
                blocks = msgpack.unpackb(self._read(path))
            except (ValueError, msgpack.UnpackException) as error:
                raise ExperimentError(f"{path} is damaged: {self.remedy}") from error
            if not isinstance(blocks, list) or not all(isinstance(block, bytes) for block in blocks):
                raise ExperimentError(f"{path} is damaged, it holds no blocks: {self.remedy}")
            yield from blocks

    def save(self, state: RunState) -> None:
        """Make a state the run's, and remove what no state needs any more."""
        sync_files(self._unsynced)
        self._unsynced = []
        write_durably(self.path / "state.json", json.dumps(asdict(state)).encode())
        self._remove_others(state)

    @property
    def remedy(self) -> str:
        """What to do about damage: a run is cheap beside a wrong result."""
        return f"remove {self.path} to begin this run anew"

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise ExperimentError(f"{path} can't be read ({error.strerror}): {self.remedy}") from error

    def _write(self, path: Path, content: bytes) -> None:
        write_for_now(path, content)
        self._unsynced.append(path)

    def _remove_others(self, state: RunState | None) -> None:
        """Remove models and what clients kept, but for those that a state needs: others may not be whole."""
        models, kept = set(), set()
        if state is not None:
            models = {self._model(identifier).name for identifier in (state.newcomers, *state.received.values())}
            kept = {self._kept_file(client, number).name for client, number in state.kept.items()}
        for folder, needed in ((self._models, models), (self._kept, kept)):
            for path in folder.iterdir():
                if path.name not in needed:
                    path.unlink()

    def _model(self, identifier: str) -> Path:
        return self._models / f"{identifier}.safetensors"

    def _kept_file(self, client: int, learning_round: int) -> Path:
        return self._kept / f"{client}-{learning_round}.safetensors"


@dataclass(frozen=True, slots=True)
class ExperimentFolder:
    """An experiment on disk.

    Attributes:
        path: the folder.
        experiment: what its file says.
        source: the folder that paths in the file are relative to.
    """

    path: Path
    experiment: Experiment
    source: Path

    @property
    def plans(self) -> tuple[RunPlan, ...]:
        """All runs."""
        return plans(self.experiment)

    def run(self, plan: RunPlan) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.path / "runs" / plan.name)

    def metadata(self) -> dict[str, Any]:
        """What `experiment.json` says."""
        return _metadata(self.path)

    def save_metadata(self, **facts: object) -> None:
        """Add facts to `experiment.json`."""
        content = json.dumps({**self.metadata(), **facts}, indent=2) + "\n"
        write_durably(self.path / "experiment.json", content.encode())


def make_folder(path: Path, file: Path, experiment: Experiment, content: bytes) -> ExperimentFolder:
    """The folder for an experiment: a new one, one that has the same file, or one in which no round has ended yet.

    Raises:
        ExperimentError: it has another experiment, or other things; or it can't be written.
    """
    try:
        if (path / "experiment.toml").exists():
            # A file that was refused before its first round ended is corrected and run again.
            is_begun = any((path / "runs").glob("*/state.json")) or running_pid(path) is not None
            if is_begun:
                if (path / "experiment.toml").read_bytes() == content:
                    return open_folder(path)
                raise ExperimentError(
                    f"{path} has an experiment with another file: choose another folder with -o, or go on with "
                    f"that one: `bflnode experiment resume {path}`"
                )
            _refuse_links(path)
        elif path.exists() and any(path.iterdir()):
            raise ExperimentError(f"{path} is not empty and has no experiment: choose another folder with -o")
        path.mkdir(parents=True, exist_ok=True)
        source = file.absolute().parent
        facts = {
            "format": FORMAT,
            "name": experiment.name,
            "source": str(source),
            "experiment_sha256": hashlib.sha256(content).hexdigest(),
        }
        write_durably(path / "experiment.json", (json.dumps(facts, indent=2) + "\n").encode())
        write_durably(path / "experiment.toml", content)
    except OSError as error:
        raise ExperimentError(f"cannot make {path}: {error.strerror}: choose another folder with -o") from error
    return ExperimentFolder(path, experiment, source)


def open_folder(path: Path) -> ExperimentFolder:
    """An experiment's folder.

    Raises:
        ExperimentError: it is none, damaged, or its file isn't the one that it was begun with.
    """
    _refuse_links(path)
    file = path / "experiment.toml"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ExperimentError(
            f"{path} has no experiment ({error.strerror}): make one with `bflnode experiment run FILE.toml -o {path}`"
        ) from error
    metadata = _metadata(path)
    if metadata.get("format") != FORMAT:
        raise ExperimentError(f"{path} was made by another version of bflnode: use that one, or run the file anew")
    digest = hashlib.sha256(content).hexdigest()
    if metadata.get("experiment_sha256", digest) != digest:  # older folders have none
        raise ExperimentError(
            f"{file} has changed since this experiment was begun (experiment.json has another experiment_sha256): "
            "put it back as it was, or run the changed file in a new folder"
        )
    return ExperimentFolder(path, parse_experiment(content, file), Path(str(metadata.get("source", "."))))


def _refuse_links(path: Path) -> None:
    """Refuse a folder with links: somebody else's may lead what a run removes and cuts off to any file."""
    for folder, folders, files in os.walk(path):
        for found in (Path(folder, name) for name in (*folders, *files)):
            if found.is_symlink():
                raise ExperimentError(
                    f"{found} is a link, and runs write to their folder alone: put a copy in its place"
                )


def describe(folder: ExperimentFolder) -> dict[str, Any]:
    """How far an experiment is: runs with their rounds and heads."""
    runs: list[dict[str, Any]] = []
    for plan in folder.plans:
        state = folder.run(plan).state()
        done = 0 if state is None else state.round
        runs.append(
            {
                "name": plan.name,
                "method": plan.entry.title,
                "alpha": plan.alpha,
                "seed": plan.seed,
                "round": done,
                "rounds": folder.experiment.rounds,
                "head": None if state is None else state.head,
                "seconds": 0.0 if state is None else state.seconds,
            }
        )
    finished = sum(run["round"] >= run["rounds"] for run in runs)
    is_running = running_pid(folder.path) is not None
    state_name = "done" if finished == len(runs) else "running" if is_running else "stopped"
    return {
        "directory": str(folder.path),
        "name": folder.experiment.name,
        "state": state_name,
        "finished": finished,
        "runs": runs,
    }


def describe_all(directory: Path) -> list[dict[str, Any]]:
    """How far the experiments in a folder are; one that is damaged has the state `damaged` and says why."""
    answers = []
    for path in sorted(found.parent for found in directory.glob("*/experiment.toml")):
        try:
            answers.append(describe(open_folder(path)))
        except ExperimentError as error:
            broken = {"directory": str(path), "name": path.name, "state": "damaged", "finished": 0, "runs": []}
            answers.append({**broken, "error": str(error)})
    return answers


def _metadata(path: Path) -> dict[str, Any]:
    file = path / "experiment.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExperimentError(f"{file} is missing or damaged ({error}): run the experiment anew elsewhere") from error
    if not isinstance(content, dict):
        raise ExperimentError(f"{file} is damaged: run the experiment anew elsewhere")
    return content


def _csv(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(["" if cell is None else cell for cell in row] for row in rows)
    return text.getvalue()
