"""Where contexts come in: a file or a directory, what appears there, and the claiming of it.

Invariant: every context that becomes visible is delivered or refused, once, and no file makes
another one wait: what is whole is delivered in the pass of the event loop that saw it, and what is
not whole yet waits in a task of its own. Idle means asleep: inotify(7) wakes it, and polling is for
places where that does not work.

Refuses to know what a context is for, how a file is taken (:mod:`agentd.claim`) and how a directory
is watched (:mod:`agentd.watch`).
"""

import contextlib
import dataclasses
import functools
import logging
import math
import os
from collections.abc import Awaitable, Callable, Iterable

import trio

from agentd.claim import EXHAUSTED, Claim, Unclaimable, sweep, take
from agentd.sansio.context import Context, ContextError, valid_id
from agentd.watch import DIRECTORY, Watch

POLL = 0.25
"""Seconds between two looks at the directory where inotify does not work."""

GLANCE = 0.01
"""Seconds between two looks at a file that is not whole yet."""

PATIENCE = 2.0
"""Seconds a claimed file has to become whole."""

REMEMBERED = 1024
"""Files that stay where they are and were reported; beyond it some are reported again."""

SUFFIX = ".json"

logger = logging.getLogger(__name__)


class Inbox:
    """The place that ``--context`` names.

    Args:
        path: the file to claim; with ``/`` at its end, a directory of ``<id>.json``.
        parse: makes a context of bytes, or raises ``ContextError``.
        deliver: takes the context and returns the run's id, or raises ``ContextError`` when that
            id is taken.
        room: how many more contexts may be delivered now.
        wait_room: returns when ``room`` is not 0.
        count: told ``claimed`` or ``refused``, for the metrics.
        poll: never use inotify, and look every so many seconds.
    """

    def __init__(
        self,
        path: str,
        *,
        parse: Callable[[bytes], Context],
        deliver: Callable[[Context], str],
        room: Callable[[], int],
        wait_room: Callable[[], Awaitable[None]],
        count: Callable[[str], None] = lambda _what: None,
        poll: float | None = None,
    ) -> None:
        self._where, self._name = os.path.split(path)
        self._directory = self._where or "."
        self._parse = parse
        self._deliver = deliver
        self._room = room
        self._wait_room = wait_room
        self._count = count
        self._inotify = poll is None
        self._poll = POLL if poll is None else poll
        self._in_flight = 0
        self._resting = False
        self._swept = False
        self._passed_over = trio.Event()
        self._reported: dict[str, object] = {}
        self._trouble = ""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Claim until cancelled. Once started, whatever is there or appears will be seen."""
        started = functools.cache(task_status.started)  # which may be called only once
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._claim_when_there_is_room)
            if self._inotify:
                await self._follow(started)
            while True:
                self._visit()
                started()
                await trio.sleep(self._poll)

    async def _follow(self, started: Callable[[], None]) -> None:
        """Claim what inotify shows; returns only where it does not work."""
        while True:
            try:
                watch = Watch(self._directory)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                self._complain(f"looking every {POLL} s: {os.strerror(error.errno or 0)}")
                return
            else:
                with contextlib.closing(watch):
                    problem = await watch.disproved()
                    if problem is not None:
                        self._complain(f"looking every {POLL} s: {problem}")
                        return
                    self._visit()
                    started()
                    await self._claim_what_appears(watch, POLL if watch.remote else math.inf)
            # It is not there yet, or no longer.
            self._visit()
            started()
            await trio.sleep(POLL)

    async def _claim_what_appears(self, watch: Watch, interval: float) -> None:
        """Return when the directory is no longer where it was."""
        while not (seen := watch.seen()).left:
            if seen.lost:
                self._visit()
            elif names := [name for name in seen.names if self._is_wanted(name)]:
                self._visit(names)
            with trio.move_on_after(interval) as asleep:
                await watch.wait()
            if asleep.cancelled_caught:
                self._visit()

    def _visit(self, names: Iterable[str] | None = None) -> None:
        """Claim ``names``, or what lies there, the oldest first.

        The directory is opened anew each time: it would say nothing of its removal (IN_DELETE_SELF,
        inotify(7)) as long as anybody had it open.
        """
        try:
            directory = os.open(self._directory, DIRECTORY)
            try:
                self._visit_opened(directory, names)
            finally:
                os.close(directory)
        except OSError as error:
            self._complain(f"cannot look into it: {os.strerror(error.errno or 0)}")
            if error.errno in EXHAUSTED:
                self._rest()

    def _visit_opened(self, directory: int, names: Iterable[str] | None) -> None:
        if not self._swept:
            self._swept = True
            sweep(directory)
        if names is None:
            names = self._listing(directory)
            known = self._reported
            self._reported = {name: known[name] for name in names if name in known}
        for name in names:
            if self._resting or self._room() <= self._in_flight:
                self._passed_over.set()
                break
            self._claim(directory, name)
        if not self._resting:
            self._trouble = ""

    def _listing(self, directory: int) -> list[str]:
        if self._name:
            return [self._name]
        found = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if self._is_wanted(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        written = entry.stat(follow_symlinks=False).st_mtime_ns
                        found.append((written, entry.name))
        return [name for _, name in sorted(found)]

    def _is_wanted(self, name: str) -> bool:
        if self._name:
            return name == self._name
        return name.endswith(SUFFIX) and not name.startswith(".")

    async def _claim_when_there_is_room(self) -> None:
        while True:
            await self._passed_over.wait()
            await self._wait_room()
            if self._resting or self._room() <= self._in_flight:
                await trio.sleep(GLANCE)  # claims in flight hold it, which look as often
                continue
            self._passed_over = trio.Event()
            self._visit()

    def _claim(self, directory: int, name: str) -> None:
        try:
            claim = take(directory, name)
        except Unclaimable as error:
            self._report_once(name, error)
        except ContextError as error:
            self._refuse(name, error)
        else:
            if claim is not None and not self._settle(name, claim):
                self._in_flight += 1
                self._nursery.start_soon(self._await_whole, name, claim)

    async def _await_whole(self, name: str, claim: Claim) -> None:
        try:
            with contextlib.closing(claim):
                with trio.move_on_after(PATIENCE):
                    while True:
                        await trio.sleep(GLANCE)
                        if self._settle(name, claim):
                            return
                if not self._settle(name, claim, last=True):
                    self._refuse(name, claim.problem)
        finally:
            self._in_flight -= 1

    def _settle(self, name: str, claim: Claim, *, last: bool = False) -> bool:
        """Deliver or refuse what was claimed, and say so; False: it is not whole yet."""
        try:
            context = claim.receive(self._parse, last=last)
            if context is None:
                return False
            run_id = self._deliver(self._named(name, context))
        except ContextError as error:
            self._refuse(name, error)
        else:
            self._count("claimed")
            logger.info("context claimed: %s", self._shown(name), extra={"run": run_id})
        claim.close()
        return True

    def _named(self, name: str, context: Context) -> Context:
        """Return the context with the id that its file's name gives it, where it has none."""
        if context.id is not None or self._name:
            return context
        stem = name.removesuffix(SUFFIX)
        if not valid_id(stem):
            raise ContextError("id: there is none, and the file's name cannot be one")
        return dataclasses.replace(context, id=stem)

    def _refuse(self, name: str, error: ContextError) -> None:
        self._count("refused")
        logger.warning("context refused: %s: %s", self._shown(name), error)

    def _report_once(self, name: str, error: Unclaimable) -> None:
        if self._reported.get(name) != error.identity:
            if len(self._reported) >= REMEMBERED:
                self._reported.clear()
            self._reported[name] = error.identity
            self._count("refused")
            logger.warning("context refused, left there: %s: %s", self._shown(name), error)

    def _rest(self) -> None:
        """Leave everything for a moment: descriptors or memory have run out."""
        if not self._resting:
            self._resting = True
            self._passed_over.set()
            self._nursery.start_soon(self._rise)

    async def _rise(self) -> None:
        await trio.sleep(POLL)
        self._resting = False

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            logger.warning("context directory %s: %s", self._directory, trouble)

    def _shown(self, name: str) -> str:
        return os.path.join(self._where, name)
