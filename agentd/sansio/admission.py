"""What to answer to a request head: a refusal, a probe's answer, or the upgrade to a stream.

One port serves health checks, metrics and the stream, and everything is decided here before a byte
of WebSocket is spoken. :func:`admit` is total: whatever bytes a head is made of, it returns an
answer and raises nothing. Decisions rest on ASCII only; a header that takes part in one and holds
anything else is malformed. No answer ever repeats a word of the request.

The order of an upgrade's checks is malformed (400, 413, 426), then foreign origin (403), then where
the token is (400). Whether the token is good (401) and which run it gets come later and elsewhere.

**Origins.** A browser sends the Origin of the page that connects (RFC 6455 10.2), and nothing else
can be trusted to. Without listed origins the token decides where there is one; with ``--auth none``
only pages of the machine itself come in. That closes DNS rebinding too: the page of
``http://attacker.example`` that has its name resolve to 127.0.0.1 still says where it is from, and
agentd never compares Origin with Host, which in that attack agree.

This room knows neither sockets nor keys nor which runs there are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import parse_qsl

from agentd import PROTOCOL, AgentdError
from agentd.sansio.answers import Respond, healthz, problem, readyz, unauthorized
from agentd.sansio.context import valid_id

if TYPE_CHECKING:
    from agentd.sansio.tokens import Claims

__all__ = [
    "Gate",
    "Probe",
    "RequestHead",
    "Respond",
    "Upgrade",
    "admit",
    "healthz",
    "problem",
    "readyz",
    "unauthorized",
    "wanted_run",
]

MAX_BODY: Final = 65536
"""Bytes of a request body that may be announced. None is ever read, but this much is drained."""

ProbeName = Literal["healthz", "readyz", "metrics"]
_PROBES: Final[dict[str, ProbeName]] = {
    "/healthz": "healthz",
    "/readyz": "readyz",
    "/metrics": "metrics",
}

Mode = Literal["raw", "v1"]
_MODES: Final[dict[str, Mode]] = {PROTOCOL: "v1", "agentd.raw": "raw"}
_BEARER: Final = "bearer."

_ABSOLUTE_FORM: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?]+", re.ASCII | re.IGNORECASE)
_HOST: Final = re.compile(r"[a-z0-9._~%!$&'()*+,;=:\[\]-]*", re.ASCII | re.IGNORECASE)
_TOKEN: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+", re.ASCII | re.IGNORECASE)
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==", re.ASCII)
_LOOPBACK: Final = re.compile(
    r"https?://(localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[::1\])(:\d{1,5})?", re.ASCII
)
_DEFAULT_PORTS: Final = {"http": "80", "https": "443", "ws": "80", "wss": "443"}


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request line and its header section, as they were on the wire (RFC 9112 3, 5).

    Attributes:
        method: the token, case kept.
        target: the request target, still encoded; it may hold a token.
        headers: names in lower case, values without surrounding whitespace; they may hold a token.
        version: ``1.1``, ``1.0``.
    """

    method: str
    target: str = field(repr=False)
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    version: str


