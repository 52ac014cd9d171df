"""What federated methods are compared with: everybody alone, and all data in one place."""

from dataclasses import dataclass

from torch import nn

from bflnode.fl.networks import get_tensors
from bflnode.fl.training import fit
from bflnode.fl.weights import Tensors

from .method import NOTHING, Gathered, Given, Local, Method, Update, same_for_all


@dataclass(frozen=True, kw_only=True)
class LocalOnly(Method):
    """Training alone: every client goes on from its own last model, and nothing is sent."""

    name = "local"
    source = "control"

    def train(self, local: Local) -> Update:
        """Go on from the own model."""
        classifier = local.classifier(local.received, local.kept)
        losses = fit(classifier, local.shard.train, local.config)
        return Update(sent=NOTHING, kept=get_tensors(classifier), model=classifier, loss=losses[-1])

    def aggregate(self, gathered: Gathered) -> Given:
        """Give everybody back what it had: who hasn't trained yet starts from the initial model."""
        return same_for_all(gathered, gathered.sent[0].received)

    def personal_model(self, local: Local) -> nn.Module:
        """The own model."""
        return local.classifier(local.received, local.kept)


@dataclass(frozen=True, kw_only=True)
class Centralised(Method):
    """All data in one place: the runner makes one client of it, who trains as long as all of them together.

    Adam starts anew each round, as for everybody else, so that only the place of the data differs.
    """

    name = "centralised"
    source = "control (Wang et al., figure 2)"

    def aggregate(self, gathered: Gathered) -> Given:
        """Go on from what the one client has."""
        only: Tensors = gathered.sent[0].tensors
        return same_for_all(gathered, only)
