"""Starting a command: what the program finds when it starts, and why it may not."""

import contextlib
import errno
import fcntl
import getpass
import os
import pwd
import signal
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testing.processes import (
    FOREVER,
    NOBODY,
    is_alive,
    python,
    read_all,
    read_line,
    run_host,
    start_host,
    wait_until,
    within,
)

from agentd import AgentdError
from agentd.procfs import listed_children
from agentd.spawn import Command, SpawnError, Started, User, find_user, spawn

ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
NOBODY_USER = User(NOBODY, NOBODY, (NOBODY,), "nobody", "/", "/bin/sh")

Start = Callable[..., Started]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes the user, so it runs as root")


@pytest.fixture
def start() -> Iterator[Start]:
    """Spawn a command; at the end it is killed, reaped and closed."""
    with contextlib.ExitStack() as stack:

        def start(*argv: str, **options: object) -> Started:
            started = spawn(Command(argv, **({"env": ENV} | options)))  # type: ignore[arg-type]
            stack.callback(os.waitpid, started.pid, 0)
            stack.callback(os.kill, started.pid, signal.SIGKILL)
            for fd in started[1:]:
                if fd is not None:
                    stack.callback(os.close, fd)
            return started

        yield start


def refusal(*argv: str, **options: object) -> SpawnError:
    before = set(os.listdir("/proc/self/fd"))
    children = listed_children(os.getpid())
    with pytest.raises(SpawnError) as caught:
        spawn(Command(argv, **({"env": ENV} | options)))  # type: ignore[arg-type]
    assert set(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"
    assert listed_children(os.getpid()) == children, "a child was left behind"
    return caught.value


# What the program finds


@within(10)
async def test_descriptors(start: Start) -> None:
    """The program has the descriptors 0, 1 and 2, whatever else the daemon has open."""
    inherited = os.open("/dev/null", os.O_RDONLY)
    high = os.dup2(inherited, 200, inheritable=True)
    os.set_inheritable(inherited, True)
    try:
        started = start("sh", "-c", "cd /proc/self/fd; echo *", stdin=True)
    finally:
        os.close(inherited)
        os.close(high)
    # The shell expands * itself; 3 is the directory it reads for that.
    assert (await read_line(started.stdout)).split() in ([b"0", b"1", b"2"], b"0 1 2 3".split())


def test_descriptors_of_a_daemon_without_any_of_its_own() -> None:
    """A daemon that was started without stdin, stdout and stderr gives its child the right ones."""
    told = run_host(
        "import os, sys\n"
        "from agentd.spawn import Command, spawn\n"
        "out = os.dup(1)\n"
        "for fd in (0, 1, 2): os.close(fd)\n"
        "argv = ('sh', '-c', 'cat; echo err >&2')\n"
        "started = spawn(Command(argv, {'PATH': '/bin'}, stdin=True))\n"
        "os.write(started.stdin, b'in\\n'); os.close(started.stdin)\n"
        "os.waitpid(started.pid, 0)\n"
        "os.write(out, os.read(started.stdout, 99) + os.read(started.stderr, 99))\n"
    )
    assert told == "in\nerr\n"


def test_signals() -> None:
    """Signals the daemon ignores, handles or blocks are default and unblocked in the program."""
    told = run_host(
        "import os, signal\n"
        "from agentd.spawn import Command, spawn\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "for each in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGRTMIN):\n"
        "    signal.signal(each, signal.SIG_IGN)\n"
        # A signal of libc's own, which only the system call itself can ignore.
        "import ctypes\n"
        "ignore = (1).to_bytes(8, 'little') + bytes(24)\n"
        "assert ctypes.CDLL(None).syscall(13, 32, ignore, None, 8) == 0\n"
        "blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})\n"
        "started = spawn(Command(('cat', '/proc/self/status'), {'PATH': '/bin'}))\n"
        "os.waitpid(started.pid, 0)\n"
        "assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGTERM, signal.SIGUSR2}\n"
        "assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN\n"
        "print(os.read(started.stdout, 9999).decode())\n",
        launcher=("nohup",),
    )
    fields = dict(line.split(":\t") for line in told.split("\n") if line.startswith("Sig"))
    assert fields["SigBlk"] == fields["SigIgn"] == fields["SigCgt"] == "0" * 16


