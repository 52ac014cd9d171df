"""What one hostile client does to `prior-rows`, by what it says about its labels and how models are combined.

Digits over ten clients: client k holds classes k to k + 3 (modulo ten), but class 9 is held by client 9 alone, which is
the hostile one. So rows 0 to 8 have three or four holders and row 9 has one. `python -m benchmarks.hostile_rows` prints
the tables of docs/threat-model.md; it takes some minutes on a core.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from bflnode.fl.architectures import architecture
from bflnode.fl.datasets import load_digits
from bflnode.fl.inference import repeatable_torch
from bflnode.fl.methods.method import Gathered, Local, Sent, load
from bflnode.fl.methods.prior_rows import PriorRows
from bflnode.fl.robust import RobustRule
from bflnode.fl.samples import LabelledData, Shard
from bflnode.fl.training import TrainingConfig, measure
from bflnode.fl.weights import Tensor, Tensors, parse
from bflnode.node.experiments.round import cluster_exactly

CLIENTS = CLASSES = 10
HOSTILE = 9
HELD = 4
CHOSEN = architecture("mlp/1x8x8/10")
ROUNDS = 15
STRENGTH = 10.0
"""How far garbage goes against what was learned, in steps."""


@dataclass(frozen=True, slots=True)
class Attack:
    """What the hostile client does.

    Attributes:
        name: in the table.
        is_garbage: it sends the opposite of what it learned, ten times over, in these tensors: names that begin so.
        rows: the rows of the decision layer that are garbage; all of them if empty.
        claims_all: it says that it holds every class.
    """

    name: str
    is_garbage: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    claims_all: bool = False


ATTACKS = (
    Attack("none"),
    Attack("garbage in the row that it holds alone", is_garbage=("decision.",), rows=(HOSTILE,)),
    Attack("garbage everywhere", is_garbage=("",)),
    Attack("garbage everywhere, and claims all classes", is_garbage=("",), claims_all=True),
    Attack("garbage rows alone, and claims all classes", is_garbage=("decision.",), claims_all=True),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Accuracies after the last round.

    Attributes:
        received: on their own test data, with their prior and memory; mean over honest clients, as the others.
        general: on everybody's test data, without a prior.
        row: the same on class 9 alone.
    """

    received: float
    general: float
    row: float


def shards() -> tuple[list[Shard], LabelledData]:
    """The clients' data, and the test data of everybody."""
    whole = load_digits()
    generator = np.random.default_rng(1)

    def holders(category: int) -> list[int]:
        return [HOSTILE] if category == HOSTILE else [(category - back) % CLIENTS for back in range(HELD)]

    def dealt(data: LabelledData) -> list[LabelledData]:
        hands: list[list[int]] = [[] for _ in range(CLIENTS)]
        for category in range(CLASSES):
            places = generator.permutation(np.flatnonzero(data.labels == category))
            for client, part in zip(holders(category), np.array_split(places, len(holders(category))), strict=True):
                hands[client] += part.tolist()
        return [data.take(sorted(hand)) for hand in hands]

    train, test = dealt(whole.train), dealt(whole.test)
    return [Shard(*pair) for pair in zip(train, test, strict=True)], whole.test


def play(attack: Attack, method: PriorRows, combination: str, rounds: int = ROUNDS) -> Outcome:
    """Play some learning rounds with one hostile client."""
    own, everybody = shards()
    received: Sequence[Tensors] = [parse(CHOSEN.initial_weights(1), CHOSEN.table)] * CLIENTS
    kept: list[Tensors] = [{}] * CLIENTS
    honest = [client for client in range(CLIENTS) if client != HOSTILE]
    with repeatable_torch(1):
        for number in range(1, rounds + 1):
            updates = [
                method.train(_local(client, number, own[client], received[client], kept[client]))
                for client in range(CLIENTS)
            ]
            sent, kept = [update.sent for update in updates], [update.kept for update in updates]
            sent[HOSTILE] = forged(attack, sent[HOSTILE], received[HOSTILE])
            histograms = [shard.train.histogram() for shard in own]
            if attack.claims_all:
                histograms[HOSTILE] = (1,) * CLASSES
            gathered = Gathered(
                round=number,
                seed=number,
                architecture=CHOSEN,
                clients=CLIENTS,
                sent=tuple(
                    Sent(
                        client=client,
                        samples=len(own[client].train),
                        histogram=histograms[client],
                        received=received[client],
                        tensors=sent[client],
                    )
                    for client in range(CLIENTS)
                ),
                probe=everybody,
                cluster=cluster_exactly,
                combine=RobustRule(name=combination),
            )
            received = method.aggregate(gathered).received
        last = [_local(client, rounds + 1, own[client], received[client], kept[client]) for client in honest]
        general = [measure(load(CHOSEN, one.received), everybody) for one in last]
        personal = [measure(method.personal_model(one), one.shard.test).accuracy for one in last]
    return Outcome(
        mean(personal),
        mean(one.accuracy for one in general),
        mean(one.class_accuracies[HOSTILE] or 0.0 for one in general),
    )


def forged(attack: Attack, sent: Tensors, received: Tensors) -> dict[str, Tensor]:
    """What the hostile client sends."""
    result: dict[str, Any] = dict(sent)
    for name in sent:
        if any(name.startswith(prefix) for prefix in attack.is_garbage):
            garbage = received[name] - np.float32(STRENGTH) * (sent[name] - received[name])
            if attack.claims_all and name.startswith("decision."):
                garbage = garbage - np.float32(STRENGTH) * np.ones_like(garbage)
            places: Any = list(attack.rows) if attack.rows else slice(None)
            result[name] = sent[name].copy()
            result[name][places] = garbage[places]
    return result


def _local(client: int, number: int, shard: Shard, received: Tensors, kept: Tensors) -> Local:
    return Local(
        client=client,
        round=number,
        architecture=CHOSEN,
        shard=shard,
        config=TrainingConfig(epochs=5, learning_rate=0.005, seed=1000 * number + client, device="cpu"),
        received=received,
        kept=kept,
    )


def table(method: PriorRows, combinations: Sequence[str] = ("mean", "median", "trimmed-mean", "norm-clipping")) -> None:
    """Print the table of a method."""
    print("| the hostile client sends |", " | ".join(combinations), "|")
    print("|---|", "---|" * len(combinations))
    for attack in ATTACKS:
        found = [play(attack, method, combination) for combination in combinations]
        cells = (f"{one.received:.2f} / {one.general:.2f} / {one.row:.2f}" for one in found)
        print(f"| {attack.name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    for chosen in (PriorRows(), PriorRows(shared=1.0)):
        print(f"\nshared {chosen.shared:g}\n")
        table(chosen)
