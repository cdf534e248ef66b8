"""Verbs about context files: every way to write one, good and bad, and what came of it."""

import os
from pathlib import Path

from testing.daemon import Daemon, wait_for

CANARY = "canary-8f3b1c"
"""Stands in every value of a bad context; it may be seen nowhere."""


def recording(folder: Path) -> tuple[tuple[str, ...], Path]:
    """A command that prints its prompt, and the file in which each start of it leaves a line."""
    starts = folder / "starts"
    return ("sh", "-c", 'echo "$AGENTD_RUN_ID" >>"$0"; exec cat', str(starts)), starts


def started(starts: Path) -> list[str]:
    """The ids of the runs that were started, in their order."""
    return starts.read_text().split() if starts.exists() else []


def write_in_place(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Open, write, close, as the Cloudflare SDK does."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.write(fd, data)
    os.close(fd)


def wait_taken(path: Path) -> None:
    """Wait until nothing has this name any more, not even a dead link."""
    wait_for(lambda: not os.path.lexists(path), f"{path} gone")


def refusals(daemon: Daemon) -> list[str]:
    """What the log says of refused contexts, one by one."""
    return [
        entry["message"]
        for entry in daemon.log
        if str(entry.get("message", "")).startswith("context refused")
    ]


def gauges(daemon: Daemon) -> dict[str, float]:
    """The samples of /metrics that have no labels, by name."""
    samples: dict[str, float] = {}
    for line in daemon.get("/metrics")[2].decode().splitlines():
        name, _, value = line.partition(" ")
        if not line.startswith("#") and "{" not in name:
            samples[name] = float(value)
    return samples


def waiting(daemon: Daemon) -> int:
    """How many contexts wait for a client."""
    return int(gauges(daemon)["agentd_contexts_waiting"])


def wait_waiting(daemon: Daemon, count: int) -> None:
    """Wait until ``count`` contexts wait for a client."""
    wait_for(lambda: waiting(daemon) == count, f"{count} contexts waiting")


def wait_refused(daemon: Daemon, count: int) -> None:
    """Wait until the log has told of ``count`` refused contexts."""
    wait_for(lambda: len(refusals(daemon)) >= count, f"{count} refusals in the log")
