"""agentd.sansio.client_records: what a client may send, and what is said of what it may not."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.sansio.client_records import (
    MAX_RECORD,
    Ack,
    BadRecord,
    ClientRecord,
    Plain,
    Signal,
    Stdin,
    parse_client_record,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"type": "cancel"}, Plain.CANCEL),
        ({"type": "heartbeat"}, Plain.HEARTBEAT),
        ({"type": "stdin_eof"}, Plain.STDIN_EOF),
        ({"type": "ack", "seq": 0}, Ack(0)),
        ({"type": "ack", "seq": 2**53}, Ack(2**53)),
        ({"type": "signal", "name": "SIGINT"}, Signal(2)),
        ({"type": "signal", "name": "HUP"}, Signal(1)),
        ({"type": "stdin", "data": ""}, Stdin(b"")),
        ({"type": "stdin", "data": "héllo\n"}, Stdin("héllo\n".encode())),
        ({"type": "stdin", "base64": "/wA="}, Stdin(b"\xff\x00")),
    ],
)
def test_each_record_means_what_the_contract_says(
    record: dict[str, object], expected: ClientRecord
) -> None:
    """Every client record of agentd.v1 is understood."""
    assert parse_client_record(json.dumps(record)) == expected


def test_a_field_nobody_knows_is_ignored() -> None:
    """A newer client may say more than this daemon knows."""
    assert parse_client_record('{"type":"cancel","why":"later"}') is Plain.CANCEL


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b'{"type":"cancel"}', "text frame"),
        ("", "JSON"),
        ("{", "JSON"),
        ("[" * 100_000, "a client record"),
        ("[]", "field"),
        ("{}", "field"),
        ('{"type":1}', "field"),
        ('{"type":"resize"}', "unknown type"),
        ('{"type":"ack"}', "field"),
        ('{"type":"ack","seq":"1"}', "field"),
        ('{"type":"ack","seq":-1}', "field"),
        ('{"type":"signal"}', "field"),
        ('{"type":"signal","name":9}', "field"),
        ('{"type":"signal","name":"SIGNOPE"}', "name"),
        ('{"type":"signal","name":""}', "name"),
        ('{"type":"stdin"}', "data or base64"),
        ('{"type":"stdin","data":"a","base64":"YQ=="}', "data or base64"),
        ('{"type":"stdin","data":1}', "field"),
        ('{"type":"stdin","base64":"a"}', "base64"),
        ('{"type":"stdin","base64":"é"}', "base64"),
        ('{"type":"stdin","data":"\\ud800"}', "JSON"),
        ("x" * (MAX_RECORD + 1), "1 MiB"),
        ("é" * (MAX_RECORD // 2 + 1), "1 MiB"),
    ],
)
def test_what_is_no_record_is_refused_by_its_fault(message: str | bytes, says: str) -> None:
    """The error says which rule was broken."""
    with pytest.raises(BadRecord, match=says):
        parse_client_record(message)


def test_a_record_of_exactly_one_mebibyte_is_taken() -> None:
    """The limit itself is allowed."""
    shell = '{"type":"stdin","data":""}'
    record = shell[:-2] + "x" * (MAX_RECORD - len(shell)) + shell[-2:]

    assert len(record) == MAX_RECORD
    assert parse_client_record(record) == Stdin(b"x" * (MAX_RECORD - len(shell)))


@given(st.text() | st.binary() | json_values.map(json.dumps))
def test_anything_else_raises_bad_record_only(message: str | bytes) -> None:
    """Whatever a client sends is a record or a BadRecord."""
    try:
        parse_client_record(message)
    except BadRecord:
        pass


@given(
    st.sampled_from(["data", "base64", "name", "seq", "type"]),
    st.sampled_from(["stdin", "signal", "ack", "nonsense"]),
)
def test_an_error_never_quotes_the_client(field: str, kind: str) -> None:
    """What a client sends may be a password, and errors reach logs and Close reasons."""
    canary = "canary-Zx81"
    try:
        parse_client_record(json.dumps({"type": kind, field: canary}))
    except BadRecord as bad:
        assert canary not in str(bad)
        assert bad.__context__ is None
        assert bad.__cause__ is None


@given(st.binary(max_size=300))
def test_stdin_bytes_survive_base64(data: bytes) -> None:
    """Any bytes can be sent to the child."""
    record = json.dumps({"type": "stdin", "base64": base64.b64encode(data).decode()})

    assert parse_client_record(record) == Stdin(data)


def test_stdin_data_is_not_in_the_repr() -> None:
    """A traceback or a log that shows the record does not show its bytes."""
    assert "secret" not in repr(Stdin(b"secret"))
