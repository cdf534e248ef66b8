"""What agentd and systemd tell each other: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).

Invariant: without systemd, or with one that does not listen, every method does nothing; telling it
how we are never is a reason to fail.  It refuses to know when agentd is ready.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Collection, Mapping

logger = logging.getLogger(__name__)

LISTEN_FDS_START = 3
_MOST_SOCKETS = 1024
_PATIENCE = 1.0  # seconds; systemd reads at once or is in trouble itself


class Notifier:
    """The daemon's voice towards its service manager.

    ``watchdog_interval`` is in seconds: how often to call :meth:`watchdog`, half of what systemd
    allows; None when it does not watch us.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.watchdog_interval = watchdog_interval(environ, _own_pids())
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))

    def ready(self) -> None:
        """agentd serves; also after :meth:`reloading`."""
        self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def reloading(self) -> None:
        """SIGHUP is being acted on; :meth:`ready` must follow (Type=notify-reload)."""
        self._send(
            f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
        )

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, state: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
                notify.settimeout(_PATIENCE)
                notify.sendto(state.encode(), self._address)
        except OSError as error:
            logger.warning("cannot notify NOTIFY_SOCKET: %s", error.strerror or "timed out")


def watchdog_interval(environ: Mapping[str, str], pids: Collection[int]) -> float | None:
    """How often to tell systemd that we work, in seconds, or None for never.

    WATCHDOG_PID, when set, must be one of ``pids``: somebody else is watched otherwise.
    """
    microseconds = _number(environ.get("WATCHDOG_USEC", ""))
    watched = environ.get("WATCHDOG_PID")
    if not microseconds or (watched is not None and _number(watched) not in pids):
        return None
    return microseconds / 2 / 1_000_000


def passed_sockets(environ: Mapping[str, str], pid: int) -> list[int]:
    """The descriptors that systemd passed to process ``pid``, from 3 up (sd_listen_fds(3)).

    The names in LISTEN_FDNAMES make no difference: agentd serves the same on all of them.
    """
    count = _number(environ.get("LISTEN_FDS", ""))
    if _number(environ.get("LISTEN_PID", "")) != pid or not 0 < count <= _MOST_SOCKETS:
        return []
    return list(range(LISTEN_FDS_START, LISTEN_FDS_START + count))


def _own_pids() -> set[int]:
    """Who we are to systemd.

    The one-file binary is two processes and its bootloader, our parent, is the one systemd started;
    unlike LISTEN_PID, WATCHDOG_PID is left naming it.
    """
    return {os.getpid(), os.getppid()} if getattr(sys, "frozen", False) else {os.getpid()}


def _address(text: str) -> str | None:
    """The socket address NOTIFY_SOCKET names: a path, or abstract after an ``@`` (unix(7))."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
