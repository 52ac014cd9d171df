"""What nodes say to each other: protocol ids and the records that travel under them.

Transport is `network`'s business; here bytes become typed messages once, at the edge. Protocol ids carry a version:
a change that an old node would misread gets a new one. What every version must understand for ever is ABOUT, which says
who speaks what.
"""

from dataclasses import dataclass
from typing import Annotated

from bflnode.consensus.block import MAX_BLOCK_BYTES, Block, Commit
from bflnode.consensus.encoding import encode
from bflnode.consensus.records import Record
from bflnode.consensus.snapshot import MAX_SNAPSHOT_BYTES
from bflnode.consensus.transaction import Transaction
from bflnode.consensus.types import AccountId, AtMost, Between, BlobId, ChainId, Milliseconds, Signature, Unsigned

from .rate_limits import Rate
from .streams import GOSSIP

PROPOSALS = "/bflnode/proposals/1"
VOTES = "/bflnode/votes/1"
TRANSACTIONS = "/bflnode/transactions/1"
STATUS = "/bflnode/status/1"
PUSHES = (PROPOSALS, VOTES, TRANSACTIONS, STATUS)
"""One-way messages over streams that stay open."""

PROTOCOL_VERSION = 2
"""Of all messages together: raised with each change that an older node can't follow."""

OLDEST_PROTOCOL_VERSION = 2
"""Oldest version that this one still understands."""

HELLO = "/bflnode/hello/2"
ABOUT = "/bflnode/about/1"
PEERS = "/bflnode/peers/1"
BLOCKS = "/bflnode/blocks/1"
PENDING = "/bflnode/pending/1"
MANIFESTS = "/bflnode/manifests/1"
CHUNKS = "/bflnode/chunks/1"
SNAPSHOTS = "/bflnode/snapshots/1"
LIGHT_CHAINS = "/bflnode/light-chains/1"
REQUESTS = (HELLO, ABOUT, PEERS, BLOCKS, PENDING, MANIFESTS, CHUNKS, SNAPSHOTS, LIGHT_CHAINS)
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
"""Addresses of other peers in a hello, or in the answer to PEERS."""

MAX_ABOUT_BYTES = 2 * 1024
"""An ABOUT has a few hundred bytes."""

MAX_GENESIS_PARTS = 32
"""Fields of a genesis, of which ABOUT has a digest each."""

MAX_VERSION_LENGTH = 32
"""Characters of the software's version in a hello."""

RATES = {
    PROPOSALS: Rate(8, 64, unit_bytes=256 * 1024),
    VOTES: Rate(100, 1_000, unit_bytes=512),
    TRANSACTIONS: Rate(1_000, 8_000, unit_bytes=256),
    STATUS: Rate(20, 100, unit_bytes=4 * 1024, drops=True),
    GOSSIP: Rate(40, 800, unit_bytes=4 * 1024),
    HELLO: Rate(1, 20),
    ABOUT: Rate(1, 20),
    PEERS: Rate(0.2, 10),
    PENDING: Rate(0.5, 10),
    BLOCKS: Rate(16, 128),
    MANIFESTS: Rate(16, 256),
    CHUNKS: Rate(32, 1_024),
    SNAPSHOTS: Rate(0.5, 10),
    LIGHT_CHAINS: Rate(2, 64),
}
"""What a peer may send in the long run and at once. Several times what an honest one does: a validator sends two votes
for a round, and hundreds at once only where somebody lacks them; a model of 45 MB has 180 chunks. A status says where a
peer is now, so an old one is worth nothing; everything else waits."""

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
    """Who a peer is. The signature binds the account to the libp2p identity of this connection.

    `time_ms` is the sender's clock, for people: it decides nothing.
    """

    chain_id: ChainId
    version: Annotated[str, AtMost(MAX_VERSION_LENGTH)]
    account: AccountId
    height: Unsigned
    time_ms: Milliseconds
    addresses: Annotated[tuple[Annotated[str, AtMost(256)], ...], AtMost(MAX_ADDRESSES)]
    signature: Signature


@dataclass(frozen=True, slots=True)
class About(Record):
    """What a node says of itself to anybody, so that two nodes that can't talk can say why.

    This record never changes: nodes of all versions exchange it.

    Attributes:
        protocol: version of all messages that it speaks; `oldest_protocol` is the oldest that it understands.
        version: of its software.
        genesis: a digest of each field of its genesis, in order (see `about.genesis_digests`).
        time_ms: its clock.
        peers: how many it has; `max_peers` is how many it takes.
    """

    protocol: Unsigned
    oldest_protocol: Unsigned
    version: Annotated[str, AtMost(MAX_VERSION_LENGTH)]
    chain_id: ChainId
    genesis: Annotated[tuple[Annotated[bytes, AtMost(8)], ...], AtMost(MAX_GENESIS_PARTS)]
    time_ms: Milliseconds
    height: Unsigned
    peers: Unsigned
    max_peers: Unsigned


@dataclass(frozen=True, slots=True)
class AboutRequest(Record):
    """Asks a node about itself, and whether somebody who speaks for an account is connected to it."""

    about: About
    account: AccountId


@dataclass(frozen=True, slots=True)
class AboutAnswer(Record):
    """What a node says of itself, and whether it knows the asker's account already."""

    about: About
    is_account_online: bool


@dataclass(frozen=True, slots=True)
class PeerAddresses(Record):
    """Addresses of peers, for a peer that looks for more."""

    addresses: Annotated[tuple[Annotated[str, AtMost(256)], ...], AtMost(MAX_ADDRESSES)]


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
