"""Request heads off a stream and responses onto it, over memory, with peers not written here."""

import io
import itertools
import random
from collections.abc import Iterable
from http.client import HTTPResponse
from typing import cast

import h11
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_one_way_pair, memory_stream_pair
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from agentd.http11 import BadRequest, ClosedEarly, linger, read_request_head, send_response
from agentd.sansio.admission import Gate, Probe, RequestHead, Respond, Upgrade, admit
from agentd.sansio.answers import REASONS, healthz, problem

HANDSHAKE = (
    b"GET /chat?token=a.b.c HTTP/1.1\r\n"
    b"Host: server.example.com\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Origin: http://example.com\r\n"
    b"Sec-WebSocket-Protocol: agentd.v1\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"\r\n"
)


class Pieces(trio.abc.ReceiveStream):
    """A peer that sends these pieces, then leaves, by a reset if so told; counts what was taken."""

    def __init__(self, pieces: Iterable[bytes], *, reset: bool = False) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self._reset = reset
        self.taken = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        assert max_bytes is not None
        assert max_bytes > 0
        await trio.lowlevel.checkpoint()
        if not self._pieces:
            if self._reset:
                raise trio.BrokenResourceError
            return b""
        piece = self._pieces[0][:max_bytes]
        self._pieces[0] = self._pieces[0][max_bytes:]
        if not self._pieces[0]:
            del self._pieces[0]
        self.taken += len(piece)
        return piece

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def one_by_one(data: bytes) -> Pieces:
    """A peer that sends a byte at a time."""
    return Pieces(data[i : i + 1] for i in range(len(data)))


async def status_of(stream: Pieces, limit: int = 16384) -> int:
    """The status with which a head must be refused."""
    with pytest.raises(BadRequest) as caught:
        await read_request_head(stream, limit=limit)
    return caught.value.status


# Heads.


async def test_head() -> None:
    """A head is its request line and its headers: names in lower case, values as they were."""
    head, behind = await read_request_head(Pieces([HANDSHAKE]))
    assert (head.method, head.target, head.version) == ("GET", "/chat?token=a.b.c", "1.1")
    assert head.headers[0] == (b"host", b"server.example.com")
    assert (b"upgrade", b"websocket") in head.headers
    assert len(head.headers) == 7
    assert behind == b""


async def test_head_byte_by_byte() -> None:
    """A head that comes in single bytes is the same head."""
    assert await read_request_head(one_by_one(HANDSHAKE)) == await read_request_head(
        Pieces([HANDSHAKE])
    )


@given(st.lists(st.integers(0, len(HANDSHAKE) + 8), max_size=6), st.binary(max_size=8))
async def test_head_in_any_pieces(cuts: list[int], early: bytes) -> None:
    """Wherever the network cuts, the head is the same, and what came behind it is not lost."""
    data = HANDSHAKE + early
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    stream = Pieces(data[a:b] for a, b in itertools.pairwise(places))
    head, behind = await read_request_head(stream)
    assert isinstance(admit(head, Gate("jwt")), Upgrade)
    assert early.startswith(behind)
    assert stream.taken == len(HANDSHAKE) + len(behind)


async def test_values_are_any_bytes() -> None:
    """A header value may hold any bytes; they are handed on and judged elsewhere."""
    head, _ = await read_request_head(Pieces([b"GET / HTTP/1.0\r\nX: \xff\xfe a\r\n\r\n"]))
    assert head.headers == ((b"x", b"\xff\xfe a"),)
    assert head.version == "1.0"


async def test_head_of_h11() -> None:
    """The request of an h11 client is read as it was meant."""
    request = h11.Request(method="HEAD", target="/healthz", headers=[("Host", "localhost")])
    client = h11.Connection(h11.CLIENT)
    head, _ = await read_request_head(Pieces([client.send(request)]))
    assert (head.method, head.target) == ("HEAD", "/healthz")
    assert admit(head, Gate("jwt")) == Probe("healthz")


