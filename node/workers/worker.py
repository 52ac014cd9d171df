"""The trainer process: `python -m bflnode.node.workers.worker SOCKET`, started by a node and gone when the node is.

It runs one job at a time and is the only process of a node that imports torch, and only once a job needs it. A thread
watches the socket, so that the worker ends at once when the node does, however deep in a job it is: no orphans.
What jobs do is in `worker_jobs`, what is said on the socket in `worker_protocol`, the node's side in `trainer`.
"""

import argparse
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bflnode.fl.runtime import set_threads

from .process_messages import RECEIVE_BYTES, FrameReader, ProcessMessageError
from .worker_jobs import run_job
from .worker_protocol import (
    WORKER_MESSAGES,
    Hello,
    JobDone,
    JobRefused,
    Progress,
    RefusalReason,
    RunJob,
    WorkerMessage,
)

PROGRESS_INTERVAL_S = 0.2
"""Progress is for people: five times a second is smooth."""

_log = logging.getLogger(__name__)


class _Worker:
    """One connection to the node, and the job at hand."""

    def __init__(self, connection: socket.socket, threads: int) -> None:
        self._connection = connection
        self._threads = threads
        self._jobs: queue.SimpleQueue[RunJob] = queue.SimpleQueue()

    def serve(self) -> None:
        """Run jobs until the node closes the socket, which ends the process."""
        threading.Thread(target=self._watch, name="watch-node", daemon=True).start()
        self._send(Hello(os.getpid()))
        while True:
            run = self._jobs.get()
            self._send(self._answer(run))

    def _watch(self) -> None:
        reader = FrameReader(WORKER_MESSAGES)
        try:
            while data := self._connection.recv(RECEIVE_BYTES):
                for message in reader.feed(data):
                    if not isinstance(message, RunJob):
                        raise ProcessMessageError(
                            f"the node sent {type(message).__name__}, which a worker doesn't expect"
                        )
                    self._jobs.put(message)
        except ConnectionError:
            _log.info("lost the node: ending")
        except ProcessMessageError:
            _log.exception("ending")
            os._exit(1)
        os._exit(0)  # the main thread may be in the middle of a job that nobody waits for any more

    def _answer(self, run: RunJob) -> WorkerMessage:
        name = type(run.job).__name__
        _log.info("job %d: %s", run.number, name)
        started = last_sent = time.monotonic()

        def report(fraction: float, note: str) -> None:
            nonlocal last_sent
            if time.monotonic() - last_sent >= PROGRESS_INTERVAL_S:
                last_sent = time.monotonic()
                self._send(Progress(run.number, fraction, note))

        try:
            answer: WorkerMessage = JobDone(run.number, run_job(run.job, report, self._threads))
        except (OSError, ValueError) as error:
            _log.info("job %d refused", run.number, exc_info=True)
            answer = JobRefused(run.number, RefusalReason.BAD_INPUT, str(error))
        except MemoryError as error:
            _log.exception("job %d is too large", run.number)
            answer = JobRefused(run.number, RefusalReason.OUT_OF_MEMORY, f"not enough memory for {name}: {error}")
        except Exception as error:  # noqa: BLE001  # the process' edge: a defect in one job must not end the worker
            _log.exception("job %d failed", run.number)
            answer = JobRefused(run.number, RefusalReason.DEFECT, f"{type(error).__name__}: {error}")
        _log.info("job %d: %.2f s", run.number, time.monotonic() - started)
        return answer

    def _send(self, message: WorkerMessage) -> None:
        try:
            self._connection.sendall(WORKER_MESSAGES.encode(message))
        except ConnectionError:
            _log.info("lost the node: ending")
            os._exit(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Connect to the node's socket and work until it closes.

    Returns:
        The process' exit status, where the node couldn't be reached; a worker that served never returns.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bflnode.node.workers.worker", description="The trainer process of a node."
    )
    parser.add_argument("socket", type=Path, help="the Unix-domain socket on which the node listens")
    parser.add_argument("--threads", type=int, default=1, help="threads that torch may use (default: 1)")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads {options.threads}: 1 or more are needed")

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the node, which then closes the socket
    set_threads(options.threads)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(os.fspath(options.socket))
    except OSError as error:
        _log.error("no node listens on %s: %s. A worker is started by its node.", options.socket, error)
        return 1
    _Worker(connection, options.threads).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
