"""The daemon stops as it was told to: its clients hear why, its runs end, nothing is left."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from testing.daemon import Daemon, daemon_environ, launcher, read_all, serving, wait_for
from testing.plain_client import SMALL, Collector, PlainClient
from testing.processes import ESCAPES, escaping, is_alive, marked, pid_tree
from testing.programs import (
    STAYS,
    STUBBORN,
    WITHIN,
    answers_sigterm,
    begin,
    counting,
    own_processes,
    run,
    serving_any,
    submit,
    unique,
    wait_blocked,
    wait_gone,
)


def read_ready(client: Any) -> None:
    """Read the hello and the line by which the command says that it is there."""
    assert [json.loads(client.recv(20)).get("line") for _ in range(2)] == [None, "ready"]


def stop_timed(daemon: Daemon, number: int = signal.SIGTERM) -> float:
    """Signal the daemon; return how long it took to exit with 0."""
    started = time.monotonic()
    assert daemon.stop(number) == 0
    return time.monotonic() - started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_clients_are_told_that_the_daemon_stops(tmp_path: Path, number: int) -> None:
    """Each gets what was read, the end, and Close 1001 (websocketd W5: an abrupt EOF)."""
    with (
        serving_any(tmp_path, "--grace", "2") as daemon,
        begin(daemon, answers_sigterm(7)) as one,
        begin(daemon, STAYS) as two,
    ):
        read_ready(one)
        read_ready(two)
        assert stop_timed(daemon, number) < 2 + 1 + WITHIN
        first, second = read_all(one), read_all(two)
    assert first.lines == ["goodbye"]
    ends = [
        (stream.end["outcome"], stream.end["exit_code"], stream.end["signal"])
        for stream in (first, second)
    ]
    assert ends == [("shutdown", 7, None), ("shutdown", None, "SIGTERM")]
    assert {(stream.code, stream.reason) for stream in (first, second)} == {(1001, "shutting down")}


def test_a_raw_client_is_told_by_the_close_code(tmp_path: Path) -> None:
    """Raw has no records; 1001 says that it was not the command's own end."""
    with serving_any(tmp_path) as daemon, begin(daemon, STAYS, raw=True) as client:
        assert client.recv(20) == "ready"
        stop_timed(daemon)
        assert read_all(client).code == 1001


def test_commands_that_ignore_sigterm_hold_the_daemon_for_the_grace_only(tmp_path: Path) -> None:
    """Exit within the grace and a second, with every client told (Cloudflare #486: hangs)."""
    token = unique("mark")
    with serving_any(tmp_path, "--grace", "0.5") as daemon:
        with begin(daemon, (*STUBBORN, token)) as client:
            read_ready(client)
            assert 0.5 <= stop_timed(daemon) < 0.5 + 1 + WITHIN
            stream = read_all(client)
        assert (stream.end["outcome"], stream.end["signal"]) == ("shutdown", "SIGKILL")
        assert stream.code == 1001
        assert marked(token) == []


def test_a_second_sigterm_skips_the_grace(tmp_path: Path) -> None:
    """Whoever cannot wait says it twice; the client is told all the same."""
    with serving_any(tmp_path, "--grace", "60") as daemon:
        with begin(daemon, STUBBORN) as client:
            read_ready(client)
            daemon.process.terminate()
            daemon.wait_log("stopping")
            assert stop_timed(daemon) < 1 + WITHIN
            stream = read_all(client)
        assert (stream.end["outcome"], stream.end["signal"]) == ("shutdown", "SIGKILL")
        assert stream.code == 1001


def test_a_draining_daemon_takes_nothing_new(tmp_path: Path) -> None:
    """While it drains: alive, not ready, no new streams, no contexts; the run goes on."""
    with serving_any(tmp_path, "--grace", "60") as daemon:
        with begin(daemon, STUBBORN) as client, PlainClient(daemon.address) as waiting:
            read_ready(client)
            waiting.ask()
            wait_for(lambda: daemon.get("/readyz")[0] == 200, "ready")
            daemon.process.terminate()
            wait_for(lambda: daemon.get("/readyz")[0] == 503, "not ready")
            assert daemon.get("/healthz")[0] == 200
            assert json.loads(daemon.get("/readyz")[2])["status"] == "draining"
            assert waiting.answer() == 503, "a client that waits for a context"
            path = submit(daemon, ("echo", "late"))
            with PlainClient(daemon.address, path) as late:
                late.ask()
                assert late.answer() == 503
            left = daemon.context / f"{path.partition('=')[2]}.json"
            assert left.exists(), "a context that nobody will run is left where it is"
            daemon.process.terminate()
            assert read_all(client).code == 1001
        assert daemon.process.wait(20) == 0


