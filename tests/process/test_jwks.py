"""A JWK set is fetched from a real server: whole or not at all, and nothing of the URL is told."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testing.publisher import Publisher, loopback_certificate, publisher

from agentd.jwks import MAX_SIZE, FetchError, check_url, download, printable
from agentd.sansio.tokens import KeyFormatError


@pytest.fixture
def issuer() -> Iterator[Publisher]:
    with publisher(b'{"keys":[]}') as it:
        yield it


def refusal(url: str, timeout: float = 5) -> str:
    with pytest.raises(FetchError) as caught:
        download(url, timeout)
    assert caught.value.__context__ is None
    return str(caught.value)


# --- addresses


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.example/.well-known/jwks.json",
        "http://127.0.0.1:8080/keys?tenant=a",
        "https://user:pass@issuer.example",
        "http://[::1]:80/keys",
        "HTTPS://issuer.example/keys#top",
    ],
)
def test_good_url(url: str) -> None:
    """Keys come over http and https."""
    check_url(url, None)
    check_url(url, "EdDSA")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "issuer.example/keys",
        "file:///etc/passwd",
        "ftp://issuer.example/keys",
        "data:application/json,{}",
        "http://",
        "https:///keys",
        "http://host:port/keys",
        "http://host:99999/keys",
        "http://host:0/keys",
        "http://[::1/keys",
        "http://host/a b",
        "http://host/a\r\nX: y",
        "http://h\u00f6st/keys",
        "http://host/\ud800",
    ],
)
def test_bad_url(url: str) -> None:
    """Another scheme, or what is no URL, is refused by the option's name and not repeated."""
    with pytest.raises(KeyFormatError, match=r"cannot use --jwt-jwks-url: it ") as caught:
        check_url(url, None)
    assert len(url) < 5 or url not in str(caught.value)


def test_no_published_secret() -> None:
    """An HMAC secret is not fetched from a URL: who can read it can mint."""
    with pytest.raises(KeyFormatError, match="an HMAC secret is never published"):
        check_url("https://issuer.example/keys", "HS256")


def test_printable() -> None:
    """What is logged of a URL has no user, password, query or fragment."""
    url = "https://user:c4n4ry@issuer.example:8443/keys?token=c4n4ry#c4n4ry"
    assert printable(url) == "https://issuer.example:8443/keys"
    assert printable("http://[::1]:80/k") == "http://[::1]:80/k"
    assert printable("http://a@b@host/k") == "http://host/k"


# --- answers


def test_download(issuer: Publisher) -> None:
    """The body of a 200 comes back as it was sent; the query is sent, the fragment is not."""
    assert download(issuer.url + "?tenant=a#top", 5) == b'{"keys":[]}'
    assert issuer.paths == ["/keys?tenant=a"]
    assert issuer.authorizations == [None]


def test_userinfo(issuer: Publisher) -> None:
    """A user and password in the URL are sent as HTTP Basic, not as part of the host."""
    url = issuer.url.replace("http://", "http://us%40er:p%3Ass@")
    assert download(url, 5) == issuer.body
    assert issuer.authorizations == ["Basic dXNAZXI6cDpzcw=="]


@pytest.mark.parametrize("status", [204, 301, 400, 401, 404, 500, 503])
def test_other_statuses(issuer: Publisher, status: int) -> None:
    """A status other than success is told as a number; the answer's text is not."""
    issuer.status, issuer.body = status, b"" if status == 204 else b"c4n4ry"
    if status == 204:
        assert download(issuer.url, 5) == b""
    else:
        assert refusal(issuer.url) == f"status {status}"


def test_size(issuer: Publisher) -> None:
    """A megabyte is taken, a byte more is not."""
    issuer.body = b"x" * MAX_SIZE
    assert download(issuer.url, 10) == issuer.body
    issuer.body += b"x"
    assert refusal(issuer.url, 10) == "the answer is larger than 1 MiB"


