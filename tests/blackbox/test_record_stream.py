"""The agentd.v1 stream: hello, numbered records, heartbeats, one end, and a digest to check it."""

import base64
import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testing.daemon import V1, Daemon, Stream, read_all, serving, wait_for
from testing.handmade import CLOSE, TEXT, Handmade, close_code
from testing.records import END, content, rebuild, verify

OPEN = ("--auth", "none")
EVAL = ("sh", "-c", 'eval "$SCRIPT"')
"""Runs the script in its context's environment; its stdin is free for other things."""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose command is a shell that reads its script, the prompt, from stdin."""
    with serving(tmp_path_factory.mktemp("shell"), "sh") as daemon:
        yield daemon


@pytest.fixture(scope="module", params=[64, 4096])
def narrow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same with a low ``--max-line``."""
    options = (*OPEN, "--max-line", str(request.param))
    with serving(tmp_path_factory.mktemp("narrow"), "sh", options=options) as daemon:
        yield daemon, request.param


# Hello.


def test_hello_comes_first_and_says_who_speaks(shell: Daemon) -> None:
    """The hello has the run's id, the build that /healthz names, and the seq that comes next."""
    stream = shell.run(prompt="echo $AGENTD_RUN_ID", id="my.run-1")
    verify(stream)
    hello = stream.messages[0]
    _, _, health = shell.get("/healthz")
    assert f'"build":"{hello["build"]}"'.encode() in health
    assert (hello["run"], hello["image"], hello["next"]) == ("my.run-1", None, 1)
    assert stream.lines == ["my.run-1"]


def test_a_run_without_an_id_gets_one(shell: Daemon) -> None:
    """Two contexts without an id are two runs, each with an id of its own that the child knows."""
    first, second = (shell.run(prompt="echo $AGENTD_RUN_ID") for _ in range(2))
    assert first.lines == [first.messages[0]["run"]]
    assert second.lines == [second.messages[0]["run"]]
    assert first.lines != second.lines


def test_boot_is_one_per_start_of_the_daemon(tmp_path: Path) -> None:
    """Two runs of one daemon have the same boot, runs of two daemons have not."""
    boots = []
    for _ in range(2):
        with serving(tmp_path, "true") as daemon:
            one, other = (daemon.run().messages[0]["boot"] for _ in range(2))
        assert one == other != ""
        boots.append(one)
    assert boots[0] != boots[1]


def test_the_image_is_the_one_the_daemon_was_told(tmp_path: Path) -> None:
    """``AGENTD_BUILD`` names the image in hello and /healthz; the child does not see it."""
    with serving(tmp_path, "sh", env={"AGENTD_BUILD": "image-7f3a"}) as daemon:
        stream = daemon.run(prompt='echo "[$AGENTD_BUILD]"')
        assert b'"image":"image-7f3a"' in daemon.get("/healthz")[2]
    assert stream.messages[0]["image"] == "image-7f3a"
    assert stream.lines == ["[]"]


@pytest.mark.parametrize("offered", [(V1,), ("chat", V1), (V1, "agentd.raw")])
def test_the_subprotocol_is_echoed(shell: Daemon, offered: tuple[str, ...]) -> None:
    """Who offers agentd.v1 first of what is spoken here gets it, and records."""
    shell.submit(prompt="echo line")
    with shell.connect(subprotocols=offered) as client:
        assert client.subprotocol == V1
        assert read_all(client).lines == ["line"]


# Records.


def test_both_streams_share_one_numbering(shell: Daemon) -> None:
    """stdout and stderr records are numbered from 1 without a hole, in the order they were read."""
    script = "".join(f"echo o{n}; sleep 0.01; echo e{n} >&2; sleep 0.01;" for n in range(10))
    stream = shell.run(prompt=script)
    verify(stream)
    assert sorted(stream.lines) == sorted(f"o{n}" for n in range(10))
    assert [record["line"] for record in stream.of("stderr")] == [f"e{n}" for n in range(10)]
    numbers = [record["seq"] for record in stream.messages if "seq" in record]
    assert numbers == list(range(1, 21))
    assert (stream.end["stdout_lines"], stream.end["stderr_lines"]) == (10, 10)


