"""A client: the record stream of a run, over one WebSocket connection.

::

    async for record in stream(url, token=token):
        print(record)

It raises unless the whole stream came: without an ``end`` record that agrees with every byte before
it, no loop over a stream finishes normally.

wsproto's framing straight over a Trio stream, and not trio-websocket: on loopback it takes 70-90 k
records a second where that takes 26 k, and trio-websocket's connection lives in a nursery, which an
async generator cannot hold across a ``yield`` without breaking the cancellation of its caller. So
the connection is served by a system task (:mod:`agentd.client_socket`), owned by the context
manager here. It answers pings while the caller is busy, and stops reading the socket when the
caller has left 1 MiB lying: then the server stops reading the child.

This room does not know reconnecting, and no server.
"""

import ssl
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import msgspec
import trio

from agentd import AgentdError
from agentd.client_handshake import Refused, upgrade
from agentd.client_socket import ClientSocket
from agentd.sansio.endpoint import BadToken, BadURL, Endpoint, bearer, parse_url
from agentd.sansio.lifecycle import End, Outcome
from agentd.sansio.server_records import (
    DigestMismatch,
    Heartbeat,
    Hello,
    Output,
    ProtocolError,
    Record,
    RecordStream,
)

__all__ = [
    "BadToken",
    "BadURL",
    "CannotConnect",
    "Connection",
    "DigestMismatch",
    "End",
    "Heartbeat",
    "Hello",
    "IncompleteStream",
    "NotSent",
    "Outcome",
    "Output",
    "ProtocolError",
    "Record",
    "Refused",
    "connect",
    "stream",
]

CONNECT_TIMEOUT: Final = 30.0
"""Seconds for TCP and TLS."""

CLOSE_WAIT: Final = 1.0
"""Seconds to wait for the server's Close after the ``end`` record."""

_STDIN_PART: Final = 512 * 1024  # in base64 well below the 1 MiB that a client record may have


class CannotConnect(AgentdError):  # what happened, as in Refused
    """Nobody answers at the address, or TLS with it fails."""


class IncompleteStream(AgentdError):  # the same
    """The connection ended before the ``end`` record: nobody knows how the run went.

    Attributes:
        code: of the server's Close frame (RFC 6455, 7.4), None when there was none.
        reason: of the same frame, or what happened to the connection.
    """

    def __init__(self, code: int | None, reason: str) -> None:
        said = reason if code is None else f"closed with {code} {reason}".rstrip()
        super().__init__(f"the stream ended without its end record: {said}")
        self.code = code
        self.reason = reason


class NotSent(AgentdError):  # the same
    """A client record could not be sent: the connection is over."""


class Received(NamedTuple):
    """A record, and the JSON text that it came as."""

    record: Record
    text: str


class Connection:
    """One client's connection to a run; made by :func:`connect`."""

    def __init__(self, socket: ClientSocket) -> None:
        self._socket = socket
        self._stream = RecordStream()

    async def receive(self) -> Received | None:
        """Return the next record, None when the stream is complete.

        Raises:
            IncompleteStream: the connection ended before the ``end`` record.
            DigestMismatch: the ``end`` record does not agree with what came.
            ProtocolError: the server sent something that is not agentd.v1.
        """
        if self._stream.end is None:
            text = await self._socket.receive_text()
        else:
            # Everything is known; this only lets the connection be closed in order.
            text = None
            with trio.move_on_after(CLOSE_WAIT):
                text = await self._socket.receive_text()
        if text is not None:
            return Received(self._stream.receive_message(text), text)
        if self._stream.end is None:
            if self._socket.fault is not None:
                raise ProtocolError(self._socket.fault)
            raise IncompleteStream(self._socket.close_code, self._socket.close_reason)
        return None

    async def records(self, *, heartbeats: bool = False) -> AsyncGenerator[Record, None]:
        """Yield the records up to and with ``end``; raises as :meth:`receive` does."""
        while (received := await self.receive()) is not None:
            if heartbeats or not isinstance(received.record, Heartbeat):
                yield received.record

    async def send_stdin(self, data: bytes) -> None:
        """Give `data` to the child's standard input (the server's ``--stdin client``).

        Returns when the kernel has taken it. A cancelled call may have sent a part.

        Raises:
            NotSent: the connection is over.
        """
        for start in range(0, len(data), _STDIN_PART):
            part = data[start : start + _STDIN_PART]
            await self._send(type="stdin", base64=b64encode(part).decode("ascii"))

    async def send_stdin_eof(self) -> None:
        """Close the child's standard input. Raises `NotSent`."""
        await self._send(type="stdin_eof")

    async def signal(self, name: str) -> None:
        """Send a signal such as ``"SIGUSR1"`` to the child's process group. Raises `NotSent`."""
        await self._send(type="signal", name=name)

    async def cancel(self) -> None:
        """Have the run stopped; its ``end`` record still comes. Raises `NotSent`."""
        await self._send(type="cancel")

    async def _send(self, **fields: str) -> None:
        if not await self._socket.send_text(msgspec.json.encode(fields).decode()):
            raise NotSent("cannot send: the connection is over")


