"""The signer's write-ahead log: what this key has signed, so that it never signs something else in its place.

Its own file, outside the database, so that wiping the database can't cause a double signature. All signing of votes and
proposals goes through it: sign, append, fsync, and only then is the message returned for sending. What to sign is
decided in `bflnode.consensus.machine`.

    file   = frame*
    frame  = [u32 length][u32 crc32c of record][record]       big-endian
    record = [u8 kind][canonical bytes]

A crash can only tear the last frame, whose message was never sent: a torn tail is cut off on opening. Anything else
that is wrong may hide a message that was sent, so the log refuses to be used: a bad frame before the tail, and also a
last frame that is complete but doesn't match its checksum.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self, TypeAlias

from crc32c import crc32c

from bflnode.consensus.agreement import MAX_HEIGHT, SignerRecord, SignProposal, SignVote, Step, ValidValue
from bflnode.consensus.block import MAX_BLOCK_BYTES, MAX_ROUND, ProposalMessage, Vote, sign_proposal, sign_vote
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.records import Record
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.types import Between, ChainId

from .durable import sync_folder
from .errors import CorruptStore, InUseError, StorageError, from_os_error
from .failpoints import Operation, after, before

MAX_RECORD_BYTES = MAX_BLOCK_BYTES + 256 * 1024
"""Largest record: a block and two certificates of 256 prevotes (about 150 bytes each)."""

FRAME_HEADER = struct.Struct(">II")

Slot: TypeAlias = tuple[int, int, Step]
"""Height, round and step of a signature; a signer's slots only ascend."""


class SignerWalError(CorruptStore):
    """The log is damaged: signing with it could contradict what was signed before."""


class DoubleSignError(StorageError):
    """Refused to sign: this slot, or a later one, has been signed with other content."""


@dataclass(frozen=True, slots=True)
class Mark(Record):
    """Nothing is signed below this slot, and only the same content in it. Survives compaction."""

    height: Annotated[int, Between(0, MAX_HEIGHT)]
    round: Annotated[int, Between(0, MAX_ROUND)]
    step: Step


class _Kind(IntEnum):
    MARK = 1
    VOTE = 2
    PROPOSAL = 3
    VALID_VALUE = 4


_CLASSES: dict[_Kind, type[Mark | Vote | ProposalMessage | ValidValue]] = {
    _Kind.MARK: Mark,
    _Kind.VOTE: Vote,
    _Kind.PROPOSAL: ProposalMessage,
    _Kind.VALID_VALUE: ValidValue,
}
_KINDS = {record_class: kind for kind, record_class in _CLASSES.items()}

_NOTHING_SIGNED: Slot = (0, 0, Step.PROPOSE)
"""Below every slot: heights start at 1."""


