"""The server's only door to trio_websocket.

trio-websocket does the handshake, reads frames and answers Pings; it never sees the peer's own head
and never touches the socket (see :mod:`agentd.wire`). Ten inputs that end a plain trio-websocket
server end nothing here: the head it parses is ours, the Close is ours, and what it raises stays in
the one connection's nursery.
"""

import math

import trio
import trio_websocket

from agentd.sansio.admission import Upgrade
from agentd.sansio.client_records import MAX_RECORD
from agentd.sansio.frames import PING, frame
from agentd.sansio.lifecycle import BAD_RECORD
from agentd.wire import ClientGone, Wire

_PING = frame(PING, b"")
_LATE_READER = 5.0
"""Seconds of silence a client is forgiven beyond two pings."""


class Violation(ClientGone):
    """The client broke the WebSocket protocol or sent too large a message.

    Attributes:
        code: the Close code that says so (RFC 6455 7.4.1).
        reason: the same in words.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Connection:
    """An accepted client: frames go out by :attr:`wire`, messages come in by :meth:`receive`."""

    def __init__(self, wire: Wire, websocket: trio_websocket.WebSocketConnection) -> None:
        self.wire = wire
        self._websocket = websocket

    async def receive(self) -> str | bytes:
        """Return the client's next message.

        Raises:
            Violation: it broke the protocol; the connection is still open for a Close.
            ClientGone: it closed, or the connection was lost.
        """
        try:
            return await self._websocket.get_message()
        except trio_websocket.ConnectionClosed as closed:
            code = closed.reason.code if closed.reason is not None else 1006
        # trio-websocket reports a broken frame, a message that is too large, the peer's Close and a
        # lost connection in the same way; only the peer's own Close was answered.
        if self.wire.echoed or self.wire.dead.is_set() or code not in (1002, 1007, 1009):
            raise ClientGone("the client is gone")
        if code == 1009:
            raise Violation(BAD_RECORD, "client record too large")
        raise Violation(code, "invalid frame payload" if code == 1007 else "protocol error")

    async def keep_alive(self, interval: float) -> None:
        """Ping after ``interval`` seconds without a word, and return once the client is silent.

        Silent is twice the interval and five seconds without a byte from it. While a send is
        blocked nothing is concluded: a client that reads slowly answers late, and whether it reads
        at all is the write timeout's question.
        """
        wire = self.wire
        patience = 2 * interval + _LATE_READER
        heard = wire.last_heard
        pinged = -math.inf
        while True:
            now = trio.current_time()
            heard = max(heard, wire.last_heard)
            if not wire.idle:
                heard = now
            if now >= heard + patience:
                return
            if now >= max(heard, pinged) + interval and wire.idle:
                pinged = now
                try:
                    wire.send_nowait(_PING)
                except ClientGone:
                    await trio.sleep_forever()  # Close was sent, and waits for its answer
            await trio.sleep_until(min(max(heard, pinged) + interval, heard + patience))


def _head_for_trio_websocket(upgrade: Upgrade) -> bytes:
    """Build the request trio-websocket parses: ours, of nothing but what was checked."""
    lines = [
        b"GET / HTTP/1.1",
        b"Host: agentd",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: " + upgrade.key,
    ]
    if upgrade.subprotocol is not None:
        lines.append(b"Sec-WebSocket-Protocol: " + upgrade.subprotocol.encode())
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def accept(
    nursery: trio.Nursery,
    stream: trio.SocketStream,
    upgrade: Upgrade,
    early: bytes,
    *,
    write_timeout: float,
) -> Connection:
    """Answer 101 and return the connection; its tasks run in ``nursery``.

    Args:
        nursery: one that ends with this connection; what trio-websocket raises comes out of it.
        stream: the accepted stream; from here on the connection owns it.
        upgrade: what was admitted.
        early: bytes that came behind the request head.
        write_timeout: seconds in which the client's socket must take a byte.

    Raises:
        ClientGone: the client left before it was told.
    """
    wire = Wire(stream, _head_for_trio_websocket(upgrade), early, write_timeout=write_timeout)
    nursery.start_soon(wire.write_pending)
    request = await trio_websocket.wrap_server_stream(
        nursery,
        wire,
        message_queue_size=1,
        max_message_size=MAX_RECORD,
        receive_buffer_size=None,
    )
    try:
        websocket = await request.accept(subprotocol=upgrade.subprotocol)
    except trio_websocket.ConnectionClosed:
        pass
    else:
        return Connection(wire, websocket)
    raise ClientGone("the client left before it was accepted")
