"""The runs that exist: contexts that wait for a client, clients that wait for a context, and the
runs the two became.

One context makes at most one run and one run has at most one client. Contexts are served oldest
first, clients in the order they came. Nothing here knows a socket or a token.
"""

import logging
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from agentd import AgentdError
from agentd.barrier import barrier
from agentd.metrics import Metrics
from agentd.relay import Sink
from agentd.run import Run
from agentd.sansio.context import Context, ContextError
from agentd.sansio.lifecycle import Outcome

logger = logging.getLogger("agentd.runs")

CAPACITY = 64
"""Contexts that may wait in memory; further files stay unclaimed."""
REMEMBERED = 60.0
"""Seconds for which the id of an ended run is not taken again."""


class NoRun(AgentdError):
    """A client cannot have the run it asked for.

    Attributes:
        status: the HTTP status that says why (CONTRACT section 3): 404, 409 or 503.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(slots=True)
class _Waiting:
    run_id: str
    context: Context
    expires: float


class _Seeker:
    """A client that waits for its context."""

    def __init__(self, wanted: str | None) -> None:
        self.wanted = wanted
        self.answered = trio.Event()
        self.run: Run | None = None
        self.refusal: NoRun | None = None

    def give(self, answer: Run | NoRun) -> None:
        if isinstance(answer, NoRun):
            self.refusal = answer
        else:
            self.run = answer
        self.answered.set()


class Runs:
    """Contexts, clients and runs.

    Args:
        make_run: makes a run of the given id.
        max_runs: how many may live at once; ones that are stopping count.
        context_wait: seconds a client waits for its context.
        context_ttl: seconds a context waits for its client.
        metrics: told of contexts that expire.
    """

    def __init__(
        self,
        make_run: Callable[[str], Run],
        *,
        max_runs: int,
        context_wait: float,
        context_ttl: float,
        metrics: Metrics,
    ) -> None:
        self.live: dict[str, Run] = {}
        self._make_run = make_run
        self._max_runs = max_runs
        self._context_wait = context_wait
        self._context_ttl = context_ttl
        self._metrics = metrics
        self._waiting: dict[str, _Waiting] = {}
        self._begun: dict[str, _Waiting] = {}
        self._ended: dict[str, float] = {}
        self._seekers: deque[_Seeker] = deque()
        self._added = trio.Event()
        self._changed = trio.Event()
        self._draining = False

    # Contexts.

    @property
    def waiting(self) -> int:
        """How many contexts wait for a client."""
        return len(self._waiting)

    def room(self) -> int:
        """Return how many more contexts may be claimed."""
        return 0 if self._draining else CAPACITY - len(self._waiting)

    async def wait_room(self) -> None:
        """Wait until :meth:`room` is more than 0."""
        while self.room() <= 0:
            await self._changed.wait()

    def add(self, context: Context) -> str:
        """Take a claimed context and return its run's id; who waits for it longest gets it.

        Raises:
            ContextError: its id is waiting, live, or ended less than a minute ago.
        """
        run_id = context.id or secrets.token_hex(8)
        if self._is_taken(run_id):
            raise ContextError("id: a run of this id is waiting, live, or has just ended")
        self._place(_Waiting(run_id, context, trio.current_time() + self._context_ttl))
        return run_id

    def _place(self, waiting: _Waiting) -> None:
        unanswered = [seeker for seeker in self._seekers if not seeker.answered.is_set()]
        # Who asked for this very run comes before who would take any.
        for wanted in (waiting.run_id, None):
            for seeker in unanswered:
                if seeker.wanted == wanted:
                    if not self.full:
                        seeker.give(self._begin(waiting))
                        return
                    seeker.give(_full())
        self._waiting[waiting.run_id] = waiting
        self._added.set()

    def _is_taken(self, run_id: str) -> bool:
        forgotten = trio.current_time() - REMEMBERED
        while self._ended and next(iter(self._ended.values())) <= forgotten:
            del self._ended[next(iter(self._ended))]
        return run_id in self._waiting or run_id in self.live or run_id in self._ended

    async def expire(self) -> None:
        """Drop each context whose client has not come in time; runs for the daemon's life."""
        while True:
            while self._waiting:
                oldest = min(self._waiting.values(), key=lambda waiting: waiting.expires)
                await trio.sleep_until(oldest.expires)
                self._expire_due(trio.current_time())
            self._added = trio.Event()
            await self._added.wait()

    def _expire_due(self, now: float) -> None:
        for run_id in [id_ for id_, waiting in self._waiting.items() if waiting.expires <= now]:
            del self._waiting[run_id]
            self._metrics.context("expired")
            logger.warning("context expired: no client came for it", extra={"run": run_id})
        self._notify()

    # Clients.

    @property
    def full(self) -> bool:
        """Whether a new run would be one too many."""
        return len(self.live) >= self._max_runs

    async def claim(self, wanted: str | None) -> Run:
        """Return the run of the context that a client asks for, waiting for the context if need be.

        The run counts as live from now on: :meth:`start` it or :meth:`give_back` its context.

        Args:
            wanted: the run's id, or None for the oldest context without a client.

        Raises:
            NoRun: there is no such context in time, the run has its client or has ended, or the
                daemon is full or draining.
        """
        self._refuse_early(wanted)
        found = next((each for id_, each in self._waiting.items() if wanted in (None, id_)), None)
        if found is not None:
            return self._begin(found)
        seeker = _Seeker(wanted)
        self._seekers.append(seeker)
        try:
            with trio.move_on_after(self._context_wait):
                await seeker.answered.wait()
        except trio.Cancelled:
            if seeker.run is not None:
                self.give_back(seeker.run)
            raise
        finally:
            self._seekers.remove(seeker)
        if seeker.run is not None:
            return seeker.run
        raise seeker.refusal or NoRun(404, "no context")

    def _refuse_early(self, wanted: str | None) -> None:
        if self._draining:
            raise NoRun(503, "draining")
        if wanted is not None and wanted not in self._waiting and self._is_taken(wanted):
            raise NoRun(409, "the run has a client, or has ended")
        if self.full:
            raise _full()

    def _begin(self, waiting: _Waiting) -> Run:
        run = self._make_run(waiting.run_id)
        self._waiting.pop(run.id, None)
        self._begun[run.id] = waiting
        self.live[run.id] = run
        self._notify()
        return run

    def give_back(self, run: Run) -> None:
        """Let the context of a run that was not started wait again: its client did not stay."""
        waiting = self._begun.pop(run.id)
        del self.live[run.id]
        if not self._draining:
            self._place(waiting)
            if run.id in self._waiting:
                # Still the oldest: it was given out before those that wait.
                self._waiting = {run.id: waiting} | self._waiting
        self._notify()

    async def supervise(self, run: Run, sink: Sink, *, records: bool) -> None:
        """See a claimed run through to its end; what goes wrong in it stays in it."""
        context = self._begun.pop(run.id).context
        try:
            with barrier(logger, f"run {run.id}"):
                await run.supervise(context, sink, records=records)
        finally:
            del self.live[run.id]
            self._ended[run.id] = trio.current_time()
            run.finished.set()
            self._notify()

    # The end.

    def drain(self) -> None:
        """Take no more contexts and clients, and stop every run."""
        self._draining = True
        for seeker in self._seekers:
            if not seeker.answered.is_set():
                seeker.give(NoRun(503, "draining"))
        for run_id in self._waiting:
            logger.warning("context dropped: shutting down", extra={"run": run_id})
        self._waiting.clear()
        for run in self.live.values():
            run.stop(Outcome.SHUTDOWN)

    def hurry(self) -> None:
        """Give the runs that are stopping no more time."""
        for run in self.live.values():
            run.hurry()

    async def wait_none_live(self) -> None:
        """Wait until every run has ended."""
        while self.live:
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _full() -> NoRun:
    return NoRun(503, "as many runs as may live at once are there")
