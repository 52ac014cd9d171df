"""Transactions that wait for a block.

A transaction is judged on arrival, its signature first. One that can never be valid is refused with its reason; one
that is only early (a REVEAL that overtook the block that closes COMMIT) waits within bounds. After each block
everything that waits is judged again. How transactions travel is `transaction_relay`'s business.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.transaction import Aggregate, Evidence, Slot, Transaction
from bflnode.consensus.types import AccountId, TransactionId

MAX_WAITING = 5_000
"""Transactions that wait at most: two and a half full blocks."""

MAX_EARLY = MAX_WAITING // 2
"""Of these, that are only early: some eighty accounts could fill all places with what never becomes valid, and the
rest of a network would wait outside. Of what is valid a sender has a few at a time, and blocks take them."""

MAX_PER_SENDER = 64
"""Transactions of one sender that wait at most: nobody fills the pool alone."""

MAX_BYTES_PER_SENDER = 512 * 1024
"""Bytes of one sender that wait at most: four of the largest AGGREGATE, and room for all else."""

MAX_WAIT_S = 120.0
"""What found its way into no block for this long is forgotten; its sender sends again what it still owes."""

MAX_INCLUDED_KNOWN = 20_000
"""Transactions of blocks that are told from others without looking at them: ten full blocks, 2 MB of ids."""

MAX_JUDGED_WRONG = 64
"""Aggregators whose AGGREGATE of an attempt was judged in vain: few have their turn in one, and none twice."""

Check = Callable[[Transaction], None]
"""Judges a transaction, its signature first, on the current state; raises Rejection."""


class NoRoomError(Rejection):
    """A transaction was refused unseen because the pool has enough: nobody's fault, and nothing was spent on it."""


@dataclass(slots=True)
class _Waiting:
    """A transaction that waits.

    Attributes:
        is_ready: whether it is valid on the current state, and not only early.
        is_gossiped: whether it was gossiped already.
    """

    transaction: Transaction
    since_s: float
    is_ready: bool
    is_gossiped: bool = False


@dataclass(slots=True)
class _Share:
    """What one sender occupies."""

    count: int = 0
    size_bytes: int = 0


