"""Real TCP connections on loopback, with buffers small enough to fill."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def tcp_pair(
    *, buffer: int | None = None
) -> AsyncIterator[tuple[trio.SocketStream, socket.socket]]:
    """Two ends of one connection: the server's Trio stream and the client's blocking socket.

    Args:
        buffer: bytes of the kernel's buffers on the way from server to client, about.
    """
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    client = socket.socket()
    if buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(10)
    client.connect(listeners[0].socket.getsockname())
    server = await listeners[0].accept()
    if buffer is not None:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    await listeners[0].aclose()
    try:
        yield server, client
    finally:
        client.close()
        await trio.aclose_forcefully(server)


def reset(client: socket.socket) -> None:
    """Close with a RST instead of a FIN (SO_LINGER of 0 seconds, socket(7))."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


async def receive_exactly(client: socket.socket, size: int) -> bytes:
    """Receive ``size`` bytes, or what comes before the end."""

    def receive() -> bytes:
        parts: list[bytes] = []
        left = size
        while left:
            part = client.recv(min(left, 65536))
            if not part:
                break
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    return await trio.to_thread.run_sync(receive)


async def receive_all(client: socket.socket) -> bytes:
    """Receive until the end; a reset raises ConnectionResetError."""
    return await receive_exactly(client, 1 << 40)
