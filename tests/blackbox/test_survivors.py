"""The end of a run is its leader's, and nothing of the run outlives it.

"Exit waits for the end of the pipe" hangs as long as any helper holds the pipe (websocketd W8,
pebble, microsandbox #364); "the exit ends the reading" loses the last lines (ttyd #1429, kubectl
#124571). The tests here hold both at once.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.daemon import Daemon, Stream, read_all, wait_for
from testing.plain_client import SMALL, TEXT, PlainClient
from testing.processes import ESCAPES, escaping, marked, python
from testing.programs import (
    STAYS,
    WITHIN,
    begin,
    counting,
    run,
    serving_any,
    submit,
    unique,
    wait_blocked,
    wait_gone,
)

DRAIN = 0.25


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    options = ("--grace", "0.5", "--drain", str(DRAIN))
    with serving_any(tmp_path_factory.mktemp("daemon"), *options) as daemon:
        yield daemon


def said(stream: Stream) -> tuple[object, ...]:
    """What a stream says of its end."""
    return stream.end["outcome"], stream.end["exit_code"], stream.end["signal"], stream.code


def digest(lines: list[str]) -> str:
    """The digest of whole lines."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def test_a_helper_that_holds_stdout_does_not_hold_the_end(daemon: Daemon) -> None:
    """The end comes a drain after the leader's exit, with its status; the helper is dead (W8)."""
    token = unique("mark")
    program = python("import os, time\nos.fork() or time.sleep(300)\nos._exit(7)\n", token)
    started = time.monotonic()
    stream = run(daemon, program)
    assert time.monotonic() - started < DRAIN + WITHIN
    assert said(stream) == ("exited", 7, None, 4000)
    assert marked(token) == []


def test_a_helper_that_prints_for_ever_does_not_hold_the_end(daemon: Daemon) -> None:
    """The end comes although there is always something more to read (microsandbox #364)."""
    token = unique("mark")
    program = python(
        "import os\n"
        "if os.fork() == 0:\n    while True: os.write(1, b'still here\\n' * 700)\n"
        "os._exit(3)\n",
        token,
    )
    stream = run(daemon, program)
    assert said(stream) == ("exited", 3, None, 4000)
    assert stream.end["seconds"] < DRAIN + WITHIN
    assert marked(token) == []


def test_a_helper_that_holds_only_stderr_does_not_hold_the_end(daemon: Daemon) -> None:
    """Either stream may be held; neither keeps a run alive."""
    token = unique("mark")
    program = python("import os, time\nos.fork() or (os.close(1), time.sleep(300))\n", token)
    stream = run(daemon, program)
    assert said(stream) == ("exited", 0, None, 1000)
    assert marked(token) == []


def test_what_a_helper_prints_within_the_drain_arrives(tmp_path: Path) -> None:
    """A pipeline's last member may print a moment after the leader's exit."""
    with serving_any(tmp_path, "--drain", "20") as daemon:
        stream = run(daemon, ("sh", "-c", "(sleep 0.2; echo late) & echo early"))
    assert stream.lines == ["early", "late"]
    assert stream.end["seconds"] < WITHIN


@pytest.mark.parametrize("how", ESCAPES)
def test_what_got_away_is_dead_at_the_end(daemon: Daemon, how: str) -> None:
    """After the leader's own exit (E2B #1034, #3617: only the leader is ended)."""
    token = unique("mark")
    stream = run(daemon, escaping(how, token))
    assert said(stream) == ("exited", 0, None, 1000)
    assert marked(token) == []


@pytest.mark.parametrize("how", ESCAPES)
def test_what_got_away_is_dead_when_the_client_leaves(daemon: Daemon, how: str) -> None:
    """Without the leader's exit (websocketd W4, Cloudflare #338)."""
    token = unique("mark")
    path = submit(daemon, escaping(how, token, then="stay"))
    with PlainClient(daemon.address, path).upgrade() as client:
        while client.frame().record.get("line") != "ready":
            pass
        assert len(marked(token)) >= 2
        client.leave_by_close()
        wait_gone(token)


def test_two_hundred_that_got_away_are_dead_at_the_end(daemon: Daemon) -> None:
    """A crowd of daemonized helpers ends within the same time."""
    token = unique("mark")
    source = (
        "import os, time\n"
        "for _ in range(200):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        os.fork() and os._exit(0)\n"
        "        os.write(1, b'ready\\n')\n"
        "        time.sleep(300)\n"
        "while True: time.sleep(300)\n"
    )
    with begin(daemon, python(source, token)) as client:
        lines = 0
        while lines < 200:
            lines += json.loads(client.recv(20))["type"] == "stdout"
        client.send('{"type": "cancel"}')
        stream = read_all(client)
        assert stream.end["outcome"] == "cancelled"
        assert marked(token) == []


@pytest.mark.parametrize("how", ["helper", "setsid", "double fork", "daemon"])
def test_the_end_of_one_run_leaves_the_others_helpers_alone(daemon: Daemon, how: str) -> None:
    """Helpers that both got away from their leaders are told apart by their run."""
    ends, stays = unique("mark"), unique("mark")
    with begin(daemon, escaping(how, stays, then="stay")) as other:
        while json.loads(other.recv(20)).get("line") != "ready":
            pass
        before = marked(stays)
        run(daemon, escaping(how, ends))
        assert marked(ends) == []
        assert marked(stays) == before
        other.send('{"type": "cancel"}')
        assert read_all(other).end["outcome"] == "cancelled"
        assert marked(stays) == []


