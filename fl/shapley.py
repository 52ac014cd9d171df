"""Shapley values of clients: what each one's model contributed to the aggregate (Shapley 1953; Wang et al., eq. 2).

Deviation: Wang et al. divide by the loss of everybody's model and multiply by the reward, which changes no shares.

Here belong the values of any game given by a function of coalitions, exactly or from permutations, and the game whose
players are models. A coalition is an integer: bit i is set when player i is in it. Values are integers, so that sums
are exact and the same on every machine; for a game of models they are losses in micro-nats.

Values are asked for in batches and never twice for the same coalition: a caller may spread a batch over processes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import factorial

import numpy as np

from .aggregation import mean
from .architectures import Architecture
from .samples import LabelledData
from .weights import parse, serialize

EXACT_PLAYERS = 10
"""Up to so many players all coalitions are affordable: 1,024, some 15 s for the small CNN and 1,000 images."""

MAX_EXACT_PLAYERS = 20
"""A million coalitions: for games that are quick to evaluate."""

Values = Callable[[Sequence[int]], Sequence[int]]
"""Values of coalitions, in their order."""


class ShapleyError(ValueError):
    """A game that can't be valued as asked; the message says why and what to change."""


class Game:
    """A game whose values are remembered.

    Attributes:
        players: how many.
        evaluations: coalitions evaluated so far.
    """

    def __init__(self, players: int, values: Values) -> None:
        """Make a game; `values` is called with coalitions it hasn't been called with before."""
        if players < 1:
            raise ShapleyError(f"a game of {players} players has no values: there must be at least one")
        self.players = players
        self.evaluations = 0
        self._values = values
        self._known: dict[int, int] = {}

    @property
    def everybody(self) -> int:
        """The coalition of all players."""
        return (1 << self.players) - 1

    def know(self, coalitions: Iterable[int]) -> None:
        """Evaluate in one batch those that aren't known."""
        missing = [coalition for coalition in dict.fromkeys(coalitions) if coalition not in self._known]
        if missing:
            self._known.update(zip(missing, self._values(missing), strict=True))
            self.evaluations += len(missing)

    def __getitem__(self, coalition: int) -> int:
        """The value of a coalition."""
        self.know((coalition,))
        return self._known[coalition]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Shapley values and how they were got.

    Attributes:
        values: of each player; they sum to the value of everybody less that of nobody, truncation aside.
        evaluations: coalitions evaluated.
        permutations: sampled; 0 where all coalitions were.
        has_converged: whether sampling ended because the values stood still.
    """

    values: tuple[Fraction, ...]
    evaluations: int
    permutations: int
    has_converged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How permutations are sampled and when that ends (truncation as in GTG-Shapley, Liu et al. 2022, algorithm 1).

    Attributes:
        seed: of the permutations.
        round_truncation: all values are 0 when everybody together gains less than this; the game's unit.
        truncation: within a permutation, players after a coalition that is as near as this to everybody's value
            contribute 0; 0 evaluates whole permutations. In skewed rounds the sum of all values is near 0 while single
            ones are large, so this is absolute and not a share of the sum.
        tolerance: sampling ends when the values changed by less than this share, on average, over the last turn.
        turns: most turns; each samples twice as many permutations as there are players.
        least_turns: fewest turns.
    """

    seed: int = 0
    round_truncation: int = 0
    truncation: int = 0
    tolerance: float = 0.05
    turns: int = 100
    least_turns: int = 3


DEFAULT_SAMPLING = Sampling()


def shapley_values(game: Game, sampling: Sampling = DEFAULT_SAMPLING) -> Estimate:
    """Shapley values: exact up to `EXACT_PLAYERS` players, sampled beyond."""
    return exact(game) if game.players <= EXACT_PLAYERS else sampled(game, sampling)


def exact(game: Game) -> Estimate:
    """All coalitions, each marginal contribution weighted by `s! (n - s - 1)! / n!` (Wang et al., eq. 2).

    Raises:
        ShapleyError: there are more than `MAX_EXACT_PLAYERS` players.
    """
    players = game.players
    if players > MAX_EXACT_PLAYERS:
        raise ShapleyError(
            f"{players} players have {2**players} coalitions: sample permutations beyond {MAX_EXACT_PLAYERS} players"
        )
    game.know(range(1 << players))
    weights = [factorial(size) * factorial(players - size - 1) for size in range(players)]
    totals = [0] * players
    for coalition in range(1 << players):
        weight = weights[coalition.bit_count()] if coalition != game.everybody else 0
        for player in range(players):
            if not coalition >> player & 1:
                totals[player] += weight * (game[coalition | 1 << player] - game[coalition])
    return Estimate(
        values=tuple(Fraction(total, factorial(players)) for total in totals),
        evaluations=game.evaluations,
        permutations=0,
        has_converged=True,
    )


