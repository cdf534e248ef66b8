"""agentd.sansio.frames: an independent peer reads what was meant, and no shortcut shows in it."""

import base64
import hashlib
import json
from collections.abc import Iterable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.lines import READ, naive_split, reads
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from agentd import PROTOCOL
from agentd.sansio.frames import (
    BINARY,
    PING,
    PONG,
    TEXT,
    RawEncoder,
    RecordEncoder,
    close_frame,
    frame,
)
from agentd.sansio.lifecycle import End, Outcome
from agentd.sansio.lines import MAX_LINE, Kind, LineSplitter, Piece

LINES, PART, REST, TAIL = Kind.LINES, Kind.PART, Kind.REST, Kind.TAIL

Message = str | bytes

caps = st.integers(1, 12) | st.just(MAX_LINE)
streams = st.sampled_from(["stdout", "stderr"])
# Where a number gets a digit more, or another thousand begins.
starts = st.sampled_from([0, 5, 8, 9, 98, 99, 997, 998, 999, 1000, 1998, 1999, 9998, 99_999])

CONTROL = [chr(number) for number in range(0x20) if number != 0x0A]
SPECIAL = [*CONTROL, "\x7f", '"', "\\", "/", "\u0080", "\u2028", "\u2029", "\ufeff", "\uffff", "😀"]


# RFC 6455


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_a_frame_of_any_length_is_read_by_another_implementation(opcode: int, length: int) -> None:
    """On both sides of each length form a peer that allows no other form reads the payload."""
    payload = b"x" * length
    expected = payload.decode() if opcode == TEXT else payload
    assert messages(frame(opcode, payload)) == [expected]


def test_the_headers_are_those_of_the_rfc() -> None:
    """The examples of section 5.7, byte for byte."""
    assert frame(TEXT, b"Hello") == bytes.fromhex("810548656c6c6f")
    assert frame(PING, b"Hello") == bytes.fromhex("890548656c6c6f")
    assert frame(BINARY, bytes(256))[:4] == bytes.fromhex("827e0100")
    assert frame(BINARY, bytes(65536))[:10] == bytes.fromhex("827f0000000000010000")


def test_control_frames_are_read_by_another_implementation() -> None:
    """A Ping, a Pong and a Close arrive as such between and after messages."""
    peer = Connection(ConnectionType.CLIENT)
    peer.receive_data(frame(PING, b"p") + frame(TEXT, b"t") + frame(PONG, b"q"))
    peer.receive_data(close_frame(4000, "exit 3"))
    ping, text, pong, close = peer.events()
    assert ping == Ping(payload=b"p")
    assert text == TextMessage(data="t")
    assert pong == Pong(payload=b"q")
    assert close == CloseConnection(code=4000, reason="exit 3")


@given(st.text() | st.text(alphabet="é€😀a", min_size=28, max_size=140))
def test_a_close_reason_fits_and_is_text(reason: str) -> None:
    """A reason of any length leaves a control frame of 125 bytes at most, cut at a character."""
    closing = close_frame(1011, reason)
    assert len(closing) <= 2 + 125
    peer = Connection(ConnectionType.CLIENT)
    peer.receive_data(closing)
    [close] = peer.events()
    assert isinstance(close, CloseConnection)
    told = close.reason or ""
    assert reason.startswith(told)
    assert told == reason or len(told.encode()) > 123 - 4


def test_a_close_reason_that_is_no_text_is_still_sent() -> None:
    """A lone surrogate, which UTF-8 has no bytes for, does not keep a Close from leaving."""
    assert close_frame(1011, "a\udcffb") == close_frame(1011, "a?b")


# Raw


@given(reads(), caps, st.booleans(), st.sampled_from(["replace", "binary"]))
def test_raw_frames_are_those_of_the_naive_encoder(
    given_reads: list[bytes], cap: int, skip_empty: bool, invalid: Literal["replace", "binary"]
) -> None:
    """Whatever the bytes, the reads and the options, each line is the message it should be."""
    encoder = RawEncoder(skip_empty=skip_empty, invalid_utf8=invalid)
    expected = naive_raw(naive_split(b"".join(given_reads), cap), skip_empty, invalid)
    assert messages(encoded(encoder, given_reads, cap)) == expected


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r")), min_size=1))
def test_raw_text_lines_arrive_as_they_are(lines: list[str]) -> None:
    """Lines of text, ended either way, are the messages a client gets, without their ends."""
    for end in ("\n", "\r\n"):
        content = "".join(line + end for line in lines).encode()
        assert messages(RawEncoder().encode("stdout", [(LINES, content)])) == lines


