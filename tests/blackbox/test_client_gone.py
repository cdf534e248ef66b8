"""A run whose client has gone ends, with everything it started, whichever way the client went."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.daemon import Daemon, read_all, serving
from testing.plain_client import LEAVING, SMALL, PlainClient
from testing.processes import marked, python
from testing.programs import counting, run, serving_any, submit, unique, wait_blocked, wait_gone


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    # No write timeout, and pings that come too late to tell: the connection itself must.
    options = ("--write-timeout", "0", "--ping", "60", "--grace", "1")
    with serving_any(tmp_path_factory.mktemp("daemon"), *options) as daemon:
        yield daemon


@pytest.mark.parametrize("way", LEAVING)
def test_an_idle_child_ends_with_its_client(daemon: Daemon, way: str) -> None:
    """A child that prints nothing cannot notice; agentd does (websocketd #159, #191, W4)."""
    token = unique("mark")
    idle = python("import os, time\nos.fork()\nos.write(1, b'ready\\n')\ntime.sleep(300)\n", token)
    with PlainClient(daemon.address, submit(daemon, idle)).upgrade() as client:
        said = [client.frame().record for _ in range(3)]
        assert [record.get("line") for record in said] == [None, "ready", "ready"]
        assert len(marked(token)) == 2
        LEAVING[way](client)
        wait_gone(token)


@pytest.mark.parametrize("way", LEAVING)
def test_a_child_that_is_blocked_in_a_write_ends_with_its_client(
    daemon: Daemon, way: str, tmp_path: Path
) -> None:
    """A client that left is noticed while our send to it is blocked (websocketd, pebble #422)."""
    token, progress = unique("mark"), tmp_path / "progress"
    path = submit(daemon, counting(progress, token))
    with PlainClient(daemon.address, path, buffer=SMALL).upgrade() as client:
        wait_blocked(progress)
        assert marked(token)
        LEAVING[way](client)
        wait_gone(token)


@pytest.mark.parametrize("way", LEAVING)
def test_yes_ends_with_its_client(daemon: Daemon, way: str) -> None:
    """A command that floods its client ends too when the client leaves in the middle of a frame."""
    token = unique("mark")
    with PlainClient(daemon.address, submit(daemon, ("yes", token))).upgrade() as client:
        assert client.frame().record["type"] == "hello"
        client.frame()
        assert marked(token)
        LEAVING[way](client)
        wait_gone(token)


def test_a_run_whose_client_left_says_cancelled_in_the_log(daemon: Daemon) -> None:
    """The end is told even when the one it concerns does not listen any more."""
    path = submit(daemon, ("sleep", "300"))
    with PlainClient(daemon.address, path).upgrade() as client:
        client.leave_by_close()
        ended = daemon.wait_log(f'"run ended", "run": "{path.partition("=")[2]}"')
    assert '"cancelled"' in ended
    assert '"SIGTERM"' in ended


@pytest.mark.parametrize("way", LEAVING)
def test_a_client_that_leaves_right_after_the_101_leaves_nothing_behind(
    daemon: Daemon, way: str
) -> None:
    """A client that goes while its command is being started leaves no process (E2B #3256)."""
    for _ in range(8):
        path = submit(daemon, ("sleep", "300"))
        with PlainClient(daemon.address, path).upgrade() as client:
            LEAVING[way](client)
        daemon.wait_log(f'"run ended", "run": "{path.partition("=")[2]}"')
    assert run(daemon, ("echo", "next")).lines == ["next"]


@pytest.mark.parametrize("way", ["fin", "rst", "killed"])
def test_a_client_that_leaves_while_it_waits_consumes_no_context(tmp_path: Path, way: str) -> None:
    """The context that comes after it is the next client's."""
    with serving(tmp_path, "cat") as daemon:
        for _ in range(3):
            with PlainClient(daemon.address) as gone, PlainClient(daemon.address) as witness:
                gone.ask()
                witness.ask()
                LEAVING[way](gone)
                if way == "fin":
                    gone.wait_eof()
                # What is asked on one connection after the other left is answered afterwards.
                witness.leave_by_fin()
                witness.wait_eof()
            assert daemon.get("/healthz")[0] == 200
            daemon.submit(prompt="for whom stays\n")
            with daemon.connect() as client:
                stream = read_all(client)
            assert stream.lines == ["for whom stays"]
            assert stream.code == 1000


def test_leaving_is_not_noticed_as_a_full_house(tmp_path: Path) -> None:
    """Runs that their clients left free their places: --max-runs of them, several times over."""
    with serving_any(tmp_path, "--max-runs", "2", "--grace", "1") as daemon:
        for _ in range(5):
            paths = [submit(daemon, ("sleep", "300")) for _ in range(2)]
            for path in paths:
                client = PlainClient(daemon.address, path).upgrade()
                client.leave_by_rst()
            for path in paths:
                daemon.wait_log(f'"run ended", "run": "{path.partition("=")[2]}"')
        assert run(daemon, ("echo", "next")).lines == ["next"]
