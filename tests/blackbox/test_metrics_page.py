"""/metrics: what a scraper reads, and that the numbers are true to the last line."""

import json
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from testing.contexts import CANARY, wait_refused, wait_taken, wait_waiting
from testing.daemon import Daemon, read_all, serving, wait_for
from testing.exchange import handshake, knock
from testing.tokens import ed25519_pair, mint_token


def families(page: str) -> list[Metric]:
    """The page as prometheus_client's strict parser reads it."""
    return list(text_string_to_metric_families(page))  # type: ignore[no-untyped-call]  # has no types


Samples = dict[tuple[str, str], float]

SCRIPT = """
case $(cat) in
  lines) seq 1000; echo err >&2; echo err2 >&2; printf unterminated;;
  fail) echo one; exit 3;;
  signal) kill -9 $$;;
  late) exec sleep 300;;
esac
"""


def scrape(daemon: Daemon) -> Samples:
    """Every sample, by its name and the value of its only label."""
    status, headers, body = daemon.get("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert headers["cache-control"] == "no-store"
    samples = {}
    for family in families(body.decode()):
        assert family.documentation
        for sample in family.samples:
            if family.type != "info":
                assert len(sample.labels) <= 1
                key = sample.name, next(iter(sample.labels.values()), "")
                assert key not in samples
                samples[key] = sample.value
    return samples


def test_a_fresh_daemon_counts_from_nothing(tmp_path: Path) -> None:
    """What could be counted is there, at 0, so that the first one is seen as a change."""
    with serving(tmp_path, "cat") as daemon:
        samples = scrape(daemon)
        for outcome in ("exited", "signaled", "timed_out", "cancelled", "spawn_failed", "shutdown"):
            assert samples["agentd_runs_total", outcome] == 0
        for stream in ("stdout", "stderr"):
            assert samples["agentd_lines_total", stream] == 0
            assert samples["agentd_bytes_total", stream] == 0
        assert samples["agentd_runs_live", ""] == 0
        assert samples["agentd_contexts_waiting", ""] == 0


def test_runs_lines_and_bytes_are_counted_exactly(tmp_path: Path) -> None:
    """Each run by its outcome, each line and byte of each stream, unterminated last lines too."""
    options = ("--auth", "none", "--timeout", "60")
    with serving(tmp_path, "sh", "-c", SCRIPT, options=options) as daemon:
        ends = [daemon.run(prompt="lines").end for _ in range(3)]
        assert {end["stdout_lines"] for end in ends} == {1001}
        daemon.run(raw=True, prompt="lines")
        for _ in range(2):
            daemon.run(prompt="fail")
        daemon.run(prompt="signal")
        daemon.run(prompt="late", timeout=0.1)
        daemon.submit(prompt="late")
        with daemon.connect() as client:
            client.recv(20)
            client.send(json.dumps({"type": "cancel"}))
            assert read_all(client).end["outcome"] == "cancelled"
        samples = scrape(daemon)
        size = sum(len(f"{number}\n") for number in range(1, 1001)) + len("unterminated")
        assert samples["agentd_runs_total", "exited"] == 6
        assert samples["agentd_runs_total", "signaled"] == 1
        assert samples["agentd_runs_total", "timed_out"] == 1
        assert samples["agentd_runs_total", "cancelled"] == 1
        assert samples["agentd_lines_total", "stdout"] == 4 * 1001 + 2
        assert samples["agentd_bytes_total", "stdout"] == 4 * size + 2 * len("one\n")
        assert samples["agentd_lines_total", "stderr"] == 4 * 2
        assert samples["agentd_bytes_total", "stderr"] == 4 * len("err\nerr2\n")
        assert samples["agentd_contexts_total", "claimed"] == 9
        assert samples["agentd_contexts_total", "refused"] == 0


def test_a_command_that_is_not_there_is_counted(tmp_path: Path) -> None:
    """A run that could not start is a run with an outcome."""
    with serving(tmp_path, "/no/such/command") as daemon:
        assert daemon.run().end["outcome"] == "spawn_failed"
        assert scrape(daemon)["agentd_runs_total", "spawn_failed"] == 1


def test_contexts_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    """Claimed, refused and expired ones."""
    options = ("--auth", "none", "--context-ttl", "0.2")
    with serving(tmp_path, "cat", options=options, directory=True) as daemon:
        for number in range(3):
            daemon.submit(f"good-{number}")
            wait_taken(daemon.submit(f"bad-{number}", env=1))
        wait_refused(daemon, 3)
        wait_for(lambda: scrape(daemon)["agentd_contexts_total", "expired"] == 3, "all expired")
        samples = scrape(daemon)
        assert samples["agentd_contexts_total", "claimed"] == 3
        assert samples["agentd_contexts_total", "refused"] == 3
        assert samples["agentd_contexts_waiting", ""] == 0


def test_what_is_there_now_is_shown(tmp_path: Path) -> None:
    """Live runs, connected clients and waiting contexts, up and down again."""
    with serving(tmp_path, "sleep", "300", directory=True) as daemon:
        for name in ("a", "b", "c"):
            daemon.submit(name)
        wait_waiting(daemon, 3)
        with daemon.connect(), daemon.connect():
            samples = scrape(daemon)
            assert samples["agentd_runs_live", ""] == 2
            assert samples["agentd_clients", ""] == 2
            assert samples["agentd_contexts_waiting", ""] == 1
        wait_for(lambda: scrape(daemon)["agentd_runs_live", ""] == 0, "runs ended")
        wait_for(lambda: scrape(daemon)["agentd_clients", ""] == 0, "clients gone")


def test_answers_are_counted_by_status(tmp_path: Path) -> None:
    """Each answer by its status, upgrades and refused tokens among them."""
    private, public = ed25519_pair(tmp_path)
    options = ("--jwt-key", str(public), "--context-wait", "0")
    with serving(tmp_path, "cat", options=options) as daemon:
        before = scrape(daemon)
        for _ in range(4):
            assert knock(daemon.port, handshake("/?token=bad")).status == 401
        for _ in range(2):
            assert daemon.get("/")[0] == 404
        assert daemon.get("/", method="POST")[0] == 405
        daemon.submit(prompt="p")
        wait_waiting(daemon, 1)
        scrapes = scrape(daemon)["agentd_http_responses_total", "200"]
        with daemon.connect(f"/?token={mint_token(private)}") as client:
            read_all(client)
        after = scrape(daemon)
        assert after["agentd_http_responses_total", "401"] == 4
        assert after["agentd_tokens_refused_total", ""] == 4
        assert after["agentd_http_responses_total", "404"] == 2
        assert after["agentd_http_responses_total", "405"] == 1
        assert after["agentd_http_responses_total", "101"] == 1
        assert after["agentd_http_responses_total", "200"] == scrapes + 1
        connections = after["agentd_connections_total", ""] - before["agentd_connections_total", ""]
        assert connections == 4 + 2 + 1 + 1 + after["agentd_http_responses_total", "200"]


def test_the_page_says_what_runs_and_nothing_from_outside(tmp_path: Path) -> None:
    """The build is named; no prompt, id, path or token is."""
    with serving(tmp_path, "cat", directory=True) as daemon:
        daemon.submit(CANARY, prompt=CANARY, env={CANARY: CANARY})
        wait_waiting(daemon, 1)
        with daemon.connect(f"/{CANARY}?run={CANARY}&token={CANARY}") as client:
            assert read_all(client).lines == [CANARY]
        page = daemon.get("/metrics")[2].decode()
        assert CANARY not in page
        build = json.loads(daemon.get("/healthz")[2])["build"]
        by_name = {family.name: family for family in families(page)}
        assert by_name["agentd_build"].samples[0].labels["build"] == build
