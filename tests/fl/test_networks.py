"""The modules behind the architectures: their own kernels against torch's, in bits."""

import pytest
import torch
from torch import nn

from bflnode.fl.architectures import architecture
from bflnode.fl.networks import build_classifier, halved


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
