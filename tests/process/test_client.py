"""The client against a server that nobody here encodes frames for, truthful and not."""

import contextlib
import json
import socket
import threading
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from testing.certificates import tls_pair
from testing.fake_server import Peer, Script, serving
from testing.transcript import Transcript
from websockets.frames import Close, Frame, Opcode

from agentd import AgentdError
from agentd.client import (
    BadToken,
    BadURL,
    CannotConnect,
    DigestMismatch,
    End,
    Heartbeat,
    Hello,
    IncompleteStream,
    NotSent,
    Outcome,
    Output,
    ProtocolError,
    Record,
    Refused,
    connect,
    stream,
)


async def collect(url: str, **options: object) -> list[Record]:
    """Return all the records of a stream."""
    with trio.fail_after(20):
        return [record async for record in stream(url, **options)]  # type: ignore[arg-type]


async def collect_until_error(
    url: str, error: type[AgentdError], **options: object
) -> tuple[list[Record], AgentdError]:
    """Return the records that came before a stream raised `error`, and the error."""
    records: list[Record] = []
    with trio.fail_after(20), pytest.raises(error) as caught:
        async with aclosing(stream(url, **options)) as source:  # type: ignore[arg-type]
            async for record in source:
                records.append(record)  # noqa: PERF401  # the ones before the error are wanted
    return records, caught.value


async def wait(event: threading.Event) -> None:
    """Wait for what a script has to do."""
    assert await trio.to_thread.run_sync(event.wait, 10)


def whole(peer: Peer) -> None:
    """Tell a run of two lines from its hello to its Close."""
    told = Transcript()
    peer.accept()
    peer.send(told.hello(), told.stdout("one"), told.stderr("two"), told.end())
    peer.close()
    peer.wait_gone()


# A whole stream.


async def test_a_stream_is_its_records_from_hello_to_end() -> None:
    """A loop over stream() sees every record and finishes by itself."""
    with serving(whole) as server:
        hello, one, two, end = await collect(server.url)
    assert isinstance(hello, Hello)
    assert (one, two) == (
        Output("stdout", 1, b"one", more=False, eol=True),
        Output("stderr", 2, b"two", more=False, eol=True),
    )
    assert isinstance(end, End)
    assert end.outcome is Outcome.EXITED


async def test_every_kind_of_line_is_rebuilt() -> None:
    """Parts, base64, carriage returns and a missing last newline come out as they were written."""
    told = Transcript()
    records = [
        told.hello(),
        told.stdout("a long ", more=True),
        told.stderr("meanwhile"),
        told.stdout("line\r"),
        told.stdout(b"\xff\x00"),
        told.stdout(""),
        told.stdout("no newline", eol=False),
        told.end(),
    ]

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(*records)
        peer.close()
        peer.wait_gone()

    with serving(script) as server:
        outputs = [r for r in await collect(server.url) if isinstance(r, Output)]
    stdout = b"".join(output.raw for output in outputs if output.stream == "stdout")
    assert stdout == told.stdout_bytes == b"a long line\r\n\xff\x00\n\nno newline"


async def test_frames_may_come_with_the_answer_to_the_handshake() -> None:
    """What arrives in the same segment as the 101 is not lost."""
    told = Transcript()
    early = b"".join(
        Frame(Opcode.TEXT, json.dumps(record).encode()).serialize(mask=False)
        for record in (told.hello(), told.stdout("x"), told.end())
    )

    def script(peer: Peer) -> None:
        peer.accept(early=early)
        peer.close()
        peer.wait_gone()

    with serving(script) as server:
        assert len(await collect(server.url)) == 3


async def test_a_message_may_come_in_fragments() -> None:
    """An edge may split a message into frames (RFC 6455 5.4); characters may be split as well."""
    told = Transcript()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(told.hello())
        peer.send_in_fragments(told.stdout("grüße " * 50), 7)
        peer.send(told.end())
        peer.close()
        peer.wait_gone()

    with serving(script) as server:
        [_, line, _] = await collect(server.url)
    assert isinstance(line, Output)
    assert line.text == "grüße " * 50


async def test_a_message_of_nearly_16_mib_is_taken() -> None:
    """A line as long as a message may be arrives whole."""
    told = Transcript()
    size = 16 * 1024 * 1024 - 200

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(told.hello(), told.stdout("x" * size), told.end())
        peer.close()
        peer.wait_gone()

    with serving(script) as server:
        [_, line, _] = await collect(server.url)
    assert isinstance(line, Output)
    assert len(line.data) == size