def test_a_line_is_its_content_with_every_carriage_return(shell: Daemon) -> None:
    r"""``line`` is what stood before ``\n``, a ``\r`` included, NUL and quotes and all."""
    stream = shell.run(prompt=r"""printf 'dos\r\nlone\rcr\n\nnul\000"\\\\"\177\tend\n'""")
    assert stream.lines == ["dos\r", "lone\rcr", "", 'nul\0"\\\\"\x7f\tend']
    verify(stream)


def test_characters_beyond_ascii_are_themselves(shell: Daemon) -> None:
    """Accents, emoji, separators of Unicode and a byte order mark arrive as they are."""
    line = "\ufeffcafé 😀 \u2028 \x85 \u202e 日本"
    stream = shell.run(prompt=f"echo '{line}'")
    assert stream.lines == [line]
    verify(stream)


@pytest.mark.parametrize(
    "octal", [r"\377", r"\200", r"\303", r"\300\200", r"\355\240\200", r"\364\220\200\200"]
)
def test_what_is_not_utf8_is_base64(shell: Daemon, octal: str) -> None:
    """A line with a byte that is no UTF-8 has ``base64`` instead of ``line``, and only that one."""
    stream = shell.run(prompt=f"printf 'before é\\na{octal}b\\nafter\\n'")
    raw = bytes(int(part, 8) for part in octal.split("\\")[1:])
    assert stream.of("stdout") == [
        {"type": "stdout", "seq": 1, "line": "before é"},
        {"type": "stdout", "seq": 2, "base64": base64.b64encode(b"a" + raw + b"b").decode()},
        {"type": "stdout", "seq": 3, "line": "after"},
    ]
    verify(stream)


def test_the_last_line_says_when_it_had_no_newline(shell: Daemon) -> None:
    """An unterminated last line has ``eol: false``, on either stream, and counts as a line."""
    stream = shell.run(prompt=r"printf 'a\nb'; printf 'c' >&2")
    assert [(r["line"], r.get("eol")) for r in stream.of("stdout")] == [("a", None), ("b", False)]
    assert [(r["line"], r.get("eol")) for r in stream.of("stderr")] == [("c", False)]
    assert verify(stream) == b"a\nb"
    assert (stream.end["stdout_lines"], stream.end["stderr_lines"]) == (2, 1)


