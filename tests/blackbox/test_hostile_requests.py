"""Input that ends a plain WebSocket server: here it ends one connection, and nobody else notices.

Beside every attack a run prints and its client reads: each line arrives, in order, and the digest
of all of them is the one the daemon told. Afterwards the daemon has as many descriptors, threads
and runs as before, and its log tells of no fault of its own.
"""

import contextlib
import hashlib
import json
import random
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from testing.contexts import gauges, wait_taken
from testing.daemon import Daemon, Stream, read_all, serving, wait_for
from testing.exchange import dialled, exchange, handshake, parse, read_to_end

TIMES = 100

PRINTER = """\
import os, sys, time
number = 0
while not os.path.exists(sys.argv[1]):
    for number in range(number, number + 20):
        print("line", number, "x" * (number % 97), flush=True)
    number += 1
    time.sleep(0.002)
"""
"""Prints numbered lines until the file named by its argument is there; without one, nothing."""


def expected(number: int) -> str:
    return f"line {number} {'x' * (number % 97)}"


class Beside:
    """A daemon, and a stream that goes on while it is attacked."""

    def __init__(self, daemon: Daemon, stop: Path) -> None:
        self.daemon = daemon
        self.stop = stop

    def vitals(self) -> tuple[int, int]:
        """How many descriptors and threads the daemon has, apart from Trio's idle workers."""
        process = Path(f"/proc/{self.daemon.process.pid}")
        return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        """Stream while the block runs; then see that nothing of stream and daemon is lost."""
        daemon = self.daemon
        self.stop.unlink(missing_ok=True)
        told, (descriptors, threads) = len(daemon.log), self.vitals()
        streams: list[Stream] = []
        wait_taken(daemon.submit("stream", id=f"stream-{told}", env={"ATTACKED": "1"}))
        with daemon.connect(f"/?run=stream-{told}") as client:
            early: list[dict[str, object]] = []
            while not early or early[-1]["type"] != "stdout":
                early.append(json.loads(client.recv(20)))
            reader = threading.Thread(target=lambda: streams.append(read_all(client, 60)))
            reader.start()
            try:
                yield
            finally:
                self.stop.touch()
                reader.join(60)
        (stream,) = streams
        assert stream.code == 1000
        lines = Stream([*early, *stream.messages], None, "").lines
        assert lines
        assert lines == [expected(number) for number in range(len(lines))]
        digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
        assert stream.end["stdout_sha256"] == digest
        assert daemon.process.poll() is None
        assert daemon.get("/healthz")[0] == 200
        wait_for(lambda: gauges(daemon)["agentd_clients"] == 0, "clients gone")
        wait_for(lambda: gauges(daemon)["agentd_runs_live"] == 0, "runs ended")
        wait_for(lambda: self.vitals()[0] <= descriptors, f"{descriptors} descriptors, not more")
        assert self.vitals()[1] <= threads + 2
        faults = [entry for entry in daemon.log[told:] if entry.get("level") == "error"]
        assert faults == []
        assert not [line for line in daemon.raw_log if not line.startswith("{")], "a traceback"


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """One daemon for all attacks: it has to survive them all. Its command lives for ATTACKED."""
    folder = tmp_path_factory.mktemp("hostile")
    stop = folder / "stop"
    script = f'[ -n "$ATTACKED" ] || exit 0; exec {sys.executable} -c "$0" "$1"'
    # A context whose client is gone before the 101 waits for another, and only 64 may wait.
    limits = ("--grace", "1", "--max-runs", "100", "--context-ttl", "3")
    options = ("--auth", "none", "--log-level", "debug", *limits)
    command = ("sh", "-c", script, PRINTER, str(stop))
    with serving(folder, *command, options=options, directory=True) as daemon:
        daemon.get("/metrics")  # what a first scrape imports stays
        yield Beside(daemon, stop)
        assert daemon.stop() == 0
        assert not [line for line in daemon.raw_log if not line.startswith("{")]


def reset(connection: socket.socket) -> None:
    """Close with a RST instead of a FIN (SO_LINGER of 0 seconds, socket(7))."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def masked(opcode: int, payload: bytes, *, length: int | None = None) -> bytes:
    """A client's frame, with a mask of zeros; ``length`` may claim what does not come."""
    size = len(payload) if length is None else length
    head = bytes([0x80 | opcode])
    if size < 126:
        return head + bytes([0x80 | size, 0, 0, 0, 0]) + payload
    if size < 65536:
        return head + b"\xfe" + size.to_bytes(2, "big") + bytes(4) + payload
    return head + b"\xff" + size.to_bytes(8, "big") + bytes(4) + payload


