"""agentd submit's writer, on a real file system."""

import json
import os
import stat
from pathlib import Path

import pytest
from testing.inbox import open_inbox

from agentd.sansio.context import parse_context, valid_id
from agentd.submit import SubmitError, submit

CANARY = "canary-91ab"


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_the_file_is_whole_private_and_alone(tmp_path: Path) -> None:
    """One file, 0600, one link, and no temporary beside it."""
    path = str(tmp_path / "context.json")
    assert submit(path, {"prompt": "hé", "env": {"A": "b"}}) == path
    context = parse_context(Path(path).read_bytes())
    assert (context.prompt, context.env) == ("hé", {"A": "b"})
    assert mode(path) == 0o600
    assert os.stat(path).st_nlink == 1
    assert os.listdir(tmp_path) == ["context.json"]


@pytest.mark.parametrize("umask", [0, 0o777])
def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    """0600 is neither more nor less whatever the shell was told."""
    before = os.umask(umask)
    try:
        path = submit(str(tmp_path / "c"), {})
    finally:
        os.umask(before)
    assert mode(path) == 0o600


def test_a_directory_gets_a_file_of_the_contexts_id(tmp_path: Path) -> None:
    """PATH with a slash at its end: the id is the name."""
    assert submit(f"{tmp_path}/", {"id": "run.1"}) == f"{tmp_path}/run.1.json"


def test_a_directory_gets_a_file_of_a_new_id_each_time(tmp_path: Path) -> None:
    """Without an id there is a new one, which a run can have."""
    written = {submit(f"{tmp_path}/", {"prompt": "p"}) for _ in range(20)}
    assert len(written) == 20
    assert all(valid_id(Path(path).stem) for path in written)
    assert sorted(os.listdir(tmp_path)) == sorted(Path(path).name for path in written)


@pytest.mark.parametrize("run_id", ["../x", "", ".", "a b", 7, None])
def test_an_id_that_is_no_file_name_writes_nothing(tmp_path: Path, run_id: object) -> None:
    """An id can lead to no other directory."""
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.raises(SubmitError, match=r"^id: "):
        submit(f"{inner}/", {"id": run_id})
    assert os.listdir(tmp_path) == ["inner"]
    assert os.listdir(inner) == []


def test_an_older_file_is_replaced_at_once(tmp_path: Path) -> None:
    """Its reader keeps the old one to the end, and a new reader has the new one whole."""
    path = tmp_path / "c.json"
    submit(str(path), {"prompt": "old"})
    with path.open() as reader:
        submit(str(path), {"prompt": "new"})
        assert json.load(reader) == {"prompt": "old"}
    assert json.loads(path.read_text()) == {"prompt": "new"}


def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """Where somebody put a link, the secrets do not go where it points."""
    target = tmp_path / "target"
    target.write_text("untouched")
    link = tmp_path / "c.json"
    link.symlink_to(target)
    submit(str(link), {"prompt": CANARY})
    assert target.read_text() == "untouched"
    assert not link.is_symlink()


def test_a_directory_in_its_place_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """The temporary file is gone when the rename fails, and the error names the path alone."""
    (tmp_path / "c.json" / "x").mkdir(parents=True)
    with pytest.raises(SubmitError, match=r"^cannot write .*c\.json: ") as caught:
        submit(str(tmp_path / "c.json"), {"prompt": CANARY})
    assert os.listdir(tmp_path) == ["c.json"]
    assert CANARY not in str(caught.value)


def test_a_missing_directory_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(SubmitError, match=r"^cannot write .*/absent/c: No such file"):
        submit(str(tmp_path / "absent" / "c"), {})


@pytest.mark.parametrize("value", [object(), float, "\ud800", {1, object()}, {object(): 1}])
def test_what_json_cannot_say_is_an_error_without_the_value(tmp_path: Path, value: object) -> None:
    """Nothing is written, and nothing of the context is told."""
    with pytest.raises(SubmitError, match=r"^the context: ") as caught:
        submit(str(tmp_path / "c"), {"prompt": CANARY, "x": value})
    assert CANARY not in str(caught.value)
    assert caught.value.__context__ is None
    assert os.listdir(tmp_path) == []


def test_a_name_without_a_directory_is_written_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert submit("c.json", {}) == "./c.json"
    assert os.listdir(tmp_path) == ["c.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_gives_the_file_to_the_directorys_owner(tmp_path: Path) -> None:
    """The daemon runs as the directory's owner and could not read root's file."""
    tmp_path.chmod(0o700)
    os.chown(tmp_path, 12345, 23456)
    found = os.stat(submit(str(tmp_path / "c.json"), {"prompt": "p"}))
    assert (found.st_uid, found.st_gid) == (12345, 23456)
    assert stat.S_IMODE(found.st_mode) == 0o600


async def test_an_inbox_claims_what_is_submitted(tmp_path: Path) -> None:
    """Both ends of the way, in both forms."""
    async with open_inbox(f"{tmp_path}/") as desk:
        submit(f"{tmp_path}/", {"id": "one", "prompt": "p", "env": {"A": "b"}})
        await desk.wait_delivered(1)
    assert (desk.contexts[0].id, desk.contexts[0].env) == ("one", {"A": "b"})
    async with open_inbox(f"{tmp_path}/single") as desk:
        submit(str(tmp_path / "single"), {"prompt": "q"})
        await desk.wait_delivered(1)
    assert desk.prompts() == ["q"]
    assert os.listdir(tmp_path) == []
