"""Lines in, WebSocket frames out: all frames of one read as one bytes object.

The invariant is that what an encoder returns is a run of whole frames (RFC 6455 section 5.2):
final, unmasked, as a server sends them, no text frame with anything but UTF-8. Put end to end in
the order they were returned they can be written to a socket, and nothing else is needed between.

This is where a line costs time, so no line has a Python call of its own: a whole read is checked,
escaped and split at once, headers and numbers come out of tables, and one join makes the bytes.
Only a read with invalid UTF-8 in it, and a line that comes in parts, is looked at line by line.

This room knows nothing of who receives, what was acknowledged, or how a line was found.
"""

import binascii
import struct
from functools import cache
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from agentd import PROTOCOL
from agentd.sansio.lines import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentd.sansio.lifecycle import End
    from agentd.sansio.lines import Piece

# RFC 6455 section 5.2.
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA
_FIN = 0x80

MAX_REASON: Final = 123
"""Bytes of a Close reason: a control frame carries 125, the code takes 2 (RFC 6455 section 5.5)."""


def _header(opcode: int, length: int) -> bytes:
    if length < 126:
        return struct.pack("!BB", _FIN | opcode, length)
    if length < 65536:
        return struct.pack("!BBH", _FIN | opcode, 126, length)
    return struct.pack("!BBQ", _FIN | opcode, 127, length)


def frame(opcode: int, payload: bytes) -> bytes:
    """One final, unmasked frame (RFC 6455 section 5.2).

    The caller sees to it that text is UTF-8 and that a control frame carries 125 bytes at most.
    """
    return _header(opcode, len(payload)) + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """A Close frame (RFC 6455 section 5.5.1); a reason too long for it ends at a character."""
    room = reason.encode("utf-8", "replace")[:MAX_REASON]
    return frame(CLOSE, struct.pack("!H", code) + room.decode("utf-8", "ignore").encode())


# Longer payloads than these are so few in one read that their headers are made when needed.
_TABLE_SIZE = 4096
_HEADERS = [_header(TEXT, length) for length in range(_TABLE_SIZE)]
# The end of one record and the header of the next one, so that a record is one piece less to join.
_JOINTS = [b'"}' + header for header in _HEADERS]
# How a number ends, by how many digits of it change from one record to the next.
_NUMBERS = {
    width: [b'%0*d,"line":"' % (width, number) for number in range(10**width)]
    for width in (1, 2, 3)
}
_PREFIXES = {stream: b'{"type":"%b","seq":' % stream.encode() for stream in ("stdout", "stderr")}

_encode_json = msgspec.json.Encoder().encode


@cache
def _joints(overhead: int) -> list[bytes]:
    """By the length of a line: the joint before its record, which is `overhead` bytes longer.

    There are as many of these tables as a number has digits.
    """
    return _JOINTS[overhead:]


class RawEncoder:
    """The stream of a client that wants lines and nothing else: one text frame per line.

    A frame holds the line without its ``\\n`` and one ``\\r`` directly before that. The last line
    is a line also without ``\\n``; a ``\\r`` at its end is content. A line longer than the cap is
    several frames. Its last piece may be the line's ``\\r`` and nothing else, and that one is not
    sent: it would be an empty frame where the child printed no empty line.

    Args:
        skip_empty: send no frame for a line that has no bytes.
        invalid_utf8: what a line, or part of one, that is not UTF-8 becomes: ``"replace"`` is a
            text frame with U+FFFD in it, ``"binary"`` a binary frame with its exact bytes.
    """

    def __init__(
        self, *, skip_empty: bool = False, invalid_utf8: Literal["replace", "binary"] = "replace"
    ) -> None:
        self._skip_empty = skip_empty
        self._binary = invalid_utf8 == "binary"

    def encode(self, stream: str, pieces: "Iterable[Piece]") -> bytes:
        """The frames of these pieces, in their order; none for what is not ``"stdout"``."""
        if stream != "stdout":
            return b""
        frames = []
        for kind, content in pieces:
            if kind is Kind.LINES:
                frames.append(self._lines(content))
                continue
            piece = content.removesuffix(b"\r") if kind is Kind.REST else content
            if piece:
                frames.append(self._message(piece))
        return b"".join(frames)

    def _lines(self, content: bytes) -> bytes:
        # Looking for one byte first is many times faster than looking for two.
        if b"\r" in content:
            content = content.replace(b"\r\n", b"\n")
        lines = content[:-1].split(b"\n")
        if self._skip_empty:
            lines = list(filter(None, lines))
        if not _is_utf8(content):
            return b"".join([self._message(line) for line in lines])
        try:
            headers = list(map(_HEADERS.__getitem__, map(len, lines)))
        except IndexError:
            headers = [_header(TEXT, len(line)) for line in lines]
        frames = headers * 2
        frames[0::2] = headers
        frames[1::2] = lines
        return b"".join(frames)

    def _message(self, piece: bytes) -> bytes:
        if _is_utf8(piece):
            return frame(TEXT, piece)
        if self._binary:
            return frame(BINARY, piece)
        return frame(TEXT, piece.decode("utf-8", "replace").encode())


