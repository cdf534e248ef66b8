"""The answer to a request head: tables of decisions, and that there always is one."""

import base64
import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.sansio.admission import (
    Gate,
    Probe,
    RequestHead,
    Respond,
    Upgrade,
    admit,
    unauthorized,
    wanted_run,
)

if TYPE_CHECKING:
    from agentd.sansio.tokens import Claims

JWT = Gate(auth="jwt")
OPEN = Gate(auth="none")
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 1.3
HANDSHAKE: dict[bytes, bytes] = {
    b"host": b"server.example.com",
    b"upgrade": b"websocket",
    b"connection": b"Upgrade",
    b"sec-websocket-key": KEY,
    b"sec-websocket-version": b"13",
}

Pairs = Iterable[tuple[bytes, bytes]]


def plain(
    target: str = "/", headers: Pairs = (), *, method: str = "GET", version: str = "1.1"
) -> RequestHead:
    """A request head with a Host and nothing else that matters."""
    return RequestHead(method, target, ((b"host", b"localhost:8765"), *headers), version)


def handshake(
    target: str = "/",
    headers: Pairs = (),
    *,
    without: bytes = b"",
    method: str = "GET",
    version: str = "1.1",
) -> RequestHead:
    """The opening handshake of RFC 6455, with more headers or without one."""
    kept = tuple((name, value) for name, value in HANDSHAKE.items() if name != without)
    return RequestHead(method, target, (*kept, *headers), version)


def changed(name: bytes, value: bytes, target: str = "/") -> RequestHead:
    """The handshake with one header of another value."""
    return handshake(target, [(name, value)], without=name)


def refusal(head: RequestHead, gate: Gate = JWT) -> int:
    """The status of a head that must be refused, as a problem document that repeats nothing."""
    answer = admit(head, gate)
    assert isinstance(answer, Respond), answer
    body = json.loads(answer.body)
    assert body["status"] == answer.status
    assert ("Content-Type", "application/problem+json") in answer.headers
    return answer.status


def upgrade(head: RequestHead, gate: Gate = JWT) -> Upgrade:
    """The upgrade that a head must lead to."""
    answer = admit(head, gate)
    assert isinstance(answer, Upgrade), answer
    return answer


def header(answer: Respond | Probe | Upgrade, name: str) -> str | None:
    """The value of a header of a refusal."""
    assert isinstance(answer, Respond), answer
    return dict(answer.headers).get(name)


# Routes.


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
@pytest.mark.parametrize("name", ["healthz", "readyz", "metrics"])
def test_probes(name: str, version: str, method: str) -> None:
    """Probes are answered on their paths, to GET and HEAD, in HTTP/1.0 as well."""
    assert admit(plain(f"/{name}", method=method, version=version), JWT) == Probe(name)  # type: ignore[arg-type]  # parametrized


@pytest.mark.parametrize(
    "target",
    [
        "/healthz?",
        "/healthz?token=a&token=b",
        "http://example.org/healthz",
        "HTTPS://example.org:443/healthz?x",
    ],
)
def test_forms_of_a_probe(target: str) -> None:
    """The query does not matter to a probe, and neither does the absolute form."""
    assert admit(plain(target), JWT) == Probe("healthz")


def test_probe_ignores_an_upgrade() -> None:
    """A probe's path never becomes a stream, not even for a handshake with a good token."""
    assert admit(handshake("/healthz?token=a.b.c"), JWT) == Probe("healthz")
    assert admit(changed(b"connection", b"\xff", "/readyz"), JWT) == Probe("readyz")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/", 404),
        ("/?console", 404),
        ("http://example.org", 404),
        ("http://example.org/", 404),
        ("http://example.org?run=1", 404),
        ("/ws", 426),
        ("/healthz/", 426),
        ("//healthz", 426),
        ("/%68ealthz", 426),
        ("/HEALTHZ", 426),
        ("http://example.org/ws", 426),
        ("*", 400),
        ("example.org:443", 400),
        ("http://", 400),
        ("http:///ws", 400),
        ("ws", 400),
        ("?token=x", 400),
        ("", 400),
        ("/\xe9", 400),
        ("/\ud800", 400),
    ],
)
def test_plain_get(target: str, status: int) -> None:
    """Without an upgrade there is nothing on / and something else is needed on any other path."""
    assert refusal(plain(target)) == status
    assert refusal(plain(target, method="HEAD")) == status


