"""Our optimisers against torch's: the same bits."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from bflnode.fl.optimisers import Adam, GradientDescent, Optimiser

SHAPES = ((8, 1, 5, 5), (8,), (32, 784), (10, 32), ())


def _twins() -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [nn.Parameter(value.clone()) for value in values], [nn.Parameter(value.clone()) for value in values]


def _bits(parameters: list[nn.Parameter]) -> list[bytes]:
    return [parameter.detach().numpy().tobytes() for parameter in parameters]


@pytest.mark.parametrize(
    ("optimiser", "reference"),
    [(Adam, torch.optim.Adam), (GradientDescent, torch.optim.SGD)],
)
@pytest.mark.parametrize("absent", [None, 1])
def test_steps_have_the_bits_of_torchs_optimiser(
    optimiser: type[Adam | GradientDescent], reference: type[torch.optim.Optimizer], absent: int | None
) -> None:
    ours, theirs = _twins()
    mine: Optimiser = optimiser(ours, 0.01)
    other = reference(theirs, lr=0.01)  # type: ignore[call-arg]  # every optimiser has a learning rate
    generator = torch.Generator().manual_seed(2)
    for step in range(50):
        mine.zero_grad()
        other.zero_grad()
        for place, (left, right) in enumerate(zip(ours, theirs, strict=True)):
            if place == absent and step % 3 == 0:  # this one has a gradient in some steps only
                continue
            left.grad = torch.randn(left.shape, generator=generator) * 10.0 ** -(step % 8)
            right.grad = left.grad.clone()
        mine.step()
        other.step()
    assert _bits(ours) == _bits(theirs)


def test_parameters_without_gradients_stay() -> None:
    ours, theirs = _twins()
    for optimiser in (Adam(ours, 0.01), GradientDescent(ours, 0.01)):
        optimiser.step()
    assert _bits(ours) == _bits(theirs)


def test_training_imports_no_compiler() -> None:
    code = (
        "import sys, numpy as np\n"
        "from bflnode.fl.architectures import architecture\n"
        "from bflnode.fl.samples import LabelledData, Shard\n"
        "from bflnode.fl.training import TrainingConfig, train\n"
        "chosen = architecture('cnn/1x8x8/2')\n"
        "data = LabelledData(np.zeros((4, 1, 8, 8), np.float32), np.array([0, 1, 0, 1]), ('a', 'b'))\n"
        "train(chosen, chosen.initial_weights(1), Shard(data, data), TrainingConfig(epochs=1))\n"
        "print(*({'torch._dynamo', 'torch._inductor', 'sympy', 'torchvision'} & sys.modules.keys()))"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == ""
