"""Starting the command: who runs it, with which descriptors, and why it could not be.

Invariant: a process this room started has the descriptors 0, 1 and 2, default signals, an empty
mask, umask 022 and a session of its own; it dies with the daemon; and a command that could not be
started leaves nothing behind but a :class:`SpawnError` that says which of five reasons it was.

It forks by itself, in 4.5 ms from a daemon of 40 MB. ``subprocess`` takes 3.4 ms as soon as
PR_SET_PDEATHSIG is asked for (the 0.25 ms of a plain ``Popen`` is vfork(2), which has no place to
ask), but enters the working directory with the daemon's rights, leaves ignored signals ignored, and
reaps children that it believes to be its own.

Refuses to know what a run is, and what becomes of a process once it has been started.
"""

import contextlib
import errno
import fcntl
import gc
import os
import signal
import struct
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, NoReturn

from agentd import AgentdError
from agentd.linux import default_reserved_signals, prctl_pdeathsig
from agentd.stdio import open_stdio, pipe
from agentd.users import User, find_user

__all__ = ["Command", "SpawnError", "Started", "User", "find_user", "spawn"]

Reason = Literal["not_found", "not_executable", "bad_cwd", "too_big", "other"]

_EXEC_REASONS: dict[int, Reason] = {  # execve(2), ERRORS
    errno.ENOENT: "not_found",  # also a script's missing interpreter: the kernel does not tell
    errno.ENOTDIR: "not_found",
    errno.ENAMETOOLONG: "not_found",
    errno.EACCES: "not_executable",
    errno.EISDIR: "not_executable",
    errno.ELIBBAD: "not_executable",
    errno.ELOOP: "not_executable",
    errno.ENOEXEC: "not_executable",  # also a script without #!, which a shell would interpret
    errno.EPERM: "not_executable",
    errno.ETXTBSY: "not_executable",
    errno.E2BIG: "too_big",
}

_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_REPORT = struct.Struct("=BI")  # which step failed, and its errno
_CHILD, _USER, _CWD, _EXEC = range(4)


class SpawnError(AgentdError):
    """The command could not be started.

    Attributes:
        kind: the ``error`` of the end record: ``not_found``, ``not_executable``, ``bad_cwd``,
            ``too_big`` (execve(2), E2BIG: also one argument or variable over 128 KiB) or ``other``.
    """

    def __init__(self, kind: Reason, message: str) -> None:
        super().__init__(message)
        self.kind: Reason = kind


@dataclass(frozen=True, slots=True)
class Command:
    """What to start.

    Attributes:
        argv: the program and its arguments. A program without ``/`` is looked up in the *child's*
            PATH, a relative one from the child's working directory.
        env: the whole environment, as text; it is encoded as UTF-8.
        cwd: the working directory, which the child's own user must be able to enter.
        user: whom to run as, or None for the daemon's own user.
        pty: give it a terminal as stdout, so that it buffers by lines. Its stdin stays what
            ``stdin`` says, and it is nobody's controlling terminal.
        stdin: a pipe, else /dev/null.
        stderr: ``pipe``; ``merge`` into stdout, the same terminal with ``pty``; or ``drop``.
    """

    argv: tuple[str, ...] = field(repr=False)
    env: Mapping[str, str] = field(repr=False)
    cwd: str = "/"
    user: User | None = None
    pty: bool = False
    stdin: bool = False
    stderr: Literal["pipe", "merge", "drop"] = "pipe"


class Started(NamedTuple):
    """A process, and our ends of its streams: non-blocking, and closed on exec."""

    pid: int
    stdin: int | None
    stdout: int
    stderr: int | None


