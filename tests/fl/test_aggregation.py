import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bflnode.fl.aggregation as aggregation
from bflnode.fl.aggregation import MAX_TOTAL_WEIGHT, mean
from bflnode.fl.architectures import architecture
from bflnode.fl.weights import Tensor, parse, serialize

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def mean_of(columns: list[list[float]], weights: list[int]) -> np.ndarray:
    """The mean of models that have one float tensor each."""
    return mean([{"x": np.array(column, dtype=np.float32)} for column in columns], weights)["x"]


def initial(architecture_id: str, seed: int) -> dict[str, Tensor]:
    described = architecture(architecture_id)
    return parse(described.initial_weights(seed), described.table)


def test_mean_of_a_hand_worked_case() -> None:
    np.testing.assert_array_equal(
        mean_of([[1.0, -2.0, 0.5], [2.0, 4.0, 0.5], [6.0, 1.0, 0.5]], [1, 1, 1]), np.array([3, 1, 0.5], np.float32)
    )
    np.testing.assert_array_equal(mean_of([[1.0], [2.0]], [3, 1]), np.array([1.25], np.float32))


@given(st.lists(st.tuples(finite, st.integers(1, 2**20)), min_size=1, max_size=6))
def test_each_step_is_the_documented_formula(pairs: list[tuple[float, int]]) -> None:
    total = 0.0
    for value, weight in pairs:
        total = total + value * float(weight)
    expected = np.float32(total / float(sum(weight for _, weight in pairs)))
    (ours,) = mean_of([[value] for value, _ in pairs], [weight for _, weight in pairs])
    assert ours.tobytes() == expected.tobytes()


@given(st.lists(st.tuples(st.integers(-(2**20), 2**20), st.integers(1, 2**20)), min_size=1, max_size=6))
def test_mean_of_exact_values_is_the_nearest_float_to_the_true_mean(pairs: list[tuple[int, int]]) -> None:
    true_mean = Fraction(sum(value * weight for value, weight in pairs), sum(weight for _, weight in pairs))
    (ours,) = mean_of([[value] for value, _ in pairs], [weight for _, weight in pairs])
    assert ours == np.float32(float(true_mean))


@given(st.lists(finite, min_size=1, max_size=5), st.lists(st.integers(1, 2**10), min_size=1, max_size=6))
def test_mean_of_identical_models_is_the_model(values: list[float], weights: list[int]) -> None:
    model: dict[str, Tensor] = {"x": np.array(values, np.float32), "n": np.array(7)}
    found = mean([model] * len(weights), weights)
    np.testing.assert_array_equal(found["x"], model["x"])
    assert found["n"] == 7


def test_mean_of_the_largest_floats_stays_finite() -> None:
    largest = float(np.finfo(np.float32).max)
    assert mean_of([[largest]] * 7, [3, 1, 1, 1, 1, 1, 1]) == np.float32(largest)


@settings(max_examples=20)
@given(st.integers(1, 400), st.integers(0, 2**32))
def test_chunk_size_does_not_change_a_bit(chunk: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    models = [{"x": generator.standard_normal(333).astype(np.float32)} for _ in range(5)]
    weights = generator.integers(1, 1000, 5).tolist()
    whole = serialize(mean(models, weights))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregation, "CHUNK_ELEMENTS", chunk)
        assert serialize(mean(models, weights)) == whole


def test_permuted_models_have_the_same_mean_up_to_the_last_bits() -> None:
    generator = np.random.default_rng(0)
    models = [initial("mlp/1x8x8/10", seed) for seed in range(6)]
    order = generator.permutation(6)
    permuted = mean([models[index] for index in order], [1] * 6)
    for name, tensor in mean(models, [1] * 6).items():
        np.testing.assert_allclose(permuted[name], tensor, rtol=1e-6, atol=1e-12)


def test_order_of_models_matters_where_float64_rounds() -> None:
    """So the caller must fix it; with three magnitudes one order loses what the other keeps."""
    big, small = 2.0**120, 1.0
    assert mean_of([[big], [-big], [small]], [1, 1, 1]) == np.float32(1 / 3)
    assert mean_of([[big], [small], [-big]], [1, 1, 1]) == 0.0


def test_counters_get_the_floor_of_the_exact_mean() -> None:
    models: list[dict[str, Tensor]] = [
        {"n": np.array([2**63 - 1, -1, 5])},
        {"n": np.array([2**63 - 1, -2, 6])},
    ]
    for weights in ([1, 1], [2**40, 1]):
        assert mean(models, weights)["n"].tolist() == [2**63 - 1, -2, 5]


def test_batchnorm_buffers_are_averaged_too() -> None:
    models = []
    for value in (1.0, 4.0):
        tensors = {name: tensor.copy() for name, tensor in initial("resnet18/1x8x8/2", 0).items()}
        tensors["representation.bn1.running_mean"][:] = value
        tensors["representation.bn1.num_batches_tracked"][...] = int(value)
        models.append(tensors)
    found = mean(models, [1, 1])
    assert set(found["representation.bn1.running_mean"].tolist()) == {2.5}
    assert found["representation.bn1.num_batches_tracked"] == 2


@pytest.mark.parametrize(
    ("count", "weights"),
    [(0, []), (2, [1]), (1, [1, 1]), (1, [0]), (2, [1, -1]), (1, [MAX_TOTAL_WEIGHT + 1]), (2, [1, MAX_TOTAL_WEIGHT])],
)
def test_unfit_weights_are_refused(count: int, weights: list[int]) -> None:
    with pytest.raises(ValueError, match=r"give one each|each must be"):
        mean_of([[1.0]] * count, weights)


def test_mean_does_not_depend_on_the_instruction_set() -> None:
    """A process whose numpy may use no SIMD beyond its baseline gives the same bytes."""
    code = (
        "from hashlib import sha256; from bflnode.fl.aggregation import mean; "
        "from bflnode.fl.weights import parse, serialize; "
        "from bflnode.fl.architectures import architecture; a = architecture('cnn/1x28x28/10'); "
        "models = [parse(a.initial_weights(s), a.table) for s in range(5)]; "
        "print(sha256(serialize(mean(models, [3, 1, 4, 1, 5]))).hexdigest())"
    )
    features = _dispatched_features()
    if not features:
        pytest.skip("numpy uses nothing beyond its baseline on this machine")
    results = {
        subprocess.run(
            [sys.executable, "-P", "-c", code],
            check=True,
            capture_output=True,
            timeout=120,
            env={**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled},
        ).stdout
        for disabled in ("", " ".join(features))
    }
    assert len(results) == 1


def _dispatched_features() -> list[str]:
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    return [feature for feature in found if feature]
