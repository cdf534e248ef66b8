"""Twin of agentd.sansio.jwk."""

import datetime as dt
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import example, given
from hypothesis import strategies as st
from testing.tokens import (
    jwks,
    private_jwk,
    private_key,
    private_pem,
    public_jwk,
    public_key,
    public_pem,
)

from agentd.sansio.jwk import ALGORITHMS, KeyFormatError, parse_keys, parse_signing_key
from agentd.sansio.jws import base64url_encode, sign, signed_by

IMPLIED = {
    "ed25519": ["EdDSA"],
    "p256": ["ES256"],
    "p384": ["ES384"],
    "p521": ["ES512"],
    "rsa": ["RS256", "PS256"],
}
HMAC = ["HS256", "HS384", "HS512"]
SECRET = b"correct horse battery staple, twice"


def algorithms(data: bytes, algorithm: str | None = None) -> list[str]:
    return [key.algorithm for key in parse_keys(data, algorithm=algorithm)]


def refusal(data: bytes, algorithm: str | None = None) -> str:
    with pytest.raises(KeyFormatError) as caught:
        parse_keys(data, algorithm=algorithm)
    assert str(caught.value) == f"cannot use the key: {caught.value.reason}"
    assert caught.value.__context__ is None
    return caught.value.reason


def as_json(document: object) -> bytes:
    return json.dumps(document).encode()


def certificate(kind: str) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    start = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=public_key(kind),
        serial_number=1,
        not_valid_before=start,
        not_valid_after=start + dt.timedelta(days=1),
    )
    authority = ec.generate_private_key(ec.SECP256R1())
    return builder.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize("kind", IMPLIED)
def test_pem(kind: str) -> None:
    """A PEM public key is pinned to what its kind implies, and has no kid."""
    keys = parse_keys(public_pem(kind))
    assert [key.algorithm for key in keys] == IMPLIED[kind]
    assert all(key.kid is None and key.material == public_key(kind) for key in keys)


@pytest.mark.parametrize("kind", IMPLIED)
def test_jwk(kind: str) -> None:
    """A JWK is pinned to what its kind implies, and keeps its kid."""
    keys = parse_keys(as_json(public_jwk(kind, kid="one", use="sig", key_ops=["verify"])))
    assert [key.algorithm for key in keys] == IMPLIED[kind]
    assert all(key.kid == "one" and key.material == public_key(kind) for key in keys)


def test_jwks() -> None:
    """A set gives all its keys, in order, each with its own kid."""
    document = jwks(public_jwk("ed25519", kid="a"), public_jwk("p256", kid="b"), public_jwk("rsa"))
    assert [(key.kid, key.algorithm) for key in parse_keys(document)] == [
        ("a", "EdDSA"),
        ("b", "ES256"),
        (None, "RS256"),
        (None, "PS256"),
    ]


def test_several_pem_blocks() -> None:
    """A PEM file may hold several keys, with text around them."""
    data = b"old:\n" + public_pem("ed25519") + b"\nnew:\r\n" + public_pem("p256") + b"end\n"
    assert algorithms(data) == ["EdDSA", "ES256"]


def test_pkcs1_pem() -> None:
    """The older PEM form of RSA public keys is read."""
    pkcs1 = public_key("rsa").public_bytes(Encoding.PEM, PublicFormat.PKCS1)
    assert algorithms(pkcs1) == ["RS256", "PS256"]


@pytest.mark.parametrize("kind", IMPLIED)
def test_certificate(kind: str) -> None:
    """A certificate gives its key, whatever its dates."""
    assert algorithms(certificate(kind)) == IMPLIED[kind]


def test_certificate_chain() -> None:
    """A chain is refused: the keys of authorities sign no tokens."""
    reason = refusal(certificate("p256") + certificate("rsa"))
    assert reason == "it holds more than one certificate"


@pytest.mark.parametrize("whole", [certificate("p256"), public_pem("p256")])
def test_damaged_pem(whole: bytes) -> None:
    """A PEM block cut short, or with damage inside, is refused."""
    middle = len(whole) // 2
    for data in (whole[:40], whole[:-30], whole[:middle] + b"!" + whole[middle:]):
        assert refusal(data) == "a PEM block in it is damaged or of an unknown kind"


