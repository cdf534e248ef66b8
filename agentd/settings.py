"""The settings of ``agentd serve``: one frozen dataclass per concern, complete and checked.

Invariant: what :func:`load` returns can be served with, as far as that can be known without keys,
sockets or a run.  Below ``daemon`` nobody sees the whole of it; each room is handed its own part.
It refuses to know how a value is spelled (:mod:`agentd.values`) or where it was found
(:mod:`agentd.sources`).
"""

import os
from argparse import BooleanOptionalAction
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentd.address import Address
from agentd.commandline import CommandLine
from agentd.options import HMAC_ALGORITHMS, OPTIONS, SECTIONS
from agentd.sources import (
    ConfigError,
    UsageError,
    Value,
    config_path,
    from_table,
    read_table,
    resolve,
    unknown_variables,
)

__all__ = [
    "Address",
    "AuthSettings",
    "ChildSettings",
    "ConfigError",
    "ContextSettings",
    "ListenSettings",
    "LogSettings",
    "ServeSettings",
    "StreamSettings",
    "UsageError",
    "load",
]

SERVE_HELP = """\
Waits for a context file, runs COMMAND with the secrets in it, and sends each line it prints, at
once, as one WebSocket frame to an authenticated client.
"""

SERVE_NOTES = """\
Every option has an environment twin (--context-wait: AGENTD_CONTEXT_WAIT; lists comma-separated,
switches true or false) and a key of the same name in the [serve] table of a TOML file. A flag beats
the environment, the environment beats the file, the file beats the default. Times are in seconds.

Exit status: 0 stopped cleanly, 2 bad usage, 69 cannot listen, 75 a healthy agentd owns the port and
--if-running fail, 78 bad configuration. SIGHUP reads the keys again.
"""


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """``if_running`` is "exit" or "fail"; at most ``max_runs`` runs live at a time."""

    addresses: tuple[Address, ...]
    if_running: str
    max_runs: int


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """A ``path`` that ends in ``/`` is a directory; ``wait`` and ``ttl`` are in seconds."""

    path: str
    source: str
    allow: frozenset[str]
    wait: float
    ttl: float
    start: str


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """How a run's process begins and ends.  Seconds; ``timeout`` is ``math.inf`` for none."""

    command: tuple[str, ...]
    stdin: str
    stderr: Literal["send", "merge", "log", "drop"]
    pty: bool
    user: str | None
    cwd: str
    pass_env: tuple[str, ...]
    timeout: float
    grace: float
    drain: float


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """``max_line`` in bytes; the rest in seconds, ``math.inf`` for never."""

    max_line: int
    flush_partial: float
    skip_empty_lines: bool
    invalid_utf8: Literal["replace", "binary"]
    write_timeout: float
    ping: float


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """``mode`` "jwt" has a key file or ``jwks_url``; ``leeway`` and ``max_ttl`` in seconds."""

    mode: Literal["jwt", "none"]
    keys: tuple[str, ...]
    algorithm: str | None
    jwks_url: str | None
    audience: str | None
    issuer: str | None
    leeway: float
    max_ttl: float
    origins: frozenset[str]


