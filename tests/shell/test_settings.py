"""The settings: every option under each of its names, who wins, and what each bad value is told."""

import math
import os
import string
import tempfile
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import AgentdError, sources
from agentd.address import Address
from agentd.commandline import CommandLine
from agentd.options import OPTIONS, SECTIONS, Option
from agentd.settings import ConfigError, ServeSettings, UsageError, load
from agentd.sources import NOT_OPTIONS, find_address, unknown_variables

COMMAND = ["--", "node", "agent.mjs"]
OPEN = {"AGENTD_AUTH": "none"}
BY_NAME = {option.name: option for option in OPTIONS}


class Case(NamedTuple):
    """One option, spelled as a flag, as a variable, as TOML, and what they all mean."""

    name: str
    flags: list[str]
    variable: str
    toml: str
    value: object


def _text(name: str, text: str, value: object | None = None) -> Case:
    return Case(name, [f"--{name}", text], text, f'"{text}"', text if value is None else value)


def _number(name: str, text: str, value: float | None) -> Case:
    return Case(name, [f"--{name}", text], text, text, value)


def _switch(name: str) -> Case:
    return Case(name, [f"--{name}"], "true", "true", True)


CASES = [
    Case(
        "listen",
        ["--listen", "127.0.0.1:80", "--listen", "[::1]:0", "--listen", "unix:/run/a.sock"],
        "127.0.0.1:80,[::1]:0, unix:/run/a.sock",
        '["127.0.0.1:80", "[::1]:0", "unix:/run/a.sock"]',
        (Address("127.0.0.1", 80), Address("::1", 0), Address(path="/run/a.sock")),
    ),
    _text("if-running", "fail"),
    _number("max-runs", "3", 3),
    _text("context", "/run/agentd/"),
    _text("context-from", "file"),
    Case(
        "allow-context",
        ["--allow-context", "args,cwd"],
        "args,cwd",
        '["args", "cwd"]',
        frozenset({"args", "cwd"}),
    ),
    _number("context-wait", "1.5", 1.5),
    _number("context-ttl", "0", 0.0),
    _text("start", "connect"),
    _text("stdin", "client"),
    _text("stderr", "merge"),
    _switch("pty"),
    _text("user", "nobody:nogroup"),
    _text("cwd", "/srv"),
    Case("pass-env", ["--pass-env", "A", "B,C"], "A,B,C", '["A", "B", "C"]', ("A", "B", "C")),
    _number("timeout", "90", 90.0),
    _number("grace", "0.5", 0.5),
    _number("drain", "0", 0.0),
    _number("max-line", "16777216", 16_777_216),
    _number("flush-partial", "250", 0.25),
    _switch("skip-empty-lines"),
    _text("invalid-utf8", "binary"),
    _number("write-timeout", "2.5", 2.5),
    _number("ping", "1", 1.0),
    _text("auth", "none"),
    Case("jwt-key", ["--jwt-key", "/a", "--jwt-key", "/b"], "/a,/b", '["/a", "/b"]', ("/a", "/b")),
    _text("jwt-algorithm", "ES256"),
    _text("jwt-jwks-url", "https://issuer.example/keys?v=1"),
    _text("jwt-audience", "agents"),
    _text("jwt-issuer", "https://issuer.example"),
    _number("jwt-leeway", "0", 0.0),
    _number("jwt-max-ttl", "60", 60.0),
    Case(
        "allow-origin",
        ["--allow-origin", "https://A.example", "--allow-origin", "http://[::1]:3000"],
        "https://A.example,http://[::1]:3000",
        '["https://a.example", "http://[::1]:3000"]',
        frozenset({"https://a.example", "http://[::1]:3000"}),
    ),
    _text("log-format", "json"),
    _text("log-level", "debug"),
]


def _field(settings: ServeSettings, name: str) -> object:
    section, field = BY_NAME[name].field.split(".")
    return getattr(getattr(settings, section), field)