@within(10)
async def test_umask_and_session(start: Start) -> None:
    """The program has umask 022 and leads a session and process group of its own."""
    mask = os.umask(0o077)
    try:
        started = start("sh", "-c", "umask; read line", stdin=True)
    finally:
        os.umask(mask)
    assert await read_line(started.stdout) == b"0022\n"
    assert os.getsid(started.pid) == os.getpgid(started.pid) == started.pid


@within(10)
async def test_environment(start: Start) -> None:
    """The environment is exactly what was asked for, in UTF-8, undecodable bytes as they were."""
    env = {
        "PATH": "/bin:/usr/bin",
        "PROMPT": "grüße 🙂\n",
        "RAW": b"\xff".decode(errors="surrogateescape"),
    }
    started = start("env", "-0", env=env)
    told = (await read_all(started.stdout)).split(b"\0")
    assert sorted(told) == [b"", b"PATH=/bin:/usr/bin", "PROMPT=grüße 🙂\n".encode(), b"RAW=\xff"]


def test_environment_in_another_locale() -> None:
    """Text reaches the program as UTF-8 also where the daemon's locale is another one."""
    told = run_host(
        "import os\n"
        "from agentd.spawn import Command, spawn\n"
        "started = spawn(Command(('printenv', 'PROMPT'), {'PATH': '/bin', 'PROMPT': '\\u20ac'}))\n"
        "os.waitpid(started.pid, 0)\n"
        "print(os.read(started.stdout, 99))\n",
        launcher=("env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0"),
    )
    assert told == "b'\\xe2\\x82\\xac\\n'\n"


def script(path: Path, text: str, mode: int = 0o755) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@within(10)
async def test_program_on_the_childs_path(start: Start, tmp_path: Path) -> None:
    """A bare name is looked up in the child's PATH, past directories and files it cannot run."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    script(first / "hello", "#!/bin/sh\necho first\n", 0o644)
    script(second / "hello", "#!/bin/sh\necho second\n")
    path = f"/nowhere:{first}/hello:{first}:{second}"
    started = start("hello", env={"PATH": path})
    assert await read_all(started.stdout) == b"second\n"


@within(10)
async def test_program_without_a_path(start: Start) -> None:
    """Without PATH in the child's environment the system's default is searched."""
    assert await read_all(start("echo", "found", env={}).stdout) == b"found\n"


@within(10)
async def test_program_relative_to_the_working_directory(start: Start, tmp_path: Path) -> None:
    """A relative program is found from the child's working directory, not the daemon's."""
    script(tmp_path / "here", "#!/bin/sh\npwd\n")
    for argv, env in (("./here", ENV), ("here", {"PATH": ":/bin"})):
        started = start(argv, cwd=str(tmp_path), env=env)
        assert await read_all(started.stdout) == bytes(tmp_path) + b"\n"


@within(10)
async def test_stdin(start: Start) -> None:
    """Stdin is a pipe when asked for, else it is empty."""
    piped = start("cat", stdin=True)
    assert piped.stdin is not None
    os.write(piped.stdin, b"line\n")
    assert await read_line(piped.stdout) == b"line\n"
    empty = start("cat")
    assert empty.stdin is None
    assert await read_all(empty.stdout) == b""


@within(10)
@pytest.mark.parametrize("pty", [False, True])
async def test_stderr(start: Start, pty: bool) -> None:
    """Stderr is a pipe of its own, goes where stdout goes, or nowhere."""
    speak = ("sh", "-c", "echo out; echo err >&2")
    piped = start(*speak, stderr="pipe", pty=pty)
    assert piped.stderr is not None
    assert await read_all(piped.stdout) == b"out\n"
    assert await read_all(piped.stderr) == b"err\n"
    merged = start(*speak, stderr="merge", pty=pty)
    assert merged.stderr is None
    assert await read_all(merged.stdout) == b"out\nerr\n"
    dropped = start(*speak, stderr="drop", pty=pty)
    assert dropped.stderr is None
    assert await read_all(dropped.stdout) == b"out\n"


@within(10)
@pytest.mark.parametrize("pty", [False, True])
async def test_blocking(start: Start, pty: bool) -> None:
    """Our ends never block and are closed on exec; the child's block as programs expect."""
    source = "import os\nprint([os.get_blocking(fd) for fd in range(3)], flush=True)\n"
    started = start(*python(source), stdin=True, pty=pty)
    for fd in started[1:]:
        assert fd is not None
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
    assert await read_line(started.stdout) == b"[True, True, True]\n"


