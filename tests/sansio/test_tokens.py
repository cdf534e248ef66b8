"""Twin of agentd.sansio.tokens."""

import base64
import json
import math
import subprocess
import sys
from typing import Any

import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from testing.tokens import (
    KINDS,
    jwks,
    mint_token,
    private_jwk,
    private_pem,
    public_jwk,
    public_pem,
)

from agentd import AgentdError
from agentd.sansio.tokens import (
    MAX_SIZE,
    Claims,
    Key,
    KeyFormatError,
    MintError,
    TokenError,
    TokenPolicy,
    UnknownKeyID,
    mint,
    parse_keys,
    verify,
)

NOW = 1_700_000_000.0
SECRET = b"correct horse battery staple, twice"
PEM = private_pem("ed25519")
KEYS = parse_keys(public_pem("ed25519"))
POLICY = TokenPolicy()


def accept(
    token: str, keys: list[Key] = KEYS, policy: TokenPolicy = POLICY, now: float = NOW
) -> Claims:
    return verify(token, keys, policy, now)


def refusal(
    token: str, keys: list[Key] = KEYS, policy: TokenPolicy = POLICY, now: float = NOW
) -> str:
    """Return the reason, having checked that nothing of the token came along."""
    with pytest.raises(TokenError) as caught:
        verify(token, keys, policy, now)
    error = caught.value
    assert str(error) == f"cannot accept the token: {error.reason}"
    assert error.args == (str(error),)
    assert error.__context__ is None
    assert error.__cause__ is None
    return error.reason


def payload(**claims: object) -> bytes:
    """The claims of a good token, some replaced or added."""
    return json.dumps({"exp": NOW + 60, **claims}).encode()


def issue(key: bytes, **claims: Any) -> str:
    """A token that is good for a minute, unless ``claims`` say otherwise."""
    return mint_token(key, **{"iat": None, "exp": NOW + 60, **claims})


def signed(body: bytes) -> str:
    return issue(PEM, payload=body)


def segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# --- signatures


@pytest.mark.parametrize(("algorithm", "kind"), KINDS.items())
def test_every_algorithm(algorithm: str, kind: str) -> None:
    """A token is accepted under the key of its issuer, given as PEM, JWK or JWK set."""
    token = issue(private_pem(kind), algorithm=algorithm, run="r1", sub="me", jti="j")
    for document in (
        public_pem(kind),
        json.dumps(public_jwk(kind)).encode(),
        json.dumps(public_jwk(kind, kid="k", alg=algorithm)).encode(),
        jwks(public_jwk("p256", which=1), public_jwk(kind, use="sig"), public_jwk("rsa", which=1)),
    ):
        claims = accept(token, parse_keys(document))
        assert (claims.sub, claims.run, claims.jti, claims.context) == ("me", "r1", "j", False)
        assert claims.exp == NOW + 60
    assert refusal(token, parse_keys(public_pem(kind, which=1))) == "signature"


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_hmac(algorithm: str) -> None:
    """A token under an HMAC secret is accepted when that algorithm was named, and no other."""
    token = issue(SECRET, algorithm=algorithm)
    assert accept(token, parse_keys(SECRET, algorithm=algorithm)).exp > NOW
    for other in {"HS256", "HS384", "HS512"} - {algorithm}:
        assert refusal(token, parse_keys(SECRET, algorithm=other)) == "algorithm"
    assert refusal(token, parse_keys(SECRET * 2, algorithm=algorithm)) == "signature"
    assert refusal(token) == "algorithm"


