"""Running a model forward on the CPU, in a fixed way, and the torch settings that make it repeatable.

Here belongs what training, prototypes and evaluation share of torch. Importing this imports torch.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .networks import Classifier
from .samples import Inputs, as_float

INFERENCE_BATCH = 256
"""Samples in one forward pass. Results differ in the last bits between batch sizes, so it is the same everywhere."""

SURELY_FINITE = 2.0**100
"""What adds up to less by magnitude is finite in any order, with room for what a kernel pools or scales in between.

float32 ends at 2^128; in models trained on digits no such sum is beyond 2^4."""


@contextmanager
def repeatable_torch(threads: int) -> Iterator[None]:
    """Set torch to give the same bits on each run on one machine, and put its settings back afterwards.

    The settings belong to the process: one training or inference at a time. Memory that a kernel is about to write is
    not filled first, which would take up to a quarter of an inference: kernels read only what they have written.

    Args:
        threads: of the CPU kernels; results differ in the last bits between numbers of threads.
    """
    threads_before = torch.get_num_threads()
    # Another interface of `use_deterministic_algorithms`, which imports torch's compiler: 2 s.
    deterministic_before = torch.get_deterministic_debug_mode()
    filling: Any = torch.utils.deterministic  # a module with a property, which types can't say
    fill_before = filling.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it deterministic CUDA refuses to run
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("error")
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_deterministic_debug_mode(deterministic_before)
        filling.fill_uninitialized_memory = fill_before


def representations(classifier: Classifier, inputs: Inputs) -> NDArray[np.float32]:
    """The codes (samples, code length) of inputs, in batches of `INFERENCE_BATCH`.

    Not finite where a model's own weights overflow.
    """
    return _in_batches(classifier, classifier.representation, inputs)


def may_overflow(classifier: Classifier, inputs: Inputs) -> bool:
    """Whether some order of its sums may take a representation of these inputs beyond what float32 can hold.

    Kernels add up in orders of their own: 2e38 + 2e38 - 2e38 - 2e38 is 0 for one processor and infinite for another.
    So magnitudes are added up, in float64, for each layer by itself on what it is given here.
    """
    classifier.eval()
    layers = [layer for layer in classifier.representation.modules() if [*layer.parameters(recurse=False)]]
    magnitudes = {layer: _magnitudes(layer) for layer in layers}
    largest: list[float] = []

    def look(layer: nn.Module, arguments: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        values = arguments[0].abs().amax(dim=0, keepdim=True).double()
        largest.extend((values.max().item(), magnitudes[layer](values).max().item()))

    hooks = [layer.register_forward_hook(look) for layer in layers]
    _in_batches(classifier, classifier.representation, inputs)
    for hook in hooks:
        hook.remove()
    return not all(value <= SURELY_FINITE for value in largest)


def _magnitudes(layer: nn.Module) -> nn.Module:
    """The layer that adds up the magnitudes of what this one adds up, if it is given magnitudes."""
    result = copy.deepcopy(layer).double()
    with torch.no_grad():
        for name, tensor in result.state_dict().items():
            if name == "running_mean":
                tensor.copy_(-tensor.abs())  # it is subtracted
            elif name != "running_var":
                tensor.abs_()
    return result


def logits(module: nn.Module, inputs: Inputs) -> NDArray[np.float64]:
    """The logits (samples, classes) that a module gives for inputs, in batches of `INFERENCE_BATCH`.

    Always finite: where a model's own weights overflow, NaN counts as 0 and infinity as the largest float32,
    so that a hostile model has an accuracy and a loss like any other.
    """
    raw = _in_batches(module, module, inputs)
    return np.nan_to_num(raw, nan=0.0).astype(np.float64)


def _in_batches(module: nn.Module, layer: nn.Module, inputs: Inputs) -> NDArray[np.float32]:
    device = next(module.parameters()).device
    module.eval()
    results = []
    with torch.inference_mode():
        for start in range(0, len(inputs), INFERENCE_BATCH):
            batch = torch.from_numpy(as_float(inputs[start : start + INFERENCE_BATCH]).copy()).to(device)
            results.append(layer(batch).cpu().numpy())
    return np.concatenate(results)
