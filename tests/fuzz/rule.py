"""The rule that every decoder of foreign bytes keeps, and how it is checked on one input.

    bytes -> a typed refusal whose message a person can read
           | a value; where the format is canonical, one that encodes to the same bytes again

in bounded time and memory. Any other exception is a finding. What is decoded is in `targets`, where inputs come from in
`mutations` and `__main__`.
"""

import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAX_REFUSAL_CHARACTERS = 2_000
"""A refusal goes into a log and an answer: what a stranger sent must not be repeated there without bound."""

CPU_BASE_S = 0.05
CPU_PER_BYTE_S = 1e-6
"""50 ms, and 1 s for a MiB: the largest message, a block, is read in a tenth of that. Whoever sends 1 MiB/s must not
keep a core busy; what decodes more slowly belongs behind a limit or into a thread."""

MEMORY_BASE_BYTES = 40 * 2**20
"""msgpack allocates what 1,024 nested array headers announce: 32 MiB (see `consensus.encoding.MAX_ITEMS`)."""

MEMORY_PER_BYTE = 64
"""Python objects for a byte of input: a small integer in a tuple takes 8, a short byte string 40."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One decoder.

    Attributes:
        decode: takes foreign bytes; returns what it encodes to again, or None where there is no single encoding.
        refusals: the typed errors that it may raise.
        seeds: valid inputs.
        limit_bytes: larger inputs are not tried.
        is_measured: whether the bounds on time hold; not where every input costs the disk.
        cpu_per_byte_s: the bound, besides `CPU_BASE_S`.
    """

    decode: Callable[[bytes], bytes | None]
    refusals: tuple[type[Exception], ...]
    seeds: Callable[[], Sequence[bytes]]
    limit_bytes: int = 64 * 1024
    is_measured: bool = True
    cpu_per_byte_s: float = CPU_PER_BYTE_S


def is_accepted(target: Target, data: bytes) -> bool:
    """Whether a target takes an input.

    Raises:
        AssertionError: what it took encodes to other bytes, or its refusal is not for people.
        Exception: anything that isn't a typed refusal is a finding.
    """
    try:
        again = target.decode(data)
    except target.refusals as refusal:
        require_readable(str(refusal))
        return False
    assert again is None or again == data, f"accepted {data[:200]!r}, which encodes to {again[:200]!r}"
    return True


def require_readable(message: str) -> None:
    """A refusal is a line or a few: printable, so that it can't rewrite a terminal or forge a line of a log."""
    assert 0 < len(message) <= MAX_REFUSAL_CHARACTERS, f"a refusal of {len(message)} characters: {message[:200]!r}"
    foreign = {character for character in message if not (character.isprintable() or character == "\n")}
    assert not foreign, f"a refusal with {foreign}: {message[:200]!r}"


def cpu_seconds(target: Target, data: bytes) -> float:
    """CPU time of one input; the least of three where it is too much: a busy machine is no slow decoder."""
    first = _timed(target, data)
    return first if first <= cpu_limit_seconds(target, data) else min(_timed(target, data) for _ in range(3))


def cpu_limit_seconds(target: Target, data: bytes) -> float:
    """CPU time that an input may take."""
    return CPU_BASE_S + target.cpu_per_byte_s * len(data)


def peak_memory(target: Target, data: bytes) -> int:
    """Most bytes allocated at one time while an input is decoded."""
    tracemalloc.start()
    try:
        is_accepted(target, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def memory_limit(data: bytes) -> int:
    """Bytes that an input may make us allocate."""
    return MEMORY_BASE_BYTES + MEMORY_PER_BYTE * len(data)


def _timed(target: Target, data: bytes) -> float:
    start = time.process_time()
    is_accepted(target, data)
    return time.process_time() - start