def test_rsa_is_pinned_by_its_alg() -> None:
    """An RSA key takes RS256 and PS256 alike, until its JWK or the user says which."""
    tokens = {name: issue(private_pem("rsa"), algorithm=name) for name in ("RS256", "PS256")}
    either = parse_keys(public_pem("rsa"))
    for name, token in tokens.items():
        accept(token, either)
        accept(token, parse_keys(json.dumps(public_jwk("rsa", alg=name)).encode()))
        for other in tokens.keys() - {name}:
            assert refusal(token, parse_keys(public_pem("rsa"), algorithm=other)) == "algorithm"
    assert refusal(issue(private_pem("rsa"), algorithm="RS512"), either) == "algorithm"


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", ""])
def test_no_signature(name: str) -> None:
    """A token that says it needs no signature is refused, with and without one."""
    header = segment(json.dumps({"alg": name, "typ": "JWT"}).encode())
    body = segment(payload())
    for signature in ("", segment(b"x" * 64), issue(PEM).rpartition(".")[2]):
        assert refusal(f"{header}.{body}.{signature}") == "algorithm"
    assert refusal(f"{header}.{body}") == "malformed"


def test_public_key_as_hmac_secret() -> None:
    """A token "signed" by HMAC with the public key as the secret is refused (RFC 8725, 2.1)."""
    for kind in ("rsa", "p256", "ed25519"):
        pem = public_pem(kind)
        header, body = segment(b'{"alg":"HS256","typ":"JWT"}'), segment(payload())
        for secret in (pem, pem.strip(), json.dumps(public_jwk(kind)).encode()):
            hs256 = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
            signature = segment(hs256.sign(f"{header}.{body}".encode(), secret))
            assert refusal(f"{header}.{body}.{signature}", parse_keys(pem)) == "algorithm"


@pytest.mark.parametrize(
    "header",
    [
        {"jwk": public_jwk("ed25519", which=1)},
        {"jwk": private_jwk("ed25519", which=1)},
        {"jku": "http://127.0.0.1:1/keys"},
        {"x5u": "http://127.0.0.1:1/cert"},
        {"x5c": ["MIIB"]},
        {"x5t#S256": "AAAA"},
    ],
)
def test_keys_in_the_header(header: dict[str, object]) -> None:
    """A key or an address of one that a token brings along is not looked at."""
    assert refusal(issue(private_pem("ed25519", which=1), headers=header)) == "signature"
    accept(issue(PEM, headers=header))


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "", None, 7])
def test_other_header_members(typ: object) -> None:
    """What RFC 7515 tells to ignore is ignored."""
    header = segment(json.dumps({"alg": "EdDSA", "typ": typ, "cty": "x", "else": [1]}).encode())
    token = resigned(header, segment(payload()))
    accept(token)


def resigned(header: str, body: str) -> str:
    """Sign any two segments with the good key, whatever they say."""
    key = jwt.get_algorithm_by_name("EdDSA")
    signature = key.sign(f"{header}.{body}".encode(), key.prepare_key(PEM))
    return f"{header}.{body}.{segment(signature)}"


@pytest.mark.parametrize(
    "member",
    [
        {"crit": ["b64"], "b64": True},
        {"crit": ["b64"], "b64": False},
        {"crit": ["exp"], "exp": 7},
        {"crit": []},
        {"crit": None},
        {"crit": "x"},
        {"b64": False},
        {"b64": True},
    ],
)
def test_critical_header(member: dict[str, object]) -> None:
    """Extensions that must be understood are not, so their token is refused (RFC 7515, 4.1.11)."""
    header = segment(json.dumps({"alg": "EdDSA", **member}).encode())
    assert refusal(resigned(header, segment(payload()))) == "critical header"


@pytest.mark.parametrize(
    "name", ["HS256", "ES256", "RS256", "Ed25519", "EdDSA ", "eddsa", "ES256K"]
)
def test_algorithm_is_the_keys(name: str) -> None:
    """A good signature under a header that names another algorithm is refused."""
    header = segment(json.dumps({"alg": name}).encode())
    assert refusal(resigned(header, segment(payload()))) == "algorithm"


@pytest.mark.parametrize("value", [None, 7, True, ["EdDSA"], {"EdDSA": 1}, 1e30])
def test_algorithm_of_a_wrong_type(value: object) -> None:
    """An algorithm that is no string is refused."""
    header = segment(json.dumps({"alg": value}).encode())
    assert refusal(resigned(header, segment(payload()))) == "algorithm"
    assert refusal(resigned(segment(b"{}"), segment(payload()))) == "algorithm"


