"""A WebSocket client that does only what it is told: it reads nothing by itself, answers no Ping.

Real clients are too polite for some tests. This one stops reading, stays silent, leaves with a FIN,
a RST or without a word, and sees the frames as they are on the wire (RFC 6455).
"""

import base64
import contextlib
import json
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

from testing.daemon import PATIENCE, V1

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
SMALL = 65536
"""A receive buffer that is soon full; the kernel doubles it (socket(7))."""


class Frame(NamedTuple):
    """One frame as it came."""

    opcode: int
    payload: bytes

    @property
    def record(self) -> dict[str, Any]:
        """The agentd.v1 record in it."""
        record: dict[str, Any] = json.loads(self.payload)
        return record

    @property
    def close(self) -> tuple[int, str]:
        """The code and the reason of a Close."""
        assert self.opcode == CLOSE, self
        return struct.unpack("!H", self.payload[:2])[0], self.payload[2:].decode()


class PlainClient:
    """One connection.

    Args:
        address: ``HOST:PORT``, or ``unix:PATH``.
        path: the request target.
        subprotocol: what is asked for, None for raw.
        buffer: bytes of the receive buffer, for tests that want it full soon.
    """

    def __init__(
        self,
        address: str,
        path: str = "/",
        *,
        subprotocol: str | None = V1,
        buffer: int | None = None,
    ) -> None:
        unix = address.startswith("unix:")
        self.socket = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(PATIENCE)
        host, _, port = address.rpartition(":")
        self.socket.connect(port if unix else (host, int(port)))
        self._received = bytearray()
        asked = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
        key = base64.b64encode(os.urandom(16)).decode()
        self._head = (
            f"GET {path} HTTP/1.1\r\nHost: agentd\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{asked}\r\n"
        ).encode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self) -> None:
        """Send the request and do not wait for the answer."""
        self.socket.sendall(self._head)

    def answer(self) -> int:
        """Read the head of the response; return its status."""
        while b"\r\n\r\n" not in self._received:
            self._receive()
        head = self._take(self._received.index(b"\r\n\r\n") + 4)
        return int(head.split()[1])

    def upgrade(self) -> Self:
        """Ask, and be accepted."""
        self.ask()
        assert self.answer() == 101
        return self

    def frame(self) -> Frame:
        """Read one frame; ConnectionError when there is none any more."""
        first, second = self._take(2)
        assert first & 0x80, "a server has no reason to fragment"
        assert not second & 0x80, "a server does not mask"
        size = second & 0x7F
        if size > 125:
            size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
        return Frame(first & 0x0F, self._take(size))

    def frames(self) -> Iterator[Frame]:
        """Read frames up to and with the Close."""
        while True:
            frame = self.frame()
            yield frame
            if frame.opcode == CLOSE:
                return

    def records(self) -> Iterator[dict[str, Any]]:
        """Read agentd.v1 records up to the end record."""
        for frame in self.frames():
            if frame.opcode == TEXT:
                yield frame.record
                if frame.record["type"] == "end":
                    return

    def send(self, opcode: int, payload: bytes = b"") -> None:
        """Send one masked frame of at most 125 bytes; the mask is zeros."""
        self.socket.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload)

    def send_record(self, **record: Any) -> None:
        """Send an agentd.v1 client record."""
        self.send(TEXT, json.dumps(record).encode())

    def wait_eof(self) -> None:
        """Read until the server has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while True:
                self._receive()

    # Ways to leave.

    def leave_by_close(self) -> None:
        """Send a Close frame and wait for nothing."""
        self.send(CLOSE, struct.pack("!H", 1000))

    def leave_by_fin(self) -> None:
        """Shut our side for writing: a FIN, and no RST behind it."""
        self.socket.shutdown(socket.SHUT_WR)

    def leave_by_rst(self) -> None:
        """Close with a RST (SO_LINGER of 0 seconds, socket(7))."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def leave_by_kill(self) -> None:
        """Be a process that is killed: the kernel closes what it had open."""
        holder = subprocess.Popen(
            ["sh", "-c", "echo; exec sleep 300"],
            pass_fds=[self.socket.fileno()],
            stdout=subprocess.PIPE,
        )
        assert holder.stdout is not None
        holder.stdout.readline()
        self.socket.close()
        holder.kill()
        holder.wait()
        holder.stdout.close()

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            self._receive()
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _receive(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self._received += data


LEAVING: dict[str, Callable[[PlainClient], None]] = {
    "close": PlainClient.leave_by_close,
    "fin": PlainClient.leave_by_fin,
    "rst": PlainClient.leave_by_rst,
    "killed": PlainClient.leave_by_kill,
}
"""Ways for a client to go, by name."""


class Collector(threading.Thread):
    """Reads a stream to its end beside the test; the frames are in :attr:`frames`."""

    def __init__(self, client: PlainClient) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self._client = client
        self.start()

    def run(self) -> None:
        """Collect until the Close or the end of the connection."""
        with contextlib.suppress(OSError):
            self.frames.extend(self._client.frames())
