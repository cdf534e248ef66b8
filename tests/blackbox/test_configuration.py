"""Every setting under its three names: flag, AGENTD_ variable, key of the TOML file."""

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from testing.commands import Call, agentd, agentd_each, complains
from testing.contexts import wait_taken, write_in_place
from testing.daemon import daemon_environ, launcher, serving, wait_for
from testing.exchange import handshake, knock, unused_port
from testing.tokens import ed25519_pair

SECRET = "hunter2"


class Setting(NamedTuple):
    """A good value and a bad one, as on the command line; in TOML they may be numbers or lists."""

    name: str
    good: str
    bad: str
    toml: str = ""

    @property
    def variable(self) -> str:
        return "AGENTD_" + self.name.upper().replace("-", "_")

    @property
    def line(self) -> str:
        return f"{self.name} = {self.toml or json.dumps(self.good)}\n"

    def bad_line(self) -> str:
        return f"{self.name} = {json.dumps(self.bad)}\n"


SETTINGS = [
    Setting("if-running", "fail", SECRET),
    Setting("max-runs", "3", "0", "3"),
    Setting("context-from", "file", SECRET),
    Setting("allow-context", "args,cwd", SECRET, '["args", "cwd"]'),
    Setting("context-wait", "0.5", "-1", "0.5"),
    Setting("context-ttl", "30", SECRET, "30"),
    Setting("start", "connect", SECRET),
    Setting("stdin", "none", SECRET),
    Setting("stderr", "merge", SECRET),
    Setting("cwd", "/tmp", ""),
    Setting("pass-env", "ONE,TWO", "A=B", '["ONE", "TWO"]'),
    Setting("timeout", "60", "nan", "60"),
    Setting("grace", "1", "inf", "1.5"),
    Setting("drain", "0.1", SECRET, "0.1"),
    Setting("max-line", "1000", "1.5", "1000"),
    Setting("flush-partial", "50", "-1", "50"),
    Setting("invalid-utf8", "binary", SECRET),
    Setting("write-timeout", "0", SECRET, "0"),
    Setting("ping", "5", "-0.5", "5"),
    Setting("jwt-leeway", "1", SECRET, "1"),
    Setting("jwt-max-ttl", "60", "0", "60"),
    Setting("jwt-audience", "a", ""),
    Setting("jwt-issuer", "i", ""),
    Setting("allow-origin", "https://a.example", SECRET, '["https://a.example"]'),
    Setting("log-format", "json", SECRET),
    Setting("log-level", "warning", SECRET),
]
SWITCHES = ["pty", "skip-empty-lines"]
BASE = ("--auth", "none")
REST = ("--", "cat")


def ready(raw_log: list[str]) -> str:
    """The line that says where it is ready."""
    return next(line for line in raw_log if "ready on" in line)


# Good ones.


@pytest.mark.parametrize("how", ["flags", "variables", "file"])
def test_every_setting_may_be_given_in_every_way(tmp_path: Path, how: str) -> None:
    """All settings at once, as flags, as variables, in the file: it starts and runs."""
    settings = [each for each in SETTINGS if each.name not in ("stdin", "log-level")]
    options: list[str] = list(BASE)
    env: dict[str, str] = {}
    if how == "flags":
        for each in settings:
            options += [f"--{each.name}", each.good]
        options += [f"--{name}" for name in SWITCHES]
    elif how == "variables":
        env = {each.variable: each.good for each in settings}
        env |= {f"AGENTD_{name.upper().replace('-', '_')}": "true" for name in SWITCHES}
    else:
        lines = [each.line for each in settings] + [f"{name} = true\n" for name in SWITCHES]
        (tmp_path / "agentd.toml").write_text("[serve]\n" + "".join(lines))
        options += ["--config", str(tmp_path / "agentd.toml")]
    script = "tty <&1 >/dev/null && echo terminal; pwd; echo $ONE; cat"
    env |= {"ONE": "passed on"}
    with serving(tmp_path, "sh", "-c", script, options=options, env=env) as daemon:
        assert daemon.run(prompt="p\n").lines == ["terminal", "/tmp", "passed on", "p"]
        assert knock(daemon.port, handshake("/", "Origin: https://a.example")).status == 404
        assert knock(daemon.port, handshake("/", "Origin: http://localhost")).status == 403
        assert not [entry for entry in daemon.log if entry["level"] in ("warning", "error")]