def test_426_says_what_to_upgrade_to() -> None:
    """An answer that asks for an upgrade names the protocol (RFC 9110 15.5.22)."""
    assert header(admit(plain("/ws"), JWT), "Upgrade") == "websocket"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "get", "PRI"])
@pytest.mark.parametrize("target", ["/", "/healthz", "/ws", "*"])
def test_other_methods(method: str, target: str) -> None:
    """Every other method is refused everywhere, with a word on which are not."""
    assert refusal(plain(target, method=method)) == 405
    assert refusal(handshake(target, method=method)) == 405
    assert header(admit(plain(target, method=method), JWT), "Allow") == "GET, HEAD"


@pytest.mark.parametrize("version", ["2.0", "0.9", "9.9", "", "11"])
def test_other_versions(version: str) -> None:
    """A version of HTTP that is not 1 is refused as such."""
    assert refusal(plain(version=version)) == 505


@pytest.mark.parametrize(
    ("hosts", "version", "status"),
    [
        ([], "1.0", 404),
        ([], "1.1", 400),
        ([b"a", b"a"], "1.1", 400),
        ([b"a", b"b"], "1.0", 400),
        ([b""], "1.1", 404),
        ([b"localhost"], "1.1", 404),
        ([b"[::1]:8765"], "1.1", 404),
        ([b"xn--zzzzzzzz99999999999"], "1.1", 404),
        ([b"b\xfccher.example"], "1.1", 400),
        ([b"a/b"], "1.1", 400),
        ([b"a b"], "1.1", 400),
        ([b"user@host"], "1.1", 400),
    ],
)
def test_host(hosts: list[bytes], version: str, status: int) -> None:
    """A request has one valid Host (RFC 9112 3.2); what it says decides nothing."""
    head = RequestHead("GET", "/", tuple((b"host", host) for host in hosts), version)
    assert refusal(head) == status


@pytest.mark.parametrize(
    ("length", "status"),
    [
        (b"0", 404),
        (b"5", 404),
        (b"65536", 404),
        (b"00065536", 404),
        (b"65537", 413),
        (b"99999", 413),
        (b"100000", 413),
        (b"9" * 5000, 413),
        (b"-1", 400),
        (b"+5", 400),
        (b"5, 5", 400),
        (b"", 400),
        ("\u0665".encode(), 400),
    ],
)
def test_announced_body(length: bytes, status: int) -> None:
    """A small body is nobody's concern, a large one is refused, a length that is none as well."""
    assert refusal(plain(headers=[(b"content-length", length)])) == status


# The handshake.


def test_handshake_of_the_rfc() -> None:
    """The example of RFC 6455 1.2 leads to a stream, once it offers a subprotocol spoken here."""
    head = handshake("/chat", [(b"origin", b"http://example.com")])
    assert upgrade(head) == Upgrade(mode="raw", subprotocol=None, key=KEY, token=None, run=None)
    offering = (b"sec-websocket-protocol", b"chat, superchat")
    assert refusal(handshake("/chat", [offering])) == 400


@pytest.mark.parametrize(
    "head",
    [
        handshake("/"),
        handshake("/ws/anything/else"),
        handshake("wss://server.example.com/ws"),
        changed(b"connection", b"keep-alive, Upgrade"),
        changed(b"connection", b"UPGRADE"),
        changed(b"connection", b",keep-alive ,\tupgrade,"),
        changed(b"upgrade", b"WebSocket"),
        changed(b"upgrade", b"h2c, websocket"),
        handshake(headers=[(b"connection", b"keep-alive")]),
        handshake(headers=[(b"upgrade", b"h2c")]),
        handshake(headers=[(b"sec-websocket-extensions", b"permessage-deflate; x=1")]),
        handshake(headers=[(b"content-length", b"0")]),
        handshake(headers=[(b"cookie", b"\xff\xfe"), (b"user-agent", b"\xe9")]),
        changed(b"host", b"xn--zzzzzzzz99999999999"),
        handshake(version="1.2"),
    ],
)
def test_handshakes_that_pass(head: RequestHead) -> None:
    """Lists, several headers, any case, any path, and headers that do not matter are all fine."""
    assert upgrade(head).key == KEY


