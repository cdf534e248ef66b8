"""The inbox on a real file system: one file or a directory, by inotify and by polling."""

import contextlib
import dataclasses
import json
import logging
import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from testing.inbox import (
    document,
    is_there,
    names,
    open_inbox,
    rename_into,
    wait_gone,
    warnings_of,
    write_in_place,
)

from agentd import linux, watch
from agentd.inbox import POLL, REMEMBERED
from agentd.sansio.context import MAX_SIZE

CANARY = "canary-c0ffee"
STRANGER = 12345

QUEUE = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@dataclasses.dataclass
class Place:
    """What an inbox watches, and a file that it would claim there."""

    path: str
    file: Path
    poll: bool

    @property
    def directory(self) -> Path:
        return self.file.parent

    @property
    def is_directory(self) -> bool:
        return self.path.endswith("/")

    def another(self, name: str) -> "Place":
        """The same with another file, where there can be more than one."""
        return dataclasses.replace(self, file=self.directory / f"{name}.json")


@pytest.fixture(params=["inotify", "poll"])
def poll(request: pytest.FixtureRequest) -> bool:
    return str(request.param) == "poll"


@pytest.fixture(params=["file", "directory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, poll: bool) -> Place:
    if request.param == "file":
        return Place(str(tmp_path / "query.json"), tmp_path / "query.json", poll)
    return Place(f"{tmp_path}/", tmp_path / "stem.json", poll)


@pytest.fixture
def inbox(tmp_path: Path, poll: bool) -> Place:
    """A directory, for what needs more than one file."""
    return Place(f"{tmp_path}/", tmp_path / "stem.json", poll)


@pytest.fixture
def plain_directory() -> Iterator[Path]:
    """A directory that a plain user owns; for the test, that user is us."""
    before = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        if before == 0:
            os.chown(name, STRANGER, STRANGER)
            os.seteuid(STRANGER)
        try:
            yield Path(name)
        finally:
            os.seteuid(before)
            os.chmod(name, 0o700)


@contextlib.contextmanager
def as_root() -> Iterator[None]:
    before = os.geteuid()
    os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(before)


# What is claimed, and as what.


async def test_a_file_that_was_there_before_is_claimed(place: Place) -> None:
    """The control plane may be faster than the daemon."""
    rename_into(place.file, document("early", env={"A": "b"}))
    with trio.fail_after(10):
        async with open_inbox(place.path, poll=place.poll) as desk:
            await desk.wait_delivered(1)
    assert (desk.contexts[0].prompt, desk.contexts[0].env) == ("early", {"A": "b"})
    assert desk.counts == {"claimed": 1}
    assert names(place.directory) == []


@pytest.mark.parametrize("write", [rename_into, write_in_place])
async def test_a_file_that_appears_is_claimed_and_gone(
    place: Place, write: Callable[[Path, bytes], None]
) -> None:
    """Whether it is renamed into place or written there, again and again."""
    with trio.fail_after(20):
        async with open_inbox(place.path, poll=place.poll) as desk:
            for number in range(5):
                write(place.file, document(str(number), id=f"run-{number}"))
                await desk.wait_delivered(number + 1)
    assert desk.prompts() == ["0", "1", "2", "3", "4"]
    assert desk.counts == {"claimed": 5}
    assert names(place.directory) == []


async def test_a_context_without_an_id_gets_the_files_stem_in_a_directory(place: Place) -> None:
    """A single file's stem says nothing about the run."""
    with trio.fail_after(10):
        async with open_inbox(place.path, poll=place.poll) as desk:
            rename_into(place.file, document())
            await desk.wait_delivered(1)
    assert desk.ids() == ["stem" if place.is_directory else None]


async def test_the_contexts_own_id_beats_the_files_stem(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log tells it, but nothing else of the context."""
    caplog.set_level(logging.DEBUG)
    with trio.fail_after(10):
        async with open_inbox(place.path, poll=place.poll) as desk:
            rename_into(place.file, document(CANARY, id="mine", env={"A": CANARY}))
            await desk.wait_delivered(1)
    assert desk.ids() == ["mine"]
    (record,) = [record for record in caplog.records if record.name == "agentd.inbox"]
    assert record.__dict__["run"] == "mine"
    assert CANARY not in caplog.text


async def test_other_names_are_left_alone(place: Place) -> None:
    """Dot files and other suffixes."""
    others = [".hidden.json", ".json", "a.json.tmp", "README", "x.JSON"]
    for name in others:
        (place.directory / name).write_bytes(document())
    with trio.fail_after(10):
        async with open_inbox(place.path, poll=place.poll) as desk:
            for name in others:
                rename_into(place.directory / name, document())
            rename_into(place.file, document("mine"))
            await desk.wait_delivered(1)
    assert desk.prompts() == ["mine"]
    assert names(place.directory) == sorted(others)


@pytest.mark.parametrize("stem", ["a b", "é", "x" * 129])
async def test_a_name_that_can_name_no_run_needs_an_id_in_the_context(
    tmp_path: Path, poll: bool, stem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A secret does not lie there for ever because of its file's name: it is gone, and told."""
    with trio.fail_after(10):
        async with open_inbox(f"{tmp_path}/", poll=poll) as desk:
            rename_into(tmp_path / f"{stem}.json", document("refused"))
            while not desk.counts["refused"]:
                await trio.sleep(0.01)
            rename_into(tmp_path / f"{stem}.json", document("taken", id="mine"))
            await desk.wait_delivered(1)
    assert desk.ids() == ["mine"]
    assert names(tmp_path) == []
    assert "name cannot be one" in caplog.text


async def test_a_single_files_neighbours_are_not_claimed(tmp_path: Path, poll: bool) -> None:
    """Only the one name counts, also where it looks like many."""
    with trio.fail_after(10):
        async with open_inbox(f"{tmp_path}/.odd name", poll=poll) as desk:
            rename_into(tmp_path / "other.json", document("other"))
            rename_into(tmp_path / ".odd name", document("mine"))
            await desk.wait_delivered(1)
    assert desk.prompts() == ["mine"]
    assert names(tmp_path) == ["other.json"]


async def test_a_path_without_a_directory_is_here(
    tmp_path: Path, poll: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with trio.fail_after(10):
        async with open_inbox("query.json", poll=poll) as desk:
            rename_into(Path("query.json"), document("here"))
            await desk.wait_delivered(1)
    assert desk.prompts() == ["here"]


async def test_what_a_killed_daemon_left_is_removed_at_the_start(place: Place) -> None:
    """Between rename and unlink a context has a name of its own; it rests there no longer."""
    (place.directory / ".agentd-claim-0123").write_bytes(document(CANARY))
    with trio.fail_after(10):
        async with open_inbox(place.path, poll=place.poll):
            await wait_gone(place.directory / ".agentd-claim-0123")
    assert names(place.directory) == []


# Order, and room.


async def test_files_that_were_there_come_oldest_first(inbox: Place) -> None:
    """By modification time, whatever their names are."""
    for age, name in enumerate(["c", "a", "d", "b"]):
        rename_into(inbox.another(name).file, document())
        os.utime(inbox.another(name).file, (1_000_000 - age, 1_000_000 - age))
    with trio.fail_after(10):
        async with open_inbox(inbox.path, poll=inbox.poll) as desk:
            await desk.wait_delivered(4)
    assert desk.ids() == ["b", "d", "a", "c"]


async def test_whole_files_come_in_the_order_they_became_visible(tmp_path: Path) -> None:
    """Also when many are seen at once and were written in another order."""
    for number in range(200):
        (tmp_path / f".{number}").write_bytes(document())
    order = [(number * 71) % 200 for number in range(200)]
    with trio.fail_after(10):
        async with open_inbox(f"{tmp_path}/") as desk:
            for number in order:
                os.rename(tmp_path / f".{number}", tmp_path / f"{number}.json")
            await desk.wait_delivered(200)
    assert desk.ids() == [str(number) for number in order]


async def test_without_room_files_stay_unclaimed_until_there_is_some(inbox: Place) -> None:
    """What nobody can take yet stays where it is, and then comes oldest first."""
    for number in range(5):
        rename_into(inbox.another(f"run-{number}").file, document())
        os.utime(inbox.another(f"run-{number}").file, (number, number))
    with trio.fail_after(10):
        async with open_inbox(inbox.path, poll=inbox.poll, room=2) as desk:
            await desk.wait_delivered(2)
            rename_into(inbox.another("run-5").file, document())
            looks = desk.looks
            await desk.wait_until(lambda: desk.looks > looks)
            assert names(inbox.directory) == [f"run-{number}.json" for number in range(2, 6)]
            desk.make_room(1)
            await desk.wait_delivered(3)
            await desk.wait_until(lambda: desk.looks > looks + 1)
            assert names(inbox.directory) == [f"run-{number}.json" for number in range(3, 6)]
            desk.make_room(10)
            await desk.wait_delivered(6)
    assert desk.ids() == [f"run-{number}" for number in range(6)]
    assert names(inbox.directory) == []


async def test_a_claim_in_flight_takes_room_until_it_is_decided(inbox: Place) -> None:
    """With room for one, a file behind an unfinished one is not even claimed."""
    with trio.fail_after(10):
        async with open_inbox(inbox.path, poll=inbox.poll, room=1) as desk:
            with inbox.another("slow").file.open("wb") as slow:
                await wait_gone(inbox.another("slow").file)
                rename_into(inbox.another("next").file, document())
                looks = desk.looks
                await desk.wait_until(lambda: desk.looks > looks + 2)
                assert names(inbox.directory) == ["next.json"]
                slow.write(b"no json")
            await desk.wait_delivered(1)
    assert desk.ids() == ["next"]
    assert desk.counts == {"refused": 1, "claimed": 1}


# Writers that are not done.


async def test_a_file_still_being_written_is_gone_at_once_and_delivered_whole(
    place: Place,
) -> None:
    """A writer may take its time between the parts, and is waited for to the close."""
    data = document("x" * 300_000, id="late")
    with trio.fail_after(10):
        async with open_inbox(place.path, poll=place.poll) as desk:
            with place.file.open("wb", buffering=0) as writer:
                os.fchmod(writer.fileno(), 0o644)
                writer.write(data[:7])
                await wait_gone(place.file)
                for start in range(7, len(data), 100_000):
                    writer.write(data[start : start + 100_000])
                    await trio.sleep(0.02)
                assert desk.contexts == []
            await desk.wait_delivered(1)
    assert desk.prompts() == ["x" * 300_000]
    assert desk.counts == {"claimed": 1}


async def test_a_writer_that_never_finishes_holds_up_nobody(
    inbox: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """The file behind it is delivered long before the first one's 2 s are over."""
    with trio.fail_after(10):
        async with open_inbox(inbox.path, poll=inbox.poll) as desk:
            with inbox.another("endless").file.open("wb", buffering=0) as writer:
                writer.write(document(CANARY)[:-1])
                await wait_gone(inbox.another("endless").file)
                with trio.fail_after(1):
                    rename_into(inbox.another("next").file, document())
                    await desk.wait_delivered(1)
                assert desk.counts == {"claimed": 1}
                await desk.wait_refused(1)
    assert desk.ids() == ["next"]
    assert "endless.json: its writer has not closed it" in warnings_of(caplog)[0]
    assert CANARY not in caplog.text


async def test_a_file_that_stops_early_is_refused_in_the_end(
    inbox: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has it open, nothing more comes: after 2 s it is a bad one."""
    with trio.fail_after(10):
        async with open_inbox(inbox.path, poll=inbox.poll) as desk:
            rename_into(inbox.another("empty").file, b"")
            rename_into(inbox.another("cut").file, document(CANARY)[:-1])
            rename_into(inbox.another("good").file, document())
            with trio.fail_after(1):
                await desk.wait_delivered(1)
            await desk.wait_refused(2)
    assert desk.ids() == ["good"]
    assert all("stops before its end" in warning for warning in warnings_of(caplog))
    assert CANARY not in caplog.text


async def test_a_file_that_grows_too_large_is_refused_while_it_grows(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit holds for what comes after the claim too."""
    with trio.fail_after(10):
        async with open_inbox(place.path, poll=place.poll) as desk:
            with place.file.open("wb", buffering=0) as writer:
                await wait_gone(place.file)
                writer.write(b" " * (MAX_SIZE + 1))
                await desk.wait_refused(1)
    assert "larger than" in warnings_of(caplog)[0]


async def test_300_replacements_in_flight_are_claimed_at_most_once_each(place: Place) -> None:
    """None half-read, none twice, in order, and the last one in any case."""
    numbers = range(300)

    def write_all() -> None:
        for number in numbers:
            data = document(f"{number}:" + "x" * (number * 97), id=f"run-{number}")
            rename_into(place.file, data)

    with trio.fail_after(30):
        async with open_inbox(place.path, poll=place.poll) as desk:
            await trio.to_thread.run_sync(write_all)
            await desk.wait_until(lambda: "run-299" in desk.ids())
    found = [int(prompt.partition(":")[0]) for prompt in desk.prompts()]
    assert found == sorted(set(found))
    assert all(len(p.partition(":")[2]) == int(p.partition(":")[0]) * 97 for p in desk.prompts())
    assert desk.counts == {"claimed": len(found)}
    assert names(place.directory) == []


CLAIMER = """
import sys, trio
sys.path.insert(0, "tests")
from testing.inbox import open_inbox
async def main():
    async with open_inbox(sys.argv[1]) as desk:
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        print(*desk.prompts())
trio.run(main)
"""


def test_two_daemons_never_claim_the_same_file_and_lose_none(tmp_path: Path) -> None:
    """Of 300 contexts that replace one another each comes to one at most, the last to one."""
    daemons = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, f"{tmp_path}/query.json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for daemon in daemons:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "ready\n"
        for number in range(300):
            rename_into(tmp_path / "query.json", document(str(number)))
        trio.run(wait_gone, tmp_path / "query.json")
        claimed = [int(n) for daemon in daemons for n in daemon.communicate(timeout=30)[0].split()]
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
    assert len(claimed) == len(set(claimed))
    assert 299 in claimed
    assert names(tmp_path) == []


# Bad files.


def a_symlink(path: Path) -> None:
    target = path.parent / "elsewhere"
    rename_into(target, document(CANARY))
    path.symlink_to(target)


def a_dangling_symlink(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def a_fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def a_device(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))


def a_hard_link(path: Path) -> None:
    other = path.parent / "elsewhere"
    rename_into(other, document(CANARY))
    os.link(other, path)


def a_strangers_file(path: Path) -> None:
    temporary = path.with_name(".stranger")
    temporary.write_bytes(document(CANARY))
    os.chown(temporary, STRANGER, STRANGER)
    temporary.rename(path)


def group_writable(path: Path) -> None:
    rename_into(path, document(CANARY), mode=0o620)


def world_writable(path: Path) -> None:
    rename_into(path, document(CANARY), mode=0o602)


def too_large(path: Path) -> None:
    rename_into(path, document(CANARY).ljust(MAX_SIZE + 1))


def not_json(path: Path) -> None:
    rename_into(path, b"{'prompt': '" + CANARY.encode() + b"'}")


def wrong_type(path: Path) -> None:
    rename_into(path, json.dumps({"prompt": [CANARY]}).encode())


def wrong_env(path: Path) -> None:
    rename_into(path, document(CANARY, env={"LD_PRELOAD": CANARY}))


def deeply_nested(path: Path) -> None:
    rename_into(path, b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (a_symlink, "a symbolic link"),
        (a_dangling_symlink, "a symbolic link"),
        (a_fifo, "a FIFO"),
        (a_socket, "a socket"),
        pytest.param(a_device, "a device", marks=root_only),
        (a_hard_link, "has more than one link"),
        pytest.param(a_strangers_file, "its owner is neither root nor", marks=root_only),
        (group_writable, "others than its owner may write"),
        (world_writable, "others than its owner may write"),
        (too_large, "larger than"),
        (not_json, "the context: is not JSON"),
        (wrong_type, "prompt: must be a string"),
        (wrong_env, "env: the name 'LD_PRELOAD' is refused"),
        (deeply_nested, "the context: nested too deeply"),
    ],
)
async def test_a_bad_file_is_gone_reported_and_in_nobodys_way(
    place: Place, make: Callable[[Path], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning with path and reason and no value; the next good one is delivered at once."""
    with trio.fail_after(10):
        async with open_inbox(place.path, poll=place.poll) as desk:
            make(place.file)
            await desk.wait_refused(1)
            assert not is_there(place.file)
            with trio.fail_after(1):
                rename_into(place.file, document("good"))
                await desk.wait_delivered(1)
    assert desk.prompts() == ["good"]
    assert desk.counts == {"refused": 1, "claimed": 1}
    (warning,) = warnings_of(caplog)
    assert f"{place.file}: {reason}" in warning
    assert CANARY not in caplog.text
    assert set(names(place.directory)) <= {"elsewhere"}


async def test_a_bad_file_that_was_there_before_is_gone_too(place: Place) -> None:
    """A FIFO at the path does not keep the daemon from starting."""
    a_fifo(place.file)
    with trio.fail_after(2):
        async with open_inbox(place.path, poll=place.poll) as desk:
            await desk.wait_refused(1)
    assert names(place.directory) == []


async def test_what_a_link_points_to_stays(place: Place) -> None:
    """The link is removed, not its target, and neither is the other name of a hard link."""
    with trio.fail_after(10):
        async with open_inbox(place.path, poll=place.poll) as desk:
            for count, make in enumerate((a_symlink, a_hard_link), 1):
                make(place.file)
                await desk.wait_refused(count)
                assert names(place.directory) == ["elsewhere"]


async def test_a_context_of_exactly_1_mib_is_claimed(place: Place) -> None:
    with trio.fail_after(10):
        async with open_inbox(place.path, poll=place.poll) as desk:
            rename_into(place.file, document("big").ljust(MAX_SIZE))
            await desk.wait_delivered(1)
    assert desk.prompts() == ["big"]


async def test_an_id_that_is_taken_makes_a_bad_file(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever takes delivery says so, and the file is gone like any bad one."""
    with trio.fail_after(10):
        async with open_inbox(place.path, poll=place.poll) as desk:
            for _ in range(2):
                rename_into(place.file, document(id="same"))
                await wait_gone(place.file)
            await desk.wait_refused(1)
    assert desk.ids() == ["same"]
    assert "id: a run of this id is waiting" in warnings_of(caplog)[0]


async def test_a_symlink_that_flips_is_never_followed(place: Place) -> None:
    """A name that is a good file now and a link to another then: only good files are delivered."""
    secret = place.directory / "elsewhere"
    rename_into(secret, document(CANARY, id="secret"))

    def flip() -> None:
        for number in range(150):
            link = place.directory / ".link"
            link.symlink_to(secret)
            link.rename(place.file)
            rename_into(place.file, document(str(number), id=f"run-{number}"))

    with trio.fail_after(30):
        async with open_inbox(place.path, poll=place.poll) as desk:
            await trio.to_thread.run_sync(flip)
            await desk.wait_until(lambda: "run-149" in desk.ids())
    assert CANARY not in desk.prompts()
    assert len(set(desk.ids())) == len(desk.ids())
    assert names(place.directory) == ["elsewhere"]


# What cannot be removed.


async def test_a_directory_of_this_name_is_reported_once_and_left(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it is seen; a file in its place is claimed."""
    (place.file / "inner").mkdir(parents=True)
    with trio.fail_after(10):
        async with open_inbox(place.path, poll=place.poll) as desk:
            await desk.wait_refused(1)
            if place.poll:
                looks = desk.looks
                await desk.wait_until(lambda: desk.looks > looks + 2)
            assert names(place.directory) == [place.file.name]
            (place.file / "inner").rmdir()
            place.file.rmdir()
            rename_into(place.file, document("good"))
            await desk.wait_delivered(1)
    assert desk.counts == {"refused": 1, "claimed": 1}
    assert [w for w in warnings_of(caplog) if "a directory" in w] == warnings_of(caplog)


async def test_many_that_cannot_be_removed_are_reported_without_end_of_memory(
    tmp_path: Path,
) -> None:
    """What is remembered of them has a limit, and all of them are counted."""
    with trio.fail_after(30):
        async with open_inbox(f"{tmp_path}/") as desk:
            for number in range(REMEMBERED + 10):
                (tmp_path / f"{number}.json").mkdir()
            await desk.wait_refused(REMEMBERED + 10)
            rename_into(tmp_path / "good.json", document())
            await desk.wait_delivered(1)
    assert desk.ids() == ["good"]


async def test_what_cannot_be_removed_is_never_run(
    plain_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a directory where agentd may not unlink, a good context is reported once and left."""
    rename_into(plain_directory / "run.json", document(CANARY))
    os.chmod(plain_directory, 0o555)
    with trio.fail_after(10):
        async with open_inbox(f"{plain_directory}/") as desk:
            await desk.wait_refused(1)
            looks = desk.looks
            await desk.wait_until(lambda: desk.looks > looks + 2)
            assert desk.counts == {"refused": 1}
            os.chmod(plain_directory, 0o755)
            await desk.wait_delivered(1)
    assert desk.ids() == ["run"]
    (unwatched, refused) = warnings_of(caplog)
    assert "self-test: Permission denied" in unwatched
    assert "run.json: cannot be removed: Permission denied" in refused
    assert CANARY not in caplog.text


@root_only
async def test_a_strangers_file_in_a_sticky_directory_stays_and_is_not_run(
    plain_directory: Path, poll: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As in /tmp: agentd may write there, but not remove what is another user's."""
    with as_root():
        os.chown(plain_directory, 0, 0)
        os.chmod(plain_directory, 0o1777)
        rename_into(plain_directory / "q", document(CANARY), mode=0o644)
    with trio.fail_after(10):
        async with open_inbox(f"{plain_directory}/q", poll=poll) as desk:
            await desk.wait_refused(1)
    assert desk.contexts == []
    assert names(plain_directory) == ["q"]
    assert "cannot be removed: Operation not permitted" in warnings_of(caplog)[0]


@root_only
@pytest.mark.parametrize("data", [document("roots"), b"no json"], ids=["good", "bad"])
async def test_roots_file_is_claimed_by_a_plain_user_without_a_lease(
    plain_directory: Path, data: bytes
) -> None:
    """Nobody says whether it has a writer, so what is whole is taken, and else there are 2 s."""
    with as_root():
        rename_into(plain_directory / "q", data, mode=0o644)
    with trio.fail_after(10):
        async with open_inbox(f"{plain_directory}/q") as desk:
            await desk.wait_until(lambda: desk.counts.total() == 1)
    assert desk.prompts() == (["roots"] if data.startswith(b"{") else [])
    assert names(plain_directory) == []


@root_only
async def test_a_file_that_agentd_may_not_read_is_refused_and_gone(
    plain_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The directory is its own, the file is not."""
    with as_root():
        rename_into(plain_directory / "q", document(CANARY), mode=0o600)
    with trio.fail_after(10):
        async with open_inbox(f"{plain_directory}/q") as desk:
            await desk.wait_refused(1)
    assert "cannot be opened: Permission denied" in warnings_of(caplog)[0]
    assert names(plain_directory) == []


# The directory, and inotify.


async def test_a_directory_that_is_not_there_yet_is_waited_for(
    tmp_path: Path, poll: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Started all the same, said once, and what lies in it when it appears is claimed."""
    later = tmp_path / "later"
    with trio.fail_after(10):
        async with open_inbox(f"{later}/", poll=poll) as desk:
            await trio.sleep(0.6)
            assert len(warnings_of(caplog)) == 1
            building = tmp_path / "building"
            building.mkdir()
            rename_into(building / "one.json", document())
            building.rename(later)
            await desk.wait_delivered(1)
            rename_into(later / "two.json", document())
            await desk.wait_delivered(2)
    assert desk.ids() == ["one", "two"]


@pytest.mark.parametrize("leave", ["removed", "moved"])
async def test_a_directory_that_goes_and_comes_back_is_watched_again(
    tmp_path: Path, poll: bool, leave: str
) -> None:
    """What counts is the path, not the directory that once was there."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    with trio.fail_after(20):
        async with open_inbox(f"{inbox}/", poll=poll) as desk:
            for number in range(3):
                rename_into(inbox / f"run-{number}.json", document())
                await desk.wait_delivered(number + 1)
                if leave == "removed":
                    inbox.rmdir()
                else:
                    inbox.rename(tmp_path / f"old-{number}")
                    rename_into(tmp_path / f"old-{number}" / "late.json", document())
                inbox.mkdir()
    assert desk.ids() == ["run-0", "run-1", "run-2"]


async def test_a_file_where_the_directory_should_be_is_waited_out(
    tmp_path: Path, poll: bool, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = tmp_path / "inbox"
    inbox.touch()
    with trio.fail_after(10):
        async with open_inbox(f"{inbox}/", poll=poll) as desk:
            inbox.unlink()
            inbox.mkdir()
            rename_into(inbox / "run.json", document())
            await desk.wait_delivered(1)
    assert "Not a directory" in warnings_of(caplog)[0]


async def test_a_directory_agentd_may_not_enter_is_looked_at_again(
    plain_directory: Path, poll: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it may, it does."""
    inbox = plain_directory / "inbox"
    inbox.mkdir()
    rename_into(inbox / "run.json", document())
    inbox.chmod(0)
    with trio.fail_after(10):
        async with open_inbox(f"{inbox}/", poll=poll) as desk:
            assert "Permission denied" in warnings_of(caplog)[-1]
            inbox.chmod(0o700)
            await desk.wait_delivered(1)
    assert desk.ids() == ["run"]


class Steps(trio.abc.Instrument):
    """Counts how often tasks of the inbox are woken."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += ".Inbox." in task.name


async def steps_in(seconds: float) -> int:
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        await trio.sleep(seconds)
    finally:
        trio.lowlevel.remove_instrument(steps)
    return steps.count


async def test_an_idle_inbox_sleeps_under_inotify_and_looks_4_times_a_second_without(
    place: Place,
) -> None:
    """No wake-up at all, also after something has been claimed, refused and passed over."""
    with trio.fail_after(20):
        async with open_inbox(place.path, poll=place.poll, interval=POLL, room=1) as desk:
            rename_into(place.file, b"bad")
            await desk.wait_refused(1)
            rename_into(place.file, document(id="one"))
            await desk.wait_delivered(1)
            rename_into(place.file, document(id="two"))
            looks = desk.looks
            await desk.wait_until(lambda: desk.looks > looks)
            await trio.testing.wait_all_tasks_blocked(0.05)
            steps = await steps_in(1)
            assert 1 <= steps <= 40 if place.poll else steps == 0
            desk.make_room(1)
            await desk.wait_delivered(2)


async def test_a_remote_file_system_is_watched_and_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There another machine may write, and inotify does not see it."""
    fd = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setitem(watch.REMOTE, linux.filesystem_type(fd), "this one, for the test")
    os.close(fd)
    with trio.fail_after(10):
        async with open_inbox(f"{tmp_path}/") as desk:
            assert 1 <= await steps_in(1) <= 40
            rename_into(tmp_path / "run.json", document())
            await desk.wait_delivered(1)


async def test_a_file_whose_event_was_lost_is_claimed(tmp_path: Path) -> None:
    """When the queue overflows, the directory is read instead."""
    noise = [tmp_path / ".a", tmp_path / ".b"]
    noise[0].touch()
    with trio.fail_after(60):
        async with open_inbox(f"{tmp_path}/") as desk:
            for _ in range(QUEUE // 2 + 100):
                os.rename(noise[0], noise[1])
                os.rename(noise[1], noise[0])
            rename_into(tmp_path / "run.json", document())
            await desk.wait_delivered(1)
            rename_into(tmp_path / "next.json", document())
            await desk.wait_delivered(2)
    assert desk.ids() == ["run", "next"]


async def test_without_descriptors_a_file_stays_and_is_claimed_later(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """EMFILE is about the daemon, not about the file: said once, and nothing is lost."""
    hidden = place.directory / ".ready"
    hidden.write_bytes(document("patient"))
    hidden.chmod(0o600)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with trio.fail_after(10):
        async with open_inbox(place.path, poll=place.poll) as desk:
            await trio.testing.wait_all_tasks_blocked()
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                os.rename(hidden, place.file)
                await trio.sleep(0.8)
                assert is_there(place.file)
                assert desk.counts == {}
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await desk.wait_delivered(1)
    assert desk.prompts() == ["patient"]
    assert [w for w in warnings_of(caplog) if "Too many open files" in w] == warnings_of(caplog)
    assert len(warnings_of(caplog)) == 1


async def test_a_cancelled_inbox_leaves_no_descriptor_open(place: Place) -> None:
    """Neither the watch nor a claim that was waiting for its writer."""
    before = names(Path("/proc/self/fd"))
    with place.file.open("wb") as writer:
        writer.flush()
        with trio.fail_after(10):
            async with open_inbox(place.path, poll=place.poll):
                await wait_gone(place.file)
    assert names(Path("/proc/self/fd")) == before
