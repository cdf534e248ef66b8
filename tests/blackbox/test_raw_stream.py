"""The raw stream: lines and nothing else, for a client that speaks no protocol of ours."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.daemon import Daemon, Stream, read_all, serving
from testing.handmade import CLOSE, TEXT, Frame, Handmade, close_code

EVAL = ("sh", "-c", 'eval "$SCRIPT"')
"""Runs the script in its context's environment; its stdin is free for other things."""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose command is a shell that reads its script, the prompt, from stdin."""
    with serving(tmp_path_factory.mktemp("shell"), "sh") as daemon:
        yield daemon


def raw(daemon: Daemon, script: str) -> Stream:
    return daemon.run(raw=True, prompt=script)


def test_each_line_is_one_text_frame_without_its_newline(shell: Daemon) -> None:
    """One line is one text message, in order, and exit 0 is Close 1000 that says so."""
    stream = raw(shell, r"""printf 'one\ntwo words\n  indented\n{"a": 1}\n' """)
    assert stream == Stream(["one", "two words", "  indented", '{"a": 1}'], 1000, "exit 0")


def test_one_carriage_return_before_the_newline_is_not_content(shell: Daemon) -> None:
    r"""Of ``\r\n`` nothing stays, of ``\r\r\n`` one ``\r`` does."""
    stream = raw(shell, r"printf 'dos\r\nunix\ntwo\r\r\n\r\n'")
    assert stream.messages == ["dos", "unix", "two\r", ""]


def test_a_carriage_return_elsewhere_is_content(shell: Daemon) -> None:
    r"""A lone ``\r`` neither ends a line nor is dropped, and so at the end of an unfinished one."""
    stream = raw(shell, r"printf '10%%\r20%%\r\r30%%\n\rx\nlast\r'")
    assert stream.messages == ["10%\r20%\r\r30%", "\rx", "last\r"]


@pytest.mark.parametrize("character", ["\x00", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_only_a_newline_ends_a_line(shell: Daemon, character: str) -> None:
    """NUL, form feeds and Unicode's separators are content like any other character."""
    octal = "".join(f"\\{byte:03o}" for byte in character.encode())
    assert raw(shell, f"printf 'a{octal}b\\nc\\n'").messages == [f"a{character}b", "c"]


def test_an_unterminated_last_line_is_a_line(shell: Daemon) -> None:
    """What the child printed last is sent also when no newline follows it."""
    assert raw(shell, r"printf 'a\nb'").messages == ["a", "b"]


def test_a_child_that_prints_nothing_has_no_lines(shell: Daemon) -> None:
    """No output is no message: only the Close comes."""
    assert raw(shell, "exit 0") == Stream([], 1000, "exit 0")


def test_empty_lines_are_kept(shell: Daemon) -> None:
    """An empty line is an empty message."""
    assert raw(shell, r"printf '\n\na\n\n'").messages == ["", "", "a", ""]


def test_empty_lines_are_dropped_when_asked(tmp_path: Path) -> None:
    r"""With ``--skip-empty-lines`` neither ``\n`` nor ``\r\n`` alone is sent, but a blank is."""
    with serving(tmp_path, "sh", options=("--auth", "none", "--skip-empty-lines")) as daemon:
        assert raw(daemon, r"printf '\n\r\na\n\n \n\nb\n\n'").messages == ["a", " ", "b"]


def test_invalid_utf8_is_replaced(shell: Daemon) -> None:
    """A byte that is no character becomes U+FFFD, and its neighbours are what they were."""
    stream = raw(shell, r"printf 'caf\303\251\nb\377d\n\303\nend\n'")
    assert stream.messages == ["café", "b\ufffdd", "\ufffd", "end"]


def test_invalid_utf8_is_binary_when_asked(tmp_path: Path) -> None:
    """With ``--invalid-utf8 binary`` such a line has its exact bytes; valid ones stay text."""
    options = ("--auth", "none", "--invalid-utf8", "binary")
    with serving(tmp_path, "sh", options=options) as daemon:
        stream = raw(daemon, r"printf 'caf\303\251\nb\377d\r\n\355\240\200\nend\n'")
    assert stream.messages == ["café", b"b\xffd", b"\xed\xa0\x80", "end"]


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        (None, None),
        (("agentd.raw",), "agentd.raw"),
        (("chat", "agentd.raw"), "agentd.raw"),
        (("agentd.raw", "agentd.v1"), "agentd.raw"),
    ],
)
def test_the_raw_subprotocol_is_echoed_and_none_is_invented(
    shell: Daemon, offered: tuple[str, ...] | None, agreed: str | None
) -> None:
    """Who offers agentd.raw gets it back, who offers nothing gets none; the lines are the same."""
    shell.submit(prompt="echo line")
    with shell.connect(subprotocols=offered) as client:
        assert client.subprotocol == agreed
        assert read_all(client).messages == ["line"]


