"""The signer's log: nothing leaves before it is on disk, nothing is signed twice, whatever a crash leaves behind."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bflnode.consensus.agreement import SignProposal, SignVote, Step, ValidValue
from bflnode.consensus.block import (
    BLOCK_VERSION,
    NIL,
    Block,
    Header,
    Vote,
    VoteKind,
    genesis_commit,
    sign_proposal,
    sign_vote,
)
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.types import BlockId, ChainId, Hash
from bflnode.storage.errors import InUseError, StorageError
from bflnode.storage.signer_wal import FRAME_HEADER, DoubleSignError, SignerWal, SignerWalError

KEY = SecretKey(bytes([7]) * 32)
CHAIN = ChainId(bytes([1]) * 32)
ZERO = Hash(bytes(32))
PREVOTE, PRECOMMIT = VoteKind.PREVOTE, VoteKind.PRECOMMIT
SOME = BlockId(bytes([5]) * 32)
OTHER = BlockId(bytes([6]) * 32)


def block_of(height: int, round_: int = 0, time_ms: int = 1) -> Block:
    header = Header(
        version=BLOCK_VERSION,
        chain_id=CHAIN,
        height=height,
        round=round_,
        time_ms=time_ms,
        parent=BlockId(CHAIN),
        proposer=KEY.account,
        transactions_root=ZERO,
        last_commit_hash=ZERO,
        validators_hash=ZERO,
        next_validators_hash=ZERO,
        state_root=ZERO,
        beacon=ZERO,
    )
    return Block(header, (), genesis_commit(CHAIN))


def vote(kind: VoteKind, height: int, round_: int, block_id: BlockId = SOME) -> SignVote:
    return SignVote(kind, height, round_, block_id)


def proposal(height: int, round_: int, *, time_ms: int = 1) -> SignProposal:
    return SignProposal(height, round_, -1, block_of(height, round_, time_ms), ())


def valid_value(height: int) -> ValidValue:
    block = block_of(height)
    signed = sign_proposal(KEY, CHAIN, height=height, round_=0, valid_round=-1, block_id=block.id)
    return ValidValue(signed, block, (), (sign_vote(KEY, CHAIN, PREVOTE, height, 0, block.id),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "signer.wal"


def open_wal(path: Path) -> SignerWal:
    return SignerWal(path, KEY, CHAIN)


def written(path: Path, *intents: SignVote | SignProposal) -> list[int]:
    """A log with these signatures; the file's size after each of them."""
    sizes = []
    with open_wal(path) as wal:
        for intent in intents:
            wal.sign_vote(intent) if isinstance(intent, SignVote) else wal.sign_proposal(intent)
            sizes.append(path.stat().st_size)
    return sizes


# Signing


def test_a_signed_vote_is_right_and_found_again_after_opening(path: Path) -> None:
    with open_wal(path) as wal:
        assert wal.is_new
        signed = wal.sign_vote(vote(PREVOTE, 3, 1))
    signed.verify_signature(CHAIN)
    assert signed == sign_vote(KEY, CHAIN, PREVOTE, 3, 1, SOME)
    with open_wal(path) as wal:
        assert not wal.is_new
        assert wal.records(3) == (signed,)
        assert wal.mark == (3, 1, Step.PREVOTE)


def test_a_signed_proposal_is_kept_with_its_block(path: Path) -> None:
    with open_wal(path) as wal:
        message = wal.sign_proposal(proposal(1, 0))
    message.proposal.verify_signature(CHAIN)
    with open_wal(path) as wal:
        assert wal.records(1) == (message,)


def test_valid_values_and_votes_come_back_in_the_order_of_writing(path: Path) -> None:
    with open_wal(path) as wal:
        first = wal.sign_vote(vote(PREVOTE, 1, 0))
        wal.persist(valid_value(1))
        last = wal.sign_vote(vote(PRECOMMIT, 1, 0))
    with open_wal(path) as wal:
        assert wal.records(1) == (first, valid_value(1), last)
        assert wal.records(2) == ()


def test_the_same_content_is_signed_again_without_growing_the_file(path: Path) -> None:
    sizes = written(path, proposal(1, 0), vote(PREVOTE, 1, 0), vote(PRECOMMIT, 1, 0))
    with open_wal(path) as wal:
        assert wal.sign_proposal(proposal(1, 0)).block == block_of(1)
        assert wal.sign_vote(vote(PREVOTE, 1, 0)).block_id == SOME
    assert path.stat().st_size == sizes[-1]