def test_a_client_that_reads_nothing_does_not_hold_the_daemon(tmp_path: Path) -> None:
    """Exit in time also while a send is blocked; the blocked run is gone."""
    token, progress = unique("mark"), tmp_path / "progress"
    with serving_any(tmp_path, "--grace", "0.5", "--write-timeout", "0") as daemon:
        path = submit(daemon, counting(progress, token))
        with PlainClient(daemon.address, path, buffer=SMALL).upgrade():
            wait_blocked(progress)
            assert stop_timed(daemon) < 0.5 + 1 + WITHIN
            assert marked(token) == []


def test_a_client_that_reads_slowly_gets_the_end_if_it_is_in_time(tmp_path: Path) -> None:
    """What was read before the daemon stopped comes whole and in order, then the end."""
    progress = tmp_path / "progress"
    with serving_any(tmp_path, "--grace", "3") as daemon:
        path = submit(daemon, counting(progress))
        with PlainClient(daemon.address, path, buffer=SMALL).upgrade() as client:
            wait_blocked(progress)
            daemon.process.terminate()
            daemon.wait_log("stopping")
            collector = Collector(client)
            assert daemon.process.wait(20) == 0
            collector.join(20)
        records = [frame.record for frame in collector.frames if frame.opcode == 1]
        assert records[-1]["outcome"] == "shutdown"
        numbers = [int(record["line"]) for record in records if record["type"] == "stdout"]
        complete = numbers[:-1] if len(records[-2]["line"]) != 1023 else numbers
        assert complete == list(range(len(complete)))
        assert collector.frames[-1].close == (1001, "shutting down")


def test_a_stopped_daemon_leaves_no_process(tmp_path: Path) -> None:
    """Not even one that left its group, session and parent (websocketd W5, execd, codex)."""
    token = unique("mark")
    with serving_any(tmp_path, "--grace", "1") as daemon, contextlib.ExitStack() as clients:
        for how in ESCAPES:
            program = escaping(how, token, then="stay")
            read_ready(clients.enter_context(begin(daemon, program)))
        tree = pid_tree(daemon.process.pid)
        assert len(tree) >= 1 + 2 * len(ESCAPES)
        stop_timed(daemon)
        assert marked(token) == []
        assert [pid for pid in tree if is_alive(pid)] == []


@pytest.mark.parametrize("delay", [0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_sigterm_during_the_start_ends_the_daemon(tmp_path: Path, delay: float) -> None:
    """A daemon that is stopped before it is ready exits at once, by itself or by the signal."""
    process = subprocess.Popen(
        [*launcher(), "serve", "--auth", "none", "--listen", "127.0.0.1:0",
         "--context", str(tmp_path / "context.json"), "--", "true"],
        env=daemon_environ(), stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        time.sleep(delay)  # not to wait for something: to come at a different moment each time
        process.terminate()
        _, log = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode in (0, -signal.SIGTERM), log
    assert b"Traceback" not in log


def test_the_child_of_a_daemon_that_is_killed_dies_with_it(tmp_path: Path) -> None:
    """kill -9 of the daemon: its direct child is gone at once (PR_SET_PDEATHSIG)."""
    token = unique("mark")
    with serving_any(tmp_path) as daemon, begin(daemon, (*STUBBORN, token)) as client:
        read_ready(client)
        for pid in own_processes(daemon):
            os.kill(pid, signal.SIGKILL)
        daemon.process.wait()
        wait_gone(token)
        assert read_all(client).code is None, "a torn stream is not taken for an end"


def test_sighup_keeps_the_daemon_and_its_runs(tmp_path: Path) -> None:
    """SIGHUP reads keys again and ends nothing, also where there are no keys."""
    with serving_any(tmp_path) as daemon, begin(daemon, ("cat",), prompt="") as ended:
        assert read_all(ended).code == 1000
        with begin(daemon, STAYS) as client:
            read_ready(client)
            for _ in range(3):
                daemon.process.send_signal(signal.SIGHUP)
            assert run(daemon, ("echo", "more")).lines == ["more"]
            assert daemon.process.poll() is None
            client.send('{"type": "cancel"}')
            assert read_all(client).end["outcome"] == "cancelled"


def test_a_daemon_without_runs_stops_at_once(tmp_path: Path) -> None:
    """The grace is for runs; without one there is nothing to wait for."""
    with serving_any(tmp_path, "--grace", "60") as daemon:
        assert stop_timed(daemon) < 1 + WITHIN


def test_a_connection_that_asks_nothing_does_not_hold_the_daemon(tmp_path: Path) -> None:
    """A peer that only connected, and a slow request head, are dropped when the daemon stops."""
    with (
        serving_any(tmp_path, "--grace", "60") as daemon,
        PlainClient(daemon.address),
        PlainClient(daemon.address) as slow,
    ):
        slow.socket.sendall(b"GET / HT")
        assert daemon.get("/healthz")[0] == 200
        assert stop_timed(daemon) < 1 + WITHIN


def test_a_daemon_that_inherits_blocked_signals_can_be_stopped(tmp_path: Path) -> None:
    """A signal mask left by whoever started it does not make the daemon deaf."""
    with serving(tmp_path, "true", prefix=("env", "--block-signal")) as daemon:
        assert daemon.stop() == 0
