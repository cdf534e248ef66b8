"""What one port answers to plain HTTP: probes, refusals, and requests no browser would send."""

import concurrent.futures
import contextlib
import http.client
import json
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.contexts import recording, started
from testing.daemon import Daemon, read_all, serving, wait_for
from testing.exchange import (
    KEY,
    Answer,
    ask,
    dialled,
    exchange,
    handshake,
    knock,
    parse,
    read_to_end,
)

TITLES = {413: "Content Too Large", 414: "URI Too Long"}
"""What RFC 9110 calls them; Python's own table is from before."""

PROBES = ["/healthz", "/readyz", "/metrics"]
HOST = "Host: agentd.example"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that never has a context: what is not refused before gets a 404."""
    folder = tmp_path_factory.mktemp("http")
    command, starts = recording(folder)
    options = ("--auth", "none", "--context-wait", "0", "--log-level", "debug")
    with serving(folder, *command, options=options) as daemon:
        yield daemon
        assert started(starts) == []
        assert not [entry for entry in daemon.log if entry["level"] == "error"]
        assert daemon.stop() == 0


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    """A request head of these lines, and a body."""
    return "\r\n".join([line, *headers, "", ""]).encode("latin-1") + body


def is_problem(answer: Answer, status: int) -> bool:
    """Whether it is a refusal in the form of RFC 9457, complete and not to be stored."""
    body = json.loads(answer.body)
    return (
        answer.status == body["status"] == status
        and body["type"] == "about:blank"
        and body["title"] == answer.reason == TITLES.get(status, http.client.responses[status])
        and set(body) <= {"type", "title", "status", "detail"}
        and answer.headers["content-type"] == "application/problem+json"
        and answer.headers["cache-control"] == "no-store"
        and int(answer.headers["content-length"]) == len(answer.body)
        and "close" in answer.headers["connection"]
    )


# Probes.


def test_healthz_says_what_it_is_and_nothing_more(daemon: Daemon) -> None:
    """The four members, in order, and no others."""
    answer = ask(daemon.port, request("GET /healthz HTTP/1.1", HOST))
    assert (answer.status, answer.reason) == (200, "OK")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    body = json.loads(answer.body)
    assert list(body) == ["status", "protocol", "build", "image"]
    assert (body["status"], body["protocol"], body["image"]) == ("ok", "agentd.v1", None)
    assert isinstance(body["build"], str)
    assert body["build"]


def test_healthz_names_the_image(tmp_path: Path) -> None:
    """The id of the image that AGENTD_BUILD gives is told."""
    with serving(tmp_path, "cat", env={"AGENTD_BUILD": "image-7"}) as daemon:
        assert json.loads(daemon.get("/healthz")[2])["image"] == "image-7"
        assert not [entry for entry in daemon.log if entry["level"] == "warning"]


def test_readyz_is_200_while_it_serves(daemon: Daemon) -> None:
    """Ready, and not full."""
    answer = ask(daemon.port, request("GET /readyz HTTP/1.1", HOST))
    assert answer.status == 200
    assert json.loads(answer.body).get("full", False) is False


def test_readyz_is_503_while_it_drains(tmp_path: Path) -> None:
    """After SIGTERM it is healthy, not ready, and refuses streams, until its runs have ended."""
    command = ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
    options = ("--auth", "none", "--grace", "30")
    with serving(tmp_path, *command, options=options) as daemon:
        daemon.submit()
        with daemon.connect() as client:
            while json.loads(client.recv(20)).get("line") != "ready":
                pass
            daemon.process.terminate()
            daemon.wait_log("stopping")
            status, headers, body = daemon.get("/readyz")
            assert (status, json.loads(body)["status"]) == (503, "draining")
            assert "retry-after" in headers
            assert daemon.get("/healthz")[0] == 200
            refused = knock(daemon.port, handshake())
            assert is_problem(refused, 503)
            assert "retry-after" in refused.headers
            daemon.process.terminate()  # the second one skips the grace
            assert daemon.process.wait(20) == 0


@pytest.mark.parametrize("path", PROBES)
def test_head_is_get_without_the_body(daemon: Daemon, path: str) -> None:
    """The same head, and nothing behind it."""
    got = ask(daemon.port, request(f"GET {path} HTTP/1.1", HOST))
    head = ask(daemon.port, request(f"HEAD {path} HTTP/1.1", HOST))
    assert (head.status, head.body) == (200, b"")
    assert head.headers.keys() == got.headers.keys()
    assert int(head.headers["content-length"]) > 0
    if path != "/metrics":  # which has counted on
        assert head.headers == got.headers


@pytest.mark.parametrize("path", PROBES)
def test_probes_with_a_query(daemon: Daemon, path: str) -> None:
    """A query does not make it another path."""
    assert ask(daemon.port, request(f"GET {path}?verbose=1 HTTP/1.1", HOST)).status == 200


def test_http_1_0_is_answered(daemon: Daemon) -> None:
    """Load balancers probe without Host, in HTTP/1.0."""
    assert ask(daemon.port, b"GET /healthz HTTP/1.0\r\n\r\n").status == 200
    assert ask(daemon.port, b"GET / HTTP/1.0\r\n\r\n").status == 404


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:8765", "[::1]:8765", "a.example", "x_y:1"]
)
def test_any_valid_host_is_answered(daemon: Daemon, host: str) -> None:
    """A probe may call the daemon what it likes."""
    assert ask(daemon.port, request("GET /healthz HTTP/1.1", f"Host: {host}")).status == 200


def test_the_absolute_form_is_understood(daemon: Daemon) -> None:
    """A proxy may send the whole URL (RFC 9112 section 3.2.2)."""
    line = "GET http://agentd.example/healthz HTTP/1.1"
    assert ask(daemon.port, request(line, HOST)).status == 200


def test_health_is_answered_while_a_run_prints_at_full_speed(tmp_path: Path) -> None:
    """A command that prints without end, read at full speed, delays no probe."""
    with serving(tmp_path, "yes", "x" * 79) as daemon:
        daemon.submit()
        with (
            daemon.connect(subprotocols=None) as client,
            concurrent.futures.ThreadPoolExecutor(1) as pool,
        ):
            stream = pool.submit(read_all, client)
            for _ in range(10):
                begun = time.monotonic()
                assert daemon.get("/healthz")[0] == 200
                assert time.monotonic() - begun < 2
            assert not stream.done()
            assert daemon.stop() == 0
            assert set(stream.result(20).messages[:-1]) == {"x" * 79}
            assert stream.result().code == 1001


# Refusals.


def test_a_plain_get_of_the_root_is_404(daemon: Daemon) -> None:
    """There is no page without --console."""
    assert is_problem(ask(daemon.port, request("GET / HTTP/1.1", HOST)), 404)
    assert is_problem(ask(daemon.port, request("GET /?a=b HTTP/1.1", HOST)), 404)


@pytest.mark.parametrize("path", ["/stream", "/healthz/", "/Healthz", "//", "/%68ealthz", "/.well"])
def test_a_plain_get_of_another_path_is_426(daemon: Daemon, path: str) -> None:
    """Every other path is a stream, so the answer says how to get it."""
    answer = ask(daemon.port, request(f"GET {path} HTTP/1.1", HOST))
    assert is_problem(answer, 426)
    assert answer.headers["upgrade"] == "websocket"
    assert "upgrade" in answer.headers["connection"].lower()


@pytest.mark.parametrize("path", ["/", "/healthz", "/stream"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW", "get"])
def test_another_method_is_405(daemon: Daemon, path: str, method: str) -> None:
    """The answer says which methods there are."""
    answer = ask(daemon.port, request(f"{method} {path} HTTP/1.1", HOST, "Content-Length: 0"))
    assert is_problem(answer, 405)
    assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/", "/any/path?x=1", "/healthz/", "/%2e%2e/etc"])
def test_an_upgrade_on_any_other_path_is_the_stream(daemon: Daemon, path: str) -> None:
    """Without a context it is 404, and not for the path."""
    answer = knock(daemon.port, handshake(path))
    assert is_problem(answer, 404)
    assert json.loads(answer.body)["detail"] == "no context"


@pytest.mark.parametrize("path", PROBES)
def test_an_upgrade_of_a_probe_is_the_probe(daemon: Daemon, path: str) -> None:
    """These three paths are never the stream."""
    assert knock(daemon.port, handshake(path)).status == 200


def without(name: str, *more: str) -> bytes:
    """A handshake that lacks a header, with others instead."""
    lines = handshake().decode().removesuffix("\r\n\r\n").split("\r\n")
    kept = [line for line in lines if not line.startswith(f"{name}:")]
    return request(*kept, *more)


BAD_HANDSHAKES = {
    "no Host": (without("Host"), 400),
    "two Hosts": (handshake("/", HOST), 400),
    "a bad Host": (without("Host", "Host: a b"), 400),
    "a Host that is not ASCII": (without("Host", "Host: \xff"), 400),
    "no Connection": (without("Connection"), 400),
    "Connection without upgrade": (without("Connection", "Connection: keep-alive"), 400),
    "no key": (without("Sec-WebSocket-Key"), 400),
    "an empty key": (without("Sec-WebSocket-Key", "Sec-WebSocket-Key:"), 400),
    "a short key": (without("Sec-WebSocket-Key", "Sec-WebSocket-Key: QUJD"), 400),
    "a long key": (without("Sec-WebSocket-Key", f"Sec-WebSocket-Key: {KEY[:-2]}AAAA"), 400),
    "a key of other letters": (without("Sec-WebSocket-Key", f"Sec-WebSocket-Key: {'?' * 24}"), 400),
    "two keys": (handshake("/", f"Sec-WebSocket-Key: {KEY}"), 400),
    "an unknown subprotocol": (handshake(protocols="chat"), 400),
    "unknown subprotocols": (handshake(protocols="chat, agentd.v2"), 400),
    "a subprotocol in another case": (handshake(protocols="Agentd.V1"), 400),
    "a subprotocol that is no token": (handshake(protocols="agentd.v1, a b"), 400),
    "a subprotocol that is not ASCII": (handshake(protocols="\xff"), 400),
    "extensions that are not ASCII": (handshake("/", "Sec-WebSocket-Extensions: \xff"), 400),
    "a body": (handshake("/", "Content-Length: 3") + b"abc", 400),
    "a chunked body": (handshake("/", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    "no version": (without("Sec-WebSocket-Version"), 426),
    "version 8": (without("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8"), 426),
    "two versions": (handshake("/", "Sec-WebSocket-Version: 13"), 426),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_HANDSHAKES)
def test_a_bad_handshake_is_refused(daemon: Daemon, what: str) -> None:
    """It is told what is wrong before any upgrade."""
    data, status = BAD_HANDSHAKES[what]
    answer = knock(daemon.port, data)
    assert is_problem(answer, status)
    if status == 426:
        assert answer.headers["sec-websocket-version"] == "13"


@pytest.mark.parametrize(
    ("protocols", "chosen"),
    [
        (None, None),
        ("agentd.raw", "agentd.raw"),
        ("agentd.v1", "agentd.v1"),
        ("chat, agentd.v1", "agentd.v1"),
        ("agentd.v1, agentd.raw", "agentd.v1"),
        ("agentd.raw,agentd.v1", "agentd.raw"),
    ],
)
def test_the_subprotocol_is_the_first_that_is_known(
    tmp_path_factory: pytest.TempPathFactory,
    speaker: Daemon,
    protocols: str | None,
    chosen: str | None,
) -> None:
    """What is agreed on is echoed, and only that; no extension ever is."""
    speaker.submit()
    answer = knock(
        speaker.port,
        handshake("/", "Sec-WebSocket-Extensions: permessage-deflate", protocols=protocols),
    )
    assert (answer.status, answer.reason) == (101, "Switching Protocols")
    assert answer.headers.get("sec-websocket-protocol") == chosen
    assert answer.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert "sec-websocket-extensions" not in answer.headers


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with something to run."""
    with serving(tmp_path_factory.mktemp("speaker"), "true") as daemon:
        yield daemon


