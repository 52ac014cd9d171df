"""The process of one node: logging, signals, the node's parts and RPC; what `bflnode start` and the launcher run."""

import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import trio

from bflnode.consensus.keys import account_text
from bflnode.node.p2p.network import TransportError
from bflnode.node.rpc.server import serve
from bflnode.node.sync.state_sync import sync_state
from bflnode.storage import failpoints
from bflnode.storage.errors import StorageError

from .configuration import Configuration, load_configuration
from .home import Home, HomeError
from .logs import set_up_logging
from .node import Node, open_node

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Started:
    """What a node says once it is up."""

    name: str
    node_id: str
    account: str
    chain_id: str
    addresses: tuple[str, ...]
    rpc: str
    height: int
    peers: int


async def run_node(home: Home, configuration: Configuration, announce: Callable[[Started], None]) -> None:
    """Run a node until SIGINT or SIGTERM.

    Raises:
        HomeError, StorageError, TransportError: it can't start, or the disk failed.
    """
    # From the very start: a signal that comes while the node opens ends it cleanly once it is up.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        if configuration.sync.state_sync and not await _unless_stopped(signals, sync_state(home, configuration)):
            return
        async with open_node(home, configuration) as node, trio.open_nursery() as nursery:
            address: str = await nursery.start(serve, node)
            started = _started(node, address)
            _write_address_file(home, started)
            try:
                announce(started)
                nursery.start_soon(node.run)
                async for number in signals:
                    _log.info("%s: stopping", signal.Signals(number).name)
                    break
                nursery.cancel_scope.cancel()
            finally:
                home.address_file.unlink(missing_ok=True)


async def _unless_stopped(signals: AsyncIterator[int], work: Awaitable[None]) -> bool:
    """Do something that may take long; says whether it was done, and not ended by a signal."""
    is_done = False
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            async for number in signals:
                _log.info("%s: stopping", signal.Signals(number).name)
                nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        await work
        is_done = True
        nursery.cancel_scope.cancel()
    return is_done


def _started(node: Node, rpc_address: str) -> Started:
    return Started(
        name=node.configuration.name,
        node_id=str(node.network.peer_id),
        account=account_text(node.key.account),
        chain_id=node.chain.genesis.chain_id.hex(),
        addresses=node.network.addresses,
        rpc=rpc_address,
        height=node.chain.height,
        peers=len(node.network.peers()),
    )


def _write_address_file(home: Home, started: Started) -> None:
    content: dict[str, Any] = {
        "pid": os.getpid(),
        "rpc": started.rpc,
        "addresses": list(started.addresses),
        "node_id": started.node_id,
    }
    home.run.mkdir(parents=True, exist_ok=True)
    temporary = home.address_file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    temporary.replace(home.address_file)


def run_until_stopped(home: Home, flags: dict[str, Any], announce: Callable[[Started], None]) -> None:
    """Set up logging and run a node; what stops it from running is raised bare, not in a group.

    Raises:
        HomeError, StorageError, TransportError: it can't start, or the disk failed.
    """
    configuration = load_configuration(home.require(), flags)
    set_up_logging(configuration.log_level, home.log_file)
    armed = failpoints.arm()
    if armed is not None:
        _log.warning("the failpoint %s is armed: this process will fail on purpose, which is for tests only", armed)
    try:
        trio.run(run_node, home, configuration, announce)
    except BaseExceptionGroup as group:
        causes, others = group.split((HomeError, StorageError, TransportError))
        if causes is None or others is not None:
            raise
        raise first_leaf(causes) from group


def first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception of a group that is none itself."""
    first = group.exceptions[0]
    return first_leaf(first) if isinstance(first, BaseExceptionGroup) else first


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the launcher: `HOME`; logs go to standard error, which is the node's log file."""
    (root, *_) = sys.argv[1:] if arguments is None else arguments

    def announce(started: Started) -> None:
        _log.info("node %s is up: %s, RPC %s", started.name, ", ".join(started.addresses), started.rpc)

    try:
        run_until_stopped(Home(Path(root)), {}, announce)
    except (HomeError, StorageError, TransportError) as error:
        click.echo(f"bflnode: {error}", err=True)
        return 1
    return 0