def test_stderr_is_logged_and_not_sent(shell: Daemon) -> None:
    """A raw client sees stdout alone; stderr is in the daemon's log with the run's id."""
    stream = shell.run(
        raw=True, id="run-stderr", prompt="echo out; echo 'from stderr' >&2; echo more"
    )
    assert stream.messages == ["out", "more"]
    logged = shell.wait_log("from stderr")
    assert "run-stderr" in logged


def test_merged_stderr_is_part_of_the_stream(tmp_path: Path) -> None:
    """With ``--stderr merge`` both streams come as one, in the order they were written."""
    with serving(tmp_path, "sh", options=("--auth", "none", "--stderr", "merge")) as daemon:
        assert raw(daemon, "echo 1; echo 2 >&2; echo 3").messages == ["1", "2", "3"]


def test_dropped_stderr_is_nowhere(tmp_path: Path) -> None:
    """With ``--stderr drop`` the other stream is neither sent nor logged."""
    with serving(tmp_path, "sh", options=("--auth", "none", "--stderr", "drop")) as daemon:
        assert raw(daemon, "echo out; echo unwanted >&2").messages == ["out"]
        daemon.wait_log("run ended")
    assert not [line for line in daemon.raw_log if "unwanted" in line]


def test_client_messages_are_the_childs_stdin(tmp_path: Path) -> None:
    """With ``--stdin client`` a text frame is a line, a binary frame exactly its bytes."""
    options = ("--auth", "none", "--stdin", "client")
    with serving(tmp_path, *EVAL, options=options) as daemon:
        daemon.submit(env={"SCRIPT": "head -c 14 | od -An -v -tx1 -w14"})
        with daemon.connect(subprotocols=None) as client:
            client.send("zwölf")
            client.send(b"\x00\xff\n")
            client.send("")
            client.send(b"end")
            assert read_all(client).messages == [" 7a 77 c3 b6 6c 66 0a 00 ff 0a 0a 65 6e 64"]


def test_a_conversation_goes_line_by_line(tmp_path: Path) -> None:
    """Each line leaves when it is written, so that a child can wait for what the client says."""
    options = ("--auth", "none", "--stdin", "client")
    ask = 'while echo "next?" && read -r word && [ "$word" != bye ]; do echo "got $word"; done'
    with serving(tmp_path, *EVAL, options=options) as daemon:
        daemon.submit(env={"SCRIPT": ask})
        with daemon.connect(subprotocols=None) as client:
            for word in ("one", "two", "three"):
                assert client.recv(20) == "next?"
                client.send(word)
                assert client.recv(20) == f"got {word}"
            assert client.recv(20) == "next?"
            client.send("bye")
            assert read_all(client) == Stream([], 1000, "exit 0")


def test_a_client_that_may_not_write_is_heard_and_ignored(shell: Daemon) -> None:
    """Without ``--stdin client`` what a raw client sends changes nothing."""
    shell.submit(prompt="for i in 1 2 3; do echo $i; sleep 0.05; done; cat")
    with shell.connect(subprotocols=None) as client:
        client.send("exit 9")
        client.send(b"\x00")
        client.send('{"type":"cancel"}')
        assert read_all(client) == Stream(["1", "2", "3"], 1000, "exit 0")


def test_a_frame_sent_with_the_head_is_not_lost(tmp_path: Path) -> None:
    """What a client sends before it has the 101 reaches the child."""
    options = ("--auth", "none", "--stdin", "client")
    with serving(tmp_path, *EVAL, options=options) as daemon:
        daemon.submit(env={"SCRIPT": "head -n 1"})
        early = bytes([0x81, 0x85, 0, 0, 0, 0]) + b"early"
        with Handmade(daemon.address, early=early) as client:
            assert next(client.frames()) == Frame(0x80 | TEXT, b"early")


def test_a_long_line_comes_in_several_messages(tmp_path: Path) -> None:
    """A line beyond ``--max-line`` is several messages that end at characters and lose nothing."""
    line = "0123456789€" * 40
    with serving(tmp_path, "sh", options=("--auth", "none", "--max-line", "64")) as daemon:
        stream = raw(daemon, f"echo short; echo '{line}'; echo end")
    assert stream.messages[0] == "short"
    assert stream.messages[-1] == "end"
    parts = stream.messages[1:-1]
    assert "".join(parts) == line
    assert all(61 < len(part.encode()) <= 64 for part in parts[:-1])


