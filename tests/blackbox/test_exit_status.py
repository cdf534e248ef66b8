"""How a command ended is told exactly, and nothing it printed before is lost."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from testing.daemon import Daemon
from testing.programs import run, serving_any

TERMINATING = {
    # signal(7), "Standard signals": those whose default action is Term or Core.
    1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS",
    8: "SIGFPE", 9: "SIGKILL", 10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE",
    14: "SIGALRM", 15: "SIGTERM", 16: "SIGSTKFLT", 24: "SIGXCPU", 25: "SIGXFSZ", 26: "SIGVTALRM",
    27: "SIGPROF", 29: "SIGIO", 30: "SIGPWR", 31: "SIGSYS",
    34: "SIGRTMIN", 35: "SIGRTMIN+1", 37: "SIGRTMIN+3", 63: "SIGRTMIN+29", 64: "SIGRTMAX",
}  # fmt: skip
AT_ONCE = 6
"""Runs at a time: the statuses must not be mixed up."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with serving_any(tmp_path_factory.mktemp("daemon"), "--max-runs", "64") as daemon:
        yield daemon


@pytest.mark.parametrize("raw", [False, True], ids=["v1", "raw"])
def test_every_exit_code_is_told_exactly(daemon: Daemon, raw: bool) -> None:
    """Each of 0-255 is in the end record and in the reason of the Close (websocketd W2)."""

    def told(code: int) -> tuple[object, ...]:
        stream = run(daemon, ("sh", "-c", f"exit {code}"), raw=raw)
        end = [] if raw else [stream.end[key] for key in ("outcome", "exit_code", "signal")]
        return (*end, stream.code, stream.reason)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        codes = [0, 1, 2, 3, 10, 125, 126, 127, 128, 129, 130, 137, 143, 254, 255]
        codes = codes if raw else list(range(256))
        answers = list(pool.map(told, codes))
    assert answers == [
        (*(() if raw else ("exited", code, None)), 4000 if code else 1000, f"exit {code}")
        for code in codes
    ]


@pytest.mark.parametrize("raw", [False, True], ids=["v1", "raw"])
def test_every_fatal_signal_is_told_by_name(daemon: Daemon, raw: bool) -> None:
    """A command that a signal ended is never taken for one that exited (websocketd W2)."""

    def told(number: int) -> tuple[object, ...]:
        stream = run(daemon, ("sh", "-c", f"kill -{number} $$"), raw=raw)
        end = [] if raw else [stream.end[key] for key in ("outcome", "exit_code", "signal")]
        return (*end, stream.code, stream.reason)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = dict(zip(TERMINATING, pool.map(told, TERMINATING), strict=True))
    assert answers == {
        number: (*(() if raw else ("signaled", None, name)), 4001, name)
        for number, name in TERMINATING.items()
    }


def test_the_table_of_signals_is_whole() -> None:
    """Every signal this system has is in the table or does not end a process (signal(7))."""
    harmless = {"CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "WINCH"}
    standard = {number for number in signal.valid_signals() if number < signal.SIGRTMIN}
    assert standard - set(TERMINATING) == {signal.Signals[f"SIG{name}"] for name in harmless}


def test_a_shell_that_dies_of_its_child_is_not_taken_for_a_signal(daemon: Daemon) -> None:
    """128 + 9 as an exit code stays an exit code: only the kernel's word counts."""
    stream = run(daemon, ("sh", "-c", "sh -c 'kill -9 $$'; exit $?"))
    assert (stream.end["outcome"], stream.end["exit_code"]) == ("exited", 137)
    assert (stream.code, stream.reason) == (4000, "exit 137")


def test_300_commands_that_exit_at_once_are_complete(daemon: Daemon) -> None:
    """Whoever prints one line and exits is heard, each of 300 times (ttyd #1429: half are lost)."""

    def complete(number: int) -> tuple[object, ...]:
        stream = run(daemon, ("echo", f"x{number}"))
        return stream.lines, stream.end["outcome"], stream.end["exit_code"], stream.code

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(complete, range(300)))
    assert answers == [([f"x{number}"], "exited", 0, 1000) for number in range(300)]


def test_fifty_raw_commands_that_exit_at_once_are_complete(daemon: Daemon) -> None:
    """The same without records: the line, then Close 1000 (ttyd #1429)."""

    def complete(number: int) -> tuple[object, ...]:
        stream = run(daemon, ("echo", f"x{number}"), raw=True)
        return stream.messages, stream.code

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert list(pool.map(complete, range(50))) == [([f"x{n}"], 1000) for n in range(50)]


def test_a_signal_leaves_no_core_file(daemon: Daemon, tmp_path: Path) -> None:
    """What a command had in memory, its secrets among it, is not written to disk when it crashes.

    A core file would lie in the working directory under a name from core(5); the limit is 0.
    """
    stream = run(daemon, ("sh", "-c", f"cd {tmp_path}; ulimit -c; kill -SEGV $$"))
    assert stream.lines == ["0"]
    assert stream.end["signal"] == "SIGSEGV"
    assert list(tmp_path.iterdir()) == []
