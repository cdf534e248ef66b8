"""What a client may say: stdin, signals, cancel, heartbeats; and what becomes of one that errs."""

import base64
import contextlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testing.daemon import V1, Daemon, Stream, read_all, serving, wait_for
from testing.handmade import CLOSE, PING, TEXT, Handmade, client_frame, close_code
from testing.records import verify
from websockets.sync.client import ClientConnection

OPEN = ("--auth", "none")
EVAL = ("sh", "-c", 'eval "$SCRIPT"')
"""Runs the script in its context's environment; its stdin is the client's."""
FOREVER = "while :; do sleep 0.05; done"
MIB = 1 << 20


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose clients may write to their child."""
    folder = tmp_path_factory.mktemp("client")
    with serving(folder, *EVAL, options=(*OPEN, "--stdin", "client")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose child reads the prompt, a script, and nothing of its client."""
    with serving(tmp_path_factory.mktemp("closed"), "sh") as daemon:
        yield daemon


@contextlib.contextmanager
def talking(
    daemon: Daemon, script: str, *, traps: str = ":", **context: Any
) -> Iterator[ClientConnection]:
    """A client of a run whose hello it has seen, and ``ready``, which comes after ``traps``."""
    daemon.submit(env={"SCRIPT": f"{traps}; echo ready; {script}"}, **context)
    with daemon.connect() as client:
        assert json.loads(client.recv(20))["type"] == "hello"
        assert json.loads(client.recv(20))["line"] == "ready"
        yield client


def say(client: ClientConnection, kind: str, **fields: object) -> None:
    client.send(json.dumps({"type": kind, **fields}))


def line(client: ClientConnection) -> str:
    """The next line of stdout, whatever silence or complaint of the shell's was before it."""
    while True:
        record = json.loads(client.recv(20))
        if record["type"] not in ("heartbeat", "stderr"):
            assert record["type"] == "stdout", record
            return str(record["line"])


# Standard input.


def test_stdin_data_is_written_as_it_is(daemon: Daemon) -> None:
    """``data`` and ``base64`` reach the child in order and exactly: nothing is added."""
    with talking(daemon, "od -An -v -tx1 -w20") as client:
        say(client, "stdin", data="zwölf")
        say(client, "stdin", data="")
        say(client, "stdin", data="\n\0")
        say(client, "stdin", base64=base64.b64encode(b"\xff\xfe\r\n").decode())
        say(client, "stdin_eof")
        stream = read_all(client)
    assert stream.lines == [" 7a 77 c3 b6 6c 66 0a 00 ff fe 0d 0a"]
    assert stream.code == 1000


def test_stdin_eof_ends_the_childs_input(daemon: Daemon) -> None:
    """After ``stdin_eof`` the child reads end of file, and what comes later is nobody's."""
    with talking(daemon, "cat; echo end; read -r again || echo still") as client:
        say(client, "stdin", data="one\n")
        assert line(client) == "one"
        say(client, "stdin_eof")
        assert line(client) == "end"
        with contextlib.suppress(Exception):
            say(client, "stdin", data="late\n")
        assert read_all(client).lines == ["still"]


def test_a_conversation_goes_line_by_line(daemon: Daemon) -> None:
    """Each answer of the child's leaves at once, so that the client can react to it."""
    script = 'while read -r word; do echo "got $word"; done; echo bye'
    with talking(daemon, script) as client:
        for word in ("one", "two", "three"):
            say(client, "stdin", data=f"{word}\n")
            assert line(client) == f"got {word}"
        say(client, "stdin_eof")
        assert read_all(client).lines == ["bye"]


def test_a_lot_of_stdin_flows_to_a_child_that_reads(daemon: Daemon) -> None:
    """Megabytes go through to a child that echoes them, byte for byte, in bounded memory."""
    chunk = "".join(f"{number:015d}\n" for number in range(4096))
    with talking(daemon, "cat") as client:
        got = []
        for _ in range(48):
            say(client, "stdin", data=chunk)
            got.append([line(client) for _ in range(4096)])
        say(client, "stdin_eof")
        stream = read_all(client)
    assert all(lines == chunk.split("\n")[:-1] for lines in got)
    assert stream.end["stdout_bytes"] == len("ready\n") + 48 * len(chunk)


def test_a_child_that_closed_its_stdin_is_left_alone(daemon: Daemon) -> None:
    """What is sent to a child that does not want it is dropped, and the run goes on."""
    with talking(daemon, "exec <&-; echo closed; sleep 0.3; echo end; exit 3") as client:
        assert line(client) == "closed"
        for _ in range(4):
            say(client, "stdin", data="x" * 500000)
        stream = read_all(client)
    assert (stream.lines, stream.code) == (["end"], 4000)


