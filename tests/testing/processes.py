"""Verbs about processes: children that say "ready", who is alive, whose child is whose.

Nothing here sleeps to let something happen: a child prints ``ready`` when it is, and what nobody
prints is waited for with :func:`wait_until`. Liveness and family are read from /proc, never asked
of the code under test.
"""

import errno
import functools
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ParamSpec

import trio

P = ParamSpec("P")

NOBODY = 65534
"""A uid and gid that own nothing; tests that need another user run as root."""

FOREVER = "import time\nprint('ready', flush=True)\ntime.sleep(300)\n"
"""Says ready and stays."""

IGNORES_SIGTERM = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER
"""Says ready and stays through a SIGTERM."""

ESCAPES = {
    # What leaves the process group, the session, or the parent that would answer for it.
    "helper": "if os.fork() == 0:\n    stay()\n",
    "setsid": "if os.fork() == 0:\n    os.setsid()\n    stay()\n",
    "double fork": "if os.fork() == 0:\n    os.fork() and os._exit(0)\n    stay()\n",
    "daemon": (
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    os.fork() and os._exit(0)\n"
        "    os.chdir('/')\n"
        "    null = os.open('/dev/null', os.O_RDWR)\n"
        "    os.dup2(null, 0), os.dup2(null, 2)\n"
        "    stay()\n"
    ),
    "nohup": (
        "if os.fork() == 0:\n"
        "    signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    stay()\n"
    ),
    "clean environment": (
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    os.fork() and os._exit(0)\n"
        "    os.execve(sys.executable, [sys.executable, '-c', STAY, *sys.argv[1:]], {})\n"
    ),
    "dead main thread": (
        "if os.fork() == 0:\n"
        "    import ctypes, threading\n"
        "    os.setsid()\n"
        "    threading.Thread(target=stay).start()\n"
        "    ctypes.CDLL(None).pthread_exit(None)\n"
    ),
}
"""Ways to get away, by name: the body of a program for :func:`escaping`."""


def python(source: str, *arguments: str) -> tuple[str, ...]:
    """Return the argv that runs ``source``; ``arguments`` are its ``sys.argv[1:]``."""
    return (sys.executable, "-c", source, *arguments)


def escaping(how: str, token: str, *, count: int = 1, then: str = "exit") -> tuple[str, ...]:
    """Return the argv of a program that lets ``count`` processes escape.

    Each escaped process has ``token`` in its command line, for :func:`marked`, and prints ``ready``
    when it has got away.

    Args:
        how: a key of :data:`ESCAPES`.
        then: what the leader does afterwards: ``"exit"`` or ``"stay"``.
    """
    stay = "import os, time\nos.write(1, b'ready\\n')\ntime.sleep(300)\nos._exit(0)\n"
    source = (
        "import os, signal, sys, time\n"
        f"STAY = {stay!r}\n"
        "def stay():\n    exec(STAY)\n"
        f"for _ in range({count}):\n" + "".join(f"    {x}\n" for x in ESCAPES[how].splitlines())
    )
    return python(source + ("time.sleep(300)\n" if then == "stay" else ""), token)


def is_alive(pid: int) -> bool:
    """Whether ``pid`` runs: a zombie does not, unless threads of it still do."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in (b"Z", b"X") or int(fields[17]) > 1


def is_zombie(pid: int) -> bool:
    """Whether ``pid`` has ended and nobody has asked for its status."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] == b"Z" and int(fields[17]) <= 1


def children(pid: int) -> list[int]:
    """Return the pids whose parent is ``pid``, zombies included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return sorted(found)


def pid_tree(pid: int) -> list[int]:
    """Return ``pid`` and all its living descendants."""
    tree = [pid] if is_alive(pid) else []
    for child in children(pid):
        tree += pid_tree(child)
    return tree


def marked(token: str) -> list[int]:
    """Return the living processes, other than this one, that have ``token`` as an argument."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and is_alive(int(entry.name)):
            try:
                # A process without its main thread shows its command line in another task's place.
                lines = [path.read_bytes() for path in entry.glob("task/*/cmdline")]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if any(token.encode() in line.split(b"\0") for line in lines):
                found.append(int(entry.name))
    return sorted(found)


async def wait_until(condition: Callable[[], object], *, seconds: float = 10) -> None:
    """Return once ``condition()`` is true; raises ``trio.TooSlowError`` after ``seconds``."""
    with trio.fail_after(seconds):
        while not condition():  # the kernel sends no event for most of these
            await trio.sleep(0.005)


async def read_line(fd: int) -> bytes:
    """Read from the non-blocking ``fd`` up to and with one newline; what is there at EOF else.

    Reads byte by byte, so that nothing after the line is taken.
    """
    line = b""
    while not line.endswith(b"\n"):
        byte = await read_some(fd, 1)
        if not byte:
            break
        line += byte
    return line


async def read_lines(fd: int, count: int) -> list[bytes]:
    """Read ``count`` lines from the non-blocking ``fd``."""
    return [await read_line(fd) for _ in range(count)]


async def read_all(fd: int) -> bytes:
    """Read the non-blocking ``fd`` up to its end; a terminal's end is EIO (pty(7))."""
    data = b""
    while chunk := await read_some(fd, 65536):
        data += chunk
    return data


async def read_some(fd: int, size: int) -> bytes:
    """Read at most ``size`` bytes from the non-blocking ``fd``, waiting for them; b"" at EOF."""
    while True:
        try:
            return os.read(fd, size)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(fd)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""


def within(
    seconds: float,
) -> Callable[[Callable[P, Awaitable[None]]], Callable[P, Awaitable[None]]]:
    """Fail an async test that takes longer than ``seconds``."""

    def decorate(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
        @functools.wraps(test)
        async def limited(*args: P.args, **kwargs: P.kwargs) -> None:
            with trio.fail_after(seconds):
                await test(*args, **kwargs)

        return limited

    return decorate


def start_host(
    source: str, *arguments: str, launcher: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    """Start ``source`` in an interpreter of its own that finds ``agentd`` and ``testing``.

    For what a test cannot do to the process it runs in: kill it, take its descriptors away. Its
    stdout is a pipe. ``launcher`` goes before the command.
    """
    tests = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    return subprocess.Popen(
        [*launcher, *python(source, *arguments)], env=env, stdout=subprocess.PIPE
    )


def run_host(source: str, *arguments: str, launcher: tuple[str, ...] = ()) -> str:
    """Run ``source`` as :func:`start_host` does, to its end, and return what it printed."""
    with start_host(source, *arguments, launcher=launcher) as host:
        output, _ = host.communicate(timeout=60)
        assert host.returncode == 0, output
        return output.decode()
