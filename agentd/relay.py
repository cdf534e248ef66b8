"""The hot path: what the child wrote, to lines, to frames, to the client's socket.

One pass is one read, one encoding of everything in it, and one send, without an ``await`` between
them: no queue, no task switch, nothing per line. While the client's socket is full nothing more is
read, so the child's own pipe fills and the child waits: a slow client slows the child and grows
nothing here. stdout and stderr are read by a task each; because a pass cannot be interrupted, their
records are numbered in the order they were read.

Without a client (it left, and the run is being stopped) the pipes are still read and what is in
them is dropped, so that a child that says goodbye on stdout is not blocked by it.
"""

import errno
import fcntl
import math
import os
import struct
import termios
from collections.abc import Callable
from typing import Protocol

import trio

from agentd.sansio.lines import LineSplitter, Piece
from agentd.wire import ClientGone

READ_SIZE = 65536
"""The most bytes in one pass: what a pipe gives in one read by default (pipe(7))."""


class Sink(Protocol):
    """Where frames go; :class:`agentd.wire.Wire` is one."""

    @property
    def idle(self) -> bool:
        """Whether the next unit may be sent."""
        ...

    def send_nowait(self, unit: bytes) -> None:
        """Send whole frames without waiting, or raise :class:`~agentd.wire.ClientGone`."""
        ...

    async def wait_settled(self) -> None:
        """Wait until :attr:`idle`, or raise :class:`~agentd.wire.ClientGone`."""
        ...


Encode = Callable[[list[Piece]], bytes]
"""Pieces of one stream to the frames that carry them."""


class Pump:
    """One of the child's output streams, read until it ends or until :meth:`finish` says enough.

    Args:
        fd: a non-blocking descriptor; the process owns it.
        splitter: takes what is read.
        encode: makes frames of what the splitter gives.
        sink: takes the frames.
        flush_partial: seconds of silence after which an unfinished line is sent as a part.
    """

    def __init__(
        self,
        fd: int,
        splitter: LineSplitter,
        encode: Encode,
        sink: Sink,
        *,
        flush_partial: float = math.inf,
    ) -> None:
        self.splitter = splitter
        self.finished = trio.Event()
        self.last_sent = -math.inf
        self._fd = fd
        self._encode = encode
        self._sink: Sink | None = sink
        self._flush_partial = flush_partial
        self._left: int | None = None
        self._waiting: trio.CancelScope | None = None

    async def run(self) -> None:
        """Read, encode and send until the end of the stream."""
        try:
            while self._left is None or self._left > 0:
                await self._wait_sink()
                data = self._read()
                if data is None:
                    await self._wait_data()
                elif not data:
                    break
                else:
                    self._send(self.splitter.receive_data(data))
                    await self._after_read(len(data))
            await self._wait_sink()
            self._send(self.splitter.receive_eof())
        finally:
            self.finished.set()

    def finish(self) -> None:
        """Read no further than what is in the pipe now.

        Called a drain time after the process has exited: all that it wrote is in the pipe or was
        read, and whoever still holds the other end may write for ever.
        """
        if self._left is None:
            self._left = _bytes_in(self._fd)
            if self._left == 0 and self._waiting is not None:
                self._waiting.cancel()

    def _read(self) -> bytes | None:
        """Return what is there, ``b""`` at the end, or None when there is nothing yet."""
        try:
            return os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:
            # The master side of a terminal says EIO where a pipe says end of file (pty(7)).
            if error.errno == errno.EIO:
                return b""
            raise

    async def _after_read(self, size: int) -> None:
        if self._left is not None:
            self._left -= size
        if size < READ_SIZE:
            # The pipe is empty now, most likely, so this waits; if not, it is a checkpoint.
            if self._left is None or self._left > 0:
                await self._wait_data()
        else:
            # A child that prints faster than we read must not keep the other tasks waiting.
            await trio.lowlevel.checkpoint()

    async def _wait_data(self) -> None:
        patience = self._flush_partial if self.splitter.has_partial else math.inf
        with trio.move_on_after(patience) as self._waiting:
            await trio.lowlevel.wait_readable(self._fd)
        silent = self._waiting.cancelled_caught and self._left is None
        self._waiting = None
        if silent:
            await self._wait_sink()
            self._send(self.splitter.flush_partial())

    async def _wait_sink(self) -> None:
        while self._sink is not None and not self._sink.idle:
            try:
                await self._sink.wait_settled()
            except ClientGone:
                self._sink = None

    def _send(self, pieces: list[Piece]) -> None:
        if not pieces or self._sink is None:
            return
        frames = self._encode(pieces)
        if frames:
            try:
                self._sink.send_nowait(frames)
                self.last_sent = trio.current_time()
            except ClientGone:
                self._sink = None


def _bytes_in(fd: int) -> int:
    """Return how many bytes are in a pipe or terminal (FIONREAD, ioctl_tty(2), pipe(7))."""
    try:
        answer = fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0")
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])


class Relay:
    """Both of a child's output streams.

    Args:
        pumps: the streams that are read, stdout first.
    """

    def __init__(self, pumps: list[Pump]) -> None:
        self._pumps = pumps

    @property
    def last_sent(self) -> float:
        """When the last record was sent, on Trio's clock in seconds."""
        return max(pump.last_sent for pump in self._pumps)

    async def run(self) -> None:
        """Relay until every stream has ended."""
        async with trio.open_nursery() as nursery:
            for pump in self._pumps:
                nursery.start_soon(pump.run)

    async def drain(self, seconds: float) -> None:
        """After the process has exited: wait for its streams to end, but not for their holders.

        Returns after ``seconds`` at the latest. What was in the pipes by then is still relayed;
        :meth:`wait_finished` waits for that.
        """
        with trio.move_on_after(seconds):
            await self.wait_finished()
        for pump in self._pumps:
            pump.finish()

    async def wait_finished(self) -> None:
        """Wait until nothing is left to read and everything read was sent."""
        for pump in self._pumps:
            await pump.finished.wait()
