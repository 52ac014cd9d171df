"""The file of an experiment: what is compared, on what, how often. Read strictly; light to import.

    methods x alphas x seeds = runs, each of `rounds` learning rounds

What a setting of a method may be is known to the method, which `run` asks before the first run; what the chain can take
of it is checked here. What runs do is in `run`, where results go in `store`.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from bflnode.consensus.genesis import MAX_GENESIS_ACCOUNTS, MAX_SUPPLY
from bflnode.consensus.task import (
    MAX_CLIP_PERMILLE,
    MAX_CLUSTERS,
    MAX_HOSTILE_PERMILLE,
    MAX_MOMENTUM_PERMILLE,
    MAX_STEP_PERMILLE,
    PERMILLE,
)
from bflnode.consensus.types import MAX_CLIENTS, TOKEN
from bflnode.node.home import HomeError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_FILE_BYTES = 1024 * 1024
"""Far more than anybody writes by hand."""

MAX_RUNS = 1000
"""Runs of one experiment: more are a mistake in a list."""

MAX_EXPERIMENT_CLIENTS = 100_000
"""Each has a line in every checkpoint."""

MAX_SHOWN = 80
"""Characters of a name that an error repeats."""

CHAIN_METHODS: Mapping[str, frozenset[str]] = {
    "paa": frozenset({"clusters"}),
    "prior-rows": frozenset({"clusters", "server_step", "momentum", "shared"}),
}
"""Methods whose aggregation is a rule of the chain, which run on a real ledger in virtual time; with those of their
settings that a task of the chain has."""

CHAIN_RANGES: Mapping[str, tuple[float, float]] = {
    "clusters": (1, MAX_CLUSTERS),
    "server_step": (1 / PERMILLE, MAX_STEP_PERMILLE / PERMILLE),
    "momentum": (0, MAX_MOMENTUM_PERMILLE / PERMILLE),
    "shared": (0, 1),
    "hostile": (0, MAX_HOSTILE_PERMILLE / PERMILLE),
    "clip": (1 / PERMILLE, MAX_CLIP_PERMILLE / PERMILLE),
}
"""The least and the most of what a task of the chain says in whole numbers or in thousandths."""

MAX_REWARDS = MAX_SUPPLY // TOKEN - 10_000
"""Tokens that a run can pay on a ledger: all there may be, but for more than its validators have at stake."""

CENTRALISED = "centralised"
"""The method in which one client has everybody's data."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


class ExperimentError(HomeError):
    """An experiment that can't be read, run or reported; the message says why and what to do."""


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("give 1 to 60 letters, digits, dots, dashes or underlines: it names a folder")
    return name


Name = Annotated[str, AfterValidator(_checked_name)]

Listed = Field(min_length=1, strict=False)
"""Of a tuple: TOML has lists alone. What is in it is read as strictly as all else."""

REMEDIES = {
    "tuple_type": "give a list",
    "model_type": "give a table",
    "int_type": "give a whole number",
    "float_type": "give a number",
    "bool_type": "give true or false",
    "string_type": "give text in quotes",
    "too_short": "give at least one",
}
"""What to give where pydantic refuses a value, as people call it."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Data(_Section):
    """Which data set, and how much of it."""

    kind: str = "digits"
    path: str = ""
    """File or folder, relative to the experiment's file."""
    download: bool = False
    """Let torchvision fetch the published files into `path`."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Training samples over all clients, 0 for all."""
    test_samples: Annotated[int, Field(ge=0)] = 0
    min_train: Annotated[int, Field(ge=1)] = 10
    """Fewest training samples of a client; 10 is the papers'."""
    min_test: Annotated[int, Field(ge=1)] = 2


class Training(_Section):
    """Local training, the same for all methods."""

    epochs: Annotated[int, Field(ge=1, le=1000)] = 5
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 0.001
    optimiser: Literal["adam", "sgd"] = "adam"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class MethodEntry(BaseModel):
    """A method of federated learning; whatever else is in its table is a setting of the method."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, strict=True)

    name: Annotated[str, Field(min_length=1, max_length=60)]
    label: Name | None = None
    """What it is called in results; the method's name unless two entries share it."""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the method."""
        return dict(self.model_extra or {})

    @property
    def title(self) -> str:
        """What it is called in results."""
        return self.label or self.name


