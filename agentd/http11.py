"""One request head off a stream, one response onto it, and a close that does not undo the response.

h11 parses and builds (RFC 9112); no other module imports it. A connection carries one request and
is then closed or becomes a stream, so there is no keep-alive, no pipelining and no request body
here. What a peer may make agentd hold is bounded by the limit on the head; how long it may take is
the caller's to bound.

This room does not know what is asked for or who may ask. No exception of its repeats what the peer
sent: a header may be a token.
"""

import h11
import trio

from agentd import AgentdError
from agentd.sansio.admission import RequestHead
from agentd.sansio.answers import REASONS, Respond

_ALWAYS = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))


class BadRequest(AgentdError):
    """What came is not a request head, or is too large for one.

    Attributes:
        status: what to answer: 400, 414, 431, or 501 for a transfer coding nobody knows.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"cannot read the request head: {REASONS[status]}")
        self.status = status


class ClosedEarly(AgentdError):
    """The peer left before its request head was whole. There is nobody to answer."""


async def read_request_head(
    stream: trio.abc.ReceiveStream, *, limit: int = 16384
) -> tuple[RequestHead, bytes]:
    """Read a request head and return it with the bytes that came behind it.

    Args:
        stream: a new connection; not more than ``limit`` bytes are taken from it.
        limit: bytes of the whole head, its empty line included.

    Raises:
        BadRequest: it is not HTTP/1, or it is too large.
        ClosedEarly: the peer closed or reset the connection first.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=limit)
    left = limit
    while True:
        event, status = _next_event(connection)
        if status:
            raise BadRequest(status)
        if isinstance(event, h11.Request):
            return _head(event), connection.trailing_data[0]
        if not left:
            raise BadRequest(431 if b"\n" in connection.trailing_data[0] else 414)
        data = await _receive(stream, left)
        left -= len(data)
        connection.receive_data(data)


def _next_event(connection: h11.Connection) -> tuple[object, int]:
    """Return h11's next event, or the status of what was wrong; its own words quote the peer."""
    try:
        return connection.next_event(), 0
    except h11.RemoteProtocolError as error:
        hint = error.error_status_hint
    return None, hint if hint in REASONS else 400


async def _receive(stream: trio.abc.ReceiveStream, most: int) -> bytes:
    try:
        data = await stream.receive_some(most)
    except trio.BrokenResourceError:
        data = b""
    if not data:
        raise ClosedEarly("the peer left before its request head was whole")
    return bytes(data)


def _head(request: h11.Request) -> RequestHead:
    # h11 has checked that the first line is ASCII; header values may be any bytes.
    return RequestHead(
        method=request.method.decode("ascii"),
        target=request.target.decode("ascii"),
        headers=tuple((bytes(name), bytes(value)) for name, value in request.headers),
        version=request.http_version.decode("ascii"),
    )


async def send_response(
    stream: trio.abc.SendStream, head: RequestHead | None, respond: Respond
) -> None:
    """Send an answer, the last thing on its connection.

    Args:
        stream: what the request came from.
        head: the request, or None when it could not be read. A HEAD is answered with the headers
            of a GET and no body (RFC 9110 9.3.2).
        respond: the answer; Content-Length and Connection are added to it.

    Raises:
        trio.BrokenResourceError: the peer is gone.
    """
    headers = list(respond.headers)
    given = {name.lower() for name, _ in headers}
    headers += [(name, value) for name, value in _ALWAYS if name.lower() not in given]
    headers.append(("Content-Length", str(len(respond.body))))
    # RFC 9110 7.8: who sends Upgrade, be it in a 426, says so in Connection.
    headers.append(("Connection", "upgrade, close" if "upgrade" in given else "close"))
    response = h11.Response(
        status_code=respond.status, headers=headers, reason=REASONS[respond.status].encode()
    )
    # A connection of its own for each response: one that met a bad request would refuse to speak.
    unit = h11.Connection(h11.SERVER).send(response)
    if head is None or head.method != "HEAD":
        unit += respond.body
    await stream.send_all(unit)


async def linger(
    stream: trio.abc.HalfCloseableStream, seconds: float = 1, limit: int = 65536
) -> None:
    """Shut our side and read away what the peer still sends, before the caller closes the stream.

    Closing a socket with unread input resets the connection, and the reset can overtake the answer
    (RFC 9112 9.6). A peer that is gone already is as good as one that closes.

    Args:
        stream: what the answer was sent on.
        seconds: how long to wait for the peer to close.
        limit: bytes to read at most.
    """
    with trio.move_on_after(seconds):
        try:
            await stream.send_eof()
            while limit > 0:
                data = await stream.receive_some(limit)
                if not data:
                    return
                limit -= len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