# Request heads that are handed to codecs which raise.

HEADS = {
    "a Host that is not ASCII": (b"Host: agentd.example", b"Host: agentd\xff"),
    "a Host of bad punycode": (b"Host: agentd.example", b"Host: xn--zzzzzzzz99999999999"),
    "a Connection that is not ASCII": (b"Connection: Upgrade", b"Connection: Upgr\xe9de"),
    "a subprotocol that is not ASCII": (b"Protocol: agentd.v1", b"Protocol: \xff"),
    "extensions that are not ASCII": (b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: \xff\r\n\r\n"),
    "a token of half a character": (b"?run=nobody", b"?token=%ED%A0%80&run=%ff"),
}


@pytest.mark.parametrize("what", HEADS)
def test_heads_that_no_codec_takes(beside: Beside, what: str) -> None:
    """Each is answered, with no more than a refusal or a 404."""
    old, new = HEADS[what]
    data = handshake("/?run=nobody").replace(old, new)
    assert new in data
    with beside.streaming():
        for _ in range(TIMES):
            raw = exchange(beside.daemon.port, data, end=True)
            # A well-formed one is let go without an answer: its client has left.
            assert not raw or parse(raw).status in (400, 404)


def test_bad_requests_that_are_reset(beside: Beside) -> None:
    """Bytes that are no HTTP, and a RST right behind them, or behind the first of the answer."""
    with beside.streaming():
        for number in range(TIMES * 5):
            connection = socket.create_connection(("127.0.0.1", beside.daemon.port), 20)
            connection.sendall(b"\x00\xff nonsense\r\n\r\n")
            if number % 2:
                connection.recv(1)
            reset(connection)


def test_handshakes_that_are_reset(beside: Beside) -> None:
    """A good handshake, and a RST while it waits, at the moment of the 101, and right behind it."""
    daemon = beside.daemon
    with beside.streaming():
        for number in range(TIMES):
            run = f"reset-{number}"
            if number % 3:
                wait_taken(daemon.submit(run))
            connection = socket.create_connection(("127.0.0.1", daemon.port), 20)
            connection.sendall(handshake(f"/?run={run}"))
            if number % 3 == 2:
                assert connection.recv(13) == b"HTTP/1.1 101 "
            reset(connection)
            if number % 3 == 1:
                # Whether it was started or not, it does not stay behind.
                with dialled(daemon.port) as again:
                    again.sendall(handshake(f"/?run={run}"))
                    assert again.recv(12) in (b"HTTP/1.1 101", b"HTTP/1.1 409")


def ended_stream(daemon: Daemon, name: str) -> socket.socket:
    """A connection on which the daemon has sent its Close and waits for ours."""
    wait_taken(daemon.submit(name))
    connection = socket.create_connection(("127.0.0.1", daemon.port), 20)
    connection.sendall(handshake(f"/?run={name}"))
    data = b""
    while not data.endswith(b"\x88\x08\x03\xe8exit 0"):
        more = connection.recv(65536)
        assert more, data
        data += more
    return connection


AFTER = {
    "a ping": (TIMES, masked(9, b"keep-alive")),
    "oversize": (TIMES, masked(1, b"x" * (1 << 20) + b"x")),
    "pings": (10, masked(9, b"") * 50),
    "absurd": (10, masked(1, b"x", length=1 << 62)),
    "two closes": (10, masked(8, b"\x03\xe8") * 2),
    "garbage": (10, b"\xff" * 100),
    "a request": (10, b"GET / HTTP/1.1\r\n\r\n"),
}


@pytest.mark.parametrize("what", AFTER)
def test_what_comes_after_our_close(beside: Beside, what: str) -> None:
    """A Ping, a message that is too large, another Close, anything: it is drained and closed."""
    times, frames = AFTER[what]
    with beside.streaming():
        names = [f"after-{what.replace(' ', '-')}-{number}" for number in range(times)]

        def attack(name: str) -> None:
            with ended_stream(beside.daemon, name) as connection:
                with contextlib.suppress(OSError):
                    connection.sendall(frames)
                    connection.shutdown(socket.SHUT_WR)
                assert read_to_end(connection) == b""

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(attack, names))


