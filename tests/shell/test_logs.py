"""The log: its three formats, what it never says, and that it never waits."""

import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd import AgentdError
from agentd.logs import (
    JournalFormatter,
    JSONFormatter,
    NonblockingHandler,
    TextFormatter,
    Throttle,
    configure,
    formatter,
)
from agentd.settings import LogSettings

SECRET = "hunter2"
logger = logging.getLogger("agentd.test")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Logging is the process's: each test leaves it as it found it."""
    root, ours = logging.getLogger(), logging.getLogger("agentd")
    before = root.handlers[:], root.level, ours.level, logging.raiseExceptions
    yield
    root.handlers[:], level, our_level, logging.raiseExceptions = before
    root.setLevel(level)
    ours.setLevel(our_level)


class Pipe:
    """A stderr that can be read back."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def read(self) -> str:
        """Everything that was written since the last call."""
        data = b""
        while True:
            try:
                more = os.read(self.reader, 1 << 20)
            except BlockingIOError:
                break
            if not more:
                break
            data += more
        return data.decode()

    def fill(self) -> None:
        """Leave no room for a line."""
        os.set_blocking(self.writer, False)
        try:
            while True:
                os.write(self.writer, b"#" * 4096)
        except BlockingIOError:
            pass
        os.set_blocking(self.writer, True)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reader)
    os.close(pipe.writer)


def _record(message: str = "run ended", **extra: object) -> logging.LogRecord:
    record = logging.makeLogRecord(
        {"name": "agentd.run", "levelno": 20, "levelname": "INFO", "msg": message}
    )
    record.created, record.msecs = 1_000_000_000.25, 250.0
    vars(record).update(extra)
    return record


def _raise(error: BaseException) -> None:
    raise error


def _failed(error: BaseException) -> logging.LogRecord:
    """A record of ``error``, raised for real so that it has frames."""
    try:
        _raise(error)
    except BaseException:  # noqa: BLE001  # whatever the test raises
        return _record("internal error", exc_info=sys.exc_info())
    raise AssertionError


# Formats.


def test_json_is_one_object_a_line_with_time_level_logger_message_and_extra() -> None:
    """JSON lines carry RFC 3339 time in UTC and the fields given as extra."""
    assert json.loads(JSONFormatter().format(_record(run="r1", exit_code=0, signal=None))) == {
        "time": "2001-09-09T01:46:40.250Z",
        "level": "info",
        "logger": "agentd.run",
        "message": "run ended",
        "run": "r1",
        "exit_code": 0,
        "signal": None,
    }


def test_json_extra_cannot_replace_what_every_line_has() -> None:
    """A field named like one of ours is dropped, not believed."""
    line = json.loads(JSONFormatter().format(_record(level="x", logger="y", time="z")))
    assert (line["level"], line["logger"], line["time"][:4]) == ("info", "agentd.run", "2001")


def test_json_says_what_it_cannot_encode_as_text() -> None:
    """A value JSON does not have goes out as its str()."""
    assert json.loads(JSONFormatter().format(_record(path=Path("/a"))))["path"] == "/a"


def test_text_is_for_people() -> None:
    """Text has local time, level, logger, message and key=value, quoted where needed."""
    line = TextFormatter().format(_record(run="r1", said="a b", quote='"', empty="", none=None))
    local = time.strftime("%H:%M:%S", time.localtime(1_000_000_000))
    assert line == (
        f'{local}.250 info    agentd.run: run ended run=r1 said="a b" quote="\\"" empty=""'
    )


@pytest.mark.parametrize(
    ("level", "priority"),
    [("DEBUG", 7), ("INFO", 6), ("WARNING", 4), ("ERROR", 3), ("CRITICAL", 2), ("NOTICE", 6)],
)
def test_the_journal_is_told_priorities(level: str, priority: int) -> None:
    """Under systemd a line begins with its syslog priority and has no time of its own."""
    line = JournalFormatter().format(_record(levelname=level, run="r1"))
    assert line == f"<{priority}>agentd.run: run ended run=r1"


def test_every_journal_line_of_a_failure_has_a_priority() -> None:
    """Frames are lines of their own, each with the priority."""
    lines = JournalFormatter().format(_failed(ValueError(SECRET))).split("\n")
    assert len(lines) > 2
    assert all(line.startswith("<6>") for line in lines)


def test_no_message_can_forge_a_line_or_drive_a_terminal() -> None:
    """Control characters are escaped in every format, whatever a peer made us log."""
    evil = "a\nb\r\x1b[31m\x9b\x7f\u2028\u2029\udc80"
    for kind in (TextFormatter(), JournalFormatter(), JSONFormatter()):
        line = kind.format(_record(evil, key=evil))
        assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", line)
        assert "31m" in line


# Which format.


def test_auto_under_systemd_is_the_journals(pipe: Pipe) -> None:
    """JOURNAL_STREAM names the device and inode of stderr: then the journal reads it."""
    found = os.fstat(pipe.writer)
    stream = f"{found.st_dev}:{found.st_ino}"
    assert isinstance(formatter("auto", {"JOURNAL_STREAM": stream}, pipe.writer), JournalFormatter)
    other = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"}
    assert isinstance(formatter("auto", other, pipe.writer), JSONFormatter)


def test_auto_on_a_terminal_is_text() -> None:
    """A person reads a terminal."""
    controller, terminal = os.openpty()
    try:
        assert isinstance(formatter("auto", {}, terminal), TextFormatter)
        assert isinstance(formatter("json", {}, terminal), JSONFormatter)
    finally:
        os.close(controller)
        os.close(terminal)


def test_auto_is_json_elsewhere(pipe: Pipe) -> None:
    """A pipe, or no descriptor at all, gets JSON lines; --log-format text gets text."""
    assert isinstance(formatter("auto", {}, pipe.writer), JSONFormatter)
    assert isinstance(formatter("text", {}, pipe.writer), TextFormatter)
    assert isinstance(formatter("auto", {"JOURNAL_STREAM": "1:1"}, 9999), JSONFormatter)


# What is logged.


def test_the_level_is_ours_alone(pipe: Pipe) -> None:
    """Even at debug other people's loggers stay at warning: they may print payloads."""
    configure(LogSettings("text", "debug"), {}, pipe.writer)
    logger.debug("ours")
    for name in ("trio-websocket", "urllib3", "asyncio", "root"):
        other = logging.getLogger(name)
        other.debug(SECRET)
        other.info(SECRET)
        other.warning("theirs")
    written = pipe.read()
    assert SECRET not in written
    assert written.count("ours") == 1
    assert written.count("theirs") == 4


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_less_important_messages_are_left_out(level: str, expected: list[str], pipe: Pipe) -> None:
    """--log-level is the least important level that is written."""
    configure(LogSettings("json", level), {}, pipe.writer)
    logger.debug("x")
    logger.info("x")
    logger.warning("x")
    logger.error("x")
    assert [json.loads(line)["level"] for line in pipe.read().splitlines()] == expected


