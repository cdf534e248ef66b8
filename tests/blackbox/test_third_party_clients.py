"""Clients nobody here wrote: npm's ``ws``, Python's ``websockets`` on asyncio, and curl."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testing.daemon import V1, Daemon, Stream, serving
from testing.records import verify
from testing.tools import CLIENTS, needs_curl, needs_ws
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

OPEN = ("--auth", "none")
EVAL = ("sh", "-c", 'eval "$SCRIPT"')


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that runs the SCRIPT of its context; its clients may write to their child."""
    folder = tmp_path_factory.mktemp("third")
    with serving(folder, *EVAL, options=(*OPEN, "--stdin", "client")) as daemon:
        yield daemon


# Node's `ws`.


def node(program: str, *arguments: str) -> Any:
    """Run one of the clients in ``tests/clients`` and return what it found."""
    command = ["node", str(CLIENTS / program), *arguments]
    done = subprocess.run(command, capture_output=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize("subprotocol", ["", "agentd.raw"])
@needs_ws
def test_ws_gets_raw_lines(daemon: Daemon, subprotocol: str) -> None:
    """Fifty thousand lines arrive in order, then the Close with its code and reason."""
    daemon.submit(env={"SCRIPT": "seq 50000; printf 'é😀\\n\\nb\\377d'; exit 3"})
    found = node("raw.mjs", daemon.url, subprotocol)
    assert found == {
        "messages": [*map(str, range(1, 50001)), "é😀", "", "b\ufffdd"],
        "code": 4000,
        "reason": "exit 3",
        "protocol": subprotocol,
    }


@needs_ws
def test_ws_gets_exact_bytes_as_binary(tmp_path: Path) -> None:
    """What is not UTF-8 is a binary message to ``ws``, which closes on bad text by itself."""
    options = (*OPEN, "--invalid-utf8", "binary")
    with serving(tmp_path, *EVAL, options=options) as daemon:
        daemon.submit(env={"SCRIPT": r"printf 'good\nb\377d\n'"})
        found = node("raw.mjs", daemon.url)
    assert found["messages"] == ["good", {"base64": "Yv9k"}]
    assert found["code"] == 1000


@needs_ws
def test_ws_gets_records_and_rebuilds_the_digest(daemon: Daemon) -> None:
    """hello, records in order, end, Close: and ``ws`` computes the digest the end record has."""
    script = r"seq 50000; printf 'caf\303\251 b\377d\r\nlast' ; echo err >&2; exit 0"
    daemon.submit(id="for-ws", env={"SCRIPT": script})
    found = node("records.mjs", daemon.url)
    assert found["protocol"] == V1
    assert found["hello"]["run"] == "for-ws"
    assert found["types"][0] == "hello"
    assert found["types"][-1] == "end"
    assert found["ordered"]
    assert found["lines"] == found["end"]["stdout_lines"] == 50002
    assert found["end"]["stderr_lines"] == 1
    assert found["digest"] == found["end"]["stdout_sha256"]
    assert (found["code"], found["reason"]) == (1000, "exit 0")


@needs_ws
def test_ws_talks_with_the_child(daemon: Daemon) -> None:
    """Records sent by ``ws`` reach the child, with its Pings among them."""
    script = 'echo "name?"; read -r name; echo "hello $name"; sleep 0.3; echo ready; exec sleep 60'
    daemon.submit(env={"SCRIPT": script})
    answers = [
        '{"type":"stdin","data":"ada\\n"}',
        '{"type":"heartbeat"}',
        '{"type":"signal","name":"SIGINT"}',
    ]
    found = node("records.mjs", daemon.url, *answers)
    assert found["lines"] == 3
    assert found["pongs"] > 0
    assert (found["end"]["outcome"], found["end"]["signal"]) == ("signaled", "SIGINT")
    assert (found["code"], found["reason"]) == (4001, "SIGINT")


@needs_ws
def test_ws_is_told_an_end_without_a_start(tmp_path: Path) -> None:
    """A command that cannot start is an open, no message, and Close 4002."""
    with serving(tmp_path, "/nonexistent/agent") as daemon:
        daemon.submit()
        found = node("raw.mjs", daemon.url)
    assert (found["messages"], found["code"], found["reason"]) == ([], 4002, "not found")


@needs_ws
def test_ws_is_refused_with_a_status(tmp_path: Path) -> None:
    """Without a context there is nothing to stream: a plain 404 instead of an upgrade."""
    with serving(tmp_path, "true", options=(*OPEN, "--context-wait", "0.2")) as daemon:
        assert node("raw.mjs", daemon.url) == {"status": 404}


# Python's `websockets` on asyncio.


def test_an_asyncio_client_reads_records_with_its_own_keepalive(daemon: Daemon) -> None:
    """Its Pings every 50 ms, in silence and in the middle of full speed, cut no record."""

    async def read() -> Stream:
        messages = []
        async with connect(
            daemon.url,
            subprotocols=[Subprotocol(V1)],
            ping_interval=0.05,
            ping_timeout=20,
            max_size=None,
            proxy=None,
        ) as client:
            try:
                while True:
                    messages.append(json.loads(await client.recv()))
            except ConnectionClosed:
                pass
            assert client.latency > 0, "no Ping was answered"
            return Stream(messages, client.close_code, client.close_reason or "")

    daemon.submit(env={"SCRIPT": "sleep 0.5; seq 100000; sleep 0.5; seq 100000; exit 3"})
    stream = asyncio.run(read())
    assert len(verify(stream)) == 2 * 588895
    assert (stream.code, stream.reason) == (4000, "exit 3")


def test_an_asyncio_client_with_compression_gets_plain_frames(daemon: Daemon) -> None:
    """permessage-deflate is offered, not agreed on, and the lines are the same."""

    async def read() -> list[str | bytes]:
        async with connect(daemon.url, compression="deflate", proxy=None) as client:
            assert client.response is not None
            assert "Sec-WebSocket-Extensions" not in client.response.headers
            return [message async for message in client]

    daemon.submit(env={"SCRIPT": "seq 1000"})
    assert asyncio.run(read()) == [str(number) for number in range(1, 1001)]


def test_an_asyncio_client_that_closes_ends_its_run(daemon: Daemon) -> None:
    """Leaving is quick, with the Close answered, and the child is stopped."""

    async def visit() -> int | None:
        async with connect(daemon.url, close_timeout=10, proxy=None) as client:
            assert await client.recv() == "ready"
        return client.close_code

    daemon.submit(id="left", env={"SCRIPT": "echo ready; exec sleep 60"})
    assert asyncio.run(visit()) == 1000
    daemon.wait_log('"run ended", "run": "left", "outcome": "cancelled"')


# curl.


class Answer:
    """What curl got: the status, the header fields in lower case, and the body."""

    def __init__(self, output: bytes) -> None:
        head, _, self.body = output.partition(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 1"):  # 100 Continue
            head, _, self.body = self.body.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        pairs = (line.partition(":") for line in lines)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}


def curl(*arguments: str) -> Answer:
    """Run curl and parse what it prints with ``--include``."""
    command = ["curl", "--silent", "--show-error", "--include", "--max-time", "20", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=40, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return Answer(done.stdout)


@needs_curl
def test_curl_reads_health(daemon: Daemon) -> None:
    """/healthz is 200 with exactly four fields."""
    answer = curl(f"http://{daemon.address}/healthz")
    body = json.loads(answer.body)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert set(body) == {"status", "protocol", "build", "image"}
    assert (body["status"], body["protocol"]) == ("ok", V1)


@needs_curl
def test_curl_reads_readiness(daemon: Daemon) -> None:
    """/readyz is 200 while the daemon serves."""
    assert curl(f"http://{daemon.address}/readyz").status == 200


@needs_curl
def test_curl_reads_metrics(daemon: Daemon) -> None:
    """/metrics is OpenMetrics text, which ends with its EOF line."""
    answer = curl(f"http://{daemon.address}/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
@needs_curl
def test_curl_asks_with_head(daemon: Daemon, path: str) -> None:
    """HEAD has the status and length of GET and no body; curl -I would wait for one in vain."""
    answer = curl("--head", f"http://{daemon.address}{path}")
    assert answer.status == 200
    assert answer.body == b""
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("arguments", "path", "status"),
    [
        ((), "/", 404),
        (("--head",), "/", 404),
        ((), "/anything/else?x=y", 426),
        ((), "/healthz/", 426),
        ((), "/HEALTHZ", 426),
        (("--request", "DELETE"), "/healthz", 405),
        (("--data", "x=y"), "/", 405),
        (("--data", "x=y"), "/stream", 405),
        (("--request", "OPTIONS"), "/metrics", 405),
        (("--header", "X-Large: " + "x" * 20000), "/healthz", 431),
        (("--header", "Upgrade: websocket", "--header", "Connection: Upgrade"), "/", 426),
    ],
)
@needs_curl
def test_curl_is_refused_by_the_book(
    daemon: Daemon, arguments: tuple[str, ...], path: str, status: int
) -> None:
    """What is no probe and no upgrade gets its status, as a problem document."""
    answer = curl(*arguments, f"http://{daemon.address}{path}")
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    if "--head" not in arguments:
        assert json.loads(answer.body)["status"] == status
    if status == 405:
        assert set(answer.headers["allow"].replace(" ", "").split(",")) == {"GET", "HEAD"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--http1.0",),
        ("--http2",),  # offers h2c by Upgrade
        ("--header", "Expect: 100-continue"),
        ("--header", "Connection: keep-alive, x-other"),
        ("--header", "Host:  127.0.0.1"),
        ("--header", "X-Folded;"),
        ("--get", "--data-urlencode", "q=ä b"),
        ("--request", "GET", "--data", "a body nobody asked for"),
        ("--request", "GET", "--header", "Transfer-Encoding: chunked", "--data", "a chunk"),
    ],
    ids=" ".join,
)
@needs_curl
def test_curl_may_ask_oddly(daemon: Daemon, arguments: tuple[str, ...]) -> None:
    """Old versions, offers to upgrade, bodies and chunks: the probe is answered all the same."""
    answer = curl(*arguments, f"http://{daemon.address}/healthz")
    assert answer.status == 200
    assert json.loads(answer.body)["status"] == "ok"


@needs_curl
def test_curl_posts_chunks(daemon: Daemon, tmp_path: Path) -> None:
    """A chunked upload that nobody wants is answered with 405 and not with a reset."""
    upload = tmp_path / "upload"
    upload.write_bytes(b"x" * 300000)
    answer = curl("--upload-file", str(upload), "--header", "Transfer-Encoding: chunked",
                  "--header", "Expect:", f"http://{daemon.address}/healthz")  # fmt: skip
    assert answer.status == 405


@needs_curl
def test_curl_asks_as_of_a_proxy(daemon: Daemon) -> None:
    """The absolute form of a target is understood (RFC 9112 section 3.2.2)."""
    answer = curl("--proxy", f"http://{daemon.address}", "http://127.0.0.1/healthz")
    assert answer.status == 200


@needs_curl
def test_curl_asks_twice_in_one_go(daemon: Daemon) -> None:
    """Two URLs on one command line are two right answers, whatever becomes of the connection."""
    url = f"http://{daemon.address}/healthz"
    done = subprocess.run(
        ["curl", "--silent", "--max-time", "20", "--write-out", "%{http_code} ", url, url],
        capture_output=True,
        timeout=40,
        check=True,
    )
    assert done.stdout.count(b'"status":"ok"') == 2
    assert done.stdout.count(b"200 ") == 2


@needs_curl
def test_curl_speaks_http2_in_vain(daemon: Daemon) -> None:
    """A client that begins in HTTP/2 gets an answer it can't use, and disturbs nobody."""
    command = ["curl", "--silent", "--max-time", "10", "--http2-prior-knowledge"]
    done = subprocess.run(
        [*command, f"http://{daemon.address}/healthz"], capture_output=True, timeout=40, check=False
    )
    assert done.returncode != 0
    assert curl(f"http://{daemon.address}/healthz").status == 200


@needs_curl
def test_curl_reads_health_of_a_busy_daemon(daemon: Daemon) -> None:
    """Health answers while a run prints at full speed, and the run loses nothing by it."""
    daemon.submit(env={"SCRIPT": "seq 300000"})
    with daemon.connect(subprotocols=None) as client:
        lines = [client.recv(20)]
        for _ in range(5):
            assert curl(f"http://{daemon.address}/healthz").status == 200
            lines += [client.recv(20) for _ in range(1000)]
        try:
            while True:
                lines.append(client.recv(20))
        except ConnectionClosed:
            pass
    assert lines == [str(number) for number in range(1, 300001)]
