"""What agentd.linux asks of the kernel, asked of the real one."""

import errno
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentd import linux

WATCHED = linux.IN_CREATE | linux.IN_CLOSE_WRITE | linux.IN_MOVED_TO


def readable(inotify: linux.Inotify) -> bool:
    return bool(select.select([inotify], [], [], 0)[0])


def in_a_process(program: str) -> str:
    """Run ``program`` in a Python of its own: what it changes lasts as long as its process."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def test_an_unknown_prctl_option_is_an_oserror_with_its_errno() -> None:
    with pytest.raises(OSError, match="prctl") as caught:
        linux.prctl(0x7FFFFFFF)
    assert caught.value.errno == errno.EINVAL


def test_a_subreaper_becomes_the_parent_of_an_orphan() -> None:
    """A grandchild whose parent has exited is reaped by the process that asked for it."""
    out = in_a_process("""
import os
from agentd import linux
linux.set_child_subreaper()
r, w = os.pipe()
child = os.fork()
if child == 0:
    if os.fork() == 0:
        os.close(w)
        os.read(r, 1)
        os._exit(7)
    os._exit(0)
os.waitpid(child, 0)
os.close(w)
pid, status = os.waitpid(-1, 0)
print(pid != child, os.waitstatus_to_exitcode(status))
""")
    assert out == "True 7"


def test_a_process_that_is_not_dumpable_hides_its_environment() -> None:
    """The kernel gives /proc/PID/environ of such a process to root, not to its own user."""
    out = in_a_process("""
import os
from agentd import linux
before = os.stat("/proc/self/environ").st_uid
if before == 0:
    os.setresuid(12345, 12345, 12345)
    linux.set_dumpable(True)
    before = os.stat("/proc/self/environ").st_uid
linux.set_dumpable(False)
print(before, os.stat("/proc/self/environ").st_uid)
""")
    before, after = out.split()
    assert before != "0"
    assert after == "0"


def test_a_child_with_pdeathsig_dies_when_its_parent_is_killed() -> None:
    """SIGKILL to the parent ends the child, which nobody else would have told."""
    program = """
import subprocess
from agentd import linux
child = subprocess.Popen(["sleep", "60"], preexec_fn=linux.prctl_pdeathsig())
print(child.pid, flush=True)
child.wait()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = os.pidfd_open(int(parent.stdout.readline()))
        try:
            assert not select.select([child], [], [], 0)[0]
            parent.kill()
            parent.wait(10)
            assert select.select([child], [], [], 10)[0]
        finally:
            os.close(child)