def spawn(command: Command) -> Started:
    """Start ``command`` and return once it has called execve(2), so that no error comes later.

    Must be called from the main thread: PR_SET_PDEATHSIG follows the thread that forked, and
    execve(2) of a set-user-ID program clears it.

    Raises:
        SpawnError: nothing was started. It names the program, or the directory, and nothing else.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("cannot spawn from a thread: the child would die with it")
    step, code = _CHILD, 0
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        try:
            stdio = open_stdio(
                ours,
                theirs,
                stdin=command.stdin,
                pty=command.pty,
                stderr=command.stderr,
                uid=None if command.user is None else command.user.uid,
            )
            prepared = _prepare(command)
            with contextlib.ExitStack() as reader:
                report, told = pipe(reader=reader, writer=theirs)
                pid = _fork(prepared, stdio.child_ends, told)
                theirs.close()
                failure = os.read(report, _REPORT.size)
            if not failure:
                ours.pop_all()
                return Started(pid, stdio.stdin, stdio.stdout, stdio.stderr)
            os.waitpid(pid, 0)
            step, code = _REPORT.unpack(failure)
        except OSError as error:
            code = error.errno or errno.EIO
        except UnicodeEncodeError:
            code = errno.EILSEQ
    # Out here, because a UnicodeEncodeError carries the text, which may be a secret.
    raise _refusal(command, step, code)


def _refusal(command: Command, step: int, code: int) -> SpawnError:
    why = os.strerror(code)
    if step == _CWD:
        return SpawnError("bad_cwd", f"cannot enter directory {command.cwd!r}: {why}")
    if step == _USER and command.user is not None:
        return SpawnError("other", f"cannot become user {command.user.name!r}: {why}")
    kind = _EXEC_REASONS.get(code, "other") if step == _EXEC else "other"
    return SpawnError(kind, f"cannot run {command.argv[0]!r}: {why}")


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What the child needs, made before the fork: after it nothing is imported or looked up."""

    paths: list[bytes]
    argv: list[bytes] = field(repr=False)
    env: dict[bytes, bytes] = field(repr=False)
    cwd: bytes
    user: User | None
    die_with_parent: Callable[[], None]
    default_reserved_signals: Callable[[], None]


def _prepare(command: Command) -> _Prepared:
    argv = [_encode(argument) for argument in command.argv]
    env = {_encode(name): _encode(value) for name, value in command.env.items()}
    program = argv[0]
    if b"/" in program:
        paths = [program]
    else:
        entries = os.get_exec_path(command.env) if program else []
        paths = [os.path.join(_encode(entry), program) for entry in entries]
    user = command.user
    if user is not None and os.geteuid() and (user.uid, user.gid) == (os.geteuid(), os.getegid()):
        user = None  # only root may call setgroups(2), and there is nothing to change
    return _Prepared(
        paths,
        argv,
        env,
        _encode(command.cwd),
        user,
        die_with_parent=prctl_pdeathsig(signal.SIGKILL),
        default_reserved_signals=default_reserved_signals(),
    )


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _fork(prepared: _Prepared, child_ends: tuple[int, int, int], told: int) -> int:
    # Blocked, so that no signal meets the daemon's handlers, and its wakeup descriptor, in the
    # child; what comes meanwhile finds the default action there.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with warnings.catch_warnings():
            # 3.12 warns of fork(2) with threads. The child takes no lock: it calls what follows,
            # all of it looked up, and ends in execve(2) or _exit(2).
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _become(prepared, child_ends, told)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _become(prepared: _Prepared, child_ends: tuple[int, int, int], told: int) -> NoReturn:
    """Be the child, from fork(2) to execve(2)."""
    step, code = _CHILD, errno.EINVAL
    try:
        gc.disable()  # a finalizer of the daemon's must not run here
        os.setsid()
        # Lifted first: in a daemon without a stdin of its own an end may itself be 0, 1 or 2.
        *lifted, told = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (*child_ends, told))
        for number, fd in enumerate(lifted):
            os.dup2(fd, number)
        _close_on_exec()
        os.umask(0o022)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        prepared.default_reserved_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        step = _USER
        if prepared.user is not None:
            os.setgroups(prepared.user.groups)
            os.setresgid(*[prepared.user.gid] * 3)
            os.setresuid(*[prepared.user.uid] * 3)
        step = _CHILD
        prepared.die_with_parent()  # after the user has changed, which clears it: prctl(2)
        step = _CWD
        os.chdir(prepared.cwd)
        step = _EXEC
        _exec(prepared)
    except OSError as error:
        code = error.errno or errno.EIO
    finally:
        try:
            os.write(told, _REPORT.pack(step, code))
        finally:
            os._exit(127)


def _close_on_exec() -> None:
    """Keep every descriptor but 0, 1 and 2 from the program."""
    try:
        inherited = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        inherited = list(range(os.sysconf("SC_OPEN_MAX")))
    for fd in inherited:
        if fd > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(fd, False)


def _exec(prepared: _Prepared) -> NoReturn:
    """Call execve(2) as execvp(3) does, but start no shell on ENOEXEC."""
    failure: OSError | None = None
    for path in prepared.paths:
        try:
            os.execve(path, prepared.argv, prepared.env)  # noqa: S606  # it is what we are for
        except PermissionError as error:
            failure = error
        except (FileNotFoundError, NotADirectoryError) as error:
            failure = failure or error
    raise failure or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
