"""What an agentd.v1 server sends, and the proof that a client got all of it.

:class:`RecordStream` takes the messages of one connection in order and gives records back. It holds
one invariant: what it let through is a stream without a hole, from ``hello`` on, and an ``end``
that it let through agrees with every byte and line before it. So "the stream is complete" is
decided here, by arithmetic, and never by how a connection happened to close: edges between the
daemon and its client close connections in their own way.

It refuses to know where the messages come from, and keeps none of them.
"""

import hashlib
from base64 import b64decode
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from agentd import PROTOCOL, AgentdError
from agentd.sansio.lifecycle import End, Outcome

StreamName = Literal["stdout", "stderr"]


class ProtocolError(AgentdError):
    """The server sent something that agentd.v1 does not have, or has not there."""


class DigestMismatch(AgentdError):
    """The ``end`` record describes another stream than the one that arrived.

    The message names the field of ``end`` that disagrees.
    """


@dataclass(frozen=True, slots=True)
class Hello:
    """The first record: which run this is, and who serves it.

    Attributes:
        protocol: always ``"agentd.v1"``.
        run: the id of the run.
        boot: an id that is new each time the daemon starts.
        build: the id of the daemon's build.
        image: the id of the image the daemon runs in, None where it runs in none.
        next: the first ``seq`` that will come.
    """

    protocol: str
    run: str
    boot: str
    build: str
    image: str | None
    next: int


