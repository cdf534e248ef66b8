"""Twin of agentd.sansio.jws."""

import base64
import json
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from testing.tokens import KINDS, private_key, public_jwk, public_key

from agentd.sansio.jws import (
    HMAC_DIGESTS,
    Key,
    SigningKey,
    base64url_decode,
    base64url_encode,
    json_object,
    public_key_of,
    sign,
    signed_by,
)

ASYMMETRIC = [*KINDS.items(), ("Ed25519", "ed25519"), ("RS512", "rsa"), ("PS384", "rsa")]


# Made before the tests that are timed: an RSA key takes a while.
PUBLIC = {kind: public_key(kind) for _, kind in ASYMMETRIC}


def pair_of(algorithm: str, kind: str, which: int = 0) -> tuple[SigningKey, Key]:
    return (
        SigningKey(algorithm, private_key(kind, which)),
        Key(None, algorithm, public_key(kind, which)),
    )


@pytest.mark.parametrize(("algorithm", "kind"), ASYMMETRIC)
def test_asymmetric_signature(algorithm: str, kind: str) -> None:
    """What a private key signs, its public key and no other one verifies."""
    private, public = pair_of(algorithm, kind)
    signature = sign(private, b"header.payload")
    assert signed_by(public, b"header.payload", signature)
    assert not signed_by(public, b"header.payloaD", signature)
    assert not signed_by(pair_of(algorithm, kind, which=1)[1], b"header.payload", signature)


@pytest.mark.parametrize("algorithm", sorted(HMAC_DIGESTS))
def test_hmac_signature(algorithm: str) -> None:
    """An HMAC secret verifies what it signed, under its own hash only."""
    secret = b"s" * 32
    signature = sign(SigningKey(algorithm, secret), b"header.payload")
    assert signed_by(Key(None, algorithm, secret), b"header.payload", signature)
    for other in HMAC_DIGESTS.keys() - {algorithm}:
        assert not signed_by(Key(None, other, secret), b"header.payload", signature)
    assert not signed_by(Key(None, algorithm, b"t" * 32), b"header.payload", signature)


def test_hmac_known_answer() -> None:
    """RFC 7515 appendix A.1: its secret, its signing input, its signature."""
    secret = base64url_decode(
        "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"
    )
    signing_input = (
        b"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9."
        b"eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0"
        b"cnVlfQ"
    )
    signature = base64url_decode("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
    assert secret is not None
    assert signature is not None
    assert signed_by(Key(None, "HS256", secret), signing_input, signature)


def test_eddsa_known_answer() -> None:
    """RFC 8037 appendix A.4: its key, its signing input, its signature."""
    key = public_key_of(
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    )
    signature = base64url_decode(
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    )
    signing_input = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
    assert signature is not None
    assert signed_by(Key(None, "EdDSA", key), signing_input, signature)
    assert signed_by(Key(None, "Ed25519", key), signing_input, signature)


@pytest.mark.parametrize(("algorithm", "kind"), ASYMMETRIC)
@given(signature=st.binary(max_size=600))
@example(b"")
@example(bytes(64))
@example(bytes(96))
@example(bytes(132))
@example(bytes(256))
def test_any_signature(algorithm: str, kind: str, signature: bytes) -> None:
    """Bytes of any length that are no signature are no signature: no error comes out."""
    assert not signed_by(Key(None, algorithm, PUBLIC[kind]), b"header.payload", signature)


@pytest.mark.parametrize("kind", ["ed25519", "p256", "p384", "p521", "rsa"])
def test_public_key_of(kind: str) -> None:
    """A public JWK gives the key it was made from."""
    assert public_key_of(public_jwk(kind)) == public_key(kind)
    assert public_key_of(public_jwk(kind)) != public_key(kind, which=1)


@pytest.mark.parametrize(
    "jwk",
    [
        {},
        {"kty": "oct", "k": "AAAA"},
        {"kty": "OKP"},
        {"kty": "OKP", "crv": "Ed25519"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"},
        {"kty": "OKP", "crv": "Ed25519", "x": 7},
        {"kty": "OKP", "crv": "X25519", "x": "A" * 43},
        {"kty": "OKP", "crv": ["Ed25519"], "x": "A" * 43},
        {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43},
        {"kty": "EC", "crv": "P-256", "x": "A" * 42, "y": "A" * 43},
        {"kty": "EC", "crv": "P-192", "x": "A" * 32, "y": "A" * 32},
        {"kty": "RSA"},
        {"kty": "RSA", "n": "AQAB"},
        {"kty": "RSA", "n": "", "e": ""},
        {"kty": "RSA", "n": "é" * 400, "e": "AQAB"},
        {"kty": "RSA", "n": None, "e": []},
    ],
)
def test_public_key_of_nonsense(jwk: dict[str, object]) -> None:
    """Members that are missing, of a wrong type, or off the curve make no key."""
    assert public_key_of(jwk) is None


@given(st.binary(max_size=100))
def test_base64url_round_trip(data: bytes) -> None:
    """Every value has a spelling without padding that gives it back."""
    text = base64url_encode(data)
    assert "=" not in text
    assert base64url_decode(text) == data
    assert base64.urlsafe_b64decode(text + "==") == data


@given(st.text(max_size=20) | st.text("AQgw_-=", max_size=9))
@example("=")
@example("A")
@example("AB")
@example("AA==")
@example("AA\n")
@example("A+/A")
@example("\ud800\udc00AA")
@example("\uff21\uff21")
def test_base64url_has_one_spelling(text: str) -> None:
    """A text decodes only if it is exactly what its value would be written as."""
    data = base64url_decode(text)
    assert data is None or base64url_encode(data) == text


@pytest.mark.parametrize(
    "text", ["A", "AB", "AA==", "AA=", "AA\n", " AA", "A+/A", "\uff21\uff21", "\ud800"]
)
def test_base64url_refused(text: str) -> None:
    """Padding, spare bits, white space and other alphabets are not base64url."""
    assert base64url_decode(text) is None


@given(
    st.dictionaries(
        st.text(),
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.lists(st.text()),
    )
)
def test_json_object(value: dict[str, object]) -> None:
    """An object comes back as it was."""
    try:
        data = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        data = json.dumps(value).encode()
        assert json_object(data) is None
    else:
        assert json_object(data) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'"x"',
        b"7",
        b"null",
        b"{",
        b"{} {}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e400}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":"\xff"}',
        b'{"\xff":1}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\udc00\\ud800"}',
        b'{"a":' + b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
    ],
)
def test_no_json_object(data: bytes) -> None:
    """What is not one JSON object in UTF-8, or holds what a float cannot, is none."""
    assert json_object(data) is None


@given(st.binary())
def test_any_bytes_as_json(data: bytes) -> None:
    """Any bytes are an object or none: no error comes out."""
    value = json_object(data)
    assert value is None or isinstance(value, dict)


def test_hmac_needs_no_cryptography() -> None:
    """Signing and verifying with an HMAC secret imports neither PyJWT nor cryptography."""
    script = (
        "import sys\n"
        "from agentd.sansio.jws import Key, SigningKey, sign, signed_by\n"
        "signature = sign(SigningKey('HS256', b's' * 32), b'x')\n"
        "assert signed_by(Key(None, 'HS256', b's' * 32), b'x', signature)\n"
        "assert not {'jwt', 'cryptography'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_repr_has_no_material() -> None:
    """A key's repr has nothing of the key."""
    assert "secret" not in repr(Key("k", "HS256", b"secret"))
    assert "secret" not in repr(SigningKey("HS256", b"secret"))
