"""The command line: one function a command, exceptions to exit statuses (CONTRACT.md section 1).

Invariant: whatever goes wrong, stderr gets one line that begins ``agentd:`` and the status is the
documented one.  It refuses to know how anything is done, and imports a command's rooms when that
command runs: ``agentd health`` and ``agentd --version`` start without Trio.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from agentd import PROTOCOL, AgentdError, __version__
from agentd.sources import UsageError

EX_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EX_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``agentd`` with ``argv``, by default the process's own; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    failure = COMMANDS[name].failure if name in COMMANDS else 1
    try:
        status = _dispatch(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return EX_BROKEN_PIPE
    except AgentdError as error:
        _complain(str(error))
        return _status(name, error, failure)
    except OSError as error:
        if name == "serve":
            raise
        _forget_stdout()
        where = f" {error.filename}" if isinstance(error.filename, str) else ""
        _complain(f"cannot {name if name in COMMANDS else 'write'}:{where} {error.strerror}")
        return failure
    return status


def _status(name: str, error: AgentdError, failure: int) -> int:
    if name == "serve":
        return int(getattr(error, "exit_status", failure))
    # 2 could be the status of a run, which is what `stream` exits with.
    return 2 if isinstance(error, UsageError) and name != "stream" else failure


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments:
        raise UsageError("cannot do anything without a command (see agentd -h)")
    name, *rest = arguments
    if name in ("-h", "--help"):
        _say(_help())
        return 0
    if name == "--version":
        _say(version())
        return 0
    if name not in COMMANDS:
        raise UsageError("cannot understand the command line: unknown command (see agentd -h)")
    try:
        return COMMANDS[name].run(rest)
    except SystemExit as stop:  # argparse after -h
        return stop.code if isinstance(stop.code, int) else 0


def version() -> str:
    """Version, protocol, build, Python and platform on one line."""
    from agentd.build import build_id

    python = ".".join(str(number) for number in sys.version_info[:3])
    return (
        f"agentd {__version__} protocol {PROTOCOL} build {build_id()} "
        f"python {python} {sys.platform}-{os.uname().machine}"
    )


def _serve(arguments: Sequence[str]) -> int:
    import logging

    from agentd import logs, settings

    loaded = settings.load(arguments, os.environ)
    logs.configure(loaded.log, os.environ)
    logger = logging.getLogger("agentd")
    for warning in loaded.warnings:
        logger.warning(warning)
    from agentd.daemon import serve

    return serve(loaded, os.environ)


def _health(arguments: Sequence[str]) -> int:
    from agentd.health import health

    health(arguments, os.environ)
    return 0


def _submit(arguments: Sequence[str]) -> int:
    import json

    from agentd.commandline import CommandLine
    from agentd.options import OPTIONS
    from agentd.sansio.context import parse_context
    from agentd.sources import resolve
    from agentd.submit import submit

    parser = CommandLine(
        "agentd submit",
        description="Writes a context file the right way and prints its path: mode 0600, complete\n"
        "before it has its name; as root it belongs to the directory's owner.",
        epilog="Exit status: 0 written, 1 cannot write, 2 bad usage.",
    )
    parser.add_argument("--context", metavar="PATH", help="as for serve (or AGENTD_CONTEXT)")
    parser.add_argument("--prompt", metavar="TEXT", help="what to ask; - reads it from stdin")
    parser.add_argument(
        "--env", metavar="K=V", action="append", default=[],
        help="a variable for the command; K alone takes its value from here, which keeps it out "
        "of the process list; repeatable",
    )  # fmt: skip
    parser.add_argument("--id", help="of the run (default: made up)")
    given = parser.parse(arguments)
    option = next(option for option in OPTIONS if option.name == "context")
    flags = {} if given.context is None else {"context": given.context}
    path = resolve(option, flags, os.environ, {}).value
    context: dict[str, object] = {"prompt": _prompt(given.prompt), "env": _variables(given.env)}
    if given.id is not None:
        context["id"] = given.id
    # The daemon would refuse it too, but could not tell who wrote it.
    parse_context(json.dumps(context, ensure_ascii=False).encode(errors="surrogatepass"))
    _say(submit(str(path), context))
    return 0


def _prompt(given: str | None) -> str:
    if given != "-":
        return given or ""
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass  # raised below, where the error does not carry the prompt
    raise AgentdError("cannot read --prompt -: stdin is not UTF-8")


def _variables(given: Sequence[str]) -> Mapping[str, str]:
    variables = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not name:
            raise UsageError("cannot use --env: must be NAME=VALUE or NAME")
        if not equals:
            if name not in os.environ:
                raise AgentdError(f"cannot use --env {name}: there is no such variable here")
            value = os.environ[name]
        variables[name] = value
    return variables


def _stream(arguments: Sequence[str]) -> int:
    from agentd.commandline import CommandLine

    parser = CommandLine(
        "agentd stream",
        description="Connects to a run: its stdout to stdout, its stderr to stderr, line by line.",
        epilog="Exit status: the run's own (its exit code, 128 + signal), 124 timed out, 130\n"
        "cancelled, 127 command not found, 126 not executable, 125 anything else.",
    )
    parser.add_argument("url", metavar="URL", help="ws://HOST:PORT/, perhaps with ?run=ID")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--token", metavar="T", help="who we are; shows in the process list")
    source.add_argument("--token-file", metavar="F", help="a file with the token")
    parser.add_argument("--json", action="store_true", help="print the records as they come")
    given = parser.parse(arguments)
    from agentd.stream import stream_command

    return stream_command(
        given.url, token=given.token, token_file=given.token_file, json_output=given.json
    )


def _token(arguments: Sequence[str]) -> int:
    from agentd.commandline import CommandLine
    from agentd.values import seconds

    parser = CommandLine(
        "agentd token",
        description="Mints a token for one connection and prints it.",
        epilog="Exit status: 0 minted, 1 cannot, 2 bad usage.",
    )
    parser.add_argument("--key", metavar="FILE", required=True, help="the private key")
    parser.add_argument("--ttl", metavar="S", default="60", help="seconds it is good for (60)")
    parser.add_argument("--run", metavar="ID", help="good for this run only")
    parser.add_argument("--sub", metavar="S", help="whom it is for")
    parser.add_argument("--context", action="store_true", help="may bring a context")
    parser.add_argument("--audience", metavar="A", help="as --jwt-audience of serve")
    parser.add_argument("--issuer", metavar="I", help="as --jwt-issuer of serve")
    given = parser.parse(arguments)
    try:
        ttl = float(str(seconds(1).read(given.ttl)))
    except ValueError as error:
        raise UsageError(f"cannot use --ttl: {error}") from None
    from agentd.keys import mint_from_file

    token = mint_from_file(
        given.key,
        ttl=ttl,
        run=given.run,
        sub=given.sub,
        context=given.context,
        audience=given.audience,
        issuer=given.issuer,
    )
    _say(token)
    return 0


def _keygen(arguments: Sequence[str]) -> int:
    from agentd.commandline import CommandLine

    parser = CommandLine(
        "agentd keygen",
        description="Makes an Ed25519 pair in DIR and prints the paths: private key, public key.",
        epilog="Exit status: 0 made, 1 cannot (it replaces nothing), 2 bad usage.",
    )
    parser.add_argument("directory", metavar="DIR")
    given = parser.parse(arguments)
    from agentd.keys import generate_pair

    _say("\n".join(generate_pair(given.directory)))
    return 0


def _demo(arguments: Sequence[str]) -> int:
    from agentd.commandline import CommandLine

    CommandLine(
        "agentd demo",
        description="Everything at once on loopback, with throw-away keys: serve, submit, stream.\n"
        "Prints each line with the time it took, and the end record.",
        epilog="Exit status: 0 when all lines came one by one.",
    ).parse(arguments)
    from agentd.demo import demo

    return demo()


class Command(NamedTuple):
    """``failure`` is the exit status for what is no usage error and has no status of its own."""

    run: Callable[[Sequence[str]], int]
    summary: str
    failure: int = 1


COMMANDS = {
    "serve": Command(_serve, "the daemon", 78),  # EX_CONFIG, sysexits.h
    "health": Command(_health, "one probe, for HEALTHCHECK and exec probes"),
    "submit": Command(_submit, "write a context file the right way"),
    "stream": Command(_stream, "a client: a run's output here, its exit status as ours", 125),
    "token": Command(_token, "mint a token"),
    "keygen": Command(_keygen, "make an Ed25519 pair"),
    "demo": Command(_demo, "everything at once on loopback"),
}


def _help() -> str:
    from agentd.settings import SERVE_HELP

    lines = [f"  {name:8} {command.summary}" for name, command in COMMANDS.items()]
    usage = ["usage: agentd COMMAND ...", "       agentd --version"]
    return "\n".join([*usage, "", SERVE_HELP, *lines, "", "agentd COMMAND -h tells more."])


def _say(text: str) -> None:
    if sys.stdout is None:
        raise AgentdError("cannot write: stdout is closed")
    # A path need not be text; it goes out as it came in.
    sys.stdout.buffer.write(os.fsencode(text) + b"\n")


def _forget_stdout() -> None:
    """What is left in the buffer cannot be written and must not complain again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _complain(sentence: str) -> None:
    """One line, whatever was in a path or a flag."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence)
    try:
        os.write(2, f"agentd: {line}\n".encode())
    except OSError:
        pass  # nobody to tell
