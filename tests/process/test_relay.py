"""agentd.relay: from a pipe to whole frames, at the pace of the slower side."""

import math
import os
from collections.abc import Iterator
from functools import partial

import pytest
import trio
import trio.lowlevel
import trio.testing

from agentd.relay import READ_SIZE, Pump, Relay
from agentd.sansio.frames import RawEncoder, RecordEncoder
from agentd.sansio.lines import LineSplitter
from agentd.wire import ClientGone


class Client:
    """A sink that takes what it is told to take."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.gone = False
        self._settled: trio.Event | None = None

    @property
    def idle(self) -> bool:
        return self._settled is None

    def block(self) -> None:
        self._settled = trio.Event()

    def unblock(self) -> None:
        assert self._settled is not None
        settled, self._settled = self._settled, None
        settled.set()

    def send_nowait(self, unit: bytes) -> None:
        if self.gone:
            raise ClientGone("gone")
        self.frames.append(unit)

    async def wait_settled(self) -> None:
        if self._settled is not None:
            await self._settled.wait()
        if self.gone:
            raise ClientGone("gone")


class Pipe:
    """A pipe whose reading end does not block, and the pump that reads it."""

    def __init__(self, client: Client, *, flush_partial: float = math.inf) -> None:
        self.reading, self.writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        encoder = RawEncoder()
        self.pump = Pump(
            self.reading,
            LineSplitter(1000),
            lambda pieces: encoder.encode("stdout", pieces),
            client,
            flush_partial=flush_partial,
        )

    def write(self, data: bytes) -> None:
        assert os.write(self.writing, data) == len(data)

    def end(self) -> None:
        os.close(self.writing)
        self.writing = -1

    def close(self) -> None:
        os.close(self.reading)
        if self.writing >= 0:
            self.end()


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def pipe(client: Client) -> Iterator[Pipe]:
    pipe = Pipe(client)
    yield pipe
    pipe.close()


async def test_everything_in_one_read_leaves_in_one_send(client: Client, pipe: Pipe) -> None:
    """One pass is one read and one send of whole frames."""
    pipe.write(b"one\ntwo\nthree")
    pipe.end()
    await pipe.pump.run()

    assert client.frames == [b"\x81\x03one\x81\x03two", b"\x81\x05three"]
    assert pipe.pump.finished.is_set()


async def test_a_line_leaves_before_the_pump_waits_again(client: Client, pipe: Pipe) -> None:
    """A line is with the client as soon as it was written, not when more comes."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.pump.run)
        for number in range(5):
            pipe.write(b"%d\n" % number)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert client.frames[-1] == b"\x81\x01%d" % number
        nursery.cancel_scope.cancel()

    assert pipe.pump.finished.is_set()


async def test_a_client_that_does_not_read_stops_the_reading(client: Client, pipe: Pipe) -> None:
    """Nothing is taken from the pipe for which there is no room behind it."""
    client.block()
    pipe.write(b"one\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.pump.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert pipe.pump.splitter.size == 0

        client.unblock()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert client.frames == [b"\x81\x03one"]
        pipe.end()


async def test_without_a_client_the_child_is_read_to_its_end(client: Client, pipe: Pipe) -> None:
    """A child whose client has left is not blocked by its own goodbye."""
    client.gone = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.pump.run)
        for _ in range(50):
            pipe.write(b"x" * 4000 + b"\n")
            await trio.testing.wait_all_tasks_blocked(0)
        pipe.end()

    assert client.frames == []
    assert pipe.pump.splitter.size == 50 * 4001


