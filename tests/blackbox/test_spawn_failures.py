"""A command that cannot be started is told as such: after 101, by its reason, never as an exit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testing.daemon import Daemon, Stream, read_all, serving
from testing.programs import unique

REASONS = {
    "not_found": "not found",
    "not_executable": "not executable",
    "bad_cwd": "bad working directory",
    "too_big": "arguments and environment too big",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Programs that cannot be run, by their trouble."""
    (tmp_path / "data").write_text("nothing to run")
    (tmp_path / "script").write_text("echo a shell would run this\n")
    (tmp_path / "script").chmod(0o755)
    (tmp_path / "no-interpreter").write_text("#!/nowhere/interpreter\n")
    (tmp_path / "no-interpreter").chmod(0o755)
    (tmp_path / "truncated").write_bytes(b"\x7fELF\x02\x01\x01")
    (tmp_path / "truncated").chmod(0o755)
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("missing", "not_found"),
        ("data/under-a-file", "not_found"),
        ("no-interpreter", "not_found"),
        ("data", "not_executable"),
        (".", "not_executable"),
        ("script", "not_executable"),
        ("truncated", "not_executable"),
        ("loop", "not_executable"),
    ],
)
def test_a_program_that_cannot_be_run_is_told_by_its_reason(
    folder: Path, program: str, error: str
) -> None:
    """v1: hello, end, 4002. Raw: 4002. Next run: the same again, from a daemon that is well."""
    with serving(folder, str(folder / program)) as daemon:
        failed(daemon, error)
        raw = daemon.run(raw=True)
        assert (raw.messages, raw.code, raw.reason) == ([], 4002, REASONS[error])
        assert daemon.get("/readyz")[0] == 200


def failed(daemon: Daemon, error: str, **context: Any) -> Stream:
    """Run the daemon's command with a context, and expect it not to start."""
    stream = daemon.run(**context)
    assert [record["type"] for record in stream.messages] == ["hello", "end"]
    end = dict(stream.end)
    assert end.pop("seconds") >= 0
    assert end == {
        "type": "end",
        "outcome": "spawn_failed",
        "exit_code": None,
        "signal": None,
        "error": error,
        "stdout_lines": 0,
        "stderr_lines": 0,
        "stdout_bytes": 0,
        "stdout_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    assert (stream.code, stream.reason) == (4002, REASONS[error])
    return stream


def test_a_name_that_is_nowhere_on_the_path_is_not_found(tmp_path: Path) -> None:
    """A program without a slash is looked up in PATH."""
    with serving(tmp_path, "no-such-program-anywhere") as daemon:
        failed(daemon, "not_found")


def test_a_command_that_exits_127_was_started(tmp_path: Path) -> None:
    """What a shell says of a missing command is that command's exit code (kubectl mixes them)."""
    with serving(tmp_path, "sh", "-c", "no-such-program-anywhere") as daemon:
        stream = daemon.run()
    assert (stream.end["outcome"], stream.end["exit_code"]) == ("exited", 127)
    assert (stream.code, stream.reason) == (4000, "exit 127")


@pytest.mark.parametrize("where", ["missing", "data"])
def test_a_working_directory_that_cannot_be_entered_is_told(folder: Path, where: str) -> None:
    """A bad ``--cwd`` is not blamed on the program."""
    options = ("--auth", "none", "--cwd", str(folder / where))
    with serving(folder, "true", options=options) as daemon:
        failed(daemon, "bad_cwd")


@pytest.fixture
def lenient(tmp_path: Path) -> Iterator[Daemon]:
    options = ("--auth", "none", "--allow-context", "args", "--allow-context", "cwd")
    with serving(tmp_path, "echo", options=options) as daemon:
        yield daemon


def test_a_context_with_a_bad_directory_fails_alone(lenient: Daemon) -> None:
    """The next context, with a good one, runs."""
    failed(lenient, "bad_cwd", cwd="/no/such/directory")
    assert lenient.run(cwd="/", args=["here"]).lines == ["here"]


@pytest.mark.parametrize("place", ["env", "args"])
def test_what_the_kernel_does_not_take_is_too_big(lenient: Daemon, place: str) -> None:
    """One string over 128 KiB (MAX_ARG_STRLEN, execve(2)); its text is in no message."""

    def context(text: str) -> dict[str, Any]:
        return {"env": {"BIG": text}} if place == "env" else {"args": [text]}

    failed(lenient, "too_big", **context("canary" + "x" * 140_000))
    assert lenient.run(**context("x" * 120_000)).end["outcome"] == "exited"
    assert "canary" not in "\n".join(lenient.raw_log)


def test_a_failed_start_frees_its_place(tmp_path: Path) -> None:
    """With ``--max-runs 1`` one failure after another, and no process or descriptor left."""
    options = ("--auth", "none", "--max-runs", "1")
    with serving(tmp_path, str(tmp_path / "missing"), options=options) as daemon:
        failed(daemon, "not_found")
        descriptors = Path(f"/proc/{daemon.process.pid}/fd")
        before = len(list(descriptors.iterdir()))
        for _ in range(20):
            failed(daemon, "not_found")
        assert len(list(descriptors.iterdir())) <= before + 2


def test_the_log_names_the_program(tmp_path: Path) -> None:
    """Whoever runs the daemon finds out what could not be run."""
    name = unique("missing")
    with serving(tmp_path, f"/opt/{name}") as daemon:
        failed(daemon, "not_found")
        assert "No such file" in daemon.wait_log(f"/opt/{name}")


def test_a_failed_start_of_one_run_disturbs_no_other(tmp_path: Path) -> None:
    """A run goes on byte for byte while another's start fails."""
    options = ("--auth", "none", "--allow-context", "cwd", "--stdin", "client")
    with serving(tmp_path, "cat", options=options, directory=True) as daemon:
        daemon.submit("good")
        with daemon.connect("/?run=good") as good:
            good.send('{"type": "stdin", "data": "before\\n"}')
            daemon.submit("bad", cwd="/no/such/directory")
            with daemon.connect("/?run=bad") as bad:
                assert read_all(bad).code == 4002
            good.send('{"type": "stdin", "data": "after\\n"}')
            good.send('{"type": "stdin_eof"}')
            assert read_all(good).lines == ["before", "after"]
