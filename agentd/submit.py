"""Writing a context file the right way: nobody reads it half-written, nobody else reads it at all.

Invariant: under the name there is a whole file of mode 0600 or none, and what fails leaves nothing
behind. The temporary name starts with a dot, which an inbox ignores.

Refuses to know what the daemon makes of it.
"""

import contextlib
import os
from collections.abc import Mapping

import msgspec

from agentd import AgentdError
from agentd.sansio.context import valid_id

PREFIX = ".agentd-submit-"

CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class SubmitError(AgentdError):
    """The context file cannot be written; the message names the path or the key."""


def submit(path: str, context: Mapping[str, object]) -> str:
    """Write ``context`` as the file ``path`` and return the path written.

    A ``path`` that ends in ``/`` is a directory: the file is ``<id>.json`` there, by the context's
    ``id`` or a new one. As root the file is given to the directory's owner, who
    is the daemon's user, or root.

    Raises:
        SubmitError: it cannot be written, or the context holds what JSON cannot say.
    """
    directory, name = os.path.split(path)
    directory = directory or "."
    if not name:
        name = f"{_id(context)}.json"
    data = _encode(context)
    target = os.path.join(directory, name)
    temporary = os.path.join(directory, PREFIX + os.urandom(8).hex())
    try:
        _write(directory, temporary, data)
        os.rename(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        problem = os.strerror(error.errno or 0)
    else:
        return target
    raise SubmitError(f"cannot write {target}: {problem}")


def _id(context: Mapping[str, object]) -> str:
    run_id = context.get("id", os.urandom(8).hex())
    if not isinstance(run_id, str) or not valid_id(run_id):
        raise SubmitError("id: must be 1-128 characters of A-Za-z0-9._-")
    return run_id


def _encode(context: Mapping[str, object]) -> bytes:
    with contextlib.suppress(TypeError, ValueError, OverflowError, RecursionError):
        return msgspec.json.encode(context)
    raise SubmitError("the context: cannot be written as JSON")


def _write(directory: str, temporary: str, data: bytes) -> None:
    fd = os.open(temporary, CREATE, 0o600)
    with open(fd, "wb") as file:
        os.fchmod(fd, 0o600)
        if os.geteuid() == 0:
            owner = os.stat(directory)
            os.fchown(fd, owner.st_uid, owner.st_gid)
        file.write(data)
