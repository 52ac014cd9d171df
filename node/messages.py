"""What nodes say to each other: protocol ids and the records that travel under them.

Transport is `network`'s business; here bytes become typed messages once, at the edge. Protocol ids carry a version:
a change that an old node would misread gets a new one.
"""

from dataclasses import dataclass
from typing import Annotated

from bflnode.consensus.block import MAX_BLOCK_BYTES, Block, Commit
from bflnode.consensus.encoding import encode
from bflnode.consensus.records import Record
from bflnode.consensus.snapshot import MAX_SNAPSHOT_BYTES
from bflnode.consensus.transaction import Transaction
from bflnode.consensus.types import AccountId, AtMost, Between, BlobId, ChainId, Signature, Unsigned

PROPOSALS = "/bflnode/proposals/1"
VOTES = "/bflnode/votes/1"
TRANSACTIONS = "/bflnode/transactions/1"
STATUS = "/bflnode/status/1"
PUSHES = (PROPOSALS, VOTES, TRANSACTIONS, STATUS)
"""One-way messages over streams that stay open."""

HELLO = "/bflnode/hello/1"
BLOCKS = "/bflnode/blocks/1"
PENDING = "/bflnode/pending/1"
MANIFESTS = "/bflnode/manifests/1"
CHUNKS = "/bflnode/chunks/1"
SNAPSHOTS = "/bflnode/snapshots/1"
LIGHT_CHAINS = "/bflnode/light-chains/1"
REQUESTS = (HELLO, BLOCKS, PENDING, MANIFESTS, CHUNKS, SNAPSHOTS, LIGHT_CHAINS)
"""Requests with one response each."""

MAX_PUSH_BYTES = MAX_BLOCK_BYTES + 256 * 1024
"""Largest pushed message: a re-proposal carries a block and its certificate."""

MAX_FINAL_BLOCK_BYTES = MAX_PUSH_BYTES
"""Largest block with its commit."""

MAX_GOSSIP_BYTES = 60_000
"""Largest gossip message: below 64 kB one is a single frame (py-libp2p interleaves larger ones)."""

MAX_BATCH = 256
"""Transactions in one message."""

MAX_ADDRESSES = 32
"""Addresses of other peers in a hello."""

MAX_VERSION_LENGTH = 32
"""Characters of the software's version in a hello."""

BLOCKS_PER_REQUEST = 32
"""Blocks asked for at once while catching up."""

MAX_BLOCKS_RESPONSE_BYTES = 3 * 512 * 1024
"""A response holds as many blocks as fit, at least one: the largest does, and no answer is larger than 2 MiB."""

MAX_OFFERS = 16
"""Snapshots in one answer: as many as a node may keep."""

MAX_OFFERS_BYTES = MAX_OFFERS * (MAX_SNAPSHOT_BYTES + 8)

MAX_LIGHT_CHAIN_BYTES = 2 * 1024 * 1024 - 1024
"""A chain of steps fits into an answer: a hundred with 256 validators."""


def transactions_topic(chain_id: ChainId) -> str:
    """GossipSub topic of transactions that wait."""
    return f"/bflnode/{chain_id.hex()}/transactions/1"


def blocks_topic(chain_id: ChainId) -> str:
    """GossipSub topic of final blocks."""
    return f"/bflnode/{chain_id.hex()}/blocks/1"


@dataclass(frozen=True, slots=True)
class Hello(Record):
    """Who a peer is. The signature binds the account to the libp2p identity of this connection."""

    chain_id: ChainId
    version: Annotated[str, AtMost(MAX_VERSION_LENGTH)]
    account: AccountId
    height: Unsigned
    addresses: Annotated[tuple[Annotated[str, AtMost(256)], ...], AtMost(MAX_ADDRESSES)]
    signature: Signature


def hello_payload(peer_id: str, account: AccountId) -> bytes:
    """What the account signs (kind "hello"): the peer id that speaks for it."""
    return encode((peer_id, account))


@dataclass(frozen=True, slots=True)
class Batch(Record):
    """Several transactions."""

    transactions: Annotated[tuple[Transaction, ...], AtMost(MAX_BATCH)]


@dataclass(frozen=True, slots=True)
class FinalBlock(Record):
    """A block with the commit that makes it final."""

    block: Block
    commit: Commit


@dataclass(frozen=True, slots=True)
class FinalBlocks(Record):
    """Consecutive final blocks, each as its own encoding: a block nests as deep as the encoding allows."""

    blocks: Annotated[tuple[Annotated[bytes, AtMost(MAX_FINAL_BLOCK_BYTES)], ...], AtMost(BLOCKS_PER_REQUEST)]


@dataclass(frozen=True, slots=True)
class BlocksRequest(Record):
    """Asks for blocks from a height on."""

    start: Unsigned
    count: Annotated[int, Between(1, BLOCKS_PER_REQUEST)]


@dataclass(frozen=True, slots=True)
class SnapshotsRequest(Record):
    """Asks for snapshots from a height on."""

    lowest: Unsigned


@dataclass(frozen=True, slots=True)
class SnapshotOffers(Record):
    """Snapshots that a node has, the latest first, each as its own encoding; their files are fetched as blobs."""

    snapshots: Annotated[tuple[Annotated[bytes, AtMost(MAX_SNAPSHOT_BYTES)], ...], AtMost(MAX_OFFERS)]


@dataclass(frozen=True, slots=True)
class LightChainRequest(Record):
    """Asks for the steps by which whoever trusts the block at `start` comes to trust the one at `target`."""

    start: Unsigned
    target: Unsigned


@dataclass(frozen=True, slots=True)
class ManifestRequest(Record):
    """Asks for the manifest of a blob."""

    blob: BlobId


@dataclass(frozen=True, slots=True)
class ChunkRequest(Record):
    """Asks for one chunk of a blob."""

    blob: BlobId
    index: Unsigned
