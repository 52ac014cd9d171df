"""What is wrong with something a peer or a person handed us.

One exception with a closed set of reasons: a rejection is counted by reason, scored against the peer that caused it,
and the node goes on. The world's faults (disk, network) and our own (assertions) are not rejections.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why something was refused. The text is stable: it appears in metrics, logs and RPC errors."""

    MALFORMED = "malformed"
    TOO_LARGE = "too-large"
    BAD_SIGNATURE = "bad-signature"
    WRONG_CHAIN = "wrong-chain"
    WRONG_HEIGHT = "wrong-height"
    WRONG_PARENT = "wrong-parent"
    WRONG_PROPOSER = "wrong-proposer"
    WRONG_TIME = "wrong-time"
    WRONG_ROOT = "wrong-root"
    WRONG_HASH = "wrong-hash"
    WRONG_COMMIT = "wrong-commit"
    UNKNOWN_VALIDATOR = "unknown-validator"
    NO_QUORUM = "no-quorum"
    NOT_TRUSTED = "not-trusted"
    DUPLICATE = "duplicate"
    EXPIRED = "expired"
    UNKNOWN_ACCOUNT = "unknown-account"
    WRONG_NONCE = "wrong-nonce"
    INSUFFICIENT_FUNDS = "insufficient-funds"
    ACCOUNT_EXISTS = "account-exists"
    POOL_EMPTY = "pool-empty"
    INSUFFICIENT_STAKE = "insufficient-stake"
    LAST_VALIDATOR = "last-validator"
    JAILED = "jailed"
    NOT_JAILED = "not-jailed"
    TOMBSTONED = "tombstoned"
    WRONG_EVIDENCE = "wrong-evidence"
    UNKNOWN_TASK = "unknown-task"
    NOT_OPEN = "not-open"
    WRONG_ROUND = "wrong-round"
    WRONG_PHASE = "wrong-phase"
    NOT_PARTICIPANT = "not-participant"
    NOT_COMMITTEE = "not-committee"
    NOT_AGGREGATOR = "not-aggregator"
    COMMITMENT_MISMATCH = "commitment-mismatch"
    WRONG_SIZE = "wrong-size"
    WRONG_OUTPUTS = "wrong-outputs"
    WRONG_AGGREGATE = "wrong-aggregate"
    UNKNOWN_BLOB = "unknown-blob"
    PRUNED = "pruned"
    NOT_GREETED = "not-greeted"
    UNSUPPORTED = "unsupported"
    LIMIT = "limit"


MAX_SHOWN = 300
"""Characters of one value in a message: a path of fields and a sentence fit."""


class Rejection(Exception):
    """Something handed to us breaks a rule.

    Attributes:
        reason: the rule, from a closed set.
        values: what was seen and what was expected, for the message.
    """

    def __init__(self, reason: Reason, **values: object) -> None:
        self.reason = reason
        self.values = values
        details = ", ".join(f"{name}={_shown(value)}" for name, value in values.items())
        super().__init__(f"{reason.value}: {details}" if details else reason.value)


class Premature(Rejection):
    """A rule isn't met yet but may be after the next blocks: kept and tried again, and nobody's fault."""


def _shown(value: object) -> str:
    """A value as a log and a terminal can take it, whatever a stranger put there."""
    if isinstance(value, bytes):
        return value.hex()[:16]
    text = str(value)
    return text if len(text) <= MAX_SHOWN and text.isprintable() else ascii(text[:MAX_SHOWN])
