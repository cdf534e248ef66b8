"""The command starts in a clean room: what it inherits is computed, whatever the daemon has."""

import json
import os
import pwd
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from testing.daemon import Daemon, serving, wait_for
from testing.processes import NOBODY

DUMP = r"""
import json, os, sys
with open("/proc/self/status") as status:
    fields = dict(line.rstrip().partition(":\t")[::2] for line in status)
with open("/proc/self/environ", "rb") as environ:
    variables = [variable.decode() for variable in environ.read().split(b"\0") if variable]
numbers = os.listdir("/proc/self/fd")
print(json.dumps({
    "env": dict(variable.split("=", 1) for variable in variables),
    "fds": sorted(int(n) for n in numbers if os.path.exists(f"/proc/self/fd/{n}")),
    "blocked": int(fields["SigBlk"], 16), "ignored": int(fields["SigIgn"], 16),
    "mask": os.umask(0), "session": os.getsid(0), "group": os.getpgid(0), "pid": os.getpid(),
    "cwd": os.getcwd(), "stdin": os.readlink("/proc/self/fd/0"), "argv": sys.argv[1:],
    "terminals": [os.isatty(n) for n in (0, 1, 2)],
}))
"""
"""Prints what a program finds about itself."""

PYTHON_IGNORES = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
"""What Python ignores by itself; :func:`test_no_signal_is_ignored` asks a program that is not."""
CANARIES = {
    # What belongs to the daemon, to systemd, to its bundle, or to nobody.
    "AGENTD_LOG_LEVEL": "info",
    "AGENTD_SOMETHING": "agentd-canary",
    "NOTIFY_SOCKET": "/run/nobody-listens-here",
    "WATCHDOG_USEC": "30000000",
    "WATCHDOG_PID": "1",
    "LISTEN_FDNAMES": "listen-canary",
    "CREDENTIALS_DIRECTORY": "/run/credentials-canary",
    "INVOCATION_ID": "invocation-canary",
    "JOURNAL_STREAM": "1:2",
    "LD_LIBRARY_PATH": "/nowhere/ld-canary",
    "SOMETHING_ELSE": "other-canary",
    "API_KEY": "api-canary",
}


@contextmanager
def dumping(folder: Path, *options: str, **keywords: Any) -> Iterator[Daemon]:
    """A daemon whose command dumps what it finds; -I keeps Python from looking around."""
    auth = ("--auth", "none", *options)
    with serving(folder, sys.executable, "-I", "-c", DUMP, options=auth, **keywords) as daemon:
        yield daemon


def wait_gone_file(path: Path) -> None:
    """Wait until a context file has been claimed."""
    wait_for(lambda: not path.exists(), "claimed")


def dump(daemon: Daemon, **context: Any) -> dict[str, Any]:
    """Run the command once; return what it found."""
    stream = daemon.run(**context)
    assert stream.end["outcome"] == "exited", stream
    assert len(stream.lines) == 1, stream
    found: dict[str, Any] = json.loads(stream.lines[0])
    return found


def test_the_environment_is_exactly_what_the_contract_says(tmp_path: Path) -> None:
    """The short list, ``--pass-env``, the context's ``env``, and two of ours: nothing else.

    No settings of the daemon's, no libraries of its bundle (OpenHands #1758), no secrets (execd).
    """
    short = {
        "PATH": os.environ["PATH"], "HOME": "/home/somebody", "USER": "somebody", "TERM": "vt100",
        "SHELL": "/bin/false", "LANG": "C.UTF-8", "LC_TIME": "de_DE", "LC_ALL": "C", "TZ": "UTC",
        "TMPDIR": "/var/tmp",
    }  # fmt: skip
    env = short | CANARIES | {"PASSED": "as it is", "PASSED_TOO": "", "LC": "not one of LC_*"}
    with dumping(tmp_path, "--pass-env", "PASSED", "PASSED_TOO", "NOT_THERE", env=env) as daemon:
        found = dump(daemon, env={"KEY": "s3cr=t\nline", "EMPTY": "", "ÜMLAUT": "ß"}, id="the-run")
        assert found["env"] == {
            **short,
            "PASSED": "as it is",
            "PASSED_TOO": "",
            "KEY": "s3cr=t\nline",
            "EMPTY": "",
            "ÜMLAUT": "ß",
            "AGENTD_RUN_ID": "the-run",
            "PYTHONUNBUFFERED": "1",
        }


