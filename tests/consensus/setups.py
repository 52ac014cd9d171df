"""What the chains of tests start from: keys, accounts, parameters and a task."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from bflnode.consensus.block import (
    Validator,
)
from bflnode.consensus.genesis import Genesis, GenesisAccount, GenesisTask, Mode, Parameters
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.task import (
    Combination,
    Deadlines,
    ProbeMode,
    Rule,
    Similarity,
    TaskSpecification,
    Weighting,
)
from bflnode.consensus.types import TOKEN, BlobId, Hash

START_MS = 1_700_000_000_000
MODEL_BYTES = 1000
CLASSES = 2

ADMISSION = SecretKey.from_seed(sha256(b"admission").digest())
OUTSIDER = SecretKey.from_seed(sha256(b"outsider").digest())

DEADLINES = Deadlines(
    registration_ms=10_000,
    commit_ms=100_000,
    reveal_ms=20_000,
    available_ms=30_000,
    aggregate_ms=40_000,
    attest_ms=50_000,
    grace_permille=500,
    grace_floor_ms=1_000,
)

PARAMETERS = Parameters(
    block_interval_ms=10,
    heartbeat_ms=60_000,
    clock_tolerance_ms=1_000,
    max_step_ms=10_000_000,
    propose_timeout_ms=1_000,
    vote_timeout_ms=500,
    timeout_step_ms=500,
    admission_amount=5 * TOKEN,
    copy_memory_rounds=3,
    minimum_stake=1,
    unbonding_ms=60_000,
    jail_ms=10_000,
    attendance_window=100,
    missed_to_jail=95,
)

SPECIFICATION = TaskSpecification(
    name="task",
    architecture="linear",
    classes=CLASSES,
    model_bytes=MODEL_BYTES,
    initial_model=BlobId(sha256(b"initial").digest()),
    rounds=3,
    reward=20 * TOKEN,
    clients_start=2,
    clients_min=2,
    clients_max=20,
    clusters=2,
    rho=2,
    psi=4,
    probe_mode=ProbeMode.PUBLIC,
    probe_set=BlobId(sha256(b"probe set").digest()),
    validation_set=BlobId(bytes(32)),
    weighting=Weighting.UNIFORM,
    rule=Rule.PAA,
    combination=Combination.MEAN,
    hostile_permille=200,
    clip_permille=1000,
    step_permille=1000,
    momentum_permille=0,
    shared_permille=1000,
    similarity=Similarity.PROTOTYPES,
    tolerance=10,
    deadlines=DEADLINES,
    epochs=5,
    batch_size=64,
    learning_rate_micro=1000,
)


def make_keys(count: int, name: str = "actor") -> tuple[SecretKey, ...]:
    """Key pairs in ascending order of account, so that key number i is client number i."""
    keys = [SecretKey.from_seed(sha256(f"{name} {number}".encode()).digest()) for number in range(count)]
    return tuple(sorted(keys, key=lambda key: key.account))


@dataclass(frozen=True)
class Setup:
    """What a harness starts from. Validators are the first of the actors, all actors have accounts."""

    actors: int = 4
    stakes: tuple[int, ...] = (10, 10, 10, 10)
    queue: tuple[int, ...] = ()
    specifications: tuple[TaskSpecification, ...] = (SPECIFICATION,)
    parameters: Parameters = PARAMETERS
    balance: int = 1_000
    admission_pool: int = 100 * TOKEN

    def genesis(self, keys: Sequence[SecretKey]) -> Genesis:
        """The genesis for these keys."""
        return Genesis(
            name="test",
            time_ms=START_MS,
            mode=Mode.CACC,
            parameters=self.parameters,
            accounts=tuple(GenesisAccount(key.account, self.balance) for key in keys),
            validators=tuple(Validator(key.account, stake) for key, stake in zip(keys, self.stakes, strict=False)),
            queue=tuple(keys[position].account for position in self.queue),
            admission_key=ADMISSION.account,
            admission_pool=self.admission_pool,
            tasks=tuple(
                GenesisTask(specification, keys[0].account, specification.rounds * specification.reward)
                for specification in self.specifications
            ),
            beacon=Hash(sha256(b"beacon").digest()),
        )


def make_setup(
    *, parameters: dict[str, Any] | None = None, deadlines: dict[str, int] | None = None, **changes: Any
) -> Setup:
    """A setup: fields of `Setup` by name, all others are fields of the task's specification."""
    own = {name: changes.pop(name) for name in tuple(changes) if name in Setup.__dataclass_fields__}
    changes.setdefault("clients_start", changes.get("clients_min", SPECIFICATION.clients_start))
    specification = replace(SPECIFICATION, **changes, deadlines=replace(DEADLINES, **(deadlines or {})))
    own.setdefault("specifications", (specification,))
    if "stakes" not in own and "actors" in own:
        own["stakes"] = (10,) * min(own["actors"], 4)
    return Setup(parameters=replace(PARAMETERS, **(parameters or {})), **own)
