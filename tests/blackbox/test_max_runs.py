"""``--max-runs`` bounds the runs that live, the ones that are being stopped among them."""

import json
from pathlib import Path

from testing.daemon import read_all, wait_for
from testing.plain_client import PlainClient
from testing.programs import STAYS, STUBBORN, begin, run, serving_any, submit


def test_beyond_the_limit_new_runs_are_refused(tmp_path: Path) -> None:
    """503 as a problem with Retry-After; the context is not lost; ready stays 200 and says full."""
    with (
        serving_any(tmp_path, "--max-runs", "2") as daemon,
        begin(daemon, STAYS) as one,
        begin(daemon, STAYS) as two,
    ):
        for client in (one, two):
            client.recv(20)
            assert json.loads(client.recv(20))["line"] == "ready"
        assert daemon.get("/readyz")[0] == 200
        assert json.loads(daemon.get("/readyz")[2])["full"] is True
        path = submit(daemon, ("echo", "third"))
        status, headers, body = daemon.get(
            path,
            headers={
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            },
        )
        assert status == 503
        assert int(headers["retry-after"]) >= 0
        assert headers["content-type"] == "application/problem+json"
        assert json.loads(body)["status"] == 503
        one.send('{"type": "cancel"}')
        assert read_all(one).end["outcome"] == "cancelled"
        with daemon.connect(path) as client:
            assert read_all(client).lines == ["third"]
        two.send('{"type": "cancel"}')
        assert read_all(two).end["outcome"] == "cancelled"


def test_a_run_that_is_being_stopped_counts(tmp_path: Path) -> None:
    """The place of a command that does not go yet is not given away (OpenHands #3152)."""
    with serving_any(tmp_path, "--max-runs", "1", "--grace", "60") as daemon:
        with PlainClient(daemon.address, submit(daemon, STUBBORN)).upgrade() as client:
            assert [client.frame().record.get("line") for _ in range(2)] == [None, "ready"]
            client.leave_by_rst()
        for _ in range(3):
            with PlainClient(daemon.address, submit(daemon, ("echo", "next"))) as refused:
                refused.ask()
                assert refused.answer() == 503
        daemon.process.terminate()
        daemon.wait_log("stopping")


def test_a_place_is_free_as_soon_as_the_client_has_its_close(tmp_path: Path) -> None:
    """One run after another with ``--max-runs 1``: none is refused."""
    with serving_any(tmp_path, "--max-runs", "1") as daemon:
        for number in range(30):
            assert run(daemon, ("echo", str(number))).lines == [str(number)]
        wait_for(lambda: b"full" not in daemon.get("/readyz")[2], "not full")
