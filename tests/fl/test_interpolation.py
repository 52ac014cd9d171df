"""Where between what is shared and what it trained a client predicts."""

import numpy as np
import pytest

from bflnode.fl.interpolation import between, share_of_training
from bflnode.fl.weights import Tensor


def floats(*values: float) -> Tensor:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize(
    ("interpolation", "number", "share"),
    [(0.5, 1, 1.0), (0.5, 2, 0.75), (0.5, 10, 0.55), (0.0, 4, 0.25), (1.0, 9, 1)],
)
def test_the_share_after_training_is_all_in_the_first_round_and_goes_towards_the_interpolation(
    interpolation: float, number: int, share: float
) -> None:
    assert share_of_training(interpolation, number) == pytest.approx(share)


def test_before_training_it_is_a_share_of_the_way_to_what_was_trained_last() -> None:
    found = between({"w": floats(10, 20)}, {"w": floats(14, 16)}, share=0.25)

    assert found["w"].dtype == np.float32
    assert found["w"].tolist() == [11.0, 19.0]


def test_without_a_share_it_is_what_was_received_bit_for_bit_and_counters_always_are() -> None:
    received = {"w": floats(0.1, -0.0, 3e-45), "n": np.array(7)}

    found = between(received, {"w": floats(1, 1, 1), "n": np.array(9)}, share=0.0)

    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in received.items()
    }


def test_a_variance_stays_one() -> None:
    found = between({"n.running_var": floats(3e-45, 2)}, {"n.running_var": floats(0, 1)}, share=0.5)

    assert found["n.running_var"].tolist() == pytest.approx([0.0, 1.5])
    assert (found["n.running_var"] >= 0).all()
