"""The end of a run's processes: wherever they have gone, and nobody else's."""

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from testing.processes import (
    ESCAPES,
    FOREVER,
    NOBODY,
    escaping,
    is_alive,
    marked,
    pid_tree,
    python,
    read_line,
    read_lines,
    run_host,
    wait_until,
    within,
)
from testing.processes import children as children_of

from agentd.process import Children, Exit, Process
from agentd.procfs import Stat, listed_children, named_run, readable, scanned_children
from agentd.spawn import Command, User
from agentd.tree import Tree

ENV = {"PATH": os.environ["PATH"]}

Start = Callable[..., Process]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes the user, so it runs as root")


@pytest.fixture
async def start(children: Children) -> AsyncIterator[Start]:
    """Start a command as a run; what is marked with the test's token is killed in the end."""

    def start(argv: tuple[str, ...], run_id: str = "run-1", user: User | None = None) -> Process:
        return children.spawn(Command(argv, ENV, user=user), run_id)

    yield start
    while left := marked("tree-a") + marked("tree-b"):  # by a test that failed: perhaps a bomb
        for pid in left:
            os.kill(pid, signal.SIGSTOP)
        if left == marked("tree-a") + marked("tree-b"):
            for pid in left:
                os.kill(pid, signal.SIGKILL)


# Ways to get away


@within(30)
@pytest.mark.parametrize("then", ["exit", "stay"])
@pytest.mark.parametrize("how", sorted(ESCAPES))
async def test_escape(start: Start, how: str, then: str) -> None:
    """Nothing a run leaves behind survives it, whether its leader has exited or not."""
    process = start(escaping(how, "tree-a", count=3, then=then))
    await read_lines(process.stdout, 3)
    if then == "exit":
        await process.wait_exited()
    assert len(marked("tree-a")) == (3 if then == "exit" else 4)
    await process.kill_tree()
    assert marked("tree-a") == []
    assert children_of(os.getpid()) == []
    assert await process.wait_exited() == (
        Exit(0, None) if then == "exit" else Exit(None, "SIGKILL")
    )


@within(30)
@pytest.mark.parametrize("how", ["double fork", "daemon", "clean environment"])
async def test_two_hundred_escapes(start: Start, how: str) -> None:
    """Two hundred processes that left session and parent are gone at once."""
    process = start(escaping(how, "tree-a", count=200))
    await read_lines(process.stdout, 200)
    await process.wait_exited()
    begun = time.monotonic()
    await process.kill_tree()
    assert time.monotonic() - begun < 3
    assert marked("tree-a") == []
    assert children_of(os.getpid()) == []


@within(30)
async def test_deep_tree(start: Start) -> None:
    """A chain of parents a hundred deep, each in its own session, dies with its first."""
    source = (
        "import os, time\n"
        "for _ in range(100):\n"
        "    if os.fork(): time.sleep(300)\n"
        "    os.setsid()\n"
        "print('ready', flush=True)\n"
        "time.sleep(300)\n"
    )
    process = start(python(source, "tree-a"))
    await read_line(process.stdout)
    assert len(pid_tree(process.pid)) == 101
    await process.kill_tree()
    assert marked("tree-a") == []


BOMB = (
    "import os, resource, sys\n"
    "resource.setrlimit(resource.RLIMIT_NPROC, (200, 200))\n"
    "os.write(1, b'ready\\n')\n"
    "while True:\n"
    "    try:\n"
    "        if os.fork() == 0 and sys.argv[2] == 'session': os.setsid()\n"
    "    except OSError: pass\n"
)


