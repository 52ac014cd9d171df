"""The log of a node's process: how a line looks, and how much of it strangers can make the node write.

What belongs here: where lines go and how many. What is worth a line is said where it happens. A flood of lines is
bounded twice: each place in the code has a rate, so that what a peer provokes hides nothing else, and the file is
rotated.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from bflnode.node.p2p.rate_limits import Rate, TokenBucket

LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

MAX_LOG_BYTES = 16 * 1024 * 1024
"""A log that is larger is moved aside: some weeks of a node in peace."""

OLD_LOGS = 3
"""Logs that were moved aside and are kept, as `node.log.1` to `node.log.3`."""

LINES = Rate(per_s=2, burst=500)
"""What one place in the code may write from level INFO on. Each block is a line, each peer that comes and goes is two:
at this rate one place takes two days to fill the logs that are kept."""

STANDARD_STREAMS = (1, 2)


def set_up_logging(level: str, file: Path) -> None:
    """Send the process' log to standard error; where that is the node's own log file, rotate it.

    Args:
        level: debug, info, warning or error.
        file: the node's log file, whether or not it is used.
    """
    descriptors = tuple(descriptor for descriptor in STANDARD_STREAMS if _is_open_as(descriptor, file))
    handler = RotatedLog(file, descriptors) if descriptors else logging.StreamHandler(sys.stderr)
    handler.addFilter(LineLimit(time.monotonic))
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, handlers=[handler], force=True)


def _is_open_as(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:
        return False


class RotatedLog(RotatingFileHandler):
    """A log file that is moved aside when it is full; standard streams that led to it follow to the new one.

    So the traceback of a process that dies is in `node.log`, whatever the file was called when the process began.
    """

    def __init__(self, file: Path, descriptors: tuple[int, ...]) -> None:
        self._descriptors = descriptors
        super().__init__(file, maxBytes=MAX_LOG_BYTES, backupCount=OLD_LOGS, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        for descriptor in self._descriptors:
            os.dup2(stream.fileno(), descriptor)
        return stream


@dataclass(slots=True)
class _Place:
    """A line of code that logs: what it may still write, and how often it couldn't since."""

    bucket: TokenBucket
    left_out: int = 0


class LineLimit(logging.Filter):
    """Lets each place in the code write at the rate `LINES`, and says how many lines it left out.

    Places and not texts, since texts are what strangers choose. What is asked for with level DEBUG isn't limited.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._places: dict[tuple[str, int], _Place] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        if record.levelno < logging.INFO:
            return True
        now_s, key = self._clock(), (record.pathname, record.lineno)
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = _Place(TokenBucket(LINES, now_s))
        if not place.bucket.take(1, now_s):
            place.left_out += 1
            return False
        if place.left_out:
            record.msg = f"{record.getMessage()} ({place.left_out} lines like this one were left out before it)"
            record.args = None
            place.left_out = 0
        return True
