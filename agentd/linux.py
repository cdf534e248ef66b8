"""The Linux calls Python has no name for: three prctl(2) options, inotify(7) and statfs(2)'s type.

Invariant: a call that fails raises ``OSError`` with the errno and says which call it was. libc is
looked up at the first call, because an idle ``agentd health`` needs none of this; whoever forks
asks for a prepared closure, so that nothing is imported or looked up between fork and exec.

Refuses to know what any of it is for.
"""

import os
import signal
import struct
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    import ctypes

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36

# include/uapi/linux/inotify.h
IN_CLOSE_WRITE = 0x00000008
IN_MOVED_TO = 0x00000080
IN_CREATE = 0x00000100
IN_DELETE_SELF = 0x00000400
IN_MOVE_SELF = 0x00000800
IN_UNMOUNT = 0x00002000
IN_Q_OVERFLOW = 0x00004000
IN_IGNORED = 0x00008000
IN_ONLYDIR = 0x01000000

# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
_RT_SIGACTION = {"x86_64": 13, "aarch64": 134}
_RESERVED = (32, 33)

EVENT = struct.Struct("=iIII")
"""``struct inotify_event`` without its name: wd, mask, cookie, len."""

READ_SIZE = 65536
"""Bytes asked of the inotify queue at once; one event takes at most 16 + 256 (inotify(7))."""


@cache
def _libc() -> "ctypes.PyDLL":
    import ctypes  # costs 4 ms, so it is paid by those who need it

    # PyDLL keeps the GIL: none of these calls blocks, and a forked child must not wait for a lock.
    return ctypes.PyDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    import ctypes

    result: int = getattr(_libc(), name)(*arguments)
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{name}: {os.strerror(errno)}")
    return result


def prctl(option: int, argument: int = 0) -> None:
    """Call prctl(2) with ``option`` and one number; raises ``OSError``."""
    import ctypes

    unused = ctypes.c_ulong(0)
    _call("prctl", ctypes.c_int(option), ctypes.c_ulong(argument), unused, unused, unused)


def set_child_subreaper() -> None:
    """Make orphaned descendants children of this process (PR_SET_CHILD_SUBREAPER)."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(dumpable: bool) -> None:
    """Say whether this process dumps core and opens its /proc files (PR_SET_DUMPABLE)."""
    prctl(PR_SET_DUMPABLE, int(dumpable))


def prctl_pdeathsig(signum: int = signal.SIGKILL) -> Callable[[], None]:
    """Return what a forked child calls before exec so that it dies with the forking thread.

    Prepared here and now: the closure makes one libc call and one getppid(2). A parent that was
    gone before the request counted (PR_SET_PDEATHSIG, prctl(2)) is noticed, and the child then
    sends ``signum`` to itself. The closure raises ``OSError`` when the kernel refuses.
    """
    import ctypes

    call = _libc().prctl
    get_errno = ctypes.get_errno
    option, number, unused = (
        ctypes.c_int(PR_SET_PDEATHSIG),
        ctypes.c_ulong(signum),
        ctypes.c_ulong(0),
    )
    parent = os.getpid()

    def die_with_parent() -> None:
        if call(option, number, unused, unused, unused) != 0:
            raise OSError(get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != parent:
            os.kill(os.getpid(), signum)

    return die_with_parent


def default_reserved_signals() -> Callable[[], None]:
    """Return what a forked child calls so that the signals libc keeps for itself are default too.

    libc refuses sigaction(2) for them (nptl(7)), but whoever started the daemon may have left one
    ignored, and then every program would inherit it. Where the system call has a number that is
    not known here, they stay as they are.
    """
    import ctypes

    number = _RT_SIGACTION.get(os.uname().machine)
    call = _libc().syscall
    default = bytes(32)  # struct sigaction of the kernel: SIG_DFL, no flags, no restorer, no mask
    calls = [
        (ctypes.c_long(number or 0), ctypes.c_int(each), default, None, ctypes.c_size_t(8))
        for each in _RESERVED
    ]

    def reset() -> None:
        if number is not None:
            for arguments in calls:
                call(*arguments)

    return reset


def filesystem_type(fd: int) -> int:
    """Return ``f_type`` of the file system ``fd`` lies on: 0x01021994 is tmpfs (fstatfs(2))."""
    import ctypes

    buffer = (ctypes.c_long * 64)()
    _call("fstatfs", ctypes.c_int(fd), ctypes.byref(buffer))
    return int(buffer[0]) & 0xFFFFFFFF


class Event(NamedTuple):
    """One inotify event: the watch it belongs to, its ``IN_*`` bits, and the name it is about."""

    wd: int
    mask: int
    name: bytes


class Inotify:
    """An inotify(7) queue. Never blocks: wait until :meth:`fileno` is readable."""

    def __init__(self) -> None:
        """Open the queue; raises ``OSError`` (EMFILE: fs.inotify.max_user_instances is reached)."""
        self._fd = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def add_watch(self, path: str | bytes, mask: int) -> int:
        """Watch ``path`` for the ``IN_*`` bits of ``mask`` and return the watch's number.

        Raises ``OSError`` (ENOENT, ENOTDIR, ENOSPC: fs.inotify.max_user_watches is reached, ...).
        """
        import ctypes

        name = ctypes.c_char_p(os.fsencode(path))
        return _call("inotify_add_watch", self._fd, name, ctypes.c_uint32(mask))

    def read(self) -> list[Event]:
        """Return the events that are there, at most one buffer of them, or none."""
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return []
        events = []
        offset = 0
        while offset < len(data):
            wd, mask, _cookie, length = EVENT.unpack_from(data, offset)
            offset += EVENT.size
            events.append(Event(wd, mask, data[offset : offset + length].rstrip(b"\0")))
            offset += length
        return events

    def close(self) -> None:
        """Close the queue; closing again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
