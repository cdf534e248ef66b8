"""Connections: one task each, from the request head to the Close, behind one exception barrier.

What to answer is decided in :mod:`agentd.sansio.admission`; who gets which run in
:mod:`agentd.runs`. This room knows the order of things: head, answer or token, context, 101, the
talk with the client, Close.
"""

import errno
import logging
import select
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from agentd import http11, websocket
from agentd.barrier import barrier
from agentd.keys import KeyRing
from agentd.logs import Throttle
from agentd.metrics import Metrics
from agentd.run import Run
from agentd.runs import NoRun, Runs
from agentd.sansio.admission import (
    Gate,
    Probe,
    RequestHead,
    Respond,
    Upgrade,
    admit,
    healthz,
    problem,
    readyz,
    unauthorized,
    wanted_run,
)
from agentd.sansio.lifecycle import Phase
from agentd.sansio.tokens import Claims, TokenError
from agentd.sansio.used import TokenCacheFull, UsedTokens
from agentd.session import Session
from agentd.websocket import Connection
from agentd.wire import ClientGone

logger = logging.getLogger("agentd.server")

HEAD_DEADLINE = 5.0
"""Seconds a peer has for its whole request head."""
MAX_HEADS = 512
"""Connections that may be without a whole head at a time; the oldest goes for one more."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
LINGER = 1.0
"""Seconds for which a peer is drained after the last byte to it."""


@dataclass(slots=True)
class Status:
    """What the daemon says of itself to probes."""

    build: str
    image: str | None
    phase: Phase = Phase.STARTING


@dataclass
class Endpoint:
    """What a connection needs to be answered.

    Attributes:
        gate: who may come in at all.
        keys: verify tokens; None with ``--auth none``.
        used: the single-use tokens seen.
        runs: the runs that exist, and ``run_nursery`` where they live: a run is no part of the
            connection that asked for it.
        client_stdin: whether the client may write to the child.
    """

    gate: Gate
    keys: KeyRing | None
    used: UsedTokens
    runs: Runs
    run_nursery: trio.Nursery
    metrics: Metrics
    status: Status
    max_runs: int
    write_timeout: float
    ping: float
    client_stdin: bool
    clients: int = 0
    linger: float = LINGER
    _heads: dict[trio.CancelScope, None] = field(default_factory=dict)
    _left: trio.Event = field(default_factory=trio.Event)

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one accepted connection to its end, whatever comes."""
        self.metrics.connected()
        with barrier(logger, "connection"):
            try:
                await self._answer(stream)
            finally:
                await trio.aclose_forcefully(stream)

    async def _answer(self, stream: trio.SocketStream) -> None:
        head: RequestHead | None = None
        try:
            head, early = await self._read_head(stream)
        except http11.ClosedEarly:
            return
        except http11.BadRequest as bad:
            answer: Respond | None = problem(bad.status)
        else:
            answer = await self._decide(stream, head, early)
        if answer is not None:
            await self._respond(stream, head, answer)

    async def _read_head(self, stream: trio.SocketStream) -> tuple[RequestHead, bytes]:
        with trio.move_on_after(HEAD_DEADLINE) as scope:
            if len(self._heads) >= MAX_HEADS:
                next(iter(self._heads)).cancel()
            self._heads[scope] = None
            try:
                return await http11.read_request_head(stream)
            finally:
                del self._heads[scope]
        raise http11.ClosedEarly("no whole request head in time")

    async def _respond(
        self, stream: trio.SocketStream, head: RequestHead | None, answer: Respond
    ) -> None:
        self.metrics.responded(answer.status)
        with trio.move_on_after(HEAD_DEADLINE):
            try:
                await http11.send_response(stream, head, answer)
                await http11.linger(stream, seconds=self.linger)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def _decide(
        self, stream: trio.SocketStream, head: RequestHead, early: bytes
    ) -> Respond | None:
        """Return the answer, or None where the connection became a stream."""
        match admit(head, self.gate):
            case Respond() as answer:
                return answer
            case Probe(name="healthz"):
                return healthz(self.status.build, self.status.image)
            case Probe(name="readyz"):
                return readyz(self.status.phase, len(self.runs.live), self.max_runs)
            case Probe():
                return await self._render_metrics()
            case Upgrade() as upgrade:
                return await self._upgrade(stream, upgrade, early)

    async def _render_metrics(self) -> Respond:
        # Importing the library takes longer than any line should wait.
        await trio.to_thread.run_sync(self.metrics.prepare)
        body, content_type = self.metrics.render(
            runs=len(self.runs.live),
            contexts_waiting=self.runs.waiting,
            clients=self.clients,
            build=self.status.build,
        )
        return Respond(200, (("Content-Type", content_type),), body)

    async def _upgrade(
        self, stream: trio.SocketStream, upgrade: Upgrade, early: bytes
    ) -> Respond | None:
        if self.status.phase is not Phase.SERVING:
            return problem(503, "not serving")
        claims: Claims | None = None
        try:
            if self.keys is not None:
                claims = await self.keys.verify(upgrade.token or "")
                self.used.reserve(claims, time.time())
        except TokenError as refused:
            self.metrics.token_refused()
            logger.info("token refused: %s", refused.reason)
            return unauthorized()
        except TokenCacheFull:
            return problem(503, "too many tokens")
        accepted = False
        try:
            wanted = wanted_run(upgrade, claims)
            if isinstance(wanted, Respond):
                return wanted
            run = await self._claim_while_there(stream, wanted)
            if run is None:
                return None
            accepted = await self._stream(stream, upgrade, early, run, claims)
        except NoRun as none:
            return problem(none.status, str(none))
        finally:
            if claims is not None and not accepted:
                self.used.release(claims)
        return None

    async def _claim_while_there(self, stream: trio.SocketStream, wanted: str | None) -> Run | None:
        """Claim a run, or return None when the client leaves meanwhile."""
        run: Run | None = None
        refusal: NoRun | None = None
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                if await _wait_left(stream):
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                run = await self.runs.claim(wanted)
            except NoRun as none:
                refusal = none
            nursery.cancel_scope.cancel()
        if refusal is not None:
            raise refusal
        if run is not None and _has_left(stream):
            # It left in the very pass in which it got its run; the next client shall have it.
            self.runs.give_back(run)
            return None
        return run

    async def _stream(
        self,
        stream: trio.SocketStream,
        upgrade: Upgrade,
        early: bytes,
        run: Run,
        claims: Claims | None,
    ) -> bool:
        """Accept the client and stay with it. Returns whether it was told 101."""
        started = False
        try:
            async with trio.open_nursery() as nursery:
                with trio.move_on_after(HEAD_DEADLINE):
                    connection = await websocket.accept(
                        nursery, stream, upgrade, early, write_timeout=self.write_timeout
                    )
                    started = True
                if started:
                    if claims is not None:
                        self.used.spend(claims)
                    self.metrics.responded(101)
                    await self._converse(connection, upgrade, run)
                nursery.cancel_scope.cancel()
        except* ClientGone:
            pass
        finally:
            if not started:
                self.runs.give_back(run)
        return started

    async def _converse(self, connection: Connection, upgrade: Upgrade, run: Run) -> None:
        records = upgrade.mode == "v1"
        session = Session(connection, run, records=records, client_stdin=self.client_stdin)
        self.clients += 1
        try:
            self.run_nursery.start_soon(
                partial(self.runs.supervise, run, connection.wire, records=records)
            )
            await session.converse(ping=self.ping, linger=self.linger)
        finally:
            self.clients -= 1
            self._left.set()
            self._left = trio.Event()

    async def wait_no_client(self) -> None:
        """Wait until every client that was accepted has its Close."""
        while self.clients:
            await self._left.wait()


async def _wait_left(stream: trio.SocketStream) -> bool:
    """Return True when the peer has left, False when it has sent something instead.

    What it sent stays where it is: before the 101 nothing of it is read.
    """
    try:
        return not await stream.socket.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def _has_left(stream: trio.SocketStream) -> bool:
    """Return whether the peer has closed or reset the connection, as far as the kernel knows."""
    poll = select.poll()
    poll.register(stream.socket.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


async def accept_connections(
    listener: trio.SocketListener,
    handler: Callable[[trio.SocketStream], Awaitable[None]],
    nursery: trio.Nursery,
) -> None:
    """Start ``handler`` in ``nursery`` for each connection, for as long as the listener is open.

    Without descriptors or memory for one more connection it waits for better times, and says so
    once in a while (accept(2): EMFILE, ENFILE, ENOBUFS, ENOMEM).
    """
    throttle = Throttle(10)
    while True:
        try:
            stream = await listener.accept()
        except trio.ClosedResourceError:
            return
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            if throttle.admit() is not None:
                logger.warning("cannot accept connections: %s", error.strerror)
            await trio.sleep(0.1)
        else:
            nursery.start_soon(handler, stream)
