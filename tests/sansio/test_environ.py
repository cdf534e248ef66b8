"""Twin of agentd.sansio.environ."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentd.sansio.environ import DEFAULT_PATH, child_environ

OWN = [
    "AGENTD_JWT_KEY",
    "AGENTD_RUN_ID",
    "_PYI_ARCHIVE_FILE",
    "_MEIPASS2",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "CREDENTIALS_DIRECTORY",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
]
SHORT_LIST = ["PATH", "HOME", "USER", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TERM", "TMPDIR"]

names = st.one_of(
    st.sampled_from([*OWN, *SHORT_LIST, "LD_LIBRARY_PATH", "LD_LIBRARY_PATH_ORIG", "OTHER"]),
    st.text(st.characters(blacklist_characters="=\0", blacklist_categories=["Cs"]), min_size=1),
)
environs = st.dictionaries(names, st.text(max_size=5), max_size=12)


def environ(
    daemon: dict[str, str], *, pass_env: tuple[str, ...] = (), **context_env: str
) -> dict[str, str]:
    return child_environ(daemon, pass_env=pass_env, context_env=context_env, run_id="r1")


def test_an_empty_daemon_gives_a_child_path_run_id_and_unbuffered_python() -> None:
    """This is all a child has when nobody says anything."""
    assert environ({}) == {
        "PATH": DEFAULT_PATH,
        "AGENTD_RUN_ID": "r1",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.mark.parametrize("name", SHORT_LIST)
def test_the_short_list_comes_from_the_daemon(name: str) -> None:
    """Each of these names is passed on without being asked for."""
    assert environ({name: "value"})[name] == "value"


def test_what_nobody_named_stays_behind() -> None:
    """A variable of the daemon's that is not on the list is not the child's."""
    child = environ({"AWS_SECRET_ACCESS_KEY": "x", "LOGNAME": "root", "LCX": "y", "PWD": "/"})
    assert set(child) == {"PATH", "AGENTD_RUN_ID", "PYTHONUNBUFFERED"}


def test_pass_env_adds_names_the_daemon_has() -> None:
    """A name that is asked for comes along, one the daemon has not does not appear."""
    child = environ({"HTTPS_PROXY": "p", "OTHER": "o"}, pass_env=("HTTPS_PROXY", "ABSENT"))
    assert child["HTTPS_PROXY"] == "p"
    assert "ABSENT" not in child
    assert "OTHER" not in child


def test_pass_env_may_be_read_only_once() -> None:
    """Any iterable of names will do."""
    child = child_environ(
        {"A": "1", "B": "2"}, pass_env=iter(["A", "B"]), context_env={}, run_id="r"
    )
    assert (child["A"], child["B"]) == ("1", "2")


@pytest.mark.parametrize("name", OWN)
def test_the_daemons_own_is_not_passed_even_when_named(name: str) -> None:
    """--pass-env cannot hand on what was meant for the daemon alone."""
    child = environ({name: "mine"}, pass_env=(name,))
    assert "mine" not in child.values()


def test_the_contexts_env_beats_the_daemons() -> None:
    """The control plane decides last."""
    child = environ({"PATH": "/bin", "A": "daemon"}, pass_env=("A",), PATH="/opt", A="context")
    assert child["PATH"] == "/opt"
    assert child["A"] == "context"


def test_the_run_id_beats_the_contexts_env() -> None:
    """A child is never told another run's id."""
    assert environ({"AGENTD_RUN_ID": "old"}, AGENTD_RUN_ID="forged")["AGENTD_RUN_ID"] == "r1"


@pytest.mark.parametrize("value", ["", "0", "x"])
def test_pythonunbuffered_is_left_as_the_context_has_it(value: str) -> None:
    """Also the empty string, which means buffered."""
    assert environ({}, PYTHONUNBUFFERED=value)["PYTHONUNBUFFERED"] == value


