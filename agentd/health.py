"""``agentd health``: one probe of the daemon, and a verdict.

Invariant: it ends within :data:`agentd.probe.TIMEOUT`, and imports no more than a probe needs: a
container's HEALTHCHECK starts it every few seconds.  It refuses to know exit statuses.
"""

from collections.abc import Mapping, Sequence

from agentd import AgentdError
from agentd.address import Address
from agentd.commandline import CommandLine
from agentd.probe import is_healthy, probe
from agentd.sources import UsageError, find_address


def health(arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Do what ``agentd health`` was told; returning means healthy.

    Raises UsageError, or another AgentdError that says why it is not healthy.
    """
    parser = CommandLine(
        "agentd health",
        description="Asks once how the daemon is, where `agentd serve` with the same environment\n"
        "and --config would listen, within 3 seconds.",
        epilog="Exit status: 0 healthy, 1 not, 2 bad usage.",
    )
    parser.add_argument("--ready", action="store_true", help="is it ready for clients?")
    parser.add_argument("--url", help="ask there: http://HOST:PORT or unix:PATH")
    parser.add_argument("--config", metavar="FILE", help="the daemon's TOML file")
    given = parser.parse(arguments)
    path = "/readyz" if given.ready else "/healthz"
    if given.url is None:
        address = find_address(given.config, environ)
    else:
        address = _address(given.url, path)
    status, body = probe(address.reachable(), path)
    if status != 200:
        raise AgentdError(f"not {'ready' if given.ready else 'healthy'}: {address} said {status}")
    if not given.ready and not is_healthy(body):
        raise AgentdError(f"not healthy: what answers on {address} is not agentd")


def _address(url: str, path: str) -> Address:
    """Where ``--url`` points; it may spell the path that is asked for anyway."""
    text = url
    if not url.startswith("unix:"):
        text, _, wanted = url.removeprefix("http://").partition("/")
        if not url.startswith("http://") or wanted not in ("", path[1:]):
            raise UsageError("cannot use --url: must be http://HOST:PORT or unix:PATH")
        if not text.rpartition(":")[2].isdigit():
            text += ":80"
    try:
        return Address.parse(text)
    except ValueError as error:
        trouble = f"cannot use --url: {error}"
    raise UsageError(trouble)
