"""The command line as a user meets it: one line on stderr, and the documented exit status."""

import fcntl
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from testing.loopback import answer, serving, unused_port

from agentd import __version__
from agentd.cli import COMMANDS
from agentd.sansio.context import parse_context

PACKAGES = str(Path(__file__).parents[2])
SECRET = "hunter2"
CLEAN = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": PACKAGES,
    "PYTHONDONTWRITEBYTECODE": "1",
    "LC_ALL": "C.UTF-8",
}


class Result(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


def agentd(*arguments: str, environ: Mapping[str, str] | None = None, stdin: bytes = b"") -> Result:
    """Run one command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "agentd", *arguments],
        env=CLEAN | dict(environ or {}),
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def assert_one_line(result: Result, status: int, *says: str) -> None:
    """The command failed with ``status`` and one line that says each of ``says``."""
    assert result.status == status, result
    assert result.out == ""
    assert re.fullmatch("agentd: [^\n]+\n", result.err), result
    for text in says:
        assert text in result.err


# --version and help.


def test_version_is_one_line() -> None:
    """Version, protocol, build, Python and platform."""
    result = agentd("--version")
    python = ".".join(str(part) for part in sys.version_info[:3])
    assert (result.status, result.err) == (0, "")
    assert re.fullmatch(
        rf"agentd {re.escape(__version__)} protocol agentd\.v1 build [0-9a-f]{{12}} "
        rf"python {re.escape(python)} linux-{os.uname().machine}\n",
        result.out,
    )


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command(flag: str) -> None:
    """`agentd -h` tells what there is."""
    result = agentd(flag)
    assert (result.status, result.err) == (0, "")
    for name, command in COMMANDS.items():
        assert f"  {name}" in result.out
        assert command.summary in result.out


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_with_its_exit_statuses(name: str) -> None:
    """`agentd COMMAND -h` works without anything that the command would need."""
    result = agentd(name, "-h")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(f"usage: agentd {name}")
    assert "Exit status: " in result.out


# Usage errors.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "agentd -h"),
        (["serv"], "unknown command"),
        (["-x"], "unknown command"),
        (["serve"], "agentd serve [options] -- COMMAND"),
        (["serve", "--auth", "none"], "COMMAND"),
        (["serve", "--auth", "none", "node", "agent.mjs"], "COMMAND"),
        (["serve", "--unknown", "--", "x"], "--unknown"),
        (["serve", "--max-line", "64K", "--", "x"], "--max-line: must be a whole number"),
        (["serve", "--auth", "maybe", "--", "x"], "--auth: must be jwt or none"),
        (["serve", "--listen", "8765", "--", "x"], "--listen: must be HOST:PORT"),
        (["health", "extra"], "agentd health -h"),
        (["health", "--url"], "--url"),
        (["health", "--url", "https://localhost:1"], "--url: must be http://HOST:PORT"),
        (["health", "--url", "http://localhost:1/other"], "--url: must be http://HOST:PORT"),
        (["health", "--url", "http://:1"], "--url: must"),
        (["health", "--url", "unix:"], "--url: must name a path"),
        (["submit", "--env", "=x"], "--env: must be NAME=VALUE"),
        (["submit", "--context", ""], "--context: must not be empty"),
        (["token"], "--key"),
        (["token", "--key", "k", "--ttl", "soon"], "--ttl: must be a number of seconds"),
        (["token", "--key", "k", "--ttl", "0"], "--ttl: must be a number of seconds"),
        (["keygen"], "DIR"),
        (["keygen", "a", "b"], "agentd keygen -h"),
        (["demo", "x"], "agentd demo -h"),
    ],
)
def test_a_malformed_command_line_is_status_2(arguments: list[str], says: str) -> None:
    """One line that says what is wrong, and 2."""
    assert_one_line(agentd(*arguments), 2, says)


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--after", "x"], ["--token=a", "u", "--x"]])
def test_a_malformed_stream_is_status_125(arguments: list[str]) -> None:
    """2 would look like the run's own."""
    assert_one_line(agentd("stream", *arguments), 125, "agentd stream -h")


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--tokn", SECRET, "--", "x"],
        ["serve", SECRET, "--", "x"],
        ["stream", f"--tokn={SECRET}", "ws://localhost"],
        ["stream", f"--json={SECRET}", "ws://localhost"],
        ["submit", "--promt", SECRET],
        ["submit", "--env", f"={SECRET}"],
        [SECRET],
    ],
)
def test_what_was_mistyped_is_not_repeated(arguments: list[str]) -> None:
    """stderr is read by others than the one who typed."""
    result = agentd(*arguments)
    assert result.status in (2, 125)
    assert SECRET not in result.err


