"""What the child reads on its standard input: a prompt, a context, or what the client sends.

Bytes wait here only while the child does not read, 1 MiB of the client's at most; a child that has
closed its end or has exited takes nothing more, which is no error (as for a shell's pipe).
"""

import os
from collections import deque

import trio

from agentd import AgentdError

CAPACITY = 1024 * 1024
"""Bytes of the client's that may wait for a child that does not read."""


class StdinFull(AgentdError):
    """The child does not read, and no more may wait for it."""


class StdinFeed:
    """The writing end of the child's standard input, and what waits to be written to it."""

    def __init__(self, *, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._waiting: deque[memoryview] = deque()
        self._size = 0
        self._ended = False
        self._closed = False
        self._work = trio.Event()

    def send_nowait(self, data: bytes) -> None:
        """Take ``data`` for the child, in order.

        Raises:
            StdinFull: more would wait than may; nothing of ``data`` was taken.
        """
        if self._ended or self._closed or not data:
            return
        if self._size + len(data) > self._capacity:
            raise StdinFull("stdin: the child does not read, and 1 MiB waits for it")
        self._waiting.append(memoryview(data))
        self._size += len(data)
        self._work.set()

    def send_eof_nowait(self) -> None:
        """Say that nothing more comes; the child sees end of file once it has read the rest."""
        self._ended = True
        self._work.set()

    async def write_all(self, fd: int) -> None:
        """Write to the non-blocking ``fd`` as the child reads, until end of file or its refusal.

        The caller owns ``fd`` and closes it afterwards.
        """
        while True:
            while self._waiting:
                try:
                    sent = os.write(fd, self._waiting[0])
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(fd)
                    continue
                except OSError:
                    # EPIPE: the child closed its end. It may live on without standard input.
                    self._closed = True
                    self._waiting.clear()
                    self._size = 0
                    return
                self._size -= sent
                if sent == len(self._waiting[0]):
                    self._waiting.popleft()
                else:
                    self._waiting[0] = self._waiting[0][sent:]
            if self._ended:
                return
            await self._work.wait()
            self._work = trio.Event()
