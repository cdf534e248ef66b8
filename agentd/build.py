"""Which build of agentd this is: an id derived from what runs, not from what somebody wrote down.

Invariant: the same sources have the same id, wherever they lie; another byte or another file name
gives another id.  It refuses to know versions.
"""

import functools
import hashlib
import os
import sys

DIGITS = 12
RECORDED = "build-id"
"""The file beside the package's data that a frozen build keeps its id in."""


@functools.cache
def build_id() -> str:
    """The id of the running build: 12 hexadecimal digits.

    From source it is :func:`source_id` of this package.  The frozen binary carries no sources: it
    has the recorded id, or the digest of its executable.
    """
    package = os.path.dirname(os.path.abspath(__file__))
    if not getattr(sys, "frozen", False):
        return source_id(package)
    try:
        with open(os.path.join(package, RECORDED), encoding="ascii") as recorded:
            return recorded.read().strip()
    except FileNotFoundError:
        with open(sys.executable, "rb") as executable:
            return hashlib.file_digest(executable, "sha256").hexdigest()[:DIGITS]


def source_id(package: str) -> str:
    """SHA-256 over name, size and content of every file of ``package``, in the order of names.

    What Python and editors leave there does not count: ``__pycache__``, and names with a leading
    dot; nor does the recorded id.  Raises OSError.
    """
    digest = hashlib.sha256()
    for name in sorted(_files(package)):
        with open(os.path.join(package, name), "rb") as file:
            content = file.read()
        digest.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()[:DIGITS]


def _files(package: str) -> list[str]:
    found = []
    for directory, subdirectories, names in os.walk(package):
        subdirectories[:] = [
            name for name in subdirectories if name != "__pycache__" and not name.startswith(".")
        ]
        found += [
            os.path.relpath(os.path.join(directory, name), package)
            for name in names
            if not name.startswith(".") and name != RECORDED
        ]
    return found
