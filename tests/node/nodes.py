"""Whole nodes for tests: several in one process, on loopback, with real homes, sockets, LevelDB and trainers."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from bflnode.consensus.tables import SETTLED, TASKS, all_tasks, current_round
from bflnode.consensus.task import LearningRound, SettledClient, SettledRound, TaskStatus
from bflnode.consensus.types import AccountId
from bflnode.node.configuration import load_configuration
from bflnode.node.home import Home
from bflnode.node.node import Node, open_node
from bflnode.node.testnets.homes import Testnet, TestnetOptions, make_testnet

PATIENCE_S = 30.0
"""What takes two seconds alone may take ten where many tests share two cores."""


def small_network(directory: Path, **options: Any) -> Testnet:
    """A network's homes: digits, small and quick, without the control model."""
    standard = {"validators": 4, "rounds": 1, "epochs": 1, "samples": 400, "control": False}
    return make_testnet(directory / "net", TestnetOptions(**(standard | options)))


@asynccontextmanager
async def opened(homes: Sequence[Home], **flags: Any) -> AsyncIterator[list[Node]]:
    """Nodes that are connected but don't do anything yet."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_node(home, load_configuration(home, flags))) for home in homes]


@asynccontextmanager
async def going(nodes: Sequence[Node]) -> AsyncIterator[None]:
    """Let opened nodes run."""
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(node.run)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def running(homes: Sequence[Home], **flags: Any) -> AsyncIterator[list[Node]]:
    """Nodes that run."""
    async with opened(homes, **flags) as nodes, going(nodes):
        yield nodes


async def until(node: Node, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition on a node's chain."""
    with trio.fail_after(patience_s):
        while not condition():
            await node.chain.changed.wait()


async def until_done(nodes: Sequence[Node], patience_s: float = PATIENCE_S) -> None:
    """Wait until the first task has ended at all nodes."""
    for node in nodes:
        await until(node, lambda node=node: task_status(node) is TaskStatus.DONE, patience_s)  # type: ignore[misc]  # a default binds the loop's value


def task_status(node: Node) -> TaskStatus:
    return all_tasks(node.chain.tree)[0].status


def learning_round(node: Node) -> LearningRound | None:
    return current_round(node.chain.tree)


def settled_rounds(node: Node) -> tuple[SettledRound, ...]:
    """The settled learning rounds, in order."""
    task = all_tasks(node.chain.tree)[0].id
    assert TASKS.get(node.chain.tree, task) is not None
    return tuple(settled for _, settled in SETTLED.scan(node.chain.tree, task))


def client_of(settled: SettledRound, account: AccountId) -> SettledClient:
    return next(client for client in settled.clients if client.account == account)


def is_included(settled: SettledRound, account: AccountId) -> bool:
    return any(settled.clients[index].account == account for index in settled.included)