@needs_root
@within(60)
@pytest.mark.parametrize("where", ["group", "session"])
async def test_fork_bomb(start: Start, where: str) -> None:
    """A fork bomb dies, in its group or out of it, and the event loop runs meanwhile."""
    nobody = User(NOBODY, NOBODY, (NOBODY,), "nobody", "/", "/bin/sh")
    # Not by its name in the environment of the tests, which nobody else may be able to enter.
    interpreter = os.path.realpath(sys.executable)
    process = start((interpreter, "-c", BOMB, "tree-a", where), user=nobody)
    await read_line(process.stdout)
    await wait_until(lambda: len(marked("tree-a")) > 150, seconds=30)
    passes = 0

    async def count() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await process.kill_tree()
        nursery.cancel_scope.cancel()
    assert marked("tree-a") == []
    assert passes > 1
    assert not process.abandoned


@within(30)
@pytest.mark.parametrize("where", ["group", "session"])
async def test_process_that_never_stays(start: Start, where: str) -> None:
    """A process that is always another one, its parent gone when it is found, is caught."""
    source = (
        "import os, sys\n"
        "os.write(1, b'ready\\n')\n"
        "while True:\n"
        "    if os.fork(): os._exit(0)\n"
        "    if sys.argv[2] == 'session': os.setsid()\n"
    )
    for _ in range(5):
        process = start(python(source, "tree-a", where))
        await read_line(process.stdout)
        assert await process.wait_exited() == Exit(0, None)
        await process.kill_tree()
        assert marked("tree-a") == []
        process.close()


@within(30)
async def test_nested_daemon(start: Start) -> None:
    """What another agentd started inside the run, under ids of its own, is the run's too."""
    source = (
        "import os, sys, time\n"
        "from agentd.process import Children\n"
        "from agentd.spawn import Command\n"
        "children = Children()\n"
        f"argv = {escaping('daemon', 'tree-a', then='stay')!r}\n"
        "inner = children.spawn(Command(argv, dict(os.environ)), 'inner')\n"
        "os.set_blocking(inner.stdout, True)\n"
        "os.write(1, os.read(inner.stdout, 6))\n"
        "time.sleep(300)\n"
    )
    root = str(Path(__file__).parents[2])
    process = start(("env", f"PYTHONPATH={root}", *python(source, "tree-a")))
    assert await read_line(process.stdout) == b"ready\n"
    assert len(marked("tree-a")) == 3
    await process.kill_tree()
    assert marked("tree-a") == []


# Several runs


@within(30)
@pytest.mark.parametrize("how", sorted(ESCAPES))
async def test_two_runs(start: Start, how: str) -> None:
    """Killing one run's tree leaves the other's processes alive, and then takes them too."""
    first = start(escaping(how, "tree-a", then="stay"), "run-a")
    second = start(escaping(how, "tree-b", then="stay"), "run-b")
    await read_line(first.stdout)
    await read_line(second.stdout)
    await first.kill_tree()
    assert len(marked("tree-b")) == 2
    assert all(is_alive(pid) for pid in marked("tree-b"))
    await second.kill_tree()
    assert marked("tree-a") == marked("tree-b") == []


@within(30)
@pytest.mark.parametrize("how", sorted(set(ESCAPES) - {"clean environment"}))
async def test_two_runs_whose_leaders_have_exited(start: Start, how: str) -> None:
    """The same where no chain of parents tells any more whose they are."""
    first = start(escaping(how, "tree-a"), "run-a")
    second = start(escaping(how, "tree-b"), "run-b")
    for process in (first, second):
        await read_line(process.stdout)
        await process.wait_exited()
    await first.kill_tree()
    assert marked("tree-a") == []
    assert len(marked("tree-b")) == 1
    await second.kill_tree()
    assert marked("tree-b") == []


@within(30)
async def test_orphan_of_an_unknown_run(start: Start) -> None:
    """An orphan that any of two runs may have left ends with the second of them."""
    first, second = start(python(FOREVER), "run-a"), None
    await read_line(first.stdout)
    second = start(escaping("clean environment", "tree-b"), "run-b")
    await read_line(second.stdout)
    await second.wait_exited()
    await second.kill_tree()
    assert len(marked("tree-b")) == 1
    await first.kill_tree()
    assert marked("tree-b") == []