def test_a_complaint_is_one_line_whatever_is_in_a_path() -> None:
    """Newlines and terminal sequences in a path are shown, not obeyed."""
    result = agentd("serve", "--config", "/none\n\x1b[31m", "--", "x")
    assert_one_line(result, 78, r"/none\n\x1b[31m")


# Bad configuration.


def test_serve_without_a_key_is_status_78() -> None:
    """jwt is the default, and without a key nobody could come in."""
    assert_one_line(agentd("serve", "--", "true"), 78, "--auth jwt without a key")


def test_serve_with_a_bad_variable_is_status_78() -> None:
    """The line names the variable."""
    result = agentd("serve", "--", "true", environ={"AGENTD_GRACE": SECRET})
    assert_one_line(result, 78, "AGENTD_GRACE: must be a number of seconds")
    assert SECRET not in result.err


def test_serve_with_a_bad_file_is_status_78(tmp_path: Path) -> None:
    """The line names the key and the file."""
    path = tmp_path / "agentd.toml"
    path.write_text("[serve]\ngrase = 5\n")
    result = agentd("serve", "--config", str(path), "--", "true")
    assert_one_line(result, 78, "unknown key 'grase'", str(path))


def test_serve_with_a_missing_key_file_is_status_78() -> None:
    """The line names the setting and the path."""
    result = agentd("serve", "--jwt-key", "/none.pem", "--", "true")
    assert_one_line(result, 78, "--jwt-key /none.pem: No such file")


# health.


def test_health_of_nothing_is_status_1() -> None:
    """Nobody listens: not healthy, and why."""
    listen = f"127.0.0.1:{unused_port()}"
    result = agentd("health", environ={"AGENTD_LISTEN": listen})
    assert_one_line(result, 1, f"cannot reach {listen}: Connection refused")


def test_health_is_silent_when_all_is_well(tmp_path: Path) -> None:
    """Wherever the address comes from: the variable, the file, --url; TCP or a unix socket."""
    for listening in ("127.0.0.1:0", "0.0.0.0:0", f"unix:{tmp_path}/s"):
        with serving(answer(), listening) as server:
            config = tmp_path / "agentd.toml"
            config.write_text(f"[serve]\nlisten = ['{server.address}']\nauth = 'none'\n")
            address = str(server.address.reachable())
            url = address if address.startswith("unix:") else f"http://{address}"
            assert agentd("health", environ={"AGENTD_LISTEN": str(server.address)}) == (0, "", "")
            assert agentd("health", "--config", str(config)) == (0, "", "")
            assert agentd("health", environ={"AGENTD_CONFIG": str(config)}) == (0, "", "")
            assert agentd("health", "--url", url) == (0, "", "")
            assert len(server.requests) == 4
            assert all(asked.startswith(b"GET /healthz HTTP/1.1\r\n") for asked in server.requests)


def test_health_url_may_spell_the_path() -> None:
    """The probed path after the address is the same address."""
    with serving(answer()) as server:
        assert agentd("health", "--url", f"http://{server.address}/healthz").status == 0
        assert agentd("health", "--url", f"http://{server.address}/").status == 0
        assert agentd("health", "--ready", "--url", f"http://{server.address}/readyz").status == 0


def test_health_ready_asks_for_readiness() -> None:
    """--ready asks /readyz, and 503 is not ready."""
    with serving(answer("503 Service Unavailable", b'{"status":"draining"}')) as server:
        result = agentd("health", "--ready", "--url", f"http://{server.address}")
        assert_one_line(result, 1, f"not ready: {server.address} said 503")
        assert server.requests[0].startswith(b"GET /readyz ")


def test_health_of_somebody_else_is_status_1() -> None:
    """Another server's 200 is not our health."""
    with serving(answer(body=b"<html>")) as server:
        result = agentd("health", "--url", f"http://{server.address}")
        assert_one_line(result, 1, "not agentd")
    with serving(answer("500 Oops")) as server:
        assert_one_line(agentd("health", "--url", f"http://{server.address}"), 1, "said 500")


def test_health_that_cannot_tell_where_is_status_1() -> None:
    """A bad AGENTD_LISTEN is no bad usage of `health`, and surely not healthy."""
    result = agentd("health", environ={"AGENTD_LISTEN": "nowhere"})
    assert_one_line(result, 1, "AGENTD_LISTEN")


