"""What a child may print, how the kernel may cut it, and a splitter too simple to be wrong."""

import codecs
import itertools
from collections.abc import Iterable

from hypothesis import strategies as st

from agentd.sansio.lines import Kind, LineSplitter, Piece

READ = 65536

# Everything that has ever been mistaken for the end of a line, or of a character.
_AWKWARD = [
    b"\n", b"\n", b"\n\n", b"\r", b"\r\n", b"\r\r\n", b"\x0b", b"\x0c", b"\x1c", b"\x00", b"\x7f",
    b'"', b"\\", b"\\n", b'","', b"a", b"hello", "é".encode(), "€".encode(), "\u2028".encode(),
    "\x85".encode(), "😀".encode(), "\ufeff".encode(), b"\xff", b"\x80", b"\xc0\x80", b"\xe2\x82",
    b"\xf0\x9f", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
]  # fmt: skip

outputs = st.lists(st.sampled_from(_AWKWARD), max_size=60).map(b"".join) | st.binary(max_size=200)
"""What a child printed, all of it."""


@st.composite
def reads(draw: st.DrawFn, output: st.SearchStrategy[bytes] = outputs) -> list[bytes]:
    """What a child printed, cut anywhere into reads."""
    whole = draw(output)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    edges = [0, *cuts, len(whole)]
    return [whole[a:b] for a, b in itertools.pairwise(edges)]


def split(reads: Iterable[bytes], max_line: int) -> list[Piece]:
    """Everything a splitter gives for these reads and the end of the stream."""
    splitter = LineSplitter(max_line)
    pieces = [piece for data in reads for piece in splitter.receive_data(data)]
    return pieces + splitter.receive_eof()


def one_by_one(pieces: Iterable[Piece]) -> list[Piece]:
    """The same pieces with every whole line on its own, still with its newline."""
    return [
        (kind, line)
        for kind, content in pieces
        for line in (
            [whole + b"\n" for whole in content[:-1].split(b"\n")]
            if kind is Kind.LINES
            else [content]
        )
    ]


def naive_split(output: bytes, max_line: int) -> list[Piece]:
    """What :func:`one_by_one` must give for `output`, found the slow way from all of it at once."""
    *lines, last = output.split(b"\n")
    pieces: list[Piece] = []
    for line in lines:
        parts, rest = _naive_parts(line, max_line)
        pieces += parts
        pieces.append((Kind.REST, rest) if parts else (Kind.LINES, rest + b"\n"))
    if last:
        parts, rest = _naive_parts(last, max_line)
        pieces += [*parts, (Kind.TAIL, rest)]
    return pieces


def _naive_parts(line: bytes, max_line: int) -> tuple[list[Piece], bytes]:
    parts: list[Piece] = []
    while len(line) > max_line:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(line[:max_line])
        incomplete = len(decoder.getstate()[0])
        cut = max_line - incomplete if incomplete < max_line else max_line
        parts.append((Kind.PART, line[:cut]))
        line = line[cut:]
    return parts, line
