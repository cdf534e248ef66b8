"""What /proc says of processes: whose child one is, since when it runs, which run it names.

Invariant: a process that is gone, or that hides, is None or has no children; nothing here raises,
for between two looks anything may go. Refuses to know why one asks, and signals nobody.
"""

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, Self


class Stat(NamedTuple):
    """What /proc/PID/stat says of a process (proc(5)); ``started`` in clock ticks since boot."""

    pid: int
    ppid: int
    session: int
    started: int
    alive: bool

    @classmethod
    def read(cls, pid: int) -> Self | None:
        """Return that of ``pid``, or None when there is no such process."""
        try:
            text = _read(f"/proc/{pid}/stat")
        except OSError:
            return None
        # The name before it, in parentheses, may hold anything.
        state, ppid, _pgrp, session, *rest = text.rpartition(b")")[2].split()
        threads, started = int(rest[13]), int(rest[15])
        # Where the first thread has ended and others run on, the state is the first one's.
        return cls(pid, int(ppid), int(session), started, state not in b"ZX" or threads > 1)


def readable() -> bool:
    """Whether /proc is there and is that of our own PID namespace: else its numbers are others'."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def family() -> Callable[[int], list[int]]:
    """Return a function that gives the children of a process, zombies included.

    It asks each parent (CONFIG_PROC_CHILDREN), so that it costs nothing per stranger; where the
    kernel cannot tell, it looks through all of /proc, once.
    """
    return listed_children if _lists_children() else scanned_children()


@cache
def _lists_children() -> bool:
    return os.path.exists("/proc/thread-self/children")


def listed_children(pid: int) -> list[int]:
    """Return the children of ``pid``: each thread has those it forked."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def scanned_children() -> Callable[[int], list[int]]:
    """Return the same function, made from one look at every process there is."""
    found = defaultdict(list)
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit() and (stat := Stat.read(int(name))) is not None:
                found[stat.ppid].append(stat.pid)
    return lambda pid: found.get(pid, [])


def named_run(pid: int) -> str | None:
    """Return the AGENTD_RUN_ID in the environment of ``pid``; None when it has none or hides it."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                for entry in _read(f"/proc/{pid}/task/{thread}/environ").split(b"\0"):
                    name, _, value = entry.partition(b"=")
                    if name == b"AGENTD_RUN_ID":
                        return value.decode("utf-8", "replace")
    return None


def _read(path: str) -> bytes:
    """Return what is in a file; half the cost of a file object, which counts under a fork bomb."""
    data = b""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while chunk := os.read(fd, 65536):
            data += chunk
    finally:
        os.close(fd)
    return data