def test_flag_beats_variable_beats_file_beats_default(tmp_path: Path) -> None:
    """The log's form shows which of them was heard."""
    config = tmp_path / "agentd.toml"
    config.write_text('[serve]\nlog-format = "text"\nauth = "none"\ncwd = "/usr"\n')
    by_file = ("--config", str(config))
    cases: list[tuple[tuple[str, ...], dict[str, str], bool]] = [
        (BASE, {}, True),
        (by_file, {}, False),
        ((), {"AGENTD_CONFIG": str(config)}, False),
        (by_file, {"AGENTD_LOG_FORMAT": "json"}, True),
        ((*by_file, "--log-format", "text"), {"AGENTD_LOG_FORMAT": "json"}, False),
        ((*by_file, "--log-format", "json"), {}, True),
        ((*by_file, "--log-format", "json"), {"AGENTD_CONFIG": "/no/such/file"}, True),
    ]
    for options, env, is_json in cases:
        with serving(tmp_path, "pwd", options=options, env=env) as daemon:
            assert ready(daemon.raw_log).startswith("{") is is_json, (options, env)
            assert daemon.run().lines == ["/" if options == BASE else "/usr"]


def test_a_switch_can_be_turned_off_by_what_beats_it(tmp_path: Path) -> None:
    """`true` in the file is undone by `false` in a variable, and that by the flag."""
    config = tmp_path / "agentd.toml"
    config.write_text('[serve]\npty = true\nauth = "none"\n')
    script = "tty -s <&1 && echo terminal || echo pipe"
    options = ("--config", str(config))
    with serving(tmp_path, "sh", "-c", script, options=options) as daemon:
        assert daemon.run().lines == ["terminal"]
    with serving(
        tmp_path, "sh", "-c", script, options=options, env={"AGENTD_PTY": "false"}
    ) as daemon:
        assert daemon.run().lines == ["pipe"]
    with serving(
        tmp_path, "sh", "-c", script, options=(*options, "--no-pty"), env={"AGENTD_PTY": "true"}
    ) as daemon:
        assert daemon.run().lines == ["pipe"]


def test_lists_are_replaced_and_not_joined(tmp_path: Path) -> None:
    """A flag's list is the whole list."""
    env = {"AGENTD_ALLOW_ORIGIN": "https://one.example,https://two.example"}
    options: tuple[str, ...] = (*BASE, "--context-wait", "0")
    with serving(tmp_path, "cat", options=options, env=env) as daemon:
        for name in ("one", "two"):
            assert (
                knock(daemon.port, handshake("/", f"Origin: https://{name}.example")).status == 404
            )
    options += ("--allow-origin", "https://three.example")
    with serving(tmp_path, "cat", options=options, env=env) as daemon:
        assert knock(daemon.port, handshake("/", "Origin: https://one.example")).status == 403
        assert knock(daemon.port, handshake("/", "Origin: https://three.example")).status == 404


def test_several_addresses(tmp_path: Path) -> None:
    """--listen may be given more than once, and each answers."""
    options = (*BASE, "--listen", "127.0.0.1:0", "--listen", "127.0.0.2:0")
    with serving(tmp_path, "cat", options=options) as daemon:
        where = json.loads(ready(daemon.raw_log))["message"].removeprefix("ready on ").split(", ")
        assert len(where) == 3
        done = agentd_each([Call(("health", "--url", f"http://{each}")) for each in where])
        assert [each.status for each in done] == [0, 0, 0]


