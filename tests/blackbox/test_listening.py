"""Where the daemon serves: ports, unix sockets, sockets passed to it, and places that are taken."""

import http.client
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from testing.daemon import PATIENCE, Daemon, daemon_environ, launcher, read_all, serving, wait_for
from testing.plain_client import PlainClient


def serve_again(
    folder: Path, listen: str, *options: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Start a second daemon and wait for its end."""
    words = [*launcher(), "serve", "--auth", "none", "--listen", listen,
             "--context", str(folder / "second.json"), *options, "--", "true"]  # fmt: skip
    return subprocess.run(
        words, env=daemon_environ(env), capture_output=True, text=True, timeout=PATIENCE
    )


@pytest.mark.parametrize(
    ("options", "status"), [((), 0), (("--if-running", "exit"), 0), (("--if-running", "fail"), 75)]
)
def test_where_a_healthy_agentd_serves_a_second_leaves(
    tmp_path: Path, options: Sequence[str], status: int
) -> None:
    """Exit 0, or 75 where asked; one line says why, and the first is not disturbed."""
    with serving(tmp_path, "cat") as daemon:
        second = serve_again(tmp_path, daemon.address, *options)
        assert second.returncode == status
        assert "already" in second.stderr
        assert "Traceback" not in second.stderr
        assert daemon.run(prompt="still here\n").lines == ["still here"]


@contextmanager
def stranger(reply: bytes) -> Iterator[int]:
    """Another server, on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = int(listening.getsockname()[1])

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield port
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("reply", "policy"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "exit"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "fail"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "exit"),
    ],
    ids=["a web server", "a 404", "another protocol"],
)
def test_where_somebody_else_serves_the_daemon_cannot_listen(
    tmp_path: Path, reply: bytes, policy: str
) -> None:
    """Exit 69 with a line that names the address, whatever the stranger answers."""
    with stranger(reply) as port:
        second = serve_again(tmp_path, f"127.0.0.1:{port}", "--if-running", policy)
    assert second.returncode == 69
    assert f"127.0.0.1:{port}" in second.stderr
    assert len(second.stderr.splitlines()) == 1


def test_an_address_of_another_machine_cannot_be_listened_on(tmp_path: Path) -> None:
    """An address that is not ours (TEST-NET-1, RFC 5737) is 69, not a crash."""
    second = serve_again(tmp_path, "192.0.2.1:8765")
    assert second.returncode == 69
    assert "192.0.2.1:8765" in second.stderr