@pytest.mark.parametrize("host", ["localhost:8765", "[::1]:8765", "xn--bcher-kva.example"])
async def test_handshake_of_websockets(host: str) -> None:
    """The handshake of a client not written here is admitted, its subprotocol chosen."""
    uri = parse_uri(f"ws://{host}/path?run=r1&token=t")
    client = ClientProtocol(uri, subprotocols=["agentd.v1"])  # type: ignore[list-item]  # a NewType
    head, _ = await read_request_head(one_by_one(client.connect().serialize()))
    upgrade = admit(head, Gate("jwt"))
    assert isinstance(upgrade, Upgrade)
    assert (upgrade.mode, upgrade.subprotocol) == ("v1", "agentd.v1")
    assert (upgrade.run, upgrade.token) == ("r1", "t")


# Heads that are none.


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"G\xffT / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\xff: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    ],
)
async def test_malformed(data: bytes, status: int) -> None:
    """What is no request head is refused with the status that HTTP has for it."""
    assert await status_of(Pieces([data])) == status
    assert await status_of(one_by_one(data)) == status


@pytest.mark.parametrize("size", [200, 300, 16384])
async def test_limit_is_exact(size: int) -> None:
    """A head of as many bytes as the limit is read, with one more it is refused."""
    start = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    head = start + b"x" * (size - len(start) - 4) + b"\r\n\r\n"
    assert len(head) == size
    assert (await read_request_head(Pieces([head]), limit=size))[0].target == "/"
    assert await status_of(Pieces([head]), limit=size - 1) == 431


async def test_nothing_beyond_the_limit_is_taken() -> None:
    """A peer that never stops costs the limit and not a byte more; one by one it is the same."""
    for step in (1, 7, 1000, 10**6):
        flood = b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 2000
        stream = Pieces(flood[i : i + step] for i in range(0, len(flood), step))
        assert await status_of(stream, limit=1000) == 431
        assert stream.taken == 1000


async def test_long_request_line() -> None:
    """A request line that does not end in time is an overlong target."""
    stream = Pieces([b"GET /" + b"a" * 20000])
    assert await status_of(stream) == 414
    assert stream.taken == 16384


async def test_what_is_behind_the_head_is_bounded() -> None:
    """Of what a peer sends behind its head no more is taken than the limit leaves."""
    stream = Pieces([HANDSHAKE + b"z" * 10**6])
    _, behind = await read_request_head(stream, limit=1000)
    assert stream.taken == 1000
    assert behind == b"z" * (1000 - len(HANDSHAKE))


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("cut", [*range(0, len(HANDSHAKE), 20), len(HANDSHAKE) - 1])
async def test_peer_that_leaves(cut: int, reset: bool) -> None:
    """A peer that closes or resets before its head is whole has left, wherever in it that was."""
    with pytest.raises(ClosedEarly):
        await read_request_head(Pieces([HANDSHAKE[:cut]], reset=reset))


async def test_peer_that_leaves_behind_its_head() -> None:
    """A head that is whole is a head, also when nothing can be answered any more."""
    head, _ = await read_request_head(Pieces([HANDSHAKE], reset=True))
    assert head.method == "GET"


async def test_errors_repeat_nothing() -> None:
    """No error holds what the peer sent, and none is chained to one that does."""
    with pytest.raises(BadRequest) as caught:
        await read_request_head(Pieces([b"GET /?token=s3cret s3cret\r\nX: s3cret\r\n\r\n"]))
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


async def test_cancelled_read() -> None:
    """A read that waits for the peer can be cancelled: the deadline is the caller's."""
    near, far = memory_stream_one_way_pair()
    await near.send_all(b"GET / HTT")
    with trio.move_on_after(0) as scope:
        await read_request_head(far)
    assert scope.cancelled_caught


# Heads that are nearly one.

