"""A node's side of its trainer process: starts it with the first job, queues jobs, kills and restarts it.

The process is expendable. A job that is cancelled kills it, a crash fails one job, and the next job gets a fresh one;
nothing is lost, since jobs read and write files that appear whole or not at all.
How processes are started is passed in: `worker_start.start_worker` forks from a testnet's launcher or spawns.
"""

import logging
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, overload

import trio

from .process_messages import MAX_SOCKET_PATH_BYTES, RECEIVE_BYTES, FrameReader, ProcessMessageError
from .worker_protocol import (
    WORKER_MESSAGES,
    AggregateJob,
    AggregateResult,
    EvaluateJob,
    EvaluateResult,
    Hello,
    InitialModelJob,
    InitialModelResult,
    Job,
    JobDone,
    JobRefused,
    MatrixJob,
    MatrixResult,
    OwnProbeJob,
    OwnProbeResult,
    PredictJob,
    PredictResult,
    Progress,
    RefusalReason,
    Result,
    RunJob,
    TrainJob,
    TrainResult,
    UnsettledJob,
    UnsettledResult,
    UpdateMatrixJob,
    WarmUpJob,
    WarmUpResult,
    WorkerMessage,
)

START_DEADLINE_S = 60
"""A worker connects before it imports torch: half a second alone, ten where many start on two cores."""

KILL_DEADLINE_S = 10
"""SIGKILL takes effect once a blocking disk operation returns."""

MAX_LOG_BYTES = 1024 * 1024
"""A log larger than this is moved aside when a worker starts; one older log is kept."""

LOG_TAIL_LINES = 12
"""Enough for the end of a traceback."""

_log = logging.getLogger(__name__)


class TrainerError(Exception):
    """The trainer process couldn't be started or ended in the middle of a job. The next job starts a fresh one."""


class JobError(TrainerError):
    """A job that the trainer refused; the process is well.

    Attributes:
        reason: whose fault it is.
        explanation: what is wrong with which file.
    """

    def __init__(self, job: Job, reason: RefusalReason, explanation: str) -> None:
        super().__init__(f"{type(job).__name__} refused ({reason}): {explanation}")
        self.reason = reason
        self.explanation = explanation


class WorkerProcess(Protocol):
    """A started trainer process."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def kill(self) -> None:
        """Send SIGKILL; does nothing when it has ended."""

    def has_ended(self) -> bool:
        """Whether it has ended; doesn't wait."""

    async def wait(self) -> str:
        """Wait until it has ended, free its resources and say how it ended, for people."""


StartWorker = Callable[[Path, Path], Awaitable[WorkerProcess]]
"""Starts a worker, given the path of the socket it shall connect to and the path of its log."""

OnProgress = Callable[[float, str], None]
"""Called with a fraction in [0, 1] and a few words."""

Answer = TypeVar("Answer", bound=Result)


@dataclass(frozen=True, slots=True)
class TrainerStatus:
    """What a trainer is doing, for status pages.

    Attributes:
        job: name of the job at hand, None when idle.
        fraction: how far it is, in [0, 1].
        note: the same in words.
        waiting: number of jobs queued behind it.
        process_id: of the worker, None when there is none.
    """

    job: str | None
    fraction: float
    note: str
    waiting: int
    process_id: int | None


@dataclass(slots=True)
class _LiveWorker:
    """A worker that said hello."""

    process: WorkerProcess
    stream: trio.SocketStream
    reader: FrameReader[WorkerMessage]
    log_start: int


