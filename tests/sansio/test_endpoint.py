"""A URL leads to one place, and neither it nor a token gets into an error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.sansio.endpoint import BadToken, BadURL, Endpoint, bearer, parse_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://h:1/p?q=1", Endpoint("h", 1, None, False, "h:1", "/p?q=1")),
        ("ws://h", Endpoint("h", 80, None, False, "h", "/")),
        ("ws://h:80/", Endpoint("h", 80, None, False, "h", "/")),
        ("http://h:8765", Endpoint("h", 8765, None, False, "h:8765", "/")),
        ("wss://h", Endpoint("h", 443, None, True, "h", "/")),
        ("https://h:443/a/b", Endpoint("h", 443, None, True, "h", "/a/b")),
        ("wss://h:80", Endpoint("h", 80, None, True, "h:80", "/")),
        ("WS://EXAMPLE.org/", Endpoint("example.org", 80, None, False, "example.org", "/")),
        ("ws://[::1]:9/x", Endpoint("::1", 9, None, False, "[::1]:9", "/x")),
        ("ws://[::1]/", Endpoint("::1", 80, None, False, "[::1]", "/")),
        ("ws://bücher.example", Endpoint("xn--bcher-kva.example", 80, None, False,
                                         "xn--bcher-kva.example", "/")),
        ("ws://h/a b/é?x=ü y", Endpoint("h", 80, None, False, "h", "/a%20b/%C3%A9?x=%C3%BC%20y")),
        ("ws://h/%20?a=%26", Endpoint("h", 80, None, False, "h", "/%20?a=%26")),
        ("ws://h/p#fragment", Endpoint("h", 80, None, False, "h", "/p")),
        ("ws://h?q", Endpoint("h", 80, None, False, "h", "/?q")),
        ("unix:/run/a.sock", Endpoint("", 0, "/run/a.sock", False, "localhost", "/")),
        ("unix:///run/a.sock?x=1", Endpoint("", 0, "/run/a.sock", False, "localhost", "/?x=1")),
        ("ws+unix:///run/a.sock", Endpoint("", 0, "/run/a.sock", False, "localhost", "/")),
    ],
)  # fmt: skip
def test_a_url_leads_to_one_place(url: str, expected: Endpoint) -> None:
    """Scheme, host, port, socket path and target are what RFC 3986 and RFC 9112 make of it."""
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    ("url", "run", "target"),
    [
        ("ws://h", "r1", "/?run=r1"),
        ("ws://h/p?a=b", "r1", "/p?a=b&run=r1"),
        ("unix:/s", "r 1&", "/?run=r%201%26"),
    ],
)
def test_a_run_is_asked_for_in_the_query(url: str, run: str, target: str) -> None:
    """`run` joins what the query has already, escaped."""
    assert parse_url(url, run=run).target == target


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "must begin with"),
        ("localhost:8765", "must begin with"),
        ("ftp://h", "must begin with"),
        ("//h", "must begin with"),
        ("ws://", "host or port"),
        ("ws:///p", "host or port"),
        ("ws://h:0", "host or port"),
        ("ws://h:65536", "host or port"),
        ("ws://h:x", "host or port"),
        ("ws://a..b", "host or port"),
        ("ws://a b", "host or port"),
        ("ws://" + "a" * 64, "host or port"),
        ("ws://[::1", "malformed"),
        ("ws://user:secret@h", "user name"),
        ("unix:relative.sock", "begins with /"),
        ("unix://host/path", "begins with /"),
        ("ws+unix:", "begins with /"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused(url: str, complaint: str) -> None:
    """The error says what is wrong with it."""
    with pytest.raises(BadURL, match=complaint):
        parse_url(url)


@pytest.mark.parametrize("url", ["ws://[secret?token=secret", "x://secret", "ws://h:secret/"])
def test_an_error_does_not_show_the_url(url: str) -> None:
    """Some put a token into a URL: no part of it is in an error or in what led to it."""
    with pytest.raises(BadURL) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_an_endpoint_is_shown_without_its_query() -> None:
    """Neither str nor repr has what stands behind the host."""
    endpoint = parse_url("ws://h:1/?token=secret")
    assert "secret" not in repr(endpoint)
    assert str(endpoint) == "h:1"
    assert str(parse_url("unix:/run/s?token=secret")) == "/run/s"


@given(st.text(max_size=60) | st.text(max_size=40).map("ws://h/{}".format))
def test_any_text_is_an_endpoint_or_a_bad_url(url: str) -> None:
    """Whatever parses can stand in a request head: ASCII without spaces or controls."""
    try:
        endpoint = parse_url(url)
    except BadURL:
        return
    for part in (endpoint.authority, endpoint.target):
        assert part.isascii()
        assert part.isprintable()
        assert " " not in part
    assert endpoint.target.startswith("/")


@pytest.mark.parametrize("token", ["a.b-c_d.e~f", "x", "YWJj+/=="])
def test_a_token_goes_into_a_header(token: str) -> None:
    """RFC 6750 2.1: the scheme, a space, the token."""
    assert bearer(token) == f"Bearer {token}"


@pytest.mark.parametrize("token", ["", " ", "se cret", "secret\r\nX: y", "secret\n", "sécret"])
def test_what_cannot_stand_in_a_header_is_refused(token: str) -> None:
    """A token with a newline or the like is an error that does not show it."""
    with pytest.raises(BadToken) as caught:
        bearer(token)
    assert "cret" not in str(caught.value)
