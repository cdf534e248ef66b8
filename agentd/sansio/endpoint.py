"""Where a stream is: a URL taken apart, and the token fit for a request header.

The invariant: an :class:`Endpoint` can be put into an HTTP request head as it is, and what stands
in an error or a repr never includes the query, where some put a token. It refuses to know how to
connect.
"""

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, quote, urlsplit

from agentd import AgentdError

_PORTS: Final = {"ws": 80, "http": 80, "wss": 443, "https": 443}
_TLS: Final = frozenset({"wss", "https"})
_UNIX: Final = frozenset({"unix", "ws+unix"})

# RFC 3986, 3.3 and 3.4: what may stand in a path and in a query as it is, "%" included, since
# what is already escaped stays so.
_PATH: Final = "/%:@!$&'()*+,;=-._~"
_QUERY: Final = _PATH + "?"

# RFC 6750, 2.1 and RFC 7515: a bearer token, a JWT being one with dots.
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]+")


class BadURL(AgentdError):  # a noun that says it all, as RFC names are
    """The URL does not say where a stream could be."""


class BadToken(AgentdError):  # the same
    """The token has characters that no token has; the message does not show them."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of a stream.

    Attributes:
        host: the host name or address to connect to; empty with a Unix socket.
        port: 0 with a Unix socket.
        path: of the Unix socket, else None.
        tls: whether TLS comes first.
        authority: what the ``Host`` header says (RFC 9110, 7.2).
        target: the request target (RFC 9112, 3.2.1): path and query.
    """

    host: str
    port: int
    path: str | None
    tls: bool
    authority: str
    target: str = field(repr=False)

    def __str__(self) -> str:
        return self.path or self.authority


def parse_url(url: str, *, run: str | None = None) -> Endpoint:
    """Return where `url` leads.

    Args:
        url: ``ws://``, ``wss://``, ``http://`` or ``https://``, or ``unix:/path/of/the.socket``
            (also ``ws+unix:///path``).
        run: the id of a run to ask for, added to the query.

    Raises:
        BadURL: it is none of these, or names a user.
    """
    parts = _split(url)
    query = quote(parts.query, safe=_QUERY)
    if run is not None:
        query += ("&" if query else "") + "run=" + quote(run, safe="")
    suffix = f"?{query}" if query else ""
    if parts.scheme in _UNIX:
        if parts.netloc or not parts.path.startswith("/"):
            raise BadURL("cannot use the URL: the path of a Unix socket begins with /")
        return Endpoint("", 0, parts.path, tls=False, authority="localhost", target=f"/{suffix}")
    if parts.scheme not in _PORTS:
        raise BadURL("cannot use the URL: it must begin with ws://, wss:// or unix:/")
    host, port = _host_port(parts)
    default = _PORTS[parts.scheme]
    name = f"[{host}]" if ":" in host else host
    return Endpoint(
        host,
        port or default,
        None,
        tls=parts.scheme in _TLS,
        authority=name if port in (None, default) else f"{name}:{port}",
        target=(quote(parts.path, safe=_PATH) or "/") + suffix,
    )


def bearer(token: str) -> str:
    """Return the value of an ``Authorization`` header (RFC 6750, 2.1).

    Raises:
        BadToken: `token` would not stand in a header as it is.
    """
    if not _TOKEN.fullmatch(token):
        raise BadToken("cannot use the token: it is empty or has a character that no token has")
    return f"Bearer {token}"


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        pass
    # Raised out here: the exception shows a part of the URL.
    raise BadURL("cannot use the URL: it is malformed")


def _host_port(parts: SplitResult) -> tuple[str, int | None]:
    if "@" in parts.netloc:
        raise BadURL("cannot use the URL: a user name has no meaning here; use a token")
    host, port = "", None
    try:
        port = parts.port
        # What a name with other letters is called in the DNS and in a Host header: RFC 5890.
        host = (parts.hostname or "").encode("idna").decode("ascii")
    except ValueError:
        pass
    if not re.fullmatch(r"[A-Za-z0-9._:%-]+", host) or port == 0:
        raise BadURL("cannot use the URL: its host or port is malformed")
    return host, port