@within(30)
async def test_orphan_is_not_a_later_runs(start: Start) -> None:
    """A run that started after an orphan did does not take it along."""
    first = start(escaping("clean environment", "tree-a"), "run-a")
    await read_line(first.stdout)
    await first.wait_exited()
    # The kernel tells start times in ticks of 10 ms.
    await wait_until(lambda: ticks() > first.tree.started + 2 and ticks() > orphaned() + 2)
    second = start(python(FOREVER), "run-b")
    await read_line(second.stdout)
    await second.kill_tree()
    assert len(marked("tree-a")) == 1
    await first.kill_tree()
    assert marked("tree-a") == []


def ticks() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")


def orphaned() -> int:
    (stat,) = filter(None, map(Stat.read, marked("tree-a")))
    return stat.started


@within(30)
async def test_stop_remembers_sessions(start: Start) -> None:
    """What a stopped leader left behind is its own, though nothing but its session tells so."""
    other = start(python(FOREVER), "run-b")
    await read_line(other.stdout)
    source = (
        "import os, sys\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        f"        os.execve(sys.executable, [sys.executable, '-c', {FOREVER!r}, 'tree-a'], {{}})\n"
        "import time; time.sleep(300)\n"
    )
    process = start(python(source, "tree-a"), "run-a")
    await read_line(process.stdout)
    await process.stop(300)
    await process.kill_tree()
    assert marked("tree-a") == []
    assert is_alive(other.pid)


@within(30)
async def test_runs_that_end_together(start: Start) -> None:
    """Of two runs that are killed at once neither leaves an orphan to the other."""
    processes = [start(escaping("clean environment", "tree-a"), f"run-{n}") for n in range(4)]
    for process in processes:
        await read_line(process.stdout)
    async with trio.open_nursery() as nursery:
        for process in processes:
            nursery.start_soon(process.kill_tree)
    assert marked("tree-a") == []


@within(30)
async def test_children_from_before_live_on(children: Children, start: Start) -> None:
    """A child of the daemon that no run started, and that is in its session, is never killed."""
    stranger = os.posix_spawnp("sleep", ["sleep", "300"], os.environ)
    process = start(escaping("daemon", "tree-a"))
    await read_line(process.stdout)
    await process.kill_tree()
    assert is_alive(stranger)
    os.kill(stranger, signal.SIGKILL)
    await wait_until(lambda: not is_alive(stranger))
    children.reap()


# How it ends


@within(30)
async def test_cancelled_half_way(start: Start) -> None:
    """A cancelled caller does not keep the tree from being killed."""
    process = start(escaping("daemon", "tree-a", count=20, then="stay"))
    await read_lines(process.stdout, 20)
    with trio.CancelScope() as scope:
        scope.cancel()
        await process.kill_tree()
    assert marked("tree-a") == []


@within(30)
async def test_killed_twice_at_once(start: Start) -> None:
    """Two tasks may kill a tree: both return when it is gone."""
    process = start(escaping("setsid", "tree-a", count=20, then="stay"))
    await read_lines(process.stdout, 20)

    async def kill() -> None:
        await process.kill_tree()
        assert marked("tree-a") == []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        nursery.start_soon(kill)
    await process.kill_tree()
    assert await process.wait_exited() == Exit(None, "SIGKILL")


@within(30)
async def test_stopped_processes_die(start: Start) -> None:
    """A tree that is stopped is killed like any other."""
    process = start(escaping("daemon", "tree-a", then="stay"))
    await read_line(process.stdout)
    for pid in marked("tree-a"):
        os.kill(pid, signal.SIGSTOP)
    await process.kill_tree()
    assert marked("tree-a") == []


