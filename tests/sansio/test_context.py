"""Twin of agentd.sansio.context."""

import json
import math
import traceback

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentd import AgentdError
from agentd.sansio import context
from agentd.sansio.context import (
    MAX_SIZE,
    Context,
    ContextError,
    IncompleteContext,
    parse_context,
    valid_id,
)

CANARY = "canary-5b1f9c"
BOTH = frozenset({"args", "cwd"})

WHOLE = {
    "id": "run-1.a_B",
    "prompt": "say hé 😀\n",
    "env": {"API_KEY": CANARY, "EMPTY": ""},
    "timeout": 2.5,
    "args": ["--model", "x y", ""],
    "cwd": "/srv",
    "messages": [{"role": "user", "n": 1}],
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
env_names = st.text(
    st.characters(blacklist_characters="=\0", blacklist_categories=["Cs"]), min_size=1
).filter(lambda name: not name.startswith(("LD_", "AGENTD_", "_PYI_")))
env_values = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]))


def parse(document: object, allow: frozenset[str] = BOTH, max_timeout: float = 0) -> Context:
    return parse_context(json.dumps(document).encode(), allow=allow, max_timeout=max_timeout)


def refusal(data: bytes, allow: frozenset[str] = BOTH, max_timeout: float = 0) -> ContextError:
    with pytest.raises(ContextError) as caught:
        parse_context(data, allow=allow, max_timeout=max_timeout)
    return caught.value


def test_every_key_arrives_where_it_belongs() -> None:
    """A whole context comes out as it went in."""
    parsed = parse(WHOLE)
    assert parsed.id == "run-1.a_B"
    assert parsed.prompt == "say hé 😀\n"
    assert parsed.env == {"API_KEY": CANARY, "EMPTY": ""}
    assert parsed.timeout == 2.5
    assert parsed.args == ("--model", "x y", "")
    assert parsed.cwd == "/srv"


def test_the_short_form_works_as_is() -> None:
    """Prompt and env are enough."""
    parsed = parse_context(b'{"prompt": "p", "env": {"A": "b"}}')
    assert (parsed.prompt, parsed.env) == ("p", {"A": "b"})
    assert (parsed.id, parsed.timeout, parsed.args, parsed.cwd) == (None, None, (), None)


def test_an_empty_object_is_a_context_without_anything() -> None:
    """Prompt and env may be missing too."""
    parsed = parse_context(b" {}\r\n")
    assert (parsed.prompt, parsed.env, parsed.document) == ("", {}, b"{}\n")


def test_the_document_is_the_context_without_env_on_one_line() -> None:
    """A child that reads the whole context gets everything but the secrets' variables."""
    parsed = parse_context(json.dumps(WHOLE, indent=4).encode(), allow=BOTH)
    assert parsed.document.endswith(b"}\n")
    assert parsed.document.count(b"\n") == 1
    assert CANARY.encode() not in parsed.document
    assert json.loads(parsed.document) == {k: v for k, v in WHOLE.items() if k != "env"}


def test_the_applications_own_values_keep_their_digits() -> None:
    """A number that no float has goes through as it was written."""
    parsed = parse_context(b'{"x": 1.50000000000000000001, "y": [1e999 , 123456789012345678901]}')
    assert parsed.document == b'{"x":1.50000000000000000001,"y":[1e999,123456789012345678901]}\n'


def test_the_repr_shows_the_id_and_nothing_else() -> None:
    """A context that ends up in a log or a traceback tells no secret."""
    assert repr(parse(WHOLE)) == "Context(id='run-1.a_B')"


def test_a_context_cannot_be_changed() -> None:
    """What was checked stays what is run."""
    with pytest.raises(AttributeError):
        parse({}).prompt = "other"  # type: ignore[misc]  # that is what must fail