@dataclass(frozen=True, slots=True)
class LogSettings:
    """``format`` is auto, text or json; ``level`` debug, info, warning or error."""

    format: str = "auto"
    level: str = "info"


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Everything ``agentd serve`` was told.

    ``warnings`` are sentences to log once the log is set up: what was ignored, or is unwise.
    """

    listen: ListenSettings
    context: ContextSettings
    child: ChildSettings
    stream: StreamSettings
    auth: AuthSettings
    log: LogSettings
    warnings: tuple[str, ...] = ()

    @property
    def command(self) -> tuple[str, ...]:
        return self.child.command


def load(argv: Sequence[str], environ: Mapping[str, str]) -> ServeSettings:
    """Read the settings of ``agentd serve`` from what followed ``serve`` on the command line.

    Raises UsageError when the command line is malformed, ConfigError when a variable, the file or
    the combination is, and SystemExit(0) after printing the help that ``-h`` asks for.
    """
    arguments, command = _split(argv)
    flags = vars(
        _command_line().parse(arguments, "; COMMAND goes after --: agentd serve -- COMMAND")
    )
    config = flags.pop("config", None)
    if not command or not command[0]:
        raise UsageError("cannot serve without a command: agentd serve [options] -- COMMAND")
    label, path = config_path(config, environ)
    file = from_table(f"{label} {path}", read_table(label, path)) if path is not None else {}
    values = {option.name: resolve(option, _given(flags), environ, file) for option in OPTIONS}
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for option in OPTIONS:
        section, field = option.field.split(".")
        sections[section][field] = values[option.name].value
    sections["context"]["allow"] = frozenset(sections["context"]["allow"])
    sections["auth"]["origins"] = frozenset(sections["auth"]["origins"])
    auth = AuthSettings(**sections["auth"])
    _check_auth(auth, values)
    return ServeSettings(
        listen=ListenSettings(**sections["listen"]),
        context=ContextSettings(**sections["context"]),
        child=ChildSettings(command=command, **sections["child"]),
        stream=StreamSettings(**sections["stream"]),
        auth=auth,
        log=LogSettings(**sections["log"]),
        warnings=tuple(_warnings(auth, environ)),
    )


def _split(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    arguments = list(argv)
    if "--" not in arguments:
        return arguments, ()
    at = arguments.index("--")
    return arguments[:at], tuple(arguments[at + 1 :])


def _command_line() -> CommandLine:
    parser = CommandLine(
        "agentd serve",
        usage="agentd serve [options] -- COMMAND [ARG...]",
        description=SERVE_HELP,
        epilog=SERVE_NOTES,
    )
    parser.add_argument("--config", metavar="FILE", help="a TOML file with a [serve] table")
    groups = {name: parser.add_argument_group(title) for name, title in SECTIONS.items()}
    for option in OPTIONS:
        group = groups[option.field.partition(".")[0]]
        if bool in option.kind.toml:
            # --no-X, because a flag must be able to beat a `true` from elsewhere.
            group.add_argument(
                option.flag, dest=option.name, action=BooleanOptionalAction, help=option.help
            )
            continue
        said = (
            option.help if option.default is None else f"{option.help} (default {option.default})"
        )
        group.add_argument(
            option.flag,
            dest=option.name,
            metavar=option.metavar,
            help=(said + ("; repeatable" if option.many else "")).replace("%", "%%"),
            action="extend" if option.many == "words" else "append" if option.many else "store",
            nargs="+" if option.many == "words" else None,
        )
    return parser


def _given(flags: Mapping[str, Any]) -> dict[str, str | Sequence[str]]:
    """The flags that were given, as texts: switches as true or false, words one by one."""
    words = {option.name for option in OPTIONS if option.many == "words"}
    given: dict[str, str | Sequence[str]] = {}
    for name, value in flags.items():
        if isinstance(value, bool):
            given[name] = str(value).lower()
        elif name in words and value is not None:
            given[name] = [word.strip() for item in value for word in item.split(",")]
        elif value is not None:
            given[name] = value
    return given


def _check_auth(auth: AuthSettings, values: Mapping[str, Value]) -> None:
    """What a single value cannot show to be wrong.  Reading the keys is the key ring's part."""
    if auth.mode == "none":
        return
    algorithm, keys = values["jwt-algorithm"].label, values["jwt-key"].label
    if not auth.keys and auth.jwks_url is None:
        raise ConfigError(
            f"cannot use {values['auth'].label} jwt without a key: give --jwt-key FILE or "
            "--jwt-jwks-url URL, or say --auth none to let everyone in"
        )
    if auth.algorithm in HMAC_ALGORITHMS and auth.jwks_url is not None:
        raise ConfigError(
            f"cannot use {algorithm} {auth.algorithm} with {values['jwt-jwks-url'].label}: "
            "an HMAC secret cannot be published"
        )
    for path in auth.keys:
        try:
            # Not opened here: the key may be a pipe that can be read only once.
            os.stat(path)
        except OSError as error:
            trouble = error.strerror
        else:
            if os.access(path, os.R_OK, effective_ids=True):
                continue
            trouble = "Permission denied"
        raise ConfigError(f"cannot read {keys} {path}: {trouble}")


def _warnings(auth: AuthSettings, environ: Mapping[str, str]) -> list[str]:
    warnings = []
    unknown = unknown_variables(environ)
    if unknown:
        warnings.append("ignoring unknown variables: " + ", ".join(unknown))
    if auth.mode == "none" and (auth.keys or auth.jwks_url):
        warnings.append("ignoring the keys that are set: auth is none, everyone is let in")
    if auth.jwks_url is not None and not _is_private(auth.jwks_url):
        warnings.append("jwt-jwks-url is not https: who can change its answer can mint tokens")
    return warnings


def _is_private(url: str) -> bool:
    """Whether nobody on the way to ``url`` can change what it answers."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in ("127.0.0.1", "localhost", "::1")