def test_a_line_of_just_the_maximum_is_one_message(tmp_path: Path) -> None:
    """``--max-line`` counts content: 64 bytes and a newline are one message, 65 are two."""
    with serving(tmp_path, "sh", options=("--auth", "none", "--max-line", "64")) as daemon:
        stream = raw(daemon, f"echo {'x' * 64}; echo {'y' * 65}; printf {'z' * 64}")
    assert stream.messages == ["x" * 64, "y" * 64, "y", "z" * 64]


def test_many_lines_arrive_complete_and_in_order(shell: Daemon) -> None:
    """Three hundred thousand lines at full speed are these lines, each once, in order."""
    assert raw(shell, "seq 300000").messages == [str(number) for number in range(1, 300001)]


@pytest.mark.parametrize("seed", range(8))
def test_random_bytes_come_out_as_the_same_lines(
    tmp_path_factory: pytest.TempPathFactory, random_bytes: Daemon, seed: int
) -> None:
    """Whatever the child prints, each line is a message of exactly its bytes."""
    source = random.Random(seed)
    alphabet = [b"\n", b"\r\n", b"\r", b"\0", b"abc", "ü€😀".encode(), b"\xff", b"\xe2\x82", b" "]
    data = b"".join(source.choices(alphabet, k=source.randrange(1, 30000)))
    path = tmp_path_factory.mktemp("data") / "data"
    path.write_bytes(data)
    *lines, last = data.split(b"\n")
    expected = [line.removesuffix(b"\r") for line in lines] + ([last] if last else [])
    stream = random_bytes.run(raw=True, prompt=f"cat '{path}'")
    got = [m.encode() if isinstance(m, str) else m for m in stream.messages]
    assert got == expected
    assert all(
        isinstance(message, str) == _is_utf8(line)
        for message, line in zip(stream.messages, expected, strict=True)
    )


@pytest.fixture(scope="module")
def random_bytes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that sends lines that are not UTF-8 as they are."""
    options = ("--auth", "none", "--invalid-utf8", "binary")
    with serving(tmp_path_factory.mktemp("random"), "sh", options=options) as daemon:
        yield daemon


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        ("exit 0", 1000, "exit 0"),
        ("exit 1", 4000, "exit 1"),
        ("exit 255", 4000, "exit 255"),
        ("kill -KILL $$", 4001, "SIGKILL"),
        ("kill -SEGV $$", 4001, "SIGSEGV"),
    ],
)
def test_the_close_code_tells_how_the_child_ended(
    shell: Daemon, script: str, code: int, reason: str
) -> None:
    """After the last line the Close says with which status or signal the child ended."""
    assert raw(shell, f"echo line; {script}") == Stream(["line"], code, reason)


def test_a_command_that_cannot_start_is_told_by_close_4002(tmp_path: Path) -> None:
    """The client is let in, gets no line, and then Close 4002 with the cause in words."""
    with serving(tmp_path, "/nonexistent/agent") as daemon:
        assert daemon.run(raw=True) == Stream([], 4002, "not found")


def test_an_overdue_child_is_told_by_close_4003(shell: Daemon) -> None:
    """A run that takes longer than its context's timeout is ended and Close says so."""
    stream = shell.run(raw=True, prompt="echo line; exec sleep 60", timeout=0.3)
    assert stream == Stream(["line"], 4003, "timed out")


def test_nothing_follows_the_close(shell: Daemon) -> None:
    """The Close is the last frame, the connection ends with a FIN behind it, and frames are
    final, unmasked and plain."""
    shell.submit(prompt="seq 1000; exit 3")
    with Handmade(shell.address) as client:
        *lines, close = client.frames()
    assert lines == [Frame(0x80 | TEXT, b"%d" % number) for number in range(1, 1001)]
    assert close.first == 0x80 | CLOSE
    assert close_code(close) == (4000, "exit 3")


def test_slow_reading_loses_nothing(shell: Daemon) -> None:
    """A client that stops reading while another is served gets every byte all the same."""
    shell.submit(prompt="seq 200000")
    with Handmade(shell.address, buffer=4096) as client:
        frames = client.frames()
        first = next(frames)
        assert raw(shell, "echo other").messages == ["other"]
        *lines, close = frames
    assert [first.payload, *(frame.payload for frame in lines)] == [
        b"%d" % number for number in range(1, 200001)
    ]
    assert close_code(close) == (1000, "exit 0")