async def test_heartbeats_are_yielded_when_asked_for() -> None:
    """By default a loop sees no heartbeats."""

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello(), told.heartbeat(), told.stdout("x"), told.heartbeat(), told.end())
        peer.close()
        peer.wait_gone()

    with serving(script) as server:
        assert len(await collect(server.url)) == 3
        assert (await collect(server.url, heartbeats=True))[1::2] == [Heartbeat(0), Heartbeat(1)]


async def test_the_close_is_answered() -> None:
    """The client echoes the server's Close (RFC 6455 5.5.1) before it leaves."""
    frames = []

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello(), told.end("exited", 3))
        peer.close(4000, "exit 3")
        while (frame := peer.receive()) is not None:
            frames.append(frame)

    with serving(script) as server:
        await collect(server.url)
    [frame] = frames
    assert frame.opcode is Opcode.CLOSE
    assert Close.parse(bytes(frame.data)).code == 4000


@pytest.mark.parametrize("how", ["fin", "rst", "silent"])
async def test_a_stream_is_whole_once_its_end_came(how: str) -> None:
    """After a true end record it does not matter how, or whether, the connection is closed."""

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello(), told.stdout("x"), told.end())
        if how != "silent":
            # Only when the client has it all: a reset may overtake what was sent.
            seen.wait(10)
            getattr(peer, how)()
        if how != "rst":
            peer.wait_gone()

    seen = threading.Event()
    records = []
    with serving(script) as server, trio.fail_after(20):
        async with aclosing(stream(server.url)) as source:
            async for record in source:
                records.append(record)
                if isinstance(record, End):
                    seen.set()
    assert len(records) == 3


async def test_the_request_names_protocol_run_and_token() -> None:
    """The token is in the Authorization header and not in the request target."""
    heads = []

    def script(peer: Peer) -> None:
        heads.append(peer.read_request())
        whole(peer)

    with serving(script) as server:
        await collect(server.url + "a/b?x=1", token="abc.def.ghi", run="r-1")
        await collect(server.url)
    assert heads[0].path == "/a/b?x=1&run=r-1"
    assert heads[0].headers["Authorization"] == "Bearer abc.def.ghi"
    assert heads[0].headers["Sec-WebSocket-Protocol"] == "agentd.v1"
    assert heads[0].headers["Host"] == server.url.split("/")[2]
    assert heads[1].path == "/"
    assert "Authorization" not in heads[1].headers


async def test_a_unix_socket_serves_as_well(tmp_path: Path) -> None:
    """`unix:PATH` connects to a socket in the file system."""
    with serving(whole, path=tmp_path / "a.sock") as server:
        assert len(await collect(server.url)) == 4
        assert len(await collect(f"ws+unix://{tmp_path / 'a.sock'}")) == 4


async def test_tls_serves_as_well(tmp_path: Path) -> None:
    """`wss://` is TLS with a certificate that is checked."""
    server_tls, client_tls = tls_pair(tmp_path)
    with serving(whole, tls=server_tls) as server:
        assert len(await collect(server.url, ssl_context=client_tls)) == 4


# Streams that are torn.


def torn(after: int, how: str, records: list[dict[str, object]]) -> Script:
    """Return a script that sends some records and then ends as `how` says."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(*records[:after])
        match how:
            case "close":
                peer.close(4009, "displaced")
            case "normal close":
                peer.close(1000, "")
            case "half a frame":
                peer.raw(b"\x81\x7e\x10\x00" + b'{"type":"stdout"')
                peer.fin()
            case _:
                getattr(peer, how)()
        if how != "rst":
            peer.wait_gone()

    return script


@pytest.mark.parametrize("how", ["fin", "rst", "close", "normal close", "half a frame"])
@pytest.mark.parametrize("after", range(4))
async def test_a_stream_torn_anywhere_raises(how: str, after: int) -> None:
    """FIN, RST, Close or half a frame before the end record never look like success."""
    told = Transcript()
    records = [told.hello(), told.stdout("x"), told.stdout("y"), told.end()]
    with serving(torn(after, how, records)) as server:
        received, error = await collect_until_error(server.url, IncompleteStream)
    assert isinstance(error, IncompleteStream)
    if how != "rst":
        assert len(received) == after
    assert error.code == {"close": 4009, "normal close": 1000}.get(how)
    if how == "close":
        assert str(error).endswith("closed with 4009 displaced")


async def test_a_close_without_a_code_raises() -> None:
    """A Close with an empty payload (RFC 6455 7.1.5: 1005) is no end either."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.raw(Frame(Opcode.CLOSE, b"").serialize(mask=False))
        peer.wait_gone()

    with serving(script) as server:
        _, error = await collect_until_error(server.url, IncompleteStream)
    assert isinstance(error, IncompleteStream)
    assert error.code == 1005


