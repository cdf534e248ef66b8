"""Servers on loopback that give prepared answers, whatever they are asked."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from agentd.address import Address

HEALTHY = b'{"status":"ok","protocol":"agentd.v1","build":"0","image":null}'


class Loopback(NamedTuple):
    """A server that runs: where, and the requests it has read so far."""

    address: Address
    requests: list[bytes]


def answer(status: str = "200 OK", body: bytes = HEALTHY, head: str = "") -> bytes:
    """One HTTP/1.1 response with its Content-Length."""
    return f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def serving(
    reply: bytes | Callable[[socket.socket], None], address: str = "127.0.0.1:0"
) -> Iterator[Loopback]:
    """A server on ``address`` that reads a request head, sends ``reply`` and closes.

    A callable is given each connection, after the request, and does what it likes with it.
    """
    wanted = Address.parse(address)
    listener, found = _listen(wanted)
    requests: list[bytes] = []
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            with suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    if done.is_set():
                        return
                    requests.append(_read_head(connection))
                    if callable(reply):
                        reply(connection)
                    else:
                        connection.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Loopback(found, requests)
    finally:
        done.set()
        _wake(found)
        thread.join()
        listener.close()


def unused_port() -> int:
    """A port on which nothing listened a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _listen(wanted: Address) -> tuple[socket.socket, Address]:
    if wanted.path:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(wanted.path)
        listener.listen()
        return listener, wanted
    family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
    listener = socket.create_server((wanted.host, wanted.port), family=family)
    return listener, wanted._replace(port=listener.getsockname()[1])


def _read_head(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            break
        data += more
    return data


def _wake(address: Address) -> None:
    """Let accept() return, so that the thread sees that it is over."""
    to = address.reachable()
    family = socket.AF_UNIX if to.path else socket.AF_INET6 if ":" in to.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as knock, suppress(OSError):
        knock.connect(to.path or (to.host, to.port))
