"""What the daemon counts, and the page that tells it.

Counting is adding to an integer: no lock, no library, nothing a hot path would notice.
prometheus_client is imported at the first scrape, writes the page and is told everything anew each
time; its global registry, with a view of the process that is not ours to publish, stays out of it.

No label holds anything from outside. Each is one of a handful of agentd's own words, or a status.
"""

from collections import Counter
from typing import TYPE_CHECKING

import agentd
from agentd.sansio.lifecycle import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

_STREAMS = ("stdout", "stderr")
_RESULTS = ("claimed", "refused", "expired")


class Metrics:
    """Counters from the start of the daemon on.

    Attributes:
        runs: ended runs by outcome.
        contexts: contexts by what became of them: ``claimed``, ``refused`` or ``expired``.
        responses: HTTP responses by status, the 101 of an upgrade among them.
        lines: lines read from the children, by stream.
        bytes: the same in bytes.
        connections: accepted connections, whatever they asked for.
        tokens_refused: requests answered 401.
    """

    def __init__(self) -> None:
        # What could be counted is there from the start, at 0: a rate needs a first value.
        self.runs = Counter(dict.fromkeys((outcome.value for outcome in Outcome), 0))
        self.contexts = Counter(dict.fromkeys(_RESULTS, 0))
        self.responses: Counter[int] = Counter()
        self.lines = Counter(dict.fromkeys(_STREAMS, 0))
        self.bytes = Counter(dict.fromkeys(_STREAMS, 0))
        self.connections = 0
        self.tokens_refused = 0

    def run_ended(self, outcome: str) -> None:
        """Count a run by its outcome."""
        self.runs[outcome] += 1

    def context(self, result: str) -> None:
        """Count a context that was ``claimed``, ``refused`` or has ``expired``."""
        self.contexts[result] += 1

    def responded(self, status: int) -> None:
        """Count an HTTP response."""
        self.responses[status] += 1

    def relayed(self, stream: str, lines: int, size: int) -> None:
        """Count what a child printed on ``stdout`` or ``stderr``: lines, and bytes in all."""
        self.lines[stream] += lines
        self.bytes[stream] += size

    def connected(self) -> None:
        """Count an accepted connection."""
        self.connections += 1

    def token_refused(self) -> None:
        """Count a request whose token was missing or no good."""
        self.tokens_refused += 1

    @staticmethod
    def prepare() -> None:
        """Import what :meth:`render` needs: a tenth of a second, the first time."""
        import prometheus_client.openmetrics.exposition  # noqa: F401  # kept by the interpreter

    def render(
        self, *, runs: int, contexts_waiting: int, clients: int, build: str
    ) -> tuple[bytes, str]:
        """Return the OpenMetrics page and its content type.

        Args:
            runs: how many are live.
            contexts_waiting: how many contexts wait for a client.
            clients: how many clients are connected to a stream.
            build: the id of the build.
        """
        from prometheus_client import CollectorRegistry
        from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

        gauges = {
            "agentd_runs_live": ("Runs that are live.", runs),
            "agentd_contexts_waiting": ("Contexts that wait for a client.", contexts_waiting),
            "agentd_clients": ("Clients that are connected to a stream.", clients),
        }
        families = [*self._families(gauges, build)]
        registry = CollectorRegistry()
        registry.register(_Snapshot(families))
        page: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]  # has no types
        return page, CONTENT_TYPE_LATEST

    def _families(self, gauges: dict[str, tuple[str, int]], build: str) -> "Iterator[Metric]":
        from prometheus_client.metrics_core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            InfoMetricFamily,
        )

        # OpenMetrics adds _total to the name of a counter and _info to that of an info.
        yield InfoMetricFamily(
            "agentd_build",
            "What is running.",
            value={"build": build, "version": agentd.__version__},
        )
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        for name, text, label, counts in (
            ("agentd_runs", "Runs that have ended.", "outcome", self.runs),
            ("agentd_contexts", "Contexts by what became of them.", "result", self.contexts),
            ("agentd_http_responses", "HTTP responses, upgrades included.", "code", self.responses),
            ("agentd_lines", "Lines read from the children.", "stream", self.lines),
            ("agentd_bytes", "Bytes read from the children.", "stream", self.bytes),
        ):
            family = CounterMetricFamily(name, text, labels=[label])
            for word, count in counts.items():
                family.add_metric([str(word)], count)
            yield family
        yield CounterMetricFamily(
            "agentd_connections", "Accepted connections.", value=self.connections
        )
        yield CounterMetricFamily(
            "agentd_tokens_refused", "Requests whose token was refused.", value=self.tokens_refused
        )


class _Snapshot:
    """The families of one scrape, in the shape that a registry asks for."""

    def __init__(self, families: "list[Metric]") -> None:
        self._families = families

    def collect(self) -> "list[Metric]":
        return self._families
