"""The three streams of a child: pipes, a terminal, or nothing.

Invariant: our ends never block and no program inherits them; the child's ends are blocking, and
the child's user may open them again by name (``/dev/stdout``).

Refuses to know what is started, and what is read.
"""

import contextlib
import fcntl
import os
import termios
from typing import Literal, NamedTuple

PIPE_SIZE = 256 * 1024
"""Bytes asked for the pipe of stdout: fewer, larger reads from a child that prints fast."""

WINDOW = (24, 80)
"""Rows and columns a child is told of its terminal: those of one nobody has resized."""

_OFLAG, _LFLAG = 1, 3  # where tcgetattr(3) has the output and local modes


class Stdio(NamedTuple):
    """Our ends, None where there is none, and the child's, in the order of its descriptors."""

    stdin: int | None
    stdout: int
    stderr: int | None
    child_ends: tuple[int, int, int]


def open_stdio(
    ours: contextlib.ExitStack,
    theirs: contextlib.ExitStack,
    *,
    stdin: bool,
    pty: bool,
    stderr: Literal["pipe", "merge", "drop"],
    uid: int | None,
) -> Stdio:
    """Open the streams; raises ``OSError``.

    Args:
        ours: closes our ends.
        theirs: closes the child's ends.
        stdin: a pipe, else /dev/null.
        pty: stdout is a terminal, which only this end and the child have: it controls nobody.
            Reading it fails with EIO once the child's end is closed everywhere (pty(7)).
        stderr: a pipe of its own, the same as stdout, or /dev/null.
        uid: the child's user, to own its ends, or None for our own.
    """
    our_stdin = our_stderr = None
    if stdin:
        child_stdin, our_stdin = pipe(reader=theirs, writer=ours)
    else:
        child_stdin = _null(theirs)
    if pty:
        our_stdout, child_stdout = _terminal(ours, theirs)
    else:
        our_stdout, child_stdout = pipe(reader=ours, writer=theirs)
        with contextlib.suppress(OSError):  # EPERM: past pipe-user-pages-soft, pipe(7)
            fcntl.fcntl(our_stdout, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    if stderr == "pipe":
        our_stderr, child_stderr = pipe(reader=ours, writer=theirs)
    else:
        child_stderr = child_stdout if stderr == "merge" else _null(theirs)
    for fd in (our_stdin, our_stdout, our_stderr):
        if fd is not None:
            os.set_blocking(fd, False)
    if uid is not None:
        # Opening /dev/stderr anew asks for permission on what it is, a pipe of ours otherwise.
        given = [child_stdout, *[child_stdin] * stdin, *[child_stderr] * (stderr == "pipe")]
        for fd in given:
            with contextlib.suppress(PermissionError):  # not root: then it is our own user anyway
                os.fchown(fd, uid, -1)
    return Stdio(our_stdin, our_stdout, our_stderr, (child_stdin, child_stdout, child_stderr))


def pipe(*, reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """Open a pipe and return its read and its write end; each has its stack to be closed by."""
    read_end, write_end = os.pipe()
    reader.callback(os.close, read_end)
    writer.callback(os.close, write_end)
    return read_end, write_end


def _null(theirs: contextlib.ExitStack) -> int:
    fd = os.open(os.devnull, os.O_RDWR)
    theirs.callback(os.close, fd)
    return fd


def _terminal(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    """Open a terminal that changes nothing of what is written to it, and echoes nothing."""
    master, slave = os.openpty()
    ours.callback(os.close, master)
    theirs.callback(os.close, slave)
    modes = termios.tcgetattr(slave)
    modes[_OFLAG] &= ~(termios.OPOST | termios.ONLCR)
    modes[_LFLAG] &= ~(termios.ECHO | termios.ECHONL)
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    termios.tcsetwinsize(slave, WINDOW)
    return master, slave
