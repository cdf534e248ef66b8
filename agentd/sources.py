"""Where a setting's value comes from: the flag, the variable, the file, the default, in this order.

A value travels with its label, the name under which the user wrote it, so that every complaint can
name it.  This room refuses to know what the values are for (:mod:`agentd.settings`), and imports
little: ``agentd health`` goes through it on each probe.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from agentd import AgentdError
from agentd.address import Address
from agentd.options import OPTIONS, Option

NOT_OPTIONS = frozenset({"AGENTD_BUILD", "AGENTD_CONFIG", "AGENTD_RUN_ID"})
"""Variables that mean something to agentd without being the twin of an option."""


class UsageError(AgentdError):
    """The command line cannot be understood."""

    exit_status = 2


class ConfigError(AgentdError):
    """The command line was understood, and what it or its twins configure cannot work."""

    exit_status = 78  # EX_CONFIG, sysexits.h


class Written(NamedTuple):
    """What a user wrote for one option, and where: items for a list, else one text."""

    label: str
    text: str | Sequence[str]
    error: type[UsageError | ConfigError] = ConfigError


class Value(NamedTuple):
    """What an option is set to; ``label`` is the name to complain about."""

    value: object
    label: str


def resolve(
    option: Option,
    flags: Mapping[str, str | Sequence[str]],
    environ: Mapping[str, str],
    file: Mapping[str, Written],
) -> Value:
    """The value of ``option`` from the first source that has one.

    Raises UsageError for a bad value on the command line, else ConfigError.
    """
    if option.name in flags:
        written = Written(option.flag, flags[option.name], UsageError)
    elif option.variable in environ:
        text = environ[option.variable]
        written = Written(option.variable, _items(text) if option.many else text)
    elif option.name in file:
        written = file[option.name]
    elif option.default is None:
        return Value(_unset(option), option.flag)
    else:
        written = Written(option.flag, (option.default,) if option.many else option.default)
    return Value(_read(option, written), written.label)


def find_address(config: str | None, environ: Mapping[str, str]) -> Address:
    """The first address a daemon with this configuration listens on.

    Looks at no other setting: a probe tells how the daemon is, not how its file has become.
    Raises ConfigError.
    """
    listen = OPTIONS[0]
    file: Mapping[str, Written] = {}
    if listen.variable not in environ:
        label, path = config_path(config, environ)
        table = read_table(label, path) if path is not None else {}
        file = from_table(f"{label} {path}", {k: v for k, v in table.items() if k == listen.name})
    addresses: Any = resolve(listen, {}, environ, file).value
    first: Address = addresses[0]
    return first


def config_path(flag: str | None, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """The TOML file to read, if any, and the name of the setting that says so."""
    if flag is not None:
        return "--config", flag
    return "AGENTD_CONFIG", environ.get("AGENTD_CONFIG")


def read_table(label: str, path: str) -> Mapping[str, object]:
    """The ``[serve]`` table of the TOML file at ``path``.

    Raises ConfigError when there is no such file, it is not TOML, or holds any other table.
    """
    import tomllib

    trouble = None
    document: dict[str, object] = {}
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        trouble = f"cannot read {label} {path}: {error.strerror}"
    except UnicodeDecodeError:
        trouble = f"cannot read {label} {path}: it is not UTF-8"
    except RecursionError:
        trouble = f"cannot read {label} {path}: it nests too deeply"
    except ValueError as error:
        # tomllib's message holds a place in the file and at most a key or a character, no value.
        trouble = f"cannot read {label} {path}: {error.args[0]}"
    if trouble is not None:
        raise ConfigError(trouble)
    for name in document:
        if name != "serve":
            raise ConfigError(f"cannot use {label} {path}: unknown key or table {name!r}")
    table = document.get("serve", {})
    if not isinstance(table, dict):
        raise ConfigError(f"cannot use {label} {path}: serve must be a table, [serve]")
    return table


def from_table(where: str, table: Mapping[str, object]) -> dict[str, Written]:
    """What each key of ``[serve]`` says; ``where`` names the file.

    Raises ConfigError for an unknown key, or a value of a type its option does not take.
    """
    options = {option.name: option for option in OPTIONS}
    written = {}
    for key, value in table.items():
        if key not in options:
            raise ConfigError(f"cannot use {where}: unknown key {key!r} in [serve]")
        label = f"{key!r} in {where}"
        written[key] = Written(label, _texts(options[key], label, value))
    return written


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """The AGENTD_ variables that mean nothing to agentd.  Kubernetes makes some for a service."""
    known = NOT_OPTIONS | {option.variable for option in OPTIONS}
    return sorted(name for name in environ if name.startswith("AGENTD_") and name not in known)


def _texts(option: Option, label: str, value: object) -> str | Sequence[str]:
    if option.many and isinstance(value, list):
        if not all(isinstance(item, str) for item in value):
            raise ConfigError(f"cannot use {label}: must be an array of strings")
        return value
    # bool is an int to Python, not to TOML.
    fits = isinstance(value, option.kind.toml) and (
        not isinstance(value, bool) or bool in option.kind.toml
    )
    if not fits:
        raise ConfigError(f"cannot use {label}: must be {_toml_type(option)}")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return _items(text) if option.many else text


def _toml_type(option: Option) -> str:
    if option.many:
        return "an array of strings"
    names = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}
    return names[option.kind.toml[-1]]


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")] if text.strip() else []


def _unset(option: Option) -> object:
    if option.many:
        return ()
    return False if bool in option.kind.toml else None


def _read(option: Option, written: Written) -> object:
    if option.many and option.default is not None and not written.text:
        raise written.error(f"cannot use {written.label}: must not be empty")
    try:
        if isinstance(written.text, str):
            return option.kind.read(written.text)
        return tuple(option.kind.read(item) for item in written.text)
    except ValueError as error:
        trouble = f"cannot use {written.label}: {error}"
    raise written.error(trouble)
