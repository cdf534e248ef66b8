"""The probe: asks a real socket once, and comes back in time whatever is there."""

import socket
import threading
import time
from pathlib import Path

import pytest
from testing.loopback import HEALTHY, answer, serving, unused_port

from agentd.address import Address
from agentd.probe import MAX_BODY, ProbeError, is_agentd, is_healthy, probe


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def _addresses(tmp_path: Path) -> list[str]:
    listening = ["127.0.0.1:0", "0.0.0.0:0", "localhost:0", f"unix:{tmp_path}/agentd.sock"]
    return listening + (["[::1]:0", "[::]:0"] if _has_ipv6() else [])


def test_it_asks_over_every_kind_of_address(tmp_path: Path) -> None:
    """TCP on v4 and v6, also where the server listens everywhere, and unix sockets."""
    for listening in _addresses(tmp_path):
        with serving(answer(), listening) as server:
            assert probe(server.address) == (200, HEALTHY)
            assert is_agentd(server.address)


def test_the_request_is_proper_http() -> None:
    """GET with the path, a Host and Connection: close (RFC 9112 section 3.2)."""
    with serving(answer()) as server:
        probe(server.address, "/readyz")
        assert server.requests == [
            f"GET /readyz HTTP/1.1\r\nHost: {server.address}\r\nConnection: close\r\n\r\n".encode()
        ]


def test_the_host_of_a_unix_socket_is_localhost(tmp_path: Path) -> None:
    """A path is no host name."""
    with serving(answer(), f"unix:{tmp_path}/s") as server:
        probe(server.address)
        assert b"\r\nHost: localhost\r\n" in server.requests[0]


@pytest.mark.parametrize("status", ["200 OK", "503 Service Unavailable", "404 Not Found", "204"])
def test_any_status_is_an_answer(status: str) -> None:
    """What the status means is for others to say."""
    with serving(answer(status, b"x")) as server:
        assert probe(server.address) == (int(status[:3]), b"x")


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    """RFC 9112 section 6.3, rule 8."""
    with serving(b"HTTP/1.0 200 OK\r\n\r\n" + HEALTHY) as server:
        assert probe(server.address) == (200, HEALTHY)


def test_a_body_with_a_length_needs_no_end_of_the_connection() -> None:
    """A server that keeps the connection open is not waited for."""
    asked = threading.Event()

    def reply(connection: socket.socket) -> None:
        connection.sendall(answer(body=b"abc") + b"what follows is no part of it")
        asked.wait(20)

    with serving(reply) as server:
        assert probe(server.address) == (200, b"abc")
        asked.set()


def test_the_length_is_found_among_other_fields() -> None:
    """Field names have no case and no order (RFC 9110 section 5.1); "many" is no length."""
    reply = b"HTTP/1.1 200 OK\r\nServer: x\r\ncONTENT-lENGTH:  3 \r\nDate: y\r\n\r\nabcdef"
    with serving(reply) as server:
        assert probe(server.address) == (200, b"abc")
    with serving(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc") as server:
        assert probe(server.address) == (200, b"abc")


def test_an_answer_may_come_in_pieces() -> None:
    """Reads do not depend on where TCP cuts."""

    def reply(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in answer():
            connection.sendall(bytes([byte]))

    with serving(reply) as server:
        assert probe(server.address) == (200, HEALTHY)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (b"", "cut short"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "not HTTP"),
        (b"HTTP/2 200\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "cut short"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 10_000, "head is too large"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * (MAX_BODY + 1), "too large"),
    ],
)
def test_what_is_no_http_answer_is_an_error(reply: bytes, says: str) -> None:
    """Another server, or one that breaks off, is told apart from a daemon that is not well."""

    def send(connection: socket.socket) -> None:
        try:
            connection.sendall(reply)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except OSError:
            pass  # the probe had enough

    with serving(send) as server, pytest.raises(ProbeError, match=says):
        probe(server.address)


def test_nobody_there_is_an_error_that_names_the_address(tmp_path: Path) -> None:
    """A closed port, a missing socket and an unknown host each say so."""
    port = unused_port()
    with pytest.raises(ProbeError, match=f"cannot reach 127.0.0.1:{port}: Connection refused"):
        probe(Address("127.0.0.1", port))
    path = str(tmp_path / "none.sock")
    with pytest.raises(ProbeError, match=f"cannot reach unix:{path}: No such file"):
        probe(Address(path=path))
    with pytest.raises(ProbeError, match="no such host name"):
        probe(Address("a" * 70, 80))


@pytest.mark.parametrize("drips", [False, True])
def test_silence_ends_with_the_deadline(drips: bool) -> None:  # parametrised
    """One time for everything: a byte now and then does not buy a server more of it."""
    over = threading.Event()

    def reply(connection: socket.socket) -> None:
        while not over.wait(0.02):
            try:
                connection.sendall(b"a" if drips else b"")
            except OSError:
                return

    with serving(reply) as server:
        began = time.monotonic()
        with pytest.raises(ProbeError, match="timed out"):
            probe(server.address, timeout=0.3)
        assert time.monotonic() - began < 3
        over.set()


def test_no_time_is_timed_out() -> None:
    """Without time left nobody is asked."""
    with pytest.raises(ProbeError, match="timed out"):
        probe(Address("127.0.0.1", 1), timeout=0)


def test_a_socket_that_accepts_nobody_is_an_error(tmp_path: Path) -> None:
    """A unix socket with a full backlog does not hold the probe up."""
    path = str(tmp_path / "busy.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(0)
        waiting = []
        while True:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            waiting.append(client)
            client.setblocking(False)
            try:
                client.connect(path)
            except BlockingIOError:
                break
        with pytest.raises(ProbeError):
            probe(Address(path=path), timeout=0.3)
        for client in waiting:
            client.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ok",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 60_000,
        b'{"status":"ok"}',
        b'{"status":"ok","protocol":"agentd.v2"}',
        b'{"status":"draining","protocol":"agentd.v1"}',
    ],
)
def test_what_does_not_say_that_it_is_agentd_is_not(body: bytes) -> None:
    """A 200 of somebody else is no agentd."""
    assert not is_healthy(body)
    with serving(answer(body=body)) as server:
        assert not is_agentd(server.address)


def test_an_agentd_that_is_not_healthy_is_not() -> None:
    """--if-running gives way only to one that works."""
    with serving(answer("503 Service Unavailable")) as server:
        assert not is_agentd(server.address)
    assert not is_agentd(Address("127.0.0.1", unused_port()))


def test_healthy_is_what_the_contract_says() -> None:
    """More fields than ours do not matter."""
    assert is_healthy(HEALTHY)
    assert is_healthy(b'{"protocol": "agentd.v1", "status": "ok", "more": 1}')
