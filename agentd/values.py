"""What a setting's text may say: one reader for each kind of value.

A reader takes the text a user wrote, on the command line or in the environment, and returns the
value, or raises ValueError with words that continue "NAME ...": what the value must be, never what
it was.  Values of a TOML file go the same way once their type is known to be one of ``toml``.  The
readers refuse to know which setting they read for, and where its text came from.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from agentd.address import Address

FOREVER = math.inf
"""The value of a time that never comes: ``timeout`` 0, ``write-timeout`` 0, ``ping`` 0."""

LONGEST = 1_000_000_000  # seconds; more than 31 years, and exact in a float

# RFC 6454 section 6.2: scheme, host, optional port, and nothing after them.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/?#@:\[\]]+)(:[0-9]{1,5})?")
_KEYS_URL = re.compile(r"https?://[^\s/?#]+(/[^\s#]*)?(\?[^\s#]*)?", re.IGNORECASE)


class Kind(NamedTuple):
    """How a value is read, and which types of a TOML value it may come from."""

    read: Callable[[str], object]
    toml: tuple[type, ...] = (str,)


def seconds(low: float = 0, *, zero: float = 0.0) -> Kind:
    """A time in seconds of at least ``low``; the value ``zero`` stands for a 0."""

    def read(text: str) -> float:
        value = _float(text)
        if value is None or not low <= value <= LONGEST:
            raise ValueError(f"must be a number of seconds from {low:g} to {LONGEST}")
        return value or zero

    return Kind(read, (int, float))


def milliseconds(high: int) -> Kind:
    """A whole number of milliseconds, as seconds; :data:`FOREVER` for 0."""

    def read(text: str) -> float:
        value = _int(text)
        if value is None or not 0 <= value <= high:
            raise ValueError(f"must be a whole number of milliseconds from 0 (off) to {high}")
        return value / 1000 or FOREVER

    return Kind(read, (int,))


def whole(low: int, high: int, unit: str = "") -> Kind:
    """A whole number between ``low`` and ``high``, both allowed."""

    def read(text: str) -> int:
        value = _int(text)
        if value is None or not low <= value <= high:
            raise ValueError(f"must be a whole number {unit}from {low} to {high}")
        return value

    return Kind(read, (int,))


def choice(*names: str) -> Kind:
    """One of ``names``, spelled exactly."""

    says = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))

    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"must be {says}")
        return text

    return Kind(read)


def _switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def _words(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    if "\0" in text:
        raise ValueError("must not hold a NUL")
    return text


def _variable(text: str) -> str:
    if not text or any(character in "=,\0" or character.isspace() for character in text):
        raise ValueError("must hold names of environment variables")
    return text


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text.lower()):
        raise ValueError("must be an origin like https://example.org, without a path")
    return text.lower()


def _keys_url(text: str) -> str:
    if not _KEYS_URL.fullmatch(text):
        raise ValueError("must be an https:// or http:// URL")
    return text


def _account(text: str) -> str:
    user, colon, group = text.partition(":")
    if not user or (colon and not group) or ":" in group or "\0" in text:
        raise ValueError("must be USER or USER:GROUP")
    return text


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _int(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


SWITCH = Kind(_switch, (bool,))
WORDS = Kind(_words)
ADDRESS = Kind(Address.parse)
VARIABLE = Kind(_variable)
ORIGIN = Kind(_origin)
KEYS_URL = Kind(_keys_url)
ACCOUNT = Kind(_account)