def test_raw_drops_one_carriage_return_and_only_before_the_newline() -> None:
    """Of two carriage returns one stays, and so do all that do not stand before a newline."""
    content = b"a\r\nb\r\r\n\rc\rd\n\r\n\r\r\n\n"
    assert messages(RawEncoder().encode("stdout", [(LINES, content)])) == [
        "a", "b\r", "\rc\rd", "", "\r", "",
    ]  # fmt: skip


def test_raw_keeps_the_carriage_return_that_no_newline_follows() -> None:
    """A part and the unterminated last line end with the bytes they have."""
    encoder = RawEncoder()
    assert messages(encoder.encode("stdout", [(PART, b"a\r"), (REST, b"b\r\r")])) == ["a\r", "b\r"]
    assert messages(encoder.encode("stdout", [(TAIL, b"last\r")])) == ["last\r"]


@pytest.mark.parametrize("piece", [(REST, b""), (REST, b"\r"), (TAIL, b"")])
def test_raw_invents_no_empty_line(piece: Piece) -> None:
    """A long line of which nothing but its end is left does not become an empty frame."""
    assert messages(RawEncoder().encode("stdout", [(PART, b"long"), piece])) == ["long"]


def test_a_raw_line_as_long_as_the_cap_with_crlf_is_one_frame() -> None:
    """The carriage return that makes a line one byte too long is not seen by the client."""
    assert messages(encoded(RawEncoder(), [b"abcd\r\nx\n"], 4)) == ["abcd", "x"]


def test_raw_empty_lines_are_sent_or_skipped() -> None:
    """Empty lines are empty messages; with skip_empty they are nothing, alone among others."""
    content = b"\n\na\n\r\nb\n\n"
    assert messages(RawEncoder().encode("stdout", [(LINES, content)])) == [
        "", "", "a", "", "b", "",
    ]  # fmt: skip
    skipping = RawEncoder(skip_empty=True)
    assert messages(skipping.encode("stdout", [(LINES, content)])) == ["a", "b"]
    assert skipping.encode("stdout", [(LINES, b"\n\r\n\n")]) == b""
    assert messages(skipping.encode("stdout", [(LINES, b"\n\xff\n\n")])) == ["\ufffd"]


def test_raw_invalid_lines_are_replaced_or_binary() -> None:
    """One line that is not UTF-8 changes neither the text before it nor that after it."""
    content = "ä\n".encode() + b"\xff\xe2\x82x\r\n" + "ö\n".encode()
    assert messages(RawEncoder().encode("stdout", [(LINES, content)])) == [
        "ä", "\ufffd\ufffdx", "ö",
    ]  # fmt: skip
    exact = RawEncoder(invalid_utf8="binary")
    assert messages(exact.encode("stdout", [(LINES, content)])) == ["ä", b"\xff\xe2\x82x", "ö"]
    assert messages(exact.encode("stdout", [(PART, b"\x80"), (TAIL, b"ok")])) == [b"\x80", "ok"]


def test_raw_sends_stdout_only() -> None:
    """What comes from stderr makes no frame, and no pieces make none."""
    assert RawEncoder().encode("stderr", [(LINES, b"secretly\n")]) == b""
    assert RawEncoder().encode("stdout", []) == b""


@pytest.mark.parametrize("length", [0, 125, 126, 4095, 4096, 65535, 65536, 200_000])
def test_raw_lines_of_any_length_among_short_ones(length: int) -> None:
    """A line whose header is in no table comes through, and so do those around it."""
    lines = ["before", "x" * length, "after"]
    content = "".join(line + "\n" for line in lines).encode()
    assert messages(RawEncoder().encode("stdout", [(LINES, content)])) == lines


# agentd.v1