@dataclass(frozen=True, slots=True)
class Probe:
    """A question about the daemon."""

    name: ProbeName


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A well-formed wish for the stream, whose token nobody has checked yet.

    Attributes:
        mode: ``raw`` lines or agentd.``v1`` records.
        subprotocol: what the 101 echoes, None for nothing.
        key: Sec-WebSocket-Key.
        token: the JWT, None when there is none or none is asked for.
        run: ``?run=``.
    """

    mode: Mode
    subprotocol: str | None
    key: bytes
    token: str | None = field(repr=False)
    run: str | None


@dataclass(frozen=True, slots=True)
class Gate:
    """Who may come in: ``--auth`` and the ``--allow-origin`` list."""

    auth: Literal["jwt", "none"]
    origins: frozenset[str] = frozenset()


class _Refused(AgentdError):
    """Carries an answer out of the checks to :func:`admit`."""

    def __init__(self, status: int, detail: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(detail)
        self.answer = problem(status, detail, headers)


def admit(head: RequestHead, gate: Gate) -> Respond | Probe | Upgrade:
    """Decide on a request. Raises nothing, whatever the head is made of."""
    try:
        path, query = _route(head)
        if path in _PROBES:
            # An Upgrade header here is ignored, as a server may (RFC 9110 7.8).
            return Probe(_PROBES[path])
        if not _wants_websocket(head):
            if path == "/":
                return problem(404)
            return problem(426, "this is a WebSocket endpoint")
        return _upgrade(head, query, gate)
    except _Refused as refused:
        return refused.answer


# Checks of any request.


def _route(head: RequestHead) -> tuple[str, str]:
    """Check what every request must get right, and return the path and the query of its target.

    Percent-encoding in the path is not decoded: ``/%68ealthz`` is another path than ``/healthz``.
    """
    if not head.version.startswith("1."):
        raise _Refused(505, "HTTP/1.1 is spoken here")
    if head.method not in ("GET", "HEAD"):
        raise _Refused(405, "only GET and HEAD are answered")
    host = _values(head, "host")
    # RFC 9112 3.2: one Host, and a valid one. HTTP/1.0 may do without.
    if len(host) > 1 or (not host and head.version != "1.0"):
        raise _Refused(400, "host: one is needed")
    if host and not _HOST.fullmatch(host[0]):
        raise _Refused(400, "host: not a valid host")
    _check_length(head)
    target = head.target
    if not target.startswith("/"):
        # RFC 9112 3.2.2: a server must accept the absolute form as well.
        absolute = _ABSOLUTE_FORM.match(target)
        if absolute is None:
            raise _Refused(400, "the request target is not a path")
        target = target[absolute.end() :]
    if not target.isascii():
        raise _Refused(400, "the request target is not ASCII")
    path, _, query = target.partition("?")
    return path or "/", query


def _check_length(head: RequestHead) -> None:
    for value in _values(head, "content-length"):
        if not value.isdigit():
            raise _Refused(400, "content-length: not a number")
        # By its digits first: int() refuses a number of thousands of them.
        digits = value.lstrip("0") or "0"
        if len(digits) > len(str(MAX_BODY)) or int(digits) > MAX_BODY:
            raise _Refused(413, "no request body is expected")


def _values(head: RequestHead, name: str) -> list[str]:
    """Return the values of a header that takes part in a decision, which must be ASCII."""
    wanted = name.encode()
    values = [value for key, value in head.headers if key == wanted]
    if not all(value.isascii() for value in values):
        raise _Refused(400, f"{name}: not ASCII")
    return [value.decode("ascii") for value in values]


def _elements(head: RequestHead, name: str) -> list[str]:
    """Return the elements of a list header, whose empty ones do not count (RFC 9110 5.6.1)."""
    elements = [part.strip(" \t") for value in _values(head, name) for part in value.split(",")]
    return [element for element in elements if element]


# Checks of the handshake (RFC 6455 4.2.1).


def _wants_websocket(head: RequestHead) -> bool:
    """Say whether a WebSocket is asked for; HTTP/1.0 cannot (RFC 9110 7.8)."""
    if head.method != "GET" or head.version == "1.0":
        return False
    return "websocket" in (each.lower() for each in _elements(head, "upgrade"))


def _upgrade(head: RequestHead, query: str, gate: Gate) -> Upgrade:
    key = _handshake_key(head)
    offered = _elements(head, "sec-websocket-protocol")
    if not all(_TOKEN.fullmatch(name) for name in offered):
        raise _Refused(400, "sec-websocket-protocol: not a list of tokens")
    subprotocol = _choose_subprotocol(offered)
    parameters = parse_qsl(query, keep_blank_values=True)
    run = _one([value for name, value in parameters if name == "run"], "run")
    if run is not None and not valid_id(run):
        raise _Refused(400, "run: not the id of a run")
    _check_origin(head, gate)
    return Upgrade(
        mode="raw" if subprotocol is None else _MODES[subprotocol],
        subprotocol=subprotocol,
        key=key,
        token=None if gate.auth == "none" else _token(head, offered, parameters),
        run=run,
    )


def _handshake_key(head: RequestHead) -> bytes:
    if "upgrade" not in (option.lower() for option in _elements(head, "connection")):
        raise _Refused(400, "connection: no upgrade option")
    if _values(head, "sec-websocket-version") != ["13"]:
        # RFC 6455 4.4: the answer says what would have been understood.
        raise _Refused(
            426, "sec-websocket-version: 13 is spoken here", (("Sec-WebSocket-Version", "13"),)
        )
    keys = _values(head, "sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise _Refused(400, "sec-websocket-key: one of 16 bytes in base64 is needed")
    # None is ever agreed on, but what is no list of extensions is no handshake either.
    _values(head, "sec-websocket-extensions")
    # A body behind an upgrade is how requests are smuggled past proxies: the bytes after this head
    # must mean the same to everybody.
    lengths = [value.strip("0") for value in _values(head, "content-length")]
    if any(lengths) or _values(head, "transfer-encoding"):
        raise _Refused(400, "an upgrade has no request body")
    return keys[0].encode()


def _choose_subprotocol(offered: Sequence[str]) -> str | None:
    """Return the first that is spoken here, in the client's order; None when none was offered."""
    names = [name for name in offered if not name.startswith(_BEARER)]
    chosen = next((name for name in names if name in _MODES), None)
    if names and chosen is None:
        raise _Refused(400, "sec-websocket-protocol: none of them is spoken here")
    return chosen