@pytest.mark.parametrize(
    ("head", "status"),
    [
        # Not asking for a WebSocket: a plain GET.
        (handshake(without=b"upgrade"), 404),
        (handshake("/ws", without=b"upgrade"), 426),
        (changed(b"upgrade", b"h2c", "/ws"), 426),
        (handshake("/ws", version="1.0"), 426),
        (handshake("/ws", method="HEAD"), 426),
        # Asking for one in the wrong way.
        (handshake(without=b"connection"), 400),
        (changed(b"connection", b"close"), 400),
        (handshake(without=b"sec-websocket-key"), 400),
        (handshake(headers=[(b"sec-websocket-key", KEY)]), 400),
        (changed(b"sec-websocket-key", b""), 400),
        (changed(b"sec-websocket-key", b"not base64"), 400),
        (changed(b"sec-websocket-key", base64.b64encode(bytes(15))), 400),
        (changed(b"sec-websocket-key", base64.b64encode(bytes(17))), 400),
        (changed(b"sec-websocket-key", KEY + b"\n"), 400),
        (handshake(without=b"sec-websocket-version"), 426),
        (changed(b"sec-websocket-version", b"8"), 426),
        (changed(b"sec-websocket-version", b"13, 8"), 426),
        (handshake(headers=[(b"sec-websocket-version", b"13")]), 426),
        (handshake(headers=[(b"content-length", b"1")]), 400),
        (handshake(headers=[(b"content-length", b"70000")]), 413),
        (handshake(headers=[(b"transfer-encoding", b"chunked")]), 400),
        (handshake(headers=[(b"transfer-encoding", b"")]), 400),
    ],
)
def test_handshakes_that_fail(head: RequestHead, status: int) -> None:
    """What RFC 6455 4.2.1 asks of a handshake is asked, and a body is refused with one."""
    assert refusal(head) == status
    assert refusal(head, OPEN) == status


@pytest.mark.parametrize("version", [b"8", b"14", b"", b"thirteen"])
def test_version_that_is_spoken(version: bytes) -> None:
    """A client of another version is told which one would do (RFC 6455 4.4)."""
    answer = admit(changed(b"sec-websocket-version", version), JWT)
    assert header(answer, "Sec-WebSocket-Version") == "13"
    assert header(answer, "Upgrade") == "websocket"


@pytest.mark.parametrize(
    "name",
    [
        b"host",
        b"upgrade",
        b"connection",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-protocol",
        b"sec-websocket-extensions",
        b"content-length",
        b"transfer-encoding",
        b"origin",
        b"authorization",
    ],
)
@pytest.mark.parametrize("value", [b"\xff", b"Upgr\xe9de", b"websocket, \xc3\xa9", b"\x80" * 99])
def test_bytes_that_are_not_ascii(name: bytes, value: bytes) -> None:
    """A header that takes part in a decision and is not ASCII is malformed, no more than that."""
    assert refusal(changed(name, value)) == 400


@given(st.binary(min_size=16, max_size=16))
def test_any_key_of_16_bytes(nonce: bytes) -> None:
    """Whatever 16 bytes a client chose, its key passes and is handed on as it was."""
    key = base64.b64encode(nonce)
    assert upgrade(changed(b"sec-websocket-key", key)).key == key


# Subprotocols.


@pytest.mark.parametrize(
    ("offers", "mode", "echoed"),
    [
        ([], "raw", None),
        ([b"agentd.v1"], "v1", "agentd.v1"),
        ([b"agentd.raw"], "raw", "agentd.raw"),
        ([b"agentd.raw, agentd.v1"], "raw", "agentd.raw"),
        ([b"agentd.v1,agentd.raw"], "v1", "agentd.v1"),
        ([b"chat, agentd.v1"], "v1", "agentd.v1"),
        ([b"chat", b"agentd.raw"], "raw", "agentd.raw"),
        ([b"agentd.v1", b"bearer.a.b.c"], "v1", "agentd.v1"),
        ([b"bearer.a.b.c, agentd.v1"], "v1", "agentd.v1"),
        ([b"bearer.a.b.c"], "raw", None),
        ([b""], "raw", None),
        ([b" , ,"], "raw", None),
    ],
)
def test_subprotocols(offers: list[bytes], mode: str, echoed: str | None) -> None:
    """The first that is spoken here wins, in the client's order; a token is never echoed."""
    head = handshake(headers=[(b"sec-websocket-protocol", offer) for offer in offers])
    for gate in (JWT, OPEN):
        chosen = upgrade(head, gate)
        assert (chosen.mode, chosen.subprotocol) == (mode, echoed)


