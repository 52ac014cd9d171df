"""Training alone as a control: measured beside the protocol, never in its way."""

from pathlib import Path

import pytest
import trio

from bflnode.consensus.tables import all_tasks
from bflnode.consensus.transaction import Slot
from bflnode.consensus.types import BlobId
from bflnode.node.controls import MAX_WAITING, Controls, Trained
from bflnode.node.node import Node
from tests.node.networks import eventually
from tests.node.nodes import opened, running, small_network, until_done

pytestmark = pytest.mark.usefixtures("forking")


def trained(node: Node, number: int, base: BlobId | None = None) -> Trained:
    task = all_tasks(node.chain.tree)[0]
    return Trained(Slot(task.id, number, 0), base or task.specification.initial_model, task.specification)


def controls_of(node: Node) -> Controls:
    controls = node.participant._controls
    assert controls is not None
    return controls


async def test_each_round_has_the_control_and_the_global_accuracy_beside_its_own(tmp_path: Path) -> None:
    net = small_network(tmp_path, rounds=2, control=True)
    async with running(net.homes) as nodes:
        await until_done(nodes)
        entries = nodes[0].journal.entries

        def is_measured() -> bool:
            return [entry.number for entry in entries() if entry.control_accuracy is not None] == [1, 2]

        await eventually(is_measured, patience_s=30)
        for entry in entries():
            accuracies = (entry.received_accuracy, entry.post_accuracy, entry.control_accuracy, entry.global_accuracy)
            assert all(accuracy is not None and 0.0 <= accuracy <= 1.0 for accuracy in accuracies)


async def test_the_control_has_a_process_of_its_own_with_lower_priority(tmp_path: Path) -> None:
    net = small_network(tmp_path, control=True)
    async with opened(net.homes[:1]) as [node]:
        controls = controls_of(node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(controls.run)
            controls.note(trained(node, 1))
            slot = trained(node, 1).slot
            await eventually(lambda: node.journal.entry(slot).control_accuracy is not None, patience_s=30)
            nursery.cancel_scope.cancel()
        process = controls._trainer.status().process_id
        assert node.trainer.status().process_id is None
        assert Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()[16] == "10"


async def test_a_round_whose_base_is_gone_is_left_out_and_the_next_is_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = small_network(tmp_path, control=True)
    async with opened(net.homes[:1]) as [node]:
        controls = controls_of(node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(controls.run)
            controls.note(trained(node, 1, BlobId(bytes(32))))
            controls.note(trained(node, 2))
            slot = trained(node, 2).slot
            await eventually(lambda: node.journal.entry(slot).control_accuracy is not None, patience_s=30)
            nursery.cancel_scope.cancel()
        assert "learning round 1 is not measured" in caplog.text


async def test_a_slow_machine_leaves_rounds_out_instead_of_piling_them_up(tmp_path: Path) -> None:
    net = small_network(tmp_path, control=True)
    async with opened(net.homes[:1]) as [node]:
        controls = controls_of(node)
        for number in range(1, MAX_WAITING + 4):
            controls.note(trained(node, number))
        assert controls._receive.statistics().current_buffer_used == MAX_WAITING