BEFORE = {
    "an unmasked frame": b"\x81\x02hi",
    "a reserved bit": b"\xf1\x80\0\0\0\0",
    "a reserved opcode": masked(3, b"x"),
    "a long ping": masked(9, b"x" * 126),
    "bad UTF-8": masked(1, b"\xff\xfe"),
    "a Close of one byte": masked(8, b"\x03"),
    "a Close that is reserved": masked(8, b"\x03\xed"),
    "a Close of bad UTF-8": masked(8, b"\x03\xe8\xff"),
    "no record": masked(1, b"hello"),
    "a nested record": masked(1, b"[" * 100_000),
    "oversize": masked(1, b"x" * ((1 << 20) + 1)),
    "absurd": masked(1, b"x", length=(1 << 63) - 1),
    "a fragment without its start": masked(0, b"x"),
    "endless fragments": b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 2000,
    "half a frame": b"\x81",
    "pings": masked(9, b"") * 500,
    "garbage": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("what", BEFORE)
def test_frames_that_break_the_protocol(beside: Beside, what: str) -> None:
    """Sent with the handshake and behind it, each ends its own stream at most."""
    daemon = beside.daemon
    with beside.streaming():
        for number in range(6):
            run = f"frames-{what.replace(' ', '-')}-{number}"
            wait_taken(daemon.submit(run, env={"ATTACKED": "1"}))
            with dialled(daemon.port) as connection:
                with contextlib.suppress(OSError):
                    if number % 2:
                        connection.sendall(handshake(f"/?run={run}") + BEFORE[what])
                    else:
                        connection.sendall(handshake(f"/?run={run}"))
                        assert connection.recv(13) == b"HTTP/1.1 101 "
                        connection.sendall(BEFORE[what])
                    connection.shutdown(socket.SHUT_WR)
                read_to_end(connection)


# Heads and bytes by chance.


def mutated(rng: random.Random) -> bytes:
    """A good head with a few things done to it."""
    base = handshake(
        "/?token=abc&run=nobody",
        "Origin: http://localhost",
        "Authorization: Bearer abc",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        "Content-Length: 0",
    )
    data = bytearray(rng.choice([base, base, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"]))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        match rng.randrange(6):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data.insert(at, rng.choice(b"\0\r\n\t :;,=%\xff\x80\xc3()<>@\"'"))
            case 2:
                del data[at : at + rng.randint(1, 8)]
            case 3:
                data[at:at] = data[at : at + rng.randint(1, 40)]
            case 4:
                data[at] ^= 1 << rng.randrange(8)
            case 5:
                data[at:at] = rng.randbytes(rng.randint(1, 12))
        if not data:
            data = bytearray(b"\r")
    return bytes(data)


STATUSES = {200, 400, 403, 404, 405, 413, 414, 426, 431, 501, 505}


def test_two_thousand_mutated_heads(beside: Beside) -> None:
    """Whatever becomes of a head, the answer is one of ours or none, and no 500."""
    rng = random.Random(17)
    heads = [mutated(rng) for _ in range(2000)]

    def send(head: bytes) -> int | None:
        raw = exchange(beside.daemon.port, head, end=True)
        return parse(raw).status if raw else None

    with beside.streaming(), ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(send, heads))
    wrong = [
        (status, head)
        for status, head in zip(statuses, heads, strict=True)
        if status is not None and status not in STATUSES
    ]
    assert wrong == []
    assert len(set(statuses)) > 4


def test_garbage(beside: Beside) -> None:
    """Random bytes of all lengths, ended by FIN or RST."""
    rng = random.Random(18)
    with beside.streaming():
        for number in range(TIMES):
            data = rng.randbytes(rng.choice([1, 2, 10, 500, 20_000, 200_000]))
            connection = socket.create_connection(("127.0.0.1", beside.daemon.port), 20)
            with connection, contextlib.suppress(OSError):
                connection.sendall(data)
                if number % 2:
                    reset(connection)
                else:
                    connection.shutdown(socket.SHUT_WR)
                    raw = read_to_end(connection)
                    assert not raw or parse(raw).status in STATUSES


def test_tls_on_a_plain_port(beside: Beside) -> None:
    """A TLS hello is refused like other bytes."""
    context = ssl.create_default_context()
    with beside.streaming():
        for _ in range(20):
            with dialled(beside.daemon.port) as connection, pytest.raises((ssl.SSLError, OSError)):
                context.wrap_socket(connection, server_hostname="localhost")


def test_connections_that_say_nothing(beside: Beside) -> None:
    """Opened and closed, by FIN and by RST, half a head or none."""
    endings: list[Callable[[socket.socket], None]] = [socket.socket.close, reset]
    with beside.streaming():
        for number in range(TIMES * 3):
            connection = socket.create_connection(("127.0.0.1", beside.daemon.port), 20)
            if number % 3:
                connection.sendall(handshake()[: number % 100])
            endings[number % 2](connection)
