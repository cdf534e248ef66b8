"""``--pty``: children that block-buffer a pipe arrive line by line, and nothing else changes."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testing.daemon import Daemon, read_all, serving
from testing.records import verify
from testing.tools import need

OPEN = ("--auth", "none")
EVAL = ("sh", "-c", 'eval "$SCRIPT"')

# Each line is printed through the language's own buffer, and the next only after a byte was read:
# a client that sees each line before it sends that byte sees no buffer.
PYTHON = """
import os, sys
for number in range(1, 4):
    print("line", number)
    os.read(0, 1)
sys.exit(5)
"""
C = r"""
#include <stdio.h>
#include <unistd.h>
int main(void) {
    char byte;
    for (int number = 1; number <= 3; number++) {
        printf("line %d\n", number);
        if (read(0, &byte, 1) != 1) return 9;
    }
    return 5;
}
"""
LINES = ["line 1", "line 2", "line 3"]


@pytest.fixture(scope="module", params=["python", "c"])
def buffering(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a program that buffers its output in blocks unless it is a terminal."""
    folder = tmp_path_factory.mktemp("program")
    program, source = folder / "program", folder / f"program.{request.param}"
    if request.param == "c":
        source.write_text(C)
        subprocess.run([need("gcc"), "-x", "c", "-O1", "-o", program, source], check=True)
    else:
        program.write_text(f"#!{shutil.which('python3')}\n{PYTHON}")
        program.chmod(0o755)
    return str(program)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that gives its children a terminal for stdout, and runs their SCRIPT."""
    with serving(tmp_path_factory.mktemp("pty"), *EVAL, options=(*OPEN, "--pty")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def run(terminal: Daemon) -> Callable[[str], bytes]:
    """Run a script on the terminal and return what the client rebuilt and verified."""

    def run(script: str) -> bytes:
        stream = terminal.run(env={"SCRIPT": script})
        assert stream.code == 1000
        return verify(stream)

    return run


def test_a_buffering_child_arrives_line_by_line(tmp_path: Path, buffering: str) -> None:
    """On a terminal each line is there before the child is let go on; its status is right."""
    options = (*OPEN, "--pty", "--stdin", "client")
    with serving(tmp_path, buffering, options=options) as daemon:
        daemon.submit(env={"PYTHONUNBUFFERED": ""})
        with daemon.connect() as client:
            assert json.loads(client.recv(20))["type"] == "hello"
            for expected in LINES:
                assert json.loads(client.recv(20))["line"] == expected
                client.send('{"type":"stdin","data":"."}')
            stream = read_all(client)
    assert [record["type"] for record in stream.messages] == ["end"]
    assert stream.end["stdout_bytes"] == len("line 1\n") * 3
    assert (stream.end["exit_code"], stream.code, stream.reason) == (5, 4000, "exit 5")


def test_without_a_terminal_it_does_not(tmp_path: Path, buffering: str) -> None:
    """The same children on a pipe give nothing until they end: the test above proves something."""
    options = (*OPEN, "--stdin", "client")
    with serving(tmp_path, buffering, options=options) as daemon:
        daemon.submit(env={"PYTHONUNBUFFERED": ""})
        with daemon.connect() as client:
            assert json.loads(client.recv(20))["type"] == "hello"
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.send('{"type":"stdin","data":"..."}')
            stream = read_all(client)
    assert stream.lines == LINES
    assert stream.code == 4000


def test_python_children_are_told_not_to_buffer(tmp_path: Path) -> None:
    """On a pipe too a Python child goes line by line: PYTHONUNBUFFERED=1 is set for it."""
    command = ("python3", "-c", PYTHON)
    with serving(tmp_path, *command, options=(*OPEN, "--stdin", "client")) as daemon:
        daemon.submit(env={})
        with daemon.connect() as client:
            assert json.loads(client.recv(20))["type"] == "hello"
            for expected in LINES:
                assert json.loads(client.recv(20))["line"] == expected
                client.send('{"type":"stdin","data":"."}')
            assert read_all(client).code == 4000


def test_the_terminal_adds_no_carriage_return(run: Callable[[str], bytes]) -> None:
    r"""A ``\n`` stays one byte, and a ``\r`` the child printed stays too."""
    assert run(r"printf 'a\nb\r\nc\rd\n\n'") == b"a\nb\r\nc\rd\n\n"


def test_the_terminal_changes_no_byte(run: Callable[[str], bytes], tmp_path: Path) -> None:
    """Every byte value, tabs and control characters too, comes out as it went in."""
    data = bytes(range(256)) * 300 + os.urandom(200000)
    (tmp_path / "data").write_bytes(data)
    assert run(f"cat '{tmp_path}/data'") == data


def test_a_raw_client_gets_the_same_lines(terminal: Daemon) -> None:
    """Raw lines from a terminal are those of a pipe."""
    stream = terminal.run(raw=True, env={"SCRIPT": "seq 20000; printf last"})
    assert stream.messages == [*map(str, range(1, 20001)), "last"]
    assert (stream.code, stream.reason) == (1000, "exit 0")


def test_the_last_line_needs_no_newline(terminal: Daemon) -> None:
    """The end of the terminal, which is an error to read (EIO), is the end of the stream."""
    stream = terminal.run(env={"SCRIPT": "printf 'one\\ntwo'; exit 4"})
    assert verify(stream) == b"one\ntwo"
    assert stream.of("stdout")[-1]["eol"] is False
    assert (stream.end["outcome"], stream.end["exit_code"]) == ("exited", 4)
    assert not [line for line in terminal.raw_log if '"error"' in line or "Errno" in line]


def test_a_burst_just_before_the_end_is_complete(terminal: Daemon) -> None:
    """What is still in the terminal when the child has gone is read to its end, every time."""
    for _ in range(5):
        stream = terminal.run(env={"SCRIPT": "seq 5000; kill -KILL $$"})
        assert verify(stream) == b"".join(b"%d\n" % number for number in range(1, 5001))
        assert (stream.end["signal"], stream.code) == ("SIGKILL", 4001)


def test_only_stdout_is_a_terminal(terminal: Daemon) -> None:
    """stdin stays what ``--stdin`` says, stderr its own stream, and no terminal controls it."""
    script = """
        for fd in 0 1 2; do if [ -t $fd ]; then echo "$fd is"; else echo "$fd is not"; fi; done
        (: </dev/tty) 2>/dev/null && echo controlled
        echo err >&2
        cat
    """
    stream = terminal.run(prompt="the prompt\n", env={"SCRIPT": script})
    verify(stream)
    assert stream.lines == ["0 is not", "1 is", "2 is not", "the prompt"]
    assert [record["line"] for record in stream.of("stderr")] == ["err"]


def test_merged_stderr_is_the_same_terminal(tmp_path: Path) -> None:
    """With ``--stderr merge`` both streams are the terminal, in order."""
    options = (*OPEN, "--pty", "--stderr", "merge")
    with serving(tmp_path, *EVAL, options=options) as daemon:
        stream = daemon.run(env={"SCRIPT": "[ -t 2 ] && echo 1; echo 2 >&2; echo 3"})
    assert verify(stream) == b"1\n2\n3\n"
    assert not stream.of("stderr")


def test_a_helper_that_holds_the_terminal_does_not_hold_the_end(terminal: Daemon) -> None:
    """The run ends with its leader although a helper keeps the terminal open."""
    stream = terminal.run(env={"SCRIPT": "sleep 72 & echo done; exit 2"})
    assert (stream.lines, stream.end["exit_code"]) == (["done"], 2)
    assert stream.end["seconds"] < 10


def test_cancel_works_on_a_terminal(terminal: Daemon) -> None:
    """A child on a terminal is signalled and its last line read like any other."""
    script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    terminal.submit(env={"SCRIPT": script})
    with terminal.connect() as client:
        assert json.loads(client.recv(20))["type"] == "hello"
        assert json.loads(client.recv(20))["line"] == "ready"
        client.send('{"type":"cancel"}')
        stream = read_all(client)
    assert (stream.lines, stream.end["exit_code"], stream.code) == (["bye"], 3, 4004)
