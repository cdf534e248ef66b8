"""Where agentd can be reached: ``HOST:PORT``, ``[V6]:PORT`` or ``unix:PATH``.

Invariant: ``Address.parse(str(address)) == address``.  It refuses to know sockets that are open:
listening belongs to the server, connecting to :mod:`agentd.probe`.
"""

import socket
from typing import NamedTuple

SUN_PATH_MAX = 107  # bytes, without the closing NUL (unix(7))


class Address(NamedTuple):
    """One place to listen or to connect: a TCP ``host`` and ``port``, or a unix socket's ``path``.

    A ``NamedTuple`` because ``agentd health`` starts once per probe and should not pay for
    importing :mod:`dataclasses`.
    """

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read what :meth:`__str__` writes.

        Raises ValueError whose text continues "the address ...", without repeating the address.
        """
        if text.startswith("unix:"):
            return cls(path=_socket_path(text.removeprefix("unix:")))
        host, colon, port = text.rpartition(":")
        if not colon or not host:
            raise ValueError("must be HOST:PORT, [IPV6]:PORT or unix:PATH")
        if not (port.isascii() and port.isdigit() and int(port[:6]) <= 65535):
            raise ValueError("must end in a port from 0 to 65535")
        return cls(host=_host(host), port=int(port))

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else self.authority

    @property
    def authority(self) -> str:
        """Host and port as a ``Host`` header spells them (RFC 9110 section 7.2)."""
        if self.path:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def reachable(self) -> "Address":
        """Where a client on this machine connects to reach a server that listens here."""
        loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared, not bound
        return self._replace(host=loopback.get(self.host, self.host))


def _socket_path(path: str) -> str:
    if not path:
        raise ValueError("must name a path after unix:")
    if "\0" in path:
        raise ValueError("must not hold a NUL")
    if len(path.encode(errors="surrogateescape")) > SUN_PATH_MAX:
        raise ValueError(f"must name a socket path of at most {SUN_PATH_MAX} bytes")
    return path


def _host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        host = text[1:-1]
        try:
            socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        except (OSError, ValueError):
            raise ValueError("must hold an IPv6 address between [ and ]") from None
        return host
    if ":" in text:
        raise ValueError("must have an IPv6 address in brackets: [::]:PORT")
    if any(character.isspace() or character in "/[]@?#\0" for character in text):
        raise ValueError("must begin with a host name or an IP address")
    return text