def test_unknown_variables_are_one_warning(tmp_path: Path) -> None:
    """Kubernetes makes some for a service called agentd; they are named, and not their values."""
    env = {
        "AGENTD_PORT": f"tcp://{SECRET}:8765",
        "AGENTD_SERVICE_HOST": SECRET,
        "AGENTD_PORT_8765_TCP_ADDR": SECRET,
        "AGENTDX": SECRET,
        "agentd_grace": SECRET,
    }
    with serving(tmp_path, "cat", env=env) as daemon:
        (warning,) = [entry for entry in daemon.log if entry["level"] == "warning"]
        for name in ("AGENTD_PORT", "AGENTD_SERVICE_HOST", "AGENTD_PORT_8765_TCP_ADDR"):
            assert name in warning["message"]
        assert "AGENTDX" not in warning["message"]
        assert SECRET not in "\n".join(daemon.raw_log)


def test_keys_with_auth_none_are_a_warning(tmp_path: Path) -> None:
    """Somebody may think that they are used."""
    _, public = ed25519_pair(tmp_path)
    with serving(tmp_path, "cat", options=(*BASE, "--jwt-key", str(public))) as daemon:
        assert len([entry for entry in daemon.log if entry["level"] == "warning"]) == 1


def test_a_quiet_log_is_quiet(tmp_path: Path) -> None:
    """At --log-level error neither a start, nor a run, nor a bad context leaves a line."""
    port = unused_port()
    words = ("--listen", f"127.0.0.1:{port}", "--context", str(tmp_path / "c.json"))
    process = subprocess.Popen(
        [*launcher(), "serve", *BASE, *words, "--log-level", "error", *REST],
        stderr=subprocess.PIPE,
        env=daemon_environ(),
    )
    try:
        health = Call(("health", "--ready", "--url", f"http://127.0.0.1:{port}"))
        wait_for(lambda: agentd(*health.arguments).status == 0, "ready")
        (tmp_path / "c.json").symlink_to("nowhere")
        wait_taken(tmp_path / "c.json")
    finally:
        process.terminate()
    assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == 0


# Bad ones.


def test_a_bad_flag_is_2() -> None:
    """One line that names the flag and not its value."""
    calls = [Call(("serve", *BASE, f"--{each.name}={each.bad}", *REST)) for each in SETTINGS]
    done = agentd_each(calls)
    wrong = [complains(got, 2, f"--{each.name}") for got, each in zip(done, SETTINGS, strict=True)]
    assert list(filter(None, wrong)) == []
    assert SECRET not in "".join(each.err for each in done)


def test_a_bad_variable_is_78() -> None:
    """One line that names the variable and not its value."""
    settings = [each for each in SETTINGS if each.bad]
    switches = [Setting(name, "true", SECRET) for name in SWITCHES]
    settings += switches
    done = agentd_each(
        Call(("serve", *BASE, *REST), {each.variable: each.bad}) for each in settings
    )
    wrong = [complains(got, 78, each.variable) for got, each in zip(done, settings, strict=True)]
    assert list(filter(None, wrong)) == []
    assert SECRET not in "".join(each.err for each in done)


def test_a_bad_value_in_the_file_is_78(tmp_path: Path) -> None:
    """One line that names the file and the key and not its value: wrong text, wrong type."""
    calls, says = [], []
    lines = [(each.name, each.bad_line()) for each in SETTINGS]
    lines += [(name, f'{name} = "true"\n') for name in SWITCHES]
    lines += [
        ("grace", "grace = true\n"),
        ("max-runs", "max-runs = 3.5\n"),
        ("listen", "listen = 8765\n"),
        ("listen", "listen = []\n"),
        ("pass-env", 'pass-env = ["A", 1]\n'),
        ("timeout", "timeout = [1]\n"),
        ("context", "context = {}\n"),
    ]
    for number, (name, line) in enumerate(lines):
        path = tmp_path / f"{number}.toml"
        path.write_text(f"[serve]\n{line}")
        calls.append(Call(("serve", *BASE, "--config", str(path), *REST)))
        says.append((str(path), name))
    done = agentd_each(calls)
    wrong = [complains(got, 78, *words) for got, words in zip(done, says, strict=True)]
    assert list(filter(None, wrong)) == []
    assert SECRET not in "".join(each.err for each in done)


