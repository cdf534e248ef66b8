"""Bytes in, lines out: what the child wrote, however the kernel cut it into reads.

A line ends with ``\\n`` and with nothing else: no ``\\r``, form feed or Unicode separator ends one.
A line longer than the cap leaves in parts, as soon as it is known to be longer, so that a line
without end costs no more memory than the cap and one read. The invariant is that the pieces given
out, put end to end, are the bytes that came in: nothing is dropped, added or decoded here.

How a line is cut depends on its bytes alone, never on the reads it came in; only
:meth:`LineSplitter.flush_partial`, which answers silence, adds cuts of its own.

This room knows nothing of records, frames, processes or who reads.
"""

import codecs
import enum
from typing import Final, Protocol

MAX_LINE: Final = 262144
"""Bytes of content a line may have before it goes out in parts, unless told otherwise."""

_LONGEST_INCOMPLETE = 3  # bytes of a character of four (RFC 3629 section 3)


class Digest(Protocol):
    """What is told every byte; a ``hashlib`` object is one."""

    def update(self, data: bytes, /) -> object: ...


class Kind(enum.Enum):
    """What a piece is of the line or lines it belongs to."""

    LINES = "lines"
    """One or more whole lines, each with its ``\\n``, none longer than the cap."""
    PART = "part"
    """The beginning or middle of a line that goes on; never empty, never longer than the cap."""
    REST = "rest"
    """What was left of a line whose parts went before, without its ``\\n``. Empty only where
    ``flush_partial`` had sent the whole line already."""
    TAIL = "tail"
    """The last line, or what was left of it, when it had no ``\\n``. Empty only where
    ``flush_partial`` had sent the whole line already."""


Piece = tuple[Kind, bytes]


class LineSplitter:
    """Cuts one stream of bytes into pieces.

    Args:
        max_line: bytes of content, without ``\\n``, above which a line goes out in parts; at least
            1. A part is cut up to 3 bytes earlier so that no UTF-8 character is cut, as far as the
            cap has room for one: below 4 it may not.
        digest: told every byte received, in order.

    A line of exactly ``max_line`` bytes is a whole one. A ``\\r`` is content and counts.
    """

    size: int
    """Bytes received."""

    def __init__(self, max_line: int = MAX_LINE, digest: Digest | None = None) -> None:
        self._max_line = max_line
        self._digest = digest
        # What has come of the unfinished line and not yet left. A bytearray, because a line may
        # come byte by byte, and bytes that are added to are copied each time.
        self._carry = bytearray()
        self._in_parts = False
        self._finished = 0
        self.size = 0

    @property
    def lines(self) -> int:
        """Lines begun so far: a line in parts is one, and so is one without its ``\\n``."""
        return self._finished + self._unfinished

    @property
    def has_partial(self) -> bool:
        """Is there something that :meth:`flush_partial` would send?"""
        return _whole_characters(self._carry, 0, len(self._carry)) > 0

    def receive_data(self, data: bytes) -> list[Piece]:
        """Take what one read gave; return what can leave now, in order."""
        self.size += len(data)
        if self._digest is not None:
            self._digest.update(data)
        end = data.rfind(b"\n") + 1
        if not end:
            self._carry += data
            return self._cut_carry()
        # bytes.count looks at every byte, which costs half as much as all framing does; replace
        # jumps from one newline to the next.
        self._finished += len(data) - len(data.replace(b"\n", b""))
        ended = b"".join((self._carry, data[:end]))
        self._carry = bytearray(data[end:])
        # Nothing that short can hold a line that is too long, so no line is looked at.
        if len(ended) <= self._max_line + 1 and not self._in_parts:
            pieces = [(Kind.LINES, ended)]
        else:
            pieces = self._sort(ended)
            self._in_parts = False
        return pieces + self._cut_carry()

    def flush_partial(self) -> list[Piece]:
        """Let the unfinished line go as far as it has come, as a part, for a child that has fallen
        silent in the middle of it. A UTF-8 character that is not complete yet stays."""
        cut = _whole_characters(self._carry, 0, len(self._carry))
        if not cut:
            return []
        part = bytes(self._carry[:cut])
        del self._carry[:cut]
        self._in_parts = True
        return [(Kind.PART, part)]

    def receive_eof(self) -> list[Piece]:
        """Take the end of the stream; return the unterminated last line, if there is one.

        A second call returns nothing.
        """
        if not self._unfinished:
            return []
        tail = bytes(self._carry)
        self._carry.clear()
        self._in_parts = False
        self._finished += 1
        return [(Kind.TAIL, tail)]

    @property
    def _unfinished(self) -> bool:
        return self._in_parts or bool(self._carry)

    def _cut_carry(self) -> list[Piece]:
        if len(self._carry) <= self._max_line:
            return []
        parts, cut = self._cut(self._carry, 0, len(self._carry))
        del self._carry[:cut]
        self._in_parts = True
        return parts

    def _sort(self, ended: bytes) -> list[Piece]:
        """Whole lines, of which the first may go on from parts, and any may be too long."""
        pieces: list[Piece] = []
        start = 0
        if self._in_parts:
            end = ended.index(b"\n")
            pieces, start = self._cut(ended, 0, end)
            pieces.append((Kind.REST, ended[start:end]))
            start = end + 1
        position = start
        # From `start` on, everything before `position` is whole lines that have not left.
        for length in map(len, ended[start:-1].split(b"\n") if start < len(ended) else ()):
            end = position + length
            if length > self._max_line:
                if start < position:
                    pieces.append((Kind.LINES, ended[start:position]))
                parts, cut = self._cut(ended, position, end)
                pieces += parts
                pieces.append((Kind.REST, ended[cut:end]))
                start = end + 1
            position = end + 1
        if start < position:
            pieces.append((Kind.LINES, ended[start:position]))
        return pieces

    def _cut(self, line: bytes | bytearray, start: int, end: int) -> tuple[list[Piece], int]:
        """The parts of the line from start to end, and where what is left of it begins."""
        parts: list[Piece] = []
        while end - start > self._max_line:
            # Where the cap has no room for the character, the character is cut.
            stop = start + self._max_line
            stop = _whole_characters(line, start, stop) or stop
            parts.append((Kind.PART, bytes(line[start:stop])))
            start = stop
        return parts, start


def _whole_characters(line: bytes | bytearray, start: int, end: int) -> int:
    """Where the last character complete before `end` ends, or 0 if none is complete from `start`.

    A byte that can be part of no character counts as one, as it does when it is replaced. A byte
    that begins a character does so whatever stands before it, so the last three bytes decide.
    """
    last = max(start, end - _LONGEST_INCOMPLETE)
    _, whole = codecs.utf_8_decode(line[last:end], "replace", False)
    return last + whole if last + whole > start else 0