@pytest.mark.parametrize(
    "second",
    [
        vote(PRECOMMIT, 5, 2, OTHER),
        vote(PRECOMMIT, 5, 2, NIL),
        vote(PREVOTE, 5, 2, OTHER),
        vote(PRECOMMIT, 5, 1),
        vote(PRECOMMIT, 4, 9),
        proposal(5, 2),
        proposal(4, 0),
    ],
)
@pytest.mark.parametrize("is_reopened", [False, True])
def test_another_signature_in_the_same_or_a_lower_slot_is_refused(
    path: Path, second: SignVote | SignProposal, is_reopened: bool
) -> None:
    wal = open_wal(path)
    wal.sign_vote(vote(PRECOMMIT, 5, 2))
    if is_reopened:
        wal.close()
        wal = open_wal(path)
    with wal, pytest.raises(DoubleSignError, match="height 5, round 2, precommit has been signed already"):
        wal.sign_vote(second) if isinstance(second, SignVote) else wal.sign_proposal(second)
    with open_wal(path) as wal:
        assert wal.mark == (5, 2, Step.PRECOMMIT)


def test_a_second_proposal_in_a_round_is_refused(path: Path) -> None:
    with open_wal(path) as wal:
        wal.sign_proposal(proposal(1, 0))
        with pytest.raises(DoubleSignError):
            wal.sign_proposal(proposal(1, 0, time_ms=2))
        with pytest.raises(DoubleSignError):
            wal.sign_proposal(replace(proposal(1, 0), valid_round=0))


def test_slots_ascend_from_proposal_over_prevote_to_precommit_and_the_next_round(path: Path) -> None:
    written(path, proposal(1, 0), vote(PREVOTE, 1, 0), vote(PRECOMMIT, 1, 0), proposal(1, 1), vote(PREVOTE, 2, 0))


# Durability


