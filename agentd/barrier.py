"""Where a fault of agentd's own stops: one connection or one run ends, and nothing else does.

The log gets the kind of the exception and where it came from, never its text: a message may quote
what a client or a context sent.
"""

import contextlib
import logging
import traceback
from collections.abc import Iterator


def _places(error: BaseException) -> Iterator[str]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _places(inner)
        return
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    path = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    yield f"{type(error).__name__} at {path}"


@contextlib.contextmanager
def barrier(logger: logging.Logger, what: str) -> Iterator[None]:
    """Log what comes out of the block and go on behind it; only cancellation passes."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # the one place that may: everything else is named
        logger.error("%s failed: %s", what, "; ".join(_places(error)))  # noqa: TRY400  # no text
