"""A child from its start to its end: its status, signals to it, and the end of its streams."""

import os
import resource
import signal
import time
from collections.abc import Callable

import pytest
import trio
from testing.processes import (
    FOREVER,
    IGNORES_SIGTERM,
    escaping,
    is_alive,
    is_zombie,
    marked,
    python,
    read_all,
    read_line,
    wait_until,
    within,
)

from agentd.process import Children, Exit, Process
from agentd.sansio.lifecycle import signal_name
from agentd.spawn import Command

ENV = {"PATH": os.environ["PATH"]}

Start = Callable[..., Process]

HARMLESS = {"SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH"}
STOPPING = {"SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"}
FATAL = sorted(
    number for number in signal.valid_signals() if signal_name(number) not in HARMLESS | STOPPING
)


@pytest.fixture
def start(children: Children) -> Start:
    """Start a command as a run."""

    def start(*argv: str, run_id: str = "run-1", **options: object) -> Process:
        command = Command(argv, **({"env": ENV} | options))  # type: ignore[arg-type]
        return children.spawn(command, run_id)

    return start


# The status


@within(60)
async def test_every_exit_code(start: Start) -> None:
    """Each exit code from 0 to 255 is told as it is."""
    for first in range(0, 256, 32):
        codes = range(first, first + 32)
        processes = [start("sh", "-c", f"exit {code}") for code in codes]
        told = [await process.wait_exited() for process in processes]
        assert told == [Exit(code, None) for code in codes]
        for process in processes:
            await process.kill_tree()
            assert await process.wait_exited() in told
            process.close()


@within(60)
async def test_every_fatal_signal(start: Start) -> None:
    """Each signal that kills is told by its name, real-time signals included."""
    processes = {number: start("sh", "-c", f"kill -{number} $$; sleep 9") for number in FATAL}
    for number, process in processes.items():
        assert await process.wait_exited() == Exit(None, signal_name(number))
        await process.kill_tree()
        process.close()


def test_signal_names() -> None:
    """Signals are called what signal(7) calls them."""
    assert signal_name(15) == "SIGTERM"
    assert signal_name(signal.SIGRTMIN) == "SIGRTMIN"
    assert signal_name(signal.SIGRTMIN + 3) == "SIGRTMIN+3"
    assert signal_name(signal.SIGRTMAX) == "SIGRTMAX"


@within(10)
async def test_an_exit_code_of_128_is_no_signal(start: Start) -> None:
    """A shell's 143 for a child killed by SIGTERM is an exit code of the shell."""
    process = start("sh", "-c", "sh -c 'kill $$'; exit $?")
    assert await process.wait_exited() == Exit(143, None)


@within(10)
async def test_many_wait(start: Start) -> None:
    """Any number of tasks may wait for the exit, and one that gives up disturbs no other."""
    process = start("cat", stdin=True)
    told = []

    async def wait() -> None:
        told.append(await process.wait_exited())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        with trio.move_on_after(0):
            await process.wait_exited()
        await trio.testing.wait_all_tasks_blocked()
        assert process.poll() is None
        process.close_stdin()
    assert told == [Exit(0, None)] * 3
    assert process.poll() == Exit(0, None)


@within(10)
async def test_exit_is_told_by_the_process_not_its_pipe(start: Start) -> None:
    """The exit is known while a helper still holds stdout."""
    process = start("sh", "-c", "sleep 300 & exit 7")
    assert await process.wait_exited() == Exit(7, None)
    with pytest.raises(BlockingIOError):
        os.read(process.stdout, 1)


@within(10)
async def test_end_of_its_pipe_is_no_exit(start: Start) -> None:
    """A process that closed its stdout still runs."""
    process = start("sh", "-c", "exec >&-; read line; exit 3", stdin=True)
    assert await read_all(process.stdout) == b""
    assert process.poll() is None
    process.close_stdin()
    assert await process.wait_exited() == Exit(3, None)


@within(10)
async def test_the_leader_stays_a_zombie_until_its_tree_is_killed(start: Start) -> None:
    """The pid is kept from reuse as long as its group may be signalled."""
    process = start("true")
    await process.wait_exited()
    assert is_zombie(process.pid)
    process.signal(signal.SIGTERM)
    assert is_zombie(process.pid)
    await process.kill_tree()
    assert not is_zombie(process.pid)
    process.signal(signal.SIGTERM)


