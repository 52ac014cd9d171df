"""How alike clients' steps are."""

import numpy as np
import pytest

from bflnode.fl.aggregation import CHUNK_ELEMENTS
from bflnode.fl.prototypes import CORRELATION_SCALE
from bflnode.fl.updates import update_correlations
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
