"""The architectures a task can name, and the exact tensors each of them has; no torch until a model is built.

An architecture id is `<name>/<channels>x<height>x<width>/<classes>`, for example `mlp/1x8x8/10`. It names
built-in code and is never code itself. Every architecture is a representation layer, which turns a sample
into a code, and a decision layer, which turns the code into one logit a class (BFLN 2024, section 3.2).

Here belong the grammar of ids, tensor tables and initial weights. The torch modules are in `networks`.
A node that doesn't train knows sizes, tables and initial weights from here without importing torch;
a test proves that the tables equal the modules' own.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from math import prod, sqrt
from typing import TYPE_CHECKING

import numpy as np

from .weights import DType, Tensor, TensorSpec, TensorTable, expected_size, parse, serialize

if TYPE_CHECKING:
    from .networks import Classifier

MAX_CHANNELS = 16
"""Colour images have 3, multispectral ones up to 13."""

MAX_SIDE = 256
"""Pixels: ImageNet's usual side is 224."""

MIN_SIDE_CNN = 4
"""Two poolings by two leave at least one pixel."""

MAX_CLASSES = 1000
"""ImageNet's."""

NAMES = ("mlp", "cnn", "resnet18")
"""The names an architecture id can start with."""

DECISION = "decision."
"""How names of the decision layer's tensors begin, which have a row for each class; the rest is the representation."""

CODE_LENGTH_MLP = 64
CODE_LENGTH_CNN = 32
CODE_LENGTH_RESNET = 32
"""The code length of BFLN's public baselines for ten classes."""

CODE_LENGTH_RESNET_MANY = 50
"""The code length of BFLN's public baselines for a hundred classes."""

MANY_CLASSES = 100
"""From so many classes on, ResNet-18 has the longer code."""

CNN_CHANNELS = (8, 16)
CNN_KERNEL = 5
"""With a code of 32: 28,874 parameters for 1x28x28 and ten classes."""

RESNET_CHANNELS = (64, 128, 256, 512)
"""Channels of ResNet-18's four stages (He et al. 2016, table 1)."""

_ID = re.compile(r"([a-z][a-z0-9]{0,15})/(N)x(N)x(N)/(N)".replace("N", "[1-9][0-9]{0,3}"))


class UnknownArchitecture(ValueError):
    """An architecture id that is malformed, or names nothing built in."""


@dataclass(frozen=True, slots=True)
class _Start:
    """How a tensor starts: uniform in [centre - bound, centre + bound]; a bound of 0 makes it constant."""

    centre: float = 0.0
    bound: float = 0.0


@dataclass(frozen=True, slots=True)
class _Layer:
    """One tensor with its start."""

    spec: TensorSpec
    start: _Start