@within(20)
async def test_exit_without_a_pidfd(start: Start) -> None:
    """Where no pidfd can be had, here for want of descriptors, the exit is noticed all the same."""
    processes = [start("cat", stdin=True) for _ in range(3)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    spare = [os.dup(0) for _ in range(highest)]  # so that none is free below the limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.pidfd_open(os.getpid())
        async with trio.open_nursery() as nursery:
            for process in processes:
                nursery.start_soon(process.wait_exited)
            for process in processes:
                process.close_stdin()
                spare.append(os.dup(0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in spare:
            os.close(fd)
    assert [process.poll() for process in processes] == [Exit(0, None)] * 3


@within(10)
async def test_exit_without_pidfd_or_reaper() -> None:
    """Nor is the reaper needed for it."""
    children = Children()
    process = children.spawn(Command(("cat",), ENV, stdin=True), "run-1")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.wait_exited)
            await trio.testing.wait_all_tasks_blocked()
            process.close_stdin()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    await process.kill_tree()
    process.close()


# Signals and stopping


@within(10)
async def test_signal_goes_to_the_group(start: Start) -> None:
    """A signal reaches the leader's helpers too, and one to a process that is gone is no error."""
    process = start(*escaping("helper", "group-1", then="stay"))
    await read_line(process.stdout)
    process.signal(signal.SIGUSR1)
    assert await process.wait_exited() == Exit(None, "SIGUSR1")
    await wait_until(lambda: not marked("group-1"))
    process.signal(signal.SIGUSR1)
    await process.kill_tree()
    process.signal(signal.SIGUSR1)


@within(10)
async def test_stop(start: Start) -> None:
    """A process that obeys SIGTERM is not killed, and gets the time it needs."""
    source = (
        "import os, signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'bye\\n'), os._exit(5)))\n"
    )
    process = start(*python(source + FOREVER))
    await read_line(process.stdout)
    await process.stop(grace=9)
    assert await read_line(process.stdout) == b"bye\n"
    assert await process.wait_exited() == Exit(5, None)


@within(10)
async def test_stop_after_grace(start: Start) -> None:
    """A process that ignores SIGTERM is killed after the grace, not before."""
    process = start(*python(IGNORES_SIGTERM))
    await read_line(process.stdout)
    begun = time.monotonic()
    await process.stop(grace=0.3)
    assert 0.3 <= time.monotonic() - begun < 3
    assert await process.wait_exited() == Exit(None, "SIGKILL")


@within(10)
async def test_stop_is_shortened(start: Start) -> None:
    """A second stop without grace ends a first one that still waits; SIGTERM is sent once."""
    source = (
        "import os, signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'term\\n'))\n"
        "os.write(1, b'ready\\n')\n"
        "while True: signal.pause()\n"
    )
    process = start(*python(source))
    await read_line(process.stdout)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.stop, 300)
        assert await read_line(process.stdout) == b"term\n"
        nursery.start_soon(process.stop, 0)
    assert await process.wait_exited() == Exit(None, "SIGKILL")
    assert await read_all(process.stdout) == b""


@within(10)
async def test_stop_without_end(start: Start) -> None:
    """An endless grace waits for the process."""
    process = start("cat", stdin=True)
    process.signal(signal.SIGSTOP)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.stop, float("inf"))
    # A stopped process is continued, so that it can act on its SIGTERM.
    assert await process.wait_exited() == Exit(None, "SIGTERM")


@within(10)
async def test_stop_what_has_ended(start: Start) -> None:
    """Stopping a process that has exited returns its exit, before and after its tree is gone."""
    process = start("sh", "-c", "exit 9")
    await process.wait_exited()
    await process.stop(300)
    await process.kill_tree()
    await process.stop(300)
    assert await process.wait_exited() == Exit(9, None)


@within(10)
async def test_stop_cancelled(start: Start) -> None:
    """A stop that is cancelled has sent SIGTERM and nothing more."""
    process = start(*python(IGNORES_SIGTERM))
    await read_line(process.stdout)
    with trio.move_on_after(0.05):
        await process.stop(300)
    assert is_alive(process.pid)
    await process.kill_tree()
    assert await process.wait_exited() == Exit(None, "SIGKILL")


# Its streams


@within(10)
async def test_close_stdin(start: Start) -> None:
    """Closing stdin is the child's EOF; a task that waits to write to it is told."""
    process = start("sleep", "300", stdin=True)
    assert process.stdin is not None
    os.write(process.stdin, b"x" * os.fpathconf(process.stdin, "PC_PIPE_BUF") * 16)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(process.stdin, b"x" * 4096)
    stdin = process.stdin

    async def write() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await trio.lowlevel.wait_writable(stdin)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        process.close_stdin()
    process.close_stdin()
    assert process.stdin is None


@within(10)
async def test_close(start: Start) -> None:
    """Closing closes all there is, wakes who reads, and may be said twice."""
    process = start("sleep", "300", stdin=True)
    fds = [fd for fd in (process.stdin, process.stdout, process.stderr) if fd is not None]
    assert len(fds) == 3

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await trio.lowlevel.wait_readable(process.stdout)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        process.close()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    again = os.open("/dev/null", os.O_RDONLY)
    process.close()
    os.fstat(again)
    os.close(again)


@within(10)
async def test_a_descriptor_for_each_run(start: Start) -> None:
    """A run that is over leaves no descriptor and no process."""
    await start("true").kill_tree()
    before = os.listdir("/proc/self/fd")
    for pty in (True, False):
        process = start("true", stdin=True, pty=pty)
        await process.wait_exited()
        await process.kill_tree()
        process.close()
    assert os.listdir("/proc/self/fd") == before


@within(10)
async def test_started(start: Start) -> None:
    """When it started is told on the monotonic clock."""
    before = time.monotonic()
    assert before <= start("true").started <= time.monotonic()


@within(10)
async def test_run_id(start: Start) -> None:
    """The child finds the run's id in its environment, whatever it was told there before."""
    process = start("printenv", "AGENTD_RUN_ID", run_id="r.1", env=ENV | {"AGENTD_RUN_ID": "r.2"})
    assert await read_all(process.stdout) == b"r.1\n"
