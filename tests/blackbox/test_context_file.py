"""One context file: claimed and gone before the command runs, or refused and gone.

Whatever lies under the name, the daemon goes on, tells once what was wrong without quoting it, and
serves the next good context at once.
"""

import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testing.contexts import (
    CANARY,
    gauges,
    recording,
    refusals,
    started,
    wait_refused,
    wait_taken,
    wait_waiting,
    waiting,
    write_in_place,
)
from testing.daemon import Daemon, read_all, serving, wait_for
from testing.exchange import dialled, handshake, knock

MIB = 1 << 20
PROMPTLY = 2.0
"""Seconds: more than the 100 ms that are promised, less than anything worth waiting for."""

Put = Callable[[Path], object]


class Desk:
    """A daemon in single-file mode, and the record of what it started."""

    def __init__(self, daemon: Daemon, starts: Path) -> None:
        self.daemon = daemon
        self.starts = starts

    @property
    def path(self) -> Path:
        return self.daemon.context

    def serves_promptly(self) -> None:
        """A good context is claimed, run and told, and nothing else was started before it."""
        before = started(self.starts)
        begun = time.monotonic()
        stream = self.daemon.run(prompt="good\n")
        assert stream.lines == ["good"]
        assert time.monotonic() - begun < PROMPTLY
        assert started(self.starts) == [*before, stream.messages[0]["run"]]

    def refuses(self, put: Put, *reasons: str) -> None:
        """What ``put`` leaves under the name goes, with one line in the log, and starts nothing."""
        told, before = len(refusals(self.daemon)), started(self.starts)
        put(self.path)
        wait_taken(self.path)
        wait_refused(self.daemon, told + 1)
        self.serves_promptly()
        assert started(self.starts)[:-1] == before
        (line,) = refusals(self.daemon)[told:]
        assert str(self.path) in line
        for reason in reasons:
            assert reason in line
        assert CANARY not in "\n".join(self.daemon.raw_log)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A daemon that most of these tests share: what one of them does must not harm the next."""
    folder = tmp_path_factory.mktemp("desk")
    command, starts = recording(folder)
    options = ("--auth", "none", "--timeout", "30", "--log-level", "debug")
    with serving(folder, *command, options=options) as daemon:
        yield Desk(daemon, starts)
        assert CANARY not in "\n".join(daemon.raw_log)
        assert not [entry for entry in daemon.log if entry["level"] == "error"]
        assert daemon.stop() == 0


def document(**context: object) -> bytes:
    return json.dumps(context).encode()


# Good files, however they are written.


def test_a_file_renamed_into_place_is_run(desk: Desk) -> None:
    """What is renamed to the name, whole, is claimed and run."""
    desk.serves_promptly()


def test_a_file_written_in_place_is_run(desk: Desk) -> None:
    """A file of mode 0644 that is opened, written and closed under its name is claimed and run."""
    write_in_place(desk.path, document(prompt="in place\n"))
    with desk.daemon.connect() as client:
        assert read_all(client).lines == ["in place"]


def test_a_file_that_was_there_before_the_daemon_is_run(tmp_path: Path) -> None:
    """A context that waits for the daemon to start is not forgotten."""
    (tmp_path / "context.json").write_bytes(document(prompt="early\n"))
    (tmp_path / "context.json").chmod(0o600)
    with serving(tmp_path, "cat") as daemon, daemon.connect() as client:
        assert read_all(client).lines == ["early"]


def test_the_directory_may_come_later(tmp_path: Path) -> None:
    """A daemon whose context directory is made only after its start sees what appears in it."""
    options = ("--auth", "none", "--context", str(tmp_path / "later" / "context.json"))
    with serving(tmp_path, "cat", options=options) as daemon:
        (tmp_path / "later").mkdir()
        (tmp_path / "new").write_bytes(document(prompt="later\n"))
        (tmp_path / "new").chmod(0o600)
        (tmp_path / "new").rename(tmp_path / "later" / "context.json")
        with daemon.connect() as client:
            assert read_all(client).lines == ["later"]


def test_the_file_is_gone_before_the_command_runs(tmp_path: Path) -> None:
    """The command finds neither the context file nor any other trace of it in its directory."""
    script = 'ls -A "$0"; echo "prompt: $(cat)"; echo "key: $KEY"'
    with serving(tmp_path, "sh", "-c", script, str(tmp_path)) as daemon:
        stream = daemon.run(prompt="p", env={"KEY": CANARY})
        assert stream.lines == ["prompt: p", f"key: {CANARY}"]
        assert CANARY not in "\n".join(daemon.raw_log)


def test_a_writer_may_write_in_pieces(desk: Desk) -> None:
    """A writer that opens the file under its name and takes a while is waited for."""
    data = document(prompt="in pieces\n", env={"KEY": CANARY})
    fd = os.open(desk.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(fd, data[:7])
        wait_taken(desk.path)
        os.write(fd, data[7:30])
        desk.serves_promptly()  # meanwhile nobody else waits
        os.write(fd, data[30:])
    finally:
        os.close(fd)
    with desk.daemon.connect() as client:
        assert read_all(client).lines == ["in pieces"]


def test_a_writer_may_rename_before_it_writes(desk: Desk) -> None:
    """An empty file with a writer is not a bad context yet, whatever name it came by."""
    early = desk.path.with_name(".early")
    fd = os.open(early, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    early.rename(desk.path)
    wait_taken(desk.path)
    os.write(fd, document(prompt="renamed early\n"))
    os.close(fd)
    with desk.daemon.connect() as client:
        assert read_all(client).lines == ["renamed early"]


def test_unfinished_files_are_refused_after_a_while_and_delay_nobody(desk: Desk) -> None:
    """Files that never become whole go at once, are refused 2 s later, and nothing waits."""
    told, before = len(refusals(desk.daemon)), started(desk.starts)
    unfinished = [
        b"",
        b"  \n",
        b'{"prompt": "%s' % CANARY.encode(),
        b'{"env": {"KEY": "%s"}' % CANARY.encode(),
        b'{"prompt": "\\ud800 %s"}' % CANARY.encode(),
        b'{"env": {"KEY": "%s \\udfff"}}' % CANARY.encode(),
    ]
    for data in unfinished:
        write_in_place(desk.path, data)
        wait_taken(desk.path)
    held = os.open(desk.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(held, document(prompt=CANARY))  # whole, but its writer keeps it open
        wait_taken(desk.path)
        desk.serves_promptly()
        wait_refused(desk.daemon, told + len(unfinished) + 1)
    finally:
        os.close(held)
    desk.serves_promptly()
    assert len(started(desk.starts)) == len(before) + 2
    lines = refusals(desk.daemon)[told:]
    assert len(lines) == len(unfinished) + 1
    assert sum("writer" in line for line in lines) == 1
    assert CANARY not in "\n".join(desk.daemon.raw_log)


def test_one_mebibyte_is_allowed(desk: Desk) -> None:
    """A context of exactly 1 MiB is served whole."""
    frame = len(document(prompt=""))
    prompt = "x" * (MIB - frame)
    stream = desk.daemon.run(prompt=prompt)
    assert "".join(record["line"] for record in stream.of("stdout")) == prompt


def test_many_contexts_one_after_the_other(desk: Desk) -> None:
    """Each of many files causes one run, of its own prompt."""
    for number in range(25):
        assert desk.daemon.run(prompt=f"{number}\n").lines == [str(number)]


# Bad files: what they are.


def _as(mode: int) -> Put:
    def put(path: Path) -> None:
        ready = path.with_name(".ready")
        ready.write_bytes(document(prompt=CANARY))
        ready.chmod(mode)
        ready.rename(path)

    return put


def _symlink(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(document(prompt=CANARY))
    target.chmod(0o600)
    path.symlink_to(target)


def _hard_link(path: Path) -> None:
    target = path.with_name("linked")
    target.unlink(missing_ok=True)
    target.write_bytes(document(prompt=CANARY))
    target.chmod(0o600)
    path.hardlink_to(target)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        where = os.open(path.parent, os.O_PATH)
        try:
            listening.bind(f"/proc/self/fd/{where}/{path.name}")  # the whole path may be too long
        finally:
            os.close(where)


def _foreign(path: Path) -> None:
    ready = path.with_name(".ready")
    ready.write_bytes(document(prompt=CANARY))
    os.chown(ready, 65534, 65534)
    ready.rename(path)


BAD_FILES: dict[str, tuple[Put, str]] = {
    "symbolic link": (_symlink, "symbolic link"),
    "dangling link": (lambda path: path.symlink_to("/nowhere/at/all"), "symbolic link"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "symbolic link"),
    "link to itself": (lambda path: path.symlink_to(path), "symbolic link"),
    "FIFO": (os.mkfifo, "FIFO"),
    "socket": (_socket, "socket"),
    "hard link": (_hard_link, "link"),
    "group-writable": (_as(0o620), "write"),
    "world-writable": (_as(0o602), "write"),
    "world-writable and sticky": (_as(0o1666), "write"),
}
if os.geteuid() == 0:  # who else could give a file away?
    BAD_FILES["somebody else's"] = (_foreign, "owner")
    BAD_FILES["device"] = (lambda path: os.mknod(path, 0o020600, os.makedev(1, 5)), "device")


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_file_that_cannot_be_trusted_is_refused(desk: Desk, what: str) -> None:
    """It is removed unread, and what it led to stays as it was."""
    put, reason = BAD_FILES[what]
    desk.refuses(put, reason)
    for name in ("target", "linked"):
        other = desk.path.with_name(name)
        if other.exists():
            assert json.loads(other.read_bytes()) == {"prompt": CANARY}
            other.unlink()


def test_a_directory_under_the_name_is_left_there(desk: Desk) -> None:
    """A directory is no context and not the daemon's to remove; once it is gone, all is well."""
    told = len(refusals(desk.daemon))
    desk.path.mkdir()
    (desk.path / "inside").write_text("kept")
    wait_refused(desk.daemon, told + 1)
    assert desk.daemon.get("/healthz")[0] == 200
    assert (desk.path / "inside").read_text() == "kept"
    (desk.path / "inside").unlink()
    desk.path.rmdir()
    desk.serves_promptly()
    assert len(refusals(desk.daemon)) == told + 1


