"""What an agentd.v1 client may send: one JSON object a message, decided here, acted on elsewhere.

A record that cannot be understood is a :class:`BadRecord`; the connection then ends with Close
4400. Its message names the field at fault and never what was in it: stdin data may be a password.
"""

import base64
import binascii
import enum
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from agentd import AgentdError
from agentd.sansio.lifecycle import signal_number

MAX_RECORD = 1024 * 1024
"""The largest client record, in bytes of UTF-8."""


class BadRecord(AgentdError):
    """A client record that agentd.v1 does not have, or that this run does not take."""


class Plain(enum.Enum):
    """The client records that are their type and nothing more."""

    CANCEL = "cancel"
    HEARTBEAT = "heartbeat"
    STDIN_EOF = "stdin_eof"


@dataclass(frozen=True, slots=True)
class Stdin:
    """Bytes for the child's standard input, exactly as given: no newline is added."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal for the child's process group, by number (signal(7))."""

    number: int


@dataclass(frozen=True, slots=True)
class Ack:
    """The client has taken every record up to ``seq``."""

    seq: int


ClientRecord = Plain | Stdin | Signal | Ack


class _StdinFields(msgspec.Struct, tag_field="type", tag="stdin"):
    data: str | None = None
    base64: str | None = None


class _SignalFields(msgspec.Struct, tag_field="type", tag="signal"):
    name: str


class _AckFields(msgspec.Struct, tag_field="type", tag="ack"):
    seq: Annotated[int, msgspec.Meta(ge=0)]


class _Tag(msgspec.Struct):
    type: str


_TAG = msgspec.json.Decoder(_Tag)
_FIELDS: dict[str, msgspec.json.Decoder[_StdinFields | _SignalFields | _AckFields]] = {
    "stdin": msgspec.json.Decoder(_StdinFields),
    "signal": msgspec.json.Decoder(_SignalFields),
    "ack": msgspec.json.Decoder(_AckFields),
}


def parse_client_record(message: str | bytes) -> ClientRecord:
    """Return what the client asks for in one message.

    Raises:
        BadRecord: the message is binary, longer than 1 MiB, not a JSON object, or a record of no
            known type or with a wrong field.
    """
    if isinstance(message, bytes):
        raise BadRecord("a client record must be a text frame")
    if len(message) > MAX_RECORD or len(message.encode()) > MAX_RECORD:
        raise BadRecord("a client record may be 1 MiB at most")
    fault = ""
    try:
        kind = _TAG.decode(message).type
        fields = _FIELDS[kind].decode(message) if kind in _FIELDS else Plain(kind)
    except msgspec.ValidationError:
        fault = "a client record lacks a field or has one of the wrong type"
    except (msgspec.DecodeError, RecursionError):
        fault = "a client record must be a JSON object"
    except ValueError:
        fault = "a client record of unknown type"
    if fault:
        # Raised out here: the decoder's exception would carry what the client sent.
        raise BadRecord(fault)
    match fields:
        case _StdinFields():
            return Stdin(_stdin_bytes(fields))
        case _SignalFields():
            return Signal(_signal_number(fields.name))
        case _AckFields():
            return Ack(fields.seq)
        case _:
            return fields


def _stdin_bytes(fields: _StdinFields) -> bytes:
    if (fields.data is None) == (fields.base64 is None):
        raise BadRecord("a stdin record has either data or base64")
    if fields.data is not None:
        return fields.data.encode()
    try:
        return base64.b64decode(fields.base64 or "", validate=True)
    except (binascii.Error, ValueError):
        pass
    raise BadRecord("base64 of a stdin record is not base64")


def _signal_number(name: str) -> int:
    """Return the number of ``SIGTERM`` or ``TERM``, as kill(1) takes either."""
    full = name if name.startswith("SIG") else f"SIG{name}"
    number = signal_number(full)
    if number is None:
        raise BadRecord("name of a signal record is not a signal")
    return number
