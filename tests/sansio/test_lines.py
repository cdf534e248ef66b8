"""agentd.sansio.lines: every byte comes out again, in pieces that depend on no read boundary."""

import hashlib
import itertools
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.lines import READ, naive_split, one_by_one, outputs, reads, split

from agentd.sansio.lines import MAX_LINE, Kind, LineSplitter, Piece

LINES, PART, REST, TAIL = Kind.LINES, Kind.PART, Kind.REST, Kind.TAIL

caps = st.integers(1, 12) | st.sampled_from([40, MAX_LINE])


@given(reads(), caps)
def test_pieces_are_those_of_the_naive_splitter(given_reads: list[bytes], cap: int) -> None:
    """Whatever the bytes, the reads and the cap, lines and parts are what a slow splitter finds."""
    assert one_by_one(split(given_reads, cap)) == naive_split(b"".join(given_reads), cap)


@given(outputs, caps)
def test_byte_at_a_time_equals_one_read(output: bytes, cap: int) -> None:
    """A child that writes single bytes is cut into the same pieces as one that writes all."""
    one_read = one_by_one(split([output], cap))
    assert one_by_one(split([bytes([byte]) for byte in output], cap)) == one_read


@given(reads(), caps)
def test_no_byte_is_lost_or_made_up(given_reads: list[bytes], cap: int) -> None:
    """The pieces with their newlines, and the digest and size, are those of the bytes that came."""
    output = b"".join(given_reads)
    digest = hashlib.sha256()
    splitter = LineSplitter(cap, digest)
    pieces = [piece for data in given_reads for piece in splitter.receive_data(data)]
    pieces += splitter.receive_eof()
    assert joined(pieces) == output
    assert splitter.size == len(output)
    assert digest.digest() == hashlib.sha256(output).digest()


@given(reads(), caps)
def test_every_piece_keeps_to_the_cap(given_reads: list[bytes], cap: int) -> None:
    """No piece has more content than the cap, no part is empty or cut more than 3 bytes earlier."""
    for kind, content in one_by_one(split(given_reads, cap)):
        assert len(content.removesuffix(b"\n") if kind is LINES else content) <= cap
        if kind is PART:
            assert len(content) >= max(1, cap - 3)
        elif kind in (REST, TAIL):
            assert content


@given(reads(), st.integers(4, 12))
def test_replacing_in_parts_is_replacing_in_the_whole(given_reads: list[bytes], cap: int) -> None:
    """Parts decoded one by one with U+FFFD make the text of the whole line, decoded at once."""
    pieces = split(given_reads, cap)
    text = "".join(
        content.decode("utf-8", "replace") + ("\n" if kind is REST else "")
        for kind, content in pieces
    )
    assert text == b"".join(given_reads).decode("utf-8", "replace")


@given(reads(), caps)
def test_lines_counts_lines_and_not_parts(given_reads: list[bytes], cap: int) -> None:
    """At any time `lines` is the number of lines begun, and the end of the stream adds none."""
    splitter = LineSplitter(cap)
    so_far = b""
    for data in given_reads:
        splitter.receive_data(data)
        so_far += data
        assert splitter.lines == so_far.count(b"\n") + (
            not so_far.endswith(b"\n") and so_far != b""
        )
    before = splitter.lines
    splitter.receive_eof()
    assert splitter.lines == before


@given(reads(), caps, st.data())
def test_flushing_loses_nothing(given_reads: list[bytes], cap: int, data: st.DataObject) -> None:
    """With flushes anywhere the bytes and lines are the same, and none of them cuts a character."""
    splitter = LineSplitter(cap)
    pieces: list[Piece] = []
    for read in given_reads:
        pieces += splitter.receive_data(read)
        if data.draw(st.booleans()):
            promised = splitter.has_partial
            flushed = splitter.flush_partial()
            assert promised == bool(flushed)
            assert not splitter.has_partial
            assert all(kind is PART and 0 < len(part) <= cap for kind, part in flushed)
            pieces += flushed
    pieces += splitter.receive_eof()
    output = b"".join(given_reads)
    assert joined(pieces) == output
    assert splitter.lines == output.count(b"\n") + (not output.endswith(b"\n") and output != b"")
    follows(pieces)
    if cap >= 4:
        text = "".join(
            content.decode("utf-8", "replace") + ("\n" if kind is REST else "")
            for kind, content in pieces
        )
        assert text == output.decode("utf-8", "replace")


