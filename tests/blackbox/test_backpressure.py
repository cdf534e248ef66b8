"""A slow client slows the command and grows nothing in the daemon; one that takes nothing goes."""

import hashlib
import time
from pathlib import Path

import pytest
from testing.daemon import wait_for
from testing.plain_client import SMALL, PlainClient
from testing.processes import marked
from testing.programs import (
    WITHIN,
    counting,
    resident,
    run,
    serving_any,
    submit,
    unique,
    wait_blocked,
    wait_gone,
)

GROWTH = 8 << 20
LINES = 16_000
"""Of 1 KiB: far more than all the buffers on the way hold."""


@pytest.mark.parametrize("raw", [False, True], ids=["v1", "raw"])
def test_a_client_that_pauses_loses_nothing(tmp_path: Path, raw: bool) -> None:
    """The command is blocked, the daemon does not grow, and then everything comes.

    (Cloudflare, microsandbox and OpenHands keep it all in memory; eliza #31953: 56 MB a socket.)
    """
    progress = tmp_path / "progress"
    with serving_any(tmp_path, "--write-timeout", "0") as daemon:
        run(daemon, ("true",))  # so that everything it needs is loaded
        path = submit(daemon, counting(progress, lines=LINES))
        before = resident(daemon)
        subprotocol = None if raw else "agentd.v1"
        client = PlainClient(daemon.address, path, subprotocol=subprotocol, buffer=SMALL)
        with client.upgrade():
            blocked = wait_blocked(progress)
            assert blocked < LINES // 8
            time.sleep(1)  # a client that pauses; it is the command that must not get on meanwhile
            assert int(progress.read_text()) == blocked
            assert resident(daemon) - before < GROWTH
            digest, count = hashlib.sha256(), 0
            if raw:
                *lines, close = client.frames()
                for frame in lines:
                    digest.update(frame.payload + b"\n")
                count = len(lines)
                assert close.close == (1000, "exit 0")
            else:
                for record in client.records():
                    if record["type"] == "stdout":
                        digest.update(record["line"].encode() + b"\n")
                        count += 1
                assert record["stdout_sha256"] == digest.hexdigest()
            assert count == LINES
            assert resident(daemon) - before < GROWTH
    expected = hashlib.sha256(b"".join(b"%1023d\n" % number for number in range(LINES)))
    assert digest.hexdigest() == expected.hexdigest()


def test_a_line_without_an_end_grows_nothing(tmp_path: Path) -> None:
    """32 MB in one line to a client that reads: parts go out as they come (websocketd W7)."""
    with serving_any(tmp_path) as daemon:
        run(daemon, ("true",))
        before = resident(daemon)
        program = ("sh", "-c", "yes | tr -d '\\n' | head -c 33554432")
        with PlainClient(daemon.address, submit(daemon, program)).upgrade() as client:
            size = peak = 0
            for record in client.records():
                if record["type"] == "stdout":
                    size += len(record["line"])
                    if record["seq"] % 16 == 0:
                        peak = max(peak, resident(daemon))
        assert size == record["stdout_bytes"] == 33554432
        assert record["stdout_lines"] == 1
        assert peak - before < GROWTH


def test_a_client_that_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    """After ``--write-timeout`` its connection and its run end (websocketd: blocked for ever)."""
    progress, token = tmp_path / "progress", unique("mark")
    with serving_any(tmp_path, "--write-timeout", "1", "--grace", "0.5") as daemon:
        path = submit(daemon, counting(progress, token))
        with PlainClient(daemon.address, path, buffer=SMALL).upgrade() as client:
            wait_for(progress.exists, "the command prints")
            started = time.monotonic()
            wait_gone(token, 1 + WITHIN)
            assert time.monotonic() - started > 0.2
            ended = daemon.wait_log(f'"run ended", "run": "{path.partition("=")[2]}"')
            assert '"cancelled"' in ended
            records = []
            with pytest.raises(ConnectionError):
                records += [client.frame() for _ in iter(int, 1)]
        # What was sent whole is whole, and after the frame that was cut nothing follows: had a
        # Close or an end come, the client would have seen one instead of the torn connection.
        assert run(daemon, ("echo", "next")).lines == ["next"]


def test_a_client_that_takes_a_little_is_not_cut_off(tmp_path: Path) -> None:
    """Slow is not silent: who reads a few KB now and then keeps its run."""
    progress, token = tmp_path / "progress", unique("mark")
    with serving_any(tmp_path, "--write-timeout", "1", "--grace", "0.5") as daemon:
        path = submit(daemon, counting(progress, token))
        with PlainClient(daemon.address, path, buffer=4096).upgrade() as client:
            until = time.monotonic() + 3
            while time.monotonic() < until:
                assert client.socket.recv(16384)
                time.sleep(0.2)  # the pace of this client
            assert marked(token)


def test_a_run_beside_a_stuck_one_goes_at_its_own_pace(tmp_path: Path) -> None:
    """A client that stopped reading takes neither time nor lines from another one."""
    progress = tmp_path / "progress"
    with serving_any(tmp_path, "--write-timeout", "0") as daemon:
        path = submit(daemon, counting(progress))
        with PlainClient(daemon.address, path, buffer=SMALL).upgrade():
            wait_blocked(progress)
            other = submit(daemon, counting(tmp_path / "other", lines=LINES))
            with PlainClient(daemon.address, other).upgrade() as client:
                count = sum(record["type"] == "stdout" for record in client.records())
            assert count == LINES
