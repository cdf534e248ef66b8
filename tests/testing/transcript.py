"""The records of an agentd.v1 stream, made from the contract and not with agentd's own encoder."""

import base64
import hashlib
import json
from typing import Any

Fields = dict[str, Any]


class Transcript:
    """A run as a server would tell it: each method returns the next record."""

    def __init__(self) -> None:
        self.stdout_bytes = b""
        self.stderr_bytes = b""
        self.seq = 0
        self.lines = {"stdout": 0, "stderr": 0}
        self._open = {"stdout": False, "stderr": False}

    def hello(self, **changes: object) -> Fields:
        return {
            "type": "hello",
            "protocol": "agentd.v1",
            "run": "run-1",
            "boot": "b00t",
            "build": "0.1.0",
            "image": None,
            "next": self.seq + 1,
        } | changes

    def stdout(
        self, content: bytes | str, *, more: bool = False, eol: bool = True, **changes: object
    ) -> Fields:
        record = self._output("stdout", content, more, eol)
        self.stdout_bytes += self._raw(content, more, eol)
        return record | changes

    def stderr(
        self, content: bytes | str, *, more: bool = False, eol: bool = True, **changes: object
    ) -> Fields:
        record = self._output("stderr", content, more, eol)
        self.stderr_bytes += self._raw(content, more, eol)
        return record | changes

    def heartbeat(self) -> Fields:
        return {"type": "heartbeat", "seq": self.seq}

    def end(self, outcome: str = "exited", exit_code: int | None = 0, **changes: object) -> Fields:
        return {
            "type": "end",
            "outcome": outcome,
            "exit_code": exit_code,
            "signal": None,
            "error": None,
            "stdout_lines": self.lines["stdout"],
            "stderr_lines": self.lines["stderr"],
            "stdout_bytes": len(self.stdout_bytes),
            "stdout_sha256": hashlib.sha256(self.stdout_bytes).hexdigest(),
            "seconds": 0.25,
        } | changes

    def _output(self, stream: str, content: bytes | str, more: bool, eol: bool) -> Fields:
        self.seq += 1
        self.lines[stream] += not self._open[stream]
        self._open[stream] = more
        record: Fields = {"type": stream, "seq": self.seq}
        if isinstance(content, bytes):
            try:
                record["line"] = content.decode()
            except UnicodeDecodeError:
                record["base64"] = base64.b64encode(content).decode()
        else:
            record["line"] = content
        if more:
            record["more"] = True
        if not eol:
            record["eol"] = False
        return record

    @staticmethod
    def _raw(content: bytes | str, more: bool, eol: bool) -> bytes:
        data = content if isinstance(content, bytes) else content.encode()
        return data + b"\n" if eol and not more else data


def text(record: Fields) -> str:
    """A record as the message that carries it."""
    return json.dumps(record)
