"""What travels beside blocks: evidence, snapshots, proofs for light clients, archives of a chain, the list of bans."""

import io
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from bflnode.consensus.block import Commit, VoteKind, sign_vote
from bflnode.consensus.evidence import make_evidence, verify_evidence
from bflnode.consensus.light import ANY_AGE_MS, Clock, LightChain, Trust, make_light_chain
from bflnode.consensus.merkle import inclusion_proof
from bflnode.consensus.proof_file import (
    Claim,
    ProvenBalance,
    ProvenTransaction,
    TransactionClaim,
    check_proof,
    decode_proof,
    encode_proof,
)
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.snapshot import SNAPSHOT_VERSION, Snapshot, read_state, write_entries
from bflnode.consensus.tables import ACCOUNTS
from bflnode.consensus.transaction import Evidence
from bflnode.consensus.types import BlobId, BlockId
from bflnode.node.p2p.address_book import AddressBook
from bflnode.node.p2p.bans import Bans
from bflnode.node.p2p.local_discovery import announced_addresses
from bflnode.node.p2p.messages import LightChainRequest, SnapshotOffers, SnapshotsRequest
from bflnode.node.p2p.network import PeerId
from bflnode.storage.archive import ArchivedBlock, ArchiveHead, ArchiveReader, ArchiveWriter
from bflnode.storage.errors import StorageError
from tests.consensus.test_proof_file import NOBODY, HarnessHeaders, balance_claim, model_claim
from tests.fuzz.rule import Target, require_readable
from tests.fuzz.targets_files import put, scratch
from tests.fuzz.targets_wire import PEER, chain, of_record

OTHER_PEER = "12D3KooWRawPbxPtP1eZaJpumGnyWX2DcUyd3RQnydr3eAto4Az7"
CHAIN_TEXT = "ab" * 32

PIECE = 1_000
"""Bytes in which a snapshot's file arrives: entries lie across the edges."""


def commits() -> Sequence[Commit]:
    """The commit of each block."""
    return [*(block.last_commit for block in chain().blocks[1:]), chain().last_commit]


@cache
def evidence() -> Evidence:
    """Two votes of one slot by the first validator, which nobody else has ever signed."""
    key, chain_id = chain().keys[0], chain().chain_id
    votes = [sign_vote(key, chain_id, VoteKind.PREVOTE, 2, 0, BlockId(bytes([number]) * 32)) for number in (1, 2)]
    return make_evidence(*votes)


def _evidence(data: bytes) -> bytes:
    """Whatever an evidence is changed to, it accuses nobody of what he didn't do."""
    read = Evidence.from_bytes(data, max_bytes=64 * 1024)
    try:
        verify_evidence(chain().chain_id, read)
    except Rejection:
        pass
    else:
        assert read == evidence(), f"an evidence against {read.offender.hex()} that nobody signed"
    return read.to_bytes()


@cache
def snapshot() -> Snapshot:
    """The state after the last block."""
    entries = sum(1 for _ in chain().tree.scan(b""))
    return Snapshot(SNAPSHOT_VERSION, chain().blocks[-1].header, chain().last_commit, entries, BlobId(bytes(32)))


def _state_file() -> bytes:
    return b"".join(write_entries(chain().tree.scan(b"")))


def _snapshot_state(data: bytes) -> bytes:
    """The file of a state, checked against its header."""
    tree = read_state(snapshot(), _pieces(data))
    return b"".join(write_entries(tree.scan(b"")))


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


@cache
def light_chain() -> LightChain:
    return make_light_chain(HarnessHeaders(chain()), chain().genesis, 0, chain().height)


def _claims() -> Sequence[Claim]:
    block = chain().blocks[-1]
    leaves = [transaction.encoded for transaction in block.transactions]
    return (
        balance_claim(chain(), chain().account(1)),
        balance_claim(chain(), NOBODY),
        TransactionClaim(leaves[0], 0, len(leaves), inclusion_proof(leaves, 0)),
        model_claim(chain(), 0),
    )


def _proof_file(data: bytes) -> bytes:
    """Whatever a file is changed to, what it proves is true."""
    body = decode_proof(data)
    trust = Trust(0, BlockId(chain().chain_id))
    try:
        checked = check_proof(body, trust, Clock(chain().now_ms, ANY_AGE_MS))
    except Rejection:
        return data
    block = chain().blocks[checked.verified.header.height - 1]
    assert checked.verified.header == block.header
    match checked.proven:
        case ProvenTransaction(transaction):
            assert transaction in block.transactions
        case ProvenBalance(account, record) if block is chain().blocks[-1]:
            assert record == ACCOUNTS.get(chain().tree, account)
        case _:
            pass
    return data


