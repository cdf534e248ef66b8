"""`agentd stream` as a process: where each byte goes, and every exit status."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.fake_server import Peer, Script, serving
from testing.transcript import Fields, Transcript, text

from agentd.sansio.lifecycle import End, Outcome
from agentd.stream import exit_status

COMMAND = (
    "import json, sys\n"
    "from agentd.stream import stream_command\n"
    "sys.exit(stream_command(sys.argv[1], **json.loads(sys.argv[2])))\n"
)


def argv(url: str, **options: object) -> list[str]:
    """Return the command line of a client."""
    return [sys.executable, "-c", COMMAND, url, json.dumps(options)]


def follow(script: Script, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run a client against a server with `script`, to its end."""
    with serving(script) as server:
        return subprocess.run(
            argv(server.url, **options), capture_output=True, timeout=30, check=False
        )


@contextlib.contextmanager
def following(url: str, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Start a client whose stdout and stderr are pipes; it is gone when the block is left."""
    process = subprocess.Popen(
        argv(url, **options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def telling(*records: Fields, code: int = 1000, reason: str = "") -> Script:
    """Return a script that tells a whole stream."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(*records)
        peer.close(code, reason)
        peer.wait_gone()

    return script


def ended(**end: object) -> Script:
    """Return a script of a run that printed one line and ended as told."""
    told = Transcript()
    return telling(told.hello(), told.stdout("line"), told.end() | end)


# Where the bytes go.


def test_stdout_goes_to_stdout_and_stderr_to_stderr() -> None:
    """Both streams come out byte for byte, and nothing of agentd's own is between them."""
    told = Transcript()
    script = telling(
        told.hello(),
        told.stdout("a long ", more=True),
        told.stderr("warning"),
        told.stdout("line\r"),
        told.heartbeat(),
        told.stdout(b"\xff\x00\xfe"),
        told.stdout(""),
        told.stderr("no end", eol=False),
        told.stdout("no newline", eol=False),
        told.end(),
    )
    done = follow(script)
    assert done.stdout == told.stdout_bytes == b"a long line\r\n\xff\x00\xfe\n\nno newline"
    assert done.stderr == told.stderr_bytes == b"warning\nno end"
    assert done.returncode == 0


def test_a_line_comes_out_as_soon_as_it_arrives() -> None:
    """Each line, and each part of one, is there before the next is sent."""
    go_on = [threading.Event() for _ in range(3)]

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello(), told.stdout("one"))
        assert go_on[0].wait(20)
        peer.send(told.stdout("two ", more=True))
        assert go_on[1].wait(20)
        peer.send(told.stdout("three"))
        assert go_on[2].wait(20)
        peer.send(told.end())
        peer.close()
        peer.wait_gone()

    with serving(script) as server, following(server.url) as client:
        assert client.stdout is not None
        for event, expected in zip(go_on, (b"one\n", b"two ", b"three\n"), strict=True):
            assert client.stdout.read(len(expected)) == expected
            event.set()
        assert client.wait(20) == 0


def test_much_output_comes_out_whole(tmp_path: Path) -> None:
    """Lines longer than a pipe's buffer, into a pipe and into a file."""
    told = Transcript()
    script = telling(told.hello(), *(told.stdout("x" * 200_000) for _ in range(40)), told.end())
    assert follow(script).stdout == told.stdout_bytes
    with (tmp_path / "out").open("wb") as file, serving(script) as server:
        subprocess.run(argv(server.url), stdout=file, timeout=30, check=True)
    assert (tmp_path / "out").read_bytes() == told.stdout_bytes


def test_json_is_what_was_received() -> None:
    """With --json every record is one line on stdout, heartbeats and stderr as well."""
    told = Transcript()
    records = [
        told.hello(),
        told.heartbeat(),
        told.stdout("grüß\x00"),
        told.stderr("err"),
        told.end(exit_code=4),
    ]
    done = follow(telling(*records), json_output=True)
    assert done.stdout.decode().splitlines() == [text(record) for record in records]
    assert done.stderr == b""
    assert done.returncode == 4


def test_json_with_newlines_in_it_is_one_line_still() -> None:
    """A server may write JSON over several lines; whoever reads ours reads lines."""
    told = Transcript()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send_text(json.dumps(told.hello(), indent=1))
        peer.send(told.end())
        peer.close()
        peer.wait_gone()

    done = follow(script, json_output=True)
    assert [json.loads(line)["type"] for line in done.stdout.splitlines()] == ["hello", "end"]


# Exit statuses.