def test_other_pem_block() -> None:
    """A PEM block that is neither a public key nor a certificate is refused."""
    data = public_pem("p256").replace(b"PUBLIC KEY", b"DH PARAMETERS")
    assert refusal(data) == "a PEM block in it is damaged or of an unknown kind"


@pytest.mark.parametrize("kind", ["ed448", "secp256k1"])
def test_other_kinds(kind: str) -> None:
    """Keys of kinds and curves that no algorithm here uses are refused, as PEM and as JWK."""
    reason = "it is none of Ed25519, P-256, P-384, P-521, RSA"
    assert refusal(public_pem(kind)) == reason
    assert refusal(as_json(public_jwk(kind))) == reason


def test_key_that_cannot_sign() -> None:
    """A key for key agreement is refused."""
    public = x25519.X25519PrivateKey.generate().public_key()
    data = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert refusal(data) == "it is none of Ed25519, P-256, P-384, P-521, RSA"


def test_rsa_size() -> None:
    """RSA below 2048 bits is too weak, beyond 8192 too slow."""
    assert refusal(public_pem("rsa1024")) == "an RSA key has 2048 to 8192 bits"
    huge = rsa.RSAPublicNumbers(65537, 2**8200 + 1).public_key()
    data = huge.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert refusal(data) == "an RSA key has 2048 to 8192 bits"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"hello",
        b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA user@host",
        b"[]",
        b"{",
        b"{" * 100_000,
        b'{"kty":' + b"[" * 100_000,
        b"\xff\xfe\x00",
        public_key("p256").public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    ],
)
def test_no_key_at_all(data: bytes) -> None:
    """What is no key document is refused in words that say what would be."""
    assert refusal(data).startswith("it is neither a PEM public key nor a JWK nor a JWK set")


@given(data=st.binary(), algorithm=st.sampled_from([None, *sorted(ALGORITHMS)]))
@example(b"-----BEGIN PUBLIC KEY-----", None)
@example(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", None)
@example(b"-----BEGIN " * 1000, None)
def test_any_bytes(data: bytes, algorithm: str | None) -> None:
    """Any bytes are keys or a KeyFormatError that holds none of them."""
    try:
        keys = parse_keys(data, algorithm=algorithm)
    except KeyFormatError as error:
        assert error.__context__ is None
    else:
        assert {key.algorithm for key in keys} == {algorithm}


# --- private keys


@pytest.mark.parametrize("kind", IMPLIED)
def test_private_key_is_refused(kind: str) -> None:
    """A key that could mint is refused where keys verify, in every form."""
    reason = "it holds a private key; give the public key of the pair"
    assert refusal(private_pem(kind)) == reason
    assert refusal(public_pem(kind) + private_pem(kind)) == reason
    assert refusal(as_json(private_jwk(kind))) == reason
    assert refusal(jwks(public_jwk(kind), private_jwk(kind, use="enc"))) == reason


def test_damaged_private_key_is_refused_as_such() -> None:
    """A private key that could not even be read is still named as one, and not shown."""
    data = private_pem("ed25519")[:-40]
    assert refusal(data) == "it holds a private key; give the public key of the pair"


def test_symmetric_key_in_a_set() -> None:
    """A symmetric key mints too: without an HMAC algorithm it is refused, not passed over."""
    document = jwks(public_jwk("ed25519"), {"kty": "oct", "k": base64url_encode(SECRET)})
    assert refusal(document) == "it holds a symmetric key, which needs --jwt-algorithm HS256"


# --- algorithms


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("ed25519", "EdDSA"),
        ("ed25519", "Ed25519"),
        ("p256", "ES256"),
        ("p384", "ES384"),
        ("p521", "ES512"),
        ("rsa", "RS256"),
        ("rsa", "RS384"),
        ("rsa", "RS512"),
        ("rsa", "PS256"),
        ("rsa", "PS384"),
        ("rsa", "PS512"),
    ],
)
def test_named_algorithm(kind: str, algorithm: str) -> None:
    """An algorithm of the key's kind, named by the user or the JWK, is the only one it gets."""
    assert algorithms(public_pem(kind), algorithm) == [algorithm]
    assert algorithms(as_json(public_jwk(kind)), algorithm) == [algorithm]
    assert algorithms(as_json(public_jwk(kind, alg=algorithm))) == [algorithm]
    assert algorithms(as_json(public_jwk(kind, alg=algorithm)), algorithm) == [algorithm]


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        (kind, algorithm)
        for kind, own in IMPLIED.items()
        for algorithm in ("EdDSA", "ES256", "ES512", "RS256")
        if algorithm not in own
    ],
)
def test_contradicting_algorithm(kind: str, algorithm: str) -> None:
    """An algorithm of another kind of key is refused, whoever names it."""
    reason = "the algorithm named for it belongs to another kind of key"
    assert refusal(public_pem(kind), algorithm) == reason
    assert refusal(as_json(public_jwk(kind)), algorithm) == reason
    assert refusal(as_json(public_jwk(kind, alg=algorithm))) == reason


