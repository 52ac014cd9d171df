"""The names of things: identifiers and bounded field types that every record is built from.

Only names and bounds live here; records are beside their rules, the codec is in `records`.
"""

from dataclasses import dataclass
from typing import Annotated, NewType

AccountId = NewType("AccountId", bytes)
"""An Ed25519 public key, 32 bytes: the account that signs transactions and votes."""

Hash = NewType("Hash", bytes)
"""A SHA-256 digest, 32 bytes."""

ChainId = NewType("ChainId", bytes)
"""Tagged hash of the canonical genesis, 32 bytes."""

BlockId = NewType("BlockId", bytes)
"""Tagged hash of a header, 32 bytes."""

TransactionId = NewType("TransactionId", bytes)
"""Tagged hash of a transaction's payload (without its signature), 32 bytes."""

BlobId = NewType("BlobId", bytes)
"""Content id of a blob (a model, a probe set), 32 bytes; see `blob`."""

Signature = NewType("Signature", bytes)
"""An Ed25519 signature, 64 bytes."""

FIXED_SIZES = {AccountId: 32, Hash: 32, ChainId: 32, BlockId: 32, TransactionId: 32, BlobId: 32, Signature: 64}
"""Exact size in bytes of each identifier: the codec refuses any other."""


@dataclass(frozen=True, slots=True)
class Between:
    """Inclusive bounds of an integer field."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class AtMost:
    """Largest number of bytes, characters or items of a field."""

    size: int


MAX_INTEGER = 2**63 - 1
"""Largest integer in any record: fits int64, so no implementation needs big integers to read one."""

MAX_CLIENTS = 256
"""Clients in one learning round on chain: the AGGREGATE of 256 stays below 128 KiB."""

MAX_VALIDATORS = 256
"""Validators of a network: a commit of 256 signatures is 18 KiB."""

MAX_ATTENDANCE_WINDOW = 1024
"""Most blocks over which attendance is counted: 128 bytes for each validator, 34 kB for their proposers."""

Unsigned = Annotated[int, Between(0, MAX_INTEGER)]
Amount = Annotated[int, Between(0, MAX_INTEGER)]
"""Micro-tokens; 1 token = 10**6."""

Milliseconds = Annotated[int, Between(0, MAX_INTEGER)]
"""A duration, or a time since the Unix epoch."""

MAX_TIME_MS = 2**53
"""Latest time of a header. A leader may name any: the deadlines that execution adds to it must still be integers."""

HeaderTime = Annotated[int, Between(0, MAX_TIME_MS)]
"""The time of a block, in milliseconds since the Unix epoch."""

TOKEN = 10**6
"""Micro-tokens in one token."""