def test_the_context_wins_over_the_daemon(tmp_path: Path) -> None:
    """A name in ``env`` beats the short list, ``--pass-env`` and PYTHONUNBUFFERED's default."""
    given = {"HOME": "/context", "PATH": "/bin:/usr/bin", "PASSED": "context", "LANG": "C",
             "PYTHONUNBUFFERED": ""}  # fmt: skip
    with dumping(tmp_path, "--pass-env", "PASSED", env={"PASSED": "daemon"}) as daemon:
        found = dump(daemon, env=given)["env"]
        assert {name: found[name] for name in given} == given


def test_what_is_the_daemons_own_cannot_be_passed_on(tmp_path: Path) -> None:
    """Names the daemon was told for itself reach no child, not even by ``--pass-env``."""
    with dumping(tmp_path, "--pass-env", *CANARIES, env=CANARIES) as daemon:
        found = dump(daemon)["env"]
    assert {name for name in CANARIES if name in found} == {
        "API_KEY",
        "SOMETHING_ELSE",
        "LD_LIBRARY_PATH",  # the user's own, where no bundle has replaced it
    }


def test_a_context_cannot_set_what_is_not_its_own(tmp_path: Path) -> None:
    """Such a context is refused by its key, and nothing is started for it."""
    names = ["LD_PRELOAD", "LD_LIBRARY_PATH", "AGENTD_RUN_ID", "_PYI_X", "", "A=B", "A\0B"]
    with dumping(tmp_path) as daemon:
        for name in names:
            path = daemon.submit(env={name: "value-canary"})
            wait_gone_file(path)
        assert "value-canary" not in str(dump(daemon)["env"])
    refused = [line for line in daemon.raw_log if "env" in line and '"warning"' in line]
    assert len(refused) == len(names), refused
    assert "value-canary" not in "\n".join(daemon.raw_log)


def test_a_daemon_without_an_environment_gives_a_path(tmp_path: Path) -> None:
    """With nothing to inherit the command still finds its programs."""
    words = ("env", "-i", f"PYTHONPATH={Path(__file__).parents[2]}")
    with dumping(tmp_path, prefix=words) as daemon:
        found = dump(daemon)["env"]
    assert set(found) - {"LC_CTYPE"} == {"PATH", "AGENTD_RUN_ID", "PYTHONUNBUFFERED"}
    assert "/usr/bin" in found["PATH"].split(":")


def test_what_the_daemons_python_sets_for_itself_is_not_passed_on(tmp_path: Path) -> None:
    """Where nobody set a locale, as in most images, the child finds none (PEP 538, LC_CTYPE)."""
    words = ("env", "-u", "LANG", "-u", "LC_ALL", "-u", "LC_CTYPE")
    with dumping(tmp_path, prefix=words) as daemon:
        found = dump(daemon)["env"]
    assert [name for name in found if name.startswith(("LC_", "LANG"))] == []


LIMITED = """
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    if number not in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGHUP, signal.SIGCHLD})
os.umask(0o077)
for _ in range(5):
    os.set_inheritable(os.open("/dev/null", os.O_RDWR), True)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Starts the daemon with ignored and blocked signals, a narrow umask and inherited descriptors."""


@pytest.mark.parametrize(
    "prefix",
    [(), ("nohup",), (sys.executable, "-c", LIMITED)],
    ids=["plain", "nohup", "everything wrong"],
)
def test_the_room_is_clean(tmp_path: Path, prefix: tuple[str, ...]) -> None:
    """Descriptors 0-2, default signals, no mask, umask 022, own session, whatever agentd had.

    ttyd #162 hands its sockets on; under nohup a plain daemon's children ignore SIGHUP for ever.
    """
    with dumping(tmp_path, prefix=prefix) as daemon:
        found = dump(daemon)
        again = dump(daemon)
    assert found["fds"] == again["fds"] == [0, 1, 2]
    assert found["blocked"] == 0
    assert found["ignored"] & ~PYTHON_IGNORES == 0
    assert found["mask"] == 0o022
    assert found["pid"] == found["session"] == found["group"]
    assert found["cwd"] == "/"
    assert found["terminals"] == [False, False, False]
    assert found["argv"] == []


