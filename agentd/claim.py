"""Taking one context file: by its name out of its directory, then by its descriptor.

Invariant: a file is claimed at most once, and nobody else's file is removed in its place. rename(2)
to a name of our own decides who has it, among any number of claimers and writers; it is opened and
checked under that name, unlinked, and its link count of 0 shows that no other name leads to it.
Only then is the first byte read. What cannot be removed is never read.

Refuses to know when to look, and what a context means.
"""

import contextlib
import errno
import fcntl
import os
import signal
import stat
from collections.abc import Callable
from typing import Self

from agentd import AgentdError
from agentd.sansio.context import MAX_SIZE, Context, ContextError, IncompleteContext

PREFIX = ".agentd-claim-"
"""How a file is called between rename and unlink."""

OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Failures that are about this machine now, not about the file (open(2))."""

TOO_LARGE = f"larger than {MAX_SIZE} bytes"

KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Parse = Callable[[bytes], Context]


class Unclaimable(AgentdError):
    """It cannot be removed, so it stays there and is not run.

    Attributes:
        identity: what stays the same as long as the same file lies there unchanged.
    """

    def __init__(self, reason: str, found: os.stat_result) -> None:
        super().__init__(reason)
        self.identity = (found.st_dev, found.st_ino, found.st_ctime_ns)


def private_name() -> str:
    """Return a name nobody else uses; it starts with a dot, so no inbox takes it for a context."""
    return PREFIX + os.urandom(8).hex()


def take(directory: int, name: str) -> "Claim | None":
    """Take the file ``name`` out of ``directory`` (a descriptor): checked, unlinked, unread.

    Returns:
        The claim, or None when there is nothing of this name.

    Raises:
        ContextError: it is a bad file; it is gone.
        Unclaimable: it cannot be removed; it is still there.
        OSError: descriptors or memory have run out; it is still there and may be good.
    """
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise Unclaimable("a directory", found)
    own = private_name()
    try:
        os.rename(name, own, src_dir_fd=directory, dst_dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unclaimable(f"cannot be removed: {os.strerror(error.errno or 0)}", found) from None
    with contextlib.ExitStack() as stack:
        claim = stack.enter_context(Claim(_open(directory, own, name)))
        reason = claim.distrusted()
        _unlink(directory, own, name)
        reason = reason or claim.still_linked()
        if reason is not None:
            raise ContextError(reason)
        stack.pop_all()
    return claim


def _open(directory: int, own: str, name: str) -> int:
    try:
        return os.open(own, OPEN, dir_fd=directory)
    except OSError as error:
        if error.errno in EXHAUSTED:
            os.rename(own, name, src_dir_fd=directory, dst_dir_fd=directory)
            raise
        problem = os.strerror(error.errno or 0)
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(own, dir_fd=directory, follow_symlinks=False).st_mode
        problem = KINDS.get(stat.S_IFMT(mode), f"cannot be opened: {problem}")
        _unlink(directory, own, name)
    raise ContextError(problem)


def _unlink(directory: int, own: str, name: str) -> None:
    try:
        os.unlink(own, dir_fd=directory)
    except FileNotFoundError:
        pass  # somebody unlinked it before us, or moved it: the link count tells
    except OSError as error:
        # Only a directory gets here, one that took the file's place after we looked.
        found = os.stat(own, dir_fd=directory, follow_symlinks=False)
        os.rename(own, name, src_dir_fd=directory, dst_dir_fd=directory)
        raise Unclaimable(f"cannot be removed: {os.strerror(error.errno or 0)}", found) from None


def sweep(directory: int) -> None:
    """Unlink what a daemon that was killed between rename and unlink has left in ``directory``."""
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            if name.startswith(PREFIX):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=directory)


class Claim:
    """A file without a name, and what has been read of it. Only the claimer can still see it.

    Attributes:
        problem: why there is no context yet.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._seen: tuple[bool | None, int, int] | None = None
        self.problem = ContextError("nothing has been read of it")

    def distrusted(self) -> str | None:
        """Return why the file is no context, from its fstat(2), or None when it may be one."""
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            return KINDS.get(stat.S_IFMT(found.st_mode), "not a regular file")
        if found.st_nlink != 1:
            return "has more than one link"
        if found.st_uid not in (0, os.geteuid()):
            return "its owner is neither root nor agentd's user"
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return "others than its owner may write to it"
        if found.st_size > MAX_SIZE:
            return TOO_LARGE
        return None

    def still_linked(self) -> str | None:
        """Return what is wrong when a name leads to the file although it was unlinked."""
        return "got another link while it was claimed" if os.fstat(self._fd).st_nlink else None

    def receive(self, parse: Parse, *, last: bool = False) -> Context | None:
        """Return the context, or None while it may still be on its way.

        Args:
            parse: makes a context of bytes, or raises ``ContextError``.
            last: look closely even where nothing seems to have changed.

        Raises:
            ContextError: it is bad, and waiting would not help.
        """
        writer = has_writer(self._fd)
        found = os.fstat(self._fd)
        if found.st_size > MAX_SIZE:
            raise ContextError(TOO_LARGE)
        seen = (writer, found.st_size, found.st_mtime_ns)
        if seen == self._seen and not last:
            return None
        self._seen = seen
        if writer:
            self.problem = ContextError("its writer has not closed it")
            return None
        try:
            return parse(self._read())
        except ContextError as error:
            # A writer may create, then open for writing: a whole wrong document is final, a part
            # is not; and where the kernel does not tell us of writers, neither is.
            if writer is False and not isinstance(error, IncompleteContext):
                raise
            self.problem = error
            return None

    def _read(self) -> bytes:
        data = b""
        while len(data) <= MAX_SIZE:
            try:
                more = os.pread(self._fd, MAX_SIZE + 1 - len(data), len(data))
            except OSError as error:
                reason = f"cannot be read: {os.strerror(error.errno or 0)}"
                raise ContextError(reason) from None
            if not more:
                break
            data += more
        return data

    def close(self) -> None:
        """Let go of the file, and so of its bytes; again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def has_writer(fd: int) -> bool | None:
    """Say whether anybody has the file of ``fd`` open for writing; None: the kernel does not tell.

    A read lease (F_SETLEASE in fcntl(2)) is granted only where nobody has, to the file's owner or
    with CAP_LEASE, on local file systems. It is given back at once.
    """
    try:
        # Whoever opens it for writing meanwhile sends us a signal: SIGIO would end the daemon.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
