"""The life of a run: its table, its ends, and the health that follows from where the daemon is."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import AgentdError
from agentd.sansio import lifecycle
from agentd.sansio.lifecycle import (
    INITIAL,
    TRANSITIONS,
    End,
    Event,
    InvalidTransition,
    Outcome,
    Phase,
    State,
    advance,
    close_code,
    diagram,
    outcome,
    readiness,
    signal_name,
    signal_number,
)

EVENTS = st.lists(st.sampled_from(Event), max_size=30)


def follow(*events: Event) -> State:
    """Take a new run through `events`."""
    state = INITIAL
    for event in events:
        state = advance(state, event)
    return state


def end(
    outcome: Outcome,
    *,
    exit_code: int | None = None,
    signal: str | None = None,
    error: str | None = None,
) -> End:
    """An end of a run that printed nothing."""
    return End(
        outcome=outcome,
        exit_code=exit_code,
        signal=signal,
        error=error,
        stdout_lines=0,
        stderr_lines=0,
        stdout_bytes=0,
        stdout_sha256="e3b0c442",
        seconds=0.5,
    )


# The table.


def test_run_that_ends_by_itself() -> None:
    """A run whose leader exits is drained before it has ended."""
    assert follow(Event.CONNECTED) is State.STARTING
    assert follow(Event.CONNECTED, Event.SPAWNED) is State.RUNNING
    assert follow(Event.CONNECTED, Event.SPAWNED, Event.EXITED) is State.DRAINING
    assert follow(Event.CONNECTED, Event.SPAWNED, Event.EXITED, Event.DRAINED) is State.ENDED


def test_run_that_is_stopped() -> None:
    """A run that is stopped, even twice, ends only when its leader has exited and it is drained."""
    stopping = (Event.CONNECTED, Event.SPAWNED, Event.STOPPED, Event.STOPPED)
    assert follow(*stopping) is State.STOPPING
    assert follow(*stopping, Event.EXITED, Event.STOPPED) is State.DRAINING
    assert follow(*stopping, Event.EXITED, Event.STOPPED, Event.DRAINED) is State.ENDED


@pytest.mark.parametrize(
    "events",
    [
        (Event.EXPIRED,),
        (Event.STOPPED,),
        (Event.CONNECTED, Event.SPAWN_FAILED),
    ],
)
def test_run_that_never_starts(events: tuple[Event, ...]) -> None:
    """A context nobody came for, a shutdown and a spawn that fails end a run with no process."""
    assert follow(*events) is State.ENDED


@given(EVENTS)
def test_no_event_leaves_the_table(events: list[Event]) -> None:
    """Whatever happens in whatever order, a run is in a listed state or the event is refused."""
    state = INITIAL
    for event in events:
        listed = TRANSITIONS.get((state, event))
        if listed is None:
            with pytest.raises(InvalidTransition):
                advance(state, event)
        else:
            state = advance(state, event)
            assert state is listed


@given(EVENTS)
def test_a_run_starts_one_process_at_most(events: list[Event]) -> None:
    """No order of events spawns a second process or exits a second time."""
    state, taken = INITIAL, []
    for event in events:
        try:
            state = advance(state, event)
        except InvalidTransition:
            continue
        taken.append(event)
    assert taken.count(Event.SPAWNED) <= 1
    assert taken.count(Event.EXITED) <= taken.count(Event.SPAWNED)
    assert taken.count(Event.DRAINED) <= taken.count(Event.EXITED)


def test_every_state_can_be_reached() -> None:
    """The table has no state that nothing leads to."""
    reached = {INITIAL}
    for _ in State:
        reached |= {after for (state, _), after in TRANSITIONS.items() if state in reached}
    assert reached == set(State)


def test_every_state_leads_to_the_end() -> None:
    """The table has no state that a run could stay in for ever."""
    ending = {State.ENDED}
    for _ in State:
        ending |= {state for (state, _), after in TRANSITIONS.items() if after in ending}
    assert ending == set(State)


def test_every_event_has_a_place() -> None:
    """No event is in the vocabulary that cannot happen."""
    assert {event for _, event in TRANSITIONS} == set(Event)


@pytest.mark.parametrize("event", Event)
def test_ended_is_final(event: Event) -> None:
    """Nothing happens to a run that has ended."""
    with pytest.raises(InvalidTransition):
        advance(State.ENDED, event)


@pytest.mark.parametrize(
    "state", [State.WAITING, State.RUNNING, State.STOPPING, State.DRAINING], ids=str
)
def test_a_stop_is_always_allowed(state: State) -> None:
    """Every state that lasts has a place for a stop, so that a shutdown need not ask first."""
    assert (state, Event.STOPPED) in TRANSITIONS


def test_a_refused_event_is_named() -> None:
    """The error of an event that cannot happen names the state and the event."""
    with pytest.raises(AgentdError, match=r"a run that is waiting .* 'exited'") as caught:
        advance(State.WAITING, Event.EXITED)
    assert caught.value.__suppress_context__


# The end.


@pytest.mark.parametrize(
    ("stop", "exit_code", "signal_", "expected"),
    [
        (None, 0, None, Outcome.EXITED),
        (None, 3, None, Outcome.EXITED),
        (None, None, "SIGSEGV", Outcome.SIGNALED),
        (None, None, None, Outcome.SPAWN_FAILED),
        (Outcome.TIMED_OUT, None, "SIGTERM", Outcome.TIMED_OUT),
        (Outcome.CANCELLED, 0, None, Outcome.CANCELLED),
        (Outcome.SHUTDOWN, None, "SIGKILL", Outcome.SHUTDOWN),
        (Outcome.SHUTDOWN, None, None, Outcome.SHUTDOWN),
    ],
)
def test_outcome(
    stop: Outcome | None, exit_code: int | None, signal_: str | None, expected: Outcome
) -> None:
    """A reason to stop wins over the status; without one the status says how it ended."""
    assert outcome(stop, exit_code, signal_) is expected


def test_outcomes_are_the_words_of_the_record() -> None:
    """The end record has these six outcomes, and an Outcome is its own word."""
    assert [str(each) for each in Outcome] == [
        "exited",
        "signaled",
        "timed_out",
        "cancelled",
        "spawn_failed",
        "shutdown",
    ]


@pytest.mark.parametrize(
    ("ended", "code", "reason"),
    [
        (end(Outcome.EXITED, exit_code=0), 1000, "exit 0"),
        (end(Outcome.EXITED, exit_code=3), 4000, "exit 3"),
        (end(Outcome.EXITED, exit_code=255), 4000, "exit 255"),
        (end(Outcome.SIGNALED, signal="SIGKILL"), 4001, "SIGKILL"),
        (end(Outcome.SIGNALED, signal="SIGRTMIN+3"), 4001, "SIGRTMIN+3"),
        (end(Outcome.SPAWN_FAILED, error="not_found"), 4002, "not found"),
        (end(Outcome.SPAWN_FAILED, error="not_executable"), 4002, "not executable"),
        (end(Outcome.SPAWN_FAILED, error="bad_cwd"), 4002, "bad working directory"),
        (
            end(Outcome.SPAWN_FAILED, error="too_big"),
            4002,
            "arguments and environment too big",
        ),
        (end(Outcome.SPAWN_FAILED, error="other"), 4002, "cannot start"),
        (end(Outcome.SPAWN_FAILED), 4002, "cannot start"),
        (end(Outcome.TIMED_OUT, signal="SIGTERM"), 4003, "timed out"),
        (end(Outcome.CANCELLED, exit_code=0), 4004, "cancelled"),
        (end(Outcome.SHUTDOWN, exit_code=143), 1001, "shutting down"),
    ],
)
def test_close_code(ended: End, code: int, reason: str) -> None:
    """Each end has its close code, and a reason that says it in words."""
    assert close_code(ended) == (code, reason)


@given(
    st.sampled_from(Outcome),
    st.none() | st.integers(0, 255),
    st.none() | st.integers(1, 64).map(signal_name),
    st.none() | st.sampled_from(["not_found", "not_executable", "bad_cwd", "too_big", "other"]),
)
def test_close_reason_fits(
    kind: Outcome, exit_code: int | None, signal_: str | None, error: str | None
) -> None:
    """Every close code may be sent, and every reason fits into a control frame (RFC 6455 5.5)."""
    code, reason = close_code(end(kind, exit_code=exit_code, signal=signal_, error=error))
    assert code in (1000, 1001) or 4000 <= code <= 4999
    assert 0 < len(reason.encode()) <= 123


def test_only_exit_0_is_normal() -> None:
    """Close 1000 means that the command succeeded and nothing else."""
    for kind in Outcome:
        for exit_code in range(256):
            normal = close_code(end(kind, exit_code=exit_code))[0] == lifecycle.NORMAL
            assert normal == (kind is Outcome.EXITED and exit_code == 0)


def test_close_codes_of_the_contract() -> None:
    """The close codes have the numbers that clients were promised."""
    assert {
        "NORMAL": lifecycle.NORMAL,
        "GOING_AWAY": lifecycle.GOING_AWAY,
        "FAULT": lifecycle.FAULT,
        "EXITED": lifecycle.EXITED,
        "SIGNALED": lifecycle.SIGNALED,
        "CANNOT_START": lifecycle.CANNOT_START,
        "TIMED_OUT": lifecycle.TIMED_OUT,
        "CANCELLED": lifecycle.CANCELLED,
        "TOO_SLOW": lifecycle.TOO_SLOW,
        "DISPLACED": lifecycle.DISPLACED,
        "BAD_RECORD": lifecycle.BAD_RECORD,
    } == {
        "NORMAL": 1000,
        "GOING_AWAY": 1001,
        "FAULT": 1011,
        "EXITED": 4000,
        "SIGNALED": 4001,
        "CANNOT_START": 4002,
        "TIMED_OUT": 4003,
        "CANCELLED": 4004,
        "TOO_SLOW": 4008,
        "DISPLACED": 4009,
        "BAD_RECORD": 4400,
    }


# Signals.


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "SIGHUP"),
        (9, "SIGKILL"),
        (15, "SIGTERM"),
        (signal.SIGRTMIN, "SIGRTMIN"),
        (signal.SIGRTMIN + 3, "SIGRTMIN+3"),
        (signal.SIGRTMAX, "SIGRTMAX"),
        (signal.SIGRTMIN - 1, f"signal {signal.SIGRTMIN - 1}"),
        (0, "signal 0"),
        (65, "signal 65"),
        (200, "signal 200"),
    ],
)
def test_signal_name(number: int, name: str) -> None:
    """A signal has the name of signal(7), a real-time one its distance, any other its number."""
    assert signal_name(number) == name


@pytest.mark.parametrize("known", signal.Signals)
def test_signals_of_this_machine(known: signal.Signals) -> None:
    """The table has the names and the numbers that the system has."""
    assert signal_name(known) == known.name
    assert signal_number(known.name) == known


@given(st.integers(1, 64))
def test_signal_number_reads_what_signal_name_wrote(number: int) -> None:
    """A signal's name leads back to its number; a signal that has no name has no way back."""
    name = signal_name(number)
    assert signal_number(name) == (number if name.startswith("SIG") else None)