class Trainer:
    """Runs jobs in one worker process, one at a time, in the order in which they were asked for."""

    def __init__(self, listener: trio.SocketListener, socket_path: Path, log_path: Path, start: StartWorker) -> None:
        self._listener = listener
        self._socket_path = socket_path
        self._log_path = log_path
        self._start = start
        self._turn = trio.StrictFIFOLock()
        self._worker: _LiveWorker | None = None
        self._next_number = 0
        self._job: Job | None = None
        self._fraction = 0.0
        self._note = ""

    def status(self) -> TrainerStatus:
        """What is going on right now."""
        return TrainerStatus(
            job=type(self._job).__name__ if self._job else None,
            fraction=self._fraction,
            note=self._note,
            waiting=self._turn.statistics().tasks_waiting,
            process_id=self._worker.process.pid if self._worker else None,
        )

    @overload
    async def run(self, job: TrainJob, on_progress: OnProgress | None = None) -> TrainResult: ...
    @overload
    async def run(self, job: AggregateJob, on_progress: OnProgress | None = None) -> AggregateResult: ...
    @overload
    async def run(self, job: MatrixJob, on_progress: OnProgress | None = None) -> MatrixResult: ...
    @overload
    async def run(self, job: UpdateMatrixJob, on_progress: OnProgress | None = None) -> MatrixResult: ...
    @overload
    async def run(self, job: UnsettledJob, on_progress: OnProgress | None = None) -> UnsettledResult: ...
    @overload
    async def run(self, job: OwnProbeJob, on_progress: OnProgress | None = None) -> OwnProbeResult: ...
    @overload
    async def run(self, job: EvaluateJob, on_progress: OnProgress | None = None) -> EvaluateResult: ...
    @overload
    async def run(self, job: PredictJob, on_progress: OnProgress | None = None) -> PredictResult: ...
    @overload
    async def run(self, job: InitialModelJob, on_progress: OnProgress | None = None) -> InitialModelResult: ...
    @overload
    async def run(self, job: WarmUpJob, on_progress: OnProgress | None = None) -> WarmUpResult: ...

    async def run(self, job: Job, on_progress: OnProgress | None = None) -> Result:
        """Run a job when its turn comes. Cancelling it kills the process and leaves no half-written file behind.

        Raises:
            JobError: the job's input is at fault, or too large.
            TrainerError: the process couldn't be started, or crashed during the job.
        """
        async with self._turn:
            self._job, self._fraction, self._note = job, 0.0, "starting"
            is_answered = False
            try:
                worker = await self._ready_worker()
                answer = await self._converse(worker, job, on_progress)
                is_answered = True
            finally:
                self._job, self._fraction, self._note = None, 0.0, ""
                if not is_answered:
                    await self.stop()
        if isinstance(answer, JobRefused):
            raise JobError(job, RefusalReason(answer.reason), answer.explanation)
        return answer.result

    async def stop(self) -> None:
        """End the worker, if there is one; the next job starts another."""
        worker, self._worker = self._worker, None
        if worker is not None:
            await _end(worker)

    async def _ready_worker(self) -> _LiveWorker:
        if self._worker is not None and self._worker.process.has_ended():
            how = await self._worker.process.wait()
            _log.warning("the trainer process ended while idle (%s), starting another", how)
            await self.stop()
        if self._worker is None:
            self._worker = await self._start_worker()
        return self._worker

    async def _start_worker(self) -> _LiveWorker:
        _rotate(self._log_path)
        log_start = self._log_path.stat().st_size if self._log_path.exists() else 0
        try:
            process = await self._start(self._socket_path, self._log_path)
        except OSError as error:
            raise TrainerError(f"the trainer process couldn't be started: {error}") from error
        ended: list[str] = []
        worker: _LiveWorker | None = None
        is_started = False

        async def watch_exit() -> None:
            ended.append(await process.wait())
            nursery.cancel_scope.cancel()

        try:
            with trio.move_on_after(START_DEADLINE_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(watch_exit)
                    stream, reader = await self._accept(process.pid)
                    worker = _LiveWorker(process, stream, reader, log_start)
                    nursery.cancel_scope.cancel()
            is_started = worker is not None
        finally:
            if not is_started:
                process.kill()
                with trio.move_on_after(KILL_DEADLINE_S, shield=True):
                    await process.wait()
        if worker is None:
            how = ended[0] if ended else f"it didn't connect within {START_DEADLINE_S} s"
            raise TrainerError(f"the trainer process didn't start ({how}).{self._log_tail(log_start)}")
        _log.info("trainer process %d started", process.pid)
        return worker

    async def _accept(self, process_id: int) -> tuple[trio.SocketStream, FrameReader[WorkerMessage]]:
        """The connection of the worker with this process id: one that was killed may still have one waiting."""
        while True:
            stream = await self._listener.accept()
            reader = FrameReader(WORKER_MESSAGES)
            try:
                hello = await _receive(stream, reader)
            except (ProcessMessageError, trio.BrokenResourceError) as error:
                _log.warning("ignoring a connection to the trainer's socket: %s", error)
                hello = None
            if isinstance(hello, Hello) and hello.process_id == process_id:
                return stream, reader
            await trio.aclose_forcefully(stream)

    async def _converse(self, worker: _LiveWorker, job: Job, on_progress: OnProgress | None) -> JobDone | JobRefused:
        number, self._next_number = self._next_number, self._next_number + 1
        try:
            await worker.stream.send_all(WORKER_MESSAGES.encode(RunJob(number, job)))
            while (message := await _receive(worker.stream, worker.reader)) is not None:
                if isinstance(message, (JobDone, JobRefused)) and message.number == number:
                    return message
                if isinstance(message, Progress) and message.number == number:
                    self._fraction, self._note = message.fraction, message.note
                    if on_progress is not None:
                        on_progress(message.fraction, message.note)
        except (ProcessMessageError, trio.BrokenResourceError) as error:
            _log.warning("lost the trainer process: %s", error)
        worker.process.kill()  # it closed its socket, so it is ending or beyond use
        with trio.move_on_after(KILL_DEADLINE_S):
            how = await worker.process.wait()
            raise TrainerError(
                f"the trainer process {worker.process.pid} ended during {type(job).__name__} ({how}). "
                f"The next job starts another.{self._log_tail(worker.log_start)}"
            )
        raise TrainerError(
            f"the trainer process {worker.process.pid} hangs: it survives SIGKILL for {KILL_DEADLINE_S} s"
        )

    def _log_tail(self, start: int) -> str:
        lines = _last_lines(self._log_path, start)
        return f" Its log {self._log_path} ends with:\n" + "\n".join(lines) if lines else f" Its log: {self._log_path}"


@asynccontextmanager
async def open_trainer(run_directory: Path, start: StartWorker) -> AsyncIterator[Trainer]:
    """A trainer whose socket and log are in `run_directory`; its process ends with the context.

    Raises:
        OSError: the directory can't be written.
    """
    with _socket_path(run_directory) as socket_path:
        listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        with listening:
            await listening.bind(os.fspath(socket_path))
            listening.listen(4)
            trainer = Trainer(trio.SocketListener(listening), socket_path, run_directory / "trainer.log", start)
            try:
                yield trainer
            finally:
                await trainer.stop()


@contextmanager
def _socket_path(run_directory: Path) -> Iterator[Path]:
    """A path to bind a socket to, in a directory for this user alone; the socket is removed afterwards."""
    run_directory.mkdir(parents=True, exist_ok=True)
    run_directory.chmod(0o700)
    path = run_directory.resolve() / "trainer.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        path.unlink(missing_ok=True)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
    else:
        with tempfile.TemporaryDirectory(prefix="bflnode-") as short:
            yield Path(short) / "trainer.sock"


async def _receive(stream: trio.SocketStream, reader: FrameReader[WorkerMessage]) -> WorkerMessage | None:
    """The next message, or None at the stream's end."""
    for message in reader.feed(b""):
        return message
    while data := await stream.receive_some(RECEIVE_BYTES):
        for message in reader.feed(data):
            return message
    return None


async def _end(worker: _LiveWorker) -> None:
    """End a worker and wait for that, also while being cancelled: nothing of it may write files any more."""
    worker.process.kill()
    with trio.move_on_after(KILL_DEADLINE_S, shield=True):
        await trio.aclose_forcefully(worker.stream)
        await worker.process.wait()


def _rotate(log_path: Path) -> None:
    if log_path.exists() and log_path.stat().st_size > MAX_LOG_BYTES:
        log_path.replace(log_path.with_suffix(".log.1"))


def _last_lines(log_path: Path, start: int) -> list[str]:
    """The last lines a worker wrote, given the log's size when it started."""
    try:
        with log_path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(start, end - 8192))
            text = log.read().decode(errors="replace")
    except OSError as error:
        return [f"(unreadable: {error})"]
    return text.splitlines()[-LOG_TAIL_LINES:]