def test_no_keys() -> None:
    """Without any key no token is accepted."""
    assert refusal(issue(PEM), []) == "no keys"


# --- kid

SET = parse_keys(
    jwks(public_jwk("ed25519", kid="a"), public_jwk("ed25519", 1, kid="b"), public_jwk("p256"))
)


def test_kid_chooses_the_key() -> None:
    """The key that a token names is tried, and only that one."""
    accept(issue(PEM, headers={"kid": "a"}), SET)
    accept(issue(private_pem("ed25519", which=1), headers={"kid": "b"}), SET)
    assert refusal(issue(PEM, headers={"kid": "b"}), SET) == "signature"


def test_no_kid() -> None:
    """A token that names no key is tried with all of its algorithm."""
    accept(issue(PEM), SET)
    accept(issue(private_pem("ed25519", which=1)), SET)
    accept(issue(private_pem("p256")), SET)
    assert refusal(issue(private_pem("ed25519", which=2)), SET) == "signature"
    assert refusal(issue(private_pem("rsa")), SET) == "algorithm"


@pytest.mark.parametrize("kid", ["c", "A", "", "a ", "../a", "a\0", "é", "x" * 1000])
def test_unknown_kid(kid: str) -> None:
    """A name that no key has is told apart, so that fresher keys can be looked for."""
    with pytest.raises(UnknownKeyID) as caught:
        accept(issue(private_pem("ed25519", which=2), headers={"kid": kid}), SET)
    assert caught.value.reason == "unknown kid"


def test_unknown_kid_needs_a_known_algorithm() -> None:
    """A token that no key could ever verify causes no search for fresher keys."""
    header = segment(b'{"alg":"none","kid":"c"}')
    assert refusal(f"{header}.{segment(payload())}.", SET) == "algorithm"


def test_unknown_kid_beside_keys_without() -> None:
    """A key that has no kid is tried for every token whose name no other key has."""
    token = issue(private_pem("p256"), headers={"kid": "whatever"})
    accept(token, SET)
    with pytest.raises(UnknownKeyID):
        accept(issue(private_pem("p256", which=1), headers={"kid": "whatever"}), SET)


def test_kid_of_another_algorithm() -> None:
    """A token that names a key of another algorithm is refused."""
    token = issue(private_pem("p256"), headers={"kid": "a"})
    assert refusal(token, SET) == "algorithm"


def test_kid_when_keys_have_none() -> None:
    """With a PEM key a token may have any kid."""
    accept(issue(PEM, headers={"kid": "any"}))
    assert refusal(issue(private_pem("ed25519", 1), headers={"kid": "any"})) == "signature"


@pytest.mark.parametrize("kid", [None, 7, True, ["a"], {"a": 1}])
def test_kid_of_a_wrong_type(kid: object) -> None:
    """A kid that is no string is refused."""
    header = segment(json.dumps({"alg": "EdDSA", "kid": kid}).encode())
    assert refusal(resigned(header, segment(payload())), SET) == "malformed header"


# --- text

GOOD = issue(PEM, run="run-1", sub="me", jti="j-1", aud="agentd", iss="issuer")


