"""Brings waiting transactions to whoever makes the next blocks.

A transaction goes straight to the next leaders over open streams, which costs a twentieth of gossip. What no block has
taken after three seconds is gossiped, many in one message, since a leader may be dead or not connected. One too large
for gossip (an AGGREGATE of many clients) is pushed to all peers instead, and by them to theirs.
"""

import logging
from collections.abc import Iterable

import trio

from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.transaction import Transaction
from bflnode.consensus.types import AccountId, ChainId
from bflnode.node.p2p.messages import (
    MAX_BATCH,
    MAX_GOSSIP_BYTES,
    MAX_PUSH_BYTES,
    TRANSACTIONS,
    Batch,
    transactions_topic,
)
from bflnode.node.p2p.network import Network, PeerId
from bflnode.node.p2p.peers import Peers
from bflnode.node.p2p.rate_limits import Rate, RateLimits
from bflnode.storage.failpoints import Operation, after, before

from .agreement_driver import AgreementDriver
from .mempool import Mempool, NoRoomError

_log = logging.getLogger(__name__)

BATCH_OVERHEAD_BYTES = 16
"""What a batch adds to its transactions."""

LEADERS = 3
"""Leaders of this and the next rounds that get a transaction at once: one dead leader then costs no relay."""

REFUSED = "refused transactions"
REFUSED_RATE = Rate(per_s=8, burst=2 * MAX_BATCH, drops=True)
"""Transactions of one peer that may turn out to be invalid here: signing costs nothing, checking does. A correct node
sends what a block has just overtaken: a few in the time of a block, two batches where they come from a standstill."""

STALE_S = 3.0
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
        self._refusals = RateLimits({REFUSED: REFUSED_RATE}, trio.current_time)

    def submit(self, transaction: Transaction) -> None:
        """Take a transaction of this node's own, or of its RPC, and send it to the next leaders.

        Raises:
            Rejection: it can never be valid, or the mempool is full.
        """
        self.accept(transaction)
        data = Batch((transaction,)).to_bytes()
        before(Operation.TRANSACTION_SEND)
        for account in self._agreement.leader_accounts(LEADERS):
            self._push_to(account, data)
        after(Operation.TRANSACTION_SEND)

    def accept(self, transaction: Transaction) -> None:
        """Take a transaction into the mempool.

        Raises:
            Rejection: a bad signature, it can never be valid, or the mempool is full.
        """
        if self._mempool.add(transaction):
            self._agreement.poke()

    def receive(self, data: bytes, sender: PeerId) -> bool:
        """Take a batch from a peer. Some transactions that a block has overtaken are no fault of the peer.

        Returns:
            Whether the batch may be passed on: all of it was checked and waits here, or this node would answer for what
            it has not looked at. What waits here of another batch goes out with what is stale.

        Raises:
            Rejection: malformed bytes, a bad signature, or more invalid ones than a correct node passes on.
        """
        transactions = Batch.from_bytes(data, max_bytes=MAX_PUSH_BYTES).transactions
        for transaction in transactions:
            if self._mempool.was_included(transaction.id):
                continue
            try:
                self.accept(transaction)
            except NoRoomError as rejection:
                _log.debug("no room for %s of %s: %s", transaction.kind.name, transaction.sender.hex()[:12], rejection)
            except Rejection as rejection:
                _log.debug("refused %s of %s: %s", transaction.kind.name, transaction.sender.hex()[:12], rejection)
                if rejection.reason is Reason.BAD_SIGNATURE:
                    raise
                if self._refusals.delay_s(sender, REFUSED) is None:
                    if self._agreement.is_outdated:  # what is invalid here may be valid where the peer is
                        break
                    raise
        return bool(transactions) and all(map(self._mempool.holds, transactions))

    def pending(self) -> bytes:
        """What waits here, for a peer that asks: as much as fits in one message."""
        return Batch(_fitting(self._mempool.candidates())).to_bytes()

    async def run(self) -> None:
        """Pass on what waits too long, until cancelled."""
        while True:
            await trio.sleep(STALE_S / 2)
            stale = self._mempool.stale(STALE_S)
            large = tuple(transaction for transaction in stale if not _fitting((transaction,)))
            small = _fitting(transaction for transaction in stale if transaction not in large)
            self._mempool.note_gossiped((*large, *small))
            for transaction in large:
                self._push_to_all(Batch((transaction,)).to_bytes())
            if small:
                await self._network.publish(transactions_topic(self._chain_id), Batch(small).to_bytes())

    def _push_to_all(self, data: bytes) -> None:
        for peer in self._peers.ids():
            self._network.push(peer, TRANSACTIONS, data)

    def _push_to(self, account: AccountId, data: bytes) -> None:
        peer = self._peers.of_account(account)
        if peer is not None:
            self._network.push(peer.id, TRANSACTIONS, data)


def _fitting(transactions: Iterable[Transaction]) -> tuple[Transaction, ...]:
    """The transactions that fit in one message, in order; what doesn't is passed over."""
    chosen: list[Transaction] = []
    size_bytes = BATCH_OVERHEAD_BYTES
    for transaction in transactions:
        if len(chosen) == MAX_BATCH:
            break
        if size_bytes + len(transaction.encoded) <= MAX_GOSSIP_BYTES:
            size_bytes += len(transaction.encoded)
            chosen.append(transaction)
    return tuple(chosen)
