"""HTTP byte by byte: heads that no client would send, and answers as they came."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

PATIENCE = 20.0
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
"""The Sec-WebSocket-Key of RFC 6455 section 1.2."""


@dataclass(frozen=True)
class Answer:
    """A response; header names are in lower case, ``raw`` is all of it."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes
    raw: bytes


def unused_port() -> int:
    """A port on which nothing listened a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def dialled(port: int) -> Iterator[socket.socket]:
    """A TCP connection to loopback, closed with the block."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    """Everything up to the peer's end; a reset is an end too."""
    data = b""
    try:
        while more := connection.recv(65536):
            data += more
    except ConnectionError:
        pass
    return data


def exchange(port: int, request: bytes, *, end: bool = False) -> bytes:
    """Send ``request``, with ``end`` and a FIN, and return all that comes back."""
    with dialled(port) as connection:
        try:
            connection.sendall(request)
            if end:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was answered before it was whole
        return read_to_end(connection)


def parse(raw: bytes) -> Answer:
    """Read one response, of which nothing may be left over."""
    head, separator, body = raw.partition(b"\r\n\r\n")
    assert separator, raw[:500]
    first, *lines = head.decode("ascii").split("\r\n")
    version, status, reason = first.split(" ", 2)
    assert version == "HTTP/1.1", first
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        assert name.lower() not in headers, f"{name} twice"
        headers[name.lower()] = value
    return Answer(int(status), reason, headers, body, raw)


def ask(port: int, request: bytes) -> Answer:
    """Send a request and return its answer, which is all that came."""
    return parse(exchange(port, request))


def handshake(target: str = "/", *headers: str, protocols: str | None = "agentd.v1") -> bytes:
    """The head of a WebSocket request with further header lines."""
    lines = [
        f"GET {target} HTTP/1.1",
        "Host: agentd.example",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {KEY}",
    ]
    if protocols is not None:
        lines.append(f"Sec-WebSocket-Protocol: {protocols}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1")


def knock(port: int, request: bytes) -> Answer:
    """Ask for a stream and return the answer; one that is granted is left at once."""
    with dialled(port) as connection:
        connection.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more:
                break
            data += more
        if data.startswith(b"HTTP/1.1 101 "):
            return parse(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        return parse(data + read_to_end(connection))
