"""The environment of the child: computed from three parts, never inherited.

Invariant: what the daemon was told for itself (its settings, its sockets, its bundle's libraries)
reaches no child, even where ``--pass-env`` asks for it by name.

Refuses to know ``os.environ``, and whether a context may set a name (:mod:`agentd.sansio.context`
decides that).
"""

from collections.abc import Iterable, Mapping

SHORT_LIST = frozenset({"PATH", "HOME", "USER", "SHELL", "LANG", "TZ", "TERM", "TMPDIR"})
"""What a child gets of the daemon's environment without being asked, besides ``LC_*``."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH for a child whose daemon has none."""

OWN = frozenset(
    {"NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "INVOCATION_ID", "JOURNAL_STREAM", "MAINPID"}
)
OWN_PREFIXES = ("AGENTD_", "_PYI_", "_MEI", "WATCHDOG_", "LISTEN_")
"""What systemd.exec(5), sd_listen_fds(3), sd_notify(3) and PyInstaller tell the daemon alone."""

BUNDLED = frozenset({"LD_LIBRARY_PATH", "LD_LIBRARY_PATH_ORIG"})
"""What PyInstaller's bootloader sets for the bundle, and where it keeps the value from before."""


def child_environ(
    daemon: Mapping[str, str],
    *,
    pass_env: Iterable[str],
    context_env: Mapping[str, str],
    run_id: str,
    home: str | None = None,
    user: str | None = None,
    shell: str | None = None,
) -> dict[str, str]:
    """Return the child's whole environment (CONTRACT section 2).

    Args:
        daemon: the daemon's own environment.
        pass_env: further names of it that the child gets (``--pass-env``).
        context_env: the context's ``env``; it beats everything but ``AGENTD_RUN_ID``.
        run_id: the value of ``AGENTD_RUN_ID``.
        home: HOME of the user the child runs as (``--user``), or None for the daemon's.
        user: the same for USER.
        shell: the same for SHELL.
    """
    before = _before_the_bundle(daemon)
    wanted = SHORT_LIST.union(pass_env)
    environ = {
        name: value
        for name, value in before.items()
        if (name in wanted or name.startswith("LC_")) and not _is_the_daemons_own(name)
    }
    environ.setdefault("PATH", DEFAULT_PATH)
    account = {"HOME": home, "USER": user, "SHELL": shell}
    environ.update({name: value for name, value in account.items() if value is not None})
    environ.update(context_env)
    environ["AGENTD_RUN_ID"] = run_id
    environ.setdefault("PYTHONUNBUFFERED", "1")
    return environ


def _is_the_daemons_own(name: str) -> bool:
    return name in OWN or name.startswith(OWN_PREFIXES)


def _before_the_bundle(daemon: Mapping[str, str]) -> dict[str, str]:
    """Return ``daemon`` as it was before a bootloader pointed the linker at its own libraries."""
    if not any(name.startswith("_PYI_") for name in daemon):
        return dict(daemon)
    before = {name: value for name, value in daemon.items() if name not in BUNDLED}
    if "LD_LIBRARY_PATH_ORIG" in daemon:
        before["LD_LIBRARY_PATH"] = daemon["LD_LIBRARY_PATH_ORIG"]
    return before