@given(st.text())
@example("")
@example(".")
@example("..")
@example("." * 8192)
@example("....")
@example("a.b.c")
@example("\ud800.\udfff.\ud800")
@example("é.é.é")
@example("e30.e30.")
@example("bnVsbA.bnVsbA.bnVsbA")
@example("\0")
def test_any_text(text: str) -> None:
    """Whatever the text, it is a token or is refused: no other error comes out."""
    assert refusal(text)


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=80))
@example(b"{", b"", b"")
@example(b"[" * 4000, b"", b"")
@example(b'{"alg":' + b"[" * 4000, b"", b"")
@example(b'{"alg":"EdDSA","kid":"\xff"}', b"", b"")
@example(b'{"alg":"EdDSA","kid":"\\ud800"}', b"", b"")
@example(b'{"alg":"EdDSA"}', b"", b"")
@example(b'{"alg":"EdDSA","kid":' + b"9" * 5000 + b"}", b"", b"")
def test_any_segments(header: bytes, body: bytes, signature: bytes) -> None:
    """Whatever is in its three segments, a token nobody signed is refused."""
    assert refusal(f"{segment(header)}.{segment(body)}.{segment(signature)}")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    ),
    st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "x"]),
)
def test_any_header_member(value: object, name: str) -> None:
    """Whatever a header member is, the answer is Claims or a TokenError."""
    header = segment(json.dumps({"alg": "EdDSA", name: value}).encode())
    token = resigned(header, segment(payload()))
    try:
        accept(token, SET)
    except TokenError as error:
        assert error.__context__ is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    ),
    st.sampled_from(["exp", "nbf", "iat", "aud", "iss", "sub", "jti", "run", "context", "x"]),
)
def test_any_claim(value: object, name: str) -> None:
    """Whatever a claim is, the answer is Claims or a TokenError."""
    token = signed(payload(**{name: value}))
    try:
        claims = accept(token, policy=TokenPolicy(audience="me", issuer="us"))
    except TokenError as error:
        assert error.__context__ is None
    else:
        assert isinstance(claims, Claims)


@given(st.integers(0, len(GOOD) - 1), st.characters())
def test_changed_character(at: int, character: str) -> None:
    """A token with any one character changed is refused: there is no second spelling of it."""
    token = GOOD[:at] + character + GOOD[at + 1 :]
    if token == GOOD:
        accept(token)
    else:
        assert refusal(token)


@given(st.integers(0, len(GOOD)), st.characters() | st.sampled_from("=.-_A"))
def test_inserted_character(at: int, character: str) -> None:
    """A token with any one character more is refused, padding included."""
    assert refusal(GOOD[:at] + character + GOOD[at:])


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 40))
def test_removed_characters(at: int, count: int) -> None:
    """A token with some of it missing is refused."""
    assert refusal(GOOD[:at] + GOOD[at + count :])


def test_padding() -> None:
    """Padding that some libraries let pass is refused."""
    for extra in ("=", "==", "===", "\n", " "):
        assert refusal(GOOD + extra) == "malformed"


def test_number_of_segments() -> None:
    """Two segments, or the five of an encrypted token, are no signed token."""
    assert refusal(GOOD.rpartition(".")[0]) == "malformed"
    assert refusal(GOOD + ".") == "malformed"
    assert refusal(GOOD + ".AAAA.AAAA") == "malformed"


def test_size() -> None:
    """A token of 8 KiB is read, a longer one is not looked at."""
    token = issue(PEM, padding="x" * 5500)
    spare = (MAX_SIZE - len(token)) * 3 // 4
    token = issue(PEM, padding="x" * (5500 + spare))
    assert MAX_SIZE - 3 < len(token) <= MAX_SIZE
    accept(token)
    assert refusal(issue(PEM, padding="x" * (5510 + spare))) == "too long"
    assert refusal("x" * 10_000_000) == "too long"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{", b'{"exp":NaN}', b'{"exp":1e400}', b"\xff", b"[" * 4000]
)
def test_payload_that_is_no_object(body: bytes) -> None:
    """A signed payload that is no JSON object is refused."""
    assert refusal(signed(body)) == "malformed claims"


@pytest.mark.parametrize("header", [b"", b"[]", b"null", b'"EdDSA"', b"\xff", b"{", b"[" * 4000])
def test_header_that_is_no_object(header: bytes) -> None:
    """A header that is no JSON object is refused."""
    assert refusal(resigned(segment(header), segment(payload()))) == "malformed header"


# --- time


def test_no_exp() -> None:
    """A token must say when it expires."""
    assert refusal(signed(b"{}")) == "no exp"
    assert refusal(issue(PEM, exp=None)) == "no exp"


@pytest.mark.parametrize("value", [None, True, False, "9999999999", "", [], {}, [NOW + 60]])
@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
def test_date_of_a_wrong_type(name: str, value: object) -> None:
    """A date that is no number is refused by its name."""
    assert refusal(signed(payload(**{name: value}))) == name


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 5000])
@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
def test_date_that_is_no_number(name: str, text: str) -> None:
    """What JSON has not, and what a float cannot hold, is refused."""
    assert refusal(signed(f'{{"exp":{NOW + 60},"{name}":{text}}}'.encode())) == "malformed claims"