@asynccontextmanager
async def connect(
    url: str,
    *,
    token: str | None = None,
    run: str | None = None,
    answer_timeout: float = 60,
    silence: float = 30,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[Connection, None]:
    """Connect to a run, for as long as the block lasts; leaving it closes the connection at once.

    A server without ``--detach-grace`` then cancels the run, if it has not ended.

    Args:
        url: ``ws://``, ``wss://`` (also ``http://``, ``https://``) or ``unix:/path``.
        token: sent in the ``Authorization`` header, never in the URL.
        run: the id of the run, where the token does not name it.
        answer_timeout: seconds for the server to let us in; it may wait for a context itself.
        silence: seconds without a byte after which the server is pinged, and after as many again
            is taken for gone.
        ssl_context: what TLS trusts; the system's authorities by default.

    Raises:
        BadURL, BadToken: nothing was sent.
        CannotConnect: nobody is there, TLS failed, or no answer came in time.
        Refused: the server answered with an HTTP status instead.
        ProtocolError: what answered does not speak agentd.v1.
    """
    endpoint = parse_url(url, run=run)
    authorization = None if token is None else bearer(token)
    transport = await _open(endpoint, ssl_context)
    try:
        with trio.fail_after(answer_timeout):
            websocket = await upgrade(transport, endpoint, authorization)
    except BaseException as error:
        await trio.aclose_forcefully(transport)
        if not isinstance(error, trio.TooSlowError):
            raise
        fault = f"no answer in {answer_timeout:g} s"
        raise CannotConnect(f"cannot connect to {endpoint}: {fault}") from None
    socket = ClientSocket(transport, websocket, silence=silence)
    try:
        yield Connection(socket)
    finally:
        await socket.aclose()


async def stream(
    url: str,
    *,
    token: str | None = None,
    run: str | None = None,
    heartbeats: bool = False,
    answer_timeout: float = 60,
    silence: float = 30,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[Record, None]:
    """Yield the records of a run: :class:`Hello`, then :class:`Output`, at last :class:`End`.

    Finishes only when the stream was complete. A caller that may leave the loop early should wrap
    it in :func:`contextlib.aclosing`: the connection is then closed as the block is left, else
    when the generator is garbage-collected.

    Takes what :func:`connect` takes, and raises what it and :meth:`Connection.receive` raise.

    Args:
        heartbeats: yield :class:`Heartbeat` as well.
    """
    async with connect(
        url,
        token=token,
        run=run,
        answer_timeout=answer_timeout,
        silence=silence,
        ssl_context=ssl_context,
    ) as connection:
        while (received := await connection.receive()) is not None:
            if heartbeats or not isinstance(received.record, Heartbeat):
                yield received.record


async def _open(endpoint: Endpoint, context: ssl.SSLContext | None) -> trio.abc.Stream:
    fault = ""
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
            if endpoint.path is not None:
                return await trio.open_unix_socket(endpoint.path)
            tcp = await trio.open_tcp_stream(endpoint.host, endpoint.port)
            if not endpoint.tls:
                return tcp
            return await _start_tls(tcp, endpoint.host, context)
    except trio.TooSlowError:
        fault = f"no connection in {CONNECT_TIMEOUT:g} s"
    except OSError as error:
        fault = _words(error)
    except trio.BrokenResourceError as error:
        fault = f"TLS failed: {_words(error)}"
    raise CannotConnect(f"cannot connect to {endpoint}: {fault}")


async def _start_tls(
    tcp: trio.SocketStream, host: str, context: ssl.SSLContext | None
) -> trio.SSLStream[trio.SocketStream]:
    # https_compatible: servers that close TCP without a TLS goodbye are common. Whether the
    # stream was whole is told by its end record.
    tls = trio.SSLStream(
        tcp, context or ssl.create_default_context(), server_hostname=host, https_compatible=True
    )
    try:
        await tls.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    return tls


def _words(error: OSError | trio.BrokenResourceError) -> str:
    """What the system says, of the first attempt where several addresses were tried."""
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause)