# Sizes.


def test_a_head_of_16_kib_is_read_and_a_larger_one_refused(daemon: Daemon) -> None:
    """The limit is on the whole head: 431 beyond it, 414 where its first line alone is too long."""
    fits = 16384 - len(request("GET /healthz HTTP/1.1", HOST, "X: "))
    assert (
        ask(daemon.port, request("GET /healthz HTTP/1.1", HOST, "X: " + "x" * fits)).status == 200
    )
    over = request("GET /healthz HTTP/1.1", HOST, "X: " + "x" * (fits + 1))
    assert is_problem(ask(daemon.port, over), 431)
    many = request("GET /healthz HTTP/1.1", HOST, *(f"X-{n}: {n}" for n in range(5000)))
    assert is_problem(ask(daemon.port, many), 431)
    assert is_problem(ask(daemon.port, request("GET /" + "x" * 20000 + " HTTP/1.1", HOST)), 414)


def test_an_endless_head_ends_at_its_limit(daemon: Daemon) -> None:
    """What never ends is answered and cut off, however much is sent."""
    with dialled(daemon.port) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request("GET / HTTP/1.1")[:-2])
            for _ in range(1000):
                connection.sendall(b"X: " + b"x" * 8000 + b"\r\n")
        answer = read_to_end(connection)
    assert answer in (b"", answer)
    assert not answer or parse(answer).status == 431


