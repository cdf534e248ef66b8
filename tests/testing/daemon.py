"""A running agentd, seen from outside: start it, hand it contexts, connect, read, stop it.

The same tests drive the module, the frozen binary and the image: what is started is a list of words
from ``AGENTD_TEST_COMMAND``, by default ``python -m agentd``.
"""

import contextlib
import http.client
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

V1 = "agentd.v1"
PATIENCE = 20.0
"""Seconds after which something that should happen has not."""


def launcher() -> list[str]:
    """The words that start agentd."""
    given = os.environ.get("AGENTD_TEST_COMMAND")
    return shlex.split(given) if given else [sys.executable, "-m", "agentd"]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Return the first true value of ``condition``, or fail saying that ``what`` did not happen."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def daemon_environ(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment without what this machine adds (PYTHONUNBUFFERED among it)."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
    root = str(Path(__file__).resolve().parents[2])
    return {**kept, "PYTHONPATH": root, **(more or {})}


@dataclass
class Stream:
    """What a client got: records or raw messages, and the Close."""

    messages: list[Any]
    code: int | None
    reason: str

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The records of one type."""
        return [record for record in self.messages if record["type"] == kind]

    @property
    def lines(self) -> list[str]:
        """The lines of stdout, of a stream without parts and base64."""
        return [record["line"] for record in self.of("stdout")]

    @property
    def end(self) -> dict[str, Any]:
        """The end record, which is the last one."""
        assert self.messages[-1]["type"] == "end", self.messages[-1]
        end: dict[str, Any] = self.messages[-1]
        return end


def read_all(client: ClientConnection, timeout: float = PATIENCE) -> Stream:
    """Read a stream to its Close; agentd.v1 messages are parsed."""
    messages: list[Any] = []
    parse = client.subprotocol == V1
    try:
        while True:
            message = client.recv(timeout)
            messages.append(json.loads(message) if parse else message)
    except ConnectionClosed as closed:
        received = closed.rcvd
        if received is None:
            return Stream(messages, None, "")
        return Stream(messages, received.code, received.reason)


@dataclass
class Daemon:
    """A running ``agentd serve``."""

    process: subprocess.Popen[bytes]
    context: Path
    """The file, or with a trailing slash in ``directory`` mode the directory, that it watches."""
    address: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)
    raw_log: list[str] = field(default_factory=list)
    directory: bool = False

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def url(self) -> str:
        return f"ws://{self.address}/"

    def write(self, data: bytes, name: str | None = None, mode: int = 0o600) -> Path:
        """Put a context file into place by rename."""
        path = self.context / f"{name}.json" if name else self.context
        temporary = path.with_name(f".{path.name}.{time.monotonic_ns()}")
        temporary.write_bytes(data)
        temporary.chmod(mode)
        temporary.rename(path)
        return path

    def submit(self, name: str | None = None, /, **context: Any) -> Path:
        """Hand over a context; its keys are the arguments."""
        return self.write(json.dumps(context).encode(), name)

    def connect(
        self,
        path: str = "/",
        *,
        subprotocols: Sequence[str] | None = (V1,),
        headers: Mapping[str, str] | None = None,
        origin: str | None = None,
        **options: Any,
    ) -> ClientConnection:
        """Connect the third-party ``websockets`` client."""
        client: ClientConnection = connect(
            f"ws://{self.address}{path}",
            subprotocols=None if subprotocols is None else [Subprotocol(p) for p in subprotocols],
            additional_headers=headers,
            origin=None if origin is None else Origin(origin),
            max_size=None,
            compression=None,
            proxy=None,
            close_timeout=5,
            **options,
        )
        return client

    def run(self, path: str = "/", *, raw: bool = False, **context: Any) -> Stream:
        """Hand over a context, connect, and read to the end."""
        self.submit(**context)
        with self.connect(path, subprotocols=None if raw else (V1,)) as client:
            return read_all(client)

    def get(
        self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Ask by plain HTTP; header names come back in lower case."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, headers=dict(headers or {}))
            response = connection.getresponse()
            answer = {key.lower(): value for key, value in response.getheaders()}
            return response.status, answer, response.read()
        finally:
            connection.close()

    def wait_log(self, text: str, seconds: float = PATIENCE) -> str:
        """Return the first log line that holds ``text``."""
        found: str = wait_for(
            lambda: next((line for line in self.raw_log if text in line), ""),
            f"{text!r} in the log:\n" + "\n".join(self.raw_log),
            seconds,
        )
        return found

    def stop(self, number: int = signal.SIGTERM, seconds: float = PATIENCE) -> int:
        """Signal the daemon and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


def _read_log(daemon: Daemon) -> None:
    assert daemon.process.stderr is not None
    for line in daemon.process.stderr:
        text = line.decode(errors="replace").rstrip("\n")
        daemon.raw_log.append(text)
        with contextlib.suppress(ValueError):
            daemon.log.append(json.loads(text))


@contextlib.contextmanager
def serving(
    folder: Path,
    *command: str,
    options: Sequence[str] = ("--auth", "none"),
    directory: bool = False,
    listen: str = "127.0.0.1:0",
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Daemon]:
    """Run ``agentd serve`` on a free port until the block ends.

    Args:
        folder: where its context file, or with ``directory`` its context directory, is.
        command: what it runs.
        options: of ``serve``, before the command.
        prefix: words before agentd's own, such as ``nohup``.
    """
    context = folder / "contexts" if directory else folder / "context.json"
    if directory:
        context.mkdir(mode=0o700, exist_ok=True)
    words = [
        *prefix, *launcher(), "serve", "--listen", listen,
        "--context", f"{context}/" if directory else str(context),
        *options, "--", *command,
    ]  # fmt: skip
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=daemon_environ(env),
    )
    daemon = Daemon(process, context, directory=directory)
    reader = threading.Thread(target=_read_log, args=(daemon,), daemon=True)
    reader.start()
    try:
        ready = wait_for(
            lambda: (
                next((line for line in daemon.raw_log if "ready on " in line), "")
                or (process.poll() is not None and "gone")
            ),
            "ready",
        )
        reader.join(0.2 if ready == "gone" else 0)
        assert ready != "gone", "\n".join(daemon.raw_log)
        message = json.loads(ready)["message"] if ready.startswith("{") else ready
        daemon.address = message.rpartition("ready on ")[2].split(",")[0].strip()
        yield daemon
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join(5)
        assert process.stderr is not None
        process.stderr.close()
