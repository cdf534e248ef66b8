"""agentd.wire: whole frames in one order, whatever the client's socket does."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel
import trio.testing
from testing.sockets import receive_all, receive_exactly, reset, tcp_pair

from agentd.sansio.frames import CLOSE, PONG, TEXT, close_frame, frame
from agentd.wire import ClientGone, Wire

ANSWER = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


@asynccontextmanager
async def accepted(
    server: trio.SocketStream,
    *,
    early: bytes = b"",
    write_timeout: float = 10,
) -> AsyncIterator[Wire]:
    """A wire on which trio-websocket has answered 101, with its writer running."""
    wire = Wire(server, b"GET / HTTP/1.1\r\n\r\n", early, write_timeout=write_timeout)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.write_pending)
        await wire.receive_some()
        await wire.send_all(ANSWER)
        try:
            yield wire
        finally:
            wire.abort()
            nursery.cancel_scope.cancel()


async def fill(wire: Wire, unit: bytes) -> int:
    """Send ``unit`` until the socket takes no more; return how many were sent."""
    count = 0
    while wire.idle:
        wire.send_nowait(unit)
        count += 1
    return count


async def test_data_follows_the_answer_at_once() -> None:
    """What is sent while the socket has room is with the client without a task switch."""
    async with tcp_pair() as (server, client), accepted(server) as wire:
        wire.send_nowait(frame(TEXT, b"one"))
        wire.send_nowait(frame(TEXT, b"two"))

        assert wire.idle
        expected = ANSWER + frame(TEXT, b"one") + frame(TEXT, b"two")
        assert client.recv(1000) == expected


async def test_a_full_socket_keeps_the_order_and_loses_nothing() -> None:
    """Units that the socket took in part are finished before the next ones."""
    unit = frame(TEXT, b"x" * 50_000)
    async with tcp_pair(buffer=8192) as (server, client), accepted(server) as wire:
        count = await fill(wire, unit)
        wire.send_nowait(frame(TEXT, b"last"))
        expected = ANSWER + unit * count + frame(TEXT, b"last")

        with trio.fail_after(10):
            assert await receive_exactly(client, len(expected)) == expected
            await wire.wait_settled()
        assert wire.idle


async def test_control_frames_wait_for_a_frame_boundary() -> None:
    """A Pong in the middle of a blocked send comes after the whole frame, and nobody waits."""
    unit = frame(TEXT, b"x" * 50_000)
    async with tcp_pair(buffer=8192) as (server, client), accepted(server) as wire:
        count = await fill(wire, unit)
        with trio.fail_after(5):
            await wire.send_all(frame(PONG, b"1"))
        expected = ANSWER + unit * count + frame(PONG, b"1")

        with trio.fail_after(10):
            assert await receive_exactly(client, len(expected)) == expected


async def test_a_flood_of_pings_keeps_one_pong() -> None:
    """A client that pings and does not read makes nothing grow (RFC 6455 5.5.3)."""
    unit = frame(TEXT, b"x" * 50_000)
    async with tcp_pair(buffer=8192) as (server, client), accepted(server) as wire:
        count = await fill(wire, unit)
        for number in range(1000):
            await wire.send_all(frame(PONG, b"%d" % number))
        expected = ANSWER + unit * count + frame(PONG, b"999")

        assert len(wire._pending) <= 2
        with trio.fail_after(10):
            assert await receive_exactly(client, len(expected)) == expected
            wire.abort()
            assert await receive_all(client) == b""


async def test_our_close_is_the_last_thing_written() -> None:
    """After Close neither trio-websocket nor the relay writes a byte."""
    async with tcp_pair() as (server, client), accepted(server) as wire:
        wire.send_nowait(frame(TEXT, b"last line"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: wire.close(1000, "exit 0", linger=5))
            await trio.testing.wait_all_tasks_blocked()
            await wire.send_all(frame(PONG, b"late"))
            with pytest.raises(ClientGone):
                wire.send_nowait(frame(TEXT, b"too late"))
            await wire.aclose()
            client.shutdown(socket.SHUT_WR)
        expected = ANSWER + frame(TEXT, b"last line") + close_frame(1000, "exit 0")

        assert await receive_all(client) == expected


async def test_a_client_that_keeps_sending_still_gets_the_last_lines() -> None:
    """Unread input at closing would reset the connection and destroy what is on its way."""
    async with tcp_pair() as (server, client), accepted(server) as wire:
        wire.send_nowait(frame(TEXT, b"last line"))
        client.sendall(b"x" * 100_000)
        await wire.aclose()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: wire.close(1000, "", linger=5))
            await trio.testing.wait_all_tasks_blocked()
            client.sendall(b"y" * 1000)
            client.shutdown(socket.SHUT_WR)

        assert await receive_all(client) == ANSWER + frame(TEXT, b"last line") + close_frame(1000)


async def test_a_client_that_never_closes_is_left_after_the_linger() -> None:
    """Draining the peer ends by itself."""
    async with tcp_pair() as (server, client), accepted(server) as wire:
        with trio.fail_after(5):
            await wire.close(1000, "", linger=0.05)

        assert wire.dead.is_set()
        assert await receive_all(client) == ANSWER + close_frame(1000)


async def test_close_waits_for_the_data_before_it() -> None:
    """Close goes after all data, however slowly the client reads."""
    unit = frame(TEXT, b"x" * 50_000)
    async with tcp_pair(buffer=8192) as (server, client), accepted(server) as wire:
        count = await fill(wire, unit)
        expected = ANSWER + unit * count + close_frame(4000, "exit 3")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: wire.close(4000, "exit 3", linger=0.05))
            with trio.fail_after(10):
                assert await receive_exactly(client, len(expected)) == expected


async def test_a_client_that_takes_nothing_is_cut_off_in_the_middle() -> None:
    """A half-written frame is followed by nothing, not even a Close: the peer sees 1006."""
    unit = frame(TEXT, b"x" * 50_000)
    async with (
        tcp_pair(buffer=8192) as (server, client),
        accepted(server, write_timeout=0.1) as wire,
    ):
        count = await fill(wire, unit)
        with trio.fail_after(10), pytest.raises(ClientGone):
            await wire.wait_settled()

        assert wire.too_slow
        received = await receive_all(client)
        assert (ANSWER + unit * count).startswith(received)
        assert close_frame(4008, "too slow") not in received


async def test_a_slow_client_is_not_one_that_takes_nothing() -> None:
    """The write timeout starts again with each byte the socket takes."""
    unit = frame(TEXT, b"x" * 200_000)
    async with (
        tcp_pair(buffer=8192) as (server, client),
        accepted(server, write_timeout=0.5) as wire,
    ):
        count = await fill(wire, unit)
        size = len(ANSWER) + count * len(unit)
        with trio.fail_after(30):
            while size:
                part = await receive_exactly(client, min(size, 20_000))
                size -= len(part)
                await trio.sleep(0.02)

        assert not wire.too_slow


async def test_sending_to_a_client_that_reset_raises_client_gone() -> None:
    """A RST is a client that is gone, not an error."""
    async with tcp_pair() as (server, client), accepted(server) as wire:
        reset(client)
        with trio.fail_after(5), pytest.raises(ClientGone):
            while True:
                wire.send_nowait(frame(TEXT, b"x"))
                await trio.lowlevel.checkpoint()


async def test_nothing_of_the_peer_is_read_before_it_is_accepted() -> None:
    """What a client sends too early stays with the kernel, so memory is bounded."""
    async with tcp_pair() as (server, client):
        wire = Wire(server, b"HEAD", b"early", write_timeout=10)
        client.sendall(b"later")

        assert await wire.receive_some() == b"HEAD"
        with trio.move_on_after(0.05) as blocked:
            await wire.receive_some()
        assert blocked.cancelled_caught

        await wire.send_all(ANSWER)
        assert await wire.receive_some() == b"early"
        assert await wire.receive_some() == b"later"


async def test_the_answer_to_the_peers_close_is_the_last_thing_written() -> None:
    """When the client closes, it gets its Close back and no data after it."""
    async with tcp_pair() as (server, client), accepted(server) as wire:
        wire.send_nowait(frame(TEXT, b"a"))
        await wire.send_all(frame(CLOSE, b"\x03\xe8"))

        assert wire.echoed
        with pytest.raises(ClientGone):
            wire.send_nowait(frame(TEXT, b"b"))
        await wire.close(1000, "", linger=1)
        assert await receive_all(client) == ANSWER + frame(TEXT, b"a") + frame(CLOSE, b"\x03\xe8")


async def test_too_large_a_message_leaves_the_close_to_us() -> None:
    """trio-websocket's own Close 1009 is not sent: agentd.v1 says 4400, after the end record."""
    async with tcp_pair() as (server, client), accepted(server) as wire:
        await wire.send_all(frame(CLOSE, b"\x03\xf1too big"))
        wire.send_nowait(frame(TEXT, b"end record"))
        client.shutdown(socket.SHUT_WR)
        await wire.close(4400, "client record too large", linger=1)

        assert not wire.echoed
        expected = frame(TEXT, b"end record") + close_frame(4400, "client record too large")
        assert await receive_all(client) == ANSWER + expected


async def test_abort_ends_every_waiter() -> None:
    """Nobody waits for a dead wire."""
    async with tcp_pair(buffer=8192) as (server, _client), accepted(server) as wire:
        await fill(wire, frame(TEXT, b"x" * 50_000))
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(ClientGone):
                    await wire.wait_settled()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            wire.abort()
        wire.abort()

        with pytest.raises(trio.BrokenResourceError):
            await wire.send_all(frame(PONG, b""))
        with pytest.raises(trio.ClosedResourceError):
            await wire.receive_some()
        await wire.wait_send_all_might_not_block()