def test_at_error_other_peoples_warnings_go_too(pipe: Pipe) -> None:
    """A stricter level holds for everybody."""
    configure(LogSettings("json", "error"), {}, pipe.writer)
    logging.getLogger("trio").warning("x")
    assert pipe.read() == ""


def test_configuring_again_replaces(pipe: Pipe) -> None:
    """There is one handler, however often the log is configured."""
    configure(LogSettings(), {}, pipe.writer)
    configure(LogSettings(), {}, pipe.writer)
    logger.info("once", extra={"run": "r1"})
    assert [json.loads(line)["run"] for line in pipe.read().splitlines()] == ["r1"]


# What is never said.


@pytest.mark.parametrize("kind", [TextFormatter(), JournalFormatter(), JSONFormatter()])
def test_the_text_of_a_strange_exception_is_never_written(kind: logging.Formatter) -> None:
    """Of an exception that may carry data, the log has its type and frames only."""
    for error in (
        ValueError(SECRET),
        KeyError(SECRET),
        json.JSONDecodeError("bad", SECRET, 0),
        ExceptionGroup(SECRET, [ValueError(SECRET), ExceptionGroup("x", [KeyError(SECRET)])]),
    ):
        line = kind.format(_failed(error))
        assert SECRET not in line
        assert type(error).__name__ in line
        assert "in _raise: raise error" in line


def test_the_inner_exceptions_of_a_group_are_told() -> None:
    """Each exception of a group has its own lines."""
    line = TextFormatter().format(_failed(ExceptionGroup("x", [ValueError("y"), KeyError("z")])))
    assert line.splitlines()[-2:] == ["  ValueError", "  KeyError"]


def test_the_text_of_our_own_errors_is_written() -> None:
    """AgentdError and the system's own words hold no secret, and help."""
    assert TextFormatter().format(_failed(AgentdError("no room"))).endswith("AgentdError: no room")
    missing = FileNotFoundError(2, "No such file or directory", f"/{SECRET}")
    line = TextFormatter().format(_failed(missing))
    assert line.endswith("FileNotFoundError: No such file or directory")
    assert SECRET not in line