def _toml(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "agentd.toml"
    path.write_text(text)
    return ["--config", str(path)]


def test_every_option_has_a_case_here() -> None:
    """No option is without a test of its three names."""
    assert [case.name for case in CASES] == [option.name for option in OPTIONS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_flag_sets_its_option(case: Case) -> None:
    """A flag on the command line sets the option."""
    assert _field(load([*case.flags, *COMMAND], OPEN), case.name) == case.value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_variable_means_what_the_flag_means(case: Case) -> None:
    """The AGENTD_ twin has the same meaning as the flag."""
    settings = load(COMMAND, OPEN | {BY_NAME[case.name].variable: case.variable})
    assert _field(settings, case.name) == case.value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_toml_key_means_what_the_flag_means(case: Case, tmp_path: Path) -> None:
    """The key of the TOML file has the same meaning as the flag."""
    auth = "" if case.name == "auth" else "auth = 'none'\n"
    config = _toml(tmp_path, f"[serve]\n{auth}{case.name} = {case.toml}\n")
    assert _field(load([*config, *COMMAND], {}), case.name) == case.value


@pytest.mark.parametrize(
    "case", [case for case in CASES if BY_NAME[case.name].many], ids=lambda case: case.name
)
def test_a_lone_toml_string_is_read_like_the_variable(case: Case, tmp_path: Path) -> None:
    """A list may be one string in the file, with commas as in the environment."""
    config = _toml(tmp_path, f"[serve]\nauth = 'none'\n{case.name} = '{case.variable}'\n")
    assert _field(load([*config, *COMMAND], {}), case.name) == case.value


def test_defaults_are_the_documented_ones() -> None:
    """Without a word about them, the options are as CONTRACT section 1 says."""
    settings = load(COMMAND, OPEN)
    found = {name: _field(settings, name) for name in BY_NAME if name != "auth"}
    assert found == {
        "listen": (Address("0.0.0.0", 8765),),
        "if-running": "exit",
        "max-runs": 8,
        "context": "/tmp/vf-pending-query.json",
        "context-from": "file",
        "allow-context": frozenset(),
        "context-wait": 5,
        "context-ttl": 60,
        "start": "connect",
        "stdin": "prompt",
        "stderr": "send",
        "pty": False,
        "user": None,
        "cwd": "/",
        "pass-env": (),
        "timeout": math.inf,
        "grace": 5,
        "drain": 0.25,
        "max-line": 262_144,
        "flush-partial": math.inf,
        "skip-empty-lines": False,
        "invalid-utf8": "replace",
        "write-timeout": 30,
        "ping": 20,
        "jwt-key": (),
        "jwt-algorithm": None,
        "jwt-jwks-url": None,
        "jwt-audience": None,
        "jwt-issuer": None,
        "jwt-leeway": 5,
        "jwt-max-ttl": 3600,
        "allow-origin": frozenset(),
        "log-format": "auto",
        "log-level": "info",
    }
    assert BY_NAME["auth"].default == "jwt"


def test_the_command_is_what_follows_the_dashes() -> None:
    """Everything after the first -- is the command, dashes and all."""
    settings = load(["--pty", "--", "run", "--pty", "--", "-x", ""], OPEN)
    assert settings.command == ("run", "--pty", "--", "-x", "")
    assert settings.child.command == settings.command


@pytest.mark.parametrize("name", ["timeout", "write-timeout", "ping"])
def test_zero_is_never(name: str) -> None:
    """0 turns the times off that can be off."""
    assert _field(load([f"--{name}", "0", *COMMAND], OPEN), name) == math.inf


def test_flush_partial_zero_is_off() -> None:
    """--flush-partial 0 is the same as not asking for it."""
    assert load(["--flush-partial", "0", *COMMAND], OPEN).stream.flush_partial == math.inf


# Who wins.


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    """The nearer source wins, option by option."""
    config = _toml(tmp_path, "[serve]\ngrace = 1\ndrain = 1\ntimeout = 1\n")
    environ = OPEN | {"AGENTD_GRACE": "2", "AGENTD_DRAIN": "2"}
    child = load([*config, "--grace", "3", *COMMAND], environ).child
    assert (child.grace, child.drain, child.timeout) == (3, 2, 1)
    assert load(COMMAND, OPEN).child.grace == 5


def test_a_nearer_list_replaces_the_farther_one() -> None:
    """Lists are not added up over sources."""
    environ = OPEN | {"AGENTD_LISTEN": "127.0.0.1:1,127.0.0.1:2"}
    settings = load(["--listen", "127.0.0.1:3", *COMMAND], environ)
    assert settings.listen.addresses == (Address("127.0.0.1", 3),)


def test_a_flag_can_switch_off_what_the_environment_switched_on() -> None:
    """--no-pty beats AGENTD_PTY=true."""
    environ = OPEN | {"AGENTD_PTY": "true"}
    assert load(COMMAND, environ).child.pty
    assert not load(["--no-pty", *COMMAND], environ).child.pty


def test_the_environment_can_switch_off_what_the_file_switched_on(tmp_path: Path) -> None:
    """AGENTD_PTY=false beats `pty = true`."""
    config = _toml(tmp_path, "[serve]\npty = true\n")
    assert not load([*config, *COMMAND], OPEN | {"AGENTD_PTY": "false"}).child.pty


def test_an_empty_list_in_the_environment_beats_the_file(tmp_path: Path) -> None:
    """AGENTD_PASS_ENV= means none."""
    config = _toml(tmp_path, "[serve]\npass-env = ['A']\n")
    assert load([*config, *COMMAND], OPEN | {"AGENTD_PASS_ENV": ""}).child.pass_env == ()


def test_the_last_of_two_equal_flags_counts() -> None:
    """As everywhere: the later --grace wins."""
    assert load(["--grace", "1", "--grace", "2", *COMMAND], OPEN).child.grace == 2


def test_words_may_stand_apart_with_commas_or_behind_flags_of_their_own() -> None:
    """--pass-env takes names any way a user would write them."""
    flags = ["--pass-env", "A", "B", "--pass-env", "C, D"]
    assert load([*flags, *COMMAND], OPEN).child.pass_env == ("A", "B", "C", "D")


def test_a_comma_in_a_repeatable_flag_is_a_comma(tmp_path: Path) -> None:
    """A key file may have a comma in its name when it is given by a flag."""
    key = tmp_path / "a,b.pem"
    key.touch()
    assert load(["--jwt-key", str(key), *COMMAND], {}).auth.keys == (str(key),)


def test_the_config_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    """AGENTD_CONFIG names the file, --config another one that wins."""
    _, one = _toml(tmp_path, "[serve]\ngrace = 1\n")
    two = tmp_path / "two.toml"
    two.write_text("[serve]\ngrace = 2\n")
    environ = OPEN | {"AGENTD_CONFIG": one}
    assert load(COMMAND, environ).child.grace == 1
    assert load(["--config", str(two), *COMMAND], environ).child.grace == 2


def test_an_empty_config_file_changes_nothing(tmp_path: Path) -> None:
    """A file without [serve] is a file without settings."""
    assert load([*_toml(tmp_path, "# later\n"), *COMMAND], OPEN) == load(COMMAND, OPEN)


# What bad values are told.

SECRET = "hunter2"

BAD = {
    "listen": ["8765", "localhost", ":8765", "localhost:", "localhost:65536", "localhost:-1",
               "::1:80", "[::1]", "[nope]:80", "a b:80", "http://a:80", "unix:",
               "unix:/" + "a" * 107, "localhost:٣", "a/b:1"],
    "if-running": ["Exit", "restart"],
    "max-runs": ["0", "-1", "1.5", "many", "10001"],
    "context": [],
    "context-from": ["connection", "both", "stdin"],
    "allow-context": ["env", "args,prompt", "args,,cwd"],
    "context-wait": ["-1", "nan", "inf", "soon", "1e10"],
    "context-ttl": ["-0.1", "1m"],
    "start": ["context", "now"],
    "stdin": ["file"],
    "stderr": ["stdout"],
    "pty": ["yes", "1", "True"],
    "user": [":group", "user:", "a:b:c"],
    "cwd": [],
    "pass-env": ["A=B", "A B", "A,,B"],
    "timeout": ["-1", "inf", "60s"],
    "grace": ["-1", "none"],
    "drain": ["-1"],
    "max-line": ["0", "16777217", "64K", "1e3"],
    "flush-partial": ["-1", "0.5", "off", "60001"],
    "skip-empty-lines": ["on"],
    "invalid-utf8": ["ignore"],
    "write-timeout": ["-1"],
    "ping": ["-20"],
    "auth": ["basic", "JWT", "off"],
    "jwt-key": [],
    "jwt-algorithm": ["none", "hs256", "EdDSA,ES256"],
    "jwt-jwks-url": ["issuer.example/keys", "file:///etc/keys", "https://", "https://a b/"],
    "jwt-audience": [],
    "jwt-issuer": [],
    "jwt-leeway": ["-5"],
    "jwt-max-ttl": ["0", "0.5"],
    "allow-origin": ["null", "*", "example.org", "https://example.org/", "https://a.example/x",
                     "https://u@a.example", "https://"],
    "log-format": ["xml"],
    "log-level": ["trace", "INFO"],
}  # fmt: skip
SWITCHES = {"pty", "skip-empty-lines"}
BAD_ITEMS = [(name, text) for name, texts in BAD.items() for text in ["", *texts]]


def _is_allowed_empty(name: str, text: str) -> bool:
    """Whether an empty variable is an empty list."""
    option = BY_NAME[name]
    return not text and option.many is not None and option.default is None


def test_every_option_has_bad_values_here() -> None:
    """No option is without a test of what it refuses."""
    assert list(BAD) == list(BY_NAME)


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, text in BAD_ITEMS if name not in SWITCHES]
)
def test_a_bad_flag_is_bad_usage_that_names_the_flag(name: str, text: str) -> None:
    """A malformed value on the command line is exit status 2."""
    with pytest.raises(UsageError) as caught:
        load([f"--{name}={text}", *COMMAND], OPEN)
    assert caught.value.exit_status == 2
    assert f"--{name}: must " in str(caught.value)
    assert str(caught.value).startswith("cannot use ")


