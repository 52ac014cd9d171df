"""Robust rules on cases that were worked by hand."""

import numpy as np
import pytest

from bflnode.fl.robust import RobustRule, RobustRuleError, krum
from bflnode.fl.weights import Tensor


def model(*values: float, count: int = 0) -> dict[str, Tensor]:
    return {"w": np.array(values, dtype=np.float32), "n": np.array(count, dtype=np.int64)}


def combined(rule: RobustRule, models: list[dict[str, Tensor]], base: dict[str, Tensor] | None = None) -> list[float]:
    received = [base or model(*[0.0] * len(models[0]["w"]))] * len(models)
    values: list[float] = rule(models, received)["w"].tolist()
    return values


def test_the_mean_follows_one_hostile_model() -> None:
    assert combined(RobustRule(name="mean"), [model(1), model(2), model(3), model(94)]) == [25.0]


def test_the_median_of_an_odd_number_is_the_middle_and_of_an_even_one_the_mean_of_two() -> None:
    rule = RobustRule(name="median")

    assert combined(rule, [model(1, 9), model(2, 5), model(100, -100)]) == [2.0, 5.0]
    assert combined(rule, [model(1), model(2), model(4), model(100)]) == [3.0]


def test_the_trimmed_mean_leaves_out_as_many_on_each_side_as_may_be_hostile() -> None:
    models = [model(-1000), model(1), model(2), model(6), model(1000)]

    assert combined(RobustRule(name="trimmed-mean", hostile=0.2), models) == [3.0]
    assert combined(RobustRule(name="trimmed-mean", hostile=0.0), models) == [pytest.approx(1.8)]


def test_krum_takes_the_model_whose_nearest_others_are_nearest() -> None:
    # n = 5, f = 1: scores are sums over 2 nearest. Of 0, 1, 3, 4.5, 100 they are 10, 5, 6.25, 14.5, huge.
    models = [model(0), model(1), model(3), model(4.5), model(100)]

    assert combined(RobustRule(name="krum", hostile=0.2), models) == [1.0]


PLANE = [model(8, 0), model(6, 0), model(4, 3), model(0, 0), model(1, 0)]
"""Sums of squared distances to the 2 nearest are 29, 17, 31, 26, 19; of distances 7.0, 5.6, 7.8, 6.0, 5.2."""


def test_krum_adds_squared_distances() -> None:
    assert combined(RobustRule(name="krum", hostile=0.2), PLANE) == [6.0, 0.0]


def test_multi_krum_takes_as_many_models_as_are_not_hostile() -> None:
    assert combined(RobustRule(name="multi-krum", hostile=0.2), PLANE) == [(6 + 1 + 0 + 8) / 4, 0.0]


def test_multi_krum_is_the_mean_of_the_best_scores() -> None:
    # Scores as above: all but 100 are among the n - f = 4 best.
    models = [model(0), model(1), model(3), model(4), model(100)]

    assert combined(RobustRule(name="multi-krum", hostile=0.2), models) == [2.0]


@pytest.mark.parametrize("name", ["krum", "multi-krum"])
def test_too_few_models_for_krum_are_combined_by_the_median(name: str) -> None:
    rule = RobustRule(name=name, hostile=0.4)  # f = 1 of 4, and 2f + 3 = 5

    assert combined(rule, [model(1), model(2), model(4), model(1000)]) == [3.0]
    with pytest.raises(RobustRuleError, match="at least 2f \\+ 3 models, 5 for f = 1, and there are 4"):
        krum([model(1), model(2), model(4), model(1000)], 1)


def test_the_number_of_hostile_models_is_exact_for_shares_in_thousandths() -> None:
    counts = [RobustRule(hostile=permille / 1000).count(n) for permille in range(500) for n in range(1, 257)]

    assert counts == [permille * n // 1000 for permille in range(500) for n in range(1, 257)]


def test_norm_clipping_shortens_a_step_to_the_median_one() -> None:
    # Steps from 10: lengths 1, 2, 90; the median is 2, so the third counts as 12.
    models = [model(11), model(8), model(100)]

    assert combined(RobustRule(name="norm-clipping"), models, model(10)) == [pytest.approx((11 + 8 + 12) / 3)]


def test_norm_clipping_to_a_quarter_of_the_median_step_shortens_all_of_them() -> None:
    rule = RobustRule(name="norm-clipping", clip=0.25)

    assert combined(rule, [model(11), model(8), model(100)], model(10)) == [pytest.approx((10.5 + 9.5 + 10.5) / 3)]


def test_a_counter_is_the_lower_median_which_nobody_can_push_away() -> None:
    models = [model(0, count=3), model(0, count=5), model(0, count=2**62), model(0, count=2**62)]

    assert RobustRule(name="median")(models, models)["n"].tolist() == 5


@pytest.mark.parametrize(
    ("settings", "fault"),
    [({"name": "best"}, "no robust rule 'best'"), ({"hostile": 0.5}, "below 0.5"), ({"clip": 0.0}, "more than 0")],
)
def test_a_wrong_setting_is_refused(settings: dict[str, object], fault: str) -> None:
    with pytest.raises(RobustRuleError, match=fault):
        RobustRule(**settings)  # type: ignore[arg-type]  # what a configuration may say
