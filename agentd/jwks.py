"""Fetching a JWK set (RFC 7517 section 5) from where an issuer publishes it.

Invariant: one GET, over http or https and never from https back to http, bounded in size and time.
No error and nothing printable has a user, password or query of the URL in it.

Refuses to know what the document says, and when to ask again. ``urllib.request`` is imported at the
first fetch.
"""

from __future__ import annotations

import base64
import time
from urllib.parse import unquote, urlsplit

from agentd import AgentdError, __version__
from agentd.sansio.jws import HMAC_DIGESTS
from agentd.sansio.tokens import KeyFormatError

MAX_SIZE = 1024 * 1024
"""Bytes a JWK set may have."""

_REDIRECTS = {("http", "http"), ("http", "https"), ("https", "https")}


class FetchError(AgentdError):
    """A JWK set could not be fetched. Its text is the reason, with nothing of the URL."""


def check_url(url: str, algorithm: str | None) -> None:
    """Raise KeyFormatError when no verification keys can come from ``url``."""
    problem = None
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            problem = "it is not an http or https URL"
    except ValueError:
        problem = "it is not a URL"
    if not url.isascii() or not url.isprintable() or " " in url:
        problem = "it has characters that a URL has not"
    if algorithm in HMAC_DIGESTS:
        problem = "an HMAC secret is never published"
    if problem is not None:
        raise KeyFormatError(problem, "--jwt-jwks-url")


def printable(url: str) -> str:
    """Return a URL without what may be secret in it: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def download(url: str, timeout: float) -> bytes:
    """Get a document of at most MAX_SIZE, in a thread. Raises FetchError.

    ``timeout`` bounds each wait for the socket, and the body as a whole.
    """
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class SameScheme(HTTPRedirectHandler):
        def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  # urllib's own
            if (urlsplit(req.full_url).scheme, urlsplit(newurl).scheme) not in _REDIRECTS:
                return None
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    deadline = time.monotonic() + timeout
    parts = urlsplit(url)
    userinfo, _, host = parts.netloc.rpartition("@")
    request = Request(  # noqa: S310  # check_url let only http and https through
        parts._replace(netloc=host, fragment="").geturl(),
        headers={"Accept": "application/json", "User-Agent": f"agentd/{__version__}"},
    )
    if userinfo:
        basic = base64.b64encode(unquote(userinfo).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    try:
        with build_opener(SameScheme).open(request, timeout=timeout) as response:
            data = bytearray()
            while chunk := response.read1(65536):
                data += chunk
                if len(data) > MAX_SIZE:
                    raise FetchError("the answer is larger than 1 MiB")
                if time.monotonic() > deadline:
                    raise FetchError("timed out")
            return bytes(data)
    except HTTPError as error:
        reason = f"status {error.code}"
        error.close()
    except (OSError, HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, TimeoutError):
            reason = "timed out"
        else:
            reason = getattr(cause, "strerror", None) or type(cause).__name__
    raise FetchError(reason)
