"""The processes of a run: which they are, wherever they have gone, and the end of them all.

Invariant: only descendants of the daemon are ever looked at, and of those only the ones that belong
to the run at hand are signalled. A process belongs to a run by the first of these that says so:

1. a living chain of parents leads to the run's leader;
2. its session is one the run has made: only descendants can be in it;
3. its environment names the run;
4. it started after the run, and every other run it could come from is being ended as well.

The last is for what left its session, its parents and its environment behind: it ends with the
last run that could have started it. A process can forge the third, and so put its end off to that
of another run, never past it.

Without /proc, or with that of another PID namespace, only the process group is killed.

Refuses to know who waits for the processes, and what a run is for.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from typing import NamedTuple

import trio

from agentd.procfs import Stat, family, named_run, readable

logger = logging.getLogger(__name__)

LIMIT = 3.0
"""Seconds without a new process in it after which a tree that does not end is given up: what is
left is inside the kernel, or not ours to kill."""

_HARD_LIMIT = 10.0  # seconds; a fork bomb can starve the daemon for longer than LIMIT
_PAUSE = 0.002  # seconds; what was killed needs the processor to go
_REMEMBERED = 100  # processes whose sessions are learned before SIGTERM; a bomb may have any number
_FREEZE_PASSES = 30  # a tree that still grows after so many is killed as far as it is known


class Look(NamedTuple):
    """What a look at the run's processes found.

    Attributes:
        found: the pids of those that live, parents first.
        dead: how many of its orphans were dead, and may have left a child no look has seen.
        unknown: how many orphans may be its, or another run's.
    """

    found: list[int]
    dead: int
    unknown: int


class Tree:
    """The processes of one run.

    Attributes:
        leader: pid of the process the run started; until it is reaped its number is no other's.
        run_id: what the run's processes find in AGENTD_RUN_ID.
        started: clock ticks since boot.
        ending: :meth:`kill` has begun.
        sessions: the session ids (setsid(2)) its processes were seen to have.
    """

    def __init__(self, leader: int, run_id: str) -> None:
        stat = Stat.read(leader)
        self.leader = leader
        self.run_id = run_id
        self.started = 0 if stat is None else stat.started
        self.ending = False
        self.sessions: set[int] = {leader}

    def signal_group(self, signum: int) -> None:
        """Send ``signum`` to the leader's process group, unless there is nobody, or nobody may."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.leader, signum)

    def owns(
        self,
        orphan: Stat,
        others: Iterable["Tree"],
        named: Callable[[int], str | None] = named_run,
    ) -> bool | None:
        """Whether a child of the daemon that is no leader belongs here: rules 2 to 4 above.

        Returns None when that is not known: it may be another run's as well.
        """
        if orphan.session == os.getsid(0):
            return False  # every run has left that session, and nobody can join one
        if orphan.session in self.sessions:
            return True
        others = list(others)
        if any(orphan.session in other.sessions for other in others):
            return False
        possible = [tree for tree in (self, *others) if tree.started <= orphan.started]
        if self not in possible:
            return False
        name = named(orphan.pid)
        for tree in possible:
            if tree.run_id == name:
                return tree is self
        return all(tree is self or tree.ending for tree in possible) or None

    def remember(self) -> None:
        """Learn which sessions the leader's descendants have made, while parents still tell."""
        if readable():
            descendants = islice(_walk([self.leader], family()), _REMEMBERED)
            self.sessions.update(stat.session for stat in descendants)

    def look(self, others: Iterable["Tree"], visit: Callable[[int], None]) -> Look:
        """Find the living processes of the run, and learn which sessions they have made.

        Args:
            others: the trees of all other runs whose leader has not been reaped.
            visit: is called with each process, at least once, as soon as it is found.
        """
        others = list(others)
        children = family()
        leaders = {self.leader, *(other.leader for other in others)}
        roots, dead, unknown = [self.leader], 0, 0
        for pid in children(os.getpid()):
            orphan = None if pid in leaders else Stat.read(pid)
            owned = False if orphan is None else self.owns(orphan, others)
            if orphan is None or owned is False:
                continue
            if owned is None:
                unknown += 1
            elif orphan.alive:
                visit(pid)
                roots.append(pid)
            else:
                dead += 1
        found = list(_walk(roots, children, visit))
        self.sessions.update(stat.session for stat in found)
        return Look([stat.pid for stat in found], dead, unknown)

    async def kill(self, others: Callable[[], Iterable["Tree"]], reap: Callable[[], None]) -> bool:
        """SIGKILL all of them; return whether they are gone, False once :data:`LIMIT` is reached.

        They are stopped before they are killed, until no look finds a new one: a tree that only
        loses members to SIGKILL can fork faster than it dies. Must not be cancelled half-way.

        Args:
            others: gives the trees of all other runs whose leader has not been reaped.
            reap: takes the status of every dead child of the daemon that is no leader.
        """
        self.ending = True
        if not readable():
            _warn_of_proc()
            self.signal_group(signal.SIGKILL)
            return True
        deadline = trio.current_time() + LIMIT
        hard_deadline = trio.current_time() + _HARD_LIMIT
        seen: set[int] = set()
        empty = False
        while trio.current_time() < min(deadline, hard_deadline):
            look = await self._freeze(others)
            if not seen.issuperset(look.found):
                seen.update(look.found)
                deadline = trio.current_time() + LIMIT
            self.signal_group(signal.SIGKILL)
            for pid in look.found:
                _send(pid, signal.SIGKILL)
            reap()
            # A process between two programs has no environment for a moment, and cannot be known:
            # so a second look at those, but no third.
            if not look.found and not look.dead and (empty or not look.unknown):
                return True
            empty = not look.found
            await trio.sleep(_PAUSE)
        return False

    async def _freeze(self, others: Callable[[], Iterable["Tree"]]) -> Look:
        """Stop them all, as far as that takes an end; return the last look."""
        stopped: set[int] = set()

        def stop(pid: int) -> None:
            if pid not in stopped:
                _send(pid, signal.SIGSTOP)
                stopped.add(pid)

        self.signal_group(signal.SIGSTOP)  # at once, those that have not left
        look = self.look(others(), stop)
        for _ in range(_FREEZE_PASSES):
            known = len(stopped)
            if not known:
                break
            await trio.lowlevel.checkpoint()
            look = self.look(others(), stop)
            if len(stopped) == known:
                break
        return look


def _walk(
    roots: list[int],
    children: Callable[[int], list[int]],
    visit: Callable[[int], None] = lambda _: None,
) -> Iterator[Stat]:
    pending, seen = list(roots), set[int]()
    while pending:
        pid = pending.pop()
        stat = None if pid in seen else Stat.read(pid)
        seen.add(pid)
        if stat is not None and stat.alive:
            visit(pid)
            pending += children(pid)
            yield stat


def _send(pid: int, signum: int) -> None:
    # EPERM: it has changed its user, and the daemon is not root.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)


@cache
def _warn_of_proc() -> None:
    logger.warning(
        "cannot read /proc of this PID namespace: of a run's processes only those that stay in its"
        " process group are ended"
    )