def test_the_text_of_our_own_errors_cannot_forge_a_line() -> None:
    """What an error quotes is escaped too."""
    assert "\\x0a<0>" in TextFormatter().format(_failed(AgentdError("a\n<0>b")))


def test_a_chain_of_exceptions_is_told_in_order() -> None:
    """The cause comes before what it led to."""
    error = AgentdError("cannot go on")
    error.__cause__ = KeyError(SECRET)
    line = TextFormatter().format(_failed(error))
    assert line.index("KeyError") < line.index("then:") < line.index("cannot go on")


def test_what_was_suppressed_is_not_told() -> None:
    """A context is told unless `from None` hides it."""
    error = AgentdError("cannot go on")
    error.__context__ = KeyError(SECRET)
    assert "KeyError" in TextFormatter().format(_failed(error))
    error.__suppress_context__ = True
    assert "KeyError" not in TextFormatter().format(_failed(error))


def test_a_circle_of_exceptions_ends() -> None:
    """Exceptions that cause each other are each told once."""
    one, two = ValueError(), KeyError()
    one.__cause__, two.__cause__ = two, one
    assert TextFormatter().format(_failed(one)).count("ValueError") == 1


# It never waits, and never fails.


def test_a_full_stderr_costs_messages_and_not_time(pipe: Pipe) -> None:
    """While nobody reads, messages are dropped; then the number of them is told, and it goes on."""
    configure(LogSettings("json"), {}, pipe.writer)
    pipe.fill()
    for number in range(10):
        logger.info("lost %d", number)
    assert "lost" not in pipe.read()
    logger.info("found")
    lines = [json.loads(line) for line in pipe.read().splitlines()]
    assert [line["message"] for line in lines] == [
        "lost 0",  # was begun, so it is finished
        "stderr took nothing: messages were dropped",
        "found",
    ]
    assert lines[1]["dropped"] == 9


def test_a_long_message_into_a_narrow_stderr_stays_one_line(pipe: Pipe) -> None:
    """A line that was cut is finished before another begins."""
    configure(LogSettings("json"), {}, pipe.writer)
    logger.info("a" * 200_000)
    logger.info("b")
    begun = pipe.read()
    assert "\n" not in begun
    logger.info("c")
    rest = pipe.read()
    while not rest.endswith('"c"}\n'):
        logger.info("c")
        rest += pipe.read()
    lines = [json.loads(line) for line in (begun + rest).splitlines()]
    assert lines[0]["message"] == "a" * 200_000
    assert lines[1]["message"].startswith("stderr took nothing")


def test_nobody_reading_is_no_reason_to_fail() -> None:
    """A stderr whose reader is gone, is closed, or is on a full disk loses messages only."""
    reader, writer = os.pipe()
    os.close(reader)
    configure(LogSettings(), {}, writer)
    logger.info("x")
    os.close(writer)
    logger.info("x")
    with open("/dev/full", "wb") as full:
        configure(LogSettings(), {}, full.fileno())
        logger.info("x")
        logger.info("y")


def test_a_message_that_cannot_be_formatted_is_said_to_be_one(pipe: Pipe) -> None:
    """Wrong arguments to a log call end nothing and print no value."""
    configure(LogSettings("json"), {}, pipe.writer)
    stderr, sys.stderr = sys.stderr, io.StringIO()
    try:
        logger.info("%d", SECRET)
        complaint = sys.stderr.getvalue()
    finally:
        sys.stderr = stderr
    assert pipe.read() == "a message of agentd.test could not be formatted\n"
    assert complaint == ""


def test_stderr_keeps_its_flags(pipe: Pipe) -> None:
    """O_NONBLOCK would be everybody's who shares the descriptor."""
    handler = NonblockingHandler(pipe.writer, JSONFormatter())
    handler.emit(_record())
    assert os.get_blocking(pipe.writer)


# One line in N seconds.


def test_a_throttle_admits_one_message_in_its_interval() -> None:
    """The first is admitted, the next only after the interval, and told how many were held back."""
    now = 100.0
    throttle = Throttle(10, lambda: now)
    assert throttle.admit() == 0
    assert [throttle.admit() for _ in range(3)] == [None] * 3
    now = 109.9
    assert throttle.admit() is None
    now = 110.0
    assert throttle.admit() == 4
    now = 120.0
    assert throttle.admit() == 0


def test_a_throttle_admits_the_first_message_at_any_time() -> None:
    """A monotonic clock may begin anywhere, at less than the interval too."""
    assert Throttle(10, lambda: 0.0).admit() == 0
    assert Throttle(3600).admit() == 0