def _archive(data: bytes) -> bytes:
    reader = ArchiveReader(io.BytesIO(data), Path("archive"))
    return _written(reader.head, reader.blocks())


def _written(head: ArchiveHead, blocks: Iterable[ArchivedBlock]) -> bytes:
    file = io.BytesIO()
    writer = ArchiveWriter(file, Path("archive"), head)
    for archived in blocks:
        writer.add(archived.block, archived.commit)
    return file.getvalue()


def _archives() -> Sequence[bytes]:
    pairs = list(zip(chain().blocks, commits(), strict=True))
    archived = [ArchivedBlock(block, commit, 0) for block, commit in pairs]
    return [
        _written(ArchiveHead(chain().chain_id, first, first + 1), archived[first - 1 : first + 1]) for first in (1, 4)
    ]


def _bans(data: bytes) -> None:
    """A damaged list is set aside; what is read can be shown, added to and read again."""
    path = put("bans.json", data)
    bans = Bans(lambda: 1_000, path)
    bans.punish("12D3KooW", "again")
    assert Bans(lambda: 1_000, path).get("12D3KooW") is not None


def _ban_lists() -> Sequence[bytes]:
    path = scratch() / "seed-bans.json"
    Bans(lambda: 1_000, path).ban("127.0.0.1", reason="a person says so")
    Bans(lambda: 1_000, path).punish("12D3KooW", "garbage")
    return [path.read_bytes()]


def _address_book(data: bytes) -> None:
    """A damaged book is set aside; what is read can be added to, saved and read again."""
    path = put("peers.json", data)
    book = AddressBook(lambda: 1_000, path)
    address = f"/ip4/192.0.2.7/tcp/1/p2p/{PEER}"
    book.met(PeerId(PEER), address)
    book.save()
    assert address in AddressBook(lambda: 1_000, path).sample(len(book))


def _address_books() -> Sequence[bytes]:
    path = scratch() / "seed-peers.json"
    book = AddressBook(lambda: 1_000, path)
    book.met(PeerId(PEER), f"/ip4/192.0.2.7/tcp/1/p2p/{PEER}")
    book.heard(f"/dns/node.example/tcp/1/p2p/{OTHER_PEER}", PeerId(PEER))
    book.save()
    return [path.read_bytes()]


def _announcement(data: bytes) -> None:
    """What a multicast announcement says, a line an entry: addresses of its own that can be dialled and logged."""
    entries = (line.partition("=") for line in data.decode("utf-8", "replace").split("\n"))
    for address in announced_addresses({name: value for name, _, value in entries}, CHAIN_TEXT):
        require_readable(address)
        book = AddressBook(lambda: 1_000)
        book.heard(address, PeerId(OTHER_PEER))
        assert book.sample(1) in ((), (address,))


def chain_targets() -> dict[str, Target]:
    """By name."""
    return {
        "evidence": Target(decode=_evidence, refusals=(Rejection,), seeds=lambda: [evidence().to_bytes()]),
        "snapshot": of_record(Snapshot, (snapshot(),)),
        "snapshot-state": Target(decode=_snapshot_state, refusals=(Rejection,), seeds=lambda: [_state_file()]),
        "snapshot-offers": of_record(SnapshotOffers, (SnapshotOffers((snapshot().to_bytes(),)),)),
        "snapshots-request": of_record(SnapshotsRequest, (SnapshotsRequest(7),), 256),
        "light-chain": of_record(LightChain, (light_chain(),), 2 * 1024 * 1024 - 1024),
        "light-chain-request": of_record(LightChainRequest, (LightChainRequest(1, 7),), 256),
        "proof-file": Target(
            decode=_proof_file,
            refusals=(Rejection,),
            seeds=lambda: [encode_proof(light_chain(), claim) for claim in _claims()],
        ),
        "archive": Target(decode=_archive, refusals=(StorageError,), seeds=_archives),
        "address-book": Target(decode=_address_book, refusals=(), seeds=_address_books, is_measured=False),
        "announcement": Target(
            decode=_announcement,
            refusals=(),
            seeds=lambda: [f"chain={CHAIN_TEXT}\npeer={PEER}\naddress0=/ip4/192.0.2.7/tcp/1/p2p/{PEER}".encode()],
            limit_bytes=2_048,
        ),
        "bans": Target(decode=_bans, refusals=(), seeds=_ban_lists, is_measured=False),
    }
