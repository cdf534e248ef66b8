"""A client's side of an open WebSocket: text messages in and out, served by a task of its own.

Whoever holds a :class:`ClientSocket` may be busy for as long as it likes between two messages: the
task goes on reading, answers pings, and stops reading when :data:`MAX_HELD` characters lie here
untaken, so that the server's sends come to stand. It only ever writes whole frames: a caller that
is cancelled while it sends leaves no half frame behind.

The task is a system task because its owner may be an async generator, which cannot hold a nursery
across a ``yield``. Nothing may come out of a system task, so what goes wrong in here is kept, and
told to whoever receives next. It refuses to know what the messages mean.
"""

from collections import deque
from contextlib import suppress
from typing import Final

import trio
from wsproto import WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage

from agentd.client_handshake import RECEIVE_SIZE, printable

MAX_HELD: Final = 1024 * 1024
"""Characters of messages that may lie here untaken before the socket is read no further."""

MAX_MESSAGE: Final = 16 * 1024 * 1024
"""The longest message taken, in characters."""

_CHECKPOINT_EVERY: Final = 64
_FLUSH_WAIT: Final = 1.0
# While nothing is read, nothing is answered; an unsolicited Pong (RFC 6455, 5.5.3) says that we
# are there. Shorter than any sensible keep-alive.
_STILL_HERE: Final = 2.0


class _Lost(Exception):  # an end, not an error
    """Nothing more will come; why is in the socket's attributes."""