def test_pipe_size(start: Start) -> None:
    """The pipe of stdout holds 256 KiB, where the kernel lets the daemon have that much."""
    limit = int(Path("/proc/sys/fs/pipe-max-size").read_text())
    started = start("sleep", "300")
    assert fcntl.fcntl(started.stdout, fcntl.F_GETPIPE_SZ) == min(limit, 256 * 1024)


# The terminal


@within(20)
async def test_terminal_buffers_lines_of_python(start: Start) -> None:
    """A Python program that would fill a block before it writes to a pipe writes each line."""
    argv = python("import time; print('one'); print('two'); time.sleep(300)")
    started = start(*argv, pty=True)  # ENV has no PYTHONUNBUFFERED
    assert await read_line(started.stdout) == b"one\n"
    assert await read_line(started.stdout) == b"two\n"


@within(20)
@pytest.mark.parametrize("argv", [("cut", "-c1-"), ("sed", "")], ids=["cut", "sed"])
async def test_terminal_buffers_lines_of_c(start: Start, argv: tuple[str, ...]) -> None:
    """C programs do the same: their stdio asks isatty(3) of stdout alone."""
    started = start(*argv, pty=True, stdin=True)
    assert started.stdin is not None
    for line in (b"one\n", b"two\n"):
        os.write(started.stdin, line)
        assert await read_line(started.stdout) == line


@within(10)
async def test_terminal_changes_nothing(start: Start) -> None:
    """No byte is added, changed or taken by the terminal, and the end is EIO."""
    started = start(*python("import os; os.write(1, bytes(range(256)) * 8)"), pty=True)
    assert await read_all(started.stdout) == bytes(range(256)) * 8
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.read(started.stdout, 1)


@within(10)
async def test_terminal_is_nobodys(start: Start) -> None:
    """The terminal is stdout alone, 24 lines of 80, and controls no session."""
    source = (
        "import os\n"
        "try: os.open('/dev/tty', os.O_RDWR); tty = True\n"
        "except OSError: tty = False\n"
        "print([os.isatty(fd) for fd in range(3)], *os.get_terminal_size(1), tty)\n"
    )
    started = start(*python(source), pty=True, stdin=True)
    assert await read_line(started.stdout) == b"[False, True, False] 80 24 False\n"


# Another user


@needs_root
@within(10)
@pytest.mark.parametrize("pty", [False, True])
async def test_user(start: Start, pty: bool) -> None:
    """The program runs as the user, with its groups alone, and may open its streams by name."""
    user = User(NOBODY, NOBODY, (NOBODY, 4711), "nobody", "/", "/bin/sh")
    script = "grep -E '^(Uid|Gid|Groups)' /proc/self/status | tr -s '\\t ' _; echo as >/dev/stdout"
    started = start("sh", "-c", script, user=user, pty=pty)
    ids = b"_".join([b"65534"] * 4)
    told = (await read_all(started.stdout)).split()
    assert told == [b"Uid:_" + ids, b"Gid:_" + ids, b"Groups:_4711_65534_", b"as"]


@needs_root
@within(10)
async def test_user_opens_stderr_by_name(start: Start) -> None:
    """The user may open /dev/stdin and /dev/stderr as well, and /dev/null stays root's."""
    started = start("sh", "-c", "cat /dev/stdin >/dev/stderr", user=NOBODY_USER, stdin=True)
    assert started.stdin is not None
    assert started.stderr is not None
    os.write(started.stdin, b"through\n")
    assert await read_line(started.stderr) == b"through\n"
    start("true", user=NOBODY_USER, stderr="drop")
    assert os.stat("/dev/null").st_uid == 0


@needs_root
def test_directory_is_entered_as_the_user(tmp_path: Path) -> None:
    """A directory that only the daemon's user may enter is refused."""
    tmp_path.chmod(0o700)
    assert refusal("true", cwd=str(tmp_path), user=NOBODY_USER).kind == "bad_cwd"