@pytest.mark.parametrize("arguments", [["--version"], ["health"], ["-h"], ["health", "-h"]])
def test_what_runs_often_starts_without_trio(arguments: list[str]) -> None:
    """`agentd health` runs every few seconds: it imports no more than a probe needs."""
    code = (
        "import sys; from agentd.cli import main\n"
        f"main({arguments!r})\n"
        "heavy = {'trio', 'ssl', 'jwt', 'msgspec', 'h11', 'asyncio', 'tomllib', 'cryptography',\n"
        "         'logging', 'subprocess', 'urllib'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    if arguments in (["-h"], ["health", "-h"]):
        code = code.replace("'logging', ", "")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=CLEAN | {"AGENTD_LISTEN": f"127.0.0.1:{unused_port()}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# submit.


@pytest.fixture
def where(tmp_path: Path) -> Path:
    return tmp_path / "context.json"


def test_submit_writes_a_private_file_and_prints_its_path(where: Path) -> None:
    """Mode 0600, the whole context, nothing else in the directory."""
    result = agentd(
        "submit", "--context", str(where), "--prompt", "grüß dich", "--env", "A=b=c", "--id", "r1"
    )
    assert result == (0, f"{where}\n", "")
    assert stat.S_IMODE(where.stat().st_mode) == 0o600
    assert json.loads(where.read_bytes()) == {
        "prompt": "grüß dich",
        "env": {"A": "b=c"},
        "id": "r1",
    }
    assert os.listdir(where.parent) == [where.name]


def test_submit_writes_what_serve_reads(where: Path) -> None:
    """The smallest submit is a context."""
    assert agentd("submit", "--context", str(where)).status == 0
    context = parse_context(where.read_bytes())
    assert (context.prompt, dict(context.env), context.id) == ("", {}, None)


def test_submit_finds_the_path_like_serve(tmp_path: Path) -> None:
    """AGENTD_CONTEXT names it too; a directory gets <id>.json."""
    environ = {"AGENTD_CONTEXT": f"{tmp_path}/"}
    result = agentd("submit", "--id", "r1", environ=environ)
    assert result.out == f"{tmp_path}/r1.json\n"
    made_up = agentd("submit", environ=environ).out.strip()
    assert made_up.endswith(".json")
    assert Path(made_up).parent == tmp_path


def test_submit_reads_the_prompt_from_stdin(where: Path) -> None:
    """--prompt - is for prompts that are long, or nobody's business."""
    agentd("submit", "--context", str(where), "--prompt", "-", stdin="zwölf\n\n".encode())
    assert json.loads(where.read_bytes())["prompt"] == "zwölf\n\n"


def test_submit_takes_a_bare_variable_from_its_environment(where: Path) -> None:
    """--env K keeps the value out of the process list."""
    agentd("submit", "--context", str(where), "--env", "KEY", environ={"KEY": SECRET})
    assert json.loads(where.read_bytes())["env"] == {"KEY": SECRET}


def test_submit_takes_an_empty_value_as_given(where: Path) -> None:
    """K= is an empty value, not a missing one."""
    agentd("submit", "--context", str(where), "--env", "KEY=", environ={"KEY": SECRET})
    assert json.loads(where.read_bytes())["env"] == {"KEY": ""}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--env", "MISSING"], "--env MISSING"),
        (["--env", f"LD_PRELOAD={SECRET}"], "LD_PRELOAD"),
        (["--env", f"AGENTD_X={SECRET}"], "AGENTD_X"),
        (["--id", "a/b"], "id"),
        (["--id", ""], "id"),
        (["--prompt", os.fsdecode(b"\xff" + SECRET.encode())], "UTF-8"),
        (["--prompt", SECRET * 20_000], "larger"),
    ],
)
def test_submit_refuses_what_serve_would_refuse(
    arguments: list[str], says: str, where: Path
) -> None:
    """The daemon could not tell who wrote it; here the writer is told, by name and not by value."""
    if len(str(arguments)) > 100_000:
        arguments, stdin = ["--prompt", "-"], SECRET.encode() * 200_000
    else:
        stdin = b""
    result = agentd("submit", "--context", str(where), *arguments, stdin=stdin)
    assert_one_line(result, 1, says)
    assert SECRET not in result.err
    assert os.listdir(where.parent) == []


def test_submit_refuses_a_prompt_on_stdin_that_is_not_text(where: Path) -> None:
    """JSON holds text."""
    result = agentd("submit", "--context", str(where), "--prompt", "-", stdin=b"\xff")
    assert_one_line(result, 1, "stdin is not UTF-8")


def test_submit_that_cannot_write_is_status_1(tmp_path: Path) -> None:
    """The line names the path and the reason."""
    path = f"{tmp_path}/none/context.json"
    assert_one_line(agentd("submit", "--context", path), 1, path, "No such file or directory")


