"""The socket of one WebSocket client, and the only writer to it.

trio-websocket reads and answers control frames over this stream; the relay sends data frames past
it. Both end up here, where every unit written is a run of whole frames in one order: a unit that
the socket takes only in part is finished by one task before anything else is sent. So a Ping that
is answered in the middle of a long line, a cancelled send or a Close can never cut a frame in two
(RFC 6455 5.4).

A unit that cannot be finished poisons the stream: it is aborted and nothing more is written, not
even a Close, and the peer sees an abnormal end (1006) rather than a false one.
"""

import os
import socket
from collections import deque

import trio

from agentd import AgentdError
from agentd.sansio.frames import CLOSE, PONG, close_frame

RECEIVE_SIZE = 65536
_TOO_LARGE = (1009).to_bytes(2, "big")


class ClientGone(AgentdError):
    """The client is not there any more, or takes nothing: nothing can be sent to it."""


class Wire(trio.abc.Stream):
    """One client's socket, from the head that was admitted to the Close that ends it.

    Args:
        stream: the accepted connection; the wire owns it from now on.
        head: the request head that trio-websocket is to see, rebuilt from what was admitted.
        early: what the peer sent behind its head; handed on once it is accepted.
        write_timeout: seconds in which the socket must take a byte.
    """

    def __init__(
        self, stream: trio.SocketStream, head: bytes, early: bytes, *, write_timeout: float
    ) -> None:
        self._stream = stream
        self._socket = stream.socket
        # The hot path writes without a task switch, which Trio's own socket cannot do. The
        # number is good until abort() closes the socket, and `dead` is set with it.
        self._fd = self._socket.fileno()
        self._head: bytes | None = head
        self._early = early
        self._write_timeout = write_timeout
        self._accepted = trio.Event()
        self._reading = True
        # Units not yet wholly written, oldest first; the first may have been written in part.
        self._pending: deque[memoryview] = deque()
        self._work = trio.Event()
        self._settled = trio.Event()
        self._settled.set()
        self.dead = trio.Event()
        self.reader_done = trio.Event()
        self.close_sent = False
        self.echoed = False
        """The peer sent Close and trio-websocket answered it."""
        self.last_heard = trio.current_time()
        self.last_sent = self.last_heard
        self.too_slow = False

    # What the relay and the connection send.

    @property
    def idle(self) -> bool:
        """Whether everything sent so far is with the kernel (or with nobody: the wire is dead)."""
        return not self._pending

    def send_nowait(self, unit: bytes) -> None:
        """Send whole frames, at once where the socket takes them, else as soon as it does.

        Never waits. Before the next unit of data the caller waits for :meth:`wait_settled`, so at
        most one unit of data is ever kept here.

        Raises:
            ClientGone: the wire is dead or a Close was sent.
        """
        if self.dead.is_set() or self.close_sent:
            raise ClientGone("the client is gone")
        self._push(unit)

    async def wait_settled(self) -> None:
        """Wait until the socket has taken everything sent so far.

        Raises:
            ClientGone: it never will.
        """
        await self._settled.wait()
        if self.dead.is_set():
            raise ClientGone("the client is gone")

    def abort(self) -> None:
        """End the connection now: nothing more is written, not even what was begun."""
        if self.dead.is_set():
            return
        self._socket.close()
        self._pending.clear()
        self.dead.set()
        self._settled.set()
        self._work.set()

    async def close(self, code: int, reason: str, *, linger: float) -> None:
        """Send Close after everything sent so far, shut our side, drain the peer's for a while.

        Without the drain, closing a socket with unread input resets the connection, and the reset
        can overtake the last lines (RFC 9112 9.6). Aborts at last in every case.
        """
        try:
            if not self.close_sent:
                await self.wait_settled()
                self.send_nowait(close_frame(code, reason))
                self.close_sent = True
            with trio.move_on_after(linger):
                await self._finish()
        except (ClientGone, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.abort()

    async def _finish(self) -> None:
        await self.wait_settled()
        self._socket.shutdown(socket.SHUT_WR)
        if self.echoed:
            return  # the peer closed first and sends nothing more (RFC 6455 5.5.1)
        await self.reader_done.wait()
        while await self._stream.receive_some(RECEIVE_SIZE):
            pass

    # The writer.

    def _push(self, unit: bytes) -> None:
        if self._pending:
            self._pending.append(memoryview(unit))
            return
        sent = self._write(unit)
        if sent < len(unit) and not self.dead.is_set():
            self._pending.append(memoryview(unit)[sent:])
            self._settled = trio.Event()
            self._work.set()

    def _write(self, unit: bytes | memoryview) -> int:
        try:
            sent = os.write(self._fd, unit)
        except BlockingIOError:
            return 0
        except OSError:
            self.abort()
            return 0
        self.last_sent = trio.current_time()
        return sent

    async def write_pending(self) -> None:
        """Write what the socket did not take at once; runs beside the connection for its life."""
        while not self.dead.is_set():
            await self._work.wait()
            self._work = trio.Event()
            while self._pending:
                with trio.move_on_after(self._write_timeout) as patience:
                    try:
                        await trio.lowlevel.wait_writable(self._socket)
                    except (OSError, trio.ClosedResourceError):
                        self.abort()
                if self.dead.is_set():
                    return
                # "Writable" wants a good part of the buffer free; a slow client may have taken
                # a little all the same, and is then not one that takes nothing.
                if not self._write_oldest() and patience.cancelled_caught:
                    self.too_slow = True
                    self.abort()
            self._settled.set()

    def _write_oldest(self) -> int:
        unit = self._pending[0]
        sent = self._write(unit)
        if self._pending:  # else the write failed, and with it the wire
            if sent == len(unit):
                self._pending.popleft()
            else:
                self._pending[0] = unit[sent:]
        return sent

    # What trio-websocket sees.

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send a control frame (or the 101) of trio-websocket's at the next frame boundary.

        It never waits for the socket: its only caller is the reader, and a reader that waits for
        a client that does not read would not see the client go.
        """
        await trio.lowlevel.checkpoint()
        if self.dead.is_set():
            raise trio.BrokenResourceError
        unit = bytes(data)
        if not self._accepted.is_set():
            self._push(unit)
            self._accepted.set()
            return
        opcode = unit[0] & 0x0F
        if self.close_sent:
            return  # nothing follows our Close
        if opcode == CLOSE and unit[2:4] == _TOO_LARGE:
            # Its own word for a message that is too large. That Close is ours to send, with the
            # code agentd.v1 has for it, and trio-websocket reads no further.
            self.reader_done.set()
            return
        if opcode == PONG:
            # A Pong may answer the newest Ping alone (RFC 6455 5.5.3): a flood of Pings to a
            # client that does not read keeps one Pong here.
            newest = self._pending[-1] if len(self._pending) > 1 else None
            if newest is not None and newest[0] & 0x0F == PONG:
                self._pending.pop()
        self._push(unit)
        if opcode == CLOSE:
            self.close_sent = self.echoed = True

    async def wait_send_all_might_not_block(self) -> None:
        """Part of the stream interface; a send never blocks here."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Give trio-websocket the rebuilt head, then, once it has accepted, the peer's bytes.

        Nothing of the peer is read before that, so what it sends too early stays with the kernel.
        """
        if self._head is not None:
            await trio.lowlevel.checkpoint()
            head, self._head = self._head, None
            return head
        await self._accepted.wait()
        if self._early:
            await trio.lowlevel.checkpoint()
            early, self._early = self._early, b""
            return early
        if not self._reading or self.dead.is_set():
            raise trio.ClosedResourceError
        data = b""
        try:
            data = bytes(await self._stream.receive_some(max_bytes or RECEIVE_SIZE))
        finally:
            if not data:
                self.reader_done.set()
        self.last_heard = trio.current_time()
        return data

    async def aclose(self) -> None:
        """Note that trio-websocket is done with the stream; closing it is :meth:`close`'s."""
        self._reading = False
        self.reader_done.set()
        await trio.lowlevel.checkpoint()
