"""The torch modules behind the architectures, and their tensors in and out as numpy arrays.

Importing this imports torch: only `architectures` does so, when a model is built. Tensor tables, sizes and
initial weights are in `architectures`, training in `training`.
"""

import copy
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .architectures import CNN_CHANNELS, CNN_KERNEL, RESNET_CHANNELS, Architecture
from .weights import Tensor, Tensors


class Classifier(nn.Module):
    """A representation layer and a decision layer (BFLN 2024, section 3.2).

    Attributes:
        representation: (batch, channels, height, width) float32 to codes (batch, code length).
        decision: codes to logits (batch, classes).
    """

    def __init__(self, representation: nn.Module, decision: nn.Linear) -> None:
        super().__init__()
        self.representation = representation
        self.decision = decision

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes)."""
        logits: torch.Tensor = self.decision(self.representation(inputs))
        return logits


class MlpRepresentation(nn.Module):
    """One hidden layer of rectified units: its activations are the code."""

    def __init__(self, inputs: int, code_length: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, code_length)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Codes (batch, code length)."""
        return torch.relu(self.hidden(inputs.flatten(1)))


class CnnRepresentation(nn.Module):
    """Two convolutions with pooling, and a code layer of rectified units."""

    def __init__(self, input_shape: tuple[int, int, int], code_length: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        padding = CNN_KERNEL // 2
        self.first = nn.Conv2d(channels, CNN_CHANNELS[0], CNN_KERNEL, padding=padding)
        self.second = nn.Conv2d(CNN_CHANNELS[0], CNN_CHANNELS[1], CNN_KERNEL, padding=padding)
        self.code = nn.Linear(CNN_CHANNELS[1] * (height // 4) * (width // 4), code_length)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Codes (batch, code length)."""
        hidden = torch.relu(halved(self.first(inputs)))
        hidden = torch.relu(halved(self.second(hidden)))
        return torch.relu(self.code(hidden.flatten(1)))


def halved(inputs: torch.Tensor) -> torch.Tensor:
    """The largest of each 2x2 square: `max_pool2d(inputs, 2)` and its gradient, bit for bit but for signs of zeros.

    Args:
        inputs: (batch, channels, height, width) float32.
    """
    if inputs.is_cuda or inputs.shape[2] % 2 or inputs.shape[3] % 2:
        return nn.functional.max_pool2d(inputs, 2)
    result: torch.Tensor = _LargestOfSquares.apply(inputs)
    return result


class _LargestOfSquares(torch.autograd.Function):
    """The same as torch's kernel, which on a CPU looks at one number after the other and took a quarter of a training.

    Of equal numbers the gradient goes to the first, row by row. It is moved as integers: multiplied by 0 or 1 they keep
    their bits, and what gets none has a plain zero.
    """

    @staticmethod
    def forward(context: Any, inputs: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(inputs)
        columns = torch.maximum(inputs[:, :, 0::2], inputs[:, :, 1::2])
        return torch.maximum(columns[..., 0::2], columns[..., 1::2])

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        (inputs,) = context.saved_tensors
        batch, channels, height, width = gradient.shape
        upper, lower = inputs[:, :, 0::2], inputs[:, :, 1::2]
        columns, is_lower = torch.maximum(upper, lower), (lower > upper).to(torch.int32)
        left, right = columns[..., 0::2], columns[..., 1::2]
        # Of equal columns the right one comes first if it has its largest above, and the left one below.
        comes_first = is_lower[..., 0::2] - is_lower[..., 1::2]
        is_right = torch.maximum((right > left).to(torch.int32), (right == left).to(torch.int32) * comes_first)
        whole = gradient.contiguous().view(torch.int32)
        of_columns = whole.new_empty(batch, channels, height, width, 2)
        of_columns[..., 1] = whole * is_right
        of_columns[..., 0] = whole - of_columns[..., 1]
        of_columns = of_columns.view(batch, channels, height, 2 * width)
        of_rows = whole.new_empty(batch, channels, height, 2, 2 * width)
        of_rows[:, :, :, 1] = of_columns * is_lower
        of_rows[:, :, :, 0] = of_columns - of_rows[:, :, :, 1]
        return of_rows.view(torch.float32).view(inputs.shape)


def build_classifier(architecture: Architecture) -> Classifier:
    """A module of this architecture; the values of its tensors mean nothing, no random generator is touched."""
    return copy.deepcopy(_template(architecture))


@lru_cache(maxsize=8)
def _template(architecture: Architecture) -> Classifier:
    """A module to copy, which takes half the time of making it.

    `Module.to_empty` does the same for the tensors, and imports sympy for it: 0.7 s.
    """
    with torch.device("meta"):
        decision = nn.Linear(architecture.code_length, architecture.classes)
        classifier = Classifier(_representation(architecture), decision)
    for module in classifier.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(torch.empty(parameter.shape)))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return classifier


def get_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors of a module, by name."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()}


def set_tensors(classifier: Classifier, tensors: Tensors) -> None:
    """Copy tensors into a module; names and shapes must be exactly its own."""
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    classifier.load_state_dict(state, strict=True)


def interpolated(start: nn.Module, end: nn.Module, share: float) -> nn.Module:
    """A module like `end` with the floats `start + share (end - start)`; 1 is `end` itself, 0 predicts as `start` does.

    A tensor that is the same in both stays: there is nothing between two infinities, as in a label prior. Integers are
    those of `end`.

    Raises:
        ValueError: the two have other tensors.
    """
    if share == 1:
        return end
    result, before = copy.deepcopy(end), start.state_dict()
    after = result.state_dict()
    if {name: (own.shape, own.dtype) for name, own in before.items()} != {
        name: (own.shape, own.dtype) for name, own in after.items()
    }:
        raise ValueError("what is trained has other tensors than what it was trained from: use an interpolation of 1")
    for name, tensor in after.items():
        if tensor.is_floating_point() and not torch.equal(tensor, before[name]):
            tensor.lerp_(before[name], 1 - share)
    return result


def _representation(architecture: Architecture) -> nn.Module:
    match architecture.name:
        case "mlp":
            return MlpRepresentation(prod(architecture.input_shape), architecture.code_length)
        case "cnn":
            return CnnRepresentation(architecture.input_shape, architecture.code_length)
        case "resnet18":
            return _resnet_representation(architecture)
        case unknown:
            raise AssertionError(f"architecture {unknown} has a table but no module")


def _resnet_representation(architecture: Architecture) -> nn.Module:
    """ResNet-18 of torchvision with the code as its classes; its first layer follows the number of channels."""
    with torch.device("cpu"):  # what modules make when they are imported is no part of a classifier
        from torchvision.models import resnet18  # brings torch's compiler along, 2 s: only for those who need it

    network: nn.Module = resnet18(weights=None, num_classes=architecture.code_length)
    channels = architecture.input_shape[0]
    network.conv1 = nn.Conv2d(channels, RESNET_CHANNELS[0], kernel_size=7, stride=2, padding=3, bias=False)
    return network
