"""A run that is told to end, by its client or by its time, ends, and its real status is told."""

import json
import time
from collections.abc import Iterator

import pytest
from testing.daemon import Daemon, Stream, read_all
from testing.plain_client import SMALL, PlainClient
from testing.processes import marked, python
from testing.programs import (
    STAYS,
    STUBBORN,
    WITHIN,
    answers_sigterm,
    begin,
    run,
    serving_any,
    submit,
    unique,
    wait_gone,
)

GRACE = 0.5


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    options = ("--grace", str(GRACE), "--timeout", "0.4")
    with serving_any(tmp_path_factory.mktemp("daemon"), *options) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without a timeout of its own."""
    with serving_any(tmp_path_factory.mktemp("daemon"), "--grace", str(GRACE)) as daemon:
        yield daemon


def cancelled(daemon: Daemon, argv: tuple[str, ...], *, times: int = 1) -> Stream:
    """Run ``argv``, wait for its first line, cancel it, and read to the end."""
    with begin(daemon, argv) as client:
        records = [json.loads(client.recv(20)) for _ in range(2)]
        assert records[1].get("line") == "ready"
        for _ in range(times):
            client.send('{"type": "cancel"}')
        stream = read_all(client)
    return Stream(records + stream.messages, stream.code, stream.reason)


def status(stream: Stream) -> tuple[object, ...]:
    """Everything a stream says of its end."""
    end = stream.end
    return end["outcome"], end["exit_code"], end["signal"], end["error"], stream.code, stream.reason


def test_cancel_ends_a_run(patient: Daemon) -> None:
    """``cancel`` is SIGTERM, and the end record says both what was asked and what happened."""
    assert status(cancelled(patient, STAYS)) == (
        "cancelled", None, "SIGTERM", None, 4004, "cancelled",
    )  # fmt: skip


@pytest.mark.parametrize("code", [0, 7])
def test_a_cancelled_command_that_exits_by_itself_keeps_its_exit_code(
    patient: Daemon, code: int
) -> None:
    """Exit 0 in answer to SIGTERM is no success, and exit 7 no signal (Cloudflare #873)."""
    stream = cancelled(patient, answers_sigterm(code))
    assert status(stream) == ("cancelled", code, None, None, 4004, "cancelled")


def test_last_words_of_a_cancelled_command_arrive(patient: Daemon) -> None:
    """What a command prints on SIGTERM comes before the end record (SWE-ReX #29)."""
    assert cancelled(patient, answers_sigterm(0)).lines == ["ready", "goodbye"]


def test_a_command_that_ignores_sigterm_is_killed_after_the_grace(patient: Daemon) -> None:
    """It has its whole grace and no more (Cloudflare #338: reported as killed, runs on)."""
    token = unique("mark")
    started = time.monotonic()
    stream = cancelled(patient, (*STUBBORN, token))
    assert status(stream) == ("cancelled", None, "SIGKILL", None, 4004, "cancelled")
    assert GRACE <= time.monotonic() - started < GRACE + WITHIN
    assert marked(token) == []


def test_cancelling_again_does_not_hurry_a_command(patient: Daemon) -> None:
    """A second ``cancel`` neither kills at once nor begins a new grace."""
    started = time.monotonic()
    assert cancelled(patient, STUBBORN, times=5).end["signal"] == "SIGKILL"
    assert GRACE <= time.monotonic() - started < GRACE + WITHIN


def test_a_stopped_command_can_be_cancelled(patient: Daemon) -> None:
    """A command that was stopped (SIGSTOP) gets SIGTERM and is there to act on it."""
    stops = python(
        "import os, signal\n"
        "def leave(*_):\n    os._exit(7)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "os.write(1, b'ready\\n')\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
        "signal.pause()\n"
    )
    assert cancelled(patient, stops).end["exit_code"] == 7


def test_cancel_reaches_the_whole_group(patient: Daemon) -> None:
    """A command that a shell started gets the SIGTERM too, not only the shell (E2B #1034)."""
    token = unique("mark")
    inner = """trap "echo bye; exit" TERM; echo ready; while :; do sleep 0.02; done"""
    outer = f"trap : TERM; sh -c '{inner}' {token}; exit 5"
    stream = cancelled(patient, ("sh", "-c", outer))
    assert stream.lines == ["ready", "bye"]
    assert stream.end["exit_code"] == 5
    wait_gone(token)


@pytest.mark.parametrize("raw", [False, True], ids=["v1", "raw"])
def test_a_run_that_takes_too_long_is_timed_out(daemon: Daemon, raw: bool) -> None:
    """``--timeout`` is told as such, never as a failed command (trpc-agent-go #2087)."""
    stream = run(daemon, STAYS, raw=raw)
    if not raw:
        assert stream.lines == ["ready"]
        assert status(stream)[:4] == ("timed_out", None, "SIGTERM", None)
        assert stream.end["seconds"] >= 0.4
    assert (stream.code, stream.reason) == (4003, "timed out")


def test_a_timed_out_command_keeps_its_status_and_its_last_words(daemon: Daemon) -> None:
    """The real exit code and what was printed on the way out are told (SWE-ReX #29)."""
    stream = run(daemon, answers_sigterm(7))
    assert stream.lines[-1] == "goodbye"
    assert status(stream) == ("timed_out", 7, None, None, 4003, "timed out")


def test_a_timed_out_command_that_ignores_sigterm_is_killed(daemon: Daemon) -> None:
    """The grace follows the timeout; nothing of the run is left (websocketd: leader only)."""
    token = unique("mark")
    stream = run(daemon, (*STUBBORN, token))
    assert status(stream) == ("timed_out", None, "SIGKILL", None, 4003, "timed out")
    assert 0.4 + GRACE <= stream.end["seconds"] < 0.4 + GRACE + WITHIN
    assert marked(token) == []


def test_a_context_may_ask_for_less_time(daemon: Daemon) -> None:
    """The context's own ``timeout`` counts when it is shorter than ``--timeout``."""
    stream = run(daemon, STAYS, timeout=0.1)
    assert stream.end["outcome"] == "timed_out"
    assert stream.end["seconds"] < 0.4 + WITHIN


def test_a_context_may_not_ask_for_more_time(daemon: Daemon) -> None:
    """A ``timeout`` longer than ``--timeout`` is a bad file, reported by its key."""
    daemon.submit(unique(), args=["true"], timeout=77.125)
    assert "77.125" not in daemon.wait_log("timeout")


def test_a_context_may_set_a_time_where_the_daemon_has_none(patient: Daemon) -> None:
    """Without ``--timeout`` a context's ``timeout`` is the only one."""
    stream = run(patient, STAYS, timeout=0.3)
    assert status(stream) == ("timed_out", None, "SIGTERM", None, 4003, "timed out")


def test_a_run_that_ends_in_time_is_not_timed_out(daemon: Daemon) -> None:
    """A timeout that was not reached leaves no trace."""
    stream = run(daemon, ("sh", "-c", "echo done; exit 3"), timeout=0.3)
    assert status(stream) == ("exited", 3, None, None, 4000, "exit 3")


def test_a_timeout_counts_while_the_client_reads_nothing(daemon: Daemon) -> None:
    """A slow client does not give a command more time."""
    token = unique("mark")
    with PlainClient(daemon.address, submit(daemon, ("yes", token)), buffer=SMALL).upgrade():
        wait_gone(token, 0.4 + GRACE + WITHIN)