async def test_a_reason_cannot_act_on_a_terminal() -> None:
    """Control characters in a Close reason are not in the error."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.close(4000, "\x1b[2Jgone\n")
        peer.wait_gone()

    with serving(script) as server:
        _, error = await collect_until_error(server.url, IncompleteStream)
    assert str(error).isprintable()


async def test_a_false_digest_raises_instead_of_an_end() -> None:
    """The lines came, the end record does not agree, and no End is yielded."""

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello(), told.stdout("x"), told.end() | {"stdout_sha256": "0" * 64})
        peer.close()
        peer.wait_gone()

    with serving(script) as server:
        records, _ = await collect_until_error(server.url, DigestMismatch)
    assert len(records) == 2


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (lambda peer: peer.send({"type": "stdout", "seq": 5, "line": "x"}), "seq 5"),
        (lambda peer: peer.send({"type": "surprise"}), "not a record"),
        (lambda peer: peer.send_bytes(b'{"type":"stdout"}'), "binary"),
        (lambda peer: peer.raw(b"\x81\x02\xff\xfe"), "not a WebSocket frame"),
        (lambda peer: peer.raw(b"\xf1\x01x"), "not a WebSocket frame"),
        (lambda peer: peer.raw(b"\x81\x81\0\0\0\0x"), "not a WebSocket frame"),
        (lambda peer: peer.raw(b"\x00\x01x"), "not a WebSocket frame"),
        (lambda peer: peer.raw(b"\x89\x7e\x00\x80" + b"x" * 128), "not a WebSocket frame"),
        (lambda peer: peer.raw(b"\x81\x7f" + (1 << 40).to_bytes(8, "big") + b"x" * (1 << 24 | 1)),
         "16 MiB"),
    ],
)  # fmt: skip
async def test_what_is_not_agentd_v1_raises_after_what_was(bad: Script, complaint: str) -> None:
    """The records before the fault are delivered, then it is named."""

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello())
        try:
            bad(peer)
        except ConnectionError:
            return  # the client need not take the rest of what it has refused
        peer.wait_gone()

    with serving(script) as server:
        records, error = await collect_until_error(server.url, ProtocolError)
    assert len(records) == 1
    assert complaint in str(error)


async def test_a_record_after_the_end_raises() -> None:
    """After end nothing follows; where something does, the end was none."""

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello(), told.end(), told.heartbeat())
        peer.wait_gone()

    with serving(script) as server:
        records, _ = await collect_until_error(server.url, ProtocolError)
    assert len(records) == 2


async def test_a_server_that_falls_silent_is_given_up() -> None:
    """Without a byte the server is pinged, and without an answer the stream has ended."""
    opcodes = []

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(Transcript().hello())
        while (frame := peer.receive()) is not None:
            opcodes.append(frame.opcode)

    with serving(script) as server:
        _, error = await collect_until_error(server.url, IncompleteStream, silence=0.1)
    assert "said nothing" in str(error)
    assert opcodes == [Opcode.PING]


async def test_a_quiet_server_that_answers_pings_is_kept() -> None:
    """A run that prints nothing for long is not a server that is gone."""

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello())
        for _ in range(5):
            frame = peer.receive()
            assert frame is not None
            assert frame.opcode is Opcode.PING
            peer.raw(Frame(Opcode.PONG, frame.data).serialize(mask=False))
        peer.send(told.end())
        peer.close()
        peer.wait_gone()

    with serving(script) as server:
        assert len(await collect(server.url, silence=0.2)) == 2


# Refused, or nobody there.


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 426, 500, 503])
async def test_a_refusal_has_its_status_and_detail(status: int) -> None:
    """The detail of the problem document (RFC 9457) is in the error."""
    body = json.dumps({"title": "T", "status": status, "detail": f"because of {status}"})
    headers = {"Content-Type": "application/problem+json"}

    def script(peer: Peer) -> None:
        peer.answer(f"{status} Whatever", body.encode(), headers)

    with serving(script) as server:
        _, error = await collect_until_error(server.url, Refused)
    assert isinstance(error, Refused)
    assert (error.status, error.detail) == (status, f"because of {status}")
    assert str(error) == f"refused with {status}: because of {status}"


@pytest.mark.parametrize(
    ("status", "body", "detail"),
    [
        ("404 Nope", b"", "Not Found"),
        ("599 Nope", b"", "no reason given"),
        ("502 Bad", b"<html>oops</html>", "Bad Gateway"),
        ("401 No", b'{"title": "who are you"}', "who are you"),
        ("401 No", b'{"detail": 5}', "Unauthorized"),
        ("401 No", b"[" * 50_000, "Unauthorized"),
        ("401 No", b'{"detail": "a\\u001b[2Jb\\nc"}', "a [2Jb c"),
        ("302 Found", b"", "Found"),
        ("401 No", json.dumps({"detail": "x" * 1000}).encode(), "x" * 300),
    ],
)
async def test_a_refusal_says_something_whatever_its_body(
    status: str, body: bytes, detail: str
) -> None:
    """A proxy's page, no body, or a hostile one: one short printable line comes of it."""
    with serving(lambda peer: peer.answer(status, body)) as server:
        _, error = await collect_until_error(server.url, Refused)
    assert isinstance(error, Refused)
    assert error.detail == detail