# Signals and cancel.


def test_a_signal_reaches_the_child(daemon: Daemon) -> None:
    """``signal`` with either form of a name is what kill(1) would send."""
    traps = "trap 'echo usr1' USR1; trap 'echo int; exit 5' INT"
    with talking(daemon, FOREVER, traps=traps) as client:
        say(client, "signal", name="SIGUSR1")
        assert line(client) == "usr1"
        say(client, "signal", name="INT")
        stream = read_all(client)
    assert stream.lines == ["int"]
    assert (stream.end["outcome"], stream.end["exit_code"]) == ("exited", 5)
    assert (stream.code, stream.reason) == (4000, "exit 5")


def test_a_signal_that_kills_is_the_leaders_own_end(daemon: Daemon) -> None:
    """A child killed by the client's signal has ``signaled`` and that signal."""
    with talking(daemon, "exec sleep 60") as client:
        say(client, "signal", name="SIGKILL")
        stream = read_all(client)
    assert (stream.end["outcome"], stream.end["signal"]) == ("signaled", "SIGKILL")
    assert (stream.code, stream.reason) == (4001, "SIGKILL")


def test_a_signal_goes_to_the_whole_process_group(daemon: Daemon) -> None:
    """The leader's own children get it too, as from a terminal."""
    helper = "(trap 'echo helper; exit' USR1; echo up; while :; do sleep 0.05; done) &"
    script = f"trap 'echo leader' USR1; {helper} wait; wait; echo end"
    with talking(daemon, script) as client:
        assert line(client) == "up"
        say(client, "signal", name="USR1")
        stream = read_all(client)
    assert sorted(stream.lines) == ["end", "helper", "leader"]


def test_cancel_stops_the_run(daemon: Daemon) -> None:
    """``cancel`` is SIGTERM to the group; the end is ``cancelled`` with the real status, 4004."""
    with talking(daemon, FOREVER, traps="trap 'echo bye; exit 7' TERM") as client:
        say(client, "cancel")
        stream = read_all(client)
    assert stream.lines == ["bye"]
    end = stream.end
    assert (end["outcome"], end["exit_code"], end["signal"]) == ("cancelled", 7, None)
    assert (stream.code, stream.reason) == (4004, "cancelled")


def test_cancel_kills_a_child_that_does_not_listen(tmp_path: Path) -> None:
    """A child that ignores SIGTERM gets SIGKILL after ``--grace``, and its helpers with it."""
    options = (*OPEN, "--stdin", "client", "--grace", "0.3")
    script = f"sleep 71 & echo $!; {FOREVER}"
    with (
        serving(tmp_path, *EVAL, options=options) as daemon,
        talking(daemon, script, traps="trap '' TERM") as client,
    ):
        helper = Path("/proc") / line(client)
        say(client, "cancel")
        stream = read_all(client)
    assert (stream.end["outcome"], stream.end["signal"]) == ("cancelled", "SIGKILL")
    assert stream.code == 4004
    assert not helper.exists()


# Acknowledgements and heartbeats.


def test_acks_and_heartbeats_are_taken_in_silence(daemon: Daemon) -> None:
    """``ack`` and ``heartbeat`` are welcome at any time and get no answer."""
    with talking(daemon, "read -r x; echo $x") as client:
        say(client, "heartbeat")
        say(client, "ack", seq=0)
        say(client, "ack", seq=1)
        say(client, "heartbeat", note="a field nobody knows")
        say(client, "stdin", data="go\n")
        stream = read_all(client)
    assert [record["type"] for record in stream.messages] == ["stdout", "end"]
    assert (stream.lines, stream.code) == (["go"], 1000)


def test_a_ping_is_answered_within_the_stream(daemon: Daemon) -> None:
    """A WebSocket Ping gets its Pong with the same payload, at a frame's boundary."""
    daemon.submit(env={"SCRIPT": "seq 100000; read -r x; seq 100000"})
    with Handmade(daemon.address, subprotocols=[V1]) as client:
        client.send(client_frame(b"are you there", first=0x80 | PING))
        client.send(client_frame(b'{"type":"stdin","data":"\\n"}'))
        *frames, close = client.frames()
    pongs = [frame for frame in frames if frame.opcode == 0xA]
    assert [pong.payload for pong in pongs] == [b"are you there"]
    records = [json.loads(frame.payload) for frame in frames if frame.opcode == TEXT]
    assert len(verify(Stream(records, *close_code(close)))) == 2 * 588895