@pytest.mark.parametrize("leeway", [0, 5, 0.5])
def test_expiry(leeway: float) -> None:
    """A token is good before exp + leeway, and no longer at it (RFC 7519 section 4.1.4)."""
    policy = TokenPolicy(leeway=leeway)
    token = signed(payload(exp=NOW))
    assert accept(token, policy=policy, now=NOW + leeway - 0.01).exp == NOW
    assert refusal(token, policy=policy, now=NOW + leeway) == "expired"
    assert refusal(token, policy=policy, now=NOW + 1e9) == "expired"


@pytest.mark.parametrize("exp", [0, -1, -1e300, 1.5, -(10**300)])
def test_long_expired(exp: float) -> None:
    """Any date in the past is in the past."""
    assert refusal(signed(payload(exp=exp))) == "expired"


def test_exp_too_far() -> None:
    """A token that would be good for longer than the policy allows is refused."""
    policy = TokenPolicy(leeway=5, max_ttl=300)
    assert accept(signed(payload(exp=NOW + 305)), policy=policy).exp == NOW + 305
    assert refusal(signed(payload(exp=NOW + 305.1)), policy=policy) == "exp too far"
    for exp in (10**23, 10**300, 1e308, NOW + 3606):
        assert refusal(signed(payload(exp=exp))) == "exp too far"


@pytest.mark.parametrize(
    ("name", "reason"), [("nbf", "not yet valid"), ("iat", "issued in the future")]
)
def test_not_before(name: str, reason: str) -> None:
    """A token is not good earlier than it says, the leeway aside (section 4.1.5)."""
    policy = TokenPolicy(leeway=5)
    accept(signed(payload(**{name: NOW + 5})), policy=policy)
    accept(signed(payload(**{name: -(10**300)})), policy=policy)
    for since in (NOW + 5.1, 1e300, 10**300):
        assert refusal(signed(payload(**{name: since})), policy=policy) == reason


def test_only_the_time_passed_in_counts() -> None:
    """The machine's clock plays no part."""
    token = signed(payload(exp=1000, iat=900, nbf=900))
    assert accept(token, now=950.0).exp == 1000
    assert math.isfinite(accept(signed(payload(exp=10**12)), now=1e12 - 60).exp)


# --- audience, issuer


@pytest.mark.parametrize("aud", ["agentd", ["agentd"], ["other", "agentd"], [7, "agentd"]])
def test_audience(aud: object) -> None:
    """The audience is named exactly, alone or in a list (RFC 7519 section 4.1.3)."""
    accept(signed(payload(aud=aud)), policy=TokenPolicy(audience="agentd"))


@pytest.mark.parametrize(
    "aud", ["other", "agentd2", "Agentd", " agentd", "", [], ["other"], [["agentd"]], {"agentd": 1}]
)
def test_wrong_audience(aud: object) -> None:
    """A token for somebody else is refused."""
    assert refusal(signed(payload(aud=aud)), policy=TokenPolicy(audience="agentd")) == "aud"


def test_missing_audience() -> None:
    """When an audience is set, a token must have one; when none is set, it may have any."""
    assert refusal(signed(payload()), policy=TokenPolicy(audience="agentd")) == "aud"
    assert refusal(signed(payload(aud=None)), policy=TokenPolicy(audience="agentd")) == "aud"
    accept(signed(payload(aud="whoever")))
    accept(signed(payload(aud=7)))


