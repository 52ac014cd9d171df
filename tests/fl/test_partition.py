import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bflnode.fl.datasets import load_digits
from bflnode.fl.partition import MAX_ALPHA, Assignment, Spread, dirichlet, hold_out, iid, shards_of, subset
from bflnode.fl.samples import DatasetError, LabelledData, Shard, numbered_classes


def numbered(samples: int, classes: int, first: int = 0) -> LabelledData:
    """Data whose inputs are serial numbers, so that a sample can be followed."""
    inputs = np.arange(first, first + samples, dtype=np.float32).reshape(-1, 1, 1, 1)
    labels = np.random.default_rng(samples).integers(0, classes, samples)
    return LabelledData(inputs, labels, numbered_classes(classes))


def some_shard(train: int = 400, test: int = 100, classes: int = 5) -> Shard:
    return Shard(numbered(train, classes), numbered(test, classes, first=train))


def assert_is_partition(shard: Shard, assignments: tuple[Assignment, ...]) -> None:
    for indices, whole in (
        ([part.train for part in assignments], shard.train),
        ([part.test for part in assignments], shard.test),
    ):
        assert sorted(np.concatenate(indices).tolist()) == list(range(len(whole)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.sampled_from([0.1, 0.3, 0.5, 5.0]), st.integers(0, 2**32))
def test_dirichlet_gives_every_sample_to_one_client_and_enough_to_each(clients: int, alpha: float, seed: int) -> None:
    shard = some_shard()
    assignments = dirichlet(shard, alpha, Spread(clients=clients, seed=seed))
    assert len(assignments) == clients
    assert_is_partition(shard, assignments)
    assert min(len(part.train) for part in assignments) >= 10
    assert min(len(part.test) for part in assignments) >= 2


@given(st.integers(1, 40), st.integers(0, 2**32))
def test_iid_gives_every_sample_to_one_client_in_equal_sizes(clients: int, seed: int) -> None:
    shard = some_shard()
    assignments = iid(shard, Spread(clients=clients, seed=seed))
    assert_is_partition(shard, assignments)
    sizes = [len(part.train) for part in assignments]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("spread", ["dirichlet", "iid"])
def test_seed_decides_the_spread(spread: str) -> None:
    shard = some_shard()

    def spread_with(seed: int) -> list[list[int]]:
        options = Spread(clients=5, seed=seed)
        parts = dirichlet(shard, 0.3, options) if spread == "dirichlet" else iid(shard, options)
        return [part.train.tolist() for part in parts]

    assert spread_with(1) == spread_with(1)
    assert spread_with(1) != spread_with(2)


def test_smaller_alpha_is_more_skewed() -> None:
    """Skew: the mean share that a client's largest class has of its samples; 0.2 when even."""
    shard = some_shard(train=4000, test=1000)

    def skew(alpha: float) -> float:
        spreads = [dirichlet(shard, alpha, Spread(clients=8, seed=seed)) for seed in range(5)]
        parts = [part.train for spread in spreads for part in shards_of(shard, spread)]
        values = [max(part.histogram()) / len(part) for part in parts]
        return float(np.mean(values))

    assert skew(0.1) > skew(0.5) + 0.1 > skew(100.0) + 0.2


def test_test_data_is_split_by_the_same_shares_as_training_data() -> None:
    shard = some_shard(train=4000, test=1000)
    for part in shards_of(shard, dirichlet(shard, 0.3, Spread(clients=5, seed=0))):
        train = np.array(part.train.histogram()) / np.array(shard.train.histogram())
        test = np.array(part.test.histogram()) / np.array(shard.test.histogram())
        np.testing.assert_allclose(train, test, atol=0.01)


def test_client_above_the_mean_gets_nothing_of_later_classes() -> None:
    """With two classes and two clients: who has more than half of all after the first class gets none of the second."""
    labels = np.repeat([0, 1], [900, 100])
    data = LabelledData(np.zeros((1000, 1, 1, 1), np.float32), labels, numbered_classes(2))
    for seed in range(20):
        parts = dirichlet(Shard(data, data), 0.5, Spread(clients=2, seed=seed, min_train=1, min_test=1))
        first_class = [int((labels[part.train] == 0).sum()) for part in parts]
        second_class = [int((labels[part.train] == 1).sum()) for part in parts]
        assert second_class[int(np.argmax(first_class))] == 0 or max(first_class) <= 500


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5])
def test_digits_can_be_spread_over_the_papers_twenty_clients(alpha: float) -> None:
    shard = load_digits()
    parts = dirichlet(shard, alpha, Spread(clients=20, seed=0))
    assert_is_partition(shard, parts)
    assert min(len(part.train) for part in parts) >= 10


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        (41, "400 training samples are too few for 41 clients with at least 10 each: use at most 40 clients"),
        (0, "0 clients: give at least 1"),
        (-3, "-3 clients: give at least 1"),
    ],
)
def test_impossible_number_of_clients_is_refused(clients: int, message: str) -> None:
    for spread in (iid, lambda shard, options: dirichlet(shard, 0.3, options)):
        with pytest.raises(DatasetError) as raised:
            spread(some_shard(), Spread(clients=clients, seed=0))
        assert message in str(raised.value)


