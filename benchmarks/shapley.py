"""Shapley values of real models: how far sampled ones are from exact ones, and what they cost.

    python benchmarks/shapley.py [--data digits] [--seeds 3]

Ten clients train the MLP on skewed digits (or the CNN on Fashion-MNIST) for a few rounds; the last round's models are
the players, and a coalition is worth what its mean takes off the loss on held-out data. All 1,024 coalitions are
evaluated once, then each way of sampling permutations is scored by the coalitions it would have evaluated.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bflnode.fl.aggregation import mean
from bflnode.fl.architectures import architecture
from bflnode.fl.datasets import load
from bflnode.fl.partition import Spread, dirichlet, hold_out, shards_of, subset
from bflnode.fl.samples import Shard
from bflnode.fl.shapley import Game, Sampling, exact, model_game, sampled
from bflnode.fl.training import TrainingConfig, train
from bflnode.fl.weights import parse, serialize

PLAYERS = 10
ROUNDS = 3
ALPHA = 0.3
TRAINING = {"digits": TrainingConfig(learning_rate=0.01), "fashion-mnist": TrainingConfig()}
ARCHITECTURES = {"digits": "mlp/1x8x8/10", "fashion-mnist": "cnn/1x28x28/10"}
BUDGETS = (100, 200, 400)
"""Coalitions evaluated, of 1,024."""

Values = NDArray[np.float64]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(TRAINING), default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    games = []
    for seed in range(1, arguments.seeds + 1):
        game = _game(arguments.data, seed)
        started = time.perf_counter()
        truth = _floats(exact(game).values)
        games.append((game, truth))
        span = f"sum {truth.sum():.0f}, from {truth.min():.0f} to {truth.max():.0f} micro-nats"
        print(f"seed {seed}: 1,024 coalitions in {time.perf_counter() - started:.1f} s; exact values: {span}")
    print(f"{arguments.data}, {PLAYERS} clients, alpha {ALPHA}, {platform.machine()}")
    table = Table("permutations", *(f"{budget} evaluations" for budget in BUDGETS))
    ways: dict[str, Callable[[Game, int, int], Values]] = {
        "Monte Carlo": lambda game, budget, seed: _permutations(game, budget, seed, _uniform),
        "GTG (each player first)": lambda game, budget, seed: _permutations(game, budget, seed, _each_first),
        "balanced, antithetic (ours)": _ours,
    }
    for name, estimate in ways.items():
        cells = []
        for budget in BUDGETS:
            errors, correlations = [], []
            for game, truth in games:
                for seed in range(5):
                    found = estimate(
                        Game(PLAYERS, lambda all_of, game=game: [game[one] for one in all_of]), budget, seed
                    )
                    errors.append(float(np.linalg.norm(found - truth) / np.linalg.norm(truth)))
                    correlations.append(float(np.corrcoef(found, truth)[0, 1]))
            cells.append(f"{statistics.median(errors):.3f} ({statistics.median(correlations):.3f})")
        table.add_row(name, *cells)
    table.add_row("leave one out", *[_leave_one_out(games)] * len(BUDGETS))
    Console(width=120).print(table)
    print("relative error (correlation) against the exact values, medians over seeds and five samplings each")


def _game(data: str, seed: int) -> Game:
    """The last round of a short training."""
    whole = load(data)
    if data != "digits":
        whole = Shard(subset(whole.train, 3_000, seed), subset(whole.test, 3_000, seed))
    held = hold_out(whole, probe=50, validation=len(whole.test) // 3, global_test=50, seed=seed)
    chosen = architecture(ARCHITECTURES[data])
    shards = shards_of(held.rest, dirichlet(held.rest, ALPHA, Spread(clients=PLAYERS, seed=seed)))
    base = chosen.initial_weights(seed)
    models: list[bytes] = []
    for _ in range(ROUNDS):
        if models:
            base = serialize(mean([parse(model, chosen.table) for model in models], [1] * PLAYERS))
        models = [train(chosen, base, shard, TRAINING[data]).model for shard in shards]
    return model_game(chosen, base, models, held.validation)


def _copy(game: Game) -> Game:
    """The same game, with nothing evaluated yet; its values cost nothing."""
    return Game(PLAYERS, lambda coalitions: [game[coalition] for coalition in coalitions])


def _ours(game: Game, budget: int, seed: int) -> Values:
    """As many turns as the budget allows."""
    best = np.zeros(PLAYERS)
    for turns in range(1, 100):
        trial = _copy(game)
        estimate = sampled(trial, Sampling(seed=seed, turns=turns, least_turns=turns + 1))
        if estimate.evaluations > budget and turns > 1:
            return best
        best = _floats(estimate.values)
    return best


def _permutations(
    game: Game, budget: int, seed: int, draw: Callable[[np.random.Generator], Sequence[Sequence[int]]]
) -> Values:
    """Mean marginal contributions along permutations, until the budget is used up."""
    generator = np.random.default_rng(seed)
    totals, count = np.zeros(PLAYERS), 0
    while game.evaluations < budget:
        for order in draw(generator):
            coalition = 0
            for player in order:
                totals[player] += game[coalition | 1 << player] - game[coalition]
                coalition |= 1 << player
            count += 1
    return totals / count


def _uniform(generator: np.random.Generator) -> Sequence[Sequence[int]]:
    return [generator.permutation(PLAYERS).tolist()]


def _each_first(generator: np.random.Generator) -> Sequence[Sequence[int]]:
    orders = []
    for first in range(PLAYERS):
        rest = [player for player in range(PLAYERS) if player != first]
        orders.append([first, *generator.permutation(rest).tolist()])
    return orders


def _leave_one_out(games: Sequence[tuple[Game, Values]]) -> str:
    correlations = []
    for game, truth in games:
        everybody = game.everybody
        found = np.array([game[everybody] - game[everybody & ~(1 << player)] for player in range(PLAYERS)], dtype=float)
        correlations.append(float(np.corrcoef(found, truth)[0, 1]))
    return f"({statistics.median(correlations):.3f})"


def _floats(values: Sequence[object]) -> Values:
    return np.array([float(value) for value in values])  # type: ignore[arg-type]  # fractions


if __name__ == "__main__":
    main()
