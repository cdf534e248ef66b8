"""Twin of agentd.sansio.used."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentd.sansio.tokens import Claims, TokenError
from agentd.sansio.used import TokenCacheFull, UsedTokens

NOW = 1_000_000.0


def claims(jti: str | None = "one", exp: float = NOW + 60) -> Claims:
    return Claims(sub=None, run=None, jti=jti, exp=exp, context=False)


def refusal(used: UsedTokens, token: Claims, now: float = NOW) -> str:
    with pytest.raises(TokenError) as caught:
        used.reserve(token, now)
    return caught.value.reason


def test_second_use() -> None:
    """A token that was let in is refused from then on."""
    used = UsedTokens()
    used.reserve(claims(), NOW)
    used.spend(claims())
    assert refusal(used, claims()) == "used"


def test_use_while_reserved() -> None:
    """While one request waits with a token, another one with the same token is refused."""
    used = UsedTokens()
    used.reserve(claims(), NOW)
    assert refusal(used, claims()) == "used"


def test_release() -> None:
    """A token whose request was refused for another reason may come again."""
    used = UsedTokens()
    first, second = claims(), claims()
    used.reserve(first, NOW)
    used.release(first)
    assert len(used) == 0
    used.reserve(second, NOW)
    used.spend(second)
    used.release(second)
    assert refusal(used, claims()) == "used"


def test_release_is_of_ones_own() -> None:
    """Only the request that holds a token can give it back or spend it, and only once."""
    used = UsedTokens()
    first, second = claims(), claims()
    used.reserve(first, NOW)
    used.release(second)
    used.spend(second)
    assert refusal(used, second) == "used"
    used.release(first)
    used.reserve(second, NOW)
    used.release(first)
    assert refusal(used, first) == "used"


def test_no_jti() -> None:
    """A token without jti is not remembered, and may be used again."""
    used = UsedTokens(capacity=0)
    token = claims(jti=None)
    for finish in (used.spend, used.release):
        used.reserve(token, NOW)
        finish(token)
    assert len(used) == 0


def test_other_jti() -> None:
    """Tokens are told apart by their jti alone."""
    used = UsedTokens()
    used.reserve(claims("one"), NOW)
    used.reserve(claims("One"), NOW)
    other = Claims(sub="else", run="else", jti="one", exp=NOW + 5, context=True)
    assert refusal(used, other) == "used"


def test_full() -> None:
    """Beyond the capacity a token is refused for now, until one of the others has expired."""
    used = UsedTokens(capacity=3, leeway=5)
    for n in range(3):
        used.reserve(claims(str(n), NOW + 10 + n), NOW)
    with pytest.raises(TokenCacheFull, match="before older ones expire"):
        used.reserve(claims("more"), NOW)
    with pytest.raises(TokenCacheFull):
        used.reserve(claims("more"), NOW + 14.9)  # within the leeway all are still good
    used.reserve(claims("more"), NOW + 15)
    assert len(used) == 3
    with pytest.raises(TokenCacheFull):
        used.reserve(claims("yet more"), NOW + 15)


def test_full_is_no_bad_token() -> None:
    """A full memory is told apart from a bad token: 503 is not 401."""
    assert not issubclass(TokenCacheFull, TokenError)


def test_release_makes_room() -> None:
    """A released token makes room for another one."""
    used = UsedTokens(capacity=1)
    first = claims("one")
    used.reserve(first, NOW)
    used.release(first)
    used.reserve(claims("two"), NOW)


def test_memory_follows_what_is_valid() -> None:
    """Expired tokens go long before the capacity is reached."""
    used = UsedTokens(capacity=1_000_000)
    most = 0
    for n in range(20_000):
        used.reserve(claims(str(n), NOW + n + 60), NOW + n)
        most = max(most, len(used))
    assert most <= 1024


def test_clock_goes_forth_and_back() -> None:
    """A token forgotten while the clock was ahead is refused when it is valid again."""
    used = UsedTokens(capacity=2, leeway=5)
    spent = claims("spent", NOW + 60)
    used.reserve(spent, NOW)
    used.spend(spent)
    used.reserve(claims("held", NOW + 70), NOW)
    used.reserve(claims("ahead", NOW + 3700), NOW + 3600)
    assert len(used) == 1
    assert refusal(used, claims("spent", NOW + 60)) == "used, perhaps: the clock went back"
    assert refusal(used, claims("held", NOW + 70)) == "used, perhaps: the clock went back"
    used.reserve(claims("later", NOW + 71), NOW)


def test_spend_after_it_was_forgotten() -> None:
    """A request may outlast its token: what it then says about it changes nothing."""
    used = UsedTokens(capacity=1, leeway=0)
    slow = claims("slow", NOW + 1)
    used.reserve(slow, NOW)
    used.reserve(claims("next"), NOW + 2)
    used.release(slow)
    used.spend(slow)
    assert len(used) == 1
    assert "perhaps" in refusal(used, claims("slow", NOW + 1))


def test_smaller_leeway_than_the_policy() -> None:
    """A leeway smaller than the policy's refuses good tokens sooner than it lets one in twice."""
    used = UsedTokens(capacity=1, leeway=0)
    used.reserve(claims("one", NOW), NOW - 1)
    used.reserve(claims("two", NOW + 30), NOW)
    assert "perhaps" in refusal(used, claims("one", NOW))


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(-100, 100), st.floats(-100, 100)), max_size=30
    ),
    st.integers(0, 3),
)
def test_never_twice(presented: list[tuple[str, float, float]], capacity: int) -> None:
    """However the clock jumps, no token is let in twice."""
    used = UsedTokens(capacity, leeway=5)
    let_in: set[tuple[str, float]] = set()
    for jti, exp, now in presented:
        try:
            used.reserve(claims(jti, exp), now)
        except (TokenError, TokenCacheFull):
            continue
        assert (jti, exp) not in let_in
        let_in.add((jti, exp))
        assert len(used) <= capacity


class Presented(RuleBasedStateMachine):
    """Requests that come, wait, and are granted or refused, under a clock that jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.used = UsedTokens(capacity=4, leeway=5)
        self.now = NOW
        self.waiting: list[Claims] = []
        self.granted: set[tuple[str | None, float]] = set()

    @rule(seconds=st.floats(-4000, 4000))
    def jump(self, seconds: float) -> None:
        self.now += seconds

    @rule(jti=st.sampled_from("abcdef"), ttl=st.integers(1, 3600))
    def present(self, jti: str, ttl: int) -> None:
        token = claims(jti, math.floor(NOW) + ttl)
        try:
            self.used.reserve(token, self.now)
        except (TokenError, TokenCacheFull):
            return
        assert (jti, token.exp) not in self.granted
        self.waiting.append(token)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def grant(self, data: st.DataObject) -> None:
        token = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.used.spend(token)
        assert (token.jti, token.exp) not in self.granted
        self.granted.add((token.jti, token.exp))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        self.used.release(self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1))))

    @invariant()
    def bounded(self) -> None:
        assert len(self.used) <= 4


TestPresented = Presented.TestCase
