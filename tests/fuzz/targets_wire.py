"""What peers send: canonical records, frames, proofs, weights."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
import trio
from libp2p.network.stream.exceptions import StreamEOF

from bflnode.consensus.agreement import MAX_STATUS_BYTES, RoundStatus, Status, Step, Tally
from bflnode.consensus.blob import CHUNK_BYTES, MAX_MANIFEST_BYTES, BlobManifest, manifest_of
from bflnode.consensus.block import (
    NIL,
    Block,
    Commit,
    ProposalMessage,
    Vote,
    VoteKind,
    sign_proposal,
    sign_vote,
)
from bflnode.consensus.clustering import centroids, cluster, matrix_from_triangle, triangle_from_matrix
from bflnode.consensus.encoding import decode, encode
from bflnode.consensus.records import Record
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.state_proof import MAX_PROOF_BYTES, StateProof, prove, verify_proof
from bflnode.consensus.task import ProbeMode
from bflnode.consensus.transaction import MAX_AGGREGATE_BYTES, Transaction
from bflnode.fl.weights import InvalidWeights, Tensor, parse, read_table, serialize, table_of
from bflnode.node.p2p.about import chain_fault, genesis_digests, version_fault
from bflnode.node.p2p.messages import (
    MAX_ABOUT_BYTES,
    MAX_PUSH_BYTES,
    About,
    AboutAnswer,
    AboutRequest,
    Batch,
    BlocksRequest,
    ChunkRequest,
    FinalBlock,
    FinalBlocks,
    Hello,
    ManifestRequest,
    PeerAddresses,
    hello_payload,
)
from bflnode.node.p2p.streams import MAX_REQUEST_BYTES, FrameStream, TransportError, framed
from tests.consensus.harness import Harness
from tests.fuzz.rule import Target, require_readable

PEER = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
CLIENTS = 5
"""Of the matrix target: a triangle of ten entries."""


@cache
def chain() -> Harness:
    """A chain with a learning round of every kind of transaction that such a round has."""
    harness = Harness(actors=4, probe_mode=ProbeMode.AGGREGATOR)
    harness.register_all()
    harness.play_round()
    harness.block(harness.transfer(0, harness.account(1), 5), harness.leave(2))
    return harness


def blocks() -> Sequence[Block]:
    return chain().blocks


def transactions() -> Sequence[Transaction]:
    """One of each kind."""
    kinds = {item.kind: item for block in blocks() for item in block.transactions}
    return tuple(kinds.values())


def votes(block: Block) -> tuple[Vote, ...]:
    """Prevotes of all validators."""
    harness = chain()
    keys = [harness.keys[actor] for actor in harness.validators]
    return tuple(sign_vote(key, harness.chain_id, VoteKind.PREVOTE, block.height, 1, block.id) for key in keys)


def proposals() -> Sequence[ProposalMessage]:
    """A first proposal and a re-proposal with its certificate."""
    key, block = chain().keys[0], blocks()[-1]
    make = partial(sign_proposal, key, chain().chain_id, height=block.height, block_id=block.id)
    first = ProposalMessage(make(round_=0, valid_round=-1), block, ())
    return (first, ProposalMessage(make(round_=2, valid_round=1), block, votes(block)))


def statuses() -> Sequence[Status]:
    block = blocks()[-1]
    tally = Tally(block.id, b"\x0f")
    rounds = (RoundStatus(0, (block.id,), (tally, Tally(NIL, b"\x01")), ()), RoundStatus(1, (), (tally,), (tally,)))
    return (Status(block.height, 1, Step.PREVOTE, rounds), Status(1, 0, Step.PROPOSE, ()))


def hellos() -> Sequence[Hello]:
    key, chain_id = chain().keys[0], chain().chain_id
    address = f"/ip4/127.0.0.1/tcp/26656/p2p/{PEER}"
    signature = key.sign("hello", chain_id, hello_payload(PEER, key.account))
    return (Hello(chain_id, "1.0", key.account, 7, 1_700_000_000_000, (address,) * 2, signature),)


def about(protocol: int) -> About:
    """What a node says of itself to anybody."""
    digests = genesis_digests(chain().genesis)
    return About(protocol, protocol, "1.0", chain().chain_id, digests, 1_700_000_000_000, 7, 3, 64)


def _about_answer(data: bytes) -> bytes:
    """What another node says of itself, and what is told to the operator about the difference."""
    answer = AboutAnswer.from_bytes(data, max_bytes=MAX_ABOUT_BYTES)
    for fault in (version_fault(about(1), answer.about), chain_fault(about(1), answer.about)):
        if fault is not None:
            require_readable(fault)
    return answer.to_bytes()


def finals() -> Sequence[FinalBlock]:
    after = blocks()[1:]
    return tuple(FinalBlock(block, following.last_commit) for block, following in zip(blocks(), after, strict=False))


def commits() -> Sequence[Commit]:
    return tuple(final.commit for final in finals())


def manifests() -> Sequence[BlobManifest]:
    return (manifest_of([b"x" * (2 * CHUNK_BYTES + 5)]), manifest_of([]))


def of_record(record_type: type[Record], seeds: Sequence[Record], limit_bytes: int = 64 * 1024) -> Target:
    """A record read from its canonical bytes."""
    return Target(
        decode=lambda data: record_type.from_bytes(data, max_bytes=limit_bytes).to_bytes(),
        refusals=(Rejection,),
        seeds=lambda: [seed.to_bytes() for seed in seeds],
        limit_bytes=limit_bytes,
    )


def _canonical(data: bytes) -> bytes:
    return encode(decode(data, max_bytes=64 * 1024))


def _final_blocks(data: bytes) -> bytes:
    """An answer to BLOCKS, with the blocks in it."""
    answer = FinalBlocks.from_bytes(data, max_bytes=MAX_PUSH_BYTES)
    inner = [FinalBlock.from_bytes(block, max_bytes=MAX_PUSH_BYTES).to_bytes() for block in answer.blocks]
    return FinalBlocks(tuple(inner)).to_bytes()


@cache
def _proofs() -> tuple[tuple[bytes, StateProof, bytes | None], ...]:
    tree = chain().tree
    present = [key for key, _ in tree.scan(b"")][::7]
    keys = (*present, b"account/none", b"cell/zzz")
    return tuple((key, prove(tree, key), tree.get(key)) for key in keys)


def _proof(data: bytes) -> bytes:
    """Whatever a proof is changed to, what it proves is true."""
    proof = StateProof.from_bytes(data, max_bytes=MAX_PROOF_BYTES)
    for key, _, value in _proofs():
        try:
            shown = verify_proof(chain().tree.root, key, proof)
        except Rejection:
            continue
        assert shown == value, f"a proof shows {shown!r} under {key!r}, the state has {value!r}"
    return proof.to_bytes()


def _triangle(data: bytes) -> bytes:
    return triangle_from_matrix(matrix_from_triangle(data, CLIENTS))


def _triangles() -> Sequence[bytes]:
    entries = CLIENTS * (CLIENTS - 1) // 2
    values = (0, 10_000, -10_000, 3_217)
    return [np.full(entries, value, dtype=">i2").tobytes() for value in values]


def _clusters(data: bytes) -> bytes:
    """A number of clusters, and a triangle of up to 16 clients: whatever it says, everybody finds clusters in it."""
    wanted, triangle = 1 + data[0] % 6 if data else 1, data[1:]
    clients = next((count for count in range(1, 17) if count * (count - 1) == len(triangle)), CLIENTS)
    matrix = matrix_from_triangle(triangle, clients)
    labels = cluster(matrix, wanted)
    found = max(labels) + 1
    assert len(labels) == clients
    assert list(dict.fromkeys(labels)) == list(range(found)), labels
    assert found <= max(wanted, 1) or clients < wanted
    assert [labels[client] for client in centroids(matrix, labels)] == list(range(found))
    assert cluster(matrix, wanted) == labels
    return data[:1] + triangle_from_matrix(matrix)


def _cluster_inputs() -> Sequence[bytes]:
    """One cluster, none, and two that are plain; of 5 and of 12 clients."""
    generator = np.random.default_rng(3)
    sizes = [clients * (clients - 1) // 2 for clients in (1, 2, 5, 12)]
    plain = [np.full(size, value) for size in sizes for value in (10_000, -10_000)]
    drawn = [generator.integers(-10_000, 10_001, size) for size in sizes]
    return [bytes([1]) + entries.astype(">i2").tobytes() for entries in (*plain, *drawn)]


def _weights(data: bytes) -> bytes:
    """Weights against the table that they state, and against another."""
    table = read_table(data)
    tensors = parse(data, table)
    if table != table_of(_TENSORS):
        try:
            parse(data, table_of(_TENSORS))
        except InvalidWeights:
            pass
        else:
            raise AssertionError("weights of one table were taken for those of another")
    return serialize(tensors)


_TENSORS: dict[str, Tensor] = {
    "layer.bias": np.array([0.5, -2.0], dtype=np.float32),
    "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "norm.count": np.array(3, dtype=np.int64),
}


class _ByteStream:
    """The reading side of a stream that holds some bytes and then ends; pieces are small, as a network's are."""

    PIECE = 7

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    async def read(self, size: int) -> bytes:
        if self._position == len(self._data):
            raise StreamEOF("the stream ended")
        piece = self._data[self._position : self._position + min(size, self.PIECE)]
        self._position += len(piece)
        return piece


