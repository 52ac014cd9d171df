"""Running a model forward on the CPU, in a fixed way, and the torch settings that make it repeatable.

Here belongs what training, prototypes and evaluation share of torch. Importing this imports torch.
"""

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