FATAL_HEADS = [
    HANDSHAKE.replace(b"server.example.com", b"b\xfccher"),
    HANDSHAKE.replace(b"server.example.com", b"xn--zzzzzzzz99999999999"),
    HANDSHAKE.replace(b"Connection: Upgrade", b"Connection: Upgr\xe9de"),
    HANDSHAKE.replace(b"agentd.v1", b"\xff"),
    HANDSHAKE.replace(b"Origin:", b"Sec-WebSocket-Extensions: \xff\r\nOrigin:"),
    HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.1\xff"),
    HANDSHAKE.replace(b"a.b.c", b"%ED%A0%80"),
]


@pytest.mark.parametrize("data", FATAL_HEADS)
@pytest.mark.parametrize("reset", [False, True])
async def test_inputs_that_end_other_servers(data: bytes, reset: bool) -> None:
    """Heads that end a plain trio-websocket server are answered here like any other."""
    try:
        head, _ = await read_request_head(Pieces([data], reset=reset))
    except BadRequest as bad:
        assert bad.status == 400
    else:
        answer = admit(head, Gate("jwt"))
        harmless = b"xn--" in data or b"%ED" in data
        assert isinstance(answer, Upgrade) if harmless else cast("Respond", answer).status == 400


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Damage a head in up to four places."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(damaged) + 1)
        match rng.randrange(5):
            case 0:
                damaged[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                damaged[place:place] = rng.randbytes(rng.randint(1, 4))
            case 2:
                del damaged[place : place + rng.randint(1, 20)]
            case 3:
                start = rng.randrange(len(damaged) + 1)
                damaged[place:place] = damaged[start : start + rng.randint(1, 60)]
            case _:
                word = rng.choice([b"\r\n", b"\n", b": ", b",", b"\x00", b"\xff", b" ", b"13"])
                damaged[place:place] = word
    return bytes(damaged)


async def test_ten_thousand_damaged_heads() -> None:
    """Of ten thousand damaged handshakes each is read and answered, refused, or never whole."""
    rng = random.Random(6455)
    seen = set()
    for _ in range(10_000):
        data = mutate(rng, rng.choice([HANDSHAKE, *FATAL_HEADS]))
        try:
            head, _ = await read_request_head(Pieces([data]))
        except BadRequest as bad:
            seen.add("refused")
            assert bad.status in (400, 501)
        except ClosedEarly:
            seen.add("never whole")
        else:
            seen.add(type(admit(head, Gate("jwt"))).__name__)
    assert seen == {"refused", "never whole", "Respond", "Upgrade"}


# Responses.


class Answered:
    """What http.client wants of a socket: a file to read the response from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


async def sent(head: RequestHead | None, respond: Respond) -> bytes:
    """Everything that an answer puts on the wire."""
    near, far = memory_stream_one_way_pair()
    await send_response(near, head, respond)
    await near.aclose()
    return b"".join([bytes(chunk) async for chunk in far])


def read(data: bytes, method: str = "GET") -> tuple[HTTPResponse, bytes]:
    """Read a response with the parser of the standard library; nothing may be left over."""
    response = HTTPResponse(Answered(data), method=method)  # type: ignore[arg-type]  # enough of one
    response.begin()
    return response, response.read()


def head(method: str = "GET") -> RequestHead:
    """A request for the health of the daemon."""
    return RequestHead(method, "/healthz", ((b"host", b"a"),), "1.1")


@pytest.mark.parametrize("status", [status for status in REASONS if status >= 400])
async def test_every_refusal_is_http(status: int) -> None:
    """A refusal, also of what could not be read, is whole HTTP/1.1 that ends the connection."""
    answer = problem(status, "a reason")
    data = await sent(None, answer)
    response, body = read(data)
    assert (response.status, response.reason) == (status, REASONS[status])
    assert response.version == 11
    assert response.will_close
    assert body == answer.body
    assert data.endswith(b"\r\n\r\n" + body)
    assert response.headers["Content-Type"] == "application/problem+json"


async def test_headers_of_an_answer() -> None:
    """Every answer has its length, is not stored and is not guessed at, each said once."""
    response, body = read(await sent(head(), healthz("b", None)))
    names = [name.lower() for name in response.headers]
    assert len(names) == len(set(names))
    assert response.headers["Content-Length"] == str(len(body))
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Connection"] == "close"


async def test_bare_answer() -> None:
    """An answer that says nothing of storing it is not to be stored either."""
    response, body = read(await sent(head(), Respond(200, (("Content-Type", "text/plain"),), b"x")))
    assert response.headers.get_all("Cache-Control") == ["no-store"]
    assert body == b"x"


async def test_upgrade_required() -> None:
    """A 426 names the upgrade as an option of the connection as well (RFC 9110 7.8)."""
    response, _ = read(await sent(head(), problem(426)))
    assert response.headers["Upgrade"] == "websocket"
    assert response.headers["Connection"] == "upgrade, close"
    assert response.will_close


async def test_head_has_no_body() -> None:
    """HEAD gets the headers of GET to the byte, the length included, and no body."""
    whole = await sent(head(), healthz("b", None))
    answer = await sent(head("HEAD"), healthz("b", None))
    assert whole.startswith(answer)
    assert answer.endswith(b"\r\n\r\n")
    response, body = read(answer, "HEAD")
    assert body == b""
    assert int(response.headers["Content-Length"]) == len(whole) - len(answer)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_answer_for_an_h11_client(method: str) -> None:
    """An h11 client takes the answer, and knows that the connection is over with it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/healthz", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(await sent(head(method), healthz("b", None)))
    client.receive_data(b"")
    events = []
    while not isinstance(event := client.next_event(), h11.ConnectionClosed):
        events.append(event)
    assert isinstance(events[0], h11.Response)
    assert events[0].status_code == 200
    data = b"".join(bytes(event.data) for event in events if isinstance(event, h11.Data))
    assert data == (healthz("b", None).body if method == "GET" else b"")


async def test_header_that_would_split_the_answer() -> None:
    """A header with a line break in it never reaches the wire."""
    with pytest.raises(h11.LocalProtocolError):
        await sent(head(), problem(400, None, (("X", "a\r\nSet-Cookie: b"),)))


async def test_answer_to_nobody() -> None:
    """A peer that is gone is the caller's to know."""
    near, far = memory_stream_one_way_pair()
    far.close()
    with pytest.raises(trio.BrokenResourceError):
        await send_response(near, head(), problem(404))


# Lingering.


async def test_linger_until_the_peer_closes(autojump_clock: MockClock) -> None:
    """A peer that reads its answer and closes ends the linger at once."""
    near, far = memory_stream_pair()
    start = autojump_clock.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(linger, near)
        await far.send_all(b"a body that nobody wanted")
        assert await far.receive_some() == b""
        await far.aclose()
    assert autojump_clock.current_time() == start


async def test_linger_is_bounded_in_time(autojump_clock: MockClock) -> None:
    """A peer that never closes is waited for no longer than told."""
    near, far = memory_stream_pair()
    start = autojump_clock.current_time()
    await linger(near, seconds=1)
    assert autojump_clock.current_time() - start == pytest.approx(1)
    await far.aclose()


@pytest.mark.parametrize("limit", [1, 1000, 65536])
async def test_linger_is_bounded_in_bytes(limit: int, autojump_clock: MockClock) -> None:
    """A peer that never stops sending is read no further than told."""
    near, far = memory_stream_pair()
    await far.send_all(bytes(100_000))
    start = autojump_clock.current_time()
    await linger(near, seconds=1, limit=limit)
    assert autojump_clock.current_time() == start
    assert len(await near.receive_stream.receive_some(200_000)) == 100_000 - limit


async def test_linger_with_nobody() -> None:
    """A peer that has reset, or a stream that is closed meanwhile, is nothing to complain of."""
    near, far = memory_stream_pair()
    far.send_stream.close()
    far.receive_stream.close()
    await linger(near)
    await near.aclose()
    await linger(near)
