"""Shapley values of games whose values are known, and of real models."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bflnode.fl.architectures import architecture
from bflnode.fl.datasets import load_digits
from bflnode.fl.partition import Spread, iid, shards_of
from bflnode.fl.shapley import Game, Sampling, ShapleyError, exact, model_game, sampled, shapley_values
from bflnode.fl.training import TrainingConfig, train

DIGITS = architecture("mlp/1x8x8/10")


def game_of(table: Sequence[int]) -> Game:
    """A game by the value of each coalition."""
    return Game(len(table).bit_length() - 1, lambda coalitions: [table[coalition] for coalition in coalitions])


tables = st.integers(1, 5).flatmap(
    lambda players: st.lists(st.integers(-(10**6), 10**6), min_size=2**players, max_size=2**players)
)


def test_the_glove_game_gives_the_scarce_glove_two_thirds() -> None:
    # Players 0 and 1 have a left glove, player 2 the right one; a pair is worth 6.
    pairs = [6 if coalition & 4 and coalition & 3 else 0 for coalition in range(8)]

    assert exact(game_of(pairs)).values == (Fraction(1), Fraction(1), Fraction(4))


@given(tables)
@settings(max_examples=60)
def test_exact_values_share_out_what_everybody_gains(table: list[int]) -> None:
    assert sum(exact(game_of(table)).values) == table[-1] - table[0]


@given(tables)
@settings(max_examples=60)
def test_who_adds_nothing_gets_nothing_and_equals_get_the_same(table: list[int]) -> None:
    players = len(table).bit_length() - 1
    # A player that adds nothing, and one that does exactly what player 0 does.
    dull = [table[coalition & (len(table) - 1)] for coalition in range(2 * len(table))]
    twin = [table[(coalition & (len(table) - 1)) | (coalition >> players)] for coalition in range(2 * len(table))]

    assert exact(game_of(dull)).values[players] == 0
    assert exact(game_of(dull)).values[:players] == exact(game_of(table)).values
    assert exact(game_of(twin)).values[players] == exact(game_of(twin)).values[0]


@given(tables, st.integers(0, 2**32))
@settings(max_examples=40)
def test_sampled_values_share_out_what_everybody_gains_too(table: list[int], seed: int) -> None:
    estimate = sampled(game_of(table), Sampling(seed=seed, turns=2))

    assert sum(estimate.values) == table[-1] - table[0]


def test_sampling_an_additive_game_is_exact_and_converges_at_once() -> None:
    worth = [5, -3, 0, 7]
    table = [sum(value for player, value in enumerate(worth) if coalition >> player & 1) for coalition in range(16)]

    estimate = sampled(game_of(table))

    assert estimate.values == (5, -3, 0, 7)
    assert estimate.has_converged
    assert estimate.permutations == 24


def test_sampling_comes_near_the_exact_values() -> None:
    generator = np.random.default_rng(3)
    skills = generator.random((9, 12)) < 0.3  # a coalition is worth the skills that somebody in it has
    table = [
        int(100 * skills[[at for at in range(9) if coalition >> at & 1]].any(axis=0).sum()) for coalition in range(2**9)
    ]
    truth = np.array([float(value) for value in exact(game_of(table)).values])

    estimate = sampled(game_of(table), Sampling(turns=3, tolerance=0.0))

    found = np.array([float(value) for value in estimate.values])
    assert not estimate.has_converged
    assert estimate.evaluations < 2**9 / 2
    assert np.linalg.norm(found - truth) < 0.1 * np.linalg.norm(truth)


def test_no_coalition_is_evaluated_twice() -> None:
    asked: list[int] = []

    def values(coalitions: Sequence[int]) -> list[int]:
        asked.extend(coalitions)
        return [coalition.bit_count() for coalition in coalitions]

    game = Game(6, values)
    sampled(game, Sampling(turns=5))
    exact(game)

    assert sorted(asked) == list(range(64))
    assert game.evaluations == 64


def test_a_round_that_gains_too_little_is_worth_nothing_to_anybody() -> None:
    estimate = sampled(game_of([0, 900, -900, 5]), Sampling(round_truncation=10))

    assert estimate.values == (0, 0)
    assert estimate.evaluations == 2


def test_truncation_spares_the_rest_of_a_permutation() -> None:
    table = [min(100, 60 * coalition.bit_count()) for coalition in range(2**6)]  # two players reach what all reach

    whole, cut = (sampled(game_of(table), Sampling(truncation=truncation, turns=3)) for truncation in (0, 1))

    assert cut.evaluations < whole.evaluations
    assert sum(cut.values) == sum(whole.values) == 100


def test_few_players_are_valued_exactly_and_many_by_permutations() -> None:
    def count(coalitions: Sequence[int]) -> list[int]:
        return [coalition.bit_count() for coalition in coalitions]

    assert shapley_values(Game(4, count)).permutations == 0
    assert shapley_values(Game(12, count)).permutations > 0


def test_impossible_games_are_refused() -> None:
    with pytest.raises(ShapleyError, match="at least one"):
        Game(0, lambda coalitions: [0] * len(coalitions))
    with pytest.raises(ShapleyError, match="sample permutations"):
        exact(Game(21, lambda coalitions: [0] * len(coalitions)))


def test_an_untrained_model_contributes_less_than_trained_ones() -> None:
    digits = load_digits()
    base = DIGITS.initial_weights(0)
    shards = shards_of(digits, iid(digits, Spread(clients=3, seed=1)))
    config = TrainingConfig(epochs=3, learning_rate=0.01)
    models = [*(train(DIGITS, base, shard, config).model for shard in shards[:2]), base]

    estimate = shapley_values(model_game(DIGITS, base, models, digits.test))

    assert estimate.evaluations == 8
    assert min(estimate.values[:2]) > 0 > estimate.values[2]
