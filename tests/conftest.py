"""What every tier shares: the verbs in ``tests/testing`` are importable as ``testing``."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("agentd", deadline=None)
hypothesis.settings.load_profile("agentd")

CI = os.environ.get("CI") == "true"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a skipped test is a failure: CI installs what the tests need."""
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if CI and exitstatus == 0 and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