def test_a_record_may_come_in_fragments(daemon: Daemon) -> None:
    """A client may cut its message into frames, with a Ping between them."""
    daemon.submit(env={"SCRIPT": "read -r x; echo $x"})
    with Handmade(daemon.address, subprotocols=[V1]) as client:
        record = b'{"type":"stdin","data":"in pieces\\n"}'
        client.send(client_frame(record[:10], first=TEXT))
        client.send(client_frame(b"", first=0x80 | PING))
        client.send(client_frame(record[10:20], first=0))
        client.send(client_frame(record[20:], first=0x80))
        *frames, close = client.frames()
    assert any(b'"line":"in pieces"' in frame.payload for frame in frames)
    assert close_code(close) == (1000, "exit 0")


# Bad records.


def _refused(stream: Stream) -> None:
    """End, with the run cancelled, then Close 4400 with a reason."""
    assert stream.end["outcome"] == "cancelled"
    assert stream.code == 4400
    assert stream.reason


BAD = {
    "unknown type": '{"type":"resize","cols":80}',
    "server's type": '{"type":"stdout","seq":1,"line":"x"}',
    "no type": "{}",
    "type not a string": '{"type":1}',
    "not JSON": "cancel",
    "empty": "",
    "array": '[{"type":"cancel"}]',
    "two objects": '{"type":"cancel"}{"type":"cancel"}',
    "deep": "[" * 100000,
    "binary": b'{"type":"cancel"}',
    "stdin without data": '{"type":"stdin"}',
    "stdin with both": '{"type":"stdin","data":"a","base64":"YQ=="}',
    "stdin not a string": '{"type":"stdin","data":7}',
    "base64 that is none": '{"type":"stdin","base64":"sekret!"}',
    "signal without name": '{"type":"signal"}',
    "signal unknown": '{"type":"signal","name":"SIGSEKRET"}',
    "signal by number": '{"type":"signal","name":9}',
    "ack without seq": '{"type":"ack"}',
    "ack negative": '{"type":"ack","seq":-1}',
    "context": '{"type":"context","prompt":"sekret"}',
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD)
def test_a_bad_record_ends_the_run_with_4400(daemon: Daemon, message: str | bytes) -> None:
    """What is no record of a client's ends the run: its end record, then Close 4400, whose reason
    never repeats what was sent."""
    with talking(daemon, "exec sleep 60") as client:
        client.send(message)
        stream = read_all(client)
    _refused(stream)
    assert "sekret" not in stream.reason.lower()
    assert not [logged for logged in daemon.raw_log if "sekret" in logged.lower()]


@pytest.mark.parametrize(
    "message",
    ['{"type":"stdin","data":"x"}', '{"type":"stdin_eof"}'],
    ids=["stdin", "stdin_eof"],
)
def test_stdin_that_is_not_the_clients_is_a_bad_record(closed: Daemon, message: str) -> None:
    """Without ``--stdin client`` a stdin record is refused; cancel and signal are not."""
    closed.submit(prompt="exec sleep 60")
    with closed.connect() as client:
        client.send(message)
        _refused(read_all(client))
    closed.submit(prompt="exec sleep 60")
    with closed.connect() as client:
        say(client, "cancel")
        assert read_all(client).code == 4004


def test_a_record_of_a_mebibyte_is_taken_and_no_larger(daemon: Daemon) -> None:
    """1 MiB is the most a record may have: that is taken, a byte more is refused."""
    frame = '{"type":"heartbeat","pad":""}'
    with talking(daemon, "read -r x; echo $x") as client:
        client.send(frame[:-2] + "x" * (MIB - len(frame)) + '"}')
        say(client, "stdin", data="taken\n")
        assert read_all(client).lines == ["taken"]
    with talking(daemon, "exec sleep 60") as client:
        client.send(frame[:-2] + "x" * (MIB - len(frame) + 1) + '"}')
        _refused(read_all(client))


def test_a_record_without_end_is_refused_before_it_is_whole(daemon: Daemon) -> None:
    """Of a record that says it has a gigabyte one mebibyte is read, and then it is refused."""
    daemon.submit(env={"SCRIPT": "exec sleep 60"})
    with Handmade(daemon.address, subprotocols=[V1]) as client:
        client.send(struct.pack("!BBQ", 0x81, 0xFF, 1 << 30) + bytes(4) + b"x" * (MIB + 1))
        *frames, close = client.frames()
    assert b'"type":"end"' in frames[-1].payload
    assert close_code(close)[0] == 4400