class Robust(_Section):
    """What makes one model out of several; see `fl.robust`."""

    name: Literal["mean", "median", "trimmed-mean", "krum", "multi-krum", "norm-clipping"] = "mean"
    hostile: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    clip: Annotated[float, Field(gt=0)] = 1.0


class HostileClients(_Section):
    """What hostile clients do; see `fl.attacks`."""

    name: Literal["label-flip", "sign-flip", "noise", "model-replacement", "copy", "lazy"]
    share: Annotated[float, Field(ge=0, le=1)] = 0.2
    strength: Annotated[float, Field(gt=0)] = 1.0


class ShiftedData(_Section):
    """How clients' data differs besides its labels; see `fl.population`."""

    name: Literal["none", "rotation", "style"] = "none"
    groups: Annotated[int, Field(ge=1, le=4)] = 4
    test_prior: Literal["same", "uniform"] = "same"


class Probe(_Section):
    """Samples on which models are compared."""

    psi: Annotated[int, Field(ge=1, le=4096)] = 32


class Chain(_Section):
    """The ledger that methods of the chain run on."""

    use: Literal["auto", "never"] = "auto"
    """`never` runs their aggregation alone, as that of other methods."""
    reward: Annotated[int, Field(ge=0, le=1_000_000)] = 20
    """Tokens that a learning round pays (BFLN, section 4.3.1)."""
    rho: Annotated[int, Field(ge=1, le=8)] = 2


class Experiment(_Section):
    """An experiment."""

    name: Name
    rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    clients: Annotated[int, Field(ge=1, le=MAX_EXPERIMENT_CLIENTS)] = 20
    sample: Annotated[int, Field(ge=0)] = 0
    """Clients in a learning round, drawn anew for each; 0 for all."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Listed] = (1,)
    alphas: Annotated[tuple[Annotated[float, Field(ge=0), AfterValidator(abs)], ...], Listed] = (0.5,)
    """Dirichlet concentrations of the labels; 0 spreads them evenly."""
    architecture: str = ""
    """Id of a model; by the data when empty."""
    evaluate_every: Annotated[int, Field(ge=1)] = 5
    """Rounds between measurements on the global test set; the last round is measured anyway."""
    data: Data = Data()
    training: Training = Training()
    methods: Annotated[tuple[MethodEntry, ...], Listed]
    robust: Robust = Robust()
    attack: HostileClients | None = None
    shift: ShiftedData = ShiftedData()
    probe: Probe = Probe()
    chain: Chain = Chain()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        titles = [entry.title for entry in self.methods]
        for title in titles:
            _checked_name(title)
        for what, values in (("methods", titles), ("seeds", self.seeds), ("alphas", self.alphas)):
            twice = [value for value in values if list(values).count(value) > 1]
            if twice:
                remedy = "give each its own label" if what == "methods" else "name it once"
                raise ValueError(f"{what} has {twice[0]} twice: {remedy}")
        shown = {f"{alpha:g}": alpha for alpha in reversed(self.alphas)}
        for alpha in self.alphas:
            other = shown[f"{alpha:g}"]
            if other != alpha:
                raise ValueError(f"alphas {other!r} and {alpha!r} are both {alpha:g} in results: leave one out")
        if self.sample > self.clients:
            raise ValueError(f"sample is {self.sample} of {self.clients} clients: give at most as many, or 0 for all")
        runs = len(titles) * len(self.seeds) * len(self.alphas)
        if runs > MAX_RUNS:
            raise ValueError(f"methods, alphas and seeds make {runs} runs: {MAX_RUNS} are the most")
        for entry in self.methods:
            if self.is_on_chain(entry):
                self._require_chain_can(entry)
        return self

    @property
    def clients_per_round(self) -> int:
        """Clients in a learning round."""
        return self.sample or self.clients

    def is_on_chain(self, entry: MethodEntry) -> bool:
        """Whether a method runs on a ledger; the ablation of `prior-rows` without its rows is no rule of the chain."""
        return self.chain.use == "auto" and entry.name in CHAIN_METHODS and entry.settings.get("rows", True) is True

    def _require_chain_can(self, entry: MethodEntry) -> None:
        remedy = 'or run it without a ledger: [chain] use = "never"'
        if self.clients_per_round > MAX_CLIENTS:
            raise ValueError(
                f"{entry.title} runs on the chain, where a learning round has at most {MAX_CLIENTS} clients and not "
                f"{self.clients_per_round}: set sample to {MAX_CLIENTS} or less, {remedy}"
            )
        if self.clients > MAX_GENESIS_ACCOUNTS:
            raise ValueError(
                f"{entry.title} runs on the chain, whose genesis has at most {MAX_GENESIS_ACCOUNTS} accounts and not "
                f"{self.clients}: use fewer clients, {remedy}"
            )
        if self.rounds * self.chain.reward > MAX_REWARDS:
            raise ValueError(
                f"{entry.title} runs on the chain, which has {MAX_REWARDS} tokens to pay, and {self.rounds} rounds of "
                f"{self.chain.reward} are more: lower rounds or chain.reward, {remedy}"
            )
        own = {what: entry.settings.get(what) for what in sorted(CHAIN_METHODS[entry.name])}
        for what, value in (own | {"hostile": self.robust.hostile, "clip": self.robust.clip}).items():
            least, most = CHAIN_RANGES[what]
            if not isinstance(value, int if what == "clusters" else int | float):
                continue  # the default, or what the method refuses
            if not least <= value <= most:
                raise ValueError(
                    f"{entry.title} runs on the chain, which takes {what} from {least:g} to {most:g}, and it is "
                    f"{_shown(str(value))}: change it, {remedy}"
                )
            if permille(value) / PERMILLE != value:
                raise ValueError(
                    f"{entry.title} runs on the chain, which counts {what} in thousandths, and {value} is between two: "
                    f"set it to {permille(value) / PERMILLE}, {remedy}"
                )


def permille(value: float) -> int:
    """The nearest number of thousandths."""
    return round(value * PERMILLE)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run of an experiment: a method, an alpha, a seed."""

    entry: MethodEntry
    alpha: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.entry.title}-alpha{self.alpha:g}-seed{self.seed}"