def test_endless_answer(issuer: Publisher) -> None:
    """An answer without an end is cut off at a megabyte."""

    def endless(write: Callable[[bytes], object]) -> None:
        write(b"HTTP/1.0 200 OK\r\n\r\n")
        while True:
            write(b"x" * 65536)

    issuer.write = endless
    assert refusal(issuer.url, 10) == "the answer is larger than 1 MiB"


def test_trickle(issuer: Publisher) -> None:
    """An answer that never stops for long, but never ends, is given up in time."""
    over = threading.Event()

    def trickle(write: Callable[[bytes], object]) -> None:
        write(b"HTTP/1.0 200 OK\r\n\r\n")
        while not over.wait(0.02):
            write(b" ")

    issuer.write = trickle
    try:
        started = time.monotonic()
        assert refusal(issuer.url, 0.3) == "timed out"
        assert time.monotonic() - started < 10
    finally:
        over.set()


def test_silence(issuer: Publisher) -> None:
    """A server that takes the request and says nothing is given up in time."""
    issuer.open.clear()
    assert refusal(issuer.url, 0.2) == "timed out"


def test_no_http(issuer: Publisher) -> None:
    """An answer that is not HTTP is refused in one word, not repeated."""
    issuer.write = lambda write: write(b"c4n4ry c4n4ry c4n4ry\r\n\r\n")
    assert refusal(issuer.url) == "BadStatusLine"


def test_nobody_listens() -> None:
    """A refused connection is told as the system says it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert refusal(f"http://user:c4n4ry@127.0.0.1:{port}/keys?c4n4ry") == "Connection refused"


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over https a server gives keys when its certificate is one the system trusts."""
    certificate = loopback_certificate(tmp_path)
    with publisher(b'{"keys":[]}', certificate=certificate) as issuer:
        assert "CERTIFICATE_VERIFY_FAILED" in refusal(issuer.url)
        assert issuer.paths == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert download(issuer.url, 5) == issuer.body
        assert "CERTIFICATE_VERIFY_FAILED" in refusal(issuer.url.replace("127.0.0.1", "localhost"))


def test_no_tls(issuer: Publisher) -> None:
    """A server that answers https without TLS gives no keys."""
    assert "SSL" in refusal(issuer.url.replace("http://", "https://"))
    assert issuer.paths == []


# --- redirects


def test_redirect(issuer: Publisher) -> None:
    """A redirect on http is followed; the password stays with the host it was given for."""
    with publisher(b"moved") as target:
        issuer.status, issuer.headers = 302, {"Location": target.url}
        url = issuer.url.replace("http://", "http://user:pass@")
        assert download(url, 5) == b"moved"
        assert target.authorizations == [None]


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/keys", "file:///etc/passwd", "data:,x"])
def test_redirect_to_another_scheme(issuer: Publisher, location: str) -> None:
    """A redirect to a scheme other than http and https is not followed."""
    issuer.status, issuer.headers = 302, {"Location": location}
    assert refusal(issuer.url) == "status 302"


def test_redirect_downgrade(
    issuer: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect from http to https is followed, one from https to http is not."""
    certificate = loopback_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with publisher(b"safe", certificate=certificate) as safe:
        issuer.status, issuer.headers = 307, {"Location": safe.url}
        assert download(issuer.url, 5) == b"safe"
        safe.status, safe.headers = 307, {"Location": issuer.url}
        issuer.status, issuer.headers = 200, {}
        assert refusal(safe.url) == "status 307"
        assert len(issuer.paths) == 1


def test_redirect_loop(issuer: Publisher) -> None:
    """A redirect that leads back ends as a status."""
    issuer.status, issuer.headers = 302, {"Location": issuer.url}
    assert refusal(issuer.url) == "status 302"
    assert len(issuer.paths) < 20


def test_import_is_late() -> None:
    """Importing the room loads no HTTP client."""
    script = (
        "import sys, agentd.jwks\n"
        "assert not {'urllib.request', 'http.client', 'jwt', 'cryptography'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