def test_more_than_a_mebibyte_cannot_wait_for_the_child(daemon: Daemon) -> None:
    """What a child does not read waits up to 1 MiB; beyond it the client is refused."""
    with talking(daemon, "exec sleep 60") as client:
        say(client, "stdin", data="x" * 500000)
        say(client, "stdin", data="x" * 500000)
        say(client, "heartbeat")
        say(client, "stdin", data="x" * 500000)
        _refused(read_all(client))


def test_other_runs_do_not_notice_a_bad_record(daemon: Daemon) -> None:
    """While one client is refused, the stream of another goes on byte for byte."""
    with talking(daemon, "seq 50000; read -r go; seq 50000", id="good") as good:
        for message in ("nonsense", b"\0", '{"type":"stdin"}'):
            with talking(daemon, "exec sleep 60") as bad:
                bad.send(message)
                _refused(read_all(bad))
        say(good, "stdin", data="go\n")
        stream = read_all(good)
    assert stream.lines == [str(n) for n in range(1, 50001)] * 2
    assert stream.code == 1000


# Violations of the WebSocket protocol itself.

VIOLATIONS = {
    "unmasked": (client_frame(b'{"type":"heartbeat"}', mask=False), 1002),
    "RSV1": (client_frame(b'{"type":"heartbeat"}', first=0xC1), 1002),
    "RSV2": (client_frame(b'{"type":"heartbeat"}', first=0xA1), 1002),
    "RSV3": (client_frame(b'{"type":"heartbeat"}', first=0x91), 1002),
    "reserved opcode": (client_frame(b"x", first=0x83), 1002),
    "reserved control opcode": (client_frame(b"x", first=0x8B), 1002),
    "fragmented ping": (client_frame(b"x", first=PING), 1002),
    "large ping": (client_frame(b"x" * 126, first=0x80 | PING), 1002),
    "continuation of nothing": (client_frame(b"x", first=0x80), 1002),
    "text within a text": (client_frame(b"{", first=0x01) + client_frame(b"{}"), 1002),
    "close of one byte": (client_frame(b"\x03", first=0x80 | CLOSE), 1002),
    "close with a reserved code": (client_frame(b"\x03\xed", first=0x80 | CLOSE), 1002),
    "invalid UTF-8": (client_frame(b'{"type":"\xff"}'), 1007),
    "cut UTF-8": (client_frame(b'{"type":"\xe2\x82'), 1007),
}


@pytest.mark.parametrize("mode", ["raw", "v1"])
@pytest.mark.parametrize(("data", "code"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_protocol_violation_ends_only_its_own_connection(
    daemon: Daemon, witness: ClientConnection, data: bytes, code: int, mode: str
) -> None:
    """The violator gets Close 1002 or 1007 as RFC 6455 has it, nothing behind it, and its run is
    stopped; another stream goes on."""
    daemon.submit(env={"SCRIPT": "echo $$; exec sleep 60"})
    with Handmade(daemon.address, subprotocols=[V1] if mode == "v1" else []) as client:
        frames = client.frames()
        first = next(frames)
        if mode == "v1":
            first = next(frames)
        text = first.payload.decode()
        child = Path("/proc") / (json.loads(text)["line"] if mode == "v1" else text)
        assert child.exists()
        client.send(data)
        *_, close = frames
    assert close_code(close)[0] == code
    say(witness, "stdin", data=f"{code}\n")
    assert line(witness) == f"got {code}"
    wait_for(lambda: not child.exists(), "the violator's child is gone")


@pytest.fixture(scope="module")
def witness(daemon: Daemon) -> Iterator[ClientConnection]:
    """A conversation that goes on all the while."""
    with talking(daemon, 'while read -r x; do echo "got $x"; done; exit 6', id="witness") as client:
        yield client
        say(client, "stdin_eof")
        stream = read_all(client)
        assert (stream.end["exit_code"], stream.code) == (6, 4000)
        assert stream.end["stdout_lines"] == 1 + 2 * len(VIOLATIONS)


def test_a_full_stream_survives_violations_beside_it(daemon: Daemon) -> None:
    """A stream at full speed stays byte-exact while others break every rule."""
    with talking(daemon, "seq 300000", id="fast") as fast:
        for data, code in VIOLATIONS.values():
            daemon.submit(env={"SCRIPT": "exec sleep 60"})
            with Handmade(daemon.address) as client:
                client.send(data)
                *_, close = client.frames()
            assert close_code(close)[0] == code
        stream = read_all(fast)
    assert stream.lines == [str(number) for number in range(1, 300001)]
    assert stream.code == 1000
