"""One HTTP/1.1 GET with a blocking socket: how ``agentd health`` and ``--if-running`` ask.

Invariant: it ends by its deadline, whatever the other side does, and never keeps more than
:data:`MAX_BODY`.  Only name resolution is the system's and has its own time.  It refuses to know
Trio, redirects, TLS and encodings: it asks agentd, and what answers otherwise is not agentd.
"""

import json
import socket
import time

from agentd import PROTOCOL, AgentdError
from agentd.address import Address

TIMEOUT = 3.0  # seconds, for connecting, asking and reading together
MAX_HEAD = 16 * 1024
MAX_BODY = 64 * 1024


class ProbeError(AgentdError):
    """Nobody answered in time, or what answered does not speak HTTP."""


def probe(address: Address, path: str = "/healthz", timeout: float = TIMEOUT) -> tuple[int, bytes]:
    """GET ``path`` from the server that listens on ``address``: (status, body).

    Raises ProbeError when there is no answer within ``timeout`` seconds, or none that is HTTP.
    """
    deadline = time.monotonic() + timeout
    request = f"GET {path} HTTP/1.1\r\nHost: {address.authority}\r\nConnection: close\r\n\r\n"
    trouble = "timed out"
    try:
        with _connect(address.reachable(), deadline) as connection:
            connection.settimeout(_left(deadline))
            connection.sendall(request.encode())
            return _receive(connection, deadline)
    except TimeoutError:
        pass
    except OSError as error:
        trouble = error.strerror or "connection failed"
    except UnicodeError:
        trouble = "no such host name"
    raise ProbeError(f"cannot reach {address}: {trouble}")


def is_agentd(address: Address, timeout: float = TIMEOUT) -> bool:
    """Whether a healthy agentd of our protocol answers on ``address``."""
    try:
        status, body = probe(address, timeout=timeout)
    except ProbeError:
        return False
    return status == 200 and is_healthy(body)


def is_healthy(body: bytes) -> bool:
    """Whether ``body`` is what a healthy agentd of our protocol says on ``/healthz``."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(answer, dict)
        and answer.get("status") == "ok"
        and answer.get("protocol") == PROTOCOL
    )


def _connect(address: Address, deadline: float) -> socket.socket:
    if address.path:
        return _connect_to(socket.AF_UNIX, address.path, deadline)
    refused = OSError("no address")
    for family, _, _, _, where in socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM
    ):
        try:
            return _connect_to(family, where, deadline)
        except TimeoutError:
            raise
        except OSError as error:
            refused = error
    raise refused


def _connect_to(
    family: int, where: str | tuple[str | int, ...] | tuple[int, bytes], deadline: float
) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(_left(deadline))
        connection.connect(where)
    except OSError:
        connection.close()
        raise
    return connection


def _receive(connection: socket.socket, deadline: float) -> tuple[int, bytes]:
    """Read one response, to its Content-Length or its end (RFC 9112 sections 6.3 and 4)."""
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > MAX_HEAD:
            raise ProbeError("cannot read the answer: its head is too large")
        more = _receive_some(connection, deadline)
        if not more:
            raise ProbeError("cannot read the answer: it is not HTTP, or was cut short")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *fields = head.split(b"\r\n")
    version, _, rest = status_line.partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
        raise ProbeError("cannot read the answer: it is not HTTP")
    length = _content_length(fields)
    while length is None or len(body) < length:
        more = _receive_some(connection, deadline)
        if not more:
            break
        body += more
        if len(body) > MAX_BODY:
            raise ProbeError("cannot read the answer: it is too large")
    if length is not None and len(body) < length:
        raise ProbeError("cannot read the answer: it was cut short")
    return int(rest[:3]), body[:length]


def _content_length(fields: list[bytes]) -> int | None:
    for field in fields:
        name, _, value = field.partition(b":")
        if name.lower() == b"content-length" and value.strip().isdigit():
            return int(value.strip()[:18])
    return None


def _receive_some(connection: socket.socket, deadline: float) -> bytes:
    connection.settimeout(_left(deadline))
    return connection.recv(MAX_HEAD)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
