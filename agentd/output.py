"""A run's side of the wire: hello, what the child prints, heartbeats, and the end record.

Raw or agentd.v1 is decided here, once for a run, and nowhere behind it.
"""

import hashlib
import logging
import math
from functools import partial

import trio

from agentd.process import Process
from agentd.relay import Pump, Relay, Sink
from agentd.sansio.frames import RawEncoder, RecordEncoder
from agentd.sansio.lifecycle import End, Outcome
from agentd.sansio.lines import Kind, LineSplitter, Piece
from agentd.settings import StreamSettings
from agentd.wire import ClientGone

logger = logging.getLogger("agentd.stderr")

_LOGGED_LINE = 4096
"""Bytes of a line of the child's stderr that go into one log record."""


class _Log:
    """A sink for a stream that goes to the log: it takes everything and has nothing to send."""

    idle = True

    def send_nowait(self, unit: bytes) -> None:
        """Take nothing: the encoder has logged it."""

    async def wait_settled(self) -> None:
        """Part of the interface; nothing ever waits here."""


class Output:
    """Everything one run sends to its client.

    Args:
        run_id: names the run in the hello and in the log.
        sink: the client's wire.
        records: agentd.v1, else raw.
        stream: how lines become frames.
        send_stderr: whether stderr goes to the client where the protocol has a place for it, else
            to the log.
    """

    def __init__(
        self, run_id: str, sink: Sink, *, records: bool, stream: StreamSettings, send_stderr: bool
    ) -> None:
        self._run_id = run_id
        self._sink = sink
        self._stream = stream
        self._digest = hashlib.sha256()
        self._records = RecordEncoder() if records else None
        self._raw = RawEncoder(skip_empty=stream.skip_empty_lines, invalid_utf8=stream.invalid_utf8)
        self._send_stderr = send_stderr and records
        # In raw mode nobody is told the digest, and it would be a fifth of the work.
        self.stdout = LineSplitter(stream.max_line, self._digest if records else None)
        self.stderr = LineSplitter(stream.max_line)

    def hello(self, *, boot: str, build: str, image: str | None) -> None:
        """Send the first record; raw has none."""
        if self._records is not None:
            self._offer(self._records.hello(run=self._run_id, boot=boot, build=build, image=image))

    def relay(self, process: Process) -> Relay:
        """Return the relay of the process's streams to the client."""
        pumps = [self._pump(process.stdout, self.stdout, "stdout")]
        if process.stderr is not None:
            if self._send_stderr:
                pumps.append(self._pump(process.stderr, self.stderr, "stderr"))
            else:
                pumps.append(Pump(process.stderr, self.stderr, self._log, _Log()))
        return Relay(pumps)

    async def beat(self, relay: Relay, interval: float) -> None:
        """Send a heartbeat after each ``interval`` seconds in which no record was sent."""
        records = self._records
        beaten = trio.current_time() if records is not None else math.inf
        while True:
            due = max(relay.last_sent, beaten) + interval
            if trio.current_time() < due:
                await trio.sleep_until(due)
            elif records is not None and self._sink.idle:
                self._offer(records.heartbeat())
                beaten = trio.current_time()
            else:
                # A record is on its way, as slowly as the client takes it.
                await trio.sleep(interval)

    def end(
        self,
        outcome: Outcome,
        *,
        exit_code: int | None,
        signal: str | None,
        error: str | None,
        seconds: float,
    ) -> End:
        """Send the last record and return what it says; in raw the Close code says it."""
        end = End(
            outcome=outcome,
            exit_code=exit_code,
            signal=signal,
            error=error,
            stdout_lines=self.stdout.lines,
            stderr_lines=self.stderr.lines,
            stdout_bytes=self.stdout.size,
            stdout_sha256=self._digest.hexdigest(),
            seconds=round(seconds, 6),
        )
        if self._records is not None:
            self._offer(self._records.end(end))
        return end

    def _pump(self, fd: int, splitter: LineSplitter, name: str) -> Pump:
        if self._records is None:
            return Pump(fd, splitter, partial(self._raw.encode, name), self._sink)
        encode = partial(self._records.encode, name)
        flush_partial = self._stream.flush_partial
        return Pump(fd, splitter, encode, self._sink, flush_partial=flush_partial)

    def _log(self, pieces: list[Piece]) -> bytes:
        for kind, content in pieces:
            lines = content[:-1].split(b"\n") if kind is Kind.LINES else [content]
            for line in lines:
                text = line[:_LOGGED_LINE].decode("utf-8", "replace")
                logger.info("%s", text, extra={"run": self._run_id})
        return b""

    def _offer(self, unit: bytes) -> None:
        """Send what a client that has gone need not get."""
        try:
            self._sink.send_nowait(unit)
        except ClientGone:
            pass