@pytest.mark.parametrize("code", [0, 1, 2, 3, 42, 124, 125, 255])
def test_the_exit_code_is_the_runs(code: int) -> None:
    """An exit code is passed on as it is, and silently."""
    done = follow(ended(exit_code=code))
    assert (done.returncode, done.stdout, done.stderr) == (code, b"line\n", b"")


@pytest.mark.parametrize(
    ("end", "status", "line"),
    [
        ({"outcome": "signaled", "exit_code": None, "signal": "SIGKILL"}, 137, ""),
        ({"outcome": "timed_out", "exit_code": None, "signal": "SIGTERM"}, 124, "timed out"),
        ({"outcome": "cancelled", "exit_code": 0}, 130, "cancelled"),
        ({"outcome": "shutdown", "exit_code": 0}, 125, "daemon shut down"),
        ({"outcome": "spawn_failed", "exit_code": None, "error": "not_found"}, 127, "not found"),
    ],
)
def test_other_ends_have_their_status(end: Fields, status: int, line: str) -> None:
    """What is not an exit code has the shell's or timeout(1)'s status, and a line that says so."""
    done = follow(ended(**end))
    assert done.returncode == status
    assert line.encode() in done.stderr
    assert done.stderr.count(b"\n") == bool(line)


@pytest.mark.parametrize(
    ("outcome", "signal_", "error", "status"),
    [
        ("signaled", "SIGHUP", None, 129),
        ("signaled", "SIGTERM", None, 143),
        ("signaled", "SIGRTMIN+3", None, 128 + 37),
        ("signaled", "SIGSURPRISE", None, 125),
        ("timed_out", "SIGKILL", None, 124),
        ("cancelled", None, None, 130),
        ("shutdown", None, None, 125),
        ("spawn_failed", None, "not_found", 127),
        ("spawn_failed", None, "not_executable", 126),
        ("spawn_failed", None, "bad_cwd", 125),
        ("spawn_failed", None, "too_big", 125),
        ("spawn_failed", None, "other", 125),
    ],
)
def test_every_end_has_its_status(
    outcome: str, signal_: str | None, error: str | None, status: int
) -> None:
    """The table of CONTRACT.md, row for row."""
    end = End(Outcome(outcome), None, signal_, error, 0, 0, 0, "", 0.0)
    assert exit_status(end)[0] == status


@pytest.mark.parametrize("code", range(256))
def test_every_exit_code_is_its_own_status(code: int) -> None:
    """0 to 255, none of them changed."""
    assert exit_status(End(Outcome.EXITED, code, None, None, 0, 0, 0, "", 0.0)) == (code, None)


def test_no_end_record_is_a_failure() -> None:
    """A connection that ends before the run does is 125, whatever came before it."""
    told = Transcript()
    done = follow(telling(told.hello(), told.stdout("half"), code=4009, reason="displaced"))
    assert (done.returncode, done.stdout) == (125, b"half\n")
    assert done.stderr == (
        b"agentd: the stream ended without its end record: closed with 4009 displaced\n"
    )


def test_a_false_digest_is_a_failure() -> None:
    """All lines came, but they are not the ones that were printed."""
    done = follow(ended(stdout_sha256="0" * 64))
    assert done.returncode == 125
    assert done.stderr.startswith(b"agentd: stdout_sha256 of the end record")


@pytest.mark.parametrize("status", [401, 404, 409, 503])
def test_a_refusal_is_a_failure_that_says_why(status: int) -> None:
    """The server's own words are the one line on stderr."""
    body = json.dumps({"detail": "not today"}).encode()
    done = follow(lambda peer: peer.answer(f"{status} No", body))
    assert done.returncode == 125
    assert done.stderr == f"agentd: refused with {status}: not today\n".encode()