@pytest.mark.parametrize(
    ("name", "text"), [item for item in BAD_ITEMS if not _is_allowed_empty(*item)]
)
def test_a_bad_variable_is_bad_configuration_that_names_the_variable(name: str, text: str) -> None:
    """A malformed value in the environment is exit status 78."""
    variable = BY_NAME[name].variable
    with pytest.raises(ConfigError) as caught:
        load(COMMAND, OPEN | {variable: text})
    assert caught.value.exit_status == 78
    assert f"{variable}: must " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"), [item for item in BAD_ITEMS if not _is_allowed_empty(*item)]
)
def test_a_bad_toml_value_is_bad_configuration_that_names_key_and_file(
    name: str, text: str, tmp_path: Path
) -> None:
    """A malformed value in the file is exit status 78."""
    items = f'["{text}"]' if BY_NAME[name].many else f'"{text}"'
    config = _toml(tmp_path, f"[serve]\n{name} = {items}\n")
    with pytest.raises(ConfigError, match="must ") as caught:
        load([*config, *COMMAND], {})
    assert f"'{name}' in --config {config[1]}" in str(caught.value)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
@pytest.mark.parametrize("toml", ["1979-05-27", "{}", "[1]", "[[]]", "nan", "-5"])
def test_a_toml_value_of_another_type_is_refused(option: Option, toml: str, tmp_path: Path) -> None:
    """A date, a table, a list of numbers, nan or a negative number fit no option."""
    config = _toml(tmp_path, f"[serve]\n{option.name} = {toml}\n")
    with pytest.raises(ConfigError, match=f"'{option.name}' in "):
        load([*config, *COMMAND], {})


