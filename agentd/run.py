"""One run: one context, one process tree, one stream of lines, one end.

:meth:`Run.supervise` is the whole story from spawn to end record, in the order of the table in
:mod:`agentd.sansio.lifecycle`. The run knows its client only as a sink for frames; who may be that
client, and what it sends, is decided elsewhere.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from agentd.metrics import Metrics
from agentd.output import Output
from agentd.process import Children, Process
from agentd.relay import Sink
from agentd.sansio.context import Context
from agentd.sansio.environ import child_environ
from agentd.sansio.lifecycle import End, Event, Outcome, State, advance, outcome
from agentd.settings import ChildSettings, StreamSettings
from agentd.spawn import Command, SpawnError, User
from agentd.stdin import StdinFeed

logger = logging.getLogger("agentd.run")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a hello says of the daemon: its start, its build and its image."""

    boot: str
    build: str
    image: str | None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How every run of this daemon is made."""

    child: ChildSettings
    stream: StreamSettings
    user: User | None
    environ: Mapping[str, str]
    identity: Identity


class Run:
    """A run, from its client's arrival to its end. It never keeps its context.

    Attributes:
        state: where in :data:`agentd.sansio.lifecycle.TRANSITIONS` it is.
        stdin: takes what the client sends for the child.
        finished: set when its tree is gone and its end was told.
        end: what the end record says, once finished; None if agentd failed.
    """

    def __init__(
        self, run_id: str, *, children: Children, recipe: Recipe, metrics: Metrics
    ) -> None:
        self.id = run_id
        self.state = State.WAITING
        self.stdin = StdinFeed()
        self.finished = trio.Event()
        self.end: End | None = None
        self._children = children
        self._recipe = recipe
        self._metrics = metrics
        self._process: Process | None = None
        self._stop: Outcome | None = None
        self._stopping = trio.Event()
        self._hurry = trio.Event()

    def stop(self, why: Outcome) -> None:
        """Ask the run to end. The first reason is the one that is told."""
        if self._stop is None and self.state not in (State.DRAINING, State.ENDED):
            self._stop = why
        self._stopping.set()

    def hurry(self) -> None:
        """Let a stop wait for nothing more: SIGKILL now."""
        self._hurry.set()

    def signal(self, number: int) -> None:
        """Send a signal to the process group; to a process that has ended, nothing."""
        if self._process is not None and self.state in (State.RUNNING, State.STOPPING):
            self._process.signal(number)

    async def supervise(self, context: Context, sink: Sink, *, records: bool) -> None:
        """Run the command and relay it to ``sink``, up to and with the end record.

        Args:
            context: what the control plane wrote.
            sink: the client's wire.
            records: agentd.v1, else raw.
        """
        started = trio.current_time()
        output = Output(
            self.id,
            sink,
            records=records,
            stream=self._recipe.stream,
            send_stderr=self._recipe.child.stderr == "send",
        )
        identity = self._recipe.identity
        output.hello(boot=identity.boot, build=identity.build, image=identity.image)
        self._enter(Event.CONNECTED)
        status: tuple[int | None, str | None] = (None, None)
        error: str | None = None
        try:
            self._process = self._children.spawn(self._command(context), self.id)
        except SpawnError as refused:
            error = refused.kind
            logger.warning("%s", refused, extra={"run": self.id})
            self._enter(Event.SPAWN_FAILED)
        else:
            self._enter(Event.SPAWNED)
            logger.info("run started", extra={"run": self.id, "pid": self._process.pid})
            status = await self._see_through(self._process, context, output)
            self._enter(Event.DRAINED)
        self.end = output.end(
            Outcome.SPAWN_FAILED if error else outcome(self._stop, *status),
            exit_code=status[0],
            signal=status[1],
            error=error,
            seconds=trio.current_time() - started,
        )
        self._count(self.end, output)

    async def _see_through(
        self, process: Process, context: Context, output: Output
    ) -> tuple[int | None, str | None]:
        """Relay a process, feed it, stop it when asked; return its status when its tree is gone."""
        child = self._recipe.child
        relay = output.relay(process)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay.run)
                nursery.start_soon(self._feed_stdin, process, context)
                nursery.start_soon(self._stop_when_asked, process)
                nursery.start_soon(self._time_out, context.timeout or child.timeout)
                nursery.start_soon(output.beat, relay, self._recipe.stream.ping)
                status = await process.wait_exited()
                self._enter(Event.EXITED)
                await relay.drain(child.drain)
                # The leader is gone and its last lines are read: what is left of its tree goes, as
                # a container's does when its first process exits.
                await process.kill_tree()
                await relay.wait_finished()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await process.kill_tree()
            process.close()
        return status.code, status.signal

    def _command(self, context: Context) -> Command:
        child, user = self._recipe.child, self._recipe.user
        env = child_environ(
            self._recipe.environ,
            pass_env=child.pass_env,
            context_env=context.env,
            run_id=self.id,
            home=user.home if user else None,
            user=user.name if user else None,
            shell=user.shell if user else None,
        )
        return Command(
            argv=(*child.command, *context.args),
            env=env,
            cwd=context.cwd or child.cwd,
            user=user,
            pty=child.pty,
            stdin=child.stdin != "none",
            stderr=child.stderr if child.stderr in ("merge", "drop") else "pipe",
        )

    async def _feed_stdin(self, process: Process, context: Context) -> None:
        if process.stdin is None:
            return
        source = self._recipe.child.stdin
        feed = self.stdin
        if source != "client":
            data = context.document if source == "context" else context.prompt.encode()
            feed = StdinFeed(capacity=len(data))
            feed.send_nowait(data)
            feed.send_eof_nowait()
        await feed.write_all(process.stdin)
        process.close_stdin()

    async def _stop_when_asked(self, process: Process) -> None:
        await self._stopping.wait()
        if self.state is State.RUNNING:
            self._enter(Event.STOPPED)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.stop, self._recipe.child.grace)
                await self._hurry.wait()
                nursery.start_soon(process.stop, 0)

    async def _time_out(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self.stop(Outcome.TIMED_OUT)

    def _enter(self, event: Event) -> None:
        self.state = advance(self.state, event)
        logger.debug("run is %s", self.state.value, extra={"run": self.id})

    def _count(self, end: End, output: Output) -> None:
        self._metrics.run_ended(end.outcome.value)
        self._metrics.relayed("stdout", output.stdout.lines, output.stdout.size)
        self._metrics.relayed("stderr", output.stderr.lines, output.stderr.size)
        told = {
            "run": self.id,
            "outcome": end.outcome.value,
            "exit_code": end.exit_code,
            "signal": end.signal,
            "seconds": end.seconds,
            "lines": end.stdout_lines,
        }
        logger.info("run ended", extra={key: told[key] for key in told if told[key] is not None})