def test_a_command_that_closes_its_output_still_runs(daemon: Daemon, tmp_path: Path) -> None:
    """The end of the pipe is not the end of the run: that comes with the exit and its status."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    program = ("sh", "-c", f"echo last; exec 1>&- 2>&-; read x < {gate}; exit 9")
    with begin(daemon, program) as client:
        assert [json.loads(client.recv(20)).get("line") for _ in range(2)] == [None, "last"]
        with contextlib.suppress(TimeoutError):
            pytest.fail(f"told too early: {client.recv(2 * DRAIN)!r}")
        gate.write_text("go\n")
        stream = read_all(client)
    assert said(stream) == ("exited", 9, None, 4000)


def test_a_command_without_output_can_still_be_cancelled(daemon: Daemon) -> None:
    """With both pipes closed there is still a process, and it is stopped."""
    token = unique("mark")
    program = python("import os, time\nos.close(1), os.close(2)\ntime.sleep(300)\n", token)
    with begin(daemon, program) as client:
        client.recv(20)
        client.send('{"type": "cancel"}')
        assert said(read_all(client)) == ("cancelled", None, "SIGTERM", 4004)
    assert marked(token) == []


@pytest.mark.parametrize("status", [0, 3])
def test_the_last_lines_reach_a_client_that_reads_late(
    daemon: Daemon, tmp_path: Path, status: int
) -> None:
    """All lines of a command that has exited come, long after the drain (kubectl #124571)."""
    progress = tmp_path / "progress"
    token = unique("mark")
    program = (
        "sh",
        "-c",
        '"$@"; exit ' + str(status),
        "sh",
        *counting(progress, token, lines=8000),
    )
    with PlainClient(daemon.address, submit(daemon, program), buffer=SMALL).upgrade() as client:
        wait_blocked(progress)
        records = list(client.records())
        close = client.frame().close
    lines = [record["line"] for record in records if record["type"] == "stdout"]
    assert [int(line) for line in lines] == list(range(8000))
    assert records[-1]["stdout_sha256"] == digest(lines)
    assert (records[-1]["exit_code"], close[0]) == (status, 4000 if status else 1000)


FILL = python(
    "import os, sys, time\n"
    "os.set_blocking(1, False)\n"
    "count, since = 0, None\n"
    "while since is None or time.monotonic() - since < 0.5:\n"
    "    try:\n"
    "        os.write(1, b'%1023d\\n' % count)\n"
    "    except BlockingIOError:\n"
    "        since = since or time.monotonic()\n"
    "        time.sleep(0.01)\n"
    "    else:\n"
    "        count, since = count + 1, None\n"
    "with open(sys.argv[1], 'w') as told:\n"
    "    told.write(str(count))\n"
)
"""Prints until its pipe stays full, notes how many lines that were, and exits."""


@pytest.mark.parametrize("raw", [False, True], ids=["v1", "raw"])
def test_what_lies_in_the_pipe_at_the_exit_is_not_lost(
    daemon: Daemon, tmp_path: Path, raw: bool
) -> None:
    """A command that leaves a full pipe behind a stuck client loses no line (daytona #4422)."""
    told, token = tmp_path / "told", unique("mark")
    path = submit(daemon, (*FILL, str(told), token))
    subprotocol = None if raw else "agentd.v1"
    client = PlainClient(daemon.address, path, subprotocol=subprotocol, buffer=SMALL)
    with client.upgrade():
        wait_for(told.exists, "the pipe is full")
        wait_gone(token)
        time.sleep(2 * DRAIN)  # longer than the drain: only then does this client read
        frames = [frame for frame in client.frames() if frame.opcode == TEXT]
    if raw:
        numbers = [int(frame.payload) for frame in frames]
    else:
        records = [frame.record for frame in frames]
        numbers = [int(record["line"]) for record in records if record["type"] == "stdout"]
        assert records[-1]["exit_code"] == 0
    assert numbers == list(range(int(told.read_text())))


def test_the_end_comes_while_another_client_is_stuck(daemon: Daemon, tmp_path: Path) -> None:
    """One client that takes nothing delays nobody else's run (envd: the slowest stalls all)."""
    progress = tmp_path / "progress"
    path = submit(daemon, counting(progress))
    with PlainClient(daemon.address, path, buffer=SMALL).upgrade():
        wait_blocked(progress)
        assert run(daemon, ("echo", "free")).lines == ["free"]


def test_every_run_is_collected(daemon: Daemon) -> None:
    """Neither a leader nor an orphan stays as a zombie (Prefect #4114, OpenHands #14277)."""
    for _ in range(5):
        run(daemon, ("sh", "-c", "for n in 1 2 3 4; do (setsid true &); done; echo done"))
    with begin(daemon, STAYS) as client:
        client.recv(20)
        leader = client.recv(20)
        assert json.loads(leader)["line"] == "ready"
        zombies = [
            status
            for status in Path("/proc").glob("[0-9]*/stat")
            if _child_and_zombie(status, daemon.process.pid)
        ]
        assert zombies == []
        client.send('{"type": "cancel"}')
        read_all(client)


def _child_and_zombie(stat: Path, parent: int) -> bool:
    try:
        fields = stat.read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] == b"Z" and int(fields[1]) == parent
