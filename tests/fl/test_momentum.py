"""How far a client looks ahead of what it received before it trains."""

import numpy as np
import pytest

from bflnode.fl.momentum import looked_ahead, share_of_last_round
from bflnode.fl.weights import Tensor


def floats(*values: float) -> Tensor:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize(
    ("momentum", "number", "share"), [(0.7, 2, 0.7), (0.7, 5, 0.7), (0.8, 10, 0.2), (0.4, 50, 0.004), (0.0, 2, 0.0)]
)
def test_the_share_is_all_of_the_momentum_for_five_rounds_and_fades(momentum: float, number: int, share: float) -> None:
    assert share_of_last_round(momentum, number) == pytest.approx(share)


def test_a_share_of_the_difference_to_the_round_before_is_added_to_what_was_received() -> None:
    start = looked_ahead({"w": floats(10, 20)}, before={"w": floats(8, 21)}, share=0.5)

    assert start["w"].dtype == np.float32
    assert start["w"].tolist() == [11.0, 19.5]


def test_without_momentum_it_is_what_was_received_bit_for_bit() -> None:
    received = {"w": floats(0.1, -0.0, 3e-45)}

    start = looked_ahead(received, before={"w": floats(1, 1, 1)}, share=0.0)

    assert start["w"].tolist() == received["w"].tolist()


def test_statistics_and_counters_are_those_received() -> None:
    received = {"n.running_var": floats(0.1), "n.running_mean": floats(2), "n.num_batches_tracked": np.array(7)}
    before = {"n.running_var": floats(9), "n.running_mean": floats(1), "n.num_batches_tracked": np.array(1)}

    assert looked_ahead(received, before, share=0.8) == received


def test_a_sum_beyond_float32_is_its_largest_number() -> None:
    largest = float(np.finfo(np.float32).max)

    start = looked_ahead({"w": floats(largest)}, before={"w": floats(0)}, share=1.0)

    assert start["w"].tolist() == [largest]