def _frames(data: bytes) -> bytes:
    """All frames of a stream that ends between two of them."""

    async def read() -> list[bytes]:
        stream = FrameStream(_ByteStream(data))  # type: ignore[arg-type]  # frames are read by `read` alone
        frames = []
        while (frame := await stream.receive(MAX_REQUEST_BYTES)) is not None:
            frames.append(frame)
        return frames

    return b"".join(framed(frame) for frame in trio.run(read))


def wire_targets() -> dict[str, Target]:
    """By name."""
    harness, first = chain(), replace(blocks()[0], transactions=())
    block = blocks()[-1]
    return {
        "canonical": Target(
            decode=_canonical,
            refusals=(Rejection,),
            seeds=lambda: [block.encoded, encode((1, -1, True, "x", b"y", ()))],
        ),
        "transaction": of_record(Transaction, transactions(), MAX_AGGREGATE_BYTES),
        "batch": of_record(Batch, (Batch(tuple(transactions())[:3]), Batch(()))),
        "block": of_record(Block, (block, first), MAX_PUSH_BYTES),
        "final-block": of_record(FinalBlock, finals()[-2:], MAX_PUSH_BYTES),
        "blocks-answer": Target(
            decode=_final_blocks,
            refusals=(Rejection,),
            seeds=lambda: [FinalBlocks(tuple(final.to_bytes() for final in finals()[:2])).to_bytes()],
            limit_bytes=MAX_PUSH_BYTES,
        ),
        "vote": of_record(Vote, votes(block), 512),
        "proposal": of_record(ProposalMessage, proposals(), MAX_PUSH_BYTES),
        "commit": of_record(Commit, (harness.last_commit, *commits()[-1:])),
        "status": of_record(Status, statuses(), MAX_STATUS_BYTES),
        "hello": of_record(Hello, hellos(), 16 * 1024),
        "about": of_record(AboutRequest, (AboutRequest(about(1), harness.account(0)),), MAX_ABOUT_BYTES),
        "about-answer": Target(
            decode=_about_answer,
            refusals=(Rejection,),
            seeds=lambda: [AboutAnswer(about(version), True).to_bytes() for version in (1, 9)],
            limit_bytes=MAX_ABOUT_BYTES,
        ),
        "peer-addresses": of_record(PeerAddresses, (PeerAddresses((f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}",)),), 16 * 1024),
        "blocks-request": of_record(BlocksRequest, (BlocksRequest(1, 32),), 64),
        "manifest-request": of_record(ManifestRequest, (ManifestRequest(manifests()[0].id),), 256),
        "chunk-request": of_record(ChunkRequest, (ChunkRequest(manifests()[0].id, 3),), 256),
        "manifest": of_record(BlobManifest, manifests(), MAX_MANIFEST_BYTES),
        "state-proof": Target(
            decode=_proof, refusals=(Rejection,), seeds=lambda: [proof.to_bytes() for _, proof, _ in _proofs()]
        ),
        "similarities": Target(decode=_triangle, refusals=(Rejection,), seeds=_triangles),
        "clusters": Target(
            decode=_clusters, refusals=(Rejection,), seeds=_cluster_inputs, limit_bytes=241, cpu_per_byte_s=2e-3
        ),
        "weights": Target(decode=_weights, refusals=(InvalidWeights,), seeds=lambda: [serialize(_TENSORS)]),
        "frames": Target(
            decode=_frames,
            refusals=(Rejection, TransportError),
            seeds=lambda: [framed(b"") + framed(b"abc") + framed(b"x" * 300)],
            limit_bytes=16 * 1024,
            cpu_per_byte_s=8e-6,  # an empty frame has four bytes and costs an await
        ),
    }
