"""Whom a child runs as: from what an operator wrote to ids the kernel takes.

Invariant: what is returned is complete; nothing is guessed, above all no group. Refuses to know
what the user is for, and never changes the process it runs in.
"""

import contextlib
import grp
import os
import pwd
from dataclasses import dataclass

from agentd import AgentdError


class UserNotFoundError(AgentdError):
    """A user or group that this machine does not have."""


@dataclass(frozen=True, slots=True)
class User:
    """Whom a child runs as: ids for the kernel, and what passwd(5) says of its environment."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str
    shell: str


def find_user(spec: str) -> User:
    """Return the user that ``USER[:GROUP]`` names; each is a name, or else a number.

    A number without an entry in passwd(5) needs its group said; its home is ``/``. A group that is
    said replaces the user's own, the supplementary ones stay (as systemd's ``Group=`` does).
    Raises :class:`UserNotFoundError`.
    """
    name, colon, group = spec.partition(":")
    entry = _passwd_entry(name)
    if entry is None and (uid := _number(name)) is not None:
        if not colon:
            raise UserNotFoundError(f"cannot tell the group of user {name}: say {name}:GROUP")
        gid = _find_group(group)
        return User(uid, gid, (gid,), name, "/", "/bin/sh")
    if entry is None:
        raise UserNotFoundError(f"cannot find user {name!r}")
    gid = _find_group(group) if colon else entry.pw_gid
    return User(
        uid=entry.pw_uid,
        gid=gid,
        groups=tuple(os.getgrouplist(entry.pw_name, gid)),
        name=entry.pw_name,
        home=entry.pw_dir or "/",
        shell=entry.pw_shell or "/bin/sh",
    )


def _passwd_entry(name: str) -> pwd.struct_passwd | None:
    with contextlib.suppress(KeyError, ValueError):
        return pwd.getpwnam(name)
    with contextlib.suppress(KeyError):
        return None if (uid := _number(name)) is None else pwd.getpwuid(uid)
    return None


def _find_group(name: str) -> int:
    with contextlib.suppress(KeyError, ValueError):
        return grp.getgrnam(name).gr_gid
    gid = _number(name)
    if gid is None:
        raise UserNotFoundError(f"cannot find group {name!r}")
    return gid


def _number(text: str) -> int | None:
    """Return the id that ``text`` is; 2**32 - 1 is none, it means "leave as is" to setuid(2)."""
    decimal = text.isascii() and text.isdigit() and len(text) <= 10
    return int(text) if decimal and int(text) < 2**32 - 1 else None
