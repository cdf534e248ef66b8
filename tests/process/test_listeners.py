"""agentd.listeners: where the daemon listens, and whom it does not push aside."""

import os
import socket
import stat
from pathlib import Path

import pytest
import trio

from agentd import AgentdError, listeners
from agentd.address import Address


async def answer_once(listener: trio.SocketListener) -> None:
    stream = await listener.accept()
    await stream.send_all(b"hello")
    await stream.aclose()


async def test_any_free_port_can_be_had_and_told() -> None:
    """Port 0 is any; the address says which it became."""
    listener = listeners.bind(Address.parse("127.0.0.1:0"))
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(answer_once, listener)
        address = listeners.address_of(listener)
        assert address.port
        async with await trio.open_tcp_stream(address.host, address.port) as stream:
            assert await stream.receive_some() == b"hello"


async def test_the_address_of_ipv6_is_listened_on() -> None:
    """``[::1]:PORT`` is IPv6."""
    async with listeners.bind(Address.parse("[::1]:0")) as listener:
        assert listener.socket.family == socket.AF_INET6


async def test_a_taken_port_is_in_use() -> None:
    """Two daemons cannot share a port, and the error says which it was."""
    async with listeners.bind(Address.parse("127.0.0.1:0")) as first:
        with pytest.raises(listeners.CannotListen, match="cannot listen on 127") as error:
            listeners.bind(listeners.address_of(first))

    assert error.value.in_use
    assert error.value.exit_status == 69


async def test_a_foreign_address_cannot_be_listened_on() -> None:
    """An address that no interface has is an error, but nobody is in the way."""
    with pytest.raises(listeners.CannotListen) as error:
        listeners.bind(Address.parse("192.0.2.1:0"))

    assert not error.value.in_use


async def test_a_unix_socket_is_for_its_user_and_group(tmp_path: Path) -> None:
    """Others may not connect, whatever the umask is."""
    address = Address(path=str(tmp_path / "agentd.sock"))
    mask = os.umask(0)
    try:
        listener = listeners.bind(address)
    finally:
        os.umask(mask)
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(answer_once, listener)
        assert stat.S_IMODE(os.stat(address.path).st_mode) == 0o660
        assert listeners.address_of(listener) == address
        async with await trio.open_unix_socket(address.path) as stream:
            assert await stream.receive_some() == b"hello"

    listeners.unlink(address)
    assert not os.path.exists(address.path)
    listeners.unlink(address)


async def test_what_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    """A socket that nobody answers on is no obstacle."""
    address = Address(path=str(tmp_path / "agentd.sock"))
    await listeners.bind(address).aclose()
    assert os.path.exists(address.path)

    await listeners.bind(address).aclose()


async def test_a_living_daemons_socket_is_left_alone(tmp_path: Path) -> None:
    """Who answers keeps the socket."""
    address = Address(path=str(tmp_path / "agentd.sock"))
    async with listeners.bind(address):
        with pytest.raises(listeners.CannotListen) as error:
            listeners.bind(address)

        assert error.value.in_use
        assert os.path.exists(address.path)


async def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    """What is no socket is never removed."""
    path = tmp_path / "agentd.sock"
    path.write_text("precious")
    with pytest.raises(listeners.CannotListen):
        listeners.bind(Address(path=str(path)))

    assert path.read_text() == "precious"


async def test_a_passed_socket_is_adopted() -> None:
    """Socket activation hands over a descriptor that listens already."""
    passed = socket.create_server(("127.0.0.1", 0))
    port = passed.getsockname()[1]
    (listener,) = listeners.adopt([passed.detach()])
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(answer_once, listener)
        assert not os.get_inheritable(listener.socket.fileno())
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert await stream.receive_some() == b"hello"


@pytest.mark.parametrize("kind", ["file", "connected"])
def test_a_descriptor_that_does_not_listen_is_refused(kind: str) -> None:
    """A wrong unit is told so instead of being served in part."""
    if kind == "file":
        fd, other = os.pipe()
    else:
        left, right = socket.socketpair()
        fd, other = left.detach(), right.detach()
    with pytest.raises(AgentdError, match="LISTEN_FDS"):
        listeners.adopt([fd])
    for each in (fd, other):
        try:
            os.close(each)
        except OSError:
            pass