async def test_a_refusal_stands_even_if_its_body_is_cut_short() -> None:
    """The status is known; the rest of the body is not waited for."""

    def script(peer: Peer) -> None:
        peer.answer("503 Full", b"x", {"Content-Length": "100"})

    with serving(script) as server:
        _, error = await collect_until_error(server.url, Refused)
    assert isinstance(error, Refused)
    assert error.status == 503


async def test_an_endless_refusal_is_cut_off() -> None:
    """No more than 64 KiB of a body is read."""

    def script(peer: Peer) -> None:
        peer.answer("503 Full", b"", {"Content-Length": str(1 << 30)})
        try:
            while True:
                peer.raw(b"x" * 65536)
        except ConnectionError:
            pass

    with serving(script) as server:
        _, error = await collect_until_error(server.url, Refused)
    assert str(error) == "refused with 503: Service Unavailable"


UPGRADE = b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        UPGRADE + b"Sec-WebSocket-Accept: x\r\n\r\n",
        UPGRADE + b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
        b"HTTP/1.1 101 S\r\nX: " + b"x" * 200_000,
    ],
)
async def test_what_is_no_websocket_server_is_said_to_be_none(answer: bytes) -> None:
    """Silence, another protocol or a false handshake is a ProtocolError."""

    def script(peer: Peer) -> None:
        peer.read_request()
        with contextlib.suppress(ConnectionError):
            peer.raw(answer)
            peer.fin()
            # Until the client has read it and left: what it left unread becomes a reset.
            while peer.sock.recv(65536):
                pass

    with serving(script) as server:
        await collect_until_error(server.url, ProtocolError)


async def test_a_server_without_agentd_v1_is_refused() -> None:
    """A WebSocket server that does not agree to the subprotocol is not listened to."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.wait_gone()

    with serving(script, subprotocol=None) as server:
        _, error = await collect_until_error(server.url, ProtocolError)
    assert str(error) == "the server does not speak agentd.v1"


async def test_nobody_there_is_said_so(tmp_path: Path) -> None:
    """A closed port, a missing socket and an unknown name are CannotConnect, with the reason."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    for url in (f"ws://127.0.0.1:{port}/?token=secret", f"unix:{tmp_path}/none?token=secret"):
        _, error = await collect_until_error(url, CannotConnect)
        assert str(error).startswith("cannot connect to ")
        assert str(error).endswith((": Connection refused", ": No such file or directory"))
        assert "secret" not in str(error)


async def test_a_certificate_that_nobody_signed_is_not_trusted(tmp_path: Path) -> None:
    """Without an own context the system's authorities decide, and the error says why not."""
    server_tls, _ = tls_pair(tmp_path)

    def untrusted(_: Peer) -> None:
        raise AssertionError("let in all the same")

    with serving(untrusted, tls=server_tls) as server:
        _, error = await collect_until_error(server.url, CannotConnect)
    assert "certificate is not trusted" in str(error)