@pytest.mark.parametrize(
    ("line", "must"),
    [
        ("grace = true", "must be a number"),
        ("grace = '5'", "must be a number"),
        ("max-line = 1.0", "must be an integer"),
        ("max-line = true", "must be an integer"),
        ("pty = 1", "must be true or false"),
        ("pty = 'true'", "must be true or false"),
        ("context = 5", "must be a string"),
        ("context = true", "must be a string"),
        ("listen = 8765", "must be an array of strings"),
        ("listen = [8765]", "must be an array of strings"),
        ("listen = []", "must not be empty"),
        ("listen = ''", "must not be empty"),
    ],
)
def test_a_toml_type_error_says_the_type(line: str, must: str, tmp_path: Path) -> None:
    """The complaint says what TOML type belongs there."""
    with pytest.raises(ConfigError, match=must):
        load([*_toml(tmp_path, f"[serve]\n{line}\n"), *COMMAND], OPEN)


@pytest.mark.parametrize("name", ["context", "cwd", "jwt-audience"])
def test_nul_is_refused(name: str, tmp_path: Path) -> None:
    """A NUL can only come from a file; it is refused there."""
    config = _toml(tmp_path, f'[serve]\n{name} = "a\\u0000b"\n')
    with pytest.raises(ConfigError, match="NUL"):
        load([*config, *COMMAND], OPEN)


