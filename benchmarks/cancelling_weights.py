"""What a hostile model whose weights cancel but for rounding is similar to, on this processor.

Run it on two kinds of processors, or twice on one with AVX-512, the second time pretending that it has none:

    python -m benchmarks.cancelling_weights
    ONEDNN_MAX_CPU_ISA=AVX2 python -m benchmarks.cancelling_weights

Of the hostile model's channels six are constant and enter the second convolution with weights of 10^9 and their
opposites: exactly nothing, but what is added between the two loses its last digits, in the order of the processor.
A second one of ResNet-18 has weights near the largest number there is that cancel: where too many of one sign come
first, their sum is infinite, and the similarity 0.
"""

import numpy as np

from bflnode.fl.architectures import architecture
from bflnode.fl.prototypes import correlation_matrix, prototypes
from bflnode.fl.weights import parse, serialize

ARCHITECTURE = architecture("cnn/1x28x28/10")
HONEST = 5
SAMPLES = 32
CONSTANT_CHANNELS = 6
HUGE = 1e9

RESNET = architecture("resnet18/1x28x28/10")
NEAR_LARGEST = 1.2e38
SUMMANDS = 16


def hostile_model() -> bytes:
    """A model that every node takes for one of the task."""
    tensors = {
        name: tensor.copy() for name, tensor in parse(ARCHITECTURE.initial_weights(9), ARCHITECTURE.table).items()
    }
    tensors["representation.first.weight"][:CONSTANT_CHANNELS] = 0
    tensors["representation.first.bias"][:CONSTANT_CHANNELS] = 1
    second = tensors["representation.second.weight"]
    huge = np.random.default_rng(7).standard_normal(second[:, 0:CONSTANT_CHANNELS:2].shape) * HUGE
    second[:, 0:CONSTANT_CHANNELS:2] = huge
    second[:, 1:CONSTANT_CHANNELS:2] = -second[:, 0:CONSTANT_CHANNELS:2]
    return serialize(tensors)


def overflowing_model() -> bytes:
    """A model in which one channel of the second convolution is the sum of eight huge numbers and their opposites."""
    tensors = {name: tensor.copy() for name, tensor in parse(RESNET.initial_weights(9), RESNET.table).items()}
    tensors["representation.bn1.weight"][::2] = 0
    tensors["representation.bn1.bias"][::2] = 1
    kernel = tensors["representation.layer1.0.conv1.weight"][0]
    kernel[:] = 0
    generator = np.random.default_rng(1)
    chosen = generator.choice(kernel[::2].size, SUMMANDS, replace=False)
    signs = np.repeat([1, -1], SUMMANDS // 2)
    generator.shuffle(signs)
    constant = np.zeros(kernel[::2].size, dtype=np.float32)
    constant[chosen] = signs * NEAR_LARGEST
    kernel[::2] = constant.reshape(kernel[::2].shape)
    tensors["representation.layer1.0.bn1.weight"][0] = 0  # whatever the sum is, if only it is finite
    return serialize(tensors)


def main() -> None:
    """Print the similarities, in units of 10^-4, of hostile models and of an honest one with the honest others."""
    inputs = np.random.default_rng(5).random((SAMPLES, *ARCHITECTURE.input_shape)).astype(np.float32)
    models = [*(ARCHITECTURE.initial_weights(seed) for seed in range(1, HONEST + 1)), hostile_model()]
    matrix = correlation_matrix(prototypes(ARCHITECTURE, models, inputs))
    print("hostile:", matrix[HONEST, :HONEST].tolist())
    print("honest: ", matrix[0, 1:HONEST].tolist())
    models = [RESNET.initial_weights(1), overflowing_model()]
    print("ResNet-18:", int(correlation_matrix(prototypes(RESNET, models, inputs[:4]))[0, 1]))


if __name__ == "__main__":
    main()
