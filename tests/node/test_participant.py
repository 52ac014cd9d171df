"""Duties are started, dropped and repeated as the state asks, and no failure of one ends the node."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from bflnode.consensus.duties import Duty, RevealModel, Train
from bflnode.consensus.tables import PARTICIPANTS, all_tasks, participant_key
from bflnode.consensus.task import SettledClient
from bflnode.consensus.transaction import Commit, Reveal
from bflnode.consensus.types import Hash
from bflnode.node import participant as limits
from bflnode.node.duty_work import CannotFulfilError
from bflnode.node.node import Node
from bflnode.node.workers.trainer import TrainerError
from bflnode.storage.errors import MissingError
from tests.node.networks import eventually
from tests.node.nodes import going, opened, running, settled_rounds, small_network, until, until_done

pytestmark = pytest.mark.usefixtures("forking")


def fail_first(node: Node, monkeypatch: pytest.MonkeyPatch, failure: Exception, times: int) -> Callable[[], int]:
    """Let the first trainings fail; returns how often training was tried."""
    work, tried = node.participant._work, 0
    train = work.train

    async def failing(duty: Train, last: SettledClient | None) -> Commit:
        nonlocal tried
        tried += 1
        if tried <= times:
            raise failure
        return await train(duty, last)

    monkeypatch.setattr(work, "train", failing)
    return lambda: tried


@pytest.mark.parametrize("failure", [TrainerError("killed"), MissingError(Path("/blob"), "not here", "Fetch it")])
async def test_a_duty_that_failed_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr(limits, "RETRY_S", 0.05)
    net = small_network(tmp_path, validators=1)
    async with opened(net.homes) as [node]:
        tried = fail_first(node, monkeypatch, failure, times=2)
        async with going([node]):
            await until_done([node])
        assert tried() == 3
        assert settled_rounds(node)[0].included == (0,)


async def test_a_duty_that_cannot_be_fulfilled_is_not_tried_again_and_the_node_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    net = small_network(tmp_path)
    async with opened(net.homes) as nodes:
        tried = fail_first(nodes[0], monkeypatch, CannotFulfilError("no data fits"), times=99)
        async with going(nodes):
            await until_done(nodes)
        assert tried() == 1
        assert "Train: no data fits" in caplog.text
        assert len(settled_rounds(nodes[0])[0].included) == 3


async def test_a_duty_that_the_state_no_longer_asks_for_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = small_network(tmp_path)
    async with opened(net.homes) as nodes:
        dropped = trio.Event()

        async def slow(duty: Duty, last: SettledClient | None) -> Commit:
            try:
                await trio.sleep_forever()
            finally:
                dropped.set()
            raise AssertionError

        monkeypatch.setattr(nodes[0].participant._work, "train", slow)
        async with going(nodes):
            await until(nodes[0], lambda: bool(settled_rounds(nodes[0])))
            with trio.fail_after(10):
                await dropped.wait()
            await eventually(lambda: "Train" not in nodes[0].participant.activity)


async def test_a_refused_transaction_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first REVEAL opens another commitment than its own."""
    monkeypatch.setattr(limits, "RETRY_S", 0.05)
    net = small_network(tmp_path, validators=1)
    async with opened(net.homes) as [node]:
        work, tried = node.participant._work, 0
        reveal = work.reveal

        async def confused(duty: RevealModel) -> Reveal:
            nonlocal tried
            tried += 1
            body = await reveal(duty)
            return Reveal(body.slot, body.model, body.size, Hash(bytes(32))) if tried == 1 else body

        monkeypatch.setattr(work, "reveal", confused)
        async with going([node]):
            await until_done([node])
        assert tried == 2


async def test_a_node_that_does_not_train_owes_nothing_as_a_client(tmp_path: Path) -> None:
    net = small_network(tmp_path)
    async with opened(net.homes[:1], training={"enabled": False}) as [idle], running(net.homes[1:]) as others:
        async with going([idle]):
            await until(others[0], lambda: all_tasks(others[0].chain.tree)[0].clients == 3)
        task = all_tasks(others[0].chain.tree)[0].id
        assert PARTICIPANTS.get(others[0].chain.tree, participant_key(task, idle.key.account)) is None
