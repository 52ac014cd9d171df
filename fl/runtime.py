"""How torch is brought into a process: what to import ahead of a fork, and with how many threads it runs.

Importing torch costs seconds and 280 MiB, so this module doesn't: a process pays when it first trains, or a
fork server pays once for all of its children.
"""

import importlib
import os
import sys

PRELOADED_MODULES = (
    "torch",
    "bflnode.fl.architectures",
    "bflnode.fl.networks",
    "bflnode.fl.datasets",
    "bflnode.fl.training",
    "bflnode.fl.prototypes",
    "bflnode.fl.aggregation",
)
"""Everything a training process ends up importing; but for ResNet-18 torchvision, which takes 2 s once."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def preload() -> None:
    """Import what a training process needs, on one thread, so that its copies can be forked.

    Raises:
        ImportError: an installation without torch or one of its relatives.
    """
    set_threads(1)
    for name in PRELOADED_MODULES:
        importlib.import_module(name)
    set_threads(1)


def set_threads(threads: int) -> None:
    """Let numeric libraries use so many threads, whether they are imported already or later.

    Args:
        threads: 1 or more. Several busy processes with two threads each on two cores starve one another.
    """
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)
