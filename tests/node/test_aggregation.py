"""A task's rule as a job: names and numbers mean the same on the chain and in the arithmetic."""

from dataclasses import replace

import pytest

from bflnode.consensus.task import Combination, Rule, Similarity, Weighting
from bflnode.fl import robust, rules
from bflnode.fl.methods.prior_rows import SIMILARITIES
from bflnode.node.aggregation import (
    AggregationFiles,
    aggregate_job,
    choice_name,
    choice_value,
    has_prior,
    needs_bases,
    rule_settings,
    rule_text,
)
from bflnode.node.workers.worker_jobs import rule_of
from tests.consensus.harness import Harness
from tests.consensus.setups import SPECIFICATION


def test_the_chain_names_what_the_arithmetic_has() -> None:
    assert [choice_name(combination.name) for combination in Combination] == list(robust.RULES)
    assert [choice_name(rule.name) for rule in Rule] == [rules.PAA, rules.PRIOR_ROWS]
    assert [choice_name(similarity.name) for similarity in Similarity] == list(SIMILARITIES)
    for choice in (*Combination, *Rule, *Similarity):
        assert choice_value(choice_name(choice.name)) == choice.name


def test_thousandths_become_the_nearest_doubles() -> None:
    specification = replace(
        SPECIFICATION,
        rule=Rule.PRIOR_ROWS,
        combination=Combination.TRIMMED_MEAN,
        hostile_permille=333,
        clip_permille=1_250,
        step_permille=1_700,
        shared_permille=250,
    )

    rule = rule_of(rule_settings(specification))

    assert (rule.name, rule.combination.name, rule.server_step) == ("prior-rows", "trimmed-mean", 1.7)
    assert (rule.combination.hostile, rule.combination.clip, rule.shared) == (0.333, 1.25, 0.25)


@pytest.mark.parametrize(
    ("changes", "text", "takes_bases", "prior"),
    [
        ({}, "paa of mean", False, False),
        ({"combination": Combination.NORM_CLIPPING}, "paa of norm-clipping", True, False),
        ({"step_permille": 1_500}, "paa of mean, step 1.5", True, False),
        ({"rule": Rule.PRIOR_ROWS, "step_permille": 2_000}, "prior-rows of mean, step 2", True, True),
        ({"momentum_permille": 800}, "paa of mean, momentum 0.8", False, False),
        ({"rule": Rule.PRIOR_ROWS, "shared_permille": 300}, "prior-rows of mean, 0.3 shared", True, True),
        ({"similarity": Similarity.UPDATES}, "paa of mean, compared by updates", True, False),
    ],
)
def test_what_a_task_asks_for_is_told_from_its_specification(
    changes: dict[str, object], text: str, takes_bases: bool, prior: bool
) -> None:
    specification = replace(SPECIFICATION, **changes)  # type: ignore[arg-type]  # fields by name

    assert (rule_text(specification), needs_bases(specification), has_prior(specification)) == (
        text,
        takes_bases,
        prior,
    )


def test_a_job_has_what_clients_registered_when_the_round_opened() -> None:
    harness = Harness(actors=2, weighting=Weighting.SAMPLES)
    harness.block(harness.register(0, histogram=(0, 7)), harness.register(1, histogram=(2, 1)))
    files = AggregationFiles(models=("a", "b"), bases=(), outputs=("x",))

    job = aggregate_job(harness.task.specification, harness.round.clients, b"", (0, 0), files)

    assert (job.weights, job.classes, job.labels) == ((7, 3), (b"\x02", b"\x03"), (0, 0))
    uniform = replace(harness.task.specification, weighting=Weighting.UNIFORM)
    assert aggregate_job(uniform, harness.round.clients, b"", (0, 0), files).weights == (1, 1)