async def test_tls_with_a_server_that_has_none_fails() -> None:
    """`wss://` to a plain port is an error about TLS, not a hang."""

    def plain(peer: Peer) -> None:
        peer.sock.recv(65536)
        peer.raw(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with serving(plain) as server:
        _, error = await collect_until_error(server.url.replace("ws:", "wss:"), CannotConnect)
    assert "TLS failed" in str(error)


async def test_a_server_that_never_answers_is_not_waited_for_ever() -> None:
    """`answer_timeout` bounds the time until the server lets us in."""

    def script(peer: Peer) -> None:
        peer.read_request()
        assert peer.sock.recv(100) == b""

    with serving(script) as server:
        _, error = await collect_until_error(server.url, CannotConnect, answer_timeout=0.2)
    assert "no answer in 0.2 s" in str(error)


async def test_a_bad_url_or_token_is_told_before_anything_is_sent() -> None:
    """Neither needs a server, and a token with a newline is not shown."""
    await collect_until_error("ftp://h/", BadURL)
    _, error = await collect_until_error("ws://127.0.0.1:9/", BadToken, token="secret\r\nX: y")
    assert "secret" not in str(error)


# Slow, leaving, and cancelled consumers.


async def test_pings_are_answered_while_the_consumer_is_busy() -> None:
    """Between two records the connection is served: a Ping gets its Pong."""
    ponged = threading.Event()

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello())
        peer.ping(b"still there?")
        frame = peer.receive()
        assert frame is not None
        assert (frame.opcode, bytes(frame.data)) == (Opcode.PONG, b"still there?")
        ponged.set()
        peer.send(told.end())
        peer.close()
        peer.wait_gone()

    with serving(script) as server, trio.fail_after(20):
        async for record in stream(server.url):
            if isinstance(record, Hello):
                await wait(ponged)


async def test_a_consumer_that_stops_stops_the_server() -> None:
    """Bounded memory: the socket is left unread, the client still says that it is there, and
    nothing is lost when the consumer goes on."""
    line, limit = "x" * 65536, 2000
    blocked = threading.Event()
    sent = 0

    def script(peer: Peer) -> None:
        nonlocal sent
        told = Transcript()
        peer.accept()
        peer.send(told.hello())
        # Half of a record may be out when the socket takes no more, so that sendall is no use.
        pending = b""
        peer.sock.settimeout(1)
        while sent < limit and not blocked.is_set():
            pending += Frame(Opcode.TEXT, json.dumps(told.stdout(line)).encode()).serialize(
                mask=False
            )
            sent += 1
            while pending:
                try:
                    pending = pending[peer.sock.send(pending) :]
                except TimeoutError:
                    frame = peer.receive()
                    assert frame is not None
                    assert frame.opcode is Opcode.PONG
                    blocked.set()
                    peer.sock.settimeout(20)
        peer.send(told.end())
        peer.close()
        peer.wait_gone()

    received = 0
    with serving(script, send_buffer=65536) as server, trio.fail_after(60):
        async for record in stream(server.url):
            if isinstance(record, Hello):
                await wait(blocked)
            received += isinstance(record, Output)
    # 1 MiB lies with the client; the rest is in the kernel's buffers, which it grows as it likes.
    assert 16 <= sent == received < 400


async def test_leaving_the_loop_closes_the_connection_at_once() -> None:
    """With aclosing the server sees its client gone as soon as the block is left."""
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(Transcript().hello())
        peer.wait_gone()
        gone.set()

    with serving(script) as server:
        async with aclosing(stream(server.url)) as source:
            async for _ in source:
                break
        with trio.fail_after(5):
            await wait(gone)


async def test_leaving_while_the_server_sends_closes_as_well() -> None:
    """A connection with much unread input is closed at once, too."""
    gone = threading.Event()

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello())
        try:
            while True:
                peer.send(told.stdout("x" * 10000))
        except ConnectionError:
            gone.set()

    with serving(script) as server:
        async with aclosing(stream(server.url)) as source:
            async for _ in source:
                break
        with trio.fail_after(5):
            await wait(gone)


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_a_loop_that_is_left_without_aclosing_closes_too() -> None:
    """The generator is dropped, and the connection with it."""
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(Transcript().hello())
        peer.wait_gone()
        gone.set()

    with serving(script) as server:
        async for _ in stream(server.url):
            break
        with trio.fail_after(5):
            await wait(gone)