@given(st.lists(st.tuples(streams, reads()), max_size=4), caps, starts)
def test_records_are_those_of_the_naive_encoder(
    given_reads: list[tuple[str, list[bytes]]], cap: int, start: int
) -> None:
    """Whatever the bytes, reads, streams and number, each record has the fields it should have, in
    their order, and the numbers run on over both streams."""
    encoder = RecordEncoder()
    encoder.seq = start
    sent = b""
    expected: list[list[tuple[str, object]]] = []
    for stream, some_reads in given_reads:
        sent += encoded(encoder, some_reads, cap, stream)
        for piece in naive_split(b"".join(some_reads), cap):
            expected.append(naive_record(stream, start + len(expected) + 1, piece))
    assert [in_order(record) for record in messages(sent)] == expected
    assert encoder.seq == start + len(expected)


@given(reads(), caps, starts)
def test_a_client_rebuilds_what_the_child_wrote(
    given_reads: list[bytes], cap: int, start: int
) -> None:
    """From the records alone, in any mix with stderr, come the bytes and the digest of stdout."""
    digest = hashlib.sha256()
    stdout, stderr = LineSplitter(cap, digest), LineSplitter(cap)
    encoder = RecordEncoder()
    encoder.seq = start
    sent = b""
    for data in given_reads:
        sent += encoder.encode("stderr", stderr.receive_data(data[::-1]))
        sent += encoder.encode("stdout", stdout.receive_data(data))
        sent += encoder.encode("stdout", stdout.flush_partial())
    sent += encoder.encode("stdout", stdout.receive_eof())
    sent += encoder.encode("stderr", stderr.receive_eof())
    records = [json.loads(message) for message in messages(sent)]
    assert [record["seq"] for record in records] == list(range(start + 1, encoder.seq + 1))
    output = b"".join(rebuilt(record) for record in records if record["type"] == "stdout")
    assert output == b"".join(given_reads)
    assert hashlib.sha256(output).digest() == digest.digest()
    errors = b"".join(rebuilt(record) for record in records if record["type"] == "stderr")
    assert errors == b"".join(data[::-1] for data in given_reads)


@pytest.mark.parametrize("start", [0, 1, 8, 9, 98, 99, 500, 998, 999, 1000, 1999, 9_999, 999_990])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_thousands_of_lines_at_once_are_as_one_by_one(start: int, stream: str) -> None:
    """A read of short lines over several thousands gives the bytes that its lines give alone."""
    lines = [f"{'é' * (number % 90)} {number}" for number in range(3001)]
    check_at_once_as_alone(stream, start, [line.encode() for line in lines])


@given(st.lists(st.text() | st.text(alphabet=SPECIAL), min_size=1), starts)
def test_any_text_at_once_is_as_one_by_one(lines: list[str], start: int) -> None:
    """Escaping all lines together gives what escaping each gives."""
    content = [line.replace("\n", "").encode() for line in lines]
    check_at_once_as_alone("stdout", start, content)


@pytest.mark.parametrize("payload", [125, 126, 127, 4095, 4096, 65535, 65536, 70_000])
@pytest.mark.parametrize("start", [0, 41, 122, 1233, 1_000_000])
def test_records_on_both_sides_of_every_length_form(payload: int, start: int) -> None:
    """A record of the length where the header changes is read by another implementation."""
    around = len(f'{{"type":"stdout","seq":{start + 2},"line":""}}')
    encoder = RecordEncoder()
    encoder.seq = start
    line = "x" * (payload - around)
    sent = messages(encoder.encode("stdout", [(LINES, f"a\n{line}\nb\n".encode())]))
    assert len(sent[1]) == payload
    assert [json.loads(message)["line"] for message in sent] == ["a", line, "b"]
    check_at_once_as_alone("stdout", start, [b"a", line.encode(), b"b"])


@pytest.mark.parametrize("character", SPECIAL)
def test_every_special_character_is_valid_json(character: str) -> None:
    """Control characters, quotes, backslashes, DEL and line separators arrive as they were, in a
    line of a read and in a piece alone."""
    line = f"{character}a{character}{character}"
    encoder = RecordEncoder()
    sent = messages(encoder.encode("stdout", [(LINES, f"{line}\nb\n{line}\n".encode())]))
    assert [json.loads(message)["line"] for message in sent] == [line, "b", line]
    [sole] = messages(encoder.encode("stdout", [(TAIL, line.encode())]))
    assert json.loads(sole)["line"] == line


