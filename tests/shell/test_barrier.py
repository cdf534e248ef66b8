"""agentd.barrier: a fault ends one thing, is logged by its place, and tells no secret."""

import logging

import pytest
import trio

from agentd.barrier import barrier

logger = logging.getLogger("agentd.test")


def fail(error: Exception) -> None:
    raise error


def test_a_fault_is_logged_by_kind_and_place_and_goes_no_further(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says what and where, and never the text, which may quote a secret."""
    with barrier(logger, "connection"):
        fail(ValueError("canary"))

    assert "connection failed: ValueError at fail:" in caplog.text
    assert "canary" not in caplog.text
    assert caplog.records[0].exc_info is None


def test_each_fault_of_a_group_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A nursery's faults come as a group; each of them is told."""
    with barrier(logger, "run"):
        fail(ExceptionGroup("canary", [ValueError("canary"), KeyError("canary")]))

    assert "ValueError at" in caplog.text
    assert "KeyError at" in caplog.text
    assert "canary" not in caplog.text


async def test_cancellation_passes() -> None:
    """A cancelled task ends; the barrier does not keep it alive."""
    with trio.CancelScope() as scope:
        scope.cancel()
        with barrier(logger, "connection"):
            await trio.sleep_forever()
        pytest.fail("the barrier swallowed a cancellation")

    assert scope.cancelled_caught


def test_without_a_fault_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The usual case is silent."""
    with barrier(logger, "connection"):
        pass

    assert not caplog.records
