"""What can happen to a run, in which order, and what the world is told when it has.

A run is one context, one process tree, one stream of lines, one end. Everything that may happen to
it is in :data:`TRANSITIONS`, literally; an event that the table does not list for a state cannot
happen, and :func:`advance` says so instead of guessing. The diagram in README.md is made from the
same table by :func:`diagram`, so there is no drawing that could disagree.

Theory of operation
===================

A run begins WAITING, with a context and no client. When its client is there it is STARTING, which
lasts as long as fork and exec do, and then RUNNING. From there it goes one way only:

* the leader exits by itself: DRAINING, while what is left in the pipe is read and helpers that
  outlived the leader are ended;
* somebody wants it to end (the client left or asked, the time is over, the daemon stops): STOPPING,
  which lasts from SIGTERM until the leader has exited, and then DRAINING as well.

ENDED is final. "The leader has exited" comes from the process and "the pipe is empty" from the
pipe, and they are different events on purpose: a helper that holds the pipe open keeps no run
alive, and a leader that exits loses none of its last lines.

Three vocabularies meet here, and each is translated in one place only: how the process ended
(:func:`outcome`), what the ``end`` record calls it (:class:`Outcome`), and which WebSocket close
code a client sees (:func:`close_code`). The health answers are a function of the daemon's phase
(:func:`readiness`).

This room knows neither timers nor processes nor clients. It is told what happened.
"""

import enum
from dataclasses import dataclass
from typing import Final

from agentd import AgentdError

# What a client finds in the Close frame. RFC 6455 7.4.1 defines the codes below 2000 and 7.4.2
# leaves 4000-4999 to private use.
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
FAULT: Final = 1011
EXITED: Final = 4000
SIGNALED: Final = 4001
CANNOT_START: Final = 4002
TIMED_OUT: Final = 4003
CANCELLED: Final = 4004
TOO_SLOW: Final = 4008
DISPLACED: Final = 4009
BAD_RECORD: Final = 4400


class InvalidTransition(AgentdError):
    """An event came to a run in a state that has no place for it: a fault of agentd's own."""


class State(enum.Enum):
    """Where a run is."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    DRAINING = "draining"
    ENDED = "ended"


class Event(enum.Enum):
    """What can happen to a run."""

    CONNECTED = "connected"
    EXPIRED = "expired"
    SPAWNED = "spawned"
    SPAWN_FAILED = "spawn failed"
    STOPPED = "stopped"
    EXITED = "exited"
    DRAINED = "drained"


INITIAL: Final = State.WAITING

TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.WAITING, Event.CONNECTED): State.STARTING,
    (State.WAITING, Event.EXPIRED): State.ENDED,
    (State.WAITING, Event.STOPPED): State.ENDED,
    (State.STARTING, Event.SPAWNED): State.RUNNING,
    (State.STARTING, Event.SPAWN_FAILED): State.ENDED,
    (State.RUNNING, Event.EXITED): State.DRAINING,
    (State.RUNNING, Event.STOPPED): State.STOPPING,
    # A second reason to stop, such as SIGTERM to the daemon after a cancel, changes nothing.
    (State.STOPPING, Event.STOPPED): State.STOPPING,
    (State.STOPPING, Event.EXITED): State.DRAINING,
    (State.DRAINING, Event.STOPPED): State.DRAINING,
    (State.DRAINING, Event.DRAINED): State.ENDED,
}


def advance(state: State, event: Event) -> State:
    """Return the state after ``event``.

    Raises:
        InvalidTransition: the table has no such event in ``state``; the message names both.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise InvalidTransition(
            f"cannot take a run that is {state.value} through {event.value!r}"
        ) from None


class Outcome(enum.StrEnum):
    """How a run ended, as the ``end`` record says it."""

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    SPAWN_FAILED = "spawn_failed"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class End:
    """Everything the ``end`` record tells.

    Attributes:
        outcome: what agentd calls it.
        exit_code: the leader's own, whatever the outcome; None when a signal ended it or nothing
            was started.
        signal: the name of the signal that ended the leader (``SIGTERM``).
        error: why nothing was started: ``not_found``, ``not_executable``, ``bad_cwd``, ``too_big``
            or ``other``.
        stdout_lines: lines, not the parts they were sent in.
        stderr_lines: the same of stderr.
        stdout_bytes: what was read from stdout, newlines included.
        stdout_sha256: the digest of those bytes, in lower-case hexadecimal.
        seconds: from start to end.
    """

    outcome: Outcome
    exit_code: int | None
    signal: str | None
    error: str | None
    stdout_lines: int
    stderr_lines: int
    stdout_bytes: int
    stdout_sha256: str
    seconds: float