def sampled(game: Game, sampling: Sampling = DEFAULT_SAMPLING) -> Estimate:
    """Marginal contributions along sampled permutations.

    Each turn draws one permutation and walks all its rotations, so that every player stands at every place once, and
    all of these backwards (antithetic sampling, Mitchell et al. 2022). For as many evaluations that has less error than
    GTG-Shapley's permutations, in which only the first place is balanced (`benchmarks/shapley.py`). The permutations of
    a turn advance together, so that each place is one batch.
    """
    players = game.players
    game.know((0, game.everybody))
    if abs(game[game.everybody] - game[0]) < sampling.round_truncation:
        return Estimate(values=(Fraction(0),) * players, evaluations=2, permutations=0, has_converged=True)
    generator = np.random.Generator(np.random.PCG64(sampling.seed))
    totals = [0] * players
    before: tuple[Fraction, ...] = ()
    for turn in range(1, sampling.turns + 1):
        orders = _balanced_orders(players, generator)
        for player, contribution in _walk(game, orders, sampling.truncation):
            totals[player] += contribution
        values = tuple(Fraction(total, turn * len(orders)) for total in totals)
        if turn >= sampling.least_turns and _is_still(before, values, sampling.tolerance):
            return Estimate(
                values=values, evaluations=game.evaluations, permutations=turn * len(orders), has_converged=True
            )
        before = values
    return Estimate(
        values=before, evaluations=game.evaluations, permutations=2 * sampling.turns * players, has_converged=False
    )


def model_game(
    architecture: Architecture, base: bytes, models: Sequence[bytes | memoryview], data: LabelledData
) -> Game:
    """The game of models: a coalition is worth what its mean takes off the loss of the base, in micro-nats.

    Nobody together is worth 0. Importing torch is left until the first evaluation.

    Args:
        architecture: of all models.
        base: what everybody had received.
        models: canonical weights, one a player.
        data: the task's validation set.

    Raises:
        InvalidWeights: a model isn't canonical weights of the architecture.
    """
    parsed = [parse(model, architecture.table) for model in models]
    base_loss: list[int] = []

    def values(coalitions: Sequence[int]) -> list[int]:
        from .training import evaluate

        if not base_loss:
            base_loss.append(evaluate(architecture, base, data).loss_micronats)
        worth = []
        for coalition in coalitions:
            members = [model for player, model in enumerate(parsed) if coalition >> player & 1]
            if not members:
                worth.append(0)
                continue
            together = serialize(mean(members, [1] * len(members)))
            worth.append(base_loss[0] - evaluate(architecture, together, data).loss_micronats)
        return worth

    return Game(len(models), values)


def _balanced_orders(players: int, generator: np.random.Generator) -> list[list[int]]:
    """All rotations of a random order, and their reverses."""
    drawn: list[int] = generator.permutation(players).tolist()
    rotations = [drawn[start:] + drawn[:start] for start in range(players)]
    return [*rotations, *(order[::-1] for order in rotations)]


def _walk(game: Game, orders: Sequence[Sequence[int]], truncation: int) -> Iterable[tuple[int, int]]:
    """Players with their marginal contributions along each order; 0 once an order is truncated."""
    everybody = game[game.everybody]
    coalitions = [0] * len(orders)
    going = list(range(len(orders)))
    for place in range(game.players):
        going = [at for at in going if not (place and abs(everybody - game[coalitions[at]]) < truncation)]
        grown = {at: coalitions[at] | 1 << orders[at][place] for at in going}
        game.know(grown.values())
        for at, coalition in grown.items():
            yield orders[at][place], game[coalition] - game[coalitions[at]]
            coalitions[at] = coalition


def _is_still(before: Sequence[Fraction], values: Sequence[Fraction], tolerance: float) -> bool:
    """Whether the mean change is below a share of the mean size of the values."""
    changes = sum(abs(new - old) for new, old in zip(values, before, strict=True))
    return float(changes) <= tolerance * float(sum(map(abs, values)))
