"""Programs of other people that some tests need: without one a test says so and is skipped.

CI installs them all, and counts a skipped test as a failure.
"""

import shutil
from pathlib import Path

import pytest

CLIENTS = Path(__file__).resolve().parents[1] / "clients"

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
needs_ws = pytest.mark.skipif(
    shutil.which("node") is None or not (CLIENTS / "node_modules" / "ws").is_dir(),
    reason="needs node, and npm ci --prefix tests/clients",
)
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


def need(program: str) -> str:
    """Return the path of ``program``, or skip the test."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs {program}")
    return found
