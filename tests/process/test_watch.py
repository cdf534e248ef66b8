"""A watched directory: what the self-test finds out, and what each look tells."""

import contextlib
from pathlib import Path

import pytest
import trio
from testing.inbox import names

from agentd.watch import Watch


async def test_the_self_test_finds_nothing_against_a_local_directory(tmp_path: Path) -> None:
    """And leaves nothing behind."""
    with trio.fail_after(10), contextlib.closing(Watch(str(tmp_path))) as watch:
        assert await watch.disproved() is None
        assert not watch.remote
        assert names(tmp_path) == []
        assert not watch.seen().left


async def test_events_that_do_not_come_are_found_out(tmp_path: Path) -> None:
    """Where something is created and no event tells, there is a reason to poll."""
    (tmp_path / "elsewhere").mkdir()
    with trio.fail_after(10), contextlib.closing(Watch(str(tmp_path))) as watch:
        watch._path = str(tmp_path / "elsewhere")
        assert await watch.disproved() == "the self-test: no event came"
    assert names(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("instead", ["nothing", "a file"])
async def test_a_directory_that_left_during_the_self_test_says_so(
    tmp_path: Path, instead: str
) -> None:
    """That is no reason to poll for ever, but to look for it anew."""
    with trio.fail_after(10), contextlib.closing(Watch(str(tmp_path))) as watch:
        watch._path = str(tmp_path / "gone")
        if instead == "a file":
            (tmp_path / "gone").touch()
        assert await watch.disproved() is None
        assert watch.seen().left
        assert watch.seen().left


async def test_a_look_tells_each_name_once_in_the_order_of_appearance(tmp_path: Path) -> None:
    """Created, written and closed are three events and one appearance."""
    with trio.fail_after(10), contextlib.closing(Watch(str(tmp_path))) as watch:
        for name in ("b", "a", "c", "a"):
            (tmp_path / name).write_text("x")
        await watch.wait()
        assert list(watch.seen().names) == ["b", "a", "c"]
        assert not watch.seen().names


def test_what_is_not_there_cannot_be_watched_and_leaves_no_descriptor(tmp_path: Path) -> None:
    """ENOENT and ENOTDIR are told apart by their classes."""
    before = names(Path("/proc/self/fd"))
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        Watch(str(tmp_path / "absent"))
    with pytest.raises(NotADirectoryError):
        Watch(str(tmp_path / "file"))
    assert names(Path("/proc/self/fd")) == before


@pytest.mark.parametrize("leave", ["removed", "moved"])
async def test_a_directory_that_is_no_longer_there_has_left(tmp_path: Path, leave: str) -> None:
    """Each of the two by itself, once nobody has it open."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    with trio.fail_after(10), contextlib.closing(Watch(str(inbox))) as watch:
        if leave == "removed":
            inbox.rmdir()
        else:
            inbox.rename(tmp_path / "moved")
        await watch.wait()
        assert watch.seen().left