@pytest.mark.parametrize("iss", [None, "", "issuer/", "Issuer", ["issuer"], 7])
def test_issuer(iss: object) -> None:
    """When an issuer is set, a token must name exactly that."""
    policy = TokenPolicy(issuer="issuer")
    accept(signed(payload(iss="issuer")), policy=policy)
    assert refusal(signed(payload(iss=iss)), policy=policy) == "iss"
    assert refusal(signed(payload()), policy=policy) == "iss"
    accept(signed(payload(iss=iss)))


# --- sub, jti, run, context


@pytest.mark.parametrize("run", ["r", "a.b_c-9", "A" * 128, "0", "-", "..."])
def test_run(run: str) -> None:
    """The run a token is for is a run id."""
    assert accept(signed(payload(run=run))).run == run


@pytest.mark.parametrize(
    "run", ["", ".", "..", "A" * 129, "a b", "a/b", "a\n", "é", "\0", None, 7, ["r"]]
)
def test_bad_run(run: object) -> None:
    """A run that can be no run's id is refused."""
    assert refusal(signed(payload(run=run))) == "run"


@pytest.mark.parametrize("name", ["sub", "jti"])
def test_text_claim(name: str) -> None:
    """sub and jti are any text of 1 to 256 characters."""
    for value in ("x", "é" * 256, "a b\n", "\0"):
        assert getattr(accept(signed(payload(**{name: value}))), name) == value


@pytest.mark.parametrize("name", ["sub", "jti"])
@pytest.mark.parametrize("bad", ["", "x" * 257, None, 7, True, ["x"], {}])
def test_bad_text_claim(name: str, bad: object) -> None:
    """A sub or jti that is empty, too long or no text is refused by its name."""
    assert refusal(signed(payload(**{name: bad}))) == name


def test_absent_claims() -> None:
    """A token needs none of them but exp."""
    expected = Claims(sub=None, run=None, jti=None, exp=NOW + 60, context=False)
    assert accept(signed(payload())) == expected


def test_context() -> None:
    """Only a true ``context`` lets a client bring its context."""
    assert accept(signed(payload(context=True))).context is True
    assert accept(signed(payload(context=False))).context is False


@pytest.mark.parametrize("bad", [None, 1, "true", []])
def test_bad_context(bad: object) -> None:
    """A ``context`` that is neither true nor false is refused."""
    assert refusal(signed(payload(context=bad))) == "context"


def test_signature_before_claims() -> None:
    """Nothing is said about the claims of a token that nobody we know has signed."""
    forged = issue(private_pem("ed25519", which=1), payload=b"{}")
    assert refusal(forged) == "signature"


# --- minting


@pytest.mark.parametrize("kind", ["ed25519", "p256", "p384", "p521", "rsa"])
def test_mint(kind: str) -> None:
    """What is minted is verified, says what was asked, and is good for that long."""
    token = mint(
        private_pem(kind),
        now=NOW + 0.7,
        ttl=60,
        jti="j",
        run="r1",
        sub="me",
        context=True,
        audience="agentd",
        issuer="us",
    )
    policy = TokenPolicy(audience="agentd", issuer="us", leeway=0, max_ttl=60)
    claims = accept(token, parse_keys(public_pem(kind)), policy, NOW + 0.7)
    assert claims == Claims(sub="me", run="r1", jti="j", exp=NOW + 60, context=True)


def test_minted_token_for_others() -> None:
    """Another JWT library reads a minted token, and finds only the claims that were asked for."""
    token = mint(PEM, now=NOW, ttl=60, jti="j")
    decoded = jwt.decode_complete(
        token, public_pem("ed25519"), ["EdDSA"], options={"verify_exp": False}
    )
    assert decoded["header"] == {"alg": "EdDSA", "typ": "JWT"}
    assert decoded["payload"] == {"iat": NOW, "exp": NOW + 60, "jti": "j"}
    other = jwt.encode({"exp": NOW + 60}, PEM, "EdDSA")
    assert accept(other).exp == NOW + 60


