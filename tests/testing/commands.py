"""The commands of agentd that end by themselves: run one, or several side by side."""

import re
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from testing.daemon import daemon_environ, launcher


class Call(NamedTuple):
    """What to run: words behind ``agentd``, and variables for it."""

    arguments: tuple[str, ...]
    environ: Mapping[str, str] = {}
    stdin: bytes = b""


class Done(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


def agentd(*arguments: str, environ: Mapping[str, str] | None = None, stdin: bytes = b"") -> Done:
    """Run one command to its end."""
    done = subprocess.run(
        [*launcher(), *arguments],
        env=daemon_environ(environ),
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def agentd_each(calls: Iterable[Call]) -> list[Done]:
    """Run several commands, a few at a time, and return what they left in their order."""
    with ThreadPoolExecutor(4) as pool:
        return list(
            pool.map(lambda call: agentd(*call.arguments, environ=call.environ, stdin=call.stdin),
                     calls)
        )  # fmt: skip


def complains(done: Done, status: int, *says: str) -> str:
    """Return what is wrong with a failure, "" when it is as it should be.

    It should have the status, nothing on stdout, and one line on stderr that says each of ``says``.
    """
    if done.status != status or done.out:
        return f"not {status} without output: {done}"
    if not re.fullmatch("agentd: [^\n]+\n", done.err):
        return f"not one line: {done}"
    missing = [text for text in says if text not in done.err]
    return f"does not say {missing}: {done}" if missing else ""