def test_a_nul_in_a_socket_path_is_refused(tmp_path: Path) -> None:
    """A NUL would cut the path of a unix socket short."""
    with pytest.raises(ConfigError, match="NUL"):
        load([*_toml(tmp_path, '[serve]\nlisten = ["unix:/a\\u0000b"]\n'), *COMMAND], OPEN)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--"],
        ["--", ""],
        ["--auth", "none"],
        ["node", "agent.mjs"],
        ["--auth", "none", "node", "agent.mjs", "--", "x"],
        ["--unknown", *COMMAND],
        ["--time", "5", *COMMAND],  # no abbreviations
        ["-x", *COMMAND],
        ["--grace", *COMMAND],
        ["--grace", "--pty", *COMMAND],
        ["--pty=true", *COMMAND],
        ["--replay", "5", *COMMAND],  # not yet an option
    ],
)
def test_a_malformed_command_line_is_bad_usage(argv: list[str]) -> None:
    """A command line that cannot be understood is exit status 2 and one sentence."""
    with pytest.raises(UsageError) as caught:
        load(argv, OPEN)
    assert str(caught.value).startswith("cannot ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "argv",
    [
        ["--tokn", SECRET],
        [f"--tokn={SECRET}"],
        [SECRET],
        [f"-p{SECRET}"],
        [f"--pty={SECRET}"],
        ["--listen", SECRET],
        ["--jwt-audience", "", SECRET],
        ["--jwt-jwks-url", SECRET],
    ],
)
def test_what_was_given_is_never_repeated(argv: list[str]) -> None:
    """A mistyped option does not put a secret into the log."""
    with pytest.raises(UsageError) as caught:
        load([*argv, *COMMAND], OPEN)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[server]\n", "unknown key or table 'server'"),
        ("grace = 5\n", "unknown key or table 'grace'"),
        ("[serve]\ngrase = 5\n", "unknown key 'grase' in [serve]"),
        ("[serve]\ncontext_wait = 5\n", "unknown key 'context_wait' in [serve]"),
        ("[serve]\nconfig = 'x'\n", "unknown key 'config' in [serve]"),
        ("[serve.jwt]\nkey = 'x'\n", "unknown key 'jwt' in [serve]"),
        ("serve = 1\n", "must be a table"),
        ("[[serve]]\n", "must be a table"),
        ("[serve\n", "line 1"),
        ("[serve]\ngrace = 5\ngrace = 6\n", "line 3"),
        ("[serve]\nx = " + "[" * 100_000, "nests too deeply"),
    ],
)
def test_a_bad_file_is_bad_configuration_that_says_where(
    text: str, says: str, tmp_path: Path
) -> None:
    """What cannot be understood in the file is named, and is exit status 78."""
    config = _toml(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load([*config, *COMMAND], OPEN)
    assert says in str(caught.value)
    assert f"--config {config[1]}" in str(caught.value)


def test_a_file_that_is_not_utf8_is_bad_configuration(tmp_path: Path) -> None:
    """TOML is UTF-8."""
    path = tmp_path / "agentd.toml"
    path.write_bytes(b"[serve]\ncwd = '\xff'\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(["--config", str(path), *COMMAND], OPEN)


def test_a_missing_file_is_bad_configuration(tmp_path: Path) -> None:
    """The complaint names the flag or variable, the path and the reason."""
    path = str(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=f"cannot read --config {path}: No such file"):
        load(["--config", path, *COMMAND], OPEN)
    with pytest.raises(ConfigError, match=f"cannot read AGENTD_CONFIG {path}: No such file"):
        load(COMMAND, OPEN | {"AGENTD_CONFIG": path})
    with pytest.raises(ConfigError, match="cannot read --config"):
        load(["--config", "", *COMMAND], OPEN)


# What must fit together.


def test_jwt_without_a_key_is_bad_configuration() -> None:
    """The default is jwt, and jwt needs a key: nobody serves openly by forgetting one."""
    with pytest.raises(ConfigError, match="--auth jwt without a key"):
        load(COMMAND, {})
    with pytest.raises(ConfigError, match="AGENTD_AUTH jwt without a key"):
        load(COMMAND, {"AGENTD_AUTH": "jwt"})
    with pytest.raises(ConfigError, match="--auth jwt without a key"):
        load(COMMAND, {"AGENTD_JWT_KEY": ""})


def test_a_key_or_a_url_is_enough_for_jwt(tmp_path: Path) -> None:
    """Either source of keys will do."""
    key = tmp_path / "key.pem"
    key.touch()
    assert load(["--jwt-key", str(key), *COMMAND], {}).auth.mode == "jwt"
    assert load(["--jwt-jwks-url", "https://issuer.example/", *COMMAND], {}).auth.mode == "jwt"


def test_a_key_that_is_not_there_is_bad_configuration(tmp_path: Path) -> None:
    """The complaint names the setting as it was written, the path and the reason."""
    path = str(tmp_path / "none.pem")
    with pytest.raises(ConfigError, match=f"cannot read --jwt-key {path}: No such file"):
        load(["--jwt-key", path, *COMMAND], {})
    with pytest.raises(ConfigError, match=f"cannot read AGENTD_JWT_KEY {path}: No such file"):
        load(COMMAND, {"AGENTD_JWT_KEY": path})


def test_a_key_that_may_not_be_read_is_bad_configuration() -> None:
    """A key without permission is found before the daemon starts."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        key = Path(directory, "key.pem")
        key.touch(mode=0)
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(ConfigError, match=f"--jwt-key {key}: Permission denied"):
                load(["--jwt-key", str(key), *COMMAND], {})
        finally:
            os.seteuid(user)


def test_a_key_that_is_a_pipe_is_left_unread(tmp_path: Path) -> None:
    """--jwt-key <(...) can be read once, and that is not here."""
    key = tmp_path / "key.pem"
    os.mkfifo(key)
    assert load(["--jwt-key", str(key), *COMMAND], {}).auth.keys == (str(key),)


def test_a_published_secret_is_bad_configuration() -> None:
    """HMAC secrets do not come from a URL that anybody can read."""
    flags = ["--jwt-jwks-url", "https://issuer.example/", "--jwt-algorithm", "HS256"]
    with pytest.raises(ConfigError, match="--jwt-algorithm HS256 with --jwt-jwks-url"):
        load([*flags, *COMMAND], {})


@pytest.mark.parametrize(
    ("flags", "environ", "says"),
    [
        ([], {"AGENTD_SERVICE_HOST": "10.0.0.1", "AGENTD_PORT": "tcp://10.0.0.1:80"},
         "ignoring unknown variables: AGENTD_PORT, AGENTD_SERVICE_HOST"),
        (["--jwt-jwks-url", "http://issuer.example/"], {"AGENTD_AUTH": "jwt"}, "not https"),
        (["--jwt-key", "/none"], {}, "auth is none"),
    ],
)  # fmt: skip
def test_what_is_unwise_is_one_warning(
    flags: list[str], environ: dict[str, str], says: str
) -> None:
    """What agentd ignores or advises against is one sentence for the log, not a refusal."""
    settings = load([*flags, *COMMAND], OPEN | environ)
    assert [says in warning for warning in settings.warnings] == [True]
    assert "10.0.0.1" not in str(settings.warnings)


@pytest.mark.parametrize(
    "url",
    ["https://issuer.example/", "http://127.0.0.1:9/", "http://localhost/", "http://[::1]:9/"],
)
def test_a_url_nobody_can_tamper_with_is_no_warning(url: str) -> None:
    """https and loopback are fine."""
    assert load(["--jwt-jwks-url", url, *COMMAND], {}).warnings == ()


def test_agentds_own_variables_are_no_surprise() -> None:
    """What is an option, or means something else to agentd, is not unknown."""
    environ = {option.variable: "" for option in OPTIONS} | dict.fromkeys(NOT_OPTIONS, "")
    assert unknown_variables(environ | {"PATH": "/bin", "XAGENTD_Y": ""}) == []
    assert unknown_variables({"AGENTD_CONTEXT_WAITS": ""}) == ["AGENTD_CONTEXT_WAITS"]


# Where `agentd health` looks.


def test_health_looks_where_serve_would_listen(tmp_path: Path) -> None:
    """The variable, then the file, then the default; of several addresses the first."""
    config = _toml(tmp_path, "[serve]\nlisten = ['unix:/run/a', '0.0.0.0:1']\n")[1]
    assert find_address(None, {}) == Address("0.0.0.0", 8765)
    assert find_address(config, {}) == Address(path="/run/a")
    assert find_address(None, {"AGENTD_CONFIG": config}) == Address(path="/run/a")
    assert find_address(config, {"AGENTD_LISTEN": "[::]:2,[::]:3"}) == Address("::", 2)


def test_health_minds_nothing_but_the_address(tmp_path: Path) -> None:
    """A file that changed under a running daemon does not make it unhealthy."""
    assert find_address(_toml(tmp_path, "[serve]\ngrase = 5\n")[1], {}).port == 8765
    with pytest.raises(ConfigError, match="AGENTD_LISTEN: must"):
        find_address(None, {"AGENTD_LISTEN": "nowhere"})
    with pytest.raises(ConfigError, match="AGENTD_LISTEN: must not be empty"):
        find_address(None, {"AGENTD_LISTEN": ""})
    with pytest.raises(ConfigError, match="cannot read --config"):
        find_address(str(tmp_path / "none"), {})


# Addresses.

_HOSTS = st.one_of(
    st.text(string.ascii_letters + string.digits + ".-_", min_size=1),
    st.ip_addresses().map(str),
)
_ADDRESSES = st.one_of(
    st.builds(Address, _HOSTS, st.integers(0, 65535), st.just("")),
    st.text(string.ascii_letters + "/:@,", min_size=1, max_size=107).map(
        lambda path: Address(path=path)
    ),
)


@given(_ADDRESSES)
def test_an_address_survives_being_written_down(address: Address) -> None:
    """What str() writes, parse() reads."""
    assert str(Address.parse(str(address))) == str(address)
    assert Address.parse(str(address)) == address


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_clear_refusal(text: str) -> None:
    """No text ends in another exception, and no refusal repeats it."""
    try:
        address = Address.parse(text)
    except ValueError as error:
        assert str(error).startswith("must ")
    else:
        assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("listening", "connecting"),
    [
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("[::]:1", "[::1]:1"),
        ("10.0.0.1:1", "10.0.0.1:1"),
        ("[fe80::1%eth0]:1", "[fe80::1%eth0]:1"),
        ("localhost:1", "localhost:1"),
        ("unix:/run/a", "unix:/run/a"),
    ],
)
def test_every_address_is_reached_by_loopback(listening: str, connecting: str) -> None:
    """Who listens everywhere is reached on loopback; others where they are."""
    assert str(Address.parse(listening).reachable()) == connecting


# The table itself.


def test_help_tells_every_option_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    """`agentd serve -h` knows each flag of the table and what it is without it."""
    with pytest.raises(SystemExit) as stop:
        load(["-h"], {})
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for option in OPTIONS:
        assert f" {option.flag}" in shown
        assert option.help.split()[0] in shown
        if option.default is not None:
            assert f"(default {option.default})" in shown
    assert all(title in shown for title in SECTIONS.values())


def test_every_field_is_filled_by_one_option() -> None:
    """Two options never fill the same field, and each has a section."""
    fields = [option.field for option in OPTIONS]
    assert len(set(fields)) == len(fields)
    assert {field.partition(".")[0] for field in fields} == set(SECTIONS)


def test_settings_are_frozen() -> None:
    """Nobody changes a setting after it was checked."""
    settings: Any = load(COMMAND, OPEN)
    with pytest.raises(AttributeError):
        settings.child.grace = 1


def test_errors_are_agentds_own() -> None:
    """Whoever catches AgentdError catches these."""
    assert issubclass(UsageError, AgentdError)
    assert issubclass(ConfigError, AgentdError)


def test_toml_is_read_by_the_standard_library(tmp_path: Path) -> None:
    """What tomllib reads is what the file says, multi-line strings and all."""
    config = _toml(tmp_path, '[serve]\ncwd = """\n/srv"""\n')
    assert sources.read_table("--config", config[1]) == tomllib.loads('cwd = "/srv"')


def test_a_command_line_of_another_command_keeps_secrets_too() -> None:
    """Every command's parser complains in the same way."""
    parser = CommandLine("agentd x", description="")
    parser.add_argument("--token")
    assert parser.parse(["--token", "t"]).token == "t"
    with pytest.raises(UsageError) as caught:
        parser.parse(["--tok", SECRET])
    assert str(caught.value) == (
        "cannot understand the command line: unknown option --tok (see agentd x -h)"
    )
