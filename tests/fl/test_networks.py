"""The modules behind the architectures: their own kernels against torch's, in bits."""

import numpy as np
import pytest
import torch
from torch import nn

from bflnode.fl.architectures import architecture
from bflnode.fl.networks import build_classifier, get_tensors, halved, interpolated, set_tensors
from bflnode.fl.prior import with_prior


def _both_ways(inputs: torch.Tensor, gradient: torch.Tensor) -> list[tuple[bytes, bytes]]:
    results = []
    for pool in (halved, lambda given: nn.functional.max_pool2d(given, 2)):
        given = inputs.clone().requires_grad_()
        output = pool(given)
        output.backward(gradient)
        assert given.grad is not None
        results.append((output.detach().numpy().tobytes(), given.grad.numpy().tobytes()))
    return results


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (1, 1, 2, 2), (2, 3, 6, 4), (2, 1, 7, 8), (2, 1, 8, 5)])
@pytest.mark.parametrize("values", ["distinct", "few"])
def test_pooling_has_the_bits_of_torchs_forward_and_backward(shape: tuple[int, ...], values: str) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(shape, generator=generator)
    if values == "few":
        inputs = inputs.round() + 0.0  # most squares have several largest numbers; no negative zeros
    gradient = torch.randn(shape[0], shape[1], shape[2] // 2, shape[3] // 2, generator=generator)
    ours, theirs = _both_ways(inputs, gradient)
    assert ours == theirs


def test_pooling_has_torchs_bits_for_every_pattern_of_equal_numbers() -> None:
    digits = torch.cartesian_prod(*[torch.arange(3.0)] * 4)
    inputs = digits.reshape(-1, 1, 2, 2)
    gradient = torch.linspace(-1.0, 1.0, len(inputs)).reshape(-1, 1, 1, 1)
    ours, theirs = _both_ways(inputs, gradient)
    assert ours == theirs


def test_classifiers_built_from_one_template_share_no_tensor() -> None:
    first, second = (build_classifier(architecture("mlp/1x8x8/10")) for _ in range(2))
    for parameter in first.parameters():
        parameter.data.fill_(1.0)
    for parameter in second.parameters():
        parameter.data.fill_(2.0)
    assert all(bool((parameter == 1.0).all()) for parameter in first.parameters())


RESNET = architecture("resnet18/3x32x32/10")


def test_an_interpolation_is_between_two_models_in_every_float() -> None:
    start, end = build_classifier(RESNET), build_classifier(RESNET)
    for classifier, value, steps in ((start, 2.0, 3), (end, 6.0, 9)):
        constant = {
            name: np.full(tensor.shape, steps if tensor.dtype == np.int64 else value, dtype=tensor.dtype)
            for name, tensor in get_tensors(classifier).items()
        }
        set_tensors(classifier, constant)

    quarter = get_tensors(interpolated(start, end, 0.25))

    assert {float(tensor.max()) for tensor in quarter.values() if tensor.dtype == np.float32} == {3.0}
    assert {int(tensor.max()) for tensor in quarter.values() if tensor.dtype == np.int64} == {9}
    assert {float(tensor.max()) for tensor in get_tensors(end).values()} == {6.0, 9.0}, "it is a copy"
    assert interpolated(start, end, 1.0) is end


def test_an_interpolation_keeps_the_label_prior_of_absent_classes() -> None:
    classes = [1.0] * 9 + [0.0]
    start, end = (with_prior(build_classifier(RESNET), classes) for _ in range(2))

    middle = interpolated(start, end, 0.5)

    assert middle.state_dict()["log_prior"].tolist() == start.log_prior.tolist()
    assert start.log_prior[9] == -float("inf")


def test_there_is_nothing_between_models_of_different_shape() -> None:
    other = build_classifier(architecture("mlp/1x8x8/10"))
    with pytest.raises(ValueError, match="has other tensors than what it was trained from: use an interpolation of 1"):
        interpolated(build_classifier(RESNET), other, 0.5)
