"""What an accepted client and its run say to each other, from the 101 to the Close.

The run speaks on the client's wire by itself; here the client is listened to, its absence is
noticed, and the Close is chosen. The client is always listened to, also when nothing it says
matters any more: an unread message would hide that it left.
"""

import logging

import trio

from agentd.run import Run
from agentd.sansio.client_records import BadRecord, Plain, Signal, Stdin, parse_client_record
from agentd.sansio.lifecycle import BAD_RECORD, FAULT, NORMAL, Outcome, close_code
from agentd.stdin import StdinFull
from agentd.websocket import Connection, Violation
from agentd.wire import ClientGone

logger = logging.getLogger("agentd.session")


class Session:
    """One client and its run.

    Args:
        connection: the accepted client.
        run: its run, which somebody supervises.
        records: whether the client speaks agentd.v1, else raw.
        client_stdin: whether it may write to the child.
    """

    def __init__(
        self, connection: Connection, run: Run, *, records: bool, client_stdin: bool
    ) -> None:
        self._connection = connection
        self._run = run
        self._records = records
        self._client_stdin = client_stdin
        self._over = trio.Event()
        self._close: tuple[int, str] | None = None

    async def converse(self, *, ping: float, linger: float) -> None:
        """Stay until the run has ended and the client was told, or the client has gone.

        Args:
            ping: seconds of silence after which the client is pinged.
            linger: seconds for which the client is drained after the Close.
        """
        wire = self._connection.wire
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen)
                nursery.start_soon(self._notice_silence, ping)
                nursery.start_soon(self._notice_end)
                await self._over.wait()
                if not self._run.finished.is_set():
                    self._run.stop(Outcome.CANCELLED)
                code, reason = self._close or self._close_of_run()
                await wire.close(code, reason, linger=linger)
                nursery.cancel_scope.cancel()
        finally:
            # However the talk ended: a run without a client does not go on.
            self._run.stop(Outcome.CANCELLED)
            wire.abort()

    def _close_of_run(self) -> tuple[int, str]:
        if not self._run.finished.is_set():
            return NORMAL, ""  # to a client that has gone; the wire knows
        if self._run.end is None:
            return FAULT, "internal fault"
        return close_code(self._run.end)

    async def _notice_end(self) -> None:
        await self._run.finished.wait()
        self._over.set()

    async def _notice_silence(self, ping: float) -> None:
        await self._connection.keep_alive(ping)
        logger.warning("client cut off: it is silent", extra={"run": self._run.id})
        self._connection.wire.abort()
        self._over.set()

    async def _listen(self) -> None:
        try:
            while True:
                message = await self._connection.receive()
                if self._close is None:
                    self._take(message)
        except Violation as violation:
            self._refuse(violation.code, violation.reason)
        except ClientGone:
            if self._connection.wire.too_slow:
                logger.warning("client cut off: it took nothing", extra={"run": self._run.id})
            self._over.set()

    def _take(self, message: str | bytes) -> None:
        try:
            if self._records:
                self._take_record(message)
            elif self._client_stdin:
                data = message.encode() + b"\n" if isinstance(message, str) else message
                self._run.stdin.send_nowait(data)
            # Else it is as when a program is not interested in its standard input.
        except (BadRecord, StdinFull) as bad:
            self._refuse(BAD_RECORD, str(bad))

    def _take_record(self, message: str | bytes) -> None:
        record = parse_client_record(message)
        match record:
            case Stdin() | Plain.STDIN_EOF if not self._client_stdin:
                raise BadRecord("stdin is not the client's")
            case Stdin(data):
                self._run.stdin.send_nowait(data)
            case Plain.STDIN_EOF:
                self._run.stdin.send_eof_nowait()
            case Signal(number):
                self._run.signal(number)
            case Plain.CANCEL:
                self._run.stop(Outcome.CANCELLED)
            case _:
                pass  # an ack or a heartbeat: it was heard, and there is nothing to send again

    def _refuse(self, code: int, reason: str) -> None:
        """End the run over what the client sent; it gets its end record, and then this Close."""
        self._close = code, reason
        self._run.stop(Outcome.CANCELLED)
