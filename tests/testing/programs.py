"""A daemon that runs whatever program a context names, and programs for it.

``env`` runs its arguments in its own place, so the leader of the run is the program itself.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection

from testing.daemon import V1, Daemon, Stream, read_all, serving, wait_for
from testing.processes import marked, pid_tree, python

_numbers = itertools.count(1)

WITHIN = 5.0
"""Seconds that something which takes a second at most may take on a busy machine."""

STAYS = python("import time\nprint('ready', flush=True)\ntime.sleep(300)\n")
"""Says ready and stays; SIGTERM ends it."""

STUBBORN = python(
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('ready', flush=True)\ntime.sleep(300)\n"
)
"""Says ready, and stays through a SIGTERM."""


def answers_sigterm(code: int) -> tuple[str, ...]:
    """Return the argv of a program that says ready, and on SIGTERM goodbye, and exits ``code``."""
    return python(
        "import os, signal, time\n"
        "def leave(*_):\n"
        f"    os.write(1, b'goodbye\\n')\n    os._exit({code})\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "print('ready', flush=True)\ntime.sleep(300)\n"
    )


def counting(progress: Path, token: str = "", *, lines: int = 1 << 60) -> tuple[str, ...]:
    """Return the argv of a program that prints numbered lines of 1 KiB in blocks of 8.

    How many blocks it has printed is in the file ``progress``; when that stands still, it is
    blocked.
    """
    return python(
        "import os, sys\n"
        "at = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        f"for block in range(min({lines}, 1 << 62) // 8):\n"
        "    text = b''.join(b'%1023d\\n' % (8 * block + n) for n in range(8))\n"
        "    while text:\n"
        "        text = text[os.write(1, text):]\n"
        "    os.pwrite(at, b'%d' % (block + 1), 0)\n",
        str(progress),
        token,
    )


def wait_blocked(progress: Path) -> int:
    """Wait until the program of :func:`counting` gets no further; return how far it got."""
    last, since = -1, time.monotonic()

    def stands_still() -> bool:
        nonlocal last, since
        now = int(progress.read_text() or 0) if progress.exists() else 0
        if now != last:
            last, since = now, time.monotonic()
        return now > 0 and time.monotonic() - since > 0.5

    wait_for(stands_still, "the child blocks")
    return last


def unique(prefix: str = "run") -> str:
    """Return a name that no other test uses: for a run, or as a mark on its processes."""
    return f"{prefix}-{os.getpid()}-{next(_numbers)}"


@contextlib.contextmanager
def serving_any(folder: Path, *options: str, **keywords: Any) -> Iterator[Daemon]:
    """A daemon in directory mode whose contexts say with ``args`` what is run."""
    allowed = ("--auth", "none", "--allow-context", "args")
    with serving(folder, "env", options=(*allowed, *options), directory=True, **keywords) as daemon:
        yield daemon


def submit(daemon: Daemon, argv: Sequence[str], **context: Any) -> str:
    """Hand over a context that runs ``argv``; return the path that names its run."""
    name = unique()
    daemon.submit(name, args=list(argv), **context)
    return f"/?run={name}"


def begin(
    daemon: Daemon, argv: Sequence[str], *, raw: bool = False, **context: Any
) -> ClientConnection:
    """Run ``argv`` and return its client, connected."""
    path = submit(daemon, argv, **context)
    return daemon.connect(path, subprotocols=None if raw else (V1,))


def run(daemon: Daemon, argv: Sequence[str], *, raw: bool = False, **context: Any) -> Stream:
    """Run ``argv`` and read to the end."""
    with begin(daemon, argv, raw=raw, **context) as client:
        return read_all(client)


def wait_gone(token: str, seconds: float = WITHIN) -> None:
    """Wait until no process has ``token`` as an argument."""
    wait_for(lambda: not marked(token), f"no process of {token} is left", seconds)


def own_processes(daemon: Daemon) -> list[int]:
    """Return the daemon's own processes: of a one-file binary there are two."""
    return [pid for pid in pid_tree(daemon.process.pid) if not _is_in_a_run(pid)]


def resident(daemon: Daemon) -> int:
    """Return how many bytes of memory the daemon has (VmRSS, proc_pid_status(5))."""
    fields = [
        line.split()
        for pid in own_processes(daemon)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    ]
    return sum(int(field[1]) * 1024 for field in fields if field[0] == "VmRSS:")


def _is_in_a_run(pid: int) -> bool:
    try:
        return b"AGENTD_RUN_ID=" in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
