"""Silence is noticed, slowness is not mistaken for it, and probes are answered meanwhile."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from testing.daemon import read_all
from testing.plain_client import PING, PONG, SMALL, TEXT, PlainClient
from testing.programs import (
    STAYS,
    WITHIN,
    begin,
    counting,
    run,
    serving_any,
    submit,
    unique,
    wait_blocked,
    wait_gone,
)
from websockets.sync.client import ClientConnection

PING_EVERY = 1.0
SILENT_FOR = 2 * PING_EVERY + 5


def test_a_client_that_answers_is_pinged_and_kept(tmp_path: Path) -> None:
    """Pings and heartbeats come every ``--ping`` while a command thinks (Cloudflare #911)."""
    with (
        serving_any(tmp_path, "--ping", "1") as daemon,
        PlainClient(daemon.address, submit(daemon, STAYS)).upgrade() as client,
    ):
        pings: list[float] = []
        beats = 0
        started = time.monotonic()
        while len(pings) < 4 or beats < 3:
            frame = client.frame()
            if frame.opcode == PING:
                pings.append(time.monotonic())
                client.send(PONG, frame.payload)
            elif frame.opcode == TEXT:
                record = frame.record
                beats += record["type"] == "heartbeat"
                if record["type"] == "heartbeat":
                    assert record["seq"] == 1
        assert 2 * PING_EVERY < time.monotonic() - started < 8 * PING_EVERY + WITHIN


@dataclass
class AfterSilence:
    """Three clients who said nothing, after the time for which a silent one is kept.

    Attributes:
        waited: seconds after which the one that never answers was gone.
        token: marks its command.
        stuck: one that stopped reading while its command printed ``LINES`` lines.
        real: one that nobody here wrote, of a command that is silent.
    """

    waited: float
    token: str
    stuck: PlainClient
    real: ClientConnection


LINES = 16000


@pytest.fixture(scope="module")
def after_silence(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AfterSilence]:
    folder = tmp_path_factory.mktemp("daemon")
    token, progress = unique("mark"), folder / "progress"
    options = ("--ping", "1", "--grace", "1", "--write-timeout", "0")
    with serving_any(folder, *options) as daemon:
        slow = submit(daemon, counting(progress, lines=LINES))
        with (
            PlainClient(daemon.address, slow, buffer=SMALL).upgrade() as stuck,
            begin(daemon, STAYS) as real,
        ):
            wait_blocked(progress)
            path = submit(daemon, (*STAYS, token))
            with PlainClient(daemon.address, path).upgrade() as silent:
                started = time.monotonic()
                silent.wait_eof()
                waited = time.monotonic() - started
                yield AfterSilence(waited, token, stuck, real)


def test_a_client_that_never_answers_is_gone_after_its_time(after_silence: AfterSilence) -> None:
    """Twice the ping and five seconds, not before; its command too (websocketd #456: hours)."""
    assert SILENT_FOR - 0.5 < after_silence.waited < SILENT_FOR + WITHIN
    wait_gone(after_silence.token)


def test_a_client_whose_send_is_blocked_is_not_silent(after_silence: AfterSilence) -> None:
    """Without a write timeout it may take as long as it likes, and then it gets everything."""
    count = 0
    for frame in after_silence.stuck.frames():
        if frame.opcode == PING:
            after_silence.stuck.send(PONG, frame.payload)
        elif frame.opcode == TEXT:
            count += frame.record["type"] == "stdout"
    assert count == LINES
    assert frame.close == (1000, "exit 0")


def test_a_real_client_is_kept_through_silence(after_silence: AfterSilence) -> None:
    """A client that nobody here wrote answers the Pings by itself (daytona #3739: 1011)."""
    after_silence.real.send('{"type": "cancel"}')
    stream = read_all(after_silence.real)
    assert len(stream.of("heartbeat")) >= 3
    assert stream.end["outcome"] == "cancelled"


def test_pings_can_be_turned_off(tmp_path: Path) -> None:
    """``--ping 0``: nothing but the command's own lines."""
    with serving_any(tmp_path, "--ping", "0") as daemon:
        program = ("sh", "-c", "echo one; sleep 1.5; echo two")
        with PlainClient(daemon.address, submit(daemon, program)).upgrade() as client:
            opcodes = {frame.opcode for frame in client.frames()}
    assert opcodes == {TEXT, 8}


def test_health_answers_while_a_run_prints_at_full_speed(tmp_path: Path) -> None:
    """Each of 20 probes within a second; so does a run beside it."""
    with (
        serving_any(tmp_path) as daemon,
        PlainClient(daemon.address, submit(daemon, ("yes", "x" * 60))).upgrade() as client,
    ):
        over = threading.Event()
        taken = [0]

        def read() -> None:
            while not over.is_set():
                taken[0] += len(client.socket.recv(1 << 20))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            for path in ("/healthz", "/readyz") * 10:
                before, started = taken[0], time.monotonic()
                assert daemon.get(path)[0] == 200
                assert time.monotonic() - started < 1
                while taken[0] == before:
                    time.sleep(0.001)  # it is under load only while lines are coming
            assert b"agentd_runs_live 1" in daemon.get("/metrics")[2]
            assert run(daemon, ("echo", "beside")).lines == ["beside"]
        finally:
            over.set()
            reader.join()
        assert taken[0] > 1 << 20