def test_what_looks_like_the_seams_between_records_is_content() -> None:
    """Lines that hold the encoder's own seams, or its stand-in for a newline, stay lines."""
    lines = ['"}', '","', "\\n", "\\", '\\"', "a\x7fb", "\x7f", "", '{"type":"end"}']
    for some in (lines, [line for line in lines if "\x7f" not in line]):
        content = "".join(line + "\n" for line in some).encode()
        sent = messages(RecordEncoder().encode("stdout", [(LINES, content)]))
        assert [json.loads(message)["line"] for message in sent] == some


def test_records_say_what_a_line_and_a_piece_are() -> None:
    """The exact records of whole lines, of a line in parts, of an unterminated one and of bytes."""
    encoder = RecordEncoder()
    sent = encoder.encode("stdout", [(LINES, b"one\r\n\n"), (PART, b"lo"), (REST, b"ng")])
    sent += encoder.encode("stderr", [(LINES, b"\xff\n")])
    sent += encoder.encode("stdout", [(PART, b"\xe2"), (TAIL, b"")])
    assert messages(sent) == [
        '{"type":"stdout","seq":1,"line":"one\\r"}',
        '{"type":"stdout","seq":2,"line":""}',
        '{"type":"stdout","seq":3,"line":"lo","more":true}',
        '{"type":"stdout","seq":4,"line":"ng"}',
        '{"type":"stderr","seq":5,"base64":"/w=="}',
        '{"type":"stdout","seq":6,"base64":"4g==","more":true}',
        '{"type":"stdout","seq":7,"line":"","eol":false}',
    ]


def test_one_bad_line_leaves_the_others_text() -> None:
    """In a read with a line that is not UTF-8 that line alone is base64."""
    encoder = RecordEncoder()
    encoder.seq = 1998
    sent = messages(encoder.encode("stdout", [(LINES, b"a\n\xc0\x80\n\xc3\xa9\n")]))
    assert [json.loads(message) for message in sent] == [
        {"type": "stdout", "seq": 1999, "line": "a"},
        {"type": "stdout", "seq": 2000, "base64": "wIA="},
        {"type": "stdout", "seq": 2001, "line": "é"},
    ]


def test_a_character_cut_by_a_newline_is_not_utf8() -> None:
    """Halves of a character on both sides of a newline are two bad lines, not a good one."""
    sent = messages(RecordEncoder().encode("stdout", [(LINES, b"\xc3\n\xa9\n")]))
    assert ["base64" in json.loads(message) for message in sent] == [True, True]


def test_no_pieces_no_records() -> None:
    """Nothing to send is nothing sent, and no number is used."""
    encoder = RecordEncoder()
    assert encoder.encode("stdout", []) == b""
    assert encoder.seq == 0


def test_hello_names_what_comes_next() -> None:
    """The first record has every field, null where there is no image."""
    encoder = RecordEncoder()
    [first] = messages(encoder.hello(run="r-1", boot="b", build="0.1.0", image=None))
    assert in_order(first) == [
        ("type", "hello"),
        ("protocol", PROTOCOL),
        ("run", "r-1"),
        ("boot", "b"),
        ("build", "0.1.0"),
        ("image", None),
        ("next", 1),
    ]
    encoder.encode("stderr", [(LINES, b"a\nb\n")])
    [later] = messages(encoder.hello(run='"', boot="b", build="0.1.0", image="i"))
    assert json.loads(later)["next"] == 3
    assert json.loads(later)["image"] == "i"
    assert json.loads(later)["run"] == '"'


def test_heartbeat_names_what_came_last() -> None:
    """A heartbeat has the last number given out and uses none itself."""
    encoder = RecordEncoder()
    assert messages(encoder.heartbeat()) == ['{"type":"heartbeat","seq":0}']
    encoder.encode("stdout", [(LINES, b"a\n"), (TAIL, b"b")])
    assert messages(encoder.heartbeat()) == ['{"type":"heartbeat","seq":2}']
    assert encoder.seq == 2


@pytest.mark.parametrize("outcome", Outcome)
def test_end_has_every_field(outcome: Outcome) -> None:
    """The last record has all fields in their order, null where one does not apply."""
    end = End(
        outcome=outcome,
        exit_code=None,
        signal="SIGKILL",
        error=None,
        stdout_lines=3,
        stderr_lines=0,
        stdout_bytes=2**40,
        stdout_sha256="ab" * 32,
        seconds=1.25,
    )
    [sent] = messages(RecordEncoder().end(end))
    assert in_order(sent) == [
        ("type", "end"),
        ("outcome", outcome.value),
        ("exit_code", None),
        ("signal", "SIGKILL"),
        ("error", None),
        ("stdout_lines", 3),
        ("stderr_lines", 0),
        ("stdout_bytes", 2**40),
        ("stdout_sha256", "ab" * 32),
        ("seconds", 1.25),
    ]