# Bad files: what they say.

BAD_DOCUMENTS: dict[str, tuple[bytes, str]] = {
    "too large": (b'{"prompt": "%s"}' % (CANARY.encode() * (MIB // 8)), "larger than 1048576"),
    "one byte too large": (
        document(prompt=CANARY + "x" * (MIB + 1 - len(document(prompt=CANARY)))),
        "larger than 1048576",
    ),
    "not JSON": (b"prompt=" + CANARY.encode(), "not JSON"),
    "JSON and more": (document(prompt=CANARY) + b" and more of it", "not JSON"),
    "two documents": (document(prompt=CANARY) * 2, "not JSON"),
    "bytes": (bytes(range(256)) * 8, "not JSON"),
    "UTF-16": (document(prompt=CANARY).decode().encode("utf-16"), "not JSON"),
    "not UTF-8": (b'{"prompt": "%s \xff"}' % CANARY.encode(), "UTF-8"),
    "not UTF-8 where nobody looks": (b'{"other": "%s \xff"}' % CANARY.encode(), "UTF-8"),
    "an array": (json.dumps([CANARY]).encode(), "object"),
    "a string": (json.dumps(CANARY).encode(), "object"),
    "a number": (b"17", "object"),
    "null": (b"null", "object"),
    "deep array": (b'{"deep": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested"),
    "deep object": (b'{"d":' * 100_000 + b"1" + b"}" * 100_000, "nested"),
    "a key twice": (b'{"prompt": "%s", "prompt": ""}' % CANARY.encode(), "prompt"),
    "prompt a number": (document(prompt=17, other=CANARY), "prompt"),
    "prompt an array": (document(prompt=[CANARY]), "prompt"),
    "env an array": (document(env=[CANARY]), "env"),
    "env a string": (document(env=CANARY), "env"),
    "env value a number": (document(env={"PORT": 17, "KEY": CANARY}), "PORT"),
    "env value null": (document(env={"PORT": None, "KEY": CANARY}), "PORT"),
    "env value an object": (document(env={"KEY": {"a": CANARY}}), "KEY"),
    "env value with NUL": (document(env={"KEY": f"{CANARY}\0"}), "KEY"),
    "env name twice": (b'{"env": {"KEY": "%s", "KEY": ""}}' % CANARY.encode(), "KEY"),
    "env name empty": (document(env={"": CANARY}), "env"),
    "env name with =": (document(env={f"KEY={CANARY}": CANARY}), "KEY"),
    "env name with NUL": (document(env={"KEY\0": CANARY}), "KEY"),
    "env LD_PRELOAD": (document(env={"LD_PRELOAD": CANARY}), "LD_PRELOAD"),
    "env LD_": (document(env={"LD_": CANARY}), "LD_"),
    "env AGENTD_RUN_ID": (document(env={"AGENTD_RUN_ID": CANARY}), "AGENTD_RUN_ID"),
    "env _PYI_": (document(env={"_PYI_ARCHIVE_FILE": CANARY}), "_PYI_ARCHIVE_FILE"),
    "args": (document(args=[CANARY]), "args"),
    "cwd": (document(cwd=f"/{CANARY}"), "cwd"),
    "timeout a string": (document(timeout="1", prompt=CANARY), "timeout"),
    "timeout a boolean": (document(timeout=True, prompt=CANARY), "timeout"),
    "timeout nothing": (document(timeout=0, prompt=CANARY), "timeout"),
    "timeout negative": (document(timeout=-1, prompt=CANARY), "timeout"),
    "timeout infinite": (b'{"timeout": 1e999, "prompt": "%s"}' % CANARY.encode(), "timeout"),
    "timeout too long": (document(timeout=30.5, prompt=CANARY), "timeout"),
    "id a number": (document(id=17, prompt=CANARY), "id"),
    "id empty": (document(id="", prompt=CANARY), "id"),
    "id too long": (document(id="x" * 129, prompt=CANARY), "id"),
    "id a path": (document(id=f"../{CANARY}", prompt=CANARY), "id"),
    "id with a newline": (document(id=f"{CANARY}\n"), "id"),
    "id of other letters": (document(id=f"{CANARY}-é"), "id"),
}


@pytest.mark.parametrize("what", BAD_DOCUMENTS)
def test_a_document_that_cannot_be_run_is_refused(desk: Desk, what: str) -> None:
    """It is removed, and the log names the key or the reason and no value."""
    data, reason = BAD_DOCUMENTS[what]
    desk.refuses(lambda path: desk.daemon.write(data), reason)


def test_a_refused_context_shows_in_no_answer(desk: Desk) -> None:
    """Neither probes, nor metrics, nor the 404 of a client hold anything of a bad context."""
    desk.refuses(lambda path: desk.daemon.submit(prompt=CANARY, env={"LD_X": CANARY}), "LD_X")
    answers = b"".join(desk.daemon.get(path)[2] for path in ("/healthz", "/readyz", "/metrics"))
    assert CANARY.encode() not in answers


def test_an_id_cannot_be_taken_twice(desk: Desk) -> None:
    """The id of a context that waits, of a run that lives, and of one that has just ended."""

    def again(path: Path) -> None:
        desk.daemon.submit(id="twice", prompt=CANARY)

    told = len(refusals(desk.daemon))
    desk.daemon.submit(id="twice", prompt="once\n")
    wait_waiting(desk.daemon, 1)
    again(desk.path)
    wait_refused(desk.daemon, told + 1)
    with desk.daemon.connect() as client:
        assert read_all(client).lines == ["once"]
    desk.refuses(again, "id")
    assert started(desk.starts).count("twice") == 1


def test_the_id_of_a_live_run_is_taken(tmp_path: Path) -> None:
    """While a run lives its id makes another context a bad one."""
    options = ("--auth", "none", "--context-wait", "0")
    with serving(tmp_path, "sh", "-c", "echo ready; exec sleep 300", options=options) as daemon:
        daemon.submit(id="live")
        wait_waiting(daemon, 1)
        with daemon.connect() as client:
            assert json.loads(client.recv(20))["run"] == "live"
            wait_taken(daemon.submit(id="live", prompt=CANARY))
            wait_refused(daemon, 1)
            assert waiting(daemon) == 0
            assert gauges(daemon)["agentd_runs_live"] == 1
        assert knock(daemon.port, handshake("/?run=live")).status == 409


# Who waits for whom.


def test_a_context_nobody_comes_for_expires(tmp_path: Path) -> None:
    """After --context-ttl it is dropped, the log says so, and a client finds nothing."""
    command, starts = recording(tmp_path)
    options = ("--auth", "none", "--context-ttl", "0.3", "--context-wait", "0")
    with serving(tmp_path, *command, options=options) as daemon:
        daemon.submit(id="late", prompt=CANARY)
        line = daemon.wait_log("context expired")
        assert json.loads(line)["run"] == "late"
        assert knock(daemon.port, handshake()).status == 404
        assert knock(daemon.port, handshake("/?run=late")).status == 404
        assert waiting(daemon) == 0
        assert started(starts) == []
        assert CANARY not in "\n".join(daemon.raw_log)


def test_a_client_waits_as_long_as_it_was_told_and_not_longer(tmp_path: Path) -> None:
    """Without a context the answer is 404, after --context-wait."""
    options = ("--auth", "none", "--context-wait", "0.4")
    with serving(tmp_path, "cat", options=options) as daemon:
        begun = time.monotonic()
        answer = knock(daemon.port, handshake())
        assert answer.status == 404
        assert 0.4 <= time.monotonic() - begun < 4
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_client_that_came_first_gets_the_context(desk: Desk) -> None:
    """A client may be there before its context is."""
    got: list[list[str]] = []

    def wait_for_context() -> None:
        with desk.daemon.connect() as client:
            got.append(read_all(client).lines)

    connections = gauges(desk.daemon)["agentd_connections_total"]
    client = threading.Thread(target=wait_for_context)
    client.start()
    # Each look is a connection itself.
    wait_for(
        lambda: gauges(desk.daemon)["agentd_connections_total"] - connections > 2, "a client there"
    )
    desk.daemon.submit(prompt="you were first\n")
    client.join(20)
    assert got == [["you were first"]]


def test_a_client_that_left_takes_no_context_with_it(desk: Desk) -> None:
    """A context goes to who is there, not to one that waited and left."""
    for seen in (True, False):
        for _ in range(5):
            with dialled(desk.daemon.port) as client:
                client.sendall(handshake())
                if seen:
                    # The end of what comes back says that the daemon has seen it leave.
                    client.shutdown(socket.SHUT_WR)
                    assert client.recv(1) == b""
        desk.serves_promptly()


def test_args_and_cwd_where_they_are_allowed(tmp_path: Path) -> None:
    """With --allow-context a context may append arguments and choose the directory."""
    options = ("--auth", "none", "--allow-context", "args,cwd")
    script = 'pwd; for arg; do echo "<$arg>"; done'
    with serving(tmp_path, "sh", "-c", script, "name", "one", options=options) as daemon:
        (tmp_path / "there").mkdir()
        args = ["two words", "--auth", "", "$HOME", "ü"]
        stream = daemon.run(args=args, cwd=str(tmp_path / "there"))
        assert stream.lines == [str(tmp_path / "there"), "<one>", *(f"<{arg}>" for arg in args)]
        assert daemon.run().lines == ["/", "<one>"]
        for bad in ({"args": "x"}, {"args": [1]}, {"args": ["\0"]}, {"cwd": ""}, {"cwd": "\0"}):
            told = len(refusals(daemon))
            daemon.submit(**bad)
            wait_refused(daemon, told + 1)
            assert next(iter(bad)) in refusals(daemon)[-1]


def test_only_what_is_allowed_is_allowed(tmp_path: Path) -> None:
    """--allow-context args does not allow cwd."""
    options = ("--auth", "none", "--allow-context", "args")
    with serving(tmp_path, "echo", options=options) as daemon:
        assert daemon.run(args=["yes"]).lines == ["yes"]
        daemon.submit(cwd="/tmp")
        assert "cwd" in daemon.wait_log("context refused")


def test_a_context_may_shorten_the_time(tmp_path: Path) -> None:
    """`timeout` within --timeout ends the run."""
    options = ("--auth", "none", "--timeout", "100")
    with serving(tmp_path, "sleep", "300", options=options) as daemon:
        begun = time.monotonic()
        stream = daemon.run(timeout=0.2)
        assert time.monotonic() - begun < 10
        assert (stream.end["outcome"], stream.code) == ("timed_out", 4003)


def test_a_file_that_cannot_be_removed_is_never_run() -> None:
    """Where the daemon may not write, a context stays, is told once, and starts nothing."""
    # Not below pytest's own folder, which nobody else may enter.
    folder = Path(tempfile.mkdtemp(prefix="agentd-test-", dir="/tmp"))
    path = folder / "context.json"
    path.write_bytes(document(prompt=CANARY))
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:  # whom no mode keeps from writing, but for this capability
        prefix = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
    try:
        path.chmod(0o644)
        folder.chmod(0o555)
        options = ("--auth", "none", "--context-wait", "0")
        with serving(folder, "cat", options=options, prefix=prefix) as daemon:
            daemon.wait_log("context refused, left there")
            assert knock(daemon.port, handshake()).status == 404
            assert daemon.get("/healthz")[0] == 200
            assert path.exists()
            assert len(refusals(daemon)) == 1
            assert CANARY not in "\n".join(daemon.raw_log)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
