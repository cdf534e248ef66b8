"""The commands as a shell sees them: what they print, the files they leave, their exit status."""

import json
import os
import re
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from testing.commands import Call, agentd, agentd_each, complains
from testing.contexts import CANARY
from testing.daemon import daemon_environ, launcher, read_all, serving
from testing.exchange import handshake, knock

COMMANDS = ["serve", "health", "submit", "stream", "token", "keygen", "demo"]


def mode_of(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


# What there is.


def test_version_is_one_line() -> None:
    """Version, protocol, build, Python and platform."""
    done = agentd("--version")
    assert (done.status, done.err) == (0, "")
    pattern = r"agentd \d\S* protocol agentd\.v1 build \S+ python 3\.\d+\.\d+\S* linux\S+\n"
    assert re.fullmatch(pattern, done.out), done.out


def test_help_is_on_stdout() -> None:
    """`agentd -h` names the commands, each of which tells more."""
    first, *rest = agentd_each([Call(("-h",)), *(Call((name, "-h")) for name in COMMANDS)])
    assert all((each.status, each.err) == (0, "") for each in (first, *rest))
    assert all(name in first.out for name in COMMANDS)
    assert all(f"agentd {name}" in each.out for name, each in zip(COMMANDS, rest, strict=True))


def test_what_cannot_be_understood_is_2() -> None:
    """No command, an unknown one, unknown flags, missing values: one line, and no value in it."""
    words: list[tuple[str, ...]] = [
        (),
        ("sserve",),
        ("Serve",),
        ("--verbose",),
        ("",),
        (f"--{CANARY}",),
        *((name, "--no-such-flag=hunter2") for name in COMMANDS if name != "stream"),
        *((name, "--no-such-flag", "hunter2") for name in COMMANDS if name != "stream"),
        ("serve",),
        ("serve", "--auth", "none"),
        ("serve", "--auth", "none", "--"),
        ("serve", "--auth", "none", "cat"),
        ("serve", "--grace"),
        ("serve", "--gra", "1", "--", "cat"),
        ("serve", "--pty=yes", "--", "cat"),
        ("submit", "--env", "=hunter2"),
        ("token",),
        ("token", "--key"),
        ("token", "--key", "k", "--ttl", "hunter2"),
        ("token", "--key", "k", "--ttl", "0"),
        ("keygen",),
        ("keygen", "a", "hunter2"),
        ("demo", "hunter2"),
    ]
    done = agentd_each([Call(each) for each in words])
    wrong = [(word, complains(each, 2)) for word, each in zip(words, done, strict=True)]
    assert [each for each in wrong if each[1]] == []
    assert "hunter2" not in "".join(each.err for each in done)


def test_stream_that_cannot_be_understood_is_125() -> None:
    """2 could be the status of the run, so the client says 125 like env and timeout do."""
    words = [(), ("ws://127.0.0.1:1/", "extra"), ("--no-such-flag",), ("http://127.0.0.1:1/",)]
    done = agentd_each([Call(("stream", *each)) for each in words])
    assert [complains(each, 125) for each in done] == [""] * len(words)


def test_a_closed_stdout_is_no_traceback() -> None:
    """Whoever does not read what a command prints gets no stack of Python for it."""
    for redirection in (">&-", "| true", ">/dev/full"):
        words = " ".join([*launcher(), "--version"])
        done = subprocess.run(
            ["bash", "-c", f"{words} {redirection}"],
            env=daemon_environ(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 1


# submit.


def test_submit_writes_what_serve_runs(tmp_path: Path) -> None:
    """The prompt, variables and id of the command line reach the command."""
    script = 'cat; echo "$AGENTD_RUN_ID $ONE $TWO"'
    with serving(tmp_path, "sh", "-c", script) as daemon:
        context = str(daemon.context)
        words = ("submit", "--context", context, "--id", "by-hand", "--prompt", "p=ü\n")
        done = agentd(*words, "--env", "ONE=1=1", "--env", "TWO", environ={"TWO": "2 two"})
        assert (done.status, done.out, done.err) == (0, f"{context}\n", "")
        with daemon.connect("/?run=by-hand") as client:
            assert read_all(client).lines == ["p=ü", "by-hand 1=1 2 two"]


def test_submit_reads_the_prompt_from_stdin(tmp_path: Path) -> None:
    """`--prompt -` takes all of it, exactly."""
    path = tmp_path / "c.json"
    prompt = "line\r\n\n\ttab ü\0 end"
    done = agentd("submit", "--context", str(path), "--prompt", "-", stdin=prompt.encode())
    assert done.status == 0
    assert json.loads(path.read_bytes())["prompt"] == prompt


def test_submit_leaves_one_private_file(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask, renamed into place, and nothing beside it."""
    path = tmp_path / "c.json"
    path.write_text("something older and longer" * 100)
    path.chmod(0o666)
    old = path.stat().st_ino
    words = " ".join([*launcher(), "submit", "--context", str(path), "--prompt", "p"])
    subprocess.run(
        ["sh", "-c", f"umask 0; {words}"],
        env=daemon_environ(),
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert json.loads(path.read_bytes())["prompt"] == "p"
    assert mode_of(path) == 0o600
    assert path.stat().st_ino != old
    assert [each.name for each in tmp_path.iterdir()] == ["c.json"]


def test_submit_into_a_directory(tmp_path: Path) -> None:
    """A path that ends in / gets `<id>.json`; without --id a new one each time."""
    calls = [Call(("submit", "--context", f"{tmp_path}/", "--id", "x"))]
    calls += [Call(("submit",), {"AGENTD_CONTEXT": f"{tmp_path}/"})] * 3
    done = agentd_each(calls)
    assert {each.status for each in done} == {0}
    paths = {each.out.strip() for each in done}
    assert len(paths) == 4
    assert f"{tmp_path}/x.json" in paths
    assert {str(path) for path in tmp_path.iterdir()} == paths


def test_submit_as_root_gives_the_file_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    """So that a daemon that is not root may read it; anybody else keeps what is theirs."""
    owner = (65534, 65533) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(tmp_path, *owner)
    assert agentd("submit", "--context", str(tmp_path / "c.json")).status == 0
    found = (tmp_path / "c.json").stat()
    assert (found.st_uid, found.st_gid) == owner
    assert mode_of(tmp_path / "c.json") == 0o600


def test_submit_that_cannot_is_1_and_leaves_nothing(tmp_path: Path) -> None:
    """Where it cannot be written, or would be refused: one line, no value, no file."""
    (tmp_path / "file").touch()
    (tmp_path / "directory.json").mkdir()
    into = ("submit", "--context", str(tmp_path / "c.json"))
    calls = [
        Call(("submit", "--context", str(tmp_path / "missing" / "c.json"))),
        Call(("submit", "--context", str(tmp_path / "file" / "c.json"))),
        Call(("submit", "--context", str(tmp_path / "directory.json"))),
        Call((*into, "--id", "../x")),
        Call((*into, "--id", "")),
        Call((*into, "--env", f"LD_PRELOAD={CANARY}")),
        Call((*into, "--env", f"AGENTD_X={CANARY}")),
        Call((*into, "--env", "NOT_SET_ANYWHERE")),
        Call((*into, "--prompt", "-"), stdin=b"\xff" + CANARY.encode()),
        Call((*into, "--prompt", "-"), stdin=b"x" * (1 << 20)),
        Call((*into, "--prompt", f"{CANARY}\udcff")),
    ]
    done = agentd_each(calls)
    says = ["missing", "c.json", "directory.json", "id", "id", "LD_PRELOAD", "AGENTD_X"]
    says += ["NOT_SET_ANYWHERE", "--prompt", "1048576", ""]
    wrong = [complains(each, 1, text) for each, text in zip(done, says, strict=True)]
    assert list(filter(None, wrong)) == []
    assert CANARY not in "".join(each.err for each in done)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory.json", "file"]


# Keys and tokens.


def test_a_new_pair_and_its_tokens_open_the_door(tmp_path: Path) -> None:
    """keygen, token and serve fit together, with every claim a token may have."""
    done = agentd("keygen", str(tmp_path / "keys"))
    private, public = done.out.splitlines()
    assert (done.status, done.err) == (0, "")
    assert (mode_of(private), mode_of(public)) == (0o600, 0o644)
    assert "PRIVATE" in Path(private).read_text()
    assert "PRIVATE" not in Path(public).read_text()
    options = ("--jwt-key", public, "--jwt-audience", "a", "--jwt-issuer", "i", "--context-wait")
    mint = ("token", "--key", private)
    fits = ("--audience", "a", "--issuer", "i")
    calls = [
        Call((*mint, *fits)),
        Call((*mint, *fits, "--run", "r", "--sub", "s", "--context", "--ttl", "3000")),
        Call((*mint, "--audience", "a")),
        Call((*mint, *fits, "--ttl", "4000")),
    ]
    with serving(tmp_path, "cat", options=(*options, "0")) as daemon:
        minted = agentd_each(calls)
        assert {(each.status, each.err) for each in minted} == {(0, "")}
        assert all(re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", each.out) for each in minted)
        tokens = [each.out.strip() for each in minted]
        statuses = [
            knock(daemon.port, handshake("/", f"Authorization: Bearer {token}")).status
            for token in tokens
        ]
        assert statuses == [404, 404, 401, 401]
        daemon.submit(id="r", prompt="p\n")
        with daemon.connect(f"/?token={tokens[1]}") as client:
            assert read_all(client).lines == ["p"]
        again = knock(daemon.port, handshake(f"/?token={tokens[1]}"))
        assert again.status == 401, "a minted token always has a jti"


def test_keygen_replaces_nothing(tmp_path: Path) -> None:
    """A second pair in the same place is refused, and the first stays as it was."""
    private, public = agentd("keygen", str(tmp_path)).out.split()
    before = Path(private).read_bytes(), Path(public).read_bytes()
    assert complains(agentd("keygen", str(tmp_path)), 1, private) == ""
    assert (Path(private).read_bytes(), Path(public).read_bytes()) == before
    Path(private).unlink()
    assert complains(agentd("keygen", str(tmp_path)), 1, public) == ""
    assert not Path(private).exists(), "half a pair"
    assert Path(public).read_bytes() == before[1]


def test_keys_and_tokens_that_cannot_be_made_are_1(tmp_path: Path) -> None:
    """One line that names the file and shows nothing of it."""
    (tmp_path / "garbage").write_text("hunter2")
    public = agentd("keygen", str(tmp_path / "keys")).out.split()[1]
    private = public.replace("public", "private")
    calls = [
        Call(("keygen", str(tmp_path / "garbage"))),
        Call(("keygen", "/proc/nowhere")),
        Call(("token", "--key", str(tmp_path / "missing"))),
        Call(("token", "--key", str(tmp_path / "garbage"))),
        Call(("token", "--key", str(tmp_path))),
        Call(("token", "--key", public)),
        Call(("token", "--key", private, "--run", "../hunter2")),
        Call(("token", "--key", private, "--sub", "")),
    ]
    says = ["garbage", "/proc/nowhere", "missing", "garbage", str(tmp_path), public, "run", "sub"]
    done = agentd_each(calls)
    wrong = [complains(each, 1, text) for each, text in zip(done, says, strict=True)]
    assert list(filter(None, wrong)) == []
    assert "hunter2" not in "".join(each.err for each in done)


# Where somebody serves already.


@pytest.mark.parametrize(("flag", "status"), [("exit", 0), ("fail", 75)])
def test_a_second_daemon_gives_way(tmp_path: Path, flag: str, status: int) -> None:
    """Where a healthy agentd serves already: exit 0, or 75 with --if-running fail."""
    with serving(tmp_path, "cat") as daemon:
        words = ("--if-running", flag, "--auth", "none", "--listen", daemon.address)
        done = agentd("serve", *words, "--context", str(daemon.context), "--", "cat")
        assert complains(done, status, daemon.address) == ""
        assert daemon.run(prompt="still here\n").lines == ["still here"]


def test_an_address_that_cannot_be_served_is_69(tmp_path: Path) -> None:
    """Taken by somebody else, not ours, not there: one line that names it."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        wanted = [taken, "192.0.2.1:8765", "unix:/no/such/directory/s"]
        calls = [
            Call(("serve", "--auth", "none", "--listen", each, "--context",
                  str(tmp_path / "c"), "--", "cat"))
            for each in wanted
        ]  # fmt: skip
        done = agentd_each(calls)
    wrong = [complains(each, 69, where) for each, where in zip(done, wanted, strict=True)]
    assert list(filter(None, wrong)) == []
