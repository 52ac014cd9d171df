"""What went wrong beneath: the cause inside of what trio and libp2p wrap around it."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unwrapped_errors() -> Iterator[None]:
    """Raise the one exception inside nested exception groups, so that callers can catch it by its type."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, BaseExceptionGroup):
            raise
        raise error from None


def root_cause(error: BaseException) -> str:
    """What happened first, in words."""
    while error.__cause__ is not None or isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error
    return str(error) or type(error).__name__