def test_a_child_whose_parent_was_gone_before_it_asked_ends_itself() -> None:
    """PR_SET_PDEATHSIG comes too late for a parent that has died: the closure looks."""
    out = in_a_process("""
import os
from agentd import linux
linux.set_child_subreaper()
die_with_parent = linux.prctl_pdeathsig()
child = os.fork()
if child == 0:
    grandchild = os.fork()
    if grandchild == 0:
        die_with_parent()
        os._exit(0)
    _, status = os.waitpid(grandchild, 0)
    os._exit(os.WTERMSIG(status))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    assert out == str(int(signal.SIGKILL))


def test_the_prepared_closure_reports_a_refused_signal() -> None:
    """An impossible signal number is an OSError from the closure, not silence."""
    with pytest.raises(OSError, match="PDEATHSIG") as caught:
        linux.prctl_pdeathsig(9999)()
    assert caught.value.errno == errno.EINVAL


def test_nothing_is_looked_up_at_import() -> None:
    """Whoever imports agentd.linux and calls nothing has not paid for ctypes."""
    assert in_a_process("import sys, agentd.linux; print('ctypes' in sys.modules)") == "False"


def test_the_filesystem_type_is_what_stat_says(tmp_path: Path) -> None:
    """f_type of a directory agrees with stat(1), and /proc is procfs."""
    for path, expected in ((tmp_path, None), (Path("/proc"), 0x9FA0)):
        fd = os.open(path, os.O_RDONLY)
        try:
            found = linux.filesystem_type(fd)
        finally:
            os.close(fd)
        said = subprocess.run(
            ["stat", "-f", "-c", "%t", path], capture_output=True, text=True, check=True
        ).stdout
        assert found == int(said, 16)
        assert expected in (None, found)


def test_the_filesystem_type_of_a_closed_descriptor_is_an_oserror() -> None:
    with pytest.raises(OSError, match="fstatfs") as caught:
        linux.filesystem_type(-1)
    assert caught.value.errno == errno.EBADF


def test_create_write_and_rename_come_in_order_with_their_names(tmp_path: Path) -> None:
    """Each event carries its watch, its bit and the exact bytes of the name."""
    with linux.Inotify() as inotify:
        wd = inotify.add_watch(str(tmp_path), WATCHED)
        assert inotify.read() == []
        assert not readable(inotify)
        (tmp_path / "a").write_bytes(b"x")
        (tmp_path / "a").rename(tmp_path / "long-name.json")
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).touch()
        assert readable(inotify)
        assert inotify.read() == [
            linux.Event(wd, linux.IN_CREATE, b"a"),
            linux.Event(wd, linux.IN_CLOSE_WRITE, b"a"),
            linux.Event(wd, linux.IN_MOVED_TO, b"long-name.json"),
            linux.Event(wd, linux.IN_CREATE, b"\xff"),
            linux.Event(wd, linux.IN_CLOSE_WRITE, b"\xff"),
        ]
        assert inotify.read() == []


def test_more_events_than_one_buffer_holds_are_all_there(tmp_path: Path) -> None:
    """Reading until nothing is left gives every name once."""
    with linux.Inotify() as inotify:
        inotify.add_watch(str(tmp_path), linux.IN_CREATE)
        names = [f"{number:0200}" for number in range(1000)]
        for name in names:
            (tmp_path / name).touch()
        seen: list[str] = []
        while events := inotify.read():
            seen.extend(os.fsdecode(event.name) for event in events)
        assert seen == names


def test_a_removed_directory_says_so_and_takes_its_watch_along(tmp_path: Path) -> None:
    watched = tmp_path / "gone"
    watched.mkdir()
    with linux.Inotify() as inotify:
        wd = inotify.add_watch(str(watched), WATCHED | linux.IN_DELETE_SELF)
        watched.rmdir()
        assert [(event.wd, event.mask) for event in inotify.read()] == [
            (wd, linux.IN_DELETE_SELF),
            (wd, linux.IN_IGNORED),
        ]


@pytest.mark.parametrize(
    ("make", "expected"), [(False, errno.ENOENT), (True, errno.ENOTDIR)], ids=["missing", "file"]
)
def test_what_cannot_be_watched_is_an_oserror(tmp_path: Path, make: bool, expected: int) -> None:
    path = tmp_path / "x"
    if make:
        path.touch()
    with linux.Inotify() as inotify, pytest.raises(OSError, match="inotify_add_watch") as caught:
        inotify.add_watch(str(path), WATCHED | linux.IN_ONLYDIR)
    assert caught.value.errno == expected


def test_the_queue_is_not_inherited_and_closes_once() -> None:
    """The descriptor is close-on-exec, and a second close touches nobody else's descriptor."""
    inotify = linux.Inotify()
    fd = inotify.fileno()
    assert not os.get_inheritable(fd)
    assert not os.get_blocking(fd)
    inotify.close()
    reused = os.open("/dev/null", os.O_RDONLY)
    try:
        inotify.close()
        os.fstat(reused)
    finally:
        os.close(reused)
    assert inotify.fileno() == -1


def test_no_descriptor_left_is_an_oserror() -> None:
    """EMFILE comes out as itself."""
    out = in_a_process("""
import os, resource
from agentd import linux
linux.Inotify().close()
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    linux.Inotify()
except OSError as error:
    print(error.strerror)
""")
    assert "inotify_init1" in out
