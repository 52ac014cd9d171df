"""Inputs that are kept: findings of the past by name, and a few inputs for each path that the fuzzer has reached.

One text file a target, `corpus/<target>.txt`, one input a line: a name and hex digits. Small, so that a review shows
what comes in.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.rule import Target, is_accepted

FOLDER = Path(__file__).parent / "corpus"

MAX_KEPT_BYTES = 2_048
"""Larger inputs aren't kept: what they reach, a smaller one nearly always does."""

MAX_KEPT = 40
"""Inputs a target, besides named ones."""

OURS = ("/consensus/", "/fl/", "/node/", "/storage/")

FOUND = "found-"
"""Prefix of the names of inputs that are kept for the paths they reach."""


def kept(name: str) -> dict[str, bytes]:
    """The kept inputs of a target, by their names."""
    path = FOLDER / f"{name}.txt"
    if not path.exists():
        return {}
    lines = (line.split(" ") for line in path.read_text(encoding="ascii").splitlines())
    return {label: bytes.fromhex(digits) for label, digits in lines}


def write(name: str, inputs: dict[str, bytes]) -> None:
    """Replace the kept inputs of a target."""
    lines = [f"{label} {data.hex()}\n" for label, data in sorted(inputs.items())]
    (FOLDER / f"{name}.txt").write_text("".join(lines), encoding="ascii")


def smallest_that_reach_all(target: Target, inputs: Iterable[bytes]) -> list[bytes]:
    """Of inputs, small ones first, those that reach a line that none before has reached."""
    chosen: list[bytes] = []
    reached: set[tuple[str, int]] = set()
    for data in sorted({data for data in inputs if len(data) <= MAX_KEPT_BYTES}, key=lambda data: (len(data), data)):
        lines = lines_reached(target, data)
        if not lines <= reached and len(chosen) < MAX_KEPT:
            chosen.append(data)
            reached |= lines
    return chosen


def lines_reached(target: Target, data: bytes) -> set[tuple[str, int]]:
    """Lines of this project that an input reaches: file and number."""
    lines: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not any(folder in file for folder in OURS) or "/tests/" in file:
            return None
        if event == "line":
            lines.add((file, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        is_accepted(target, data)
    finally:
        sys.settrace(None)
    return lines
