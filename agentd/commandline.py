"""argparse as agentd's commands use it: no abbreviations, and errors that keep secrets.

Invariant: a complaint names an option and never repeats what was given to it, so that a mistyped
``--tokn SECRET`` does not end in a log.  It refuses to know any command's options.
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import NoReturn

from agentd.sources import UsageError


class CommandLine(ArgumentParser):
    """argparse, with errors as UsageError, and never more of an unknown argument than its name."""

    def __init__(
        self, prog: str, *, description: str, usage: str | None = None, epilog: str | None = None
    ) -> None:
        super().__init__(
            prog,
            usage,
            description,
            epilog,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        about, ignored, _ = message.partition(": ignored explicit argument")
        if ignored:
            message = f"{about} takes no value"
        raise UsageError(f"cannot understand the command line: {message} (see {self.prog} -h)")

    def parse(self, arguments: Sequence[str], hint: str = "") -> Namespace:
        """Like ``parse_args``, which would repeat unknown arguments whole: `--tokn SECRET`."""
        namespace, unknown = self.parse_known_args(arguments)
        flags = [argument.partition("=")[0] for argument in unknown if argument.startswith("--")]
        if flags:
            self.error(f"unknown option {flags[0]}")
        if unknown:
            self.error(f"an argument that belongs to no option{hint}")
        return namespace
