"""How answers look in a terminal: JSON, tables, lists of facts, times and shortened ids."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import click

SHORT_ID = 12
"""Digits of an id in tables: enough to tell thousands apart, and commands take them as they are."""

PIPE_WIDTH = 240
"""Columns where the output is no terminal: nothing is cut off."""


FULL_WIDTH = 10_000
"""Columns in which every table fits."""


def emit(answer: Any, as_json: bool, render: Callable[[Any], None]) -> None:
    """Print an answer as JSON, or as people like it."""
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        render(answer)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "nothing to show") -> None:
    """Print a table; where a terminal is too narrow for its words, each row as a list of facts."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        click.echo(empty)
    elif not _print_grid(headings, cells):
        for row in cells:
            click.echo()
            facts(zip(headings, row, strict=True))


def _print_grid(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Print a table as a grid, unless that would cut words off; whether it was printed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, *column in zip(headings, *rows, strict=True):
        is_whole = heading.endswith("id") or not any(" " in text for text in (heading, *column))
        grid.add_column(heading, no_wrap=is_whole, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    width = terminal_width(sys.stdout)
    console = Console(width=PIPE_WIDTH if width is None else width, markup=False, highlight=False)
    if (
        width is not None
        and console.measure(grid, options=console.options.update(max_width=FULL_WIDTH)).minimum > width
    ):
        return False
    console.print(grid)
    return True


def terminal_width(stream: TextIO) -> int | None:
    """Columns of the terminal that a stream is; None where it is none."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values below each other."""
    known = [(name, printable(value)) for name, value in pairs]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        click.echo(f"{name:<{width}}  {value}")


def printable(value: object) -> str:
    """A value as text that can't control the terminal: names come from other people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "".join(character if character.isprintable() else "?" for character in str(value))


def short(identifier: str | None) -> str:
    """The first digits of an id."""
    return "-" if identifier is None else identifier[:SHORT_ID]


def moment(time_ms: int | None) -> str:
    """A time in UTC."""
    if time_ms is None:
        return "-"
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(milliseconds: int) -> str:
    """A length of time."""
    seconds = milliseconds / 1000
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def size_text(size_bytes: int) -> str:
    """A size on disk."""
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def percent(fraction: float | None) -> str:
    """An accuracy."""
    return "-" if fraction is None else f"{100 * fraction:.1f} %"