class SignerWal:
    """The open log of one key on one chain, locked against other processes.

    Attributes:
        path: the log's file; beside it lie a lock file and, during compaction, a temporary file.
        is_new: whether it held nothing when it was opened. On a chain that has blocks already, whatever this key signed
            for the next one is forgotten; `abstain` says where the log begins.
    """

    def __init__(self, path: Path, key: SecretKey, chain_id: ChainId) -> None:
        """Open or create the log, and read it.

        Raises:
            InUseError: another process has it open.
            SignerWalError: it is damaged.
            StorageError: the disk fails.
        """
        self.path = path
        self._key = key
        self._chain_id = chain_id
        self._records: list[SignerRecord] = []
        self._mark = _NOTHING_SIGNED
        self._is_broken = False
        self._lock = _lock(path.with_name(path.name + ".lock"))
        try:
            is_missing = not path.exists()
            if is_missing:
                before(Operation.WAL_CREATE)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            sync_folder(path.parent)  # also of a log that is there: who renamed or made it may have died before this
            if is_missing:
                after(Operation.WAL_CREATE)
        except OSError as error:
            os.close(self._lock)
            raise from_os_error(path, "opening the signer's log", error) from error
        try:
            self._load()
        except OSError as error:
            self.close()
            raise from_os_error(path, "reading the signer's log", error) from error
        except SignerWalError:
            self.close()
            raise
        self.is_new = self._mark == _NOTHING_SIGNED and not self._records

    @property
    def mark(self) -> Slot:
        """The highest slot signed: (height, round, step)."""
        return self._mark

    def records(self, height: int) -> tuple[SignerRecord, ...]:
        """What was written for a height, in order: what `Machine.start` takes after a restart."""
        return tuple(record for record in self._records if _height_of(record) == height)

    def persist(self, record: ValidValue) -> None:
        """Append a record that a later signature relies on; it is on disk when this returns.

        Raises:
            StorageError: the disk fails; nothing more is signed until the log is opened again.
        """
        self._append(record)

    def abstain(self, height: int) -> None:
        """Never sign for heights up to this one: what was signed for them is not in this log.

        Raises:
            StorageError: the disk fails.
        """
        mark = Mark(height, MAX_ROUND, Step.PRECOMMIT)
        slot = (mark.height, mark.round, mark.step)
        if self._mark < slot:
            self._write(mark)
            self._mark = slot

    def sign_vote(self, intent: SignVote) -> Vote:
        """Sign a vote; it is on disk when this returns. The same vote again gives the same signature.

        Raises:
            DoubleSignError: another vote was signed in this slot, or something in a later one.
            StorageError: the disk fails.
        """
        slot = (intent.height, intent.round, Step(intent.kind))
        for record in self._records:
            if isinstance(record, Vote) and _slot_of(record) == slot and record.block_id == intent.block_id:
                return record
        self._refuse_below(slot)
        vote = sign_vote(self._key, self._chain_id, intent.kind, intent.height, intent.round, intent.block_id)
        self._append(vote)
        self._mark = slot
        return vote

    def sign_proposal(self, intent: SignProposal) -> ProposalMessage:
        """Sign a proposal; it is on disk, with its block, when this returns. The same again gives the same message.

        Raises:
            DoubleSignError: another proposal was signed in this slot, or something in a later one.
            StorageError: the disk fails.
        """
        slot = (intent.height, intent.round, Step.PROPOSE)
        content = (intent.valid_round, intent.block.id)
        for message in (record for record in self._records if isinstance(record, ProposalMessage)):
            signed = message.proposal
            if _slot_of(message) == slot and (signed.valid_round, signed.block_id) == content:
                return message
        self._refuse_below(slot)
        proposal = sign_proposal(
            self._key,
            self._chain_id,
            height=intent.height,
            round_=intent.round,
            valid_round=intent.valid_round,
            block_id=intent.block.id,
        )
        message = ProposalMessage(proposal, intent.block, intent.certificate)
        self._append(message)
        self._mark = slot
        return message

    def compact(self, decided_height: int) -> None:
        """Forget the records of heights that are decided and applied; the mark stays.

        The new file replaces the old one in one rename: a crash leaves one of them whole.

        Raises:
            StorageError: the disk fails.
        """
        kept = [record for record in self._records if _height_of(record) > decided_height]
        if len(kept) == len(self._records):
            return
        temporary = self.path.with_name(self.path.name + ".new")
        frames = [_frame(Mark(*self._mark)), *(_frame(record) for record in kept)]
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                _write(descriptor, b"".join(frames))
                before(Operation.WAL_RENAME)
                temporary.replace(self.path)
                sync_folder(self.path.parent)
                after(Operation.WAL_RENAME)
            except OSError:
                os.close(descriptor)
                raise
        except OSError as error:
            self._is_broken = True
            raise from_os_error(self.path, "compacting the signer's log", error) from error
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._records = kept

    def close(self) -> None:
        """Close the file and give up the lock; a second call does nothing."""
        for descriptor in (self._descriptor, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_below(self, slot: Slot) -> None:
        if slot <= self._mark:
            cause = f"refused to sign for {_slot_text(slot)}, because {_slot_text(self._mark)} has been signed already"
            remedy = "If this key also signs elsewhere, stop one of the two; otherwise report this as a defect"
            raise DoubleSignError(self.path, cause, remedy)

    def _append(self, record: SignerRecord) -> None:
        self._write(record)
        self._records.append(record)

    def _write(self, record: Mark | SignerRecord) -> None:
        """Write and fsync. After a failed write the file's end is unknown, so the log must be opened again."""
        if self._is_broken or self._descriptor < 0:
            raise StorageError(
                self.path, "an earlier write to the signer's log failed, or it is closed", "Restart the node"
            )
        try:
            _write(self._descriptor, _frame(record))
        except OSError as error:
            self._is_broken = True
            raise from_os_error(self.path, "writing the signer's log", error) from error

    def _load(self) -> None:
        """Read all frames, cut off a torn tail and leave the file positioned at its end.

        What is read will be sent again, so it must be on disk first: who wrote it may have died before its fsync.
        """
        os.fsync(self._descriptor)
        data = self.path.read_bytes()
        end = 0
        try:
            for record, position in read_log(data):
                self._take(record)
                end = position
        except LogFault as fault:
            raise self._damage(fault.position) from fault
        if end < len(data):
            before(Operation.WAL_TRUNCATE)
            os.ftruncate(self._descriptor, end)
            os.fsync(self._descriptor)
            after(Operation.WAL_TRUNCATE)
        os.lseek(self._descriptor, end, os.SEEK_SET)

    def _take(self, record: Mark | SignerRecord) -> None:
        if isinstance(record, Mark):
            self._mark = max(self._mark, (record.height, record.round, record.step))
            return
        self._records.append(record)
        if not isinstance(record, ValidValue):
            self._mark = max(self._mark, _slot_of(record))

    def _damage(self, position: int) -> SignerWalError:
        height = max((_height_of(record) for record in self._records), default=self._mark[0])
        return SignerWalError(
            self.path,
            f"the signer's log is damaged at byte {position}: refusing to sign, since a forgotten vote could be "
            "contradicted",
            f"Put back an intact copy of this very file; or, once the network has decided height {height + 1}, move it "
            "away and start again",
        )


class LogFault(Exception):
    """A log's bytes are wrong in a way that no crash explains.

    Attributes:
        position: of the bad frame.
    """

    def __init__(self, position: int) -> None:
        self.position = position
        super().__init__(f"a bad frame at byte {position}")


def read_log(data: bytes) -> Iterator[tuple[Mark | SignerRecord, int]]:
    """The records of a log, each with the position of its end; a torn tail is left out.

    Raises:
        LogFault: a bad frame that isn't a torn tail.
    """
    position = 0
    while position < len(data):
        body = _read_frame(data, position)
        if body is None:
            if not _is_torn(data, position):
                raise LogFault(position)
            return
        try:
            record = _CLASSES[_Kind(body[0])].from_bytes(body[1:], max_bytes=MAX_RECORD_BYTES)
        except (ValueError, Rejection) as error:
            raise LogFault(position) from error
        position += FRAME_HEADER.size + len(body)
        yield record, position


def _lock(path: Path) -> int:
    """Lock a file that compaction never replaces."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise from_os_error(path, "opening the lock of the signer's log", error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InUseError(path, "another process signs with this log", "Stop it first: two would sign twice") from error
    except OSError as error:
        os.close(descriptor)
        raise from_os_error(path, "locking the signer's log", error) from error
    return descriptor


def _frame(record: Mark | SignerRecord) -> bytes:
    body = bytes([_KINDS[type(record)]]) + record.to_bytes()
    assert len(body) <= MAX_RECORD_BYTES, f"a record of {len(body)} bytes"
    return FRAME_HEADER.pack(len(body), crc32c(body)) + body


def _read_frame(data: bytes, position: int) -> bytes | None:
    """The record of the frame at a position, or None if there is no whole and right frame."""
    start = position + FRAME_HEADER.size
    if start > len(data):
        return None
    length, checksum = FRAME_HEADER.unpack_from(data, position)
    if not 1 <= length <= min(MAX_RECORD_BYTES, len(data) - start):
        return None
    record = data[start : start + length]
    return record if crc32c(record) == checksum else None


def _is_torn(data: bytes, position: int) -> bool:
    """Whether a bad frame is what a crash leaves of the last append.

    That is the beginning of a frame, or zeros where the file grew before its content reached the disk. It is not
    torn if the frame is all there, if it would be right were it not for its length, or if a right frame follows.
    """
    rest = data[position:]
    if not any(rest):
        return True
    if len(rest) < FRAME_HEADER.size:
        return True
    length, checksum = FRAME_HEADER.unpack_from(rest)
    record = rest[FRAME_HEADER.size :]
    if not len(record) < length <= MAX_RECORD_BYTES or crc32c(record) == checksum:
        return False
    return all(_read_frame(data, later) is None for later in range(position + 1, len(data)))


def _write(descriptor: int, data: bytes) -> None:
    """Write everything at the file's position and fsync."""
    view = memoryview(data)
    before(Operation.WAL_WRITE)
    while view:
        view = view[os.write(descriptor, view) :]
    after(Operation.WAL_WRITE)
    before(Operation.WAL_FSYNC)
    os.fsync(descriptor)
    after(Operation.WAL_FSYNC)


def _height_of(record: SignerRecord) -> int:
    return record.height if isinstance(record, Vote) else record.proposal.height


def _slot_of(record: Vote | ProposalMessage) -> Slot:
    if isinstance(record, Vote):
        return record.height, record.round, Step(record.kind)
    return record.proposal.height, record.proposal.round, Step.PROPOSE


def _slot_text(slot: Slot) -> str:
    height, round_, step = slot
    return f"height {height}, round {round_}, {Step(step).name.lower()}"