def test_submit_prints_a_path_that_is_not_text(tmp_path: Path) -> None:
    """A path is bytes, and comes out as it went in."""
    path = os.fsencode(tmp_path) + b"/\xff.json"
    done = subprocess.run(
        [sys.executable, "-m", "agentd", "submit", "--context", path],
        env=CLEAN,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == path + b"\n"


def test_submit_as_root_gives_the_file_to_the_directorys_owner() -> None:
    """The daemon that watches the directory must be able to take it; anyone else keeps his own."""
    with tempfile.TemporaryDirectory() as directory:
        if os.geteuid() == 0:
            os.chown(directory, 65534, 65534)
        agentd("submit", "--context", f"{directory}/", "--id", "r1")
        assert Path(directory, "r1.json").stat().st_uid == os.stat(directory).st_uid


# token and keygen.


def test_keygen_and_token_go_together(tmp_path: Path) -> None:
    """keygen prints the two paths, token prints a token and nothing else."""
    made = agentd("keygen", str(tmp_path / "keys"))
    private, public = (Path(line) for line in made.out.splitlines())
    assert (made.status, made.err) == (0, "")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    minted = agentd(
        "token", "--key", str(private), "--ttl", "5", "--run", "r1", "--sub", "s", "--context",
        "--audience", "a", "--issuer", "i",
    )  # fmt: skip
    assert (minted.status, minted.err) == (0, "")
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", minted.out)


def test_keygen_replaces_nothing(tmp_path: Path) -> None:
    """A second keygen fails, and the first pair is as it was."""
    private = Path(agentd("keygen", str(tmp_path)).out.splitlines()[0])
    before = private.read_bytes()
    assert_one_line(agentd("keygen", str(tmp_path)), 1, str(private))
    assert private.read_bytes() == before


def test_token_without_a_usable_key_is_status_1(tmp_path: Path) -> None:
    """A missing key, or something that is none, is named."""
    assert_one_line(agentd("token", "--key", f"{tmp_path}/none"), 1, f"{tmp_path}/none")
    (tmp_path / "key").write_text(SECRET)
    result = agentd("token", "--key", f"{tmp_path}/key")
    assert_one_line(result, 1, f"{tmp_path}/key")
    assert SECRET not in result.err


# Ends nobody planned.


def _start(
    *arguments: str, stdout: int = subprocess.PIPE, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "agentd", *arguments],
        env=CLEAN,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def unread() -> Iterator[int]:
    """A stdout whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("arguments", [["--version"], ["-h"]])
def test_a_reader_that_left_is_no_complaint(arguments: list[str], unread: int) -> None:
    """`agentd --version | true` is quiet, with the status of SIGPIPE."""
    with _start(*arguments, stdout=unread) as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGPIPE, b"")


def test_a_full_disk_is_status_1() -> None:
    """A token that was not written was not minted."""
    with open("/dev/full", "wb") as full, _start("--version", stdout=full.fileno()) as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, b"agentd: cannot write: No space left on device\n")


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_descriptor_is_no_traceback(closed: str) -> None:
    """Started without stdout or stderr agentd still exits as documented."""
    shell = shutil.which("sh")
    assert shell
    redirect, arguments = (">&-", "--version") if closed == "stdout" else ("2>&-", "serve")
    done = subprocess.run(
        [shell, "-c", f'exec "$0" -m agentd {arguments} {redirect}', sys.executable],
        env=CLEAN,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if closed == "stdout":
        assert (done.returncode, done.stderr) == (1, b"agentd: cannot write: stdout is closed\n")
    else:
        assert (done.returncode, done.stdout) == (2, b"")


def _is_waiting_for(fifo: int, pid: int) -> bool:
    """Whether ``pid`` sleeps with nothing left to read."""
    unread = fcntl.ioctl(fifo, termios.FIONREAD, b"\0" * 4)
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return unread == b"\0" * 4 and state == "S"


def test_ctrl_c_is_quiet(tmp_path: Path) -> None:
    """SIGINT while waiting ends with 130 and without a traceback."""
    prompt = tmp_path / "prompt"
    os.mkfifo(prompt)
    fifo = os.open(prompt, os.O_RDWR)  # keeps the FIFO open, so that submit waits for its end
    # A shell's background job, as a test run may be one, ignores SIGINT and passes that on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with _start("submit", "--prompt", "-", stdin=fifo) as process:
        signal.signal(signal.SIGINT, before)
        os.write(fifo, b"a" * 65536)
        # When the FIFO takes more, submit has begun to read, and so is inside main.
        os.write(fifo, b"b" * 65536)
        deadline = time.monotonic() + 60
        while not _is_waiting_for(fifo, process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    os.close(fifo)
    assert (process.returncode, out, err) == (130, b"", b"")