@needs_root
def test_without_proc_of_our_own() -> None:
    """Where /proc tells other processes' numbers only the group is killed, with one warning."""
    told = run_host(
        "import logging, os, sys, trio\n"
        "logging.basicConfig(stream=sys.stdout, format='%(levelname)s %(name)s')\n"
        "from testing.processes import escaping, read_line\n"
        "from agentd.process import Children\n"
        "from agentd.spawn import Command\n"
        "async def main():\n"
        "    assert os.getpid() == 1 != int(os.readlink('/proc/self'))\n"
        "    children = Children()\n"
        "    async with trio.open_nursery() as nursery:\n"
        "        await nursery.start(children.reap_orphans)\n"
        "        for _ in range(2):\n"
        "            command = Command(escaping('helper', 'tree-a', then='stay'), {})\n"
        "            process = children.spawn(command, 'r')\n"
        "            await read_line(process.stdout)\n"
        "            await process.kill_tree()\n"
        "            print(await process.wait_exited())\n"
        "        nursery.cancel_scope.cancel()\n"
        "trio.run(main)\n",
        launcher=("unshare", "--pid", "--fork", "--kill-child"),
    )
    status = "Exit(code=None, signal='SIGKILL')\n"
    assert told == f"WARNING agentd.tree\n{status}{status}"


@needs_root
def test_what_may_not_be_killed() -> None:
    """A daemon without CAP_KILL gives up another user's process in time; its end is reaped."""
    told = run_host(
        "import logging, os, sys, trio\n"
        "logging.basicConfig(stream=sys.stdout, format='%(levelname)s %(message)s')\n"
        "from testing.processes import children as children_of, wait_until\n"
        "from agentd.process import Children\n"
        "from agentd.spawn import Command, find_user\n"
        "async def main():\n"
        "    children = Children()\n"
        "    nobody = find_user('65534:65534')\n"
        "    command = Command(('cat',), {'PATH': '/bin'}, user=nobody, stdin=True)\n"
        "    async with trio.open_nursery() as nursery:\n"
        "        await nursery.start(children.reap_orphans)\n"
        "        process = children.spawn(command, 'r')\n"
        "        with trio.fail_after(10):\n"
        "            await process.kill_tree()\n"
        "        with trio.fail_after(1):\n"
        "            await process.kill_tree()\n"
        "        print(process.abandoned, process.poll())\n"
        "        process.close()\n"
        "        print(await process.wait_exited())\n"
        "        await wait_until(lambda: not children_of(os.getpid()))\n"
        "        nursery.cancel_scope.cancel()\n"
        "trio.run(main)\n",
        launcher=("setpriv", "--bounding-set=-kill", "--inh-caps=-kill"),
    )
    assert told == (
        "ERROR cannot end every process of the run\nTrue None\nExit(code=0, signal=None)\n"
    )


# What is read from /proc


@within(30)
async def test_both_ways_to_find_children(start: Start) -> None:
    """The children each parent is asked for are those a look through all of /proc finds."""
    process = start(escaping("helper", "tree-a", count=5, then="stay"))
    await read_lines(process.stdout, 5)
    helpers = sorted(set(marked("tree-a")) - {process.pid})
    assert len(helpers) == 5
    scanned = scanned_children()
    assert sorted(listed_children(process.pid)) == sorted(scanned(process.pid)) == helpers
    assert listed_children(helpers[0]) == scanned(helpers[0]) == []
    await process.kill_tree()
    assert listed_children(helpers[0]) == scanned_children()(helpers[0]) == []


@within(30)
async def test_stat(start: Start, tmp_path: Path) -> None:
    """A process is read right whatever its name is; a zombie is told from a living one."""
    program = tmp_path / ") Z 1 1 ("
    program.write_text("#!/bin/sh\necho ready; sleep 300\n")
    program.chmod(0o755)
    process = start((str(program),))
    await read_line(process.stdout)
    stat = Stat.read(process.pid)
    assert stat is not None
    assert (stat.pid, stat.ppid, stat.session) == (process.pid, os.getpid(), process.pid)
    assert 0 <= ticks() - stat.started < 3000
    assert stat.alive
    process.signal(signal.SIGKILL)
    await process.wait_exited()
    stat = Stat.read(process.pid)
    assert stat is not None
    assert not stat.alive
    await process.kill_tree()
    assert Stat.read(process.pid) is None


