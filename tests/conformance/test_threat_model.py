"""docs/threat-model.md: what it calls prevented, detected or bounded is shown by tests that exist."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.targets import targets

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
VERDICTS = ("prevented", "detected", "bounded", "not prevented")


def _attacks() -> Iterator[tuple[str, ...]]:
    """The rows of tables about attacks: attack, verdict, how, tests."""
    is_about_attacks = False
    for line in PAGE.splitlines():
        is_about_attacks = line.startswith("| attack |") or (is_about_attacks and line.startswith("|"))
        if is_about_attacks and not line.startswith(("| attack |", "|---")):
            yield tuple(cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|"))


ATTACKS = tuple(_attacks())

WITHOUT_TEST = ("reading the traffic",)
"""Shown by the library's own tests: what Noise does isn't ours."""


def test_every_attack_has_a_verdict_and_a_reason() -> None:
    assert len(ATTACKS) >= 50
    assert [row for row in ATTACKS if len(row) != 4 or not row[1].startswith(VERDICTS) or not row[2]] == []


def test_what_is_not_left_open_is_shown_by_a_test() -> None:
    named = re.compile(r"`test_|targets? `")
    bare = [row[0] for row in ATTACKS if not row[1].startswith("not prevented") and not named.search(row[3])]
    assert bare == list(WITHOUT_TEST)


def test_every_test_and_target_that_is_named_exists() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    existing = set(re.findall(r"def (test_\w+)", sources))
    assert set(re.findall(r"`(test_\w+)`", PAGE)) - existing == set()
    lists = re.findall(r"targets? ((?:`[a-z-]+` ?)+)", PAGE)
    assert {name for names in lists for name in re.findall(r"`([a-z-]+)`", names)} - set(targets()) == set()
