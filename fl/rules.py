"""What becomes of clients' models under each rule: the one implementation, for everybody who computes it.

Methods of experiments, the aggregator of a chain, the committee that repeats its work, and whoever verifies a chain
call `outputs`. Elementwise float64 in a fixed order, cast to float32 at the end: the same bytes on every machine with
IEEE 754 arithmetic. Every rule is total: there is a result for any models that are canonical weights of one
architecture, since on a chain there must be one. Which clients belong together, who holds which classes and what
weights they have is decided by the caller. No torch.

    paa          a model for each cluster: received + step (combination of what its members sent - received)
    prior-rows   the same over everybody, but row c of the decision layer over those who hold class c; with `shared`
                 below 1 the representation of each cluster is in part its own
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .aggregation import mean, moved, stepped
from .architectures import DECISION
from .robust import RobustRule
from .weights import Tensor, Tensors

PAA, PRIOR_ROWS = "paa", "prior-rows"
"""The rules' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule with its settings.

    Attributes:
        name: PAA or PRIOR_ROWS.
        combination: what makes one model of several.
        server_step: how far an output goes from what was received towards the combination; 1 is the combination itself,
            bit for bit. BatchNorm's statistics never take a step: a variance beyond the combined one can be negative.
        shared: under PRIOR_ROWS, the part of everybody's representation in a cluster's, 0 to 1; the rest is made of its
            members alone. The decision layer is everybody's: a cluster may lack classes. 1 is one model for all.
    """

    name: str = PAA
    combination: RobustRule = RobustRule()  # noqa: RUF009 - frozen
    server_step: float = 1.0
    shared: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in (PAA, PRIOR_ROWS):
            raise ValueError(f"there is no rule {self.name!r}: use {PAA} or {PRIOR_ROWS}")
        if not self.server_step > 0:
            raise ValueError(f"server_step is {self.server_step}: give more than 0")
        if not 0 <= self.shared <= 1:
            raise ValueError(f"shared is {self.shared}: give 0 to 1")

    @property
    def needs_received(self) -> bool:
        """Whether an output depends on what clients had received, and not only on what they sent."""
        return self.name == PRIOR_ROWS or self.server_step != 1 or self.combination.name == "norm-clipping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one client gives to an aggregation.

    Attributes:
        sent: the model that it trained.
        received: the model that it trained from; may be left out where the rule doesn't need it.
        holds: for each class whether the client has samples of it; only PRIOR_ROWS asks.
        weight: in means; every other combination counts clients equally.
    """

    sent: Tensors
    received: Tensors
    holds: Sequence[bool] = ()
    weight: int = 1


def outputs(
    rule: Rule, contributions: Sequence[Contribution], labels: Sequence[int]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The output for each cluster, one after the other: so that not all of them have to be in memory.

    Args:
        rule: what is done.
        contributions: of at least one client. Permuting them may change last bits: the caller fixes the order, by key.
        labels: the cluster of each client.

    Yields:
        A label, ascending, and its output; where the rule makes one model for all, the same object each time.
    """
    assert len(contributions) == len(labels) > 0, (len(contributions), len(labels))
    for_all = _prior_rows(rule, contributions) if rule.name == PRIOR_ROWS else {}
    for label in sorted(set(labels)):
        members = [entry for entry, own in zip(contributions, labels, strict=True) if own == label]
        if rule.name == PAA:
            yield label, _stepped(rule, members, _combined(rule, members))
        elif rule.shared == 1:
            yield label, for_all
        else:
            own = _stepped(rule, members, _combined(rule, members))
            representation = {name: tensor for name, tensor in own.items() if not name.startswith(DECISION)}
            yield label, moved(representation, for_all, rule.shared)


def _prior_rows(rule: Rule, everybody: Sequence[Contribution]) -> dict[str, Tensor]:
    """The rows of the decision layer each combined over the holders of its class, all else over everybody.

    A row without holders becomes the mean of those that have some, so that its class never has the largest logit: left
    as it was, it would soon, since the other rows learn to say no. With fewer than two of them it stays as received.
    Norm clipping and Krum judge a client by its whole model where everybody is combined, and by the row alone in a row.
    """
    combined = _combined(rule, everybody)
    received = _received(everybody)
    layer = [name for name in combined if name.startswith(DECISION)]
    for name in layer:
        combined[name] = received[name].copy()
    classes = range(len(everybody[0].holds))
    held = [category for category in classes if any(entry.holds[category] for entry in everybody)]
    for category in held:
        holders = [_row(entry, layer, category) for entry in everybody if entry.holds[category]]
        for name, row in _combined(rule, holders).items():
            combined[name][category] = row
    result = _stepped(rule, everybody, combined)
    if 2 <= len(held) < len(classes):
        middle = mean(
            [{name: np.asarray(result[name][category]) for name in layer} for category in held], [1] * len(held)
        )
        for name, row in middle.items():
            result[name][[category for category in classes if category not in held]] = row
    return result


def _row(entry: Contribution, layer: Sequence[str], category: int) -> Contribution:
    """A client's part in one row of the decision layer: all of its tensors begin with the classes."""
    return replace(
        entry,
        sent={name: np.asarray(entry.sent[name][category]) for name in layer},
        received={name: np.asarray(entry.received[name][category]) for name in layer},
    )


def _combined(rule: Rule, members: Sequence[Contribution]) -> dict[str, Tensor]:
    sent = [member.sent for member in members]
    if rule.combination.name == "mean":
        return mean(sent, [member.weight for member in members])
    return rule.combination(sent, [member.received for member in members])


def _stepped(rule: Rule, members: Sequence[Contribution], combined: dict[str, Tensor]) -> dict[str, Tensor]:
    if rule.server_step == 1:
        return combined
    return stepped(_received(members), combined, rule.server_step)


def _received(members: Sequence[Contribution]) -> Tensors:
    """What the members had received: of different models the mean."""
    first = members[0].received
    if all(_is_same(member.received, first) for member in members):
        return first
    return mean([member.received for member in members], [member.weight for member in members])


def _is_same(one: Tensors, other: Tensors) -> bool:
    """Whether two models have the same bits; callers give equal models as one object where they can."""
    return one is other or all(one[name].tobytes() == other[name].tobytes() for name in other)
