"""Children of the test process itself, ended with the test."""

from collections.abc import AsyncIterator

import pytest
import trio

from agentd import linux
from agentd.process import Children


@pytest.fixture
async def children(nursery: trio.Nursery) -> AsyncIterator[Children]:
    """Children with their reaper running; what a test leaves behind is killed after it."""
    family = Children()
    await nursery.start(family.reap_orphans)
    yield family
    for process in list(family._processes.values()):
        await process.kill_tree()
        process.close()
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 0)
