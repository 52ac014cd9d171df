"""What a node and its trainer process tell each other: jobs, progress, results and failures.

The node listens on a Unix-domain socket, the worker connects and says `Hello`. Then, one job at a time:

```
node                         worker
 |-- RunJob(number, job) ----->|
 |<---- Progress(number, …) ---|   none or more
 |<---- JobDone | JobRefused --|   exactly one
```

Models, shards and probes are files and are named by absolute path. Output files appear whole or not at all.
Here are the messages alone; `worker` runs jobs, `trainer` is the node's side.
"""

from dataclasses import dataclass
from enum import StrEnum

from .process_messages import ProcessMessages

MAX_PREDICTIONS = 4096
"""Samples one PredictJob may ask for, so that the answer fits in a message."""


@dataclass(frozen=True, slots=True)
class LookAhead:
    """How far a client goes on from what it received before it trains; see `bflnode.fl.momentum`.

    Attributes:
        path: what the client had received a learning round before.
        share: of the difference to that.
    """

    path: str
    share: float


@dataclass(frozen=True, slots=True)
class Memory:
    """What a client predicts with before it trains, beside what it received; see `bflnode.fl.interpolation`.

    Attributes:
        path: what the client trained a learning round before.
        share: of that.
    """

    path: str
    share: float


@dataclass(frozen=True, slots=True)
class TrainJob:
    """Train a received model on the node's own shard.

    Attributes:
        shard_path: what `bflnode.fl.samples.load_shard` reads.
        has_prior: whether the shard's label prior is added in training and in measuring; see `bflnode.fl.prior`.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        ahead: of the base, where training starts; none in a client's first round, as is the next.
        memory: which the client predicts with before training.
        share: of the way from the start to the trained model, at which the client predicts after training.
    """

    architecture_id: str
    base_path: str
    shard_path: str
    output_path: str
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 0.001
    seed: int = 0
    device: str = "cpu"
    has_prior: bool = False
    ahead: LookAhead | None = None
    memory: Memory | None = None
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Accuracies in [0, 1] on the shard's local test data: before (RECEIVED) and after (POST) training.

    With the prior, before training with the memory, and after it at the job's `share`.
    """

    received_accuracy: float
    post_accuracy: float
    loss: float
    samples: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """What becomes of models: names as `fl.rules` and `fl.robust` have them, shares and factors in thousandths."""

    name: str = "paa"
    combination: str = "mean"
    hostile_permille: int = 200
    clip_permille: int = 1000
    step_permille: int = 1000
    shared_permille: int = 1000


@dataclass(frozen=True, slots=True)
class AggregateJob:
    """Make an output of models for each cluster.

    Attributes:
        weights: integer weight of each input, in the order of `input_paths`.
        labels: the cluster of each input, an index into `output_paths`.
        rule: what is done with them.
        base_paths: what each input was trained from; only where the rule needs it.
        classes: which classes each input's client holds, a bit each, least significant first; only where the rule asks.
        triangle: strict upper triangle of how alike inputs' steps are, where that raises what clusters share; or None.
    """

    architecture_id: str
    input_paths: tuple[str, ...]
    weights: tuple[int, ...]
    labels: tuple[int, ...]
    output_paths: tuple[str, ...]
    rule: RuleSettings = RuleSettings()
    base_paths: tuple[str, ...] = ()
    classes: tuple[bytes, ...] = ()
    triangle: bytes | None = None


@dataclass(frozen=True, slots=True)
class AggregateResult:
    """Sizes of the files written, in the order of `output_paths`."""

    sizes_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PublicProbe:
    """Samples that the chain's seed draws from a task's probe set; psi is their number."""

    probe_set_path: str
    seed: bytes
    psi: int


@dataclass(frozen=True, slots=True)
class ProbeSamples:
    """Samples an aggregator published: a file as `OwnProbeJob` writes it, of psi samples at most."""

    samples_path: str
    psi: int


@dataclass(frozen=True, slots=True)
class MatrixJob:
    """Compare models by their prototypes on a probe."""

    architecture_id: str
    model_paths: tuple[str, ...]
    probe: PublicProbe | ProbeSamples


@dataclass(frozen=True, slots=True)
class UpdateMatrixJob:
    """Compare models by how they differ from what each was trained from, `base_paths`."""

    architecture_id: str
    model_paths: tuple[str, ...]
    base_paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MatrixResult:
    """The strict upper triangle of the similarity matrix: big-endian int16, row by row, in units of 10^-4."""

    triangle: bytes


@dataclass(frozen=True, slots=True)
class UnsettledJob:
    """Find the pairs whose similarity rounding decides.

    Attributes:
        matrix: the job whose similarities are in question.
        triangle: of its result on this machine.
        tolerance: in units of 10^-4.
    """

    matrix: MatrixJob
    triangle: bytes
    tolerance: int


@dataclass(frozen=True, slots=True)
class UnsettledResult:
    """For each entry of the matrix' triangle, in its order, a byte: 1 where rounding decides, else 0."""

    entries: bytes


