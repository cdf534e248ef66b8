"""A directory of contexts: what each run is called, which comes first, and how many may wait."""

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator
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
from testing.daemon import Daemon, Stream, read_all, serving, wait_for
from testing.exchange import handshake, knock

AT_ONCE = ("--auth", "none", "--context-wait", "0")


def put_early(folder: Path, names: list[str], **context: object) -> Path:
    """Write contexts before there is a daemon, each a second older than the next."""
    contexts = folder / "contexts"
    contexts.mkdir(mode=0o700)
    for age, name in enumerate(reversed(names)):
        path = contexts / f"{name}.json"
        path.write_bytes(json.dumps({"prompt": f"{name}\n", **context}).encode())
        path.chmod(0o600)
        os.utime(path, (1_700_000_000 - age,) * 2)
    return contexts


def wait_outside(contexts: Path, count: int) -> None:
    """Wait until ``count`` files are left in the directory."""
    wait_for(lambda: len(list(contexts.iterdir())) == count, f"{count} files left")


def take(daemon: Daemon, target: str = "/") -> Stream:
    """Come as a client and stay to the end."""
    with daemon.connect(target) as client:
        return read_all(client)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon in directory mode whose command says its run and its prompt."""
    folder = tmp_path_factory.mktemp("directory")
    script = 'echo "$AGENTD_RUN_ID"; exec cat'
    options = ("--auth", "none", "--log-level", "debug")
    with serving(folder, "sh", "-c", script, options=options, directory=True) as daemon:
        yield daemon
        assert not [entry for entry in daemon.log if entry["level"] == "error"]
        assert daemon.stop() == 0


def test_a_run_is_called_as_its_file(daemon: Daemon) -> None:
    """Without an `id` the file's stem is the run's id, for the client and for the command."""
    daemon.submit("by-stem_1.2", prompt="p\n")
    stream = take(daemon)
    assert stream.messages[0]["run"] == "by-stem_1.2"
    assert stream.lines == ["by-stem_1.2", "p"]


def test_an_id_in_the_context_comes_before_the_name_of_its_file(daemon: Daemon) -> None:
    """The `id` key beats the stem, and the stem stays free for another run."""
    daemon.submit("stem", id="key", prompt="1\n")
    assert take(daemon, "/?run=key").lines == ["key", "1"]
    daemon.submit("stem", prompt="2\n")
    assert take(daemon, "/?run=stem").lines == ["stem", "2"]


def test_an_id_may_have_128_characters(daemon: Daemon) -> None:
    """The longest name a run may have works everywhere."""
    long = "x" * 128
    daemon.submit("long", id=long)
    assert take(daemon, f"/?run={long}").lines == [long]


def test_an_id_in_the_context_allows_any_name_of_the_file(daemon: Daemon) -> None:
    """A file whose stem could be no id is run under the valid `id` it holds."""
    daemon.submit("two words, ü", id="good-id", prompt="p\n")
    assert take(daemon, "/?run=good-id").lines == ["good-id", "p"]


@pytest.mark.parametrize("stem", ["two words", "ü", "a+b", "x" * 129, "%2e"])
def test_a_name_that_can_be_no_id_is_refused(daemon: Daemon, stem: str) -> None:
    """A file that would give its run a bad id is a bad file: gone, and told once."""
    told = len(refusals(daemon))
    wait_taken(daemon.submit(stem, prompt=CANARY))
    wait_for(lambda: refusals(daemon)[told:], "a refusal")
    daemon.submit("after-a-bad-name-" + str(told), prompt="p\n")
    assert take(daemon).lines[1] == "p"
    assert len(refusals(daemon)) == told + 1
    assert CANARY not in "\n".join(daemon.raw_log)


def test_what_is_no_json_file_is_not_touched(daemon: Daemon) -> None:
    """Hidden files and other suffixes belong to somebody else."""
    others = [".hidden.json", "notes.txt", "x.json.tmp", "json", ".json", "x.JSON"]
    told = len(refusals(daemon))
    for name in others:
        write_in_place(daemon.context / name, b'{"prompt": "p"}')
    daemon.submit("between-others", prompt="p\n")
    assert take(daemon).lines == ["between-others", "p"]
    assert sorted(path.name for path in daemon.context.iterdir()) == sorted(others)
    assert len(refusals(daemon)) == told
    for name in others:
        (daemon.context / name).unlink()


def test_every_way_to_write_a_file(daemon: Daemon) -> None:
    """Renamed into the directory, written in place, linked and unlinked: each is one run."""
    daemon.submit("renamed", prompt="1\n")
    assert take(daemon, "/?run=renamed").lines == ["renamed", "1"]
    write_in_place(daemon.context / "in-place.json", b'{"prompt": "2\\n"}')
    assert take(daemon, "/?run=in-place").lines == ["in-place", "2"]


def test_a_bad_file_harms_no_other(daemon: Daemon) -> None:
    """Bad files of all kinds between good ones: the good ones run, the bad ones are gone."""
    told = len(refusals(daemon))
    contexts = daemon.context
    wanted = []
    for number in range(12):
        good, bad = f"good-{number}", contexts / f"bad-{number}.json"
        match number % 6:
            case 0:
                bad.symlink_to(contexts / "nothing")
            case 1:
                os.mkfifo(bad)
            case 2:
                write_in_place(bad, CANARY.encode())
            case 3:
                write_in_place(bad, json.dumps({"env": {"LD_X": CANARY}}).encode())
            case 4:
                daemon.write(json.dumps({"prompt": CANARY}).encode(), bad.stem, 0o666)
            case 5:
                daemon.write(b"[" * 100_000, bad.stem)
        daemon.submit(good, prompt=f"{number}\n")
        wanted.append([good, str(number)])
    assert [take(daemon, f"/?run={good}").lines for good, _ in wanted] == wanted
    wait_refused(daemon, told + 12)
    assert list(contexts.iterdir()) == []
    assert CANARY not in "\n".join(daemon.raw_log)


def test_a_stem_that_is_taken_is_refused(daemon: Daemon) -> None:
    """Another file of the same name, while the first waits and after it has run."""
    told = len(refusals(daemon))
    wait_taken(daemon.submit("again", prompt="1\n"))
    wait_waiting(daemon, 1)
    for times in (1, 2):
        wait_taken(daemon.submit("again", prompt=CANARY))
        wait_refused(daemon, told + times)
        assert "id" in refusals(daemon)[-1]
        if times == 1:
            assert take(daemon).lines == ["again", "1"]
    assert CANARY not in "\n".join(daemon.raw_log)


def test_a_client_may_ask_for_a_run(daemon: Daemon) -> None:
    """`?run=` picks one; without it the oldest comes; the others go on waiting."""
    for name in ("first", "second", "third"):
        wait_taken(daemon.submit(name, prompt=f"{name}\n"))
    wait_waiting(daemon, 3)
    assert take(daemon, "/?run=second").lines == ["second"] * 2
    assert take(daemon).lines == ["first"] * 2
    assert waiting(daemon) == 1
    assert take(daemon, "/any/path?run=third&other=1").lines == ["third"] * 2


def test_a_client_that_asks_for_a_run_gets_no_other(daemon: Daemon) -> None:
    """A client of a run that is not there yet is passed over by other contexts, then served."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", daemon.port), 20)) as waits:
        waits.sendall(handshake("/?run=awaited"))
        daemon.submit("not-awaited", prompt="p\n")
        assert take(daemon).lines == ["not-awaited", "p"]
        daemon.submit("awaited", prompt="p\n")
        answer = b""
        while b"awaited" not in answer:
            more = waits.recv(4096)
            assert more, answer
            answer += more
        assert answer.startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("run", ["", "a/b", "x" * 129, "ü", "a%00b", "..", "a b"])