def test_a_bad_file_is_78(tmp_path: Path) -> None:
    """What is no TOML, has an unknown key or table, or is not there: one line that names it."""
    texts = {
        "unknown-key": f'[serve]\ngrase = "{SECRET}"\n',
        "flag-as-key": "[serve]\n--grace = 1\n",
        "underscore": "[serve]\ncontext_wait = 1\n",
        "unknown-table": f'[server]\ngrace = "{SECRET}"\n',
        "no-table": "grace = 1\n",
        "serve-is-no-table": "serve = 1\n",
        "array-of-tables": "[[serve]]\ngrace = 1\n",
        "not-toml": f"grace: {SECRET}\n",
        "twice": "[serve]\ngrace = 1\ngrace = 2\n",
        "open-string": f'[serve]\ncwd = "{SECRET}\n',
        "command": '[serve]\ncommand = ["cat"]\n',
        "config": '[serve]\nconfig = "other.toml"\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "not-utf8").write_bytes(b"[serve]\ncwd = '\xff'\n")
    (tmp_path / "deep").write_text("[serve]\ncwd = " + "[" * 100_000)
    (tmp_path / "directory").mkdir()
    names = [*texts, "not-utf8", "deep", "directory", "missing"]
    paths = [str(tmp_path / name) for name in names]
    done = agentd_each(Call(("serve", *BASE, "--config", path, *REST)) for path in paths)
    wrong = [complains(got, 78, path) for got, path in zip(done, paths, strict=True)]
    assert list(filter(None, wrong)) == []
    assert SECRET not in "".join(each.err for each in done)
    assert (
        complains(agentd("serve", *REST, environ={"AGENTD_CONFIG": paths[-1]}), 78, "missing") == ""
    )


def test_what_does_not_fit_together_is_78(tmp_path: Path) -> None:
    """No key for jwt, an HMAC secret from a URL, an unknown user, a directory that is not there."""
    write_in_place(tmp_path / "secret", b"s" * 32)
    url = "http://127.0.0.1:9/"
    cases: list[tuple[tuple[str, ...], str]] = [
        ((), "--jwt-key"),
        (("--auth", "jwt"), "--jwt-key"),
        (("--jwt-algorithm", "HS256"), "--jwt-key"),
        (("--jwt-jwks-url", url, "--jwt-algorithm", "HS256"), "--jwt-algorithm"),
        ((*BASE, "--user", "no-such-user-here"), "no-such-user-here"),
        ((*BASE, "--user", "root:no-such-group-here"), "no-such-group-here"),
    ]
    done = agentd_each(
        Call(("serve", "--listen", "127.0.0.1:0", *words, *REST)) for words, _ in cases
    )
    wrong = [complains(got, 78, text) for got, (_, text) in zip(done, cases, strict=True)]
    assert list(filter(None, wrong)) == []


@pytest.mark.parametrize(
    "value",
    ["8765", "127.0.0.1", "127.0.0.1:", ":8765", "127.0.0.1:65536", "127.0.0.1:-1", "::1:8765",
     "[::1]", "[hunter2]:1", "unix:", "unix:" + "x" * 108, "http://127.0.0.1:1", "a b:1", ""],
)  # fmt: skip
def test_a_bad_address_is_refused(value: str) -> None:
    """By flag 2, by variable 78, before anything is opened."""
    flag, variable = agentd_each(
        [
            Call(("serve", *BASE, f"--listen={value}", *REST)),
            Call(("serve", *BASE, *REST), {"AGENTD_LISTEN": value}),
        ]
    )
    assert complains(flag, 2, "--listen") == ""
    assert complains(variable, 78, "AGENTD_LISTEN") == ""