def test_reads_of_real_size_arrive_whole() -> None:
    """A mebibyte of JSON lines in reads of 64 KiB comes through both encoders, every line."""
    lines = [json.dumps({"n": number, "text": "x" * (number % 120)}) for number in range(10_000)]
    output = "".join(line + "\n" for line in lines).encode()
    some_reads = [output[at : at + READ] for at in range(0, len(output), READ)]
    assert messages(encoded(RawEncoder(), some_reads, MAX_LINE)) == lines
    records = messages(encoded(RecordEncoder(), some_reads, MAX_LINE))
    assert [json.loads(record)["line"] for record in records] == lines


# What the tests above say it with.


def messages(sent: bytes) -> list[Message]:
    """What wsproto's client makes of these bytes; every frame must be whole and final."""
    peer = Connection(ConnectionType.CLIENT)
    peer.receive_data(sent)
    found: list[Message] = []
    for event in peer.events():
        assert isinstance(event, TextMessage | BytesMessage)
        assert event.message_finished
        found.append(event.data if isinstance(event, TextMessage) else bytes(event.data))
    # A frame cut short would swallow this one.
    peer.receive_data(frame(PING, b"whole"))
    assert list(peer.events()) == [Ping(payload=b"whole")]
    return found


def encoded(
    encoder: RawEncoder | RecordEncoder, reads: Iterable[bytes], cap: int, stream: str = "stdout"
) -> bytes:
    """Everything sent for these reads and the end of their stream."""
    splitter = LineSplitter(cap)
    sent = [encoder.encode(stream, splitter.receive_data(data)) for data in reads]
    return b"".join(sent) + encoder.encode(stream, splitter.receive_eof())


def naive_raw(pieces: list[Piece], skip_empty: bool, invalid: str) -> list[Message]:
    """The messages of raw mode, one piece at a time."""
    found: list[Message] = []
    for kind, content in pieces:
        message = content
        if kind is LINES:
            message = message[:-1]
        if kind in (LINES, REST) and message.endswith(b"\r"):
            message = message[:-1]
        if not message and (kind is not LINES or skip_empty):
            continue
        try:
            found.append(message.decode())
        except UnicodeDecodeError:
            found.append(message if invalid == "binary" else message.decode("utf-8", "replace"))
    return found


def naive_record(stream: str, seq: int, piece: Piece) -> list[tuple[str, object]]:
    """The fields of one piece's record."""
    kind, content = piece
    if kind is LINES:
        content = content[:-1]
    fields: list[tuple[str, object]] = [("type", stream), ("seq", seq)]
    try:
        fields.append(("line", content.decode()))
    except UnicodeDecodeError:
        fields.append(("base64", base64.b64encode(content).decode()))
    if kind is PART:
        fields.append(("more", True))
    if kind is TAIL:
        fields.append(("eol", False))
    return fields


def in_order(record: Message) -> list[tuple[str, object]]:
    """The fields of a record as they stand in it."""
    assert isinstance(record, str)
    return list(json.loads(record).items())


def rebuilt(record: dict[str, object]) -> bytes:
    """The bytes of the child that a record stands for."""
    content = (
        base64.b64decode(str(record["base64"]), validate=True)
        if "base64" in record
        else str(record["line"]).encode()
    )
    return content if "more" in record or "eol" in record else content + b"\n"


def check_at_once_as_alone(stream: str, start: int, lines: list[bytes]) -> None:
    """A read of these lines gives the bytes that the plain form gives, one line at a time."""
    at_once, alone = RecordEncoder(), RecordEncoder()
    at_once.seq = alone.seq = start
    sent = at_once.encode(stream, [(LINES, b"".join(line + b"\n" for line in lines))])
    # The rest of a line has the record of a line, and is encoded by itself.
    assert sent == alone.encode(stream, [(REST, line) for line in lines])
    assert at_once.seq == alone.seq == start + len(lines)