def test_jwk_contradicts_the_user() -> None:
    """A JWK whose "alg" is not the named algorithm is refused, even if its kind could do both."""
    reason = 'its "alg" is not what --jwt-algorithm says'
    assert refusal(as_json(public_jwk("rsa", alg="RS256")), "PS256") == reason
    assert refusal(as_json({"kty": "oct", "k": "A" * 43, "alg": "HS512"}), "HS256") == reason


@pytest.mark.parametrize("algorithm", ["none", "", "HS1", "hs256", "ES256K", "RSA-OAEP"])
def test_unknown_algorithm(algorithm: str) -> None:
    """An algorithm nobody here knows is refused with those that are known."""
    assert refusal(public_pem("ed25519"), algorithm).startswith("--jwt-algorithm is none of ES256")
    assert refusal(as_json(public_jwk("ed25519", alg=algorithm)))


# --- sets


@pytest.mark.parametrize(
    "entry",
    [
        public_jwk("rsa", use="enc"),
        public_jwk("rsa", key_ops=["encrypt"]),
        public_jwk("rsa", key_ops="verify"),
        public_jwk("rsa", alg="RSA-OAEP"),
        public_jwk("rsa", kid=7),
        public_jwk("rsa1024"),
        public_jwk("ed448"),
        public_jwk("secp256k1"),
        {"kty": "OKP", "crv": "X25519", "x": "A" * 43},
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"},
        {"kty": ["EC"]},
        {"kty": "EC"},
        {},
        None,
        7,
        "key",
    ],
)
def test_set_passes_over(entry: object) -> None:
    """An entry of another use or kind, or that makes no key, does not spoil the rest of a set."""
    assert algorithms(jwks(entry, public_jwk("ed25519"), entry)) == ["EdDSA"]
    assert refusal(jwks(entry)).startswith("no key in the set can be used; the last: ")


def test_named_algorithm_selects_from_a_set() -> None:
    """With an algorithm named, only the keys of a set that are for it are used."""
    document = jwks(public_jwk("ed25519"), public_jwk("rsa"), public_jwk("p256"))
    assert algorithms(document, "PS256") == ["PS256"]
    assert refusal(document, "ES384").startswith("no key in the set can be used")


@pytest.mark.parametrize("entries", ["{}", "null", '"keys"', "7"])
def test_set_without_array(entries: str) -> None:
    """A set whose "keys" is no array is refused."""
    assert refusal(b'{"keys":%s}' % entries.encode()) == 'its "keys" is not an array'


def test_empty_set() -> None:
    """A set without keys is refused."""
    assert refusal(jwks()) == "no key in the set can be used; the last: the set is empty"


@pytest.mark.parametrize("name", ["kid", "alg", "use", "kty"])
@pytest.mark.parametrize("value", [7, True, [], {}])
def test_member_of_a_wrong_type(name: str, value: object) -> None:
    """A member that has to be a string is named when it is none."""
    assert refusal(as_json({**public_jwk("p256"), name: value})) == f'its "{name}" is not a string'