def test_too_little_test_data_is_refused() -> None:
    with pytest.raises(DatasetError, match="9 test samples are too few for 5 clients with at least 2 each"):
        iid(some_shard(test=9), Spread(clients=5, seed=0))


@pytest.mark.parametrize(
    ("minimum", "message"),
    [
        (
            {"min_train": 401},
            "400 training samples are too few for 2 clients with at least 401 each: use more samples, ",
        ),
        ({"min_test": 401}, "samples are too few for 2 clients with at least 401 each: use more samples, or a lower "),
    ],
)
def test_samples_that_are_too_few_for_one_client_are_refused_without_naming_a_number_of_clients(
    minimum: dict[str, int], message: str
) -> None:
    with pytest.raises(DatasetError) as raised:
        iid(some_shard(), Spread(clients=2, seed=0, **minimum))
    assert message in str(raised.value)
    assert str(raised.value).endswith(f"or a lower {next(iter(minimum))}")


def test_spread_that_no_draw_finds_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bflnode.fl.partition.MAX_DRAWS", 50)
    with pytest.raises(DatasetError, match=r"50 draws with alpha 0.001 left some of 40 clients .* use fewer clients"):
        dirichlet(some_shard(), 0.001, Spread(clients=40, seed=0))


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), 1e308])
def test_alpha_that_is_no_distribution_is_refused(alpha: float) -> None:
    with pytest.raises(DatasetError, match="is no Dirichlet distribution"):
        dirichlet(some_shard(), alpha, Spread(clients=2, seed=0))


def test_the_largest_alpha_gives_everybody_nearly_the_same() -> None:
    parts = dirichlet(some_shard(), MAX_ALPHA, Spread(clients=4, seed=0))

    assert all(95 <= len(part.train) <= 105 for part in parts)


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32))
def test_held_out_sets_share_nothing_and_lose_nothing(probe: int, validation: int, test: int, seed: int) -> None:
    shard = some_shard()
    held = hold_out(shard, probe=probe, validation=validation, global_test=test, seed=seed)
    sets = (held.probe, held.validation, held.global_test, held.rest.test)
    assert [len(data) for data in sets] == [probe, validation, test, 100 - probe - validation - test]
    together = np.concatenate([data.inputs.ravel() for data in sets])
    assert sorted(together) == sorted(shard.test.inputs.ravel())
    assert held.rest.train is shard.train


def test_held_out_sets_have_the_classes_in_proportion() -> None:
    held = hold_out(load_digits(), probe=100, validation=100, global_test=100, seed=0)
    for data in (held.probe, held.validation, held.global_test):
        assert all(8 <= count <= 12 for count in data.histogram())


@pytest.mark.parametrize("sizes", [(0, 1, 1), (50, 25, 25), (200, 1, 1)])
def test_impossible_held_out_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(DatasetError, match="can't be held out of 100 test samples"):
        hold_out(some_shard(), probe=sizes[0], validation=sizes[1], global_test=sizes[2], seed=0)


def test_subset_has_the_classes_in_proportion() -> None:
    data = load_digits().train
    assert all(19 <= count <= 21 for count in subset(data, 200, 0).histogram())
    np.testing.assert_array_equal(subset(data, len(data), 0).inputs, data.inputs)
    with pytest.raises(DatasetError, match="give 1 to"):
        subset(data, len(data) + 1, 0)