def outcome(stop: Outcome | None, exit_code: int | None, signal: str | None) -> Outcome:
    """Return how a run ended, from why it was stopped and how its leader exited.

    Args:
        stop: why agentd ended the run, None when it ended by itself. A reason wins over the status:
            a child that answers SIGTERM with exit 0 was cancelled nevertheless.
        exit_code: the leader's, None when a signal ended it or nothing was started.
        signal: the name of the signal that ended the leader.
    """
    if stop is not None:
        return stop
    if signal is not None:
        return Outcome.SIGNALED
    if exit_code is not None:
        return Outcome.EXITED
    return Outcome.SPAWN_FAILED


_STOP_CODES: Final = {
    Outcome.TIMED_OUT: (TIMED_OUT, "timed out"),
    Outcome.CANCELLED: (CANCELLED, "cancelled"),
    Outcome.SHUTDOWN: (GOING_AWAY, "shutting down"),
}

_SPAWN_REASONS: Final = {
    "not_found": "not found",
    "not_executable": "not executable",
    "bad_cwd": "bad working directory",
    "too_big": "arguments and environment too big",
}


def close_code(end: End) -> tuple[int, str]:
    """Return the code and the reason of the Close frame (RFC 6455 5.5.1) that follows an end.

    The reason says the code in words (``exit 3``, ``SIGKILL``, ``not found``). It never holds what
    came from outside and is far shorter than the 123 bytes a Close frame has room for.
    """
    if end.outcome is Outcome.EXITED:
        return (EXITED if end.exit_code else NORMAL), f"exit {end.exit_code}"
    if end.outcome is Outcome.SIGNALED:
        return SIGNALED, f"{end.signal}"
    if end.outcome is Outcome.SPAWN_FAILED:
        return CANNOT_START, _SPAWN_REASONS.get(f"{end.error}", "cannot start")
    return _STOP_CODES[end.outcome]


# signal(7), by the numbers of x86, ARM and most others; the module that has the names can also send
# signals and is not for this room.
# fmt: off
_SIGNALS: Final = (
    "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL",
    "SIGUSR1", "SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD",
    "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU", "SIGXFSZ",
    "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS",
)
# fmt: on
_SIGRTMIN: Final = 34  # the kernel's is 32; the C library keeps two for its threads (nptl(7))
_SIGRTMAX: Final = 64

_NUMBERS: Final = {
    **{name: number for number, name in enumerate(_SIGNALS, 1)},
    **{f"SIGRTMIN+{number - _SIGRTMIN}": number for number in range(_SIGRTMIN + 1, _SIGRTMAX)},
    "SIGRTMIN": _SIGRTMIN,
    "SIGRTMAX": _SIGRTMAX,
}
_NAMES: Final = {number: name for name, number in _NUMBERS.items()}


def signal_name(number: int) -> str:
    """Return what the ``end`` record and the Close reason call a signal (signal(7)).

    ``SIGKILL``; for real-time signals ``SIGRTMIN``, ``SIGRTMIN+3`` ... ``SIGRTMAX``; ``signal 32``
    for a number that has no name.
    """
    return _NAMES.get(number, f"signal {number}")


def signal_number(name: str) -> int | None:
    """Return the number of a signal by its name, None when there is no such name."""
    return _NUMBERS.get(name)


class Phase(enum.Enum):
    """Where the daemon is; the names are what ``/readyz`` answers."""

    STARTING = "starting"
    SERVING = "ready"
    DRAINING = "draining"


def readiness(phase: Phase, live: int, max_runs: int) -> tuple[int, dict[str, object]]:
    """Return the status and the body of ``/readyz``.

    A daemon that is full is still ready: it answers 503 to new runs itself, and one that was taken
    out of service could not be reached for the runs it has.

    Args:
        phase: the daemon's.
        live: how many runs count towards ``max_runs``.
        max_runs: ``--max-runs``.
    """
    body: dict[str, object] = {"status": phase.value}
    if phase is not Phase.SERVING:
        return 503, body
    if live >= max_runs:
        body["full"] = True
    return 200, body


def diagram() -> str:
    """Return the table as a Mermaid state diagram: a line a transition, no newline at the end."""
    lines = ["stateDiagram-v2", f"    [*] --> {INITIAL.value}"]
    for (state, event), after in TRANSITIONS.items():
        lines.append(f"    {state.value} --> {after.value}: {event.value}")
    lines.append(f"    {State.ENDED.value} --> [*]")
    return "\n".join(lines)
