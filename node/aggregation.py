"""A learning round's aggregation as a job for a trainer process: what aggregators, committees and verifiers ask for.

How the job is done is `fl.rules`' business. Light to import: the command line names rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bflnode.consensus.task import PERMILLE, Rule, Similarity, TaskSpecification, Weighting
from bflnode.node.workers.worker_protocol import AggregateJob, RuleSettings


class Included(Protocol):
    """A client whose model is aggregated, with what counts of what it registered."""

    @property
    def samples(self) -> int:
        """Number of its samples."""

    @property
    def classes(self) -> bytes:
        """A `class_bitmap`."""


@dataclass(frozen=True, slots=True)
class AggregationFiles:
    """Where the files are: a model and, if the rule needs them, a base for each client; an output for each cluster."""

    models: tuple[str, ...]
    bases: tuple[str, ...]
    outputs: tuple[str, ...]


def aggregate_job(
    specification: TaskSpecification,
    clients: Sequence[Included],
    triangle: bytes,
    labels: tuple[int, ...],
    files: AggregationFiles,
) -> AggregateJob:
    """The job that makes the outputs of clients, which are in the order of keys, with these similarities and labels."""
    by_samples = specification.weighting is Weighting.SAMPLES
    return AggregateJob(
        architecture_id=specification.architecture,
        input_paths=files.models,
        weights=tuple(client.samples if by_samples else 1 for client in clients),
        labels=labels,
        output_paths=files.outputs,
        rule=rule_settings(specification),
        base_paths=files.bases,
        classes=tuple(client.classes for client in clients),
        triangle=triangle if shares_by_steps(specification) else None,
    )


def without_unsettled(theirs: bytes, ours: bytes, unsettled: bytes) -> bytes:
    """A triangle of similarities with ours in place of those that rounding decides, an `UnsettledResult`'s entries.

    Those are of clients whose models have no similarity that two processors agree on: not the aggregator's fault.
    """
    assert len(theirs) == len(ours) == 2 * len(unsettled), "triangles of the same clients"
    entries = (slice(2 * index, 2 * index + 2) for index in range(len(unsettled)))
    return b"".join((ours if is_noise else theirs)[entry] for entry, is_noise in zip(entries, unsettled, strict=True))


def needs_bases(specification: TaskSpecification) -> bool:
    """Whether comparing or aggregating takes the models that clients trained from."""
    from bflnode.node.workers.worker_jobs import rule_of

    return not needs_probe(specification) or rule_of(rule_settings(specification)).needs_received


def needs_probe(specification: TaskSpecification) -> bool:
    """Whether clients are compared on samples."""
    return specification.similarity is Similarity.PROTOTYPES


def shares_by_steps(specification: TaskSpecification) -> bool:
    """Whether clusters get more of everybody's model the less their members' steps differ from others'."""
    return specification.shared_permille < PERMILLE and specification.similarity is Similarity.UPDATES


def has_prior(specification: TaskSpecification) -> bool:
    """Whether clients train, and predict for themselves, with their label prior."""
    return specification.rule is Rule.PRIOR_ROWS


def rule_settings(specification: TaskSpecification) -> RuleSettings:
    """The rule of a task."""
    return RuleSettings(
        name=choice_name(specification.rule.name),
        combination=choice_name(specification.combination.name),
        hostile_permille=specification.hostile_permille,
        clip_permille=specification.clip_permille,
        step_permille=specification.step_permille,
        shared_permille=specification.shared_permille,
    )


def rule_text(specification: TaskSpecification) -> str:
    """The rule of a task in a few words, as `prior-rows of median, step 1.5`."""
    settings = rule_settings(specification)
    step = "" if settings.step_permille == PERMILLE else f", step {settings.step_permille / PERMILLE:g}"
    momentum = f", momentum {specification.momentum_permille / PERMILLE:g}" if specification.momentum_permille else ""
    least = "at least " if shares_by_steps(specification) else ""
    shared = f", {least}{settings.shared_permille / PERMILLE:g} shared" if settings.shared_permille != PERMILLE else ""
    by = "" if needs_probe(specification) else ", compared by updates"
    return f"{settings.name} of {settings.combination}{step}{momentum}{shared}{by}"


def choice_name(name: str) -> str:
    """How people write a choice of the protocol: PRIOR_ROWS is `prior-rows`."""
    return name.lower().replace("_", "-")


def choice_value(word: str) -> str:
    """The protocol's name of what people write: `prior-rows` is PRIOR_ROWS."""
    return word.upper().replace("-", "_")
