"""The one nursery tree: what is started, in which order, and in which order it ends.

    reaper, context expiry ......... for the daemon's whole life
    listeners, connections ......... answer "starting" at once, runs once it is ready
    inbox .......................... until SIGTERM
    runs ........................... each until its end; a run is no part of a connection

SIGTERM (or SIGINT): not ready, nothing new, every run is stopped, each client is told, exit 0; a
second one skips the grace. SIGHUP reads the keys again.
"""

import logging
import os
import resource
import secrets
import signal
from collections.abc import AsyncIterator, Mapping
from functools import partial

import trio

from agentd import AgentdError, build, linux, listeners, probe
from agentd.address import Address
from agentd.inbox import Inbox
from agentd.keys import KeyRing
from agentd.metrics import Metrics
from agentd.notify import Notifier, passed_sockets
from agentd.process import Children
from agentd.run import Identity, Recipe, Run
from agentd.runs import Runs
from agentd.sansio.admission import Gate
from agentd.sansio.context import parse_context
from agentd.sansio.lifecycle import Phase
from agentd.sansio.tokens import TokenPolicy
from agentd.sansio.used import UsedTokens
from agentd.server import Endpoint, Status, accept_connections
from agentd.settings import AuthSettings, ServeSettings
from agentd.spawn import User, find_user

logger = logging.getLogger("agentd.daemon")

_LAST_WORDS = 0.7
"""Seconds beyond the grace in which a stopping daemon still tells its clients; then it exits."""


class AlreadyRunning(AgentdError):
    """A healthy agentd of the same protocol serves the address.

    Attributes:
        exit_status: 0, or 75 with ``--if-running fail`` (sysexits.h, EX_TEMPFAIL).
    """

    def __init__(self, address: Address, if_running: str) -> None:
        super().__init__(f"a healthy agentd serves {address} already")
        self.exit_status = 75 if if_running == "fail" else 0


class _EarlySignals:
    """What was told to stop before Trio listened for it; SIGHUP finds the keys read already.

    A process that is PID 1 would lose it, any other would die without a word. The handlers stay
    beneath Trio's, so that a signal which Trio delivers late is harmless too.
    """

    def __init__(self) -> None:
        self.came = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)
        # Whoever started the daemon may have left them blocked, and then it could not be stopped.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())

    def _note(self, number: int, frame: object) -> None:
        del frame
        self.came = self.came or number != signal.SIGHUP


def serve(settings: ServeSettings, environ: Mapping[str, str]) -> int:
    """Run the daemon until a signal ends it.

    Args:
        settings: checked; see :mod:`agentd.settings`.
        environ: the daemon's environment, of which a child gets a part.

    Returns:
        0: it was told to stop, and did.

    Raises:
        AgentdError: it cannot serve. The error's ``exit_status`` is the command's, else it is the
            one for a bad configuration (CONTRACT section 1).
    """
    early = _EarlySignals()
    _guard_memory()
    keys = _load_keys(settings.auth)
    user = _find_user(settings.child.user)
    passed = passed_sockets(environ, os.getpid())
    sockets = _listen(settings, passed)
    recipe = Recipe(
        child=settings.child,
        stream=settings.stream,
        user=user,
        environ=_given(environ),
        identity=Identity(
            boot=secrets.token_hex(8),
            build=build.build_id(),
            image=environ.get("AGENTD_BUILD") or None,
        ),
    )
    daemon = _Daemon(settings, recipe, keys, Notifier(environ), passed=bool(passed))
    try:
        trio.run(daemon.main, sockets, early)
    finally:
        if not passed:
            for address in settings.listen.addresses:
                listeners.unlink(address)
    return 0


