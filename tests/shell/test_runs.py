"""agentd.runs: which context meets which client, and who is turned away."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from agentd.metrics import Metrics
from agentd.runs import CAPACITY, REMEMBERED, NoRun, Runs
from agentd.sansio.context import Context, ContextError
from agentd.sansio.lifecycle import Outcome

WAIT = 5.0
TTL = 60.0


@dataclass
class FakeRun:
    """A run without a process: it ends when it is stopped, or after `lasts` seconds."""

    id: str
    lasts: float = 0
    fault: BaseException | None = None
    stopped: Outcome | None = None
    hurried: bool = False
    finished: trio.Event = field(default_factory=trio.Event)
    stopping: trio.Event = field(default_factory=trio.Event)

    async def supervise(self, context: Context, sink: object, *, records: bool) -> None:
        with trio.move_on_after(self.lasts):
            await self.stopping.wait()
        if self.fault is not None:
            raise self.fault

    def stop(self, why: Outcome) -> None:
        self.stopped = why
        self.stopping.set()

    def hurry(self) -> None:
        self.hurried = True


def context(run_id: str | None) -> Context:
    return Context(id=run_id, prompt="", env={}, timeout=None, args=(), cwd=None, document=b"{}\n")


def make_runs(*, max_runs: int = 8, make: Callable[[str], Any] = FakeRun) -> tuple[Runs, Metrics]:
    metrics = Metrics()

    runs = Runs(make, max_runs=max_runs, context_wait=WAIT, context_ttl=TTL, metrics=metrics)
    return runs, metrics


async def refused(runs: Runs, wanted: str | None) -> int:
    with pytest.raises(NoRun) as none:
        await runs.claim(wanted)
    return none.value.status


async def test_the_oldest_context_goes_to_a_client_that_names_none(autojump_clock: object) -> None:
    """Contexts are served first come, first served."""
    runs, _ = make_runs()
    for name in ("a", "b", "c"):
        runs.add(context(name))

    assert (await runs.claim("b")).id == "b"
    assert (await runs.claim(None)).id == "a"
    assert (await runs.claim(None)).id == "c"
    assert sorted(runs.live) == ["a", "b", "c"]


async def test_a_context_without_an_id_gets_one(autojump_clock: object) -> None:
    """A run always has a name."""
    runs, _ = make_runs()
    runs.add(context(None))
    runs.add(context(None))

    first, second = await runs.claim(None), await runs.claim(None)
    assert first.id != second.id
    assert first.id


async def test_a_client_waits_for_its_context(autojump_clock: object) -> None:
    """A client that comes first gets the context the moment it is there."""
    runs, _ = make_runs()
    got: dict[str, str] = {}

    async def client(name: str, wanted: str | None) -> None:
        got[name] = (await runs.claim(wanted)).id

    async with trio.open_nursery() as nursery:
        for name, wanted in (("first", None), ("second", None), ("named", "x")):
            nursery.start_soon(client, name, wanted)
            await trio.sleep(0.1)
        for name in ("y", "x", "z"):
            runs.add(context(name))

    assert got == {"first": "y", "named": "x", "second": "z"}


async def test_without_a_context_a_client_is_told_404_in_time(autojump_clock: object) -> None:
    """No context in --context-wait is 404."""
    runs, _ = make_runs()
    started = trio.current_time()

    assert await refused(runs, None) == 404
    assert trio.current_time() - started == pytest.approx(WAIT)
    assert await refused(runs, "x") == 404


async def test_an_id_is_taken_while_it_waits_lives_or_has_just_ended(
    autojump_clock: object,
) -> None:
    """A second context of the same id is a bad file for a minute after the run."""
    runs, _ = make_runs()
    runs.add(context("a"))
    with pytest.raises(ContextError, match="id"):
        runs.add(context("a"))
    run = await runs.claim("a")
    with pytest.raises(ContextError, match="id"):
        runs.add(context("a"))
    assert await refused(runs, "a") == 409
    await runs.supervise(run, None, records=True)  # type: ignore[arg-type]
    with pytest.raises(ContextError, match="id"):
        runs.add(context("a"))
    assert await refused(runs, "a") == 409

    await trio.sleep(REMEMBERED + 0.1)
    runs.add(context("a"))
    assert (await runs.claim("a")).id == "a"


async def test_more_runs_than_may_live_are_503(autojump_clock: object) -> None:
    """At --max-runs new clients are turned away, and the context stays for a later one."""
    runs, _ = make_runs(max_runs=1)
    runs.add(context("a"))
    runs.add(context("b"))
    run = await runs.claim(None)

    assert runs.full
    assert await refused(runs, None) == 503
    await runs.supervise(run, None, records=True)  # type: ignore[arg-type]
    assert (await runs.claim(None)).id == "b"


async def test_a_waiting_client_is_503_when_the_last_place_is_taken(
    autojump_clock: object,
) -> None:
    """Two clients wait, one place is left: the second is told that it is full."""
    runs, _ = make_runs(max_runs=1)
    statuses: list[int | str] = []

    async def client() -> None:
        try:
            statuses.append((await runs.claim(None)).id)
        except NoRun as none:
            statuses.append(none.status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client)
        nursery.start_soon(client)
        await trio.sleep(0.1)
        runs.add(context("a"))
        runs.add(context("b"))

    assert sorted(statuses, key=str) == [503, "a"]
    assert runs.waiting == 1


async def test_a_context_expires_without_a_client(autojump_clock: object) -> None:
    """After --context-ttl the secret is dropped, and nobody can start it any more."""
    runs, metrics = make_runs()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runs.expire)
        runs.add(context("a"))
        await trio.sleep(TTL / 2)
        runs.add(context("b"))
        await trio.sleep(TTL / 2 + 1)
        assert runs.waiting == 1
        assert (await runs.claim(None)).id == "b"
        assert await refused(runs, "a") == 404
        nursery.cancel_scope.cancel()

    assert metrics.contexts["expired"] == 1


async def test_a_context_given_back_is_the_oldest_again(autojump_clock: object) -> None:
    """A client that vanished before its 101 costs the context nothing but time."""
    runs, _ = make_runs()
    runs.add(context("a"))
    runs.add(context("b"))
    run = await runs.claim(None)
    runs.give_back(run)

    assert not runs.live
    assert (await runs.claim(None)).id == "a"


async def test_a_client_that_leaves_while_it_waits_takes_nothing(autojump_clock: object) -> None:
    """A cancelled wait leaves the context to the next client, even in the same instant."""
    runs, _ = make_runs()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runs.claim, None)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        runs.add(context("a"))

    assert not runs.live
    assert (await runs.claim(None)).id == "a"


async def test_room_shrinks_as_contexts_wait(autojump_clock: object) -> None:
    """At most 64 contexts wait; room comes back when one is taken."""
    runs, _ = make_runs()
    for number in range(CAPACITY):
        runs.add(context(str(number)))
    assert runs.room() == 0
    with trio.move_on_after(1) as blocked:
        await runs.wait_room()
    assert blocked.cancelled_caught

    async with trio.open_nursery() as nursery:
        nursery.start_soon(runs.wait_room)
        await trio.testing.wait_all_tasks_blocked()
        await runs.claim(None)
    assert runs.room() == 1


async def test_a_fault_in_a_run_stays_in_it(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exception ends one run, is logged without its text, and frees the place."""
    runs, _ = make_runs(make=lambda name: FakeRun(name, fault=ValueError("canary")))
    runs.add(context("a"))
    run = await runs.claim("a")
    await runs.supervise(run, None, records=True)  # type: ignore[arg-type]

    assert not runs.live
    assert run.finished.is_set()
    assert "ValueError" in caplog.text
    assert "canary" not in caplog.text


async def test_draining_stops_everything_and_takes_nothing(autojump_clock: object) -> None:
    """From SIGTERM on: waiting clients 503, contexts dropped, runs stopped with shutdown."""
    made: list[FakeRun] = []

    def make(name: str) -> FakeRun:
        made.append(FakeRun(name, lasts=1000))
        return made[-1]

    runs, _ = make_runs(make=make)
    statuses: list[int] = []

    async def client() -> None:
        statuses.append(await refused(runs, "other"))

    async with trio.open_nursery() as nursery:
        runs.add(context("a"))
        run = await runs.claim("a")
        runs.add(context("b"))

        async def supervise() -> None:
            await runs.supervise(run, None, records=True)  # type: ignore[arg-type]

        nursery.start_soon(supervise)
        nursery.start_soon(client)
        await trio.sleep(0.1)
        runs.drain()
        runs.hurry()
        await runs.wait_none_live()

    assert statuses == [503]
    assert made[0].stopped is Outcome.SHUTDOWN
    assert made[0].hurried
    assert runs.waiting == 0
    assert runs.room() == 0
    assert await refused(runs, None) == 503
