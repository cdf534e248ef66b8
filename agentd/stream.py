"""``agentd stream``: a run's output as if its command ran here, down to the exit status.

Every byte goes where the child wrote it, line by line, and nothing of agentd's own goes between.
The exit status is the run's only if the whole stream came and was found true. This room knows the
command line's side of a stream; what a stream is, it leaves to :mod:`agentd.client`.
"""

import os
import select
import signal
import sys
from contextlib import suppress
from typing import Final

import trio

from agentd import AgentdError
from agentd.client import Connection, NotSent, Received, connect
from agentd.sansio.lifecycle import End, Outcome, signal_number
from agentd.sansio.server_records import Output

FAILED: Final = 125
CANCELLED: Final = 130
BROKEN_PIPE: Final = 128 + signal.SIGPIPE

_STDOUT: Final = 1
_STDERR: Final = 2

# What an outcome that says nothing about the command's own status comes out as, and what a person
# is told.
_STATUS: Final[dict[tuple[Outcome, str | None], tuple[int, str]]] = {
    (Outcome.TIMED_OUT, None): (124, "the run timed out"),
    (Outcome.CANCELLED, None): (CANCELLED, "the run was cancelled"),
    (Outcome.SHUTDOWN, None): (FAILED, "the run was stopped because its daemon shut down"),
    (Outcome.SPAWN_FAILED, "not_found"): (127, "the run's command was not found"),
    (Outcome.SPAWN_FAILED, "not_executable"): (126, "the run's command is not executable"),
    (Outcome.SPAWN_FAILED, "bad_cwd"): (FAILED, "the run's working directory cannot be entered"),
    (Outcome.SPAWN_FAILED, "too_big"): (FAILED, "the run's arguments and environment are too big"),
    (Outcome.SPAWN_FAILED, None): (FAILED, "the run's command cannot be started"),
    (Outcome.SIGNALED, None): (FAILED, "the run was ended by a signal of unknown number"),
}

# After Ctrl-C: the default --grace and a second. The run is stopped even if nobody waits for it.
_CANCEL_WAIT: Final = 6.0

# A pipe that poll(2) calls writable takes this much without blocking: pipe(7).
_WRITE_SIZE: Final = select.PIPE_BUF


def exit_status(end: End) -> tuple[int, str | None]:
    """Return the exit status that stands for `end`, and a line to explain it where one is due."""
    if end.outcome is Outcome.EXITED and end.exit_code is not None:
        return end.exit_code, None
    if end.outcome is Outcome.SIGNALED and (number := signal_number(end.signal or "")):
        return 128 + number, None
    return _STATUS.get((end.outcome, end.error)) or _STATUS[end.outcome, None]


def stream_command(
    url: str,
    *,
    token: str | None = None,
    token_file: str | None = None,
    json_output: bool = False,
) -> int:
    """Run ``agentd stream`` and return its exit status (CONTRACT.md, section 1).

    Args:
        url: of the daemon, or of the edge before it.
        token: the bearer token.
        token_file: a file that holds it, read when connecting; not read if there is a `token`.
        json_output: print each record as one line of JSON instead, as it was received.
    """
    try:
        if token is None and token_file is not None:
            token = _read_token(token_file)
        return trio.run(_Following(url, token, json_output=json_output).run)
    except AgentdError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return CANCELLED


class _Following:
    """One stream that is followed, and the signals that may end it early."""

    def __init__(self, url: str, token: str | None, *, json_output: bool) -> None:
        self._url = url
        self._token = token
        self._json = json_output
        self._connection: Connection | None = None
        self._interrupted = False

    async def run(self) -> int:
        status = CANCELLED
        async with trio.open_nursery() as nursery:
            await nursery.start(self._stop_on_signals, nursery.cancel_scope)
            status = await self._follow()
            nursery.cancel_scope.cancel()
        return CANCELLED if self._interrupted else status

    async def _follow(self) -> int:
        try:
            async with connect(self._url, token=self._token) as self._connection:
                end = await self._copy(self._connection)
        except AgentdError as error:
            return FAILED if self._interrupted else _fail(str(error))
        except BrokenPipeError:
            return BROKEN_PIPE
        except OSError as error:
            return _fail(f"cannot write what the run printed: {error.strerror}")
        status, line = exit_status(end)
        if line is not None and not self._interrupted:
            _say(line)
        return status

    async def _copy(self, connection: Connection) -> End:
        stdout, stderr = _Output(_STDOUT), _Output(_STDERR)
        end: End | None = None
        while (received := await connection.receive()) is not None:
            if isinstance(received.record, End):
                end = received.record
            if self._json:
                await stdout.write(_json_line(received))
            elif isinstance(received.record, Output):
                output = stdout if received.record.stream == "stdout" else stderr
                await output.write(received.record.raw)
        assert end is not None  # noqa: S101  # receive() raises where no end record came
        return end

    async def _stop_on_signals(
        self, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if self._interrupted or self._connection is None:
                    scope.cancel()
                self._interrupted = True
                scope.deadline = trio.current_time() + _CANCEL_WAIT
                if self._connection is not None:
                    with suppress(NotSent):
                        await self._connection.cancel()


class _Output:
    """A descriptor that others share, so that it cannot be made non-blocking.

    While it takes nothing (a pager, a terminal that is stopped) the connection goes on being
    served: it is asked before it is written to, and never given more than it takes at once.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    async def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            # What poll(2) says is not writable now is a thing that epoll(7) can wait for; files,
            # which epoll refuses, are always writable.
            if not self._poll.poll(0):
                await trio.lowlevel.wait_writable(self._fd)
            try:
                rest = rest[os.write(self._fd, rest[:_WRITE_SIZE]) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._fd)


def _json_line(received: Received) -> bytes:
    # Between the tokens of JSON a newline is as good as a space, and within them there is none.
    return received.text.replace("\n", " ").encode() + b"\n"


def _read_token(path: str) -> str:
    fault = "it is not text"
    try:
        with open(path, encoding="ascii") as file:
            return file.read(65536).strip()
    except OSError as error:
        fault = str(error.strerror)
    except ValueError:
        pass
    # Raised out here: a decoding error carries the file's content.
    raise AgentdError(f"cannot read the token file {path}: {fault}")


def _fail(line: str) -> int:
    _say(line)
    return FAILED


def _say(line: str) -> None:
    with suppress(OSError):
        sys.stderr.write(f"agentd: {line}\n")
        sys.stderr.flush()