@given(
    prompt=env_values,
    env=st.dictionaries(env_names, env_values, max_size=5),
    own=st.dictionaries(
        st.text().filter(lambda key: key not in {*WHOLE, "env"}), json_values, max_size=4
    ),
)
def test_what_a_context_may_hold_comes_through_exactly(
    prompt: str, env: dict[str, str], own: dict[str, object]
) -> None:
    """Any text in prompt and env, any JSON of the application's own."""
    parsed = parse({"prompt": prompt, "env": env, **own})
    assert parsed.prompt == prompt
    assert parsed.env == env
    assert json.loads(parsed.document) == {"prompt": prompt, **own}


@given(data=st.binary(max_size=200))
@example(data=b"")
@example(data=b"\xef\xbb\xbf{}")
@example(data=b'{"\xff": 1}')
def test_any_bytes_give_a_context_or_a_context_error(data: bytes) -> None:
    """Nothing else comes out, whatever goes in."""
    try:
        assert isinstance(parse_context(data), Context)
    except ContextError as error:
        assert isinstance(error, AgentdError)


@given(
    document=st.dictionaries(
        st.sampled_from([*WHOLE, "other"]), json_values | st.sampled_from([*WHOLE.values()])
    ),
    where=st.floats(0, 1),
    byte=st.integers(0, 255),
)
def test_a_damaged_context_gives_a_context_or_a_context_error(
    document: dict[str, object], where: float, byte: int
) -> None:
    """Wrong types everywhere and one byte changed anywhere: the one error, with nothing chained."""
    data = bytearray(json.dumps(document).encode())
    data[int(where * (len(data) - 1))] = byte
    try:
        parse_context(bytes(data), allow=BOTH)
    except ContextError as error:
        assert error.__context__ is None
        assert error.__cause__ is None


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"null",
        b"1",
        b'"prompt"',
        b"not json",
        b"{'prompt': 1}",
        b'{"a": 1,}',
        b'{"a": 01}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"{} {}",
        b"{}\0",
        b"\xef\xbb\xbf{}",
        b'{"a": "\t"}',
        b'{"a": "\\x41"}',
        b'{"prompt": "\\udc00"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "\xff"}',
        b'{"own": {"\xff": 1}}',
        b'{"\xff": 1}',
    ],
)
def test_what_is_no_json_object_is_refused_for_good(data: bytes) -> None:
    """Waiting for more bytes would not help."""
    error = refusal(data)
    assert str(error).startswith("the context: ")
    assert not isinstance(error, IncompleteContext)


@pytest.mark.parametrize("key", ["prompt", "id", "own", "cwd", "args", "env"])
def test_a_lone_surrogate_is_refused_anywhere(key: str) -> None:
    """Half of a surrogate pair is no character, and execve could not take it."""
    for data in (b'{"%s": "\\ud83d"}', b'{"%s": {"A": "\\udc00x"}}', b'{"%s": ["\\ud83d\\u0041"]}'):
        refusal(data % key.encode())
    refusal(b'{"env": {"\\ud83dA": "x"}}')
    refusal(b'{"\\udc00": "%s"}' % key.encode())


def test_every_start_of_a_context_is_incomplete() -> None:
    """However far a writer has come, what is there so far is not refused for good."""
    text = (
        '{ "prompt": "a\\u00e9\\ud83d\\ude00\\n\\"é😀", "env": {"A": "b"},'
        ' "own": [true, false, null, -1.5e+3, 0.5E-7, 12, {"deep": []}], "timeout": 1.5 }'
    )
    data = text.encode()
    assert parse_context(data).timeout == 1.5
    for end in range(len(data)):
        assert isinstance(refusal(data[:end]), IncompleteContext), data[:end]


@given(document=st.dictionaries(st.text(), json_values, min_size=1), where=st.floats(0, 1))
def test_any_context_cut_short_is_incomplete(document: dict[str, object], where: float) -> None:
    """Also one that an application made up."""
    data = json.dumps(document, ensure_ascii=False).encode()
    assert isinstance(refusal(data[: int(where * (len(data) - 1))]), IncompleteContext)


