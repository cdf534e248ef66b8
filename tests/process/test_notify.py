"""What agentd tells systemd, on a real datagram socket, and what systemd's variables mean."""

import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.notify import Notifier, passed_sockets, watchdog_interval


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """NOTIFY_SOCKET as systemd would set it, and the socket that it names."""
    name = f"@agentd-test-{os.getpid()}" if request.param == "abstract" else f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if name.startswith("@") else name)
        listening.settimeout(20)
        yield name, listening


def test_each_message_is_one_datagram(systemd: tuple[str, socket.socket]) -> None:
    """READY, STOPPING and WATCHDOG are spelled as sd_notify(3) has them."""
    name, listening = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready()
    notifier.watchdog()
    notifier.stopping()
    assert [listening.recv(4096) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_reloading_tells_the_time(systemd: tuple[str, socket.socket]) -> None:
    """RELOADING comes with the monotonic clock in microseconds, in the same datagram."""
    name, listening = systemd
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier({"NOTIFY_SOCKET": name}).reloading()
    message = re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=([0-9]+)", listening.recv(4096))
    assert message
    assert before <= int(message[1]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


@pytest.mark.parametrize("name", [None, "", "relative", "vsock:2:1234", "@" + "a" * 200])
def test_without_systemd_nothing_happens(name: str | None) -> None:
    """Outside systemd, or with a socket of a kind we do not know, every method does nothing."""
    notifier = Notifier({} if name is None else {"NOTIFY_SOCKET": name})
    notifier.ready()
    notifier.reloading()
    notifier.watchdog()
    notifier.stopping()


def test_a_systemd_that_is_gone_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not being heard is no reason to fail; it is said once a message."""
    with caplog.at_level(logging.WARNING, "agentd.notify"):
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")}).ready()
    assert [record.getMessage() for record in caplog.records] == [
        "cannot notify NOTIFY_SOCKET: No such file or directory"
    ]


def test_a_systemd_that_does_not_read_is_not_waited_for_long(
    systemd: tuple[str, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    """A full socket costs a warning and at most a second or so."""
    name, _ = systemd
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        other.connect("\0" + name[1:] if name.startswith("@") else name)
        try:
            while True:
                other.send(b"x")
        except BlockingIOError:
            pass
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "agentd.notify"):
        Notifier({"NOTIFY_SOCKET": name}).watchdog()
    assert time.monotonic() - began < 15
    assert len(caplog.records) == 1


# The watchdog.


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "seven"}, None),
        ({"WATCHDOG_PID": "7"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "9" * 40}, None),
        ({"WATCHDOG_USEC": "\u0661"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_at_twice_its_rate(
    environ: dict[str, str], expected: float | None
) -> None:
    """Half of WATCHDOG_USEC, in seconds, when it is we who are watched (sd_watchdog_enabled(3))."""
    assert watchdog_interval(environ, {7}) == expected


def test_the_watchdog_may_name_the_bootloader(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the one-file binary WATCHDOG_PID names our parent; from source that is somebody else."""
    environ = {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getppid())}
    own = environ | {"WATCHDOG_PID": str(os.getpid())}
    assert Notifier(environ).watchdog_interval is None
    assert Notifier(own).watchdog_interval == 1.0
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert Notifier(environ).watchdog_interval == 1.0
    assert Notifier(own).watchdog_interval == 1.0


# Sockets.


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, [3]),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c"}, [3, 4, 5]),
        ({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, []),
        ({"LISTEN_FDS": "1"}, []),
        ({"LISTEN_PID": "7"}, []),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "0"}, []),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "-1"}, []),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "one"}, []),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "1000000"}, []),
        ({"LISTEN_PID": "seven", "LISTEN_FDS": "1"}, []),
        ({}, []),
    ],
)
def test_passed_sockets_are_ours_only_when_they_name_us(
    environ: dict[str, str], expected: list[int]
) -> None:
    """LISTEN_FDS counts from descriptor 3, and holds for the process LISTEN_PID names."""
    assert passed_sockets(environ, 7) == expected
