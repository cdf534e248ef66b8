"""What a client can check of an agentd.v1 stream with nothing but the contract in its hand."""

import base64
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from testing.daemon import PATIENCE, V1, Stream

Record = dict[str, Any]

HELLO = {"type", "protocol", "run", "boot", "build", "image", "next"}
END = {
    "type", "outcome", "exit_code", "signal", "error", "stdout_lines", "stderr_lines",
    "stdout_bytes", "stdout_sha256", "seconds",
}  # fmt: skip


def content(record: Record) -> bytes:
    """The bytes in a ``stdout`` or ``stderr`` record."""
    if "line" in record:
        assert "base64" not in record, record
        return str(record["line"]).encode()
    data = base64.b64decode(record["base64"], validate=True)
    try:
        data.decode()
    except UnicodeDecodeError:
        return data
    raise AssertionError(f"base64 for what is UTF-8: {record}")


def rebuild(records: Iterable[Record], stream: str = "stdout") -> bytes:
    """Put together what the child wrote."""
    parts = []
    for record in records:
        if record["type"] == stream:
            goes_on = record.get("more", False) or not record.get("eol", True)
            parts.append(content(record) + (b"" if goes_on else b"\n"))
    return b"".join(parts)


def verify(stream: Stream) -> bytes:
    """Check everything a complete stream promises, and return what was on stdout."""
    hello, *between, end = stream.messages
    assert hello["type"] == "hello"
    assert set(hello) == HELLO
    assert hello["protocol"] == V1
    assert end["type"] == "end"
    assert set(end) == END
    seq = hello["next"] - 1
    for record in between:
        assert record["type"] in ("stdout", "stderr", "heartbeat"), record
        if record["type"] == "heartbeat":
            assert record == {"type": "heartbeat", "seq": seq}
            continue
        seq += 1
        assert record["seq"] == seq, record
        assert set(record) - {"more", "eol"} in (
            {"type", "seq", "line"},
            {"type", "seq", "base64"},
        ), record
        assert record.get("more", True) is True, record
        assert record.get("eol", False) is False, record
    output = rebuild(stream.messages)
    assert len(output) == end["stdout_bytes"]
    assert hashlib.sha256(output).hexdigest() == end["stdout_sha256"]
    for name in ("stdout", "stderr"):
        whole = [record for record in stream.of(name) if not record.get("more")]
        assert len(whole) == end[f"{name}_lines"]
    return output


class Arrival(NamedTuple):
    """A message and when it came, in seconds of a clock that only goes forward."""

    at: float
    message: Any


def arrivals(client: ClientConnection, timeout: float = PATIENCE) -> Iterator[Arrival]:
    """Each message of a stream as it comes; records are parsed."""
    try:
        while True:
            message = client.recv(timeout)
            now = time.monotonic()
            yield Arrival(now, json.loads(message) if client.subprotocol == V1 else message)
    except ConnectionClosed:
        return
