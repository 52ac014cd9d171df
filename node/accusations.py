"""Evidence that this node found: kept on disk, and sent until a block has punished the offender.

One proof for each offender is enough, since an account is punished once for ever. What others found first is dropped,
and so is what can cost nothing any more.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from bflnode.consensus.keys import SecretKey, account_text
from bflnode.consensus.rejection import Premature, Rejection
from bflnode.consensus.transaction import MAX_TRANSACTION_BYTES, Evidence, Transaction, sign_transaction
from bflnode.consensus.types import AccountId
from bflnode.storage.durable import write_durably
from bflnode.storage.errors import from_os_error

from .chain import Chain
from .node_clock import now_ms

_log = logging.getLogger(__name__)

SUFFIX = ".evidence"


class Accusations:
    """What this node has to say against others; every method raises StorageError where the disk is at fault."""

    def __init__(self, directory: Path, chain: Chain, key: SecretKey, submit: Callable[[Transaction], None]) -> None:
        """Take up what an earlier run of the node kept.

        Args:
            directory: where the evidence is kept; made if it isn't there.
            chain: judges whether it is still worth sending.
            key: signs the transactions.
            submit: sends one; raises `Rejection` where it is refused.
        """
        self._directory = directory
        self._chain = chain
        self._key = key
        self._submit = submit
        self._open: dict[AccountId, Transaction] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for path in sorted(directory.glob(f"*{SUFFIX}")):
                self._load(path)
        except OSError as error:
            raise from_os_error(directory, "reading the evidence that this node found", error) from error

    def __len__(self) -> int:
        return len(self._open)

    def accuse(self, evidence: Evidence) -> None:
        """Keep a proof, and send it; a second one against the same account changes nothing."""
        if evidence.offender in self._open:
            return
        who = account_text(evidence.offender)
        if evidence.offender == self._key.account:
            _log.error("another node signs with this node's key %s: stop one of them, it will be slashed", who)
            return
        transaction = sign_transaction(self._key, self._chain.genesis.chain_id, evidence)
        if not self._is_worth_sending(transaction):
            return
        _log.warning(
            "%s signed two different messages at height %d round %d (%s): sending the evidence",
            *(who, evidence.height, evidence.round, evidence.kind.name),
        )
        path = self._path(evidence.offender)
        try:
            write_durably(path, evidence.to_bytes())
        except OSError as error:
            raise from_os_error(path, "keeping evidence", error) from error
        self._open[evidence.offender] = transaction
        self._send(transaction)

    def review(self) -> None:
        """After a block: send again what no block has, drop what is settled."""
        for offender, transaction in list(self._open.items()):
            if self._is_worth_sending(transaction):
                self._send(transaction)
                continue
            del self._open[offender]
            path = self._path(offender)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise from_os_error(path, "removing evidence", error) from error

    def _is_worth_sending(self, transaction: Transaction) -> bool:
        try:
            self._chain.check(transaction, now_ms())
        except Premature:
            return True
        except Rejection as rejection:
            _log.info("evidence is settled: %s", rejection)
            return False
        return True

    def _send(self, transaction: Transaction) -> None:
        try:
            self._submit(transaction)
        except Rejection as rejection:
            _log.debug("evidence waits: %s", rejection)

    def _load(self, path: Path) -> None:
        """Take up one proof; a damaged file counts as lost."""
        try:
            evidence = Evidence.from_bytes(path.read_bytes(), max_bytes=MAX_TRANSACTION_BYTES)
        except Rejection as rejection:
            _log.warning("%s is no evidence any more (%s): it is removed", path, rejection)
            path.unlink()
            return
        self._open[evidence.offender] = sign_transaction(self._key, self._chain.genesis.chain_id, evidence)

    def _path(self, offender: AccountId) -> Path:
        return self._directory / f"{offender.hex()}{SUFFIX}"
