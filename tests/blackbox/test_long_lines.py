"""A line without end: parts as it comes, the digest right, and no more memory than a short one."""

import hashlib
import json
from pathlib import Path

from testing.daemon import V1, Daemon, serving
from testing.handmade import TEXT, Handmade, close_code

MIB = 1 << 20


def _peak(daemon: Daemon) -> int:
    """The most memory the daemon ever held, in bytes (VmHWM, proc_pid_status(5)).

    A launcher may start the daemon as its child: the larger of the two counts.
    """
    pid = daemon.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    same = [child for child in children if _program(child) == _program(str(pid))]
    return max(_high_water(each) for each in [str(pid), *same])


def _program(pid: str) -> str:
    return str(Path(f"/proc/{pid}/exe").readlink())


def _high_water(pid: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _one_line(daemon: Daemon, size: int) -> None:
    """Let the child print ``size`` times x and a newline, and check all that comes."""
    daemon.submit(prompt=f"head -c {size} /dev/zero | tr '\\0' x; echo")
    digest, received, parts = hashlib.sha256(), 0, 0
    begin = b'","line":"'.removeprefix(b'"')
    with Handmade(daemon.address, subprotocols=[V1]) as client:
        frames = client.frames()
        assert json.loads(next(frames).payload)["type"] == "hello"
        for frame in frames:
            if not frame.payload.startswith(b'{"type":"stdout"'):
                break
            assert frame.first == 0x80 | TEXT
            parts += 1
            head, _, rest = frame.payload.partition(begin)
            assert head == b'{"type":"stdout","seq":%d' % parts
            line, _, marks = rest.partition(b'"')
            assert marks == (b"}" if received + len(line) == size else b',"more":true}')
            received += len(line)
            digest.update(line)
        end = json.loads(frame.payload)
        assert close_code(next(frames)) == (1000, "exit 0")
        assert next(frames, None) is None
    digest.update(b"\n")
    assert received == size
    assert parts == -(-size // 262144)
    assert (end["stdout_lines"], end["stdout_bytes"]) == (1, size + 1)
    assert end["stdout_sha256"] == digest.hexdigest()


def test_a_line_of_a_gibibyte_costs_no_memory(tmp_path: Path) -> None:
    """1 GiB without a newline arrives in parts of ``--max-line``, byte for byte, and the daemon
    holds little more than for a line of 4 MiB."""
    with serving(tmp_path, "sh") as daemon:
        _one_line(daemon, 4 * MIB)
        before = _peak(daemon)
        _one_line(daemon, 1024 * MIB)
        assert _peak(daemon) - before < 32 * MIB


def test_a_long_raw_line_costs_no_memory(tmp_path: Path) -> None:
    """Also the raw stream cuts a line of 128 MiB and holds little of it."""
    size = 128 * MIB
    with serving(tmp_path, "sh") as daemon:
        assert daemon.run(raw=True, prompt="head -c 4194304 /dev/zero | tr '\\0' x; echo").messages
        before = _peak(daemon)
        daemon.submit(prompt=f"head -c {size} /dev/zero | tr '\\0' x; echo; echo end")
        with Handmade(daemon.address) as client:
            *parts, last, close = client.frames()
        assert b"".join(frame.payload for frame in parts) == b"x" * size
        assert (last.payload, close_code(close)) == (b"end", (1000, "exit 0"))
        assert _peak(daemon) - before < 32 * MIB


def test_another_stream_is_served_meanwhile(tmp_path: Path) -> None:
    """While one client stops in the middle of a line without end, others come and are served."""
    with serving(tmp_path, "sh") as daemon:
        daemon.submit(prompt="tr '\\0' x </dev/zero")
        with Handmade(daemon.address, subprotocols=[V1], buffer=4096) as client:
            frames = client.frames()
            assert b'"hello"' in next(frames).payload
            assert b'"more":true' in next(frames).payload
            assert daemon.run(prompt="echo other").lines == ["other"]
            assert daemon.get("/healthz")[0] == 200
            client.send(bytes([0x81, 0x80 | 17, 0, 0, 0, 0]) + b'{"type":"cancel"}')
            for frame in frames:
                if frame.payload.startswith(b'{"type":"end"'):
                    break
            assert json.loads(frame.payload)["outcome"] == "cancelled"
            assert close_code(next(frames))[0] == 4004
