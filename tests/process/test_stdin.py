"""agentd.stdin: what waits for a child that may not read."""

import os
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from agentd.stdin import StdinFeed, StdinFull


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """The child's reading end and our writing end, which does not block."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:
            pass


async def test_data_comes_in_order_and_ends(ends: tuple[int, int]) -> None:
    """The child reads what was sent, as it was sent, and then the feed is done."""
    feed = StdinFeed()
    feed.send_nowait(b"one\n")
    feed.send_nowait(b"two\n")
    feed.send_eof_nowait()
    with trio.fail_after(5):
        await feed.write_all(ends[1])

    assert os.read(ends[0], 100) == b"one\ntwo\n"


async def test_more_than_a_pipe_holds_waits_for_the_child(ends: tuple[int, int]) -> None:
    """A large prompt is written as the child reads it."""
    reading, writing = ends
    prompt = b"x" * 500_000
    feed = StdinFeed()
    feed.send_nowait(prompt)
    feed.send_eof_nowait()
    received = bytearray()
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            await feed.write_all(writing)
            os.close(writing)

        nursery.start_soon(write)
        with trio.fail_after(10):
            while True:
                await trio.lowlevel.wait_readable(reading)
                part = os.read(reading, 65536)
                if not part:
                    break
                received += part

    assert received == prompt


async def test_a_child_that_does_not_read_lets_only_so_much_wait(ends: tuple[int, int]) -> None:
    """Beyond the capacity the sender is told, and what was taken before is kept."""
    feed = StdinFeed(capacity=10)
    feed.send_nowait(b"0123456789")
    with pytest.raises(StdinFull, match="stdin"):
        feed.send_nowait(b"x")
    feed.send_eof_nowait()
    with trio.fail_after(5):
        await feed.write_all(ends[1])

    assert os.read(ends[0], 100) == b"0123456789"


async def test_room_comes_back_as_the_child_reads(ends: tuple[int, int]) -> None:
    """The capacity is of what waits, not of all that was ever sent."""
    feed = StdinFeed(capacity=4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.write_all, ends[1])
        for number in range(10):
            feed.send_nowait(b"%03d\n" % number)
            await trio.testing.wait_all_tasks_blocked(0.005)
        nursery.cancel_scope.cancel()

    assert os.read(ends[0], 100) == b"".join(b"%03d\n" % number for number in range(10))


async def test_a_child_that_closed_its_end_is_no_error(ends: tuple[int, int]) -> None:
    """Who does not want standard input gets none, and sending to it is harmless."""
    os.close(ends[0])
    feed = StdinFeed(capacity=4)
    feed.send_nowait(b"data")
    with trio.fail_after(5):
        await feed.write_all(ends[1])
    feed.send_nowait(b"more")
    feed.send_nowait(b"more")


async def test_nothing_follows_the_end(ends: tuple[int, int]) -> None:
    """After end of file nothing more is taken."""
    feed = StdinFeed()
    feed.send_eof_nowait()
    feed.send_nowait(b"late")
    with trio.fail_after(5):
        await feed.write_all(ends[1])
    os.close(ends[1])

    assert os.read(ends[0], 100) == b""
