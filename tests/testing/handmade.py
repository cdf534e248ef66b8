"""A WebSocket client made by hand on a blocking socket: fast, and free to break every rule.

It sees what a library hides: the bytes of each frame, what comes behind a Close, and the end of the
connection. Frames are taken as RFC 6455 section 5.2 draws them; nothing of agentd's own is used.
"""

import base64
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

PATIENCE = 20.0
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class Frame(NamedTuple):
    """One frame as it was on the wire; ``first`` has FIN, RSV and the opcode."""

    first: int
    payload: bytes

    @property
    def opcode(self) -> int:
        return self.first & 0x0F


def client_frame(payload: bytes, *, first: int = 0x80 | TEXT, mask: bool = True) -> bytes:
    """The bytes of one frame as a client sends it, or, on purpose, as none may.

    Args:
        first: the first byte: FIN is 0x80, the reserved bits are 0x40, 0x20 and 0x10.
        mask: whether it is masked, as RFC 6455 section 5.3 demands.
    """
    flag = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", first, flag | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, flag | 126, size)
    else:
        head = struct.pack("!BBQ", first, flag | 127, size)
    # A key of zeros masks as well as any other, and leaves the bytes as they are.
    return head + (b"\0\0\0\0" if mask else b"") + payload


def upgrade_request(path: str = "/", subprotocols: Sequence[str] = ()) -> bytes:
    """The head of an opening handshake (RFC 6455 section 4.1)."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: " + base64.b64encode(os.urandom(16)).decode(),
    ]
    if subprotocols:
        lines.append("Sec-WebSocket-Protocol: " + ", ".join(subprotocols))
    return "\r\n".join([*lines, "", ""]).encode()


class Handmade:
    """An open connection; ``head`` is the answer to its handshake.

    Args:
        address: ``HOST:PORT`` of the daemon.
        subprotocols: offered, in this order.
        early: bytes sent together with the head, before any answer.
        buffer: bytes of the receive buffer, when it is to be small.
    """

    def __init__(
        self,
        address: str,
        *,
        path: str = "/",
        subprotocols: Sequence[str] = (),
        early: bytes = b"",
        buffer: int | None = None,
    ) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.socket()
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffered = b""
        self.socket.sendall(upgrade_request(path, subprotocols) + early)
        while b"\r\n\r\n" not in self._buffered:
            data = self.socket.recv(65536)
            assert data, f"no answer to the handshake: {self._buffered!r}"
            self._buffered += data
        head, _, self._buffered = self._buffered.partition(b"\r\n\r\n")
        self.head = head.decode("latin-1")
        assert self.head.startswith("HTTP/1.1 101 "), self.head

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes, whatever they are."""
        self.socket.sendall(data)

    def frames(self) -> Iterator[Frame]:
        """Each frame up to the end of the connection, the Close and what follows it included.

        Raises:
            ConnectionResetError: it was reset instead of closed.
            AssertionError: it ended within a frame.
        """
        buffer, start = bytearray(self._buffered), 0
        self._buffered = b""
        room = memoryview(bytearray(1 << 20))
        while True:
            while (frame := _parse(buffer, start)) is not None:
                first, begin, end = frame
                start = end
                yield Frame(first, bytes(buffer[begin:end]))
            del buffer[:start]
            start = 0
            count = self.socket.recv_into(room)
            if not count:
                assert not buffer, f"the connection ended within a frame: {bytes(buffer[:60])!r}"
                return
            buffer += room[:count]


def _parse(buffer: bytearray, start: int) -> tuple[int, int, int] | None:
    """Return the first byte of the frame at ``start`` and where its payload begins and ends."""
    if len(buffer) < start + 2:
        return None
    first, size = buffer[start], buffer[start + 1]
    assert size < 128, "a server masks nothing (RFC 6455 section 5.1)"
    begin = start + 2
    wide = {126: 2, 127: 8}.get(size, 0)
    if wide:
        if len(buffer) < begin + wide:
            return None
        size = int.from_bytes(buffer[begin : begin + wide], "big")
        begin += wide
    return (first, begin, begin + size) if begin + size <= len(buffer) else None


def close_code(frame: Frame) -> tuple[int, str]:
    """Return the code and the reason in a Close frame (RFC 6455 section 5.5.1)."""
    assert frame.opcode == CLOSE, frame
    return int.from_bytes(frame.payload[:2], "big"), frame.payload[2:].decode()
