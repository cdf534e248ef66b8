"""Keys: PEM, JWK (RFC 7517), JWK sets and HMAC secrets in; keys pinned to one algorithm out.

Invariant: a key decides by what algorithm it is used, before any token is seen. A key that could
mint is refused where keys verify: it must not lie beside untrusted code. No error says anything of
a key's content.

Refuses to know tokens, files and URLs. ``cryptography`` is imported when an asymmetric key is read.
"""

from __future__ import annotations

import contextlib
from typing import Any

from agentd import AgentdError
from agentd.sansio.jws import (
    HMAC_DIGESTS,
    Key,
    SigningKey,
    base64url_decode,
    json_object,
    public_key_of,
)

MIN_SECRET = 32
"""Bytes an HMAC secret must have."""

# Kind of public key -> the algorithms it may be pinned to, and how many of them, from the first,
# it implies when neither its "alg" nor the user names one. "Ed25519" is what RFC 9864 calls EdDSA
# with such a key.
_PINS = {
    "ed25519": (("EdDSA", "Ed25519"), 1),
    "secp256r1": (("ES256",), 1),
    "secp384r1": (("ES384",), 1),
    "secp521r1": (("ES512",), 1),
    "rsa": (("RS256", "PS256", "RS384", "PS384", "RS512", "PS512"), 2),
}
ALGORITHMS = frozenset(HMAC_DIGESTS).union(*(names for names, _ in _PINS.values()))
"""Every algorithm that ``--jwt-algorithm`` may name."""

# 2048: RFC 7518 section 3.3. Beyond 8192 one signature costs milliseconds, and nobody has them.
_RSA_BITS = range(2048, 8193)

# RFC 7518 sections 6.2.2 and 6.3.2, RFC 8037 section 2: members only a private key has.
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})

_PEM_BEGIN = b"-----BEGIN "
_PEM_PRIVATE = b"PRIVATE KEY-----"
_PEM_CERTIFICATE = b"CERTIFICATE-----"


class KeyFormatError(AgentdError):
    """What was given as a key is none that can be used.

    ``reason`` says why in words without any of its content; ``source`` names where it came from.
    """

    def __init__(self, reason: str, source: str = "the key") -> None:
        super().__init__(f"cannot use {source}: {reason}")
        self.reason = reason


class _MintingKeyError(KeyFormatError):
    """A key that signs was found where keys verify: never passed over, not even in a set."""


def parse_keys(data: bytes, *, algorithm: str | None = None) -> list[Key]:
    """Read the verification keys in a PEM, JWK or JWK set document, or an HMAC secret.

    ``algorithm`` is needed for HMAC (``HS256``, ``HS384``, ``HS512``: then ``data`` is the secret
    itself, less one newline at its end, or an ``oct`` JWK); for other keys it may only confirm, or
    choose among RSA's. An RSA key with neither "alg" nor ``algorithm`` comes twice: pinned to RS256
    and to PS256. A certificate gives its key; its dates and issuer are not looked at. In a set,
    keys of other uses and kinds are passed over (RFC 7517 section 5).

    Raises KeyFormatError.
    """
    if algorithm is not None and algorithm not in ALGORITHMS:
        raise KeyFormatError("--jwt-algorithm is none of " + ", ".join(sorted(ALGORITHMS)))
    text = data.strip()
    document = json_object(text) if text.startswith(b"{") else None
    if document is None:
        if algorithm in HMAC_DIGESTS:
            return [Key(None, algorithm, _secret(data))]
        return _parse_pem(data, algorithm)
    if "keys" not in document:
        return _parse_jwk(document, algorithm)
    return _parse_jwk_set(document["keys"], algorithm)


def parse_signing_key(data: bytes, *, algorithm: str | None = None) -> SigningKey:
    """Read the PEM private key, or with an HMAC ``algorithm`` the secret, that mints tokens.

    Raises KeyFormatError.
    """
    if algorithm in HMAC_DIGESTS:
        return SigningKey(algorithm, _secret(data))
    if _PEM_PRIVATE not in data:
        raise KeyFormatError("it is not a PEM private key (an HMAC secret needs its algorithm)")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private: Any = None
    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
        private = load_pem_private_key(data, password=None)
    if private is None:
        raise KeyFormatError("its PEM private key is damaged, encrypted or of an unknown kind")
    return SigningKey(_pin(private.public_key(), algorithm)[0], private)


def _parse_pem(data: bytes, algorithm: str | None) -> list[Key]:
    if _PEM_PRIVATE in data:
        raise _MintingKeyError("it holds a private key; give the public key of the pair")
    blocks = data.split(_PEM_BEGIN)[1:]
    if not blocks:
        raise KeyFormatError(
            "it is neither a PEM public key nor a JWK nor a JWK set "
            "(an HMAC secret needs --jwt-algorithm HS256)"
        )
    # The others of a certificate chain are its authorities', who sign certificates, not tokens.
    if sum(block.startswith(_PEM_CERTIFICATE) for block in blocks) > 1:
        raise KeyFormatError("it holds more than one certificate")
    keys: list[Key] = []
    for block in blocks:
        public = _read_pem(block)
        if public is None:
            raise KeyFormatError("a PEM block in it is damaged or of an unknown kind")
        keys += [Key(None, name, public) for name in _pin(public, algorithm)]
    return keys