@dataclass(frozen=True, slots=True)
class Output:
    """A line that the child wrote, or a part of one.

    Attributes:
        stream: ``"stdout"`` or ``"stderr"``.
        seq: counts from 1 over both streams, in the order in which the daemon read them.
        data: the bytes of the line, without its newline; a carriage return stays.
        more: the line goes on in the next record of the same stream.
        eol: the line ended with a newline; False only on a last line that had none.
    """

    stream: StreamName
    seq: int
    data: bytes
    more: bool
    eol: bool

    @property
    def text(self) -> str:
        """The line as text; bytes that are not UTF-8 come out as U+FFFD."""
        return self.data.decode("utf-8", "replace")

    @property
    def raw(self) -> bytes:
        """Exactly what the child wrote: all of a stream's ``raw`` joined is that stream."""
        return self.data if self.more or not self.eol else self.data + b"\n"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The server is there and has nothing to say.

    Attributes:
        seq: the last one sent, 0 before the first.
    """

    seq: int


Record = Hello | Output | Heartbeat | End

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Seq = Annotated[int, msgspec.Meta(ge=1)]


class _Hello(msgspec.Struct, tag_field="type", tag="hello"):
    protocol: str
    run: str
    boot: str
    build: str
    image: str | None
    next: _Seq


class _Output(msgspec.Struct):
    seq: _Seq
    line: str | None = None
    base64: str | None = None
    more: bool = False
    eol: bool = True


class _Stdout(_Output, tag_field="type", tag="stdout"):
    pass


class _Stderr(_Output, tag_field="type", tag="stderr"):
    pass


class _Heartbeat(msgspec.Struct, tag_field="type", tag="heartbeat"):
    seq: _Count


class _End(msgspec.Struct, tag_field="type", tag="end"):
    outcome: Outcome
    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)] | None
    signal: str | None
    error: str | None
    stdout_lines: _Count
    stderr_lines: _Count
    stdout_bytes: _Count
    stdout_sha256: str
    seconds: float


_Fields = _Hello | _Stdout | _Stderr | _Heartbeat | _End
_DECODER: Final[msgspec.json.Decoder[_Fields]] = msgspec.json.Decoder(_Fields)

# What an outcome cannot be without. A record that lacks it could pass for a success.
_NEEDS: Final = {
    Outcome.EXITED: "exit_code",
    Outcome.SIGNALED: "signal",
    Outcome.SPAWN_FAILED: "error",
}


class RecordStream:
    """The records of one connection, checked as they come.

    Attributes:
        end: the ``end`` record once it came and was found true, else None.
    """

    def __init__(self) -> None:
        self.end: End | None = None
        self._next = 0
        self._digest = hashlib.sha256()
        self._stdout = _Tally()
        self._stderr = _Tally()

    def receive_message(self, message: str) -> Record:
        """Return the record in one text message.

        Raises:
            ProtocolError: the message is no record, or no record that may come here.
            DigestMismatch: it is an ``end`` that does not agree with what came before.
        """
        fields = _decode(message)
        if self.end is not None:
            raise ProtocolError("a record came after the end record")
        if isinstance(fields, _Hello):
            return self._hello(fields)
        if not self._next:
            raise ProtocolError("the first record is not hello")
        if isinstance(fields, _Stdout):
            return self._output("stdout", fields)
        if isinstance(fields, _Stderr):
            return self._output("stderr", fields)
        if isinstance(fields, _Heartbeat):
            self._expect(fields.seq + 1, "heartbeat")
            return Heartbeat(fields.seq)
        self.end = self._checked_end(fields)
        return self.end

    def _hello(self, fields: _Hello) -> Hello:
        if self._next:
            raise ProtocolError("a second hello came")
        if fields.protocol != PROTOCOL:
            raise ProtocolError(f"hello names a protocol other than {PROTOCOL}")
        if fields.next != 1:
            raise ProtocolError(f"the stream begins at record {fields.next}, not at the first")
        self._next = fields.next
        return Hello(
            fields.protocol, fields.run, fields.boot, fields.build, fields.image, fields.next
        )

    def _output(self, stream: StreamName, fields: _Stdout | _Stderr) -> Output:
        self._expect(fields.seq, stream)
        self._next += 1
        output = Output(stream, fields.seq, _content(stream, fields), fields.more, fields.eol)
        if stream == "stdout":
            self._stdout.count(output)
            self._digest.update(output.raw)
        else:
            self._stderr.count(output)
        return output

    def _expect(self, seq: int, kind: str) -> None:
        if seq != self._next:
            raise ProtocolError(f"a {kind} record has seq {seq} where {self._next} was next")

    def _checked_end(self, fields: _End) -> End:
        needed = _NEEDS.get(fields.outcome)
        if needed is not None and getattr(fields, needed) is None:
            raise ProtocolError(f"the end record says {fields.outcome.value} without its {needed}")
        if self._stdout.open or self._stderr.open:
            raise ProtocolError("the end record came in the middle of a line")
        arrived = {
            "stdout_lines": self._stdout.lines,
            "stdout_bytes": self._stdout.size,
            "stdout_sha256": self._digest.hexdigest(),
        }
        # A daemon that keeps stderr to itself (`--stderr log`) still counts its lines. Where some
        # came, all must have.
        if self._stderr.lines:
            arrived["stderr_lines"] = self._stderr.lines
        for field, value in arrived.items():
            if getattr(fields, field) != value:
                raise DigestMismatch(f"{field} of the end record does not agree with what arrived")
        return End(
            outcome=fields.outcome,
            exit_code=fields.exit_code,
            signal=fields.signal,
            error=fields.error,
            stdout_lines=fields.stdout_lines,
            stderr_lines=fields.stderr_lines,
            stdout_bytes=fields.stdout_bytes,
            stdout_sha256=fields.stdout_sha256,
            seconds=fields.seconds,
        )


class _Tally:
    """What one of the child's two streams has come to so far."""

    def __init__(self) -> None:
        self.lines = 0
        self.size = 0
        self.open = False
        self._over = False

    def count(self, output: Output) -> None:
        if self._over:
            raise ProtocolError(f"a {output.stream} record came after the last line")
        if output.more and not output.eol:
            raise ProtocolError(f"a {output.stream} record is both more and the last")
        self.lines += not self.open
        self.size += len(output.data) + (output.eol and not output.more)
        self.open = output.more
        self._over = not output.eol


def _decode(message: str) -> _Fields:
    try:
        return _DECODER.decode(message)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        pass
    # Raised out here: the exception may carry what the child wrote.
    raise ProtocolError(f"a message is not a record of {PROTOCOL}")


def _content(stream: str, fields: _Stdout | _Stderr) -> bytes:
    if (fields.line is None) == (fields.base64 is None):
        raise ProtocolError(f"a {stream} record has either line or base64")
    try:
        if fields.line is not None:
            return fields.line.encode()
        return b64decode(fields.base64 or "", validate=True)
    except ValueError:
        pass
    raise ProtocolError(f"a {stream} record has content that cannot be decoded")
