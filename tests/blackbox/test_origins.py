"""Which browser pages may connect: the Origin they say they are from, before anything else."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from testing.contexts import recording, started, wait_waiting
from testing.daemon import Daemon, read_all, serving
from testing.exchange import handshake, knock
from testing.tokens import ed25519_pair, mint_token

LOOPBACK = [
    "http://localhost",
    "http://localhost:3000",
    "https://localhost:8443",
    "http://LOCALHOST:3000",
    "http://127.0.0.1",
    "http://127.0.0.1:8765",
    "http://[::1]:3000",
]
FOREIGN = [
    "https://example.com",
    "http://localhost.example.com",
    "http://127.0.0.1.example.com",
    "http://example.com:80",
    "http://notlocalhost",
    "http://localhost@example.com",
    "http://example.com/localhost",
    "http://128.0.0.1",
    "http://0.0.0.0.example.com",
    "chrome-extension://abcdefgh",
    "http://agentd.example",  # what the Host header says
]
NEVER = ["null", "NULL", "", "localhost", "http://"]


@contextmanager
def gate(folder: Path, *options: str) -> Iterator[Daemon]:
    """A daemon that has nothing to run, so that whoever is admitted gets a 404."""
    with serving(folder, "cat", options=("--context-wait", "0", *options)) as daemon:
        yield daemon


def statuses(daemon: Daemon, origins: list[str], *headers: str) -> dict[str, int]:
    """What each origin is answered."""
    return {
        origin: knock(daemon.port, handshake("/", f"Origin: {origin}", *headers)).status
        for origin in origins
    }


def test_without_auth_only_pages_of_this_machine_come_in(tmp_path: Path) -> None:
    """With --auth none and no list: loopback origins, and clients that are no browser."""
    with gate(tmp_path, "--auth", "none") as daemon:
        assert set(statuses(daemon, LOOPBACK).values()) == {404}
        assert set(statuses(daemon, FOREIGN).values()) == {403}
        assert set(statuses(daemon, NEVER).values()) == {403}
        assert knock(daemon.port, handshake()).status == 404


def test_with_tokens_any_page_may_bring_one(tmp_path: Path) -> None:
    """With --auth jwt and no list: any origin but null, as long as the token is good."""
    private, public = ed25519_pair(tmp_path)
    with gate(tmp_path, "--jwt-key", str(public)) as daemon:
        bearer = f"Authorization: Bearer {mint_token(private)}"
        assert set(statuses(daemon, FOREIGN[:1] + LOOPBACK, bearer).values()) == {404}
        assert set(statuses(daemon, ["null", ""], bearer).values()) == {403}
        assert statuses(daemon, FOREIGN[:1]) == {FOREIGN[0]: 401}
        assert knock(daemon.port, handshake("/", bearer)).status == 404


@pytest.mark.parametrize("auth", ["none", "jwt"])
def test_a_list_is_the_whole_list(tmp_path: Path, auth: str) -> None:
    """With --allow-origin those origins and no other, not even loopback, and never null."""
    private, public = ed25519_pair(tmp_path)
    options = ["--auth", auth, "--allow-origin", "https://app.example"]
    options += ["--allow-origin", "http://dev.example:3000"]
    if auth == "jwt":
        options += ["--jwt-key", str(public)]
    bearer = f"Authorization: Bearer {mint_token(private)}"
    allowed = ["https://app.example", "https://APP.example", "https://app.example:443"]
    allowed += ["http://dev.example:3000"]
    others = [
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.evil.example",
        "https://evil.example",
        "https://evilapp.example",
        "https://app.example/",
        "http://dev.example",
        "http://dev.example:30000",
        *LOOPBACK,
        *NEVER,
    ]
    with gate(tmp_path, *options) as daemon:
        assert set(statuses(daemon, allowed, bearer).values()) == {404}
        assert set(statuses(daemon, others, bearer).values()) == {403}
        assert knock(daemon.port, handshake("/", bearer)).status == 404


def test_null_may_not_even_be_listed(tmp_path: Path) -> None:
    """An origin that anybody can have cannot be let in by a list."""
    with gate(tmp_path, "--auth", "none", "--allow-origin", "http://null") as daemon:
        assert statuses(daemon, ["null"]) == {"null": 403}


def test_two_origins_are_malformed(tmp_path: Path) -> None:
    """One request comes from one page."""
    with gate(tmp_path, "--auth", "none") as daemon:
        request = handshake("/", "Origin: http://localhost", "Origin: http://localhost")
        assert knock(daemon.port, request).status == 400


def test_a_foreign_page_learns_nothing_and_takes_nothing(tmp_path: Path) -> None:
    """It is told 403 before its token is looked at, and the context waits for the next client."""
    private, public = ed25519_pair(tmp_path)
    command, starts = recording(tmp_path)
    options = ("--jwt-key", str(public), "--allow-origin", "https://app.example")
    with serving(tmp_path, *command, options=options) as daemon:
        daemon.submit(prompt="p\n")
        wait_waiting(daemon, 1)
        token = mint_token(private)
        good = f"Authorization: Bearer {token}"
        origin = "Origin: https://evil.example"
        answers = [
            knock(daemon.port, handshake("/", origin, *more))
            for more in ((), (good,), ("Authorization: Bearer x",))
        ]
        assert {answer.raw for answer in answers} == {answers[0].raw}
        assert answers[0].status == 403
        assert json.loads(answers[0].body)["status"] == 403
        assert started(starts) == []
        wait_waiting(daemon, 1)
        headers = {"Authorization": f"Bearer {token}"}  # not used up by the refusal
        with daemon.connect(headers=headers, origin="https://app.example") as client:
            assert read_all(client).lines == ["p"]


def test_probes_do_not_ask_where_a_page_is_from(tmp_path: Path) -> None:
    """Health is answered whatever the Origin, and no page is allowed to read it."""
    with gate(tmp_path, "--auth", "none") as daemon:
        status, headers, _ = daemon.get("/healthz", headers={"Origin": "https://evil.example"})
        assert status == 200
        assert "access-control-allow-origin" not in headers