@dataclass(frozen=True, slots=True)
class Architecture:
    """A built-in model family with fixed shapes.

    Attributes:
        id: the architecture id.
        name: the first part of the id.
        input_shape: channels, height, width.
        classes: number of logits.
        code_length: dimensions of a representation.
        table: every tensor of the model, BatchNorm's buffers included.
        size_bytes: exact size of a weights file.
    """

    id: str
    name: str
    input_shape: tuple[int, int, int]
    classes: int
    code_length: int
    table: TensorTable
    size_bytes: int
    _layers: tuple[_Layer, ...]

    def initial_weights(self, seed: int) -> bytes:
        """Weights to start from: the same bytes for a seed on every machine, whatever the version of torch.

        Layers start uniform with the variance torch and torchvision give them: bound 1/sqrt(fan in) for
        linear layers and the small CNN, He et al. 2015 by fan out for ResNet's convolutions (torchvision
        draws these from a normal distribution; a uniform one of the same variance needs no
        logarithm, which differs between platforms in the last bit).

        Args:
            seed: 0 or more.

        Returns:
            Canonical weights.
        """
        generator = np.random.Generator(np.random.PCG64(seed))
        tensors: dict[str, Tensor] = {}
        for layer in self._layers:
            spec, start = layer.spec, layer.start
            if start.bound:
                drawn = start.centre + start.bound * (2.0 * generator.random(spec.shape) - 1.0)
                tensors[spec.name] = drawn.astype(np.float32)
            else:
                tensors[spec.name] = np.full(spec.shape, start.centre, spec.dtype.numpy)
        return serialize(tensors)

    def build(self) -> "Classifier":
        """A torch module of this architecture, whose tensors are not initialised to anything useful."""
        from .networks import build_classifier

        return build_classifier(self)

    def load(self, model: bytes | memoryview) -> "Classifier":
        """A torch module with the weights given.

        Raises:
            InvalidWeights: the bytes are not canonical weights of this architecture.
        """
        from .networks import set_tensors

        classifier = self.build()
        set_tensors(classifier, parse(model, self.table))
        return classifier

    def dump(self, classifier: "Classifier") -> bytes:
        """The canonical weights of a torch module.

        Raises:
            InvalidWeights: a tensor has a NaN or an infinity.
        """
        from .networks import get_tensors

        return serialize(get_tensors(classifier))


@lru_cache(maxsize=64)
def architecture(architecture_id: str) -> Architecture:
    """The architecture an id names.

    Args:
        architecture_id: `<name>/<channels>x<height>x<width>/<classes>`, no leading zeros.

    Raises:
        UnknownArchitecture: the id is malformed, out of range or names no architecture; the message says which.
    """
    match = _ID.fullmatch(architecture_id)
    if match is None:
        raise UnknownArchitecture(
            f"{architecture_id[:80]!r} is not an architecture id: write <name>/<channels>x<height>x<width>/<classes>, "
            f"for example mlp/1x8x8/10; names are {', '.join(NAMES)}"
        )
    name = match[1]
    input_shape = (int(match[2]), int(match[3]), int(match[4]))
    classes = int(match[5])
    if name not in NAMES:
        raise UnknownArchitecture(f"there is no architecture {name!r}; names are {', '.join(NAMES)}")
    _refuse_out_of_range(name, input_shape, classes)
    match name:
        case "mlp":
            body, code_length = _mlp_layers(input_shape), CODE_LENGTH_MLP
        case "cnn":
            body, code_length = _cnn_layers(input_shape), CODE_LENGTH_CNN
        case _:
            code_length = CODE_LENGTH_RESNET_MANY if classes >= MANY_CLASSES else CODE_LENGTH_RESNET
            body = _resnet_layers(input_shape[0], code_length)
    layers = tuple(sorted((*body, *_linear("decision", code_length, classes)), key=lambda layer: layer.spec.name))
    table = TensorTable(tuple(layer.spec for layer in layers))
    return Architecture(
        id=architecture_id,
        name=name,
        input_shape=input_shape,
        classes=classes,
        code_length=code_length,
        table=table,
        size_bytes=expected_size(table),
        _layers=layers,
    )


def _refuse_out_of_range(name: str, input_shape: tuple[int, int, int], classes: int) -> None:
    channels, height, width = input_shape
    if channels > MAX_CHANNELS:
        raise UnknownArchitecture(f"{channels} channels, at most {MAX_CHANNELS} are supported")
    if max(height, width) > MAX_SIDE:
        raise UnknownArchitecture(f"images of {height}x{width} pixels, at most {MAX_SIDE}x{MAX_SIDE} are supported")
    if name == "cnn" and min(height, width) < MIN_SIDE_CNN:
        raise UnknownArchitecture(f"images of {height}x{width} pixels, cnn needs {MIN_SIDE_CNN}x{MIN_SIDE_CNN}")
    if not 2 <= classes <= MAX_CLASSES:
        raise UnknownArchitecture(f"{classes} classes, between 2 and {MAX_CLASSES} are supported")


