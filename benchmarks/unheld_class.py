"""What becomes of the shared model of `prior-rows` when no client has samples of one of the task's classes.

    python benchmarks/unheld_class.py

Digits without the 3, spread evenly over four clients that train long (40 epochs a round). Accuracy of the shared model
without any prior, on test data of the nine classes that somebody has. Half a minute.
"""

import numpy as np

from bflnode.fl.architectures import architecture
from bflnode.fl.inference import repeatable_torch
from bflnode.fl.methods.method import Gathered, Local, Sent, load
from bflnode.fl.methods.registry import make_method
from bflnode.fl.population import load_data
from bflnode.fl.robust import RobustRule
from bflnode.fl.samples import Shard
from bflnode.fl.training import TrainingConfig, measure
from bflnode.fl.weights import Tensors, parse

UNHELD, CLIENTS, ROUNDS, EPOCHS, SEED = 3, 4, 30, 40, 1


def main() -> None:
    """Print accuracy over rounds."""
    digits = load_data("digits", None)
    order = np.flatnonzero(digits.train.labels != UNHELD)
    np.random.default_rng(SEED).shuffle(order)
    parts = [digits.train.take(np.sort(part)) for part in np.array_split(order, CLIENTS)]
    test = digits.test.take(np.flatnonzero(digits.test.labels != UNHELD))
    mlp = architecture("mlp/1x8x8/10")
    method = make_method("prior-rows", {})
    received = dict(parse(mlp.initial_weights(SEED), mlp.table))
    kept: list[Tensors] = [{} for _ in parts]
    for number in range(1, ROUNDS + 1):
        sent = []
        for client, part in enumerate(parts):
            local = Local(
                client=client,
                round=number,
                architecture=mlp,
                shard=Shard(part, part),
                config=TrainingConfig(epochs=EPOCHS, seed=100 * number + client),
                received=received,
                kept=kept[client],
            )
            update = method.train(local)
            kept[client] = update.kept
            histogram = part.histogram()
            sent.append(
                Sent(client=client, samples=len(part), histogram=histogram, received=received, tensors=update.sent)
            )
        gathered = Gathered(
            round=number,
            seed=0,
            architecture=mlp,
            clients=CLIENTS,
            sent=tuple(sent),
            probe=test,
            cluster=lambda _, __: (0,) * CLIENTS,
            combine=RobustRule(),
        )
        received = dict(method.aggregate(gathered).newcomers)
        if number == 1 or number % 5 == 0:
            print(f"round {number:2d}: {measure(load(mlp, received), test).accuracy:.3f}", flush=True)


if __name__ == "__main__":
    with repeatable_torch(1):
        main()