def test_pythonunbuffered_of_the_daemon_counts_only_when_passed() -> None:
    """The daemon's own setting is not the child's, unless --pass-env names it."""
    daemon = {"PYTHONUNBUFFERED": ""}
    assert environ(daemon)["PYTHONUNBUFFERED"] == "1"
    assert environ(daemon, pass_env=("PYTHONUNBUFFERED",))["PYTHONUNBUFFERED"] == ""


def test_the_user_it_runs_as_replaces_home_user_and_shell() -> None:
    """With --user the daemon's own account is not the child's."""
    child = child_environ(  # noqa: S604  # this shell is a name for the child's environment
        {"HOME": "/root", "USER": "root", "SHELL": "/bin/bash", "LOGNAME": "root"},
        pass_env=("HOME",),
        context_env={},
        run_id="r",
        home="/home/agent",
        user="agent",
        shell="/bin/sh",
    )
    assert (child["HOME"], child["USER"], child["SHELL"]) == ("/home/agent", "agent", "/bin/sh")
    assert "LOGNAME" not in child


def test_a_context_may_still_set_home() -> None:
    """The context's env comes after the user's account."""
    child = child_environ({}, pass_env=(), context_env={"HOME": "/x"}, run_id="r", home="/y")
    assert child["HOME"] == "/x"
    assert "USER" not in child


FROZEN = {"_PYI_ARCHIVE_FILE": "/opt/agentd/agentd", "LD_LIBRARY_PATH": "/tmp/_MEI1"}
BOTH = ("LD_LIBRARY_PATH", "LD_LIBRARY_PATH_ORIG")


def test_the_bundles_library_path_is_never_the_childs() -> None:
    """Where the frozen daemon had none before, the child has none, even when asked for."""
    assert not {*environ(FROZEN, pass_env=BOTH)} & {*BOTH}


def test_a_frozen_daemon_passes_on_the_library_path_from_before() -> None:
    """LD_LIBRARY_PATH_ORIG is where the bootloader keeps it; only when asked for."""
    daemon = {**FROZEN, "LD_LIBRARY_PATH_ORIG": "/usr/local/cuda"}
    assert environ(daemon, pass_env=BOTH)["LD_LIBRARY_PATH"] == "/usr/local/cuda"
    assert "LD_LIBRARY_PATH_ORIG" not in environ(daemon, pass_env=BOTH)
    assert "LD_LIBRARY_PATH" not in environ(daemon)


def test_a_daemon_that_is_not_frozen_passes_on_its_library_path() -> None:
    """Without a bootloader the variable is an ordinary one."""
    daemon = {"LD_LIBRARY_PATH": "/usr/local/cuda"}
    assert environ(daemon, pass_env=BOTH)["LD_LIBRARY_PATH"] == "/usr/local/cuda"


@given(daemon=environs, pass_env=st.lists(names, max_size=12), context_env=environs)
@example(daemon=dict.fromkeys(OWN, "x"), pass_env=OWN, context_env={})
def test_every_variable_of_a_child_has_one_of_the_known_origins(
    daemon: dict[str, str], pass_env: list[str], context_env: dict[str, str]
) -> None:
    """The context's, an allowed one of the daemon's, or agentd's own three: no other."""
    before = dict(daemon)
    child = child_environ(daemon, pass_env=pass_env, context_env=context_env, run_id="the-run")
    assert daemon == before
    assert child.pop("AGENTD_RUN_ID") == "the-run"
    for name, value in child.items():
        if name in context_env:
            assert value == context_env[name]
        elif name in OWN:
            pytest.fail(f"{name} came through")
        elif name == "PATH" and "PATH" not in daemon:
            assert value == DEFAULT_PATH
        elif name == "PYTHONUNBUFFERED" and name not in pass_env:
            assert value == "1"
        elif name == "LD_LIBRARY_PATH" and any(other.startswith("_PYI_") for other in daemon):
            assert value == daemon["LD_LIBRARY_PATH_ORIG"]
        else:
            assert value == daemon[name]
            assert name in SHORT_LIST or name.startswith("LC_") or name in pass_env
