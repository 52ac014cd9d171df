"""A testnet's run as it is watched: a table that is redrawn in a terminal, plain lines elsewhere. On standard error.

What belongs here: what is shown of what the nodes say. What is run is `testnets.run`'s.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bflnode.node.amounts import plain_tokens
from bflnode.node.testnets.homes import Testnet
from bflnode.node.testnets.processes import NodeStatus
from bflnode.node.testnets.run import View

from .output import percent

REFRESH_A_SECOND = 4
"""Redraws of the terminal; the nodes are asked less often."""


@contextmanager
def open_view() -> Iterator[View]:
    """What fits standard error."""
    if not sys.stderr.isatty():
        yield PlainView()
        return
    console = Console(stderr=True, highlight=False)
    with Live(console=console, refresh_per_second=REFRESH_A_SECOND, transient=True) as live:
        yield LiveView(live)


class PlainView:
    """A line a step, and one whenever the learning goes on."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last = ""

    def step(self, text: str) -> None:
        """A step begins."""
        self._say(text)

    def update(self, testnet: Testnet, statuses: Sequence[NodeStatus]) -> None:
        """Say where the learning is, if that is news."""
        text = summary(testnet, statuses)
        if text != self._last:
            self._last = text
            self._say(text)

    def _say(self, text: str) -> None:
        click.echo(f"{time.monotonic() - self._started:6.1f} s  {text}", err=True)


class LiveView:
    """A table with a row a node."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._started = time.monotonic()
        self._step = ""
        self._table: Table | None = None

    def step(self, text: str) -> None:
        """A step begins."""
        self._step = text
        self._draw()

    def update(self, testnet: Testnet, statuses: Sequence[NodeStatus]) -> None:
        """Show the nodes."""
        self._step = summary(testnet, statuses)
        self._table = nodes_table(statuses)
        self._draw()

    def _draw(self) -> None:
        title = Text(f"{time.monotonic() - self._started:5.1f} s  {self._step}", style="bold")
        self._live.update(Group(title, self._table) if self._table is not None else title)


def summary(testnet: Testnet, statuses: Sequence[NodeStatus]) -> str:
    """Where the node that is furthest ahead is, in a line."""
    known = [found.status for found in statuses if found.status is not None]
    if not known:
        return "no node answers"
    front = max(known, key=lambda status: status["height"])
    down = [found.name for found in statuses if found.pid is None]
    suffix = f" · {', '.join(down)} down" if down else ""
    if front["round"] is None:
        return f"{front['settled_rounds']} of {testnet.options.rounds} rounds settled, height {front['height']}{suffix}"
    names = {found.status["account"]: found.name for found in statuses if found.status is not None}
    attempt = f" (attempt {front['attempt'] + 1})" if front["attempt"] else ""
    return (
        f"round {front['round']} of {front['rounds']}{attempt}: {front['phase']}, committed {front['committed']} and "
        f"revealed {front['revealed']} of {front['clients']}, attested {front['attested']}, "
        f"aggregator {names.get(front['aggregator'], front['aggregator'][:12])}{suffix}"
    )


def nodes_table(statuses: Sequence[NodeStatus]) -> Table:
    """A row a node."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("node", "height", "round", "phase", "now", "committed", "revealed", "received", "post", "balance"):
        table.add_column(heading, justify="left" if heading in ("node", "phase", "now") else "right")
    for found in statuses:
        table.add_row(*_cells(found))
    return table


def _cells(found: NodeStatus) -> tuple[str, ...]:
    status = found.status
    if status is None:
        return (found.name, "", "", found.error or "down")
    accuracy = status["accuracy"] or {}
    return (
        found.name,
        str(status["height"]),
        "-" if status["round"] is None else str(status["round"]),
        status["phase"] if found.pid is not None else "down",
        ", ".join(status["activity"]),
        f"{status['committed']}/{status['clients']}",
        f"{status['revealed']}/{status['clients']}",
        percent(accuracy.get("received_accuracy")),
        percent(accuracy.get("post_accuracy")),
        plain_tokens(status["balance"]),
    )
