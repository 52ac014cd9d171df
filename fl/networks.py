"""The torch modules behind the architectures, and their tensors in and out as numpy arrays.

Importing this imports torch: only `architectures` does so, when a model is built. Tensor tables, sizes and
initial weights are in `architectures`, training in `training`.
"""

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch import nn

from .architectures import CNN_CHANNELS, CNN_KERNEL, RESNET_CHANNELS, Architecture
from .weights import Tensor


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
        hidden = nn.functional.max_pool2d(torch.relu(self.first(inputs)), 2)
        hidden = nn.functional.max_pool2d(torch.relu(self.second(hidden)), 2)
        return torch.relu(self.code(hidden.flatten(1)))


def build_classifier(architecture: Architecture) -> Classifier:
    """A module of this architecture; the values of its tensors mean nothing, no random generator is touched."""
    with torch.device("meta"):
        decision = nn.Linear(architecture.code_length, architecture.classes)
        classifier = Classifier(_representation(architecture), decision)
    return classifier.to_empty(device="cpu")


def get_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors of a module, by name."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()}


def set_tensors(classifier: Classifier, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a module; names and shapes must be exactly its own."""
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    classifier.load_state_dict(state, strict=True)


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
