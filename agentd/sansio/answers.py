"""What agentd answers over HTTP, but for the stream: refusals and the state of its health.

Every body is made of agentd's own words: no answer repeats anything of the request that caused it,
and all refused tokens look alike. This room knows what to say and not when to say it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agentd import PROTOCOL
from agentd.sansio.lifecycle import Phase, readiness

REASONS: Final = {
    101: "Switching Protocols",
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    410: "Gone",
    413: "Content Too Large",
    414: "URI Too Long",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
"""Every status agentd answers with, in the words of RFC 9110 15 and RFC 6585 5."""

# What a status may not come without (RFC 9110 11.6.1, 10.2.1, 15.5.22, 10.2.3).
_OBLIGED: Final[dict[int, tuple[tuple[str, str], ...]]] = {
    401: (("WWW-Authenticate", "Bearer"),),
    405: (("Allow", "GET, HEAD"),),
    426: (("Upgrade", "websocket"),),
    503: (("Retry-After", "1"),),
}


@dataclass(frozen=True, slots=True)
class Respond:
    """An answer that ends the connection; Content-Length and the like are the writer's."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def problem(
    status: int, detail: str | None = None, headers: Sequence[tuple[str, str]] = ()
) -> Respond:
    """Return a refusal as RFC 9457 has it, with the headers its status may not come without.

    Args:
        status: one of :data:`REASONS`.
        detail: what is wrong, in agentd's words only.
        headers: further ones.
    """
    body: dict[str, object] = {"type": "about:blank", "title": REASONS[status], "status": status}
    if detail is not None:
        body["detail"] = detail
    return _answer(status, body, "application/problem+json", (*_OBLIGED.get(status, ()), *headers))


def unauthorized() -> Respond:
    """Return the 401. It is the same for every cause, so that nothing can be learned from it."""
    return problem(401)


def healthz(build: str, image: str | None) -> Respond:
    """Return the answer to ``/healthz`` while the daemon works."""
    body = {"status": "ok", "protocol": PROTOCOL, "build": build, "image": image}
    return _answer(200, body, "application/json")


def readyz(phase: Phase, live: int, max_runs: int) -> Respond:
    """Return the answer to ``/readyz``, see :func:`agentd.sansio.lifecycle.readiness`."""
    status, body = readiness(phase, live, max_runs)
    return _answer(status, body, "application/json", _OBLIGED.get(status, ()))


def _answer(
    status: int,
    body: Mapping[str, object],
    content_type: str,
    headers: Sequence[tuple[str, str]] = (),
) -> Respond:
    document = json.dumps(body, separators=(",", ":")).encode()
    fixed = (("Content-Type", content_type), ("Cache-Control", "no-store"))
    return Respond(status, (*fixed, *headers), document)
