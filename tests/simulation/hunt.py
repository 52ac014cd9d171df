"""Looks for the seed, or the script, that notices a mutant."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from .mutants import Mutant
from .schedule import simulate
from .scripts import Script, StageError


@dataclass(frozen=True, slots=True)
class Kill:
    """What noticed a mutant.

    Attributes:
        by: the seed or the script.
        check: the rule that it broke.
        runs: how many runs that took.
    """

    by: str
    check: str
    runs: int


def by_seeds(mutant: Mutant, seeds: Iterable[int]) -> Kill | None:
    """The first of these seeds that notices a mutant."""
    for runs, seed in enumerate(seeds, start=1):
        check = _check_broken_by(lambda mutation, seed=seed: simulate(seed, mutation=mutation), mutant)
        if check is not None:
            return Kill(f"seed {seed}", check, runs)
    return None


def by_scripts(mutant: Mutant, scripts: Mapping[str, Script]) -> Kill | None:
    """The first of these scripts that notices a mutant."""
    for runs, (name, script) in enumerate(scripts.items(), start=1):
        check = _check_broken_by(script, mutant)
        if check is not None:
            return Kill(name, check, runs)
    return None


def _check_broken_by(
    run: Callable[[Callable[[], AbstractContextManager[object]]], object], mutant: Mutant
) -> str | None:
    try:
        run(mutant.mutation)
    except AssertionError as error:
        return type(error).__name__
    except StageError:
        return None
    return None
