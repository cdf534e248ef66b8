"""A context: the JSON document that says what one run is about, and holds its secrets.

Invariant: any bytes at all give either a :class:`Context` whose every part can be handed to a
child as it is, or a :class:`ContextError` that names a key and never a value. The error is raised
after the ``except`` block is left, because what the decoder raises may carry the whole document.

Refuses to know where the bytes come from and what becomes of them.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from agentd import AgentdError

MAX_SIZE = 1 << 20
"""Bytes a context may have."""

MAX_ID = 128
"""Characters an id may have."""

ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")

REFUSED_PREFIXES = ("LD_", "AGENTD_", "_PYI_")
"""Environment names that would load code into the child, or speak to it in agentd's name."""

NUMBER_GOES_ON = re.compile(rb"(?:-|[0-9][.eE]|[0-9][eE][+-])\Z")
"""What a JSON number can be cut after so that it is not a number any more."""

SHOWN = 64
"""Characters of a key that an error shows."""

T = TypeVar("T")


class ContextError(AgentdError):
    """The context is refused. The message names a key or a reason, never a value."""


class IncompleteContext(ContextError):
    """The document stops before its end: so far it could be the start of a good one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """What one run is given. Its repr shows the id and nothing else.

    Attributes:
        id: the run's name, or None when the document has none.
        prompt: text for the child's standard input.
        env: names and values for the child's environment.
        timeout: seconds the run may take, or None.
        args: appended to the command.
        cwd: working directory of the child, or None.
        document: the whole context without ``env`` as one JSON line, newline included.
    """

    id: str | None
    prompt: str = dataclasses.field(repr=False)
    env: Mapping[str, str] = dataclasses.field(repr=False)
    timeout: float | None = dataclasses.field(repr=False)
    args: tuple[str, ...] = dataclasses.field(repr=False)
    cwd: str | None = dataclasses.field(repr=False)
    document: bytes = dataclasses.field(repr=False)


class _Key:
    """A key of an object as it stands there: two of the same name stay two keys."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


_OBJECT = msgspec.json.Decoder(dict[_Key, msgspec.Raw], dec_hook=lambda _type, name: _Key(name))
_STRING = msgspec.json.Decoder(str)
_STRINGS = msgspec.json.Decoder(tuple[str, ...])
_NUMBER = msgspec.json.Decoder(float)


def parse_context(
    data: bytes, *, allow: frozenset[str] = frozenset(), max_timeout: float = 0
) -> Context:
    """Return the context that ``data`` holds (RFC 8259; CONTRACT section 2).

    Args:
        data: the document, UTF-8.
        allow: which of ``args`` and ``cwd`` it may set.
        max_timeout: the longest ``timeout`` it may ask for, in seconds; 0: any.

    Raises:
        IncompleteContext: the document stops early.
        ContextError: it is refused for good.
    """
    if len(data) > MAX_SIZE:
        raise ContextError(f"the context: larger than {MAX_SIZE} bytes")
    members = _members(data, "the context")
    if not _is_utf8(data):
        raise ContextError("the context: is not UTF-8")
    for key in ("args", "cwd"):
        if key in members and key not in allow:
            raise ContextError(f"{key}: a context may not set it (--allow-context)")
    return Context(
        id=_id(members.get("id")),
        prompt=_value(members.get("prompt"), _STRING, "prompt", "a string") or "",
        env=_env(members.get("env")),
        timeout=_timeout(members.get("timeout"), max_timeout),
        args=_args(members.get("args")),
        cwd=_cwd(members.get("cwd")),
        document=_line(members),
    )


def valid_id(text: str) -> bool:
    """Say whether ``text`` can name a run: 1-128 of ``A-Za-z0-9._-``, and not ``.`` or ``..``."""
    return 0 < len(text) <= MAX_ID and ID_CHARACTERS.issuperset(text) and text not in (".", "..")


