"""Planted defects are noticed: each by a script or a seed that is known for it.

python -m tests.simulation --mutants     looks for what notices each, and prints a table
"""

import pytest

from .hunt import by_scripts, by_seeds
from .mutants import MUTANTS, Mutant
from .scripts import SCRIPTS, Script

MORE_SEEDS = range(40)
"""Tried if the known ones have changed, as every change of the product does to a schedule."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_defect_is_noticed(mutant: Mutant) -> None:
    scripts = {name: SCRIPTS[name] for name in mutant.scripts}
    kill = by_scripts(mutant, scripts) or by_seeds(mutant, mutant.seeds)
    kill = kill or by_scripts(mutant, SCRIPTS) or by_seeds(mutant, MORE_SEEDS)
    assert kill is not None, "no script and no seed notices it any more"


@pytest.mark.parametrize("script", [pytest.param(script, id=name) for name, script in SCRIPTS.items()])
def test_the_product_withstands(script: Script) -> None:
    script()
