"""Programs nobody wrote for this: what they print is what arrives, and when they print it."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from testing.daemon import Daemon, Stream, read_all, serving
from testing.records import Arrival, arrivals, rebuild, verify
from testing.tools import needs_node

OPEN = ("--auth", "none")


def plain(*command: str) -> bytes:
    """What a program prints when nobody stands between it and its reader."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          stdin=subprocess.DEVNULL, check=False, cwd="/").stdout  # fmt: skip


def timed(daemon: Daemon, **context: object) -> list[Arrival]:
    """Run it, and return each record of stdout with the time it came."""
    daemon.submit(**context)
    with daemon.connect() as client:
        return [each for each in arrivals(client) if each.message["type"] == "stdout"]


def lasted(some: Sequence[Arrival]) -> float:
    """Seconds between the first of these and the last."""
    return some[-1].at - some[0].at


def test_json_tool_formats_the_prompt(tmp_path: Path) -> None:
    """``python3 -m json.tool --json-lines`` reads the prompt and prints it formatted."""
    documents = [{"n": n, "text": "Zürich 😀", "list": [1, [2, None]]} for n in range(200)]
    prompt = "".join(json.dumps(document) + "\n" for document in documents)
    command = ("python3", "-m", "json.tool", "--json-lines", "--compact")
    with serving(tmp_path, *command) as daemon:
        stream = daemon.run(prompt=prompt)
    verify(stream)
    assert [json.loads(line) for line in stream.lines] == documents
    assert (stream.code, stream.end["stdout_lines"]) == (1000, 200)


def test_json_tool_tells_of_bad_input(tmp_path: Path) -> None:
    """Its complaint is on stderr, and its exit status is the stream's."""
    command = ("python3", "-m", "json.tool", "--json-lines", "--compact")
    with serving(tmp_path, *command) as daemon:
        stream = daemon.run(prompt='{"good": 1}\n{bad}\n')
    assert stream.lines == ['{"good":1}']
    assert "Expecting property name" in stream.of("stderr")[-1]["line"]
    assert (stream.end["exit_code"], stream.code) == (1, 4000)


def test_json_tool_answers_line_by_line(tmp_path: Path) -> None:
    """Fed by the client, it answers each document before it is given the next."""
    command = ("python3", "-m", "json.tool", "--json-lines", "--compact")
    with serving(tmp_path, *command, options=(*OPEN, "--stdin", "client")) as daemon:
        daemon.submit()
        with daemon.connect(subprotocols=("agentd.raw",)) as client:
            for number in range(20):
                client.send(json.dumps({"number": number}))
                assert client.recv(20) == f'{{"number":{number}}}'


def test_awk_paces_its_lines(tmp_path: Path) -> None:
    """An awk that pauses before each line, as ping does, arrives in as many steps."""
    program = (
        'BEGIN { for (i = 1; i <= 8; i++) { print "seq=" i; fflush(); system("sleep 0.15") } }'
    )
    with serving(tmp_path, "awk", program) as daemon:
        got = timed(daemon)
    assert [each.message["line"] for each in got] == [f"seq={number}" for number in range(1, 9)]
    assert lasted(got) > 0.3


def test_stdbuf_makes_a_filter_stream(tmp_path: Path) -> None:
    """``stdbuf -oL tr`` at the end of a paced pipeline passes each line on at once."""
    pace = "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.15; done | stdbuf -oL tr a-z A-Z"
    with serving(tmp_path, "sh", "-c", pace) as daemon:
        got = timed(daemon)
    assert [each.message["line"] for each in got] == [f"LINE {number}" for number in range(1, 9)]
    assert lasted(got) > 0.3


# What an agent on the AI SDK prints: one JSON object a line, at the pace of a model's tokens.
AGENT = """
import fs from 'node:fs';
const words = ['Hello', ', ', 'wörld', ' 😀', '\\n', 'said "she"', '\\u2028', '.'];
const wait = () => new Promise((resolve) => setTimeout(resolve, 60));
const print = process.env.HOW === 'sync'
  ? (line) => fs.writeSync(1, line + '\\n')
  : (line) => console.log(line);
let prompt = '';
for await (const chunk of process.stdin) prompt += chunk;
print(JSON.stringify({ type: 'start', messageId: 'msg-1' }));
for (const delta of words) {
  print(JSON.stringify({ type: 'text-delta', id: '0', delta }));
  await wait();
}
print(JSON.stringify({ type: 'tool-input-available', toolName: 'read', input: { prompt } }));
print(JSON.stringify({ type: 'tool-output-available', output: 'x'.repeat(100000) }));
print(JSON.stringify({ type: 'finish', usage: { key: process.env.API_KEY?.length } }));
"""