class RecordEncoder:
    """The stream of an ``agentd.v1`` client: one JSON object per text frame.

    Every record of a type has all its fields, null where one does not apply. A line that is not
    UTF-8 has ``base64`` (RFC 4648 section 4, padded) in the place of ``line``.
    """

    seq: int
    """The number given out last, over both streams in the order they were encoded; 0 at first."""

    def __init__(self) -> None:
        self.seq = 0

    def encode(self, stream: str, pieces: "Iterable[Piece]") -> bytes:
        """The records of these pieces of ``"stdout"`` or ``"stderr"``, in their order."""
        frames = []
        for kind, content in pieces:
            if kind is Kind.LINES:
                frames.append(self._lines(stream, content))
            elif kind is Kind.PART:
                frames.append(self._record(stream, content, b',"more":true'))
            elif kind is Kind.REST:
                frames.append(self._record(stream, content))
            else:
                frames.append(self._record(stream, content, b',"eol":false'))
        return b"".join(frames)

    def hello(self, *, run: str, boot: str, build: str, image: str | None) -> bytes:
        """The first record: who speaks, about which run, and the number that comes next."""
        return _text(
            {
                "type": "hello",
                "protocol": PROTOCOL,
                "run": run,
                "boot": boot,
                "build": build,
                "image": image,
                "next": self.seq + 1,
            }
        )

    def heartbeat(self) -> bytes:
        """The record that fills silence, with the number given out last."""
        return _text({"type": "heartbeat", "seq": self.seq})

    def end(self, end: "End") -> bytes:
        """The last record: how the run ended, and what the client should have received."""
        return _text(
            {
                "type": "end",
                "outcome": end.outcome.value,
                "exit_code": end.exit_code,
                "signal": end.signal,
                "error": end.error,
                "stdout_lines": end.stdout_lines,
                "stderr_lines": end.stderr_lines,
                "stdout_bytes": end.stdout_bytes,
                "stdout_sha256": end.stdout_sha256,
                "seconds": end.seconds,
            }
        )

    def _lines(self, stream: str, content: bytes) -> bytes:
        try:
            lines = _escaped_lines(content)
        except UnicodeDecodeError:
            return b"".join([self._record(stream, line) for line in content[:-1].split(b"\n")])
        records: list[bytes] = []
        done = 0
        while done < len(lines):
            # As many records as differ in the last three digits of their number at most, so that
            # the number of digits, and what comes before the last three, is the same in all.
            digits = len(str(self.seq + 1))
            width = min(digits, 3)
            high, low = divmod(self.seq + 1, 10**width)
            some = lines[done : done + 10**width - low]
            begin = _PREFIXES[stream] + (b"%d" % high if high else b"")
            overhead = len(begin) + len(_NUMBERS[width][0]) + len(b'"}')
            try:
                joints = list(map(_joints(overhead).__getitem__, map(len, some)))
            except IndexError:
                joints = [b'"}' + _header(TEXT, overhead + len(line)) for line in some]
            block = [begin] * (4 * len(some))
            block[0::4] = joints
            block[2::4] = _NUMBERS[width][low : low + len(some)]
            block[3::4] = some
            records += block
            done += len(some)
            self.seq += len(some)
        records[0] = records[0].removeprefix(b'"}')
        records.append(b'"}')
        return b"".join(records)

    def _record(self, stream: str, content: bytes, flag: bytes = b"") -> bytes:
        self.seq += 1
        try:
            field = b'"line":' + _encode_json(content.decode())
        except UnicodeDecodeError:
            field = b'"base64":"' + binascii.b2a_base64(content, newline=False) + b'"'
        return frame(TEXT, b"%b%d,%b%b}" % (_PREFIXES[stream], self.seq, field, flag))


def _text(record: dict[str, object]) -> bytes:
    return frame(TEXT, _encode_json(record))


def _is_utf8(content: bytes) -> bool:
    if content.isascii():
        return True
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _escaped_lines(content: bytes) -> list[bytes]:
    """Each line of these, all with ``\\n``, as the inside of a JSON string (RFC 8259 section 7).

    The JSON encoder is given all lines as one string. It would escape the newlines too, so DEL,
    which it need not and does not escape, stands for them where no line has a DEL of its own.

    Raises:
        UnicodeDecodeError: a line is not UTF-8.
    """
    if b"\x7f" in content:
        return [_encode_json(line)[1:-1] for line in content[:-1].decode().split("\n")]
    return _encode_json(content.replace(b"\n", b"\x7f").decode())[1:-2].split(b"\x7f")
