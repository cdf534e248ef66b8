"""Orphans: none stays a zombie, and none costs a child of the daemon its status."""

import os
import signal

import pytest
import trio
from testing.processes import (
    FOREVER,
    is_zombie,
    python,
    read_line,
    run_host,
    wait_until,
    within,
)
from testing.processes import (
    children as children_of,
)

from agentd.process import Children, Exit
from agentd.spawn import Command

ENV = {"PATH": os.environ["PATH"]}

ORPHANS = (
    "import os, sys\n"
    "for _ in range(int(sys.argv[1])):\n"
    "    if os.fork() == 0:\n"
    "        os.fork()\n"  # both end; the second is nobody's child by then, or soon
    "        os._exit(3)\n"
    "    os.wait()\n"
    "sys.exit(int(sys.argv[2]))\n"
)
"""Makes argv[1] orphans that exit with 3, then exits with argv[2]."""


def zombies() -> list[int]:
    return [pid for pid in children_of(os.getpid()) if is_zombie(pid)]


@within(60)
async def test_statuses_through_a_storm_of_orphans(children: Children) -> None:
    """Each child's own status is told while hundreds of orphans end beside it."""
    codes = [0, 1, 7, 42, 127, 128, 254, 255]
    processes = [
        children.spawn(Command(python(ORPHANS, "100", str(code)), ENV), f"run-{code}")
        for code in codes
    ]
    assert [await process.wait_exited() for process in processes] == [
        Exit(code, None) for code in codes
    ]
    await wait_until(lambda: zombies() == sorted(process.pid for process in processes))
    for process in processes:
        await process.kill_tree()
        process.close()
    assert zombies() == []


@within(30)
async def test_orphans_behind_a_leader_that_has_exited(children: Children) -> None:
    """A leader that waits to be collected does not keep orphans from being reaped."""
    first = children.spawn(Command(("sh", "-c", "exit 7"), ENV), "run-1")
    await first.wait_exited()
    second = children.spawn(Command(python(ORPHANS, "50", "8"), ENV), "run-2")
    assert await second.wait_exited() == Exit(8, None)
    await wait_until(lambda: zombies() == sorted([first.pid, second.pid]))
    assert await first.wait_exited() == Exit(7, None)
    await first.kill_tree()
    await second.kill_tree()
    first.close()
    second.close()


@within(30)
async def test_orphans_that_were_there_before(nursery: trio.Nursery) -> None:
    """What had died before the reaper listened is reaped when it starts."""
    children = Children()
    process = children.spawn(Command(python(ORPHANS, "5", "4"), ENV), "run-1")
    await process.wait_exited()
    await wait_until(lambda: len(zombies()) == 6)
    await nursery.start(children.reap_orphans)
    assert zombies() == [process.pid]
    await process.kill_tree()
    process.close()


@within(30)
async def test_killing_a_tree_reaps_without_the_reaper() -> None:
    """The end of a run leaves no zombie of it, whether or not the reaper has its turn."""
    children = Children()
    source = "import os\nfor _ in range(5):\n    os.fork()\n" + FOREVER
    process = children.spawn(Command(python(source), ENV), "run-1")
    await read_line(process.stdout)
    await process.kill_tree()
    process.close()
    assert children_of(os.getpid()) == []


def test_sigchld_ignored_by_the_parent() -> None:
    """A daemon that inherited an ignored SIGCHLD, which drops statuses, still tells them."""
    told = run_host(
        "import signal, trio\n"
        "assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN\n"
        "from agentd.process import Children\n"
        "from agentd.spawn import Command\n"
        "async def main():\n"
        "    process = Children().spawn(Command(('sh', '-c', 'exit 7'), {'PATH': '/bin'}), 'r')\n"
        "    print(await process.wait_exited())\n"
        "    await process.kill_tree()\n"
        "trio.run(main)\n",
        launcher=("env", "--ignore-signal=CHLD"),
    )
    assert told == "Exit(code=7, signal=None)\n"


def test_as_the_first_process() -> None:
    """As PID 1 the daemon reaps what it never started, and knows its own child's status."""
    if os.geteuid() != 0:
        pytest.skip("makes a PID namespace, so it runs as root")
    told = run_host(
        "import os, signal, trio\n"
        "from testing.processes import children as children_of, python, wait_until\n"
        "from agentd.process import Children\n"
        "from agentd.spawn import Command\n"
        f"ORPHANS = {ORPHANS!r}\n"
        "async def main():\n"
        "    assert os.getpid() == 1\n"
        "    if os.fork() == 0:\n"  # a child from before, and its orphan
        "        if os.fork() == 0: os.execvp('sleep', ['sleep', '0.2'])\n"
        "        os._exit(0)\n"
        "    children = Children()\n"
        "    async with trio.open_nursery() as nursery:\n"
        "        await nursery.start(children.reap_orphans)\n"
        "        env = {'PATH': os.environ['PATH']}\n"
        "        process = children.spawn(Command(python(ORPHANS, '30', '6'), env), 'r')\n"
        "        print(await process.wait_exited())\n"
        "        await process.kill_tree()\n"
        "        await wait_until(lambda: children_of(1) == [])\n"
        "        nursery.cancel_scope.cancel()\n"
        "trio.run(main)\n",
        launcher=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
    )
    assert told == "Exit(code=6, signal=None)\n"


@within(30)
async def test_the_receiver_is_gone_with_the_reaper() -> None:
    """Ending the reaper leaves SIGCHLD as it was, and hurts nobody."""
    before = signal.getsignal(signal.SIGCHLD)
    children = Children()
    async with trio.open_nursery() as nursery:
        await nursery.start(children.reap_orphans)
        assert signal.getsignal(signal.SIGCHLD) != before
        nursery.cancel_scope.cancel()
    assert signal.getsignal(signal.SIGCHLD) == before
