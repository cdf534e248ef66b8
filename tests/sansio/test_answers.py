"""What agentd answers over HTTP: refusals as RFC 9457 has them, and the state of its health."""

import json
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.sansio.answers import REASONS, Respond, healthz, problem, readyz, unauthorized
from agentd.sansio.lifecycle import Phase


def headers(answer: Respond) -> dict[str, str]:
    """The headers of an answer by name; one that comes twice is a failure."""
    found = {name.lower(): value for name, value in answer.headers}
    assert len(found) == len(answer.headers)
    return found


@pytest.mark.parametrize("status", [status for status in REASONS if status >= 400])
def test_problem(status: int) -> None:
    """A refusal is a problem document that says its status again, and is not to be stored."""
    answer = problem(status)
    assert answer.status == status
    assert json.loads(answer.body) == {
        "type": "about:blank",
        "title": REASONS[status],
        "status": status,
    }
    assert headers(answer)["content-type"] == "application/problem+json"
    assert headers(answer)["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("status", "name", "value"),
    [
        (401, "www-authenticate", "Bearer"),
        (405, "allow", "GET, HEAD"),
        (426, "upgrade", "websocket"),
        (503, "retry-after", "1"),
    ],
)
def test_obliged_headers(status: int, name: str, value: str) -> None:
    """A status that HTTP lets come only with a certain header comes with it."""
    assert headers(problem(status))[name] == value


def test_detail_and_further_headers() -> None:
    """A refusal can say what is wrong, and carry headers of its own beside those of its status."""
    answer = problem(426, "13 is spoken here", (("Sec-WebSocket-Version", "13"),))
    assert json.loads(answer.body)["detail"] == "13 is spoken here"
    assert headers(answer)["sec-websocket-version"] == "13"
    assert headers(answer)["upgrade"] == "websocket"


def test_unauthorized() -> None:
    """The 401 says nothing of its cause, and is the same to the byte each time."""
    assert unauthorized() == unauthorized()
    assert unauthorized().status == 401
    assert json.loads(unauthorized().body) == {
        "type": "about:blank",
        "title": "Unauthorized",
        "status": 401,
    }


@pytest.mark.parametrize("status", REASONS)
def test_reasons_are_those_of_the_standard(status: int) -> None:
    """Every status is one that HTTP has, under its name; two were renamed by RFC 9110."""
    renamed = {413: "Content Too Large", 414: "URI Too Long"}
    assert REASONS[status] == renamed.get(status, HTTPStatus(status).phrase)


def test_healthz() -> None:
    """The health answer is four facts and nothing more."""
    answer = healthz("0.1.0+abc", "sha256:12")
    assert answer.status == 200
    assert answer.body == (
        b'{"status":"ok","protocol":"agentd.v1","build":"0.1.0+abc","image":"sha256:12"}'
    )
    assert headers(answer)["content-type"] == "application/json"
    assert headers(answer)["cache-control"] == "no-store"


def test_healthz_without_an_image() -> None:
    """Outside an image the health answer says null."""
    assert healthz("b", None).body == (
        b'{"status":"ok","protocol":"agentd.v1","build":"b","image":null}'
    )


@given(st.text(), st.none() | st.text())
def test_healthz_is_always_json(build: str, image: str | None) -> None:
    """Whatever a build calls itself, the health answer is ASCII JSON that says so."""
    body = json.loads(healthz(build, image).body.decode("ascii"))
    assert (body["build"], body["image"]) == (build, image)


@pytest.mark.parametrize(
    ("phase", "live", "status", "body"),
    [
        (Phase.STARTING, 0, 503, b'{"status":"starting"}'),
        (Phase.SERVING, 1, 200, b'{"status":"ready"}'),
        (Phase.SERVING, 2, 200, b'{"status":"ready","full":true}'),
        (Phase.DRAINING, 2, 503, b'{"status":"draining"}'),
    ],
)
def test_readyz(phase: Phase, live: int, status: int, body: bytes) -> None:
    """Readiness is 200 while the daemon serves and 503 with a Retry-After while it does not."""
    answer = readyz(phase, live, 2)
    assert (answer.status, answer.body) == (status, body)
    assert headers(answer).get("retry-after") == ("1" if status == 503 else None)
    assert headers(answer)["content-type"] == "application/json"
