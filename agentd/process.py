"""The daemon's children: spawned, waited for, stopped, and ended with everything they left behind.

Invariant: the status of a child this room started is taken by this room alone, and only when its
whole tree is gone. Until then the dead leader stays a zombie, so that its pid, which is the number
of its process group and session, is nobody else's while it is signalled. Orphans never become
zombies.

Refuses to know what a child prints, who listens, and why it is to stop.
"""

import contextlib
import logging
import os
import signal
import time
from dataclasses import replace
from typing import NamedTuple

import trio

from agentd import linux
from agentd.procfs import family, readable
from agentd.sansio.lifecycle import signal_name
from agentd.spawn import Command, Started, spawn
from agentd.tree import LIMIT, Tree

logger = logging.getLogger(__name__)

_POLL = 0.05  # seconds between looks at a child where the kernel gives no pidfd


class Exit(NamedTuple):
    """How a process ended: its exit code, or the name of the signal that killed it."""

    code: int | None
    signal: str | None


class Children:
    """Every child of the daemon. There is one in a process, and nothing else there may fork."""

    def __init__(self) -> None:
        """Make this process a subreaper (PR_SET_CHILD_SUBREAPER, prctl(2)).

        Where the kernel refuses, one warning says that processes may escape their run.
        """
        self._processes: dict[int, Process] = {}
        self.deaths = trio.lowlevel.ParkingLot()
        try:
            linux.set_child_subreaper()
        except OSError as error:
            logger.warning("cannot become a subreaper, so processes can leave their run: %s", error)
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            # Inherited; the kernel would throw every exit status away: waitpid(2), NOTES.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def spawn(self, command: Command, run_id: str) -> "Process":
        """Start ``command`` with AGENTD_RUN_ID=``run_id`` in its environment, by which to find it.

        Synchronous, about 5 ms, in the main thread only. The process must be ended with
        :meth:`Process.kill_tree` and :meth:`Process.close`, however it goes.
        Raises :class:`agentd.spawn.SpawnError`.
        """
        named = replace(command, env={**command.env, "AGENTD_RUN_ID": run_id})
        process = Process(spawn(named), run_id, self)
        self._processes[process.pid] = process
        return process

    def __contains__(self, process: "Process") -> bool:
        """Whether ``process`` has not been collected, so that its pid is still its own."""
        return self._processes.get(process.pid) is process

    async def reap_orphans(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Reap, for ever, what is orphaned to this process; started once SIGCHLD is received."""
        with trio.open_signal_receiver(signal.SIGCHLD) as signals:
            self.reap()
            task_status.started()
            async for _ in signals:
                self.reap()
                self.deaths.unpark_all()

    def reap(self) -> None:
        """Take the status of every dead child that is not one of ours."""
        with contextlib.suppress(ChildProcessError):
            while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                process = self._processes.get(dead.si_pid)
                if process is None:
                    _take(dead.si_pid)
                elif process.abandoned:
                    self.collect(process)
                else:
                    # It stays, and hides from this call those that died after it.
                    self._reap_one_by_one()
                    return

    def _reap_one_by_one(self) -> None:
        if readable():
            for pid in family()(os.getpid()):
                if pid not in self._processes:
                    _take(pid)

    def trees(self, *, but: Tree) -> list[Tree]:
        """Return the trees of all processes not yet collected, but that one."""
        return [process.tree for process in self._processes.values() if process.tree is not but]

    def collect(self, process: "Process") -> bool:
        """Reap ``process`` if it has exited, and let its pid go; return whether that was so."""
        if process in self and process.poll() is not None:
            del self._processes[process.pid]
            _take(process.pid)
        return process not in self


class Process:
    """A child of the daemon, the leader of its own session and process group.

    Attributes:
        pid: also the id of its process group and session.
        run_id: what it and its descendants have in AGENTD_RUN_ID.
        started: when it was started, on the clock of ``time.monotonic()``.
        stdin: the write end of its stdin, or None: it has none, or it was closed.
        stdout: the read end of its stdout. A terminal's end is EIO (pty(7)), not an empty read.
        stderr: the read end of its stderr, or None when that goes elsewhere.
        tree: its descendants.
        abandoned: it outlived its :meth:`kill_tree`.

    The descriptors are non-blocking and are closed by :meth:`close` alone.
    """

    def __init__(self, started: Started, run_id: str, children: Children) -> None:
        self.pid = started.pid
        self.run_id = run_id
        self.started = time.monotonic()
        self.stdin = started.stdin
        self.stdout = started.stdout
        self.stderr = started.stderr
        self.tree = Tree(started.pid, run_id)
        self.abandoned = False
        self._open = {fd for fd in started[1:] if fd is not None}
        self._children = children
        self._exit: Exit | None = None
        self._told_to_stop = False
        self._killing = trio.Lock()

    def poll(self) -> Exit | None:
        """Return how it ended, or None while it runs. Its status stays for others to be asked."""
        if self._exit is None:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                exited = ended.si_code == os.CLD_EXITED
                status = ended.si_status
                self._exit = Exit(status, None) if exited else Exit(None, signal_name(status))
        return self._exit

    async def wait_exited(self) -> Exit:
        """Wait until it has exited; by any number of tasks, at any time."""
        await trio.lowlevel.checkpoint()
        while (ended := self.poll()) is None:
            try:
                pidfd = os.pidfd_open(self.pid)
            except OSError:  # no such call, not permitted (seccomp), or no descriptor left
                with trio.move_on_after(_POLL):
                    await self._children.deaths.park()
            else:
                try:
                    await trio.lowlevel.wait_readable(pidfd)
                finally:
                    os.close(pidfd)
        return ended

    def signal(self, signum: int) -> None:
        """Send ``signum`` to its process group; to one that is gone, nothing."""
        if self in self._children:
            self.tree.signal_group(signum)

    async def stop(self, grace: float) -> None:
        """SIGTERM to the process group, SIGKILL to it ``grace`` seconds later; wait for the exit.

        Several may ask at once: the shortest grace counts, the first SIGTERM is the only one. What
        left the group is :meth:`kill_tree`'s.
        """
        if not self._told_to_stop:
            self._told_to_stop = True
            self.tree.remember()
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)  # so that a stopped process acts on it: systemd.kill(5)
        with trio.move_on_after(grace):
            await self.wait_exited()
            return
        self.signal(signal.SIGKILL)
        await self.wait_exited()

    async def kill_tree(self) -> None:
        """SIGKILL it and every descendant, wherever they went, and let its pid go.

        Shielded from cancellation; returns when they are gone, or with an error in the log once
        :data:`agentd.tree.LIMIT` is reached. Calling it again waits for the first call, no more.
        """
        with trio.CancelScope(shield=True):
            async with self._killing:
                if self.abandoned or self not in self._children:
                    return
                gone = await self.tree.kill(
                    lambda: self._children.trees(but=self.tree), self._children.reap
                )
                with trio.move_on_after(LIMIT if gone else 0):
                    await self.wait_exited()
                self.abandoned = not self._children.collect(self)
                self._children.reap()  # what had died behind the leader's back
                if self.abandoned or not gone:
                    logger.error("cannot end every process of the run", extra={"run": self.run_id})

    def close_stdin(self) -> None:
        """Close our end of its stdin, so that it reads EOF; whoever waits to write is told."""
        stdin, self.stdin = self.stdin, None
        if stdin is not None:
            self._close(stdin)

    def close(self) -> None:
        """Close our ends of its streams; tasks waiting on them get ``trio.ClosedResourceError``."""
        self.stdin = None
        for fd in list(self._open):
            self._close(fd)

    def _close(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            trio.lowlevel.notify_closing(fd)
            os.close(fd)


def _take(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