async def test_a_client_that_leaves_while_it_blocks_frees_the_child(
    client: Client, pipe: Pipe
) -> None:
    """The pump waits for a client that is gone no longer."""
    client.block()
    pipe.write(b"one\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.pump.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        client.gone = True
        client.unblock()
        pipe.end()

    assert pipe.pump.splitter.size == 4


async def test_both_streams_are_numbered_as_they_are_read(client: Client) -> None:
    """stdout and stderr share one sequence, in the order of their reads."""
    encoder = RecordEncoder()
    out, err = Pipe(client), Pipe(client)
    relay = Relay(
        [
            Pump(pipe.reading, LineSplitter(), partial(encoder.encode, name), client)
            for pipe, name in ((out, "stdout"), (err, "stderr"))
        ]
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        for number in range(4):
            (out, err)[number % 2].write(b"line %d\n" % number)
            await trio.testing.wait_all_tasks_blocked(0.01)
        out.end()
        err.end()
    out.close()
    err.close()

    assert [unit[unit.index(b"{") :] for unit in client.frames] == [
        b'{"type":"stdout","seq":1,"line":"line 0"}',
        b'{"type":"stderr","seq":2,"line":"line 1"}',
        b'{"type":"stdout","seq":3,"line":"line 2"}',
        b'{"type":"stderr","seq":4,"line":"line 3"}',
    ]


async def test_a_holder_of_the_pipe_does_not_hold_up_the_end(client: Client, pipe: Pipe) -> None:
    """After the drain time the relay is over although the other end is still open."""
    relay = Relay([pipe.pump])
    pipe.write(b"last\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        with trio.fail_after(5):
            await relay.drain(0.05)
            await relay.wait_finished()

    assert client.frames == [b"\x81\x04last"]


async def test_what_is_in_the_pipe_at_the_end_is_never_lost(client: Client, pipe: Pipe) -> None:
    """A client that reads slowly gets the last lines also when the drain time is long over."""
    relay = Relay([pipe.pump])
    client.block()
    pipe.write(b"0123456789abcde\n" * 4000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        await relay.drain(0.01)
        client.unblock()
        with trio.fail_after(5):
            await relay.wait_finished()

    assert b"".join(client.frames) == b"\x81\x0f0123456789abcde" * 4000


async def test_a_holder_that_prints_for_ever_does_not_hold_up_the_end(
    client: Client, pipe: Pipe
) -> None:
    """Of a helper's endless output only what is in the pipe at the end is still read."""
    relay = Relay([pipe.pump])

    async def print_for_ever() -> None:
        while True:
            try:
                os.write(pipe.writing, b"y\n" * 1000)
            except BlockingIOError:
                pass
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        nursery.start_soon(print_for_ever)
        with trio.fail_after(5):
            await relay.drain(0.05)
            await relay.wait_finished()
        nursery.cancel_scope.cancel()


async def test_an_endless_printer_leaves_time_for_other_tasks(client: Client, pipe: Pipe) -> None:
    """Between two full reads every other task has its turn."""
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async def print_for_ever() -> None:
        while pipe.pump.splitter.size < 20 * READ_SIZE:
            try:
                os.write(pipe.writing, b"y" * 999 + b"\n")
            except BlockingIOError:
                await trio.lowlevel.checkpoint()
        pipe.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        nursery.start_soon(print_for_ever)
        await pipe.pump.run()
        nursery.cancel_scope.cancel()

    assert turns >= 20


async def test_an_unfinished_line_is_flushed_after_silence(client: Client) -> None:
    """A prompt without a newline reaches the client when nothing follows it."""
    pipe = Pipe(client, flush_partial=0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.pump.run)
        pipe.write("password: é".encode()[:-1])
        with trio.fail_after(5):
            while not client.frames:
                await trio.sleep(0.005)
        pipe.write("é\n".encode()[1:])
        pipe.end()
    pipe.close()

    assert client.frames == [b"\x81\x0apassword: ", b"\x81\x02" + "é".encode()]


async def test_an_error_of_the_pipe_is_not_taken_for_its_end(client: Client) -> None:
    """Only a terminal's EIO is an end; anything else is a fault and is seen."""
    pipe = Pipe(client)
    pump = Pump(pipe.writing, LineSplitter(), lambda pieces: b"", client)  # cannot be read
    with pytest.raises(OSError, match="Bad file descriptor"):
        await pump.run()
    pipe.close()

    assert pump.finished.is_set()


async def test_the_end_of_a_terminal_is_the_end(client: Client) -> None:
    """EIO of a terminal whose other side was closed is end of file (pty(7))."""
    master, slave = os.openpty()
    os.set_blocking(master, False)
    os.write(slave, b"last")
    os.close(slave)
    encoder = RawEncoder()
    pump = Pump(master, LineSplitter(), lambda pieces: encoder.encode("stdout", pieces), client)
    with trio.fail_after(5):
        await pump.run()
    os.close(master)

    assert client.frames == [b"\x81\x04last"]