def test_a_context_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    """1 MiB is the limit, white space included."""
    data = b'{"prompt": "x"}'
    assert parse_context(data.ljust(MAX_SIZE)).prompt == "x"
    assert str(refusal(data.ljust(MAX_SIZE + 1))) == "the context: larger than 1048576 bytes"


@pytest.mark.parametrize(("start", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_is_refused(start: bytes, end: bytes) -> None:
    """200 000 levels are an error like any other, whether they are closed or not."""
    for depth in (5_000, 100_000):
        data = b'{"own": ' + start * depth + b"1" + end * depth + b"}"
        assert str(refusal(data)) == "the context: nested too deeply"
        assert str(refusal(data[: len(data) // 2])) == "the context: nested too deeply"


def test_nesting_near_the_limit_is_taken_or_refused() -> None:
    """No depth at all gets past both."""
    kinds = set()
    for depth in range(1, 3000, 7):
        try:
            parse_context(b'{"own": ' + b"[" * depth + b"]" * depth + b"}")
        except ContextError as error:
            kinds.add(str(error))
    assert kinds == {"the context: nested too deeply"}


def test_nesting_that_only_the_second_look_finds_too_deep_is_refused() -> None:
    """Writing the document out takes more stack than reading it did."""
    with pytest.raises(ContextError, match="nested too deeply") as caught:
        context._compact(msgspec.Raw(b"[" * 100_000 + b"]" * 100_000))
    assert caught.value.__context__ is None


def test_the_same_key_twice_is_refused() -> None:
    """Two readers of such a document could see two different contexts."""
    assert "'prompt' twice" in str(refusal(b'{"prompt": "a", "prompt": "a"}'))
    assert "'own' twice" in str(refusal(b'{"own": 1, "own": 2}'))
    assert "'prompt' twice" in str(refusal(b'{"prompt": "a", "\\u0070rompt": "b"}'))


def test_the_same_name_twice_in_env_is_refused() -> None:
    """The same inside env."""
    error = refusal(b'{"env": {"A": "%s", "A": "%s"}}' % (CANARY.encode(), CANARY.encode()))
    assert str(error) == "env: has the key 'A' twice"


@pytest.mark.parametrize("name", ["", "A=B", "=", "A\0B", "LD_PRELOAD", "AGENTD_X", "_PYI_X"])
def test_env_names_that_no_child_may_get_are_refused(name: str) -> None:
    """Names execve cannot take, and names that would speak to the linker, agentd or its bundle."""
    error = refusal(json.dumps({"env": {"FINE": "1", name: CANARY}}).encode())
    assert str(error).startswith("env: the name ")


@pytest.mark.parametrize("name", ["LD", "ld_preload", "PYTHONPATH", "XAGENTD_", "A B", "é", "-"])
def test_other_env_names_are_taken(name: str) -> None:
    """Only the listed ones are refused."""
    assert parse({"env": {name: "x"}}).env == {name: "x"}


def test_an_assignment_in_the_place_of_a_name_is_not_shown() -> None:
    """NAME=VALUE as a name is a mistake that must not put the value into the log."""
    error = refusal(json.dumps({"env": {f"API_KEY={CANARY}": "x"}}).encode())
    assert "'API_KEY'" in str(error)
    assert CANARY not in str(error)


def test_a_long_or_strange_name_is_shown_short_and_in_ascii() -> None:
    """A name can forge no log line and fill no log."""
    name = "LD_\n\x1b[31mé" + "x" * 100_000
    error = refusal(json.dumps({"env": {name: CANARY}}).encode())
    assert len(str(error)) < 200
    assert str(error).isascii()
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ({"prompt": 1}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [CANARY]}, "prompt"),
        ({"env": [CANARY]}, "env"),
        ({"env": None}, "env"),
        ({"env": CANARY}, "env"),
        ({"env": {"A": 1}}, "env 'A'"),
        ({"env": {"A": None}}, "env 'A'"),
        ({"env": {"A": {"B": CANARY}}}, "env 'A'"),
        ({"env": {"A": f"{CANARY}\0"}}, "env 'A'"),
        ({"id": 7}, "id"),
        ({"id": None}, "id"),
        ({"id": ""}, "id"),
        ({"id": "."}, "id"),
        ({"id": ".."}, "id"),
        ({"id": f"../{CANARY}"}, "id"),
        ({"id": "é"}, "id"),
        ({"id": "a" * 129}, "id"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": None}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": -0.0}, "timeout"),
        ({"timeout": 10**400}, "timeout"),
        ({"args": CANARY}, "args"),
        ({"args": [CANARY, 1]}, "args"),
        ({"args": None}, "args"),
        ({"args": {"a": CANARY}}, "args"),
        ({"args": [f"{CANARY}\0"]}, "args"),
        ({"cwd": 1}, "cwd"),
        ({"cwd": ""}, "cwd"),
        ({"cwd": f"/{CANARY}\0"}, "cwd"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(document: dict[str, object], key: str) -> None:
    """The error names the key; the value is in neither its text nor its traceback."""
    error = refusal(json.dumps(document).encode())
    assert str(error).startswith(f"{key}: ")
    assert CANARY not in "".join(traceback.format_exception(error))
    assert error.__context__ is None


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"1e-999", b"1" * 5000])
def test_a_timeout_no_float_can_hold_is_refused(number: bytes) -> None:
    """Neither infinity nor nothing is a number of seconds."""
    assert str(refusal(b'{"timeout": %s}' % number)).startswith("timeout: ")


def test_a_whole_number_is_a_timeout() -> None:
    """Seconds need no decimal point, and 1e308 of them are finite."""
    assert parse({"timeout": 5}).timeout == 5.0
    timeout = parse({"timeout": 1e308}).timeout
    assert timeout is not None
    assert math.isfinite(timeout)


def test_a_timeout_may_be_as_long_as_the_daemons_and_no_longer() -> None:
    """0 for the daemon's means that there is no limit."""
    assert parse({"timeout": 10}, max_timeout=10).timeout == 10
    assert parse({"timeout": 1e9}, max_timeout=0).timeout == 1e9
    assert "--timeout" in str(refusal(b'{"timeout": 10.5}', max_timeout=10))


@pytest.mark.parametrize(("key", "value"), [("args", ["x"]), ("args", []), ("cwd", "/")])
def test_args_and_cwd_need_permission(key: str, value: object) -> None:
    """Each of the two by its own name."""
    data = json.dumps({key: value}).encode()
    other = BOTH - {key}
    for allow in (frozenset[str](), other):
        assert str(refusal(data, allow=allow)).startswith(f"{key}: ")
    assert parse_context(data, allow=frozenset({key})).env == {}


@pytest.mark.parametrize("text", ["a", "A.b_c-9", "...", "-", "a" * 128])
def test_an_id_is_of_the_characters_of_a_file_name(text: str) -> None:
    assert valid_id(text)
    assert parse({"id": text}).id == text


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "a b", "a\n", "é", "٣", "a" * 129])
def test_other_ids_are_not(text: str) -> None:
    """What could be a path, a line break or another alphabet's digit names no run."""
    assert not valid_id(text)


@given(
    document=st.fixed_dictionaries(
        {},
        optional={
            key: st.recursive(
                st.just(CANARY) | st.integers() | st.just(CANARY + "\0") | st.none(),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["A", "LD_X", ""]), inner, max_size=3)
                ),
            )
            for key in WHOLE
        },
    ),
    allow=st.sampled_from([BOTH, frozenset[str]()]),
)
def test_no_error_ever_tells_a_value(document: dict[str, object], allow: frozenset[str]) -> None:
    """A canary in every value is in no message, no repr, no traceback and no chained error."""
    try:
        parsed = parse(document, allow=allow)
    except ContextError as error:
        assert CANARY not in "".join(traceback.format_exception(error))
        assert CANARY not in repr(error)
        assert error.__context__ is None
    else:
        assert parsed.id == CANARY or CANARY not in repr(parsed)