@pytest.mark.parametrize("step", [READ, READ - 1, 4096, 1 << 20])
def test_lines_around_the_default_cap(step: int) -> None:
    """At the default cap and reads of real sizes the pieces are those of the naive splitter."""
    smile = "😀".encode()
    lines = [b"x" * (MAX_LINE + more) for more in (-1, 0, 1, READ)]
    lines += [b"y" * shift + smile * (MAX_LINE // 3) for shift in range(4)]
    output = b"short\nlines\n".join(line + b"\n" for line in lines) + smile * MAX_LINE
    some_reads = [output[at : at + step] for at in range(0, len(output), step)]
    assert one_by_one(split(some_reads, MAX_LINE)) == naive_split(output, MAX_LINE)


def test_a_read_of_whole_lines_is_one_piece_and_not_copied() -> None:
    """A read that ends with a newline goes on as it came."""
    data = b"x" * 79 + b"\n"
    data *= READ // len(data)
    [(kind, content)] = LineSplitter().receive_data(data)
    assert kind is LINES
    assert content == data


def test_a_line_over_two_reads_leaves_with_the_second() -> None:
    """The unfinished line of a read waits, and leads the lines of the next one."""
    splitter = LineSplitter()
    assert splitter.receive_data(b"one\ntw") == [(LINES, b"one\n")]
    assert splitter.receive_data(b"o\nthree\n") == [(LINES, b"two\nthree\n")]
    assert splitter.receive_eof() == []


def test_nothing_in_nothing_out() -> None:
    """An empty read and an empty stream make no piece and no line."""
    splitter = LineSplitter()
    assert splitter.receive_data(b"") == []
    assert not splitter.has_partial
    assert splitter.flush_partial() == []
    assert splitter.receive_eof() == []
    assert (splitter.lines, splitter.size) == (0, 0)


def test_empty_lines_are_lines() -> None:
    """Newlines alone are as many empty lines."""
    splitter = LineSplitter(1)
    assert one_by_one(splitter.receive_data(b"\n\n\n")) == [(LINES, b"\n")] * 3
    assert splitter.lines == 3


@pytest.mark.parametrize(
    "separator", ["\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\0"]
)
def test_only_a_newline_ends_a_line(separator: str) -> None:
    """What `str.splitlines` takes for an end of line is content, and so is NUL."""
    output = f"a{separator}b\n".encode()
    assert split([output], MAX_LINE) == [(LINES, output)]


def test_a_line_of_exactly_the_cap_is_whole() -> None:
    """At the cap a line is one piece, also when its newline comes in another read; one byte more
    makes parts."""
    assert split([b"abcd\n"], 4) == [(LINES, b"abcd\n")]
    assert split([b"abcd", b"\n"], 4) == [(LINES, b"abcd\n")]
    assert split([b"abcd"], 4) == [(TAIL, b"abcd")]
    assert split([b"abcd", b"e", b"\n"], 4) == [(PART, b"abcd"), (REST, b"e")]
    assert split([b"abcd\r\n"], 4) == [(PART, b"abcd"), (REST, b"\r")]


def test_a_part_leaves_as_soon_as_the_line_is_too_long() -> None:
    """A line without end in sight does not wait for its newline, nor do lines behind it."""
    splitter = LineSplitter(4)
    assert splitter.receive_data(b"ab\nabcdefghi") == [
        (LINES, b"ab\n"),
        (PART, b"abcd"),
        (PART, b"efgh"),
    ]
    assert splitter.receive_data(b"\nxy\n") == [(REST, b"i"), (LINES, b"xy\n")]
    assert splitter.lines == 3


def test_long_lines_among_short_ones_keep_their_places() -> None:
    """Runs of short lines stay together between the parts of long ones."""
    assert split([b"a\nb\ntoolong\nc\nalsotoolong\nlongest!!\nd\ne\n"], 4) == [
        (LINES, b"a\nb\n"),
        (PART, b"tool"), (REST, b"ong"),
        (LINES, b"c\n"),
        (PART, b"also"), (PART, b"tool"), (REST, b"ong"),
        (PART, b"long"), (PART, b"est!"), (REST, b"!"),
        (LINES, b"d\ne\n"),
    ]  # fmt: skip


def test_the_rest_of_a_line_can_be_all_of_a_read() -> None:
    """A read that only finishes a line in parts makes no empty LINES."""
    assert split([b"abcdef", b"\n"], 4) == [(PART, b"abcd"), (REST, b"ef")]
    assert split([b"abcdef", b"gh\n", b"x\n"], 4) == [
        (PART, b"abcd"), (REST, b"efgh"), (LINES, b"x\n"),
    ]  # fmt: skip
    assert split([b"abcdef", b"ghi\n"], 4) == [(PART, b"abcd"), (PART, b"efgh"), (REST, b"i")]


@pytest.mark.parametrize("character", ["é", "€", "😀"])
def test_a_part_ends_before_the_character_it_would_cut(character: str) -> None:
    """Wherever the cap falls in a character, the character goes to the next part whole."""
    encoded = character.encode()
    for before in range(1, len(encoded)):
        head = b"x" * (8 - before)
        assert split([head + encoded + b"yyyyyy\n"], 8)[0] == (PART, head)
    head = b"x" * (8 - len(encoded))
    assert split([head + encoded + b"yyyyyy\n"], 8)[0] == (PART, head + encoded)


def test_bytes_that_begin_no_character_are_not_held_back() -> None:
    """Only what may still become a character moves a cut; what never can is cut at the cap."""
    assert split([b"ab\xff\xffcd"], 4) == [(PART, b"ab\xff\xff"), (TAIL, b"cd")]
    assert split([b"abc\x9f\x98\x80"], 4) == [(PART, b"abc\x9f"), (TAIL, b"\x98\x80")]
    assert split([b"a\xf0\x80\x80\x80"], 4) == [(PART, b"a\xf0\x80\x80"), (TAIL, b"\x80")]


@pytest.mark.parametrize("cap", [1, 2, 3])
def test_a_cap_smaller_than_a_character_cuts_it(cap: int) -> None:
    """Where no character fits, the cap wins and the splitter goes on."""
    output = "😀😀\n".encode()
    assert one_by_one(split([output], cap)) == naive_split(output, cap)
    assert split(["😀".encode()], cap)[0] == (PART, "😀".encode()[:cap])


def test_a_flush_sends_what_is_there_as_a_part() -> None:
    """A prompt without newline goes out on a flush, and what follows is the rest of its line."""
    splitter = LineSplitter()
    splitter.receive_data(b"Name: ")
    assert (splitter.has_partial, splitter.flush_partial()) == (True, [(PART, b"Name: ")])
    assert (splitter.has_partial, splitter.flush_partial()) == (False, [])
    assert splitter.receive_data(b"Ada\nnext\n") == [(REST, b"Ada"), (LINES, b"next\n")]
    assert splitter.lines == 2


def test_a_line_flushed_whole_ends_with_an_empty_piece() -> None:
    """The newline, or its absence, still has to be told when all content has gone already."""
    splitter = LineSplitter()
    splitter.receive_data(b"all of it")
    splitter.flush_partial()
    assert splitter.receive_data(b"\n") == [(REST, b"")]
    splitter.receive_data(b"last")
    splitter.flush_partial()
    assert splitter.lines == 2
    assert splitter.receive_eof() == [(TAIL, b"")]
    assert splitter.lines == 2


def test_a_flush_holds_back_an_incomplete_character() -> None:
    """A character of which some bytes are there waits for the others, and goes at the end of the
    stream without them."""
    smile = "😀".encode()
    splitter = LineSplitter()
    splitter.receive_data(b"ok" + smile[:3])
    assert splitter.flush_partial() == [(PART, b"ok")]
    assert (splitter.has_partial, splitter.flush_partial()) == (False, [])
    splitter.receive_data(smile[3:])
    assert (splitter.has_partial, splitter.flush_partial()) == (True, [(PART, smile)])
    splitter.receive_data(smile[:1])
    assert splitter.receive_eof() == [(TAIL, smile[:1])]


def test_the_end_comes_once() -> None:
    """A second end of the stream says nothing new."""
    splitter = LineSplitter()
    splitter.receive_data(b"a\nlast")
    assert splitter.receive_eof() == [(TAIL, b"last")]
    assert splitter.receive_eof() == []
    assert splitter.lines == 2


@pytest.mark.parametrize("cap", [100, MAX_LINE])
def test_a_line_without_end_needs_no_memory(cap: int) -> None:
    """64 MiB in one line take no more than a few reads and caps at a time."""
    splitter = LineSplitter(cap)
    data = b"x" * READ
    size = 0
    tracemalloc.start()
    try:
        for _ in range(64 if cap == 100 else 1024):
            size += sum(len(part) for _, part in splitter.receive_data(data))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert splitter.size - size <= cap
    assert peak < 4 * (cap + READ) + 200 * READ // cap
    assert splitter.lines == 1


def test_a_long_line_byte_by_byte_is_linear() -> None:
    """A mebibyte in single bytes is done in a moment; copying the line each time takes a minute."""
    splitter = LineSplitter(1 << 20)
    began = time.monotonic()
    for _ in range(1 << 20):
        splitter.receive_data(b"x")
    assert time.monotonic() - began < 20
    assert splitter.receive_eof() == [(TAIL, b"x" * (1 << 20))]


def joined(pieces: list[Piece]) -> bytes:
    """The bytes the pieces stand for."""
    return b"".join(content + (b"\n" if kind is REST else b"") for kind, content in pieces)


def follows(pieces: list[Piece]) -> None:
    """After a part comes a part, a rest or the tail; a rest or an empty tail comes after a part."""
    for (before, _), (kind, content) in itertools.pairwise([(LINES, b""), *pieces]):
        assert (before is PART) <= (kind in (PART, REST, TAIL))
        assert (kind is REST) <= (before is PART)
        assert (kind is TAIL and not content) <= (before is PART)
    assert not pieces or pieces[-1][0] is not PART