def test_mint_with_hmac() -> None:
    """A secret mints when its algorithm is named."""
    token = mint(SECRET, now=NOW, ttl=60, jti="j", algorithm="HS512")
    assert accept(token, parse_keys(SECRET, algorithm="HS512")).jti == "j"
    with pytest.raises(KeyFormatError):
        mint(SECRET, now=NOW, ttl=60, jti="j")


def test_mint_with_named_algorithm() -> None:
    """An RSA key mints PS256 when told so."""
    token = mint(private_pem("rsa"), now=NOW, ttl=60, jti="j", algorithm="PS256")
    accept(token, parse_keys(public_pem("rsa"), algorithm="PS256"))


@pytest.mark.parametrize(
    ("claim", "name"),
    [
        ({"run": "a b"}, "run"),
        ({"run": ""}, "run"),
        ({"sub": ""}, "sub"),
        ({"sub": "x" * 257}, "sub"),
        ({"jti": ""}, "jti"),
        ({"ttl": math.nan}, "ttl"),
        ({"ttl": math.inf}, "ttl"),
        ({"ttl": 1e300}, "ttl"),
        ({"sub": "\udc80"}, "text"),
        ({"audience": "\udc80"}, "text"),
    ],
)
def test_mint_refuses(claim: dict[str, object], name: str) -> None:
    """What would be refused everywhere is not minted, and named."""
    arguments: dict[str, object] = {"now": NOW, "ttl": 60, "jti": "j", **claim}
    with pytest.raises(MintError, match=f"its {name} would be refused"):
        mint(PEM, **arguments)  # type: ignore[arg-type]  # one of them wrong, on purpose


@given(
    run=st.none() | st.text("aZ0._-", min_size=1, max_size=128).filter(lambda run: run.strip(".")),
    sub=st.none() | st.text(min_size=1, max_size=256),
    ttl=st.integers(0, 3600),
    context=st.booleans(),
)
def test_mint_round_trip(run: str | None, sub: str | None, ttl: int, context: bool) -> None:
    """Whatever is minted says the same when it is verified."""
    token = mint(PEM, now=NOW, ttl=ttl, jti="j", run=run, sub=sub, context=context)
    assert accept(token) == Claims(sub=sub, run=run, jti="j", exp=NOW + ttl, context=context)


# --- nothing leaks, little is imported


def test_errors_are_agentds() -> None:
    """Every refusal is an AgentdError; an unknown kid is a refusal too."""
    assert issubclass(TokenError, AgentdError)
    assert issubclass(UnknownKeyID, TokenError)
    assert issubclass(MintError, AgentdError)


@pytest.mark.parametrize(
    "body",
    [
        b'{"c4n4ry":',
        payload(run="c4n4ry !"),
        payload(sub="c4n4ry" * 99),
        payload(exp="c4n4ry"),
        payload(aud="c4n4ry"),
        payload(context="c4n4ry"),
        b'{"exp":"c4n4ry\xff"}',
    ],
)
def test_no_error_shows_the_token(body: bytes) -> None:
    """No refusal has a value of the token in its text, arguments or context."""
    token = issue(PEM, payload=body, headers={"kid": "c4n4ry"})
    with pytest.raises(TokenError) as caught:
        accept(token, policy=TokenPolicy(audience="agentd"))
    told = repr((str(caught.value), caught.value.args, vars(caught.value)))
    assert "c4n4ry" not in told
    assert token[-20:] not in told
    assert caught.value.__context__ is None


def test_importing_is_cheap() -> None:
    """Importing the room, or using it with HMAC, loads neither PyJWT nor cryptography."""
    script = (
        "import sys\n"
        "from agentd.sansio.tokens import TokenPolicy, mint, parse_keys, verify\n"
        "token = mint(b's' * 32, now=0, ttl=60, jti='j', algorithm='HS256')\n"
        "verify(token, parse_keys(b's' * 32, algorithm='HS256'), TokenPolicy(), 0)\n"
        "assert not {'jwt', 'cryptography'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