@pytest.mark.parametrize("length", ["65537", "1" * 20, "9223372036854775808"])
def test_a_large_body_is_refused(daemon: Daemon, length: str) -> None:
    """Nothing reads bodies, so one that is announced as large is 413."""
    head = request("GET /healthz HTTP/1.1", HOST, f"Content-Length: {length}")
    assert is_problem(ask(daemon.port, head), 413)


@pytest.mark.parametrize("length", ["-1", "x", "1, 2", "0x10", "1.5", ""])
def test_a_bad_length_is_malformed(daemon: Daemon, length: str) -> None:
    """A length that is none is 400: nobody may guess where a request ends."""
    head = request("GET /healthz HTTP/1.1", HOST, f"Content-Length: {length}")
    assert is_problem(ask(daemon.port, head), 400)


# One request a connection.


@pytest.mark.parametrize("wish", ["keep-alive", "Keep-Alive, Foo", "close"])
def test_the_connection_is_closed_whatever_is_wished(daemon: Daemon, wish: str) -> None:
    """Keep-alive may be asked for; the answer says close, and it is closed."""
    answer = ask(daemon.port, request("GET /healthz HTTP/1.1", HOST, f"Connection: {wish}"))
    assert answer.status == 200
    assert answer.headers["connection"] == "close"


