"""What this node measures beside the protocol: a model trained on its own data alone, and accuracy on the global test.

Training alone is the control: what a client would have without the network. It goes on for as many rounds as the node
has trained in, after the COMMIT is sent, in a trainer process of its own with low priority: a duty that waited for it
would make all others wait.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import trio

from bflnode.consensus.task import TaskSpecification
from bflnode.consensus.transaction import Slot
from bflnode.consensus.types import BlobId
from bflnode.node.workers.trainer import Trainer, TrainerError
from bflnode.node.workers.worker_protocol import EvaluateJob
from bflnode.storage.errors import MissingError, QuotaError

from .duty_work import Tools, training_job

_log = logging.getLogger(__name__)

MAX_WAITING = 4
"""Rounds that wait to be measured; a slow machine leaves some out."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A learning round that this node has trained in."""

    slot: Slot
    base: BlobId
    specification: TaskSpecification


class Controls:
    """Trains the control model and evaluates received models, one round at a time."""

    def __init__(self, tools: Tools, trainer: Trainer, test_set: Path | None) -> None:
        self._tools = tools
        self._trainer = trainer
        self._test_set = test_set
        self._send, self._receive = trio.open_memory_channel[Trained](MAX_WAITING)

    def note(self, trained: Trained) -> None:
        """A COMMIT has been sent: measure that round when there is time."""
        try:
            self._send.send_nowait(trained)
        except trio.WouldBlock:
            _log.info("learning round %d is not measured: the trainer is behind", trained.slot.number)

    async def run(self) -> None:
        """Measure rounds until cancelled."""
        async for trained in self._receive:
            entry = self._tools.journal.entry(trained.slot)
            if entry.control_accuracy is not None:
                continue
            try:
                await self._measure(trained)
            except (TrainerError, MissingError, QuotaError) as error:
                _log.warning("learning round %d is not measured: %s", trained.slot.number, error)

    async def _measure(self, trained: Trained) -> None:
        tools, slot, specification = self._tools, trained.slot, trained.specification
        if self._test_set is not None:
            base = await trio.to_thread.run_sync(tools.blobs.path, trained.base)
            evaluate = EvaluateJob(specification.architecture, str(base), str(self._test_set))
            tools.journal.update(slot, global_accuracy=(await self._trainer.run(evaluate)).accuracy)
        control = tools.journal.directory / f"control-{slot.task.hex()[:16]}.safetensors"
        start = control
        if not control.exists():
            await tools.exchange.fetch(specification.initial_model, max_bytes=specification.model_bytes)
            start = await trio.to_thread.run_sync(tools.blobs.path, specification.initial_model)
        train = training_job(specification, tools, base=start, output=control, slot=slot)
        tools.journal.update(slot, control_accuracy=(await self._trainer.run(train)).post_accuracy)