def test_own_user(start: Start) -> None:
    """Naming the daemon's own user needs no right to change it."""
    told = run_host(
        "import os, sys\n"
        "from agentd.spawn import Command, User, spawn\n"
        "if os.geteuid() == 0: os.setgroups(()), os.setgid(65534), os.setuid(65534)\n"
        "own, other = os.getuid(), os.getuid() + 1\n"
        "def user(uid): return User(uid, os.getgid(), (), 'someone', '/', '/bin/sh')\n"
        "os.waitpid(spawn(Command(('true',), {'PATH': '/bin'}, user=user(own))).pid, 0)\n"
        "try: spawn(Command(('true',), {'PATH': '/bin'}, user=user(other)))\n"
        "except Exception as error: print(error.kind, error)\n"
    )
    assert told == "other cannot become user 'someone': Operation not permitted\n"


def test_find_user() -> None:
    """A user is found by name or number, with what passwd(5) says of it."""
    entry = pwd.getpwnam(getpass.getuser())
    by_name, by_number = find_user(entry.pw_name), find_user(str(entry.pw_uid))
    assert by_name == by_number
    assert (by_name.uid, by_name.gid, by_name.home) == (entry.pw_uid, entry.pw_gid, entry.pw_dir)
    assert entry.pw_gid in by_name.groups


def test_find_user_with_group() -> None:
    """A group that is said is the primary one; a number without an entry needs one."""
    assert find_user("root:daemon").gid == find_user("0:1").gid == 1
    assert find_user("70001:70002") == User(70001, 70002, (70002,), "70001", "/", "/bin/sh")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nobody-of-this-name", "cannot find user 'nobody-of-this-name'"),
        ("", "cannot find user ''"),
        ("a\0b", "cannot find user"),
        ("-1", "cannot find user '-1'"),
        ("4294967295", "cannot find user '4294967295'"),
        ("99999999999", "cannot find user"),
        ("70001", "cannot tell the group of user 70001: say 70001:GROUP"),
        ("root:", "cannot find group ''"),
        ("root:no-such-group", "cannot find group 'no-such-group'"),
        (":root", "cannot find user ''"),
    ],
)
def test_find_user_refuses(spec: str, says: str) -> None:
    """What is no user or group is named in the error."""
    with pytest.raises(AgentdError, match=says.replace("(", "\\(")):
        find_user(spec)


# The end of the daemon


@needs_root
@pytest.mark.parametrize("uid", [0, NOBODY])
@within(20)
async def test_dies_with_the_daemon(uid: int) -> None:
    """When the daemon is killed outright its child dies, also one that runs as another user."""
    host = start_host(
        "import sys, time\n"
        "from agentd.spawn import Command, User, spawn\n"
        "uid = int(sys.argv[1])\n"
        "user = User(uid, uid, (), 'someone', '/', '/bin/sh') if uid else None\n"
        "print(spawn(Command(('sleep', '300'), {'PATH': '/bin'}, user=user)).pid, flush=True)\n"
        "time.sleep(300)\n",
        str(uid),
    )
    with host:
        assert host.stdout is not None
        child = int(host.stdout.readline())
        assert is_alive(child)
        host.kill()
        host.wait()
        await wait_until(lambda: not is_alive(child))


@within(20)
async def test_outlives_a_thread_of_the_daemon(start: Start) -> None:
    """A child is tied to the daemon, not to a thread of it that ends."""
    started = start(*python(FOREVER))
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert await read_line(started.stdout) == b"ready\n"
    assert is_alive(started.pid)


def test_only_in_the_main_thread() -> None:
    """Another thread is refused: the kernel would kill the child when that thread ends."""
    caught: list[BaseException] = []

    def attempt() -> None:
        try:
            spawn(Command(("true",), ENV))
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert "cannot spawn from a thread" in str(caught[0])


def test_forks_beside_a_thread_without_a_warning(start: Start) -> None:
    """A worker thread that lives meanwhile makes no warning, which -W error would turn fatal."""
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            start("true")
    finally:
        leave.set()
        thread.join()


# Why it may not start


def test_not_found(tmp_path: Path) -> None:
    """A program that is nowhere, and a script whose interpreter is nowhere, are not found."""
    orphaned = script(tmp_path / "orphaned", "#!/nowhere/interpreter\n")
    plain = script(tmp_path / "plain", "", 0o644)
    for program in ("no-such-program", "/nowhere/program", str(orphaned), f"{plain}/under", ""):
        assert refusal(program).kind == "not_found"
    assert refusal("true", env={"PATH": str(tmp_path)}).kind == "not_found"
    assert refusal("x" * 5000).kind == "not_found"


