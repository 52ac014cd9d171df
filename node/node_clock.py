"""The wall clock, read in one place: blocks carry milliseconds since the Unix epoch."""

import time


def now_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000