def _one(values: Sequence[str], name: str) -> str | None:
    if len(values) > 1:
        raise _Refused(400, f"{name}: given more than once")
    return values[0] if values else None


# Who asks.


def _check_origin(head: RequestHead, gate: Gate) -> None:
    origin = _one(_values(head, "origin"), "origin")
    if origin is None:
        return
    origin = _serialized(origin)
    if gate.origins:
        allowed = origin in {_serialized(each) for each in gate.origins}
    elif gate.auth == "none":
        allowed = _LOOPBACK.fullmatch(origin) is not None
    else:
        allowed = True
    # "null" is what sandboxed frames and redirects are called: anybody (RFC 6454 7.3).
    if not allowed or origin in ("null", ""):
        raise _Refused(403, "origin: not allowed")


def _serialized(origin: str) -> str:
    """Return an origin as RFC 6454 6.2 writes it: in lower case, without the default port."""
    origin = origin.lower()
    scheme, _, _ = origin.partition("://")
    before, _, port = origin.rpartition(":")
    return before if port == _DEFAULT_PORTS.get(scheme) else origin


def _token(
    head: RequestHead, offered: Sequence[str], parameters: Sequence[tuple[str, str]]
) -> str | None:
    """Return the token from the one place it is in. An empty one is one: a bad one."""
    found = [value for name, value in parameters if name == "token"]
    found += [name.removeprefix(_BEARER) for name in offered if name.startswith(_BEARER)]
    for value in _values(head, "authorization"):
        # RFC 9110 11.1: the scheme's case does not matter. Other schemes are the edge's own.
        scheme, _, credentials = value.partition(" ")
        if scheme.lower() == "bearer":
            found.append(credentials.strip(" "))
    return _one(found, "token")


def wanted_run(upgrade: Upgrade, claims: "Claims | None") -> str | Respond | None:
    """Return the id of the run that is asked for, None for the oldest context without a client.

    A token that names a run beside a ``?run=`` that names another is refused, with a 401 like any
    other token that does not fit; that answer is returned, not raised.
    """
    if claims is None or claims.run is None:
        return upgrade.run
    if upgrade.run not in (None, claims.run):
        return unauthorized()
    return claims.run