def _members(data: bytes | msgspec.Raw, where: str) -> dict[str, msgspec.Raw]:
    members: dict[str, msgspec.Raw] = {}
    for key, value in _decode(data, _OBJECT, where, "a JSON object").items():
        if key.name in members:
            raise ContextError(f"{where}: has the key {_shown(key.name)} twice")
        members[key.name] = value
    return members


def _decode(
    data: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[T], where: str, kind: str
) -> T:
    problem: ContextError
    try:
        return decoder.decode(data)
    except RecursionError:
        problem = ContextError(f"{where}: nested too deeply")
    except msgspec.ValidationError:
        problem = ContextError(f"{where}: must be {kind}")
    except ValueError as error:  # msgspec.DecodeError, or UnicodeDecodeError for a key
        # A number cut after one of these is malformed to msgspec, anything else cut is truncated;
        # half a surrogate pair is called truncated too.
        if "truncated" in str(error) or NUMBER_GOES_ON.search(data):
            problem = IncompleteContext(f"{where}: stops before its end, or has a lone surrogate")
        else:
            problem = ContextError(f"{where}: is not JSON")
    raise problem


def _value(
    raw: msgspec.Raw | None, decoder: msgspec.json.Decoder[T], key: str, kind: str
) -> T | None:
    """Return the value of ``key``, or None where the document has none: null is no value here."""
    return None if raw is None else _decode(raw, decoder, key, kind)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _id(raw: msgspec.Raw | None) -> str | None:
    text = _value(raw, _STRING, "id", "a string")
    if text is not None and not valid_id(text):
        raise ContextError(f"id: must be 1-{MAX_ID} characters of A-Za-z0-9._-")
    return text


def _env(raw: msgspec.Raw | None) -> dict[str, str]:
    if raw is None:
        return {}
    env = {}
    for name, value in _members(raw, "env").items():
        if not name or "=" in name or "\0" in name or name.startswith(REFUSED_PREFIXES):
            raise ContextError(f"env: the name {_shown(name)} is refused")
        text = _value(value, _STRING, f"env {_shown(name)}", "a string") or ""
        if "\0" in text:
            raise ContextError(f"env {_shown(name)}: holds a NUL")
        env[name] = text
    return env


def _timeout(raw: msgspec.Raw | None, max_timeout: float) -> float | None:
    timeout = _value(raw, _NUMBER, "timeout", "a number of seconds")
    if timeout is None:
        return None
    if not math.isfinite(timeout) or timeout <= 0:
        raise ContextError("timeout: must be more than 0 seconds")
    if 0 < max_timeout < timeout:
        raise ContextError("timeout: longer than --timeout")
    return timeout


def _args(raw: msgspec.Raw | None) -> tuple[str, ...]:
    args = _value(raw, _STRINGS, "args", "an array of strings") or ()
    if any("\0" in arg for arg in args):
        raise ContextError("args: holds a NUL")
    return args


def _cwd(raw: msgspec.Raw | None) -> str | None:
    cwd = _value(raw, _STRING, "cwd", "a string")
    if cwd is not None and (not cwd or "\0" in cwd):
        raise ContextError("cwd: must be a path")
    return cwd


def _line(members: Mapping[str, msgspec.Raw]) -> bytes:
    fields = [
        msgspec.json.encode(name) + b":" + _compact(value)
        for name, value in members.items()
        if name != "env"
    ]
    return b"{" + b",".join(fields) + b"}\n"


def _compact(value: msgspec.Raw) -> bytes:
    """Return ``value`` without white space, otherwise as written: digits no float has stay."""
    try:
        return bytes(msgspec.json.format(bytes(value), indent=-1))
    except RecursionError:  # a few frames deeper here than where the nesting was just bearable
        pass
    raise ContextError("the context: nested too deeply")


def _shown(key: str) -> str:
    # A name with `=` in it is a whole NAME=VALUE that somebody put in the wrong place.
    name = key.partition("=")[0]
    return ascii(name if len(name) <= SHOWN else name[:SHOWN] + "...")