@pytest.mark.parametrize(
    "offer",
    [
        b"chat",
        b"agentd.v2",
        b"AGENTD.V1",
        b"chat, superchat",
        b"bearer.a.b.c, chat",
        b"agentd v1",
        b"agentd.v1;q=1",
        b'"agentd.v1"',
        b"agentd.v1, a/b",
    ],
)
def test_subprotocols_that_are_refused(offer: bytes) -> None:
    """Offers none of which is spoken here, or that are no list of tokens, are malformed."""
    head = handshake(headers=[(b"sec-websocket-protocol", offer)])
    assert refusal(head) == 400
    assert refusal(head, OPEN) == 400


# Runs.


@pytest.mark.parametrize(
    ("target", "run"),
    [
        ("/", None),
        ("/?", None),
        ("/?run=a", "a"),
        ("/?run=A-1_b.c&x=1&after=5", "A-1_b.c"),
        ("/?x=1&&run=%61", "a"),
        ("/?token=t&run=a", "a"),
        ("/?Run=a", None),
    ],
)
def test_wished_run(target: str, run: str | None) -> None:
    """The run is named in the query; other parameters are the edge's or a page's own."""
    assert upgrade(handshake(target)).run == run


@pytest.mark.parametrize(
    "query",
    [
        "run=",
        "run",
        "run=a&run=a",
        "run=a%2Fb",
        "run=a+b",
        "run=%00",
        "run=%ff",
        "run=" + "a" * 129,
        "run=a%26run=b",
    ],
)
def test_wished_run_that_is_none(query: str) -> None:
    """What cannot be the id of a run, or is said twice, is malformed."""
    assert refusal(handshake(f"/?{query}")) == 400


# Tokens.


@pytest.mark.parametrize(
    ("target", "headers", "token"),
    [
        ("/", [], None),
        ("/?token=a.b.c", [], "a.b.c"),
        ("/?token=", [], ""),
        ("/?token", [], ""),
        ("/?x=token", [], None),
        ("/", [(b"authorization", b"Bearer a.b.c")], "a.b.c"),
        ("/", [(b"authorization", b"bEARER  a.b.c")], "a.b.c"),
        ("/", [(b"authorization", b"Bearer")], ""),
        ("/", [(b"authorization", b"Basic dTpw")], None),
        ("/", [(b"authorization", b"Basic dTpw"), (b"authorization", b"Bearer a")], "a"),
        ("/?token=a", [(b"authorization", b"Basic dTpw")], "a"),
        ("/", [(b"sec-websocket-protocol", b"agentd.v1, bearer.a.b.c")], "a.b.c"),
        ("/", [(b"sec-websocket-protocol", b"bearer.")], ""),
    ],
)
def test_token_places(target: str, headers: Pairs, token: str | None) -> None:
    """A token may be in the query, in Authorization or beside the subprotocol."""
    assert upgrade(handshake(target, headers)).token == token


BEARER = (b"authorization", b"Bearer a")
BESIDE = (b"sec-websocket-protocol", b"bearer.a")


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/?token=a&token=a", []),
        ("/?token=&token=", []),
        ("/?token=a", [BEARER]),
        ("/?token=a", [BESIDE]),
        ("/?token=", [BESIDE]),
        ("/", [BEARER, BESIDE]),
        ("/", [BEARER, BEARER]),
        ("/", [BESIDE, BESIDE]),
        ("/", [(b"sec-websocket-protocol", b"agentd.v1, bearer.a, bearer.b")]),
        ("/?token=a", [BEARER, BESIDE]),
    ],
)
def test_token_in_two_places(target: str, headers: Pairs) -> None:
    """A token that is there twice is malformed, the same one or not; without auth it is nothing."""
    assert refusal(handshake(target, headers)) == 400
    assert upgrade(handshake(target, headers), OPEN).token is None


