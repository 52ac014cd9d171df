"""A node whose RPC answers, for who attacks it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from bflnode.node.configuration import load_configuration
from bflnode.node.node import open_node
from bflnode.node.rpc import server as rpc
from tests.node.rpc.test_server import two_accounts


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[int]:
    home, _ = two_accounts(tmp_path / "served")
    async with open_node(home, load_configuration(home)) as node, trio.open_nursery() as nursery:
        url: str = await nursery.start(rpc.serve, node)
        yield int(url.rsplit(":", 1)[1])
        nursery.cancel_scope.cancel()