def test_a_run_that_can_be_none_is_a_bad_request(daemon: Daemon, run: str) -> None:
    """`?run=` that is no id is malformed, and says so without quoting it."""
    target = "/?run=" + "".join(c if c.isascii() else "%C3%BC" for c in run).replace(" ", "+")
    answer = knock(daemon.port, handshake(target))
    assert answer.status == 400
    assert json.loads(answer.body)["detail"].startswith("run:")


def test_two_runs_in_one_request_are_a_bad_request(daemon: Daemon) -> None:
    """`?run=` may be given once."""
    assert knock(daemon.port, handshake("/?run=a&run=a")).status == 400


def test_a_generated_id_is_new_each_time(tmp_path: Path) -> None:
    """In single-file mode a context without `id` gets one that was not there before."""
    command, starts = recording(tmp_path)
    with serving(tmp_path, *command) as daemon:
        runs = {daemon.run().messages[0]["run"] for _ in range(8)}
    assert len(runs) == 8
    assert set(started(starts)) == runs
    assert all(re.fullmatch("[A-Za-z0-9._-]{8,128}", run) for run in runs)


def test_what_was_there_first_is_served_first(tmp_path: Path) -> None:
    """Contexts that waited for the daemon are served oldest first, not by name."""
    names = ["m", "z", "a", "q", "b"]
    put_early(tmp_path, names)
    with serving(tmp_path, "cat", directory=True) as daemon:
        wait_waiting(daemon, len(names))
        assert [take(daemon).messages[0]["run"] for _ in names] == names


