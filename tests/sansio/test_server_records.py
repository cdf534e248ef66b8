"""A record stream is let through only if nothing of it is missing, doubled or changed."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.transcript import Fields, Transcript, text

from agentd import AgentdError
from agentd.sansio.lifecycle import End, Outcome
from agentd.sansio.server_records import (
    DigestMismatch,
    Heartbeat,
    Hello,
    Output,
    ProtocolError,
    Record,
    RecordStream,
)


def receive(stream: RecordStream, *records: Fields) -> list[Record]:
    """Give records to a stream as messages."""
    return [stream.receive_message(text(record)) for record in records]


def started() -> tuple[RecordStream, Transcript]:
    """Return a stream that has taken its hello, and the transcript that it follows."""
    stream, told = RecordStream(), Transcript()
    receive(stream, told.hello())
    return stream, told


# What a whole stream gives.


def test_hello_tells_the_run_and_who_serves_it() -> None:
    """Every field of hello reaches the caller."""
    told = Transcript()
    [hello] = receive(RecordStream(), told.hello(image="sha256:1", run="abc"))
    assert hello == Hello("agentd.v1", "abc", "b00t", "0.1.0", "sha256:1", 1)


def test_a_line_is_its_bytes_and_its_text() -> None:
    """A line comes without its newline, and `raw` is what the child wrote."""
    stream, told = started()
    [line] = receive(stream, told.stdout("grüß\r"))
    assert line == Output("stdout", 1, "grüß\r".encode(), more=False, eol=True)
    assert isinstance(line, Output)
    assert line.text == "grüß\r"
    assert line.raw == "grüß\r\n".encode()


def test_a_line_that_is_not_utf8_keeps_its_bytes() -> None:
    """Base64 content is decoded, and its text shows U+FFFD for what is not UTF-8."""
    stream, told = started()
    [line] = receive(stream, told.stdout(b"a\xff\x00b"))
    assert isinstance(line, Output)
    assert line.data == b"a\xff\x00b"
    assert line.text == "a\ufffd\x00b"


def test_parts_are_joined_without_a_newline() -> None:
    """`more` adds no newline, and the part that ends the line adds one."""
    stream, told = started()
    parts = receive(stream, told.stdout("one ", more=True), told.stdout("line"), told.end())
    assert b"".join(part.raw for part in parts if isinstance(part, Output)) == b"one line\n"
    assert stream.end is not None
    assert stream.end.stdout_lines == 1


def test_parts_of_two_streams_may_come_between_each_other() -> None:
    """A line of stderr in the middle of a line of stdout breaks neither."""
    stream, told = started()
    receive(
        stream,
        told.stdout("a", more=True),
        told.stderr("x", more=True),
        told.stdout("b"),
        told.stderr("y"),
        told.end(),
    )
    assert stream.end is not None
    assert (stream.end.stdout_lines, stream.end.stderr_lines) == (1, 1)


def test_a_last_line_without_newline_gets_none() -> None:
    """`eol` false stands for a last line that had no newline."""
    stream, told = started()
    [line, end] = receive(stream, told.stdout("tail", eol=False), told.end())
    assert isinstance(line, Output)
    assert line.raw == b"tail"
    assert isinstance(end, End)
    assert end.stdout_bytes == 4


def test_the_end_record_tells_everything() -> None:
    """Every field of end reaches the caller, and the stream remembers it."""
    stream, told = started()
    [end] = receive(stream, told.end("signaled", None, signal="SIGKILL", seconds=2))
    assert end == End(
        outcome=Outcome.SIGNALED,
        exit_code=None,
        signal="SIGKILL",
        error=None,
        stdout_lines=0,
        stderr_lines=0,
        stdout_bytes=0,
        stdout_sha256=hashlib.sha256().hexdigest(),
        seconds=2.0,
    )
    assert stream.end is end


def test_a_heartbeat_names_the_last_record() -> None:
    """A heartbeat is let through where its seq is the last one that came."""
    stream, told = started()
    assert receive(stream, told.heartbeat(), told.stdout("x"), told.heartbeat())[::2] == [
        Heartbeat(0),
        Heartbeat(1),
    ]


def test_lines_that_the_daemon_kept_need_not_arrive() -> None:
    """With `--stderr log` the end record counts lines of stderr that were never sent."""
    stream, told = started()
    receive(stream, told.stdout("x"), told.end(stderr_lines=7))
    assert stream.end is not None


def test_fields_that_a_newer_server_adds_are_ignored() -> None:
    """An unknown field of a known record changes nothing."""
    stream, told = started()
    receive(stream, told.stdout("x", colour="red"), told.end(mood="fine"))
    assert stream.end is not None


# Holes and repetitions.


@pytest.mark.parametrize("seq", [1, 3, 4])
def test_a_jump_of_seq_is_an_error(seq: int) -> None:
    """A record that is missing or comes twice is noticed at once, and both numbers are named."""
    stream, told = started()
    receive(stream, told.stdout("x"))
    with pytest.raises(ProtocolError, match=f"seq {seq} where 2 was next"):
        receive(stream, told.stdout("y", seq=seq))


def test_a_heartbeat_from_ahead_is_an_error() -> None:
    """A heartbeat that names a later record than the last means that one is missing."""
    stream, told = started()
    with pytest.raises(ProtocolError, match="heartbeat"):
        receive(stream, told.heartbeat() | {"seq": 1})


def test_the_first_record_must_be_hello() -> None:
    """Without hello nobody knows where the stream began."""
    told = Transcript()
    for record in (told.stdout("x"), told.heartbeat(), told.end()):
        with pytest.raises(ProtocolError, match="first record is not hello"):
            receive(RecordStream(), record)


def test_a_second_hello_is_an_error() -> None:
    """Hello comes once."""
    stream, told = started()
    with pytest.raises(ProtocolError, match="second hello"):
        receive(stream, told.hello())


def test_a_stream_whose_beginning_is_missing_is_an_error() -> None:
    """A digest over the whole cannot be checked from the middle on."""
    with pytest.raises(ProtocolError, match="begins at record 5"):
        receive(RecordStream(), Transcript().hello(next=5))


def test_another_protocol_is_an_error() -> None:
    """The hello of another protocol is not taken for one of agentd.v1."""
    with pytest.raises(ProtocolError, match="protocol"):
        receive(RecordStream(), Transcript().hello(protocol="agentd.v2"))


@pytest.mark.parametrize("kind", ["stdout", "stderr"])
def test_nothing_of_a_stream_follows_its_last_line(kind: str) -> None:
    """After `eol` false that stream is over; the other may go on."""
    stream, told = started()
    write = getattr(told, kind)
    other = told.stderr if kind == "stdout" else told.stdout
    receive(stream, write("x", eol=False), other("fine"))
    with pytest.raises(ProtocolError, match=f"{kind} record came after the last line"):
        receive(stream, write("y"))


def test_a_record_cannot_be_a_part_and_the_last() -> None:
    """`more` and `eol` false contradict each other."""
    stream, told = started()
    with pytest.raises(ProtocolError, match="both"):
        receive(stream, told.stdout("x", more=True, eol=False))


@pytest.mark.parametrize("kind", ["stdout", "stderr"])
def test_a_line_that_was_begun_ends_before_the_end(kind: str) -> None:
    """An end in the middle of a line means that the rest of the line was lost."""
    stream, told = started()
    receive(stream, getattr(told, kind)("begun", more=True))
    with pytest.raises(ProtocolError, match="in the middle of a line"):
        receive(stream, told.end())


def test_nothing_follows_end() -> None:
    """Any record after end is an error, and end stays what it was."""
    stream, told = started()
    [end] = receive(stream, told.end())
    for record in (told.heartbeat(), told.end(), told.stdout("x")):
        with pytest.raises(ProtocolError, match="after the end"):
            receive(stream, record)
    assert stream.end is end


# Ends that are not true.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stdout_sha256", "0" * 64),
        ("stdout_sha256", ""),
        ("stdout_lines", 1),
        ("stdout_lines", 3),
        ("stderr_lines", 0),
        ("stderr_lines", 2),
        ("stdout_bytes", 0),
    ],
)
def test_an_end_that_describes_another_stream_is_an_error(field: str, value: object) -> None:
    """Each number of the end record is compared with what came, and the error names it."""
    stream, told = started()
    receive(stream, told.stdout("a"), told.stdout("b"), told.stderr("c"))
    with pytest.raises(DigestMismatch, match=f"^{field} of the end record"):
        receive(stream, told.end() | {field: value})
    assert stream.end is None


@pytest.mark.parametrize(
    ("outcome", "missing"),
    [("exited", "exit_code"), ("signaled", "signal"), ("spawn_failed", "error")],
)
def test_an_outcome_without_its_detail_is_an_error(outcome: str, missing: str) -> None:
    """`exited` without an exit code cannot pass for a success."""
    stream, told = started()
    with pytest.raises(ProtocolError, match=f"{outcome} without its {missing}"):
        receive(stream, told.end(outcome, None))


@pytest.mark.parametrize("outcome", ["timed_out", "cancelled", "shutdown"])
def test_a_stopped_run_may_have_no_status(outcome: str) -> None:
    """A run that was stopped before it started has neither exit code nor signal."""
    stream, told = started()
    receive(stream, told.end(outcome, None))
    assert stream.end is not None
    assert stream.end.outcome == outcome


# What is not a record.


@pytest.mark.parametrize(
    "message",
    [
        "",
        "hello",
        "null",
        "[]",
        "{}",
        '{"type": "surprise"}',
        '{"type": "heartbeat"}',
        '{"type": "heartbeat", "seq": -1}',
        '{"type": "heartbeat", "seq": true}',
        '{"type": "heartbeat", "seq": 1.5}',
        '{"type": "heartbeat", "seq": 0} {}',
        '{"type": "stdout", "seq": 0, "line": "x"}',
        '{"type": "stdout", "seq": 1, "line": "\\ud800"}',
        '{"type": "stdout", "seq": 1, "line": "\ud800"}',
        '{"type": "stdout", "seq": 1, "line": 5}',
        '{"type": "stdout", "seq": 1, "line": "x", "more": 1}',
        '{"type": "end", "outcome": "exited"}',
        "[" * 100_000,
        '{"type": "heartbeat", "seq": 0, "x": ' + "[" * 100_000,
    ],
)
def test_a_message_that_is_no_record_is_an_error(message: str) -> None:
    """Whatever is sent, the answer is a ProtocolError."""
    stream, _ = started()
    with pytest.raises(ProtocolError, match="a message is not a record"):
        stream.receive_message(message)


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "splendid"},
        {"exit_code": 256},
        {"exit_code": -1},
        {"exit_code": "0"},
        {"stdout_lines": -1},
        {"stdout_sha256": None},
        {"seconds": None},
    ],
)
def test_an_end_with_a_wrong_field_is_an_error(change: Fields) -> None:
    """No field of end may be of another type or out of its range."""
    stream, told = started()
    with pytest.raises(ProtocolError):
        receive(stream, told.end() | change)


@pytest.mark.parametrize("field", list(Transcript().end()))
def test_an_end_without_a_field_is_an_error(field: str) -> None:
    """All fields of a record are always there."""
    stream, told = started()
    end = told.end()
    del end[field]
    with pytest.raises(ProtocolError):
        receive(stream, end)


@pytest.mark.parametrize(
    "content", [{}, {"line": "x", "base64": "eA=="}, {"line": None}, {"base64": None}]
)
def test_a_line_has_one_kind_of_content(content: Fields) -> None:
    """Either `line` or `base64`, not both and not neither."""
    stream, _ = started()
    with pytest.raises(ProtocolError, match="either line or base64"):
        receive(stream, {"type": "stdout", "seq": 1} | content)


@pytest.mark.parametrize("content", ["x", "====", "eA==\n", "é", "e A="])
def test_base64_that_is_none_is_an_error(content: str) -> None:
    """Content that cannot be decoded is not guessed at."""
    stream, _ = started()
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        receive(stream, {"type": "stderr", "seq": 1, "base64": content})


@pytest.mark.parametrize(
    "record",
    [
        {"type": "stdout", "seq": 1, "base64": "SECRET!"},
        {"type": "stdout", "seq": 1, "line": ["SECRET"]},
        {"type": "SECRET"},
        {"type": "hello", "protocol": "SECRET", "run": "", "boot": "", "build": "", "image": None,
         "next": 1},
    ],
)  # fmt: skip
def test_an_error_does_not_show_what_came(record: Fields) -> None:
    """The child's output may be a secret: it is in no error, and in no error's context."""
    with pytest.raises(ProtocolError) as caught:
        receive(RecordStream(), record)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__context__ is None


# Properties.

Chunks = st.lists(
    st.tuples(st.booleans(), st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")),
              st.booleans()),
    max_size=30,
)  # fmt: skip


@given(chunks=Chunks, last=st.none() | st.binary(max_size=9).map(lambda d: d.replace(b"\n", b"")))
def test_what_a_child_wrote_is_rebuilt_exactly(
    chunks: list[tuple[bool, bytes, bool]], last: bytes | None
) -> None:
    """Whatever was written and however it was cut, `raw` joined is what each stream was."""
    stream, told = started()
    records = [
        (told.stderr if is_stderr else told.stdout)(data, more=more)
        for is_stderr, data, more in chunks
    ]
    records.append(told.stderr("", eol=False))
    records.append(told.stdout("") if last is None else told.stdout(last, eol=False))
    outputs = [output for output in receive(stream, *records) if isinstance(output, Output)]
    rebuilt = {"stdout": b"", "stderr": b""}
    for output in outputs:
        rebuilt[output.stream] += output.raw
    assert rebuilt == {"stdout": told.stdout_bytes, "stderr": told.stderr_bytes}
    receive(stream, told.end())
    assert stream.end is not None


@given(data=st.data(), chunks=Chunks.filter(bool))
def test_a_record_that_is_lost_is_always_noticed(
    data: st.DataObject, chunks: list[tuple[bool, bytes, bool]]
) -> None:
    """Without any one record but a heartbeat, no end is let through."""
    told = Transcript()
    records = [told.hello()]
    records += [told.stdout(content, more=more) for _, content, more in chunks]
    records.append(told.stdout(b"", eol=False))
    records.append(told.end())
    del records[data.draw(st.integers(0, len(records) - 2))]
    stream = RecordStream()
    with pytest.raises((ProtocolError, DigestMismatch)):
        receive(stream, *records)
    assert stream.end is None


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(
    record=st.sampled_from(
        [Transcript().hello(), Transcript().stdout("x"), Transcript().heartbeat(),
         Transcript().end()]
    ),
    changes=st.dictionaries(
        st.sampled_from([*Transcript().hello(), *Transcript().end(), "line", "base64", "seq",
                         "more", "eol"]),
        JSON,
        min_size=1,
    ),
)  # fmt: skip
def test_no_record_however_wrong_raises_anything_else(record: Fields, changes: Fields) -> None:
    """A changed record is let through or is an AgentdError, and nothing but that."""
    stream, _ = started()
    try:
        stream.receive_message(json.dumps(record | changes))
    except AgentdError:
        pass
