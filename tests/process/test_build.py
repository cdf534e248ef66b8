"""The build id: the same for the same content, another for any other."""

import hashlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentd
from agentd import build
from agentd.build import build_id, source_id

PACKAGE = Path(agentd.__file__).parent


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    build_id.cache_clear()
    yield
    build_id.cache_clear()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package to change."""
    root = tmp_path / "package"
    (root / "inner").mkdir(parents=True)
    (root / "__init__.py").write_text("a = 1\n")
    (root / "inner" / "page.html").write_text("<p>\n")
    return root


def test_it_is_twelve_hexadecimal_digits() -> None:
    """Short enough to read out, long enough to tell builds apart."""
    assert re.fullmatch("[0-9a-f]{12}", build_id())


def test_from_source_it_is_the_id_of_the_sources() -> None:
    """What runs is what is hashed."""
    assert build_id() == source_id(str(PACKAGE))


def test_it_does_not_depend_on_where_the_sources_lie(package: Path, tmp_path: Path) -> None:
    """A copy has the same id."""
    copy = shutil.copytree(package, tmp_path / "elsewhere")
    assert source_id(str(copy)) == source_id(str(package))


def test_any_change_changes_it(package: Path) -> None:
    """Another byte, another name, a file more or less: another id."""
    seen = [source_id(str(package))]
    (package / "__init__.py").write_text("a = 2\n")
    seen.append(source_id(str(package)))
    (package / "__init__.py").rename(package / "main.py")
    seen.append(source_id(str(package)))
    (package / "empty.py").touch()
    seen.append(source_id(str(package)))
    (package / "empty.py").unlink()
    (package / "inner" / "page.html").rename(package / "page.html")
    seen.append(source_id(str(package)))
    assert len(set(seen)) == len(seen)


def test_bytes_do_not_move_between_files_unseen(package: Path) -> None:
    """The border between two files is part of what is hashed."""
    (package / "a.py").write_text("xy")
    (package / "b.py").write_text("")
    before = source_id(str(package))
    (package / "a.py").write_text("x")
    (package / "b.py").write_text("y")
    assert source_id(str(package)) != before


def test_what_tools_leave_there_does_not_count(package: Path) -> None:
    """Compiled files, editors' files and the recorded id make no other build."""
    before = source_id(str(package))
    for name in ("__pycache__/a.pyc", "inner/__pycache__/b.pyc", ".swp", ".git/HEAD", "build-id"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(name)
    assert source_id(str(package)) == before


def test_a_frozen_build_has_its_recorded_id(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id is recorded when the binary is made, beside the package's data."""
    (package / "build-id").write_text("0123456789ab\n")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(build, "__file__", str(package / "build.pyc"))
    assert build_id() == "0123456789ab"


def test_a_frozen_build_without_a_record_has_its_executables_digest(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the record the executable itself is what differs from build to build."""
    executable = package / "agentd"
    executable.write_bytes(b"\x7fELF")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(executable))
    monkeypatch.setattr(build, "__file__", str(package / "build.pyc"))
    assert build_id() == hashlib.sha256(b"\x7fELF").hexdigest()[:12]
