"""FedRoD: one representation, a generic decision layer that classes balance, and a personal one on top."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bflnode.fl.aggregation import stepped
from bflnode.fl.networks import Classifier, get_tensors
from bflnode.fl.training import fit

from .method import (
    Gathered,
    Given,
    Local,
    Method,
    MethodError,
    Update,
    prefixed,
    refuse_unknown_expectation,
    same_for_all,
    stripped,
)

PERSONAL = "personal."
"""Before the tensors of the personal decision layer."""


class TwoHeads(nn.Module):
    """A classifier and a personal decision layer on the same codes; predicts by the sum of both logits."""

    def __init__(self, generic: Classifier, personal: nn.Linear) -> None:
        super().__init__()
        self.generic = generic
        self.personal = personal

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes)."""
        codes = self.generic.representation(inputs)
        logits: torch.Tensor = self.generic.decision(codes) + self.personal(codes)
        return logits


@dataclass(frozen=True, kw_only=True)
class FedRod(Method):
    """FedRoD with a linear personal head (Chen and Chao 2022, eq. 5 to 8).

    The generic part is trained with balanced softmax, logits plus the logarithm of the client's class counts; the
    personal head by cross entropy of the summed logits, with no gradient into the codes or the generic logits. Both in
    the same step.

    Attributes:
        server_step: eta: the aggregator returns `received + eta (mean - received)`; 1 is the paper's.
        expects: one of `EXPECTED`; with "uniform" a client predicts by the generic part, as the paper does for such
            data.
    """

    name = "fedrod"
    source = "Chen and Chao 2022, On Bridging Generic and Personalized Federated Learning, eq. 5 to 8"
    server_step: float = 1.0
    expects: str = "own"

    def __post_init__(self) -> None:
        if not self.server_step > 0:
            raise MethodError(f"server_step is {self.server_step}: give more than 0")
        refuse_unknown_expectation(self.expects)

    def train(self, local: Local) -> Update:
        """Train both heads, send the generic part."""
        model = self._model(local)
        counts = torch.tensor(local.shard.train.histogram(), dtype=torch.float32)
        log_counts = torch.log(counts).to(model.personal.weight.device)

        def objective(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            assert isinstance(module, TwoHeads)
            codes = module.generic.representation(inputs)
            generic = module.generic.decision(codes)
            personal = generic.detach() + module.personal(codes.detach())
            balanced = nn.functional.cross_entropy(generic + log_counts, labels)
            return balanced + nn.functional.cross_entropy(personal, labels)

        losses = fit(model, local.shard.train, local.config, objective)
        kept = prefixed(PERSONAL, get_tensors(model.personal))
        predicting = model if self.expects == "own" else model.generic
        return Update(sent=get_tensors(model.generic), kept=kept, model=predicting, loss=losses[-1])

    def aggregate(self, gathered: Gathered) -> Given:
        """A step from what was given to the mean of what was sent."""
        mean = gathered.combined([0] * len(gathered.sent))[0]
        return same_for_all(gathered, stepped(gathered.sent[0].received, mean, self.server_step))

    def personal_model(self, local: Local) -> nn.Module:
        """The generic part received, with the own head if its classes are expected."""
        return self._model(local) if self.expects == "own" else self.general_model(local)

    def general_model(self, local: Local) -> nn.Module:
        """The generic part."""
        return local.classifier()

    def _model(self, local: Local) -> TwoHeads:
        """The personal head starts at zero: it predicts as the generic part does."""
        generic = local.classifier()
        with torch.device("meta"):  # so that torch's generator isn't touched
            meta = nn.Linear(local.architecture.code_length, local.architecture.classes)
        personal = meta.to_empty(device=generic.decision.weight.device)
        own = stripped(PERSONAL, local.kept)
        with torch.no_grad():
            for name, parameter in personal.named_parameters():
                if own:
                    parameter.copy_(torch.from_numpy(np.array(own[name])))
                else:
                    parameter.zero_()
        return TwoHeads(generic, personal)
