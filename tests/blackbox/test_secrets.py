"""What a context says is the command's alone: it rests nowhere, and agentd tells it to nobody."""

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testing.daemon import Daemon, daemon_environ, launcher, serving, wait_for
from testing.plain_client import PlainClient
from testing.programs import own_processes

CANARY = "canary-5e1f0b7c"


def everything_told(daemon: Daemon, folder: Path) -> str:
    """All that can be learned of the daemon without its memory and its command's output."""
    told = ["\n".join(daemon.raw_log)]
    told += [daemon.get(path)[2].decode() for path in ("/healthz", "/readyz", "/metrics", "/x")]
    for pid in own_processes(daemon):
        told += [
            Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
            for name in ("environ", "cmdline", "comm")
        ]
    for path in folder.rglob("*"):
        told.append(path.name)
        if path.is_file():
            told.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(told)


CONTEXT: dict[str, Any] = {
    "id": "the-run",
    "prompt": f"prompt {CANARY}\n",
    "env": {"API_KEY": f"env {CANARY}"},
    "custom": f"custom {CANARY}",
}


@pytest.mark.parametrize("log", ["json", "text"])
@pytest.mark.parametrize("raw", [False, True], ids=["v1", "raw"])
def test_a_secret_is_told_to_nobody_but_the_command(tmp_path: Path, raw: bool, log: str) -> None:
    """Not in the log at debug level, not by a probe, not in /proc, not on disk (execd keeps it)."""
    options = ("--auth", "none", "--log-level", "debug", "--log-format", log)
    command = ("sh", "-c", "cat >/dev/null; echo $API_KEY >/dev/null; echo seen; read x </dev/null")
    with serving(tmp_path, *command, options=options) as daemon:
        stream = daemon.run(raw=raw, **CONTEXT)
        assert stream.code == 4000
        assert CANARY not in everything_told(daemon, tmp_path)
        assert "the-run" in "\n".join(daemon.raw_log), "run ids are no secret"
    assert CANARY not in str(stream)


def test_a_secret_that_waits_or_runs_is_told_to_nobody(tmp_path: Path) -> None:
    """While a context waits in memory and while its command runs the file is gone already."""
    options = ("--auth", "none", "--log-level", "debug")
    with serving(tmp_path, "sleep", "300", options=options) as daemon:
        path = daemon.submit(**CONTEXT)
        wait_for(lambda: not path.exists(), "claimed")
        daemon.wait_log("claimed")
        assert CANARY not in everything_told(daemon, tmp_path)
        with PlainClient(daemon.address).upgrade() as client:
            assert CANARY not in str(client.frame())
            assert CANARY not in everything_told(daemon, tmp_path)


@pytest.mark.parametrize(
    "document",
    [
        f'{{"prompt": "{CANARY}", "env": {{"A": 1}}}}',
        f'{{"prompt": ["{CANARY}"]}}',
        f'{{"env": {{"LD_PRELOAD": "{CANARY}"}}}}',
        f'{{"prompt": "{CANARY}", "timeout": "{CANARY}"}}',
        f'{{"args": ["{CANARY}"]}}',
        f'{{"cwd": "/{CANARY}"}}',
        f'{{"prompt": "{CANARY}"}} trailing',
        f'["{CANARY}"]',
        f'"{CANARY}"',
        f'{{"prompt": "{CANARY}", "prompt": "{CANARY}"}}',
        f'{{"prompt": "{CANARY}\\ud800"}}',
        f'{{"id": "{CANARY}/{CANARY}"}}',
    ],
    ids=lambda document: re.sub(r"\W+", " ", document.replace(CANARY, "X")).strip(),
)
def test_a_bad_context_is_reported_without_a_value(
    bad: Daemon, document: str, tmp_path: Path
) -> None:
    """A refusal names a key or a reason; the text of the file is in no line of the log."""
    before = len(bad.raw_log)
    path = bad.write(document.encode())
    wait_for(lambda: not path.exists(), "the bad file is gone")
    wait_for(lambda: any('"warning"' in line for line in bad.raw_log[before:]), "reported")
    assert CANARY not in everything_told(bad, bad.context.parent)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    options = ("--auth", "none", "--log-level", "debug")
    with serving(tmp_path_factory.mktemp("daemon"), "true", options=options) as daemon:
        yield daemon


def test_a_context_that_expires_is_told_to_nobody(tmp_path: Path) -> None:
    """Nobody came for it: one warning with its id."""
    options = ("--auth", "none", "--log-level", "debug", "--context-ttl", "0.2")
    with serving(tmp_path, "true", options=options) as daemon:
        daemon.submit(**CONTEXT)
        assert "the-run" in daemon.wait_log("expired")
        assert CANARY not in everything_told(daemon, tmp_path)


def test_a_token_in_the_url_is_not_in_the_log(tmp_path: Path) -> None:
    """Good or bad, accepted or refused, at debug level (OpenHands: tokens in access logs)."""
    keys = tmp_path / "keys"
    words = [*launcher(), "keygen", str(keys)]
    made = subprocess.run(words, env=daemon_environ(), capture_output=True, text=True, check=True)
    private, public = made.stdout.split()
    words = [*launcher(), "token", "--key", private]
    minted = subprocess.run(words, env=daemon_environ(), capture_output=True, text=True, check=True)
    token = minted.stdout.strip()
    options = ("--jwt-key", public, "--log-level", "debug")
    with serving(tmp_path, "echo", "in", options=options) as daemon:
        assert daemon.run(f"/?token={token}").lines == ["in"]
        with PlainClient(daemon.address, f"/?token={token}") as again:
            again.ask()
            assert again.answer() == 401
        with PlainClient(daemon.address, f"/?token={CANARY}.{CANARY}.{CANARY}") as wrong:
            wrong.ask()
            assert wrong.answer() == 401
        told = everything_told(daemon, tmp_path / "nothing")
    for part in (*token.split("."), CANARY):
        assert part not in told


def test_a_killed_daemon_leaves_no_secret_on_disk(tmp_path: Path) -> None:
    """The file was unlinked before it was read, so there is none to find after kill -9."""
    with serving(tmp_path, "sleep", "300") as daemon:
        path = daemon.submit(**CONTEXT)
        wait_for(lambda: not path.exists(), "claimed")
        with PlainClient(daemon.address).upgrade() as client:
            client.frame()
            daemon.stop(signal.SIGKILL)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in left if CANARY.encode() in path.read_bytes()] == []