def test_pipelined_requests_get_one_answer(daemon: Daemon) -> None:
    """The second request on a connection is not answered, and does not spoil the first answer."""
    one = request("GET /healthz HTTP/1.1", HOST)
    answer = ask(daemon.port, one + request("GET /readyz HTTP/1.1", HOST) * 50)
    assert b"protocol" in answer.body
    refused = ask(daemon.port, handshake(protocols="chat") + one)
    assert refused.status == 400


@pytest.mark.parametrize("size", [0, 10, 60_000])
def test_a_body_behind_a_refusal_does_not_spoil_it(daemon: Daemon, size: int) -> None:
    """The answer to a POST arrives whole, with a plain or a chunked body behind it."""
    plain = request("POST / HTTP/1.1", HOST, f"Content-Length: {size}", body=b"x" * size)
    assert is_problem(ask(daemon.port, plain), 405)
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size) if size else b""
    chunked = request("POST / HTTP/1.1", HOST, "Transfer-Encoding: chunked", body=chunk)
    assert is_problem(ask(daemon.port, chunked + b"0\r\n\r\n"), 405)


def test_a_request_in_pieces_is_answered(daemon: Daemon) -> None:
    """Byte by byte is slow, and still a request."""
    with dialled(daemon.port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request("GET /healthz HTTP/1.1", HOST):
            connection.sendall(bytes([byte]))
        assert parse(read_to_end(connection)).status == 200


def test_a_client_may_end_its_side_first(daemon: Daemon) -> None:
    """A request followed by FIN is answered all the same."""
    raw = exchange(daemon.port, request("GET /healthz HTTP/1.1", HOST), end=True)
    assert parse(raw).status == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", None),
        (b"GET /healthz\r\n\r\n", 400),
        (b"GET /healthz HTTP/2.0\r\nHost: a\r\n\r\n", None),
        (b"GET  /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nNoColon\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
        (b"GET healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xc3\xbc HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\x00\x01\x02\x03\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_is_refused(daemon: Daemon, data: bytes, status: int | None) -> None:
    """Malformed heads get a problem and never a stream; a few may be forgiven."""
    answer = ask(daemon.port, data)
    if status is None:
        assert answer.status in (200, 400, 404, 405, 505)
    else:
        assert is_problem(answer, status)


def test_refusals_quote_nothing(daemon: Daemon) -> None:
    """No answer repeats a word of the request."""
    canary = "c4n4ry"
    requests = [
        request(f"GET /{canary}?{canary}={canary} HTTP/1.1", HOST, f"X-{canary}: {canary}"),
        request(f"{canary} / HTTP/1.1", HOST),
        request("GET / HTTP/1.1", f"Host: {canary} {canary}"),
        handshake(f"/{canary}?run={canary}+x", f"Cookie: {canary}"),
        handshake(protocols=canary),
        without("Sec-WebSocket-Key", f"Sec-WebSocket-Key: {canary}"),
        handshake("/", f"Origin: https://{canary}.example"),
        request(f"GET /healthz HTTP/1.1 {canary}", HOST),
    ]
    for data in requests:
        assert canary.encode() not in knock(daemon.port, data).raw
    assert canary not in "\n".join(daemon.raw_log)


# Slow and many.


def test_health_is_answered_while_many_heads_dribble_in(daemon: Daemon) -> None:
    """200 connections that never finish their head keep no probe waiting, and are closed."""
    slow = [socket.create_connection(("127.0.0.1", daemon.port), 20) for _ in range(200)]
    try:
        for connection in slow:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        begun = time.monotonic()
        ended: set[int] = set()
        while len(ended) < len(slow):
            assert time.monotonic() - begun < 20, f"{len(ended)} of {len(slow)} closed"
            for number, connection in enumerate(slow):
                if number not in ended:
                    try:
                        connection.sendall(b"x")
                        connection.setblocking(False)
                        if connection.recv(1000) == b"":
                            ended.add(number)
                    except BlockingIOError:
                        pass
                    except OSError:
                        ended.add(number)
                    finally:
                        connection.setblocking(True)
            asked = time.monotonic()
            assert daemon.get("/healthz")[0] == 200
            assert time.monotonic() - asked < 2
        assert time.monotonic() - begun > 1  # nor are they cut off at once
    finally:
        for connection in slow:
            connection.close()


def test_idle_connections_crowd_out_no_probe(daemon: Daemon) -> None:
    """A thousand at once that say nothing, more than may be without a head: health goes on."""
    with contextlib.ExitStack() as stack:
        for _ in range(800):
            stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), 20))
        assert daemon.get("/healthz")[0] == 200
        assert daemon.get("/readyz")[0] == 200


def test_connections_leave_no_descriptor_behind(daemon: Daemon) -> None:
    """After all that the daemon has as many open files as a fresh one would."""
    fds = Path(f"/proc/{daemon.process.pid}/fd")
    wait_for(lambda: len(list(fds.iterdir())) < 30, "descriptors closed")


def test_a_unix_socket_speaks_the_same(tmp_path: Path) -> None:
    """--listen unix:PATH serves probes, and its file goes with the daemon."""
    # Not below pytest's own folder: the path of a socket has to be short (unix(7)).
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="agentd-test-") as folder:
        path = f"{folder}/s"
        with (
            serving(tmp_path, "cat", listen=f"unix:{path}"),
            socket.socket(socket.AF_UNIX) as connection,
        ):
            connection.settimeout(20)
            connection.connect(path)
            connection.sendall(request("GET /healthz HTTP/1.1", HOST))
            assert parse(read_to_end(connection)).status == 200
        assert not Path(path).exists()
