"""How alike clients' steps are."""

import numpy as np
import pytest

from bflnode.consensus.clustering import cluster
from bflnode.fl.aggregation import CHUNK_ELEMENTS
from bflnode.fl.prototypes import CORRELATION_SCALE
from bflnode.fl.updates import common_part, update_correlations
from bflnode.fl.weights import Tensor

SIZE = CHUNK_ELEMENTS + 7
"""More than one chunk."""


def model(values: Tensor, decision: float = 0.0) -> dict[str, Tensor]:
    return {
        "representation.w": values.astype(np.float32),
        "representation.n.running_mean": np.array([decision], dtype=np.float32),
        "representation.n.num_batches_tracked": np.array([7]),
        "decision.weight": np.array([decision], dtype=np.float32),
    }


def test_steps_are_correlated_as_pearson_says() -> None:
    generator = np.random.default_rng(1)
    bases, steps = generator.normal(size=(4, SIZE)), generator.normal(size=(4, SIZE))
    steps[3] += steps[0]

    matrix = update_correlations(
        [model(base + step) for base, step in zip(bases, steps, strict=True)], [*map(model, bases)]
    )

    assert matrix.tolist() == matrix.T.tolist()
    assert matrix / CORRELATION_SCALE == pytest.approx(np.corrcoef(steps), abs=2e-4)


def test_decision_layer_statistics_and_counters_do_not_count() -> None:
    step = np.arange(6.0)
    base = model(np.zeros(6))

    matrix = update_correlations([model(step, decision=-9.0), model(2 * step + 1, decision=9.0)], [base, base])

    assert matrix[0, 1] == CORRELATION_SCALE


def test_a_client_that_took_no_step_or_an_endless_one_correlates_with_nobody() -> None:
    base, step = model(np.zeros(6)), model(np.arange(6.0))
    endless = model(np.full(6, 3e38) * [1, -1, 1, -1, 1, -1])

    matrix = update_correlations([base, step, endless], [base, base, base])

    assert matrix[0, 1] == matrix[0, 2] == 0
    assert np.diagonal(matrix).tolist() == [CORRELATION_SCALE] * 3


def test_steps_that_are_all_alike_but_for_noise_correlate_with_nobody() -> None:
    """Two clients that agree on it could else have an honest aggregator's matrix differ from that of the committee."""
    base, noise = model(np.zeros(SIZE)), np.random.default_rng(1).normal(size=SIZE)

    matrix = update_correlations([model(1e30 + 1e24 * noise), model(2e30 - 1e24 * noise), model(noise)], [base] * 3)

    assert matrix[np.triu_indices(3, 1)].tolist() == [0, 0, 0]


def test_what_is_common_is_one_over_the_ratio_of_the_analysis_of_variance() -> None:
    generator = np.random.default_rng(5)
    labels = np.array([0, 1, 1, 0, 2, 1, 0])
    steps = generator.normal(size=(7, 400)) + 0.7 * generator.normal(size=(3, 400))[labels]
    steps -= steps.mean(axis=1, keepdims=True)
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    means = np.stack([steps[labels == label].mean(axis=0) for label in range(3)])
    within = ((steps - means[labels]) ** 2).sum() / (7 - 3)
    between = ((means[labels] - steps.mean(axis=0)) ** 2).sum() / (3 - 1)
    matrix = np.round(CORRELATION_SCALE * steps @ steps.T).astype(np.int16)

    assert within < between
    assert common_part(matrix, labels.tolist()) == pytest.approx(within / between, rel=1e-3)
    assert common_part(matrix, (2 - labels).tolist()) == common_part(matrix, labels.tolist())


@pytest.mark.parametrize("labels", [(0, 0, 0, 0), (0, 1, 2, 3), (0, 1, 0, 1)])
def test_all_is_common_where_clusters_differ_no_more_than_members_or_nothing_can_be_compared(
    labels: tuple[int, ...],
) -> None:
    """Clients 0 and 1 are alike, and 2 and 3: clusters across differ less than their members do."""
    matrix = (CORRELATION_SCALE * np.eye(4)).astype(np.int16)
    matrix[[0, 1, 2, 3], [1, 0, 3, 2]] = 9_000

    assert common_part(matrix, labels) == 1


@pytest.mark.parametrize("hostile", ["noise", "against all"])
def test_one_odd_client_lowers_what_all_share(hostile: str) -> None:
    """A known limit (docs/threat-model.md): F is of all clusters together. What a task sets is the least part."""
    generator = np.random.default_rng(7)
    common = generator.normal(size=500)
    steps = [{"w": (common + 0.65 * generator.normal(size=500)).astype(np.float32)} for _ in range(18)]
    odd = generator.normal(size=500) if hostile == "noise" else -common
    nothing = {"w": np.zeros(500, dtype=np.float32)}

    def part(sent: list[dict[str, Tensor]]) -> float:
        matrix = update_correlations(sent, [nothing] * len(sent))
        return common_part(matrix, cluster(matrix.astype(np.int64), 5))

    assert part(steps) > 0.75
    assert part([*steps, {"w": odd.astype(np.float32)}]) < 0.55