@pytest.mark.parametrize("source", ["prompt", "context", "client", "none"])
def test_stdin_is_a_pipe_or_nothing(tmp_path: Path, source: str) -> None:
    """``--stdin none`` is /dev/null; never the daemon's own (kata #13640)."""
    with dumping(tmp_path, "--stdin", source) as daemon:
        found = dump(daemon)
    assert found["stdin"].startswith("/dev/null" if source == "none" else "pipe:")
    assert found["fds"] == [0, 1, 2]


@pytest.mark.parametrize("prefix", [(), ("nohup",)], ids=["plain", "nohup"])
def test_no_signal_is_ignored(tmp_path: Path, prefix: tuple[str, ...]) -> None:
    """SigIgn is 0 also for what Python ignores itself: seen by a program that is not Python."""
    program = ("grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status")
    with serving(tmp_path, *program, prefix=prefix) as daemon:
        assert [int(line.split()[1], 16) for line in daemon.run().lines] == [0, 0]


def test_the_command_runs_where_it_was_told(tmp_path: Path) -> None:
    """``--cwd`` for all; a context's own only where it is allowed."""
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    options = ("--cwd", str(tmp_path / "there"), "--allow-context", "cwd")
    with dumping(tmp_path, *options) as daemon:
        assert dump(daemon)["cwd"] == str(tmp_path / "there")
        assert dump(daemon, cwd=str(tmp_path / "here"))["cwd"] == str(tmp_path / "here")


def test_arguments_come_from_a_context_only_where_allowed(tmp_path: Path) -> None:
    """They are appended as they are: no shell sees them."""
    words = ["$HOME", "a b", "", "'", "--", "*"]
    with dumping(tmp_path, "--allow-context", "args") as daemon:
        assert dump(daemon, args=words)["argv"] == words
    with dumping(tmp_path) as daemon:
        daemon.submit(args=["canary-argument"])
        assert "canary-argument" not in daemon.wait_log("args")
        assert dump(daemon)["argv"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("spec", ["nobody", "65534", "nobody:daemon"])
def test_the_command_runs_as_another_user(tmp_path: Path, spec: str) -> None:
    """All ids, the groups, and HOME USER SHELL are that user's."""
    account = pwd.getpwuid(NOBODY)
    # No program of ours: the user may not be able to read where this interpreter lies.
    ids = "id -ru; id -u; id -rg; id -g; id -G; echo $HOME $USER $SHELL"
    look = ("sh", "-c", f"{ids}; grep ^Uid: /proc/self/status; umask")
    env = {"HOME": "/daemons-home", "USER": "daemons-user", "SHELL": "/daemons-shell"}
    options = ("--auth", "none", "--user", spec)
    with serving(tmp_path, *look, options=options, env=env) as daemon:
        found = daemon.run().lines
    group = 1 if spec.endswith(":daemon") else account.pw_gid
    assert found[:4] == [str(NOBODY), str(NOBODY), str(group), str(group)]
    assert found[4].split() == [str(group)]
    assert found[5] == f"{account.pw_dir} {account.pw_name} {account.pw_shell}"
    assert found[6].split()[1:] == [str(NOBODY)] * 4
    assert found[-1] == "0022"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_cannot_look_into_the_daemon(tmp_path: Path) -> None:
    """Neither its environment nor its memory nor its descriptors (PR_SET_DUMPABLE, proc(5))."""
    look = "cat /proc/$PPID/environ /proc/$PPID/maps; ls /proc/$PPID/fd; exit 0"
    options = ("--auth", "none", "--user", "nobody")
    with serving(tmp_path, "sh", "-c", look, options=options, env={"API_KEY": "canary"}) as daemon:
        stream = daemon.run()
    assert stream.lines == []
    assert len(stream.of("stderr")) == 3


def test_the_daemons_parts_are_not_in_the_childs_output(tmp_path: Path) -> None:
    """A command that prints its whole environment shows nothing of the daemon's canaries."""
    with serving(tmp_path, "env", env=CANARIES) as daemon:
        printed = "\n".join(daemon.run(env={"MINE": "yes"}).lines)
    assert "MINE=yes" in printed
    assert "canary" not in printed