def _given(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment without the LC_CTYPE that Python sets for itself where nobody chose a
    locale (PEP 538), as in most images: /proc/self/environ shows what the daemon was started with.
    """
    if "LC_CTYPE" not in environ:
        return environ
    try:
        with open("/proc/self/environ", "rb") as started_with:
            given = started_with.read().split(b"\0")
    except OSError:
        return environ
    if any(entry.startswith(b"LC_CTYPE=") for entry in given):
        return environ
    return {name: value for name, value in environ.items() if name != "LC_CTYPE"}


def _guard_memory() -> None:
    """Let no core file and no other process of this user see the daemon's memory (prctl(2))."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    try:
        linux.set_dumpable(False)
    except OSError as error:
        logger.warning("cannot guard the daemon's memory: %s", error.strerror)


def _load_keys(auth: AuthSettings) -> KeyRing | None:
    if auth.mode == "none":
        return None
    policy = TokenPolicy(
        audience=auth.audience, issuer=auth.issuer, leeway=auth.leeway, max_ttl=auth.max_ttl
    )
    keys = KeyRing(auth.keys, algorithm=auth.algorithm, jwks_url=auth.jwks_url, policy=policy)
    keys.load()
    return keys


def _find_user(setting: str | None) -> User | None:
    if setting is None:
        return None
    try:
        return find_user(setting)
    except AgentdError as error:
        trouble = str(error)
    raise AgentdError(f"cannot use the setting user: {trouble}")


def _listen(settings: ServeSettings, passed: list[int]) -> list[trio.SocketListener]:
    if passed:
        return listeners.adopt(passed)
    try:
        return [listeners.bind(address) for address in settings.listen.addresses]
    except listeners.CannotListen as error:
        if not error.in_use or not probe.is_agentd(error.address.reachable()):
            raise
        taken = error.address
    raise AlreadyRunning(taken, settings.listen.if_running)


class _Daemon:
    """What lives as long as the daemon does."""

    def __init__(
        self,
        settings: ServeSettings,
        recipe: Recipe,
        keys: KeyRing | None,
        notifier: Notifier,
        *,
        passed: bool,
    ) -> None:
        self._settings = settings
        self._recipe = recipe
        self._keys = keys
        self._notifier = notifier
        self._passed = passed
        self._metrics = Metrics()
        self._children = Children()
        self._status = Status(recipe.identity.build, recipe.identity.image)
        self._runs = Runs(
            self._make_run,
            max_runs=settings.listen.max_runs,
            context_wait=settings.context.wait,
            context_ttl=settings.context.ttl,
            metrics=self._metrics,
        )

    def _make_run(self, run_id: str) -> Run:
        return Run(run_id, children=self._children, recipe=self._recipe, metrics=self._metrics)

    async def main(self, sockets: list[trio.SocketListener], early: _EarlySignals) -> None:
        """Serve until a signal, then end everything in order."""
        receiver = trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        async with trio.open_nursery() as lasting:
            with receiver as signals:
                await lasting.start(self._children.reap_orphans)
                lasting.start_soon(self._runs.expire)
                lasting.start_soon(self._feed_watchdog)
                async with trio.open_nursery() as run_nursery, trio.open_nursery() as connections:
                    endpoint = self._endpoint(run_nursery)
                    accepting = trio.CancelScope()
                    lasting.start_soon(self._accept, sockets, endpoint, connections, accepting)
                    inbox = await lasting.start(self._watch)
                    self._say_ready(sockets)
                    if not early.came:
                        await self._wait_stop(signals)
                    inbox.cancel()
                    if self._passed:
                        # They outlive this daemon: what connects now waits for the next one.
                        accepting.cancel()
                    await self._stop(signals, endpoint)
                    run_nursery.cancel_scope.cancel()
                    connections.cancel_scope.cancel()
                lasting.cancel_scope.cancel()

    def _endpoint(self, run_nursery: trio.Nursery) -> Endpoint:
        settings = self._settings
        return Endpoint(
            gate=Gate(auth=settings.auth.mode, origins=frozenset(settings.auth.origins)),
            keys=self._keys,
            used=UsedTokens(leeway=settings.auth.leeway),
            runs=self._runs,
            run_nursery=run_nursery,
            metrics=self._metrics,
            status=self._status,
            max_runs=settings.listen.max_runs,
            write_timeout=settings.stream.write_timeout,
            ping=settings.stream.ping,
            client_stdin=settings.child.stdin == "client",
        )

    async def _accept(
        self,
        sockets: list[trio.SocketListener],
        endpoint: Endpoint,
        connections: trio.Nursery,
        accepting: trio.CancelScope,
    ) -> None:
        with accepting:
            async with trio.open_nursery() as nursery:
                for listener in sockets:
                    nursery.start_soon(accept_connections, listener, endpoint.handle, connections)

    async def _watch(self, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        context = self._settings.context
        limit = self._settings.child.timeout
        inbox = Inbox(
            context.path,
            parse=partial(parse_context, allow=frozenset(context.allow), max_timeout=limit),
            deliver=self._runs.add,
            room=self._runs.room,
            wait_room=self._runs.wait_room,
            count=self._metrics.context,
        )
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(inbox.run)
                task_status.started(scope)

    def _say_ready(self, sockets: list[trio.SocketListener]) -> None:
        self._status.phase = Phase.SERVING
        where = [str(listeners.address_of(each)) for each in sockets]
        logger.info("ready on %s", ", ".join(where))
        self._notifier.ready()

    async def _wait_stop(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number != signal.SIGHUP:
                return
            if self._keys is not None:
                self._notifier.reloading()
                self._keys.reload()
                self._notifier.ready()

    async def _stop(self, signals: AsyncIterator[int], endpoint: Endpoint) -> None:
        self._status.phase = Phase.DRAINING
        logger.info("stopping")
        self._notifier.stopping()
        with trio.move_on_after(self._settings.child.grace + _LAST_WORDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hurry_when_told, signals)
                self._runs.drain()
                await self._runs.wait_none_live()
                await endpoint.wait_no_client()
                nursery.cancel_scope.cancel()

    async def _hurry_when_told(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number != signal.SIGHUP:
                self._runs.hurry()

    async def _feed_watchdog(self) -> None:
        interval = self._notifier.watchdog_interval
        while interval is not None:
            self._notifier.watchdog()
            await trio.sleep(interval)
