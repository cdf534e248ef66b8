"""Taking one file, where another process is faster than one can arrange from outside."""

import contextlib
import errno
import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.inbox import document, names, rename_into

from agentd import claim
from agentd.claim import Claim, Unclaimable, has_writer, private_name, sweep, take
from agentd.sansio.context import ContextError, parse_context


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def test_a_taken_file_is_gone_before_it_is_read(tmp_path: Path, directory: int) -> None:
    """Its bytes are only to be had from the claim, and only once it is whole."""
    rename_into(tmp_path / "q", document("mine"))
    taken = take(directory, "q")
    assert taken is not None
    with taken:
        assert names(tmp_path) == []
        context = taken.receive(parse_context)
    assert context is not None
    assert context.prompt == "mine"


def test_there_is_nothing_to_take_where_nothing_is(directory: int) -> None:
    assert take(directory, "q") is None


def test_a_newer_file_is_not_removed_in_place_of_the_one_taken(
    tmp_path: Path, directory: int
) -> None:
    """A writer that renames the next context into place right after the claim loses nothing."""
    rename_into(tmp_path / "q", document("first"))
    first = take(directory, "q")
    rename_into(tmp_path / "q", document("second"))
    second = take(directory, "q")
    assert first is not None
    assert second is not None
    with first, second:
        found = [taken.receive(parse_context) for taken in (first, second)]
    assert [context.prompt for context in found if context] == ["first", "second"]


def test_a_file_that_got_another_link_meanwhile_is_told(tmp_path: Path) -> None:
    """Whatever name leads to it now: somebody else may still read or change it."""
    rename_into(tmp_path / "q", document())
    with Claim(os.open(tmp_path / "q", os.O_RDONLY)) as linked:
        assert linked.distrusted() is None
        assert linked.still_linked() == "got another link while it was claimed"
        (tmp_path / "q").unlink()
        assert linked.still_linked() is None


def test_a_directory_that_took_the_files_place_is_put_back(tmp_path: Path, directory: int) -> None:
    """Renamed by mistake, it comes back under its name, with what is in it."""
    own = private_name()
    (tmp_path / own / "inner").mkdir(parents=True)
    with pytest.raises(Unclaimable, match="cannot be removed"):
        claim._unlink(directory, own, "q")
    assert names(tmp_path) == ["q"]
    assert names(tmp_path / "q") == ["inner"]


def test_a_name_that_somebody_removed_meanwhile_is_no_error(directory: int) -> None:
    """The link count decides what that means."""
    claim._unlink(directory, private_name(), "q")


def test_a_file_that_vanished_before_it_was_opened_is_refused(directory: int) -> None:
    with pytest.raises(ContextError, match="No such file"):
        claim._open(directory, private_name(), "q")


def test_without_a_descriptor_left_the_file_is_put_back(tmp_path: Path, directory: int) -> None:
    """It may be a good one: OSError, and another time."""
    rename_into(tmp_path / "q", document("patient"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            take(directory, "q")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE
    assert names(tmp_path) == ["q"]
    taken = take(directory, "q")
    assert taken is not None
    taken.close()


def test_a_refused_file_leaves_no_descriptor(tmp_path: Path, directory: int) -> None:
    before = names(Path("/proc/self/fd"))
    rename_into(tmp_path / "q", document(), mode=0o666)
    with pytest.raises(ContextError, match="others than its owner"):
        take(directory, "q")
    os.mkfifo(tmp_path / "q")
    with pytest.raises(ContextError, match="a FIFO"):
        take(directory, "q")
    assert names(Path("/proc/self/fd")) == before
    assert names(tmp_path) == []


def test_a_descriptor_is_not_inherited_and_closes_once(tmp_path: Path, directory: int) -> None:
    """No child gets to see another run's context."""
    rename_into(tmp_path / "q", document())
    taken = take(directory, "q")
    assert taken is not None
    assert not os.get_inheritable(taken._fd)
    fd = taken._fd
    taken.close()
    reused = os.open("/dev/null", os.O_RDONLY)
    assert reused == fd
    taken.close()
    os.fstat(reused)
    os.close(reused)


def test_a_writer_is_noticed_as_long_as_it_has_the_file_open(tmp_path: Path) -> None:
    """By a read lease, which is given back at once."""
    path = tmp_path / "q"
    with path.open("wb") as writer, opened(path) as fd:
        assert has_writer(fd) is True
        writer.close()
        assert has_writer(fd) is False
        assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_UNLCK
        with path.open("ab"):
            assert has_writer(fd) is True


def test_where_there_are_no_leases_nobody_knows() -> None:
    """A pipe gives none, nor do some remote file systems, nor another user's file."""
    reading, writing = os.pipe()
    assert has_writer(reading) is None
    os.close(reading)
    os.close(writing)


RACER = """
import os, sys
while True:
    try:
        os.close(os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK))
    except BlockingIOError:
        print("met", flush=True)
        break
"""


def test_a_writer_that_meets_the_lease_does_not_kill_the_daemon(tmp_path: Path) -> None:
    """The kernel's signal about a lease is SIGIO, whose default is death, unless told otherwise."""
    path = tmp_path / "q"
    path.touch()
    racer = subprocess.Popen([sys.executable, "-c", RACER, path], stdout=subprocess.PIPE)
    assert racer.stdout is not None
    with racer, racer.stdout, opened(path) as fd:
        try:
            seen = set()
            while racer.poll() is None:
                seen.add(has_writer(fd))
            assert racer.stdout.read() == b"met\n"
        finally:
            racer.kill()
    assert seen <= {True, False}
    assert False in seen


def test_nothing_is_read_again_until_something_has_changed(tmp_path: Path) -> None:
    """A file that waits for its end costs a look and no parse."""
    path = tmp_path / "q"
    path.write_bytes(b"{")
    parsed: list[bytes] = []

    def parse(data: bytes) -> None:
        parsed.append(data)
        parse_context(data)

    with Claim(os.open(path, os.O_RDONLY)) as taken:
        for _ in range(3):
            assert taken.receive(parse) is None  # type: ignore[arg-type]  # never whole here
        assert parsed == [b"{"]
        path.write_bytes(b'{"a"')
        assert taken.receive(parse) is None  # type: ignore[arg-type]  # the same
        assert taken.receive(parse, last=True) is None  # type: ignore[arg-type]  # the same
    assert parsed == [b"{", b'{"a"', b'{"a"']


def test_a_read_that_fails_is_a_bad_file(tmp_path: Path) -> None:
    """EIO and the like: named, and over."""
    with (
        Claim(os.open("/proc/self/mem", os.O_RDONLY)) as taken,
        pytest.raises(ContextError, match="cannot be read: Input/output error"),
    ):
        taken._read()


def test_a_sweep_removes_claims_and_nothing_else(tmp_path: Path, directory: int) -> None:
    """Not even what it has no business with, and not a directory."""
    (tmp_path / private_name()).touch()
    (tmp_path / claim.PREFIX).mkdir()
    (tmp_path / ".agentd-submit-0").touch()
    (tmp_path / "q").touch()
    sweep(directory)
    assert names(tmp_path) == [claim.PREFIX, ".agentd-submit-0", "q"]


def test_a_sweep_of_what_is_no_directory_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "q").touch()
    with opened(tmp_path / "q") as fd:
        sweep(fd)
    assert names(tmp_path) == ["q"]