def _read_pem(block: bytes) -> object:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from cryptography.x509 import InvalidVersion, load_pem_x509_certificate

    try:
        if block.startswith(_PEM_CERTIFICATE):
            return load_pem_x509_certificate(_PEM_BEGIN + block).public_key()
        return load_pem_public_key(_PEM_BEGIN + block)
    except (ValueError, UnsupportedAlgorithm, InvalidVersion):
        return None


def _parse_jwk_set(entries: object, algorithm: str | None) -> list[Key]:
    if not isinstance(entries, list):
        raise KeyFormatError('its "keys" is not an array')
    found: list[Key] = []
    passed_over = KeyFormatError("the set is empty")
    for entry in entries:
        try:
            found += _parse_jwk(entry, algorithm)
        except _MintingKeyError:
            raise
        except KeyFormatError as error:
            passed_over = error
    if not found:
        raise KeyFormatError(f"no key in the set can be used; the last: {passed_over.reason}")
    return found


def _parse_jwk(entry: object, algorithm: str | None) -> list[Key]:
    if not isinstance(entry, dict):
        raise KeyFormatError("it is not an object")
    if not _PRIVATE_MEMBERS.isdisjoint(entry):
        raise _MintingKeyError("it holds a private key; give the public key of the pair")
    kid, kty, named, use = (_text(entry, name) for name in ("kid", "kty", "alg", "use"))
    operations = entry.get("key_ops", ["verify"])
    if use not in (None, "sig") or not (isinstance(operations, list) and "verify" in operations):
        raise KeyFormatError('its "use" or "key_ops" is not to verify signatures')
    if None not in (algorithm, named) and algorithm != named:
        raise KeyFormatError('its "alg" is not what --jwt-algorithm says')
    if kty == "oct":
        return [Key(kid, *_read_oct(entry, algorithm))]
    public = public_key_of(entry)
    if public is None:
        raise KeyFormatError("its members do not make an OKP, EC or RSA public key")
    return [Key(kid, name, public) for name in _pin(public, algorithm or named)]


def _read_oct(entry: dict[str, Any], algorithm: str | None) -> tuple[str, bytes]:
    if algorithm not in HMAC_DIGESTS:
        raise _MintingKeyError("it holds a symmetric key, which needs --jwt-algorithm HS256")
    secret = base64url_decode(_text(entry, "k") or "")
    if secret is None or len(secret) < MIN_SECRET:
        raise KeyFormatError(f'its "k" is not the base64url of at least {MIN_SECRET} bytes')
    return algorithm, secret


def _text(entry: dict[str, Any], name: str) -> str | None:
    value = entry.get(name)
    if value is None or isinstance(value, str):
        return value
    raise KeyFormatError(f'its "{name}" is not a string')


def _pin(public: object, named: str | None) -> tuple[str, ...]:
    """Return the algorithms a public key is used with: the one named, or those it implies."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    kind = None
    if isinstance(public, ed25519.Ed25519PublicKey):
        kind = "ed25519"
    elif isinstance(public, ec.EllipticCurvePublicKey):
        kind = public.curve.name
    elif isinstance(public, rsa.RSAPublicKey):
        kind = "rsa"
        if public.key_size not in _RSA_BITS:
            raise KeyFormatError(f"an RSA key has {_RSA_BITS[0]} to {_RSA_BITS[-1]} bits")
    if kind not in _PINS:
        raise KeyFormatError("it is none of Ed25519, P-256, P-384, P-521, RSA")
    names, implied = _PINS[kind]
    if named is None:
        return names[:implied]
    if named not in names:
        raise KeyFormatError("the algorithm named for it belongs to another kind of key")
    return (named,)


def _secret(data: bytes) -> bytes:
    """Return ``data`` as an HMAC secret, unless it looks like a key that everyone may know."""
    secret = data.removesuffix(b"\n")
    if (
        data.startswith((b"ssh-", b"ecdsa-"))
        or any(mark in data for mark in (_PEM_BEGIN, b'"kty"', b'"keys"'))
        or _is_der(data)
    ):
        raise KeyFormatError("it looks like an asymmetric key, not like an HMAC secret")
    if len(secret) < MIN_SECRET:
        raise KeyFormatError(f"an HMAC secret has at least {MIN_SECRET} bytes")
    return secret


def _is_der(data: bytes) -> bool:
    """Say whether all of it is one DER SEQUENCE that begins as keys do (X.690 section 8.1)."""
    if data[:1] != b"\x30" or len(data) < MIN_SECRET:
        return False
    octets = max(0, data[1] - 0x80)
    size = int.from_bytes(data[2 : 2 + octets]) if octets else data[1]
    first = data[2 + octets : 3 + octets]
    return 2 + octets + size == len(data) and first in (b"\x30", b"\x02")
