"""The label prior of a client: what it adds to its logits, and never sends. Importing this imports torch.

With the logarithm of its own class shares in training, a client's decision layer learns what inputs look like and not
how frequent classes are here; with it in prediction, the client knows that again (Menon et al. 2021, "Long-tail
learning via logit adjustment", applied at each client).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .networks import Classifier


class WithPrior(nn.Module):
    """A classifier whose logits get a constant added: the logarithm of class shares, minus infinity for none."""

    log_prior: torch.Tensor

    def __init__(self, classifier: Classifier, log_prior: torch.Tensor) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("log_prior", log_prior)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes)."""
        logits: torch.Tensor = self.classifier(inputs) + self.log_prior
        return logits


def with_prior(classifier: Classifier, counts: Sequence[float]) -> WithPrior:
    """The classifier with the prior of these counts of samples by class, on the classifier's device.

    Classes without samples get minus infinity: they are never predicted, and their rows get no gradient.
    """
    values = np.array(counts, dtype=np.float64)
    with np.errstate(divide="ignore"):
        log_prior = np.log(values / values.sum()).astype(np.float32)
    return WithPrior(classifier, torch.from_numpy(log_prior).to(classifier.decision.weight.device))
