"""Cover each pure module to the last branch by its own twin alone.

A module that is only covered by accident, from other tests, has no specification of its own.
Run with ``make coverage``.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PURE = ROOT / "agentd" / "sansio"
TWINS = ROOT / "tests" / "sansio"


def cover(module: Path, twin: Path, data: Path) -> str | None:
    """Run ``twin`` and return what it left uncovered in ``module``, or None."""
    environ = os.environ | {"COVERAGE_FILE": str(data / module.stem)}
    name = f"agentd.sansio.{module.stem}"
    run = [sys.executable, "-m", "coverage", "run", "--branch", f"--source={name}", "-m", "pytest"]
    tested = subprocess.run(  # our own tests
        [*run, "-q", "-x", str(twin)], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    if tested.returncode != 0:
        return tested.stdout
    report = subprocess.run(  # our own tests
        [sys.executable, "-m", "coverage", "report", "-m", "--fail-under=100"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )
    return None if report.returncode == 0 else report.stdout + report.stderr


def main() -> int:
    """Check every pure module; return how many fall short."""
    short = 0
    with tempfile.TemporaryDirectory() as folder:
        for module in sorted(PURE.glob("*.py")):
            if module.stem == "__init__":
                continue
            twin = TWINS / f"test_{module.stem}.py"
            fault = cover(module, twin, Path(folder)) if twin.exists() else f"{twin} is missing\n"
            sys.stdout.write(f"{'ok  ' if fault is None else 'FAIL'} {module.name}\n{fault or ''}")
            sys.stdout.flush()
            short += fault is not None
    return short


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