@within(30)
async def test_named_run(start: Start) -> None:
    """The run is read from the environment, None from one that is empty, hidden or gone."""
    process = start(("sh", "-c", "env -i sh -c 'echo ready; sleep 300'; sleep 300"), "run.7")
    await read_line(process.stdout)
    (inner,) = children_of(process.pid)
    assert named_run(process.pid) == "run.7"
    assert named_run(inner) is None
    await process.kill_tree()
    assert named_run(process.pid) is None


def test_proc_is_readable() -> None:
    """Here /proc is our own."""
    assert readable()


# Whose an orphan is


def tree(leader: int, *, started: int = 0, ending: bool = False) -> Tree:
    made = Tree(leader, f"run-{leader}")  # no process has such a pid
    made.started, made.ending = started, ending
    return made


def orphan(*, session: int = 10**9, started: int = 100) -> Stat:
    return Stat(pid=10**9, ppid=os.getpid(), session=session, started=started, alive=True)


A, B = 10**8, 10**8 + 1


@pytest.mark.parametrize(
    ("stat", "name", "others", "owned"),
    [
        (orphan(session=A), None, [], True),
        (orphan(session=A), f"run-{B}", [tree(B)], True),
        (orphan(session=B), f"run-{A}", [tree(B)], False),
        (orphan(), f"run-{A}", [tree(B)], True),
        (orphan(), f"run-{B}", [tree(B)], False),
        (orphan(), f"run-{B}", [tree(B, ending=True)], False),
        (orphan(started=40), f"run-{A}", [], False),
        (orphan(), f"run-{B}", [tree(B, started=200)], True),
        (orphan(), None, [], True),
        (orphan(), "run-of-a-daemon-inside", [], True),
        (orphan(), None, [tree(B)], None),
        (orphan(), "run-of-a-daemon-inside", [tree(B)], None),
        (orphan(), None, [tree(B, started=100)], None),
        (orphan(), None, [tree(B, started=101)], True),
        (orphan(), None, [tree(B, ending=True)], True),
        (orphan(), None, [tree(B, ending=True), tree(B + 1)], None),
        (orphan(started=50), None, [], True),
        (orphan(started=49), None, [], False),
        (orphan(session=os.getsid(0)), f"run-{A}", [], False),
    ],
)
def test_owns(stat: Stat, name: str | None, others: list[Tree], owned: bool | None) -> None:
    """Session beats environment beats start time; what may be several runs' is nobody's yet."""
    assert tree(A, started=50).owns(stat, others, lambda _: name) is owned


trees = st.lists(
    st.builds(tree, st.integers(A, A + 9), started=st.integers(0, 9), ending=st.booleans()),
    max_size=5,
    unique_by=lambda each: each.leader,
)


@given(
    trees,
    st.builds(orphan, session=st.integers(A, A + 12), started=st.integers(0, 9)),
    st.none() | st.integers(A, A + 12).map("run-{}".format),
)
def test_no_orphan_is_taken_from_a_run_that_goes_on(
    runs: list[Tree], stat: Stat, name: str | None
) -> None:
    """At most one run owns an orphan, unless all it could come from are ending: then all do."""

    def but(run: Tree) -> Iterable[Tree]:
        return [other for other in runs if other is not run]

    owners = [run for run in runs if run.owns(stat, but(run), lambda _: name)]
    assert len(owners) <= 1 or all(run.ending for run in owners)
    if runs and not owners and all(run.ending for run in runs):
        # Nobody is left to end it later: then it was there before any of them.
        assert all(stat.started < run.started for run in runs)
