"""``agentd demo``: serve, submit and stream on loopback, with keys made for it and thrown away.

What it prints is measured and not claimed: the child writes the time into each line, and the clock
is read again when the line has arrived here, through the daemon and the WebSocket. It uses what
anybody can use, the commands and :mod:`agentd.client`, and knows nothing of the daemon's inside.
"""

import itertools
import os
import secrets
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

import trio

from agentd import AgentdError
from agentd.address import Address
from agentd.client import End, Hello, Outcome, Output, stream
from agentd.keys import generate_pair, mint_from_file
from agentd.probe import ProbeError, probe
from agentd.submit import submit

INTERVAL: Final = 0.1
"""Seconds between two lines of the child's."""

PROMPT: Final = "Each of these ten words is one line of output."

RUN: Final = "demo"

_START_TIMEOUT: Final = 30.0
_RUN_TIMEOUT: Final = 60.0
_STOP_TIMEOUT: Final = 10.0
_ATTEMPTS: Final = 5

# EX_UNAVAILABLE and EX_TEMPFAIL, sysexits.h: somebody took the port that was free a moment ago.
_PORT_TAKEN: Final = (69, 75)

# The child: reads the prompt, and prints a word at a time behind the time at which it does.
_PYTHON_CHILD: Final = """\
import os, sys, time
words = sys.stdin.read().split()
for word in words:
    print(time.monotonic_ns(), word, flush=True)
    time.sleep(float(sys.argv[1]))
print(time.monotonic_ns(), f"(the secret has {len(os.environ['DEMO_SECRET'])} characters)")
"""

# The same in sh(1). Its times have that of date(1) in them.
_SHELL_CHILD: Final = """\
for word in $(cat); do
    echo "$(date +%s%N) $word"
    sleep "$1"
done
echo "$(date +%s%N) (the secret has ${#DEMO_SECRET} characters)"
"""


@dataclass(slots=True)
class Seen:
    """What came of the stream: when the lines arrived, and how long each was on its way."""

    arrivals: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    file_gone: bool = False
    end: End | None = None

    @property
    def one_by_one(self) -> bool:
        """Whether the lines came apart, as they were written, and in no burst.

        By the median, so that a machine that stalls once is not taken for a daemon that buffers.
        """
        gaps = [later - earlier for earlier, later in itertools.pairwise(self.arrivals)]
        return len(gaps) > 1 and statistics.median_low(gaps) > INTERVAL / 2

    @property
    def passed(self) -> bool:
        """Whether this is what the demo is there to show."""
        end = self.end
        return end is not None and (
            end.outcome is Outcome.EXITED
            and end.exit_code == 0
            and end.stdout_lines == len(self.arrivals) == len(PROMPT.split()) + 1
            and self.file_gone
            and self.one_by_one
        )


def demo(agentd: Sequence[str] | None = None) -> int:
    """Run ``agentd demo`` and return its exit status: 0 when all lines came one by one.

    Args:
        agentd: how the daemon's program is called; as this one was, by default.

    Raises:
        AgentdError: the daemon did not start, or the stream did not come whole.
    """
    # However the demo is ended, its daemon and its keys go with it.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    directory = tempfile.mkdtemp(prefix="agentd-demo-")  # 0700: mkdtemp(3)
    try:
        return _demo(directory, _this_program() if agentd is None else agentd)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _demo(directory: str, agentd: Sequence[str]) -> int:
    _say("agentd demo: one run, from its context file to its end record")
    _say("")
    private_key, public_key = generate_pair(os.path.join(directory, "keys"))
    context = os.path.join(directory, "context.json")
    _tell("keys", f"{public_key} and its private half")
    daemon, port = _serve(agentd, directory, public_key, context)
    try:
        _tell("serve", f"http://127.0.0.1:{port}/healthz says it is healthy, process {daemon.pid}")
        submit(
            context,
            {"id": RUN, "prompt": PROMPT, "env": {"DEMO_SECRET": secrets.token_urlsafe(24)}},
        )
        _tell("submit", f"a prompt and a secret, to {context}")
        token = mint_from_file(private_key, ttl=60, run=RUN)
        _tell("token", f"for the run {RUN!r}, good for 60 s and one connection")
        url = f"ws://127.0.0.1:{port}/"
        _tell("stream", url)
        _say("")
        seen = trio.run(_follow, url, token, context)
    finally:
        _stop(daemon)
    _conclude(seen)
    return 0 if seen.passed else 1


# The daemon.


