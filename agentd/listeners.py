"""The sockets to serve on: the ones systemd passed, else those that were asked for.

A unix socket that a dead daemon left behind is replaced; one that somebody answers on is not.
"""

import errno
import os
import socket
import stat
from collections.abc import Sequence

import trio

from agentd import AgentdError
from agentd.address import Address

_BACKLOG = 1024
_UNIX_MODE = 0o660
"""Who may connect to a unix socket: the daemon's user and group, as for Docker's."""


class CannotListen(AgentdError):
    """An address cannot be served.

    Attributes:
        address: the one at fault.
        in_use: whether somebody else serves there.
        exit_status: of ``agentd serve`` (sysexits.h, EX_UNAVAILABLE).
    """

    exit_status = 69

    def __init__(self, address: Address, error: OSError) -> None:
        super().__init__(f"cannot listen on {address}: {error.strerror}")
        self.address = address
        self.in_use = error.errno == errno.EADDRINUSE


def adopt(descriptors: Sequence[int]) -> list[trio.SocketListener]:
    """Make listeners of sockets that were passed in (sd_listen_fds(3)).

    Raises:
        AgentdError: a descriptor is no listening socket.
    """
    adopted = [_adopt(descriptor) for descriptor in descriptors]
    return [trio.SocketListener(trio.socket.from_stdlib_socket(each)) for each in adopted]


def _adopt(descriptor: int) -> socket.socket:
    try:
        passed = socket.socket(fileno=descriptor)
    except OSError:
        pass
    else:
        if passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            passed.set_inheritable(False)
            return passed
        passed.detach()
    raise AgentdError(f"LISTEN_FDS: descriptor {descriptor} is not a listening socket")


def bind(address: Address) -> trio.SocketListener:
    """Listen on ``address``.

    Raises:
        CannotListen: it is taken, or is not ours to have.
    """
    try:
        listening = _bind_unix(address.path) if address.path else _bind_tcp(address)
    except OSError as error:
        raise CannotListen(address, error) from error
    return trio.SocketListener(trio.socket.from_stdlib_socket(listening))


def _bind_tcp(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    found = socket.getaddrinfo(
        address.host, address.port, family if ":" in address.host else 0, socket.SOCK_STREAM
    )
    family, kind, protocol, _, where = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        # A restart must not wait for the old daemon's connections (TIME_WAIT, socket(7)).
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _bind_unix(path: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead_socket(path)
        mask = os.umask(0o777 & ~_UNIX_MODE)
        try:
            listening.bind(path)
        finally:
            os.umask(mask)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _remove_dead_socket(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return  # something else; bind says that the address is in use
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        try:
            knock.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def address_of(listener: trio.SocketListener) -> Address:
    """Return where a listener listens: the port it got where it asked for any."""
    name = listener.socket.getsockname()
    if listener.socket.family == socket.AF_UNIX:
        return Address(path=os.fsdecode(name))
    return Address(host=name[0], port=name[1])


def unlink(address: Address) -> None:
    """Remove the file of a unix socket that was served here."""
    if address.path:
        try:
            os.unlink(address.path)
        except OSError:
            pass  # already gone, or its directory is
