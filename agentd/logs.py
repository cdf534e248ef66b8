"""The log: standard library logging, as one handler that writes lines to stderr and never waits.

Invariant: no message, however it fails, ends or delays the daemon: a line that stderr does not take
at once is dropped and counted.  What an exception says is written only for errors whose text is
known to hold no secret (:class:`agentd.AgentdError`, OSError's strerror); of others it is the type
and the frames.  It refuses to know what is worth logging.
"""

import json
import logging
import os
import select
import time
import traceback
from collections.abc import Callable, Iterator, Mapping

from agentd import AgentdError
from agentd.settings import LogSettings

STDERR = 2

# Up to this much a pipe that poll(2) calls writable takes without blocking (pipe(7), PIPE_BUF).
_ATOMIC = select.PIPE_BUF

# C0, DEL and C1 could forge a line or drive a terminal; the line separators could forge one too.
_CONTROL = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), 0x2028, 0x2029)
}

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # sd-daemon(3)

# What every record has, so that what is left is what the caller gave as `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(settings: LogSettings, environ: Mapping[str, str], descriptor: int = STDERR) -> None:
    """Send the log to ``descriptor``, from now on and for the whole process.

    Other people's loggers stay at warning even when ours is at debug: they may print payloads.
    """
    logging.raiseExceptions = False
    root = logging.getLogger()
    for handler in tuple(root.handlers):
        root.removeHandler(handler)
    root.addHandler(NonblockingHandler(descriptor, formatter(settings.format, environ, descriptor)))
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("agentd").setLevel(level)


def formatter(kind: str, environ: Mapping[str, str], descriptor: int) -> logging.Formatter:
    """The formatter for ``--log-format kind``: auto asks what ``descriptor`` is."""
    if kind == "auto" and _is_journal(environ, descriptor):
        return JournalFormatter()
    if kind == "text" or (kind == "auto" and os.isatty(descriptor)):
        return TextFormatter()
    return JSONFormatter()


class TextFormatter(logging.Formatter):
    """For people: local time, level, logger, message, ``key=value``; then frames, one a line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.localtime(record.created)
        when = f"{time.strftime('%H:%M:%S', moment)}.{int(record.msecs):03d}"
        return "\n".join([f"{when} {record.levelname.lower():7} {_line(record)}", *_frames(record)])


class JournalFormatter(logging.Formatter):
    """For the journal, which knows the time: each line led by its priority (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelname.lower(), 6)}>"
        return "\n".join(prefix + line for line in (_line(record), *_frames(record)))


class JSONFormatter(logging.Formatter):
    """For machines: one JSON object a line, RFC 3339 time in UTC, the ``extra`` fields beside."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {key: value for key, value in _extra(record).items() if key not in fields}
        frames = _frames(record)
        if frames:
            fields["exception"] = "\n".join(frames)
        return json.dumps(fields, default=str)


class NonblockingHandler(logging.Handler):
    """Writes each record to a descriptor, or drops it when the descriptor would make us wait.

    A record that was begun is finished before another one, so that lines stay whole; ``dropped``
    counts those lost since, and is written as soon as there is room.  The flags of the descriptor
    are not touched: it is shared with whoever started us.
    """

    def __init__(self, descriptor: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.dropped = 0
        self._descriptor = descriptor
        self._unwritten = b""
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        if self._write() and self.dropped:
            lost, self.dropped = self._lost(record), 0
            self._write(self._encode(lost))
        if self._unwritten:
            self.dropped += 1
        else:
            self._write(self._encode(record))

    def _lost(self, record: logging.LogRecord) -> logging.LogRecord:
        return logging.makeLogRecord(
            {
                "name": __name__,
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "msg": "stderr took nothing: messages were dropped",
                "dropped": self.dropped,
                "created": record.created,
                "msecs": record.msecs,
            }
        )

    def _encode(self, record: logging.LogRecord) -> bytes:
        try:
            text = self.format(record)
        except (TypeError, ValueError, LookupError):
            text = f"a message of {record.name} could not be formatted"
        return f"{text}\n".encode("utf-8", "backslashreplace")

    def _write(self, data: bytes = b"") -> bool:
        """Write what is left and ``data`` as far as that needs no waiting: is nothing left?"""
        self._unwritten += data
        try:
            while self._unwritten and self._is_writable():
                written = os.write(self._descriptor, self._unwritten[:_ATOMIC])
                self._unwritten = self._unwritten[written:]
        except OSError:
            return False
        return not self._unwritten

    def _is_writable(self) -> bool:
        return any(events == select.POLLOUT for _, events in self._poll.poll(0))


class Throttle:
    """At most one message in ``interval`` seconds, about something that may happen all the time."""

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._next: float | None = None
        self._held_back = 0

    def admit(self) -> int | None:
        """None when this message is to be held back, else how many were since the last one."""
        now = self._clock()
        if self._next is not None and now < self._next:
            self._held_back += 1
            return None
        self._next = now + self._interval
        held_back, self._held_back = self._held_back, 0
        return held_back


def _is_journal(environ: Mapping[str, str], descriptor: int) -> bool:
    """Whether the journal reads ``descriptor`` (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _line(record: logging.LogRecord) -> str:
    words = [f"{record.name}: {record.getMessage()}"]
    words += [f"{key}={_word(value)}" for key, value in _extra(record).items() if value is not None]
    return " ".join(words).translate(_CONTROL)


def _word(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if " " in text or '"' in text or not text else text


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _frames(record: logging.LogRecord) -> list[str]:
    error = record.exc_info[1] if record.exc_info else None
    return [] if error is None else list(_told(error, "", set()))


def _told(error: BaseException, indent: str, seen: set[int]) -> Iterator[str]:
    """What may be said about an exception: frames and types, and the text of ours and OSError's."""
    if id(error) in seen:
        return
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _told(before, indent, seen)
        yield f"{indent}then:"
    for frame in traceback.extract_tb(error.__traceback__):
        yield f"{indent}  {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"
    said = str(error) if isinstance(error, AgentdError) else getattr(error, "strerror", None)
    name = type(error).__qualname__
    yield f"{indent}{name}: {said}".translate(_CONTROL) if said else f"{indent}{name}"
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _told(inner, indent + "  ", seen)