@dataclass(frozen=True, slots=True)
class OwnProbeJob:
    """Draw the aggregator's own probe from its shard."""

    shard_path: str
    seed: bytes
    psi: int
    output_path: str


@dataclass(frozen=True, slots=True)
class OwnProbeResult:
    """Size of the file written."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """Measure a model on the test data of a shard, or on a sample file such as a validation set.

    Attributes:
        prior_path: a shard whose label prior predicts with the model; empty for none.
        memory: which predicts with the model.
    """

    architecture_id: str
    model_path: str
    data_path: str
    prior_path: str = ""
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """Accuracy in [0, 1], mean cross-entropy in nats."""

    accuracy: float
    loss: float
    samples: int


@dataclass(frozen=True, slots=True)
class PredictJob:
    """Classify a person's samples: an .npz whose `inputs` are (samples, channels, height, width).

    Attributes:
        prior_path: a shard whose label prior predicts with the model; empty for none.
        memory: which predicts with the model.
    """

    architecture_id: str
    model_path: str
    inputs_path: str
    prior_path: str = ""
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class PredictResult:
    """The most probable class of each sample, and the probability of every class."""

    labels: tuple[int, ...]
    probabilities: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class InitialModelJob:
    """Write the weights that a task starts from."""

    architecture_id: str
    seed: int
    output_path: str


@dataclass(frozen=True, slots=True)
class InitialModelResult:
    """Size of the file written."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class WarmUpJob:
    """Import torch now: the first job with a deadline would lose the race against the seconds that takes."""


@dataclass(frozen=True, slots=True)
class WarmUpResult:
    """Everything is imported."""


Job = (
    TrainJob
    | AggregateJob
    | MatrixJob
    | UpdateMatrixJob
    | UnsettledJob
    | OwnProbeJob
    | EvaluateJob
    | PredictJob
    | InitialModelJob
    | WarmUpJob
)
Result = (
    TrainResult
    | AggregateResult
    | MatrixResult
    | UnsettledResult
    | OwnProbeResult
    | EvaluateResult
    | PredictResult
    | InitialModelResult
    | WarmUpResult
)


class RefusalReason(StrEnum):
    """Why a worker couldn't do a job."""

    BAD_INPUT = "bad-input"
    """A file or parameter of the job: missing, malformed, of another architecture."""

    OUT_OF_MEMORY = "out-of-memory"
    """The job is too large for this machine."""

    DEFECT = "defect"
    """Our fault; the traceback is in the worker's log."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The worker's first message."""

    process_id: int


@dataclass(frozen=True, slots=True)
class RunJob:
    """A job for the worker; the number comes back in its answers."""

    number: int
    job: Job


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: a fraction in [0, 1] and a few words."""

    number: int
    fraction: float
    note: str


@dataclass(frozen=True, slots=True)
class JobDone:
    """A job's result."""

    number: int
    result: Result


@dataclass(frozen=True, slots=True)
class JobRefused:
    """A job that can't be done; the worker lives on."""

    number: int
    reason: str
    explanation: str


WorkerMessage = Hello | RunJob | Progress | JobDone | JobRefused

WORKER_MESSAGES: ProcessMessages[WorkerMessage] = ProcessMessages(
    *(LookAhead, Memory, TrainJob, RuleSettings, AggregateJob, PublicProbe, ProbeSamples, MatrixJob, UpdateMatrixJob),
    *(UnsettledJob, UnsettledResult, OwnProbeJob, EvaluateJob, PredictJob),
    *(InitialModelJob, TrainResult, AggregateResult, MatrixResult, OwnProbeResult, EvaluateResult, PredictResult),
    *(InitialModelResult, WarmUpJob, WarmUpResult, Hello, RunJob, Progress, JobDone, JobRefused),
)