def test_a_long_line_goes_on_in_the_next_record(narrow: tuple[Daemon, int]) -> None:
    """A line beyond ``--max-line`` comes in parts with ``more: true``, cut at characters."""
    daemon, most = narrow
    line = "x" + "é€😀" * (most // 2)
    stream = daemon.run(prompt=f"echo before; printf '%s\\n' '{line}'; echo after")
    assert verify(stream).decode() == f"before\n{line}\nafter\n"
    _, *parts, last, _ = stream.of("stdout")
    assert len(parts) > 3
    assert all(part["more"] and most - 3 <= len(part["line"].encode()) <= most for part in parts)
    assert "more" not in last
    assert stream.end["stdout_lines"] == 3


def test_a_long_last_line_has_both_marks(narrow: tuple[Daemon, int]) -> None:
    """Parts have ``more``, the last piece ``eol: false``, and it is one line."""
    daemon, most = narrow
    stream = daemon.run(prompt=f"head -c {3 * most + 1} /dev/zero | tr '\\0' y")
    assert verify(stream) == b"y" * (3 * most + 1)
    marks = [(r.get("more"), r.get("eol"), len(r["line"])) for r in stream.of("stdout")]
    assert marks == [(True, None, most)] * 3 + [(None, False, 1)]
    assert stream.end["stdout_lines"] == 1


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_boundary_of_max_line_counts_content(narrow: tuple[Daemon, int], extra: int) -> None:
    """Exactly ``--max-line`` bytes and a newline are one record; one more byte makes two."""
    daemon, most = narrow
    stream = daemon.run(prompt=f"head -c {most + extra} /dev/zero | tr '\\0' y; echo; echo z")
    assert verify(stream) == b"y" * (most + extra) + b"\nz\n"
    assert len(stream.of("stdout")) == (3 if extra > 0 else 2)


def _random_output(seed: int) -> bytes:
    source = random.Random(seed)
    words = [
        b"\n", b"\n", b"\n\n", b"\r\n", b"\r", b"\0", b"\x7f", b'"', b"\\", b"word ", b"\x1b[1m",
        "é".encode(), "€".encode(), "😀".encode(), b"\xff", b"\xe2\x82",
        b"x" * 63, b"y" * 64, b"z" * 5000,
    ]  # fmt: skip
    kind = seed % 3
    if kind == 0:
        return source.randbytes(source.randrange(1, 200000))
    if kind == 1:
        return b"".join(source.choices(words, k=source.randrange(1, 4000)))
    line = b"".join(source.choices([word for word in words if b"\n" not in word], k=300))
    return line + b"\n" + source.randbytes(1000) + line


@pytest.mark.parametrize("seed", range(16))
def test_random_output_is_rebuilt_exactly(
    narrow: tuple[Daemon, int], tmp_path: Path, seed: int
) -> None:
    """Joined parts and lines are byte for byte what the child wrote, and hash to its digest."""
    daemon, most = narrow
    data = _random_output(seed)
    path = tmp_path / "data"
    path.write_bytes(data)
    stream = daemon.run(prompt=f"cat '{path}'")
    assert verify(stream) == data
    assert stream.end["stdout_lines"] == data.count(b"\n") + (not data.endswith(b"\n"))
    assert all(len(content(record)) <= most for record in stream.of("stdout"))


def test_random_output_on_both_streams_is_rebuilt_exactly(shell: Daemon, tmp_path: Path) -> None:
    """Two streams at once are kept apart byte for byte."""
    out, err = random.Random(1).randbytes(300000), random.Random(2).randbytes(300000)
    (tmp_path / "out").write_bytes(out)
    (tmp_path / "err").write_bytes(err)
    stream = shell.run(prompt=f"cat '{tmp_path}/out' & cat '{tmp_path}/err' >&2; wait")
    assert verify(stream) == out
    assert rebuild(stream.messages, "stderr") == err


def test_many_lines_arrive_complete_and_in_order(shell: Daemon) -> None:
    """Two hundred thousand lines at full speed are these lines, each once, in order."""
    stream = shell.run(prompt="seq 200000")
    assert verify(stream) == b"".join(b"%d\n" % number for number in range(1, 200001))


def test_slow_reading_loses_nothing(shell: Daemon) -> None:
    """A client that stops reading while another is served gets every record all the same."""
    shell.submit(prompt="seq 200000")
    with shell.connect() as client:
        first = client.recv(20)
        assert shell.run(prompt="echo other").lines == ["other"]
        rest = read_all(client)
    assert '"hello"' in str(first)
    assert rebuild(rest.messages) == b"".join(b"%d\n" % number for number in range(1, 200001))


# Heartbeats and unfinished lines.


def test_silence_is_filled_with_heartbeats(tmp_path: Path) -> None:
    """After ``--ping`` seconds of silence a heartbeat names the last seq that was sent."""
    with serving(tmp_path, "sh", options=(*OPEN, "--ping", "0.2")) as daemon:
        stream = daemon.run(prompt="sleep 0.7; echo a; echo b >&2; sleep 0.7; echo c")
    verify(stream)
    beats = [record["seq"] for record in stream.of("heartbeat")]
    assert beats == sorted(beats)
    assert set(beats) == {0, 2}


def test_a_busy_stream_has_no_heartbeats(tmp_path: Path) -> None:
    """While records come there is nothing to fill."""
    with serving(tmp_path, "sh", options=(*OPEN, "--ping", "5")) as daemon:
        stream = daemon.run(prompt="for i in 1 2 3 4 5; do echo $i; sleep 0.1; done")
    assert not stream.of("heartbeat")


def test_an_unfinished_line_is_sent_after_silence_when_asked(tmp_path: Path) -> None:
    """With ``--flush-partial`` a prompt without a newline arrives while the child waits."""
    options = (*OPEN, "--flush-partial", "50", "--stdin", "client")
    script = "printf 'name? '; read -r name; echo \"hello $name\"; printf 'café'"
    with serving(tmp_path, *EVAL, options=options) as daemon:
        daemon.submit(env={"SCRIPT": script})
        with daemon.connect() as client:
            assert '"hello"' in str(client.recv(20))
            assert client.recv(20) == '{"type":"stdout","seq":1,"line":"name? ","more":true}'
            client.send('{"type":"stdin","data":"ada\\n"}')
            stream = read_all(client)
    assert stream.messages[0] == {"type": "stdout", "seq": 2, "line": "hello ada"}
    assert rebuild(stream.messages) == "hello ada\ncafé".encode()
    assert stream.end["stdout_bytes"] == len("name? hello ada\ncafé".encode())
    assert stream.end["stdout_lines"] == 2


def test_a_flushed_part_never_cuts_a_character(tmp_path: Path) -> None:
    """Half a character waits for its other half, however long the silence."""
    options = (*OPEN, "--flush-partial", "50")
    with serving(tmp_path, "sh", options=options) as daemon:
        stream = daemon.run(prompt=r"printf 'x\342\202'; sleep 0.5; printf '\254\n'")
    assert [(r["line"], r.get("more")) for r in stream.of("stdout")] == [("x", True), ("€", None)]
    verify(stream)


def test_an_unfinished_line_waits_when_nobody_asked(shell: Daemon) -> None:
    """Without ``--flush-partial`` a line is one record, however slowly it is written."""
    stream = shell.run(prompt="printf one; sleep 0.3; printf two; sleep 0.3; echo")
    assert stream.of("stdout") == [{"type": "stdout", "seq": 1, "line": "onetwo"}]


# Standard error.


def test_stderr_can_be_merged(tmp_path: Path) -> None:
    """With ``--stderr merge`` all of it is stdout, in order, and in the digest."""
    with serving(tmp_path, "sh", options=(*OPEN, "--stderr", "merge")) as daemon:
        stream = daemon.run(prompt="echo 1; echo 2 >&2; echo 3")
    assert verify(stream) == b"1\n2\n3\n"
    assert (stream.end["stdout_lines"], stream.end["stderr_lines"]) == (3, 0)


def test_stderr_can_be_logged(tmp_path: Path) -> None:
    """With ``--stderr log`` the client does not get it; the daemon's log does."""
    with serving(tmp_path, "sh", options=(*OPEN, "--stderr", "log")) as daemon:
        stream = daemon.run(prompt="echo out; echo 'for the log' >&2", id="logged")
        assert '"logged"' in daemon.wait_log("for the log")
    assert stream.lines == ["out"]
    assert not stream.of("stderr")
    assert stream.end["stderr_lines"] == 1


def test_stderr_can_be_dropped(tmp_path: Path) -> None:
    """With ``--stderr drop`` nobody gets it, and a child that writes a lot is not blocked."""
    with serving(tmp_path, "sh", options=(*OPEN, "--stderr", "drop")) as daemon:
        stream = daemon.run(prompt="echo out; seq 100000 >&2; echo unwanted >&2")
        daemon.wait_log("run ended")
    assert verify(stream) == b"out\n"
    assert not stream.of("stderr")
    assert stream.end["stderr_lines"] == 0
    assert not [line for line in daemon.raw_log if "unwanted" in line]


def test_sent_stderr_is_not_logged(shell: Daemon) -> None:
    """What the client gets, stderr too, is payload, and no payload is in the log."""
    stream = shell.run(prompt="echo payload-out; echo payload-err >&2", id="silent-log")
    assert [record["line"] for record in stream.of("stderr")] == ["payload-err"]
    wait_for(
        lambda: [line for line in shell.raw_log if "silent-log" in line and "run ended" in line],
        "the run's end in the log",
    )
    assert not [line for line in shell.raw_log if "payload" in line]


# What the child reads.


def test_stdin_is_the_prompt_and_then_its_end(tmp_path: Path) -> None:
    """By default the child reads exactly the prompt, nothing added, then end of file."""
    with serving(tmp_path, "cat") as daemon:
        stream = daemon.run(prompt="first\n\tsecond é\0\r\nno newline")
    assert verify(stream) == "first\n\tsecond é\0\r\nno newline".encode()


def test_a_large_prompt_arrives_whole(tmp_path: Path) -> None:
    """A prompt far larger than a pipe is written as the child reads."""
    prompt = "0123456789abcde\n" * 50000
    with serving(tmp_path, "sh", "-c", "sleep 0.2; sha256sum") as daemon:
        stream = daemon.run(prompt=prompt)
    assert stream.lines == [hashlib.sha256(prompt.encode()).hexdigest() + "  -"]


def test_a_child_that_does_not_read_its_prompt_just_ends(tmp_path: Path) -> None:
    """A prompt that nobody reads is no error of the run's."""
    with serving(tmp_path, "sh", "-c", "exec <&-; echo done; sleep 0.2; exit 7") as daemon:
        stream = daemon.run(prompt="x" * 500000)
    assert (stream.lines, stream.code) == (["done"], 4000)


def test_stdin_can_be_the_context(tmp_path: Path) -> None:
    """With ``--stdin context`` it is the context without ``env`` as one JSON line."""
    read = 'import json,sys; d=sys.stdin.read(); print(json.dumps([d.count("\\n"), json.loads(d)]))'
    command = ("python3", "-c", read)
    with serving(tmp_path, *command, options=(*OPEN, "--stdin", "context")) as daemon:
        stream = daemon.run(
            prompt="a\nb", id="ctx", env={"KEY": "secret"}, mine={"deep": [1, None, "é"]}
        )
    assert stream.lines == [
        '[1, {"prompt": "a\\nb", "id": "ctx", "mine": {"deep": [1, null, "\\u00e9"]}}]'
    ]


def test_stdin_can_be_nothing(tmp_path: Path) -> None:
    """With ``--stdin none`` the child reads end of file at once."""
    with serving(tmp_path, "wc", "-c", options=(*OPEN, "--stdin", "none")) as daemon:
        assert daemon.run(prompt="unread").lines == ["0"]


# The end.


@pytest.mark.parametrize(
    ("script", "outcome", "exit_code", "signal", "code", "reason"),
    [
        ("exit 0", "exited", 0, None, 1000, "exit 0"),
        ("exit 1", "exited", 1, None, 4000, "exit 1"),
        ("exit 3", "exited", 3, None, 4000, "exit 3"),
        ("exit 255", "exited", 255, None, 4000, "exit 255"),
        ("kill -TERM $$", "signaled", None, "SIGTERM", 4001, "SIGTERM"),
        ("kill -KILL $$", "signaled", None, "SIGKILL", 4001, "SIGKILL"),
        ("kill -ABRT $$", "signaled", None, "SIGABRT", 4001, "SIGABRT"),
        ("kill -USR2 $$", "signaled", None, "SIGUSR2", 4001, "SIGUSR2"),
    ],
)
def test_the_end_tells_the_leaders_status(
    shell: Daemon,
    script: str,
    outcome: str,
    exit_code: int | None,
    signal: str | None,
    code: int,
    reason: str,
) -> None:
    """The end record and the Close tell the same status; all lines come before them."""
    stream = shell.run(prompt=f"echo one; echo two; {script}")
    assert verify(stream) == b"one\ntwo\n"
    end = stream.end
    assert (end["outcome"], end["exit_code"], end["signal"], end["error"]) == (
        outcome, exit_code, signal, None,
    )  # fmt: skip
    assert (stream.code, stream.reason) == (code, reason)


def test_the_end_has_the_time_it_took(shell: Daemon) -> None:
    """``seconds`` is the run's duration."""
    begun = time.monotonic()
    stream = shell.run(prompt="sleep 0.3")
    assert 0.3 <= stream.end["seconds"] <= time.monotonic() - begun


def _assert_not_started(stream: Stream, error: str, reason: str) -> None:
    hello, end = stream.messages
    assert hello["type"] == "hello"
    assert set(end) == END
    assert end["seconds"] >= 0
    del end["seconds"]
    assert end == {
        "type": "end", "outcome": "spawn_failed", "exit_code": None, "signal": None,
        "error": error, "stdout_lines": 0, "stderr_lines": 0, "stdout_bytes": 0,
        "stdout_sha256": hashlib.sha256().hexdigest(),
    }  # fmt: skip
    assert (stream.code, stream.reason) == (4002, reason)


@pytest.mark.parametrize("program", ["/nonexistent/agent", "no-such-program-on-path"])
def test_a_command_that_is_not_there(tmp_path: Path, program: str) -> None:
    """A missing program is hello, end with ``not_found``, Close 4002; the daemon goes on."""
    with serving(tmp_path, program) as daemon:
        for _ in range(2):
            _assert_not_started(daemon.run(prompt="x"), "not_found", "not found")


@pytest.mark.parametrize("kind", ["mode", "directory", "format"])
def test_a_command_that_cannot_be_executed(tmp_path: Path, kind: str) -> None:
    """A file without the x bit, a directory, and a file the kernel cannot read as a program."""
    program = tmp_path / "program"
    if kind == "directory":
        program.mkdir()
    else:
        program.write_bytes(b"\x7fELF" + bytes(100))
        program.chmod(0o644 if kind == "mode" else 0o755)
    with serving(tmp_path, str(program)) as daemon:
        _assert_not_started(daemon.run(), "not_executable", "not executable")


def test_a_working_directory_that_cannot_be_entered(tmp_path: Path) -> None:
    """A context's ``cwd`` that is not there is ``bad_cwd``, and the next run is as usual."""
    options = (*OPEN, "--allow-context", "cwd")
    with serving(tmp_path, "pwd", options=options) as daemon:
        stream = daemon.run(cwd="/nonexistent/directory")
        assert stream.end["error"] == "bad_cwd"
        _assert_not_started(stream, "bad_cwd", stream.reason)
        assert stream.reason
        assert daemon.run(cwd="/usr").lines == ["/usr"]


def test_an_environment_that_is_too_big(shell: Daemon) -> None:
    """A variable that execve(2) refuses with E2BIG is ``too_big``; the value is told nowhere."""
    value = "sekret" * 40000
    stream = shell.run(prompt="echo", env={"BIG": value})
    _assert_not_started(stream, "too_big", stream.reason)
    assert stream.reason
    assert not [line for line in shell.raw_log if "sekret" in line]


def test_a_run_past_its_timeout_is_ended(shell: Daemon) -> None:
    """The context's timeout ends the run: ``timed_out`` with the leader's real status, 4003."""
    stream = shell.run(prompt="echo line; exec sleep 60", timeout=0.3)
    assert verify(stream) == b"line\n"
    assert (stream.end["outcome"], stream.end["signal"]) == ("timed_out", "SIGTERM")
    assert (stream.code, stream.reason) == (4003, "timed out")


def test_a_timeout_tells_what_the_child_made_of_it(shell: Daemon) -> None:
    """A child that handles SIGTERM may say its last lines and choose its exit status."""
    script = "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    stream = shell.run(prompt=script, timeout=0.5)
    assert verify(stream) == b"ready\nbye\n"
    assert (stream.end["outcome"], stream.end["exit_code"]) == ("timed_out", 9)
    assert stream.code == 4003


def test_nothing_follows_the_end_but_close(shell: Daemon) -> None:
    """After the end record come the Close frame and a FIN, nothing else; each frame is final,
    unmasked and plain."""
    shell.submit(prompt="seq 1000; exit 3")
    with Handmade(shell.address, subprotocols=[V1]) as client:
        assert "agentd.v1" in client.head
        *records, close = client.frames()
    assert len(records) == 1002
    assert {frame.first for frame in records} == {0x80 | TEXT}
    assert b'"type":"end"' in records[-1].payload
    assert close.first == 0x80 | CLOSE
    assert close_code(close) == (4000, "exit 3")