@given(st.text() | st.sampled_from(["KILL", "sigkill", "9", "SIGRTMIN+99", "SIG", "signal 9", ""]))
def test_signal_number_of_any_text(text: str) -> None:
    """Text that names no signal gives None and never an error."""
    number = signal_number(text)
    assert number is None or signal_name(number) == text


# Health.


@pytest.mark.parametrize(
    ("phase", "live", "status", "body"),
    [
        (Phase.STARTING, 0, 503, {"status": "starting"}),
        (Phase.SERVING, 0, 200, {"status": "ready"}),
        (Phase.SERVING, 7, 200, {"status": "ready"}),
        (Phase.SERVING, 8, 200, {"status": "ready", "full": True}),
        (Phase.SERVING, 9, 200, {"status": "ready", "full": True}),
        (Phase.DRAINING, 8, 503, {"status": "draining"}),
    ],
)
def test_readiness(phase: Phase, live: int, status: int, body: dict[str, object]) -> None:
    """The daemon is ready while it serves, also when it is full, and says which it is."""
    assert readiness(phase, live, 8) == (status, body)


# The diagram.


def test_diagram_is_the_table() -> None:
    """The diagram has one line for each transition, a beginning and an end, and nothing more."""
    header, *lines = diagram().splitlines()
    assert header == "stateDiagram-v2"
    expected = [
        f"{state.value} --> {after.value}: {event.value}"
        for (state, event), after in TRANSITIONS.items()
    ]
    assert [line.strip() for line in lines] == [
        "[*] --> waiting",
        *expected,
        "ended --> [*]",
    ]
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("state", State)
def test_states_are_mermaid_identifiers(state: State) -> None:
    """A state's name can stand in the diagram without an alias."""
    assert state.value.isidentifier()
    assert state.value != "end"