class ClientSocket:
    """An open WebSocket and the task that serves it; :meth:`aclose` ends both.

    Args:
        transport: the connected stream; the socket owns it from now on.
        websocket: its protocol state after the handshake.
        silence: seconds without a byte until the peer is pinged, and until it is given up then.

    Attributes:
        close_code: of the peer's Close frame, None before it came and where none did.
        close_reason: of that frame, or what happened to the connection.
        fault: what the peer did against the protocol, else None.
    """

    def __init__(
        self, transport: trio.abc.Stream, websocket: WSConnection, *, silence: float
    ) -> None:
        self.close_code: int | None = None
        self.close_reason = ""
        self.fault: str | None = None
        self._transport = transport
        self._websocket = websocket
        self._silence = silence
        self._parts: list[str] = []
        self._parts_size = 0
        self._texts: deque[str] = deque()
        self._held = 0
        self._since_checkpoint = 0
        self._arrived = trio.Event()
        self._taken = trio.Event()
        self._outgoing = bytearray()
        self._pong = b""
        self._work = trio.Event()
        self._flushed = trio.Event()
        self._flushed.set()
        self._writing = True
        self._crash: Exception | None = None
        self._over = False
        self._closed = trio.Event()
        self._scope = trio.CancelScope()
        trio.lowlevel.spawn_system_task(self._serve, name="agentd client connection")

    async def receive_text(self) -> str | None:
        """Return the next message, None when the connection is over and all were taken.

        A checkpoint only now and then while messages lie here: one for each would be the larger
        part of a stream's cost.
        """
        self._since_checkpoint += 1
        if self._since_checkpoint > _CHECKPOINT_EVERY or not self._texts:
            self._since_checkpoint = 0
            await trio.lowlevel.checkpoint()
        while not self._texts:
            if self._crash is not None:
                raise self._crash
            if self._over:
                return None
            self._arrived = trio.Event()
            await self._arrived.wait()
        text = self._texts.popleft()
        self._held -= len(text)
        if self._held <= MAX_HELD // 2:
            self._taken.set()
        return text

    async def send_text(self, text: str) -> bool:
        """Send a message; return once the kernel has it, False where it never will."""
        await trio.lowlevel.checkpoint()
        if self._over or not self._writing or self._websocket.state is not ConnectionState.OPEN:
            return False
        self._outgoing += self._websocket.send(Message(data=text))
        self._wake_writer()
        await self._flushed.wait()
        return self._writing

    async def aclose(self) -> None:
        """Close the connection, now: a Close frame is only sent to answer the peer's."""
        try:
            if self._over:
                await self._closed.wait()
        finally:
            self._scope.cancel()
            with trio.CancelScope(shield=True):
                await self._closed.wait()

    async def _serve(self) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    with suppress(_Lost):
                        await self._read()
                    self._end()
                    with trio.move_on_after(_FLUSH_WAIT):
                        await self._flushed.wait()
                    nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001  # the barrier: it is raised in receive_text()
            self._crash = error
        finally:
            self._writing = False
            self._flushed.set()
            self._end()
            try:
                await trio.aclose_forcefully(self._transport)
            finally:
                self._closed.set()

    def _end(self) -> None:
        self._over = True
        self._arrived.set()

    async def _read(self) -> None:
        while True:
            # The first frames may have come with the answer to the handshake.
            for event in self._websocket.events():
                self._handle(event)
            if self._held > MAX_HELD:
                await self._wait_taken()
            self._websocket.receive_data(await self._receive_some())

    async def _wait_taken(self) -> None:
        self._taken = trio.Event()
        while not self._taken.is_set():
            with trio.move_on_after(_STILL_HERE) as patience:
                await self._taken.wait()
            if patience.cancelled_caught:
                self._pong = self._websocket.send(Pong())
                self._wake_writer()

    async def _receive_some(self) -> bytes:
        try:
            for last_chance in (False, True):
                with trio.move_on_after(self._silence):
                    data = await self._transport.receive_some(RECEIVE_SIZE)
                    if data:
                        return bytes(data)
                    raise self._lost("the server closed the connection")
                if not last_chance:
                    self._pong = self._websocket.send(Ping())
                    self._wake_writer()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._lost("the connection was lost") from None
        raise self._lost(f"the server said nothing for {2 * self._silence:g} s")

    def _handle(self, event: Event) -> None:
        match event:
            case TextMessage():
                self._take(event)
            case BytesMessage():
                raise self._wrong("a binary message came", 1003)
            case Ping():
                # The newest alone need be answered: RFC 6455, 5.5.3.
                self._pong = self._websocket.send(event.response())
                self._wake_writer()
            case CloseConnection(code=code, reason=reason):
                if self._websocket.state is ConnectionState.OPEN:
                    # wsproto's word for a frame that breaks the protocol.
                    raise self._wrong("a frame came that is not a WebSocket frame", int(code))
                self._say(event.response())
                self.close_code = int(code)
                raise self._lost(printable(reason or ""))

    def _take(self, event: TextMessage) -> None:
        self._parts.append(event.data)
        self._parts_size += len(event.data)
        if self._parts_size > MAX_MESSAGE:
            raise self._wrong("a message came that is longer than 16 MiB", 1009)
        if event.message_finished:
            self._texts.append("".join(self._parts))
            self._held += self._parts_size
            self._parts.clear()
            self._parts_size = 0
            self._arrived.set()

    def _wrong(self, fault: str, code: int) -> _Lost:
        self.fault = fault
        self._say(CloseConnection(code=code))
        return self._lost(fault)

    def _lost(self, reason: str) -> _Lost:
        self.close_reason = reason
        return _Lost()

    def _say(self, close: CloseConnection) -> None:
        self._outgoing += self._websocket.send(close)
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._writing:
            if self._flushed.is_set():
                self._flushed = trio.Event()
            self._work.set()

    async def _write(self) -> None:
        """Send what lies in `_outgoing` and `_pong`, always to the end of a frame."""
        try:
            while True:
                await self._work.wait()
                self._work = trio.Event()
                while self._pong or self._outgoing:
                    frames = self._pong + bytes(self._outgoing)
                    self._pong = b""
                    self._outgoing.clear()
                    await self._transport.send_all(frames)
                self._flushed.set()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # What came from the peer may still be unread, its `end` among it: only reading ends
            # the connection.
            self._writing = False
            self._flushed.set()
