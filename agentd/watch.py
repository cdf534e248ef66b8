"""A directory that says when something appears in it: inotify(7), shown to work there.

Invariant: after :meth:`Watch.disproved` has found nothing, and until something ``left``, nothing
appears unseen; where events were lost, ``lost`` says so. What inotify cannot tell: a mount over the
directory, a symbolic link on the way to it that leads elsewhere now, and its removal while somebody
has it open.

Refuses to know which names matter.
"""

import dataclasses
import os

import trio

from agentd import linux
from agentd.claim import private_name

APPEARS = linux.IN_CREATE | linux.IN_CLOSE_WRITE | linux.IN_MOVED_TO
LEAVES = linux.IN_DELETE_SELF | linux.IN_MOVE_SELF | linux.IN_UNMOUNT | linux.IN_IGNORED
WATCHED = APPEARS | linux.IN_DELETE_SELF | linux.IN_MOVE_SELF | linux.IN_ONLYDIR

REMOTE = {
    0x6969: "NFS",
    0x01021997: "9p",
    0x65735546: "FUSE or virtiofs",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
}
"""File systems (statfs(2)) where another machine may write, and inotify does not see it do so."""

PROOF = 0.25
"""Seconds the event of the self-test may take."""

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclasses.dataclass(slots=True)
class Seen:
    """What was seen at once: names in the order they appeared, each once.

    Attributes:
        lost: there were more than the queue could hold (IN_Q_OVERFLOW).
        left: the directory is not where it was; look for it anew.
    """

    names: dict[str, None] = dataclasses.field(default_factory=dict)
    lost: bool = False
    left: bool = False


class Watch:
    """A watched directory.

    Attributes:
        remote: things may appear without an event, so that polling must help.
    """

    def __init__(self, path: str) -> None:
        """Watch ``path``; raises ``OSError``, ENOENT or ENOTDIR when it is not there."""
        self._path = path
        self.remote = False
        self._left = False
        self._inotify = linux.Inotify()
        try:
            self._inotify.add_watch(path, WATCHED)
        except OSError:
            self._inotify.close()
            raise

    def close(self) -> None:
        """Stop watching."""
        self._inotify.close()

    async def disproved(self) -> str | None:
        """Return why events cannot be relied on here, or None after one has been seen to come.

        Or after the directory has left, which the next look tells.
        """
        name = private_name()
        mode = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        try:
            directory = os.open(self._path, DIRECTORY)
            try:
                self.remote = linux.filesystem_type(directory) in REMOTE
                os.close(os.open(name, mode, 0o600, dir_fd=directory))
                os.unlink(name, dir_fd=directory)
            finally:
                os.close(directory)
        except (FileNotFoundError, NotADirectoryError):
            self._left = True
            return None
        except OSError as error:
            return f"the self-test: {os.strerror(error.errno or 0)}"
        with trio.move_on_after(PROOF):
            while True:
                seen = self.seen()
                if name in seen.names or seen.lost or seen.left:
                    return None
                await self.wait()
        return "the self-test: no event came"

    async def wait(self) -> None:
        """Sleep until something is to be seen."""
        await trio.lowlevel.wait_readable(self._inotify)

    def seen(self) -> Seen:
        """Return what has appeared since the last look."""
        seen = Seen(left=self._left)
        for event in self._inotify.read():
            if event.mask & LEAVES:
                seen.left = self._left = True
            elif event.mask & linux.IN_Q_OVERFLOW:
                seen.lost = True
            else:
                seen.names[os.fsdecode(event.name)] = None
        return seen
