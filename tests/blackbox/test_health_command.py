"""`agentd health`: one probe, where the daemon of the same configuration listens."""

import contextlib
import json
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.commands import Call, Done, agentd, agentd_each, complains
from testing.daemon import Daemon, serving
from testing.exchange import unused_port


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A healthy daemon."""
    with serving(tmp_path_factory.mktemp("health"), "cat") as daemon:
        yield daemon


def is_silent(done: Done) -> bool:
    """Whether it succeeded, with nothing on stderr."""
    return (done.status, done.err) == (0, "")


def test_a_healthy_daemon_is_found_in_every_way(daemon: Daemon, tmp_path: Path) -> None:
    """By --url, by AGENTD_LISTEN, by a TOML file named by flag or variable."""
    config = tmp_path / "agentd.toml"
    config.write_text(f'[serve]\nlisten = "127.0.0.1:{daemon.port}"\nauth = "none"\n')
    url = f"http://127.0.0.1:{daemon.port}"
    done = agentd_each(
        [
            Call(("health", "--url", url)),
            Call(("health", "--url", f"{url}/")),
            Call(("health", "--url", f"{url}/healthz")),
            Call(("health",), {"AGENTD_LISTEN": f"0.0.0.0:{daemon.port}"}),
            Call(("health",), {"AGENTD_LISTEN": f"localhost:{daemon.port},127.0.0.1:1"}),
            Call(("health", "--config", str(config))),
            Call(("health",), {"AGENTD_CONFIG": str(config)}),
            Call(
                ("health", "--config", "/no/such/file"),
                {"AGENTD_LISTEN": f"127.0.0.1:{daemon.port}"},
            ),
            Call(("health", "--ready", "--url", url)),
            Call(("health", "--ready", "--config", str(config))),
        ]
    )
    assert [each for each in done if not is_silent(each)] == []


def test_a_unix_socket_is_probed(tmp_path: Path) -> None:
    """unix:PATH works as --url, in AGENTD_LISTEN and in the file."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="agentd-test-") as folder:
        where = f"unix:{folder}/s"
        config = tmp_path / "agentd.toml"
        config.write_text(f'[serve]\nlisten = ["{where}"]\n')
        calls = [
            Call(("health", "--url", where)),
            Call(("health", "--ready", "--url", where)),
            Call(("health",), {"AGENTD_LISTEN": where}),
            Call(("health", "--config", str(config))),
        ]
        with serving(tmp_path, "cat", listen=where):
            assert [each for each in agentd_each(calls) if not is_silent(each)] == []
        assert [complains(each, 1, where) for each in agentd_each(calls)] == [""] * 4


def test_nobody_there_is_not_healthy() -> None:
    """Exit 1 and one line that names the address."""
    port = unused_port()
    done = agentd("health", "--url", f"http://127.0.0.1:{port}")
    assert complains(done, 1, f"127.0.0.1:{port}") == ""


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{"status":"ok","protocol":"agentd.v0"}..',
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{",
        b"\xff" * 100_000,
    ],
)
def test_somebody_else_there_is_not_healthy(reply: bytes) -> None:
    """What answers, but not as a healthy agentd does, is exit 1, in one line."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.recv(65536)
                connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        done = agentd("health", "--url", f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
        assert complains(done, 1) == ""


def test_a_stopped_daemon_is_not_healthy(tmp_path: Path) -> None:
    """A daemon that does not run any more, though its socket is there, is found out."""
    with serving(tmp_path, "cat") as daemon:
        os.kill(daemon.process.pid, signal.SIGSTOP)
        try:
            done = agentd("health", "--url", f"http://{daemon.address}")
        finally:
            os.kill(daemon.process.pid, signal.SIGCONT)
        assert complains(done, 1) == ""


def test_ready_is_more_than_healthy(tmp_path: Path) -> None:
    """While it drains a daemon is healthy, and not ready."""
    command = ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
    options = ("--auth", "none", "--grace", "60")
    with serving(tmp_path, *command, options=options) as daemon:
        url = f"http://{daemon.address}"
        daemon.submit()
        with daemon.connect() as client:
            while json.loads(client.recv(20)).get("line") != "ready":
                pass
            daemon.process.terminate()
            daemon.wait_log("stopping")
            ready, healthy = agentd_each(
                [Call(("health", "--ready", "--url", url)), Call(("health", "--url", url))]
            )
            assert complains(ready, 1, "not ready") == ""
            assert is_silent(healthy)
            daemon.process.terminate()


def test_bad_usage_is_2() -> None:
    """A flag or URL that makes no sense is told in one line, without the URL."""
    words = [
        ("--unknown",),
        ("extra",),
        ("--url",),
        ("--url", "hunter2"),
        ("--url", "https://127.0.0.1:1/"),
        ("--url", "http://127.0.0.1:hunter2"),
        ("--url", "http://127.0.0.1:1/other"),
        ("--url", "unix:"),
        ("--ready=yes",),
    ]
    done = agentd_each([Call(("health", *each)) for each in words])
    assert list(filter(None, (complains(each, 2) for each in done))) == []
    assert "hunter2" not in "".join(each.err for each in done)


def test_a_bad_configuration_is_told() -> None:
    """Where the address cannot be known nothing can be healthy."""
    done = agentd_each(
        [
            Call(("health",), {"AGENTD_LISTEN": "nowhere"}),
            Call(("health", "--config", "/no/such/file")),
            Call(("health",), {"AGENTD_CONFIG": "/no/such/file"}),
        ]
    )
    says = ["AGENTD_LISTEN", "--config /no/such/file", "AGENTD_CONFIG /no/such/file"]
    assert [complains(each, 1, text) for each, text in zip(done, says, strict=True)] == [""] * 3