class Mempool:
    """The waiting transactions in order of arrival."""

    def __init__(self, check: Check, is_early: Callable[[Rejection], bool], clock: Callable[[], float]) -> None:
        self._check = check
        self._is_early = is_early
        self._clock = clock
        self._waiting: dict[TransactionId, _Waiting] = {}
        self._shares: dict[AccountId, _Share] = {}
        self._accused: set[AccountId] = set()
        self._aggregated: set[tuple[AccountId, Slot]] = set()
        self._turned_away: Counter[AccountId] = Counter()
        self._judged_wrong: dict[tuple[AccountId, Slot], None] = {}
        self._included: dict[TransactionId, None] = {}
        self._ready = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, transaction: TransactionId) -> bool:
        return transaction in self._waiting

    def holds(self, transaction: Transaction) -> bool:
        """Whether exactly this waits here. Its id doesn't say so: a copy with a false signature has the same one."""
        known = self._waiting.get(transaction.id)
        return known is not None and known.transaction.signature == transaction.signature

    def was_included(self, transaction: TransactionId) -> bool:
        """Whether one of the last blocks has a transaction: who sends it still is late, no more."""
        return transaction in self._included

    def add(self, transaction: Transaction) -> bool:
        """Take a transaction.

        Returns:
            Whether it is new.

        Raises:
            NoRoomError: there is no room for it, or need of it.
            Rejection: it can never be valid.
        """
        if transaction.id in self._waiting:
            return False
        self._require_room(transaction)
        is_ready = self._judge(transaction)
        early = len(self._waiting) - self._ready
        if not is_ready and early >= MAX_EARLY:
            self._turned_away[transaction.sender] += 1
            raise NoRoomError(Reason.LIMIT, early=early)
        self._waiting[transaction.id] = _Waiting(transaction, self._clock(), is_ready)
        if isinstance(transaction.body, Evidence):
            self._accused.add(transaction.body.offender)
        if isinstance(transaction.body, Aggregate):
            self._aggregated.add((transaction.sender, transaction.body.slot))
        share = self._shares.setdefault(transaction.sender, _Share())
        share.count += 1
        share.size_bytes += len(transaction.encoded)
        self._ready += is_ready
        return True

    def candidates(self) -> tuple[Transaction, ...]:
        """Everything that waits, in order of arrival."""
        return tuple(entry.transaction for entry in self._waiting.values())

    def has_work(self) -> bool:
        """Whether something waits that was valid when it was last judged."""
        return self._ready > 0

    def settle(self, included: Iterable[Transaction]) -> None:
        """Forget what a block included, and what its state has made invalid or too old."""
        for transaction in included:
            self._forget(transaction.id)
            self._included[transaction.id] = None
        for _ in range(len(self._included) - MAX_INCLUDED_KNOWN):
            del self._included[next(iter(self._included))]
        self._turned_away.clear()
        oldest_s = self._clock() - MAX_WAIT_S
        for entry in list(self._waiting.values()):
            try:
                is_ready = self._judge(entry.transaction)
            except Rejection:
                self._forget(entry.transaction.id)
                continue
            if entry.since_s < oldest_s:
                self._forget(entry.transaction.id)
            else:
                self._ready += is_ready - entry.is_ready
                entry.is_ready = is_ready

    def stale(self, age_s: float) -> tuple[Transaction, ...]:
        """What is valid, has waited for `age_s` and was not gossiped yet, in order of arrival."""
        latest_s = self._clock() - age_s
        return tuple(
            entry.transaction
            for entry in self._waiting.values()
            if entry.is_ready and not entry.is_gossiped and entry.since_s <= latest_s
        )

    def note_gossiped(self, transactions: Iterable[Transaction]) -> None:
        """These were gossiped: once is enough."""
        for transaction in transactions:
            if transaction.id in self._waiting:
                self._waiting[transaction.id].is_gossiped = True

    def _require_room(self, transaction: Transaction) -> None:
        """Check the limits, and what needs no judgement any more.

        Of evidence against one account one is enough, and anybody could send it in many names. Of an aggregator one
        AGGREGATE is judged for each attempt, right or wrong: finding clusters may take a second.
        """
        body = transaction.body
        if isinstance(body, Evidence) and body.offender in self._accused:
            raise NoRoomError(Reason.DUPLICATE, offender=body.offender)
        if isinstance(body, Aggregate):
            turn = (transaction.sender, body.slot)
            if turn in self._aggregated or turn in self._judged_wrong:
                raise NoRoomError(Reason.DUPLICATE, sender=transaction.sender)
        if len(self._waiting) >= MAX_WAITING:
            raise NoRoomError(Reason.LIMIT, waiting=len(self._waiting))
        share = self._shares.get(transaction.sender, _Share())
        if share.count + self._turned_away[transaction.sender] >= MAX_PER_SENDER:
            raise NoRoomError(Reason.LIMIT, sender=transaction.sender, waiting=share.count)
        if share.size_bytes + len(transaction.encoded) > MAX_BYTES_PER_SENDER:
            raise NoRoomError(Reason.LIMIT, sender=transaction.sender, waiting_bytes=share.size_bytes)

    def _judge(self, transaction: Transaction) -> bool:
        """Whether a transaction is valid now (True) or only early (False); raises Rejection where it is neither."""
        try:
            self._check(transaction)
        except Rejection as rejection:
            if rejection.reason is Reason.WRONG_OUTPUTS and isinstance(transaction.body, Aggregate):
                self._judged_wrong[transaction.sender, transaction.body.slot] = None
                if len(self._judged_wrong) > MAX_JUDGED_WRONG:
                    del self._judged_wrong[next(iter(self._judged_wrong))]
            if not self._is_early(rejection):
                raise
            return False
        return True

    def _forget(self, identifier: TransactionId) -> None:
        entry = self._waiting.pop(identifier, None)
        if entry is None:
            return
        self._ready -= entry.is_ready
        if isinstance(entry.transaction.body, Evidence):
            self._accused.discard(entry.transaction.body.offender)
        if isinstance(entry.transaction.body, Aggregate):
            self._aggregated.discard((entry.transaction.sender, entry.transaction.body.slot))
        share = self._shares[entry.transaction.sender]
        share.count -= 1
        share.size_bytes -= len(entry.transaction.encoded)
        if not share.count:
            del self._shares[entry.transaction.sender]