async def test_a_cancel_scope_around_the_loop_works() -> None:
    """A timeout of the caller's ends the loop and closes the connection."""
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(Transcript().hello())
        peer.wait_gone()
        gone.set()

    records = []
    with serving(script) as server:
        with trio.move_on_after(0.2) as scope:
            async for record in stream(server.url):
                records.append(record)  # noqa: PERF401  # the ones before the timeout are wanted
        assert scope.cancelled_caught
        assert len(records) == 1
        with trio.fail_after(5):
            await wait(gone)


async def test_a_cancelled_connect_leaves_nothing_behind() -> None:
    """Cancelled while the server has not answered, the client closes the connection."""
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_request()
        assert peer.sock.recv(100) == b""
        gone.set()

    with serving(script) as server:
        with trio.move_on_after(0.2) as scope:
            await collect(server.url)
        assert scope.cancelled_caught
        with trio.fail_after(5):
            await wait(gone)


async def test_many_streams_run_side_by_side() -> None:
    """Nothing is shared between the streams of one program."""
    counts = []

    async def follow(url: str) -> None:
        counts.append(len(await collect(url)))

    with serving(whole) as server:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(follow, server.url)
    assert counts == [4] * 20


# The other direction.


async def test_a_client_may_send_stdin_signals_and_cancel() -> None:
    """Each verb of a connection is one record of the contract."""
    received: list[dict[str, object]] = []

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello())
        received.extend(peer.receive_record() for _ in range(4))
        peer.send(told.end("cancelled", None, signal="SIGTERM"))
        peer.close(4004, "cancelled")
        peer.wait_gone()

    with serving(script) as server, trio.fail_after(20):
        async with connect(server.url) as connection:
            await connection.send_stdin(b"a\xff\n")
            await connection.send_stdin_eof()
            await connection.signal("SIGUSR1")
            await connection.cancel()
            records = [record async for record in connection.records()]
    assert received == [
        {"type": "stdin", "base64": "Yf8K"},
        {"type": "stdin_eof"},
        {"type": "signal", "name": "SIGUSR1"},
        {"type": "cancel"},
    ]
    assert isinstance(records[-1], End)
    assert records[-1].outcome is Outcome.CANCELLED


async def test_much_stdin_goes_in_records_of_less_than_1_mib() -> None:
    """A client record may have 1 MiB at most, so that more is several records."""
    sizes: list[int] = []

    def script(peer: Peer) -> None:
        peer.accept()
        while sum(sizes) < 3_000_000:
            frame = peer.receive()
            assert frame is not None
            assert len(frame.data) <= 1024 * 1024
            sizes.append(len(json.loads(bytes(frame.data))["base64"]) * 3 // 4)
        peer.wait_gone()

    with serving(script) as server, trio.fail_after(20):
        async with connect(server.url) as connection:
            await connection.send_stdin(b"x" * 3_000_000)
    assert len(sizes) == 6


async def test_a_cancelled_send_leaves_whole_frames() -> None:
    """A caller that gives up in the middle of a frame does not break the connection."""
    begun, given_up = threading.Event(), threading.Event()
    got: list[dict[str, object]] = []

    def script(peer: Peer) -> None:
        told = Transcript()
        peer.accept()
        peer.send(told.hello())
        got.append(peer.receive_record())
        begun.set()
        assert given_up.wait(10)
        while (record := peer.receive_record())["type"] == "stdin":
            got.append(record)
        assert record == {"type": "cancel"}
        peer.send(told.end())
        peer.close()
        peer.wait_gone()

    with serving(script) as server, trio.fail_after(30):
        async with connect(server.url) as connection:
            async with trio.open_nursery() as nursery:
                # More than the kernel takes while nobody reads.
                nursery.start_soon(connection.send_stdin, b"x" * 50_000_000)
                await wait(begun)
                nursery.cancel_scope.cancel()
            given_up.set()
            await connection.cancel()
            records = [record async for record in connection.records()]
    assert len(records) == 2
    assert 1 < len(got) < 96


async def test_sending_when_the_connection_is_over_says_so() -> None:
    """After the Close nothing can be sent."""
    with serving(whole) as server, trio.fail_after(20):
        async with connect(server.url) as connection:
            records = [record async for record in connection.records()]
            with pytest.raises(NotSent):
                await connection.cancel()
    assert len(records) == 4
