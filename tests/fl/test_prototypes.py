from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from benchmarks import cancelling_weights
from bflnode.fl.architectures import Architecture, architecture
from bflnode.fl.datasets import load_digits
from bflnode.fl.prototypes import (
    MIN_CATEGORY_SAMPLES,
    SampleLimits,
    choose_probe,
    correlation_matrix,
    matrix_of_triangle,
    own_probe,
    parse_samples,
    prototypes,
    serialize_samples,
    unsettled_pairs,
    upper_triangle,
)
from bflnode.fl.samples import Inputs, LabelledData, Shard, numbered_classes
from bflnode.fl.training import TrainingConfig, train
from bflnode.fl.weights import InvalidWeights, WeightsFault, parse, serialize

LIMITS = SampleLimits(input_shape=(1, 2, 2), classes=3, max_samples=5)


def samples(count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    inputs = np.linspace(0, 1, count * 4, dtype=np.float32).reshape(count, 1, 2, 2)
    return inputs, (np.arange(count) % 3).astype(np.int64)


def test_probe_of_a_seed_is_the_same_everywhere() -> None:
    labels = np.tile(np.arange(3), 20)
    probe = choose_probe(b"seed", labels, 16)
    assert (probe.category, probe.indices.tolist()) == (
        2,
        [2, 5, 8, 11, 14, 17, 20, 23, 26, 32, 38, 41, 47, 50, 53, 56],
    )


@given(
    st.binary(max_size=40),
    st.lists(st.integers(0, 3), min_size=1, max_size=80),
    st.integers(1, 40),
)
def test_probe_is_psi_distinct_samples_of_one_class(seed: bytes, labels: list[int], psi: int) -> None:
    array = np.array(labels)
    probe = choose_probe(seed, array, psi)
    counts = Counter(labels)
    enough = [category for category, count in counts.items() if count >= min(psi, MIN_CATEGORY_SAMPLES)]
    assert len(probe.indices) == min(psi, counts[probe.category])
    assert list(probe.indices) == sorted(set(probe.indices))
    assert set(array[probe.indices]) == {probe.category}
    if enough:
        assert probe.category in enough
    else:
        assert probe.category == min(category for category in counts if counts[category] == max(counts.values()))


def test_every_category_and_every_sample_is_drawn_about_equally_often() -> None:
    labels = np.tile(np.arange(4), 20)
    categories: Counter[int] = Counter()
    drawn: Counter[int] = Counter()
    for number in range(800):
        probe = choose_probe(number.to_bytes(4, "big"), labels, 5)
        categories[probe.category] += 1
        drawn.update(probe.indices.tolist())
    assert all(150 < categories[category] < 250 for category in range(4))
    assert len(drawn) == 80
    assert all(20 < drawn[index] < 85 for index in range(80)), drawn


def test_class_below_the_floor_is_not_drawn_while_others_reach_it() -> None:
    labels = np.array([0] * (MIN_CATEGORY_SAMPLES - 1) + [1] * MIN_CATEGORY_SAMPLES)
    assert {choose_probe(bytes([number]), labels, 64).category for number in range(40)} == {1}


@pytest.mark.parametrize(("labels", "psi"), [([], 3), ([0], 0)])
def test_probe_of_nothing_is_refused(labels: list[int], psi: int) -> None:
    with pytest.raises(ValueError, match="can't be drawn"):
        choose_probe(b"", np.array(labels, dtype=np.int64), psi)


def test_own_probe_has_training_samples_of_one_class() -> None:
    labels = np.repeat(np.arange(2), 20)
    inputs = np.arange(40, dtype=np.float32).reshape(40, 1, 1, 1)
    data = LabelledData(inputs, labels, numbered_classes(2))
    probe = own_probe(Shard(data, data), b"s", 8)
    assert len(probe) == 8
    assert len(set(probe.labels)) == 1
    np.testing.assert_array_equal(labels[probe.inputs.ravel().astype(int)], probe.labels)


def test_correlations_of_a_hand_worked_case() -> None:
    """Rows 0 and 1: centred (-1, 0, 1) and (-2, 1, 1), r = 3 / sqrt(12); row 2 = -row 0; row 3 is constant."""
    values = np.array([[1, 2, 3], [0, 3, 3], [3, 2, 1], [5, 5, 5]], dtype=np.float64)
    assert correlation_matrix(values).tolist() == [
        [10000, 8660, -10000, 0],
        [8660, 10000, -8660, 0],
        [-10000, -8660, 10000, 0],
        [0, 0, 0, 10000],
    ]


@given(
    numpy_strategies.arrays(
        np.float64,
        st.tuples(st.integers(1, 6), st.integers(1, 8)),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_correlations_agree_with_numpy_and_are_symmetric(values: np.ndarray) -> None:
    matrix = correlation_matrix(values)
    assert matrix.dtype == np.int16
    np.testing.assert_array_equal(matrix, matrix.T)
    assert (np.diagonal(matrix) == 10000).all()
    assert matrix.min() >= -10000
    assert matrix.max() <= 10000
    spread = values.std(axis=1) / (1e-300 + np.abs(values).max(axis=1))
    clear = np.flatnonzero((spread > 1e-3) & (np.abs(values).max(axis=1) > 1e-3))
    if len(clear) > 1:
        expected = np.corrcoef(values[clear]) * 10000
        assert np.abs(matrix[np.ix_(clear, clear)] - expected).max() <= 0.51


def test_scale_and_offset_of_a_prototype_do_not_matter() -> None:
    values = np.random.default_rng(0).standard_normal((5, 32))
    moved = values * np.array([1, 2, 3, 0.5, 10])[:, np.newaxis] + np.array([0, 1, -5, 2, 100])[:, np.newaxis]
    assert np.abs(correlation_matrix(moved).astype(int) - correlation_matrix(values)).max() <= 1


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.0, 1e30])
def test_constant_prototype_correlates_with_nothing_but_itself(value: float) -> None:
    values = np.vstack([np.full(7, value), np.arange(7.0)])
    assert correlation_matrix(values).tolist() == [[10000, 0], [0, 10000]]


def test_prototype_that_differs_by_rounding_alone_is_constant() -> None:
    noise = np.random.default_rng(0).standard_normal(32)
    values = np.vstack([1.0 + 1e-6 * noise, 1.0 + 1e-3 * noise, noise])
    assert correlation_matrix(values).tolist() == [[10000, 0, 0], [0, 10000, 10000], [0, 10000, 10000]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_prototype_that_is_not_finite_correlates_with_nothing(value: float) -> None:
    values = np.array([[1.0, value, 3.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    assert correlation_matrix(values).tolist() == [[10000, 0, 0], [0, 10000, 10000], [0, 10000, 10000]]


@given(st.integers(1, 12), st.integers(0, 2**32))
def test_triangle_gives_back_the_matrix(clients: int, seed: int) -> None:
    matrix = correlation_matrix(np.random.default_rng(seed).standard_normal((clients, 4)))
    triangle = upper_triangle(matrix)
    assert len(triangle) == clients * (clients - 1)
    np.testing.assert_array_equal(matrix_of_triangle(triangle, clients), matrix)


def test_triangle_is_row_by_row_big_endian() -> None:
    matrix = np.array([[10000, 1, -2], [1, 10000, 256], [-2, 256, 10000]], dtype=np.int16)
    assert upper_triangle(matrix).hex() == "0001fffe0100"


@pytest.mark.parametrize(
    ("triangle", "clients"), [(b"", 2), (b"\0\0", 3), (b"\0", 2), (b"", 0), (b"\x27\x11", 2), (b"\xd8\xef", 2)]
)
def test_triangle_of_the_wrong_size_or_range_is_refused(triangle: bytes, clients: int) -> None:
    with pytest.raises(ValueError, match=r"can't be the correlations|beyond"):
        matrix_of_triangle(triangle, clients)


def test_prototype_is_the_mean_representation() -> None:
    described = architecture("mlp/1x8x8/10")
    model = described.initial_weights(0)
    inputs = np.random.default_rng(0).random((9, 1, 8, 8), dtype=np.float32)
    tensors = parse(model, described.table)
    hidden = inputs.reshape(9, 64).astype(np.float64) @ tensors["representation.hidden.weight"].T
    expected = np.maximum(hidden + tensors["representation.hidden.bias"], 0).mean(axis=0)
    result = prototypes(described, [model, model], inputs)
    assert result.shape == (2, 64)
    np.testing.assert_allclose(result[0], expected, atol=1e-6)
    np.testing.assert_array_equal(result[0], result[1])


@pytest.mark.parametrize("architecture_id", ["cnn/1x8x8/3", "resnet18/1x8x8/3"])
def test_one_model_has_one_prototype_whoever_else_is_there(architecture_id: str) -> None:
    described = architecture(architecture_id)
    models = [described.initial_weights(seed) for seed in range(3)]
    inputs = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    together = prototypes(described, models, inputs)
    np.testing.assert_array_equal(prototypes(described, models[1:2], inputs), together[1:2])
    np.testing.assert_array_equal(prototypes(described, models, inputs), together)


def test_identical_models_correlate_perfectly() -> None:
    described = architecture("cnn/1x8x8/3")
    inputs = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    matrix = correlation_matrix(prototypes(described, [described.initial_weights(0)] * 3, inputs))
    assert (matrix == 10000).all()


def test_model_whose_weights_overflow_does_not_disturb_the_others() -> None:
    described = architecture("mlp/1x8x8/10")
    honest = [described.initial_weights(seed) for seed in range(2)]
    hostile = {name: np.full_like(tensor, 3e38) for name, tensor in parse(honest[0], described.table).items()}
    inputs = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    with_it = correlation_matrix(prototypes(described, [*honest, serialize(hostile)], inputs))
    assert with_it[2].tolist() == [0, 0, 10000]
    np.testing.assert_array_equal(with_it[:2, :2], correlation_matrix(prototypes(described, honest, inputs)))


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (3, 1, 8, 7)])
def test_inputs_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    described = architecture("mlp/1x8x8/10")
    with pytest.raises(ValueError, match="don't fit mlp/1x8x8/10"):
        prototypes(described, [described.initial_weights(0)], np.zeros(shape, np.float32))


@given(st.integers(1, 5))
def test_sample_file_gives_back_the_samples(count: int) -> None:
    inputs, labels = samples(count)
    data = serialize_samples(inputs, labels)
    parsed = parse_samples(data, LIMITS)
    np.testing.assert_array_equal(parsed.inputs, inputs)
    np.testing.assert_array_equal(parsed.labels, labels)
    assert parsed.class_names == ("0", "1", "2")
    assert serialize_samples(parsed.inputs, parsed.labels) == data


def test_sample_file_holds_bytes_as_floats() -> None:
    data = serialize_samples(np.full((1, 1, 2, 2), 255, np.uint8), np.array([0]))
    assert parse_samples(data, LIMITS).inputs.tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (dict(zip(("inputs", "labels"), samples(6), strict=True)), WeightsFault.WRONG_SIZE),
        (dict(zip(("inputs", "labels"), samples(0), strict=True)), WeightsFault.WRONG_TENSORS),
        ({"inputs": samples()[0], "labels": samples()[1][:2]}, WeightsFault.WRONG_TENSORS),
        ({"inputs": samples()[0].reshape(3, 1, 4, 1), "labels": samples()[1]}, WeightsFault.WRONG_TENSORS),
        ({"inputs": samples()[0], "labels": samples()[1].reshape(3, 1)}, WeightsFault.WRONG_TENSORS),
        ({"inputs": samples()[0], "labels": samples()[1].astype(np.float32)}, WeightsFault.WRONG_TENSORS),
        ({"inputs": samples()[0]}, WeightsFault.WRONG_TENSORS),
        ({"inputs": samples(1)[0], "labels": samples(1)[1], "more": np.zeros(())}, WeightsFault.WRONG_TENSORS),
        ({"inputs": samples()[0], "labels": np.array([0, 1, 3])}, WeightsFault.WRONG_TENSORS),
        ({"inputs": samples()[0], "labels": np.array([0, -1, 1])}, WeightsFault.WRONG_TENSORS),
        ({"inputs": samples()[0] * np.float32(-1e20), "labels": samples()[1]}, WeightsFault.WRONG_TENSORS),
    ],
    ids=[
        *("too many", "none", "unequal", "shape", "label shape", "label type", "no labels", "more", "class"),
        *("negative", "huge"),
    ],
)
def test_hostile_sample_file_is_refused(tensors: dict[str, np.ndarray], reason: WeightsFault) -> None:
    data = serialize({name: t.astype(np.float32) if t.dtype == np.float64 else t for name, t in tensors.items()})
    with pytest.raises(InvalidWeights) as raised:
        parse_samples(data, LIMITS)
    assert raised.value.reason is reason


def test_sample_file_cut_off_or_with_a_nan_is_refused() -> None:
    data = serialize_samples(*samples())
    with pytest.raises(InvalidWeights) as raised:
        parse_samples(data[:-1], LIMITS)
    assert raised.value.reason is WeightsFault.WRONG_SIZE
    start = data.index(np.float32(samples()[0][1, 0, 0, 0]).tobytes())
    with pytest.raises(InvalidWeights) as raised:
        parse_samples(data[:start] + np.float32(np.nan).tobytes() + data[start + 4 :], LIMITS)
    assert raised.value.reason is WeightsFault.NOT_FINITE


@settings(max_examples=50)
@given(st.binary(max_size=300))
def test_no_bytes_make_the_sample_reader_raise_anything_else(data: bytes) -> None:
    with pytest.raises(InvalidWeights):
        parse_samples(data, LIMITS)


def unsettled(chosen: Architecture, models: Sequence[bytes], inputs: Inputs, tolerance: int) -> list[bool]:
    matrix = correlation_matrix(prototypes(chosen, models, inputs))
    pairs: list[bool] = unsettled_pairs(chosen, models, inputs, matrix=matrix, tolerance=tolerance, seed=1).tolist()
    return pairs


def test_what_rounding_decides_is_the_similarity_with_weights_that_cancel_and_no_other() -> None:
    chosen = cancelling_weights.ARCHITECTURE
    models = [*(chosen.initial_weights(seed) for seed in range(3)), cancelling_weights.hostile_model()]
    inputs = np.random.default_rng(5).random((16, *chosen.input_shape)).astype(np.float32)
    assert unsettled(chosen, models, inputs, 10) == [False, False, True, False, True, True]


def test_a_similarity_that_is_finite_or_not_by_the_order_of_a_sum_is_held_against_nobody() -> None:
    """AVX2 and AVX-512 add up a convolution in other orders; weights that are a little different change nothing."""
    chosen = cancelling_weights.ARCHITECTURE
    tensors = {name: tensor.copy() for name, tensor in parse(chosen.initial_weights(9), chosen.table).items()}
    tensors["representation.first.weight"][:4] = 0
    tensors["representation.first.bias"][:4] = 1
    tensors["representation.second.weight"][0] = 0
    tensors["representation.second.weight"][0, :4, 2, 2] = np.array([2e38, -2e38, 2e38, -2e38])
    tensors["representation.code.weight"][:, :49] = 0
    models = [*(chosen.initial_weights(seed) for seed in range(2)), serialize(tensors)]
    inputs = np.random.default_rng(5).random((4, *chosen.input_shape)).astype(np.float32)
    assert unsettled(chosen, models, inputs, 10) == [False, True, True]


@pytest.mark.parametrize(("architecture_id", "epochs"), [("mlp/1x8x8/10", 20), ("cnn/1x8x8/10", 5)])
def test_rounding_decides_about_no_trained_models(architecture_id: str, epochs: int) -> None:
    chosen, digits = architecture(architecture_id), load_digits()
    models = []
    for client in range(3):
        own = digits.train.take(np.flatnonzero(digits.train.labels % 3 == client)[:200])
        config = TrainingConfig(epochs=epochs, seed=client)
        models.append(train(chosen, chosen.initial_weights(0), Shard(own, digits.test), config).model)
    inputs = digits.test.take(choose_probe(b"seed", digits.test.labels, 16).indices).inputs
    assert not any(unsettled(chosen, models, inputs, 1))


def test_a_model_of_the_largest_numbers_can_be_looked_at() -> None:
    chosen = architecture("mlp/1x2x2/3")
    largest = {
        name: np.full_like(tensor, np.finfo(np.float32).max)
        for name, tensor in parse(chosen.initial_weights(0), chosen.table).items()
    }
    models = [chosen.initial_weights(1), serialize(largest), chosen.initial_weights(2)]
    assert unsettled(chosen, models, samples()[0], 10) == [True, False, True]
