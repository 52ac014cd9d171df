"""Transactions that wait for a block.

A transaction is verified once, on arrival. One that can never be valid is refused with its reason; one that is only
early (a REVEAL that overtook the block that closes COMMIT) waits within bounds. After each block everything that
waits is judged again.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.transaction import Transaction
from bflnode.consensus.types import AccountId, TransactionId

MAX_WAITING = 5_000
"""Transactions that wait at most: two and a half full blocks."""

MAX_PER_SENDER = 64
"""Transactions of one sender that wait at most: nobody fills the pool alone."""

MAX_WAIT_S = 120.0
"""What found its way into no block for this long is forgotten; its sender sends again what it still owes."""

Check = Callable[[Transaction], None]
"""Judges a transaction on the current state; raises Rejection."""


@dataclass(slots=True)
class _Waiting:
    transaction: Transaction
    since_s: float
    is_gossiped: bool = False


class Mempool:
    """The waiting transactions in order of arrival."""

    def __init__(self, check: Check, is_early: Callable[[Rejection], bool], clock: Callable[[], float]) -> None:
        self._check = check
        self._is_early = is_early
        self._clock = clock
        self._waiting: dict[TransactionId, _Waiting] = {}
        self._per_sender: dict[AccountId, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, transaction: TransactionId) -> bool:
        return transaction in self._waiting

    def add(self, transaction: Transaction) -> bool:
        """Take a transaction whose signature has been verified.

        Returns:
            Whether it is new.

        Raises:
            Rejection: it can never be valid, or the pool is full.
        """
        if transaction.id in self._waiting:
            return False
        try:
            self._check(transaction)
        except Rejection as rejection:
            if not self._is_early(rejection):
                raise
        if len(self._waiting) >= MAX_WAITING:
            raise Rejection(Reason.LIMIT, waiting=len(self._waiting))
        if self._per_sender.get(transaction.sender, 0) >= MAX_PER_SENDER:
            raise Rejection(Reason.LIMIT, sender=transaction.sender, waiting=MAX_PER_SENDER)
        self._waiting[transaction.id] = _Waiting(transaction, self._clock())
        self._per_sender[transaction.sender] = self._per_sender.get(transaction.sender, 0) + 1
        return True

    def candidates(self) -> tuple[Transaction, ...]:
        """Everything that waits, in order of arrival."""
        return tuple(entry.transaction for entry in self._waiting.values())

    def has_work(self) -> bool:
        """Whether something waits that is valid now."""
        return any(self._is_valid(entry.transaction) for entry in self._waiting.values())

    def settle(self, included: Iterable[Transaction]) -> None:
        """Forget what a block included, and what its state has made invalid or too old."""
        for transaction in included:
            self._forget(transaction.id)
        oldest_s = self._clock() - MAX_WAIT_S
        for entry in list(self._waiting.values()):
            if entry.since_s < oldest_s or not self._may_become_valid(entry.transaction):
                self._forget(entry.transaction.id)

    def take_stale(self, age_s: float, count: int) -> tuple[Transaction, ...]:
        """Up to `count` transactions that have waited for `age_s` and were not taken here before: time to gossip."""
        stale = [
            entry
            for entry in self._waiting.values()
            if not entry.is_gossiped and self._clock() - entry.since_s >= age_s
        ][:count]
        for entry in stale:
            entry.is_gossiped = True
        return tuple(entry.transaction for entry in stale)

    def _is_valid(self, transaction: Transaction) -> bool:
        try:
            self._check(transaction)
        except Rejection:
            return False
        return True

    def _may_become_valid(self, transaction: Transaction) -> bool:
        try:
            self._check(transaction)
        except Rejection as rejection:
            return self._is_early(rejection)
        return True

    def _forget(self, identifier: TransactionId) -> None:
        entry = self._waiting.pop(identifier, None)
        if entry is not None:
            sender = entry.transaction.sender
            self._per_sender[sender] -= 1
            if not self._per_sender[sender]:
                del self._per_sender[sender]