def test_at_most_64_wait_and_the_rest_stay_where_they_are(tmp_path: Path) -> None:
    """Of 70 contexts the newest 6 stay unclaimed, and each comes in when one is used."""
    names = [f"run-{number:02}" for number in range(70)]
    contexts = put_early(tmp_path, names)
    command, starts = recording(tmp_path)
    with serving(tmp_path, *command, directory=True, options=AT_ONCE) as daemon:
        wait_waiting(daemon, 64)
        daemon.submit("newest", prompt="newest\n")
        expected = [*names[64:], "newest"]
        assert sorted(path.stem for path in contexts.iterdir()) == sorted(expected)
        for used, name in enumerate([*names, "newest"], 1):
            assert take(daemon).lines == [name]
            expected = expected[1:]
            wait_outside(contexts, max(0, 7 - used))
            assert sorted(path.stem for path in contexts.iterdir()) == sorted(expected)
            wait_waiting(daemon, min(64, 71 - used))
        assert started(starts) == [*names, "newest"]
        assert knock(daemon.port, handshake()).status == 404


def test_a_context_that_expires_makes_room(tmp_path: Path) -> None:
    """When waiting contexts expire, those that stayed outside are claimed."""
    names = [f"{number}" for number in range(66)]
    contexts = put_early(tmp_path, names)
    options = (*AT_ONCE, "--context-ttl", "1")
    with serving(tmp_path, "cat", directory=True, options=options) as daemon:
        daemon.wait_log("context expired")
        wait_outside(contexts, 0)
        wait_waiting(daemon, 0)
        assert b'agentd_contexts_total{result="expired"} 66.0' in daemon.get("/metrics")[2]


def test_a_full_daemon_keeps_contexts_for_later(tmp_path: Path) -> None:
    """At --max-runs a client is told 503, and the context it wanted waits for the next."""
    options = (*AT_ONCE, "--max-runs", "2")
    with serving(tmp_path, "sleep", "300", directory=True, options=options) as daemon:
        for number in range(3):
            daemon.submit(f"run-{number}")
        wait_waiting(daemon, 3)
        with daemon.connect() as one, daemon.connect() as two:
            runs = {json.loads(client.recv(20))["run"] for client in (one, two)}
            assert len(runs) == 2
            answer = knock(daemon.port, handshake())
            assert (answer.status, "retry-after" in answer.headers) == (503, True)
            assert json.loads(daemon.get("/readyz")[2])["full"] is True
            assert waiting(daemon) == 1
        wait_for(lambda: gauges(daemon)["agentd_runs_live"] == 0, "both gone")
        assert "full" not in json.loads(daemon.get("/readyz")[2])
        with daemon.connect() as three:
            assert json.loads(three.recv(20))["run"] not in runs
