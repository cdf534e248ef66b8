"""What the daemon counts, read back with a parser of OpenMetrics."""

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import agentd
from agentd.metrics import Metrics
from agentd.sansio.lifecycle import Outcome

if TYPE_CHECKING:
    from prometheus_client import Metric

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def families(text: str) -> "list[Metric]":
    """What the library's own parser, which is strict, finds on a page."""
    return list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]  # has no types


def page(metrics: Metrics, build: str = "b") -> str:
    """The page of a daemon with two runs, three contexts and one client."""
    body, _ = metrics.render(runs=2, contexts_waiting=3, clients=1, build=build)
    return body.decode()


def samples(metrics: Metrics, build: str = "b") -> Samples:
    """Every sample on the page, by name and labels; one that comes twice is a failure."""
    found: Samples = {}
    for family in families(page(metrics, build)):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample, None when it is not on the page."""
    return samples(metrics).get((name, frozenset(labels.items())))


def test_content_type() -> None:
    """The page is OpenMetrics 1.0, says so, and ends with the mark that it is whole."""
    body, content_type = Metrics().render(runs=0, contexts_waiting=0, clients=0, build="b")
    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert body.endswith(b"\n# EOF\n")
    assert body.count(b"# EOF") == 1


def test_families() -> None:
    """The page has these families, each once, and none about anything else."""
    assert {each.name: each.type for each in families(page(Metrics()))} == {
        "agentd_build": "info",
        "agentd_runs_live": "gauge",
        "agentd_contexts_waiting": "gauge",
        "agentd_clients": "gauge",
        "agentd_runs": "counter",
        "agentd_contexts": "counter",
        "agentd_http_responses": "counter",
        "agentd_lines": "counter",
        "agentd_bytes": "counter",
        "agentd_connections": "counter",
        "agentd_tokens_refused": "counter",
    }


def test_every_family_says_what_it_is() -> None:
    """Each family comes with a sentence."""
    for family in families(page(Metrics())):
        assert family.documentation.endswith("."), family.name


def test_a_new_daemon_counts_from_zero() -> None:
    """What could happen is there at 0 before it does, so that its rate has a beginning."""
    metrics = Metrics()
    for outcome in Outcome:
        assert value(metrics, "agentd_runs_total", outcome=outcome.value) == 0
    for result in ("claimed", "refused", "expired"):
        assert value(metrics, "agentd_contexts_total", result=result) == 0
    for stream in ("stdout", "stderr"):
        assert value(metrics, "agentd_lines_total", stream=stream) == 0
        assert value(metrics, "agentd_bytes_total", stream=stream) == 0
    assert value(metrics, "agentd_connections_total") == 0
    assert value(metrics, "agentd_tokens_refused_total") == 0


def test_gauges() -> None:
    """What is now is told as it was given."""
    metrics = Metrics()
    assert value(metrics, "agentd_runs_live") == 2
    assert value(metrics, "agentd_contexts_waiting") == 3
    assert value(metrics, "agentd_clients") == 1
    assert value(metrics, "agentd_build_info", build="b", version=agentd.__version__) == 1


def test_counters() -> None:
    """Each thing that happens is counted under its own name and no other."""
    metrics = Metrics()
    metrics.run_ended("exited")
    metrics.run_ended("exited")
    metrics.run_ended("timed_out")
    metrics.context("claimed")
    metrics.responded(101)
    metrics.responded(401)
    metrics.responded(401)
    metrics.relayed("stdout", 3, 70)
    metrics.relayed("stdout", 2, 30)
    metrics.relayed("stderr", 1, 5)
    metrics.connected()
    metrics.token_refused()
    before, after = samples(Metrics()), samples(metrics)
    assert {key: number for key, number in after.items() if before.get(key) != number} == {
        ("agentd_runs_total", frozenset({("outcome", "exited")})): 2,
        ("agentd_runs_total", frozenset({("outcome", "timed_out")})): 1,
        ("agentd_contexts_total", frozenset({("result", "claimed")})): 1,
        ("agentd_http_responses_total", frozenset({("code", "101")})): 1,
        ("agentd_http_responses_total", frozenset({("code", "401")})): 2,
        ("agentd_lines_total", frozenset({("stream", "stdout")})): 5,
        ("agentd_lines_total", frozenset({("stream", "stderr")})): 1,
        ("agentd_bytes_total", frozenset({("stream", "stdout")})): 100,
        ("agentd_bytes_total", frozenset({("stream", "stderr")})): 5,
        ("agentd_connections_total", frozenset()): 1,
        ("agentd_tokens_refused_total", frozenset()): 1,
    }


def test_scrapes_do_not_count() -> None:
    """To look changes nothing: the same page comes twice."""
    metrics = Metrics()
    metrics.relayed("stdout", 10**12, 10**15)
    assert page(metrics) == page(metrics)


def test_large_counts_are_exact() -> None:
    """A count keeps every digit that a 64-bit float can."""
    metrics = Metrics()
    metrics.relayed("stdout", 1, 2**53 - 1)
    assert value(metrics, "agentd_bytes_total", stream="stdout") == 2**53 - 1


@pytest.mark.parametrize("other", ["agentd_runs_total", "agentd_build_info"])
def test_global_registry_is_left_alone(other: str) -> None:
    """Nothing of agentd's is in the library's global registry, and nothing of it on the page."""
    metrics = Metrics()
    text = page(metrics)
    assert "python_" not in text
    assert "process_" not in text
    assert REGISTRY.get_sample_value(other) is None


@given(st.text())
def test_any_build_can_be_told(build: str) -> None:
    """Whatever a build calls itself, the page stays one that can be read."""
    told = [dict(labels)["build"] for name, labels in samples(Metrics(), build) if "info" in name]
    assert told == [build]
