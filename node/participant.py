"""Fulfils what the state says this account owes: registers, trains, reveals, fetches, votes, aggregates, attests.

After each block the duties are read from the state anew. A new one is started, one that has gone is cancelled, so a
restarted node goes on where it was. Each duty ends in a transaction, which is submitted again until a block has it.
How each duty is done is in `duty_work`.
"""

import logging
from typing import assert_never

import trio

from bflnode.consensus import transaction as bodies
from bflnode.consensus.duties import (
    Admit,
    Aggregate,
    AttestTo,
    Duty,
    FetchAndVote,
    PostProbe,
    Register,
    RevealModel,
    Train,
    duties,
    last_part,
)
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.tables import ACCOUNTS, TASKS, current_validators
from bflnode.consensus.transaction import FREE_KINDS, Body, Transaction, sign_transaction
from bflnode.consensus.types import Signature
from bflnode.node.workers.trainer import TrainerError
from bflnode.node.workers.worker_protocol import WarmUpJob
from bflnode.storage.errors import MissingError, QuotaError

from .chain import Chain
from .controls import Controls, Trained
from .duty_work import CannotFulfilError, DutyWork, Tools
from .transaction_relay import TransactionRelay

_log = logging.getLogger(__name__)

RESUBMIT_S = 2.0
"""A transaction that no block has taken goes to the leaders again: they change."""

RETRY_S = 2.0
"""Pause after a duty failed: its cause may pass (a killed trainer), and the phase has a deadline anyway."""

RETRY_MAX_S = 30.0
"""Each further failure in a row doubles the pause up to this: training in vain keeps a machine busy."""


class Participant:
    """Runs the duties of one account.

    Attributes:
        credential: opens the account, where it isn't open yet.
        is_client: whether the node trains; what it owes as a validator it owes anyway.
    """

    def __init__(
        self,
        chain: Chain,
        relay: TransactionRelay,
        tools: Tools,
        *,
        credential: Signature | None,
        is_client: bool,
        controls: Controls | None,
    ) -> None:
        self.credential = credential
        self.is_client = is_client
        self._chain = chain
        self._relay = relay
        self._key = tools.key
        self._trainer = tools.trainer
        self._work = DutyWork(tools)
        self._controls = controls
        self._running: dict[Duty, trio.CancelScope] = {}

    @property
    def activity(self) -> tuple[str, ...]:
        """Names of the duties in progress."""
        return tuple(type(duty).__name__ for duty in self._running)

    async def run(self) -> None:
        """Fulfil duties until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._controls is not None:
                nursery.start_soon(self._controls.run)
            if self.is_client or self._key.account in current_validators(self._chain.tree):
                nursery.start_soon(self._warm_up)
            while True:
                changed = self._chain.changed
                owed = self._owed()
                for duty in self._running.keys() - set(owed):
                    self._running.pop(duty).cancel()
                for duty in owed:
                    if duty not in self._running:
                        self._running[duty] = trio.CancelScope()
                        nursery.start_soon(self._fulfil, duty, self._running[duty])
                await changed.wait()

    async def _warm_up(self) -> None:
        """Have the trainer import torch before anything with a deadline needs it.

        A duty that ends in the middle takes the trainer with it: on a slow machine each round would begin the import
        anew and none would finish it.
        """
        try:
            await self._trainer.run(WarmUpJob())
        except TrainerError as error:
            _log.error("the trainer can't be used: %s", error)

    def _owed(self) -> tuple[Duty, ...]:
        return duties(
            self._chain.genesis,
            self._chain.tree,
            self._key.account,
            has_credential=self.credential is not None,
            is_client=self.is_client,
        )

    async def _fulfil(self, duty: Duty, scope: trio.CancelScope) -> None:
        """Work on a duty until it is cancelled, because the state no longer asks for it."""
        name = type(duty).__name__
        pause_s = RETRY_S
        with scope:
            while True:
                try:
                    body = await self._do(duty)
                except CannotFulfilError as reason:
                    _log.warning("%s: %s", name, reason)
                    await trio.sleep_forever()
                except (TrainerError, MissingError, QuotaError) as error:
                    _log.error("%s failed, trying again in %g s: %s", name, pause_s, error)
                    await trio.sleep(pause_s)
                    pause_s = min(RETRY_MAX_S, 2 * pause_s)
                else:
                    await self._submit_until_included(name, self._sign(body))

    async def _do(self, duty: Duty) -> Body:
        match duty:
            case Admit():
                assert self.credential is not None, "only an account with a credential owes ADMIT"
                return bodies.Admit(self.credential)
            case Register():
                return await self._work.register(duty)
            case PostProbe():
                return await self._work.post_probe(duty)
            case Train():
                return await self._train(duty)
            case RevealModel():
                return await self._work.reveal(duty)
            case FetchAndVote():
                return await self._work.fetch_and_vote(duty)
            case Aggregate():
                return await self._work.aggregate(duty)
            case AttestTo():
                return await self._work.attest(duty)
            case _:
                assert_never(duty)

    async def _train(self, duty: Train) -> bodies.Commit:
        task = TASKS.get(self._chain.tree, duty.slot.task)
        assert task is not None, "a learning round has a task"
        body = await self._work.train(duty, last_part(self._chain.tree, task, self._key.account))
        if self._controls is not None:
            self._controls.note(Trained(duty.slot, duty.base, duty.specification))
        return body

    def _sign(self, body: Body) -> Transaction:
        """Sign a duty's transaction; those outside learning rounds take the account's next nonce."""
        chain_id = self._chain.genesis.chain_id
        if bodies.KINDS[type(body)] in FREE_KINDS:
            return sign_transaction(self._key, chain_id, body)
        account = ACCOUNTS.get(self._chain.tree, self._key.account)
        return sign_transaction(self._key, chain_id, body, nonce=account.nonce if account is not None else 0)

    async def _submit_until_included(self, name: str, transaction: Transaction) -> None:
        """Submit a transaction every few seconds; the duty's cancellation ends this.

        A transaction that can't be valid any more returns, so that the duty is done anew.
        """
        while True:
            try:
                self._relay.submit(transaction)
            except Rejection as rejection:
                _log.info("%s is refused: %s", name, rejection)
                await trio.sleep(RETRY_S)
                return
            await trio.sleep(RESUBMIT_S)