def test_a_signature_is_fsynced_before_it_is_returned(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Append, fsync, only then send."""
    calls: list[tuple[str, int]] = []
    real_write, real_fsync = os.write, os.fsync

    def write(descriptor: int, data: bytes) -> int:
        calls.append(("write", real_write(descriptor, data)))
        return calls[-1][1]

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        calls.append(("fsync", os.fstat(descriptor).st_size))

    with open_wal(path) as wal:
        monkeypatch.setattr(os, "write", write)
        monkeypatch.setattr(os, "fsync", fsync)
        for action in (
            lambda: wal.sign_vote(vote(PREVOTE, 1, 0)),
            lambda: wal.persist(valid_value(1)),
            lambda: wal.sign_vote(vote(PRECOMMIT, 1, 0)),
            lambda: wal.sign_proposal(proposal(1, 1)),
        ):
            calls.clear()
            action()
            assert [name for name, _ in calls] == ["write", "fsync"]
            assert calls[-1][1] == path.stat().st_size


def test_a_short_write_is_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:10]))
    written(path, vote(PREVOTE, 1, 0))
    with open_wal(path) as wal:
        assert len(wal.records(1)) == 1


@pytest.mark.parametrize("broken", ["write", "fsync"])
def test_after_a_failed_write_nothing_is_signed_until_the_log_is_opened_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_wal(path) as wal:
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, fail)
            with pytest.raises(StorageError, match="disk is full"):
                wal.sign_vote(vote(PREVOTE, 1, 0))
        with pytest.raises(StorageError, match="an earlier write"):
            wal.sign_vote(vote(PREVOTE, 2, 0))


def test_nothing_that_was_returned_is_lost_by_kill_9(path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from bflnode.consensus.agreement import SignVote\n"
        "from bflnode.consensus.block import NIL, VoteKind\n"
        "from bflnode.consensus.keys import SecretKey\n"
        "from bflnode.consensus.types import ChainId\n"
        "from bflnode.storage.signer_wal import SignerWal\n"
        "wal = SignerWal(Path(sys.argv[1]), SecretKey(bytes([7]) * 32), ChainId(bytes([1]) * 32))\n"
        "start = wal.mark[0] + 1\n"
        "for height in range(start, start + 1_000_000):\n"
        "    wal.sign_vote(SignVote(VoteKind.PREVOTE, height, 0, NIL))\n"
        "    print(height, flush=True)\n"
        "    if height % 7 == 0:\n"
        "        wal.compact(height - 3)\n"
    )
    for lines in (3, 16, 41):
        command = [sys.executable, "-c", program, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(lines):
                last = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            last = max([last, *(int(line) for line in process.stdout if line.endswith("\n"))])
        with open_wal(path) as wal:
            assert wal.mark[0] in (last, last + 1)
            with pytest.raises(DoubleSignError):
                wal.sign_vote(vote(PREVOTE, last, 0))


# What a crash leaves


def test_a_tail_torn_at_any_byte_is_cut_off(path: Path) -> None:
    first, last = written(path, vote(PREVOTE, 1, 0), proposal(1, 1))
    data = path.read_bytes()
    for size in range(first, last):
        path.write_bytes(data[:size])
        with open_wal(path) as wal:
            assert wal.mark == (1, 0, Step.PREVOTE)
            assert path.stat().st_size == first
            wal.sign_proposal(proposal(1, 1))
        assert path.read_bytes() == data


def test_zeros_after_the_last_frame_are_cut_off(path: Path) -> None:
    """The file may have grown before its content reached the disk."""
    (size,) = written(path, vote(PREVOTE, 1, 0))
    path.write_bytes(path.read_bytes() + bytes(4096))
    with open_wal(path) as wal:
        assert len(wal.records(1)) == 1
    assert path.stat().st_size == size


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_a_bit_flipped_anywhere_never_lets_another_vote_be_signed(path: Path) -> None:
    """A damaged record may have been sent: whatever bit is wrong, even of the last record, the log refuses to open."""
    (*_, size) = written(path, vote(PREVOTE, 1, 0), vote(PRECOMMIT, 1, 0), vote(PREVOTE, 2, 0))
    data = path.read_bytes()
    for position in range(size):
        flip(path, position, position % 8)
        with pytest.raises(SignerWalError):
            open_wal(path)
        path.write_bytes(data)
    open_wal(path).close()


@pytest.mark.parametrize("bit", range(32))
def test_a_wrong_length_of_the_last_frame_is_not_taken_for_a_torn_tail(path: Path, bit: int) -> None:
    first, _ = written(path, vote(PREVOTE, 1, 0), vote(PRECOMMIT, 1, 0))
    flip(path, first + bit // 8, bit % 8)
    with pytest.raises(SignerWalError):
        open_wal(path)


def test_the_refusal_says_where_why_and_what_to_do(path: Path) -> None:
    first, _ = written(path, vote(PREVOTE, 8, 0), vote(PRECOMMIT, 8, 0))
    flip(path, first + FRAME_HEADER.size + 3, 0)
    with pytest.raises(SignerWalError) as caught:
        open_wal(path)
    assert str(caught.value) == (
        f"{path}: the signer's log is damaged at byte {first}: refusing to sign, since a forgotten vote could be "
        "contradicted. Put back an intact copy of this very file; or, once the network has decided height 9, move it "
        "away and start again"
    )


def test_a_damaged_log_is_left_as_it_is_and_unlocked(path: Path) -> None:
    written(path, vote(PREVOTE, 1, 0), vote(PRECOMMIT, 1, 0))
    flip(path, 20, 0)
    data = path.read_bytes()
    for _ in range(2):
        with pytest.raises(SignerWalError):
            open_wal(path)
    assert path.read_bytes() == data


# Compaction


def test_compaction_forgets_decided_heights_and_keeps_the_mark(path: Path) -> None:
    with open_wal(path) as wal:
        for height in range(1, 5):
            wal.sign_vote(vote(PRECOMMIT, height, 0))
        wal.compact(4)
        assert wal.records(4) == ()
        wal.compact(4)
    assert path.stat().st_size < 50
    with open_wal(path) as wal:
        assert wal.mark == (4, 0, Step.PRECOMMIT)
        with pytest.raises(DoubleSignError):
            wal.sign_vote(vote(PRECOMMIT, 4, 0))
        wal.sign_vote(vote(PREVOTE, 5, 0))


def test_compaction_keeps_the_records_of_later_heights(path: Path) -> None:
    with open_wal(path) as wal:
        wal.sign_vote(vote(PRECOMMIT, 1, 0))
        kept = wal.sign_vote(vote(PREVOTE, 2, 0))
        wal.compact(1)
        later = wal.sign_vote(vote(PRECOMMIT, 2, 0))
    with open_wal(path) as wal:
        assert wal.records(2) == (kept, later)


def fail_write(descriptor: int, data: bytes) -> int:
    raise OSError(errno.EIO, "Input/output error")


def fail_replace(self: Path, target: Path) -> Path:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(("owner", "name", "failure"), [(os, "write", fail_write), (Path, "replace", fail_replace)])
def test_a_compaction_that_fails_loses_nothing_and_stops_signing(
    path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, failure: Callable[..., object]
) -> None:
    with open_wal(path) as wal:
        signed: Vote = wal.sign_vote(vote(PRECOMMIT, 1, 0))
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failure)
            with pytest.raises(StorageError, match="compacting the signer's log failed"):
                wal.compact(1)
        with pytest.raises(StorageError, match="an earlier write"):
            wal.sign_vote(vote(PREVOTE, 2, 0))
    with open_wal(path) as wal:
        assert wal.records(1) == (signed,)


# One signer only


def test_a_second_signer_is_kept_out_even_after_a_compaction(path: Path) -> None:
    with open_wal(path) as wal:
        wal.sign_vote(vote(PRECOMMIT, 1, 0))
        wal.compact(1)
        with pytest.raises(InUseError, match="another process signs with this log"):
            open_wal(path)
    open_wal(path).close()


def test_closing_twice_is_harmless(path: Path) -> None:
    wal = open_wal(path)
    wal.close()
    wal.close()
    with pytest.raises(StorageError):
        wal.sign_vote(vote(PREVOTE, 1, 0))


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"missing/signer\.wal"):
        open_wal(tmp_path / "missing" / "signer.wal")