# --- HMAC


@pytest.mark.parametrize("algorithm", HMAC)
def test_secret(algorithm: str) -> None:
    """With an HMAC algorithm the bytes are the secret, less one newline at the end."""
    for data in (SECRET, SECRET + b"\n"):
        (key,) = parse_keys(data, algorithm=algorithm)
        assert (key.kid, key.algorithm, key.material) == (None, algorithm, SECRET)
    (key,) = parse_keys(SECRET + b"\n\n", algorithm=algorithm)
    assert key.material == SECRET + b"\n"


def test_short_secret() -> None:
    """A secret of fewer than 32 bytes is refused; the newline does not count."""
    assert algorithms(b"s" * 32, "HS512") == ["HS512"]
    for data in (b"", b"s" * 31, b"s" * 31 + b"\n"):
        assert refusal(data, "HS256") == "an HMAC secret has at least 32 bytes"


@pytest.mark.parametrize(
    "data",
    [
        *(public_pem(kind) for kind in IMPLIED),
        *(
            public_key(kind).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            for kind in IMPLIED
        ),
        public_key("rsa").public_bytes(Encoding.DER, PublicFormat.PKCS1),
        public_key("p256").public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
        public_key("ed25519").public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
        private_pem("ed25519"),
        certificate("p256"),
        b"# comment\n" + public_pem("p256"),
        as_json(public_jwk("rsa"))[:-1],
        as_json([public_jwk("rsa")]),
    ],
)
def test_known_key_as_secret(data: bytes) -> None:
    """What everybody may know is no HMAC secret (RFC 8725 section 2.1)."""
    reason = "it looks like an asymmetric key, not like an HMAC secret"
    assert refusal(data, "HS256") == reason
    with pytest.raises(KeyFormatError, match=reason):
        parse_signing_key(data, algorithm="HS256")


@pytest.mark.parametrize("kind", IMPLIED)
def test_public_jwk_as_secret(kind: str) -> None:
    """A public JWK is not taken for an HMAC key either, alone or in a set."""
    reason = "the algorithm named for it belongs to another kind of key"
    assert refusal(as_json(public_jwk(kind)), "HS256") == reason
    assert refusal(jwks(public_jwk(kind)), "HS256").endswith(reason)


@pytest.mark.parametrize(
    "data",
    [
        b"0" * 32,
        b"0\x1e" + b"a" * 30,
        b"0\x1e\x30" + b"a" * 30,
        b"0\x9e" + bytes(30),
        b"0\xff" + b"a" * 40,
        b"{" + b"a" * 40,
    ],
)
def test_secret_that_begins_like_a_key(data: bytes) -> None:
    """A random secret may begin like DER or JSON: only a whole one is taken for a key."""
    assert algorithms(data, "HS256") == ["HS256"]


@given(st.binary(min_size=32, max_size=64))
def test_any_secret(data: bytes) -> None:
    """Random bytes are good secrets, the newline aside."""
    try:
        (key,) = parse_keys(data + b"\n", algorithm="HS256")
    except KeyFormatError as error:
        assert "asymmetric" in error.reason  # one in 2**23, or so
    else:
        assert key.material == data


def test_oct_jwk() -> None:
    """A symmetric JWK is a secret when an HMAC algorithm is named, in a set among others too."""
    entry = {"kty": "oct", "kid": "s", "k": base64url_encode(SECRET)}
    for document in (as_json(entry), jwks(public_jwk("rsa"), entry)):
        (key,) = parse_keys(document, algorithm="HS384")
        assert (key.kid, key.algorithm, key.material) == ("s", "HS384", SECRET)


@pytest.mark.parametrize("algorithm", [None, "EdDSA", "RS256"])
def test_oct_jwk_without_hmac(algorithm: str | None) -> None:
    """A symmetric JWK is refused unless HMAC was asked for by name."""
    entry = {"kty": "oct", "k": base64url_encode(SECRET)}
    reason = "it holds a symmetric key, which needs --jwt-algorithm HS256"
    assert refusal(as_json(entry), algorithm) == reason
    if algorithm is None:
        assert refusal(as_json({**entry, "alg": "HS256"})) == reason