def test_token_is_not_looked_at_without_auth() -> None:
    """With --auth none whatever an edge forwards as a token is ignored."""
    head = handshake("/?token=a", [(b"authorization", b"\xff")])
    assert upgrade(head, OPEN).token is None


def test_token_is_in_no_repr() -> None:
    """What holds a token shows none when it is printed."""
    head = handshake("/?token=s3cret", [(b"cookie", b"s3cret")])
    assert "s3cret" not in repr(head)
    assert "s3cret" not in repr(upgrade(head))


# Origins.

LISTED = frozenset({"https://app.example", "http://localhost:3000", "http://[::1]:80", "app://x"})


@pytest.mark.parametrize(
    ("origin", "jwt", "none", "listed"),
    [
        (b"https://app.example", True, False, True),
        (b"https://app.example:443", True, False, True),
        (b"HTTPS://App.Example", True, False, True),
        (b"https://app.example:8443", True, False, False),
        (b"http://app.example", True, False, False),
        (b"http://app.example:443", True, False, False),
        (b"https://app.example.attacker.example", True, False, False),
        (b"https://sub.app.example", True, False, False),
        (b"https://app.example/", True, False, False),
        (b"http://localhost", True, True, False),
        (b"http://localhost:3000", True, True, True),
        (b"https://localhost:65535", True, True, False),
        (b"http://127.0.0.1:8765", True, True, False),
        (b"http://127.1.2.3", True, True, False),
        (b"http://[::1]", True, True, True),
        (b"http://[::1]:5173", True, True, False),
        (b"http://128.0.0.1", True, False, False),
        (b"http://127.0.0.1.attacker.example", True, False, False),
        (b"http://localhost.attacker.example", True, False, False),
        (b"http://attacker.example:8765", True, False, False),
        (b"http://a.localhost", True, False, False),
        (b"http://localhost@attacker.example", True, False, False),
        (b"http://localhost:3000, http://attacker.example", True, False, False),
        (b"http://[::2]", True, False, False),
        (b"app://x", True, False, True),
        (b"app://localhost", True, False, False),
        (b"file://", True, False, False),
        (b"null", False, False, False),
        (b"NULL", False, False, False),
        (b"", False, False, False),
    ],
)
def test_origins(origin: bytes, jwt: bool, none: bool, listed: bool) -> None:
    """With no list any origin may come with a token and only the machine's own without; with a
    list only what is listed; ``null`` never.
    """
    head = handshake(headers=[(b"origin", origin)])
    for gate, allowed in (
        (JWT, jwt),
        (OPEN, none),
        (Gate("jwt", LISTED), listed),
        (Gate("none", LISTED), listed),
    ):
        if allowed:
            upgrade(head, gate)
        else:
            assert refusal(head, gate) == 403, gate


def test_null_cannot_be_listed() -> None:
    """The origin ``null`` is anybody's and does not come in by being listed."""
    head = handshake(headers=[(b"origin", b"null")])
    assert refusal(head, Gate("jwt", frozenset({"null"}))) == 403


@pytest.mark.parametrize("gate", [JWT, OPEN, Gate("jwt", LISTED), Gate("none", LISTED)])
def test_no_origin(gate: Gate) -> None:
    """What sends no Origin is no browser, and comes in; two of them are malformed."""
    upgrade(handshake(), gate)
    twice = (b"origin", b"http://localhost:3000")
    assert refusal(handshake(headers=[twice, twice]), gate) == 400


def test_rebound_name() -> None:
    """A page whose name was rebound to this machine does not come in by agreeing with its Host."""
    head = handshake(headers=[(b"origin", b"http://server.example.com")])
    assert refusal(head, OPEN) == 403


# The order of checks.


def test_order_of_checks() -> None:
    """Malformed comes before foreign, and foreign before anything about a token."""
    foreign = (b"origin", b"null")
    assert refusal(handshake("/?run=/", [foreign])) == 400
    assert refusal(handshake("/", [foreign, (b"sec-websocket-protocol", b"chat")])) == 400
    assert refusal(handshake("/?token=a&token=b", [foreign])) == 403


# wanted_run.


def claims(run: str | None) -> "Claims":
    """Claims as the keys' room returns them, as far as they matter here."""
    return cast("Claims", SimpleNamespace(run=run))


