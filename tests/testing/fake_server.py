"""A server that speaks agentd.v1 as a test tells it to, truthfully or not.

The frames are those of the `websockets` library, and the records those of the contract: nothing of
agentd's own is in what its client is tried against. Each connection is a thread with a blocking
socket, so that a test can stop in the middle of anything.
"""

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

PATIENCE = 20
"""Seconds until a script that waits for its client is taken for stuck."""


class Peer:
    """One client, seen from the server."""

    def __init__(self, sock: socket.socket, subprotocol: str | None) -> None:
        self.sock = sock
        self.request: Request | None = None
        self._protocol = ServerProtocol(
            subprotocols=None if subprotocol is None else [Subprotocol(subprotocol)], max_size=None
        )
        self._frames: list[Frame] = []

    # The opening.

    def read_request(self) -> Request:
        """Wait for the head of the request."""
        while True:
            for event in self._protocol.events_received():
                assert isinstance(event, Request)
                self.request = event
                return event
            self._protocol.receive_data(self.sock.recv(65536))

    def accept(self, *, early: bytes = b"") -> None:
        """Let the client in; `early` goes out in the same segment as the answer."""
        request = self.request or self.read_request()
        self._protocol.send_response(self._protocol.accept(request))
        self.raw(b"".join(self._protocol.data_to_send()) + early)

    def answer(self, status: str, body: bytes = b"", headers: Mapping[str, str] = {}) -> None:
        """Refuse: an HTTP status such as ``"404 Not Found"``, and a body of declared length."""
        if self.request is None:
            self.read_request()
        fields = {"Content-Length": str(len(body)), "Connection": "close"} | dict(headers)
        head = f"HTTP/1.1 {status}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
        self.raw(head.encode() + b"\r\n" + body)

    # Sending.

    def send(self, *records: Mapping[str, Any]) -> None:
        """Send records, a text frame each."""
        for record in records:
            self.send_text(json.dumps(record))

    def send_text(self, text: str) -> None:
        """Send a text frame."""
        self._protocol.send_text(text.encode())
        self._flush()

    def send_in_fragments(self, record: Mapping[str, Any], size: int) -> None:
        """Send a record as one message of several frames."""
        data = json.dumps(record).encode()
        self._protocol.send_text(data[:size], fin=False)
        for start in range(size, len(data), size):
            self._protocol.send_continuation(data[start : start + size], fin=False)
        self._protocol.send_continuation(b"", fin=True)
        self._flush()

    def send_bytes(self, data: bytes) -> None:
        """Send a binary frame."""
        self._protocol.send_binary(data)
        self._flush()

    def ping(self, payload: bytes) -> None:
        """Send a Ping."""
        self._protocol.send_ping(payload)
        self._flush()

    def close(self, code: int = 1000, reason: str = "exit 0") -> None:
        """Send Close, and end our side of the connection."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
            self._flush()
        self.fin()

    def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def fin(self) -> None:
        """End our side of the connection."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def rst(self) -> None:
        """Reset the connection: SO_LINGER of 0 seconds, socket(7)."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # Receiving.

    def receive(self) -> Frame | None:
        """Wait for the client's next frame; None when the client is gone."""
        while not self._frames:
            try:
                data = self.sock.recv(65536)
            except ConnectionError:
                return None
            if not data:
                return None
            self._protocol.receive_data(data)
            self._frames += [e for e in self._protocol.events_received() if isinstance(e, Frame)]
            # websockets answers a Close by itself, and a Ping; here the script decides.
            self._protocol.data_to_send()
        return self._frames.pop(0)

    def receive_record(self) -> dict[str, Any]:
        """Wait for the client's next text frame, as the JSON in it."""
        frame = self.receive()
        assert frame is not None, "the client is gone"
        assert frame.opcode is Opcode.TEXT
        record = json.loads(bytes(frame.data))
        assert isinstance(record, dict)
        return record

    def wait_gone(self) -> None:
        """Wait until the client has closed the connection, whatever it still says."""
        while self.receive() is not None:
            pass

    def _flush(self) -> None:
        self.raw(b"".join(self._protocol.data_to_send()))


Script = Callable[[Peer], None]


class FakeServer:
    """Where the server is, and what went wrong in it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.faults: list[BaseException] = []


@contextlib.contextmanager
def serving(
    script: Script,
    *,
    path: Path | None = None,
    tls: ssl.SSLContext | None = None,
    subprotocol: str | None = "agentd.v1",
    send_buffer: int | None = None,
) -> Iterator[FakeServer]:
    """Serve each connection with `script`, on loopback or on a Unix socket at `path`.

    A script that fails, or that still waits when its client is long gone, fails the test here.
    """
    if path is None:
        listener = socket.create_server(("127.0.0.1", 0))
        scheme = "wss" if tls else "ws"
        server = FakeServer(f"{scheme}://localhost:{listener.getsockname()[1]}/")
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        server = FakeServer(f"unix:{path}")
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            if send_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            thread = threading.Thread(target=converse, args=(sock,), daemon=True)
            threads.append(thread)
            thread.start()

    def converse(sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        if tls is not None:
            try:
                sock = tls.wrap_socket(sock, server_side=True)
            except OSError:
                return  # a client that does not trust us; nothing for the script to see
        try:
            with sock:
                script(Peer(sock, subprotocol))
        except BaseException as fault:  # noqa: BLE001  # it fails the test, in its own thread
            server.faults.append(fault)

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield server
    finally:
        # close() alone would leave accept() waiting.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(PATIENCE)
        for thread in threads:
            thread.join(PATIENCE)
    assert not server.faults, server.faults
    assert not any(thread.is_alive() for thread in threads)
