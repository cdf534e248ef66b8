"""Verbs about an inbox: open one on real files, put a file there, and see what comes out."""

import collections
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from agentd.inbox import Inbox
from agentd.sansio.context import Context, ContextError, parse_context


class Desk:
    """Where an inbox delivers: it has room for so many, and wants no id twice.

    Attributes:
        contexts: what has been delivered, in order.
        counts: what the inbox counted.
        looks: how often it asked for room, which it does once for each file it finds.
    """

    def __init__(self, room: int) -> None:
        self.contexts: list[Context] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.looks = 0
        self._room = room
        self._changed = trio.Event()

    def deliver(self, context: Context) -> str:
        assert self._room > 0, "delivered although there was no room"
        if context.id is not None and context.id in self.ids():
            raise ContextError("id: a run of this id is waiting")
        self._room -= 1
        self.contexts.append(context)
        self._change()
        return context.id or "generated"

    def count(self, what: str) -> None:
        self.counts[what] += 1
        self._change()

    def room(self) -> int:
        self.looks += 1
        self._change()
        return self._room

    async def wait_room(self) -> None:
        await self.wait_until(lambda: self._room > 0)

    def make_room(self, more: int) -> None:
        self._room += more
        self._change()

    def ids(self) -> list[str | None]:
        return [context.id for context in self.contexts]

    def prompts(self) -> list[str]:
        return [context.prompt for context in self.contexts]

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    async def wait_delivered(self, count: int) -> None:
        await self.wait_until(lambda: len(self.contexts) >= count)

    async def wait_refused(self, count: int) -> None:
        await self.wait_until(lambda: self.counts["refused"] >= count)

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@contextlib.asynccontextmanager
async def open_inbox(
    path: str, *, poll: bool = False, interval: float = 0.05, room: int = 1000
) -> AsyncIterator[Desk]:
    """Run an inbox on ``path`` until the block is left; one that polls does so at ``interval``."""
    desk = Desk(room)
    inbox = Inbox(
        path,
        parse=parse_context,
        deliver=desk.deliver,
        room=desk.room,
        wait_room=desk.wait_room,
        count=desk.count,
        poll=interval if poll else None,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(inbox.run)
        yield desk
        nursery.cancel_scope.cancel()


def document(prompt: str = "p", **keys: object) -> bytes:
    return json.dumps({"prompt": prompt, **keys}).encode()


def rename_into(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write ``data`` the way a careful writer does: under another name, then rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.write_bytes(data)
    temporary.chmod(mode)
    temporary.rename(path)


def write_in_place(path: Path, data: bytes) -> None:
    """Write ``data`` the way the Cloudflare SDK does: create 0644, write, close."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with open(fd, "wb") as file:
        file.write(data)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def is_there(path: Path) -> bool:
    """Say whether anything is called ``path``, be it a link that leads nowhere."""
    return os.path.lexists(path)


async def wait_gone(path: Path) -> None:
    """Return when nothing is called ``path``; the file system tells nobody, so this looks."""
    while is_there(path):
        await trio.sleep(0.001)