@pytest.mark.parametrize(
    ("wished", "claimed", "wanted"),
    [
        (None, None, None),
        ("a", None, "a"),
        (None, claims(None), None),
        ("a", claims(None), "a"),
        (None, claims("a"), "a"),
        ("a", claims("a"), "a"),
        ("b", claims("a"), unauthorized()),
    ],
)
def test_wanted_run(
    wished: str | None, claimed: "Claims | None", wanted: str | Respond | None
) -> None:
    """The token names the run, else the query does; where they contradict, the token is no good."""
    wish = Upgrade(mode="raw", subprotocol=None, key=KEY, token="t", run=wished)
    assert wanted_run(wish, claimed) == wanted


# Whatever comes.

NAMES = st.sampled_from(
    [
        *HANDSHAKE,
        b"origin",
        b"authorization",
        b"content-length",
        b"transfer-encoding",
        b"sec-websocket-protocol",
        b"sec-websocket-extensions",
    ]
)
WORDS = st.sampled_from(
    [
        *HANDSHAKE.values(),
        b"agentd.v1",
        b"bearer.x",
        b"Bearer x",
        b"null",
        b"http://localhost",
        b"chunked",
        b"0",
        b"\xff",
        b",",
    ]
)
VALUES = st.one_of(WORDS, st.binary(max_size=40), st.lists(WORDS, max_size=4).map(b", ".join))
TARGETS = st.one_of(
    st.sampled_from(["/", "/healthz", "/ws", "*", "http://h/x", "/?run=a", "/?token=%ff&run=%"]),
    st.text(max_size=40).map(lambda text: "/" + text),
    st.text(st.characters(codec=None), max_size=40),
)
GATES = st.builds(
    Gate, st.sampled_from(["jwt", "none"]), st.frozensets(st.text(max_size=20), max_size=2)
)


@st.composite
def heads(draw: st.DrawFn) -> RequestHead:
    """Heads of every kind, most of them close to a handshake."""
    headers = list(HANDSHAKE.items()) if draw(st.booleans()) else []
    for name, value in draw(st.lists(st.tuples(NAMES | st.binary(max_size=20), VALUES))):
        headers = [pair for pair in headers if pair[0] != name or draw(st.booleans())]
        headers.append((name, value))
    return RequestHead(
        method=draw(st.sampled_from(["GET", "HEAD", "POST"]) | st.text(max_size=8)),
        target=draw(TARGETS),
        headers=tuple(headers),
        version=draw(st.sampled_from(["1.1", "1.0"]) | st.text(max_size=4)),
    )


@settings(max_examples=1000)
@given(heads(), GATES)
def test_there_is_always_an_answer(head: RequestHead, gate: Gate) -> None:
    """Whatever a head is made of, it gets an answer that agentd can send."""
    answer = admit(head, gate)
    match answer:
        case Respond():
            assert 400 <= answer.status <= 505
            assert json.loads(answer.body)["status"] == answer.status
            "".join(name + value for name, value in answer.headers).encode("ascii")
        case Probe():
            assert answer.name in ("healthz", "readyz", "metrics")
        case Upgrade():
            assert head.method == "GET"
            assert len(base64.b64decode(answer.key, validate=True)) == 16
            assert answer.subprotocol in (None, "agentd.v1", "agentd.raw")
            assert (answer.mode == "v1") == (answer.subprotocol == "agentd.v1")
            assert gate.auth == "jwt" or answer.token is None


@settings(max_examples=500)
@given(heads(), GATES)
def test_the_same_head_gets_the_same_answer(head: RequestHead, gate: Gate) -> None:
    """An answer depends on the head and the gate and on nothing that went before."""
    assert admit(head, gate) == admit(head, gate)


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=12, max_size=30), NAMES)
def test_no_answer_repeats_the_request(canary: str, name: bytes) -> None:
    """Nothing of a request is in its refusal, wherever in the request it was."""
    value = canary.encode()
    for head in (
        changed(name, value),
        handshake(f"/{canary}?token={canary}&token={canary}"),
        handshake(f"/?run=/{canary}"),
        handshake(canary),
        plain(f"/{canary}", method=canary, version=canary),
    ):
        answer = admit(head, JWT)
        if isinstance(answer, Respond):
            assert value not in answer.body
            assert canary not in repr(answer.headers)