def _agent(tmp_path: Path, how: str) -> None:
    program = tmp_path / "agent.mjs"
    program.write_text(AGENT)
    with serving(tmp_path, shutil.which("node") or "node", str(program)) as daemon:
        got = timed(daemon, prompt="Say\nhello", env={"HOW": how, "API_KEY": "sk-123"})
    records = [json.loads(each.message["line"]) for each in got]
    text = "".join(record["delta"] for record in records if record["type"] == "text-delta")
    assert text == 'Hello, wörld 😀\nsaid "she"\u2028.'
    assert [record["type"] for record in records[:2]] == ["start", "text-delta"]
    assert records[-3]["input"] == {"prompt": "Say\nhello"}
    assert len(records[-2]["output"]) == 100000
    assert records[-1] == {"type": "finish", "usage": {"key": 6}}
    assert lasted(got) > 0.15


@needs_node
def test_a_node_agent_writes_synchronously(tmp_path: Path) -> None:
    """``fs.writeSync`` of JSON lines arrives as it is written, prompt and key having arrived."""
    _agent(tmp_path, "sync")


@needs_node
def test_a_node_agent_uses_console_log(tmp_path: Path) -> None:
    """``console.log`` of the same arrives the same way."""
    _agent(tmp_path, "console")


@needs_node
def test_node_writes_a_lot_and_exits_at_once(tmp_path: Path) -> None:
    """A Node child whose last megabytes are still in its pipe when it exits loses none of them."""
    script = (
        "const fs = require('node:fs');"
        "for (let i = 0; i < 100000; i++)"
        " fs.writeSync(1, JSON.stringify({ type: 'text-delta', i }) + '\\n');"
        "process.exit(7)"
    )
    with serving(tmp_path, "node", "-e", script) as daemon:
        stream = daemon.run()
    verify(stream)
    assert [json.loads(line)["i"] for line in stream.lines] == list(range(100000))
    assert (stream.code, stream.reason) == (4000, "exit 7")


def test_find_prints_a_tree_exactly(tmp_path: Path) -> None:
    """``find`` over what the system shares is byte for byte what it prints into a pipe."""
    command = ("find", "/usr/share", "-xdev")
    with serving(tmp_path, *command) as daemon:
        for _ in range(3):
            before = plain(*command)
            stream = daemon.run()
            if before == plain(*command):  # else somebody is installing something just now
                break
    output = verify(stream)
    assert hashlib.sha256(output).digest() == hashlib.sha256(before).digest()
    assert output.count(b"\n") > 100
    assert stream.code == 1000


def test_find_walks_the_whole_file_system(tmp_path: Path) -> None:
    """``find / -xdev`` is what its digest says; what vanishes meanwhile is on stderr, and what
    stays is all there."""
    with serving(tmp_path, "find", "/", "-xdev") as daemon:
        daemon.submit()
        with daemon.connect() as client:
            stream = read_all(client, timeout=60)
    output = verify(stream)
    stays = set(plain("find", "/usr/share", "/etc", "-xdev").split(b"\n"))
    assert len(stays - set(output.split(b"\n"))) < len(stays) / 100
    assert stream.code in (1000, 4000)


def test_a_log_that_comes_in_bursts(tmp_path: Path) -> None:
    """Thousands of kernel-like lines at once, silence, and again: each burst is whole on arrival
    of its last line, long before the next."""
    burst = (
        "for b in 1 2 3; do"
        " awk -v b=$b 'BEGIN { for (i = 0; i < 20000; i++)"
        ' printf "<6>[%5d.%06d] usb %d-1: new high-speed device number %d\\n", b, i, b, i }\';'
        " sleep 0.6; done"
    )
    with serving(tmp_path, "sh", "-c", burst) as daemon:
        got = timed(daemon)
    assert [each.message["line"] for each in got] == [
        f"<6>[{b:5d}.{i:06d}] usb {b}-1: new high-speed device number {i}"
        for b in (1, 2, 3)
        for i in range(20000)
    ]
    assert lasted(got) > 0.3


def test_compressed_bytes_survive(tmp_path: Path) -> None:
    """gzip's output, which is no text at all, is rebuilt to the byte and decompresses."""
    command = ("sh", "-c", "seq 100000 | gzip -n")
    with serving(tmp_path, *command) as daemon:
        stream: Stream = daemon.run()
    verify(stream)
    unpacked = subprocess.run(
        ["gzip", "-d"], input=rebuild(stream.messages), capture_output=True, check=True
    ).stdout
    assert unpacked == plain("seq", "100000")