def test_nobody_there_is_a_failure_that_says_so(tmp_path: Path) -> None:
    """Cannot connect: 125 and one line."""
    done = subprocess.run(
        argv(f"unix:{tmp_path}/none"), capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 125
    assert (
        done.stderr
        == f"agentd: cannot connect to {tmp_path}/none: No such file or directory\n".encode()
    )


def test_output_that_cannot_be_written_is_a_failure() -> None:
    """A full disk is 125 and says which it is."""
    told = Transcript()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(told.hello(), told.stdout("x"))
        peer.wait_gone()

    with serving(script) as server, open("/dev/full", "wb") as full:
        done = subprocess.run(
            argv(server.url), stdout=full, stderr=subprocess.PIPE, timeout=30, check=False
        )
    assert done.returncode == 125
    assert done.stderr == (b"agentd: cannot write what the run printed: No space left on device\n")


# Tokens.


def test_the_token_comes_from_the_option_or_the_file(tmp_path: Path) -> None:
    """A file may end with a newline, as editors and shells write it."""
    seen = []

    def script(peer: Peer) -> None:
        seen.append(peer.read_request().headers.get("Authorization"))
        ended()(peer)

    file = tmp_path / "token"
    file.write_text("from.the.file\n")
    for options in ({"token": "from.the.option"}, {"token_file": str(file)}, {}):
        assert follow(script, **options).returncode == 0
    assert seen == ["Bearer from.the.option", "Bearer from.the.file", None]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot read the token file {path}: No such file or directory"),
        (b"\xffsecret", "cannot read the token file {path}: it is not text"),
        (b"se cret", "cannot use the token: it is empty or has a character that no token has"),
        (b"", "cannot use the token: it is empty or has a character that no token has"),
    ],
)
def test_a_token_file_that_holds_none_is_named(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    """The file is named; what is in it is not shown."""
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    done = subprocess.run(
        argv("ws://127.0.0.1:9/", token_file=str(path)),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 125
    assert done.stderr.decode() == f"agentd: {complaint.format(path=path)}\n"


# Signals, and a reader that leaves.


def cancelling(received: list[Fields]) -> Script:
    """Return a script of a run that ends when the client cancels it."""

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello(), told.stdout("ready"))
        received.append(peer.receive_record())
        peer.send(told.stdout("bye"), told.end("cancelled", None, signal="SIGTERM"))
        peer.close(4004, "cancelled")
        peer.wait_gone()

    return script


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_run_and_waits_for_its_end(signum: signal.Signals) -> None:
    """What the run prints while it stops still comes out; the status is 130."""
    received: list[Fields] = []
    with serving(cancelling(received)) as server, following(server.url) as client:
        assert client.stdout is not None
        assert client.stderr is not None
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(signum)
        assert client.wait(20) == 130
        assert client.stdout.read() == b"bye\n"
        assert client.stderr.read() == b""
    assert received == [{"type": "cancel"}]


def test_a_second_signal_leaves_at_once() -> None:
    """Whoever presses Ctrl-C twice does not wait for the run."""

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello(), told.stdout("ready"))
        assert peer.receive_record() == {"type": "cancel"}
        peer.send(told.stdout("stopping"))
        peer.wait_gone()

    with serving(script) as server, following(server.url) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(signal.SIGINT)
        assert client.stdout.readline() == b"stopping\n"
        client.send_signal(signal.SIGINT)
        assert client.wait(4) == 130


def test_a_signal_before_the_server_answered_leaves_at_once() -> None:
    """While it waits to be let in there is nothing to cancel."""
    asked = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        asked.set()
        assert peer.sock.recv(1) == b""

    with serving(script) as server, following(server.url) as client:
        assert asked.wait(20)
        client.send_signal(signal.SIGINT)
        assert client.wait(20) == 130
        assert client.stderr is not None
        assert client.stderr.read() == b""


def test_a_run_that_ends_otherwise_after_a_signal_is_130_too() -> None:
    """Ctrl-C and the run's own end may cross; whoever interrupted knows that they did."""

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello(), told.stdout("ready"))
        peer.receive_record()
        peer.rst()

    with serving(script) as server, following(server.url) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(signal.SIGINT)
        assert client.wait(20) == 130


def test_a_reader_that_leaves_ends_the_stream_quietly() -> None:
    """As in `agentd stream URL | head -1`: the status of SIGPIPE and not a word."""
    gone = threading.Event()

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello())
        with contextlib.suppress(ConnectionError):
            while True:
                peer.send(told.stdout("y" * 1000))
        gone.set()

    with serving(script) as server, following(server.url) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"y" * 1000 + b"\n"
        client.stdout.close()
        assert client.wait(20) == 141
        assert client.stderr is not None
        assert client.stderr.read() == b""
        assert gone.wait(20)


def test_a_reader_that_stops_reading_stops_nothing_else() -> None:
    """While stdout takes nothing, as with a pager, pings are answered."""
    ponged = threading.Event()

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello(), told.stdout("x" * 500_000))
        assert stuck.wait(20)
        peer.ping(b"?")
        frame = peer.receive()
        assert frame is not None
        assert bytes(frame.data) == b"?"
        ponged.set()
        peer.send(told.end())
        peer.close()
        peer.wait_gone()

    stuck = threading.Event()
    with serving(script) as server, following(server.url) as client:
        assert client.stdout is not None
        # Something came, and nobody takes the rest: the pipe is full or will be.
        assert client.stdout.read(1) == b"x"
        stuck.set()
        assert ponged.wait(20)
        rest = b""
        while data := os.read(client.stdout.fileno(), 65536):
            rest += data
        assert len(rest) == 500_000
        assert client.wait(20) == 0
