"""What a client carries from its last step into its next learning round."""

import numpy as np

from bflnode.fl.carry import carried
from bflnode.fl.weights import Tensor


def floats(*values: float) -> Tensor:
    return np.array(values, dtype=np.float32)


def test_a_share_of_the_last_step_is_added_to_what_was_received() -> None:
    start = carried({"w": floats(10, 20)}, base={"w": floats(1, 1)}, sent={"w": floats(3, 0)}, carry=0.5)

    assert start["w"].dtype == np.float32
    assert start["w"].tolist() == [11.0, 19.5]


def test_nothing_carried_is_what_was_received_bit_for_bit() -> None:
    received = {"w": floats(0.1, -0.0, 3e-45)}

    start = carried(received, base={"w": floats(1, 1, 1)}, sent={"w": floats(2, 0, 1)}, carry=0.0)

    assert start["w"].tolist() == received["w"].tolist()


def test_statistics_and_counters_are_those_received() -> None:
    received = {"n.running_var": floats(0.1), "n.running_mean": floats(2), "n.num_batches_tracked": np.array(7)}
    base = {"n.running_var": floats(9), "n.running_mean": floats(1), "n.num_batches_tracked": np.array(1)}
    sent = {"n.running_var": floats(1), "n.running_mean": floats(5), "n.num_batches_tracked": np.array(3)}

    assert carried(received, base, sent, carry=0.8) == received


def test_a_sum_beyond_float32_is_its_largest_number() -> None:
    largest = float(np.finfo(np.float32).max)

    start = carried({"w": floats(largest)}, base={"w": floats(0)}, sent={"w": floats(largest)}, carry=1.0)

    assert start["w"].tolist() == [largest]