def ask_unix(path: Path, what: str) -> int:
    """Ask by plain HTTP over a unix socket; return the status."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        connection.sendall(f"GET {what} HTTP/1.1\r\nHost: agentd\r\n\r\n".encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status


def test_a_unix_socket_serves_everything(tmp_path: Path) -> None:
    """Health and a whole stream; the socket is not for everyone, and gone with the daemon."""
    path = tmp_path / "agentd.sock"
    with serving(tmp_path, "cat", listen=f"unix:{path}") as daemon:
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert path.stat().st_mode & 0o007 == 0, "others of this machine may not connect"
        assert ask_unix(path, "/healthz") == 200
        assert ask_unix(path, "/readyz") == 200
        daemon.submit(prompt="over a unix socket\n")
        with PlainClient(f"unix:{path}").upgrade() as client:
            records = list(client.records())
            assert [record.get("line") for record in records[1:-1]] == ["over a unix socket"]
            assert client.frame().close == (1000, "exit 0")
        probe = [*launcher(), "health", "--url", f"unix:{path}"]
        assert subprocess.run(probe, env=daemon_environ(), timeout=PATIENCE).returncode == 0
        assert daemon.stop() == 0
    assert not path.exists()


def test_a_unix_socket_that_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    """After kill -9 the next daemon serves in the same place."""
    path = tmp_path / "agentd.sock"
    with serving(tmp_path, "cat", listen=f"unix:{path}") as daemon:
        daemon.stop(signal.SIGKILL)
    assert path.exists()
    with serving(tmp_path, "cat", listen=f"unix:{path}"):
        assert ask_unix(path, "/healthz") == 200


def test_a_unix_socket_that_is_served_is_not_taken(tmp_path: Path) -> None:
    """A healthy agentd there: 0 or 75. Somebody else, who says nothing: 69. Both keep theirs."""
    path = tmp_path / "agentd.sock"
    with serving(tmp_path, "cat", listen=f"unix:{path}"):
        assert serve_again(tmp_path, f"unix:{path}").returncode == 0
        assert serve_again(tmp_path, f"unix:{path}", "--if-running", "fail").returncode == 75
        assert ask_unix(path, "/healthz") == 200
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert serve_again(tmp_path, f"unix:{path}").returncode == 69
        assert path.exists()


def test_a_file_in_the_place_of_a_unix_socket_is_kept(tmp_path: Path) -> None:
    """What is no socket is not removed to make room for one."""
    path = tmp_path / "precious"
    path.write_text("data")
    assert serve_again(tmp_path, f"unix:{path}").returncode == 69
    assert path.read_text() == "data"


def test_several_addresses_are_served_at_once(tmp_path: Path) -> None:
    """``--listen`` may be repeated: two ports and a unix socket lead to the same runs."""
    path = tmp_path / "agentd.sock"
    options = ("--auth", "none", "--listen", "[::1]:0", "--listen", f"unix:{path}")
    with serving(tmp_path, "cat", options=options) as daemon:
        ready = daemon.wait_log("ready on ")
        assert "[::1]:" in ready
        assert str(path) in ready
        assert daemon.get("/healthz")[0] == ask_unix(path, "/healthz") == 200
        port = int(ready.partition("[::1]:")[2].split(",")[0].strip('"} '))
        with socket.create_connection(("::1", port), PATIENCE) as six:
            six.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert six.recv(15).startswith(b"HTTP/1.1 200")


PASS_ON = (
    "import os, socket, sys\n"
    "passed = socket.create_server(('127.0.0.1', 0))\n"
    "os.dup2(passed.fileno(), 3)\n"
    "os.set_inheritable(3, True)\n"
    "os.environ |= {'LISTEN_FDS': '1', 'LISTEN_PID': str(os.getpid()), 'LISTEN_FDNAMES': 'x'}\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)


def test_a_socket_that_was_passed_wins(tmp_path: Path) -> None:
    """Socket activation (sd_listen_fds(3)): the daemon serves it, and ``--listen`` is not used."""
    prefix = (sys.executable, "-c", PASS_ON)
    unused = tmp_path / "unused.sock"
    listen = f"unix:{unused}"
    with serving(tmp_path, "sh", "-c", "env; cat", listen=listen, prefix=prefix) as daemon:
        assert daemon.address.startswith("127.0.0.1:")
        assert not unused.exists()
        assert daemon.get("/healthz")[0] == 200
        stream = daemon.run(prompt="activated\n")
        assert stream.lines[-1] == "activated"
        assert [line for line in stream.lines if line.startswith("LISTEN_")] == []
        assert daemon.stop() == 0


def test_sockets_for_another_process_are_not_taken(tmp_path: Path) -> None:
    """LISTEN_PID of somebody else, inherited by accident, means nothing (sd_listen_fds(3))."""
    env = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    with serving(tmp_path, "cat", env=env) as daemon:
        assert daemon.run(prompt="own port\n").lines == ["own port"]


def test_a_port_can_be_had_again_at_once(tmp_path: Path) -> None:
    """A daemon that stopped with a client leaves its port to the next one (TIME_WAIT)."""

    def converse(daemon: Daemon) -> None:
        assert daemon.run(prompt="x\n").lines == ["x"]
        daemon.submit(prompt="")
        with daemon.connect() as client:
            assert read_all(client).code == 1000

    with serving(tmp_path, "cat") as daemon:
        converse(daemon)
        address = daemon.address
    with serving(tmp_path, "cat", listen=address) as daemon:
        converse(daemon)


def test_the_port_answers_before_it_is_ready_or_not_at_all(tmp_path: Path) -> None:
    """Nobody who can connect is left without an answer, however early."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    words = [*launcher(), "serve", "--auth", "none", "--listen", f"127.0.0.1:{port}",
             "--context", str(tmp_path / "context.json"), "--", "true"]  # fmt: skip
    process = subprocess.Popen(words, env=daemon_environ(), stderr=subprocess.DEVNULL)
    answers = []

    def ready() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", "/readyz")
        except ConnectionRefusedError:
            return False
        finally:
            if connection.sock is None:
                connection.close()
        answers.append(connection.getresponse().status)
        connection.close()
        return answers[-1] == 200

    try:
        wait_for(ready, "ready")
    finally:
        process.terminate()
        process.wait(PATIENCE)
    assert set(answers) <= {503, 200}
