"""Brings waiting transactions to whoever makes the next blocks.

A transaction goes straight to the next leaders over open streams, which costs a twentieth of gossip. What no block has
taken after a second is gossiped, many in one message, since a leader may be dead or not connected; and again to the
leaders as they change.
"""

import logging

import trio

from bflnode.consensus.rejection import Rejection
from bflnode.consensus.transaction import Transaction
from bflnode.consensus.types import AccountId, ChainId

from .agreement_driver import AgreementDriver
from .mempool import Mempool
from .messages import MAX_BATCH, MAX_GOSSIP_BYTES, MAX_PUSH_BYTES, TRANSACTIONS, Batch, transactions_topic
from .network import Network
from .peers import Peers

_log = logging.getLogger(__name__)

LEADERS = 3
"""Leaders of this and the next rounds that get a transaction at once: one dead leader then costs no relay."""

STALE_S = 1.0
"""A transaction that waits this long missed its leader."""


class TransactionRelay:
    """Takes transactions in, from the own node and from peers, and sends the own ones on."""

    def __init__(
        self, chain_id: ChainId, network: Network, peers: Peers, mempool: Mempool, agreement: AgreementDriver
    ) -> None:
        self._chain_id = chain_id
        self._network = network
        self._peers = peers
        self._mempool = mempool
        self._agreement = agreement

    def submit(self, transaction: Transaction) -> None:
        """Take a transaction of this node's own, or of its RPC, and send it to the next leaders.

        Raises:
            Rejection: it can never be valid, or the mempool is full.
        """
        self.accept(transaction)
        data = Batch((transaction,)).to_bytes()
        for account in self._agreement.leader_accounts(LEADERS):
            self._push_to(account, data)

    def accept(self, transaction: Transaction) -> None:
        """Take a transaction into the mempool.

        Raises:
            Rejection: a bad signature, it can never be valid, or the mempool is full.
        """
        if transaction.id not in self._mempool:
            transaction.verify_signature(self._chain_id)
            if self._mempool.add(transaction):
                self._agreement.poke()

    def receive(self, data: bytes) -> None:
        """Take a batch from a peer. One that a block has overtaken is no fault of the peer.

        Raises:
            Rejection: malformed bytes.
        """
        for transaction in Batch.from_bytes(data, max_bytes=MAX_PUSH_BYTES).transactions:
            try:
                self.accept(transaction)
            except Rejection as rejection:
                _log.debug("refused %s of %s: %s", transaction.kind.name, transaction.sender.hex()[:12], rejection)

    def pending(self) -> bytes:
        """What waits here, for a peer that asks: as much as fits in one message."""
        return _fitting(self._mempool.candidates(), MAX_GOSSIP_BYTES)

    async def run(self) -> None:
        """Gossip what waits too long, until cancelled."""
        topic = transactions_topic(self._chain_id)
        while True:
            await trio.sleep(STALE_S / 2)
            stale = self._mempool.take_stale(STALE_S, MAX_BATCH)
            if stale:
                await self._network.publish(topic, _fitting(stale, MAX_GOSSIP_BYTES))

    def _push_to(self, account: AccountId, data: bytes) -> None:
        peer = self._peers.of_account(account)
        if peer is not None:
            self._network.push(peer.id, TRANSACTIONS, data)


def _fitting(transactions: tuple[Transaction, ...], limit_bytes: int) -> bytes:
    """A batch of the first transactions that fit."""
    chosen: list[Transaction] = []
    size_bytes = 16
    for transaction in transactions[:MAX_BATCH]:
        size_bytes += len(transaction.encoded)
        if size_bytes > limit_bytes:
            break
        chosen.append(transaction)
    return Batch(tuple(chosen)).to_bytes()