def plans(experiment: Experiment) -> tuple[RunPlan, ...]:
    """All runs; those with the same data follow each other."""
    return tuple(
        RunPlan(entry, alpha, seed)
        for seed, alpha, entry in product(experiment.seeds, experiment.alphas, experiment.methods)
    )


def read_experiment(path: Path) -> tuple[Experiment, bytes]:
    """Read an experiment's file.

    Returns:
        The experiment, and the file's bytes.

    Raises:
        ExperimentError: it can't be read, isn't TOML, or has a setting that is unknown or out of range.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ExperimentError(f"cannot read the experiment {path}: {error.strerror}: check the path") from error
    if len(content) > MAX_FILE_BYTES:
        raise ExperimentError(f"{path} has more than {MAX_FILE_BYTES} bytes: this is no experiment's file")
    return parse_experiment(content, path), content


def parse_experiment(content: bytes, path: Path) -> Experiment:
    """Read an experiment from the bytes of its file; `path` is for messages. Raises as `read_experiment`."""
    try:
        return Experiment.model_validate(tomllib.loads(content.decode("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ExperimentError(f"{path}: {_shown(where) + ': ' if where else ''}{_fault(first)}") from error
    except ValueError as error:
        raise ExperimentError(f"{path} is not valid TOML: {_shown(str(error))}") from error
    except RecursionError as error:
        raise ExperimentError(f"{path} is no experiment's file: its brackets are nested too deep") from error


def _fault(error: "ErrorDetails") -> str:
    """What is wrong with a setting, and what it is."""
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return "there is no such setting, correct or remove it"
    if kind == "missing":
        return "it is missing, and has no default: add it"
    if kind == "value_error":
        return error["msg"].removeprefix("Value error, ")
    expected = REMEDIES.get(kind, error["msg"])
    return f"{expected}, it is {_shown(_in_toml(value))}" if isinstance(value, str | int | float) else expected


def _in_toml(value: str | float) -> str:
    """A value as its file has it."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _shown(text: str) -> str:
    """A text from a file, unless it would fill or rewrite a terminal."""
    return text if len(text) <= MAX_SHOWN and text.isprintable() else ascii(text[:MAX_SHOWN])
