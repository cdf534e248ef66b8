"""A client's opening handshake (RFC 6455, 4.1) over a connected stream: let in, or refused and why.

What the server says on refusing is shown to people, so it is bounded in size and stripped of what a
terminal would act on. It refuses to know how the stream was connected.
"""

from http.client import responses
from typing import Final

import msgspec
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, RejectConnection, RejectData, Request
from wsproto.utilities import RemoteProtocolError

from agentd import PROTOCOL, AgentdError
from agentd.sansio.endpoint import Endpoint
from agentd.sansio.server_records import ProtocolError

RECEIVE_SIZE: Final = 65536
_MAX_BODY: Final = 65536
_MAX_DETAIL: Final = 300
_BODY_TIMEOUT: Final = 5.0


class Refused(AgentdError):  # what happened, as in ConnectionRefused
    """The server answered with an HTTP status instead of a stream.

    Attributes:
        status: the HTTP status: 401, 404, 409, 503 ...
        detail: the ``detail`` of its problem document (RFC 9457), else the name of the status.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"refused with {status}: {detail}")
        self.status = status
        self.detail = detail


class _Problem(msgspec.Struct):
    title: str | None = None
    detail: str | None = None


async def upgrade(
    transport: trio.abc.Stream, endpoint: Endpoint, authorization: str | None
) -> WSConnection:
    """Ask for the stream and return the open WebSocket, whose first frames may have come already.

    Raises:
        Refused: the server said no.
        ProtocolError: what answered is no WebSocket server, or has no agentd.v1.
    """
    websocket = WSConnection(ConnectionType.CLIENT)
    headers = [] if authorization is None else [(b"Authorization", authorization.encode("ascii"))]
    request = Request(
        host=endpoint.authority,
        target=endpoint.target,
        subprotocols=[PROTOCOL],
        extra_headers=headers,
    )
    try:
        await transport.send_all(websocket.send(request))
        while True:
            data = await transport.receive_some(RECEIVE_SIZE)
            if not data:
                break
            websocket.receive_data(bytes(data))
            for event in websocket.handshake.events():
                match event:
                    case AcceptConnection(subprotocol=protocol):
                        if protocol != PROTOCOL:
                            raise ProtocolError(f"the server does not speak {PROTOCOL}")
                        return websocket
                    case RejectConnection(status_code=status, has_body=has_body):
                        body = await _body(transport, websocket) if has_body else b""
                        raise Refused(status, _detail(status, body))
    except trio.BrokenResourceError:
        pass
    except (RemoteProtocolError, ValueError):
        raise ProtocolError("the server does not answer as a WebSocket server does") from None
    raise ProtocolError("the server closed the connection without an answer")


async def _body(transport: trio.abc.Stream, websocket: WSConnection) -> bytes:
    """Return what comes of the body; a refusal is one even where its body is cut short."""
    body = b""
    with trio.move_on_after(_BODY_TIMEOUT):
        while len(body) < _MAX_BODY:
            for event in websocket.handshake.events():
                if isinstance(event, RejectData):
                    body += event.data
                    if event.body_finished:
                        return body
            try:
                data = await transport.receive_some(RECEIVE_SIZE)
                websocket.receive_data(bytes(data))
            except (trio.BrokenResourceError, RemoteProtocolError):
                break
            if not data:
                break
    return body


def _detail(status: int, body: bytes) -> str:
    problem = _Problem()
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except (msgspec.DecodeError, RecursionError):
        pass  # a proxy's page; the status says enough
    said = problem.detail or problem.title
    if not said:
        said = responses.get(status, "no reason given")
    return printable(said)[:_MAX_DETAIL]


def printable(text: str) -> str:
    """Return `text` without what a terminal would act on instead of showing."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()