def _serve(
    agentd: Sequence[str], directory: str, public_key: str, context: str
) -> tuple["subprocess.Popen[bytes]", int]:
    """Start ``agentd serve`` on a free port and wait until it is ready."""
    log = os.path.join(directory, "daemon.log")
    for _ in range(_ATTEMPTS):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        command = [
            *agentd,
            "serve",
            f"--listen=127.0.0.1:{port}",
            "--if-running=fail",
            f"--jwt-key={public_key}",
            f"--context={context}",
            "--",
            *child(frozen=_is_frozen()),
        ]
        with open(log, "wb") as stderr:
            daemon = subprocess.Popen(  # noqa: S603  # our own command line
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=_environ(),
            )
        if _wait_ready(daemon, port):
            return daemon, port
        if daemon.returncode not in _PORT_TAKEN:
            break
    with open(log, encoding="utf-8", errors="replace") as text:
        sys.stderr.write(text.read())
    raise AgentdError(f"cannot start the daemon: {shlex.join(command)} failed")


def _wait_ready(daemon: "subprocess.Popen[bytes]", port: int) -> bool:
    address = Address("127.0.0.1", port)
    deadline = time.monotonic() + _START_TIMEOUT
    while daemon.poll() is None:
        try:
            status, _ = probe(address, "/readyz", timeout=1)
        except ProbeError:
            status = 0
        if status == 200:
            return True
        if time.monotonic() > deadline:
            _stop(daemon)
            break
        time.sleep(0.02)
    return False


def _stop(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _this_program() -> Sequence[str]:
    return (sys.executable,) if _is_frozen() else (sys.executable, "-m", "agentd")


def child(*, frozen: bool) -> Sequence[str]:
    """The command of the run; the frozen form has no Python to run one with."""
    if frozen:
        return "/bin/sh", "-c", _SHELL_CHILD, "sh", str(INTERVAL)
    return sys.executable, "-I", "-c", _PYTHON_CHILD, str(INTERVAL)


def clock(*, frozen: bool) -> Callable[[], int]:
    """The clock that :func:`child` reads, in nanoseconds."""
    return time.time_ns if frozen else time.monotonic_ns


def _is_frozen() -> bool:
    return bool(getattr(sys, "frozen", False))


def _environ() -> dict[str, str]:
    """What the daemon inherits: nothing that would set it up otherwise than said here."""
    ours = ("AGENTD_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


# The stream.


async def _follow(url: str, token: str, context: str) -> Seen:
    now = clock(frozen=_is_frozen())
    seen = Seen()
    start = time.monotonic()
    with trio.move_on_after(_RUN_TIMEOUT):
        async with aclosing(stream(url, token=token)) as records:
            async for record in records:
                read, arrived = now(), time.monotonic() - start
                if isinstance(record, End):
                    seen.end = record
                elif isinstance(record, Hello):
                    _begin(seen, context)
                elif isinstance(record, Output):
                    _show(seen, record.text, read, arrived)
    return seen


def _begin(seen: Seen, context: str) -> None:
    seen.file_gone = not os.path.exists(context)
    _tell(
        "context", f"the run has begun; its file is {'gone' if seen.file_gone else 'STILL THERE'}"
    )
    _say("")
    _say("  line    arrived after    on its way for")


def _show(seen: Seen, line: str, read: int, arrived: float) -> None:
    written, _, text = line.partition(" ")
    seen.arrivals.append(arrived)
    way = "?"
    # Not every date(1) knows nanoseconds.
    if written.isdecimal():
        delay = (read - int(written)) / 1e9
        seen.delays.append(delay)
        way = f"{delay * 1000:.2f} ms"
    _say(f"  {len(seen.arrivals):4}    {arrived:11.3f} s    {way:>14}    {text}")


def _conclude(seen: Seen) -> None:
    _say("")
    end = seen.end
    if end is None:
        _tell("end", f"did not come in {_RUN_TIMEOUT:g} s")
        return
    status = f"exit code {end.exit_code}" if end.signal is None else end.signal
    _tell("end", f"{end.outcome.value}, {status}, after {end.seconds:.3f} s")
    _tell(
        "", f"{end.stdout_lines} lines, {end.stdout_bytes} bytes, and what arrived here hashes to"
    )
    _tell("", f"sha256 {end.stdout_sha256} as well")
    _say("")
    if not seen.passed:
        _say("That is NOT what it should be: every line by itself, the file gone, exit code 0.")
        return
    slowest = f", the slowest in {max(seen.delays) * 1000:.2f} ms" if seen.delays else ""
    _say(f"All {len(seen.arrivals)} lines came one by one{slowest}.")


def _tell(what: str, text: str) -> None:
    _say(f"  {what:8}{text}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