@pytest.mark.parametrize("k", [None, "", "A" * 42, "A" * 43 + "=", "A" * 41 + "!!"])
def test_bad_oct_jwk(k: str | None) -> None:
    """A symmetric JWK whose value is missing, short or not base64url is refused."""
    reason = refusal(as_json({"kty": "oct", "k": k}), "HS256")
    assert reason == 'its "k" is not the base64url of at least 32 bytes'


# --- keys that mint


@pytest.mark.parametrize("kind", IMPLIED)
def test_signing_key(kind: str) -> None:
    """A PEM private key signs with the first algorithm its kind implies."""
    key = parse_signing_key(private_pem(kind))
    assert key.algorithm == IMPLIED[kind][0]
    verifier = parse_keys(public_pem(kind))[0]
    assert signed_by(verifier, b"input", sign(key, b"input"))


@pytest.mark.parametrize("form", [PrivateFormat.TraditionalOpenSSL, PrivateFormat.PKCS8])
def test_signing_key_forms(form: PrivateFormat) -> None:
    """The older PEM forms of private keys are read too."""
    data = private_key("p256").private_bytes(Encoding.PEM, form, NoEncryption())
    assert parse_signing_key(data).algorithm == "ES256"


def test_signing_key_with_named_algorithm() -> None:
    """An algorithm may be chosen for an RSA key, and contradict no key."""
    assert parse_signing_key(private_pem("rsa"), algorithm="PS256").algorithm == "PS256"
    with pytest.raises(KeyFormatError, match="another kind of key"):
        parse_signing_key(private_pem("ed25519"), algorithm="ES256")


def test_signing_secret() -> None:
    """With an HMAC algorithm the bytes are the secret, by the same rules as for verifying."""
    key = parse_signing_key(SECRET + b"\n", algorithm="HS256")
    assert (key.algorithm, key.material) == ("HS256", SECRET)
    with pytest.raises(KeyFormatError, match="at least 32 bytes"):
        parse_signing_key(b"short", algorithm="HS256")


@pytest.mark.parametrize("data", [b"", SECRET, public_pem("ed25519"), b'{"kty":"OKP"}'])
def test_no_signing_key(data: bytes) -> None:
    """What is no private key cannot mint."""
    with pytest.raises(KeyFormatError, match="it is not a PEM private key"):
        parse_signing_key(data)


def test_unusable_signing_key() -> None:
    """A private key that is damaged, encrypted, or of another kind cannot mint."""
    encrypted = private_key("ed25519").private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    for data in (encrypted, private_pem("rsa")[:300] + b"\n-----END PRIVATE KEY-----"):
        with pytest.raises(KeyFormatError, match="damaged, encrypted or of an unknown kind"):
            parse_signing_key(data)
    with pytest.raises(KeyFormatError, match="none of Ed25519"):
        parse_signing_key(private_pem("secp256k1"))


# --- canary


@given(cut=st.integers(0, 120), algorithm=st.sampled_from([None, "HS256", "EdDSA", "RS256"]))
def test_no_error_shows_the_key(cut: int, algorithm: str | None) -> None:
    """No error text, whatever was wrong, has eight characters of the key in it."""
    canary = b"c4n4ryc4n4ryc4n4ryc4n4ryc4n4ryc4n4ryc4n4ry7"
    for whole in (
        private_pem("ed25519"),
        b"-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----" % canary,
        b"-----BEGIN PUBLIC KEY-----\n%s\n-----END PUBLIC KEY-----" % canary,
        as_json({"kty": "oct", "k": canary.decode()[:20]}),
        as_json({"kty": canary.decode(), "alg": canary.decode(), "use": canary.decode()}),
    ):
        data = whole[:-cut] if cut else whole
        for parse in (parse_keys, parse_signing_key):
            try:
                parse(data, algorithm=algorithm)
            except KeyFormatError as error:
                told = f"{error} {error.args} {error.__context__!r}"
                assert "c4n4ry" not in told  # some of the cuts are good secrets
                assert private_pem("ed25519")[40:80].decode() not in told  # same
