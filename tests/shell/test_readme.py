"""README.md shows what the code does, where it can be compared."""

import re
from pathlib import Path

from agentd.options import OPTIONS
from agentd.sansio.lifecycle import diagram

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_the_diagram_is_the_table() -> None:
    """The drawing in README.md is the one that lifecycle's table makes."""
    drawn = re.search(r"```mermaid\n(.*?)```", README, re.DOTALL)

    assert drawn is not None
    assert drawn[1].strip() == diagram().strip()


def test_every_option_that_is_named_exists() -> None:
    """README.md promises no option that the table does not have."""
    known = {option.flag for option in OPTIONS}
    others = {"--config", "--env", "--id", "--key", "--prompt", "--run", "--token"}

    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known | others