def test_not_executable(tmp_path: Path) -> None:
    """What is there but cannot be executed is told from what is not there."""
    script(tmp_path / "plain", "#!/bin/sh\n", 0o644)
    script(tmp_path / "text", "echo a shell would run this\n")
    (tmp_path / "directory").mkdir()
    script(tmp_path / "directory-interpreter", f"#!{tmp_path}\n")
    for name in ("plain", "text", "directory", "directory-interpreter"):
        assert refusal(str(tmp_path / name)).kind == "not_executable"
        assert refusal(name, env={"PATH": f"{tmp_path}:/bin"}).kind == "not_executable"


def test_bad_directory(tmp_path: Path) -> None:
    """A working directory that cannot be entered is not mistaken for a missing program."""
    plain = script(tmp_path / "plain", "")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for cwd in ("/nowhere", str(plain), str(loop), "", "/" + "x" * 5000):
        assert refusal("true", cwd=cwd).kind == "bad_cwd"
    assert refusal("no-such-program", cwd="/nowhere").kind == "bad_cwd"


def test_too_big() -> None:
    """One argument or variable of 128 KiB, or too much of them together, is too big."""
    assert refusal("true", "x" * 131072).kind == "too_big"
    assert refusal("true", env=ENV | {"PROMPT": "x" * 131072}).kind == "too_big"
    many = {f"V{number}": "x" * 100_000 for number in range(100)}
    assert refusal("true", env=ENV | many).kind == "too_big"


def test_largest_argument(start: Start) -> None:
    """One byte less starts."""
    start("true", "x" * 131071)
    start("true", env=ENV | {"P": "x" * (131071 - 2)})


@pytest.mark.parametrize(
    "command",
    [
        Command(("true", "a\0b"), ENV),
        Command(("true", "a\ud800b"), ENV),
        Command(("true",), ENV | {"SECRET": "canary\ud800"}),
        Command(("true",), ENV | {"SECRET": "canary\0"}),
        Command(("true",), ENV | {"A=B": "canary"}),
        Command(("true",), ENV | {"": "canary"}),
    ],
)
def test_what_no_program_can_be_given(command: Command) -> None:
    """Text the kernel cannot pass on is refused, and appears nowhere in the error."""
    error = refusal(*command.argv, env=command.env)
    assert error.kind == "other"
    while error is not None:
        assert "canary" not in f"{error!r}{vars(error)}"
        error = error.__cause__ or error.__context__  # type: ignore[assignment]


def test_no_descriptor_left() -> None:
    """A daemon that is out of descriptors refuses, and leaks none of those it had."""
    told = run_host(
        "import os, resource\n"
        "from agentd.spawn import Command, SpawnError, spawn\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "os.listdir('/proc/self/fd')\n"
        "taken = []\n"
        "while True:\n"
        "    try: taken.append(os.dup(0))\n"
        "    except OSError: break\n"
        "kinds = set()\n"
        "for spare in range(1, 14):\n"
        "    os.close(taken.pop())\n"
        "    try: started = spawn(Command(('true',), {'PATH': '/bin'}, stdin=True))\n"
        "    except SpawnError as error: kinds.add(error.kind)\n"
        "    else:\n"
        "        os.waitpid(started.pid, 0)\n"
        "        for fd in started[1:]: os.close(fd)\n"
        "        kinds.add('started')\n"
        "    assert len(os.listdir('/proc/self/fd')) == 65 - spare\n"
        "print(*sorted(kinds))\n"
    )
    assert told == "other started\n"


@needs_root
def test_no_process_left() -> None:
    """A user that may have no more processes gets an error, not a crash."""
    told = run_host(
        "import os, resource\n"
        "from agentd.spawn import Command, SpawnError, spawn\n"
        "os.setgroups(()), os.setgid(65533), os.setuid(65533)\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
        "try: spawn(Command(('true',), {'PATH': '/bin'}))\n"
        "except SpawnError as error: print(error.kind, error)\n"
    )
    assert told == "other cannot run 'true': Resource temporarily unavailable\n"


def test_secrets_stay_out_of_reprs() -> None:
    """Neither arguments nor environment are in the repr of a command."""
    assert "canary" not in repr(Command(("true", "canary"), {"KEY": "canary"}))


def test_dev_null_is_a_device(start: Start) -> None:
    """What is dropped is dropped by the kernel's own device."""
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    started = start("sh", "-c", "readlink /proc/self/fd/2", stderr="drop")
    os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
    assert os.read(started.stdout, 99) == b"/dev/null\n"
