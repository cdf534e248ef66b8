"""`agentd demo` as a person runs it, and what it takes for a failure."""

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.demo import INTERVAL, PROMPT, Seen, child, clock
from agentd.sansio.lifecycle import End, Outcome

ARGV = [sys.executable, "-m", "agentd", "demo"]
LINES = len(PROMPT.split()) + 1


def environ(directory: Path, **more: str) -> dict[str, str]:
    """Return an environment in which the demo makes its own directory in `directory`."""
    return {**os.environ, "TMPDIR": str(directory), **more}


def a_good_run() -> Seen:
    """Return what a demo sees when all is well."""
    return Seen(
        arrivals=[number * INTERVAL for number in range(LINES)],
        delays=[0.001] * LINES,
        file_gone=True,
        end=End(Outcome.EXITED, 0, None, None, LINES, 0, 232, "", 1.0),
    )


def test_the_demo_shows_lines_that_came_one_by_one(tmp_path: Path) -> None:
    """It prints each line with its time and the end record, and leaves nothing behind."""
    done = subprocess.run(
        ARGV, capture_output=True, text=True, timeout=90, check=False, env=environ(tmp_path)
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = re.findall(r"^ +\d+ +(\d+\.\d{3}) s +(\d+\.\d{2}) ms +(.+)$", done.stdout, re.MULTILINE)
    assert [text for _, _, text in shown[:-1]] == PROMPT.split()
    assert shown[-1][2] == "(the secret has 32 characters)"
    arrivals = [float(arrived) for arrived, _, _ in shown]
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] - arrivals[0] > INTERVAL * (LINES - 1) / 2
    assert "its file is gone" in done.stdout
    assert "exited, exit code 0" in done.stdout
    assert f"All {LINES} lines came one by one" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_settings_of_the_environment_do_not_reach_the_demo(tmp_path: Path) -> None:
    """Whoever has agentd set up for something else can still run the demo."""
    done = subprocess.run(
        ARGV,
        capture_output=True,
        timeout=90,
        check=False,
        env=environ(
            tmp_path,
            AGENTD_CONFIG="/nonexistent",
            AGENTD_LISTEN="unix:/nonexistent/socket",
            LISTEN_FDS="1",
            NOTIFY_SOCKET="/nonexistent",
        ),
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_ended_takes_everything_with_it(
    tmp_path: Path, signum: signal.Signals
) -> None:
    """Neither its daemon nor its keys stay."""
    with subprocess.Popen(
        ARGV, stdout=subprocess.PIPE, text=True, env=environ(tmp_path), start_new_session=True
    ) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "process" in line)
        daemon = int(line.rpartition(" ")[2])
        process.send_signal(signum)
        assert process.wait(30) == 130
    assert list(tmp_path.iterdir()) == []
    assert not Path(f"/proc/{daemon}").exists()


def test_a_daemon_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    """What the daemon said is shown, and the demo fails."""
    source = "from agentd.demo import demo; demo(['/bin/sh', '-c', 'echo no luck >&2; exit 78'])"
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environ(tmp_path),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("no luck\n")
    assert "AgentdError: cannot start the daemon: /bin/sh" in done.stderr
    assert list(tmp_path.iterdir()) == []


# What is a success.


def test_lines_that_came_apart_are_a_success() -> None:
    """All lines, one by one, the file gone and exit code 0."""
    assert a_good_run().passed


def test_a_machine_that_stalls_once_is_no_failure() -> None:
    """A few lines late together do not make a burst."""
    seen = a_good_run()
    seen.arrivals[2:5] = [seen.arrivals[4]] * 3
    assert seen.passed


@pytest.mark.parametrize("together", [2, 3, LINES])
def test_lines_that_came_in_bursts_are_a_failure(together: int) -> None:
    """Lines that were held back and came two or more at a time."""
    seen = a_good_run()
    seen.arrivals = [
        (number // together * together + together) * INTERVAL for number in range(LINES)
    ]
    assert not seen.passed


@pytest.mark.parametrize(
    "end",
    [
        None,
        End(Outcome.EXITED, 1, None, None, LINES, 0, 0, "", 1.0),
        End(Outcome.CANCELLED, 0, None, None, LINES, 0, 0, "", 1.0),
        End(Outcome.EXITED, 0, None, None, LINES - 1, 0, 0, "", 1.0),
    ],
)
def test_another_end_is_a_failure(end: End | None) -> None:
    """No end record, another outcome, or another number of lines."""
    seen = a_good_run()
    seen.end = end
    assert not seen.passed


def test_a_file_that_stays_is_a_failure() -> None:
    """The secret may not lie about once the run has begun."""
    seen = a_good_run()
    seen.file_gone = False
    assert not seen.passed


@pytest.mark.parametrize("arrivals", [[], [0.1], [0.1, 0.2]])
def test_too_few_lines_are_a_failure(arrivals: list[float]) -> None:
    """Nothing is shown by lines that did not come."""
    seen = a_good_run()
    seen.arrivals = arrivals
    assert not seen.passed


# The child.


@pytest.mark.parametrize("frozen", [False, True])
def test_the_child_prints_times_of_the_clock_that_is_read(frozen: bool) -> None:
    """With and without a Python to run, the words come one by one behind the time."""
    now = clock(frozen=frozen)
    before = now()
    done = subprocess.run(
        child(frozen=frozen),
        input=PROMPT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "DEMO_SECRET": "x" * 32},
    )
    after = now()
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    assert [text for _, _, text in lines] == [*PROMPT.split(), "(the secret has 32 characters)"]
    times = [int(written) for written, _, _ in lines]
    assert all(earlier < later for earlier, later in itertools.pairwise([before, *times, after]))