def _mlp_layers(input_shape: tuple[int, int, int]) -> tuple[_Layer, ...]:
    """One hidden layer, which is the code."""
    return _linear("representation.hidden", prod(input_shape), CODE_LENGTH_MLP)


def _cnn_layers(input_shape: tuple[int, int, int]) -> tuple[_Layer, ...]:
    """Two convolutions, each with a pooling by two, and a code layer."""
    channels, height, width = input_shape
    first, second = CNN_CHANNELS
    pixels = (height // 4) * (width // 4)
    return (
        *_convolution("representation.first", channels, first, CNN_KERNEL),
        *_convolution("representation.second", first, second, CNN_KERNEL),
        *_linear("representation.code", second * pixels, CODE_LENGTH_CNN),
    )


def _resnet_layers(channels: int, code_length: int) -> tuple[_Layer, ...]:
    """ResNet-18 as torchvision has it (He et al. 2016); its last layer gives the code."""
    root = "representation"
    layers = [_resnet_convolution(f"{root}.conv1", channels, RESNET_CHANNELS[0], 7)]
    layers += _batch_norm(f"{root}.bn1", RESNET_CHANNELS[0])
    inputs = RESNET_CHANNELS[0]
    for stage, outputs in enumerate(RESNET_CHANNELS, start=1):
        for block in range(2):
            path = f"{root}.layer{stage}.{block}"
            layers.append(_resnet_convolution(f"{path}.conv1", inputs, outputs, 3))
            layers += _batch_norm(f"{path}.bn1", outputs)
            layers.append(_resnet_convolution(f"{path}.conv2", outputs, outputs, 3))
            layers += _batch_norm(f"{path}.bn2", outputs)
            if inputs != outputs:
                layers.append(_resnet_convolution(f"{path}.downsample.0", inputs, outputs, 1))
                layers += _batch_norm(f"{path}.downsample.1", outputs)
            inputs = outputs
    layers += _linear(f"{root}.fc", RESNET_CHANNELS[-1], code_length)
    return tuple(layers)


def _linear(path: str, inputs: int, outputs: int) -> tuple[_Layer, ...]:
    start = _Start(bound=1.0 / sqrt(inputs))
    return (
        _Layer(TensorSpec(f"{path}.weight", DType.F32, (outputs, inputs)), start),
        _Layer(TensorSpec(f"{path}.bias", DType.F32, (outputs,)), start),
    )


def _convolution(path: str, inputs: int, outputs: int, kernel: int) -> tuple[_Layer, ...]:
    start = _Start(bound=1.0 / sqrt(inputs * kernel * kernel))
    return (
        _Layer(TensorSpec(f"{path}.weight", DType.F32, (outputs, inputs, kernel, kernel)), start),
        _Layer(TensorSpec(f"{path}.bias", DType.F32, (outputs,)), start),
    )


def _resnet_convolution(path: str, inputs: int, outputs: int, kernel: int) -> _Layer:
    """No bias (BatchNorm has one); variance 2 / fan out, as torchvision's."""
    start = _Start(bound=sqrt(6.0 / (outputs * kernel * kernel)))
    return _Layer(TensorSpec(f"{path}.weight", DType.F32, (outputs, inputs, kernel, kernel)), start)


def _batch_norm(path: str, channels: int) -> tuple[_Layer, ...]:
    ones, zeros = _Start(centre=1.0), _Start()
    return (
        _Layer(TensorSpec(f"{path}.weight", DType.F32, (channels,)), ones),
        _Layer(TensorSpec(f"{path}.bias", DType.F32, (channels,)), zeros),
        _Layer(TensorSpec(f"{path}.running_mean", DType.F32, (channels,)), zeros),
        _Layer(TensorSpec(f"{path}.running_var", DType.F32, (channels,)), ones),
        _Layer(TensorSpec(f"{path}.num_batches_tracked", DType.I64, ()), zeros),
    )
